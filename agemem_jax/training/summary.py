"""The tables of a run, each number as mean and 95 % interval: methods by metrics, what each tool is worth, scores by
kind of task; and where it was made."""

import importlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

from agemem_jax.data.batches import Tasks
from agemem_jax.metrics import write_json
from agemem_jax.training import identity as identities
from agemem_jax.training.evaluate import BASELINES, METHODS, WAYS, Pass, shares_weights
from agemem_jax.training.setup import Run
from agemem_jax.types import TOOL_NAMES

PACKAGES = ("jax", "flax", "optax", "orbax.checkpoint", "transformers", "sentencepiece", "numpy")
# 97.5 % quantiles of Student's t by degrees of freedom; beyond, the normal's.
STUDENT_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
NORMAL_975 = 1.96
TASK_METRICS = {"progress": "progress", "success": "success", "judge": "term_task"}  # the numbers behind task_score
COLUMNS = ("task_score", "success", "memory_quality", "context_tokens", "calls_add", "calls_update", "calls_delete",
           "calls_retrieve", "calls_summary", "calls_filter")  # fmt: skip


def over_seeds(values: list[float]) -> dict:
    """Mean over seeds and the half width of its 95 % interval, Student's t (None of one seed)."""
    n = len(values)
    half = STUDENT_975.get(n - 1, NORMAL_975) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "ci95": None if half is None else float(half), "seeds": list(values)}


def interval(values: list) -> dict:
    """Mean over seeds and tasks, and the half width of its 95 % interval.

    Both seeds and test tasks are samples, and every seed meets the same tasks: the squared half width is the sum of the
    seeds' part (Student's t over their means; left out with one seed, of whose spread nothing is known) and the tasks'
    part (normal, over the tasks' means).

    Args:
      values: over seeds, each [tasks] numbers.
    """
    table = np.asarray(values, float)  # [seeds, tasks]
    tasks = table.shape[1]
    found = over_seeds(table.mean(1).tolist())
    by_task = NORMAL_975 * table.mean(0).std(ddof=1) / np.sqrt(tasks) if tasks > 1 else float("nan")
    return found | {"ci95": float(np.hypot(found["ci95"] or 0.0, by_task))}


def summarise(results: dict[int, dict[Pass, dict]], task_metric: str, way: str, tasks: Tasks) -> dict:
    """What the evaluations decoded in a way say.

    Args:
      results: by seed, {pass: {number: [tasks]}}, the same tasks in each. What not every seed has was evaluated once,
        since all seeds share its weights (evaluate.shares_weights).
      task_metric: the number that is the task score.
      tasks: of which kinds they are, and which tools these are made for.

    Returns:
      methods: {method: {number: interval}}, "task_score" among them.
      by_kind: {method: {kind of task: interval of the task score, and "tasks", how many there are}}.
      masked: {tool: what the trained agent loses of the task score without it, task by task: the interval over the part
        of the tasks made for that tool (empty where there is none), "kinds" and "tasks" of that part, and "overall",
        the interval over all tasks}.
    """
    methods, by_kind, masked = {}, {}, {}
    for method in METHODS:
        runs = runs_of(results, Pass(method, way))
        if not runs:
            continue
        numbers = [name for name in runs[0] if name != "kind"]
        methods[method] = {name: interval([run[name] for run in runs]) for name in numbers}
        methods[method]["task_score"] = methods[method][task_metric]
        kinds, scores = np.asarray(runs[0]["kind"]), np.array([run[task_metric] for run in runs], float)
        by_kind[method] = {
            name: interval(scores[:, kinds == kind]) | {"tasks": int((kinds == kind).sum())}
            for kind, name in enumerate(tasks.kinds)
            if (kinds == kind).any()
        }
    for tool in TOOL_NAMES:
        runs, without = (runs_of(results, Pass("agemem", way, name)) for name in ("", tool))
        if not without:
            continue
        lost = np.array([run[task_metric] for run in runs], float) - [run[task_metric] for run in without]
        part = np.isin(runs[0]["kind"], [tasks.kinds.index(name) for name in tasks.made_for[tool]])
        on_its_part = interval(lost[:, part]) if part.any() else {}
        counts = {"kinds": list(tasks.made_for[tool]), "tasks": int(part.sum())}
        masked[tool] = on_its_part | counts | {"overall": interval(lost)}
    return {"methods": methods, "by_kind": by_kind, "masked": masked}


