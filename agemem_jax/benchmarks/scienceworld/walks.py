"""Walks through ScienceWorld's house before a task begins: what stage 1 tells of, and where stage 3 starts.

A walk is a list of commands that the engine takes from a variation's first state. It is chosen on the way, from what is
seen: `record` plays it once, with the words in which it is told, and what wins from its end; all else only replays it.

Where the goal is an errand (`errand_of`) the walk carries what the task needs from the room where every house has it to
another one, and ends elsewhere: who was told needs few actions, who goes to look for it many. What has a temperature is
measured on the way. In other tasks the walk visits some rooms, moves nothing and comes back to where it began, from
where the engine's own solution holds.
"""

import functools
import itertools
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agemem_jax.benchmarks.scienceworld.pool import Pool
from agemem_jax.envs.host import Reply

HOUSE = {  # every variation's rooms, and where their doors lead
    "art studio": ("hallway",),
    "bathroom": ("kitchen",),
    "bedroom": ("hallway",),
    "foundry": ("outside",),
    "greenhouse": ("hallway", "outside"),
    "hallway": ("art studio", "bedroom", "greenhouse", "kitchen", "living room", "workshop"),
    "kitchen": ("bathroom", "hallway", "outside"),
    "living room": ("hallway",),
    "outside": ("foundry", "greenhouse", "kitchen"),
    "workshop": ("hallway",),
}
NEAR = 3  # moves that an errand takes who knows where all is, at most; one more for each thing after the first
TOUR = 3  # rooms that a walk visits where there is no errand
TRIES = 3  # walks that are tried for an errand
MOST_ACTIONS = 40  # of a search

FIND = re.compile(r"find a\(n\) (plant|animal|living thing)\. .* move it to the (\w+ box) in the ([a-z ]+)\.")
MEASURE = re.compile(
    r"temperature of (.+?), which is located around the ([a-z ]+)\. .* above (-?[\d.]+) degrees .* in the (\w+ box)\. "
    r".* below .* in the (\w+ box)\. The boxes are located around the ([a-z ]+)\."
)
DEGREES = re.compile(r"temperature of (-?\d+) degrees")
# What serves an errand, as "look around" calls it: its `name` in commands, and what is focused on.
PLANT = r"an? (?P<name>flower pot \d+) \(containing an? (?P<focus>(?:\w+ )?(?:plant|tree)) in the "
EGG = r"an? (?P<name>(?P<focus>(?:\w+ )+egg))$"
NAMED = r"(?:an? )?(?:substance called )?(?P<name>(?P<focus>{}))\b"
SERVES = {"plant": ("greenhouse", PLANT), "animal": ("outside", EGG)}
ALIVE = r"\b(?:egg|plant|tree|pollen|seed|flower|baby|hatchling|juvenile|adult|larva|pupa|caterpillar)\b"
STAGE = re.compile(r" in the [a-z]+ stage[^)]*")  # of a plant, with what else is in its pot
UNSTEADY = r"\bbee\b|currently"  # what is elsewhere, or reads otherwise, a moment later
DULL = ("nothing", "the agent", "a substance called air", "the ground", "")  # things that are nothing to tell
# Words of goals that say nothing of what is needed.
COMMON = frozenset(
    """a above also an and animal are around be below boxes by can celsius chemistry create degrees do done find first
    focus for from has have if in into is it its life located longest might move n near next not of on or place power
    shortest so some span substance task temperature that the then thing this to use when which with you your""".split()
)


class Lost(Exception):
    """The engine did not do what a walk wanted."""


class Thing(NamedTuple):
    """What is seen in a room."""

    where: str  # "on the table"; "" in the room itself
    text: str


@dataclass
class Walk:
    """A walk as it is recorded. Texts are told at times, which are numbers of commands."""

    commands: list[str] = field(default_factory=list)
    facts: list[tuple[int, str]] = field(default_factory=list)  # (time, text) of what the task needs, as it is at last
    former: list[tuple[int, str, str]] = field(default_factory=list)  # (time, text, the fact that holds in its place)
    sights: list[tuple[int, str]] = field(default_factory=list)  # (time, text) of other things, which stay as they are
    plan: list[str] = field(default_factory=list)  # what wins afterwards, by who knows the facts; [] if only the engine
    search: list[str] = field(default_factory=list)  # and by who looks around; [] if that is too long, or not asked for


