"""Questions made from word lists, in HotpotQA's published record layout; each kind needs memory in a way of its own.

Every record is a small world: people (a first and a last name), works (two words), places and years. Facts of one
record mean nothing in another, so an answer cannot be learnt by heart. With n places in the store:

    recall   two supporting facts and others, n in all, among small talk (stage 1); stage 2 misleads
                 Where was the author of Silver River born         <work> was written by, <person> was born in
                 Who was born first Ada Keller or Hugo Novak       <person> was born in <year>, twice
                 Do Ada Keller and Hugo Novak share a birthplace
    changed  n facts, some of which change (moved, changed employers, a year is corrected)
                 Where does Ada Keller live / ... live before      the stale value is a plausible wrong answer
    closed   n facts of one speaker, who may take some back ("forget Ada Keller"); another speaker then tells as many
             new ones
                 asked by either speaker; what was taken back, or told by the other one, is `unknown`
    misled   n facts in stage 1; in stage 2 a few more, and between and after them long talk about one wrong subject,
             more than a context holds
                 asks for any of the facts
    bids     n facts in stage 1; in stage 2 bids of many people, more than a context holds
                 asks for one of the facts, or for whoever bid most
    split    who wrote what in stage 1, where these were born at the end of stage 2
                 Where was the author of Silver River born         one hop in the store, one in the context

Talk about others fills stage 2 of every kind: when the question comes, what stage 1 told has left any context.

A record has these fields beside the published ones: `kind`; `told` and `later`, the messages of stages 1 and 2 as
[speaker, text]; `asker`, the speaker of the question; `keep`, the texts that hold and are open when stage 1 ends;
`revisions`, [stale text, present text, or "" if nothing holds instead]; `view`, what stage 2 tells that should still be
in view when the question comes, in as few words as tell it.

Why each tool is needed, one call a turn: a revision by DELETE and ADD takes a turn more than there is. UPDATE gives no
place back, and an entry belongs to its speaker: only DELETE makes room for the other's facts, and whether any will come
nobody knows before. What stage 2 tells is more than a context holds, and the store is full: FILTER takes out talk from
between the facts, which are more than a summary holds; SUMMARY keeps the highest bid, whatever falls out of the
context.
"""

import hashlib
import random
from dataclasses import astuple, dataclass, field
from functools import lru_cache

from agemem_jax.benchmarks.hotpotqa.words import (
    CHATTER,
    FIRST_NAMES,
    LAST_NAMES,
    NUMBERS,
    PLACE_PREFIXES,
    PLACE_WORDS,
    PLACES,
    WORK_FIRST,
    WORK_SECOND,
    YEARS,
)
from agemem_jax.data.staged import REVISIONS, SPLITS

KINDS = ("recall", "changed", "closed", "misled", "bids", "split")
# The tools by the kinds whose questions are made for them.
MADE_FOR = {
    "Add_memory": ("recall", "split"),
    "Update_memory": ("changed",),
    "Delete_memory": ("closed",),
    "Retrieve_memory": ("recall", "split"),
    "Summary_context": ("bids",),
    "Filter_context": ("misled",),
}
UNKNOWN = "unknown"  # the answer to what was taken back, or is another's
# The least that each kind needs: places of the store, messages of stage 1, messages of stage 2.
LEAST = {
    "recall": (2, 2, 1),
    "changed": (2, 4, 1),
    "closed": (2, 6, 1),
    "misled": (1, 1, 2),
    "bids": (1, 1, 2),
    "split": (2, 2, 2),
}
SHARES = 10  # so many parts of all entity pairs: two are the test split's, one is the validation split's
TRUE_FACTS = 4  # of stage 2 in "misled"
TAKEN_BACK = 0.6  # share of "closed" in which something is

Pair = tuple[str, str]


@dataclass(frozen=True)
class Sizes:
    """What the messages have to fit."""

    places: int = 3  # of the store
    facts: int = 7  # most messages of stage 1
    distractors: int = 10  # most messages of stage 2


@dataclass(frozen=True)
class Relation:
    """A kind of fact: how it is told, asked for, revised, and asked for as it was before."""

    subject: str  # "person" or "work"
    object: str  # "place", "year" or "person"
    told: str
    asked: str
    revised: str  # "" = it never is
    asked_before: str = ""  # "" = a correction: what was said before never held


