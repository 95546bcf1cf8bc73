"""HotpotQA records (Yang et al. 2018): reading both published layouts, and telling a record in three stages.

A record, in the official layout, which is the one used everywhere else:

    {"_id", "question", "answer", "type", "level", "supporting_facts": [[title, sentence index], ...],
     "context": [[title, [sentence, ...]], ...]}

The Hugging Face and TensorFlow Datasets layout has "id" for "_id" and columns for the two lists:
"supporting_facts": {"title": [...], "sent_id": [...]}, "context": {"title": [...], "sentences": [[...], ...]}.

A record may also say itself what is told (questions.py): `kind`, `told`, `later`, `asker`, `keep`, `revisions`,
and if it wants `view`.
"""

import random
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable

from agemem_jax.benchmarks.hotpotqa.questions import KINDS, UNKNOWN
from agemem_jax.benchmarks.hotpotqa.questions import chatter as small_talk
from agemem_jax.data import files
from agemem_jax.data.staged import StagedRecord
from agemem_jax.errors import InputError

FIELDS = ("question", "answer", "supporting_facts", "context")
LAYOUTS = {
    "supporting_facts": "[[title, sentence index], ...], or columns title and sent_id of the same length",
    "context": "[[title, [sentence, ...]], ...], or columns title and sentences of the same length",
}
JSON_NAMES = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list",
    dict: "an object",
}  # fmt: skip
MAX_CHARACTERS = 100_000  # of one text: a sentence, a question or an answer is far shorter
UNSUPPORTED = "supporting facts that name a title or sentence which the context lacks, or has blank or twice"
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")  # all but white space
LEAD_INS = ("I read this: ", "By the way: ", "Something I learned: ", "Someone told me: ", "Did you know? ")
SPEAKERS = ("Host", "Guest")  # of records in which several people speak
DECISIONS = ("yes", "no")  # answers of comparisons
QUESTION_WORDS = set(
    """a an and are at by can could did do does for from had has have how if in is of on or the to was were what when
    where which who whom whose why with""".split()
)


def load(path: str, can_score: Callable[[str], bool] = bool, field: str = "task.path") -> list[dict]:
    """Reads records in either layout, checks them, and returns them in the official one.

    `path` is a JSON file, JSON lines, or `tfds:NAME:SPLIT`, as data/files.py has it. What the published files have
    here and there is left out, and one warning counts it: control characters, supporting facts without a sentence
    (`supports`), records that have none left, and records whose answer `can_score` says no to.

    Raises InputError, which names the config's `field`, for a file that cannot be read or has no such record, and for a
    record that is not as `normalise` wants it.
    """
    records, left_out, read = [], Counter(), 0
    for number, row in enumerate(files.read(path, field)):
        record = normalise(row, f"{field}: {path!r}, record {number}", left_out)
        read = number + 1
        facts = [fact for fact in record["supporting_facts"] if supports(record, *fact)]
        left_out[UNSUPPORTED] += len(record["supporting_facts"]) - len(facts)
        if not facts and "told" not in record:
            left_out["records without a supporting fact"] += 1
        elif not can_score(record["answer"]):
            left_out["records whose answer has no word to score, articles and punctuation aside"] += 1
        else:
            records.append(record | {"supporting_facts": facts})
    told = "".join(f"; left out {count} {what}" for what, count in sorted(left_out.items()) if count)
    if not records:
        raise InputError(f"{field}: {path!r} has no record that can be used: {read} were read{told}")
    if told:
        warnings.warn(f"{path}: {len(records)} of {read} records are used{told}", stacklevel=2)
    return records