@dataclass(frozen=True)
class Stop:
    """A thing that an errand needs."""

    home: str  # the room where it is at first
    serves: str  # a regular expression
    acts: tuple[str, ...]  # what is done where it is, by who knows all
    search: tuple[str, ...]  # by who does not


@dataclass(frozen=True)
class Errand:
    """Things that are needed one after another, the last of which then is put into a box."""

    stops: tuple[Stop, ...]
    room: str  # of the box
    box: Callable[[int], str]  # its name, by the degrees that were measured
    unlike: str  # a regular expression: what is told as a sight for its own sake is none of these
    kind: str = ""  # what the goal calls a thing that serves, where it has another name


def errand_of(goal: str, rng: random.Random) -> Errand | None:
    """The errand that reaches a goal; None where only the engine knows what does."""
    take = "focus on {focus}", "pick up {name}"
    if found := FIND.search(goal):
        kind, box, room = found.groups()
        home, serves = SERVES[rng.choice(sorted(SERVES)) if kind == "living thing" else kind]
        called = f", {'an' if kind == 'animal' else 'a'} {kind}"
        return Errand((Stop(home, serves, take, take),), room, lambda degrees: box, ALIVE, called)
    if found := MEASURE.search(goal):
        thing, home, limit, above, below, room = found.groups()
        named = NAMED.format(re.escape(thing))
        tool = Stop("kitchen", NAMED.format("thermometer"), take[:1], take)
        measured = Stop(home, named, take, ("use thermometer on {name}", *take))
        return Errand((tool, measured), room, lambda degrees: above if degrees > float(limit) else below, named)
    return None


def record(pool: Pool, number: int, goal: str, searches: bool) -> Walk:
    """The walk of a game; a function of the game alone. It takes about a second, and half as long again if it searches.
    """
    for attempt in range(TRIES):
        rng = random.Random(f"walk/{number}/{attempt}")
        errand = errand_of(goal, rng)
        try:
            if errand is not None:
                walk = run(pool, number, errand, rng)
                walk.search = search(pool, number, errand, walk.commands) if searches else []
                return walk
        except Lost:
            continue
    try:
        return tour(pool, number, goal, random.Random(f"walk/{number}"))
    except Lost:  # another house
        return Walk()


def run(pool: Pool, number: int, errand: Errand, rng: random.Random) -> Walk:
    """Carries what is needed to other rooms, and plays what wins from there. Raises Lost if that cannot be done."""
    walk, texts, names, degrees = Walk(), [], [], 0
    with Visit(pool, number) as visit:
        for stop in errand.stops:
            visit.go(stop.home)
            thing, name = rng.choice(visit.serving(stop.serves) or [_lost(f"nothing in the {stop.home} serves")])
            texts.append(thing.text)
            names.append(name)
            walk.former.append((visit.time, message(stop.home, thing, errand.kind), ""))
            if len(stop.search) > len(stop.acts) and len(names) > 1:
                degrees = visit.measure(name)
                walk.facts.append((visit.time, f"The {name['name']} has a temperature of {degrees} degrees celsius."))
            visit.take(name)
        rooms, end = places(errand, rng)
        for i in reversed(range(len(rooms))):
            visit.go(rooms[i])
            visit.do(f"put down {names[i]['name']}")
            now = message(rooms[i], Thing("", texts[i]), errand.kind)
            walk.facts.append((visit.time, now))
            walk.former[i] = *walk.former[i][:2], now
        visit.go(end)
        walk.commands, walk.sights = visit.commands, visit.sights(f"{errand.unlike}|{UNSTEADY}|thermometer")
    stops = [(r, stop.acts, name) for r, stop, name in zip(rooms, errand.stops, names, strict=True)]
    walk.plan = plan(end, stops, errand.room, errand.box(degrees))
    if not wins(pool, number, walk.commands, walk.plan):
        raise Lost("the plan does not win")
    return walk


