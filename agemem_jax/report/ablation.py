"""ablate.html: one self-contained page that shows how the arms of a study compare (experiments/ablate.py)."""

import json
from pathlib import Path

from agemem_jax.metrics import duration
from agemem_jax.report.charts import Chart, line_chart, number
from agemem_jax.report.page import SHARE, Value, as_value, facts, render

TASK_SCORE = "task score"
CURVES = (  # metric, heading, bounds the axis shows at least
    (TASK_SCORE, "Task score in training", SHARE),
    ("memory/quality", "Memory quality in training", SHARE),
    ("generated_tokens", "Tokens per trajectory", None),
)
WAYS = ("greedy", "sampled")
CALLS = ("add", "update", "delete", "retrieve", "summary", "filter")


def write(figures: dict, path: Path) -> Path:
    """Makes the page of a study's figures (ablate.json) and returns its path."""
    render("ablation.html", contents(figures), path)
    return path


def contents(figures: dict) -> dict:
    """Everything that the template shows."""
    arms = figures["arms"]
    kinds = list(dict.fromkeys(kind for one in arms.values() for kind in one["greedy"]["by_kind"]))
    cost = figures["cost"]
    return {
        "name": figures["name"],
        "base": figures["base"],
        "bar": number(figures["bar"]),
        "seeds": figures["seeds"],
        "updates": figures["updates"],
        "test_tasks": figures["test_tasks"],
        "score_is": figures["scores"].get(figures["task_metric"], figures["task_metric"]),
        "rows": [row(name, one) for name, one in arms.items()],
        "kinds": kinds,
        "by_kind": [
            (name, [as_value(one["greedy"]["by_kind"].get(kind), 100, 1) for kind in kinds])
            for name, one in arms.items()
        ],
        "calls": [
            (name, [as_value(one["greedy"][f"calls_{call}"], 1, 2) for call in CALLS]) for name, one in arms.items()
        ],
        "call_names": CALLS,
        "curves": [
            (heading, charts)
            for metric, heading, bounds in CURVES
            if (charts := drawn(arms, figures["task_metric"] if metric == TASK_SCORE else metric, bounds))
        ],
        "cost": cost,
        "seconds": {part: duration(value) for part, value in cost["seconds"].items()},
        "commands": [(name, one["command"]) for name, one in arms.items()],
        "command": figures["command"],
        "environment": facts(figures["environment"]),
        "identity": facts(figures["identity"]),
        "duration": duration,
        "number": number,
    }


def row(name: str, one: dict) -> dict:
    """An arm's line of the table."""
    to_bar: Value | None = as_value(one.get("to_bar"), 1, 0)
    return {
        "name": name,
        "changes": ", ".join(f"{field} = {json.dumps(value)}" for field, value in one["changes"].items()),
        "scores": [as_value(one[way]["task_score"], 100, 1) for way in WAYS],
        "gains": [as_value(one[way].get("gain"), 100, 1) for way in WAYS],
        "quality": as_value(one["greedy"]["memory_quality"], 1, 3),
        "to_bar": to_bar,
        "reached": f"{one['reached']} of {len(to_bar.seeds)}" if to_bar else "",
    }


def drawn(arms: dict, metric: str, bounds: tuple[float, float] | None) -> list[Chart]:
    """A chart of each arm that has the metric, all with the same axes."""
    found = {
        name: [[(int(update), value) for update, value in curve] for curve in one["curves"][metric]]
        for name, one in arms.items()
    }
    values = [value for curves in found.values() for curve in curves for _, value in curve]
    if not values:
        return []
    low, high = min(values), max(values)
    axis = (min(low, bounds[0]), max(high, bounds[1])) if bounds else (low, high)
    charts = (line_chart(name, curves, bounds=axis) for name, curves in found.items())
    return [chart for chart in charts if chart]
