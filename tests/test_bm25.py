"""BM25 over a store against a slow twin, entry by entry."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.data.batches import pad_texts, stack
from agemem_jax.memory import bm25, equality
from agemem_jax.memory import store as store_lib
from agemem_jax.memory.encoder import TokenTable
from agemem_jax.types import Text

PIECES = [None, b" Ada", b" ada", b".", b" was", b" born", b" in", b" Halden", b" Oslo", b" river", b" 1984"]
WORDS = ["", "ada", "ada", "", "was", "born", "in", "halden", "oslo", "river", "1984"]


def twin(entries: list[list[int]], query: list[int]) -> list[float]:
    """Scores of entries, word by word."""
    told = [[WORDS[i] for i in entry if WORDS[i]] for entry in entries]
    mean = sum(map(len, told)) / len(told)
    out = []
    for words in told:
        total = 0.0
        for word in (WORDS[i] for i in query):
            holding = sum(word in other for other in told)
            idf = math.log(1 + (len(told) - holding + 0.5) / (holding + 0.5))
            times = words.count(word) if word else 0
            total += idf * times * 2.5 / (times + 1.5 * (0.25 + 0.75 * len(words) / mean))
        out.append(total)
    return out


def test_scores_are_those_of_the_twin_among_an_owners_entries():
    rng = np.random.default_rng(0)
    batch, count, width = 4, 6, 7
    size = lambda: rng.integers(1, width + 1)  # noqa: E731
    texts = [[rng.integers(1, len(PIECES), size()).tolist() for _ in range(count)] for _ in range(batch)]
    owners = np.arange(count) % 2
    store = store_lib.empty(batch, count + 2, width, 4, 1, 1)
    table, same = TokenTable(jnp.ones((len(PIECES), 4))), equality.equality_table(PIECES)
    add = jax.jit(partial(store_lib.add, encode=table, equality=same, duplicates="add"))
    tags = Text(jnp.zeros((batch, 1, 2, 1), jnp.int32), jnp.zeros((batch, 1, 2), jnp.int32))
    for i in range(count):
        text = jax.tree.map(jnp.asarray, stack([pad_texts([row[i]], 1, width) for row in texts]))
        here = jnp.full(batch, owners[i], jnp.int32)
        store, _, _ = add(store, here >= 0, Text(text.tokens[:, 0], text.length[:, 0]), tags, here, here, here)
    queries = [rng.integers(1, len(PIECES), 5).tolist() for _ in range(batch)]
    query = pad_texts(queries, batch, 8)
    words = jnp.asarray(bm25.word_table(PIECES))
    assert words[1] == words[2] and words[3] == 0 == words[0]
    found = bm25.scores(store, jax.tree.map(jnp.asarray, query), jnp.ones(batch, jnp.int32), words)
    for b in range(batch):
        mine = [i for i in range(count) if owners[i] == 1]
        np.testing.assert_allclose(found[b, jnp.array(mine)], twin([texts[b][i] for i in mine], queries[b]), rtol=1e-5)
        assert (np.delete(np.asarray(found[b]), mine) == 0).all()
    best = store_lib.best(store, found, found > 0, jnp.full(batch, 2), 2)
    scores = np.where(np.asarray(found) > 0, np.asarray(found), -1)
    assert (np.asarray(best.score[:, 0]) == scores.max(1).clip(0)).all()
