"""Plays ALFWorld to win, on the host: a plan of one who sees the whole state. It tries every way and takes a shortest.

Only what the goal asks for is moved, and an object that is held and of no use is put down first, where that costs
least. So a plan is the shortest of its kind; there may be a shorter one of another kind.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agemem_jax.benchmarks.alfworld.games import Household
from agemem_jax.benchmarks.alfworld.play import NOWHERE, TREATMENTS, Flag, State, Verb, unpack
from agemem_jax.benchmarks.alfworld.texts import COMMANDS, MOVE

TREATED = {Flag.CLEAN: Verb.CLEAN, Flag.HOT: Verb.HEAT, Flag.COOL: Verb.COOL}


@dataclass(frozen=True)
class Situation:
    """Where play stands in one household."""

    inside: np.ndarray  # [R, O] bool
    left: np.ndarray  # [R, O] bool: it was taken from there and not put back
    at: np.ndarray  # [R, O] bool: it lies at the location of which this receptacle is the first
    opened: np.ndarray  # [R] bool
    flags: np.ndarray  # [len(Flag), O] bool
    location: int
    held: int


def at_start(game: Household) -> Situation:
    """The situation in which a game begins."""
    left = np.zeros_like(game.inside)
    return Situation(game.inside, left, game.at, game.opened, game.flags, game.location, NOWHERE)


def situation(game: Household, state: State, row: int) -> Situation:
    """The situation of one row of the engine's state."""
    r, o = len(game.receptacles), len(game.objects)
    sets = lambda words: np.asarray(unpack(words[row], o))  # noqa: E731
    return Situation(
        inside=sets(state.inside)[:r],
        left=sets(state.left)[:r],
        at=sets(state.at)[:r],
        opened=np.asarray(state.opened[row])[:r],
        flags=sets(state.flags),
        location=int(state.location[row]),
        held=int(state.held[row]),
    )


def plan(game: Household, now: Situation) -> list[str] | None:
    """Commands that win from here, none if the game is won, or None if this expert finds no way."""
    ways = _light_ways(game, now) if game.goal.is_here else _place_ways(game, now)
    return min((way.commands for way in ways), key=len, default=None)


class Way:
    """Commands from a situation on, and what they change that matters for those after them."""

    def __init__(self, game: Household, now: Situation):
        self.game, self.location, self.held = game, now.location, now.held
        self.opened, self.commands = now.opened.copy(), []

    def then(self) -> "Way":
        other = copy.copy(self)
        other.opened, other.commands = self.opened.copy(), self.commands.copy()
        return other

    def say(self, words: tuple[str, str], *names: str) -> None:
        self.commands.append("".join(f"{word} {name}" for word, name in zip(words, names, strict=False)))

    def go(self, r: int) -> "Way":
        if self.game.place[r] != self.location:
            self.say(COMMANDS[Verb.GO], self.game.receptacles[r])
            self.location = int(self.game.place[r])
        return self

    def reach(self, r: int) -> "Way":
        """Goes to a receptacle, and opens it if need be: its content is told then."""
        self.go(r)
        if self.game.openable[r] and not self.opened[r]:
            self.say(COMMANDS[Verb.OPEN], self.game.receptacles[r])
            self.opened[r] = True
        return self

    def use(self, o: int) -> "Way":
        self.say(COMMANDS[Verb.USE], self.game.objects[o])
        return self

    def take(self, o: int, r: int) -> "Way":
        self.reach(r).say(COMMANDS[Verb.TAKE], self.game.objects[o], self.game.receptacles[r])
        self.held = o
        return self

    def put(self, r: int) -> "Way":
        words = MOVE if self.game.is_moves else COMMANDS[Verb.PUT]
        self.reach(r).say(words, self.game.objects[self.held], self.game.receptacles[r])
        self.held = NOWHERE
        return self

    def treat(self, verb: Verb, r: int) -> "Way":
        self.go(r).say(COMMANDS[verb], self.game.objects[self.held], self.game.receptacles[r])
        return self


def _where(game: Household, mask: np.ndarray) -> Iterator[int]:
    """Receptacles of a mask [R] that can be reached."""
    return (int(r) for r in np.flatnonzero(mask & game.reachable))


def _fetched(way: Way, now: Situation, o: int) -> Iterator[Way]:
    """Ways to have an object in hand."""
    game = way.game
    if way.held == o:
        yield way
        return
    if way.held != NOWHERE:
        ways = (way.then().put(r) for r in _where(game, game.fits[:, way.held]))
        way = min(ways, key=lambda other: len(other.commands), default=None)
    if way is not None and game.portable[o]:
        yield from (way.then().take(o, r) for r in _where(game, now.inside[:, o]))


def _light_ways(game: Household, now: Situation) -> Iterator[Way]:
    """Ways to hold something in the light of a lamp that is on."""
    goal = game.goal
    for o in np.flatnonzero(goal.held):
        for way in _fetched(Way(game, now), now, int(o)):
            for lamp in np.flatnonzero(goal.objects):
                for r in _where(game, now.inside[:, lamp] & goal.receptacles):
                    there = way.then().go(r)
                    yield there if now.flags[Flag.TOGGLED, lamp] else there.use(int(lamp))


def _place_ways(game: Household, now: Situation) -> Iterator[Way]:
    """Ways to have enough good objects in one receptacle."""
    goal = game.goal
    good = goal.objects & now.flags[goal.flags].all(0)
    for r in _where(game, goal.receptacles):
        missing = max(0, goal.count - int((good & now.inside[r]).sum()))
        others = np.flatnonzero(goal.objects & game.fits[r] & ~(good & now.inside[r]))
        for chosen in itertools.permutations(others.tolist(), missing):
            ways = [Way(game, now)]
            for o in chosen:
                ways = [way.put(r) for before in ways for way in _treated(before, now, o)]
            yield from ways


def _treated(way: Way, now: Situation, o: int) -> Iterator[Way]:
    """Ways to have an object in hand with the goal's flags."""
    ways = list(_fetched(way, now, o))
    for flag in np.flatnonzero(way.game.goal.flags & ~now.flags[:, o]):
        verb = TREATED[Flag(flag)]
        appliances = list(_where(way.game, way.game.appliance[TREATMENTS.index(verb)]))
        ways = [before.then().treat(verb, r) for before in ways for r in appliances]
    yield from (way.then() for way in ways)
