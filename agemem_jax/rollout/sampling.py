"""From logits to one token a row and its log-probability under the distribution that it was drawn from."""

import math

import jax
import jax.numpy as jnp

NEG_INF = -1e9


def sample(
    logits: jax.Array, allowed: jax.Array | None, uniform: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws one allowed token a row by inverse transform; the most likely one where temperature is 0.

    One uniform number a row instead of V Gumbel ones, and a cumulative sum in two levels of about sqrt(V): the noise
    and the sort are what makes sampling slow on large vocabularies.

    Args:
      logits: [B, V] float32.
      allowed: [B, V] bool; at least one token must be allowed in each row. None: all are.
      uniform: [B] float32 in [0, 1).
      temperature: [] float32; 0 = greedy. The log-probability is that of temperature 1 then.

    Returns:
      (token [B] int32, logp [B] float32).
    """
    batch, vocab = logits.shape
    greedy = temperature <= 0
    z = logits / jnp.where(greedy, 1.0, temperature)
    if allowed is not None:
        z = jnp.where(allowed, z, NEG_INF)
    top = z.max(-1, keepdims=True)
    weight = jnp.exp(z - top)
    if allowed is not None:
        weight = jnp.where(allowed, weight, 0.0)
    block = max(8, 1 << round(math.log2(max(vocab, 2)) / 2))
    blocks = -(-vocab // block)
    weight = jnp.pad(weight, ((0, 0), (0, blocks * block - vocab))).reshape(batch, blocks, block)
    block_sums = jnp.cumsum(weight.sum(-1), -1)
    total = block_sums[:, -1]
    target = uniform * total
    i = jnp.minimum((block_sums <= target[:, None]).sum(-1), blocks - 1)
    before = jnp.where(i > 0, jnp.take_along_axis(block_sums, jnp.maximum(i - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(weight, i[:, None, None], 1)[:, 0], -1)
    j = jnp.minimum((inside <= (target - before)[:, None]).sum(-1), block - 1)
    # The first of the largest. (jnp.argmax does the same, but XLA's CPU backend does not vectorise it.)
    best = jnp.where(z == top, jnp.arange(vocab), vocab).min(-1)
    token = jnp.where(greedy, best, i * block + j)
    # Rounding at a block's edge can point at a token of weight 0: the most likely token stands in.
    chosen = token < vocab
    if allowed is not None:
        chosen &= jnp.take_along_axis(allowed, jnp.minimum(token, vocab - 1)[:, None], 1)[:, 0]
    token = jnp.where(chosen, token, best).astype(jnp.int32)
    logp = jnp.take_along_axis(z, token[:, None], 1)[:, 0] - top[:, 0] - jnp.log(total)
    return token, logp
