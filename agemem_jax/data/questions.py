"""Multi-hop questions made from word lists, in HotpotQA's published record layout.

Every record is a small world of its own: ten paragraphs, two of them gold, about people (a first and a last name),
works (two words), places and years. Facts of one record mean nothing in another, so an answer cannot be learnt by
heart.

    bridge      Where was the author of Silver River born
                    <work> was written by <person>, <person> was born in <place>
                When was the author of Silver River born
                    <work> was written by <person>, <person> was born in <year>
    comparison  Who was born first Ada Keller or Hugo Novak
                    <person> was born in <year>, twice
                Do Ada Keller and Hugo Novak share a birthplace
                    <person> was born in <place>, twice

Distractors share a name, a word of the work or a word of the place with the gold facts, never the whole.
"""

import hashlib
import random
from functools import lru_cache

SPLITS = ("train", "test")
TEST_SHARE = 5  # one entity pair in so many belongs to the test split

FIRST_NAMES = """Ada Ben Cora Dario Elsa Felix Greta Hugo Ines Jonas Karin Leon Marta Nils Olga Pavel Quinn Rosa Stefan
Tilda Ulrich Vera Walter Xenia Yusuf Zora Amir Bianca Cyril Dalia Edgar Freya Gideon Hanna Igor Judith Kaspar Lydia Milo
Nadia Oscar Petra Rafael Selma Tobias Ursula Viktor Wanda Yara Zeno Alma Bruno Clara Dmitri Emil Fiona""".split()
LAST_NAMES = """Abbott Barlow Castell Dunmore Eklund Farrow Galloway Hartmann Iverson Jansen Keller Lindqvist
Marchetti Novak Okafor Pereira Quigley Renard Sorensen Takeda Underhill Vasquez Whitlock Yamada Zeller Ashby Brandt
Corvin Delgado Ellery Fischer Grimaldi Holloway Ishida Jovanovic Kowalski Larsen Moreau Nakamura Ortega Petrov
Rasmussen Sandoval Thorne Ulloa Varga Winslow Yilmaz Zimmer Archer Bellamy Calder Drummond Esposito Fontaine
Gallagher""".split()
WORK_FIRST = """Silver Crimson Golden Hidden Broken Silent Distant Frozen Burning Hollow Scarlet Velvet Wandering
Endless Forgotten Bitter Gentle Savage Sacred Shattered Midnight Winter Summer Autumn Amber Ivory Copper Emerald
Marble Paper Glass Iron Stone Crystal Thunder Shadow Painted Restless Secret Ancient Lonely Radiant Sunken Twisted
Vanishing Whispering Weeping Electric""".split()
WORK_SECOND = """River Garden Mirror Tower Bridge Lantern Forest Empire Journey Letter Mountain Ocean Orchard Palace
Road Sparrow Storm Tide Valley Voyage Window Wolf Crown Desert Dream Echo Feather Flame Fortress Horizon Island Key
Labyrinth Meadow Moon Needle Oath Prophet Quarry Raven Shore Temple Throne Umbrella Violin Wheel Compass
Anchor""".split()
PLACE_WORDS = """Halden Brindle Corvale Dunford Elmsworth Farholt Glenmoor Harrowby Inverley Jarnsund Kestwick Lorvik
Marnby Northam Oakmere Pellworth Quarndon Rothwick Selbourne Tarnholm Ulverby Vellmar Westmark Yarlow Zandrick
Ashcombe Belmere Crannock Drayholm Eastvale Fenwater Garrick Hythe Ilmere Jutholm Kelbrook""".split()
PLACE_PREFIXES = "New Port Old Upper Lake Saint".split()
PLACES = PLACE_WORDS + [f"{PLACE_PREFIXES[i % len(PLACE_PREFIXES)]} {word}" for i, word in enumerate(PLACE_WORDS[:24])]
YEARS = [str(year) for year in range(1900, 2000)]

CHATTER = (
    ("we", "they", "you", "my friend", "the kids", "our neighbor"),
    ("enjoyed", "wanted", "missed", "liked", "remembered"),
    ("warm soup", "fresh bread", "loud music", "long walks", "funny films", "good coffee", "nice weather"),
    ("today", "yesterday", "last night", "this morning", "again"),
)

Pair = tuple[str, str]


