"""STRIPS on the device: a state is bits, 32 facts to a word, and an action four rows of bits.

Arrays lead with games, so the rows of a batch may be games of different domains and sizes. The sizes are static; what
is left over is filled with facts that never hold and actions that can never be taken.
"""

from collections.abc import Collection, Sequence
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
    conditions: int = 0  # of an action
    changes: int = 0  # facts that an action changes

    @property
    def planes(self) -> int:
        """P, the bits of how many conditions an action lacks; one that is not there lacks one."""
        return max(self.conditions, 1).bit_length()


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
    asking: jax.Array  # [B, Fw * 32, Aw] uint32 bits of the actions that ask for each fact
    refusing: jax.Array  # [B, Fw * 32, Aw] uint32 of those that ask that it be false; [B, 0, Aw] if none does


def sizes_for(games: list[Grounded]) -> Sizes:
    """The smallest sizes that hold all games."""
    return Sizes(
        words=max(-(-len(game.facts) // BITS) for game in games),
        operators=max(max(len(game.operators) for game in games), 1),
        negative=any(op.negative for game in games for op in game.operators),
        conditions=max((len(op.positive) + len(op.negative) for game in games for op in game.operators), default=0),
        changes=max((len(op.add | op.delete) for game in games for op in game.operators), default=0),
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
        ("conditions of an action", needs.conditions, sizes.conditions),
        ("facts that an action changes", needs.changes, sizes.changes),
    ):
        if has > most:
            raise InputError(f"{where} has {has} {what}, more than the {most} there is room for; enlarge the sizes")
    operators = game.operators
    rows = lambda sets: rows_of(sets, sizes.operators, sizes.words)  # noqa: E731
    facts = sizes.words * BITS

    def with_fact(sets: list[frozenset[int]], facts: int) -> np.ndarray:
        """The actions in whose sets each fact is, as bits."""
        actions = [set() for _ in range(facts)]
        for i, one in enumerate(sets):
            for fact in one:
                actions[fact].add(i)
        return rows_of(actions, facts, -(-sizes.operators // BITS))

    return Strips(
        init=rows_of([game.init], 1, sizes.words)[0],
        goal=rows_of([game.goal], 1, sizes.words)[0],
        goals=np.int32(game.goals),
        pre=rows([op.positive for op in operators]),
        neg=rows([op.negative for op in operators])[: sizes.operators if sizes.negative else 0],
        add=rows([op.add for op in operators]),
        delete=rows([op.delete for op in operators]),
        there=np.arange(sizes.operators) < len(operators),
        asking=with_fact([op.positive for op in operators], facts),
        refusing=with_fact([op.negative for op in operators], facts if sizes.negative else 0),
    )


def lacking(game: Strips, facts: jax.Array, planes: int) -> jax.Array:
    """How many conditions each action lacks in states [B, Fw], bit by bit: [B, P, Aw] uint32, the lowest bits first."""
    ones = lambda x: lax.population_count(x).astype(jnp.int32).sum(-1)  # noqa: E731
    count = ones(game.pre & ~facts[:, None]) + ~game.there
    if game.neg.shape[1]:
        count += ones(game.neg & facts[:, None])
    return jnp.stack([pack(count >> plane & 1 > 0) for plane in range(planes)], 1)


def lacking_after(game: Strips, lacks: jax.Array, before: jax.Array, after: jax.Array, changes: int) -> jax.Array:
    """`lacking` in states after [B, Fw], from that in those before them; so many facts differ at most."""
    fact, there = first(before ^ after, changes)
    rows = lambda x: jnp.where(there[..., None], jnp.take_along_axis(x, fact[..., None], 1, mode="clip"), 0)  # noqa: E731
    came = holds(after, fact)
    counts = [(rows(game.asking), came)]
    if game.refusing.shape[1]:
        counts.append((rows(game.refusing), ~came))
    planes = [lacks[:, i] for i in range(lacks.shape[1])]
    for actions, less in lax.optimization_barrier(counts):
        for i in range(changes):
            carry, flips = actions[:, i], less[:, i, None]
            for k, plane in enumerate(planes):
                planes[k] = plane ^ carry
                carry &= jnp.where(flips, ~plane, plane)
    return jnp.stack(planes, 1)


def can_be_taken(lacks: jax.Array) -> jax.Array:
    """The actions that lack nothing: [B, P, Aw] -> [B, Aw] uint32."""
    return ~lax.reduce(lacks, np.uint32(0), lax.bitwise_or, (1,))


def apply(game: Strips, facts: jax.Array, operator: jax.Array, on: jax.Array) -> jax.Array:
    """States [B, Fw] after the actions [B] int32 of rows `on` [B], whether or not they can be taken."""
    pick = lambda masks: jnp.take_along_axis(masks, operator[:, None, None], 1)[:, 0]  # noqa: E731
    return jnp.where(on[:, None], (facts & ~pick(game.delete)) | pick(game.add), facts)


def met(game: Strips, facts: jax.Array) -> jax.Array:
    """Conditions of the goal that hold in states [B, Fw]: [B] int32. The goal is reached if they are `goals`."""
    return lax.population_count(game.goal & facts).astype(jnp.int32).sum(-1)


def holds(bits: jax.Array, number: jax.Array) -> jax.Array:
    """Whether bits [B, w] uint32 hold the numbers [B, ...]: bool of their shape."""
    at = number.reshape(len(bits), -1)
    word = jnp.take_along_axis(bits, at // BITS, 1, mode="clip")
    return (word >> (at % BITS).astype(jnp.uint32) & 1 > 0).reshape(number.shape)


def unpack(facts: jax.Array) -> jax.Array:
    """States [..., Fw] uint32 as [..., Fw * 32] bool."""
    bits = facts[..., None] >> jnp.arange(BITS, dtype=jnp.uint32) & 1
    return bits.astype(bool).reshape(*facts.shape[:-1], -1)


def pack(facts: jax.Array) -> jax.Array:
    """[..., n] bool as [..., ceil(n / 32)] uint32."""
    facts = jnp.pad(facts, [(0, 0)] * (facts.ndim - 1) + [(0, -facts.shape[-1] % BITS)])
    bits = facts.reshape(*facts.shape[:-1], -1, BITS).astype(jnp.uint32)
    return (bits << jnp.arange(BITS, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def first(bits: jax.Array, count: int, free: int = 0) -> tuple[jax.Array, jax.Array]:
    """The first ones of bits [B, w] uint32: their numbers [B, count], and whether there are so many.

    The first `free` places are left free.
    """
    bits = lax.optimization_barrier(bits)  # else XLA makes them again for each of their uses
    ones = lax.population_count(bits).astype(jnp.int32)
    ends = jnp.cumsum(ones, axis=1)
    wanted = jnp.arange(count) - free
    word = jnp.minimum(covering(ends + free, count), bits.shape[1] - 1)
    pick = lambda x: jnp.take_along_axis(x, word, 1, mode="promise_in_bounds")  # noqa: E731
    left, rest = wanted - pick(ends - ones), pick(bits)

    def half(i, place):  # of the word's bits from `place` on: is the `left`-th one beyond their lower half?
        higher = place + (BITS // 2 >> i)
        below = lax.population_count(rest & ((jnp.uint32(1) << higher.astype(jnp.uint32)) - 1)).astype(jnp.int32)
        return jnp.where(left >= below, higher, place)

    place = lax.fori_loop(0, BITS.bit_length() - 1, half, jnp.zeros_like(word))
    return word * BITS + place, (wanted >= 0) & (wanted < ends[:, -1:])


def rows_of(sets: Sequence[Collection[int]], rows: int, words: int) -> np.ndarray:
    """Sets of numbers as bits [rows, words] uint32, on the host; rows without a set are empty."""
    out = np.zeros((rows, words * BITS), bool)
    for row, numbers in zip(out, sets, strict=False):
        row[list(numbers)] = True
    return np.packbits(out, axis=1, bitorder="little").view("<u4").astype(np.uint32)
