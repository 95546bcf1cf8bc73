"""Decoding with a cache: a prefix shared by a prompt's rows, each row's history, and the slot being generated.

A row's sequence is its prompt's *prefix*, then its own context. The context's keys lie in the row's *history* (columns
0..cached-1; each row has its own count), and what one generation adds lies in a *slot*, until `merge_slot` moves it
behind each row's history. In `decode_step` all rows fill the slot's columns in step (a scalar column index, so a write
is one cheap update); in `decode_steps` each row has a column of its own. Context token j has position prefix length +
j. An edit of the context only lowers `cached`: columns from there on are not read, and are overwritten by what comes
next.

Caches have one of two forms. Unrolled: a tuple over layers of (K [B, KV, HD, S], V [B, KV, S, HD]), the layers one
after another in the program, which is fastest on a CPU: a loop over stacked layers copies all of them for every token.
With `config.scan_layers`: one (K, V) with the layers stacked in front, and a loop, whose program is small whatever the
depth, and which TPUs read and update in place; GPUs copy each layer before they read it. Prompt n's rows are
n * R .. n * R + R - 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.models import qwen
from agemem_jax.models.attention import Keys
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.sharding import Layout

KV = tuple[jax.Array, jax.Array]
Cache = tuple[KV, ...] | KV  # unrolled: per layer; scanned: the layers stacked in front
COLUMN_AXIS = (-1, -2)  # of K and V


@struct.dataclass
class PrefixCache:
    """Keys and values of Np prompts, each shared by its rows."""

    kv: Cache  # of layers (K [Np, KV, HD, P], V [Np, KV, P, HD])
    length: jax.Array  # [Np] int32
    tokens: jax.Array  # [Np, P] int32 what they say


def _empty(config: ModelConfig, batch: int, columns: int) -> Cache:
    kv, hd, dtype = config.num_kv_heads, config.head_dim, jnp.dtype(config.dtype)
    stack = (config.num_layers,) if config.scan_layers else ()
    pair = lambda: (  # noqa: E731
        _constrain(config, jnp.zeros((*stack, batch, kv, hd, columns), dtype)),
        _constrain(config, jnp.zeros((*stack, batch, kv, columns, hd), dtype)),
    )
    return pair() if config.scan_layers else tuple(pair() for _ in range(config.num_layers))


def _constrain(config: ModelConfig, x: jax.Array) -> jax.Array:
    """K or V, of one layer or stacked, with rows and heads cut as the layout says."""
    return config.layout.constrain(x, *_names(x))


def _names(x: jax.Array) -> tuple[str | None, ...]:
    rows = "rows" if x.shape[-4] > 1 else None
    return (*["layers"] * (x.ndim - 4), rows, "kv_heads", None, None)


def shardings(cache: Cache, layout: Layout) -> Cache:
    """Where a cache's arrays lie (shapes will do)."""
    return jax.tree.map(lambda x: layout.sharding(*_names(x)), cache)


def init_history(config: ModelConfig, batch: int, capacity: int) -> Cache:
    """An empty history of `capacity` context tokens for each of `batch` rows."""
    return _empty(config, batch, capacity)


def init_slot(config: ModelConfig, batch: int, width: int) -> Cache:
    """An empty slot for generations of up to `width` tokens."""
    return _empty(config, batch, width)


def is_stacked(cache: Cache) -> bool:
    """Whether the layers lie in one pair of arrays."""
    return not isinstance(cache[0], tuple)


def columns(cache: Cache) -> int:
    """S, the columns that a row has."""
    return jax.tree.leaves(cache)[0].shape[-1]


def first_columns(cache: Cache, count: int) -> Cache:
    """The cache cut to its first columns."""
    cut = lambda kv: (kv[0][..., :count], kv[1][..., :count, :])  # noqa: E731
    return cut(cache) if is_stacked(cache) else tuple(cut(kv) for kv in cache)


def take_rows(cache: Cache, rows: jax.Array) -> Cache:
    """Some rows of a cache: `rows [n]` int32."""
    return jax.tree.map(lambda x: x[:, rows] if is_stacked(cache) else x[rows], cache)


def put_rows(cache: Cache, rows: jax.Array, new: Cache) -> Cache:
    """The cache with its rows `rows [n]`, all different, replaced by those of `new`."""

    def put(x, y):
        at = x.at[:, rows] if is_stacked(cache) else x.at[rows]
        return at.set(y, unique_indices=True)

    return jax.tree.map(put, cache, new)


def split_layers(params: dict, config: ModelConfig) -> dict:
    """The same parameters with `layers` a tuple of per-layer trees, unless the layers are scanned.

    Every function here takes either form. Done once outside a token loop it saves what XLA for CPUs and GPUs otherwise
    spends on slicing the stacked parameters for every token (half of a step of a 0.5B model on 2 CPU cores); the
    barrier keeps it from moving the slices into the loop. It costs a second copy of the layers while it lasts.
    """
    if config.scan_layers:
        return params
    return {**params, "layers": jax.lax.optimization_barrier(_layers(params))}