def places(errand: Errand, rng: random.Random) -> tuple[tuple[str, ...], str]:
    """Rooms to which things are carried, and where the walk ends: a few moves for who knows them.

    Home, where others like it are, is farther; and where the walk ends, and the box of the goal, leave as many rooms
    open as can be. To look for several things is far wherever it begins. Raises Lost if there are no such rooms.
    """
    homes, most = [stop.home for stop in errand.stops], NEAR + len(errand.stops)
    can = {
        end: [
            rooms for rooms in itertools.permutations(HOUSE, len(homes))
            if end != rooms[0] and all(map(operator.ne, rooms, homes)) and length(end, *rooms, errand.room) < most
        ] for end in HOUSE if len(homes) > 1 or length(end, *homes, errand.room) >= most
    }  # fmt: skip
    count = max(map(len, can.values()), default=0) or _lost("nothing is near the box")
    end = rng.choice([end for end in can if len(can[end]) == count])
    return rng.choice(can[end]), end


def plan(start: str, stops: Sequence[tuple[str, Sequence[str], dict]], room: str, box: str) -> list[str]:
    """Actions: in each stop's room what is done with its names there, then the last thing goes into the box."""
    actions, at = [], start
    for there, acts, name in stops:
        actions += going(at, there) + [act.format(**name) for act in acts]
        at = there
    return [*actions, *going(at, room), f"move {name['name']} to {box}"]


def search(pool: Pool, number: int, errand: Errand, start: Sequence[str]) -> list[str]:
    """What wins by looking around: first in the room where every house has a thing, then in the nearest ones.

    [] if that takes more than MOST_ACTIONS, or does not win.
    """
    with Visit(pool, number, start) as visit:
        seen, degrees = {visit.room: visit.things}, 0
        try:
            for stop in errand.stops:
                while True:
                    found = [(room, name) for room in seen for _, name in serving(seen[room], stop.serves)]
                    if found or len(seen) == len(HOUSE) or visit.time > MOST_ACTIONS:
                        break
                    unseen = [room for room in HOUSE if room not in seen]
                    visit.go(stop.home if stop.home in unseen else min(unseen, key=lambda r: length(visit.room, r)))
                    visit.do("look around")
                    seen[visit.room] = visit.things
                room, name = found[0] if found else _lost("nothing serves")
                visit.go(room)
                for act in stop.search:
                    if told := DEGREES.search(visit.do(act.format(**name)).text):
                        degrees = int(told[1])
            visit.go(errand.room)
            won = visit.do(f"move {name['name']} to {errand.box(degrees)}").success
        except Lost:
            return []
        return visit.commands if won and visit.time <= MOST_ACTIONS else []


def tour(pool: Pool, number: int, goal: str, rng: random.Random) -> Walk:
    """Visits rooms, those first that the goal names, and comes back. What shares a word with the goal counts as a fact;
    where nothing does, what is in the rooms that it names. Raises Lost where a way is shut."""
    with Visit(pool, number) as visit:
        start, named = visit.room, [room for room in HOUSE if room in goal]
        rooms = [*named, *rng.sample([room for room in HOUSE if room not in named], len(HOUSE) - len(named))]
        for room in [room for room in rooms if room != start][:TOUR]:
            visit.go(room)
        visit.go(start)
        words = set(content(goal)) - {word for room in HOUSE for word in room.split()}
        sights = visit.sights(UNSTEADY)
        facts = [sight for sight in sights if words & set(re.findall(r"[a-z]+", sight[1].split("you see")[1]))]
        facts = facts or [sight for sight in sights if any(f" {room.title()}" in sight[1] for room in named)]
        return Walk(visit.commands, facts, [], [sight for sight in sights if sight not in facts])


