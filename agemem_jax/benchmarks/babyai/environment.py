"""minigrid's engine for BabyAI on the device: primitive actions, the verifier of instructions, and the agent's view.

Everything is as in minigrid 3.2.0, step by step, also what is odd:

- Where the objects of a description are is looked up at the start and after a `drop` alone. When an object has been
  picked up, facing the cell where it was still is "going to" it.
- "Pick up" and "put next to" compare with what was carried when that atom was last verified; an atom that had not been
  begun knows of nothing, also when the agent carries something.
- Descriptions mean the objects that fitted at the start, not others that look the same; a box is gone when it is
  toggled, and what was inside belongs to no description.
- An "and" forgets the failures of its strict atoms.
- Nothing ends by itself: after success, failure or the limit one may go on, and is verified on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.benchmarks.babyai.levels import (
    AFTER,
    ALONE,
    BALL,
    BEFORE,
    BOX,
    DOOR,
    EMPTY,
    FIRST,
    GO_TO,
    KEY,
    LOCKED,
    NO_ATOM,
    NOTHING,
    OPEN,
    OPEN_IT,
    PICK_UP,
    PUT_NEXT,
    WALL,
    Game,
)

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)  # primitive actions
ACROSS, DOWN = np.array([1, 0, -1, 0]), np.array([0, 1, 0, -1])  # a step in each direction
VIEW = 7  # cells across the view; the agent stands in the middle of its last row
MIDDLE, LAST = VIEW // 2, VIEW - 1
# What a cell of the view shows: nothing seen, nothing there, a wall, or FIRST_LOOK + what an object looks like. That is
# one of LOOKS: key, ball and box in each colour, then the door of each colour open, closed and locked.
UNSEEN, SEEN_EMPTY, SEEN_WALL, FIRST_LOOK = range(4)
CARRIED = 18  # looks of what can be carried
LOOKS = 36
_OPAQUE = 64  # added to what nobody sees through
_CONTINUE, _SUCCESS, _FAILURE = range(3)


def _view_cells(step: np.ndarray) -> np.ndarray:
    """How far each cell of the view is from the agent along an axis, [direction, 49] int32, row by row."""
    ahead, aside = (x.ravel() for x in np.mgrid[LAST:-1:-1, -MIDDLE : MIDDLE + 1])
    return (step[:, None] * ahead + np.roll(step, -1)[:, None] * aside).astype(np.int32)


_VIEW_ACROSS, _VIEW_DOWN = _view_cells(ACROSS), _view_cells(DOWN)


def view_cells(direction: int) -> tuple[np.ndarray, np.ndarray]:
    """How far the cells of the view are from the agent, across and down: [49] each, row by row. On the host."""
    return _VIEW_ACROSS[direction], _VIEW_DOWN[direction]


@struct.dataclass
class State:
    """What play has made of games. S and N as in `Game`."""

    cells: jax.Array  # [B, S * S] int8 as in Game
    place: jax.Array  # [B, N] int16 the cell that an object is in, or NOTHING
    known: jax.Array  # [B, N] int16 the cell in which the instruction knows it, or NOTHING
    doors: jax.Array  # [B, N] int8 bits
    position: jax.Array  # [B, 2] int32 across, down
    direction: jax.Array  # [B] int32
    carrying: jax.Array  # [B] int32 object, or NOTHING
    steps: jax.Array  # [B] int32 primitive actions so far
    fulfilled: jax.Array  # [B, 4] bool: this atom of an "and" has been
    first_done: jax.Array  # [B] bool: the side that comes first has been
    carried: jax.Array  # [B, 4] int8 what was carried when the atom was last verified, or NOTHING


@struct.dataclass
class Verdict:
    """What minigrid says of a primitive action. Of rows that did not act all is False."""

    success: jax.Array  # [B] bool: the reward is above 0, namely 1 - 0.9 * steps / max_steps
    terminated: jax.Array  # [B] bool: success or failure
    truncated: jax.Array  # [B] bool: max_steps are used up


def start(game: Game) -> State:
    """Games where play begins."""
    batch, side, _ = game.cells.shape
    cells = jnp.asarray(game.cells).reshape(batch, side * side)
    objects = game.kind.shape[1]
    put = lambda row, cell: row.at[cell.astype(jnp.int32) - FIRST].set(jnp.arange(side * side), mode="drop")  # noqa: E731
    target = jnp.where(cells >= FIRST, cells, FIRST + objects)
    place = jax.vmap(put)(jnp.full((batch, objects), NOTHING), target)
    return State(
        cells=cells,
        place=place.astype(jnp.int16),
        known=jnp.asarray(game.known),
        doors=jnp.asarray(game.doors),
        position=jnp.asarray(game.position),
        direction=jnp.asarray(game.direction),
        carrying=jnp.asarray(game.carrying),
        steps=jnp.asarray(game.steps),
        fulfilled=jnp.asarray(game.fulfilled),
        first_done=jnp.asarray(game.first_done),
        carried=jnp.asarray(game.carried),
    )


def act(game: Game, state: State, action: jax.Array, on: jax.Array) -> tuple[State, Verdict]:
    """One primitive action [B] int32 in the rows `on` [B]; the others stay as they are."""
    side, rows = game.cells.shape[1], jnp.arange(len(action))
    front = state.position + _step(state.direction)
    ahead = front[:, 1] * side + front[:, 0]
    cell = state.cells[rows, ahead].astype(jnp.int32)
    item, ids = cell - FIRST, jnp.arange(game.kind.shape[1])
    is_item, is_carried = ids == item[:, None], ids == state.carrying[:, None]  # of no object: nowhere
    of_item = lambda x, of=is_item: jnp.where(of, x, 0).sum(1)  # noqa: E731
    kind, bits = of_item(game.kind), of_item(state.doors)
    does = lambda which: on & (action == which)  # noqa: E731

    moves = does(FORWARD) & ((cell == EMPTY) | ((kind == DOOR) & (bits & OPEN > 0)))
    takes = does(PICKUP) & ((kind == KEY) | (kind == BALL) | (kind == BOX)) & (state.carrying < 0)
    drops = does(DROP) & (cell == EMPTY) & (state.carrying >= 0)
    has_key = of_item(game.kind, is_carried) == KEY
    has_key &= of_item(game.colour, is_carried) == of_item(game.colour)
    turns = does(TOGGLE) & (kind == DOOR) & (has_key | (bits & LOCKED == 0))
    opens = does(TOGGLE) & (kind == BOX)
    inside = jnp.where(opens, jnp.where(is_item, game.contains, 0).sum(1), NOTHING)

    left_behind = jnp.where(drops, FIRST + state.carrying, jnp.where(opens & (inside >= 0), FIRST + inside, EMPTY))
    changed = takes | drops | opens
    cells = state.cells.at[rows, jnp.where(changed, ahead, side * side)].set(
        left_behind.astype(jnp.int8), mode="drop", unique_indices=True
    )
    place = jnp.where(is_item & (takes | opens)[:, None], NOTHING, state.place)
    appears = (is_carried & drops[:, None]) | (ids == inside[:, None])
    place = jnp.where(appears, ahead[:, None], place).astype(jnp.int16)
    new_bits = jnp.where(bits & LOCKED > 0, OPEN, bits ^ OPEN)
    after = state.replace(
        cells=cells,
        place=place,
        known=jnp.where(does(DROP)[:, None], place, state.known),
        doors=jnp.where(is_item & turns[:, None], new_bits[:, None], state.doors).astype(jnp.int8),
        position=jnp.where(moves[:, None], front, state.position),
        direction=(state.direction + does(RIGHT) - does(LEFT)) % 4,
        carrying=jnp.where(takes, item, jnp.where(drops, NOTHING, state.carrying)),
        steps=state.steps + on,
    )
    after, status = _verify(game, after, action, on)
    return after, Verdict(
        success=status == _SUCCESS,
        terminated=status != _CONTINUE,
        truncated=on & (after.steps >= game.max_steps),
    )


def _verify(game: Game, state: State, action: jax.Array, on: jax.Array) -> tuple[State, jax.Array]:
    """The state with what the verifier keeps, and what it says [B]: _CONTINUE where rows are not `on`."""
    results = _atoms(game, state, action)
    pair = game.atom.reshape(-1, 2, 2)[..., 1] != NO_ATOM  # [B, side]: two atoms, joined by "and"
    is_after = game.order == AFTER

    def side(number: jax.Array, now: jax.Array, kept: State) -> tuple[State, jax.Array]:
        """Verifies the side [B] of the rows `now`; what it says is read there alone."""
        joined = jnp.take_along_axis(pair, number[:, None], 1)[:, 0]
        mine = (jnp.arange(4) // 2 == number[:, None]) & (game.atom != NO_ATOM) & now[:, None]
        mine &= ~(joined[:, None] & kept.fulfilled)
        fulfilled = kept.fulfilled | (mine & joined[:, None] & (results == _SUCCESS))
        of_side = lambda x: jnp.take_along_axis(x.reshape(-1, 2, 2), number[:, None, None], 1)[:, 0]  # noqa: E731
        both = jnp.where(of_side(fulfilled).all(1), _SUCCESS, _CONTINUE)
        carried = jnp.where(mine, state.carrying[:, None], kept.carried).astype(jnp.int8)
        status = jnp.where(joined, both, of_side(results)[:, 0])
        return kept.replace(fulfilled=fulfilled, carried=carried), status

    alone = game.order == ALONE
    begins = on & ~state.first_done
    state, first = side(is_after.astype(jnp.int32), begins, state)
    first_done = state.first_done | (begins & ~alone & (first == _SUCCESS))
    early = begins & ~alone & game.order_strict & (first == _CONTINUE)
    state, second = side((game.order == BEFORE).astype(jnp.int32), (on & first_done) | early, state)
    status = jnp.where(first_done, second, first)
    status = jnp.where(early & (second == _SUCCESS), _FAILURE, status)
    return state.replace(first_done=first_done), jnp.where(on, status, _CONTINUE)


def _atoms(game: Game, state: State, action: jax.Array) -> jax.Array:
    """What each atom says of the action that has led to a state, [B, 4], were it verified."""
    side, objects = game.cells.shape[1], game.kind.shape[1]
    action, holds = action[:, None], state.carrying[:, None]
    front = state.position + _step(state.direction)
    ahead = front[:, 1] * side + front[:, 0]
    item = jnp.take_along_axis(state.cells, ahead[:, None], 1).astype(jnp.int32) - FIRST
    first, second = game.named[:, :, 0], game.named[:, :, 1]  # [B, 4, words]

    goes = _any(first, state.known == ahead[:, None])
    picks = (action == PICKUP) & (holds >= 0)
    picked = picks & (state.carried < 0) & _has(first, holds)
    is_item = jnp.arange(objects) == item
    tries = (action == TOGGLE) & (is_item & (game.kind == DOOR)).any(1, keepdims=True)
    opened = tries & (is_item & (state.doors & OPEN > 0)).any(1, keepdims=True) & _has(first, item)
    # What an atom remembers is what was in hand before this action: if it lies ahead now, it has been dropped there.
    across, known = front[:, :1], state.known.astype(jnp.int32)
    place = known - front[:, 1:] * side  # counted from the row ahead
    aside = (jnp.abs(place - across) == 1) & (place >= 0) & (place < side)
    next_to = (known >= 0) & (aside | (jnp.abs(place - across) == side))
    lies = (action == DROP) & (item >= 0) & (state.carried == item) & _has(first, item)
    put = lies & _any(second, next_to)

    kinds = [game.atom == kind for kind in (GO_TO, PICK_UP, OPEN_IT, PUT_NEXT)]
    success = jnp.select(kinds, [goes, picked, opened, put])
    failure = game.strict & jnp.where(game.atom == OPEN_IT, tries, (game.atom != GO_TO) & picks)
    return jnp.where(success, _SUCCESS, jnp.where(failure, _FAILURE, _CONTINUE))


def _any(named: jax.Array, mask: jax.Array) -> jax.Array:
    """Whether sets [B, 4, words] hold any of the objects of a mask [B, N]: [B, 4] bool."""
    words = named.shape[-1]
    mask = jnp.pad(mask, [(0, 0), (0, 32 * words - mask.shape[1])]).reshape(-1, words, 32)
    bits = jnp.where(mask, jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32), 0).sum(-1, dtype=jnp.uint32)
    return ((named & bits[:, None]) > 0).any(-1)


def _has(named: jax.Array, one: jax.Array) -> jax.Array:
    """Whether sets [B, 4, words] hold the object `one` [B, 1], which may be none: [B, 4] bool."""
    word = jnp.where(one // 32 == jnp.arange(named.shape[-1]), jnp.uint32(1) << (one % 32).astype(jnp.uint32), 0)
    return ((named & word[:, None]) > 0).any(-1)


def _step(direction: jax.Array) -> jax.Array:
    """One cell ahead: [B] -> [B, 2] int32 across, down."""
    return jnp.stack([jnp.asarray(ACROSS)[direction], jnp.asarray(DOWN)[direction]], -1).astype(jnp.int32)


def see(game: Game, state: State) -> jax.Array:
    """The agent's view [B, 7, 7] int8 (row, column; the agent looks to row 0): UNSEEN, ... FIRST_LOOK + look."""
    side = game.cells.shape[1]
    across = state.position[:, :1] + jnp.asarray(_VIEW_ACROSS)[state.direction]
    down = state.position[:, 1:] + jnp.asarray(_VIEW_DOWN)[state.direction]
    inside = (across >= 0) & (across < side) & (down >= 0) & (down < side)
    holds = jnp.take_along_axis(state.cells, jnp.where(inside, down * side + across, 0), 1, mode="promise_in_bounds")
    holds = jnp.where(inside, holds, WALL).astype(jnp.int32)
    looks = look(game, state)
    shuts = (game.kind == DOOR) & (state.doors & OPEN == 0)
    shows = FIRST_LOOK + looks + jnp.where(shuts, _OPAQUE, 0)
    fixed = jnp.broadcast_to(jnp.array([SEEN_EMPTY, SEEN_WALL + _OPAQUE]), (len(looks), 2))
    shows = jnp.concatenate([fixed, shows], 1).astype(jnp.int8)
    shown = jnp.take_along_axis(shows, holds, 1, mode="promise_in_bounds")
    shown = lax.optimization_barrier(shown)  # else XLA gathers again for each of its uses
    visible = _visible((shown < _OPAQUE).reshape(-1, VIEW, VIEW)).reshape(-1, VIEW * VIEW)
    held = jnp.take_along_axis(shows, FIRST + jnp.maximum(state.carrying, 0)[:, None], 1)
    shown = jnp.where(visible, shown & (_OPAQUE - 1), UNSEEN)
    own = jnp.where(state.carrying[:, None] >= 0, held, SEEN_EMPTY)
    shown = jnp.where(jnp.arange(VIEW * VIEW) == LAST * VIEW + MIDDLE, own, shown)
    return shown.astype(jnp.int8).reshape(-1, VIEW, VIEW)


