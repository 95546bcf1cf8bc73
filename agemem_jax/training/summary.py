"""The table of a run: methods by metrics, each as mean and 95 % interval, and where it was made."""

import importlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

from agemem_jax.metrics import write_json
from agemem_jax.training import identity as identities

PACKAGES = ("jax", "flax", "optax", "orbax.checkpoint", "transformers", "sentencepiece", "numpy")
# 97.5 % quantiles of Student's t by degrees of freedom; beyond, the normal's.
STUDENT_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
NORMAL_975 = 1.96
TASK_METRICS = {"f1": "f1", "exact_match": "exact_match", "judge": "term_task"}  # the numbers behind task_score
COLUMNS = ("task_score", "exact_match", "memory_quality", "context_tokens", "calls_add", "calls_update", "calls_delete",
           "calls_retrieve", "calls_summary", "calls_filter")  # fmt: skip


def interval(values: list) -> dict:
    """Mean over seeds and tasks, and the half width of its 95 % interval.

    Both seeds and test tasks are samples, and every seed meets the same tasks: the squared half width is the sum of the
    seeds' part (Student's t over their means; left out with one seed, of whose spread nothing is known) and the tasks'
    part (normal, over the tasks' means).

    Args:
      values: over seeds, each [tasks] numbers.
    """
    table = np.asarray(values, float)  # [seeds, tasks]
    seeds, tasks = table.shape
    means = table.mean(1)
    by_seed = STUDENT_975.get(seeds - 1, NORMAL_975) * means.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
    by_task = NORMAL_975 * table.mean(0).std(ddof=1) / np.sqrt(tasks) if tasks > 1 else float("nan")
    return {
        "mean": float(means.mean()),
        "ci95": float(np.hypot(by_seed, by_task)),
        "seeds": [float(m) for m in means],
    }


def summarise(results: dict[int, dict], task_metric: str) -> dict:
    """{method: {metric: interval}} of {seed: {method: {metric: [tasks]}}}; task_score is the task's own metric."""
    methods: dict = {}
    for method in next(iter(results.values())):
        runs = [result[method] for result in results.values()]
        methods[method] = {name: interval([run[name] for run in runs]) for name in runs[0]}
        methods[method]["task_score"] = methods[method][task_metric]
    return methods


def environment() -> dict:
    """Versions and devices."""
    versions = {name.split(".")[0]: getattr(importlib.import_module(name), "__version__", "") for name in PACKAGES}
    try:
        versions["agemem_jax"] = importlib.metadata.version("agemem_jax")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        versions["agemem_jax"] = "not installed"
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.local_devices()],
        "cores": os.cpu_count(),
    }


def write_summary(workdir: Path, config, results: dict[int, dict], command: str) -> dict:
    """Writes summary.json and config.json; `results` are training.loop.train's by seed."""
    metric = TASK_METRICS[config.reward.task_metric]
    folders = [workdir / f"seed_{seed}" for seed in results]
    seconds = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
    identity = identities.read(folders[0] / identities.FILE)
    summary = {
        "name": config.name,
        "command": command,
        "seeds": list(results),
        "task_metric": metric,
        "test_tasks": len(next(iter(next(iter(results.values())).values()))["f1"]),
        "methods": summarise(results, metric),
        "cut_texts": json.loads((folders[0] / "cut_texts.json").read_text()),  # of the data, the same for all seeds
        "environment": environment(),
        "identity": identities.short(identity),  # of what was read, the same for every seed
        "seconds": {name: sum(s.get(name, 0.0) for s in seconds) for name in seconds[0]},
    }
    write_json(workdir / "summary.json", summary)
    write_json(workdir / "config.json", config.to_dict())
    return summary


def table(summary: dict) -> str:
    """The summary as aligned text."""
    header = ["method", *COLUMNS]
    rows = [header]
    for method, metrics in summary["methods"].items():
        found = (metrics.get(column) for column in COLUMNS)
        cells = [f"{m['mean']:.3f} ± {m['ci95']:.3f}" if m else "-" for m in found]
        rows.append([method, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