class Visit:
    """An episode that is walked through, from where the commands `start` have led."""

    def __init__(self, pool: Pool, number: int, start: Sequence[str] = ()):
        self.pool, self.game, self.commands = pool, pool.game(walks={number: start}), []
        self.seen: list[tuple[int, str, list[Thing]]] = []  # (time, room, things) of each room, at the first sight
        self.game.start(number).result()
        self.look()

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_) -> None:
        self.game.close()

    @property
    def time(self) -> int:
        return len(self.commands)

    def look(self) -> None:
        """Sees where it is; that takes no time in the world."""
        self.room, self.things = things_of(self.pool.ask("sight", episode=self.game.episode)["text"])
        if self.room not in (room for _, room, _ in self.seen):
            self.seen.append((self.time, self.room, self.things))

    def do(self, command: str) -> Reply:
        self.commands.append(command)
        return self.game.step(command).result()

    def go(self, room: str) -> None:
        """Raises Lost where there is no way."""
        for command in going(self.room, room):
            self.do(command)
            self.look()
            if self.room != command.removeprefix("go to "):
                raise Lost(f"{command}: it is the {self.room} still")

    def take(self, name: dict) -> None:
        if not self.do(f"pick up {name['name']}").text.startswith("You move the"):
            raise Lost(f"{name['name']} cannot be picked up")

    def measure(self, name: dict) -> int:
        """Degrees, by the thermometer that is held."""
        told = DEGREES.search(self.do(f"use thermometer on {name['name']}").text)
        return int(told[1]) if told else _lost(f"{name['name']} cannot be measured")

    def serving(self, pattern: str) -> list[tuple[Thing, dict]]:
        return serving(self.things, pattern)

    def sights(self, unlike: str) -> list[tuple[int, str]]:
        """(time, message) of each thing seen at the first sight of its room, but those like a regular expression."""
        return [
            (time, message(room, thing)) for time, room, things in self.seen for thing in things
            if not re.search(unlike, thing.text)
        ]  # fmt: skip


def wins(pool: Pool, number: int, start: Sequence[str], actions: Sequence[str]) -> bool:
    """Whether actions win from where the commands `start` have led."""
    with Visit(pool, number, start) as visit:
        return any(visit.do(action).success for action in actions)


def serving(things: list[Thing], pattern: str) -> list[tuple[Thing, dict]]:
    """The things that a pattern finds, with their names, but those whose names others have too."""
    found = [(thing, match.groupdict()) for thing in things if (match := re.match(pattern, thing.text))]
    return [(thing, name) for thing, name in found if sum(other["focus"] == name["focus"] for _, other in found) == 1]


def things_of(look: str) -> tuple[str, list[Thing]]:
    """What "look around" says: the room, and what is in it."""
    head, *lines = look.split("\n")
    things = []
    for line in itertools.takewhile(lambda line: line != "You also see:", lines):
        held = re.match(r".*\b((?:On|In) the [^.]*?) is: (.*?)\.*$", line.strip())
        where, told = (held[1].lower(), parts(held[2])) if held else ("", [line.strip()])
        things += [Thing(where, text) for text in told if text not in DULL]
    return re.search(r"called the (.+?)\.", head)[1], things


def parts(listing: str) -> list[str]:
    """The things of a listing: what stands between its commas, but for those in brackets."""
    return [part.strip() for part in re.split(r",(?![^(]*\))(?! which| currently)", listing)]


def message(room: str, thing: Thing, kind: str = "") -> str:
    """A sight as it is told, with what the goal calls the thing. Rooms are written like names, for texts that differ in
    them to differ (envs/names.py); the engine takes them so in commands too."""
    place = f", {thing.where}," if thing.where else ""
    text = re.sub(r" \(containing nothing\)|, (?:currently|which is) .*|[. ]+$", "", thing.text)
    text = STAGE.sub("", text) if kind else text
    return f"In the {room.title()}{place} you see {text}{kind}."


def content(goal: str) -> list[str]:
    """The words of a goal that say what is needed, in small letters."""
    return list(dict.fromkeys(word for word in re.findall(r"[a-z0-9]+", goal.lower()) if word not in COMMON))


def going(*rooms: str) -> list[str]:
    """Commands that lead through rooms, from the first to the last."""
    return [f"go to {room}" for a, b in itertools.pairwise(rooms) for room in path(a, b)]


def length(*rooms: str) -> int:
    return sum(len(path(a, b)) for a, b in itertools.pairwise(rooms))


@functools.cache
def path(start: str, end: str) -> list[str]:
    """The rooms after `start` on a shortest way to `end`."""
    ways, seen = [[start]], {start}
    for way in ways:
        if way[-1] == end:
            break
        new = [room for room in HOUSE[way[-1]] if room not in seen]
        seen.update(new)
        ways += [[*way, room] for room in new]
    return way[1:]


def _lost(why: str):
    raise Lost(why)
