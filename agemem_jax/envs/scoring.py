"""Scores of answers and of memory, on the device.

Answers: exact match and token F1 as the official HotpotQA script defines them. A token is a fixed piece of text, so its
normalised bytes are a row of a table (`answer_table`); an answer is the concatenation of its tokens' rows, cut into
words whose 64-bit hashes (two of 32 bits) are compared with those of the gold answer (`hash_words`).

Memory: weighted token overlap of stored entries with the supporting facts. An entry holds a fact if they overlap enough
and tell the same names, dates and numbers (`holds`).
"""

import re
import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agemem_jax.envs.names import NameTable, name_key
from agemem_jax.types import PAD_ID, Text

# A normalised byte stream holds no ASCII punctuation, so some of its codes are free to mean something else.
NOTHING = 0  # fills a row; no byte at all
SPACE = ord(" ")  # ends a word
BOUNDARY = ord("|")  # regex \b beside a symbol that is not a word character, inside a word
NUL = ord("!")  # the character U+0000

ARTICLES = (b"a", b"an", b"the")
CLOSED_ANSWERS = ("yes", "no", "noanswer")  # a wrong one of these scores 0, whatever words it shares
HASH_BASES = (0x01000193, 0x9E3779B1)  # odd: FNV's prime and the golden ratio's


def normalize_answer(text: str) -> str:
    """HotpotQA's normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def hash_words(text: str) -> tuple[np.ndarray, bool]:
    """Hashes of the words of the normalised text.

    Returns:
      hashes: `[n, 2]` uint32, in order.
      closed: the normalised text is yes, no or noanswer.
    """
    normalized = normalize_answer(text)
    hashes = [_hash(_encode(word)) for word in normalized.split()]
    return np.array(hashes, np.uint32).reshape(-1, 2), normalized in CLOSED_ANSWERS


def answer_table(token_bytes: Sequence[bytes | None]) -> np.ndarray:
    """Normalised bytes of every token, for `score`.

    Characters are lowered and stripped of punctuation one by one, and white space becomes SPACE. That gives exactly the
    official normalisation of the whole text, with two exceptions. A character beyond ASCII whose UTF-8 bytes are split
    between tokens is kept as it is, as part of a word: a capital stays one, white space does not end the word, and an
    article beside a symbol is not seen. And Greek capital sigma is always lowered to the one inside words.

    Args:
      token_bytes: UTF-8 bytes of each token of the vocabulary; None for one without text (control tokens).

    Returns:
      `[V, Lb]` uint8, rows filled up with NOTHING; Lb is the longest row, at least 1.
    """
    rows = [b"" if token is None else _normalized_bytes(token) for token in token_bytes]
    table = np.zeros((len(rows), max((len(row) for row in rows), default=0) or 1), np.uint8)
    for i, row in enumerate(rows):
        table[i, : len(row)] = np.frombuffer(row, np.uint8)
    return table


def score(
    table: jax.Array, text: Text, gold_words: jax.Array, num_gold: jax.Array, gold_closed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Exact match and F1 of answers, as in the official HotpotQA evaluation.

    Args:
      table: `[V, Lb]` uint8 from `answer_table`.
      text: `[B, W]` answers.
      gold_words: `[B, Wa, 2]` uint32 from `hash_words`.
      num_gold: `[B]` int32 gold words.
      gold_closed: `[B]` bool, the gold answer is yes, no or noanswer.

    Returns:
      exact_match, f1: `[B]` float32 each, in [0, 1].
    """
    stream = _blank_articles(_byte_stream(table, text))
    is_word, hashes = _words(stream)  # [B, X], [B, X, 2]
    count = is_word.sum(1)
    index = jnp.cumsum(is_word, axis=1) - 1

    places = jnp.arange(gold_words.shape[1])
    gold_valid = places < num_gold[:, None]  # [B, Wa]
    same = is_word[:, :, None] & (hashes[:, :, None] == gold_words[:, None]).all(-1) & gold_valid[:, None]
    in_place = (same & (index[:, :, None] == places)).any(1)
    exact = (count == num_gold) & (in_place | ~gold_valid).all(1)

    # Multiset intersection: the gold answer's r-th copy of a word counts if the answer has at least r of them.
    equal = (gold_words[:, :, None] == gold_words[:, None]).all(-1)
    copy = jnp.sum(equal & (places[None, :] <= places[:, None]), axis=2)  # 1-based
    common = jnp.sum(gold_valid & (copy <= same.sum(1)), axis=1)

    closed_hashes = jnp.array([_hash(_encode(word)) for word in CLOSED_ANSWERS], jnp.uint32)
    is_closed = (hashes[:, :, None] == closed_hashes).all(-1).any(-1)
    closed = (count == 1) & (is_word & is_closed).any(1)
    f1 = 2.0 * common / jnp.maximum(count + num_gold, 1)
    f1 = jnp.where((closed | gold_closed) & ~exact, 0.0, f1)
    return exact.astype(jnp.float32), f1.astype(jnp.float32)


