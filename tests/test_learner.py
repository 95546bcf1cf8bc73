"""The update: loss and gradient against a slow reference that runs every turn by itself, micro-batches, epochs."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import EDITS, chained, played

from agemem_jax.models import qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl import advantages, losses, rewards
from agemem_jax.rl.batch import LearnerBatch, learner_batch
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training import learn
from agemem_jax.training.learn import LearnSpec
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.state import Optimizer, adamw, new_state
from agemem_jax.types import PAD_ID, Text
from configs import base

BATCHES = {"all tools": (ALL_TOOLS, 0), "edits": (EDITS, 1)}


def moved(params: dict, seed: int, by: float) -> dict:
    """Parameters some steps away: ratios differ from 1, and some are clipped."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + by * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def assert_close(tree, reference, tolerance: float = 2e-4) -> None:
    """Equal up to a share of the largest gradient of each parameter."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True):
        scale = np.abs(b).max()
        assert scale > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


def turns_of(segments) -> list[tuple[int, int, int, int]]:
    """Every generation as (row, segment, first place, place after the last); `remaining` falls by one inside of one."""
    turns = []
    for b, s in zip(*np.nonzero(segments.length), strict=True):
        left = np.concatenate([segments.remaining[b, s].astype(int), [0]])
        begin = None
        for place in range(len(left)):
            if begin is not None and left[place] != left[place - 1] - 1:
                turns.append((b, s, begin, place))
                begin = None
            if begin is None and left[place] > 0:
                begin = place
    return turns


def group_advantages(reward: np.ndarray, size: int, eps: float) -> np.ndarray:
    """Algorithm 2 of the paper in numpy: [B] -> [B]."""
    groups = reward.reshape(-1, size)
    return ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + eps)).reshape(-1)


def reference_weights(segments, mode: str, action_tokens: int) -> np.ndarray:
    """Share of each row's tokens in the loss: [B]."""
    tokens = segments.trainable.sum((1, 2)).astype(float)
    if mode == "token":
        return np.full(len(tokens), 1 / tokens.sum())
    return 1 / (tokens * len(tokens)) if mode == "sequence" else np.full(len(tokens), 1 / (action_tokens * len(tokens)))


@lru_cache
def reference():
    """(params, ref_params, turn arrays, kl_coef) -> (loss, gradient): each turn as a sequence of its own from the
    prompt to its last token, an ordinary causal forward, and the paper's objective with the trainer's clipping."""
    run = chained()
    rl, prompt = run.config.rl, run.world.pieces.prefix.tokens[0]
    p = len(prompt)

    def log_probs(params, turn):
        """Masked log-probabilities [C] of a turn's context at every place."""
        tokens = jnp.concatenate([prompt, turn["tokens"]])[None, None]
        nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros((1,), jnp.int32)
        _, hidden = qwen.rows_forward(params, run.model, *nothing, tokens)
        z = qwen.logits(params, run.model, hidden[0, 0, p - 1 : -1]) / run.config.rollout.temperature
        allowed = grammar_lib.allowed_tokens(run.world.grammar, turn["state"], turn["remaining"], turn["ops"])
        logp = jax.nn.log_softmax(jnp.where(allowed, z, -1e30), axis=-1)
        return jnp.take_along_axis(logp, turn["tokens"][:, None], 1)[:, 0]

    def turn_loss(params, ref_params, turn, kl_coef):
        on = turn["trainable"]
        logp = jnp.where(on, log_probs(params, turn), 0.0)
        ref = jnp.where(on, log_probs(ref_params, turn), 0.0)
        ratio = jnp.exp(jnp.where(on, logp - turn["logp"], 0.0))
        clipped = jnp.clip(ratio, 1 - rl.clip_low, 1 + rl.clip_high)
        gain = jnp.minimum(ratio * turn["advantage"], clipped * turn["advantage"])
        kl = jnp.exp(ref - logp) - (ref - logp) - 1
        return (turn["weight"] * jnp.where(on, -gain + kl_coef * kl, 0.0)).sum()

    def loss(params, ref_params, turns, kl_coef):
        one = jax.checkpoint(lambda turn: turn_loss(params, ref_params, turn, kl_coef))
        return jax.lax.map(one, turns).sum()

    return jax.jit(jax.value_and_grad(loss))