def normalise(row, where: str, left_out: Counter) -> dict:
    """One record in the official layout, with titles without white space around them or doubled within.

    Args:
      row: a JSON value.
      where: names it in errors.
      left_out: counts control characters, which become spaces.

    Raises InputError, naming the field, if a field is missing or not in a published layout; if a text is not text, or
    blank, holds half of a surrogate pair or is longer than MAX_CHARACTERS (sentences may be blank); if an index is no
    whole number.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where} is {_kind(row)}; an object with the fields {', '.join(FIELDS)} is needed")
    for name in FIELDS:
        if name not in row:
            raise InputError(
                f"{where} lacks the field {name!r}; needed: {', '.join(FIELDS)} (HotpotQA's test file lacks some); it "
                f"has: {', '.join(f'{key!r:.40}' for key in list(row)[:10])}"
            )

    def text(value, *field) -> str:
        if not isinstance(value, str):
            raise InputError(f"{where}: {_name(field)} is {_kind(value)}; text is needed")
        if len(value) > MAX_CHARACTERS:
            raise InputError(f"{where}: {_name(field)} has {len(value)} characters; at most {MAX_CHARACTERS} are read")
        if value.isprintable():
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            raise InputError(
                f"{where}: {_name(field)} holds half of a surrogate pair ({half!r}), which is not text"
            ) from error
        value, found = CONTROL.subn(" ", value)
        left_out["control characters"] += found
        return value

    def named(value, *field) -> str:
        """A text that says something."""
        value = text(value, *field)
        if is_blank(value):
            raise InputError(f"{where}: {_name(field)} is blank; remove the record, or fill it in")
        return value

    def label(value, field: str) -> str:
        """A text that nothing depends on: it may be absent or a number."""
        return "" if value is None else str(value) if _is_whole(value) else text(value, field)

    facts, context = {}, []
    for title, index in _pairs(row, "supporting_facts", ("title", "sent_id"), where):
        if not _is_whole(index):
            raise InputError(f"{where}: supporting_facts has the index {index!r:.40}; whole numbers are needed")
        facts[_spaced(named(title, "a title of supporting_facts")), index] = None  # each once, in order
    for title, paragraph in _pairs(row, "context", ("title", "sentences"), where):
        title = _spaced(named(title, "a title of context"))
        if not isinstance(paragraph, list | tuple):
            raise InputError(f"{where}: context has {_kind(paragraph)} under {title!r:.60}; a list is needed")
        context.append([title, [text(part, "context sentence", i, "under", title) for i, part in enumerate(paragraph)]])
    return {
        "_id": label(row.get("_id", row.get("id")), "_id"),
        "question": named(row["question"], "question"),
        "answer": named(row["answer"], "answer"),
        "type": label(row.get("type"), "type"),
        "level": label(row.get("level"), "level"),
        "supporting_facts": [list(fact) for fact in facts],
        "context": context,
    } | _telling(row, where, text)


def _telling(row: dict, where: str, text: Callable) -> dict:
    """The fields of a record that says itself what is told; none of any other."""
    if "told" not in row:
        return {}

    def pairs(field: str, first: Callable, second: Callable, shape: str) -> list:
        value = row.get(field)
        if not isinstance(value, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in value):
            raise InputError(f"{where}: {field} must be {shape}, beside the field told")
        return [[first(a, field), second(b, field)] for a, b in value]

    def speaker(value, field: str) -> int:
        if not _is_whole(value) or not 0 <= value < len(SPEAKERS):
            raise InputError(f"{where}: {field} has the speaker {value!r:.40}; 0 to {len(SPEAKERS) - 1} are known")
        return value

    if not isinstance(row.get("keep"), list):
        raise InputError(f"{where}: keep must be a list of texts, beside the field told")
    if not isinstance(row.get("view", []), list):
        raise InputError(f"{where}: view must be a list of texts, or not there")
    if row.get("kind") not in KINDS:
        raise InputError(f"{where}: kind is {row.get('kind')!r:.40}; it must be one of {', '.join(KINDS)}")
    messages = {field: pairs(field, speaker, text, "[[speaker, text], ...]") for field in ("told", "later")}
    return {
        "kind": row["kind"],
        **messages,
        "asker": speaker(row.get("asker"), "asker"),
        "keep": [text(value, "keep") for value in row["keep"]],
        "view": [text(value, "view") for value in row.get("view", [])],
        "revisions": pairs("revisions", text, text, '[[stale text, present text or ""], ...]'),
    }


def supports(record: dict, title: str, index: int) -> bool:
    """Whether a supporting fact names one sentence: there is one, not blank, and no other paragraph of that title."""
    paragraphs = [paragraph for name, paragraph in record["context"] if name == title]
    one = bool(paragraphs) and all(paragraph == paragraphs[0] for paragraph in paragraphs)
    return one and 0 <= index < len(paragraphs[0]) and not is_blank(paragraphs[0][index])


def identities(record: dict) -> list[tuple]:
    """What a record has in common with another of the same task: question and id, question and supporting sentences."""
    paragraphs = dict(record["context"])
    question = " ".join(_words(record["question"])) or record["question"]
    gold = frozenset(" ".join(_words(paragraphs[title][index])) for title, index in record["supporting_facts"])
    return [(question, gold)] + ([(question, record["_id"])] if record["_id"] else [])


def stages(
    record: dict,
    rng: random.Random,
    facts: int,
    chatter: int = 0,
    distractors: int = 0,
    casual: bool = False,
    revise: bool = False,
    stranger: bool = False,
) -> StagedRecord:
    """Tells a record in three stages; all choices come from `rng`.

    Stage 1 has at most `facts` messages, shuffled: the supporting facts first chosen, then `chatter` messages of
    small talk, and for the rest sentences of the paragraphs that hold no supporting fact. Stage 2 has `distractors`
    messages, in turn misleading (of the untold sentences of those paragraphs the one most like the gold facts),
    irrelevant (small talk) and related (any untold sentence of those paragraphs). With `casual` every message is
    worded as conversation; without it it is the bare sentence.

    With `revise` a changed copy of a supporting fact is told first, where one can be made (`changed_copy`) and `facts`
    has room, and the true one later. With `stranger` somebody else tells all of stage 1, so that the answer is
    `unknown`. A record that says itself what is told (questions.py: `told`, `later`) is told so.
    """

    def tell(text: str) -> str:
        return rng.choice(LEAD_INS) + text if casual else text

    if "told" in record:
        return _as_told(record, tell, casual)
    paragraphs = dict(record["context"])
    told = {tuple(fact): told_sentence(fact[0], paragraphs[fact[0]][fact[1]]) for fact in record["supporting_facts"]}
    gold = list(told.values())[:facts]
    gold_titles = {title for title, _ in told}
    others = [
        told_sentence(title, sentence)
        for title, paragraph in record["context"]
        if title not in gold_titles
        for sentence in paragraph
        if not is_blank(sentence)
    ]
    rng.shuffle(others)

    def talk() -> str:
        text = small_talk(rng)
        return text.capitalize() + "." if casual else text

    revise = revise and len(gold) < facts
    copies = [(copy, text) for text in gold if revise and (copy := changed_copy(text, record, rng))]
    revisions = [rng.choice(copies)] if copies else []
    num_talk = min(chatter, facts - len(gold) - len(revisions))
    num_others = facts - len(gold) - len(revisions) - num_talk
    messages = [(tell(text), True) for text in gold] + [(tell(text), False) for text in others[:num_others]]
    messages += [(talk(), False) for _ in range(num_talk)]
    rng.shuffle(messages)
    for stale, present in revisions:
        true = next(i for i, (text, is_gold) in enumerate(messages) if is_gold and text.endswith(present))
        messages.insert(rng.randint(0, true), (tell(stale), False))

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
        is_gold=[is_gold and not stranger for _, is_gold in messages],
        gold=[] if stranger else gold,
        distractors=later,
        query=record["question"].strip(),
        answer=UNKNOWN if stranger else record["answer"].strip(),
        key_words=key_words(record["question"]),
        keep=gold,
        view=[],
        revisions=revisions,
        fact_speakers=[int(stranger)] * len(messages),
        distractor_speakers=[0] * len(later),
    )


def changed_copy(text: str, record: dict, rng: random.Random) -> str:
    """A sentence with its answer, else a year or number, replaced by another of the record; "" if there is none."""
    answer = record["answer"].strip()
    told = " ".join(sentence for _, paragraph in record["context"] for sentence in paragraph)
    # As a word of its own: the "no" of a question is in "known" too. A decision is no name of anything.
    whole = rf"(?<!\w){re.escape(answer)}(?!\w)"
    is_told = answer.lower() not in DECISIONS and re.search(whole, text)
    if not is_told or any(c.isdigit() for c in answer):
        numbers = re.findall(r"\b\d{2,4}\b", answer if is_told else text)
        others = sorted(set(re.findall(r"\b\d{2,4}\b", told)) - set(re.findall(r"\d+", text)))
        others = [other for other in others if numbers and len(other) == len(numbers[0])]
        return re.sub(rf"\b{numbers[0]}\b", rng.choice(others), text) if others else ""
    others = [title for title, _ in record["context"] if title not in text and title != answer]
    other = rng.choice(others) if others else ""
    return re.sub(whole, lambda _: other, text) if other else ""


def _as_told(record: dict, tell: Callable[[str], str], casual: bool) -> StagedRecord:
    """A record whose messages are given. Who speaks is told, in conversation, where more than one does."""
    paragraphs = dict(record["context"])
    gold = [paragraphs[title][index] for title, index in record["supporting_facts"]]
    several = casual and len({speaker for speaker, _ in record["told"] + record["later"]} | {record["asker"]}) > 1

    def spoken(speaker: int, text: str) -> str:
        return f"{SPEAKERS[speaker]}: {text}" if several else text

    return StagedRecord(
        facts=[spoken(speaker, tell(text)) for speaker, text in record["told"]],
        is_gold=[text in gold for _, text in record["told"]],
        gold=gold,
        distractors=[spoken(speaker, tell(text)) for speaker, text in record["later"]],
        query=spoken(record["asker"], record["question"]),
        answer=record["answer"],
        key_words=key_words(record["question"]),
        keep=record["keep"],
        view=record["view"],
        revisions=[(stale, present) for stale, present in record["revisions"]],
        fact_speakers=[speaker for speaker, _ in record["told"]],
        distractor_speakers=[speaker for speaker, _ in record["later"]],
        asker=record["asker"],
        kind=record["kind"],
    )


def told_sentence(title: str, sentence: str) -> str:
    """The sentence, after "Title: " unless it names more than half of its title's words ("He was born in ...")."""
    sentence = sentence.strip()
    words = _words(re.sub(r"\([^()]*\)", "", title)) or _words(title)
    named = set(_words(sentence))
    return sentence if 2 * sum(word in named for word in words) > len(words) else f"{title}: {sentence}"


