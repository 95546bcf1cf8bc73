"""Decoding with a cache: a prefix shared by a prompt's rows, each row's history, and the slot being generated.

A row's sequence is its prompt's *prefix*, then its own context. The context's keys lie in the row's *history* (columns
0..cached-1; each row has its own count), and what one generation adds lies in a *slot*, whose columns all rows fill in
step (a scalar column index, so a write is one cheap update), until `merge_slot` moves them behind each row's history.
Context token j has position prefix length + j. An edit of the context only lowers `cached`: columns from there on are
not read, and are overwritten by what comes next.

Caches are tuples over layers of (K, V), K `[B, KV, HD, S]` and V `[B, KV, S, HD]`, and the layers are unrolled: a scan
over stacked caches would copy all of them for every token. Prompt n's rows are n * R .. n * R + R - 1.
"""

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.models import qwen
from agemem_jax.models.qwen import Keys, ModelConfig

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer (K [B, KV, HD, S], V [B, KV, S, HD])


@struct.dataclass
class PrefixCache:
    """Keys and values of Np prompts, each shared by its rows."""

    kv: Cache  # per layer (K [Np, KV, HD, P], V [Np, KV, P, HD])
    length: jax.Array  # [Np] int32


def _empty(config: ModelConfig, batch: int, columns: int) -> Cache:
    kv, hd, dtype = config.num_kv_heads, config.head_dim, jnp.dtype(config.dtype)
    return tuple(
        (jnp.zeros((batch, kv, hd, columns), dtype), jnp.zeros((batch, kv, columns, hd), dtype))
        for _ in range(config.num_layers)
    )


def init_history(config: ModelConfig, batch: int, capacity: int) -> Cache:
    """An empty history of `capacity` context tokens for each of `batch` rows."""
    return _empty(config, batch, capacity)


def init_slot(config: ModelConfig, batch: int, width: int) -> Cache:
    """An empty slot for generations of up to `width` tokens."""
    return _empty(config, batch, width)


def split_layers(params: dict) -> dict:
    """The same parameters with `layers` a tuple of per-layer trees; every function here takes either form.

    Done once outside a token loop it saves a few percent on a CPU, where XLA otherwise slices the stacked parameters
    for every token; the barrier keeps it from moving the slices into the loop.
    """
    return {**params, "layers": jax.lax.optimization_barrier(_layers(params))}


def _layers(params: dict) -> tuple[dict, ...]:
    layers = params["layers"]
    if isinstance(layers, tuple):
        return layers
    count = layers["input_layernorm"]["weight"].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count))


def encode_prefix(
    params: dict, config: ModelConfig, tokens: jax.Array, length: jax.Array
) -> tuple[PrefixCache, jax.Array]:
    """Runs prompts `tokens [Np, P]` of `length [Np]`; returns their cache and the last real token's hidden `[Np, D]`.

    With P = 0 the cache is empty and the hidden states are zero.
    """
    n, p = tokens.shape
    if p == 0:
        return PrefixCache(_empty(config, n, 0), length), jnp.zeros((n, config.hidden_size), jnp.dtype(config.dtype))
    rope = qwen.rope_table(config, jnp.arange(p)[None])

    x = qwen.embed(params, config, tokens)
    kv = []
    for layer in _layers(params):
        attend = lambda q, k, v: (qwen.attention(q, [Keys(k, v, qwen.causal_mask(p))]), (k, v))  # noqa: E731
        x, own = qwen.apply_layer(layer, config, x, rope, attend)
        kv.append(own)
    return PrefixCache(tuple(kv), length), last_of(x, length)


def last_of(hidden: jax.Array, count: jax.Array) -> jax.Array:
    """`[B, D]`: each row's last real token of `hidden [B, W, D]`, of which `count [B]` are real; the first if none."""
    at = jnp.maximum(count - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, at, axis=1)[:, 0]


