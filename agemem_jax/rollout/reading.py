"""The store's vectors where a decoder reads the texts (rollout/reader.py): once a write and once a query.

A decoder may be cut over devices, so that its texts are read before memory operations, which each device does with its
own rows: what a turn's message and calls mean is known when they are written. Nothing is read where nobody asks.
"""

import jax
import jax.numpy as jnp

from agemem_jax.memory.encoder import Encoder, Known, TokenTable
from agemem_jax.rollout.reader import read
from agemem_jax.rollout.rows import RolloutSpec, Rows, World
from agemem_jax.types import Op, Text

READ = (Op.ADD, Op.UPDATE, Op.RETRIEVE)  # whose content becomes a vector


def encoder_of(world: World, spec: RolloutSpec) -> Encoder:
    """The store's encoder, for texts of any rows."""
    if spec.reader is None:
        return TokenTable(world.encoder)
    return lambda text, is_query: read(world.reader, spec.reader, text, is_query)


def given(world: World, vectors: jax.Array | None) -> Encoder:
    """The encoder of a text whose vector `[B, E]` is known; None: it is made by the table."""
    return TokenTable(world.encoder) if vectors is None else Known(vectors)


def read_where(
    on: jax.Array, text: Text, is_query: jax.Array | bool, old: jax.Array, world: World, spec: RolloutSpec
) -> jax.Array:
    """Vectors `[B, E]` of the texts of rows `on` `[B]`, `old` for the others."""

    def made():
        return jnp.where(on[:, None], encoder_of(world, spec)(text, is_query), old)

    return jax.lax.cond(on.any(), made, lambda: old)


def read_calls(rows: Rows, spoke: jax.Array, world: World, spec: RolloutSpec) -> Rows:
    """Rows with the vectors of the calls that rows `spoke` have just written; without a reader as they are.

    An entry is at most `store.entry_tokens` long, and a query is read so far.
    """
    if spec.reader is None:
        return rows
    calls = rows.calls
    width = min(calls.content.tokens.shape[-1], spec.entry_tokens)
    content = Text(calls.content.tokens[..., :width], jnp.minimum(calls.content.length, width))
    wanted = spoke[:, None] & jnp.isin(calls.op, jnp.array(READ)) & (content.length > 0)
    by_call = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)  # noqa: E731

    def one(_, call):
        on, text, op, old = call
        return None, read_where(on, text, op == Op.RETRIEVE, old, world, spec)

    _, vectors = jax.lax.scan(one, None, by_call((wanted, content, calls.op, rows.vectors)))
    return rows.replace(vectors=by_call(vectors))
