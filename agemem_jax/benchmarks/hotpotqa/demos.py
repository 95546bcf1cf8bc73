"""Scripted demonstrations for the supervised warm start, told as text and tokenised like everything else.

They show the tool format, each tool used on sense and on nonsense alike, and how to answer from what is in view.
*Which* operation is called is drawn without a look at the message: what is worth storing, revising, forgetting, summing
up or filtering out, and when, is left to reinforcement learning. In stage 3 the store is filled by the script's own
draw, whatever stage 1 stored, so that an answer from retrieved facts is shown often.
"""

import random

import numpy as np
from flax import struct

from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN
from agemem_jax.benchmarks.hotpotqa.words import NUMBERS
from agemem_jax.data.batches import TaskSource, pad_texts, stack
from agemem_jax.data.scripts import Lines, Script, Shadow, Writer, names, write_turn
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import Op, Task, Text

# Which operation a turn calls, by its share; Op.PASS lets the message pass.
LISTEN = {Op.PASS: 0.14, Op.ADD: 0.4, Op.UPDATE: 0.2, Op.DELETE: 0.16, Op.RETRIEVE: 0.04, Op.SUMMARY: 0.03,
          Op.FILTER: 0.03}  # fmt: skip
# Stage 2: of a context edited more often little is left to read answers from; less often, and RL hardly meets the edit
# that keeps what is asked (experiments/LOG.md).
WANDER = {Op.PASS: 0.54, Op.ADD: 0.06, Op.UPDATE: 0.03, Op.DELETE: 0.03, Op.RETRIEVE: 0.04, Op.SUMMARY: 0.15,
          Op.FILTER: 0.15}  # fmt: skip
SENSE = 0.9  # chance that an argument of a call suits the moment
SEEDED = 0.85  # chance of each fact that holds to be in the store of stage 3
OFF_PLAN = 0.15  # chance of any operation in a turn of stage 3
RELATIONS = ("by", "in", "for", "to")  # the words after which a generated fact names its object
GUESS = 0.05  # chance of an answer without the facts, a turn


@struct.dataclass
class Demonstration:
    """Scripts, and the store that they find in stages 2 and 3."""

    script: Script
    entries: Text  # [B, N, W] texts in the store from stage 2 on
    owners: np.ndarray  # [B, N] int32


