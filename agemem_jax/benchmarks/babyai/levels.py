"""Levels of minigrid as arrays, on the host: the generators stay minigrid's, what they make is data.

A game is what minigrid's reset has made of a level's name and a seed: the cells, the objects, the agent, the limit of
steps and the instruction. An instruction is one side or two in order; a side is one atom (go to, pick up, open, put
next to), or two joined by "and". Atoms name sets of objects, found by identity as minigrid does.
"""

import contextlib
import importlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from flax import struct

from agemem_jax.errors import InputError

EMPTY, WALL, FIRST = 0, 1, 2  # what a cell holds; object i is FIRST + i
NOTHING = -1  # no object, no cell
DOOR, KEY, BALL, BOX = 4, 5, 6, 7  # minigrid's numbers of types
KINDS = {"door": DOOR, "key": KEY, "ball": BALL, "box": BOX}
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")  # in minigrid's order
OPEN, LOCKED = 1, 2  # bits of a door
NO_ATOM, GO_TO, PICK_UP, OPEN_IT, PUT_NEXT = range(5)
ALONE, BEFORE, AFTER = range(3)  # how the two sides of an instruction are joined
ATOMS, SIDES = 4, 2  # atoms 0 and 1 are the first side's, 2 and 3 the second's


@dataclass(frozen=True)
class Sizes:
    """What a game's arrays hold; the defaults hold all levels that minigrid 3.2.0 registers."""

    side: int = 22  # cells across and down
    objects: int = 48  # doors, keys, balls and boxes, with those inside boxes


@struct.dataclass
class Game:
    """Games where play begins, of S x S cells and N objects. On the host one game has no axis B.

    That is the state in which minigrid's reset leaves a level, or one that a walk has led to (walks.py).
    """

    cells: Any  # [B, S, S] int8 (down, across): EMPTY, WALL or FIRST + object; cells beyond the level are WALL
    kind: Any  # [B, N] int8 DOOR, KEY, BALL or BOX; 0: no object
    colour: Any  # [B, N] int8
    doors: Any  # [B, N] int8 bits OPEN and LOCKED
    contains: Any  # [B, N] int8 the object inside, or NOTHING
    known: Any  # [B, N] int16 cell in which the instruction knows the object (down * S + across), or NOTHING
    position: Any  # [B, 2] int32 of the agent: across, down
    direction: Any  # [B] int32 0 right, 1 down, 2 left, 3 up
    carrying: Any  # [B] int32 object, or NOTHING
    max_steps: Any  # [B] int32 primitive actions, after which minigrid cuts the episode off
    steps: Any  # [B] int32 primitive actions that have led here: 0 of a level as it begins
    atom: Any  # [B, 4] int8 NO_ATOM, GO_TO, PICK_UP, OPEN_IT or PUT_NEXT
    strict: Any  # [B, 4] bool: the wrong object is a failure
    named: Any  # [B, 4, 2, ceil(N / 32)] uint32: bits of the objects that fit the atom's first and second description
    order: Any  # [B] int8 ALONE, BEFORE (the first side first) or AFTER
    order_strict: Any  # [B] bool: the wrong order is a failure
    # What the verifier keeps (environment.State); of a level as it begins False and NOTHING.
    fulfilled: Any  # [B, 4] bool
    first_done: Any  # [B] bool
    carried: Any  # [B, 4] int8


@dataclass(frozen=True)
class Level:
    """One game and what is said about it."""

    name: str  # minigrid's id
    seed: int
    mission: str  # minigrid's instruction
    goal: str  # AgentBoard's: it does not tell the order
    game: Game  # NumPy, without the axis B


def minigrid() -> Any:
    """The package, with its levels registered. Raises InputError where it is not installed."""
    try:
        found = importlib.import_module("minigrid")
    except ImportError:
        raise InputError("BabyAI's levels are made by minigrid; pip install 'agemem_jax[babyai]'") from None
    if importlib.import_module("minigrid.envs.babyai.core.verifier").use_done_actions:
        raise InputError("BABYAI_DONE_ACTIONS is set, under which minigrid judges by other rules; unset it")
    return found


def make(name: str, seed: int) -> Any:
    """minigrid's environment of a level, reset.

    Raises:
      InputError: minigrid is missing, or has no BabyAI level of that name.
    """
    minigrid()
    gymnasium = importlib.import_module("gymnasium")
    if not name.startswith("BabyAI-") or name not in gymnasium.registry:
        near = [other for other in names() if other.rsplit("-", 1)[0] == name.rsplit("-", 1)[0]] or names()[:3]
        raise InputError(f"minigrid has no BabyAI level {name!r}; it has {', '.join(near)} and others")
    with contextlib.redirect_stdout(io.StringIO()):  # of the levels that it has thrown away
        environment = gymnasium.make(name, disable_env_checker=True).unwrapped
        environment.reset(seed=seed)
    return environment


def names() -> list[str]:
    """The ids of all BabyAI levels. Raises InputError where minigrid is missing."""
    minigrid()
    return [name for name in importlib.import_module("gymnasium").registry if name.startswith("BabyAI-")]


def read(name: str, seed: int, sizes: Sizes = Sizes()) -> Level:  # noqa: B008
    """The game that minigrid makes of a level's name and a seed.

    Raises:
      InputError: minigrid is missing, has no such level, or has made what the arrays do not hold.
    """
    return from_minigrid(make(name, seed), name, seed, sizes)


