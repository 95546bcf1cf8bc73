"""What is told of a level, on the host: instructions, what lies behind doors, and sights that are soon out of date.

Levels are told apart by numbers. What holds is told of a level by its number ("In level 3 go to the red ball."), in
AgentBoard's words; what the agent sees from where it stands is told as AgentBoard says it, and holds until it moves.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agemem_jax.benchmarks.babyai import environment, wording
from agemem_jax.benchmarks.babyai.levels import (
    BALL,
    BOX,
    COLOURS,
    DOOR,
    GO_TO,
    KEY,
    LOCKED,
    NO_ATOM,
    OPEN,
    OPEN_IT,
    PICK_UP,
    PUT_NEXT,
    Game,
    Level,
)
from agemem_jax.benchmarks.babyai.walks import Walk, doors_of, places, rooms
from agemem_jax.data.staged import REVISIONS, StagedRecord

NUMBERS = range(1, 10)  # of levels
OTHERS = 2  # other levels whose instruction is told in stage 1
PLACES = 3  # of things that an instruction names, at most, are told
SIGHTS = 4  # places of a walk from which is told what was in view there
APART = 0.58  # of the words of an instruction, and of what takes its place, at most so many are the same
KINDS = ("go to", "pick up", "open", "put next", "several")
_WORDS = {DOOR: "door", KEY: "key", BALL: "ball", BOX: "box"}
_RELATIVE = ("in front of you", "behind you", "on your left", "on your right")


@dataclass(frozen=True)
class Counts:
    """How many messages are told."""

    facts: int  # in stage 1
    distractors: int  # in stage 2


def kind_of(game: Game) -> str:
    """The kind of a game's instruction."""
    atoms = [int(atom) for atom in game.atom if atom != NO_ATOM]
    return KINDS[(GO_TO, PICK_UP, OPEN_IT, PUT_NEXT).index(atoms[0])] if len(atoms) == 1 else KINDS[-1]


def may_walk(level: Level) -> bool:
    """Whether an instruction can be understood elsewhere than where the level begins."""
    return not any(words in level.mission for words in _RELATIVE)


def official(level: Level) -> StagedRecord:
    """A level without anything told, asked in AgentBoard's words."""
    return _staged(level, Walk((), level, ()), query=level.goal, key_words=level.goal.replace(",", "").split())


def tell(
    level: Level, walk: Walk, counts: Counts, revised: float, rng: random.Random, always: random.Random
) -> StagedRecord:
    """A level as it is told, after a walk through it; `play` is the walk.

    Args:
      level: as it begins; `walk` begins there.
      revised: the share of instructions before which another one is told that no longer holds; of REVISIONS levels.
      rng: of the record and the epoch: the order, and what is told besides.
      always: of the record alone.
    """
    numbers = always.sample(NUMBERS, len(NUMBERS))
    number, far = numbers[0], numbers[1 + OTHERS :]
    needed, besides = _behind(level, walk, number)
    # The others are told as this one is: which level is asked about cannot be known before.
    # Where places are told with the instructions, there is one level less.
    others = [_other(other, bool(needed), always) for other in numbers[1 : (OTHERS if needed else 1 + OTHERS)]]
    present = [_at(number, level.mission), *(text for text, _ in others)]
    revisions: list[tuple[str, str]] = []
    for i in range(min(len(present), REVISIONS)):
        names = list(_names(level.game)) if i == 0 else []
        if always.random() < revised and (stale := _apart(present[i], numbers[i], names, always)):
            now = present[i].replace(f"In level {numbers[i]} ", f"In level {numbers[i]} now ")
            revisions.append((stale, now))
            present[i] = now
    gold = [present[0], *needed][: counts.facts]
    keep = [*gold, *present[1:], *(place for _, place in others if place)][: counts.facts]
    room = counts.facts - len(keep)
    revisions = [revision for revision in revisions if revision[1] in keep][:room]
    rest = [] if needed else besides  # too like what is needed
    rest = [*rest, *_sights(walk, rng)][: room - len(revisions)]
    facts = _in_order([*keep, *rest], revisions, rng)
    later = [text for other in far for text in _other(other, rng.random() < 0.5, rng) if text] + _sights(walk, rng)
    rng.shuffle(later)
    return _staged(
        level, walk, facts=facts, gold=gold, keep=keep, revisions=revisions, distractors=later[: counts.distractors],
        query=f"You are in level {number}. Do your task.", key_words=["level", str(number)],
    )  # fmt: skip


def _staged(level: Level, walk: Walk, query: str, key_words: list[str], **told) -> StagedRecord:
    """A record of what is `told`, by one speaker."""
    parts = {name: told.get(name, []) for name in ("facts", "gold", "keep", "revisions", "distractors")}
    return StagedRecord(
        **parts,
        is_gold=[text in parts["gold"] for text in parts["facts"]],
        query=query,
        answer="",
        key_words=key_words,
        view=[],
        fact_speakers=[0] * len(parts["facts"]),
        distractor_speakers=[0] * len(parts["distractors"]),
        kind=kind_of(level.game),
        play=walk,
    )


