"""The update: token log-probabilities of recorded segments, loss, gradients over micro-batches, optimizer step."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from agemem_jax.models import lora, qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl import losses
from agemem_jax.rl.batch import LearnerBatch
from agemem_jax.sharding import LOCAL, Layout, to_stored
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.grammar import ToolGrammar
from agemem_jax.training.state import Optimizer, descend
from agemem_jax.types import Text, TrainState, WeightedSum


@dataclass(frozen=True)
class LearnSpec:
    """Static sizes of the update, derived from the config."""

    micro_batch: int
    widths: tuple[int, ...]  # ascending; a micro-batch is cut to the smallest that holds its longest sequence
    temperature: float  # of the sampling
    layout: Layout = LOCAL  # of a micro-batch, and of the policy while it learns


def log_probs(
    params: dict,
    model: ModelConfig,
    grammar: ToolGrammar | None,
    prefix: Text,
    batch: LearnerBatch,
    temperature: float,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy of recorded tokens under the masked distribution that they were sampled from.

    The prefix runs once for all its rows, forward and backward.

    Args:
      grammar: None: every token was allowed.
      prefix: [Np, P]; sequences are grouped by prefix.
      batch: leaves [Np, R, T].
      temperature: of the sampling.
      chunk: tokens whose logits exist at once.

    Returns:
      (logp [Np, R, T] float32, entropy [Np, R, T] float32), 0 where not trainable.
    """
    np_, rows, _ = batch.tokens.shape
    prefix_hidden, hidden = qwen.rows_forward(params, model, prefix.tokens, prefix.length, batch.tokens)
    shards = model.layout.ways("rows")
    # A token is predicted from the state before it; the first one of a row from the prefix's last state.
    if prefix.tokens.shape[1]:
        at = jnp.maximum(prefix.length - 1, 0)[:, None, None]
        first = jnp.take_along_axis(prefix_hidden, at, 1)[:, None]
    else:
        first = jnp.zeros((np_, 1, 1, hidden.shape[-1]), hidden.dtype)
    first = jnp.broadcast_to(first, (np_, rows, 1, hidden.shape[-1]))
    before = jnp.concatenate([first, hidden[:, :, :-1]], 2)

    vocab = model.vocab_size if grammar is None else grammar.token_class.shape[0]  # the table may be padded

    def head(params, hidden):
        return qwen.logits(params, model, hidden)[:, :vocab]

    def allowed(grammar, info):
        return grammar_lib.allowed_tokens(grammar, *info)

    flat = lambda x: x.reshape(-1)  # noqa: E731
    logp, entropy = losses.chunked_log_probs(
        head, qwen.head_params(params, model), before.reshape(-1, before.shape[-1]),
        flat(batch.tokens), flat(batch.trainable), allowed if grammar is not None else None, grammar,
        (flat(batch.state), flat(batch.remaining), flat(batch.ops)), chunk=chunk, temperature=temperature,
        shards=shards,
    )  # fmt: skip
    return logp.reshape(batch.tokens.shape), entropy.reshape(batch.tokens.shape)


