"""Walks through levels before anything is asked, on the host: what is seen where, and the state that is left.

A walk is a list of primitive actions from the level's beginning. It looks behind the doors of the room in which it
begins, comes back, and goes to some of the things there. It is planned on the cells alone; the engine then takes its
actions, so that where it ends is a state of the engine, with all that the verifier keeps. It ends before an action
that would fulfil or fail the instruction.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agemem_jax.benchmarks.babyai import environment
from agemem_jax.benchmarks.babyai.levels import DOOR, EMPTY, FIRST, LOCKED, OPEN, WALL, Game, Level

MOST_MOVES = 64  # of a walk
MOST_DOORS, MOST_THINGS = 4, 3  # that it looks behind, that it goes to
_FORWARD, _LEFT, _RIGHT, _TOGGLE = (
    environment.FORWARD, environment.LEFT, environment.RIGHT, environment.TOGGLE,
)  # fmt: skip
_KEPT = ("known", "doors", "position", "direction", "carrying", "steps", "fulfilled", "first_done", "carried")


@dataclass(frozen=True)
class Sight:
    """What is seen from one place of a walk."""

    view: np.ndarray  # [7, 7] int8 as environment.see
    objects: frozenset[int]  # the objects in it


@dataclass(frozen=True)
class Walk:
    """A walk and where it leads."""

    moves: tuple[int, ...]  # primitive actions
    level: Level  # whose game begins where the walk has ended
    sights: tuple[Sight, ...]  # after each move


def walk(level: Level, rng: random.Random) -> Walk:
    """A walk from where a level begins."""
    moves = _Walker(level.game).plan(rng)
    moves = moves[: min(MOST_MOVES, int(level.game.max_steps) // 2)]
    return follow(level, moves)


def follow(level: Level, moves: Sequence[int]) -> Walk:
    """The walk of primitive actions, MOST_MOVES at most, as far as none of them fulfils or fails the instruction."""
    game = jax.tree.map(lambda x: x[None], level.game)
    actions = np.full(MOST_MOVES, environment.DONE, np.int32)
    actions[: len(moves)] = moves
    # Tasks are told in the training loop, where nothing goes to a device unasked.
    game, actions = jax.device_put((game, actions))
    take = lambda length: jax.device_get(_take(game, actions, jax.device_put(np.int32(length))))  # noqa: E731
    _, over, shown, place = take(len(moves))
    length = int(np.argmax(over[: len(moves)])) if over[: len(moves)].any() else len(moves)
    state = jax.tree.map(lambda x: x[0], take(length)[0])
    side = level.game.cells.shape[0]
    left = level.game.replace(
        cells=state.cells.reshape(side, side), **{name: getattr(state, name) for name in _KEPT}
    )
    sights = tuple(Sight(view, _objects_in(left, view, *where)) for view, where in zip(shown, place, strict=True))
    return Walk(tuple(int(move) for move in moves[:length]), replace(level, game=left), sights[:length])


@jax.jit
def _take(game: Game, actions: jax.Array, length: jax.Array):
    """The state [1] after `length` of the actions, and for each whether it ends the episode, the view and place."""

    def one(state, move):
        number, action = move
        on = jnp.array([number < length])
        state, verdict = environment.act(game, state, action[None], on)
        place = state.position[0, 0], state.position[0, 1], state.direction[0]
        return state, (verdict.terminated[0], environment.see(game, state)[0], jnp.stack(place))

    numbered = jnp.arange(len(actions)), actions
    state, (over, view, place) = lax.scan(one, environment.start(game), numbered)
    return state, over, view, place


def _objects_in(game: Game, view: np.ndarray, across: int, down: int, direction: int) -> frozenset[int]:
    """The objects that a view from a place shows."""
    columns, rows = environment.view_cells(direction)
    seen = view.ravel() >= environment.FIRST_LOOK
    held = game.cells[down + rows[seen], across + columns[seen]].astype(int)
    return frozenset((held[held >= FIRST] - FIRST).tolist())


def rooms(game: Game) -> np.ndarray:
    """Which room each cell is of, [S, S] int32 from 1 on; 0 of walls and doors. Doors part rooms, also open ones."""
    is_door = np.concatenate([[False, False], game.kind == DOOR])[game.cells]
    inside = (game.cells != WALL) & ~is_door
    room = np.zeros(game.cells.shape, np.int32)
    for down, across in np.argwhere(inside):
        if not room[down, across]:
            number, edge = room.max() + 1, [(down, across)]
            room[down, across] = number
            while edge:
                y, x = edge.pop()
                for cell in ((y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x)):
                    if inside[cell] and not room[cell]:
                        room[cell] = number
                        edge.append(cell)
    return room


def places(game: Game) -> dict[int, tuple[int, int]]:
    """Where the objects in cells are: {object: (down, across)}."""
    return {int(game.cells[y, x]) - FIRST: (int(y), int(x)) for y, x in np.argwhere(game.cells >= FIRST)}


def doors_of(game: Game, room: np.ndarray, number: int) -> dict[int, int]:
    """The doors of a room, and the room behind each."""
    found = {}
    for thing, (y, x) in places(game).items():
        if game.kind[thing] == DOOR:
            sides = {int(room[cell]) for cell in ((y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x))} - {0}
            if number in sides and len(sides) == 2:
                found[thing] = next(iter(sides - {number}))
    return found


def ways(game: Game, most: int) -> list[list[int]]:
    """Moves from where a game begins to the things that its instruction names first, through doors that are not locked.

    The shortest ways come first, `most` of them.
    """
    named = game.named[:, 0]
    things = [i for i in places(game) if (named[:, i // 32] >> np.uint32(i % 32) & 1).any()]
    found = []
    for thing in things:
        walker = _Walker(game, opens=True)
        if walker.face(places(game)[thing]):
            found.append(walker.moves)
    return sorted(found, key=len)[:most]


class _Walker:
    """Plans on cells that it knows; of all that can change only doors do. If it `opens`, closed doors are in no way."""

    def __init__(self, game: Game, opens: bool = False):
        self.game, self.open, self.opens = game, (game.doors & OPEN) > 0, opens
        self.x, self.y, self.direction = int(game.position[0]), int(game.position[1]), int(game.direction)
        self.moves: list[int] = []

    def plan(self, rng: random.Random) -> list[int]:
        """The moves of a walk."""
        game, where = self.game, places(self.game)
        room = rooms(game)
        home = self.y, self.x
        here = int(room[home])
        doors = [door for door in doors_of(game, room, here) if not game.doors[door] & LOCKED]
        things = [thing for thing, cell in where.items() if room[cell] == here]
        for door in rng.sample(doors, min(len(doors), MOST_DOORS)):
            if len(self.moves) < MOST_MOVES // 2 and self.face(where[door]):
                self.look_behind()
                self.go(home)
        for thing in rng.sample(things, min(len(things), rng.randint(1, MOST_THINGS))):
            self.face(where[thing])
        return self.moves

    def face(self, cell: tuple[int, int]) -> bool:
        """Goes to where a cell is ahead; False if there is no way."""
        return self._search(lambda y, x, d: self._ahead(y, x, d) == cell)

    def go(self, cell: tuple[int, int]) -> bool:
        """Goes to a cell."""
        return self._search(lambda y, x, d: (y, x) == cell)

    def look_behind(self) -> None:
        """Through a door ahead into the room behind it, and there to one side and the other."""
        self._open_ahead()
        for _ in range(2):
            if self._free(*self._ahead(self.y, self.x, self.direction)):
                self._move(_FORWARD)
        self._move(_LEFT)
        self._move(_RIGHT)
        self._move(_RIGHT)

    def _search(self, goal) -> bool:
        begin = self.y, self.x, self.direction
        came, queue = {begin: None}, deque([begin])
        while queue:
            state = queue.popleft()
            if goal(*state):
                steps = []
                while came[state]:
                    state, move = came[state]
                    steps.append(move)
                for move in reversed(steps):
                    self._move(move)
                return True
            y, x, d = state
            ahead = self._ahead(y, x, d)
            after = [((y, x, (d + 3) % 4), _LEFT), ((y, x, (d + 1) % 4), _RIGHT)]
            if self._free(*ahead):
                after.insert(0, ((*ahead, d), _FORWARD))
            for new, move in after:
                if new not in came:
                    came[new] = state, move
                    queue.append(new)
        return False

    def _ahead(self, y: int, x: int, direction: int) -> tuple[int, int]:
        return y + int(environment.DOWN[direction]), x + int(environment.ACROSS[direction])

    def _free(self, y: int, x: int) -> bool:
        holds = int(self.game.cells[y, x])
        if holds < FIRST:
            return holds == EMPTY
        door = holds - FIRST
        passes = self.open[door] or (self.opens and not self.game.doors[door] & LOCKED)
        return self.game.kind[door] == DOOR and bool(passes)

    def _open_ahead(self) -> None:
        thing = int(self.game.cells[self._ahead(self.y, self.x, self.direction)]) - FIRST
        if thing >= 0 and self.game.kind[thing] == DOOR and not self.open[thing]:
            self.moves.append(_TOGGLE)
            self.open[thing] = True

    def _move(self, move: int) -> None:
        if move == _FORWARD:
            self._open_ahead()
            self.y, self.x = self._ahead(self.y, self.x, self.direction)
        else:
            self.direction = (self.direction + (1 if move == _RIGHT else 3)) % 4
        self.moves.append(move)
