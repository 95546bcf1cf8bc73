"""How tasks of worlds are played in demonstrations (benchmarks/demos.py): what was told is looked up, then acted on."""

import random
from typing import Protocol

from agemem_jax.benchmarks import demos
from agemem_jax.benchmarks.demos import OFF_PLAN, SENSE
from agemem_jax.data.scripts import Lines, Shadow
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import Op

ALIKE = 0.4  # share of the words that a message and an entry about the same have in common
LOOKED_UP = 0.9  # chance that a fact which is not in view is looked up
SEEN_ANYWAY = 0.15  # chance that one in view is
SLIP = 0.2  # chance before each action of a plan to try one that does nothing first


class Solver(Protocol):
    """Tasks (data/batches.py) that can be played to win."""

    def solve(self, staged: StagedRecord, rng: random.Random, knows: bool) -> list[str] | None:
        """Task actions that win from where stage 3 begins, within its turns: of one who knows the world as it was told,
        or of one who has to search. None if there are none."""
        ...

    def slip(self, staged: StagedRecord, plan: list[str], step: int) -> str | None:
        """A plausible action that changes nothing where `step` of a plan is due; None if it is not sure of any."""
        ...


class Demonstrator(demos.Demonstrator):
    """Retrieves what the goal is about, then does what wins: at once with all the facts, else after a search.

    At times it slips: an action is done too early or once more, nothing happens, and it goes on as planned. The
    slip itself is not to be imitated. A policy that never saw one repeats it for ever after its own first mistake.
    Where a fact is missing and a search takes too long, what wins is played and not imitated either: it would teach to
    act on what nobody has seen.
    """

    def related(self, shadow: Shadow, owner: int, text: str) -> int | None:
        """The owner's entry that has most words in common with a text, if they are ALIKE."""
        words = set(text.lower().split())

        def shared(entry: str) -> float:
            other = set(entry.lower().split())
            return len(words & other) / max(1, len(words | other))

        mine = [(shared(entry), number) for number, (who, entry) in shadow.entries.items() if who == owner]
        share, number = max(mine, default=(0.0, None))
        return number if share >= ALIKE else None

    def criteria(self, text: str) -> str:
        return text

    def digest(self, seen: list[str]) -> str:
        return " ".join(seen[:2])

    def reason(self, rng: random.Random, staged: StagedRecord, shadow: Shadow, lines: Lines) -> None:
        mine = [text for who, text in shadow.entries.values() if who == staged.asker]
        seen, turns, limit = shadow.texts(), lines.stages[2], self.config.rollout.stage3_turns
        in_view = {text: any(text in other for other in seen) for text in staged.gold}
        stored = {text: any(text in entry for entry in mine) for text in staged.gold}
        wanted = [text for text in staged.gold if rng.random() < (SEEN_ANYWAY if in_view[text] else LOOKED_UP)]
        queries = [asking(text, staged) if rng.random() < SENSE else demos.some_words(rng, text) for text in wanted]
        turns += [self.turn([(Op.RETRIEVE, {"query": f" {query}"})]) for query in dict.fromkeys(queries)]
        # Of facts that are asked for alike no more are found than a retrieval shows.
        few = [queries.count(query) <= self.config.tools.default_top_k for query in queries]
        found = {text for text, is_shown in zip(wanted, few, strict=True) if is_shown and stored[text]}
        knows = all(in_view[text] or text in found for text in staged.gold)
        plan = self.source.tasks.solve(staged, rng, knows)
        is_blind = plan is None and not knows
        plan = plan or self.source.tasks.solve(staged, rng, True) or []
        spare = limit - len(turns) - len(plan)
        for step, action in enumerate(plan):
            slip = self.source.tasks.slip(staged, plan, step) if spare > 0 and rng.random() < SLIP else None
            if slip:
                spare -= 1
                lines.slips.append(len(turns))
                turns.append(self.turn([], slip))
            if rng.random() < OFF_PLAN / 3 and staged.facts:
                op = rng.choice([Op.ADD, Op.UPDATE, Op.RETRIEVE, Op.FILTER])
                turns.append(self.turn([self.call(rng, op, rng.choice(staged.facts), staged.asker, shadow)]))
            lines.slips += [len(turns)] * is_blind
            turns.append(self.turn([], action))
        del turns[limit:]
        lines.slips = [turn for turn in lines.slips if turn < limit]


def asking(text: str, staged: StagedRecord) -> str:
    """By what a told text is looked up with the query in view: its words that are key words of the query, or at least
    words of it; or its first ones."""

    def bare(word: str) -> str:
        return word.lower().strip(".,:;?!")

    asked = {bare(word) for word in staged.query.split()}
    keys = {bare(word) for word in staged.key_words} & asked
    words = text.split()
    shared = [word for word in words if bare(word) in keys] or [word for word in words if bare(word) in asked]
    return " ".join(map(bare, shared or words[:3]))
