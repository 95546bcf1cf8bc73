"""Prepares data sets for tfds from files at hand; without TensorFlow, and nothing is downloaded.

    python -m experiments.prepare_data --folder=FOLDER --train=hotpot_train_v1.1.json \
        --validation=hotpot_dev_distractor_v1.json
    python -m experiments.prepare_data --folder=FOLDER --runs=runs/tiny

The first makes hotpot_qa of the published files of HotpotQA (either may be left out, and a file may be a part of the
published one), the second trajectories of what runs recorded when they were evaluated. Prints a line a split: the name
by which data/files.py reads it (and `task.path` takes that of hotpot_qa), and how many records it has.
"""

import os
from pathlib import Path

from absl import flags

from agemem_jax.benchmarks.hotpotqa.builder import PUBLISHED, HotpotQa
from agemem_jax.data.builders import Trajectories, prepare
from agemem_jax.errors import InputError
from agemem_jax.training.lock import hold
from experiments import cli, out, paths, shared_flags

FOLDER = shared_flags.folder()
FILES = {
    split: paths.define_path(split, None, f"HotpotQA's {name}, also gzipped") for split, (name, _) in PUBLISHED.items()
}
RUNS = flags.DEFINE_list("runs", [], "folders of runs, or of single seeds, whose recorded trajectories are taken")


def main() -> None:
    folder = paths.folder_to_write("folder", FOLDER.value).resolve()
    given = {split: flag.value for split, flag in FILES.items() if flag.value}
    runs = list(dict.fromkeys(Path(os.path.expanduser(run)).resolve() for run in RUNS.value))
    if bool(given) == bool(runs):
        raise InputError(f"give either {' and '.join(f'--{split}' for split in FILES)}, or --runs")
    builder, sources = (HotpotQa, given) if given else (Trajectories, runs)
    with hold(folder, "--folder"):
        counts = prepare(builder, sources, folder)
    figures = {}
    for split, count in counts.items():
        name = f"tfds:{builder.name}:{split}@{folder}"
        known = f" of {PUBLISHED[split][1]:,}" if given else ""
        print(f"{name}  {count:,}{known} records")
        figures[name] = count
    out.write(figures)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