def for_decoding(params: dict, config: ModelConfig) -> dict:
    """Parameters as token loops read them best.

    An accelerator alone keeps the stacked ones, which are the state's own arrays: its memory is dearer. Spread over
    several, they have been brought to the rollout's layout, and are copies already.
    """
    layout = config.layout
    return split_layers(params, config) if layout.is_spread or layout.is_on_cpu else params


def _layers(params: dict) -> tuple[dict, ...]:
    layers = params["layers"]
    if isinstance(layers, tuple):
        return layers
    count = layers["input_layernorm"]["weight"].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count))


def _through_layers(
    params: dict,
    config: ModelConfig,
    x: jax.Array,
    rope: tuple,
    read: tuple[Cache, ...],
    own: Cache | None,
    write: Callable | None,
    attend: Callable,
) -> tuple[jax.Array, Cache]:
    """Runs `x [B, W, D]` through all layers.

    Args:
      read: caches that the layers read.
      own: the cache that each layer writes its keys and values to; None: they are collected into a new one.
      write: (K or V, new keys or values, which: 0 for K, 1 for V, layer) -> K or V with the new ones written. A `layer`
        that is not None means a stack of layers, of which this one is written.
      attend: (q, *the layer's parts of `read`, (K, V) of `own` after writing) -> mixed.

    Returns:
      (x, the cache written or collected).
    """
    if not config.scan_layers:
        new = []
        for i, layer in enumerate(_layers(params)):
            shared = [cache[i] for cache in read]

            def look(q, k, v, i=i, shared=shared):
                kv = (k, v) if own is None else (write(own[i][0], k, 0, None), write(own[i][1], v, 1, None))
                return attend(q, *shared, kv), kv

            x, kv = qwen.apply_layer(layer, config, x, rope, look)
            new.append(kv)
        return x, tuple(new)

    def step(carry, xs):
        x, own = carry
        i, layer, shared = xs

        def look(q, k, v):
            if own is None:
                return attend(q, *shared, (k, v)), (None, (k, v))
            stack = tuple(write(s, n, which, i) for which, (s, n) in enumerate(zip(own, (k, v), strict=True)))
            kv = tuple(jax.lax.dynamic_index_in_dim(s, i, 0, keepdims=False) for s in stack)
            return attend(q, *shared, kv), (stack, None)

        x, (own, made) = qwen.apply_layer(layer, config, x, rope, look)
        return (x, own), made

    (x, own), made = jax.lax.scan(step, (x, own), (jnp.arange(config.num_layers), params["layers"], read))
    return x, made if own is None else own


@jax.named_scope("prompt")
def encode_prefix(
    params: dict, config: ModelConfig, tokens: jax.Array, length: jax.Array
) -> tuple[PrefixCache, jax.Array]:
    """Runs prompts `tokens [Np, P]` of `length [Np]`; returns their cache and the last real token's hidden `[Np, D]`.

    With P = 0 the cache is empty and the hidden states are zero.
    """
    n, p = tokens.shape
    if p == 0:
        nothing = jnp.zeros((n, config.hidden_size), jnp.dtype(config.dtype))
        return PrefixCache(_empty(config, n, 0), length, tokens), nothing
    rope = qwen.rope_table(config, jnp.arange(p)[None])
    attend = lambda q, kv: qwen.attend_to(config, q, [Keys(*kv, offset=0)])  # noqa: E731
    x, kv = _through_layers(params, config, qwen.embed(params, config, tokens), rope, (), None, None, attend)
    return PrefixCache(kv, length, tokens), last_of(x, length)


def last_of(hidden: jax.Array, count: jax.Array) -> jax.Array:
    """`[B, D]`: each row's last real token of `hidden [B, W, D]`, of which `count [B]` are real; the first if none."""
    at = jnp.maximum(count - 1, 0)[:, None, None]
    return jnp.take_along_axis(hidden, at, axis=1)[:, 0]


