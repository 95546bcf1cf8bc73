"""The policy loss of step-wise GRPO, token by token, and log-probabilities without `[tokens, V]` arrays.

A loss is a sum over tokens with weights that are computed once for the whole batch (`token_weights`), so it may be
added up over micro-batches of any size. Metrics are sums with their weights, divided once at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from agemem_jax.types import WeightedSum

NEVER = -1e30  # logit of a token that is not allowed: finite, so that no gradient turns into NaN
MAX_LOG_RATIO = 20.0  # beyond it exp() says nothing but "far away", and would overflow


def masked_log_prob(
    logits: jax.Array, allowed: jax.Array | None, token: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of chosen tokens, and entropy, under the distribution restricted to the allowed tokens.

    Args:
      logits: `[n, V]` any float dtype; computed in float32.
      allowed: `[n, V]` bool, or None where everything is allowed.
      token: `[n]` int32, the chosen tokens.
      temperature: logits are divided by it, as when the tokens were sampled; above 0.

    Returns:
      logp: `[n]` float32; about -1e30 for a token that is not allowed.
      entropy: `[n]` float32, nats, without gradient (it is a metric, not an objective).
    """
    scaled = logits.astype(jnp.float32) / temperature
    if allowed is not None:
        scaled = jnp.where(allowed, scaled, NEVER)
    log_z = jax.nn.logsumexp(scaled, axis=-1)
    chosen = jnp.take_along_axis(scaled, token[:, None].astype(jnp.int32), axis=-1)[:, 0]
    fixed, fixed_z = lax.stop_gradient((scaled, log_z))
    entropy = fixed_z - jnp.sum(jnp.exp(fixed - fixed_z[:, None]) * fixed, axis=-1)
    return chosen - log_z, entropy


