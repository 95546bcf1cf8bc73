"""Texts of environments as tokens, on the device: composed of pieces, and compared by their exact bytes.

A piece is a string that was tokenised on the host. Cut where the tokenizer's own first step cuts (before a space,
after punctuation with the line breaks behind it), the pieces of a text have the tokens of the whole text; in any case
their bytes are the text's.

Two texts are the same if their keys are: a polynomial over their bytes without the blanks at both ends, modulo a prime,
in two bases (memory/equality.py). That of a text follows from those of its parts, in whatever tokens it is written.
So do those of its words, in lower case (`words`), and whether it says a phrase (`says`).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.memory.equality import extend, polynomial
from agemem_jax.types import PAD_ID, Text

BLANKS = b" \t\n\r\x0b\x0c"  # what is not compared at the ends of a text
WORD = re.compile(r"""[^\s.,:;?!()\[\]{}<>"#$%&@`«»“”‘’„]+""")  # hyphens and apostrophes are in words
WORDS_OF_TOKEN = 2  # of one token no more words are read
SUM_BLOCK = 16
# Of keys that follow from those of tokens the two bases are apart, and rows are the last axis: XLA makes vector
# instructions of that, and of an axis of two it does not.
BOTH = (0, 1)
VALUE_AND_POWER = (0, 1)


@struct.dataclass
class ByteTable:
    """What each token adds to the key of a text; a piece is `polynomial`'s: [2, 2]."""

    body: jax.Array  # [V, 2, 2] uint32 of the token without blanks at its ends
    opened: jax.Array  # [V, 2, 2] of the token without the blanks at its end
    after: jax.Array  # [V, 2, 2] of the blanks at its end: of the whole token, if it is blank
    says: jax.Array  # [V] bool: it is not blank


@struct.dataclass
class Pool:
    """Texts of each row, one behind the other, for `spell`."""

    tokens: jax.Array  # [B, n] uint16 numbers within the alphabet
    start: jax.Array  # [B, m + 1] int32 where each text begins; it ends where the next one does
    alphabet: jax.Array  # [B, a] int32 the tokens that occur


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


@struct.dataclass
class WordTable:
    """What each token adds to the words of a text."""

    words: jax.Array  # [V, WORDS_OF_TOKEN, 2, 2] uint32 `polynomial`s of its words, or parts of words, in lower case
    count: jax.Array  # [V] uint8 how many there are
    opens: jax.Array  # [V] bool: the word before it ends where it begins
    closes: jax.Array  # [V] bool: its last word ends with it


def word_table(token_bytes: Sequence[bytes | None]) -> WordTable:
    """The table of a vocabulary, on the host: `token_bytes` are the UTF-8 bytes of each token.

    A token without text (None) ends words. A separator whose bytes are split between tokens is part of the word.
    """
    size = len(token_bytes)
    blank = np.broadcast_to(np.array(polynomial(b""), np.uint32), (size, WORDS_OF_TOKEN, 2, 2))
    table = WordTable(blank.copy(), np.zeros(size, np.uint8), *(np.zeros(size, bool) for _ in range(2)))
    for i, piece in enumerate(token_bytes):
        text = _lower(b" " if piece is None else piece)
        found = list(WORD.finditer(text))
        for k, word in enumerate(found[:WORDS_OF_TOKEN]):
            table.words[i, k] = polynomial(word[0].encode("utf-8", "surrogateescape"))
        table.count[i] = min(len(found), WORDS_OF_TOKEN)
        table.opens[i] = text != "" and (not found or found[0].start() > 0)
        table.closes[i] = text != "" and (len(found) > WORDS_OF_TOKEN or not found or found[-1].end() < len(text))
    return table


def phrase_table(token_bytes: Sequence[bytes | None], phrase: str) -> np.ndarray:
    """Of a phrase in lower case: [V, n + 1] uint8, the bytes found after a token, by those found before; n is all."""
    wanted = phrase.encode()
    n = len(wanted)
    longest = lambda data: max(k for k in range(n + 1) if data.endswith(wanted[:k]))  # noqa: E731
    step = np.array([[longest(wanted[:k] + bytes([b])) for b in range(256)] for k in range(n)] + [[n] * 256], np.uint8)
    texts = [_lower(piece or b"\0").encode("utf-8", "surrogateescape") for piece in token_bytes]
    found = np.tile(np.arange(n + 1, dtype=np.uint8), (len(texts), 1))
    for place in range(max(map(len, texts), default=0)):
        rows = np.array([i for i, text in enumerate(texts) if len(text) > place])
        found[rows] = step[found[rows], np.array([texts[i][place] for i in rows])[:, None]]
    return found


def _lower(piece: bytes) -> str:
    return piece.decode("utf-8", "surrogateescape").lower()


