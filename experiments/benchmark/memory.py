"""Our store at the sizes of benchmark_memory: operations per second of 64 agents, and 64 writers at once.

An operation of all agents is one call of a jitted function that a donated store goes through, and waits for its end:
in a stage program it would not even come back to the host. Vectors are given ("store only"), or made by the lexical
encoder of the tokens inside the call ("with embedding").
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.memory import store as memory
from agemem_jax.memory.encoder import Encoder, Known, TokenTable
from agemem_jax.memory.equality import EqualityTable, equality_table
from agemem_jax.types import NO_ID, Status, Text
from experiments.benchmark.peers.memory import AGENTS, ROUNDS, TOP_K, WIDTH

VOCABULARY, ENTRY_TOKENS, TAG_SLOTS, TAG_TOKENS = 4096, 32, 3, 8
WRITES = 10  # of each writer


def measure(entries: int, width: int = WIDTH) -> dict:
    """{"store_only" and "with_embedding": {operation: per second}} at so many entries of each agent."""
    equality = jax.tree.map(jnp.asarray, equality_table([b"word%d " % i for i in range(VOCABULARY)]))
    table = TokenTable(jax.random.normal(jax.random.key(0), (VOCABULARY, width)))
    vectors = jax.random.normal(jax.random.key(1), (AGENTS, width))
    given = Known(vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True))
    return {
        name: {
            operation: rate(operate, filled(entries, width), entries)
            for operation, operate in operations(encode, equality).items()
        }
        for name, encode in (("store_only", given), ("with_embedding", table))
    }


def operations(encode: Encoder, equality: EqualityTable) -> dict[str, Callable]:
    """{name: (store, texts, number of the round) -> (store, what came of it)}, of all agents at once."""
    on, none = jnp.ones((AGENTS,), bool), jnp.zeros((AGENTS,), jnp.int32)
    tags = Text(jnp.zeros((AGENTS, TAG_SLOTS, 2, TAG_TOKENS), jnp.int32), jnp.zeros((AGENTS, TAG_SLOTS, 2), jnp.int32))

    def search(store, texts, number):
        return memory.retrieve(store, on, texts, none + TOP_K, None, none, encode, TOP_K)[:2]

    def add(store, texts, number, duplicates="add"):
        return memory.add(store, on, texts, tags, none, none, none, encode, equality, duplicates)[:2]

    def add_unless_known(store, texts, number):
        return add(store, texts, number, "refuse")

    def update(store, texts, number):
        return memory.update(store, on, none + number + 1, texts, tags, none, none, encode, equality)

    def delete(store, texts, number):
        return memory.delete(store, on, none + number + 1, on, none)

    return {name.__name__: name for name in (search, add, add_unless_known, update, delete)}


def filled(entries: int, width: int) -> memory.MemoryStore:
    """A store with so many entries of each agent, and room for those that the rounds add."""
    places = entries + 1 + ROUNDS.get(entries, 3)
    store = memory.empty(AGENTS, places, ENTRY_TOKENS, width, TAG_SLOTS, TAG_TOKENS)
    held = jnp.broadcast_to(jnp.arange(places) < entries, (AGENTS, places))

    @jax.jit
    def fill(key):
        keys = jax.random.split(key, 3)
        vectors = jax.random.normal(keys[0], store.embedding.shape)
        vectors = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        tokens = jax.random.randint(keys[1], store.tokens.shape, 1, VOCABULARY)
        return store.replace(
            tokens=jnp.where(held[..., None], tokens, 0),
            length=jnp.where(held, ENTRY_TOKENS, 0),
            embedding=jnp.where(held[..., None], vectors, 0),
            key=jnp.where(held[..., None], jax.random.bits(keys[2], store.key.shape), 0),
            valid=held,
            id=jnp.where(held, jnp.arange(1, places + 1), NO_ID),
            next_id=jnp.full((AGENTS,), entries + 1, jnp.int32),
        )

    return fill(jax.random.key(2))


def rate(operate: Callable, store: memory.MemoryStore, entries: int) -> float:
    """Operations per second: the median of the rounds, without the first, which compiles."""
    run, rng, seconds = jax.jit(operate, donate_argnums=0), np.random.default_rng(0), []
    for number in range(1 + ROUNDS.get(entries, 3)):
        tokens = jnp.asarray(rng.integers(1, VOCABULARY, (AGENTS, ENTRY_TOKENS)), jnp.int32)
        texts = Text(tokens, jnp.full((AGENTS,), ENTRY_TOKENS, jnp.int32))
        jax.block_until_ready((store, texts))
        began = time.perf_counter()
        store, came = run(store, texts, jnp.int32(number))
        jax.block_until_ready((store, came))
        seconds.append(time.perf_counter() - began)
        if operate.__name__ != "search":
            assert bool((came == Status.OK).all()), operate.__name__
    return round(AGENTS / statistics.median(seconds[1:]), 2)


def writers(width: int = WIDTH) -> dict:
    """64 writers at once, WRITES times: how many additions were acknowledged, and how many of these are readable."""
    equality = jax.tree.map(jnp.asarray, equality_table([b"word%d " % i for i in range(VOCABULARY)]))
    table = TokenTable(jax.random.normal(jax.random.key(0), (VOCABULARY, width)))
    store = memory.empty(AGENTS, WRITES, ENTRY_TOKENS, width, TAG_SLOTS, TAG_TOKENS)
    made = operations(table, equality)
    add, search = jax.jit(made["add"], donate_argnums=0), jax.jit(made["search"])
    rng, rows, readable = np.random.default_rng(0), [], 0
    for number in range(WRITES):
        tokens = jnp.asarray(rng.integers(1, VOCABULARY, (AGENTS, ENTRY_TOKENS)), jnp.int32)
        texts = Text(tokens, jnp.full((AGENTS,), ENTRY_TOKENS, jnp.int32))
        store, status = add(store, texts, jnp.int32(number))
        rows.append((texts, np.asarray(status == Status.OK)))
    for texts, acknowledged in rows:
        _, found = search(store, texts, jnp.int32(0))
        same = np.asarray(found.tokens[:, 0] == texts.tokens).all(1)
        readable += int((same & acknowledged).sum())
    return {"writes": AGENTS * WRITES, "acknowledged": int(sum(ok.sum() for _, ok in rows)), "readable": readable}