RELATIONS = (
    Relation("person", "place", "{s} was born in {o}", "Where was {s} born", ""),
    Relation("person", "year", "{s} was born in {o}", "When was {s} born", "no {s} was born in {o}"),
    Relation("work", "year", "{s} was published in {o}", "When was {s} published", "no {s} was published in {o}"),
    Relation("work", "person", "{s} was written by {o}", "Who was {s} written by", ""),
    Relation("person", "place", "{s} lives in {o}", "Where does {s} live", "{s} moved from {b} to {o}",
             "Where did {s} live before"),
    Relation("person", "person", "{s} works for {o}", "Who does {s} work for", "{s} left {b} for {o}",
             "Who did {s} work for before"),
)  # fmt: skip
WRITTEN = RELATIONS[3]
BORN_WHERE = RELATIONS[0]
REVISED = tuple(relation for relation in RELATIONS if relation.revised)
CLOSINGS = ("forget {s}", "never mind {s}")


@dataclass(frozen=True)
class Fact:
    """One fact of a record's world."""

    relation: Relation
    subject: str
    object: str

    @property
    def text(self) -> str:
        return self.relation.told.format(s=self.subject, o=self.object)

    @property
    def question(self) -> str:
        return self.relation.asked.format(s=self.subject)


def generate(
    seed: int, count: int, split: str, mix: dict[str, float] | None = None, sizes: Sizes | None = None
) -> list[dict]:
    """`count` records of `split`; record i is a function of (seed, split, i), mix and sizes alone.

    The splits share no person (first and last name together) and no work; single names, places and years are common
    to all.

    Args:
      mix: {kind: its share}, of any sum; without it all kinds of KINDS alike.
      sizes: what the messages have to fit; without it those of Sizes.
    """
    mix, sizes = mix or dict.fromkeys(KINDS, 1.0), sizes or Sizes()
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    if set(mix) - set(KINDS) or min(mix.values()) < 0 or not sum(mix.values()):
        raise ValueError(f"mix is {mix}; it must give shares of {KINDS}, at least 0 and not all 0")
    for kind in (kind for kind, share in mix.items() if share):
        if any(size < least for size, least in zip(astuple(sizes), LEAST[kind], strict=True)):
            raise ValueError(f"{sizes} are too small for {kind!r}, which needs {Sizes(*LEAST[kind])}")
    return [_record(f"{seed}/{split}/{i}", split, mix, sizes) for i in range(count)]


def chatter(rng: random.Random) -> str:
    """A sentence of small talk, five to seven words, that holds no fact."""
    return " ".join(rng.choice(part) for part in CHATTER)


def split_of(pair: Pair) -> str:
    """The split to which a person or a work belongs, by a hash of its two words."""
    share = hashlib.sha256(" ".join(pair).encode()).digest()[0] % SHARES
    return ("test", "test", "validation")[share] if share < 3 else "train"


def vocabulary() -> list[str]:
    """Every word that `generate` and `chatter` can write, without repetition, in a fixed order."""
    templates = [text for r in RELATIONS for text in (r.told, r.asked, r.revised, r.asked_before)] + [*CLOSINGS]
    fixed = " ".join(templates).replace("{s}", "").replace("{o}", "").replace("{b}", "").split()
    fixed += f"author of first or Do and share a birthplace yes no bid coins for most {UNKNOWN}".split()
    words = fixed + FIRST_NAMES + LAST_NAMES + WORK_FIRST + WORK_SECOND + PLACE_PREFIXES + PLACE_WORDS + YEARS + NUMBERS
    return list(dict.fromkeys(words + " ".join(text for part in CHATTER for text in part).split()))


@lru_cache
def _pairs(kind: str, split: str) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """All entities of a kind ("person" or "work") in a split, and those that hold a given word."""
    firsts, seconds = (FIRST_NAMES, LAST_NAMES) if kind == "person" else (WORK_FIRST, WORK_SECOND)
    pairs = [(first, second) for first in firsts for second in seconds if split_of((first, second)) == split]
    return pairs, {word: [pair for pair in pairs if word in pair] for word in firsts + seconds}