def key_words(question: str) -> list[str]:
    """The words of a question that name something: capitalised ones and those with a digit, without question words."""
    words = [word.rstrip("'\u2019.-") for word in re.findall(r"\w[\w'\u2019.-]*", question)]
    words = [word.removesuffix("'s").removesuffix("\u2019s") for word in words]
    named = [word for word in words if (word[:1].isupper() or any(c.isdigit() for c in word))]
    return list(dict.fromkeys(word for word in named if word.lower() not in QUESTION_WORDS))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def is_blank(text: str) -> bool:
    """Whether a text has nothing to see: white space and marks without a width alone."""
    return all(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs") for character in text)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _pairs(row: dict, field: str, columns: tuple[str, str], where: str) -> list:
    """The pairs of a field, from either layout."""
    value = row[field]
    pairs = value
    if isinstance(value, dict):
        first, second = (value.get(name) for name in columns)
        both = isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second)
        pairs = list(zip(first, second, strict=True)) if both else None
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise InputError(f"{where}: {field} is in neither published layout; needed: {LAYOUTS[field]}")
    return pairs


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value) -> str:
    """What a JSON value is."""
    return JSON_NAMES.get(type(value), type(value).__name__)


def _name(field: tuple) -> str:
    """A field as an error names it; titles within quotes, and not too long."""
    return " ".join(f"{part!r:.60}" if i == 3 else str(part) for i, part in enumerate(field))
