"""Softmax attention over several sets of keys, in three implementations (`policy.attention`).

    xla     any keys, any device. With `query_block` the queries run in blocks, and neither the forward nor the backward
            pass holds more scores than one block's
    splash  TPU: JAX's Pallas kernel splash_attention; a CPU interprets it (for tests: slow)
    cudnn   GPU: cuDNN's flash attention through jax.nn.dot_product_attention; bfloat16 or float16

The two kernels serve what the learner and the prompt's forward ask for: more than one query, each set of keys either
seen up to a length or, one of them, causal over the queries' own tokens (offset 0). Everything else runs as "xla"
whatever is chosen: decoding (one query: reading the cache is all the work, and no kernel reads it faster), and decoding
several tokens a step or prefill behind a history, where each row's queries begin at a column of their own.

Axes: B rows, W queries of a row, H heads, KV key-value heads, HD head size, S keys, n = B or a divisor of it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from agemem_jax.config import CHOICES
from agemem_jax.sharding import LOCAL, Layout

IMPLEMENTATIONS = CHOICES["policy.attention"]
MASKED = -1e9  # the score of a key that a query must not see; finite, so that a row without any key stays finite
RUNGS = 4  # causal queries in blocks: the first quarter of them tries a quarter of the keys, and so on: 5/8 of the work
SPLASH_BLOCK = (512, 1024)  # most queries, and most keys, of one step of the kernel
LANES = 128  # its blocks are multiples of this
MIXED = "mixed"  # the name under which results are kept for the backward pass (policy.remat)


class Keys(NamedTuple):
    """Keys and values that queries may attend to: of n = B rows, or of n < B prompts, each shared by B / n rows.

    Query i sees key j if j < length and j <= i + offset, where None is no bound. An offset that is the number 0 says
    that keys and queries are the same tokens, which lets an implementation skip what no query sees; a history that
    queries are appended to has an offset for each row (how many keys it held before).
    """

    k: jax.Array  # [n, KV, HD, S]
    v: jax.Array  # [n, KV, S, HD]
    length: jax.Array | None = None  # int32 [] or [n]
    offset: jax.Array | int | None = None  # int32 [] or [n], or a number


def attention(
    q: jax.Array, parts: list[Keys], implementation: str = "xla", query_block: int = 0, layout: Layout = LOCAL
) -> jax.Array:
    """Softmax attention of `q [B, W, H, HD]` over the union of `parts`; returns `[B, W, H * HD]`.

    A query that sees no key at all gets a finite result without meaning.

    Args:
      implementation: one of IMPLEMENTATIONS; the module's docstring says what each serves.
      query_block: of "xla": so many queries at a time; 0 is all at once.
      layout: where q and the keys live; the kernels run on each device's rows and heads by themselves. Rows that do not
        divide evenly are computed everywhere.

    Raises ValueError naming the config's field for a choice that does not exist or cannot work.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"policy.attention is {implementation!r}; choices are {', '.join(IMPLEMENTATIONS)}")
    b, w, h, hd = q.shape
    parts = [part for part in parts if part.k.shape[-1]]
    if implementation != "xla" and w > 1 and _serves(parts):
        kernel = _splash if implementation == "splash" else _cudnn
        out = _by_device(kernel, q, parts, layout, implementation)
    elif 0 < query_block < w:
        out = checkpoint_name(_in_blocks(q, parts, query_block, layout), MIXED)
    else:
        out = _exact(q, parts, 0)
    return out.reshape(b, w, h * hd)


def _visible(part: Keys, first: jax.Array | int, w: int) -> jax.Array | None:
    """Which keys queries first..first + w - 1 see: bool, broadcasts to `[n, w, S]`; None if all see all."""
    column = jnp.arange(part.k.shape[-1])
    seen = None
    if part.length is not None:
        seen = column < jnp.reshape(part.length, (-1, 1, 1))
    if part.offset is not None:
        causal = column <= (first + jnp.arange(w))[:, None] + jnp.reshape(part.offset, (-1, 1, 1))
        seen = causal if seen is None else seen & causal
    return seen