class World:
    """The entities of one record, each drawn once."""

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split, self.used = rng, split, set()
        self.years, self.places = rng.sample(YEARS, 40), rng.sample(PLACES, 40)

    def draw(self, kind: str, sharing: str = "") -> str:
        """A new person or work of the split, one that holds the word `sharing` if there still is any."""
        pairs, by_word = _pairs(kind, self.split)
        fresh = [pair for pair in by_word.get(sharing, ()) if pair not in self.used]
        while not fresh:  # few of thousands are used
            fresh = [pair for pair in self.rng.sample(pairs, 20) if pair not in self.used]
        pair = self.rng.choice(fresh)
        self.used.add(pair)
        return " ".join(pair)

    def value(self, kind: str) -> str:
        """A new place, year or person."""
        return {"place": self.places.pop, "year": self.years.pop}[kind]() if kind != "person" else self.draw(kind)

    def fact(self, relation: Relation, subject: str = "", sharing: str = "") -> Fact:
        """A fact with new entities, but for the subject if one is given."""
        return Fact(relation, subject or self.draw(relation.subject, sharing), self.value(relation.object))

    def near(self, place: str) -> str:
        """Another place, one that has a word in common with it if there is any."""
        words = set(place.split())
        near = [other for other in PLACES if other != place and words & set(other.split())]
        return self.rng.choice(near or [other for other in PLACES if other != place])


@dataclass
class _Scene:
    """What a record tells and asks."""

    question: str
    answer: str
    gold: list[str]  # texts told that the answer follows from
    told: list[tuple[int, str]]
    later: list[tuple[int, str]]
    keep: list[str]
    revisions: list[tuple[str, str]]
    asker: int = 0
    type: str = "bridge"
    view: list[str] = field(default_factory=list)


def _record(key: str, split: str, mix: dict[str, float], sizes: Sizes) -> dict:
    rng = random.Random(key)
    kind = rng.choices(KINDS, [mix.get(kind, 0.0) for kind in KINDS])[0]
    scene: _Scene = _SCENES[kind](World(rng, split), sizes)
    scene.later = scene.later[: sizes.distractors]
    paragraphs: dict[str, list[str]] = {}
    for _, text in scene.told + scene.later:
        if title := _title(text):
            paragraphs.setdefault(title, []).append(text)
    return {
        "_id": hashlib.sha256(key.encode()).hexdigest()[:24],
        "question": scene.question,
        "answer": scene.answer,
        "type": scene.type,
        "level": "medium",
        "supporting_facts": [[_title(text), paragraphs[_title(text)].index(text)] for text in scene.gold],
        "context": [[title, sentences] for title, sentences in paragraphs.items()],
        "kind": kind,
        "told": [list(message) for message in scene.told],
        "later": [list(message) for message in scene.later],
        "asker": scene.asker,
        "keep": scene.keep,
        "revisions": [list(revision) for revision in scene.revisions],
        "view": scene.view,
    }


def _title(text: str) -> str:
    """What a text is about: its first two names; "" of small talk."""
    return " ".join([word for word in text.split() if word[0].isupper()][:2])


def _talk(world: World, most: int) -> list[str]:
    """Up to so many sentences of small talk."""
    return [chatter(world.rng) for _ in range(world.rng.randint(0, max(0, most)))]


def doings(world: World, subject: str, place: str) -> str:
    """A long sentence about somebody that answers no question."""
    did, what, when = (world.rng.choice(part) for part in CHATTER[1:])
    return f"{subject} {did} {what} in {place} {when}"


def talk(world: World) -> str:
    """Such a sentence about somebody new, in any place."""
    return doings(world, world.draw("person"), world.rng.choice(PLACES))


def _filled(world: World, texts: list[str], most: int) -> list[tuple[int, str]]:
    """These texts among talk about others, as much as there is room for: more than a context holds."""
    others = [talk(world) for _ in range(most - len(texts))]
    return _shuffled(world, texts + others)


def _shuffled(world: World, texts: list[str], speaker: int = 0) -> list[tuple[int, str]]:
    texts = list(texts)
    world.rng.shuffle(texts)
    return [(speaker, text) for text in texts]


def _facts(world: World, count: int) -> list[Fact]:
    """Facts about different people and works."""
    return [world.fact(world.rng.choice(RELATIONS)) for _ in range(count)]


def _recall(world: World, sizes: Sizes) -> _Scene:
    rng = world.rng
    if rng.random() < 0.3:
        question, answer, gold, misleading, kind = _comparison(world)
    else:
        question, answer, gold, misleading, kind = _bridge(world)
    count = min(sizes.places, sizes.facts)
    others = [fact.text for fact in _facts(world, count - len(gold))]
    told = _shuffled(world, gold + others + _talk(world, sizes.facts - count))
    later = _filled(world, [misleading], sizes.distractors)
    return _Scene(question, answer, gold, told, later, gold + others, [], type=kind)