def turn_arrays(segments, advantage: np.ndarray, weight: np.ndarray, multiple: int = 160) -> dict:
    """The turns of a batch as arrays [turns, ...], filled up with empty turns."""
    turns = turns_of(segments)
    assert len(turns) <= multiple
    columns = np.arange(segments.tokens.shape[-1])
    rows = []
    for b, s, begin, end in turns:
        rows.append(
            {
                "tokens": np.where(columns < end, segments.tokens[b, s], PAD_ID),
                "trainable": segments.trainable[b, s] & (columns >= begin) & (columns < end),
                "advantage": np.float32(advantage[b]),
                "weight": np.float32(weight[b]),
                "logp": segments.logp[b, s],
            }
            | {name: getattr(segments, name)[b, s].astype(np.int32) for name in ("state", "remaining", "ops")}
        )
    rows += [jax.tree.map(np.zeros_like, rows[0])] * (multiple - len(rows))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


@lru_cache
def learner(kl_coef: float, micro_batch: int, widths: tuple[int, ...], logit_chunk: int):
    """(params, ref_params, learner batch) -> (loss, gradient, metrics) by learn.gradients."""
    run = chained()
    rl = run.config.rl.copy_and_resolve_references()
    rl.kl_coef, rl.logit_chunk = kl_coef, logit_chunk
    spec = LearnSpec(micro_batch, widths, run.config.rollout.temperature)

    @jax.jit
    def compute(params, ref_params, batch):
        loss = learn.policy_loss(ref_params, run.model, run.world.grammar, spec, rl)
        used = (batch.length > 0).sum()
        grad, (sums, most) = learn.gradients(loss, params, run.world.pieces.prefix, batch, used, spec)
        metrics = {name: x.mean() for name, x in sums.items() if name != "loss"} | most
        return sums["loss"].total, grad, metrics

    return compute


@pytest.mark.parametrize(
    ("name", "mode", "kl_coef", "learner_sizes"),
    [
        ("all tools", "token", 0.1, (8, (56, 112), 64)),
        ("all tools", "sequence", 0.1, (8, (56, 112), 64)),
        ("edits", "constant", 0.1, (8, (56, 112), 64)),
        ("edits", "token", 0.0, (5, (112,), 17)),
    ],
)
def test_loss_and_gradient_equal_those_of_turns_run_one_by_one(name, mode, kl_coef, learner_sizes):
    run = chained()
    _, after, outcomes = played(*BATCHES[name])
    segments = after[-1].segments
    params, ref_params = moved(run.frozen, 1, 0.03), moved(run.frozen, 2, 0.03)

    reward = np.asarray(outcomes[-1]["rows"]["reward"], np.float64)
    advantage = group_advantages(reward, 4, run.config.rl.advantage_eps)
    assert np.abs(advantage).max() > 0.5
    weight = reference_weights(segments, mode, run.config.rollout.action_tokens)
    turns = turn_arrays(segments, advantage, weight)
    assert turns["trainable"].sum() == segments.trainable.sum() > 200
    expected, gradient = reference()(params, ref_params, turns, kl_coef)

    factors = rewards.factors(run.config.reward)
    earned = rewards.earned(after[-1].stats, run.config.reward, factors, run.config.context.limit)
    total, _ = rewards.combine(rewards.terms(earned), factors)
    credit, _ = advantages.step_credit(total, rewards.stage_rewards(earned, factors), run.config.rl)
    np.testing.assert_allclose(credit, np.stack([advantage] * 3, 1), atol=1e-3)
    shares = losses.token_weights(segments.trainable, mode, run.config.rollout.action_tokens)
    batch = learner_batch(segments, credit, shares, learner_sizes[0])
    loss, grad, metrics = learner(kl_coef, *learner_sizes)(params, ref_params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert_close(grad, gradient)
    assert 0.05 < metrics["clip_fraction"] < 0.95 and metrics["ratio_max"] > 1.3
    assert (metrics["kl_reference"] > 1e-3) == (kl_coef > 0)
    assert metrics["logp_gap_max"] > 0.1


def test_micro_batches_widths_and_order_change_nothing():
    run = chained()
    _, after, _ = played(*BATCHES["all tools"])
    segments = after[-1].segments
    advantage = jax.random.normal(jax.random.key(0), (8, 3))
    shares = losses.token_weights(segments.trainable, "token")
    params = moved(run.frozen, 1, 0.03)
    first = learner(0.1, 8, (56, 112), 64)(params, run.frozen, learner_batch(segments, advantage, shares, 8))
    order = np.array([4, 1, 7, 0, 2, 6, 3, 5])
    shuffled = jax.tree.map(lambda x: x[order], segments)
    batch = learner_batch(shuffled, advantage[order], shares[order], 48)
    second = learner(0.1, 48, (112,), 512)(params, run.frozen, batch)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-4)
    assert_close(first[1], second[1])
    for name in ("ratio", "kl_old", "kl_reference", "entropy", "clip_fraction"):
        np.testing.assert_allclose(first[2][name], second[2][name], rtol=1e-4, err_msg=name)


