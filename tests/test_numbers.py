"""Numbers that train: master weights, steps that are not made, rates, and budgets."""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from small import chained, settings, small_config

from agemem_jax import sharding
from agemem_jax.models import lora, qwen
from agemem_jax.models.lora import Lora
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl import advantages, losses
from agemem_jax.rl.batch import learner_batch
from agemem_jax.training import learn, programs
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.learn import LearnSpec
from agemem_jax.training.state import (
    Optimizer,
    adamw,
    descend,
    make_optimizer,
    new_state,
    param_shardings,
    state_shapes,
)
from agemem_jax.training.warm import warm_optimizer
from agemem_jax.types import Segments, Text
from configs import base

MODEL = ModelConfig(
    vocab_size=24, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4
)  # fmt: skip
ADAPTED = dataclasses.replace(MODEL, lora=Lora(2, 2.0, ("q_proj", "up_proj")))
PREFIX = Text(np.arange(1, 6, dtype=np.int32)[None], np.array([5], np.int32))
KINDS = {
    # name: (model, changes of config.rl)
    "plain": (MODEL, {}),
    "reference": (MODEL, {"kl_coef": 0.1}),
    "adapters": (ADAPTED, {}),
    "epochs": (MODEL, {"epochs": 2}),
    "half": (dataclasses.replace(MODEL, param_dtype="bfloat16"), {}),
}
SMALL_STEPS, ENDLESS = 100, 200  # updates from which the rate is 1e-6, and infinite: programs compile once


def rate(update):
    return jnp.where(update < SMALL_STEPS, 1e-2, jnp.where(update < ENDLESS, 1e-6, jnp.inf))


OPTIMIZER = Optimizer(adamw(1.0, 0.1), rate)  # with decay, which moves parameters without a gradient


@lru_cache
def program(kind: str):
    """(state, frozen, segments, advantage [4, 3], weight) -> (state, metrics), jitted; micro-batches of two."""
    model, changes = KINDS[kind]
    rl = base.get_config().rl
    rl.kl_coef, rl.logit_chunk = 0.0, 32
    rl.update(changes)

    def step(state, frozen, segments, advantage, weight):
        batch = learner_batch(segments, advantage, weight, 2)
        on = jnp.bool_(True)
        return learn.update(state, frozen, OPTIMIZER, model, None, PREFIX, batch, LearnSpec(2, (10,), 1.0), rl, on)

    return jax.jit(step)


def begun(kind: str):
    """(state, frozen) of a run: the policy that it starts with is the reference, or what the adapters are beside."""
    model, _ = KINDS[kind]
    plain = dataclasses.replace(model, lora=None)
    policy = jax.jit(qwen.init_params, static_argnums=0)(plain, jax.random.key(0))
    trained = policy
    if model.lora:
        trained = lora.trained(jax.jit(qwen.init_params, static_argnums=0)(model, jax.random.key(1)), model.lora)
    return new_state(trained, OPTIMIZER), policy


@lru_cache
def played() -> Segments:
    """Four rollouts, two groups, of two segments each; a segment has tokens of all three stages."""
    rng = np.random.default_rng(0)
    shape, lengths = (4, 2, 10), rng.integers(6, 11, (4, 2)).astype(np.int32)
    inside = np.arange(10) < lengths[..., None]
    zeros = np.zeros(shape, np.int16)
    return Segments(
        tokens=(rng.integers(1, 24, shape) * inside).astype(np.int32),
        length=lengths,
        trainable=inside,
        logp=np.float32(-3.2) * inside,
        state=zeros,
        remaining=zeros,
        ops=zeros,
        turn=zeros,
        stage=np.broadcast_to(1 + np.arange(10) % 3, shape).astype(np.int8),
        count=np.full(4, 2, np.int32),
    )


def asked(reward, by_stage, credit: str, zero_variance: str):
    """What stage programs make of rewards [4] and [4, 3]: (segments, advantage, weight)."""
    rl = ConfigDict(dict(credit=credit, group_size=2, advantage_eps=1e-6, advantage_std=True))
    segments = played()
    advantage, varied = advantages.step_credit(jnp.asarray(reward), jnp.asarray(by_stage), rl)
    if zero_variance == "drop":
        segments = segments.replace(trainable=segments.trainable & advantages.of_tokens(varied, segments.stage))
    return segments, advantage, losses.token_weights(segments.trainable, "token")


