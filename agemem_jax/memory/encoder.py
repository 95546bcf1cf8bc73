"""Text to unit vectors: what the store compares.

The paper does not name its encoder enc(.). Here it is a bag of tokens over a fixed table `[V, E]`, either lexical
(random directions, equal words share one) or the policy's own frozen token embeddings, both of which weigh rare tokens
up by inverse document frequency; or a decoder that reads the text (rollout/reader.py). Tables and parameters are
arguments of every function that needs them, never trained.

What the store calls is an `Encoder`: encode(text `[B, W]`, is_query) -> `[B, E]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.types import Text

# (text [B, W], is_query: whether it asks for entries, else it is one) -> [B, E] float32, unit norm, or zero
Encoder = Callable[[Text, bool], jax.Array]


@struct.dataclass
class TokenTable:
    """The Encoder that is a bag of tokens; queries and entries are alike."""

    rows: jax.Array  # [V, E]

    def __call__(self, text: Text, is_query: bool) -> jax.Array:
        return encode(self.rows, text)


@struct.dataclass
class Known:
    """The Encoder of one text that a decoder has read before: outside of what each device does with its own rows, since
    the decoder may be cut over devices.
    """

    vectors: jax.Array  # [B, E]

    def __call__(self, text: Text, is_query: bool) -> jax.Array:
        return self.vectors


def encode(table: jax.Array, text: Text) -> jax.Array:
    """Unit-norm sum of the table rows of the text's real tokens: `[V, E]`, `[..., W]` -> `[..., E]` float32.

    The zero vector for an empty text, or one whose tokens all weigh nothing. Tokens outside the table weigh nothing.
    """
    real = jnp.arange(text.tokens.shape[-1]) < text.length[..., None]
    return unit(jnp.sum(jnp.where(real[..., None], token_rows(table, text.tokens), 0), axis=-2))


def token_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of the table, zeros for tokens outside it: `[V, E]`, `[..., W]` -> `[..., W, E]` float32."""
    rows = jnp.asarray(table).at[tokens].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return rows.astype(jnp.float32)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors `[..., E]` divided by their norm; zero vectors stay zero."""
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norm > 0, norm, 1)


def lexical_table(token_bytes: list[bytes | None], counts: np.ndarray | None, size: int, seed: int) -> np.ndarray:
    """Random directions of +-1/sqrt(E), one for each normalised word, weighted by idf: `[V, E]` float32 (host).

    Tokens are normalised by lower case and by stripping what is neither letter nor digit from both ends, so that
    "Paris", " paris" and "PARIS" share a direction (and their document frequencies add up). Weigh 0: tokens that are
    None (special) and those of which nothing is left (spaces, punctuation, control characters). Bytes that are not
    whole UTF-8 are words of their own.

    Args:
        token_bytes: the bytes of each token, None for special tokens; a leading space mark may be left on.
        counts: `[V]` number of documents that hold the token, or None for equal weights.
        size: E; cosines of unrelated words are then of the order 1/sqrt(E).
        seed: of the directions.

    Raises:
        ValueError: if `counts` does not have one number per token, or `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"store.embedding_size is {size}; it must be at least 1")
    words = [word_of(piece) for piece in token_bytes]
    known = sorted({word for word in words if word}, key=lambda word: (isinstance(word, bytes), word))
    number = {word: i for i, word in enumerate(known)}
    row = np.array([number.get(word, len(known)) for word in words])  # the last row is of weightless tokens

    if counts is None:
        weight = np.ones(len(known))
    else:
        _check_counts(counts, len(words))
        weight = _idf(np.bincount(row, weights=counts, minlength=len(known) + 1)[: len(known)])
    signs = np.random.default_rng(seed).integers(0, 2, (len(known), size), dtype=np.int8)
    directions = (2.0 * signs - 1.0) / np.sqrt(size) * weight[:, None]
    return np.concatenate([directions, np.zeros((1, size))]).astype(np.float32)[row]


def policy_table(embedding: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """The policy's frozen token embeddings `[V, D]`, minus their mean, weighted by idf: `[V, D]` float32 (host).

    Without the mean's removal all cosines are close to 1: embedding rows share a large common part.

    Args:
        embedding: `[V, D]` rows of the starting policy.
        counts: `[V]` number of documents that hold the token, or None for equal weights.

    Raises:
        ValueError: if `counts` does not have one number per row.
    """
    rows = np.asarray(embedding, np.float32)
    rows = rows - rows.mean(axis=0)
    if counts is None:
        return rows
    _check_counts(counts, len(rows))
    return (rows * _idf(np.asarray(counts, np.float64))[:, None]).astype(np.float32)


def _idf(frequency: np.ndarray) -> np.ndarray:
    """log((n + 1) / (f + 1)) with n the largest frequency: the most frequent word weighs nothing.

    A word that was never seen weighs the median of those that were: nothing is known of it, least of all that it is
    the most telling one of a text.
    """
    seen = frequency > 0
    if not seen.any():
        return np.ones(len(frequency))
    weight = np.log((frequency.max() + 1) / (frequency + 1))
    return np.where(seen, weight, np.median(weight[seen]))


def word_of(piece: bytes | None) -> str | bytes:
    """The word of a token; "" if it has none, the bytes themselves if they are not whole UTF-8."""
    try:
        text = (piece or b"").decode().lower()
    except UnicodeDecodeError:
        return piece
    places = [i for i, character in enumerate(text) if character.isalnum()]
    return text[places[0] : places[-1] + 1] if places else ""


def _check_counts(counts: np.ndarray, tokens: int) -> None:
    if np.shape(counts) != (tokens,):
        raise ValueError(f"counts has shape {np.shape(counts)}; it must hold one number for each of {tokens} tokens")
