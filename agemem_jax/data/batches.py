"""Batches of tasks as padded arrays, each a function of (seed, update) alone: a resumed run needs no cursor."""

import functools
import random
import warnings
from typing import Any, Protocol

import jax
import numpy as np

from agemem_jax.config import refuse
from agemem_jax.data.staged import REVISIONS, SPLITS, StagedRecord
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.types import PAD_ID, Task, Text

KEPT_TEXTS = 1 << 16  # whose tokens are kept
KEY_TOKENS = 16  # key tokens kept of a query
MEASURED_RECORDS = 500  # whose texts are measured against their limits
TEACHABLE_SHARE = 0.5  # of the texts that must be whole, those that may be cut at most
# What is measured: the field that limits it, and whether it must be whole for most records. A benchmark adds its own.
LIMITS = {
    "messages": ("task.message_tokens", False),
    "queries": ("task.message_tokens", True),
    "supporting facts": ("task.message_tokens", True),
    "supporting facts as entries": ("store.entry_tokens", False),
    "key tokens of a query": ("", False),
}


class Tasks(Protocol):
    """What a benchmark tells and plays, on the host."""

    splits: dict[str, list]  # the records of each of SPLITS
    kinds: tuple[str, ...]  # that a task may be of
    made_for: dict[str, tuple[str, ...]]  # of each tool, the kinds that are made for it
    most_gold: int  # supporting facts of a record, at most
    scores: dict[str, str]  # what "success" and "progress" are called
    limits: dict[str, tuple[str, bool]]  # of its own sizes, as LIMITS
    demonstrator: type  # of the warm start (benchmarks/demos.py), called with (source, config, end of turn)
    lessons: type | None  # for it to read before, called with (config, tokenizer, pieces)

    def tell(self, record: Any, rng: random.Random, always: random.Random) -> StagedRecord:
        """A record as it is told: `rng` is of the record and the epoch, `always` of the record alone."""
        ...

    def game(self, staged: StagedRecord) -> Any:
        """What the environment plays (envs/base.py), without the rows' axis."""
        ...

    def sizes(self, record: Any, staged: StagedRecord) -> dict[str, int]:
        """The sizes of a record that its `limits` are about."""
        ...


