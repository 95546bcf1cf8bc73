"""The policy: a decoder that is Qwen2/2.5, Qwen3 or Llama by its config, for training and, with kv_cache.py, decoding.

Parameters are a plain nested dict with Hugging Face's names; those of the layers are stacked on axis 0:

    embed_tokens/embedding [V, D]      norm/weight [D]      lm_head/kernel [D, V] (absent when tied)
    layers/input_layernorm/weight [L, D]                    layers/post_attention_layernorm/weight [L, D]
    layers/self_attn/{q,k,v,o}_proj/kernel [L, in, out]     layers/self_attn/{q,k,v}_proj/bias [L, out] (Qwen2)
    layers/self_attn/{q,k}_norm/weight [L, head_dim] (Qwen3)
    layers/mlp/{gate,up,down}_proj/kernel [L, in, out]
    layers/*/*_proj/{lora_a [L, in, r], lora_b [L, r, out]} (of the projections that have adapters, see lora.py)

Axes here: B rows, Np prompts (prefixes) of R = B / Np consecutive rows each, W tokens of a row, D width, H heads, KV
key-value heads, HD head size, S keys. Keys are [B, KV, HD, S] and values [B, KV, S, HD], so that attention is two plain
batched matmuls.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.config import CHOICES
from agemem_jax.models.attention import MIXED, Keys, attention
from agemem_jax.models.lora import AdaptedDense, Lora, with_axes
from agemem_jax.sharding import LOCAL, Layout, lay_out

UNROLLED_LAYERS = 4  # models of up to so many layers are trained without a loop over them


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and variants of a decoder; hashable, so that it can be a static argument."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, object], ...] | None = None  # sorted items of Hugging Face's rope_scaling
    max_positions: int | None = None  # Hugging Face's max_position_embeddings; None if nobody knows
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    tie_word_embeddings: bool = True
    dtype: str = "float32"  # of activations and caches; normalisation, softmax and logits are float32
    param_dtype: str = "float32"
    remat: str = "none"  # what the backward pass computes again: see `recomputed`
    scan_layers: bool = False  # decode in a loop over the layers: compiles faster, for TPUs (see kv_cache)
    attention: str = "xla"  # or "splash" (TPU), "cudnn" (GPU): see attention.py
    query_block: int = 0  # of "xla": so many queries at a time, for long contexts; 0 = all at once
    layout: Layout = LOCAL  # where activations live, and parameters while they are used
    lora: Lora | None = None  # with adapters beside the projections

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs of it")
        if self.remat not in CHOICES["policy.remat"]:
            raise ValueError(f"remat={self.remat!r} must be one of {', '.join(CHOICES['policy.remat'])}")
        if self.rope_scaling is not None:
            check_rope_scaling(dict(self.rope_scaling))

    @property
    def longest_context(self) -> int | None:
        """Positions that the model was made for, with what scaling adds; None if nobody knows.

        Llama 3's `max_positions` are those of the scaled model; with linear and yarn they may be the trained ones.
        """
        scaling = dict(self.rope_scaling or ())
        if self.max_positions is None or scaling.get("rope_type") not in ("linear", "yarn"):
            return self.max_positions
        trained = scaling.get("original_max_position_embeddings", self.max_positions)
        return max(self.max_positions, int(trained * scaling["factor"]))


ROPE_FIELDS = {  # that a type of scaling must have
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
YARN_FIELDS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")  # that it may have


def check_rope_scaling(scaling: dict) -> None:
    """Raises ValueError for a type, a field or a value that `rope_frequencies` cannot do."""
    kind = scaling.get("rope_type")
    if kind not in ROPE_FIELDS:
        raise ValueError(f"rope_scaling has rope_type={kind!r}; known: {sorted(ROPE_FIELDS)}")
    if missing := sorted(set(ROPE_FIELDS[kind]) - set(scaling)):
        raise ValueError(f"rope_scaling of type {kind!r} lacks {missing}")
    known = {"rope_type", *ROPE_FIELDS[kind], *(YARN_FIELDS if kind == "yarn" else ())}
    if unknown := sorted(set(scaling) - known):
        raise ValueError(f"rope_scaling of type {kind!r} has {unknown}, which this decoder does not know")
    for name, value in scaling.items():
        if name == "truncate":
            right = type(value) is bool
        else:
            right = name == "rope_type" or (type(value) in (int, float) and 0 < value < math.inf)
        if not right:
            wanted = "true or false" if name == "truncate" else "a number greater than 0"
            raise ValueError(f"rope_scaling has {name}={value!r}; {wanted} is needed")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError("rope_scaling has a high_freq_factor that is not greater than its low_freq_factor")


def rope_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians per position of each rotated pair `[HD / 2]` float32, and the factor on cosine and sine.

    Scaled as Hugging Face's `modeling_rope_utils` does: linear (position interpolation), llama3 (Llama 3.1: long wave
    lengths are stretched, short ones kept, a ramp between) and yarn (arXiv 2309.00071, equations 15 to 22; mscale and
    mscale_all_dim as DeepSeek has them).
    """
    half = config.head_dim // 2
    frequency = config.rope_theta ** -(np.arange(half, dtype=np.float64) / half)
    if config.rope_scaling is None:
        return frequency.astype(np.float32), 1.0
    scaling = dict(config.rope_scaling)
    kind, factor = scaling["rope_type"], scaling["factor"]
    if kind == "linear":
        return (frequency / factor).astype(np.float32), 1.0
    trained = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = np.clip((trained * frequency / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
        return (frequency * (kept + (1 - kept) / factor)).astype(np.float32), 1.0

    def pair_turning(rotations: float) -> float:  # index of the pair that turns this often in the trained context
        return half * math.log(trained / (rotations * 2 * math.pi)) / math.log(config.rope_theta)

    first, last = pair_turning(scaling.get("beta_fast", 32)), pair_turning(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    stretched = np.clip((np.arange(half) - first) / (last - first or 1e-3), 0.0, 1.0)

    def mscale(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = scaling.get("attention_factor")
    if attention_factor is None and "mscale" in scaling and "mscale_all_dim" in scaling:
        attention_factor = mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    elif attention_factor is None:
        attention_factor = mscale()
    return (frequency * (1 - stretched + stretched / factor)).astype(np.float32), attention_factor


def rope_table(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine `[..., HD / 2]` float32 of int32 positions `[...]`, made once for all layers."""
    frequency, factor = rope_frequencies(config)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of `[B, W, heads, HD]`; cosine and sine broadcast to `[B, W, HD / 2]`."""
    cos, sin = (r[..., None, :] for r in rope)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend_to(config: ModelConfig, q: jax.Array, parts: list[Keys]) -> jax.Array:
    """Attention of `q [B, W, H, HD]` over the union of `parts`, as the config says: `[B, W, H * HD]`."""
    return attention(q, parts, config.attention, config.query_block, config.layout)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.config.param_dtype))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.config.rms_norm_eps)
        return weight.astype(x.dtype) * y.astype(x.dtype)


def row_axis(x: jax.Array) -> str | None:
    """Logical name of the leading axis of activations: a prompt alone has none, all devices run it."""
    return "rows" if x.shape[0] > 1 else None


def whole(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Activations `[B, W, D]` with their rows cut as the layout says."""
    return config.layout.constrain(x, row_axis(x), None, None)


def between_blocks(config: ModelConfig, x: jax.Array) -> jax.Array:
    """`whole`, and tokens cut too where the layout does and they divide evenly (arXiv 2205.05198, section 4.2.2).

    In a tensor-parallel update what goes into a layer, all that remat "full" keeps of it, is then cut over all devices.
    """
    even = x.shape[1] % config.layout.ways("sequence") == 0
    return config.layout.constrain(x, row_axis(x), "sequence" if even else None, None)


def _dense(config: ModelConfig, features: int, name: str, use_bias: bool = False) -> nn.Dense:
    adapted = config.lora is not None and name in config.lora.targets
    make = functools.partial(AdaptedDense, lora=config.lora) if adapted else nn.Dense
    return make(
        features,
        use_bias=use_bias,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        kernel_init=nn.initializers.normal(0.02),
        name=name,
    )


class SelfAttention(nn.Module):
    """Projections around an attention that the caller supplies (see DecoderLayer)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Callable) -> tuple[jax.Array, object]:
        c = self.config
        b, w, d = x.shape
        # Two-dimensional operands: XLA's CPU backend halves its speed on weight gradients that contract several axes.
        flat = x.reshape(-1, d)

        def heads(count: int, name: str) -> jax.Array:
            x = _dense(c, count * c.head_dim, name, c.qkv_bias)(flat).reshape(b, w, count, c.head_dim)
            return c.layout.constrain(x, row_axis(x), None, "heads" if name == "q_proj" else "kv_heads", None)

        q, k, v = heads(c.num_heads, "q_proj"), heads(c.num_kv_heads, "k_proj"), heads(c.num_kv_heads, "v_proj")
        if c.qk_norm:
            q, k = RMSNorm(c, name="q_norm")(q), RMSNorm(c, name="k_norm")(k)
        q, k = rotate(q, rope), rotate(k, rope)
        mixed, carry = attend(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3))
        return _dense(c, d, "o_proj")(mixed.reshape(-1, mixed.shape[-1])).reshape(x.shape), carry


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) of `[tokens, D]`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gate = _dense(c, c.intermediate_size, "gate_proj")(x)
        up = _dense(c, c.intermediate_size, "up_proj")(x)
        return _dense(c, c.hidden_size, "down_proj")(nn.silu(gate) * up)


