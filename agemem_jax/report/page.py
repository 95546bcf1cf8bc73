"""report.html: one self-contained page made from the files of a run.

Read from the workdir: summary.json (needed), config.json, seed_<s>/metrics.jsonl and seed_<s>/traces*.json (each may be
missing; the page then says so). The page loads nothing: styles, pictures and the few lines of script are inside it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agemem_jax.metrics import replace_text
from agemem_jax.report.charts import Chart, Curve, line_chart, mean_curve, number, smooth
from agemem_jax.report.diagnosis import enumerated
from agemem_jax.report.files import RunFiles, load
from agemem_jax.report.trace_view import choose, count_endings

METHODS = (  # name in the files, heading, what it is
    ("no_memory", "No memory", "only answers; what is told stays as long as it fits"),
    ("full_context", "Full context", "only answers; all that is told stays: the upper bound"),
    ("store_all", "Store all", "only answers; all is stored by rule, the best shown with the question"),
    ("store_recent", "Store recent", "the same with a store of the agent's size, which holds the newest"),
    ("no_memory_rl", "No memory, RL", "the same updates"),
    ("store_all_rl", "Store all, RL", "the same updates"),
    ("store_recent_rl", "Store recent, RL", "the same updates"),
    ("bm25", "BM25", "as store all, ranked by words"),
    ("bm25_rl", "BM25, RL", "the same updates"),
    ("memagent", "MemAgent", "one memory text, written anew with every message"),
    ("mem0_classic", "Mem0 1.x", "extracts facts, decides on each; the best shown with the question"),
    ("mem0_additive", "Mem0 2.x", "extracts memories and only adds"),
    ("amem", "A-Mem", "notes with keywords, tags and links, which evolve"),
    ("agemem_norl_rag", "AgeMem-RAG before RL", "retrieval by rule in place of the context's tools"),
    ("agemem_rag", "AgeMem-RAG after RL", "the same, trained"),
    ("agemem_norl", "AgeMem before RL", "warm start only"),
    ("agemem", "AgeMem after RL", "trained"),
)
COMPARED = (  # what a gain is stated over, as a sentence names it; the full context is no rival
    ("agemem_norl", "the warm start"),
    ("no_memory", "no memory"),
    ("store_all", "storing all by rule"),
    ("store_recent", "storing the newest by rule"),
    ("no_memory_rl", "no memory with RL"),
    ("store_all_rl", "storing all with RL"),
    ("store_recent_rl", "storing the newest with RL"),
)
TOOLS = (
    ("add", "Add_memory"),
    ("update", "Update_memory"),
    ("delete", "Delete_memory"),
    ("retrieve", "Retrieve_memory"),
    ("summary", "Summary_context"),
    ("filter", "Filter_context"),
)
ACTIONS = (("act", "Task action"), ("pass", "No call"))
RESULTS = (  # metric, heading, factor it is shown with, digits
    ("task_score", "Task score", 100, 1),
    ("success", "Success", 100, 1),
    ("progress", "Progress", 100, 1),
    ("memory_quality", "Memory quality", 1, 3),
    ("context_tokens", "Context tokens", 1, 0),
    ("reward", "Reward", 1, 3),
    ("turns", "Turns", 1, 1),
    ("generated_tokens", "Generated tokens", 1, 0),
    ("judge_failed", "Without a judge's verdict, %", 100, 1),
)
CALLS = tuple((f"calls_{name}", label.split("_")[0], 1, 2) for name, label in TOOLS + ACTIONS)
SHARE = (0.0, 1.0)
SIGNED_TERMS = ("task", "over_turns", "over_context", "malformed")  # not a share between 0 and 1
TERM_STAGE = {  # the stage whose behaviour a reward term judges, as in rl/rewards.py
    "storage": 1, "maintenance": 1, "compression": 2, "preventive": 2, "preservation": 2, "over_context": 2,
    "task": 3, "relevance": 3, "over_turns": 3, "malformed": 3,
}  # fmt: skip
TERM_GROUPS = {
    "context": ("compression", "preventive", "preservation"),
    "memory": ("storage", "maintenance", "relevance"),
    "penalty": ("over_turns", "over_context", "malformed"),
}
# Heading, remark, panels: (title, names under which the metric may be recorded, bounds the axis shows at least).
CURVES = (
    ("Reward", "What the update maximises, and what each group of terms gives to it, weights included.", (
        ("Total reward", ("reward",), None),
        ("Task", ("reward/task",), None),
        ("Context", ("reward/context",), None),
        ("Memory", ("reward/memory",), None),
        ("Penalties", ("reward/penalty",), None),
    )),
    ("Reward terms", "Each term on its own, unweighted, with the stage whose behaviour it judges.", "terms"),
    ("Task and memory", "Of the rollouts trained on (sampled, training tasks).", (
        ("Progress", ("task/progress", "progress"), SHARE),
        ("Success", ("task/success", "success"), SHARE),
        ("Memory quality", ("memory/quality", "memory_quality"), SHARE),
        ("Gold facts stored", ("memory/coverage",), SHARE),
        ("Context tokens", ("context_tokens", "context/tokens"), None),
        ("Turns", ("turns",), None),
        ("Task actions", ("actions",), None),
        ("Task actions without effect", ("misunderstood",), None),
        ("Answered, without the judge's verdict", ("judge_failed",), SHARE),
        ("Validation tasks: progress", ("eval/progress",), SHARE),
        ("Validation tasks: success", ("eval/success",), SHARE),
        ("Messages cut to their limit", ("cut_messages",), SHARE),
    )),
    ("Calls per trajectory", "How often each tool is called.", tuple(
        (label.replace("_", " "), (f"calls/{name}",), None) for name, label in TOOLS + ACTIONS
    )),
    ("Learning", "How far and how firmly the policy moves.", (
        ("KL to the reference", ("kl",), None),
        ("Entropy", ("entropy",), None),
        ("Clip fraction", ("clip_fraction",), None),
        ("Loss", ("loss",), None),
        ("Gradient norm", ("grad_norm",), None),
        ("Learning rate", ("learning_rate",), None),
        ("Steps skipped", ("skipped",), SHARE),
        ("Zero-variance groups", ("zero_variance_groups", "zero_variance"), SHARE),
    )),
    ("Speed and size", "The first update of a seed is left out: it holds the compilation.", (
        ("Generated tokens/s", ("tokens_per_s",), None),
        ("Trained tokens/s", ("trained_tokens_per_s",), None),
        ("Segments per trajectory", ("segments", "segments_per_trajectory"), None),
        ("Tokens per trajectory", ("generated_tokens",), None),
        ("Tokens read per trajectory", ("prompt_tokens",), None),
        ("Entries stored at most", ("peak_entries",), None),
        ("Tokens stored at most", ("peak_store_tokens",), None),
    )),
)  # fmt: skip
TIMED = ("tokens_per_s", "trained_tokens_per_s")  # without meaning in an update that compiles
NOT_CURVES = ("update", "stage", "seconds", "step", "time", "params_finite")
SHOWN_TASKS = 8


@dataclass(frozen=True)
class Value:
    """A number of the result table: mean, half width of its 95 % interval (None if unknown), and each seed's."""

    mean: float
    ci95: float | None
    seeds: list[float]
    factor: float = 1
    digits: int = 2

    def show(self, value: float | None) -> str:
        """A value as the table writes it."""
        return "–" if value is None else f"{value * self.factor:,.{self.digits}f}".replace("-", "−")

    def __str__(self) -> str:
        return self.show(self.mean)

    @property
    def half_width(self) -> str:
        return "" if self.ci95 is None else self.show(self.ci95)