def _exact(q: jax.Array, parts: list[Keys], first: jax.Array | int) -> jax.Array:
    """Attention of queries `q [B, W, H, HD]`, of which the first one has the index `first`; returns the same shape.

    The parts meet only in the softmax's maximum and denominator: they are not concatenated, and neither shared keys nor
    grouped heads are repeated (a prompt's rows and a group's heads ride on the query axis of the matmul).
    """
    b, w, h, hd = q.shape
    kv = parts[0].k.shape[1]
    g = h // kv
    q = (q * hd**-0.5).reshape(b, w, kv, g, hd).transpose(0, 2, 3, 1, 4)  # [B, KV, G, W, HD]

    def fold(x, n):  # [B, KV, G, W, ...] -> [n, KV, B / n * G, W, ...]
        x = x.reshape(n, b // n, kv, g, *x.shape[3:]).swapaxes(1, 2)
        return x.reshape(n, kv, -1, *x.shape[4:])

    def unfold(x, n):
        return x.reshape(n, kv, b // n, g, *x.shape[3:]).swapaxes(1, 2).reshape(b, kv, g, *x.shape[3:])

    scores = []
    for part in parts:
        n = part.k.shape[0]
        s = jnp.matmul(fold(q, n).reshape(n, kv, -1, hd), part.k, preferred_element_type=jnp.float32)
        s = s.reshape(n, kv, -1, w, part.k.shape[-1])
        seen = _visible(part, first, w)
        scores.append(s if seen is None else jnp.where(seen[:, None, None], s, MASKED))
    top = functools.reduce(jnp.maximum, [unfold(s.max(-1), s.shape[0]) for s in scores])  # [B, KV, G, W]
    top = jax.lax.stop_gradient(top)

    total, out = 0.0, 0.0
    for part, s in zip(parts, scores, strict=True):
        v, n = part.v, part.v.shape[0]
        e = jnp.exp(s - fold(top, n)[..., None])
        o = jnp.matmul(e.astype(v.dtype).reshape(n, kv, -1, v.shape[2]), v, preferred_element_type=jnp.float32)
        total = total + unfold(e.sum(-1), n)
        out = out + unfold(o.reshape(n, kv, -1, w, hd), n)
    out = (out / total[..., None]).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4)


def _in_blocks(q: jax.Array, parts: list[Keys], block: int, layout: Layout) -> jax.Array:
    """`_exact` for `block` queries at a time, each block's scores made again in the backward pass."""
    b, w, h, hd = q.shape

    def place(x: jax.Array) -> jax.Array:  # [blocks, B, block, H, HD]: a loop forgets how its arrays are cut
        return layout.constrain(x, None, "rows" if b > 1 else None, None, "heads", None)

    count = -(-w // block)
    q = jnp.pad(q, ((0, 0), (0, count * block - w), (0, 0), (0, 0)))
    q = place(q.reshape(b, count, block, h, hd).swapaxes(0, 1))
    # Gradients of keys and values add up over the blocks: in float32, whatever type the keys have.
    dtype = parts[0].k.dtype
    parts = [part._replace(k=part.k.astype(jnp.float32), v=part.v.astype(jnp.float32)) for part in parts]

    def run(start: int, stop: int) -> jax.Array:  # blocks start..stop - 1, with the keys that any of them sees
        seen = [_up_to(part, stop * block) for part in parts]

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def attend(q, first, seen):
            return _exact(q, [x._replace(k=x.k.astype(dtype), v=x.v.astype(dtype)) for x in seen], first)

        firsts = jnp.arange(start, stop) * block
        return place(jax.lax.map(lambda x: attend(*x, seen), (q[start:stop], firsts)))

    causal = any(isinstance(part.offset, int) for part in parts)
    step = -(-count // RUNGS) if causal else count
    out = jnp.concatenate([run(start, min(start + step, count)) for start in range(0, count, step)])
    return out.swapaxes(0, 1).reshape(b, count * block, h, hd)[:, :w]


def _up_to(part: Keys, query: int) -> Keys:
    """The keys that queries before `query` may see, as far as that is known when the program is built."""
    if not isinstance(part.offset, int):
        return part
    stop = max(query + part.offset, 1)
    return part._replace(k=part.k[..., :stop], v=part.v[:, :, :stop])


def _serves(parts: list[Keys]) -> bool:
    """Whether the kernels can do it: every part seen by all queries up to its length, but for one that is causal."""
    bounds = [part.offset for part in parts if part.offset is not None]
    return len(bounds) <= 1 and all(isinstance(bound, int) and bound == 0 for bound in bounds)


def _by_device(kernel: Callable, q: jax.Array, parts: list[Keys], layout: Layout, name: str) -> jax.Array:
    """`kernel(q, parts, causal)` on each device's rows and heads.

    The kernel gets all parts with B rows and lengths `[B]` (or None); the last of them is the causal one if `causal`.
    """
    b = q.shape[0]
    parts = sorted(parts, key=lambda part: part.offset is not None)
    causal = parts[-1].offset is not None

    def of_rows(x):  # [n, ...] -> [B, ...]
        return jnp.repeat(x, b // x.shape[0], axis=0)

    full = []
    for part in parts:
        length = part.length
        if length is not None:
            length = of_rows(jnp.broadcast_to(length, part.k.shape[:1]).astype(jnp.int32))
        full.append(Keys(of_rows(part.k), of_rows(part.v), length))
    if not layout.is_spread:
        return kernel(q, full, causal)

    kv, ways = parts[0].k.shape[1], layout.ways("kv_heads")
    if kv % ways:
        raise ValueError(
            f"policy.attention is {name!r}, which cuts policy.num_kv_heads = {kv} into {ways} (mesh.tensor): that must "
            "divide evenly; lower mesh.tensor, or choose 'xla'"
        )
    rows = layout.axes("rows") if b % layout.ways("rows") == 0 else None
    heads = layout.axes("kv_heads")
    of_q, of_keys, of_length = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads), PartitionSpec(rows)
    specs = [Keys(of_keys, of_keys, None if part.length is None else of_length) for part in full]
    run = jax.shard_map(
        lambda q, parts: kernel(q, parts, causal),
        mesh=layout.mesh,
        in_specs=(of_q, specs),
        out_specs=of_q,
        check_vma=False,
    )
    return run(q, full)


def _block_of(size: int, most: int) -> int:
    """The kernel's block for an axis: at most `most`, with little padding."""
    count = -(-size // most)
    return -(-size // (count * LANES)) * LANES


def _splash(q: jax.Array, parts: list[Keys], causal: bool) -> jax.Array:
    """Pallas's splash attention of `q [B, W, H, HD]`; returns the same shape.

    Keys are laid behind one another: the causal part is the last, so that one causal mask that starts after the others
    is all. Keys past a length, and padding, are in another segment than the queries. Blocks that no query sees are
    skipped. Neither grouped heads are repeated nor a mask is kept.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # seconds of importing that others save

    b, w, h, hd = q.shape
    widths = [part.k.shape[-1] for part in parts]
    block_q, block_kv = _block_of(w, SPLASH_BLOCK[0]), _block_of(sum(widths), SPLASH_BLOCK[1])
    pad_q, pad_kv = -w % block_q, -sum(widths) % block_kv
    shape = (w + pad_q, sum(widths) + pad_kv)

    q = jnp.pad((q * hd**-0.5).transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, pad_q), (0, 0)))  # [B, H, W, HD]
    k = jnp.concatenate([part.k.swapaxes(2, 3) for part in parts], 2)  # [B, KV, S, HD]
    v = jnp.concatenate([part.v for part in parts], 2)
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, pad_kv), (0, 0))) for x in (k, v))
    segments = None
    if pad_kv or any(part.length is not None for part in parts):
        lengths = [jnp.full(b, s) if x.length is None else x.length for s, x in zip(widths, parts, strict=True)]
        seen = [jnp.arange(s) < length[:, None] for s, length in zip(widths, lengths, strict=True)]
        seen = jnp.pad(jnp.concatenate(seen, 1), ((0, 0), (0, pad_kv)))
        segments = splash.SegmentIds(jnp.ones((b, shape[0]), jnp.int32), seen.astype(jnp.int32))

    mask = splash.CausalMask(shape, offset=sum(widths[:-1])) if causal else splash.FullMask(shape)
    # One backward kernel for all gradients (5 matmuls; two take 7). It leaves queries' gradients in parts of their own
    # type, one for each block of keys, to be added up: so the blocks are large.
    blocks = dict(block_q=block_q, block_q_dkv=block_q, block_kv=block_kv, block_kv_dkv=block_kv)

    def run(q, k, v, segments, interpret):
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * h),
            block_sizes=splash.BlockSizes(**blocks, use_fused_bwd_kernel=True),
            residual_checkpoint_name=MIXED,
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, segments)

    on = {"tpu": functools.partial(run, interpret=False), "cpu": functools.partial(run, interpret=True)}
    out = jax.lax.platform_dependent(q, k, v, segments, **on)
    return out[:, :, :w].transpose(0, 2, 1, 3)


def _cudnn(q: jax.Array, parts: list[Keys], causal: bool, implementation: str = "cudnn") -> jax.Array:
    """jax.nn.dot_product_attention of `q [B, W, H, HD]`; returns the same shape.

    cuDNN knows one length a row and a causal mask that begins at query 0 and key 0. So each row's keys are moved
    together (the causal part right behind the others' last visible key) and its queries to the same columns; the
    queries before them are zeros, whose results are dropped. No mask or bias is kept.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) and implementation == "cudnn":
        raise ValueError(f"policy.attention is 'cudnn', which cannot do policy.dtype = {q.dtype}: choose bfloat16")
    b, w = q.shape[:2]
    at = jnp.zeros(b, jnp.int32)  # the column behind what is laid down
    width = sum(part.k.shape[-1] for part in parts)
    before = width - parts[-1].k.shape[-1]
    k = v = None
    for part in parts:
        new_k, new_v = part.k.transpose(0, 3, 1, 2), part.v.transpose(0, 2, 1, 3)  # [B, S, KV, HD]
        start = at
        if k is None:
            k, v = (jnp.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0), (0, 0))) for x in (new_k, new_v))
        else:
            k, v = _write(k, new_k, start), _write(v, new_v, start)
        at = at + (new_k.shape[1] if part.length is None else part.length)
    shifted = causal and before > 0
    if shifted:
        q = _write(jnp.zeros((b, before + w, *q.shape[2:]), q.dtype), q, start)
    # A row without any key reads one: no key at all is a division by zero.
    length = jnp.maximum(at, 1)
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=length, implementation=implementation
    )
    return jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, w))(out, start) if shifted else out


def _write(x: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """`new [B, W, ...]` written into `x [B, S, ...]` from each row's own column `start [B]`."""
    return jax.vmap(lambda x, new, start: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0))(x, new, start)
