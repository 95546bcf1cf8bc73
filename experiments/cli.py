"""What the commands share: the --config flag, and errors in the user's input as one line instead of a traceback."""

import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from agemem_jax.config import ConfigError, check_fields, check_override
from agemem_jax.errors import InputError
from configs import base

CONFIG = config_flags.DEFINE_config_file("config", None, "file of a config, e.g. configs/tiny.py", lock_config=True)
EXIT_CODE = 2  # of a refused command line or config


def run(main: Callable[[ConfigDict | None], None], config_required: bool = True) -> None:
    """Parses the command line and calls `main(config)`; without --config, where it may be left out, `main(None)`.

    A misspelt flag or field, a value of the wrong type and every InputError end the program with exit code 2 and one
    line that names the field, the value and what would be right.
    """

    def checked(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            if config_required or CONFIG.value is not None:
                require_config(CONFIG.value)
                check_fields(CONFIG.value, base.get_config())
            main(CONFIG.value)
        except InputError as error:
            stop(str(error))

    app.run(checked, flags_parser=parse)


def parse(argv: Sequence[str]) -> list[str]:
    """absl's flag parser, with errors that tell what would be right."""
    try:
        if config_path(argv) is not None:
            require_config(config_path(argv))
        rest = flags.FLAGS(argv)
    except ConfigError as error:
        stop(str(error))
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        stop(explain_flag_error(argv, error))
    if len(rest) > 1:
        stop(f"{rest[1]!r} is not a flag; fields are set as in --config.rl.group_size=4")
    return rest


def explain_flag_error(argv: Sequence[str], error: Exception) -> str:
    """Why a command line was refused: the first override that fits no field of the config, or else absl's message."""
    path = config_path(argv)
    try:
        require_config(path)
        config = runpy.run_path(path.split(":")[0])["get_config"](*path.split(":")[1:])
        for name, text in overrides(argv):
            check_override(config, name, text)
    except ValueError as explained:  # a ConfigError, or get_config's word on a variant that it lacks
        return str(explained)
    return str(error)


def require_config(value: str | ConfigDict | None) -> None:
    """Raises ConfigError unless a config was given; of a path, unless the file exists."""
    known = ", ".join(sorted(f"configs/{p.name}" for p in Path(base.__file__).parent.glob("[!_]*.py")))
    if value is None:
        raise ConfigError(f"--config is missing; give a file, as in --config=configs/tiny.py (there are {known})")
    if isinstance(value, str) and not Path(value.split(":")[0]).is_file():
        raise ConfigError(f"--config={value}: there is no such file; there are {known}")


def config_path(argv: Sequence[str]) -> str | None:
    """The value of --config on a command line."""
    for i, arg in enumerate(argv):
        if match := re.fullmatch(r"--?config(=(.*))?", arg):
            return match[2] if match[1] else next(iter(argv[i + 1 : i + 2]), None)
    return None


def overrides(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(dotted name, text) of each --config.NAME=TEXT, --config.NAME TEXT and --[no]config.NAME on a command line."""
    for i, arg in enumerate(argv):
        if match := re.fullmatch(r"--?(no)?config\.([^=]+)(=(.*))?", arg, re.DOTALL):
            following = argv[i + 1] if i + 1 < len(argv) and not argv[i + 1].startswith("-") else ""
            yield match[2], match[4] if match[3] else "false" if match[1] else following


def stop(message: str) -> None:
    """Ends the program with a message on stderr."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_CODE)