@dataclass(frozen=True)
class Worth:
    """What the trained policy loses without a tool, in points of task score: on the part of the test tasks made for it,
    and on all of them; each greedy, then sampled."""

    tool: str
    part: str  # the kinds of tasks made for it, and how many tasks they are
    on_part: list[Value | None]
    on_all: list[Value | None]


@dataclass(frozen=True)
class Gain:
    """Task score of the trained policy against another method."""

    over: str
    points: float
    apart: bool | None  # the 95 % intervals do not overlap; None if one of them is unknown


def write(workdir: str | Path, out: str | Path | None = None) -> Path:
    """Makes the page of a run and returns its path, `workdir/report.html` unless `out` names another.

    Raises:
      InputError: summary.json is missing, or a file cannot be read; names the file and what to do.
    """
    run = load(Path(workdir))
    path = Path(out) if out else Path(workdir) / "report.html"
    render("template.html", contents(run), path)
    return path


def render(template: str, shown: dict, path: Path) -> None:
    """Writes a page: a template of this folder with what it shows.

    Texts of a run hold <think> and <tool_call>: everything is escaped unless it is Markup made here.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = templates.get_template(template).render(**shown).lstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, html.encode(errors="replace").decode())  # half a surrogate pair cannot be written


def write_picture(workdir: str | Path, path: str | Path) -> Path:
    """Draws one compact PNG of a run (task score over updates, score and tool use before and after) for a README.

    Raises:
      ValueError: as `write`.
    """
    from agemem_jax.report.picture import draw  # the page itself does without matplotlib

    return draw(load(Path(workdir)), Path(path))


def worth_rows(worth: dict[int, dict]) -> list[dict]:
    """What calls were worth by tool, over all seeds, each call alike: tool, calls, effect, helped, hurt, nothing."""
    tables = [found["tools"] for found in worth.values() if found]
    rows = []
    for tool in dict.fromkeys(name for table in tables for name in table):
        found = [table[tool] for table in tables if tool in table]
        calls = sum(row["calls"] for row in found)
        mean = {name: sum(row["calls"] * row[name] for row in found) / calls for name in found[0] if name != "calls"}
        rows.append({"tool": "All" if tool == "all" else tool, "calls": calls} | mean)
    return rows


def contents(run: RunFiles) -> dict:
    """Everything that the template shows."""
    summary = run.summary
    methods = [(name, title, what) for name, title, what in METHODS if name in summary["methods"]]
    weights = term_weights(run.config.get("reward") or {})
    variants, totals, endings = count_endings(run.traces)
    # The task score is one of the others by its own name: not twice.
    called = score_names(summary)
    results = [
        (metric, capital(called.get(metric, heading)), *rest)
        for metric, heading, *rest in RESULTS
        if metric != summary.get("task_metric")
    ]
    tasks = choose(run.traces, SHOWN_TASKS, weights)
    updates = max((len(rows) for rows in run.metrics.values()), default=0)
    sampled = summary.get("sampled") or {"methods": {}}
    scores, quality = (
        [(method, value_of(summary, method[0], *metric)) for method in methods]
        for metric in (("task_score", 100, 1), ("memory_quality", 1, 3))
    )
    return {
        "name": summary.get("name") or run.workdir.name,
        "description": describe(run, updates),
        "verdict": verdict(summary),
        "bearing": bearing(gains(summary)),
        "interval_note": interval_note(summary),
        "one_policy": summary.get("one_policy") or [],
        "tools_worth": tools_worth(summary),
        "kind_columns": kind_columns(summary, methods),
        "kind_columns_sampled": kind_columns(sampled, methods),
        "scores": scores,
        "score_bars": bars(scores, top=1.0),
        "quality_bars": bars(quality, top=1.0),
        "score_is": score_metric(summary),
        "progress_name": called["progress"],
        "result_columns": result_columns(summary, methods, results),
        "call_columns": result_columns(summary, methods, CALLS),
        "result_columns_sampled": result_columns(sampled, methods, results),
        "call_columns_sampled": result_columns(sampled, methods, CALLS),
        "tool_bars": tool_bars(summary),
        "methods": methods,
        "by_seed": by_seed(summary, methods),
        "curves": curves(run, weights),
        "updates": updates,
        "num_curve_seeds": sum(bool(rows) for rows in run.metrics.values()),
        "tasks": tasks,
        "num_traces": sum(map(len, run.traces.values())),
        "ending_variants": variants,
        "ending_totals": totals,
        "endings": endings,
        "worth": worth_rows(run.worth),
        "config": json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
        "environment": facts(summary.get("environment") or {}),
        "identity": facts(summary.get("identity") or {}),
        "cut_texts": cut_texts(summary.get("cut_texts") or {}),
        "seconds": {name: duration(value) for name, value in (summary.get("seconds") or {}).items()},
        "command": summary.get("command") or "",
        "number": number,
    }


def describe(run: RunFiles, updates: int) -> str:
    """One or two sentences: what was trained, on what, how."""
    config = run.config
    policy, task, rl = (config.get(part) or {} for part in ("policy", "task", "rl"))
    sentences = []
    if policy.get("weights"):
        sentences.append(f"The policy starts from {Path(policy['weights']).name}.")
    elif policy.get("num_layers"):
        layers, width = policy["num_layers"], policy.get("hidden_size", "?")
        sentences.append(f"A small policy of {layers} layers, {width} wide, that begins from nothing.")
    if updates:
        made = f"{rl.get('schedule', '')} step-wise GRPO".strip()
        size = ""
        if rl.get("tasks_per_update") and rl.get("group_size"):
            size = f" of {rl['tasks_per_update']} tasks × {rl['group_size']} rollouts"
        sentences.append(f"Trained for {updates} updates{size} with {made}.")
    else:
        sentences.append("No update was made by reinforcement learning.")
    if task:
        source = Path(task["path"]).name if task.get("path") else "generated"
        told = "what they take is told in two stages before, and the context is emptied between them"
        sentences.append(f"Tasks: {task.get('benchmark', 'questions')}, {source}; {told}.")
    return " ".join(sentences)


def gains(summary: dict) -> list[Gain]:
    """Points of task score that the trained policy has over each other method."""
    after = value_of(summary, "agemem", "task_score")
    out = []
    for name, over in COMPARED:
        other = value_of(summary, name, "task_score")
        if after is None or other is None:
            continue
        apart = None
        if after.ci95 is not None and other.ci95 is not None:
            apart = abs(after.mean - other.mean) > after.ci95 + other.ci95
        out.append(Gain(over, 100 * (after.mean - other.mean), apart))
    return out


def verdict(summary: dict) -> str:
    """One sentence that states the gain, and whether the intervals bear it out."""
    after = value_of(summary, "agemem", "task_score", 100, 1)
    if after is None:
        return "There is no task score of the trained policy, so nothing can be said of the gain."
    score = f"{after} ± {after.half_width}" if after.half_width else str(after)
    tasks = f" on {summary['test_tasks']} unseen test tasks" if summary.get("test_tasks") else " on unseen test tasks"
    found = gains(summary)
    if not found:
        return f"After RL the agent scores {score}{tasks}; there is no other method to compare with."
    parts = []
    for gain in found:
        way = "above" if gain.points >= 0 else "below"
        how = {True: "intervals apart", False: "intervals overlap", None: "no interval"}[gain.apart]
        parts.append(f"{abs(gain.points):.1f} points {way} {gain.over} ({how})")
    text = f"After RL the agent scores {score}{tasks}: {enumerated(parts)}."
    if any(gain.points >= 0 and gain.apart is False for gain in found):
        text += " Where intervals overlap this run does not establish a gain."
    return text


def bearing(found: list[Gain]) -> str:
    """How the verdict is coloured: "apart" (a gain, intervals apart), "below" (a loss), "" (not established)."""
    if any(gain.points < 0 for gain in found):
        return "below"
    return "apart" if found and all(gain.apart for gain in found) else ""


def interval_note(summary: dict) -> str:
    """What ± means in this run."""
    seeds = len(summary.get("seeds") or ())
    over = f"± is the half width of the 95 % interval over {seeds} seeds."
    if seeds < 2:
        over = (
            "± is the half width of the 95 % interval over the test tasks of the one seed trained; it says nothing "
            "about the spread between seeds."
        )
    if tasks := summary.get("test_tasks"):
        over += f" {tasks} test tasks a seed, the same for every method."
    if summary.get("one_policy") and seeds > 1:
        over += " † The same weights for every seed: evaluated once, and its interval is over the tasks alone."
    return over


def score_metric(summary: dict) -> str:
    """What the task score is, in words; "" if the summary does not say."""
    metric = summary.get("task_metric")
    return score_names(summary).get(metric) or next((h.lower() for name, h, _, _ in RESULTS if name == metric), "")


def score_names(summary: dict) -> dict[str, str]:
    """What success and progress are to the run's benchmark, in words."""
    return {"success": "success", "progress": "progress"} | (summary.get("scores") or {})


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def value_of(summary: dict, method: str, metric: str, factor: float = 1, digits: int = 2) -> Value | None:
    """A metric of a method, None if the run does not have it."""
    return as_value((summary["methods"].get(method) or {}).get(metric), factor, digits)


