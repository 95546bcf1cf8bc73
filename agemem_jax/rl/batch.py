"""Recorded segments as the learner's batch: flat, longest first, so that unused ones cost nothing."""

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.rl.advantages import of_tokens
from agemem_jax.types import Segments


@struct.dataclass
class LearnerBatch:
    """n sequences that follow a shared prompt; what is not `trainable` is context only."""

    tokens: jax.Array  # [n, C] int32
    length: jax.Array  # [n] int32
    trainable: jax.Array  # [n, C] bool
    old_logp: jax.Array  # [n, C] float32
    state: jax.Array  # [n, C] int32 grammar state before the token
    remaining: jax.Array  # [n, C] int32
    ops: jax.Array  # [n, C] int32
    advantage: jax.Array  # [n, C] float32
    weight: jax.Array  # [n, C] float32 share of the token in the batch's loss


def learner_batch(segments: Segments, advantage: jax.Array, weight: jax.Array, multiple: int) -> LearnerBatch:
    """Flattens segments and orders them by length, longest first (unused ones last).

    Args:
      segments: [B, S, C].
      advantage: [B, 3] of each stage's tokens, or [B, S, C] of each token.
      weight: [B, S, C] from losses.token_weights.
      multiple: n is padded with empty sequences up to a multiple of this (the micro-batch).
    """
    b, s, c = segments.tokens.shape
    used = segments.length * segments.trainable.any(-1)
    order = jnp.argsort(-used.reshape(-1), stable=True)
    by_token = advantage if advantage.ndim == 3 else of_tokens(advantage, segments.stage)
    pad = -(b * s) % multiple

    def flat(x, dtype=None):
        x = x.reshape(b * s, *x.shape[2:])[order]
        x = x.astype(dtype) if dtype is not None else x
        return jnp.pad(x, ((0, pad), *[(0, 0)] * (x.ndim - 1)))

    return LearnerBatch(
        tokens=flat(segments.tokens),
        length=flat(used),
        trainable=flat(segments.trainable),
        old_logp=flat(segments.logp),
        state=flat(segments.state, jnp.int32),
        remaining=flat(segments.remaining, jnp.int32),
        ops=flat(segments.ops, jnp.int32),
        advantage=flat(by_token),
        weight=flat(weight),
    )
