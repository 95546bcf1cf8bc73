"""Trains the same config with each kind of credit, and tells how fast and how far each learns.

    python -m experiments.compare_credit --config=configs/tiny.py --workdir=runs/credit --seeds=3

The seeds of each credit are in WORKDIR/CREDIT. The same command goes on where it was stopped, as `python -m
experiments.train` does. WORKDIR/credit.json and --out have the comparison.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

from agemem_jax.config import validate
from agemem_jax.errors import InputError
from agemem_jax.metrics import write_json
from agemem_jax.report.charts import smooth
from agemem_jax.rl.advantages import CREDITS
from agemem_jax.training.distributed import Notice, is_leader
from agemem_jax.training.evaluate import WAYS, Pass
from agemem_jax.training.loop import train
from agemem_jax.training.setup import build
from agemem_jax.training.summary import NORMAL_975, STUDENT_975, TASK_METRICS
from experiments import cli, out, paths
from experiments.train import WORKDIR, supervised

KINDS = flags.DEFINE_list("credits", list(CREDITS), "values of rl.credit, one run each")
SEEDS = flags.DEFINE_integer("seeds", 3, "seeds of each, from the config's seed on", lower_bound=1)

PASSES = tuple(Pass("agemem", way) for way in WAYS)
SHARE = 0.7  # of the best credit's final training score, the same bar for all
RECORDED = {"progress": "progress", "success": "success", "judge": "term/task"}  # the task score in metrics.jsonl


def main(config) -> None:
    workdir = paths.folder_to_write("workdir", WORKDIR.value)
    if config.rl.schedule != "chained":
        raise InputError(
            f"--config.rl.schedule={config.rl.schedule}: there a stage's own objective is all the credit; set "
            "--config.rl.schedule=chained"
        )
    if config.rl.updates < 1:
        raise InputError(f"--config.rl.updates={config.rl.updates}: nothing would be learnt; set it above 0")
    configs = [of_credit(config, credit) for credit in KINDS.value]
    supervised(workdir, lambda notice: compare(configs, workdir, notice))


def of_credit(config, credit: str):
    """The config of one run, checked."""
    one = config.copy_and_resolve_references()
    one.rl.credit, one.num_seeds = credit, SEEDS.value
    validate(one)
    return one


def compare(configs: list, workdir: Path, notice: Notice) -> None:
    """Trains every credit and seed; then process 0 writes the comparison."""
    curves, scores = {}, {}
    with notice as stop:
        for config in configs:
            credit, metric = config.rl.credit, config.reward.task_metric
            curves[credit], scores[credit] = [], {one.way: [] for one in PASSES}
            run = None
            for seed in range(config.seed, config.seed + config.num_seeds):
                run_config = config.copy_and_resolve_references()
                run_config.seed = seed
                folder = workdir / credit / f"seed_{seed}"
                run = build(run_config, like=run)  # compiled once for all seeds
                numbers = train(run, folder, stop, only=PASSES)
                if is_leader():
                    curves[credit].append(learning_curve(folder, RECORDED[metric]))
                    for one in PASSES:
                        scores[credit][one.way].append(float(np.mean(numbers[one][TASK_METRICS[metric]])))
    if is_leader():
        command = "python -m experiments.compare_credit " + " ".join(sys.argv[1:])
        figures = {"command": command, "seeds": configs[0].num_seeds, "updates": configs[0].rl.updates}
        figures |= compared(curves, scores)
        write_json(workdir / "credit.json", figures)
        print(table(figures))
        out.write(figures)


def learning_curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """(update, task score of its rollouts) of a seed, smoothed as in the report."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return smooth([(row["update"], row[name]) for row in rows if name in row])


def compared(curves: dict[str, list], scores: dict[str, dict[str, list[float]]]) -> dict:
    """{"bar", "credits": {credit: {"updates", "reached", "training_score", and a score for each way of decoding}}}.

    updates: to the bar, which is SHARE of the highest mean that any credit's smoothed training score ends with; a seed
      that never gets there counts with all its updates, and `reached` tells how many got there.
    training_score: the last of the smoothed ones. greedy, sampled: on the test tasks after the last update.

    Args:
      curves: of each credit, one a seed.
      scores: of each credit and way, the mean test score of each seed.
    """
    ends = {credit: [curve[-1][1] for curve in found] for credit, found in curves.items()}
    bar = SHARE * max(float(np.mean(values)) for values in ends.values())
    credits = {}
    for credit, found in curves.items():
        first = [next((update for update, score in curve if score >= bar), None) for curve in found]
        counted = [curve[-1][0] if update is None else update for update, curve in zip(first, found, strict=True)]
        credits[credit] = {
            "updates": over_seeds(counted),
            "reached": sum(update is not None for update in first),
            "training_score": over_seeds(ends[credit]),
        } | {way: over_seeds(values) for way, values in scores[credit].items()}
    return {"bar": bar, "credits": credits}


def over_seeds(values: list[float]) -> dict:
    """Mean over seeds and the half width of its 95 % interval (None of one seed)."""
    n = len(values)
    half = STUDENT_975.get(n - 1, NORMAL_975) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "ci95": None if half is None else float(half), "seeds": list(values)}


def table(figures: dict) -> str:
    """The comparison as aligned text."""

    def cell(value: dict, digits: int) -> str:
        half = "" if value["ci95"] is None else f" ± {value['ci95']:.{digits}f}"
        return f"{value['mean']:.{digits}f}{half}"

    bar = f"updates to {figures['bar']:.3f}"
    lines = [f"{'credit':14}{bar:>22}{'reached':>9}" + "".join(f"{one.way:>18}" for one in PASSES)]
    for credit, row in figures["credits"].items():
        reached = f"{row['reached']}/{len(row['updates']['seeds'])}"
        tests = "".join(f"{cell(row[one.way], 3):>18}" for one in PASSES)
        lines.append(f"{credit:14}{cell(row['updates'], 1):>22}{reached:>9}{tests}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
