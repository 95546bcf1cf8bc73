"""Scripted demonstrations for the supervised warm start, told as text and tokenised like everything else.

They show the tool format and how to answer from facts in view. *Which* operation is called, on what and when, is
drawn at random: what is worth storing, and that it must be retrieved before it is needed, is left to reinforcement
learning. In stage 3 the store is filled by the script's own draw, whatever stage 1 stored, so that an answer from
retrieved facts is shown often.
"""

import random

import numpy as np
from flax import struct

from agemem_jax.config import refuse
from agemem_jax.data.batches import TaskSource, pad_text, pad_texts
from agemem_jax.data.hotpotqa import StagedRecord
from agemem_jax.tools.schemas import write_calls
from agemem_jax.types import TOOL_NAMES, Op, Task, Text

RELATIONS = ("by", "in")  # the words after which a generated fact names its object
ADD_SHARE = 0.4  # of stage-1 turns
SEEDED_GOLD = 0.9  # chance of each gold fact to be in the store of stage 3
OFF_PLAN = 0.2  # chance of a random operation in a turn of stage 3
GUESS = 0.07  # chance of an answer without the facts, a turn


@struct.dataclass
class Script:
    """What B scripted agents write, turn by turn."""

    stages: tuple[Text, Text, Text]  # each [B, turns, A]
    summary: Text  # [B, A] written whenever a summary is asked for
    seeded: np.ndarray  # [B, F] bool stage-1 messages in the store of stage 3


def write_turn(tools, calls: list[tuple[Op, dict]], answer: str | None = None) -> str:
    """A turn in the format of the grammar: an answer, or calls."""
    think = "<think></think>"
    if answer is not None:
        return f"{think}<answer> {answer}</answer>"
    made = [{"name": TOOL_NAMES[op], "arguments": arguments} for op, arguments in calls]
    return think + write_calls(made, tools)