class Demonstrator:
    """Writes scripts for the training tasks of a source; script i is a function of (seed, i)."""

    def __init__(self, source: TaskSource, config, end_of_turn: str):
        self.source, self.config = source, config
        self.writer = Writer(source, config, end_of_turn)

    def batch(self, step: int, size: int) -> tuple[Task, Demonstration]:
        """Tasks and demonstrations of one warm-start step, numpy arrays of `size` rows."""
        places = range(step * size, (step + 1) * size)
        picks = [(place % self.source.num_train, place // self.source.num_train) for place in places]
        told = [self.tell(index, epoch) for index, epoch in picks]
        count, width = self.config.store.entries, self.config.task.message_tokens
        entries = [pad_texts([self.source.encode(text)[:width] for _, text in held], count, width) for _, held in told]
        owners = np.zeros((size, count), np.int32)
        for row, (index, _), (_, held) in zip(owners, picks, told, strict=True):
            row[: len(held)] = [self.source.owner(index, speaker) for speaker, _ in held]
        demonstration = Demonstration(self.writer.script([lines for lines, _ in told]), stack(entries), owners)
        return self.source.rows(picks), demonstration

    def tell(self, index: int, epoch: int) -> tuple[Lines, list[tuple[int, str]]]:
        """What one agent writes, and what its store holds from stage 2 on as (speaker, text)."""
        rng = random.Random(f"{self.config.seed}/demo/{index}/{epoch}")
        staged = self.source.staged(index, epoch)
        lines, shadow = Lines(([], [], [])), Shadow(self.config)
        for text, speaker in zip(staged.facts, staged.fact_speakers, strict=True):
            self._listen(rng, text, speaker, shadow, lines, 0, LISTEN)
        held = self._seed(rng, staged)
        shadow = Shadow(self.config)  # the context is emptied
        for speaker, text in held:
            shadow.add(speaker, text)
        for text, speaker in zip(staged.distractors, staged.distractor_speakers, strict=True):
            self._listen(rng, text, speaker, shadow, lines, 1, WANDER)
        self._reason(rng, staged, shadow, lines)
        return lines, held

    def _turn(self, calls: list[tuple[Op, dict]], answer: str | None = None) -> str:
        return write_turn(self.config.tools, calls, answer)

    def _listen(
        self, rng: random.Random, text: str, speaker: int, shadow: Shadow, lines: Lines, stage: int, shares: dict
    ) -> None:
        """A turn of stage 1 or 2 after message `text`."""
        op = rng.choices(list(shares), list(shares.values()))[0]
        slots = self.config.rollout.summary_slots
        if op == Op.SUMMARY and (len(lines.summaries[stage]) == slots or len(shadow.view) < 2):
            op = Op.PASS
        if op == Op.PASS and self.config.tools.min_calls:
            op = Op.RETRIEVE
        shadow.see(text, 0 if op == Op.PASS else 8)
        if op == Op.PASS:
            lines.stages[stage].append(self._turn([]))
            return
        call, summary = self._call(rng, op, text, speaker, shadow), ""
        lines.stages[stage].append(self._turn([call]))
        if op == Op.SUMMARY:
            seen = shadow.texts()
            summary = digest(seen) if rng.random() < SENSE else rng.choice(seen)
            lines.summaries[stage].append(summary)
        shadow.carry_out(speaker, *call, summary)

    def _call(self, rng: random.Random, op: Op, text: str, speaker: int, shadow: Shadow) -> tuple[Op, dict]:
        """A call of an operation, with arguments that suit the moment or not."""
        limit = self.config.store.entry_tokens  # a summary in view may be longer than an entry
        seen = [told for told in shadow.texts() if len(told.split()) < limit] or [text]
        content = text if rng.random() < SENSE else rng.choice(seen)
        related = shadow.related(speaker, text)
        number = rng.randint(1, self.config.store.entries + 1)
        if related is not None and rng.random() < SENSE:
            number = related
        if op == Op.ADD:
            return op, {"content": f" {content}"}
        if op == Op.UPDATE:
            return op, {"memory_id": str(number), "content": f" {content}"}
        if op == Op.DELETE:
            return op, {"memory_id": str(number), "confirmation": rng.random() < 0.85}
        if op == Op.RETRIEVE:
            return op, {"query": f" {some_words(rng, content)}"}
        if op == Op.SUMMARY:
            return op, {"span": "all" if rng.random() < SENSE else rng.choice(["1", "2"])}
        return op, {"criteria": f" {named(text) if rng.random() < SENSE else some_words(rng, rng.choice(seen))}"}

    def _seed(self, rng: random.Random, staged: StagedRecord) -> list[tuple[int, str]]:
        """What the store holds from stage 2 on: mostly what holds, at times what does not, as many as fit."""
        speakers = dict(zip(staged.facts, staged.fact_speakers, strict=True))
        told = {text: self._speaker(text, speakers) for text in staged.keep}
        held = [(speaker, text) for text, speaker in told.items() if rng.random() < SEEDED]
        others = [(speaker, text) for text, speaker in speakers.items() if text not in told]
        rng.shuffle(others)
        if rng.random() < 1 - SEEDED:
            held += others[:1]
        rng.shuffle(held)
        return held[: self.config.store.entries]

    def _speaker(self, text: str, speakers: dict[str, int]) -> int:
        """Who told a text; a message may say it after an opening."""
        return next((who for told, who in speakers.items() if text in told), 0)

    def _reason(self, rng: random.Random, staged: StagedRecord, shadow: Shadow, lines: Lines) -> None:
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
                turns.append(self._turn([], self._guess(rng, staged)))
                return
            if not plan:
                turns.append(self._turn([], self._answer(rng, staged, known, shadow.texts())))
                return
            if chance < GUESS + OFF_PLAN:
                op = rng.choice([Op.ADD, Op.UPDATE, Op.DELETE, Op.RETRIEVE, Op.FILTER])
                turns.append(self._turn([self._call(rng, op, rng.choice(staged.facts), staged.asker, shadow)]))
                continue
            text = plan.pop(0)
            query = subject(text) if text == staged.query else question_part(rng, text)
            turns.append(self._turn([(Op.RETRIEVE, {"query": f" {query}"})]))
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


def some_words(rng: random.Random, text: str) -> str:
    """Two to four neighbouring words of a text."""
    words = text.split()
    size = min(len(words), rng.randint(2, 4))
    at = rng.randint(0, len(words) - size)
    return " ".join(words[at : at + size])
