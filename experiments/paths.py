"""Flags that hold a path, and a look at where a command will write, before the long work."""

import os
from pathlib import Path

from absl import flags

from agemem_jax.errors import InputError

flags.disclaim_key_flags()  # a flag is that of the command which defines it here


class PathParser(flags.ArgumentParser):
    """A path that is not empty; ~ is the home folder."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("is empty; give a path (. is the current folder)")
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help: str, required: bool = False) -> flags.FlagHolder[str]:
    """Defines a flag that holds a path."""
    return flags.DEFINE(PathParser(), name, default, help, required=required)


def folder_to_write(flag: str, value: str) -> Path:
    """The folder that a flag names, which need not exist.

    Raises InputError if a file is in its place or on the way to it, or if nothing can be written there.
    """
    path = Path(value)
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"--{flag}={value}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--{flag}={value}: this user cannot write to {there}; give another folder")
    return path


def file_to_write(flag: str, value: str) -> Path:
    """The file that a flag names, in a folder that is made if need be. Raises InputError as `folder_to_write`."""
    path = Path(value)
    if path.is_dir():
        raise InputError(f"--{flag}={value}: is a folder; give a file")
    folder_to_write(flag, str(path.parent)).mkdir(parents=True, exist_ok=True)
    return path
