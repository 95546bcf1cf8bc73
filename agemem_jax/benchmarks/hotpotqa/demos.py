"""How generated questions, and those of files, are answered in demonstrations (benchmarks/demos.py)."""

import random
import re

from agemem_jax.benchmarks import demos
from agemem_jax.benchmarks.demos import OFF_PLAN, SENSE, some_words
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN
from agemem_jax.benchmarks.hotpotqa.records import LEAD_INS, key_words
from agemem_jax.benchmarks.hotpotqa.words import NUMBERS
from agemem_jax.data.prompts import TASKS
from agemem_jax.data.scripts import Lines, Shadow, names
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import Op

RELATIONS = ("by", "in", "for", "to")  # the words after which a generated fact names its object
GUESS = 0.05  # chance of an answer without the facts, a turn
NAMED = re.compile(r"[A-Z0-9][\w'-]*(?: [A-Z0-9][\w'-]*)*")  # a name, or several words of one


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


class RecordDemonstrator(demos.Demonstrator):
    """Of records of files, which tell sentences of any kind: they are stored as they are told, and searched by the
    question.

    A sentence that is longer than an entry or than a turn can tell is stored in part.
    """

    def fact(self, text: str) -> str:
        """The sentence without its opening and its full stop, which byte-level BPE merges with what follows it.

        Brackets that could begin a mark of the format are left out.
        """
        told = next((text.removeprefix(opening) for opening in LEAD_INS if text.startswith(opening)), text)
        words = told.replace("<", "").rstrip(".?! ").split()
        while len(words) > 1 and not self._fits(" ".join(words)):
            words.pop()
        return " ".join(words)

    def criteria(self, text: str) -> str:
        return " ".join(key_words(self.fact(text))[:4]) or some_words(random.Random(text), self.fact(text))

    def digest(self, seen: list[str]) -> str:
        return ". ".join(map(self.fact, seen))

    def reason(self, rng: random.Random, staged: StagedRecord, shadow: Shadow, lines: Lines) -> None:
        """Stage 3: mostly a search by the question, then the answer if the supporting facts are found or in view."""
        shadow.see(staged.query)
        turns, messages = lines.stages[2], staged.facts + staged.distractors
        words, most = TASKS["answer"], self.config.rollout.stage3_turns - 1
        while len(turns) < most and rng.random() < OFF_PLAN:
            op = rng.choice(sorted(self.enabled - {Op.PASS, Op.SUMMARY}))
            call = self.call(rng, op, rng.choice(messages), staged.asker, shadow)
            shadow.carry_out(staged.asker, *call)
            turns.append(self.turn([call]))
        seen = shadow.texts()
        if len(turns) < most and rng.random() >= GUESS:
            question, asks = self.fact(staged.query), rng.random() < SENSE
            query = question if asks else some_words(rng, question)
            turns.append(self.turn([(Op.RETRIEVE, {"query": self.spaced(query)})], None, words.found))
            seen = seen + [text for who, text in shadow.entries.values() if asks and who == staged.asker]
        if staged.gold and all(any(self.fact(text) in one for one in seen) for text in staged.gold):
            turns.append(self.turn([], self.fact(staged.answer), words.thought))
        else:
            answer = UNKNOWN if rng.random() < 0.5 else self._guess(rng, staged, messages)
            turns.append(self.turn([], answer, " What I found does not tell it"))

    def _guess(self, rng: random.Random, staged: StagedRecord, messages: list[str]) -> str:
        """An answer that nothing in view supports: a decision, or a name that was told."""
        if staged.answer in ("yes", "no"):
            return rng.choice(["yes", "no"])
        return rng.choice([name for text in messages for name in NAMED.findall(self.fact(text))] or [UNKNOWN])

    def _fits(self, text: str) -> bool:
        """Whether an entry holds a text, and a turn tells it."""
        longest = (Op.UPDATE, {"memory_id": "99"}) if Op.UPDATE in self.enabled else (Op.ADD, {})
        turn = self.turn([(longest[0], longest[1] | {"content": text})])
        held = len(self.source.encode(text)) <= self.config.store.entry_tokens
        return held and len(self.writer.tokens(turn)) <= self.config.rollout.action_tokens


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
