"""Batches of tasks as padded arrays, each a function of (seed, update) alone: a resumed run needs no cursor."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from agemem_jax.config import refuse
from agemem_jax.data import hotpotqa, questions
from agemem_jax.data.tokenizer import Tokenizer, check_spelling
from agemem_jax.errors import InputError
from agemem_jax.types import PAD_ID, Task, Text

SPLITS = ("train", "validation", "test")
KEY_TOKENS = 16  # key tokens kept of a query
MEASURED_RECORDS = 500  # whose texts are measured against their limits
TEACHABLE_SHARE = 0.5  # of queries, supporting facts or answers that may be cut at most
# What is measured: the field that limits it, and whether it must be whole for most records.
LIMITS = {
    "messages": ("task.message_tokens", False),
    "queries": ("task.message_tokens", True),
    "supporting facts": ("task.message_tokens", True),
    "supporting facts as entries": ("store.entry_tokens", False),
    "answers": ("task.answer_tokens", True),
    "supporting facts of a record": ("task.facts", False),
    "key tokens of a query": ("", False),
}

GameOf = Callable[..., Any]  # (gold answer, words that count = all) -> what the environment plays, with num_words


class TaskSource:
    """The training, validation and test tasks of a run.

    Without `config.task.path` the questions are generated from `config.task.seed`, and the splits share no entity
    pair. With it validation and test records come from files of their own (`task.validation_path`, `task.test_path`);
    where there is none, the last `task.test_fraction` of the records of `task.path` are the test split, and the
    `task.validation_fraction` before them the validation split. In `records` the splits follow each other in the order
    of SPLITS; Task.index counts through all. `places` has each split's place: {split: range of indices}.

    A text with more tokens than its limit is cut. `cut_texts` has for each kind in LIMITS the field that limits it,
    its value, the share of MEASURED_RECORDS records' texts that it cuts, and the value that would hold 99 % of them;
    a warning names those that are cut.

    game_of: benchmarks.hotpotqa.environment.question_of.

    Records of files that a later split has too (hotpotqa.identities) are left out: of training those that are validated
    or tested, of validation those that are tested. A warning counts them.

    Raises InputError if the file cannot be read (hotpotqa.load), if a split would be empty, if the vocabulary cannot
    spell what a record says, or if more than TEACHABLE_SHARE of the queries, supporting facts or answers are cut.
    """

    def __init__(self, config, tokenizer: Tokenizer, game_of: GameOf):
        self.config, self.tokenizer, self.game_of = config, tokenizer, game_of
        task = config.task
        if task.path:
            splits = self._leave_out_later_ones(self._read())
        else:
            sizes = questions.Sizes(config.store.entries, task.facts, task.distractors)
            counts = zip(SPLITS, (task.train_size, task.validation_size, task.test_size), strict=True)
            mix = checked_mix(config)
            splits = {split: questions.generate(task.seed, count, split, mix, sizes) for split, count in counts}
        self.records = [record for split in SPLITS for record in splits[split]]
        ends = np.cumsum([len(splits[split]) for split in SPLITS]).tolist()
        self.places = dict(zip(SPLITS, map(range, [0, *ends], ends), strict=False))
        self.num_train = len(splits["train"])
        if not (splits["train"] and splits["test"] and (splits["validation"] or not config.train.eval_every)):
            counts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
            raise InputError(
                f"task: {len(self.records)} records give {counts} tasks; training and test need at least one each, and "
                "so does validation with train.eval_every "
                f"(task.test_fraction = {task.test_fraction}, task.validation_fraction = {task.validation_fraction} of "
                f"task.path = {task.path!r}, where a split has no file of its own)"
            )
        for split in SPLITS:
            path, field = self.file_of(split)
            check_spelling(tokenizer, splits[split], path, field)
        self._check_telling()
        self.casual = not tokenizer.is_small  # the tiny vocabulary has the bare sentences only
        self.max_gold = max(1, min(task.facts, max(len(record["supporting_facts"]) for record in self.records)))
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

    def file_of(self, split: str) -> tuple[str, str]:
        """The file that a split comes from ("" of generated questions), and the config's field that names it."""
        task = self.config.task
        own = {"train": "", "validation": task.validation_path, "test": task.test_path}[split]
        return (own, f"task.{split}_path") if own else (task.path, "task.path")

    def rows(self, picks: list[tuple[int, int]]) -> Task:
        """The tasks of (record index, epoch) pairs as numpy arrays, one a row."""
        return stack([self._row(index, epoch) for index, epoch in picks])

    def staged(self, index: int, epoch: int = 0) -> hotpotqa.StagedRecord:
        """Record `index` as it is told in an epoch."""
        task = self.config.task
        rng = random.Random(f"{task.seed}/{index}/{epoch}")
        always = random.Random(f"{task.seed}/{index}")  # the answer is the same in every epoch
        revise, stranger = (always.random() < share for share in (task.revised, task.strangers))
        return hotpotqa.stages(
            self.records[index], rng, task.facts, task.chatter, task.distractors, self.casual, revise, stranger
        )

    def owner(self, index: int, speaker: int) -> int:
        """Whose memory a speaker of record `index` has."""
        return index % self.config.task.owners + self.config.task.owners * speaker

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text; a mark of chat or tools in it is text too.

        In the tiny vocabulary a word's piece begins with its space (vocabulary.py).
        """
        return list(self.tokenizer.encode(" " + text if self.tokenizer.is_small else text))

    def _check_telling(self) -> None:
        """Raises ConfigError if a record that says itself what is told tells more than fits."""
        task = self.config.task
        limits = ("told", "task.facts", task.facts, 1), ("later", "task.distractors", task.distractors, 2)
        for number, record in enumerate(self.records):
            for field, name, limit, stage in limits:
                if (count := len(record.get(field, ()))) > limit:
                    refuse(name, limit, f"record {number} tells {count} messages of stage {stage}; set >= {count}")

    def _read(self) -> dict[str, list[dict]]:
        """The records of each split, from files."""

        def load(split: str) -> list[dict]:
            path, field = self.file_of(split)
            return hotpotqa.load(path, lambda answer: self.game_of(answer).num_words > 0, field)

        splits = {"train": load("train")}
        whole = len(splits["train"])
        task = self.config.task
        for split, fraction in (("test", task.test_fraction), ("validation", task.validation_fraction)):
            if self.file_of(split)[0] != task.path:
                splits[split] = load(split)
            else:
                cut = len(splits["train"]) - round(whole * fraction)
                splits["train"], splits[split] = splits["train"][: max(cut, 0)], splits["train"][max(cut, 0) :]
        return splits

    def _leave_out_later_ones(self, splits: dict[str, list[dict]]) -> dict[str, list[dict]]:
        """The splits without the records that a later one has as well."""
        later, kept = set(), {}
        for split in reversed(SPLITS):
            found = splits[split]
            kept[split] = [record for record in found if later.isdisjoint(hotpotqa.identities(record))]
            later |= {key for record in found for key in hotpotqa.identities(record)}
            if out := len(found) - len(kept[split]):
                warnings.warn(
                    f"{self.file_of(split)[0]}: left out {out} of {len(found)} {split} records that are in a later "
                    "split too (train, validation, test)",
                    stacklevel=4,
                )
        return kept

    def _measure(self) -> dict[str, dict]:
        """The `cut_texts` of records spread evenly over all splits."""
        sizes: dict[str, list[int]] = {kind: [] for kind in LIMITS}
        for index in range(0, len(self.records), -(-len(self.records) // MEASURED_RECORDS)):
            staged = self.staged(index)
            told = [len(self.encode(text)) for text in staged.facts + staged.distractors]
            gold = [len(self.encode(text)) for text in staged.gold]
            words = int(self.game_of(staged.answer).num_words)
            sizes["messages"] += told
            sizes["queries"].append(len(self.encode(staged.query)))
            sizes["supporting facts"] += gold
            sizes["supporting facts as entries"] += gold
            sizes["answers"].append(max(words, len(self.encode(staged.answer))))
            sizes["supporting facts of a record"].append(len(self.records[index]["supporting_facts"]))
            sizes["key tokens of a query"].append(len(self._key_tokens(staged.key_words)))
        measured = {}
        for kind, (field, _) in LIMITS.items():
            limit = KEY_TOKENS if not field else self.config[field.split(".")[0]][field.split(".")[1]]
            measured[kind] = {
                "field": field,
                "limit": limit,
                "share": float(np.mean(np.array(sizes[kind]) > limit)),
                "holds_99": int(np.percentile(sizes[kind], 99, method="higher")),
            }
        return measured

    def _check_cuts(self) -> None:
        """Warns of texts that are cut; raises ConfigError if so many are that little can be learnt."""
        cuts = {kind: cut for kind, cut in self.cut_texts.items() if cut["share"]}
        for kind, cut in cuts.items():
            if LIMITS[kind][1] and cut["share"] > TEACHABLE_SHARE:
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
            game=self.game_of(staged.answer, task.answer_tokens),
            fact_owner=_padded(owners(staged.fact_speakers), task.facts, np.int32),
            fact_session=np.full((task.facts,), index, np.int32),
            distractor_owner=_padded(owners(staged.distractor_speakers), task.distractors, np.int32),
            distractor_session=np.full((task.distractors,), index, np.int32),
            owner=np.int32(self.owner(index, staged.asker)),
            session=np.int32(index),
            keep=self._messages(staged.keep, task.facts),
            num_keep=np.int32(len(staged.keep)),
            view=self._messages(staged.view, task.distractors),
            num_view=np.int32(len(staged.view)),
            stale=self._messages([stale for stale, _ in staged.revisions], questions.REVISIONS),
            present=self._messages([present for _, present in staged.revisions], questions.REVISIONS),
            num_revisions=np.int32(len(staged.revisions)),
            kind=np.int32(questions.KINDS.index(staged.kind) if staged.kind else -1),
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


def checked_mix(config) -> dict[str, float]:
    """The share of each kind of generated questions. Raises ConfigError if one does not fit store and stages."""
    t = config.task
    mix = {
        "recall": t.share_recall,
        "changed": t.share_changed,
        "closed": t.share_closed,
        "misled": t.share_misled,
        "bids": t.share_bids,
        "split": t.share_split,
    }
    fields = {"store.entries": config.store.entries, "task.facts": t.facts, "task.distractors": t.distractors}
    for kind, share in mix.items():
        for (name, size), least in zip(fields.items(), questions.LEAST[kind], strict=True):
            if share and size < least:
                refuse(name, size, f"{kind!r} questions need {least}; raise it, or set task.share_{kind} = 0")
    if not sum(mix.values()):
        refuse("task.share_recall", 0.0, "every kind has share 0; give one of them more")
    return mix


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