def runs_of(results: dict[int, dict[Pass, dict]], one: Pass) -> list[dict]:
    """The numbers of an evaluation, of each seed that has it."""
    return [result[one] for result in results.values() if one in result]


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


def write_summary(workdir: Path, config, run: Run, results: dict[int, dict[Pass, dict]], command: str) -> dict:
    """Writes summary.json and config.json; `results` are training.loop.train's by seed, `run` of any of them.

    What `summarise` says of the greedy evaluations stands in the summary itself, of the sampled ones under "sampled".
    """
    metric = TASK_METRICS[config.reward.task_metric]
    folders = [workdir / f"seed_{seed}" for seed in results]
    trained = [folder / method for folder in folders for method in ("", *BASELINES) if (folder / method).is_dir()]
    seconds = [json.loads((folder / "seconds.json").read_text()) for folder in trained]
    identity = identities.read(folders[0] / identities.FILE)
    greedy, sampled = (summarise(results, metric, way, run.source.tasks) for way in WAYS)
    summary = {
        "name": config.name,
        "command": command,
        "seeds": list(results),
        "task_metric": metric,
        "scores": run.source.tasks.scores,
        "test_tasks": len(next(iter(next(iter(results.values())).values()))["progress"]),
        **greedy,
        "sampled": sampled,
        "one_policy": [method for method in greedy["methods"] if shares_weights(config, method)],
        "cut_texts": json.loads((folders[0] / "cut_texts.json").read_text()),  # of the data, the same for all seeds
        "environment": environment(),
        "identity": identities.short(identity),  # of what was read, the same for every seed
        "seconds": {name: sum(s.get(name, 0.0) for s in seconds) for name in seconds[0]},
    }
    write_json(workdir / "summary.json", summary)
    write_json(workdir / "config.json", config.to_dict())
    return summary


def table(summary: dict) -> str:
    """The summary as aligned text: methods, greedy and sampled; what each tool is worth; scores by kind of task.

    One that an older version wrote has the greedy numbers alone.
    """
    ways = {"greedy": summary} | {way: summary[way] for way in WAYS if way in summary}
    once = summary.get("one_policy", ())
    rows = [["method", "decoding", *COLUMNS]]
    for method in summary["methods"]:
        for way, found in ways.items():
            metrics = found["methods"][method]
            rows.append([method + "*" * (method in once), way, *(cell(metrics.get(column)) for column in COLUMNS)])
    parts = [aligned(rows)]
    if once:
        parts[0] += "\n* the same weights for every seed: evaluated once, its interval is over the tasks alone"
    if masked := summary.get("masked"):
        rows = [["score lost without", *(f"{on} ({way})" for way in ways for on in ("its part", "all tasks")), "part"]]
        for tool, one in masked.items():
            found = [found["masked"][tool] for found in ways.values()]
            cells = [text for lost in found for text in (cell(lost), cell(lost["overall"]))]
            rows.append([tool, *cells, f"{one['tasks']} tasks: {', '.join(one['kinds'])}"])
        parts.append(aligned(rows))
    by_kind = summary.get("by_kind") or {}
    if kinds := list(dict.fromkeys(kind for found in by_kind.values() for kind in found)):
        rows = [["score by kind", "decoding", *kinds]]
        for method in by_kind:
            for way, found in ways.items():
                rows.append([method, way, *(cell(found["by_kind"][method].get(kind)) for kind in kinds)])
        parts.append(aligned(rows))
    return "\n\n".join(parts)


def cell(value: dict | None) -> str:
    """An interval as text; "-" where there is none."""
    if not value or "mean" not in value:
        return "-"
    return f"{value['mean']:.3f}" + (f" ± {value['ci95']:.3f}" if value["ci95"] is not None else "")


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells as lines of columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