def test_the_batch_is_longest_first_and_each_stage_has_its_advantage():
    _, after, _ = played(*BATCHES["edits"])
    segments = after[-1].segments
    advantage = np.arange(24, dtype=np.float32).reshape(8, 3)
    batch = jax.device_get(learner_batch(segments, jnp.asarray(advantage), jnp.ones(segments.tokens.shape), 7))
    assert batch.length.shape[0] == 49 and (np.diff(batch.length) <= 0).all()
    assert (batch.length > 0).sum() == segments.count.sum()
    assert batch.trainable.sum() == segments.trainable.sum() and not batch.trainable[batch.length == 0].any()
    row_of = {segments.tokens[b, s].tobytes(): b for b, s in zip(*np.nonzero(segments.length), strict=True)}
    stages = {segments.tokens[b, s].tobytes(): segments.stage[b, s] for b, s in zip(*np.nonzero(segments.length))}  # noqa: B905
    for i in np.flatnonzero(batch.length):
        key, on = batch.tokens[i].tobytes(), batch.trainable[i]
        np.testing.assert_array_equal(batch.advantage[i][on], advantage[row_of[key]][stages[key][on] - 1])


MODEL = ModelConfig(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)  # fmt: skip


def grouped_batch(groups: int, rows: int, width: int) -> tuple[Text, LearnerBatch]:
    """Random sequences behind prompts of different lengths, no grammar: leaves [Np, R, T]."""
    rng = np.random.default_rng(0)
    shape = (groups, rows, width)
    lengths = rng.integers(3, width + 1, shape[:2])
    lengths[0, 0] = width
    inside = np.arange(width) < lengths[..., None]
    trainable = (rng.random(shape) < 0.6) & inside
    trainable[:, :, 0] = True  # the first token is predicted from the prompt alone
    zeros = np.zeros(shape, np.int32)
    prefix_length = np.array([5, 2, 4, 3, 5])[:groups].astype(np.int32)
    prefix = np.where(np.arange(5) < prefix_length[:, None], rng.integers(1, 23, (groups, 5)), PAD_ID).astype(np.int32)
    batch = LearnerBatch(
        tokens=np.where(inside, rng.integers(1, 23, shape), PAD_ID).astype(np.int32),
        length=lengths.astype(np.int32),
        trainable=trainable,
        old_logp=(-3 + 0.3 * rng.normal(size=shape)).astype(np.float32) * trainable,
        state=zeros,
        remaining=zeros,
        ops=zeros,
        advantage=rng.normal(size=shape).astype(np.float32),
        weight=(trainable / trainable.sum()).astype(np.float32),
    )
    return Text(prefix, prefix_length), batch


@lru_cache
def grouped_reference():
    """Loss and gradient of `grouped_batch(3, 2, 12)`, sequence by sequence."""
    prefix, batch = grouped_batch(3, 2, 12)
    p, n = prefix.length[:, None], batch.length
    nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros((1,), jnp.int32)
    joined = np.zeros((3, 2, 17), np.int32)
    for g in range(3):
        for r in range(2):
            joined[g, r, : p[g, 0] + n[g, r]] = [*prefix.tokens[g, : p[g, 0]], *batch.tokens[g, r, : n[g, r]]]

    def sequence_loss(params, one):
        tokens, start, row = one
        _, hidden = qwen.rows_forward(params, MODEL, *nothing, tokens[None, None])
        z = jax.nn.log_softmax(qwen.logits(params, MODEL, hidden[0, 0]) / 0.9)
        z = jax.lax.dynamic_slice_in_dim(z, start - 1, 12)
        logp = jnp.take_along_axis(z, row.tokens[:, None], 1)[:, 0]
        ratio = jnp.exp(jnp.where(row.trainable, logp - row.old_logp, 0.0))
        gain = jnp.minimum(ratio * row.advantage, jnp.clip(ratio, 0.8, 1.2) * row.advantage)
        return -(row.weight * jnp.where(row.trainable, gain, 0.0)).sum()

    def loss(params):
        flat = lambda x: jnp.asarray(x).reshape(6, *x.shape[2:])  # noqa: E731
        each = (flat(joined), flat(np.broadcast_to(p, n.shape)), jax.tree.map(flat, batch))
        return jax.lax.map(lambda one: sequence_loss(params, one), each).sum()

    params = moved(qwen.init_params(MODEL, jax.random.key(0)), 1, 0.1)
    return params, *jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("micro_batch", [2, 7])