def first_view(game: Game, state: State) -> jax.Array:
    """The view where play begins. minigrid's reset returns one in which what the agent carries lies where it did."""
    rows, carries = jnp.arange(len(state.carrying)), (state.carrying >= 0) & (state.steps == 0)
    lay = jnp.take_along_axis(state.known, jnp.maximum(state.carrying, 0)[:, None], 1)[:, 0].astype(jnp.int32)
    lay = jnp.where(carries & (lay >= 0), lay, state.cells.shape[1])
    cells = state.cells.at[rows, lay].set((FIRST + state.carrying).astype(jnp.int8), mode="drop")
    return see(game, state.replace(cells=cells, carrying=jnp.where(carries, NOTHING, state.carrying)))


def look(game: Game, state: State) -> jax.Array:
    """What each object looks like, [B, N] int8 below LOOKS."""
    door = CARRIED + 3 * game.colour + jnp.where(state.doors & OPEN > 0, 0, jnp.where(state.doors & LOCKED > 0, 2, 1))
    return jnp.where(game.kind == DOOR, door, 6 * (game.kind - KEY) + game.colour).astype(jnp.int8)


def _rows_of_sight() -> np.ndarray:
    """[128, 128] int32: by the bits of a row that are seen from the row before, and by those of its clear cells, all
    that are seen in it, and (seven bits higher) those of the next row that are seen through it.

    minigrid's rule: sight spreads to the right and then to the left through clear cells, and from each of them into the
    next row: straight and towards the side to which it spreads. A cell at the end of the row passes on nothing outward.
    """
    size, every = 1 << VIEW, (1 << VIEW) - 1
    sees, clear = np.arange(size)[:, None], np.arange(size)[None]
    sees = np.broadcast_to(sees, (size, size))
    for _ in range(VIEW - 1):
        sees = sees | ((sees & clear) << 1 & every)
    right = sees & clear & (every >> 1)
    for _ in range(VIEW - 1):
        sees = sees | (sees & clear) >> 1
    left = sees & clear & (every ^ 1)
    return (sees | (right | right << 1 | left | left >> 1) << VIEW).astype(np.int32)


