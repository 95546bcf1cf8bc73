"""AgentBoard's path search on boards of bits.

Its search is a breadth-first one over (cell, direction) with steps in the order forward, left, right, in which a state
that waits in the queue is queued again by each later discoverer, which becomes its parent, until it is first taken out.
A layer of that queue is the list of all shortest paths to its states in lexicographic order. So it ends at the goal
state with the lexicographically first shortest path, and answers with the last shortest path to that state. (Steps
flip the parity of cell and direction, so no two states of a layer are neighbours.) Here that is found without a queue.

Boards are the agent's own: it stands in cell START of 8 x 8 and looks to the last row (cell = 8 * row + column). A set
of cells is [..., 2] uint32, bits 0 to 31 and 32 to 63; a set of states has one for each direction, [..., 4, 2]: ahead,
right, back, left.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIDE = 8
START = 1 * SIDE + 3
FORWARD, LEFT, RIGHT = 0, 1, 2  # steps of a path, in their lexicographic order
FEW = 4  # the share of rows that is few
_STEP = np.array([SIDE, 1, -SIDE, -1])  # to the cell ahead, by direction
_FIRST_COLUMN, _LAST_COLUMN = 0x01010101, 0x80808080


def board(cells: jax.Array) -> jax.Array:
    """Cells [B, 64] bool as a set [B, 2]."""
    bits = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
    return jnp.where(cells.reshape(-1, 2, 32), bits, 0).sum(-1, dtype=jnp.uint32)


def one(cell: jax.Array) -> jax.Array:
    """The set [..., 2] of one cell [...]; none if it is negative."""
    word = jnp.uint32(1) << (cell & 31).astype(jnp.uint32)
    return jnp.where((cell[..., None] >> 5) == jnp.arange(2), word[..., None], 0)


def holds(cells: jax.Array, cell: jax.Array) -> jax.Array:
    """Whether sets [B, 2] hold cells [B, n], or static ones [n]: [B, n] bool."""
    cell = jnp.broadcast_to(cell, (len(cells), cell.shape[-1]))
    word = jnp.where(cell >> 5 == 0, cells[:, :1], cells[:, 1:])
    return (word >> (cell & 31).astype(jnp.uint32)) & 1 > 0


def shift(cells: jax.Array, direction: int) -> jax.Array:
    """Sets [..., 2] moved by one cell; what leaves the board is gone."""
    if direction == 1:
        return (cells & ~jnp.uint32(_LAST_COLUMN)) << 1
    if direction == 3:
        return (cells & ~jnp.uint32(_FIRST_COLUMN)) >> 1
    low, high = cells[..., 0], cells[..., 1]
    if direction == 0:
        return jnp.stack([low << SIDE, high << SIDE | low >> (32 - SIDE)], -1)
    return jnp.stack([low >> SIDE | high << (32 - SIDE), high >> SIDE], -1)


def reached(free: jax.Array) -> jax.Array:
    """The cells [B, 2] that can be walked to over free ones [B, 2]."""

    def grow(carry):
        cells, _ = carry
        grown = (cells | shift(cells, 0) | shift(cells, 1) | shift(cells, 2) | shift(cells, 3)) & free
        return grown, (grown != cells).any()

    begin = jnp.broadcast_to(one(jnp.array(START)), free.shape)
    return lax.while_loop(lambda carry: carry[1], grow, (begin, jnp.array(True)))[0]


def facing(cell: jax.Array, free: jax.Array) -> jax.Array:
    """The states [B, 4, 2] from which cell [B] is ahead."""
    return jnp.stack([shift(one(cell), (d + 2) % 4) & free for d in range(4)], 1)


def distances(goals: jax.Array, free: jax.Array, on: jax.Array) -> jax.Array:
    """How far it is to the goals [B, 4, 2] over free cells [B, 2], as far as from START; of rows `on` [B] alone.

    Returns [B, 4, 4, 2] uint32: of each state whether it is known, and the three lowest bits of its distance.
    Distances of neighbours differ by 1 down to 5 up, as a step is undone by five (turn twice, step, turn twice): their
    lowest three bits tell which of them is nearer.
    """
    goals = jnp.where(on[:, None, None], goals, 0)

    def grow(carry):
        known, edge, planes, depth = carry
        turned = jnp.roll(edge, 1, 1) | jnp.roll(edge, -1, 1)
        walked = jnp.stack([shift(edge[:, d], (d + 2) % 4) for d in range(4)], 1)
        edge = (turned | walked) & free[:, None] & ~known
        edge = jnp.where(_at_start(known)[:, None, None], 0, edge)
        bits = (depth >> jnp.arange(3)) & 1 > 0
        planes |= jnp.where(bits[:, None, None], edge[:, None], 0)
        return known | edge, edge, planes, depth + 1

    planes = jnp.zeros((len(goals), 3, 4, 2), jnp.uint32)
    known, _, planes, _ = lax.while_loop(lambda carry: (carry[1] > 0).any(), grow, (goals, goals, planes, jnp.array(1)))
    return jnp.concatenate([known[:, None], planes], 1)


def _at_start(states: jax.Array) -> jax.Array:
    return states[:, 0, 0] >> START & 1 > 0


def next_step(to: jax.Array, cell: jax.Array, direction: jax.Array, last: bool) -> tuple[jax.Array, ...]:
    """The lexicographically first, or last, step of a shortest path, from states that lead to a goal by `to`.

    Returns:
      step [B] FORWARD, LEFT or RIGHT (meaningless at a goal), and cell [B] and direction [B] after it.
    """
    planes = to.reshape(-1, 4, 8)

    def read(cell, direction):
        word = jnp.take_along_axis(planes, (direction * 2 + (cell >> 5))[:, None, None], 2)[..., 0]
        bits = (word >> (cell & 31).astype(jnp.uint32)[:, None] & 1).astype(jnp.int32)
        return bits[:, 0] > 0, bits[:, 1] + 2 * bits[:, 2] + 4 * bits[:, 3]

    ahead = cell + jnp.asarray(_STEP)[direction]
    column = cell % SIDE
    leaves = (ahead < 0) | (ahead >= SIDE * SIDE)
    leaves |= ((direction == 1) & (column == SIDE - 1)) | ((direction == 3) & (column == 0))
    left, right = (direction + 3) % 4, (direction + 1) % 4
    after = (jnp.where(leaves, cell, ahead), direction), (cell, left), (cell, right)
    _, here = read(cell, direction)
    nearer = []
    for state in after:
        known, there = read(*state)
        nearer.append(known & (there == (here + 7) % 8))
    nearer[0] &= ~leaves
    order = (RIGHT, LEFT, FORWARD) if last else (FORWARD, LEFT, RIGHT)
    choice = jnp.select([nearer[i] for i in order], [jnp.full_like(cell, i) for i in order], FORWARD)
    new_cell = jnp.where((choice == FORWARD) & ~leaves, ahead, cell)
    return choice, new_cell, jnp.select([choice == LEFT, choice == RIGHT], [left, right], direction)


def at_goal(goals: jax.Array, cell: jax.Array, direction: jax.Array) -> jax.Array:
    """Whether states are among the goals [B, 4, 2]."""
    word = jnp.take_along_axis(goals.reshape(-1, 8), (direction * 2 + (cell >> 5))[:, None], 1)[:, 0]
    return word >> (cell & 31).astype(jnp.uint32) & 1 > 0


def goal_of(goals: jax.Array, free: jax.Array, on: jax.Array) -> jax.Array:
    """The goal state at which AgentBoard's search ends, as a set [B, 4, 2]; the rows `on` must have a path."""
    to = distances(goals, free, on)

    def walk(fixed, carry):
        to, goals = fixed
        cell, direction, moving = carry
        _, new_cell, new_direction = next_step(to, cell, direction, last=False)
        cell, direction = jnp.where(moving, new_cell, cell), jnp.where(moving, new_direction, direction)
        return cell, direction, moving & ~at_goal(goals, cell, direction)

    begin = jnp.full(len(goals), START), jnp.zeros(len(goals), jnp.int32)
    begin = *begin, on & ~at_goal(goals, *begin)
    cell, direction, _ = until_few(walk, (to, goals), begin, alive=2)
    return jnp.where((direction[:, None] == jnp.arange(4))[..., None], one(cell)[:, None], 0)


def until_few(one, fixed, carry, alive: int):
    """Repeats carry = one(fixed, carry) until no row is alive; `carry[alive]` [B] bool tells which rows are.

    Most rows are done soon. When few are left, these go on by themselves, in arrays of their own; so do few of them.
    """
    rows = len(carry[alive])
    few = rows // FEW if rows >= 8 * FEW else 0

    def loop(fixed, carry, most):
        return lax.while_loop(lambda carry: carry[alive].sum() > most, lambda carry: one(fixed, carry), carry)

    carry = loop(fixed, carry, few)
    if few == 0:
        return carry
    which = jnp.nonzero(carry[alive], size=few, fill_value=rows)[0]  # rows beyond the last one: nobody
    pick = lambda x: jnp.asarray(x).at[which].get(mode="fill", fill_value=0)  # noqa: E731
    left = until_few(one, *jax.tree.map(pick, (fixed, carry)), alive)
    return jax.tree.map(lambda x, new: x.at[which].set(new, mode="drop", unique_indices=True), carry, left)