def _write_columns(cache: jax.Array, new: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """`new` written into `cache` along `axis` (of one row) from each row's own `start [B]`."""

    def write(cache, new, start):
        at = [0] * cache.ndim
        at[axis] = start
        return jax.lax.dynamic_update_slice(cache, new, at)

    return jax.vmap(write)(cache, new, start)


def _write(
    kv: tuple[jax.Array, jax.Array], k: jax.Array, v: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _write_columns(kv[0], k, start, 2), _write_columns(kv[1], v, start, 1)


def _prefix_seen(prefix: PrefixCache) -> jax.Array:
    return (jnp.arange(prefix.kv[0][0].shape[-1]) < prefix.length[:, None])[:, None]


def extend(
    params: dict,
    config: ModelConfig,
    prefix: PrefixCache,
    history: Cache,
    cached: jax.Array,
    tokens: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs up to W new context tokens of each row and appends them to its history.

    Args:
      history: columns 0..cached[b]-1 of row b are real; the capacity must be at least cached + W.
      cached: `[B]` int32.
      tokens: `[B, W]` int32, of which the first `count [B]` are real (a row may have none). What the others leave
        behind lies at columns from cached + count on, which are overwritten before they are ever read.

    Returns:
      The last layer's output `[B, W, D]` (`last_of` picks the last real token's) and the history; the caller's new
      `cached` is cached + count.
    """
    b, w = tokens.shape
    at = cached[:, None] + jnp.arange(w)  # [B, W] context index of each token
    rope = qwen.rope_table(config, jnp.repeat(prefix.length, b // prefix.length.shape[0])[:, None] + at)
    prefix_seen = _prefix_seen(prefix)
    seen = jnp.arange(history[0][0].shape[-1]) <= at[..., None]
    x = qwen.embed(params, config, tokens)
    new = []
    for layer, shared, own in zip(_layers(params), prefix.kv, history, strict=True):

        def attend(q, k, v, shared=shared, own=own):
            own = _write(own, k, v, cached)
            return qwen.attention(q, [Keys(*shared, prefix_seen), Keys(*own, seen)]), own

        x, own = qwen.apply_layer(layer, config, x, rope, attend)
        new.append(own)
    return x, tuple(new)


def decode_step(
    params: dict,
    config: ModelConfig,
    prefix: PrefixCache,
    history: Cache,
    cached: jax.Array,
    slot: Cache,
    column: jax.Array,
    token: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs one token of each row: `token [B]` at slot column `column` (a scalar), position prefix + cached + column.

    Returns the last layer's output `[B, D]` and the slot with that column written. The history is only read.
    """
    b = token.shape[0]
    position = jnp.repeat(prefix.length, b // prefix.length.shape[0]) + cached + column
    rope = qwen.rope_table(config, position[:, None])
    prefix_seen = _prefix_seen(prefix)
    history_seen = (jnp.arange(history[0][0].shape[-1]) < cached[:, None])[:, None]
    slot_seen = (jnp.arange(slot[0][0].shape[-1]) <= column)[None, None]
    x = qwen.embed(params, config, token)[:, None]
    new = []
    for layer, shared, past, own in zip(_layers(params), prefix.kv, history, slot, strict=True):

        def attend(q, k, v, shared=shared, past=past, own=own):
            own = (
                jax.lax.dynamic_update_slice(own[0], k, (0, 0, 0, column)),
                jax.lax.dynamic_update_slice(own[1], v, (0, 0, column, 0)),
            )
            parts = [Keys(*shared, prefix_seen), Keys(*past, history_seen), Keys(*own, slot_seen)]
            return qwen.attention(q, parts), own

        x, own = qwen.apply_layer(layer, config, x, rope, attend)
        new.append(own)
    return x[:, 0], tuple(new)


def merge_slot(history: Cache, slot: Cache, start: jax.Array) -> Cache:
    """Appends the slot's columns to each row's history at its own `start [B]` (its `cached` when the slot began).

    The capacity must be at least start + the slot's width; columns past what a row really wrote are overwritten later.
    """
    return tuple(_write(own, k, v, start) for own, (k, v) in zip(history, slot, strict=True))