def overlap(entry: Text, gold: Text, weight: jax.Array) -> jax.Array:
    """How much each entry and each gold fact have in common: weighted F1 of their tokens as multisets.

    Args:
      entry: `[B, N, L]` stored texts.
      gold: `[B, Gf, W]` supporting facts.
      weight: `[V]` float32, at least 0; 0 for tokens without content (punctuation, control, stop words).

    Returns:
      `[B, N, Gf]` float32 in [0, 1]; 0 where either has no content.
    """
    entry_key, entry_weight = _keys(entry, weight)
    gold_key, gold_weight = _keys(gold, weight)
    total = entry_weight.sum(-1)[:, :, None] + gold_weight.sum(-1)[:, None, :]  # [B, N, Gf]

    def common(fact: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, key_weight = fact  # [B, W]
        held = (entry_key[:, :, None, :] == key[:, None, :, None]).any(-1)  # [B, N, W]
        return jnp.sum(held * key_weight[:, None], axis=-1)

    by_fact = (jnp.moveaxis(gold_key, 1, 0), jnp.moveaxis(gold_weight, 1, 0))
    shared = jnp.moveaxis(lax.map(common, by_fact), 0, -1)  # one fact at a time: [B, N, W, L] comparisons
    return jnp.where(total > 0, 2.0 * shared / jnp.where(total > 0, total, 1.0), 0.0)


def holds(entry: Text, fact: Text, weight: jax.Array, names: NameTable, threshold: float) -> jax.Array:
    """Whether each entry holds each fact: `[B, N, L]`, `[B, Gf, W]` -> `[B, N, Gf]` bool.

    It does if their `overlap` by `weight` is at least `threshold` (above 0, so that an empty text holds nothing and is
    not held), and both tell the same names, dates and numbers equally often: "was born in Old Oakmere" is not "was born
    in Oakmere", and "lives in Halden" not "moved from Halden to Marnby".
    """
    same_names = (name_key(names, entry)[:, :, None] == name_key(names, fact)[:, None]).all(-1)
    return (overlap(entry, fact, weight) >= threshold) & same_names


def kept_quality(holds: jax.Array, entry_valid: jax.Array, num_keep: jax.Array) -> jax.Array:
    """How well a store is what is worth keeping: harmonic mean of coverage and precision, `[B]` float32 in [0, 1].

    Coverage is facts held / the most that can be, min(num_keep, N); precision is facts held / entries: an entry that
    tells again what another one does is one too many. 0 where nothing is worth keeping.

    Args:
      holds: `[B, N, Kp]` bool of the texts worth keeping; False beyond their number.
      entry_valid: `[B, N]` bool.
      num_keep: `[B]` int32.
    """
    held = (holds & entry_valid[:, :, None]).any(1).sum(1)
    most = jnp.minimum(num_keep, entry_valid.shape[1]) + entry_valid.sum(1)
    return jnp.minimum(1.0, 2.0 * held / jnp.maximum(most, 1))


def revised_share(
    holds_stale: jax.Array, holds_present: jax.Array, entry_valid: jax.Array, was_held: jax.Array, present: Text,
    told: jax.Array,
) -> jax.Array:  # fmt: skip
    """Revisions done / revisions told, `[B]` float32; 0 where none was told.

    Revision r is done if no entry holds the stale text any more and some entry holds what holds instead. Where nothing
    does (it was taken back), the stale text must have been held before: never to store anything is no revision.

    Args:
      holds_stale, holds_present: `[B, N, R]` bool.
      entry_valid: `[B, N]` bool.
      was_held: `[B, R]` bool, some entry held the stale text at some time.
      present: `[B, R, W]`; length 0 = taken back.
      told: `[B]` int32 number of revisions.
    """
    any_entry = lambda x: (x & entry_valid[:, :, None]).any(1)  # noqa: E731
    replaced = jnp.where(present.length > 0, any_entry(holds_present), was_held)
    done = ~any_entry(holds_stale) & replaced & (jnp.arange(was_held.shape[1]) < told[:, None])
    return (done.sum(1) / jnp.maximum(told, 1)).astype(jnp.float32)


def store_quality(
    holds: jax.Array, entry_valid: jax.Array, gold_valid: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Memory quality by rule: the gold facts are there, and nothing else.

    Args:
      holds: `[B, N, Gf]` bool, from `holds`.
      entry_valid: `[B, N]` bool.
      gold_valid: `[B, Gf]` bool.

    Returns:
      coverage: `[B]` float32, share of gold facts that some entry holds.
      precision: `[B]` float32, share of entries that hold some gold fact.
      quality: `[B]` float32, harmonic mean of the two. Each is 0 where there is nothing to count.
    """
    holds = holds & entry_valid[:, :, None] & gold_valid[:, None, :]
    coverage = holds.any(1).sum(1) / jnp.maximum(gold_valid.sum(1), 1)
    precision = holds.any(2).sum(1) / jnp.maximum(entry_valid.sum(1), 1)
    both = coverage + precision
    quality = jnp.where(both > 0, 2.0 * coverage * precision / jnp.where(both > 0, both, 1.0), 0.0)
    return coverage, precision, quality


def token_share(keys: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """Share of key tokens that occur in a text (the paper's preservation, by token).

    Args:
      keys: `[B, Kq]` int32, PAD_ID where unused.
      tokens: `[B, C]` int32.
      length: `[B]` int32 real tokens.

    Returns:
      `[B]` float32 in [0, 1]; 1 where there are no keys: nothing is lost.
    """
    used = keys != PAD_ID
    real = jnp.arange(tokens.shape[1]) < length[:, None]
    found = ((keys[:, :, None] == tokens[:, None]) & real[:, None]).any(-1) & used
    return jnp.where(used.any(1), found.sum(1) / jnp.maximum(used.sum(1), 1), 1.0)


def view_share(
    texts: Text, count: jax.Array, tokens: jax.Array, message: jax.Array, length: jax.Array, messages: int,
    weight: jax.Array,
) -> jax.Array:  # fmt: skip
    """How much of some texts a context tells: the mean over them of the share that the best of its messages holds.

    The share is of the text's distinct tokens, by weight: of a message that tells it in whole 1, of one that tells
    half of it in other words about a half.

    Args:
      texts: `[B, D, W]`.
      count: `[B]` int32 texts.
      tokens, message: `[B, C]` int32, the context's tokens and the message of each, 0 to `messages` - 1.
      length: `[B]` int32 tokens of the context.
      weight: `[V]` float32, at least 0; as for `overlap`.

    Returns:
      `[B]` float32 in [0, 1]; 1 where there are no texts: nothing is lost.
    """
    key, key_weight = _keys(texts, weight)
    once = key < weight.shape[0]  # the second and later ones of a token have larger keys
    key_weight = jnp.where(once, key_weight, 0.0)
    real = jnp.arange(tokens.shape[1]) < length[:, None]
    of_message = (jax.nn.one_hot(message, messages) * real[..., None]).astype(jnp.float32)  # [B, C, M]

    def share(text: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, key_weight = text  # [B, W]
        same = (key[:, :, None] == tokens[:, None]).astype(jnp.float32)
        told = jnp.einsum("bwc,bcm->bwm", same, of_message) > 0
        return jnp.max(jnp.sum(told * key_weight[:, :, None], 1), -1) / jnp.maximum(key_weight.sum(-1), 1e-9)

    shares = lax.map(share, (jnp.moveaxis(key, 1, 0), jnp.moveaxis(key_weight, 1, 0))).T  # [B, D]
    valid = jnp.arange(shares.shape[1]) < count[:, None]
    return jnp.where(count > 0, jnp.sum(shares * valid, 1) / jnp.maximum(count, 1), 1.0)


def _encode(text: str) -> bytes:
    """UTF-8 with U+0000 moved out of the way of NOTHING."""
    return text.encode("utf-8").replace(b"\0", bytes([NUL]))


def _hash(word: bytes) -> list[int]:
    values = [0, 0]
    for byte in word:
        values = [(value * base + byte) % 2**32 for value, base in zip(values, HASH_BASES, strict=True)]
    return values


def _normalized_bytes(token: bytes) -> bytes:
    """One token's row: its text normalised character by character; bytes of split characters as they are."""
    out = bytearray()
    # Undecodable bytes become lone surrogates, and those bytes again when encoded.
    for char in "".join(c.lower() for c in token.decode("utf-8", "surrogateescape")):
        if char.isspace():
            out += b"" if out.endswith(b" ") else b" "
        elif char in string.punctuation:
            continue
        elif "\udc80" <= char <= "\udcff":
            out += char.encode("utf-8", "surrogateescape")
        elif char.isalnum():  # a word character of the regex; the other one, "_", is punctuation
            out += _encode(char)
        else:
            out += bytes([BOUNDARY]) + _encode(char) + bytes([BOUNDARY])
    return bytes(out)


def _byte_stream(table: jax.Array, text: Text) -> jax.Array:
    """The texts' normalised bytes without gaps, `[B, W x Lb]` uint8, NOTHING at the end."""
    real = jnp.arange(text.tokens.shape[1]) < text.length[:, None]
    stream = jnp.where(real[:, :, None], table[text.tokens], NOTHING).reshape(real.shape[0], -1)
    return jnp.take_along_axis(stream, jnp.argsort(stream == NOTHING, axis=1, stable=True), axis=1)


def _is_content(stream: jax.Array) -> jax.Array:
    return (stream != NOTHING) & (stream != SPACE) & (stream != BOUNDARY)


def _blank_articles(stream: jax.Array) -> jax.Array:
    """Each article that stands between word boundaries becomes spaces. `[B, X]` uint8 -> the same."""
    width = stream.shape[1]
    longest = max(map(len, ARTICLES))
    padded = jnp.pad(stream, ((0, 0), (1, longest)))
    at = lambda offset: padded[:, 1 + offset : 1 + offset + width]  # noqa: E731
    blank = jnp.zeros(stream.shape, bool)
    for article in ARTICLES:
        hit = ~_is_content(at(-1)) & ~_is_content(at(len(article)))
        for k, letter in enumerate(article):
            hit &= at(k) == letter
        for k in range(len(article)):
            blank |= jnp.pad(hit, ((0, 0), (k, 0)))[:, :width]
    return jnp.where(blank, SPACE, stream)


def _words(stream: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Words of byte streams, each told at the space after it.

    Args:
      stream: `[B, X]` uint8.

    Returns:
      is_word: `[B, X + 1]` bool, a word ends before this place.
      hashes: `[B, X + 1, 2]` uint32, that word's hash; arbitrary elsewhere.
    """
    stream = jnp.pad(stream, ((0, 0), (0, 1)), constant_values=SPACE).astype(jnp.uint32)
    content, space = _is_content(stream)[..., None], (stream == SPACE)[..., None]
    # Each byte maps h to h * factor + add. Two hashes, and the number of bytes, which is the hash of base 1 of ones.
    bases = jnp.array([*HASH_BASES, 1], jnp.uint32)
    factor = jnp.where(content, bases, jnp.where(space, 0, 1).astype(jnp.uint32))
    add = jnp.where(content, jnp.stack([stream, stream, jnp.ones_like(stream)], axis=-1), 0)

    def after(first, second):
        return first[0] * second[0], first[1] * second[0] + second[1]

    _, running = lax.associative_scan(after, (factor, add), axis=1)
    before = jnp.pad(running, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return space[..., 0] & (before[..., 2] > 0), before[..., :2]


def _keys(text: Text, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A key a place such that two texts share a key for each token of their multiset intersection.

    The key is (token, how many times it occurred before). `[B, N, L]` -> keys int32, weights float32, of that shape;
    keys of places without weight are -1, and their weights 0.
    """
    width = text.tokens.shape[-1]
    places = jnp.arange(width)
    token_weight = jnp.where(places < text.length[..., None], weight[text.tokens], 0.0).astype(jnp.float32)
    tokens = jnp.where(token_weight > 0, text.tokens, -1)
    earlier = (tokens[..., :, None] == tokens[..., None, :]) & (places[None, :] < places[:, None])
    # token + V * occurrence: as small as a key can be, so that int32 holds it for any vocabulary and text in use
    return jnp.where(tokens >= 0, tokens + weight.shape[0] * earlier.sum(-1), -1), token_weight
