"""Where a trajectory went wrong, told from its trace alone.

An answer needs every supporting (gold) fact to pass the same chain of links: told in stage 1, stored, kept, brought
back into the context of stage 3, still there when the answer is written. The first broken link is the diagnosis.

A trace is one element of a run's traces.json: {"method", "kind", "question", "answer", "gold": [text], "action": text
or null, "success", "progress", "terms": {name: value}, "turns": [turn]}, and a turn is {"stage", "turn", "saw":
[message], "said", "calls": [{"op", "arguments", "status", "status_text"}], "store": [{"id", "text", "tags", "hits"}],
"context": [message], "context_tokens"}, store and context as they are after the turn. "stops" is {stage: why it ended}.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

HELD = 0.85  # share of a fact's content words from which a text holds the fact: one word of five may not differ
CLOSE = 0.6  # share from which an entry that does not hold a fact is worth a mention
FUNCTION_WORDS = frozenset("a an and are as at by for from in is it of on or that the to was were which with".split())
# What parts the listed entries within one text: lines, "3: " before an entry in a list.
PARTING = re.compile(r"\n|(?:^|(?<=\s))\d{1,3}\s*:\s")

MEMORY_TOOLS = (
    "Add_memory",
    "Update_memory",
    "Delete_memory",
    "Retrieve_memory",
    "Summary_context",
    "Filter_context",
)

# Kind of ending -> its heading in the report, in the order of the chain.
KINDS = {
    "from_memory": "Answered correctly from memory",
    "unsupported": "Correct, but without all facts in view",
    "no_memory": "No memory tools",
    "malformed": "Malformed turns",
    "not_told": "A gold fact was never told",
    "not_stored": "A gold fact was never stored",
    "store_full": "The store was full",
    "lost": "A gold fact was stored, then deleted or overwritten",
    "not_retrieved": "A stored gold fact was never retrieved",
    "dropped": "A retrieved fact was removed from the context again",
    "no_answer": "Ran out of turns without an answer",
    "no_room": "A size ran out before the answer",
    "wrong_answer": "All facts in view, but the answer differs",
    "not_reached": "All facts in view, but the goal was not reached",
}
STOPS = {  # why a stage ended (types.StopReason)
    "finished": "the task was over",
    "turns": "all turns made",
    "context": "the next turn did not fit the context",
    "segments": "the context was full and no segment was left (context.max_segments)",
}
SIZES = ("context", "segments")  # of these, the sizes that ran out
CORRECT_KINDS = ("from_memory", "unsupported")


@dataclass(frozen=True)
class Moment:
    """A turn of a trace."""

    stage: int
    turn: int

    def __str__(self) -> str:
        return f"stage {self.stage}, turn {self.turn + 1}"


@dataclass(frozen=True)
class FactPath:
    """How far a gold fact came. Each link is the moment at which it first held, or None."""

    text: str
    told: Moment | None
    stored: Moment | None
    entry_id: int | None  # of the entry that first held it
    lost: Moment | None  # when the last entry that held it went, for good
    lost_by: str  # the call that did it, "" if unknown
    retrieved: Moment | None  # first in the context of stage 3
    at_answer: bool  # in the context when the last turn was written

    @property
    def broken(self) -> str:
        """Kind of the first broken link, "" if the fact was there to answer from."""
        if self.at_answer:
            return ""
        if self.retrieved:
            return "dropped"
        if self.stored is None:
            return "not_stored" if self.told else "not_told"
        return "lost" if self.lost else "not_retrieved"


@dataclass(frozen=True)
class Diagnosis:
    """Why a trajectory ended as it did."""

    kind: str  # a key of KINDS
    text: str
    facts: tuple[FactPath, ...]

    @property
    def title(self) -> str:
        return KINDS[self.kind]


def diagnose(trace: dict) -> str:
    """One to a few sentences: how a trajectory came to its right answer, or where it went wrong."""
    found = examine(trace)
    return f"{found.title}. {found.text}"


def examine(trace: dict) -> Diagnosis:
    """The diagnosis of a trace with the path of each of its gold facts."""
    facts = tuple(fact_path(trace, fact) for fact in trace.get("gold") or ())
    kind, text = _success(trace, facts) if is_correct(trace) else _failure(trace, facts)
    return Diagnosis(kind, text, facts)


def is_correct(trace: dict) -> bool:
    """The answer matches exactly."""
    return bool(trace.get("success"))


@lru_cache(maxsize=1 << 16)  # a message stays in the context for many turns
def holds(text: str, fact: str) -> bool:
    """Whether a text holds a fact: nearly all of its content words, within one line or listed entry.

    In a piece that is long beside the fact they must come in the fact's order, or the words of several facts would do.
    """
    wanted = content_words(fact)
    needed = HELD * len(set(wanted))
    for piece in PARTING.split(text) if wanted else ():
        words = content_words(piece)
        if len(set(wanted) & set(words)) < needed:
            continue
        if len(words) <= 1.5 * len(wanted) or _in_order(wanted, words) >= HELD * len(wanted):
            return True
    return False


def content_words(text: str) -> list[str]:
    """Lower-case words of a text without function words."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in FUNCTION_WORDS]


