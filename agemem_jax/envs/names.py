"""Which names, dates and numbers a text tells: a key of 64 bits for their multiset, whatever tokens it is written in.

A word is a run of letters and digits; white space and punctuation end it. It is a name if a capital letter or a digit
is in it and it is none of COMMON_WORDS, which only begin a sentence. Two texts share a key where they tell the same
names equally often, in any order. The key is a sum over names of a mixed polynomial of their bytes
(memory/equality.py): a word of many tokens follows from these, so a row of a table for each token is all that the
device needs.

What this does not see: names of scripts without capitals, a capital whose bytes are split between tokens, and a name
that is a common word ("The Who"). A content word that begins a sentence ("Born in 1964, ...") counts as a name: as told
and as stored a fact mostly begins alike.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.memory.equality import join, polynomial
from agemem_jax.types import Text

# Words of English that are written with a capital for their place alone.
COMMON_WORDS = """
a about after again all also although an and another any are as at be because been before both but by can could did do
does during each either every few first for from had has have he her here hers him his how however i if in into is it
its later many most my no nor not now of on once one only or other our out over she since so some such than that the
their them then there these they this those though through to too under until up upon was we were what when where
whether which while who whom whose why with without would yet you your
""".split()

# What a token's text does: its first word goes on with the word before, its last one stays open, it has a word at all,
# more than one; its first word, and its last one, has a capital or a digit.
JOINS, STAYS, SAYS, PARTS, FIRST, LAST = 1, 2, 4, 8, 16, 32


@struct.dataclass
class NameTable:
    """What each token adds to the names of a text."""

    first: jax.Array  # [V, 2, 2] uint32 polynomial of its first word
    last: jax.Array  # [V, 2, 2] uint32 of its last word
    within: jax.Array  # [V, 2] uint32 sum over names between these
    marks: jax.Array  # [V] uint8 JOINS | STAYS | SAYS | PARTS | FIRST | LAST
    common: jax.Array  # [n, 2] uint32 polynomials of COMMON_WORDS


def name_table(token_bytes: Sequence[bytes | None]) -> NameTable:
    """The table of a vocabulary, on the host: `token_bytes` are the UTF-8 bytes of each token, None without text."""
    size = len(token_bytes)
    blank = np.broadcast_to(np.array(polynomial(b""), np.uint32), (size, 2, 2))
    common = np.array([polynomial(word.encode())[0] for word in COMMON_WORDS], np.uint32)
    table = NameTable(blank.copy(), blank.copy(), np.zeros((size, 2), np.uint32), np.zeros(size, np.uint8), common)
    for i, piece in enumerate(token_bytes):
        text = (piece or b" ").decode("utf-8", "surrogateescape")  # bytes that are not whole characters: in words
        words = re.findall(r"(?:[^\W_]|[\udc80-\udcff])+", text)
        if not words:
            table.marks[i] = 0 if text else JOINS | STAYS
            continue
        table.first[i], table.last[i] = _polynomial(words[0]), _polynomial(words[-1])
        for word in words[1:-1]:
            if is_name(word):
                table.within[i] += mix(np.array(_polynomial(word)[0], np.uint32))
        table.marks[i] = (
            JOINS * text.startswith(words[0]) + STAYS * text.endswith(words[-1]) + SAYS + PARTS * (len(words) > 1)
            + FIRST * _is_marked(words[0]) + LAST * _is_marked(words[-1])
        )  # fmt: skip
    return table


def is_name(word: str) -> bool:
    """Whether a word names something: a capital or a digit is in it, and it is no common word."""
    return _is_marked(word) and word.casefold() not in COMMON_WORDS


def name_key(table: NameTable, text: Text) -> jax.Array:
    """Keys of the names of texts: `[..., W]` -> `[..., 2]` uint32, equal where the multisets are; 0 without a name."""
    real = jnp.arange(text.tokens.shape[-1]) < text.length[..., None]
    table = jax.tree.map(jnp.asarray, table)
    empty = jnp.broadcast_to(jnp.array(polynomial(b"")[0], jnp.uint32), (*text.length.shape, 2))

    def close(total, word, marked):
        """The sum with the word that has come to its end, if it is a name."""
        is_common = (word[..., None, :] == table.common).all(-1).any(-1)
        return total + jnp.where((marked & ~is_common)[..., None], mix(word), 0)

    def add(carry, token):
        total, word, marked, over = carry  # over: the word has ended, and is not counted yet
        there, marks, first, last, within = token
        joins, stays, says, parts, named, last_named = (
            marks & mark > 0 for mark in (JOINS, STAYS, SAYS, PARTS, FIRST, LAST)
        )
        ends = over | ~joins
        start = ends[..., None]
        grown = jnp.where(start, empty, word)
        grown = jnp.where(says[..., None], join(grown, first), grown)
        is_marked = (marked & ~ends) | (says & named)
        new = jnp.where(start, close(total, word, marked), total) + within
        new = jnp.where(parts[..., None], close(new, grown, is_marked), new)
        grown = jnp.where(parts[..., None], last[..., 0, :], grown)
        is_marked = jnp.where(parts, last_named, is_marked)
        out = new, grown, is_marked, ~stays
        keep = lambda a, b: jnp.where(there.reshape(there.shape + (1,) * (a.ndim - there.ndim)), a, b)  # noqa: E731
        return jax.tree.map(keep, out, carry), None

    never = jnp.zeros(text.length.shape, bool)
    tokens = real, *(x[text.tokens] for x in (table.marks, table.first, table.last, table.within))
    by_place = jax.tree.map(lambda x: jnp.moveaxis(x, text.tokens.ndim - 1, 0), tokens)
    start = jnp.zeros((*text.length.shape, 2), jnp.uint32), empty, never, never
    (total, word, marked, _), _ = lax.scan(add, start, by_place)
    return close(total, word, marked)


def mix(x):
    """uint32 values mixed one by one (MurmurHash3's last step), so that sums of words tell which words they are."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _is_marked(word: str) -> bool:
    return any(c.isupper() or c.isdigit() for c in word)


def _polynomial(word: str) -> list[list[int]]:
    return polynomial(word.casefold().encode("utf-8", "surrogateescape"))