def _bridge(world: World) -> tuple[str, str, list[str], str, str]:
    """Question, answer, gold facts, a misleading one, type: work -> author -> place or year of birth."""
    rng, author, work = world.rng, world.draw("person"), world.draw("work")
    born = world.fact(RELATIONS[rng.random() < 0.5], author)
    namesake = world.draw("person", rng.choice(author.split()))
    wrong = world.near(born.object) if born.relation is BORN_WHERE else world.value("year")
    question = f"{born.question.split()[0]} was the author of {work} born"
    gold = [Fact(WRITTEN, work, author).text, born.text]
    return question, born.object, gold, Fact(born.relation, namesake, wrong).text, "bridge"


def _comparison(world: World) -> tuple[str, str, list[str], str, str]:
    """Question, answer, gold facts, a misleading one, type: two people's years or places of birth."""
    rng, names = world.rng, [world.draw("person"), world.draw("person")]
    namesake = world.draw("person", rng.choice(names[0].split()))
    if rng.random() < 0.5:
        one, other = (world.fact(RELATIONS[1], name) for name in names)
        question = f"Who was born first {names[0]} or {names[1]}"
        answer = min(one, other, key=lambda fact: fact.object).subject
    else:
        one = world.fact(BORN_WHERE, names[0])
        alike = rng.random() < 0.5
        other = Fact(BORN_WHERE, names[1], one.object if alike else world.near(one.object))
        question, answer = f"Do {names[0]} and {names[1]} share a birthplace", "yes" if alike else "no"
    return question, answer, [one.text, other.text], world.fact(one.relation, namesake).text, "comparison"


def _changed(world: World, sizes: Sizes) -> _Scene:
    rng, count = world.rng, min(sizes.places, sizes.facts - REVISIONS)
    facts = [world.fact(relation) for relation in rng.choices(REVISED, k=count)]
    if facts[0].relation.subject == "person" and rng.random() < 0.4:  # two relations of one person
        other = rng.choice([r for r in REVISED if r.subject == "person" and r is not facts[0].relation])
        facts[-1] = world.fact(other, facts[0].subject)
    rng.shuffle(facts)
    revised = facts[:REVISIONS]
    present = [Fact(fact.relation, fact.subject, world.value(fact.relation.object)) for fact in revised]
    texts = [
        fact.relation.revised.format(s=fact.subject, o=new.object, b=fact.object)
        for fact, new in zip(revised, present, strict=True)
    ]
    told = _shuffled(world, [fact.text for fact in facts] + _talk(world, sizes.facts - count - REVISIONS))
    told += [(0, text) for text in texts]
    namesake = world.draw("person", rng.choice(facts[0].subject.split()))
    misleading = f"{namesake} moved from {world.value('place')} to {world.value('place')}"
    later = _filled(world, [misleading], sizes.distractors)
    keep = [fact.text for fact in facts[REVISIONS:]] + texts
    revisions = list(zip([fact.text for fact in revised], texts, strict=True))
    scene = lambda question, answer, gold: _Scene(question, answer, [gold], told, later, keep, revisions)  # noqa: E731
    if rng.random() < 0.4 and count > REVISIONS:
        fact = rng.choice(facts[REVISIONS:])
        return scene(fact.question, fact.object, fact.text)
    i = rng.randrange(REVISIONS)
    if revised[i].relation.asked_before and rng.random() < 0.4:
        return scene(revised[i].relation.asked_before.format(s=revised[i].subject), revised[i].object, texts[i])
    return scene(present[i].question, present[i].object, texts[i])


def _closed(world: World, sizes: Sizes) -> _Scene:
    rng = world.rng
    facts = _facts(world, min(sizes.places, sizes.facts - 2 * REVISIONS))
    # Who does not know whether anything will be taken back can keep no place free for what others tell then.
    count = REVISIONS if rng.random() < TAKEN_BACK else 0
    new = _facts(world, count)
    order = list(facts)
    rng.shuffle(order)
    shut, kept = order[:count], order[count:]
    closing = [(0, rng.choice(CLOSINGS).format(s=fact.subject)) for fact in shut]
    fresh = [(1, fact.text) for fact in new]
    told = [(0, fact.text) for fact in facts]
    if rng.random() < 0.5:
        told += closing + fresh
    else:
        told += [message for pair in zip(closing, fresh, strict=True) for message in pair]
    later = _filled(world, [world.fact(rng.choice(RELATIONS)).text], sizes.distractors)
    keep = [fact.text for fact in kept + new]
    revisions = [(fact.text, "") for fact in shut]

    def scene(fact: Fact, asker: int, known: bool = True) -> _Scene:
        answer, gold = (fact.object, [fact.text]) if known else (UNKNOWN, [])
        return _Scene(fact.question, answer, gold, told, later, keep, revisions, asker)

    chance = rng.random()
    if chance < 0.35 or not kept:
        return scene(rng.choice(new), 1) if new else scene(rng.choice(kept), 0)
    if chance < 0.5:
        return scene(rng.choice(shut), 0, known=False) if shut else scene(rng.choice(kept), 0)
    if chance < 0.85:
        return scene(rng.choice(kept), 0)
    fact, asker = rng.choice([(rng.choice(kept), 1), (rng.choice(new), 0)] if new else [(rng.choice(kept), 1)])
    return scene(fact, asker, known=False)