def _behind(start: jax.Array) -> Callable:
    """A `write` of `_through_layers`: columns from each row's own `start [B]` on."""

    def write(cache: jax.Array, new: jax.Array, which: int, layer: Any) -> jax.Array:
        def one(row, new, start):
            at = [0] * row.ndim
            at[COLUMN_AXIS[which]] = start
            return jax.lax.dynamic_update_slice(row, new, at)

        if layer is None:
            return jax.vmap(one)(cache, new, start)
        whole = jax.lax.dynamic_index_in_dim(cache, layer, 0, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(cache, jax.vmap(one)(whole, new, start), layer, 0)

    return write


def _over(start: jax.Array) -> Callable:
    """A `write` to all layers of a small stack: columns from each row's own `start [B]` on, by a pass over all columns.

    A TPU writes columns of each row's own one row after another, and of a stack it copies all for each of them.
    """

    def write(cache: jax.Array, new: jax.Array, which: int, layer: Any) -> jax.Array:
        axis = COLUMN_AXIS[which]
        place = jnp.arange(cache.shape[axis]) - start[:, None]  # [B, S] which of the new columns each one becomes
        place = place[:, None, None] if axis == -1 else place[:, None, :, None]
        for i in range(new.shape[axis]):
            cache = jnp.where(place == i, jax.lax.slice_in_dim(new, i, i + 1, axis=axis), cache)
        return cache

    return write


def _at_column(column: jax.Array) -> Callable:
    """A `write` of `_through_layers`, unrolled: one column, the same for all rows (and layers, of a stack)."""

    def write(cache: jax.Array, new: jax.Array, which: int, layer: Any) -> jax.Array:
        at = [0] * cache.ndim
        at[COLUMN_AXIS[which]] = column
        return jax.lax.dynamic_update_slice(cache, new, at)

    return write


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

    def attend(q, shared, own):
        return qwen.attend_to(config, q, [Keys(*shared, length=prefix.length), Keys(*own, offset=cached)])

    x = qwen.embed(params, config, tokens)
    return _through_layers(params, config, x, rope, (prefix.kv,), history, _behind(cached), attend)


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

    seen = [dict(length=prefix.length), dict(length=cached)]
    x = qwen.embed(params, config, token)[:, None]
    if not config.scan_layers:

        def attend(q, shared, past, own):
            parts = zip((shared, past, own), (*seen, dict(length=column + 1)), strict=True)
            return qwen.attend_to(config, q, [Keys(*kv, **bound) for kv, bound in parts])

        x, slot = _through_layers(params, config, x, rope, (prefix.kv, history), slot, _at_column(column), attend)
        return x[:, 0], slot

    # In a loop over layers the slot is only read; a column written in each round would copy a layer's slot.
    def look(q, shared, past, slot, own):
        parts = zip((shared, past, slot, own), (*seen, dict(length=column), {}), strict=True)
        return qwen.attend_to(config, q, [Keys(*kv, **bound) for kv, bound in parts])

    x, new = _through_layers(params, config, x, rope, (prefix.kv, history, slot), None, None, look)
    put = _at_column(column)
    return x[:, 0], tuple(put(s, n, which, None) for which, (s, n) in enumerate(zip(slot, new, strict=True)))


def decode_steps(
    params: dict,
    config: ModelConfig,
    prefix: PrefixCache,
    history: Cache,
    cached: jax.Array,
    slot: Cache,
    column: jax.Array,
    tokens: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs W tokens of each row: `tokens [B, W]` at slot columns column[b] .. column[b] + W - 1, positions as above.

    `column [B]` is how many columns of each row's slot are real; what lies there from it on is overwritten, not read.
    The slot must have column + W columns.

    Returns the last layer's output `[B, W, D]` and the slot with these columns written. The history is only read.
    """
    b, w = tokens.shape
    position = jnp.repeat(prefix.length, b // prefix.length.shape[0]) + cached + column
    rope = qwen.rope_table(config, position[:, None] + jnp.arange(w))

    seen = [dict(length=prefix.length), dict(length=cached)]
    x = qwen.embed(params, config, tokens)
    if not config.scan_layers:

        def attend(q, shared, past, own):
            parts = zip((shared, past, own), (*seen, dict(offset=column)), strict=True)
            return qwen.attend_to(config, q, [Keys(*kv, **bound) for kv, bound in parts])

        return _through_layers(params, config, x, rope, (prefix.kv, history), slot, _behind(column), attend)

    def look(q, shared, past, slot, own):  # the slot is only read, as in decode_step
        parts = zip((shared, past, slot, own), (*seen, dict(length=column), dict(offset=0 * column)), strict=True)
        return qwen.attend_to(config, q, [Keys(*kv, **bound) for kv, bound in parts])

    x, new = _through_layers(params, config, x, rope, (prefix.kv, history, slot), None, None, look)
    put = _over(column)
    return x, tuple(put(s, n, which, None) for which, (s, n) in enumerate(zip(slot, new, strict=True)))


def merge_slot(history: Cache, slot: Cache, start: jax.Array) -> Cache:
    """Appends the slot's columns to each row's history at its own `start [B]` (its `cached` when the slot began).

    The capacity must be at least start + the slot's width; columns past what a row really wrote are overwritten later.
    """
    write = _behind(start)

    def pair(own: KV, new: KV, layer: Any = None) -> KV:
        return tuple(write(x, y, which, layer) for which, (x, y) in enumerate(zip(own, new, strict=True)))

    if not is_stacked(history):
        return tuple(pair(own, new) for own, new in zip(history, slot, strict=True))
    count = history[0].shape[0]
    return jax.lax.fori_loop(0, count, lambda i, own: pair(own, tuple(x[i] for x in slot), i), history)