def key_of(text: str | bytes) -> np.ndarray:
    """The key [2] uint32 of a text, on the host."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    return np.array(polynomial(data.strip(BLANKS))[0], np.uint32)


def piece_of(text: str | bytes) -> np.ndarray:
    """The piece [2, 2] uint32 of a text, blanks at its ends included: what `equality.join` puts behind a key."""
    return np.array(polynomial(text.encode("utf-8") if isinstance(text, str) else text), np.uint32)


def text_key(table: ByteTable, text: Text) -> jax.Array:
    """Keys of texts: `[..., W]` -> `[..., 2]` uint32, equal where the bytes between the outer blanks are."""
    there, tokens = _by_place(text)
    body = [jnp.asarray(table.body)[:, 0, base][tokens] for base in BOTH]
    opened, after = (
        [tuple(jnp.asarray(x)[:, part, base][tokens] for part in VALUE_AND_POWER) for base in BOTH]
        for x in (table.opened, table.after)
    )
    says = there & jnp.asarray(table.says)[tokens]

    def add(carry, token):
        key, whole, begun = carry  # up to the last byte that is no blank; with the blanks after it
        there, says, body, opened, after = token
        longer = [jnp.where(begun, extend(whole[b], *opened[b]), body[b]) for b in BOTH]
        key = [jnp.where(says, longer[b], key[b]) for b in BOTH]
        before = [jnp.where(says, longer[b], whole[b]) for b in BOTH]
        whole = [jnp.where(there, extend(before[b], *after[b]), whole[b]) for b in BOTH]
        return (key, whole, begun | says), None

    nothing = [jnp.zeros(text.length.shape, jnp.uint32) for _ in BOTH]
    each = lax.optimization_barrier((there, says, body, opened, after))
    begin = nothing, nothing, jnp.zeros(text.length.shape, bool)
    return jnp.stack(lax.scan(add, begin, each)[0][0], -1)


def _by_place(text: Text) -> tuple[jax.Array, jax.Array]:
    """Whether there is a token, and which, by place: [W, ...] each."""
    tokens = jnp.moveaxis(text.tokens, -1, 0)
    place = jnp.arange(len(tokens)).reshape(-1, *[1] * text.length.ndim)
    return place < text.length, tokens


def words(table: WordTable, text: Text) -> tuple[jax.Array, jax.Array]:
    """Keys of the words of texts, in lower case: `[..., W]` -> [..., n, 2] uint32, and where there is a word [..., n].

    The words are in their order, with gaps: n = W * WORDS_OF_TOKEN + 1. `key_of` is the key of a word.
    """
    there, tokens = _by_place(text)
    part = lambda k, what: [jnp.asarray(table.words)[:, k, what, base][tokens] for base in BOTH]  # noqa: E731
    values = [part(k, 0) for k in range(WORDS_OF_TOKEN)]
    count, opens, closes = (there * jnp.asarray(x)[tokens] for x in (table.count, table.opens, table.closes))

    def add(carry, token):
        key, is_word, closed = carry  # the word before this place, and whether it has ended
        there, count, opens, closes, values, powers = token
        begins, found = there & (opens | closed), []
        grown = [jnp.where(count > 0, extend(key[b], values[0][b], powers[b]), key[b]) for b in BOTH]
        for k, value in enumerate(values):
            found.append((key, is_word & begins))
            key = [jnp.where(begins, value[b], key[b] if k else grown[b]) for b in BOTH]
            is_word = (is_word & ~begins) | (count > k)
            begins = count > k + 1  # every word of a token but its first begins there
        return (key, is_word, jnp.where(there, closes, closed)), found

    never, empty = jnp.zeros(text.length.shape, bool), [jnp.zeros(text.length.shape, jnp.uint32) for _ in BOTH]
    each = lax.optimization_barrier((there, count, opens, closes, values, part(0, 1)))
    (key, is_word, _), found = lax.scan(add, (empty, never, never), each)
    in_order = lambda last, *ends: jnp.moveaxis(  # noqa: E731
        jnp.concatenate([jnp.stack(ends, 1).reshape(-1, *last.shape), last[None]]), 0, -1
    )
    keys = [in_order(key[b], *(ended[b] for ended, _ in found)) for b in BOTH]
    return jnp.stack(keys, -1), in_order(is_word, *(is_end for _, is_end in found))


def says(table: jax.Array, text: Text) -> jax.Array:
    """Whether texts `[..., W]` say the phrase of a table, in any case, within words too: [...] bool."""
    table = jnp.asarray(table)
    real = jnp.arange(text.tokens.shape[-1]) < text.length[..., None]

    def add(found, token):
        there, number = token
        return jnp.where(there, table[number, found], found), None

    by_place = tuple(jnp.moveaxis(x, -1, 0) for x in (real, text.tokens))
    return lax.scan(add, jnp.zeros(text.length.shape, table.dtype), by_place)[0] == table.shape[1] - 1


def pool(texts: Sequence[Sequence[int]], most: int, tokens: int, kinds: int) -> Pool:
    """The pool of one row, on the host: texts as tokens, in fields of the given sizes, which must hold them."""
    flat = [token for text in texts for token in text]
    alphabet = sorted({*flat})
    start = np.full(most + 1, len(flat), np.int32)
    start[: len(texts)] = np.cumsum([0, *map(len, texts[:-1])])
    number = {token: i for i, token in enumerate(alphabet)}
    pad = lambda values, size, dtype: np.pad(np.array(values, dtype), (0, size - len(values)))  # noqa: E731
    return Pool(pad([number[t] for t in flat], tokens, np.uint16), start, pad(alphabet, kinds, np.int32))


def spell_pool(pool: Pool, ids: jax.Array, width: int) -> Text:
    """Texts of each row's pool by their numbers [B, P], one behind the other: [B, width]; what is longer is cut."""
    pick = lambda x, at: jnp.take_along_axis(jnp.asarray(x), at, 1, mode="clip")  # noqa: E731
    source, total = laid_out(pick(pool.start, ids), pick(pool.start, ids + 1), width)
    letters = pick(pool.tokens, source).astype(jnp.int32)
    return Text(jnp.where(jnp.arange(width) < total[:, None], pick(pool.alphabet, letters), PAD_ID), total)


