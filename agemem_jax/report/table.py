"""The table of methods and benchmarks as rows of text, CSV, Markdown and a page, from what comparison.figures says.

Scores are shown in points, of 100. What was not played yet is shown as missing, never as 0.
"""

import csv
import html
import io
import math
from collections.abc import Callable
from pathlib import Path

from agemem_jax.report.charts import line_chart, number
from agemem_jax.report.page import METHODS, RESULTS, TOOLS, Value, as_value, render

WAYS = ("greedy", "sampled")
MISSING = "–"
NO_RIVAL = "full_context"  # it has all in view: an upper bound, never the best
COSTS = (  # name in the figures, heading, digits
    ("policy_calls", "policy calls", 1),
    ("prompt_tokens", "tokens read", 0),
    ("generated_tokens", "tokens written", 0),
    ("context_tokens", "context at the end", 0),
    ("peak_context_tokens", "longest context", 0),
    ("peak_entries", "entries at most", 1),
    ("peak_store_tokens", "tokens stored at most", 0),
    ("memory_quality", "memory quality", 3),
    ("seconds", "seconds", 3),
    ("training_seconds", "seconds of training, a seed", 0),
    ("points_per_million", "points over no memory for 1M tokens", 0),
    ("dollars", "dollars for 1,000 episodes", 3),
)
DIGITS = {name: digits for name, *_, digits in RESULTS if name == "task_score"}["task_score"]
OPERATIONS = {name: label for name, label in TOOLS} | {
    "act": "Task action", "pass": "No call", "write_summary": "Writing a summary"
}  # fmt: skip


def of_way(figures: dict, way: str) -> dict:
    """average, cells and costs of a way of decoding."""
    return figures if way == "greedy" else figures[way]


def cell_of(figures: dict, way: str, method: str, benchmark: str | None) -> dict | None:
    """A method's score on a benchmark, or its average (None); None if it is missing."""
    found = of_way(figures, way)
    return (found["average"] if benchmark is None else found["cells"].get(benchmark, {})).get(method)


def best(figures: dict, way: str, benchmark: str | None) -> set[str]:
    """The methods with the highest score of a column that all seeds have played; NO_RIVAL is not among them."""
    scores = {
        method: found["mean"]
        for method in figures["methods"]
        if method != NO_RIVAL and is_whole(found := cell_of(figures, way, method, benchmark))
    }
    top = max(scores.values(), default=None)
    return {method for method, score in scores.items() if score == top}


def is_whole(cell: dict | None) -> bool:
    """Whether all seeds of a cell, or of all cells of an average, have been played."""
    return cell is not None and cell["evaluations"] == cell["wanted"]


def written(cell: dict | None) -> str:
    """A score in points with its interval, and how many seeds are there if some are missing."""
    value = as_value(cell, 100, DIGITS)
    if value is None:
        return MISSING
    text = f"{value} ± {value.half_width}" if value.half_width else str(value)
    return text if is_whole(cell) else f"{text} ({cell['evaluations']} of {cell['wanted']} seeds)"


def score_rows(figures: dict, way: str, mark: Callable[[str], str], names: Callable[[str], str]) -> list[list[str]]:
    """The published layout: methods by benchmarks, and the average over these.

    mark: of the best score of a column; names: what stands for a method.
    """
    columns = [*figures["benchmarks"], None]
    top = {column: best(figures, way, column) for column in columns}
    rows = [[way, *figures["benchmarks"], "average"]]
    for method in figures["methods"]:
        texts = {column: written(cell_of(figures, way, method, column)) for column in columns}
        cells = [mark(text) if method in top[column] else text for column, text in texts.items()]
        rows.append([names(method) + "†" * (method in figures["one_policy"]), *cells])
    return rows


def cost_columns(found: list[dict]) -> list[tuple]:
    """Those of COSTS that any of the costs has."""
    return [one for one in COSTS if any(costs.get(one[0]) is not None for costs in found)]


def cost_rows(figures: dict, way: str, names: Callable[[str], str] = str) -> list[list[str]]:
    """What an episode costs: means over the benchmarks, of methods that have all of them."""
    costs = of_way(figures, way)["costs"]
    columns = cost_columns(list(costs.values()))
    rows = [[f"an episode, {way}", *(heading for _, heading, _ in columns)]]
    return rows + [[names(method), *(shown(found, one) for one in columns)] for method, found in costs.items()]


def shown(costs: dict, column: tuple) -> str:
    """A cost as text."""
    name, _, digits = column
    value = costs.get(name)
    return MISSING if value is None else f"{value:,.{digits}f}".replace("-", "−")


def column_notes(figures: dict) -> list[str]:
    """What each column shows, a line a benchmark."""
    return [
        f"{name}: {about['score']} in points of 100"
        + (f", {about['tasks']} unseen tasks" if about["tasks"] else "")
        + f" ({about['config']})"
        for name, about in figures["benchmarks"].items()
    ]


def notes(figures: dict) -> list[str]:
    """What the marks mean."""
    told = [
        f"± is the half width of the 95 % interval over tasks and {figures['seeds']} "
        f"{'seed' if figures['seeds'] == 1 else 'seeds'}; that of an average takes the benchmarks as independent.",
        f"An average is over all benchmarks; {MISSING} is what was not played yet. {NO_RIVAL} has all in view: it is "
        "an upper bound, and never marked as the best.",
    ]
    if figures["one_policy"]:
        told.append("† The same weights for every seed: played once, its interval is over the tasks alone.")
    return told


