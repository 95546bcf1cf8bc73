"""When two texts say the same: a key of 62 bits for every text, whatever tokens it is written in.

Case, white space (how much of it, and any at the ends) and PUNCTUATION make no difference; `normal_form` is the rule.
Punctuation parts words as white space does: "U.S." is "U S" and not "US", "3.5" not "35". Signs that mean something
(hyphen, which is also minus; + % $ # / _ and others) are text. The key is a polynomial over the bytes of the normal
form, modulo a prime, in two bases: that of a text follows from those of its tokens, so a row of a table for each token
is all that the device needs. (Modulo a power of two, texts of a regular pattern would collide in every base.)

A character whose UTF-8 bytes are split between tokens is taken as it is: a capital stays one, white space and
punctuation stay part of the text. Composed and decomposed accents are different characters.
"""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.types import Text

PUNCTUATION = ".,:;!?¡¿…。．｡，､、：；！？؟،؛।" + "\"'`´‘’‚“”„«»‹›" + "()[]{}" + "–—―"
AS_SPACE = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
PRIME = 2**31 - 1
BASES = (0x4C957F2D, 0x5851F42D)

# What a token's text has: white space or punctuation before its body, after it, a body at all.
OPENS, CLOSES, SAYS = 1, 2, 4


@struct.dataclass
class EqualityTable:
    """What each token adds to the key of a text."""

    polynomial: jax.Array  # [V, 2, 2] uint32 of its body, as of `polynomial`
    marks: jax.Array  # [V] uint8 OPENS | CLOSES | SAYS


def normal_form(text: str) -> str:
    """The text in folded case, with single spaces in place of punctuation and white space, and none at its ends."""
    return " ".join(text.casefold().translate(AS_SPACE).split())


def equality_table(token_bytes: Sequence[bytes | None]) -> EqualityTable:
    """The table of a vocabulary, on the host: `token_bytes` are the UTF-8 bytes of each token.

    A token without text (None) is a character of its own, equal to itself alone.
    """
    size = len(token_bytes)
    table = EqualityTable(np.zeros((size, 2, 2), np.uint32), np.zeros(size, np.uint8))
    for i, piece in enumerate(token_bytes):
        # Bytes that are not whole characters become lone surrogates, and those bytes again when encoded. No text holds
        # the byte 255.
        text = (b"\xff%d" % i if piece is None else piece).decode("utf-8", "surrogateescape").translate(AS_SPACE)
        body = normal_form(text)
        table.polynomial[i] = polynomial(body.encode("utf-8", "surrogateescape"))
        table.marks[i] = OPENS * text[:1].isspace() + CLOSES * text[-1:].isspace() + SAYS * bool(body)
    return table


def text_key(table: EqualityTable, text: Text) -> jax.Array:
    """Keys of texts: `[..., W]` -> `[..., 2]` uint32, equal where the normal forms are; 0 for an empty one."""
    real = jnp.arange(text.tokens.shape[-1]) < text.length[..., None]
    table = jax.tree.map(jnp.asarray, table)
    space = jnp.array(polynomial(b" "), jnp.uint32)

    def add(carry, token):
        whole, begun, waiting = carry  # the polynomial so far, whether there is a word, whether a space comes next
        marks, body = token
        opens, closes, says = (marks & mark > 0 for mark in (OPENS, CLOSES, SAYS))
        before = _pick(begun & (waiting | opens), join(whole, space), whole)
        whole = _pick(says, join(before, body), whole)
        return (whole, begun | says, jnp.where(says, closes, waiting | opens)), None

    never = jnp.zeros(text.length.shape, bool)
    nothing = jnp.zeros((*text.length.shape, 2), jnp.uint32)
    tokens = jnp.where(real, table.marks[text.tokens], 0), table.polynomial[text.tokens]
    by_place = jax.tree.map(lambda x: jnp.moveaxis(x, text.tokens.ndim - 1, 0), tokens)
    return lax.scan(add, (nothing, never, never), by_place)[0][0]


def polynomial(data: bytes) -> list[list[int]]:
    """Value of bytes in each base, and each base to the power of their number; a byte counts one more than it is."""
    value = lambda base: reduce(lambda sum, byte: (sum * base + byte + 1) % PRIME, data, 0)  # noqa: E731
    return [[value(base) for base in BASES], [pow(base, len(data), PRIME) for base in BASES]]


def _pick(on: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """Row-wise choice between polynomials `[..., 2]`."""
    return jnp.where(on[..., None], one, other)


def join(first: jax.Array, piece: jax.Array) -> jax.Array:
    """The polynomial `[..., 2]` of a text that a piece `[..., 2, 2]` is put behind."""
    return extend(first, piece[..., 0, :], piece[..., 1, :])


def extend(first: jax.Array, value: jax.Array, power: jax.Array) -> jax.Array:
    """The same in one base, or in both: arrays of one shape."""
    return _modulo(_times(first, power) + value)


def _modulo(x: jax.Array) -> jax.Array:
    """Any uint32 modulo PRIME, of which 2^31 is 1."""
    x = (x & PRIME) + (x >> 31)
    return jnp.where(x >= PRIME, x - PRIME, x)


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Product modulo PRIME, by halves of 16 bits; a and b below PRIME."""
    (a1, a0), (b1, b0) = ((x >> 16, x & 0xFFFF) for x in (a, b))
    middle = a1 * b0 + a0 * b1  # times 2^16: its bits from 15 on count from 2^31, which is 1
    high = _modulo(2 * a1 * b1 + ((middle & 0x7FFF) << 16))
    return _modulo(high + _modulo(_modulo(a0 * b0) + (middle >> 15)))
