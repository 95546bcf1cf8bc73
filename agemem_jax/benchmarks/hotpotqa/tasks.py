"""HotpotQA's tasks: questions of the published files, or generated ones in their record layout (questions.py)."""

import random
import warnings

from ml_collections import ConfigDict

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks.hotpotqa import questions, records
from agemem_jax.benchmarks.hotpotqa.demos import Demonstrator, RecordDemonstrator
from agemem_jax.benchmarks.hotpotqa.environment import WIDTHS, Question, QuestionAnswering, question_of
from agemem_jax.benchmarks.hotpotqa.lessons import Lessons
from agemem_jax.config import refuse
from agemem_jax.data.batches import encoded
from agemem_jax.data.staged import SPLITS, StagedRecord
from agemem_jax.data.tokenizer import Tokenizer, check_spelling
from agemem_jax.envs import scoring
from agemem_jax.errors import InputError


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Questions, and what scores their answers. Raises InputError and ConfigError as `check_splits` and `HotpotQA`."""
    check_splits(config)
    return Benchmark(
        tasks=HotpotQA(config, tokenizer),
        env=QuestionAnswering(action_tokens=WIDTHS * config.task.answer_tokens),
        shared=scoring.answer_table(tokenizer.token_bytes()),
    )


class HotpotQA:
    """The records of each split, and how they are told (data/batches.py: Tasks).

    Without `config.task.path` the questions are generated from `config.task.seed`, and the splits share no entity
    pair. With it validation and test records come from files of their own (`task.validation_path`, `task.test_path`);
    where there is none, the last `task.test_fraction` of the records of `task.path` are the test split, and the
    `task.validation_fraction` before them the validation split.

    Records of files that a later split has too (records.identities) are left out: of training those that are validated
    or tested, of validation those that are tested. A warning counts them.

    Raises InputError if the file cannot be read (records.load), if a split would be empty, or if the vocabulary cannot
    spell what a record says; ConfigError if a record tells more than fits.
    """

    kinds = questions.KINDS
    made_for = questions.MADE_FOR
    lessons = Lessons
    scores = {"success": "exact match", "progress": "token F1"}
    limits = {"answers": ("task.answer_tokens", True), "supporting facts of a record": ("task.facts", False)}

    def __init__(self, config, tokenizer: Tokenizer):
        self.config, self.tokenizer, task = config, tokenizer, config.task
        if task.path:
            self.splits = self._leave_out_later_ones(self._read())
        else:
            sizes = questions.Sizes(config.store.entries, task.facts, task.distractors)
            counts = zip(SPLITS, (task.train_size, task.validation_size, task.test_size), strict=True)
            mix = checked_mix(config)
            self.splits = {split: questions.generate(task.seed, count, split, mix, sizes) for split, count in counts}
        says_itself = all("told" in record for record in self.splits["train"])
        self.demonstrator = Demonstrator if says_itself else RecordDemonstrator
        every = [record for split in SPLITS for record in self.splits[split]]
        needed = ("train", "test", "validation") if config.train.eval_every else ("train", "test")
        if not all(self.splits[split] for split in needed):
            counts = ", ".join(f"{len(self.splits[split])} {split}" for split in SPLITS)
            raise InputError(
                f"task: {len(every)} records give {counts} tasks; training and test need at least one each, and "
                "so does validation with train.eval_every "
                f"(task.test_fraction = {task.test_fraction}, task.validation_fraction = {task.validation_fraction} of "
                f"task.path = {task.path!r}, where a split has no file of its own)"
            )
        for split in SPLITS:
            path, field = self._file_of(split)
            check_spelling(tokenizer, texts_of(self.splits[split]), path, field)
        self._check_telling(every)
        self.casual = not tokenizer.is_small  # the tiny vocabulary has the bare sentences only
        self.most_gold = max(len(record["supporting_facts"]) for record in every)

    def tell(self, record: dict, rng: random.Random, always: random.Random) -> StagedRecord:
        """A record as it is told in an epoch; the answer is the same in every epoch."""
        task = self.config.task
        revise, stranger = (always.random() < share for share in (task.revised, task.strangers))
        return records.stages(record, rng, task.facts, task.chatter, task.distractors, self.casual, revise, stranger)

    def game(self, staged: StagedRecord) -> Question:
        """The question that the environment asks."""
        return question_of(staged.answer, self.config.task.answer_tokens)

    def sizes(self, record: dict, staged: StagedRecord) -> dict[str, int]:
        """What `limits` are about."""
        tokens, words = len(encoded(self.tokenizer, staged.answer)), int(question_of(staged.answer).num_words)
        return {"answers": max(words, tokens), "supporting facts of a record": len(record["supporting_facts"])}

    def _file_of(self, split: str) -> tuple[str, str]:
        """The file that a split comes from ("" of generated questions), and the config's field that names it."""
        task = self.config.task
        own = {"train": "", "validation": task.validation_path, "test": task.test_path}[split]
        return (own, f"task.{split}_path") if own else (task.path, "task.path")

    def _check_telling(self, every: list[dict]) -> None:
        """Raises ConfigError if a record that says itself what is told tells more than fits."""
        task = self.config.task
        limits = ("told", "task.facts", task.facts, 1), ("later", "task.distractors", task.distractors, 2)
        for number, record in enumerate(every):
            for field, name, limit, stage in limits:
                if (count := len(record.get(field, ()))) > limit:
                    refuse(name, limit, f"record {number} tells {count} messages of stage {stage}; set >= {count}")

    def _read(self) -> dict[str, list[dict]]:
        """The records of each split, from files."""

        def load(split: str) -> list[dict]:
            path, field = self._file_of(split)
            return records.load(path, lambda answer: question_of(answer).num_words > 0, field)

        splits = {"train": load("train")}
        whole = len(splits["train"])
        task = self.config.task
        for split, fraction in (("test", task.test_fraction), ("validation", task.validation_fraction)):
            if self._file_of(split)[0] != task.path:
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
            kept[split] = [record for record in found if later.isdisjoint(records.identities(record))]
            later |= {key for record in found for key in records.identities(record)}
            if out := len(found) - len(kept[split]):
                warnings.warn(
                    f"{self._file_of(split)[0]}: left out {out} of {len(found)} {split} records that are in a later "
                    "split too (train, validation, test)",
                    stacklevel=5,
                )
        return kept


def check_splits(config: ConfigDict) -> None:
    """Where training, validation and test records come from."""
    t = config.task
    if not t.path:
        for field in ("validation_path", "test_path"):
            if t[field]:
                refuse(f"task.{field}", t[field], "a file of its own, and task.path, the training records, names none")
        return
    taken = 0.0
    for split, path in (("test", t.test_path), ("validation", t.validation_path)):
        fraction, needed = t[f"{split}_fraction"], split == "test" or config.train.eval_every
        if path:
            continue
        taken += fraction
        if taken >= 1 or (needed and not fraction):
            refuse(
                f"task.{split}_fraction", fraction,
                "must lie between 0 and 1, so that no split of task.path is empty, with task.test_fraction = "
                f"{t.test_fraction} and task.validation_fraction = {t.validation_fraction} of its records; or give "
                f"task.{split}_path",
            )  # fmt: skip


def texts_of(found: list[dict]) -> list[str]:
    """All that records say."""
    texts = []
    for record in found:
        texts += [record["question"], record["answer"]]
        for title, sentences in record["context"]:
            texts += [title, *sentences]
    return texts


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