VARIED = np.array([1.0, 0.0, 0.3, 0.7], np.float32)
EQUAL = np.array([0.7, 0.7, 0.1, 0.1], np.float32)
STAGES = np.array([0.1, 0.2, 0.4], np.float32)


def varied():
    return asked(VARIED, VARIED[:, None] * STAGES, "broadcast", "keep")


def equal():
    return asked(EQUAL, EQUAL[:, None] * STAGES, "broadcast", "keep")


def assert_same(state, before):
    """Everything but the number of updates is as it was, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=0), before.replace(step=0))
    assert int(state.step) == int(before.step) + 1


@lru_cache
def moving(kind: str):
    """A state whose moments are not 0, and what is frozen beside it."""
    state, frozen = begun(kind)
    state, metrics = program(kind)(state, frozen, *varied())
    assert metrics["skipped"] == 0 and metrics["params_finite"] == 1 and metrics["grad_norm"] > 0
    return state, frozen


@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
@pytest.mark.parametrize("credit", ["broadcast", "per_stage", "return_to_go"])
def test_an_update_without_variance_changes_nothing(credit, zero_variance):
    state, frozen = moving("plain")
    after, metrics = program("plain")(state, frozen, *asked(EQUAL, EQUAL[:, None] * STAGES, credit, zero_variance))
    assert_same(after, state)
    assert (metrics["skipped"], metrics["grad_norm"], metrics["params_finite"]) == (1, 0, 1)


@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
@pytest.mark.parametrize("credit", ["broadcast", "per_stage", "return_to_go"])
def test_variance_in_one_stage_of_one_group_trains(credit, zero_variance):
    """Rewards differ in stage 1 of the last two rollouts alone."""
    state, frozen = moving("plain")
    by_stage = EQUAL[:, None] * STAGES
    by_stage[3, 0] += 0.5
    after, metrics = program("plain")(state, frozen, *asked(by_stage.sum(1), by_stage, credit, zero_variance))
    assert metrics["skipped"] == 0 and metrics["grad_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("kind", ["adapters", "epochs", "half"])
def test_adapters_epochs_and_a_master_are_left_alone_too(kind):
    state, frozen = moving(kind)
    after, metrics = program(kind)(state, frozen, *equal())
    assert_same(after, state)
    assert metrics["skipped"] == 1


def test_the_reference_trains_without_variance():
    """The policy has moved away from the reference; a loss with KL pulls it back, one that has no tokens does not."""
    state, frozen = moving("reference")
    after, metrics = program("reference")(state, frozen, *equal())
    assert metrics["skipped"] == 0 and metrics["kl_reference"] > 0 and metrics["grad_norm"] > 0
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)))
    nothing = asked(EQUAL, EQUAL[:, None] * STAGES, "broadcast", "drop")
    after, metrics = program("reference")(state, frozen, *nothing)
    assert_same(after, state)
    assert metrics["skipped"] == 1


def test_tokens_that_are_all_clipped_move_nothing():
    state, frozen = moving("plain")
    segments, _, weight = varied()
    far = segments.replace(logp=segments.logp - 2)  # each ratio is far above 1 + clip_high
    after, metrics = program("plain")(state, frozen, far, jnp.ones((4, 3)), weight)
    assert_same(after, state)
    assert metrics["skipped"] == 1 and metrics["clip_fraction"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(value):
    for kind in ("plain", "epochs"):
        state, frozen = moving(kind)
        segments, advantage, weight = varied()
        after, metrics = program(kind)(state, frozen, segments, advantage.at[1, 1].set(value), weight)
        assert_same(after, state)
        assert not np.isfinite(metrics["grad_norm"])
        assert (metrics["skipped"], metrics["params_finite"]) == (1, 1)


def test_parameters_that_are_not_finite_are_seen():
    """The first epoch's gradient is finite, its step is not; the second epoch has no finite gradient."""
    state, frozen = begun("epochs")
    _, metrics = program("epochs")(state.replace(step=jnp.int32(ENDLESS)), frozen, *varied())
    assert np.isfinite(metrics["loss"])
    assert metrics["params_finite"] == 0 and not np.isfinite(metrics["grad_norm"]) and metrics["skipped"] == 0.5


