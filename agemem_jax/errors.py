"""What is wrong with something that the user gave, told apart from a defect of the program."""

import errno
import os
import re

# What a disk, share or folder may refuse; of what else an OSError tells, the program may be the cause.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES)


class InputError(ValueError):
    """A file, a model, a setting or an answer from outside that cannot be used.

    The message is one line that names the file or field, the value, and the remedy; commands print it without a
    traceback and end with exit code 2 (experiments/cli.py).
    """


def storage_problem(error: BaseException) -> str | None:
    """What disk or share refused ("No space left on device"), if that is behind an error; else None.

    Orbax and tensorstore put the system's words in the middle of long texts of their own.
    """
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in STORAGE:
            return f"{os.strerror(error.errno)}{f' ({error.filename})' if error.filename else ''}"
        said = [os.strerror(code) for code in STORAGE if re.search(re.escape(os.strerror(code)), str(error), re.I)]
        if said:
            return said[0]
        error = error.__cause__ or error.__context__
    return None
