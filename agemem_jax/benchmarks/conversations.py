"""Long conversations or documents, then a question: what LoCoMo, LongMemEval, BEAM, MemoryAgentBench and long HotpotQA
have in common.

A benchmark reads its file into conversations and questions. Stage 1 tells a conversation in chunks: consecutive turns
of one session, up to `task.chunk_tokens` tokens, behind the day on which they were said: "yesterday" means something
beside it alone. Stage 2 is small talk, `task.distractors` messages. Stage 3 asks one question, behind the day on which
it is asked where the file has it. All of a conversation is one owner's; its sessions are told as sessions.

Splits are of whole conversations, so that none is shared: the last `task.test_fraction` of them are tested, the
`task.validation_fraction` before these validated. Without training (rl.updates = 0) all may be tested.

Answers are scored by token F1 and exact match, normalised as HotpotQA's script does; each benchmark's module says what
its own protocol does otherwise. What nothing in the conversation answers is `unknown`.
"""

import contextlib
import datetime
import functools
import hashlib
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agemem_jax.benchmarks import Benchmark, demos
from agemem_jax.benchmarks.hotpotqa.environment import WIDTHS, Question, QuestionAnswering, question_of
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN, chatter
from agemem_jax.benchmarks.hotpotqa.records import key_words
from agemem_jax.benchmarks.worlds import asking
from agemem_jax.config import refuse
from agemem_jax.data.batches import encoded
from agemem_jax.data.scripts import Lines, Shadow
from agemem_jax.data.staged import StagedRecord
from agemem_jax.data.tokenizer import Tokenizer, check_spelling
from agemem_jax.envs import scoring
from agemem_jax.errors import InputError
from agemem_jax.types import TOOL_NAMES, Op

MOST_GOLD = 4  # turns that are kept as a question's supporting facts
SENTENCE_ENDS = re.compile(r"(?<=[.!?\n])\s+")
MONTHS = ("january february march april may june july august september october november december").split()


@dataclass(frozen=True)
class Turn:
    """Something that was said, or a document."""

    text: str
    speaker: str = ""
    session: int = 0
    observed_at: datetime.date | None = None  # the day on which it was said
    name: str = ""  # by which questions name it as evidence

    @property
    def told(self) -> str:
        """The text with who said it."""
        return f"{self.speaker}: {self.text}" if self.speaker else self.text


@dataclass(frozen=True)
class Conversation:
    """Turns in the order in which they were said."""

    name: str
    turns: tuple[Turn, ...]

    @property
    def digest(self) -> str:
        """Of all that is said."""
        return hashlib.sha256(repr(self.turns).encode()).hexdigest()


def question(
    name: str, conversation: str, text: str, answer: str, kind: str, evidence: list, asked: Any = None
) -> dict:
    """A question as a record.

    evidence: names of turns, which are the supporting facts unless `gold` then gets some; asked: the day on which it is
      asked.
    """
    return {
        "_id": name, "conversation": conversation, "question": text, "answer": answer, "kind": kind,
        "evidence": evidence, "gold": [], "asked": day_in_words(asked),
    }  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """What one message tells."""

    text: str
    session: int
    names: frozenset[str]  # of the turns that it tells, or parts of which it tells


def chunked(conversation: Conversation, size: Callable[[str], int], limit: int) -> list[Chunk]:
    """The conversation in chunks of at most `limit` tokens where a word's end can be found, by `size` of each sentence.

    A chunk is of one session, and of several turns or of a part of one, which then begins with its speaker again.
    """
    chunks: list[Chunk] = []
    parts, names, used, session = [], set(), 0, None

    def close() -> None:
        if names:
            chunks.append(Chunk("".join(parts).strip(), session, frozenset(names)))

    for turn in conversation.turns:
        day = f"[{day_in_words(turn.observed_at)}] " if turn.observed_at else ""
        opening, continues = (f"{turn.speaker}: " if turn.speaker else ""), False
        for sentence in sentences(turn.text, size, max(1, limit - size(f"{day}\n{opening} "))):
            piece = f" {sentence}" if continues else f"{chr(10) if names else ''}{opening}{sentence}"
            if turn.session != session or used + size(piece) > limit:
                close()
                parts, names, session, used, piece = [day], set(), turn.session, size(day), f"{opening}{sentence}"
            parts.append(piece)
            used, continues = used + size(piece), True
            names.add(turn.name)
    close()
    return chunks


def sentences(text: str, size: Callable[[str], int], limit: int) -> list[str]:
    """The sentences of a text; a longer one than `limit` tokens in pieces of whole words."""
    found = []
    for sentence in filter(str.strip, SENTENCE_ENDS.split(text.strip())):
        words, piece = sentence.split(" "), []
        if size(sentence) <= limit:
            found.append(sentence)
            continue
        for word in words:
            if piece and size(" ".join([*piece, word])) > limit:
                found.append(" ".join(piece))
                piece = []
            piece.append(word)
        found.append(" ".join(piece))
    return found