class DecoderLayer(nn.Module):
    """One layer on `x [B, W, D]`; returns the new x and whatever `attend` carries.

    `attend(q [B, W, H, HD], k [B, KV, HD, W], v [B, KV, W, HD]) -> (mixed [B, W, H * HD], carry)` decides what the W
    tokens see and keeps the keys it wants: training, prefill and decoding differ only there.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Callable) -> tuple[jax.Array, object]:
        c = self.config
        cut, gather = functools.partial(between_blocks, c), functools.partial(whole, c)
        # Partial sums of tensor parallelism are added up where they arise, once a block. Between blocks everything is
        # cut; said on both sides of each change, so that gradients are laid out in the same way.
        h = gather(cut(RMSNorm(c, name="input_layernorm")(x)))
        mixed, carry = SelfAttention(c, name="self_attn")(h, rope, attend)
        x = cut(x + cut(gather(mixed)))
        h = gather(cut(RMSNorm(c, name="post_attention_layernorm")(x)))
        mixed = MLP(c, name="mlp")(h.reshape(-1, h.shape[-1])).reshape(x.shape)
        return cut(x + cut(gather(mixed))), carry


def apply_layer(
    layer: dict, config: ModelConfig, x: jax.Array, rope: tuple, attend: Callable
) -> tuple[jax.Array, object]:
    """DecoderLayer with the parameters of one layer (one slice of `params["layers"]`), brought to the layout first."""
    layer = lay_out(layer, layer_axes(config), config.layout, jnp.dtype(config.dtype))
    return DecoderLayer(config).apply({"params": layer}, x, rope, attend)


def init_params(config: ModelConfig, key: jax.Array) -> dict:
    """Fresh parameters: matrices N(0, 0.02), biases 0, norms 1; adapters as lora.py begins them."""
    keys = jax.random.split(key, 3)
    normal, dtype = nn.initializers.normal(0.02), jnp.dtype(config.param_dtype)

    def init_layer(key: jax.Array) -> dict:
        x = jnp.zeros((1, 1, config.hidden_size), jnp.dtype(config.dtype))
        mixed = jnp.zeros((1, 1, config.num_heads * config.head_dim), x.dtype)
        rope = rope_table(config, jnp.zeros((1, 1), jnp.int32))
        return DecoderLayer(config).init(key, x, rope, lambda q, k, v: (mixed, None))["params"]

    params = {
        "embed_tokens": {"embedding": normal(keys[0], (config.vocab_size, config.hidden_size), dtype)},
        "layers": jax.vmap(init_layer)(jax.random.split(keys[1], config.num_layers)),
        "norm": {"weight": jnp.ones((config.hidden_size,), dtype)},
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = {"kernel": normal(keys[2], (config.hidden_size, config.vocab_size), dtype)}
    return params


def logical_axes(config: ModelConfig) -> dict:
    """The tree of `init_params` with a tuple of logical axis names in place of each parameter."""
    proj = {"kernel": ("layers", "embed", "heads")}, {"kernel": ("layers", "embed", "kv_heads")}
    q, k = ({**p, "bias": ("layers", p["kernel"][-1])} if config.qkv_bias else p for p in proj)
    attn = {"q_proj": q, "k_proj": k, "v_proj": dict(k), "o_proj": {"kernel": ("layers", "heads", "embed")}}
    mlp = {name: {"kernel": ("layers", "embed", "mlp")} for name in ("gate_proj", "up_proj")}
    mlp["down_proj"] = {"kernel": ("layers", "mlp", "embed")}
    attn, mlp = ({name: with_axes(part[name], name, config.lora) for name in part} for part in (attn, mlp))
    if config.qk_norm:
        attn |= {"q_norm": {"weight": ("layers", "head_dim")}, "k_norm": {"weight": ("layers", "head_dim")}}
    axes = {
        "embed_tokens": {"embedding": ("vocab", "embed")},
        "layers": {
            "input_layernorm": {"weight": ("layers", "norm")},
            "mlp": mlp,
            "post_attention_layernorm": {"weight": ("layers", "norm")},
            "self_attn": attn,
        },
        "norm": {"weight": ("norm",)},
    }
    if not config.tie_word_embeddings:
        axes["lm_head"] = {"kernel": ("embed", "vocab")}
    return axes


def layer_axes(config: ModelConfig) -> dict:
    """`logical_axes` of one layer's parameters."""
    return jax.tree.map(lambda names: names[1:], logical_axes(config)["layers"], is_leaf=lambda x: isinstance(x, tuple))