def as_value(found: dict | None, factor: float = 1, digits: int = 2) -> Value | None:
    """A number of the summary; None if it is none."""
    if not isinstance(found, dict) or not _finite(found.get("mean")):
        return None
    ci95 = found.get("ci95")
    seeds = [value for value in found.get("seeds") or () if _finite(value)]
    return Value(found["mean"], ci95 if _finite(ci95) else None, seeds, factor, digits)


def result_columns(summary: dict, methods: list, columns) -> list[tuple[str, list[Value | None]]]:
    """(heading, a value for each method) of the metrics that at least one method has."""
    out = []
    for metric, label, factor, digits in columns:
        values = [value_of(summary, name, metric, factor, digits) for name, _, _ in methods]
        if any(values):
            out.append((label, values))
    return out


def tools_worth(summary: dict) -> list[Worth]:
    """What each tool is worth to the trained policy, in the tools' order."""
    greedy, sampled = summary.get("masked") or {}, (summary.get("sampled") or {}).get("masked") or {}
    rows = []
    for _, tool in TOOLS:
        if tool not in greedy:
            continue
        found = [masked.get(tool) or {} for masked in (greedy, sampled)]
        part = f"{', '.join(found[0].get('kinds') or ())}: {found[0].get('tasks', 0)} tasks"
        on_all = [one.get("overall") for one in found]
        rows.append(Worth(tool, part, *([as_value(one, 100, 1) for one in ones] for ones in (found, on_all))))
    return rows