class Demonstrator(demos.Demonstrator):
    """Retrieves what the question is about, then answers: rightly if the supporting facts are stored or in view."""

    def criteria(self, text: str) -> str:
        return text

    def digest(self, seen: list[str]) -> str:
        return " ".join(seen[:2])

    def reason(self, rng: random.Random, staged: StagedRecord, shadow: Shadow, lines: Lines) -> None:
        held = [text for who, text in shadow.entries.values() if who == staged.asker] + shadow.texts()
        turns, known = lines.stages[2], all(any(fact in text for text in held) for fact in staged.gold)
        for fact in staged.gold[: self.config.rollout.stage3_turns - 1]:
            turns.append(self.turn([(Op.RETRIEVE, {"query": f" {asking(fact, staged)}"})]))
        turns.append(self.turn([], staged.answer if known else UNKNOWN))


class Conversations:
    """The questions of each split, and how their conversations are told (data/batches.py: Tasks).

    Raises InputError if a split is empty that is needed or the vocabulary cannot spell what is said; ConfigError if a
    conversation has more chunks than `task.facts`.
    """

    made_for = dict.fromkeys(TOOL_NAMES, ())
    scores = {"success": "exact match", "progress": "token F1"}
    limits = {"answers": ("task.answer_tokens", True)}
    most_gold = MOST_GOLD
    demonstrator, lessons = Demonstrator, None

    def __init__(self, config, tokenizer: Tokenizer, conversations: list[Conversation], asked: list[dict]):
        self.config, self.tokenizer, task = config, tokenizer, config.task
        self.conversations = {one.name: one for one in conversations}
        kinds = tuple(sorted({record["kind"] for record in asked}))
        if unknown := [part for part in task.parts if part not in kinds]:
            refuse("task.parts", unknown[0], f"{task.path!r} has questions of {', '.join(kinds)}; give some of these")
        self.kinds = tuple(kind for kind in kinds if not task.parts or kind in task.parts)
        chosen = [record for record in asked if record["kind"] in self.kinds]
        usable = [record for record in chosen if question_of(record["answer"]).num_words > 0]
        if left_out := len(chosen) - len(usable):
            warnings.warn(
                f"{task.path}: left out {left_out} of {len(chosen)} questions without an answer", stacklevel=4
            )
        self.splits = self._split([one.name for one in conversations], usable)
        texts = [turn.told for one in conversations for turn in one.turns]
        check_spelling(tokenizer, texts + [text for r in usable for text in (r["question"], r["answer"])], task.path)
        self.chunks = functools.cache(self._chunks)
        self._check_room()

    def tell(self, record: dict, rng: random.Random, always: random.Random) -> StagedRecord:
        """A conversation and a question: the same in every epoch, but for the talk between."""
        chunks, evidence = self.chunks(record["conversation"]), set(record["evidence"])
        turns = [turn for turn in self.conversations[record["conversation"]].turns if turn.name in evidence]
        gold = (record["gold"] or [turn.told for turn in turns])[:MOST_GOLD]
        talk = [chatter(rng).capitalize() + "." for _ in range(self.config.task.distractors)]
        opening = f"[{record['asked']}] " if record["asked"] else ""
        return StagedRecord(
            facts=[chunk.text for chunk in chunks],
            is_gold=[bool(chunk.names & evidence) for chunk in chunks],
            gold=gold,
            distractors=talk,
            query=opening + record["question"].strip(),
            answer=record["answer"].strip(),
            key_words=key_words(record["question"]),
            keep=gold,
            view=[],
            revisions=[],
            fact_speakers=[0] * len(chunks),
            distractor_speakers=[0] * len(talk),
            kind=record["kind"],
            fact_sessions=[chunk.session for chunk in chunks],
        )

    def game(self, staged: StagedRecord) -> Question:
        """The question that the environment asks."""
        return question_of(staged.answer, self.config.task.answer_tokens)

    def sizes(self, record: dict, staged: StagedRecord) -> dict[str, int]:
        """What `limits` are about."""
        words = int(question_of(staged.answer).num_words)
        return {"answers": max(words, len(encoded(self.tokenizer, staged.answer)))}

    def _chunks(self, name: str) -> list[Chunk]:
        size = functools.cache(lambda text: len(encoded(self.tokenizer, text)) if text else 0)
        return chunked(self.conversations[name], size, self.config.task.chunk_tokens)

    def _split(self, names: list[str], asked: list[dict]) -> dict[str, list[dict]]:
        """The questions of each split, with what their conversations say as a digest."""
        task, whole = self.config.task, len(names)
        tested = round(whole * task.test_fraction)
        ends = whole - tested - round(whole * task.validation_fraction), whole - tested, whole
        digests = {name: one.digest for name, one in self.conversations.items()}
        split = {name: s for s, begin, end in zip(("train", "validation", "test"), (0, *ends), ends, strict=False)
                 for name in names[max(begin, 0) : max(end, 0)]}  # fmt: skip
        found: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
        for record in asked:
            found[split[record["conversation"]]].append(record | {"said": digests[record["conversation"]]})
        needed = (
            ["test"] + ["train"] * bool(self.config.rl.updates) + ["validation"] * bool(self.config.train.eval_every)
        )
        if empty := [name for name in needed if not found[name]]:
            counts = ", ".join(f"{len(records)} {name}" for name, records in found.items())
            raise InputError(
                f"task: {len(asked)} questions about {whole} conversations of {task.path!r} give {counts} tasks, and "
                f"{empty[0]} needs at least one; set task.test_fraction = {task.test_fraction} and "
                f"task.validation_fraction = {task.validation_fraction} otherwise, or rl.updates = 0 to evaluate alone"
            )
        return found

    def _check_room(self) -> None:
        """Raises ConfigError if chunks do not fit messages, or a conversation's do not fit stage 1."""
        task = self.config.task
        if task.chunk_tokens > task.message_tokens:
            refuse(
                "task.chunk_tokens", task.chunk_tokens, f"set <= task.message_tokens, which is {task.message_tokens}"
            )
        used = {record["conversation"] for records in self.splits.values() for record in records}
        most = max(used, key=lambda name: len(self.chunks(name)))
        if (count := len(self.chunks(most))) > task.facts:
            refuse(
                "task.facts", task.facts,
                f"conversation {most!r} is {count} chunks of {task.chunk_tokens} tokens; set >= {count}, or a larger "
                "task.chunk_tokens",
            )  # fmt: skip


