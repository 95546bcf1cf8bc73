"""Scripted oracles: how one plays generated questions who knows what each kind needs, with all tools or without some.

An oracle knows the rules of the world (questions.py), not the future: what it writes in a turn follows from the
messages so far. Its answer is read off what is in view at the end (`read_answer`), never off the record.

What it has written itself it does not read: a note in the arguments of any call (an ADD that a full store refuses, say)
keeps the highest bid as well as a summary does, as long as it is written again before it falls out.
"""

from dataclasses import dataclass

from agemem_jax.benchmarks.hotpotqa.demos import digest, named, subject
from agemem_jax.benchmarks.hotpotqa.questions import CLOSINGS, UNKNOWN
from agemem_jax.benchmarks.hotpotqa.words import NUMBERS
from agemem_jax.data.scripts import QUIET_TOKENS, Lines, Shadow, names, write_turn
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import Op

SLACK = 6  # tokens by which what is in view may be estimated too small


@dataclass(frozen=True)
class Strategy:
    """How an oracle plays."""

    name: str
    without: Op = Op.NONE  # the tool that it does not use
    skip: int = 0  # facts of stage 1 that are not stored, to keep places free
    rewrite: bool = False  # over an entry that is closed goes a fact that is open and was not stored
    summarise: bool = False  # at the brim, whatever the messages are
    sum_up_talk: bool = False  # at the brim, of the last rounds alone what a summary can hold in whole
    store_later: bool = False  # facts of stage 2 are stored too
    track_bids: bool = False  # the best bid is kept in the store
    filter_bids: bool = False  # lower bids are filtered out as they come

    def has(self, op: Op) -> bool:
        return op != self.without


FULL = Strategy("all tools")
# For each tool what one can do without it; the best of them counts.
WITHOUT = {
    Op.ADD: (Strategy("nothing is stored", Op.ADD),),
    Op.UPDATE: tuple(Strategy(f"delete, then add; {k} facts not stored", Op.UPDATE, skip=k) for k in range(3)),
    Op.DELETE: tuple(
        Strategy(f"write {what} over what is closed; {k} facts not stored", Op.DELETE, skip=k, rewrite=rewrite)
        for what, rewrite in (("it", False), ("an open fact", True)) for k in range(3)
    ),
    Op.RETRIEVE: (Strategy("only what is in view", Op.RETRIEVE),),
    Op.SUMMARY: (
        Strategy("old bids fall out", Op.SUMMARY),
        Strategy("the best bid in place of a fact", Op.SUMMARY, skip=1, track_bids=True),
        Strategy("lower bids are filtered out", Op.SUMMARY, filter_bids=True),
    ),
    Op.FILTER: (
        Strategy("old facts fall out", Op.FILTER),
        Strategy("a summary at the brim", Op.FILTER, summarise=True),
        Strategy("a summary of the last talk", Op.FILTER, sum_up_talk=True),
        *(Strategy(f"{k} facts of stage 2 in place of those of stage 1", Op.FILTER, skip=k, store_later=True)
          for k in (1, 2, 3)),
    ),
}  # fmt: skip


