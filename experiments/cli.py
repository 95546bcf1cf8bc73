"""What the commands share: the --config flag, and errors in the user's input as one line instead of a traceback."""

import errno
import inspect
import os
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from agemem_jax.config import ConfigError, check_fields, check_override, make_absolute, validate
from agemem_jax.errors import InputError, storage_problem
from configs import base
from experiments import out

CONFIG = config_flags.DEFINE_config_file("config", None, "file of a config, e.g. configs/tiny.py", lock_config=True)
flags.disclaim_key_flags()  # `run` says whose flags these are
EXIT_CODE = 2  # of a refused command line, config or file
EXIT_INTERRUPTED = 130  # as after SIGINT

# What the system can have against a path, or a disk, and what to do about it.
REMEDIES = {
    errno.ENOENT: "give one that exists",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.EEXIST: "give another, or move away what is there",
    errno.EACCES: "give one that this user may use",
    errno.EPERM: "give one that this user may use",
    errno.EROFS: "give one on storage that can be written",
    errno.ENAMETOOLONG: "give a shorter one",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOSPC: "free some space, or give another folder; the same command then goes on",
    errno.EDQUOT: "free some space, or give another folder; the same command then goes on",
    errno.EFBIG: "raise the limit of file sizes, or give another folder",
    errno.EIO: "the storage fails",
    errno.ESTALE: "the share is gone; mount it again",
}


def run(main: Callable[..., None], takes_config: bool = True) -> None:
    """Parses the command line and calls `main(config)`, or `main()` of a command that takes no config.

    A misspelt flag or field, a value of the wrong type, every InputError and what the system has against a path end the
    program with exit code 2 and one line that names the field or file, the value and what would be right; Ctrl-C ends
    it with 130. Anything else is a defect, and keeps its traceback.
    """
    for name in ("config", "out") if takes_config else ("out",):
        flags.declare_key_flag(name)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.formatwarning = lambda message, *_: f"warning: {' '.join(str(message).split())}\n"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII alone shows the rest as escapes
            stream.reconfigure(errors="backslashreplace")

    def checked(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.FATAL)  # what orbax logs of a failure beside raising it would bury the one line
        out.check()
        if not takes_config:
            main()
            return
        check_fields(CONFIG.value, base.get_config())
        validate(CONFIG.value)
        make_absolute(CONFIG.value)
        main(CONFIG.value)

    def parser(argv: Sequence[str]) -> list[str]:
        return parse(argv, takes_config)

    try:
        app.run(checked, flags_parser=parser)
    except KeyboardInterrupt:
        stop("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        stop(message)


def explain(error: BaseException) -> str | None:
    """The words of an error that comes from what the user gave, or from a disk; None of a defect."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES and error.filename is not None:
        return f"{error.filename}: {error.strerror}; {REMEDIES[error.errno]}"
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        return f"{error}; set JAX_PLATFORMS to what this machine has (cpu, cuda, tpu)"
    if (problem := storage_problem(error)) is not None:
        return f"{problem}; mend that, or give another folder"
    return None


def parse(argv: Sequence[str], takes_config: bool = True) -> list[str]:
    """absl's flag parser, with InputErrors that tell what would be right."""
    path = config_path(argv)
    if takes_config and not any(re.fullmatch(r"--?(help\w*|\?)", arg) for arg in argv):
        config = load_config(path)
        for name, text in overrides(argv):
            check_override(config, name, text)
    elif path is not None or any(overrides(argv)):
        raise InputError("--config is no flag of this command; leave it out")
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{error}; --help lists the flags") from error
    if len(rest) > 1:
        fields = "; fields are set as in --config.rl.group_size=4" if takes_config else "; --help lists the flags"
        raise InputError(f"{rest[1]!r} is not a flag{fields}")
    return rest


def load_config(value: str | None) -> ConfigDict:
    """The config of --config=FILE.py[:ARGUMENT]. Raises InputError that says where the file is wrong."""
    folder = Path(base.__file__).parent
    known = f"there are {', '.join(sorted(p.name for p in folder.glob('[!_]*.py')))} in {folder}"
    if value is None:
        raise ConfigError(f"--config is missing; give a file, as in --config=configs/tiny.py ({known})")
    name, mark, argument = value.partition(":")
    if not Path(name).is_file():
        raise ConfigError(f"--config={value}: there is no such file; {known}")
    try:
        make = runpy.run_path(name).get("get_config")
        if not callable(make):
            raise ConfigError(f"--config={value}: {name} defines no get_config(); start from {folder / 'base.py'}")
        arguments = [argument] if mark else []
        try:
            inspect.signature(make).bind(*arguments)
        except TypeError:
            right = f"--config={name}" if mark else f"--config={name}:ARGUMENT"
            raise ConfigError(
                f"--config={value}: get_config takes {'no argument' if mark else 'an argument'}; give {right}"
            ) from None
        config = make(*arguments)
    except InputError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"--config={value}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={value}: {place(error, name)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise ConfigError(f"--config={value}: get_config returns a {kind}; an ml_collections.ConfigDict is needed")
    return config


def place(error: BaseException, name: str) -> str:
    """The last line of a config file that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == name]
    return f"{name}, line {lines[-1]}" if lines else name


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


def config_arguments(argv: Sequence[str]) -> list[str]:
    """The config of a command line and what it sets in it, as flags of another command."""
    return [f"--config={config_path(argv)}", *(f"--config.{name}={text}" for name, text in overrides(argv))]


def stop(message: Any, code: int = EXIT_CODE) -> None:
    """Ends the program with a message on stderr, which is one line whatever it holds."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)
