"""Low-rank adapters (LoRA, arXiv 2106.09685): projections compute x W + scale (x A) B; A and B are trained, W is not.

A policy with adapters has two trees of parameters. `trained` holds the adapters alone, float32, beside the projections
that they belong to: layers/self_attn/q_proj/{lora_a [L, in, r], lora_b [L, r, out]} and so on. `frozen` holds all other
parameters, in their own dtype; by itself it is the policy before training, so that it is also the reference. B begins
at 0: at first the policy is exactly the frozen one.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections have adapters, and of what size; hashable."""

    rank: int
    scale: float  # alpha / rank
    targets: tuple[str, ...]  # names of projections: "q_proj", ..., "down_proj"


class AdaptedDense(nn.Dense):
    """A projection of `[tokens, in]` with adapters; they are float32 parameters and run in the projection's dtype."""

    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        # As PEFT begins: A uniform within 1 / sqrt(in), B zero.
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        a = self.param("lora_a", uniform, (x.shape[-1], self.lora.rank), jnp.float32)
        b = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features), jnp.float32)
        inner = jnp.dot(x, a.astype(y.dtype)) * self.lora.scale
        return y + jnp.dot(inner, b.astype(y.dtype))


def with_axes(projection: dict, name: str, lora: Lora | None) -> dict:
    """Logical axes of a projection's parameters with those of its adapters added, if it has any."""
    if lora is None or name not in lora.targets:
        return projection
    layers, into, out = projection["kernel"]
    return {**projection, "lora_a": (layers, into, "lora"), "lora_b": (layers, "lora", out)}


def trained(tree: dict, lora: Lora | None) -> dict:
    """What training changes of a tree of all parameters (or axes, or shardings): the adapters, or without LoRA all."""
    return tree if lora is None else _adapters(tree)


def _adapters(tree: dict) -> dict:
    parts = {name: _adapters(part) for name, part in tree.items() if isinstance(part, dict)}
    own = {name: tree[name] for name in LEAVES if name in tree}
    return {name: part for name, part in parts.items() if part} | own


def policy_params(trained: dict, frozen: dict) -> dict:
    """All parameters of the policy: the trained ones over the frozen ones.

    Without LoRA the trained ones are all there are, whatever `frozen` holds (nothing, or the reference policy).
    """
    both = lambda part, beside: policy_params(part, beside) if isinstance(part, dict) else part  # noqa: E731
    return {**frozen, **{name: both(part, frozen.get(name, {})) for name, part in trained.items()}}


def merge(trained: dict, frozen: dict, lora: Lora | None, dtype: str | None = None) -> dict:
    """Plain parameters of the same policy: W + scale A B, added in float32; the rest is `frozen`'s own.

    Arrays keep their shardings. Without LoRA these are `trained` itself. For export: the sums are rounded to `dtype`,
    W's own if None, so that logits may differ from those through the adapters (`rounded_away`).
    """
    if lora is None:
        return trained
    if "lora_a" in trained:
        kernel = _merged(frozen["kernel"], trained["lora_a"], trained["lora_b"], lora.scale, dtype=dtype)
        return {**frozen, "kernel": jax.device_put(kernel, frozen["kernel"].sharding)}
    return {**frozen, **{name: merge(part, frozen[name], lora, dtype) for name, part in trained.items()}}


def rounded_away(trained: dict, frozen: dict, lora: Lora, dtype: str) -> float:
    """How far `merge` into `dtype` misses the adapters' change: norm of the difference over norm of the change.

    A change much smaller than its weight's rounding step is lost, or made larger. 0 for adapters that changed nothing.
    """

    def squares(trained: dict, frozen: dict) -> np.ndarray:
        if "lora_a" in trained:
            return np.array(_missed(frozen["kernel"], trained["lora_a"], trained["lora_b"], lora.scale, dtype=dtype))
        return sum((squares(part, frozen[name]) for name, part in trained.items()), np.zeros(2))

    missed, change = squares(trained, frozen)
    return float(np.sqrt(missed / change)) if change else 0.0


def _change(a: jax.Array, b: jax.Array, scale: Any) -> jax.Array:
    return scale * jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="dtype")
def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: Any, *, dtype: str | None) -> jax.Array:
    """`kernel [L, in, out]` with its adapters added, one layer after another: the float32 sum of one exists at once."""

    def one(layer):
        kernel, a, b = layer
        return (kernel.astype(jnp.float32) + _change(a, b, scale)).astype(dtype or kernel.dtype)

    return jax.lax.map(one, (kernel, a, b))


@functools.partial(jax.jit, static_argnames="dtype")
def _missed(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: Any, *, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Sums of squares over a kernel: of what the rounded change misses, and of the change."""

    def one(layer):
        kernel, a, b = layer
        kernel, change = kernel.astype(jnp.float32), _change(a, b, scale)
        rounded = lambda x: x.astype(dtype).astype(jnp.float32)  # noqa: E731
        missed = rounded(kernel + change) - rounded(kernel) - change
        return jnp.square(missed).sum(), jnp.square(change).sum()

    missed, change = jax.lax.map(one, (kernel, a, b))
    return missed.sum(), change.sum()
