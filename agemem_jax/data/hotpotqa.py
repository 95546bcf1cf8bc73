"""HotpotQA records (Yang et al. 2018): reading both published layouts, and telling a record in three stages.

A record, in the official layout, which is the one used everywhere else:

    {"_id", "question", "answer", "type", "level", "supporting_facts": [[title, sentence index], ...],
     "context": [[title, [sentence, ...]], ...]}

The Hugging Face and TensorFlow Datasets layout has "id" for "_id" and columns for the two lists:
"supporting_facts": {"title": [...], "sent_id": [...]}, "context": {"title": [...], "sentences": [[...], ...]}.
"""

import json
import random
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from agemem_jax.data.questions import chatter as small_talk

FIELDS = ("question", "answer", "supporting_facts", "context")
TFDS_MARK = "tfds:"
LEAD_INS = ("I read this: ", "By the way: ", "Something I learned: ", "Someone told me: ", "Did you know? ")
QUESTION_WORDS = set(
    """a an and are at by can could did do does for from had has have how if in is of on or the to was were what when
    where which who whom whose why with""".split()
)


@dataclass(frozen=True)
class StagedRecord:
    """A record as an agent meets it: stage-1 messages, stage-2 messages, and the question of stage 3."""

    facts: list[str]  # stage 1, in the order they are told
    is_gold: list[bool]  # of each of these: it tells a supporting fact
    gold: list[str]  # the supporting facts told, in the record's order, without a conversational opening
    distractors: list[str]  # stage 2
    query: str
    answer: str
    key_words: list[str]  # the query's names, titles, places and dates, word by word


def load(path: str) -> list[dict]:
    """Reads records in either layout and returns them in the official one.

    `path` is a JSON file, or `tfds:NAME:SPLIT` (for example tfds:hotpot_qa/distractor:validation) for a prepared
    TensorFlow Datasets data set, which is read without TensorFlow.

    Raises ValueError for a file that is missing, is not a JSON list of records, or has a record that lacks a field.
    Supporting facts that name a title or a sentence which the context lacks (the published files have some) are left
    out, and so is a record that has none left; one warning counts them.
    """
    rows = _read_tfds(path) if path.startswith(TFDS_MARK) else _read_json(path)
    records, dangling = [], 0
    for number, row in enumerate(rows):
        record = normalise(row, f"{path}: record {number}")
        sentences = {title: len(paragraph) for title, paragraph in record["context"]}
        facts = [fact for fact in record["supporting_facts"] if 0 <= fact[1] < sentences.get(fact[0], 0)]
        dangling += len(record["supporting_facts"]) - len(facts)
        if facts:
            records.append(record | {"supporting_facts": facts})
    if dangling or len(records) < len(rows):
        warnings.warn(
            f"{path}: left out {dangling} supporting facts that name a title or sentence which the context lacks, and "
            f"{len(rows) - len(records)} records without a supporting fact",
            stacklevel=2,
        )
    return records


