"""Texts of environments as tokens, on the device: composed of pieces, and compared by their exact bytes.

A piece is a string that was tokenised on the host. Cut where the tokenizer's own first step cuts (before a space,
after punctuation with the line breaks behind it), the pieces of a text have the tokens of the whole text; in any case
their bytes are the text's.

Two texts are the same if their keys are: a polynomial over their bytes without the blanks at both ends, modulo a prime,
in two bases (memory/equality.py). That of a text follows from those of its parts, in whatever tokens it is written.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.memory.equality import join as join_value
from agemem_jax.memory.equality import join_pieces, polynomial
from agemem_jax.types import PAD_ID, Text

BLANKS = b" \t\n\r\x0b\x0c"  # what is not compared at the ends of a text


@struct.dataclass
class ByteTable:
    """What each token adds to the key of a text; a piece is `polynomial`'s: [2, 2]."""

    body: jax.Array  # [V, 2, 2] uint32 of the token without blanks at its ends
    opened: jax.Array  # [V, 2, 2] of the token without the blanks at its end
    after: jax.Array  # [V, 2, 2] of the blanks at its end: of the whole token, if it is blank
    says: jax.Array  # [V] bool: it is not blank


def byte_table(token_bytes: Sequence[bytes | None]) -> ByteTable:
    """The table of a vocabulary, on the host: `token_bytes` are the UTF-8 bytes of each token.

    A token without text (None) is a character of its own, equal to itself alone.
    """
    size = len(token_bytes)
    table = ByteTable(*(np.zeros((size, 2, 2), np.uint32) for _ in range(3)), np.zeros(size, bool))
    for i, piece in enumerate(token_bytes):
        text = b"\xff%d" % i if piece is None else piece  # no text holds the byte 255
        opened = text.rstrip(BLANKS)
        table.body[i], table.opened[i] = polynomial(text.strip(BLANKS)), polynomial(opened)
        table.after[i], table.says[i] = polynomial(text[len(opened) :]), bool(opened)
    return table