_SIGHT = _rows_of_sight()


def _visible(clear: jax.Array) -> jax.Array:
    """Which cells the agent sees through the clear ones, [B, 7, 7] of both; from its own row on."""
    bits = 1 << jnp.arange(VIEW)
    through = jnp.where(clear, bits, 0).sum(-1)
    table, rows, sees = jnp.asarray(_SIGHT), [], jnp.full(len(clear), 1 << MIDDLE)
    for row in reversed(range(VIEW)):
        found = table[sees, through[:, row]]
        rows.append(found)
        sees = found >> VIEW
    return (jnp.stack(rows[::-1], 1)[..., None] & bits) > 0


def image(view: jax.Array) -> jax.Array:
    """minigrid's image of a view: [B, 7, 7] -> [B, 7, 7, 3] uint8, column first; type, colour, state."""
    table = np.zeros((FIRST_LOOK + LOOKS, 3), np.uint8)
    table[SEEN_EMPTY], table[SEEN_WALL] = (1, 0, 0), (2, 5, 0)
    for i in range(LOOKS):
        door = i - CARRIED
        table[FIRST_LOOK + i] = (DOOR, door // 3, door % 3) if door >= 0 else (KEY + i // 6, i % 6, 0)
    return jnp.asarray(table)[jnp.swapaxes(view, 1, 2)]