def normalise(row: dict, where: str) -> dict:
    """One record in the official layout; `where` names it in errors."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}; it must be an object with the fields {', '.join(FIELDS)}")
    for name in FIELDS:
        if name not in row:
            needed = ", ".join(FIELDS)
            raise ValueError(f"{where} lacks the field {name!r}; needed: {needed} (HotpotQA's test file lacks them)")
    facts, context = row["supporting_facts"], row["context"]
    try:
        if isinstance(facts, dict):
            facts = zip(facts["title"], facts["sent_id"], strict=True)
        if isinstance(context, dict):
            context = zip(context["title"], context["sentences"], strict=True)
        return {
            "_id": str(row.get("_id", row.get("id", ""))),
            "question": str(row["question"]),
            "answer": str(row["answer"]),
            "type": str(row.get("type", "")),
            "level": str(row.get("level", "")),
            "supporting_facts": [[str(title), int(sentence)] for title, sentence in facts],
            "context": [[str(title), [str(sentence) for sentence in paragraph]] for title, paragraph in context],
        }
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{where}: supporting_facts or context is in neither published layout ({error!r}); expected "
            "[[title, index], ...] and [[title, [sentence, ...]], ...], or columns title/sent_id and title/sentences"
        ) from error


def stages(
    record: dict, rng: random.Random, facts: int, chatter: int = 0, distractors: int = 0, casual: bool = False
) -> StagedRecord:
    """Tells a record in three stages; all choices come from `rng`.

    Stage 1 has at most `facts` messages, shuffled: the supporting facts first chosen, then `chatter` messages of
    small talk, and for the rest sentences of the paragraphs that hold no supporting fact. Stage 2 has `distractors`
    messages, in turn misleading (of the untold sentences of those paragraphs the one most like the gold facts),
    irrelevant (small talk) and related (any untold sentence of those paragraphs). With `casual` every message is
    worded as conversation; without it it is the bare sentence.
    """
    paragraphs = dict(record["context"])
    told = {tuple(fact): told_sentence(fact[0], paragraphs[fact[0]][fact[1]]) for fact in record["supporting_facts"]}
    gold = list(told.values())[:facts]
    gold_titles = {title for title, _ in told}
    others = [
        told_sentence(title, sentence)
        for title, paragraph in record["context"]
        if title not in gold_titles
        for sentence in paragraph
        if sentence.strip()
    ]
    rng.shuffle(others)

    def tell(text: str) -> str:
        return rng.choice(LEAD_INS) + text if casual else text

    def talk() -> str:
        text = small_talk(rng)
        return text.capitalize() + "." if casual else text

    num_talk = min(chatter, facts - len(gold))
    num_others = facts - len(gold) - num_talk
    messages = [(tell(text), True) for text in gold] + [(tell(text), False) for text in others[:num_others]]
    messages += [(talk(), False) for _ in range(num_talk)]
    rng.shuffle(messages)

    about = set(_words(" ".join(gold)))
    untold = sorted(others[num_others:], key=lambda text: -len(about & set(_words(text))))  # most misleading first
    later = []
    for i in range(distractors):
        if i % 3 == 1 or not untold:
            later.append(talk())
        else:
            later.append(tell(untold.pop(0 if i % 3 == 0 else rng.randrange(len(untold)))))
    return StagedRecord(
        facts=[text for text, _ in messages],
        is_gold=[is_gold for _, is_gold in messages],
        gold=gold,
        distractors=later,
        query=record["question"].strip(),
        answer=record["answer"].strip(),
        key_words=key_words(record["question"]),
    )


def told_sentence(title: str, sentence: str) -> str:
    """The sentence, after "Title: " unless it names more than half of its title's words ("He was born in ...")."""
    sentence = sentence.strip()
    words = _words(re.sub(r"\(.*?\)", "", title)) or _words(title)
    named = set(_words(sentence))
    return sentence if 2 * sum(word in named for word in words) > len(words) else f"{title}: {sentence}"


def key_words(question: str) -> list[str]:
    """The words of a question that name something: capitalised ones and those with a digit, without question words."""
    words = [word.removesuffix("'s").removesuffix("\u2019s") for word in re.findall(r"[\w'\u2019.-]*\w", question)]
    named = [word for word in words if (word[:1].isupper() or any(c.isdigit() for c in word))]
    return list(dict.fromkeys(word for word in named if word.lower() not in QUESTION_WORDS))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _read_json(path: str) -> list:
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"task.path: no file {path!r}; give a HotpotQA JSON file, tfds:NAME:SPLIT, or '' for generated questions"
        )
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"task.path: {path!r} is not JSON ({error}); HotpotQA's files are one JSON list") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"task.path: {path!r} holds no list of records; HotpotQA's files are one JSON list")
    return rows


def _read_tfds(path: str) -> list:
    name, _, split = path.removeprefix(TFDS_MARK).rpartition(":")
    if not name or not split:
        raise ValueError(f"task.path: {path!r} must be tfds:NAME:SPLIT, as in tfds:hotpot_qa/distractor:train")
    import tensorflow_datasets as tfds  # slow to import, and needed here alone

    return [_plain(row) for row in tfds.data_source(name, split=split)]


def _plain(value):
    """Arrays as lists and bytes as text, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if hasattr(value, "__iter__") else value
