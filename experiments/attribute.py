"""What each memory call of a trained policy was worth: the test tasks again without that one call, all else the same.

    python -m experiments.attribute --run=runs/tiny/seed_0 --tasks=64

Reads the newest whole checkpoint; plays 64 test tasks if --tasks is not given. Writes attribution.json into the folder
of the run, from which `python -m experiments.report` shows each call's worth beside it in the traces. The run's mesh is
used if the devices at hand allow it, else one device.
"""

from pathlib import Path

from absl import flags

from agemem_jax.metrics import write_json
from agemem_jax.report.files import ATTRIBUTION
from agemem_jax.training.attribute import attribute, by_tool, to_json
from agemem_jax.training.evaluate import WAYS, Pass
from agemem_jax.training.state import new_state
from agemem_jax.training.summary import TASK_METRICS
from experiments import cli, out, shared_flags
from experiments.saved import newest, reopened, restore_params

RUN, TASKS = shared_flags.run(), shared_flags.tasks()
WAY = flags.DEFINE_enum("way", "greedy", list(WAYS), "how turns are decoded; the traces of a report are greedy")


def main() -> None:
    folder, tasks = Path(RUN.value), TASKS.value or 64
    checkpoint = newest(folder)
    run = reopened(checkpoint)
    one, metric = Pass("agemem", WAY.value), TASK_METRICS[run.config.reward.task_metric]
    state = new_state(restore_params(checkpoint, run.model, run.mesh), run.optimizer)
    calls, unlike = attribute(run, state, one, tasks, metric)
    figures = {
        "checkpoint": checkpoint.name,
        "method": one.method,
        "way": one.way,
        "tasks": min(tasks, len(run.source.places["test"])),
        "metric": metric,
        "unlike": unlike,
        "tools": by_tool(calls),
        "calls": [to_json(call) for call in calls],
    }
    write_json(folder / ATTRIBUTION, figures)
    print(table(figures))
    out.write(figures)


def table(figures: dict) -> str:
    """The figures by tool as aligned text."""
    lines = [f"{'tool':18}{'calls':>7}{'effect':>9}{'helped':>9}{'hurt':>9}{'nothing':>9}"]
    for name, row in figures["tools"].items():
        shares = "".join(f"{row[share]:9.1%}" for share in ("helped", "hurt", "nothing"))
        lines.append(f"{name:18}{row['calls']:7}{row['effect']:+9.3f}{shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
