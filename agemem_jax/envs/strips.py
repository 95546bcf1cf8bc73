"""STRIPS on the device: a state is bits, 32 facts to a word, and an action four rows of bits.

Arrays lead with games, so the rows of a batch may be games of different domains and sizes. The sizes are static; what
is left over is filled with facts that never hold and actions that can never be taken.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.data.pddl import Grounded
from agemem_jax.envs.text import covering
from agemem_jax.errors import InputError

BITS = 32


@dataclass(frozen=True)
class Sizes:
    """How much a game may have."""

    words: int  # Fw: of 32 facts each
    operators: int  # A
    negative: bool  # whether an action may ask that something be false


@struct.dataclass
class Strips:
    """Games. Facts i of an array [..., Fw] is bit i % 32 of word i // 32."""

    init: jax.Array  # [B, Fw] uint32
    goal: jax.Array  # [B, Fw] uint32
    goals: jax.Array  # [B] int32 conditions of the goal, those that can never be met included
    pre: jax.Array  # [B, A, Fw] uint32 what must hold
    neg: jax.Array  # [B, A, Fw] uint32 what must not; [B, 0, Fw] if no action of any game asks for that
    add: jax.Array  # [B, A, Fw] uint32
    delete: jax.Array  # [B, A, Fw] uint32
    there: jax.Array  # [B, A] bool: it is an action


def sizes_for(games: list[Grounded]) -> Sizes:
    """The smallest sizes that hold all games."""
    return Sizes(
        words=max(-(-len(game.facts) // BITS) for game in games),
        operators=max(max(len(game.operators) for game in games), 1),
        negative=any(op.negative for game in games for op in game.operators),
    )


def tables(game: Grounded, sizes: Sizes, where: str) -> Strips:
    """One game as arrays without the rows axis, on the host; `where` names it in errors.

    Raises:
      InputError: the game exceeds the sizes.
    """
    needs = sizes_for([game])
    for what, has, most in (
        ("facts", len(game.facts), sizes.words * BITS),
        ("actions", needs.operators, sizes.operators),
        ("actions that ask that something be false", int(needs.negative), int(sizes.negative)),
    ):
        if has > most:
            raise InputError(f"{where} has {has} {what}, more than the {most} there is room for; enlarge the sizes")
    operators = game.operators
    rows = lambda sets: rows_of(sets, sizes.operators, sizes.words)  # noqa: E731
    return Strips(
        init=rows_of([game.init], 1, sizes.words)[0],
        goal=rows_of([game.goal], 1, sizes.words)[0],
        goals=np.int32(game.goals),
        pre=rows([op.positive for op in operators]),
        neg=rows([op.negative for op in operators])[: sizes.operators if sizes.negative else 0],
        add=rows([op.add for op in operators]),
        delete=rows([op.delete for op in operators]),
        there=np.arange(sizes.operators) < len(operators),
    )


def applicable(game: Strips, facts: jax.Array) -> jax.Array:
    """Which actions can be taken in states [B, Fw]: [B, A] bool."""
    lacks = (game.pre & ~facts[:, None]) != 0
    can = game.there & ~lacks.any(-1)
    if game.neg.shape[1]:
        can &= ~((game.neg & facts[:, None]) != 0).any(-1)
    return can


def apply(game: Strips, facts: jax.Array, operator: jax.Array, on: jax.Array) -> jax.Array:
    """States [B, Fw] after the actions [B] int32 of rows `on` [B], whether or not they can be taken."""
    pick = lambda masks: jnp.take_along_axis(masks, operator[:, None, None], 1)[:, 0]  # noqa: E731
    return jnp.where(on[:, None], (facts & ~pick(game.delete)) | pick(game.add), facts)


def met(game: Strips, facts: jax.Array) -> jax.Array:
    """Conditions of the goal that hold in states [B, Fw]: [B] int32. The goal is reached if they are `goals`."""
    return lax.population_count(game.goal & facts).astype(jnp.int32).sum(-1)


def unpack(facts: jax.Array) -> jax.Array:
    """States [..., Fw] uint32 as [..., Fw * 32] bool."""
    bits = facts[..., None] >> jnp.arange(BITS, dtype=jnp.uint32) & 1
    return bits.astype(bool).reshape(*facts.shape[:-1], -1)


def pack(facts: jax.Array) -> jax.Array:
    """[..., n] bool as [..., ceil(n / 32)] uint32."""
    facts = jnp.pad(facts, [(0, 0)] * (facts.ndim - 1) + [(0, -facts.shape[-1] % BITS)])
    bits = facts.reshape(*facts.shape[:-1], -1, BITS).astype(jnp.uint32)
    return (bits << jnp.arange(BITS, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def first(bits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` ones of bits [B, w] uint32: their numbers [B, count], and whether there are so many."""
    bits = lax.optimization_barrier(bits)  # else XLA makes them again for each of their uses
    ones = lax.population_count(bits).astype(jnp.int32)
    ends = jnp.cumsum(ones, axis=1)
    wanted = jnp.arange(count)
    word = jnp.minimum(covering(ends, count), bits.shape[1] - 1)
    pick = lambda x: jnp.take_along_axis(x, word, 1, mode="promise_in_bounds")  # noqa: E731
    left, rest, place = wanted - pick(ends - ones), pick(bits), jnp.zeros_like(word)
    for half in (16, 8, 4, 2, 1):  # the `left`-th one of a word: is it in its lower half?
        lower = lax.population_count(rest & np.uint32(2**half - 1)).astype(jnp.int32)
        above = left >= lower
        left, place = jnp.where(above, left - lower, left), jnp.where(above, place + half, place)
        rest = jnp.where(above, rest >> half, rest)
    return word * BITS + place, wanted < ends[:, -1:]


def rows_of(sets: list[frozenset[int]], rows: int, words: int) -> np.ndarray:
    """Sets of numbers as bits [rows, words] uint32, on the host; rows without a set are empty."""
    out = np.zeros((rows, words * BITS), bool)
    for row, numbers in zip(out, sets, strict=False):
        row[list(numbers)] = True
    return np.packbits(out, axis=1, bitorder="little").view("<u4").astype(np.uint32)