def chunked_log_probs(
    head_fn: Callable[[Any, jax.Array], jax.Array],
    head_params: Any,
    hidden: jax.Array,
    token: jax.Array,
    select: jax.Array,
    allowed_fn: Callable[[Any, Any], jax.Array] | None = None,
    tables: Any = None,
    info: Any = None,
    *,
    chunk: int,
    temperature: float = 1.0,
    shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """`masked_log_prob` of the selected tokens, with the logits of at most `chunk` tokens a shard at once.

    Selected tokens are brought to the front and run chunk by chunk in a loop that ends after the last of them: what is
    not selected costs nothing, forward or backward. The backward pass makes each chunk's logits again. Differentiable
    in `hidden` and `head_params`.

    Args:
      head_fn: `(head_params, hidden [c, D]) -> logits [c, V]`. Like `allowed_fn` it must not close over traced arrays:
        whatever it needs comes through its arguments.
      head_params: pytree of arrays.
      hidden: `[n, D]` float.
      token: `[n]` int32, chosen tokens.
      select: `[n]` bool.
      allowed_fn: `(tables, info of c tokens) -> [c, V]` bool; None: every token is allowed.
      tables: pytree of arrays that all tokens share (the grammar).
      info: pytree of `[n, ...]` arrays, each token's own (grammar state, remaining budget, allowed operations).
      chunk: tokens of a shard whose logits exist at once.
      temperature: see `masked_log_prob`.
      shards: n is cut into this many equal pieces, each packed by itself: with tokens sharded over the mesh's data
        axes, their number, so that no token leaves its device. Must divide n.

    Returns:
      logp, entropy: `[n]` float32 each in the order given, 0 where not selected.

    Raises:
      ValueError: `shards` does not divide n, or `chunk` is below 1.
    """
    n = token.shape[0]
    if n % shards:
        raise ValueError(f"{n} tokens cannot be cut into shards={shards} equal pieces; give a divisor of {n}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    per_shard = n // shards
    chunk = min(chunk, per_shard)
    room = -(-per_shard // chunk) * chunk  # whole chunks
    split = lambda x: x.reshape(shards, per_shard, *x.shape[1:])  # noqa: E731
    order = jnp.argsort(~split(select), axis=1, stable=True)  # [shards, per_shard]

    def pack(x: jax.Array) -> jax.Array:
        take = lambda rows, at: rows.at[at].get(unique_indices=True, mode="promise_in_bounds")  # noqa: E731
        packed = jax.vmap(take)(split(x), order)
        return jnp.pad(packed, [(0, 0), (0, room - per_shard)] + [(0, 0)] * (x.ndim - 1))

    steps = jnp.max((jnp.sum(split(select), axis=1) + chunk - 1) // chunk)
    job = (pack(token), pack(select), tables, jax.tree.map(pack, info), steps)
    packed = _packed_log_probs(head_fn, allowed_fn, chunk, temperature, head_params, pack(hidden), job)
    back = jnp.argsort(order, axis=1)
    return tuple(jnp.take_along_axis(x, back, axis=1).reshape(n) for x in packed)


def _chunk_log_probs(head_fn, allowed_fn, chunk, temperature, head_params, hidden, job, i):
    """Chunk i of every shard: `hidden [shards, chunk, D]` with its part of `job` -> logp, entropy `[shards, chunk]`."""
    token, select, tables, info, _ = job
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731  (the head gets a 2-D operand)
    part = lambda x: flat(lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1))  # noqa: E731
    logits = head_fn(head_params, flat(hidden))
    allowed = None if allowed_fn is None else allowed_fn(tables, jax.tree.map(part, info))
    logp, entropy = masked_log_prob(logits, allowed, part(token), temperature)
    return tuple(jnp.where(part(select), x, 0.0).reshape(-1, chunk) for x in (logp, entropy))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _packed_log_probs(head_fn, allowed_fn, chunk, temperature, head_params, hidden, job):
    """`hidden [shards, room, D]`, selected tokens first -> logp, entropy `[shards, room]`."""

    def body(i, done):
        rows = lax.dynamic_slice_in_dim(hidden, i * chunk, chunk, axis=1)
        new = _chunk_log_probs(head_fn, allowed_fn, chunk, temperature, head_params, rows, job, i)
        return tuple(lax.dynamic_update_slice_in_dim(d, x, i * chunk, axis=1) for d, x in zip(done, new, strict=True))

    zeros = jnp.zeros(hidden.shape[:2], jnp.float32)
    with jax.named_scope("head"):
        return lax.fori_loop(0, job[-1], body, (zeros, zeros))


def _packed_forward(head_fn, allowed_fn, chunk, temperature, head_params, hidden, job):
    out = _packed_log_probs(head_fn, allowed_fn, chunk, temperature, head_params, hidden, job)
    return out, (head_params, hidden, job)


def _packed_backward(head_fn, allowed_fn, chunk, temperature, saved, cotangents):
    head_params, hidden, (token, select, tables, info, steps) = saved
    shards = hidden.shape[0]

    def pull_back(i, hidden, token, select, info, cotangent):
        """Gradients of chunk i, `[chunk, D]`, of one shard; its tokens are `[room]`."""
        job = (*jax.tree.map(lambda x: x[None], (token, select)), tables, jax.tree.map(lambda x: x[None], info), steps)

        def logp_of(params, hidden):
            return _chunk_log_probs(head_fn, allowed_fn, chunk, temperature, params, hidden[None], job, i)[0][0]

        return jax.vjp(logp_of, head_params, hidden)[1](cotangent)

    def body(i, grads):
        param_grads, hidden_grads = grads
        part = lambda x: lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)  # noqa: E731
        parts = (part(hidden), token, select, info, part(cotangents[0]))
        if shards == 1:
            new = jax.tree.map(lambda x: x[None], pull_back(i, *jax.tree.map(lambda x: x[0], parts)))
        else:
            new = jax.vmap(partial(pull_back, i))(*parts)
        param_grads = jax.tree.map(lambda total, x: total + x.astype(total.dtype), param_grads, new[0])
        return param_grads, lax.dynamic_update_slice_in_dim(hidden_grads, new[1], i * chunk, axis=1)

    # Gradients of the head are added up in float32 whatever its dtype: there may be hundreds of chunks. Each shard has
    # a sum of its own until the end: in the loop nothing crosses devices.
    zeros = lambda p: jnp.zeros((shards, *p.shape), jnp.promote_types(p.dtype, jnp.float32))  # noqa: E731
    with jax.named_scope("head"):
        sums, hidden_grads = lax.fori_loop(0, steps, body, (jax.tree.map(zeros, head_params), jnp.zeros_like(hidden)))
    param_grads = jax.tree.map(lambda grad, p: grad.sum(0).astype(p.dtype), sums, head_params)
    return param_grads, hidden_grads, None


_packed_log_probs.defvjp(_packed_forward, _packed_backward)


def token_weights(
    mask: jax.Array, mode: str, constant: int | jax.Array = 0, turn: jax.Array | None = None, turns: int = 0
) -> jax.Array:
    """Weight of each trainable token in the loss of a whole batch: loss = sum of weight x token loss.

    - "token": 1 / trainable tokens of the batch (DAPO, arXiv 2503.14476)
    - "sequence": 1 / (trainable tokens of the trajectory x trajectories) (GRPO, arXiv 2402.03300)
    - "constant": 1 / (`constant` x trajectories) (Dr.GRPO, arXiv 2503.20783), `constant` being the most tokens that a
      trajectory can generate in all the turns and summaries that are trained on (`RolloutSpec.budget`): those of all
      stages, or in the sequential schedule of the one stage
    - "turn": 1 / (trainable tokens of the turn x turns of the batch): the mean over experiences of the paper's
      objective, an experience being one turn of one trajectory, with the summary that it asked for. Turns without a
      trainable token do not count

    Trajectories without a trainable token do not count.

    Args:
      mask: `[B, S, C]` bool; a trajectory's tokens are all of a row's.
      mode: `config.rl.loss_average`.
      constant: a trajectory's tokens at full length, for "constant" only; at least 1 there.
      turn: `[B, S, C]` int32 number of each token's turn in the trajectory, below `turns`; for "turn" only.
      turns: most turns of a trajectory, for "turn" only.

    Returns:
      `[B, S, C]` float32, 0 where not masked in.

    Raises:
      ValueError: an unknown mode, "constant" without a positive `constant`, or "turn" without `turn`.
    """
    real = mask.astype(jnp.float32)
    row_tokens = real.sum(axis=(1, 2), keepdims=True)
    rows = jnp.maximum(jnp.sum(row_tokens > 0), 1)
    if mode == "token":
        return real / jnp.maximum(real.sum(), 1)
    if mode == "sequence":
        return real / (jnp.maximum(row_tokens, 1) * rows)
    if mode == "constant":
        if isinstance(constant, int) and constant < 1:
            raise ValueError(f"rl.loss_average is 'constant' with a length of {constant}; it must be at least 1 token")
        return real / (constant * rows)
    if mode == "turn":
        if turn is None:
            raise ValueError("rl.loss_average is 'turn' but the turns of the tokens are not given; pass them as `turn`")
        flat = lambda x: x.reshape(x.shape[0], -1)  # noqa: E731
        index = jnp.where(flat(mask), flat(turn), turns)  # past the end: dropped
        count = jax.vmap(lambda at: jnp.zeros((turns,)).at[at].add(1.0, mode="drop"))(index)  # [B, turns] tokens
        own = jnp.take_along_axis(count, jnp.minimum(index, turns - 1), axis=1).reshape(mask.shape)
        return real / (jnp.maximum(own, 1) * jnp.maximum(jnp.sum(count > 0), 1))
    raise ValueError(f"rl.loss_average is {mode!r}; it must be 'token', 'sequence', 'constant' or 'turn'")


def policy_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    ref_logp: jax.Array | None,
    advantage: jax.Array,
    weight: jax.Array,
    entropy: jax.Array,
    rl: ConfigDict,
) -> tuple[jax.Array, dict[str, WeightedSum], jax.Array]:
    """Clipped surrogate plus KL to the reference policy, over any number of tokens.

        loss = sum_t weight_t ( -min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t) + kl_coef KL_t )
        rho_t = pi / pi_old,   KL_t = pi_ref / pi - log(pi_ref / pi) - 1   (the low-variance estimator k3)

    The paper's objective is rho A - beta KL; the clipping is that of the trainer it ran on. `clip_high` above
    `clip_low` is DAPO's clip-higher. Tokens of weight 0 count nowhere. `dual_clip` c above 1 bounds what a token of
    negative advantage can ask for, max(min(rho A, clip(rho) A), c A) (Ye et al. 2020, arXiv 1912.09729): from rho = c
    on it has no gradient, where otherwise one far token that has become likely outweighs the batch.

    Args:
      logp: `[...]` float32 under the policy being trained.
      old_logp: `[...]` float32 under the policy that sampled.
      ref_logp: `[...]` float32 under the reference, or None with `rl.kl_coef` 0.
      advantage: `[...]` float32.
      weight: `[...]` float32 from `token_weights` of the whole batch.
      entropy: `[...]` float32, nats, for the metric only.
      rl: `config.rl` (clip_low, clip_high, dual_clip, kl_coef).

    Returns:
      loss: `[]` float32. Already averaged: add it (and its gradient) up over micro-batches and do not divide.
      metrics: means over tokens as WeightedSum, to be added up over micro-batches: surrogate, kl_reference, kl_old,
        ratio, clip_fraction, entropy.
      ratio_max: `[]` float32, the largest rho; take the maximum over micro-batches.

    Raises:
      ValueError: `rl.kl_coef` is not 0 and there is no `ref_logp`.
    """
    if rl.kl_coef != 0 and ref_logp is None:
        raise ValueError(f"rl.kl_coef is {rl.kl_coef} but there is no ref_logp; give it, or set rl.kl_coef to 0")
    real = weight > 0

    def difference(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.clip(jnp.where(real, a - b, 0.0), -MAX_LOG_RATIO, MAX_LOG_RATIO)

    def k3(log_ratio: jax.Array) -> jax.Array:
        return jnp.exp(log_ratio) - log_ratio - 1.0

    log_ratio = difference(logp, old_logp)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - rl.clip_low, 1.0 + rl.clip_high)
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    if rl.dual_clip:
        gain = jnp.where(advantage < 0, jnp.maximum(gain, rl.dual_clip * advantage), gain)
    surrogate = -gain
    kl = jnp.zeros_like(ratio) if ref_logp is None else k3(difference(ref_logp, logp))

    token_loss = surrogate if rl.kl_coef == 0 else surrogate + rl.kl_coef * kl
    loss = jnp.sum(weight * jnp.where(real, token_loss, 0.0))

    def mean(value: jax.Array) -> WeightedSum:
        return WeightedSum(total=jnp.sum(jnp.where(real, value, 0.0)), weight=jnp.sum(real.astype(jnp.float32)))

    metrics = {
        "surrogate": mean(surrogate),
        "kl_reference": mean(kl),
        "kl_old": mean(k3(log_ratio)),
        "ratio": mean(ratio),
        "clip_fraction": mean((gain != ratio * advantage).astype(jnp.float32)),
        "entropy": mean(entropy),
    }
    metrics = lax.stop_gradient(metrics)
    return loss, metrics, lax.stop_gradient(jnp.max(jnp.where(real, ratio, 0.0), initial=0.0))
