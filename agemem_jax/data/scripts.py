"""What scripted agents write, turn by turn, and a plain model of what their memory then holds.

Scripts play real rollouts (rollout.stage.scripted_writer): demonstrations, oracles, farmers. They are written before
anything is played, so whoever writes one has to know the ids of entries and what is still in view: `Shadow` follows
both as far as scripts need it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flax import struct

from agemem_jax.config import refuse
from agemem_jax.data.batches import TaskSource, pad_text, pad_texts, stack
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.tools.layout import START, SUMMARY, Layout
from agemem_jax.tools.schemas import write_calls
from agemem_jax.types import TOOL_NAMES, Op, Task, Text

RESERVED_TOKENS = 10  # chat marks of a turn and of a summary after it, for which a context keeps room
_ESCAPE = re.compile(r"( ?\\.)")  # of a JSON string, with a space before it
QUIET_TOKENS = 4  # of a round beside its message in the tiny vocabulary: chat marks and an empty turn


# What one agent writes for a training record in an epoch, and what its store holds from stage 2 on as (speaker, text).
Teller = Callable[[int, int], tuple["Lines", list[tuple[int, str]]]]


@struct.dataclass
class Script:
    """What B scripted agents write."""

    stages: tuple[Text, Text, Text]  # each [B, turns, A]
    summaries: Text  # [B, 3, S, A] the S-th summary that is asked for in a stage
    slips: np.ndarray  # [B, turns of stage 3] bool: turns that are played, and not to be imitated


@struct.dataclass
class Demonstration:
    """Scripts, and the store that they find in stages 2 and 3."""

    script: Script
    entries: Text  # [B, N, W] texts in the store from stage 2 on
    owners: np.ndarray  # [B, N] int32


@dataclass
class Lines:
    """What one agent writes, as text."""

    stages: tuple[list[str], list[str], list[str]]
    summaries: tuple[list[str], list[str], list[str]] = field(default_factory=lambda: ([], [], []))
    slips: list[int] = field(default_factory=list)  # turns of stage 3 that are not to be imitated


def write_turn(tools, calls: list[tuple[Op, dict]], action: str | None = None, thought: str = "") -> str:
    """A turn in the format of the grammar: calls, a task action, or (`tools.turn` "both") calls and then an action.

    thought: what its think block holds, where agents think (`tools.think`).
    """
    think = f"<think>{thought if tools.think else ''}</think>"
    made = [{"name": TOOL_NAMES[op], "arguments": arguments} for op, arguments in calls]
    called = write_calls(made, tools) if calls or action is None else ""
    return think + called + ("" if action is None else f"<{tools.action_tag}> {action}</{tools.action_tag}>")


class Writer:
    """Scripts as arrays."""

    def __init__(self, source: TaskSource, config, end_of_turn: str):
        self.source, self.config, self.end = source, config, end_of_turn
        self.layout = Layout(config.tools, end_of_turn)
        r = config.rollout
        self.width = max(r.action_tokens, r.summary_tokens)
        self.turns = (
            config.task.facts + r.stage1_extra_turns,
            max(1, config.task.distractors + r.stage2_extra_turns),
            r.stage3_turns,
        )

    def script(self, rows: list[Lines]) -> Script:
        """One row for each agent; after its last line an agent lets every message pass, if the grammar has a way to."""
        rest = [write_turn(self.config.tools, [])] if self.config.tools.min_calls == 0 else []

        def stage(s: int) -> Text:
            said = [row.stages[s] + rest * (self.turns[s] - len(row.stages[s])) for row in rows]
            return stack([pad_texts([self.encode(text) for text in row], self.turns[s], self.width) for row in said])

        slots = max(1, self.config.rollout.summary_slots)

        def summaries(row: Lines) -> Text:
            told = [texts[:slots] + [""] * (slots - len(texts)) for texts in row.summaries]
            return stack([stack([self._summary(text) for text in texts]) for texts in told])

        slips = np.zeros((len(rows), self.turns[2]), bool)
        for slipped, row in zip(slips, rows, strict=True):
            slipped[row.slips] = True
        return Script(tuple(stage(s) for s in range(3)), stack([summaries(row) for row in rows]), slips)

    def demonstrations(self, tell: Teller, step: int, size: int, epochs: int = 0) -> tuple[Task, Demonstration]:
        """Training tasks and demonstrations of one warm-start step, numpy arrays of `size` rows.

        epochs: after so many they are the same again; 0: never.
        """
        source, places = self.source, range(step * size, (step + 1) * size)
        rounds = [divmod(place, source.num_train) for place in places]
        picks = [(index, epoch % epochs if epochs else epoch) for epoch, index in rounds]
        told = [tell(index, epoch) for index, epoch in picks]
        count, width = self.config.store.entries, self.config.task.message_tokens
        entries = [pad_texts([source.encode(text)[:width] for _, text in held], count, width) for _, held in told]
        owners = np.zeros((size, count), np.int32)
        for row, (index, _), (_, held) in zip(owners, picks, told, strict=True):
            row[: len(held)] = [source.owner(index, speaker) for speaker, _ in held]
        script = self.script([lines for lines, _ in told])
        return source.rows(picks), Demonstration(script, stack(entries), owners)

    def encode(self, text: str, limit: str = "action_tokens") -> list[int]:
        """A turn in tokens. Raises ConfigError if there are more than the field `limit` of config.rollout allows."""
        ids, most = self.tokens(text, limit == "summary_tokens"), self.config.rollout[limit]
        if len(ids) > most:
            refuse(f"rollout.{limit}", most, f"a script has a turn of {len(ids)} tokens; allow at least as many")
        return ids

    def tokens(self, text: str, is_summary: bool = False) -> list[int]:
        """A turn, or a summary, with its end mark as the grammar spells it: see Layout.pieces.

        In the tiny vocabulary literals are symbols, and a text has these tokens as it is. Elsewhere an escape of JSON
        is apart from what follows: the unescaped text of such a token need not be one.
        """
        tokenizer = self.source.tokenizer
        if tokenizer.is_small:
            return tokenizer.encode_markup(text + self.end)
        ids = []
        for piece, is_written in self.layout.pieces(text + self.end, SUMMARY if is_summary else START):
            if is_written:
                ids += [token for part in _ESCAPE.split(piece) for token in tokenizer.encode(part)]
            else:
                ids += tokenizer.encode_markup(piece)
        return ids

    def _summary(self, text: str) -> Text:
        text = as_summary(text, self.source.tokenizer, self.end, self.config.rollout.summary_tokens)
        return pad_text(self.encode(text, "summary_tokens"), self.width)


def as_summary(text: str, tokenizer: Tokenizer, end: str, most: int) -> str:
    """As many words of a text as fit in `most` tokens together with the mark `end`."""
    words = text.split()
    while words and len(tokenizer.encode_markup(f" {' '.join(words)}{end}")) > most:
        words.pop()  # a summary ends where its tokens do
    return f" {' '.join(words)}"


class Shadow:
    """The store and the context of one scripted agent, as far as scripts need them.

    Ids and places of the store are exact where texts differ and fit; which messages are still in view is an estimate.
    """

    def __init__(self, config):
        self.places, self.capacity = config.store.entries, config.context.capacity
        self.low_water = int(config.context.capacity * config.context.low_water)
        self.reserve = config.rollout.action_tokens + config.rollout.summary_tokens + RESERVED_TOKENS
        self.entries: dict[int, tuple[int, str]] = {}  # id: (owner, text)
        self.next_id = 1
        self.view: list[tuple[str, int]] = []  # (text, tokens) in the context, oldest first

    def add(self, owner: int, text: str) -> None:
        if len(self.entries) < self.places and (owner, text) not in self.entries.values():
            self.entries[self.next_id] = (owner, text)
            self.next_id += 1

    def update(self, owner: int, number: int, text: str) -> None:
        if self.entries.get(number, (None,))[0] == owner and (owner, text) not in self.entries.values():
            self.entries[number] = (owner, text)

    def delete(self, owner: int, number: int) -> None:
        if self.entries.get(number, (None,))[0] == owner:
            del self.entries[number]

    def carry_out(self, owner: int, op: Op, arguments: dict, summary: str = "") -> None:
        """What a call does to store and context; a SUMMARY leaves the `summary` of what it takes."""
        if op == Op.ADD:
            self.add(owner, arguments["content"].strip())
        elif op == Op.UPDATE:
            self.update(owner, int(arguments["memory_id"]), arguments["content"].strip())
        elif op == Op.DELETE and arguments["confirmation"]:
            self.delete(owner, int(arguments["memory_id"]))
        elif op == Op.FILTER:
            self.filter(arguments["criteria"])
        elif op == Op.SUMMARY and arguments["span"] == "all":
            self.summarise(summary)

    def related(self, owner: int, text: str) -> int | None:
        """The id of the owner's entry that has most words in common with a text; None if none has two names."""
        words, named = set(text.split()), names(text)
        about = [(i, e) for i, (who, e) in self.entries.items() if who == owner and len(named & names(e)) >= 2]
        return max(about, key=lambda entry: len(words & set(entry[1].split())), default=(None,))[0]

    def see(self, text: str, extra: int = 0) -> None:
        """A message and the turn after it, of `extra` more tokens than an empty one."""
        size = len(text.split()) + QUIET_TOKENS + extra
        if self.used() + len(text.split()) + self.reserve > self.capacity:
            while self.view and self.used() + len(text.split()) + self.reserve > self.low_water:
                self.view.pop(0)
        self.view.append((text, size))

    def used(self) -> int:
        return sum(size for _, size in self.view)

    def filter(self, criteria: str) -> None:
        """What names the same as the criteria goes; the turns after it stay."""
        wanted = names(criteria)
        gone = [len(wanted) >= 2 and wanted <= names(text) for text, _ in self.view]
        self.view = [("", QUIET_TOKENS // 2) if g else item for g, item in zip(gone, self.view, strict=True)]

    def summarise(self, text: str, rounds: int | None = None) -> None:
        """A summary takes the place of the last `rounds` messages and of the one that it answers; None: of all."""
        gone = len(self.view) if rounds is None else rounds + 1
        self.view[max(0, len(self.view) - gone) :] = [(text, len(text.split()) + 2)]

    def texts(self) -> list[str]:
        return [text for text, _ in self.view if text]


def names(text: str) -> set[str]:
    """The words of a text that name something."""
    return {word for word in text.split() if word[0].isupper() or word.isdigit()}
