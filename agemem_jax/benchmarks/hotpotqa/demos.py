"""How generated questions are answered in demonstrations (benchmarks/demos.py)."""

import random

from agemem_jax.benchmarks import demos
from agemem_jax.benchmarks.demos import OFF_PLAN
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN
from agemem_jax.benchmarks.hotpotqa.words import NUMBERS
from agemem_jax.data.scripts import Lines, Shadow, names
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import Op

RELATIONS = ("by", "in", "for", "to")  # the words after which a generated fact names its object
GUESS = 0.05  # chance of an answer without the facts, a turn


class Demonstrator(demos.Demonstrator):
    """Answers from what is in view, after retrieving what is not."""

    def criteria(self, text: str) -> str:
        return named(text)

    def digest(self, seen: list[str]) -> str:
        return digest(seen)

    def reason(self, rng: random.Random, staged: StagedRecord, shadow: Shadow, lines: Lines) -> None:
        """Stage 3: retrieve what the question names and is not in view, then what that leads to, then answer."""
        mine = [text for who, text in shadow.entries.values() if who == staged.asker]
        shadow.see(staged.query)
        seen = shadow.texts()
        where = {text: text in seen or any(text in s for s in seen) for text in staged.gold}
        plan = [text for text in staged.gold if not where[text] or rng.random() < 0.25]
        known = {text: where[text] or any(text in held for held in mine) for text in staged.gold}
        if staged.answer == UNKNOWN:
            plan = [staged.query]
        if "bid most" in staged.query:
            plan = []
        turns, limit = lines.stages[2], self.config.rollout.stage3_turns
        independent = staged.query.split()[0] == "Do" or "first" in staged.query  # both are named in the question
        while len(turns) < limit:
            chance = rng.random()
            if chance < GUESS:
                turns.append(self.turn([], self._guess(rng, staged)))
                return
            if not plan:
                turns.append(self.turn([], self._answer(rng, staged, known, shadow.texts())))
                return
            if chance < GUESS + OFF_PLAN:
                op = rng.choice([Op.ADD, Op.UPDATE, Op.DELETE, Op.RETRIEVE, Op.FILTER])
                turns.append(self.turn([self.call(rng, op, rng.choice(staged.facts), staged.asker, shadow)]))
                continue
            text = plan.pop(0)
            query = subject(text) if text == staged.query else question_part(rng, text)
            turns.append(self.turn([(Op.RETRIEVE, {"query": f" {query}"})]))
            if not known.get(text, True) and not independent:
                plan = []  # the chain is broken: what follows can only be a guess

    def _answer(self, rng: random.Random, staged: StagedRecord, known: dict[str, bool], seen: list[str]) -> str:
        """The right answer if what it takes was in view, what a look at the bids in view gives, or none."""
        if "bid most" in staged.query:
            best = digest([text for text in seen if " bid " in text])
            return " ".join(best.split()[:2]) if best else UNKNOWN
        if all(known.values()):
            return staged.answer
        return UNKNOWN if rng.random() < 0.5 else self._guess(rng, staged)

    def _guess(self, rng: random.Random, staged: StagedRecord) -> str:
        """An answer of the right kind that nothing in view supports."""
        if staged.answer in ("yes", "no"):
            return rng.choice(["yes", "no"])
        objects = [split_fact(text)[1] for text in staged.facts + staged.distractors]
        kind = [o for o in objects if o and o[0].isdigit() == staged.answer[0].isdigit()]
        return rng.choice(kind or [staged.answer])


def split_fact(text: str) -> tuple[str, str]:
    """Subject with relation, and object, of a generated fact: ("Silver River was written by", "Ada Keller")."""
    words = text.split()
    at = max((i for i, word in enumerate(words) if word in RELATIONS), default=len(words) - 1)
    return " ".join(words[: at + 1]), " ".join(words[at + 1 :])


def subject(text: str) -> str:
    """The first two names of a text, as one would search or filter by; a text without names as it is."""
    named = [word for word in text.split() if word in names(text) and word not in ("Where", "When", "Who", "Do")]
    return " ".join(named[:2]) or text


def named(text: str) -> str:
    """The names in a text, in their order; a text without names as it is."""
    return " ".join(word for word in text.split() if word in names(text)) or text


def question_part(rng: random.Random, text: str) -> str:
    """What one would search a fact by: its subject, mostly with the relation."""
    head = split_fact(text)[0]
    return head if rng.random() < 0.7 else subject(text)


def digest(seen: list[str]) -> str:
    """What is worth keeping of messages in few words: the highest bid, or the first two facts that are told."""
    bids = [text.split()[:4] for text in seen if " bid " in text and text.split()[3] in NUMBERS]
    if bids:
        return " ".join(max(bids, key=lambda bid: NUMBERS.index(bid[3])))
    told = [text for text in seen if len(names(text)) >= 3]
    return " ".join(told[:2]) if told else " ".join(seen[:1])