def kind_columns(summary: dict, methods: list) -> list[tuple[str, list[Value | None]]]:
    """(kind and number of its tasks, each method's task score on them) of the kinds that were met."""
    by_kind = summary.get("by_kind") or {}
    kinds = {kind: found["tasks"] for of in by_kind.values() for kind, found in of.items()}
    return [
        (f"{kind} ({tasks})", [as_value((by_kind.get(name) or {}).get(kind), 100, 1) for name, _, _ in methods])
        for kind, tasks in kinds.items()
    ]


def by_seed(summary: dict, methods: list) -> list[tuple[str, list[str]]]:
    """Every metric in the summary, raw: (name, each method's mean, interval and seeds as text)."""
    names = list(dict.fromkeys(metric for name, _, _ in methods for metric in summary["methods"][name]))
    rows = []
    for metric in names:
        cells = []
        for name, _, _ in methods:
            value = value_of(summary, name, metric)
            each = f" [{', '.join(map(number, value.seeds))}]" if value and len(value.seeds) > 1 else ""
            spread = f" ± {number(value.ci95)}" if value and value.ci95 is not None else ""
            cells.append(f"{number(value.mean)}{spread}{each}" if value else "–")
        rows.append((metric, cells))
    return rows


def bars(rows: list, top: float) -> list[dict]:
    """Bars with whiskers, in percent of `top`."""
    out = []
    for (name, title, what), value in rows:
        if value is None:
            continue
        ci95 = value.ci95 or 0
        low, high = max(0.0, value.mean - ci95), min(top, value.mean + ci95)
        out.append({
            "name": name, "title": title, "what": what, "value": value,
            "width": 100 * max(0.0, value.mean) / top, "low": 100 * low / top, "high": 100 * high / top,
        })  # fmt: skip
    return out


