"""One compact picture of a run for a README: task score over updates, task score and tool use before and after."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agemem_jax.report.page import (
    METHODS,
    TOOLS,
    RunFiles,
    capital,
    score_names,
    smoothed_mean,
    task_score_curves,
    value_of,
)

INK, MUTED, GRID = "#1f2933", "#6b7683", "#e6e4df"
COLOURS = dict.fromkeys((name for name, _, _ in METHODS), "#b9b6ae")
COLOURS |= {"full_context": "#dcd9d1", "agemem_norl": "#d9a35f", "agemem": "#0f766e"}
TITLE = {"loc": "left", "fontsize": 10, "fontweight": "bold", "color": INK}


def draw(run: RunFiles, path: Path) -> Path:
    """Writes the picture as PNG and returns its path."""
    # The object interface: no global state, no window system.
    figure = Figure(figsize=(10, 3.1), dpi=160, facecolor="white", layout="constrained")
    curve, score, tools = figure.subplots(1, 3, width_ratios=(1.25, 1.1, 1.35))
    _curves(curve, run)
    _scores(score, run)
    _tools(tools, run)
    for axes in (curve, score, tools):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(colors=MUTED, labelsize=8, length=0)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curves(axes: Axes, run: RunFiles) -> None:
    axes.set_title(f"{capital(score_names(run.summary)['progress'])} of training rollouts", **TITLE)
    axes.set_xlabel("update", color=MUTED, fontsize=8)
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    found = task_score_curves(run)
    for curve in found:
        axes.plot(*zip(*curve, strict=True), color=COLOURS["agemem"], alpha=0.3, linewidth=0.8)
    if found:
        axes.plot(*zip(*smoothed_mean(found), strict=True), color=COLOURS["agemem"], linewidth=2.2)
    else:
        axes.text(0.5, 0.5, "no update was recorded", transform=axes.transAxes, ha="center", color=MUTED, fontsize=9)


def _scores(axes: Axes, run: RunFiles) -> None:
    axes.set_title("Task score, unseen tasks", **TITLE)
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    found = [(name, title, value_of(run.summary, name, "task_score", 100, 1)) for name, title, _ in METHODS]
    found = [entry for entry in found if entry[2]]
    for place, (name, _, value) in enumerate(found):
        spread = 100 * (value.ci95 or 0)
        axes.barh(place, 100 * value.mean, 0.62, color=COLOURS[name], xerr=spread or None, ecolor=INK, capsize=2)
        axes.text(100 * value.mean + spread + 2, place, str(value), va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(found)), [title for _, title, _ in found])
    axes.invert_yaxis()


def _tools(axes: Axes, run: RunFiles) -> None:
    axes.set_title("Calls per trajectory", **TITLE)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for method, shift, label in (("agemem_norl", -0.19, "before RL"), ("agemem", 0.19, "after RL")):
        found = [(i, value_of(run.summary, method, f"calls_{name}")) for i, (name, _) in enumerate(TOOLS)]
        found = [(i, value.mean) for i, value in found if value]
        if found:
            places, means = zip(*found, strict=True)
            axes.barh([i + shift for i in places], means, 0.36, color=COLOURS[method], label=label)
    axes.set_yticks(range(len(TOOLS)), [label.replace("_", " ") for _, label in TOOLS])
    axes.invert_yaxis()
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right", fontsize=8, labelcolor=INK)
