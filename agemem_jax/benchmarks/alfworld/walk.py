"""Walks through a household on the host: legal commands and where they lead; what is seen there, in words; searches."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agemem_jax.benchmarks.alfworld.expert import Situation, Way, plan
from agemem_jax.benchmarks.alfworld.games import Household
from agemem_jax.benchmarks.alfworld.play import Verb
from agemem_jax.benchmarks.alfworld.texts import ANSWERS, COMMANDS, MOVED


@dataclass(frozen=True)
class Move:
    """What is carried from where to where."""

    thing: int
    origin: int
    target: int


class Walk(Way):
    """Commands from a situation with empty hands on, and the situation that they have led to."""

    def __init__(self, game: Household, now: Situation):
        super().__init__(game, now)
        self.inside, self.left, self.at, self.flags = now.inside.copy(), now.left.copy(), now.at.copy(), now.flags

    @property
    def now(self) -> Situation:
        return Situation(self.inside, self.left, self.at, self.opened.copy(), self.flags, self.location, self.held)

    def take(self, o: int, r: int) -> "Walk":
        super().take(o, r)
        self.inside[r, o], self.left[r, o], self.at[self.location, o] = False, True, False
        return self

    def put(self, r: int) -> "Walk":
        o = self.held
        super().put(r)
        self.inside[r, o], self.left[r, o], self.at[self.location, o] = True, False, True
        return self

    def carry(self, move: Move) -> "Walk":
        return self.take(move.thing, move.origin).put(move.target)

    def look_at_hands(self, _: int) -> None:
        self.commands.append(COMMANDS[Verb.INVENTORY][0])

    def look_into(self, r: int) -> "Walk":
        """Reaches a receptacle; what is in one that is open, where the agent is, is told only when it is examined."""
        return self._or_examine(r, self.reach)

    def pass_by(self, r: int) -> "Walk":
        """Goes to a receptacle and leaves it as it is."""
        return self._or_examine(r, self.go)

    def _or_examine(self, r: int, do: Callable[[int], Way]) -> "Walk":
        said = len(self.commands)
        do(r)
        if len(self.commands) == said:
            self.say(COMMANDS[Verb.EXAMINE], self.game.receptacles[r])
        return self


def wanted(game: Household) -> np.ndarray:
    """[O] bool what a goal is about: the objects that count and, where one has to be held, these."""
    return game.goal.objects if game.goal.held is None else game.goal.objects | game.goal.held


def with_known(game: Household, now: Situation, known: np.ndarray) -> Situation:
    """A situation to one who knows, of what the goal is about, no more than that it is where `known` [R, O] says."""
    return replace(now, inside=now.inside & (known | ~wanted(game)))


def search(
    game: Household, start: Situation, rng: random.Random, likely: Callable[[str, str], float]
) -> list[str] | None:
    """Commands that win by one who is not told where things are: looks for them, and plans with those seen.

    Receptacles are looked into in the order of what is likely, ties by chance.

    Args:
      likely: of (kind of an object, kind of a receptacle), how likely such a one is found there.

    Returns None if there is no way, or what is needed is nowhere.
    """
    walk, found = Walk(game, start), np.zeros_like(game.inside)
    kinds = {kind_of(game.objects[o]) for o in np.flatnonzero(wanted(game))}
    left = np.flatnonzero(game.reachable).tolist()
    rng.shuffle(left)
    left.sort(key=lambda r: -sum(likely(kind, kind_of(game.receptacles[r])) for kind in kinds))
    while not _is_enough(game, found.any(0)):
        if not left:
            return None
        r = left.pop(0)
        walk.look_into(r)
        found[r] = walk.inside[r] & wanted(game)
    rest = plan(game, with_known(game, walk.now, found))
    return None if rest is None else walk.commands + rest


def _is_enough(game: Household, found: np.ndarray) -> bool:
    """Whether those found [O] can be what the goal asks for."""
    counted = int((game.goal.objects & found).sum()) >= game.goal.count
    return counted and (game.goal.held is None or bool((game.goal.held & game.portable & found).any()))


def sight(game: Household, r: int, things: Sequence[int]) -> str:
    """That these objects, by rising numbers, are seen in an open receptacle or on one."""
    names = [f"a {game.objects[o]}" for o in things] or ["nothing"]
    listed = ", ".join([*names[:-1], f"and {names[-1]}"] if len(names) > 1 else names)
    place = game.receptacles[r]
    where = f"The {place} is open. In it" if game.openable[r] else f"On the {place}"
    return f"{where}, you see {listed}."


def is_closed(game: Household, r: int) -> str:
    """That a receptacle is seen closed."""
    return f"The {game.receptacles[r]} is closed."


def has_put(game: Household, o: int, r: int) -> str:
    """That the agent has put an object into a receptacle."""
    begin, between, end = MOVED if game.is_moves else ANSWERS[Verb.PUT]
    return f"{begin} {game.objects[o]}{between} {game.receptacles[r]}{end}"


def kind_of(name: str) -> str:
    """The kind of an object or a receptacle: "apple" of "apple 1"."""
    return name.split(" ")[0]