def tool_bars(summary: dict) -> list[dict]:
    """Calls per trajectory of every tool, before and after RL, on one scale."""
    rows = []
    for name, label in TOOLS + ACTIONS:
        pair = [value_of(summary, method, f"calls_{name}") for method in ("agemem_norl", "agemem")]
        if any(pair):
            rows.append((label, pair))
    top = max((v.mean + (v.ci95 or 0) for _, pair in rows for v in pair if v), default=0) or 1.0
    sides = (("agemem_norl", "before RL", ""), ("agemem", "after RL", ""))
    return [{"label": label, "bars": bars(list(zip(sides, pair, strict=True)), top)} for label, pair in rows]


def curves(run: RunFiles, weights: dict[str, float]) -> list[tuple[str, str, list[Chart]]]:
    """The charts by heading: (heading, remark, charts). Metrics without a place of their own come last."""
    bands, called = stage_bands(run.metrics), score_names(run.summary)
    used = set(NOT_CURVES)

    def chart(title: str, names: tuple[str, ...], bounds, note: str = "") -> Chart | None:
        used.update(names)
        before, _, last = title.rpartition(": ")
        if last.lower() in called:
            title = f"{before}: {called[last.lower()]}" if before else capital(called[last.lower()])
        return line_chart(title, [curve_of(rows, names) for rows in run.metrics.values()], note, bounds, bands)

    sections = []
    for heading, remark, panels in CURVES:
        if panels == "terms":
            charts = [chart(*panel) for panel in term_panels(run.metrics, weights)]
        else:
            charts = [chart(*panel) for panel in panels]
        sections.append((heading, remark, [c for c in charts if c]))
    names = dict.fromkeys(name for rows in run.metrics.values() for row in rows for name in row)
    rest = [chart(name, (name,), None) for name in names if name not in used]
    sections.append(("Everything else", "Other numbers that the run recorded.", [c for c in rest if c]))
    return [section for section in sections if section[2]]