class Oracle:
    """Writes what a strategy plays, without the answer; see `answered`."""

    def __init__(self, config):
        self.config = config

    def play(self, staged: StagedRecord, strategy: Strategy) -> Lines:
        """The turns of all stages up to the answer."""
        lines, shadow = Lines(([], [], [])), Shadow(self.config)
        waiting: list[tuple[int, str]] = []  # what could not be stored in its own turn
        stored = 0
        still_open: list[tuple[int, str]] = []  # facts told, and by whom
        for text, who in zip(staged.facts, staged.fact_speakers, strict=True):
            call, related = None, shadow.related(who, text)
            if is_closing(text):
                still_open = [told for told in still_open if subject(told[1]) not in text]
                left = [told for told in still_open if told[0] == who and told not in shadow.entries.values()]
                if strategy.has(Op.DELETE):
                    call = (Op.DELETE, related)
                elif strategy.rewrite:
                    call = (Op.UPDATE, related, left[0][1]) if left else None
                else:
                    call = (Op.UPDATE, related)
                call = call if related is not None else None
            elif is_revision(text) and related is not None:
                if strategy.has(Op.UPDATE):
                    call = (Op.UPDATE, related)
                else:
                    waiting.append((who, text))
                    call = (Op.DELETE, related) if len(shadow.entries) == shadow.places else (Op.ADD, waiting.pop(0)[1])
            elif len(names(text)) >= 3:
                still_open.append((who, text))
                stored += 1
                # Places are kept free of the first speaker's first facts.
                call = (Op.ADD, text) if stored > strategy.skip or who else None
            self._do(call, text, who, shadow, lines.stages[0], strategy)
        shadow.view = []
        self._wander(staged, strategy, shadow, lines)
        plan = [] if staged.answer == UNKNOWN else [text for text in staged.gold if text not in shadow.texts()]
        queries = [subject(text) for text in plan] or [subject(staged.query)]
        if "bid most" in staged.query:
            queries = [staged.query] if strategy.track_bids else []
        elif staged.answer != UNKNOWN and not plan:
            queries = []
        for query in queries[: self.config.rollout.stage3_turns - 1]:
            self._do((Op.RETRIEVE, query), "", staged.asker, shadow, lines.stages[2], strategy)
        return lines

    def _wander(self, staged: StagedRecord, strategy: Strategy, shadow: Shadow, lines: Lines) -> None:
        """Stage 2."""
        seen: list[str] = []
        for i, (text, who) in enumerate(zip(staged.distractors, staged.distractor_speakers, strict=True)):
            seen.append(text)
            call, brim = None, False
            following = staged.distractors[i + 1] if i + 1 < len(staged.distractors) else staged.query
            if i + 1 < len(staged.distractors):
                brim = self._brim(shadow, text, following)
            bids = " bid " in text
            wrong = subject_of_talk(seen)
            talk = next((told for told in reversed(seen) if wrong and told.startswith(wrong)), "")
            if bids and strategy.track_bids:
                best = digest([t for t in seen if " bid " in t])
                held = next((n for n, (_, entry) in shadow.entries.items() if " bid " in entry), None)
                if best == digest([text]):
                    call = (Op.ADD, best) if held is None else (Op.UPDATE, held, best)
            elif bids and strategy.filter_bids:
                lower = [t for t in seen[-2:] if digest([t]) != digest(seen)]
                call = (Op.FILTER, lower[-1]) if lower else None
            elif bids and strategy.has(Op.SUMMARY):
                call = (Op.SUMMARY, "all") if brim else None
            elif not bids and strategy.store_later and len(names(text)) >= 3 and text.split()[:2] != wrong.split():
                call = (Op.ADD, text)
            elif not bids and brim and wrong and strategy.has(Op.FILTER):
                call = (Op.FILTER, named(talk))
            elif not bids and brim and strategy.summarise:
                call = (Op.SUMMARY, "all")
            elif not bids and strategy.sum_up_talk and wrong and self._brim(shadow, text, following, last=True):
                rounds, kept = self._last_rounds(shadow, text, wrong)
                if rounds and len(lines.summaries[1]) < self.config.rollout.summary_slots:
                    call = (Op.SUMMARY, rounds, kept or wrong)
            self._do(call, text, who, shadow, lines.stages[1], strategy, lines.summaries[1])

    def _brim(self, shadow: Shadow, text: str, following: str, last: bool = False) -> bool:
        """Whether one of the next two messages would push something out with the turn after it; `last`: the next."""
        room = shadow.capacity - shadow.reserve - shadow.used()
        one = len((text + " " + following).split()) + QUIET_TOKENS
        two = one + len(following.split()) + 2 * QUIET_TOKENS
        return (one if last else two) + SLACK > room

    def _last_rounds(self, shadow: Shadow, text: str, wrong: str) -> tuple[int, str]:
        """How many of the last rounds can be summed up with this one and no fact be lost, and what a summary keeps."""
        rounds, kept, fits = 0, [], ""
        for told in reversed([*shadow.texts(), text]):
            kept = kept if told.startswith(wrong) else [told, *kept]
            if len(" and ".join(kept).split()) >= self.config.rollout.summary_tokens:
                break
            rounds, fits = rounds + 1, " and ".join(kept)
        return max(0, rounds - 1), fits

    def _do(self, call, text: str, who: int, shadow: Shadow, turns: list[str], strategy: Strategy, summaries=None):
        """Writes a turn and carries it out; an empty one where the strategy lacks the tool."""
        op = call[0] if call else None
        if op is None or not strategy.has(op):
            shadow.see(text)
            turns.append(write_turn(self.config.tools, []))
            return
        shadow.see(text, 10)
        summary = ""
        if op == Op.SUMMARY:
            summary = digest_facts(shadow.texts()) if call[1] == "all" else call[2]
            summaries.append(summary)
        arguments = {
            Op.ADD: lambda: {"content": f" {call[1]}"},
            Op.UPDATE: lambda: {"memory_id": str(call[1]), "content": f" {call[2] if len(call) > 2 else text}"},
            Op.DELETE: lambda: {"memory_id": str(call[1]), "confirmation": True},
            Op.RETRIEVE: lambda: {"query": f" {call[1]}"},
            Op.SUMMARY: lambda: {"span": str(call[1])},
            Op.FILTER: lambda: {"criteria": f" {call[1]}"},
        }[op]()
        shadow.carry_out(who, op, arguments, summary)
        if op == Op.SUMMARY and call[1] != "all":
            shadow.summarise(summary, call[1])
        turns.append(write_turn(self.config.tools, [(op, arguments)]))

    def answered(self, lines: Lines, staged: StagedRecord, view: list[str]) -> Lines:
        """The script with the answer that follows from the texts in view when it has been played."""
        answer = write_turn(self.config.tools, [], read_answer(staged.query, view))
        return Lines((lines.stages[0], lines.stages[1], [*lines.stages[2], answer]), lines.summaries)


