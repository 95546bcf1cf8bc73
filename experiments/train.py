"""Start here: trains, evaluates and reports.

    python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny

Every value can be overridden (--config.rl.group_size=4). The same command goes on where it was stopped.
"""

import sys
from pathlib import Path

from absl import flags

from agemem_jax.report import page
from agemem_jax.training.loop import train
from agemem_jax.training.setup import build
from agemem_jax.training.summary import table, write_summary
from experiments import cli, out

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)


def main(config) -> None:
    workdir = Path(WORKDIR.value)
    results = {}
    for seed in range(config.seed, config.seed + config.num_seeds):
        one = config.copy_and_resolve_references()
        one.seed = seed
        results[seed] = train(build(one), workdir / f"seed_{seed}")
    command = "python -m experiments.train " + " ".join(sys.argv[1:])
    summary = write_summary(workdir, config, results, command)
    print(table(summary))
    print(f"report: {page.write(workdir)}")
    out.write(summary)


if __name__ == "__main__":
    cli.run(main)
