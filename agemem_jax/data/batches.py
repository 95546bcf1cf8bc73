"""Batches of tasks as padded arrays, each a function of (seed, update) alone: a resumed run needs no cursor."""

import random
import warnings
from collections.abc import Callable

import jax
import numpy as np

from agemem_jax.config import refuse
from agemem_jax.data import hotpotqa, questions
from agemem_jax.data.tokenizer import Tokenizer, check_spelling
from agemem_jax.errors import InputError
from agemem_jax.types import PAD_ID, Task, Text

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

HashAnswer = Callable[[str], tuple[np.ndarray, bool]]


class TaskSource:
    """The training and test tasks of a run.

    Without `config.task.path` the questions are generated from `config.task.seed`, and the splits share no entity
    pair; with it the last `config.task.test_fraction` of the file's records are the test split. In `records` the
    training records come first, then the test records; Task.index counts through both.

    A text with more tokens than its limit is cut. `cut_texts` has for each kind in LIMITS the field that limits it,
    its value, the share of MEASURED_RECORDS records' texts that it cuts, and the value that would hold 99 % of them;
    a warning names those that are cut.

    hash_answer: envs.scoring.hash_words: text -> (hashes of the answer's normalised words [n, 2] uint32, whether the
    normalised answer is yes, no or noanswer).

    Training records of a file that are in its test split too (hotpotqa.identities) are left out; a warning counts them.

    Raises InputError if the file cannot be read (hotpotqa.load), if a split would be empty, if the vocabulary cannot
    spell what a record says, or if more than TEACHABLE_SHARE of the queries, supporting facts or answers are cut.
    """

    def __init__(self, config, tokenizer: Tokenizer, hash_answer: HashAnswer):
        self.config, self.tokenizer, self.hash_answer = config, tokenizer, hash_answer
        task = config.task
        if task.path:
            self.records = hotpotqa.load(task.path, lambda answer: len(hash_answer(answer)[0]) > 0)
            self.num_test = round(len(self.records) * task.test_fraction)
            self._leave_out_test_tasks()
        else:
            mix = {kind: task[f"share_{kind}"] for kind in questions.KINDS}
            sizes = questions.Sizes(config.store.entries, task.facts, task.distractors)
            self.records = questions.generate(task.seed, task.train_size, "train", mix, sizes)
            self.records += questions.generate(task.seed, task.test_size, "test", mix, sizes)
            self.num_test = task.test_size
        self.num_train = len(self.records) - self.num_test
        if self.num_train < 1 or self.num_test < 1:
            raise InputError(
                f"task: {len(self.records)} records give {self.num_train} training and {self.num_test} test tasks; "
                f"each needs at least one (task.test_fraction = {task.test_fraction} of task.path = {task.path!r}; "
                "without a file task.train_size, task.test_size)"
            )
        check_spelling(tokenizer, self.records, task.path)
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

    def test_batch(self, index: int, rows: int) -> tuple[Task, np.ndarray]:
        """Test tasks index * rows and on, one a row, and `valid` [rows] bool: False where the last task is repeated."""
        places = np.arange(index * rows, (index + 1) * rows)
        picks = [(self.num_train + min(int(place), self.num_test - 1), 0) for place in places]
        return self.rows(picks), places < self.num_test

    def rows(self, picks: list[tuple[int, int]]) -> Task:
        """The tasks of (record index, epoch) pairs as numpy arrays, one a row."""
        return _stack([self._row(index, epoch) for index, epoch in picks])

    def staged(self, index: int, epoch: int = 0) -> hotpotqa.StagedRecord:
        """Record `index` as it is told in an epoch."""
        task = self.config.task
        rng = random.Random(f"{task.seed}/{index}/{epoch}")
        always = random.Random(f"{task.seed}/{index}")  # the answer is the same in every epoch
        revise, stranger = (always.random() < share for share in (task.revised, task.strangers))
        return hotpotqa.stages(
            self.records[index], rng, task.facts, task.chatter, task.distractors, self.casual, revise, stranger
        )

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

    def _leave_out_test_tasks(self) -> None:
        """Removes the training records of a file that the test split has as well."""
        num_train = len(self.records) - self.num_test
        tested = {key for record in self.records[num_train:] for key in hotpotqa.identities(record)}
        kept = [record for record in self.records[:num_train] if tested.isdisjoint(hotpotqa.identities(record))]
        if len(kept) < num_train:
            warnings.warn(
                f"{self.config.task.path}: left out {num_train - len(kept)} of {num_train} training records that are "
                "in the test split too",
                stacklevel=3,
            )
        self.records = kept + self.records[num_train:]

    def _measure(self) -> dict[str, dict]:
        """The `cut_texts` of records spread evenly over both splits."""
        sizes: dict[str, list[int]] = {kind: [] for kind in LIMITS}
        for index in range(0, len(self.records), -(-len(self.records) // MEASURED_RECORDS)):
            staged = self.staged(index)
            told = [len(self.encode(text)) for text in staged.facts + staged.distractors]
            gold = [len(self.encode(text)) for text in staged.gold]
            words = len(self.hash_answer(staged.answer)[0])
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
        hashes, closed = self.hash_answer(staged.answer)
        hashes = hashes[: task.answer_tokens]

        def owners(speakers: list[int]) -> list[int]:
            return [index % task.owners + task.owners * speaker for speaker in speakers]

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
            answer_words=np.pad(hashes, ((0, task.answer_tokens - len(hashes)), (0, 0))),
            num_answer_words=np.int32(len(hashes)),
            answer_is_closed=np.bool_(closed),
            fact_owner=_padded(owners(staged.fact_speakers), task.facts, np.int32),
            fact_session=np.full((task.facts,), index, np.int32),
            distractor_owner=_padded(owners(staged.distractor_speakers), task.distractors, np.int32),
            distractor_session=np.full((task.distractors,), index, np.int32),
            owner=np.int32(owners([staged.asker])[0]),
            session=np.int32(index),
            keep=self._messages(staged.keep, task.facts),
            num_keep=np.int32(len(staged.keep)),
            stale=self._messages([stale for stale, _ in staged.revisions], questions.REVISIONS),
            present=self._messages([present for _, present in staged.revisions], questions.REVISIONS),
            num_revisions=np.int32(len(staged.revisions)),
            kind=np.int32(questions.KINDS.index(staged.kind) if staged.kind else -1),
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


def _stack(rows: list[Task]) -> Task:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