def fact_path(trace: dict, fact: str) -> FactPath:
    """Follows a gold fact through the turns of a trace."""
    told = stored = entry_id = lost = retrieved = None
    lost_by, held_before, hits = "", {}, {}
    turns = trace.get("turns") or []
    for turn in turns:
        now = Moment(turn.get("stage", 0), turn.get("turn", 0))
        if told is None and now.stage == 1 and any(holds(m["text"], fact) for m in _messages(turn, "saw")):
            told = now
        held = {entry["id"]: entry for entry in turn.get("store") or () if holds(entry["text"], fact)}
        if held:
            if stored is None:
                stored, entry_id = now, next(iter(held))
            lost, lost_by = None, ""
        elif held_before:
            lost, lost_by = now, _remover(turn, held_before)
        shown = any(entry.get("hits", 0) > hits.get(i, 0) for i, entry in held.items())
        if retrieved is None and now.stage == 3 and (shown or _in_view(turn, fact)):
            retrieved = now
        held_before, hits = held, {i: entry.get("hits", 0) for i, entry in held.items()}
    last = turns[-1] if turns else {}
    at_answer = last.get("stage") == 3 and _in_view(last, fact)
    return FactPath(fact, told, stored, entry_id, lost, lost_by, retrieved, at_answer)


def _in_order(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(first) + 1)
    for word in second:
        diagonal = 0
        for i, other in enumerate(first, 1):
            diagonal, lengths[i] = lengths[i], diagonal + 1 if word == other else max(lengths[i], lengths[i - 1])
    return lengths[-1]


def _overlap(text: str, fact: str) -> float:
    """Share of a fact's content words that a text has."""
    wanted = set(content_words(fact))
    return len(wanted & set(content_words(text))) / max(1, len(wanted))


def _messages(turn: dict, field: str) -> list[dict]:
    return turn.get(field) or []


def _in_view(turn: dict, fact: str) -> bool:
    """The agent read the fact in this turn, or its context holds it; what it wrote in this very turn does not count."""
    said = (turn.get("said") or "").strip()
    others = [m["text"] for m in _messages(turn, "context") if not said or said not in m["text"]]
    return any(holds(text, fact) for text in others + [m["text"] for m in _messages(turn, "saw")])


def _remover(turn: dict, entries: dict) -> str:
    """The call of a turn that deleted or replaced one of `entries`."""
    for call in turn.get("calls") or ():
        target = (call.get("arguments") or {}).get("memory_id")
        if call.get("status") == "OK" and call.get("op") in ("Update_memory", "Delete_memory"):
            if str(target) in {str(i) for i in entries}:
                return call["op"]
    return ""


def _success(trace: dict, facts: tuple[FactPath, ...]) -> tuple[str, str]:
    if facts and all(fact.at_answer for fact in facts):
        came = enumerated(f"{_quote(fact.text)} in {fact.retrieved}" for fact in facts if fact.retrieved)
        back = f" They came back: {came}." if came else ""
        return "from_memory", f"The answer was given with {_count(facts)} in view.{back}"
    missing = enumerated(_quote(fact.text) for fact in facts if not fact.at_answer)
    without = f" without {missing} in view" if missing else ""
    return "unsupported", f"The answer was given{without}: a guess, or known to the policy beforehand."