def laid_out(begin: jax.Array, end: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Where the tokens of texts lie whose parts [B, P] are from `begin` up to `end` in a table, one behind the other.

    Returns:
      place in the table [B, width] int32, 0 behind a text's end, and lengths [B]; what is longer is cut at its end.
    """
    whole = [(0, 0), (0, -begin.shape[1] % SUM_BLOCK)]  # so that the sums need not be cut
    begin, end = jnp.pad(begin, whole), jnp.pad(end, whole)
    length = end - begin
    ends = running_sum(length.astype(jnp.float32)).astype(jnp.int32)
    # How far a part's place in the table is from that in the text: each adds what it changes, where it begins.
    change = begin - jnp.pad(end, [(0, 0), (1, 0)])[:, :-1]
    apart = running_sum(put(ends - length, change.astype(jnp.float32), width)).astype(jnp.int32)
    place = jnp.arange(width)
    total = jnp.minimum(ends[:, -1], width)
    return jnp.where(place < total[:, None], place + apart, 0), total


def put(at: jax.Array, values: jax.Array, width: int) -> jax.Array:
    """Sums [B, width] of the values [B, n] at each place [B, n]; those beyond the last one are dropped."""
    rows = len(at)
    flat = jnp.where(at < width, jnp.arange(rows)[:, None] * width + at, rows * width)
    return jnp.zeros(rows * width, values.dtype).at[flat].add(values, mode="drop").reshape(rows, width)


def alone(rows: jax.Array, made: Callable[..., Any], *of: Any) -> Any:
    """made(*of), or zeros in its place if there is none of the rows [B] bool.

    XLA fuses nothing across a condition. Without it, what is found once a row is found again on a CPU for each element
    of the wide arrays that are made of it.
    """
    shapes = jax.eval_shape(made, *of)
    return lax.cond(rows.any(), made, lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), *of)


def running_sum(x: jax.Array) -> jax.Array:
    """Sums [B, n] up to each place of whole numbers x [B, n] float32; exact where all sums stay below 2^24."""
    block, n = SUM_BLOCK, x.shape[1]
    x = jnp.pad(x, [(0, 0), (0, -n % block)]).reshape(len(x), -1, block)
    # By products with a triangle: several times as fast as cumsum.
    up_to = lambda x, first: jnp.matmul(x, jnp.triu(jnp.ones([x.shape[-1]] * 2), first), precision="highest")  # noqa: E731
    within = up_to(x, 0)
    return (within + up_to(within[..., -1], 1)[..., None]).reshape(len(x), -1)[:, :n]


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


def covering(ends: jax.Array, width: int) -> jax.Array:
    """Which of the parts that lie one behind the other covers each place: [B, width] int32.

    ends: [B, P] int32, where each part ends: not a place of its own any more. P, behind the last of them.
    """
    return running_sum(put(ends, jnp.ones(ends.shape), width)).astype(jnp.int32)


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
    barrier = lax.optimization_barrier  # fused with what is around it, a gather takes a CPU several times as long
    numbers = barrier(numbers)
    is_shared, mine = numbers < n, jnp.maximum(numbers - n, 0)
    length = jnp.where(is_shared, pieces.length[jnp.minimum(numbers, n - 1)], of_row(own.length, mine))
    ends = barrier(jnp.cumsum(barrier(length), axis=1))
    place = barrier(jnp.minimum(covering(ends, width), numbers.shape[1] - 1))
    # Where each token lies in the tables, laid flat one behind the other.
    begin = jnp.where(is_shared, numbers * w, n * w + mine * v) - (ends - length)
    source = barrier(of_row(begin, place)) + jnp.arange(width)
    is_shared = barrier(of_row(numbers, place)) < n
    shared = barrier(pieces.tokens.reshape(-1)[jnp.clip(source, 0, n * w - 1)])
    private = barrier(of_row(own.tokens.reshape(len(numbers), -1), jnp.clip(source - n * w, 0, m * v - 1)))
    total = jnp.minimum(ends[:, -1], width).astype(jnp.int32)
    tokens = jnp.where(is_shared, shared, private).astype(jnp.int32)
    return Text(jnp.where(jnp.arange(width) < total[:, None], tokens, PAD_ID), total)