def test_several_prompts_equal_sequences_run_one_by_one(micro_batch):
    """Single-turn GRPO: one prompt a group. A micro-batch is whole groups: here one, or all three."""
    prefix, batch = grouped_batch(3, 2, 12)
    params, expected, gradient = grouped_reference()
    rl = base.get_config().rl
    rl.kl_coef, rl.logit_chunk = 0.0, 16
    spec = LearnSpec(micro_batch, (6, 12), 0.9)

    @jax.jit
    def fast(params, prefix, batch):
        loss = learn.policy_loss({}, MODEL, None, spec, rl)
        grad, (sums, _) = learn.gradients(loss, params, prefix, batch, jnp.int32(3), spec)
        return sums["loss"].total, grad

    loss, grad = fast(params, prefix, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert_close(grad, gradient)


def test_groups_that_do_not_divide_are_refused():
    prefix, batch = grouped_batch(5, 2, 12)
    with pytest.raises(ValueError, match="5 sequences do not divide into micro-batches of 2"):
        learn.gradients(None, {}, prefix, batch, 5, LearnSpec(4, (12,), 1.0))


DECAYING = Optimizer(adamw(1.0, 0.1), lambda update: 1e-2)


def one_prompt_update(epochs: int, optimizer):
    """A jitted learn.update of one prompt's sequences, and its arguments (state, batch)."""
    prefix, batch = grouped_batch(1, 4, 12)
    flat = jax.tree.map(lambda x: x[0], batch)
    order = np.argsort(-flat.length, kind="stable")
    flat = jax.tree.map(lambda x: jnp.asarray(x[order]), flat)
    rl = base.get_config().rl
    rl.kl_coef, rl.logit_chunk, rl.epochs = 0.0, 16, epochs
    step = partial(learn.update, optimizer=optimizer, model=MODEL, grammar=None, spec=LearnSpec(2, (12,), 1.0), rl=rl)
    state = new_state(moved(qwen.init_params(MODEL, jax.random.key(0)), 1, 0.1), optimizer)
    return jax.jit(lambda state, on: step(state, {}, prefix=prefix, batch=flat, on=on)), state


def test_epochs_are_optimizer_steps_on_one_batch():
    optimizer = Optimizer(optax.scale_by_adam(), lambda update: 1e-2)
    once, state = one_prompt_update(1, optimizer)
    twice, _ = one_prompt_update(2, optimizer)
    first, metrics = once(state, jnp.bool_(True))
    second, later = once(first, jnp.bool_(True))
    both, of_first = twice(state, jnp.bool_(True))
    assert (int(second.step), int(both.step)) == (2, 1)  # an update is one batch, however many epochs it has
    for a, b in zip(jax.tree.leaves(both.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(of_first[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert later["loss"] < metrics["loss"]


def test_an_update_that_is_off_changes_nothing():
    once, state = one_prompt_update(1, DECAYING)
    after, metrics = once(state, jnp.bool_(False))
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0


def test_unused_sequences_cost_no_step_and_change_nothing():
    """The loop over micro-batches ends behind the last sequence in use."""
    prefix, batch = grouped_batch(1, 4, 12)
    flat = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 12), *[(0, 0)] * (x.ndim - 1))), flat)
    params = qwen.init_params(MODEL, jax.random.key(0))
    spec = LearnSpec(4, (12,), 1.0)

    def loss(params, prefix, piece):
        logp, _ = learn.log_probs(params, MODEL, None, prefix, piece, 1.0, 16)
        return (logp * piece.weight).sum(), ({"pieces": jnp.float32(1)}, {})

    count = jax.jit(lambda b, used: learn.gradients(loss, params, prefix, b, used, spec))
    grad, (sums, _) = count(padded, 4)
    alone, (one, _) = count(flat, 4)
    assert float(sums["pieces"]) == float(one["pieces"]) == 1
    assert_close(grad, alone, 1e-6)
    nothing, (sums, _) = count(padded, 0)
    assert float(sums["pieces"]) == 0 and all((np.asarray(x) == 0).all() for x in jax.tree.leaves(nothing))


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_remat_changes_nothing(remat):
    prefix, batch = grouped_batch(1, 4, 12)
    batch = jax.tree.map(jnp.asarray, batch)
    params = qwen.init_params(MODEL, jax.random.key(0))

    def gradient(model):
        total = lambda params: (learn.log_probs(params, model, None, prefix, batch, 1.0, 16)[0] * batch.weight).sum()  # noqa: E731
        return jax.jit(jax.grad(total))(params)

    assert_close(gradient(dataclasses.replace(MODEL, remat=remat)), gradient(MODEL), 1e-5)