def _failure(trace: dict, facts: tuple[FactPath, ...]) -> tuple[str, str]:
    said, wanted = trace.get("action"), trace.get("answer", "")
    broken = [fact for fact in facts if fact.broken]
    malformed = _malformed(trace)
    ending = f" It answered {_quote(said)}; right is {_quote(wanted)}." if said and wanted else ""
    if str(trace.get("method")).startswith("no_memory") and (broken or not facts):
        guess = f" {_quote(said)} could only be a guess; right is {_quote(wanted)}." if said else " It gave no answer."
        gone = enumerated(_quote(fact.text) for fact in broken) or "The facts"
        return "no_memory", f"{gone} had left the context when the question came.{guess}"
    why = " ".join(_explain(trace, fact) for fact in broken)
    stopped = (trace.get("stops") or {}).get("3")
    if not said and stopped in SIZES:
        return "no_room", f"Stage 3 ended without an answer: {STOPS[stopped]}. {why}".rstrip()
    if not said:
        if malformed:
            turns = f"{malformed} turn{'s' * (malformed != 1)}"
            return "malformed", f"{turns} did not parse, and stage 3 ran out of turns without an answer. {why}".rstrip()
        known = f"{_count(facts)[0].upper()}{_count(facts)[1:]} had come into view." if facts and not broken else why
        return "no_answer", known or "Nothing is known of the facts."
    if broken:
        order = list(KINDS)
        first = min(broken, key=lambda fact: order.index(fact.broken))
        full = first.broken == "not_stored" and _refusal(trace, first) == "STORE_FULL"
        return "store_full" if full else first.broken, why + ending
    also = f" ({malformed} turns did not parse)" if malformed else ""
    if not wanted:
        share = f"; progress {trace['progress']:.2f}" if trace.get("progress") else ""
        return "not_reached", f"The goal was not reached{share}. The last action was {_quote(said)}{also}."
    partly = f" in part (F1 {trace['progress']:.2f})" if trace.get("progress") else ""
    known = f"with {_count(facts)} in view" if facts else "from an unknown set of facts"
    matches = f"matches {_quote(wanted)} only{partly}" if partly else f"differs from {_quote(wanted)}"
    return "wrong_answer", f"Answered {known}, but {_quote(said)} {matches}{also}."


def _explain(trace: dict, fact: FactPath) -> str:
    """What happened to one fact that was not there to answer from."""
    text = _quote(fact.text)
    if fact.broken == "not_told":
        return f"{text} was never told in stage 1."
    if fact.broken == "not_stored":
        return f"{text} (told in {fact.told}) was never stored{_why_not_stored(trace, fact)}."
    if fact.broken == "lost":
        how = {"Update_memory": "overwritten", "Delete_memory": "deleted"}.get(fact.lost_by, "lost")
        return f"{text} was stored in {fact.stored} as entry {fact.entry_id}, but {how} in {fact.lost}."
    if fact.broken == "not_retrieved":
        asked = [c for t in trace["turns"] if t.get("stage") == 3 for c in _calls(t) if c["op"] == "Retrieve_memory"]
        tried = f"{len(asked)} retrieval{'s' * (len(asked) > 1)} made" if asked else "no retrieval made"
        return f"{text} was stored as entry {fact.entry_id}, but not retrieved in stage 3 ({tried})."
    return f"{text} was back in view in {fact.retrieved}, but removed from the context before the answer."


def _why_not_stored(trace: dict, fact: FactPath) -> str:
    refused = _refusal(trace, fact)
    at_telling = next((t for t in trace["turns"] if Moment(t.get("stage", 0), t.get("turn", 0)) == fact.told), {})
    if refused == "STORE_FULL":
        store = at_telling.get("store") or []
        gold = sum(any(holds(entry["text"], g) for g in trace["gold"]) for entry in store)
        return f": the store was full ({len(store)} entries, {len(store) - gold} of them no supporting fact)"
    if refused:
        return f": Add_memory was refused ({refused.lower().replace('_', ' ')})"
    entries = [e["text"] for t in trace["turns"] if t.get("stage") == 1 for e in t.get("store") or ()]
    near = max(entries, key=lambda text: _overlap(text, fact.text), default="")
    did = [c["op"] for c in _calls(at_telling) if c["op"] in MEMORY_TOOLS]
    parts = [] if "Add_memory" in did else [f"in that turn the agent called {enumerated(did) or 'no tool'}"]
    if _overlap(near, fact.text) >= CLOSE:
        parts.append(f"the nearest entry was {_quote(near)}")
    return f"; {' and '.join(parts)}" if parts else ""


def _refusal(trace: dict, fact: FactPath) -> str:
    """Status of the last call that tried to store a fact and was refused, "" if there was none."""
    status = ""
    for turn in trace["turns"]:
        for call in _calls(turn):
            content = str((call.get("arguments") or {}).get("content", ""))
            refused = call["op"] in ("Add_memory", "Update_memory") and call.get("status") != "OK"
            if refused and holds(content, fact.text):
                status = call["status"]
    return status


def _malformed(trace: dict) -> int:
    """Turns that did not parse."""
    marked = sum(any(c.get("status") == "MALFORMED" for c in _calls(t)) for t in trace.get("turns") or ())
    return max(marked, round((trace.get("terms") or {}).get("malformed") or 0))


def _calls(turn: dict) -> list[dict]:
    return turn.get("calls") or []


def _count(facts: tuple[FactPath, ...]) -> str:
    return {1: "the gold fact", 2: "both gold facts"}.get(len(facts), f"all {len(facts)} gold facts")


def _quote(text: str) -> str:
    return f"“{str(text).strip()}”"


def enumerated(items) -> str:
    """Texts as a sentence lists them: a, b and c."""
    items = list(items)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