def key_of(text: str | bytes) -> np.ndarray:
    """The key [2] uint32 of a text, on the host."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    return np.array(polynomial(data.strip(BLANKS))[0], np.uint32)


def piece_of(text: str | bytes) -> np.ndarray:
    """The piece [2, 2] uint32 of a text, blanks at its ends included: what `join_value` puts behind a key."""
    return np.array(polynomial(text.encode("utf-8") if isinstance(text, str) else text), np.uint32)


def text_key(table: ByteTable, text: Text) -> jax.Array:
    """Keys of texts: `[..., W]` -> `[..., 2]` uint32, equal where the bytes between the outer blanks are."""
    real = jnp.arange(text.tokens.shape[-1]) < text.length[..., None]
    table = jax.tree.map(jnp.asarray, table)
    nothing = jnp.broadcast_to(jnp.array(polynomial(b""), jnp.uint32), (*text.length.shape, 2, 2))
    wide = lambda on: on[..., None, None]  # noqa: E731

    def add(carry, token):
        key, begun, blanks = carry  # up to the last byte that is no blank; the blanks after it
        there, body, opened, after, says = token
        longer = jnp.where(begun[..., None], join_value(join_value(key, blanks), opened), body[..., 0, :])
        key = jnp.where((there & says)[..., None], longer, key)
        waiting = jnp.where(wide(says), after, join_pieces(blanks, after))
        begun = begun | (there & says)
        return (key, begun, jnp.where(wide(there & begun), waiting, blanks)), None

    tokens = real, *(x[text.tokens] for x in (table.body, table.opened, table.after, table.says))
    by_place = jax.tree.map(lambda x: jnp.moveaxis(x, text.tokens.ndim - 1, 0), tokens)
    return lax.scan(add, (nothing[..., 0, :], jnp.zeros(text.length.shape, bool), nothing), by_place)[0][0]


def compose(tokens: jax.Array, lengths: jax.Array, width: int) -> Text:
    """Pieces one behind the other: tokens [B, P, w] and lengths [B, P] (0 = left out) -> Text [B, width].

    What is longer is cut at its end.
    """
    ends = jnp.cumsum(lengths, axis=1)
    offset = jnp.arange(tokens.shape[-1])
    place = (ends - lengths)[..., None] + offset
    place = jnp.where(offset < lengths[..., None], place, width)  # dropped
    out = jnp.full((len(tokens), width), PAD_ID, jnp.int32)
    put = lambda row, i, new: row.at[i].set(new, mode="drop")  # noqa: E731
    flat = tokens.shape[0], -1
    out = jax.vmap(put)(out, place.reshape(flat), tokens.reshape(flat).astype(jnp.int32))
    return Text(out, jnp.minimum(ends[:, -1], width).astype(jnp.int32))


def listing(mask: jax.Array, items: Text, between: Text, last: Text, none: Text) -> Text:
    """The pieces of "a, b, and c": for `compose`, [B, 2n + 1, w] and [B, 2n + 1].

    Args:
      mask: [B, n] bool, which items are listed, in their order.
      items: [n, w] or [B, n, w].
      between, last, none: [w'] what stands between two items (", "), before the last of several (", and "), and in
        place of an empty list ("nothing").
    """
    batch, n = mask.shape
    width = max(items.tokens.shape[-1], *(t.tokens.shape[-1] for t in (between, last, none)))
    fit = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])  # noqa: E731
    rank, total = jnp.cumsum(mask, axis=1), mask.sum(1, keepdims=True)
    is_last = mask & (rank == total)
    apart = jnp.where(is_last[..., None], fit(last.tokens), fit(between.tokens))
    apart_length = jnp.where(is_last, last.length, between.length) * (mask & (rank > 1))
    item = jnp.broadcast_to(fit(items.tokens), (batch, n, width))
    item_length = jnp.broadcast_to(items.length, (batch, n)) * mask
    both = lambda a, b, *shape: jnp.stack([a, b], 2).reshape(batch, 2 * n, *shape)  # noqa: E731
    empty = jnp.broadcast_to(fit(none.tokens), (batch, 1, width))
    tokens = jnp.concatenate([empty, both(apart, item, width)], 1)
    return Text(tokens, jnp.concatenate([none.length * (total == 0), both(apart_length, item_length)], 1))


def covering(ends: jax.Array, width: int) -> jax.Array:
    """Which of the parts that lie one behind the other covers each place: [B, width] int32.

    ends: [B, P] int32, where each part ends: not a place of its own any more. P, behind the last of them.
    """
    block = 32
    blocks = -(-width // block)
    one = lambda row: jnp.zeros(blocks * block).at[row].add(1, mode="drop")  # noqa: E731
    ended = jax.vmap(one)(ends).reshape(-1, blocks, block)
    # A running sum by products with a triangle: several times as fast as cumsum. Exact, for there are few parts.
    within = jnp.matmul(ended, jnp.triu(jnp.ones((block, block))), precision="highest")
    before = jnp.cumsum(within[..., -1], axis=1) - within[..., -1]
    return (within + before[..., None]).reshape(len(ends), -1)[:, :width].astype(jnp.int32)


def spell(pieces: Text, own: Text, numbers: jax.Array, width: int) -> Text:
    """Numbered pieces one behind the other, as `compose`, without an array of all their tokens.

    Args:
      pieces: [n, w] those of all rows, numbers 0 to n - 1.
      own: [B, m, v] those of each row, numbers n to n + m - 1.
      numbers: [B, P] int32 the pieces of each text, in its order.

    Returns:
      Text [B, width]; what is longer is cut at its end.
    """
    (n, w), (m, v) = pieces.tokens.shape, own.tokens.shape[1:]
    of_row = jax.vmap(lambda x, i: x[i])
    alone = lax.optimization_barrier  # fused with what is around it, a gather takes a CPU several times as long
    numbers = alone(numbers)
    is_shared, mine = numbers < n, jnp.maximum(numbers - n, 0)
    length = jnp.where(is_shared, pieces.length[jnp.minimum(numbers, n - 1)], of_row(own.length, mine))
    ends = alone(jnp.cumsum(alone(length), axis=1))
    place = alone(jnp.minimum(covering(ends, width), numbers.shape[1] - 1))
    # Where each token lies in the tables, laid flat one behind the other.
    begin = jnp.where(is_shared, numbers * w, n * w + mine * v) - (ends - length)
    source = alone(of_row(begin, place)) + jnp.arange(width)
    is_shared = alone(of_row(numbers, place)) < n
    shared = alone(pieces.tokens.reshape(-1)[jnp.clip(source, 0, n * w - 1)])
    private = alone(of_row(own.tokens.reshape(len(numbers), -1), jnp.clip(source - n * w, 0, m * v - 1)))
    total = jnp.minimum(ends[:, -1], width).astype(jnp.int32)
    tokens = jnp.where(is_shared, shared, private).astype(jnp.int32)
    return Text(jnp.where(jnp.arange(width) < total[:, None], tokens, PAD_ID), total)