@jax.named_scope("layout")
def to_layout(params: dict, config: ModelConfig) -> dict:
    """All parameters in the activations' dtype and layout, for programs that use them many times.

    On one device they stay as they are: whatever uses them casts them.
    """
    return lay_out(params, logical_axes(config), config.layout, jnp.dtype(config.dtype))


def embed(params: dict, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Token embeddings `[B, ..., D]` of int32 tokens `[B, ...]`."""
    axes = {"embedding": logical_axes(config)["embed_tokens"]["embedding"]}
    table = lay_out(params["embed_tokens"], axes, config.layout, jnp.dtype(config.dtype))["embedding"]
    # Said twice for the backward pass: each device adds up its own tokens' gradients before any of them travel.
    table = config.layout.constrain(table, *axes["embedding"])
    x = table[tokens].astype(jnp.dtype(config.dtype))
    return config.layout.constrain(x, row_axis(x), *[None] * (x.ndim - 1))


def head_params(params: dict, config: ModelConfig) -> dict:
    """The parameters that `logits` reads, in the activations' dtype and layout."""
    names = ("norm", "embed_tokens" if config.tie_word_embeddings else "lm_head")
    axes = logical_axes(config)
    some = lambda tree: {name: tree[name] for name in names}  # noqa: E731
    return lay_out(some(params), some(axes), config.layout, jnp.dtype(config.dtype))


def logits(params: dict, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Final norm and head: `[..., D]`, the last layer's output, to `[..., V]` float32."""
    h = RMSNorm(config).apply({"params": params["norm"]}, hidden.reshape(-1, hidden.shape[-1]))
    if config.tie_word_embeddings:
        kernel = params["embed_tokens"]["embedding"].T
    else:
        kernel = params["lm_head"]["kernel"]
    out = jnp.matmul(h, kernel.astype(h.dtype), preferred_element_type=jnp.float32)
    return out.reshape(*hidden.shape[:-1], config.vocab_size)


def recomputed(step: Callable, remat: str) -> Callable:
    """`step` such that its backward pass keeps less: one of "none", "minimal" and "full" (`policy.remat`).

    "full" keeps what goes into a layer and runs all of it again. "minimal" keeps the projections' results too, and the
    attention's of "splash" and of "xla" in blocks, and runs again what is between them ("xla" at once keeps no scores,
    cuDNN's kernel nothing: these run twice).
    """
    if remat == "none":
        return step
    keep = jax.checkpoint_policies
    matmuls = keep.save_from_both_policies(keep.dots_with_no_batch_dims_saveable, keep.save_only_these_names(MIXED))
    return jax.checkpoint(step, prevent_cse=False, policy=matmuls if remat == "minimal" else None)


def rows_forward(
    params: dict,
    config: ModelConfig,
    prefix_tokens: jax.Array,
    prefix_length: jax.Array,
    tokens: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The learner's forward: each prompt once, its rows attending to it and causally to themselves.

    Args:
      prefix_tokens: `[Np, P]` int32; P may be 0.
      prefix_length: `[Np]` int32 real tokens of each prompt.
      tokens: `[Np, R, T]` int32 what follows the prompt in each of its rows; token i has position prefix_length + i.
        Shorter rows are padded at their end: no real token sees the padding, whose hidden states mean nothing.

    Returns:
      The last layer's output at the prompts `[Np, P, D]` and at the rows `[Np, R, T, D]`; `logits` takes it on.
    """
    p, (n, r, t) = prefix_tokens.shape[1], tokens.shape
    x = embed(params, config, tokens.reshape(n * r, t))
    xp = embed(params, config, prefix_tokens)
    rope = rope_table(config, jnp.repeat(prefix_length, r)[:, None] + jnp.arange(t))
    rope_prefix = rope_table(config, jnp.arange(p)[None])

    def step(carry, layer):
        xp, x = carry
        shared = []
        if p:
            attend = lambda q, k, v: (attend_to(config, q, [Keys(k, v, offset=0)]), (k, v))  # noqa: E731
            xp, kv = apply_layer(layer, config, xp, rope_prefix, attend)
            shared = [Keys(*kv, length=prefix_length)]
        attend = lambda q, k, v: (attend_to(config, q, [*shared, Keys(k, v, offset=0)]), None)  # noqa: E731
        x, _ = apply_layer(layer, config, x, rope, attend)
        return (xp, x), None

    step = recomputed(step, config.remat)
    # A scan stacks what the backward pass needs; unrolled, it stays where it is. Deep models compile faster as a loop.
    unroll = config.num_layers <= UNROLLED_LAYERS
    start = between_blocks(config, xp), between_blocks(config, x)
    (xp, x), _ = jax.lax.scan(step, start, params["layers"], unroll=unroll)
    return whole(config, xp), whole(config, x).reshape(n, r, t, -1)