@jax.named_scope("gradient")
def gradients(
    loss, params: dict, prefix: Text, batch: LearnerBatch, used: jax.Array, spec: LearnSpec, keep=lambda grad: grad
):
    """Gradient and metrics summed over micro-batches; only as many run as hold a used sequence.

    Args:
      loss: (params, prefix, batch with leaves [Np, R, T]) -> (loss [], (metrics that add up, metrics to take the
        maximum of)).
      prefix: [Np, P]. With one prefix `batch` leaves are [n, ...] and a micro-batch is `spec.micro_batch` sequences;
        with several they are [Np, R, ...] and a micro-batch is whole groups, as near to that size as they allow.
      used: [] int32 leading sequences (or groups) that hold anything.
      keep: applied to every micro-batch's gradient, to say where it is kept.

    Returns:
      (gradient, float32 or wider, (summed metrics, maxima)).
    """
    shared = prefix.tokens.shape[0] == 1
    count = batch.length.shape[0]
    micro = spec.micro_batch if shared else max(1, min(count, spec.micro_batch // batch.length.shape[1]))
    if count % micro:
        raise ValueError(f"{count} sequences do not divide into micro-batches of {micro}")

    def in_pieces(x):  # [micro-batches, micro, ...]: each micro-batch spread over all devices
        x = x.reshape(count // micro, micro, *x.shape[1:])
        return spec.layout.constrain(x, None, "rows", *[None] * (x.ndim - 2))

    pieces = jax.tree.map(in_pieces, batch)
    prefixes = prefix if shared else jax.tree.map(in_pieces, prefix)

    def piece_at(i, width):
        at = lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)  # noqa: E731

        def cut(x):
            x = at(x)[None] if shared else at(x)
            return x[:, :, :width] if x.ndim > 2 else x

        return prefix if shared else jax.tree.map(at, prefixes), jax.tree.map(cut, pieces)

    def at_width(width):
        def run(i):
            (_, aux), grad = jax.value_and_grad(loss, has_aux=True)(params, *piece_at(i, width))
            return keep(grad), *aux

        return run

    branches = [at_width(width) for width in spec.widths]
    like, *rest = jax.eval_shape(branches[-1], 0)
    # Micro-batches are added up in float32: the sum of many bfloat16 gradients would lose the small ones.
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like)
    zeros = total, *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)
    longest = batch.length.max(axis=tuple(range(1, batch.length.ndim)))  # per leading index

    def step(carry):
        i, grad, sums, most = carry
        need = jax.lax.dynamic_slice_in_dim(longest, i * micro, micro, 0).max()
        bucket = (need > jnp.array(spec.widths[:-1], jnp.int32)).sum() if len(branches) > 1 else 0
        new = jax.lax.switch(bucket, branches, i) if len(branches) > 1 else branches[0](i)
        add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
        return i + 1, add(grad, new[0]), add(sums, new[1]), jax.tree.map(jnp.maximum, most, new[2])

    steps = -(-used // micro)
    _, grad, sums, most = jax.lax.while_loop(lambda c: c[0] < steps, step, (jnp.int32(0), *zeros))
    return grad, (sums, most)


def policy_loss(frozen: dict, model: ModelConfig, grammar: ToolGrammar, spec: LearnSpec, rl):
    """The GRPO loss of a piece of the batch, for `gradients`. The reference runs only where rl.kl_coef is not 0.

    With adapters the gradient is with respect to them alone, and the reference is the policy without them.
    """

    def loss(trained, prefix, piece):
        args = (grammar, prefix, piece, spec.temperature, rl.logit_chunk)
        logp, entropy = log_probs(lora.policy_params(trained, frozen), model, *args)
        plain = dataclasses.replace(model, lora=None)
        ref = jax.lax.stop_gradient(log_probs(frozen, plain, *args)[0]) if rl.kl_coef else None
        value, sums, ratio_max = losses.policy_loss(
            logp, piece.old_logp, ref, piece.advantage, piece.weight, entropy, rl
        )
        gap = jnp.abs(jnp.where(piece.trainable, logp - piece.old_logp, 0.0)).max()
        most = {"ratio_max": ratio_max, "logp_gap_max": jax.lax.stop_gradient(gap)}
        return value, (sums | {"loss": WeightedSum(jax.lax.stop_gradient(value), jnp.float32(0))}, most)

    return loss


def imitation_loss(frozen: dict, model: ModelConfig, grammar: ToolGrammar, spec: LearnSpec, logit_chunk: int):
    """Negative log-likelihood of the batch's tokens, for `gradients`; with adapters with respect to them alone."""

    def loss(trained, prefix, piece):
        params = lora.policy_params(trained, frozen)
        logp, _ = log_probs(params, model, grammar, prefix, piece, spec.temperature, logit_chunk)
        value = -(logp * piece.weight).sum()
        return value, ({"loss": jax.lax.stop_gradient(value)}, {})

    return loss


@jax.named_scope("update")
def update(
    state: TrainState,
    frozen: dict,
    optimizer: Optimizer,
    model: ModelConfig,
    grammar: ToolGrammar,
    prefix: Text,
    batch: LearnerBatch,
    spec: LearnSpec,
    rl,
    on: jax.Array,
) -> tuple[TrainState, dict]:
    """`rl.epochs` optimizer steps on one batch; where `on` [] bool is False nothing is computed and nothing changes.

    A step whose gradient is exactly 0 is not made: the batch asks for nothing (no group varied, or none is left, and
    there is no KL term; or all its tokens are clipped), and momentum and decay alone would move the parameters. Nor is
    one whose gradient is not finite: the state stays the last good one. `state.step` counts the update all the same.

    Returns:
      (state, scalar metrics). These are of the first epoch, in which the policy is still the one that sampled, but for:
      grad_norm, the largest of all epochs' (so that one that is not finite shows); skipped, the share of steps that
      were not made; params_finite, 1 if all that is trained is finite at the end; learning_rate.
    """
    used = (batch.length > 0).reshape(batch.length.shape[0], -1).any(1).sum()
    used = jnp.where(on, used, 0)
    model = dataclasses.replace(model, layout=spec.layout)
    axes = lora.trained(qwen.logical_axes(model), model.lora)
    keep = functools.partial(to_stored, axes=axes, mesh=spec.layout.mesh)

    def epoch(state, _):
        loss = policy_loss(frozen, model, grammar, spec, rl)
        grad, (sums, most) = gradients(loss, state.params, prefix, batch, used, spec, keep)
        metrics = {name: x.mean() for name, x in sums.items() if name != "loss"} | most | {"loss": sums["loss"].total}
        norm = optax.global_norm(grad)
        made = on & (norm > 0) & jnp.isfinite(norm)
        # A select, not a conditional: it keeps the donated buffers.
        new = descend(state, optimizer, grad)
        state = jax.tree.map(lambda a, b: jnp.where(made, a, b), new, state)
        return state, (metrics, norm, 1.0 - made)

    if rl.epochs == 1:
        state, (metrics, norm, skipped) = epoch(state, None)
    else:
        state, (metrics, norm, skipped) = jax.lax.scan(epoch, state, None, length=rl.epochs)
        metrics = jax.tree.map(lambda x: x[0], metrics)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state.params)]).all()
    metrics |= {
        "grad_norm": norm.max(),
        "skipped": skipped.mean(),
        "params_finite": finite.astype(jnp.float32),
        "learning_rate": optimizer.rate(state.step),
    }
    return state.replace(step=state.step + on), metrics
