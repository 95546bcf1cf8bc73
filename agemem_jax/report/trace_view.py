"""Traces as a person reads them: which to show, what a turn changed in store and context, what each term gave."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from agemem_jax.report.diagnosis import KINDS, STOPS, Diagnosis, Moment, examine, holds, is_correct

VARIANTS = (
    ("no_memory", "No memory"),
    ("full_context", "Full context"),
    ("store_all", "Store all"),
    ("store_recent", "Store recent"),
    ("agemem_norl", "Before RL"),
    ("agemem", "After RL"),
)
STAGE_TITLES = {1: "Building the memory", 2: "Distractors", 3: "The task"}
OUTCOMES = {  # (correct before, correct after) -> how the tasks of that outcome are headed; in the order of interest
    (False, True): "Learned",
    (False, False): "Still wrong",
    (True, True): "Right both times",
    (True, False): "Unlearned",
}
TURN_PARTS = re.compile(r"(</?(?:think|tool_call|answer|action)>)")
GIST_CHARACTERS = 110
KEPT_CHARACTERS = 160  # shown of a context message that was there before: it was shown in full when it came


@dataclass(frozen=True)
class EntryView:
    """A store entry after a turn and what the turn did to it."""

    id: int
    text: str
    tags: dict
    hits: int
    mark: str  # "added", "updated", "deleted", "hit" or "" (untouched)
    old_text: str  # before an update
    gold: bool


@dataclass(frozen=True)
class CallView:
    """One call of a turn."""

    op: str
    arguments: list[tuple[str, str]]
    status: str
    status_text: str
    worth: float | None = None  # task score with the call less without it (experiments/attribute.py)

    @property
    def ok(self) -> bool:
        return self.status in ("OK", "")

    @property
    def short(self) -> str:
        """Answer, Add, Retrieve, ...: the operation without its object."""
        return self.op.split("_")[0].capitalize()


@dataclass(frozen=True)
class TurnView:
    """One generation: what the agent read, wrote and called, and what was there afterwards."""

    number: int
    mode: str
    saw: list[dict]
    said: list[tuple[str, str]]  # ("tag" | "think" | "text", piece)
    calls: list[CallView]
    store: list[EntryView]
    context: list[dict]  # {"role", "text", "pinned", "mark": "new", "removed" or ""}
    context_tokens: int | None
    gist: str  # first line of what it saw
    told_gold: bool

    @property
    def live(self) -> int:
        return sum(entry.mark != "deleted" for entry in self.store)

    @property
    def answers(self) -> bool:
        return bool({("tag", "<answer>"), ("tag", "<action>")} & {*self.said})

    @property
    def removed(self) -> int:
        return sum(message["mark"] == "removed" for message in self.context)


@dataclass(frozen=True)
class TermView:
    """A reward term, its weight (None if the config does not say) and its part of the reward."""

    name: str
    value: float
    weight: float | None

    @property
    def part(self) -> float | None:
        return None if self.weight is None else self.weight * self.value


@dataclass(frozen=True)
class VariantView:
    """One trajectory of a task."""

    method: str
    label: str
    correct: bool
    progress: float | None
    reward: float | None
    action: str | None
    diagnosis: Diagnosis
    terms: list[TermView]
    stages: list[tuple[int, str, list[TurnView]]]
    endings: dict[int, str]  # why each stage ended


@dataclass
class TaskView:
    """A task with its trajectories, before RL and after."""

    seed: int
    task: int
    kind: str  # "" where the benchmark has none
    question: str
    answer: str
    gold: list[str]
    outcome: str = ""
    variants: list[VariantView] = field(default_factory=list)


@dataclass(frozen=True)
class EndingCount:
    """How often a kind of ending occurred, in all traces of a run."""

    title: str
    correct: bool
    counts: list[int]  # one a variant, in their order
    shares: list[float]


def choose(traces: dict[int, list[dict]], limit: int, weights: dict[str, float]) -> list[TaskView]:
    """At most `limit` tasks: of each outcome in turn, so that successes and failures, before and after, are among them.

    Args:
      traces: by seed.
      weights: of the reward terms, by name.
    """
    grouped: dict[tuple, dict[str, dict]] = {}
    for seed, rows in traces.items():
        for trace in rows:
            key = (seed, trace.get("task", 0), trace.get("question", ""))
            grouped.setdefault(key, {})[trace.get("method", "agemem")] = trace
    by_outcome: dict[tuple, list] = {outcome: [] for outcome in OUTCOMES}
    others = []
    for key, found in grouped.items():
        if "agemem" in found and "agemem_norl" in found:
            by_outcome[is_correct(found["agemem_norl"]), is_correct(found["agemem"])].append((key, found))
        else:
            others.append((key, found))
    queues = [*by_outcome.values(), others]
    chosen = []
    for place in range(max(map(len, queues), default=0)):
        chosen += [queue[place] for queue in queues if place < len(queue)]
    return [_task(key, found, weights) for key, found in chosen[:limit]]


def count_endings(traces: dict[int, list[dict]]) -> tuple[list[str], list[int], list[EndingCount]]:
    """How trajectories ended, over all traces: (labels of the variants, number of traces of each, counts by kind)."""
    rows = [trace for seed_rows in traces.values() for trace in seed_rows]
    present = [(method, label) for method, label in VARIANTS if any(t.get("method") == method for t in rows)]
    kinds = {method: [examine(t).kind for t in rows if t.get("method") == method] for method, _ in present}
    totals = [len(kinds[method]) for method, _ in present]
    endings = []
    for place, (kind, title) in enumerate(KINDS.items()):
        counts = [kinds[method].count(kind) for method, _ in present]
        if any(counts):
            shares = [count / total for count, total in zip(counts, totals, strict=True)]
            endings.append(EndingCount(title, place < 2, counts, shares))
    return [label for _, label in present], totals, endings


def _task(key: tuple, found: dict[str, dict], weights: dict[str, float]) -> TaskView:
    seed, task, question = key
    one = found.get("agemem") or next(iter(found.values()))
    answer, gold = str(one.get("answer", "")), list(one.get("gold") or ())
    view = TaskView(seed, task, one.get("kind") or "", question, answer, gold)
    if "agemem" in found and "agemem_norl" in found:
        view.outcome = OUTCOMES[is_correct(found["agemem_norl"]), is_correct(found["agemem"])]
    view.variants = [_variant(found[method], label, weights) for method, label in VARIANTS if method in found]
    return view


def _variant(trace: dict, label: str, weights: dict[str, float]) -> VariantView:
    stages: list[tuple[int, str, list[TurnView]]] = []
    diagnosis = examine(trace)
    told = {fact.told for fact in diagnosis.facts}
    before: dict = {}
    endings = {int(stage): STOPS.get(reason, reason) for stage, reason in (trace.get("stops") or {}).items()}
    turns = trace.get("turns") or ()
    for stage in sorted(endings.keys() | {turn.get("stage", 0) for turn in turns}):
        stages.append((stage, STAGE_TITLES.get(stage, ""), []))
        for turn in turns:
            if turn.get("stage", 0) == stage:
                stages[-1][2].append(_turn(turn, before, trace.get("gold") or (), told))
                before = turn
    terms = [
        TermView(name, value, weights.get(name))
        for name, value in (trace.get("terms") or {}).items()
        if value is not None
    ]
    return VariantView(
        method=trace.get("method", ""),
        label=label,
        correct=is_correct(trace),
        progress=trace.get("progress"),
        reward=trace.get("reward"),
        action=trace.get("action"),
        diagnosis=diagnosis,
        terms=terms,
        stages=stages,
        endings=endings,
    )


def _turn(turn: dict, before: dict, gold: Sequence[str], told: set[Moment | None]) -> TurnView:
    saw = turn.get("saw") or []
    # What the turn answers to: the last message of a person, or else the last one at all (a tool's result).
    telling = [message for message in saw if message.get("role") == "user"] or saw
    text = " ".join(telling[-1]["text"].split()) if telling else ""
    return TurnView(
        number=turn.get("turn", 0) + 1,
        mode=turn.get("mode", "act"),
        saw=saw,
        said=said_pieces(turn.get("said") or ""),
        calls=[_call(call) for call in turn.get("calls") or ()],
        store=store_changes(before.get("store") or [], turn.get("store") or [], gold),
        context=context_changes(before.get("context") or [], turn.get("context") or []),
        context_tokens=turn.get("context_tokens"),
        gist=shorten(text, GIST_CHARACTERS),
        told_gold=Moment(turn.get("stage", 0), turn.get("turn", 0)) in told,
    )


def _call(call: dict) -> CallView:
    arguments = call.get("arguments") or {}
    shown = [(name, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for name, v in arguments.items()]
    words = (str(call.get(name) or "") for name in ("status", "status_text"))
    return CallView(str(call.get("op", "")), shown, *words, call.get("worth"))


def shorten(text: str, characters: int) -> str:
    """The beginning of a text, with an ellipsis where something is left out."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def said_pieces(text: str) -> list[tuple[str, str]]:
    """Cuts what the policy wrote at its tags: ("tag" | "think" | "text", piece)."""
    pieces, inside_think = [], False
    for piece in TURN_PARTS.split(text):
        if TURN_PARTS.fullmatch(piece):
            pieces.append(("tag", piece))
            inside_think = piece == "<think>"
        elif piece:
            pieces.append(("think" if inside_think else "text", piece))
    return pieces


