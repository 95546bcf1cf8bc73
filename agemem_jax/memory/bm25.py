"""BM25 over the entries of a store: k1 = 1.5 and b = 0.75, as rank_bm25's Okapi, with Lucene's idf, which is positive.

Words are tokens, without case and punctuation (memory/encoder.py: word_of); a vocabulary of word pieces counts pieces.
"""

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.memory.encoder import word_of
from agemem_jax.memory.store import MemoryStore
from agemem_jax.types import Text

K1, B = 1.5, 0.75


def word_table(token_bytes: list[bytes | None]) -> np.ndarray:
    """Number of the word of each token [V] int32, on the host; 0 of a token without one."""
    words = [word_of(piece) for piece in token_bytes]
    numbers = {word: i for i, word in enumerate(dict.fromkeys(filter(None, words)), 1)}
    return np.array([numbers.get(word, 0) for word in words], np.int32)


def scores(store: MemoryStore, query: Text, owner: jax.Array, words: jax.Array) -> jax.Array:
    """What each entry of the owner [B] has of a query [B, W]: [B, N] float32, 0 without a common word.

    words: [V] of `word_table`.
    """
    real = lambda text: jnp.arange(text.tokens.shape[-1]) < text.length[..., None]  # noqa: E731
    entries = Text(store.tokens, store.length)
    mine = store.valid & (store.owner == owner[:, None])
    told = jnp.where(real(entries) & mine[..., None], words[store.tokens], 0)  # [B, N, L]
    asked = jnp.where(real(query), words[query.tokens], 0)  # [B, W]
    size, count = (told > 0).sum(-1), mine.sum(1, keepdims=True)
    mean = size.sum(1, keepdims=True) / jnp.maximum(count, 1)
    weight = K1 * (1 - B + B * size / jnp.maximum(mean, 1e-6))

    def add(total: jax.Array, word: jax.Array) -> tuple[jax.Array, None]:
        times = ((told == word[:, None, None]) & (word > 0)[:, None, None]).sum(-1)
        found = (times > 0).sum(1, keepdims=True)
        idf = jnp.log(1 + (count - found + 0.5) / (found + 0.5))
        return total + idf * times * (K1 + 1) / (times + weight), None

    return jax.lax.scan(add, jnp.zeros(size.shape), asked.T)[0]