def generate(seed: int, count: int, split: str, comparison_share: float = 0.25) -> list[dict]:
    """`count` records of `split` ("train" or "test"); record i is a function of (seed, split, i) alone.

    The splits share no person (first and last name together) and no work; single names, places and years are common
    to both. A share of `comparison_share` of the questions compares two people, the others are bridge questions.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {SPLITS}")
    if not 0 <= comparison_share <= 1:
        raise ValueError(f"comparison_share is {comparison_share}; it must lie between 0 and 1")
    return [_record(f"{seed}/{split}/{i}", split, comparison_share) for i in range(count)]


def chatter(rng: random.Random) -> str:
    """A sentence of small talk, five to seven words, that holds no fact."""
    return " ".join(rng.choice(part) for part in CHATTER)


def split_of(pair: Pair) -> str:
    """The split to which a person or a work belongs, by a hash of its two words."""
    return "test" if hashlib.sha256(" ".join(pair).encode()).digest()[0] % TEST_SHARE == 0 else "train"


def vocabulary() -> list[str]:
    """Every word that `generate` and `chatter` can write, without repetition, in a fixed order."""
    fixed = "was written by born in published Where When the author of Who first or Do and share a birthplace yes no"
    words = fixed.split() + FIRST_NAMES + LAST_NAMES + WORK_FIRST + WORK_SECOND + PLACE_PREFIXES + PLACE_WORDS + YEARS
    return list(dict.fromkeys(words + " ".join(text for part in CHATTER for text in part).split()))


@lru_cache
def _pairs(kind: str, split: str) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """All entities of a kind ("person" or "work") in a split, and those that hold a given word."""
    firsts, seconds = (FIRST_NAMES, LAST_NAMES) if kind == "person" else (WORK_FIRST, WORK_SECOND)
    pairs = [(first, second) for first in firsts for second in seconds if split_of((first, second)) == split]
    return pairs, {word: [pair for pair in pairs if word in pair] for word in firsts + seconds}


class _World:
    """The entities of one record, each drawn once."""

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split, self.used = rng, split, set()
        self.years = rng.sample(YEARS, 16)
        self.paragraphs = []

    def draw(self, kind: str, sharing: str = "") -> Pair:
        """A new person or work of the split, one that holds the word `sharing` if there still is any."""
        pairs, by_word = _pairs(kind, self.split)
        fresh = [pair for pair in by_word.get(sharing, ()) if pair not in self.used]
        fresh = fresh or [pair for pair in pairs if pair not in self.used]
        pair = self.rng.choice(fresh)
        self.used.add(pair)
        return pair

    def person(self, person: Pair, place: str) -> str:
        """Adds the paragraph of a person, with a year of birth that nobody else has; returns that year."""
        name, year = " ".join(person), self.years.pop()
        self.paragraphs.append([name, [f"{name} was born in {place}", f"{name} was born in {year}"]])
        return year

    def work(self, work: Pair, author: Pair) -> None:
        """Adds the paragraph of a work."""
        title = " ".join(work)
        sentences = [f"{title} was written by {' '.join(author)}", f"{title} was published in {self.years.pop()}"]
        self.paragraphs.append([title, sentences])

    def place(self, other_than: str, alike: bool = False) -> str:
        """A place that is not `other_than`; with `alike` one that has a word in common with it, if there is any."""
        words = set(other_than.split())
        near = [place for place in PLACES if place != other_than and words & set(place.split())]
        return self.rng.choice(near if alike and near else [place for place in PLACES if place != other_than])


def _record(key: str, split: str, comparison_share: float) -> dict:
    rng = random.Random(key)
    world = _World(rng, split)
    make = _comparison if rng.random() < comparison_share else _bridge
    question, answer, kind, gold = make(world)
    rng.shuffle(world.paragraphs)
    return {
        "_id": hashlib.sha256(key.encode()).hexdigest()[:24],
        "question": question,
        "answer": answer,
        "type": kind,
        "level": "medium",
        "supporting_facts": [[" ".join(entity), sentence] for entity, sentence in gold],
        "context": world.paragraphs,
    }


def _bridge(world: _World) -> tuple[str, str, str, list]:
    """Question, answer, type, and gold facts as (entity, sentence): work -> author -> place or year of birth."""
    rng = world.rng
    author, work, place = world.draw("person"), world.draw("work"), rng.choice(PLACES)
    world.work(work, author)
    year = world.person(author, place)
    # Two works and their authors that each look like the gold pair, a third work, and two namesakes of the author.
    for word, name in ((work[0], author[0]), (work[1], author[1])):
        namesake = world.draw("person", name)
        world.work(world.draw("work", word), namesake)
        world.person(namesake, world.place(place, alike=rng.random() < 0.5))
    world.work(world.draw("work", rng.choice(work)), world.draw("person"))
    for name in author:
        world.person(world.draw("person", name), world.place(place, alike=rng.random() < 0.5))
    world.person(world.draw("person"), world.place(place))
    asks_place = rng.random() < 0.5
    question = f"{'Where' if asks_place else 'When'} was the author of {' '.join(work)} born"
    return question, place if asks_place else year, "bridge", [(work, 0), (author, 0 if asks_place else 1)]


def _comparison(world: _World) -> tuple[str, str, str, list]:
    """Question, answer, type, and gold facts as (entity, sentence): two people's years or places of birth."""
    rng = world.rng
    pair = one, other = world.draw("person"), world.draw("person")
    place = rng.choice(PLACES)
    other_place = place if rng.random() < 0.5 else world.place(place, alike=rng.random() < 0.5)
    years = world.person(one, place), world.person(other, other_place)
    for person in pair:
        for name in person:
            world.person(world.draw("person", name), world.place(place, alike=rng.random() < 0.5))
        world.work(world.draw("work"), person)
    for word in rng.sample(pair, 2):
        world.work(world.draw("work"), world.draw("person", rng.choice(word)))
    names = [" ".join(person) for person in pair]
    if rng.random() < 0.5:
        answer = names[0] if years[0] < years[1] else names[1]
        return f"Who was born first {names[0]} or {names[1]}", answer, "comparison", [(one, 1), (other, 1)]
    answer = "yes" if place == other_place else "no"
    return f"Do {names[0]} and {names[1]} share a birthplace", answer, "comparison", [(one, 0), (other, 0)]
