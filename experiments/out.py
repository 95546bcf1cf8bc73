"""The --out flag of every command, defined once so that commands can be imported side by side."""

import os

from absl import flags

from agemem_jax.metrics import write_json
from experiments.paths import file_to_write

OUT = flags.DEFINE_string("out", "", "also write the figures of the command to this file, as JSON")


def check() -> None:
    """Raises InputError if --out names a file that cannot be written; its folder is made."""
    if OUT.value:
        file_to_write("out", os.path.expanduser(OUT.value))


def write(figures: dict) -> None:
    """Writes `figures` to the file of --out, if one was given."""
    if OUT.value:
        write_json(os.path.expanduser(OUT.value), figures)