def stack(levels: Sequence[Level]) -> Game:
    """Their games, one a row: [B, ...]."""
    columns = {f.name: np.stack([getattr(level.game, f.name) for level in levels]) for f in fields(Game)}
    return Game(**columns)


def from_minigrid(environment: Any, name: str, seed: int, sizes: Sizes = Sizes()) -> Level:  # noqa: B008
    """A game of minigrid that has just been reset. Raises InputError as `read`."""
    where, grid = f"BabyAI level {name!r} with seed {seed}", environment.grid
    if max(grid.width, grid.height) > sizes.side:
        raise InputError(
            f"{where} has {grid.width} x {grid.height} cells, more than {sizes.side} a side; raise Sizes.side"
        )
    objects = _objects(environment, where)
    if len(objects) > sizes.objects:
        raise InputError(f"{where} has {len(objects)} objects, more than {sizes.objects}; raise Sizes.objects")
    number = {id(thing): i for i, thing in enumerate(objects)}

    def table(values: Iterable[int], fill: int, dtype: type) -> np.ndarray:
        column = np.full(sizes.objects, fill, dtype)
        column[: len(objects)] = list(values)
        return column

    cells = np.full((sizes.side, sizes.side), WALL, np.int8)
    for i, thing in enumerate(grid.grid):
        holds = EMPTY if thing is None else WALL if thing.type == "wall" else FIRST + number[id(thing)]
        cells[divmod(i, grid.width)] = holds
    doors = (OPEN * bool(x.is_open) + LOCKED * bool(x.is_locked) if x.type == "door" else 0 for x in objects)
    inside = (NOTHING if x.contains is None else number[id(x.contains)] for x in objects)
    known = {i: NOTHING for i in range(len(objects))}
    known |= {cells[i, j] - FIRST: i * sizes.side + j for i, j in np.argwhere(cells >= FIRST)}
    instruction = _instruction(environment.instrs, number, known, sizes, where)
    return Level(
        name=name,
        seed=seed,
        mission=environment.mission,
        goal=environment.mission.replace("then", "and").replace("after you", "and"),
        game=Game(
            cells=cells,
            kind=table((KINDS[x.type] for x in objects), 0, np.int8),
            colour=table((COLOURS.index(x.color) for x in objects), 0, np.int8),
            doors=table(doors, 0, np.int8),
            contains=table(inside, NOTHING, np.int8),
            known=table(known.values(), NOTHING, np.int16),
            position=np.array(environment.agent_pos, np.int32),
            direction=np.int32(environment.agent_dir),
            carrying=np.int32(NOTHING if environment.carrying is None else number[id(environment.carrying)]),
            max_steps=np.int32(environment.max_steps),
            steps=np.int32(0),
            fulfilled=np.zeros(ATOMS, bool),
            first_done=np.bool_(False),
            carried=np.full(ATOMS, NOTHING, np.int8),
            **instruction,
        ),
    )


def _objects(environment: Any, where: str) -> list[Any]:
    """All objects but walls: those in cells, then what is inside boxes, then what the agent carries."""
    objects, walls = [], set()
    for thing in environment.grid.grid:
        if thing is not None and thing.type == "wall":
            walls.add(thing.color)
        elif thing is not None:
            objects.append(thing)
    if environment.carrying is not None:
        objects.append(environment.carrying)
    objects += [thing.contains for thing in objects if thing.contains is not None]
    strange = {thing.type for thing in objects} - KINDS.keys() | walls - {"grey"}
    if strange:
        raise InputError(f"{where} holds {', '.join(sorted(strange))}, which the engine does not know; leave it out")
    return objects


def _instruction(instruction: Any, number: dict, known: dict, sizes: Sizes, where: str) -> dict[str, np.ndarray]:
    """The fields of Game from `atom` on; writes into `known` where descriptions know objects that lie in no cell."""
    kinds = {"GoToInstr": GO_TO, "PickupInstr": PICK_UP, "OpenInstr": OPEN_IT, "PutNextInstr": PUT_NEXT}
    order = {"BeforeInstr": BEFORE, "AfterInstr": AFTER}.get(type(instruction).__name__, ALONE)
    sides = [instruction] if order == ALONE else [instruction.instr_a, instruction.instr_b]
    atom, strict = np.full(ATOMS, NO_ATOM, np.int8), np.zeros(ATOMS, bool)
    named = np.zeros((ATOMS, 2, -(-sizes.objects // 32)), np.uint32)
    for first, side in enumerate(sides):
        pair = [side.instr_a, side.instr_b] if type(side).__name__ == "AndInstr" else [side]
        for slot, one in enumerate(pair, 2 * first):
            if type(one).__name__ not in kinds:
                raise InputError(f"{where} asks for {type(one).__name__}, which the engine does not know; leave it out")
            atom[slot], strict[slot] = kinds[type(one).__name__], getattr(one, "strict", False)
            descriptions = [getattr(one, x) for x in ("desc", "desc_move", "desc_fixed") if hasattr(one, x)]
            for j, description in enumerate(descriptions):
                for thing, (across, down) in zip(description.obj_set, description.obj_poss, strict=True):
                    if thing.type != "wall":
                        i = number[id(thing)]
                        named[slot, j, i // 32] |= np.uint32(1 << i % 32)
                        known[i] = down * sizes.side + across
                    elif atom[slot] != PICK_UP:  # no wall is ever picked up
                        raise InputError(f"{where} names walls in {one.__class__.__name__}; leave it out")
    return {
        "atom": atom,
        "strict": strict,
        "named": named,
        "order": np.int8(order),
        "order_strict": np.bool_(order != ALONE and instruction.strict),
    }