def markdown(figures: dict) -> str:
    """The tables in Markdown, best scores in bold."""
    title = {name: title for name, title, _ in METHODS}
    parts = []
    for way in WAYS:
        parts.append(markdown_table(score_rows(figures, way, lambda text: f"**{text}**", title.get)))
        if of_way(figures, way)["costs"]:
            parts.append(markdown_table(cost_rows(figures, way, title.get)))
    told = (html.escape(line, quote=False) for line in column_notes(figures) + notes(figures))
    parts.append("\n".join(f"- {line}" for line in told))
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def as_csv(figures: dict) -> str:
    """A line for each score that is there: way, method, benchmark ("average"), points, ci95, evaluations that it is of,
    costs."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    names = [name for name, *_ in COSTS]
    lines.writerow(["decoding", "method", "benchmark", "points", "ci95", "evaluations", *names])
    for way in WAYS:
        for method in figures["methods"]:
            for benchmark in (*figures["benchmarks"], None):
                cell = cell_of(figures, way, method, benchmark)
                if cell is None:
                    continue
                costs = cell["costs"] if benchmark else of_way(figures, way)["costs"][method]
                score = [plain(None if v is None else 100 * v) for v in (cell["mean"], cell["ci95"])]
                lines.writerow([
                    way, method, benchmark or "average", *score, cell["evaluations"], *(plain(costs[n]) for n in names)
                ])  # fmt: skip
    return out.getvalue()


def plain(value: float | None) -> str:
    """A number for a machine, "" if there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def write(figures: dict, path: Path) -> None:
    """Makes the page of a table."""
    known = {name: (name, title, what) for name, title, what in METHODS}
    methods = [known[name] for name in figures["methods"]]
    render("table.html", contents(figures, methods), path)


def contents(figures: dict, methods: list[tuple]) -> dict:
    """Everything that the page shows."""
    ways = []
    for way in WAYS:
        columns = [
            (
                benchmark or "Average",
                [value_of(figures, way, name, benchmark) for name, *_ in methods],
                [name in best(figures, way, benchmark) for name, *_ in methods],
            )
            for benchmark in (*figures["benchmarks"], None)
        ]
        ways.append({"way": way, "columns": columns, "costs": cost_tables(figures, way, methods)})
    return {
        "methods": methods,
        "one_policy": figures["one_policy"],
        "verdict": verdict(figures),
        "ways": ways,
        "benchmarks": figures["benchmarks"],
        "column_notes": column_notes(figures),
        "notes": notes(figures),
        "details": [details(figures, name, methods) for name in figures["benchmarks"]],
        "seeds": figures["seeds"],
        "command": figures.get("command", ""),
        "number": number,
    }


def value_of(figures: dict, way: str, method: str, benchmark: str | None) -> tuple[Value | None, str]:
    """A score, and a remark on the seeds that are missing."""
    cell = cell_of(figures, way, method, benchmark)
    value = as_value(cell, 100, DIGITS)
    return value, "" if value is None or is_whole(cell) else f"{cell['evaluations']} of {cell['wanted']} seeds"


def cost_tables(figures: dict, way: str, methods: list[tuple]) -> list[tuple]:
    """(heading, headings of columns, rows (name, title, texts)): the means over benchmarks, then each benchmark."""
    found = of_way(figures, way)
    tables = [("Mean over the benchmarks", found["costs"])]
    tables += [
        (name, {method: cell["costs"] for method, cell in found["cells"].get(name, {}).items()})
        for name in figures["benchmarks"]
    ]
    out = []
    for heading, costs in tables:
        columns = cost_columns(list(costs.values()))
        rows = [
            (name, title, [shown(costs[name], one) for one in columns]) for name, title, _ in methods if name in costs
        ]
        if rows:
            out.append((heading, [text for _, text, _ in columns], rows))
    return out


def details(figures: dict, benchmark: str, methods: list[tuple]) -> dict:
    """Of a benchmark, greedy: what operations and roles take by method, and how long contexts are, turn by turn."""
    cells = figures["cells"].get(benchmark, {})
    rows, charts = [], []
    for name, title, _ in methods:
        cell = cells.get(name)
        if cell is None:
            continue
        for op, one in cell["operations"].items():
            rows.append((title, OPERATIONS.get(op, op), *took(one), "", ""))
        for role, one in cell["roles"].items():
            rows.append((title, f"role: {role}", *took(one), percent(one["valid"]), percent(one["right"])))
        curve = list(enumerate(cell["context_by_turn"], 1))
        if chart := line_chart(title, [curve], over="turns"):
            charts.append(chart)
    return {"name": benchmark, "operations": rows, "charts": charts}


def took(one: dict) -> tuple[str, ...]:
    """Calls, tokens read, tokens written, and the share of all that is written."""
    return (*(number(one[name]) for name in ("calls", "prompt_tokens", "generated_tokens")), percent(one["share"]))


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def verdict(figures: dict) -> str:
    """One sentence: how far AgeMem is from the best other method on average, greedy; or that this is not known yet."""
    average = figures["average"]
    others = {name: found["mean"] for name, found in average.items() if name not in ("agemem", NO_RIVAL)}
    if "agemem" not in average or not others:
        return "AgeMem and another method have not been played on all benchmarks yet: no average can be compared."
    top = max(others, key=others.get)
    ours, theirs = average["agemem"], average[top]
    points = 100 * (ours["mean"] - theirs["mean"])
    title = next(title for name, title, _ in METHODS if name == top)
    way = "above" if points >= 0 else "below"
    known = all(one["ci95"] is not None and math.isfinite(one["ci95"]) for one in (ours, theirs))
    apart = known and abs(points) > 100 * (ours["ci95"] + theirs["ci95"])
    how = ("intervals apart" if apart else "intervals overlap") if known else "no interval"
    return (
        f"On average over {len(figures['benchmarks'])} benchmarks AgeMem scores {written(ours)}, "
        f"{abs(points):.1f} points {way} the best other method, {title} ({how})."
    )
