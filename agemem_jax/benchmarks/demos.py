"""Scripted demonstrations for the supervised warm start, told as text and tokenised like everything else.

They show the tool format, each tool used on sense and on nonsense alike, and how to go on from what is in view.
*Which* operation is called is drawn without a look at the message: what is worth storing, revising, forgetting, summing
up or filtering out, and when, is left to reinforcement learning. In stage 3 the store is filled by the script's own
draw, whatever stage 1 stored, so that going on from retrieved facts is shown often.
"""

import random
from abc import ABC, abstractmethod

from agemem_jax.data.batches import TaskSource
from agemem_jax.data.scripts import Demonstration, Lines, Shadow, Writer, write_turn
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import TOOL_NAMES, Op, Task

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
# What is thought before a call or an action, in vocabularies of words; the first is that of the prompt's example.
THOUGHTS = {
    Op.ADD: " The user tells me a fact, so I store it",
    Op.UPDATE: " This changes what I stored, so I update it",
    Op.DELETE: " I need this entry no longer, so I delete it",
    Op.RETRIEVE: " I may have stored something about this, so I search my memory",
    Op.SUMMARY: " The conversation grows long, so I sum it up",
    Op.FILTER: " This is beside the point, so I filter it out",
    Op.PASS: " I let this message pass",
    Op.ACT: " I know what to do",
}


class Demonstrator(ABC):
    """Writes scripts for the training tasks of a source; script i is a function of (seed, i).

    A benchmark's own says what a message is about (`related`, `criteria`), what is worth keeping of several (`digest`),
    and what is done in stage 3 (`reason`).
    """

    def __init__(self, source: TaskSource, config, end_of_turn: str):
        self.source, self.config = source, config
        self.writer = Writer(source, config, end_of_turn)
        self.enabled = {Op.PASS, *(Op(i) for i, name in enumerate(TOOL_NAMES) if name in config.tools.enabled)}

    def batch(self, step: int, size: int) -> tuple[Task, Demonstration]:
        """Tasks and demonstrations of one warm-start step, numpy arrays of `size` rows."""
        return self.writer.demonstrations(self.tell, step, size)

    def period(self, size: int) -> int:
        """Batches of `size` after which the same come again; 0: never."""
        return 0

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
        self.reason(rng, staged, shadow, lines)
        return lines, held

    def related(self, shadow: Shadow, owner: int, text: str) -> int | None:
        """The id of the owner's entry that a message is about, if there is one."""
        return shadow.related(owner, text)

    @abstractmethod
    def criteria(self, text: str) -> str:
        """By what a message is filtered out."""
        ...

    @abstractmethod
    def digest(self, seen: list[str]) -> str:
        """What is worth keeping of messages, in few words."""
        ...

    @abstractmethod
    def reason(self, rng: random.Random, staged: StagedRecord, shadow: Shadow, lines: Lines) -> None:
        """Writes the turns of stage 3; `shadow` has what is in store and context when it begins."""
        ...

    def fact(self, text: str) -> str:
        """What a message tells, as it is stored."""
        return text

    def spaced(self, text: str) -> str:
        """A text as an argument begins with it: in the tiny vocabulary a word's piece begins with its space."""
        return f" {text}" if self.source.tokenizer.is_small else text

    def turn(self, calls: list[tuple[Op, dict]], action: str | None = None, thought: str = "") -> str:
        """A turn, with a thought before it (if none is given, that of its first call) where the vocabulary has words.
        """
        op = calls[0][0] if calls else Op.PASS if action is None else Op.ACT
        return write_turn(
            self.config.tools, calls, action, "" if self.source.tokenizer.is_small else thought or THOUGHTS[op]
        )

    def _listen(
        self, rng: random.Random, text: str, speaker: int, shadow: Shadow, lines: Lines, stage: int, shares: dict
    ) -> None:
        """A turn of stage 1 or 2 after message `text`."""
        shares = {op: share for op, share in shares.items() if op in self.enabled}
        op = rng.choices(list(shares), list(shares.values()))[0]
        slots = self.config.rollout.summary_slots
        if op == Op.SUMMARY and (len(lines.summaries[stage]) == slots or len(shadow.view) < 2):
            op = Op.PASS
        if op == Op.PASS and self.config.tools.min_calls:
            op = Op.RETRIEVE
        shadow.see(text, 0 if op == Op.PASS else 8)
        if op == Op.PASS:
            lines.stages[stage].append(self.turn([]))
            return
        call, summary = self.call(rng, op, text, speaker, shadow), ""
        lines.stages[stage].append(self.turn([call]))
        if op == Op.SUMMARY:
            seen = shadow.texts()
            summary = self.digest(seen) if rng.random() < SENSE else self.fact(rng.choice(seen))
            lines.summaries[stage].append(summary)
        shadow.carry_out(speaker, *call, summary)

    def call(self, rng: random.Random, op: Op, text: str, speaker: int, shadow: Shadow) -> tuple[Op, dict]:
        """A call of an operation, with arguments that suit the moment or not."""
        limit = self.config.store.entry_tokens  # a summary in view may be longer than an entry
        seen = [told for told in shadow.texts() if len(self.source.encode(told)) < limit] or [text]
        content = self.fact(text if rng.random() < SENSE else rng.choice(seen))
        related = self.related(shadow, speaker, text)
        number = rng.randint(1, self.config.store.entries + 1)
        if related is not None and rng.random() < SENSE:
            number = related
        if op == Op.ADD:
            return op, {"content": self.spaced(content)}
        if op == Op.UPDATE:
            return op, {"memory_id": str(number), "content": self.spaced(content)}
        if op == Op.DELETE:
            return op, {"memory_id": str(number), "confirmation": rng.random() < 0.85}
        if op == Op.RETRIEVE:
            return op, {"query": self.spaced(some_words(rng, content))}
        if op == Op.SUMMARY:
            return op, {"span": "all" if rng.random() < SENSE else rng.choice(["1", "2"])}
        criteria = self.criteria(text) if rng.random() < SENSE else some_words(rng, self.fact(rng.choice(seen)))
        return op, {"criteria": self.spaced(criteria)}

    def _seed(self, rng: random.Random, staged: StagedRecord) -> list[tuple[int, str]]:
        """What the store holds from stage 2 on: mostly what holds, at times what does not, as many as fit."""
        speakers = dict(zip(staged.facts, staged.fact_speakers, strict=True))
        told = {self.fact(text): self._speaker(text, speakers) for text in staged.keep}
        held = [(speaker, text) for text, speaker in told.items() if rng.random() < SEEDED]
        others = [(speaker, self.fact(text)) for text, speaker in speakers.items() if self.fact(text) not in told]
        rng.shuffle(others)
        if rng.random() < 1 - SEEDED:
            held += others[:1]
        rng.shuffle(held)
        return held[: self.config.store.entries]

    def _speaker(self, text: str, speakers: dict[str, int]) -> int:
        """Who told a text; a message may say it after an opening."""
        return next((who for told, who in speakers.items() if text in told), 0)


def some_words(rng: random.Random, text: str) -> str:
    """Two to four neighbouring words of a text."""
    words = text.split()
    size = min(len(words), rng.randint(2, 4))
    at = rng.randint(0, len(words) - size)
    return " ".join(words[at : at + size])
