"""The --out flag of every command, defined once so that commands can be imported side by side."""

from absl import flags

from agemem_jax.metrics import write_json

OUT = flags.DEFINE_string("out", "", "also write the figures of the command to this file, as JSON")


def write(figures: dict) -> None:
    """Writes `figures` to the file of --out, if one was given."""
    if OUT.value:
        write_json(OUT.value, figures)