def test_a_bfloat16_policy_follows_the_float32_one():
    """Ten updates at 1e-6: its master moves as float32 parameters do, where nearly no bfloat16 number does."""
    half, frozen = begun("half")
    half = half.replace(step=jnp.int32(SMALL_STEPS))
    exact = new_state(jax.tree.map(jnp.array, half.master), OPTIMIZER).replace(step=half.step)
    first, reference = jax.device_get((half, half.master))
    assert {x.dtype for x in jax.tree.leaves((half.master, half.opt_state[1].mu, half.opt_state[1].nu))} == {
        np.dtype(np.float32)
    }
    batch = varied()
    for _ in range(10):
        half, metrics = program("half")(half, frozen, *batch)
        exact, expected = program("plain")(exact, frozen, *batch)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.02, atol=1e-4)
    jax.tree.map(lambda p, m: np.testing.assert_array_equal(p, m.astype(p.dtype)), half.params, half.master)
    flat = lambda tree, base: np.concatenate(  # noqa: E731
        [np.ravel(np.asarray(a, np.float32) - b) for a, b in zip(*map(jax.tree.leaves, (tree, base)), strict=True)]
    )
    ours, theirs = flat(half.master, reference), flat(exact.params, reference)
    assert (ours != 0).mean() > 0.99 and (theirs != 0).mean() > 0.99
    assert ours @ theirs > 0.97 * np.linalg.norm(ours) * np.linalg.norm(theirs)
    assert (flat(half.params, first.params) != 0).mean() < 0.3


def test_every_array_of_the_state_is_updated_in_place():
    """Master and moments too: what is donated is as large as the state."""
    state, frozen = begun("half")
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    donating = jax.jit(program("half").__wrapped__, donate_argnums=0)
    stats = donating.lower(state, frozen, *varied()).compile().memory_analysis()
    assert stats.alias_size_in_bytes == sum(x.nbytes for x in jax.tree.leaves(state))


def test_micro_batches_of_bfloat16_gradients_are_added_up_in_float32():
    """256 times 1 + 1/256: in bfloat16 the sum stays at 256 at the latest."""
    params = {"w": jnp.ones((), jnp.bfloat16)}
    batch = learner_batch(played(), jnp.zeros((4, 3)), jnp.zeros((4, 2, 10)), 1)
    batch = jax.tree.map(lambda x: jnp.repeat(x[:1], 512, 0), batch)
    loss = lambda params, *_: (params["w"].astype(jnp.float32), ({}, {}))  # noqa: E731
    grad, _ = learn.gradients(loss, params, PREFIX, batch, jnp.int32(512), LearnSpec(1, (10,), 1.0))
    assert grad["w"].dtype == jnp.float32 and grad["w"] == 512