def _in_order(texts: list[str], revisions: list[tuple[str, str]], rng: random.Random) -> list[str]:
    """Texts in any order, and what each revision takes back before what it tells."""
    rng.shuffle(texts)
    for stale, now in revisions:
        texts.insert(rng.randint(0, texts.index(now)), stale)
    return texts


def _at(number: int, text: str) -> str:
    return f"In level {number} {text}."


def _instruction(rng: random.Random, names: list[str]) -> tuple[str, str]:
    """An instruction about things of these names, and the first thing that it names."""
    doors = [name for name in names if name.endswith("door")]
    carried = sorted(set(names) - set(doors))
    one, other = rng.sample(carried, 2) if len(carried) > 1 else (*carried, "")[:2] if carried else ("", "")
    ways = [f"open the {rng.choice(doors)}"] if doors else []
    ways += [f"go to the {one}", f"pick up the {one}"] if one else []
    ways += [f"put the {one} next to the {other}"] if other else []
    text = rng.choice(ways)
    return text, one if one and one in text else ""


def _any_names(rng: random.Random) -> list[str]:
    """Things of any level."""
    return [f"{rng.choice(COLOURS)} {word}" for word in _WORDS.values()]


def _other(number: int, behind: bool, rng: random.Random) -> tuple[str, str]:
    """The instruction of another level, and if it lies `behind` a door, where the thing is that it names."""
    names = _any_names(rng)
    text, thing = _instruction(rng, [name for name in names if not (behind and name.endswith("door"))])
    return _at(number, text), _at(number, f"behind the {names[0]} there is a {thing}") if behind else ""


def _apart(present: str, number: int, names: list[str], rng: random.Random) -> str:
    """An instruction of the same level in quite other words, about things of these names; "" if none is found."""
    for _ in range(20):
        text = _at(number, _instruction(rng, names or _any_names(rng))[0])
        same = sum((Counter(text.split()) & Counter(present.split())).values())
        if 2 * same <= APART * (len(text.split()) + len(present.split())):
            return text
    return ""


def _name(game: Game, thing: int) -> str:
    return f"{COLOURS[game.colour[thing]]} {_WORDS[int(game.kind[thing])]}"


def _names(game: Game) -> Iterator[str]:
    """What can be gone to from where a level begins: the things in its room, and the doors that are not locked."""
    room = rooms(game)
    here = int(room[int(game.position[1]), int(game.position[0])])
    doors = doors_of(game, room, here)
    for thing, cell in places(game).items():
        if room[cell] == here or (thing in doors and not game.doors[thing] & (LOCKED | OPEN)):
            yield _name(game, thing)


def _behind(level: Level, walk: Walk, number: int) -> tuple[list[str], list[str]]:
    """What a walk has seen behind the doors of the room where it began: what the instruction needs, and the rest.

    Of two doors of one colour none is told.
    """
    game = level.game
    seen = frozenset().union(*(sight.objects for sight in walk.sights))
    room, where = rooms(game), places(game)
    here = int(room[int(game.position[1]), int(game.position[0])])
    doors = doors_of(game, room, here)
    colours = Counter(int(game.colour[door]) for door in doors)
    behind = {}
    for door, other in doors.items():
        if colours[int(game.colour[door])] == 1:
            for thing in sorted(seen):
                if thing in where and room[where[thing]] == other != here:
                    text = f"behind the {_name(game, door)} there is a {_name(game, thing)}"
                    behind.setdefault(thing, _at(number, text))
    needed = []
    for named in game.named.reshape(-1, game.named.shape[-1]):
        fits = [thing for thing in where if named[thing // 32] >> np.uint32(thing % 32) & 1]
        if not any(room[where[thing]] == here for thing in fits):
            needed += [behind[thing] for thing in fits if thing in behind][:1]
    needed = list(dict.fromkeys(needed))[:PLACES]
    return needed, [text for text in dict.fromkeys(behind.values()) if text not in needed]


def _sights(walk: Walk, rng: random.Random) -> list[str]:
    """Sentences of AgentBoard's about what was seen on the way, in any order."""
    said = [text for sight in rng.sample(walk.sights, min(len(walk.sights), SIGHTS)) for text in sentences(sight.view)]
    return rng.sample(said, len(said))


def sentences(view: np.ndarray) -> list[str]:
    """What AgentBoard says of the objects in a view, one each, nearest first."""
    looks = [int(view[row, column]) - environment.FIRST_LOOK for row, column in wording.PLACES]
    counts, said = Counter(), []
    for look, place in zip(looks, wording.PIECES["place"], strict=True):
        if look >= 0:
            counts[look] += 1
            said.append(f"There is a {wording.NAMES[look]} {counts[look]}{place}".strip())
    return said