class TaskSource:
    """The training, validation and test tasks of a run, of any benchmark.

    In `records` the splits follow each other in the order of SPLITS; Task.index counts through all. `places` has each
    split's place: {split: range of indices}.

    A text with more tokens than its limit is cut. `cut_texts` has for each kind in LIMITS and `tasks.limits` the field
    that limits it, its value, the share of MEASURED_RECORDS records' texts that it cuts, and the value that would hold
    99 % of them; a warning names those that are cut.

    Raises ConfigError if more than TEACHABLE_SHARE of the texts that must be whole are cut.
    """

    def __init__(self, config, tokenizer: Tokenizer, tasks: Tasks):
        self.config, self.tokenizer, self.tasks = config, tokenizer, tasks
        # A conversation is told with each of its questions.
        self._encoded = functools.lru_cache(KEPT_TEXTS)(functools.partial(encoded, tokenizer))
        self.records = [record for split in SPLITS for record in tasks.splits[split]]
        ends = np.cumsum([len(tasks.splits[split]) for split in SPLITS]).tolist()
        self.places = dict(zip(SPLITS, map(range, [0, *ends], ends), strict=False))
        self.num_train = len(tasks.splits["train"])
        self.max_gold = max(1, min(config.task.facts, tasks.most_gold))
        self.cut_texts = self._measure()
        self._check_cuts()

    def batch(self, update: int, tasks: int = 0, group_size: int = 0) -> Task:
        """The training tasks of an update: B = tasks * group_size rows, the equal rows of a group consecutive.

        `tasks` and `group_size` default to config.rl. Each epoch goes through all training records once, in an order
        of its own (from config.seed), and tells each in an order of its own.
        """
        tasks, group_size = tasks or self.config.rl.tasks_per_update, group_size or self.config.rl.group_size
        places = [divmod(place, self.num_train) for place in range(update * tasks, (update + 1) * tasks)]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        task = self.rows([(int(orders[epoch][offset]), epoch) for epoch, offset in places])
        return jax.tree.map(lambda leaf: np.repeat(leaf, group_size, axis=0), task)

    def split_batch(self, split: str, index: int, rows: int) -> tuple[Task, np.ndarray]:
        """Tasks index * rows and on of a split, one a row, and `valid` [rows] bool: False for repetitions."""
        places, found = np.arange(index * rows, (index + 1) * rows), self.places[split]
        return self.rows([(found[min(int(place), len(found) - 1)], 0) for place in places]), places < len(found)

    def records_of(self, split: str) -> list[dict]:
        """The records of a split."""
        return self.records[self.places[split].start : self.places[split].stop]

    def rows(self, picks: list[tuple[int, int]]) -> Task:
        """The tasks of (record index, epoch) pairs as numpy arrays, one a row."""
        return stack([self._row(index, epoch) for index, epoch in picks])

    def staged(self, index: int, epoch: int = 0) -> StagedRecord:
        """Record `index` as it is told in an epoch."""
        seed = f"{self.config.task.seed}/{index}"
        return self.tasks.tell(self.records[index], random.Random(f"{seed}/{epoch}"), random.Random(seed))

    def owner(self, index: int, speaker: int) -> int:
        """Whose memory a speaker of record `index` has."""
        return index % self.config.task.owners + self.config.task.owners * speaker

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text (`encoded`)."""
        return list(self._encoded(text))

    def _measure(self) -> dict[str, dict]:
        """The `cut_texts` of records spread evenly over all splits."""
        limits = LIMITS | self.tasks.limits
        sizes: dict[str, list[int]] = {kind: [] for kind in limits}
        for index in range(0, len(self.records), -(-len(self.records) // MEASURED_RECORDS)):
            staged = self.staged(index)
            gold = [len(self.encode(text)) for text in staged.gold]
            sizes["messages"] += [len(self.encode(text)) for text in staged.facts + staged.distractors]
            sizes["queries"].append(len(self.encode(staged.query)))
            sizes["supporting facts"] += gold
            sizes["supporting facts as entries"] += gold
            sizes["key tokens of a query"].append(len(self._key_tokens(staged.key_words)))
            for kind, size in self.tasks.sizes(self.records[index], staged).items():
                sizes[kind].append(size)
        measured = {}
        for kind, (field, _) in limits.items():
            limit = KEY_TOKENS if not field else self.config[field.split(".")[0]][field.split(".")[1]]
            measured[kind] = {
                "field": field,
                "limit": limit,
                "share": float(np.mean(np.array(sizes[kind]) > limit)) if sizes[kind] else 0.0,
                "holds_99": int(np.percentile(sizes[kind], 99, method="higher")) if sizes[kind] else 0,
            }
        return measured

    def _check_cuts(self) -> None:
        """Warns of texts that are cut; raises ConfigError if so many are that little can be learnt."""
        cuts = {kind: cut for kind, cut in self.cut_texts.items() if cut["share"]}
        for kind, cut in cuts.items():
            if (LIMITS | self.tasks.limits)[kind][1] and cut["share"] > TEACHABLE_SHARE:
                refuse(
                    cut["field"], cut["limit"],
                    f"cuts {cut['share']:.0%} of the {kind}, which must be whole to be learnt from; 99 % of them have "
                    f"at most {cut['holds_99']} tokens",
                )  # fmt: skip
        if cuts:
            told = (
                f"{cut['share']:.1%} of {kind} ({cut['field'] or 'fixed'} = {cut['limit']}; 99 % need "
                f"{cut['holds_99']})" for kind, cut in cuts.items()
            )  # fmt: skip
            warnings.warn(f"cut to their limits: {', '.join(told)}", stacklevel=3)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.config.seed, epoch]).permutation(self.num_train)

    def _row(self, index: int, epoch: int) -> Task:
        """One task without the row axis."""
        task, staged = self.config.task, self.staged(index, epoch)
        messages = [*staged.facts, *staged.distractors, staged.query]

        def owners(speakers: list[int]) -> list[int]:
            return [self.owner(index, speaker) for speaker in speakers]

        return Task(
            facts=self._messages(staged.facts, task.facts),
            num_facts=np.int32(len(staged.facts)),
            fact_is_gold=_padded(staged.is_gold, task.facts, bool),
            distractors=self._messages(staged.distractors, task.distractors),
            num_distractors=np.int32(len(staged.distractors)),
            query=pad_text(self._cut(staged.query, task.message_tokens), task.message_tokens),
            gold=self._messages(staged.gold, self.max_gold),
            num_gold=np.int32(len(staged.gold)),
            key_tokens=_padded(self._key_tokens(staged.key_words)[:KEY_TOKENS], KEY_TOKENS, np.int32),
            answer=pad_text(self._cut(staged.answer, task.answer_tokens), task.answer_tokens),
            game=self.tasks.game(staged),
            fact_owner=_padded(owners(staged.fact_speakers), task.facts, np.int32),
            fact_session=_padded(staged.fact_sessions or [index] * len(staged.facts), task.facts, np.int32),
            distractor_owner=_padded(owners(staged.distractor_speakers), task.distractors, np.int32),
            distractor_session=np.full((task.distractors,), index, np.int32),
            owner=np.int32(self.owner(index, staged.asker)),
            session=np.int32(index),
            keep=self._messages(staged.keep, task.facts),
            num_keep=np.int32(len(staged.keep)),
            view=self._messages(staged.view, task.distractors),
            num_view=np.int32(len(staged.view)),
            stale=self._messages([stale for stale, _ in staged.revisions], REVISIONS),
            present=self._messages([present for _, present in staged.revisions], REVISIONS),
            num_revisions=np.int32(len(staged.revisions)),
            kind=np.int32(self.tasks.kinds.index(staged.kind) if staged.kind else -1),
            cut=np.float32(np.mean([len(self.encode(text)) > task.message_tokens for text in messages])),
            index=np.int32(index),
        )

    def _cut(self, text: str, limit: int) -> list[int]:
        """The first `limit` token ids of a piece of text."""
        return self.encode(text)[:limit]

    def _messages(self, texts: list[str], count: int) -> Text:
        """Pieces of text as Text [count, message_tokens]."""
        width = self.config.task.message_tokens
        return pad_texts([self._cut(text, width) if text else [] for text in texts], count, width)

    def _key_tokens(self, words: list[str]) -> list[int]:
        """Distinct token ids of the words as they appear inside a sentence, after a space."""
        return list(dict.fromkeys(token for word in words for token in self.tokenizer.encode(" " + word)))


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a piece of text; a mark of chat or tools in it is text too.

    In the tiny vocabulary a word's piece begins with its space (benchmarks/vocabulary.py).
    """
    return list(tokenizer.encode(" " + text if tokenizer.is_small else text))


def pad_text(ids: list[int], width: int) -> Text:
    """Token ids as a Text [width]. Raises ValueError if there are more."""
    return Text(_padded(ids, width, np.int32), np.int32(len(ids)))


def pad_texts(rows: list[list[int]], count: int, width: int) -> Text:
    """Lists of token ids as a Text [count, width], empty beyond the last list. Raises ValueError if they do not fit."""
    if len(rows) > count:
        raise ValueError(f"{len(rows)} texts do not fit {count} rows")
    tokens = np.full((count, width), PAD_ID, np.int32)
    for row, ids in zip(tokens, rows, strict=False):
        row[:] = _padded(ids, width, np.int32)
    return Text(tokens, np.array([len(ids) for ids in rows] + [0] * (count - len(rows)), np.int32))


def _padded(values: list, size: int, dtype) -> np.ndarray:
    if len(values) > size:
        raise ValueError(f"{len(values)} tokens do not fit {size} places")
    array = np.full((size,), PAD_ID, dtype)
    array[: len(values)] = values
    return array


def stack(rows: list):
    """Trees of arrays of the same shapes as one, with an axis more in front."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