def load(config, tokenizer: Tokenizer, conversations: list[Conversation], asked: list[dict]) -> Benchmark:
    """The benchmark of conversations and the questions about them. Raises as Conversations."""
    return Benchmark(
        tasks=Conversations(config, tokenizer, conversations, asked),
        env=QuestionAnswering(action_tokens=WIDTHS * config.task.answer_tokens),
        shared=scoring.answer_table(tokenizer.token_bytes()),
    )


def checked_path(config, what: str) -> str:
    """`task.path`. Raises ConfigError if it is not given, or other files are: splits are cut from one."""
    for name in ("validation_path", "test_path"):
        if config.task[name]:
            refuse(f"task.{name}", config.task[name], "this benchmark cuts its splits from task.path; leave it empty")
    if not config.task.path:
        refuse("task.path", "", f"give {what}")
    return config.task.path


def field(row: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The field `name` of an object in a file. Raises InputError if it is missing or of another kind than `kind`."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object; one with the field {name!r} is needed, as in the published layout")
    if name not in row:
        has = ", ".join(f"{key!r:.40}" for key in list(row)[:12])
        raise InputError(f"{where} lacks the field {name!r} of the published layout; it has: {has}")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(row[name], kinds) or isinstance(row[name], bool):
        wanted = {str: "text", list: "a list", dict: "an object", int: "a number"}
        raise InputError(
            f"{where}: {name!r} is {row[name]!r:.60}; {' or '.join(wanted[one] for one in kinds)} is needed"
        )
    return row[name]


def day(text: str, where: str) -> datetime.date:
    """The day that a date of a file names: "1:56 pm on 8 May, 2023", "2023/05/20 (Sat) 02:36" or "March-15-2024".

    Raises InputError for any other.
    """
    named = r"(?P<m>[A-Za-z]+)"
    patterns = (
        r"(?P<y>\d{4})[/-](?P<n>\d\d?)[/-](?P<d>\d\d?)",
        rf"(?P<d>\d\d?) {named},? (?P<y>\d{{4}})",
        rf"{named}[- ](?P<d>\d\d?),?[- ](?P<y>\d{{4}})",
    )
    for found in (match.groupdict() for pattern in patterns if (match := re.search(pattern, text))):
        month = found["n"] if "n" in found else (*MONTHS, found["m"].lower()).index(found["m"].lower()) + 1
        with contextlib.suppress(ValueError):  # the 31st of April, the 13th month
            return datetime.date(int(found["y"]), int(month), int(found["d"]))
    raise InputError(f"{where}: {text!r:.60} is no date of the published layout")


def day_in_words(when: datetime.date | None) -> str:
    """Such as "Monday, 8 May 2023"; "" of none."""
    return "" if when is None else f"{when:%A}, {when.day} {when:%B} {when.year}"