def is_closing(text: str) -> bool:
    return any(text.startswith(closing.split("{")[0]) for closing in CLOSINGS)


def is_revision(text: str) -> bool:
    return text.startswith("no ") or " moved from " in text or " left " in text


def subject_of_talk(seen: list[str]) -> str:
    """Who is talked about again and again, without a fact; "" if nobody is."""
    heads = [" ".join(text.split()[:2]) for text in seen]
    twice = [head for head in heads if heads.count(head) > 1]
    return twice[-1] if twice else ""


def digest_facts(seen: list[str]) -> str:
    """The best bid, or the facts in view in as few words as tell them: subjects and objects."""
    if any(" bid " in text for text in seen):
        return digest(seen)
    wrong = subject_of_talk(seen)
    return " and ".join(text for text in seen if len(names(text)) >= 3 and " ".join(text.split()[:2]) != wrong)


def read_answer(question: str, view: list[str]) -> str:
    """The answer to a question of questions.py that follows from texts, or `unknown`; later texts are newer."""
    words = question.split()

    def after(*starts: str) -> list[str]:
        told = [part for text in view for part in text.split(" and ")]  # of a summary
        return [text[len(start) :] for text in told for start in starts if text.startswith(start)]

    def born(name: str, year: bool) -> str | None:
        hits = after(f"no {name} was born in ") or after(f"{name} was born in ")
        return next((hit for hit in reversed(hits) if hit.isdigit() == year), None)

    def last(hits: list[str]) -> str | None:
        return hits[-1] if hits else None

    if " the author of " in question:
        author = last(after(f"{words[5]} {words[6]} was written by "))
        return (author and born(author, words[0] == "When")) or UNKNOWN
    if question.startswith("Who was born first"):
        years = {name: born(name, True) for name in (" ".join(words[4:6]), " ".join(words[7:9]))}
        return UNKNOWN if None in years.values() else min(years, key=years.get)
    if words[0] == "Do":
        places = [born(" ".join(words[i : i + 2]), False) for i in (1, 4)]
        return UNKNOWN if None in places else "yes" if places[0] == places[1] else "no"
    if question.startswith("Who bid most"):
        bids = [text.split() for text in view if " bid " in text and text.split()[3] in NUMBERS]
        return " ".join(max(bids, key=lambda bid: NUMBERS.index(bid[3]))[:2]) if bids else UNKNOWN
    name, past = " ".join(words[2:4]), words[-1] == "before"
    if words[-1] == "born":
        return born(name, words[0] == "When") or UNKNOWN
    if words[-1] == "published":
        return last(after(f"no {name} was published in ") or after(f"{name} was published in ")) or UNKNOWN
    if words[-1] == "by":
        return last(after(f"{name} was written by ")) or UNKNOWN
    change, told = (f"{name} moved from ", f"{name} lives in ")
    between = " to "
    if "work" in words:
        change, told, between = f"{name} left ", f"{name} works for ", " for "
    moved = last(after(change))
    if moved is not None:
        return moved.split(between)[0 if past else 1]
    return last(after(told)) or UNKNOWN  # where only one state is known, it is the best answer to either question