class Demonstrator:
    """Writes scripts for the training tasks of a source; script i is a function of (seed, i)."""

    def __init__(self, source: TaskSource, config, end_of_turn: str):
        self.source, self.config, self.end = source, config, end_of_turn

    def batch(self, step: int, size: int) -> tuple[Task, Script]:
        """Tasks and scripts of one warm-start step, numpy arrays of `size` rows."""
        places = range(step * size, (step + 1) * size)
        indices = [place % self.source.num_train for place in places]
        told = [place // self.source.num_train for place in places]
        parts = [self._script(i, epoch) for i, epoch in zip(indices, told, strict=True)]
        r, width = self.config.rollout, max(self.config.rollout.action_tokens, self.config.rollout.summary_tokens)
        turns = (self.config.task.facts, max(1, self.config.task.distractors), r.stage3_turns)

        def stack(rows: list[list[str]], count: int) -> Text:
            encoded = [
                pad_texts([self._encode(text, "action_tokens") for text in row[:count]], count, width) for row in rows
            ]
            return Text(np.stack([t.tokens for t in encoded]), np.stack([t.length for t in encoded]))

        summaries = [pad_text(self._encode(part[3], "summary_tokens"), width) for part in parts]
        script = Script(
            stages=tuple(stack([part[s] for part in parts], turns[s]) for s in range(3)),
            summary=Text(np.stack([t.tokens for t in summaries]), np.stack([t.length for t in summaries])),
            seeded=np.stack([part[4] for part in parts]),
        )
        return self.source.rows(list(zip(indices, told, strict=True))), script

    def _encode(self, text: str, limit: str) -> list[int]:
        """A turn in tokens. Raises ConfigError if there are more than the field `limit` of config.rollout allows."""
        ids, most = self.source.tokenizer.encode_markup(text + self.end), self.config.rollout[limit]
        if len(ids) > most:
            refuse(f"rollout.{limit}", most, f"a demonstration has a turn of {len(ids)} tokens; allow at least as many")
        return ids

    def _script(self, index: int, epoch: int) -> tuple[list[str], list[str], list[str], str, np.ndarray]:
        rng = random.Random(f"{self.config.seed}/demo/{index}/{epoch}")
        staged = self.source.staged(index, epoch)
        one = [self._listen(rng, text, staged) for text in staged.facts]
        two = [self._listen(rng, text, staged, add=0.1) for text in staged.distractors] or [self._turn([])]
        seeded = self._seed(rng, staged)
        three = self._reason(rng, staged, seeded)
        return one, two, three, f" {rng.choice(staged.facts)}", seeded

    def _turn(self, calls: list[tuple[Op, dict]], answer: str | None = None) -> str:
        return write_turn(self.config.tools, calls, answer)

    def _listen(self, rng: random.Random, text: str, staged: StagedRecord, add: float = ADD_SHARE) -> str:
        """A turn of stage 1 or 2 after message `text`."""
        if rng.random() < add:
            calls = [(Op.ADD, {"content": f" {text}"})]
            if self.config.tools.max_calls > 1 and rng.random() < 0.1:
                calls.append((Op.RETRIEVE, {"query": f" {some_words(rng, text)}"}))
            return self._turn(calls)
        if rng.random() < 0.7:
            return self._idle(rng, text)
        return self._turn([self._any_call(rng, text, staged)])

    def _idle(self, rng: random.Random, text: str) -> str:
        if self.config.tools.min_calls == 0:
            return self._turn([])
        return self._turn([(Op.RETRIEVE, {"query": f" {some_words(rng, text)}"})])

    def _any_call(self, rng: random.Random, text: str, staged: StagedRecord) -> tuple[Op, dict]:
        number = str(rng.randint(1, 4))
        return rng.choice(
            [
                (Op.UPDATE, {"memory_id": number, "content": f" {text}"}),
                (Op.DELETE, {"memory_id": number, "confirmation": rng.random() < 0.7}),
                (Op.RETRIEVE, {"query": f" {some_words(rng, text)}"}),
                (Op.SUMMARY, {"span": rng.choice(["all", "1", "2"])}),
                (Op.FILTER, {"criteria": f" {some_words(rng, rng.choice(staged.facts + staged.distractors))}"}),
            ]
        )

    def _seed(self, rng: random.Random, staged: StagedRecord) -> np.ndarray:
        """Which messages the store holds in stage 3: mostly the gold ones, and a few others, as many as fit."""
        seeded = np.zeros((self.config.task.facts,), bool)
        order = list(range(len(staged.facts)))
        rng.shuffle(order)
        for i in sorted(order, key=lambda i: not staged.is_gold[i]):
            share = SEEDED_GOLD if staged.is_gold[i] else 0.5
            if seeded.sum() < self.config.store.entries and rng.random() < share:
                seeded[i] = True
        return seeded

    def _reason(self, rng: random.Random, staged: StagedRecord, seeded: np.ndarray) -> list[str]:
        """Stage 3: retrieve what the question names, then what that leads to, then answer; at times something else."""
        stored = {text for text, here in zip(staged.facts, seeded, strict=False) if here}
        known = [text in stored or any(text in s for s in stored) for text in staged.gold]
        plan = [f" {question_part(rng, text)}" for text in staged.gold]
        turns, step, limit = [], 0, self.config.rollout.stage3_turns
        in_view = True
        while len(turns) < limit:
            chance = rng.random()
            if chance < GUESS:
                turns.append(self._turn([], self._guess(rng, staged)))
                break
            if step >= len(plan):
                answer = staged.answer if in_view and all(known) else self._guess(rng, staged)
                turns.append(self._turn([], answer))
                break
            if chance < GUESS + OFF_PLAN:
                call = self._any_call(rng, rng.choice(staged.facts), staged)
                in_view = in_view and (call[0] != Op.SUMMARY or step == 0) and call[0] != Op.FILTER
                turns.append(self._turn([call]))
                continue
            calls = [(Op.RETRIEVE, {"query": plan[step]})]
            independent = staged.query.split()[0] in ("Who", "Do")  # both people are named in the question
            if self.config.tools.max_calls > 1 and independent and step == 0 and rng.random() < 0.4:
                calls.append((Op.RETRIEVE, {"query": plan[1]}))
            step += len(calls)
            turns.append(self._turn(calls))
            if not known[step - 1] and not independent:
                step = len(plan)  # the chain is broken: what follows can only be a guess
        return turns

    def _guess(self, rng: random.Random, staged: StagedRecord) -> str:
        """An answer of the right kind that nothing in view supports."""
        if staged.answer in ("yes", "no"):
            return rng.choice(["yes", "no"])
        same = split_fact(staged.gold[-1])[0].split()[-1]  # the relation that the answer stands behind
        heads = [split_fact(text) for text in staged.facts + staged.distractors]
        kind = [o for h, o in heads if o and h.endswith(same) and o[0].isdigit() == staged.answer[0].isdigit()]
        return rng.choice(kind or [staged.answer])


def split_fact(text: str) -> tuple[str, str]:
    """Subject with relation, and object, of a generated fact: ("Silver River was written by", "Ada Keller")."""
    words = text.split()
    at = max((i for i, word in enumerate(words) if word in RELATIONS), default=len(words) - 1)
    return " ".join(words[: at + 1]), " ".join(words[at + 1 :])


def question_part(rng: random.Random, text: str) -> str:
    """What one would search a fact by: its subject, mostly with the relation."""
    head = split_fact(text)[0]
    return head if rng.random() < 0.7 else " ".join(head.split()[:2])


def some_words(rng: random.Random, text: str) -> str:
    """Two to four neighbouring words of a text."""
    words = text.split()
    size = min(len(words), rng.randint(2, 4))
    at = rng.randint(0, len(words) - size)
    return " ".join(words[at : at + size])