def term_panels(metrics: dict[int, list[dict]], weights: dict[str, float]) -> list[tuple]:
    """Panels of the reward terms, stage by stage; the note tells stage and weight."""
    names = sorted({name for rows in metrics.values() for row in rows for name in row if name.startswith("term/")})
    recorded = [name.removeprefix("term/") for name in names]
    panels = []
    for term in [*(term for term in TERM_STAGE if term in recorded), *(t for t in recorded if t not in TERM_STAGE)]:
        notes = [f"stage {TERM_STAGE[term]}"] if term in TERM_STAGE else []
        if term in weights:
            notes.append(f"weight {number(weights[term])}" if weights[term] else "switched off")
        bounds = None if term in SIGNED_TERMS else SHARE
        panels.append((term.replace("_", " ").capitalize(), (f"term/{term}",), bounds, " · ".join(notes)))
    return panels


def curve_of(rows: list[dict], names: tuple[str, ...]) -> Curve:
    """The recorded values of a metric under the first of its names that has any."""
    for name in names:
        curve = [(row["update"], row[name]) for row in rows if _finite(row.get(name))]
        if curve:
            return curve[1:] if name in TIMED and len(curve) > 1 else curve
    return []


def stage_bands(metrics: dict[int, list[dict]]) -> list[tuple[int, int, int]]:
    """(first update, last update, stage) of the sequential schedule; empty where all updates train the same."""
    rows = next((rows for rows in metrics.values() if rows), [])
    bands: list[list[int]] = []
    for row in rows:
        if not isinstance(row.get("stage"), int):
            continue
        if bands and bands[-1][2] == row["stage"]:
            bands[-1][1] = row["update"]
        else:
            bands.append([row["update"], row["update"], row["stage"]])
    return [tuple(band) for band in bands] if len(bands) > 1 else []


def term_weights(reward: dict) -> dict[str, float]:
    """The factor of each term in the reward, as far as config.reward tells: its own weight times its group's."""
    factors = {"task": reward.get("task")}
    for group, terms in TERM_GROUPS.items():
        outer = 1.0 if group == "penalty" else reward.get(group)
        for term in terms:
            inner = reward.get(term)
            factors[term] = outer * inner if _finite(outer) and _finite(inner) else None
    return {term: factor for term, factor in factors.items() if _finite(factor)}


def task_score_curves(run: RunFiles) -> list[Curve]:
    """Progress (of questions token F1) of the training rollouts over updates, one curve a seed."""
    found = [curve_of(rows, ("task/progress", "progress")) for rows in run.metrics.values()]
    return [curve for curve in found if curve]


def smoothed_mean(found: list[Curve]) -> Curve:
    """Mean over seeds, smoothed as in the charts."""
    return smooth(mean_curve(found))


def facts(environment: dict) -> list[tuple[str, str]]:
    """Name and value pairs as text."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in environment.items()
    ]


def cut_texts(cuts: dict) -> str:
    """A sentence on the texts that were longer than their limits; "" if the summary does not say."""
    told = [f"{100 * cut['share']:.1f} % of {kind}" for kind, cut in cuts.items() if cut["share"]]
    return f"Texts cut to their limits: {', '.join(told) or 'none'}." if cuts else ""


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if not _finite(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