def test_the_master_lies_where_the_parameters_do_and_is_saved(tmp_path):
    model, mesh = KINDS["half"][0], sharding.make_mesh(2, 2, 2)
    optimizer = make_optimizer(base.get_config().optim)
    params = jax.device_put(begun("half")[0].params, param_shardings(model, mesh))
    state, like = new_state(params, optimizer), state_shapes(model, optimizer, mesh)
    described = lambda x: (x.shape, x.dtype, x.sharding)  # noqa: E731
    assert jax.tree.map(described, state) == jax.tree.map(described, like)
    assert all(jax.tree.leaves(jax.tree.map(lambda p, m: p.sharding == m.sharding, state.params, state.master)))
    with Checkpointer(tmp_path, small_config(), 1) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
        _, restored, _ = checkpoints.restore_latest(like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.map(described, restored) == jax.tree.map(described, state)


def test_float32_parameters_and_adapters_have_no_master():
    for kind in ("plain", "adapters"):
        assert begun(kind)[0].master is None
    half = dataclasses.replace(ADAPTED, param_dtype="bfloat16")
    assert state_shapes(half, OPTIMIZER, sharding.make_mesh(1, 1, 1)).master is None


def test_the_rate_goes_by_updates_and_is_never_0():
    optim = base.get_config().optim
    optim.learning_rate, optim.warmup_updates = 0.5, 4
    rate = make_optimizer(optim).rate
    np.testing.assert_allclose([rate(jnp.int32(u)) for u in range(6)], [0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    optim.warmup_updates = 0
    np.testing.assert_allclose(make_optimizer(optim).rate(jnp.int32(0)), 0.5)

    warm = base.get_config().warm
    warm.warmup_steps, warm.final_learning_rate = 4, 0.1
    rates = [float(warm_optimizer(warm, 0.8, 10, 1.0).rate(jnp.int32(step))) for step in range(10)]
    np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    np.testing.assert_allclose(rates[-1], 0.1, rtol=1e-6)


def test_the_warm_start_moves_matrices_by_orthogonal_steps():
    """Each layer's kernels by a matrix whose singular values are alike, as large as Adam's steps; the rest by Adam."""
    warm = base.get_config().warm
    warm.warmup_steps, warm.weight_decay = 1, 0.0
    optimizer = warm_optimizer(warm, 1.0, 10, 1e9)
    params = {"layers": {"o_proj": {"kernel": jnp.zeros((3, 64, 32))}}, "norm": {"weight": jnp.ones(32)}}
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.01, jnp.float32), params)
    state = descend(new_state(params, optimizer), optimizer, gradient)
    moved = -np.asarray(state.params["layers"]["o_proj"]["kernel"])
    for layer in range(3):
        sizes = np.linalg.svd(moved[layer], compute_uv=False) / (0.2 * np.sqrt(64))
        assert 0.6 < sizes.min() and sizes.max() < 1.4  # Newton and Schulz's steps end near 1
        assert (moved[layer] * np.asarray(gradient["layers"]["o_proj"]["kernel"][layer])).sum() > 0
    by_adam = np.asarray(1 - state.params["norm"]["weight"]) * np.sign(gradient["norm"]["weight"])
    np.testing.assert_allclose(by_adam, np.full(32, by_adam[0]), rtol=1e-3)  # of one size, whatever the gradient's is
    assert 0.9 < by_adam[0] < 1.6


def test_all_epochs_of_an_update_have_its_rate():
    """Two epochs under a rate that is 0 but in the first update: both move, and in the second update neither."""
    first_only = Optimizer(optax.sgd(1.0), lambda update: jnp.where(update == 0, -0.5, 0.0))
    state = new_state({"w": jnp.ones(3)}, first_only)
    for _ in range(2):
        state = descend(state, first_only, {"w": jnp.ones(3)})
    np.testing.assert_allclose(state.params["w"], 0.0)
    after = descend(state.replace(step=state.step + 1), first_only, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(after.params["w"], state.params["w"])
    state, frozen = moving("epochs")
    assert int(state.step) == 1 and program("epochs")(state, frozen, *varied())[1]["learning_rate"] == np.float32(0.01)


def test_the_budget_of_a_stage_by_hand():
    """Four messages, one distractor, three turns, each of 14 tokens, and in each stage two summaries of 6."""
    spec = chained().spec.rollout
    assert [spec.budget(stage) for stage in (1, 2, 3)] == [4 * 14 + 12, 14 + 12, 3 * 14 + 12]
    spec = dataclasses.replace(spec, stage1_extra_turns=2, stage2_extra_turns=1, summary_slots=2)
    assert [spec.budget(stage) for stage in (1, 2, 3)] == [6 * 14 + 12, 2 * 14 + 12, 3 * 14 + 12]
    in_calls = dataclasses.replace(spec, summary_by_policy=False)
    assert [in_calls.budget(stage) for stage in (1, 2, 3)] == [6 * 14, 2 * 14, 3 * 14]


@pytest.mark.parametrize(("schedule", "stage", "budget"), [("chained", 3, 148), ("sequential", 1, 68)])
def test_a_trajectory_is_divided_by_the_budget_of_what_is_trained(monkeypatch, schedule, stage, budget):
    """Traced only: what reaches token_weights is the whole trajectory's budget, or in turn the stage's own."""
    run, seen = chained(), []
    rl = run.config.rl.copy_and_resolve_references()
    rl.schedule, rl.loss_average = schedule, "constant"
    weights = losses.token_weights
    monkeypatch.setattr(losses, "token_weights", lambda *args: seen.append(args[1:3]) or weights(*args))
    state = state_shapes(run.model, run.optimizer, run.mesh)
    traced = lambda n: programs.stage_program(n, run.spec, run.model, run.optimizer, rl, run.config.reward)  # noqa: E731
    task, control, rows = run.source.batch(0), settings(run), None
    if stage > 1:
        plain = programs.stage_program(1, run.spec, run.model, run.optimizer, run.config.rl, run.config.reward)
        rows = jax.eval_shape(plain, state, run.frozen, None, task, run.world, control)[1]
    jax.eval_shape(traced(stage), state, run.frozen, rows, task, run.world, control)
    assert seen == [("constant", budget)]