def store_changes(before: Sequence[dict], after: Sequence[dict], gold: Sequence[str] = ()) -> list[EntryView]:
    """Entries after a turn, with what became of each, and the deleted ones in their old places."""
    old, new = {entry["id"]: entry for entry in before}, {entry["id"]: entry for entry in after}
    order = sorted(old.keys() | new.keys())
    views = []
    for i in order:
        entry, was = new.get(i) or old[i], old.get(i)
        hits = entry.get("hits", 0)
        if i not in new:
            mark = "deleted"
        elif was is None:
            mark = "added"
        elif (entry["text"], entry.get("tags")) != (was["text"], was.get("tags")):
            mark = "updated"
        else:
            mark = "hit" if hits > was.get("hits", 0) else ""
        old_text = was["text"] if mark == "updated" else ""
        is_gold = any(holds(entry["text"], fact) for fact in gold)
        views.append(EntryView(i, entry["text"], entry.get("tags") or {}, hits, mark, old_text, is_gold))
    return views


def context_changes(before: Sequence[dict], after: Sequence[dict]) -> list[dict]:
    """Messages after a turn, marked "new" where the turn brought them, and those that it removed, in their old places.

    The text of a message that merely stayed is shortened.
    """
    keys = [[(message.get("role"), message.get("text")) for message in messages] for messages in (before, after)]
    out = []
    for action, i, j, k, m in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        if action in ("delete", "replace"):
            out += [{**message, "mark": "removed"} for message in before[i:j]]
        if action in ("insert", "replace"):
            out += [{**message, "mark": "new"} for message in after[k:m]]
        if action == "equal":
            out += [{**kept, "text": shorten(kept["text"], KEPT_CHARACTERS), "mark": ""} for kept in after[k:m]]
    return out