def _misled(world: World, sizes: Sizes) -> _Scene:
    rng, count = world.rng, min(sizes.places, sizes.facts)
    facts, true = _facts(world, count), _facts(world, min(TRUE_FACTS, sizes.distractors - 1))
    subject, place = world.draw("person", rng.choice(true).subject.split()[0]), world.value("place")
    talk = [doings(world, subject, place) for _ in range(sizes.distractors - len(true))]
    # Talk between the facts too: what comes in one piece could be summed up in a word, and the facts be left.
    *first, final = [fact.text for fact in true]
    early = _shuffled(world, first + talk[: len(first)]) + [(0, final)]
    told = _shuffled(world, [fact.text for fact in facts] + _talk(world, min(1, sizes.facts - count)))
    fact = rng.choice(facts) if rng.random() < 0.3 else rng.choice(true)
    later, view = early + [(0, text) for text in talk[len(first) :]], [fact.text for fact in true]
    return _Scene(fact.question, fact.object, [fact.text], told, later, [f.text for f in facts], [], view=view)


def _bids(world: World, sizes: Sizes) -> _Scene:
    rng, work = world.rng, world.draw("work")
    facts, count = _facts(world, min(sizes.places, sizes.facts)), min(sizes.distractors, len(NUMBERS))
    amounts = sorted(rng.sample(range(len(NUMBERS)), count))
    best = amounts.pop()
    rng.shuffle(amounts)
    amounts.insert(rng.randrange(max(1, count // 3)), best)  # among those that fall out of the context
    bidders = [world.draw("person") for _ in amounts]
    bids = [
        f"{name} bid {NUMBERS[amount]} coins for {work} {rng.choice(CHATTER[-1])}"
        for name, amount in zip(bidders, amounts, strict=True)
    ]
    told = _shuffled(world, [fact.text for fact in facts] + _talk(world, min(1, sizes.facts - len(facts))))
    later, keep = [(0, text) for text in bids], [fact.text for fact in facts]
    place = amounts.index(best)
    view = [f"{bidders[place]} bid {NUMBERS[best]}"]
    question, answer, gold = f"Who bid most for {work}", bidders[place], bids[place]
    if rng.random() < 0.5:
        fact = rng.choice(facts)
        question, answer, gold = fact.question, fact.object, fact.text
    return _Scene(question, answer, [gold], told, later, keep, [], view=view)


def _split(world: World, sizes: Sizes) -> _Scene:
    rng = world.rng
    works = [world.fact(WRITTEN) for _ in range(min(sizes.places, sizes.facts))]
    births = [world.fact(BORN_WHERE, fact.object) for fact in works[:2]]
    namesake = world.draw("person", rng.choice(works[0].object.split()))
    wrong = Fact(BORN_WHERE, namesake, world.near(births[0].object))
    told = _shuffled(world, [fact.text for fact in works] + _talk(world, sizes.facts - len(works)))
    texts = [fact.text for fact in births] + [wrong.text][: sizes.distractors - len(births)]
    # Last, so that what is asked for is still in the context.
    later = _filled(world, [], sizes.distractors - len(texts)) + _shuffled(world, texts)
    i = rng.randrange(2)
    question = f"Where was the author of {works[i].subject} born"
    gold = [works[i].text, births[i].text]
    view = [fact.text for fact in births]
    return _Scene(question, births[i].object, gold, told, later, [fact.text for fact in works], [], view=view)


_SCENES = {
    "recall": _recall,
    "changed": _changed,
    "closed": _closed,
    "misled": _misled,
    "bids": _bids,
    "split": _split,
}
