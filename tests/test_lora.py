"""Adapters against merged weights, PEFT's formula, the chain rule, a mesh; and a run that trains nothing else."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from small import settings, small_config

from agemem_jax import sharding
from agemem_jax.config import PROJECTIONS, ConfigError, validate
from agemem_jax.models import kv_cache, lora, qwen, weights
from agemem_jax.models.lora import AdaptedDense, Lora
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl.batch import LearnerBatch
from agemem_jax.sharding import Layout
from agemem_jax.training import learn
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.learn import LearnSpec
from agemem_jax.training.loop import put_batch
from agemem_jax.training.programs import trajectory
from agemem_jax.training.setup import build, starting_params
from agemem_jax.training.state import (
    Optimizer,
    init_adapters,
    new_state,
    param_shardings,
    state_shapes,
    state_shardings,
)
from agemem_jax.types import Text
from configs import base
from experiments.export import export

ALL = Lora(3, 1.7, PROJECTIONS)
SIZES = dict(vocab_size=62, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2)
FAMILIES = {
    "qwen2": ModelConfig(**SIZES, head_dim=8, qkv_bias=True, lora=ALL),
    "qwen3": ModelConfig(**SIZES, head_dim=12, qk_norm=True, tie_word_embeddings=False, lora=ALL),
    "three of seven": ModelConfig(**SIZES, head_dim=8, lora=Lora(2, 2.0, ("q_proj", "v_proj", "down_proj"))),
}


def plain(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, lora=None)


def noisy(tree: dict, seed: int, by: float = 0.2) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + by * rng.normal(size=x.shape), x.dtype), tree)


@functools.partial(jax.jit, static_argnums=0)
def started(config: ModelConfig, seed: int) -> dict:
    return qwen.init_params(config, jax.random.key(seed))


@functools.cache
def policy(family: str) -> tuple[ModelConfig, dict, dict]:
    """(config, adapters as they begin, frozen parameters away from their initial values)."""
    config = FAMILIES[family]
    adapters = lora.trained(started(config, 1), config.lora)
    return config, adapters, noisy(started(plain(config), 0), 2)


@functools.partial(jax.jit, static_argnums=1)
def forward(params: dict, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Logits [2, 20, V] of the learner's pass: 8 tokens of a prompt, then two rows."""
    prefix, rows = qwen.rows_forward(params, config, tokens[:1, :8], jnp.array([8]), tokens[None, :, 8:])
    prefix = jnp.broadcast_to(prefix, (2, *prefix.shape[1:]))
    return qwen.logits(params, config, jnp.concatenate([prefix, rows[0]], 1))


@functools.partial(jax.jit, static_argnums=1)
def decoded(params: dict, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Logits [B, 12, V] of the rows' tokens through the cache: ten prefilled, two decoded one by one."""
    prefix, _ = kv_cache.encode_prefix(params, config, tokens[:1, :8], jnp.array([8]))
    b = tokens.shape[0]
    history, cached = kv_cache.init_history(config, b, 10), jnp.zeros(b, jnp.int32)
    hidden, history = kv_cache.extend(params, config, prefix, history, cached, tokens[:, 8:18], cached + 10)
    out, slot = [hidden], kv_cache.init_slot(config, b, 2)
    split = kv_cache.split_layers(params, config)
    for i in range(2):
        last, slot = kv_cache.decode_step(split, config, prefix, history, cached + 10, slot, i, tokens[:, 18 + i])
        out.append(last[:, None])
    return qwen.logits(params, config, jnp.concatenate(out, 1))


def some_tokens() -> np.ndarray:
    """Two sequences [2, 20] with the same first 8 tokens."""
    tokens = np.random.default_rng(0).integers(1, 62, (2, 20)).astype(np.int32)
    tokens[1, :8] = tokens[0, :8]
    return tokens


def assert_close(ours, theirs, tolerance: float = 1e-5):
    """Maximal difference below `tolerance` of the scale."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


def leaf_names(tree: dict) -> list[str]:
    return ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_every_projection_is_known_by_its_name():
    layers = started(plain(FAMILIES["qwen2"]), 0)["layers"]
    found = {name for part in ("self_attn", "mlp") for name in layers[part] if name.endswith("_proj")}
    assert found == set(PROJECTIONS) == set(base.get_config().policy.lora_targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_beside_their_projections_and_have_axes(family):
    config, adapters, frozen = policy(family)
    axes = qwen.logical_axes(config)
    sizes = {"embed": 32, "mlp": 48, "heads": 4 * config.head_dim, "kv_heads": 2 * config.head_dim, "layers": 2}
    sizes["lora"] = config.lora.rank
    jax.tree.map(
        lambda names, x: [sizes[name] for name in names] == list(x.shape) or pytest.fail(f"{names} {x.shape}"),
        lora.trained(axes, config.lora), adapters, is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    assert {name.split("/")[-2] for name in leaf_names(adapters)} == set(config.lora.targets)
    assert {x.dtype for x in jax.tree.leaves(adapters)} == {np.dtype(np.float32)}
    both = lora.policy_params(adapters, frozen)
    assert jax.tree.structure(both) == jax.tree.structure(jax.eval_shape(lambda: started(config, 0)))
    assert len(jax.tree.leaves(both)) == len(jax.tree.leaves(adapters)) + len(jax.tree.leaves(frozen))


def test_without_adapters_the_policy_is_what_is_trained():
    """Whatever is frozen beside it: nothing, or the reference."""
    _, _, params = policy("qwen2")
    other = noisy(params, 3)
    for frozen in ({}, other):
        chosen = lora.policy_params(params, frozen)
        assert all(a is b for a, b in zip(jax.tree.leaves(chosen), jax.tree.leaves(params), strict=True))
    assert lora.merge(params, other, None) is params and lora.trained(params, None) is params


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_begin_as_the_frozen_policy_exactly(family):
    config, adapters, frozen = policy(family)
    params, tokens = lora.policy_params(adapters, frozen), some_tokens()
    np.testing.assert_array_equal(forward(params, config, tokens), forward(frozen, plain(config), tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_through_adapters_are_those_of_merged_weights(family):
    config, adapters, frozen = policy(family)
    adapters, tokens = noisy(adapters, 4), some_tokens()
    params, merged = lora.policy_params(adapters, frozen), lora.merge(adapters, frozen, config.lora)
    assert jax.tree.structure(merged) == jax.tree.structure(frozen)
    expected = forward(merged, plain(config), tokens)
    assert np.abs(expected - forward(frozen, plain(config), tokens)).max() > 0.1 * np.abs(expected).max()
    assert_close(forward(params, config, tokens), expected)
    for scan in (False, True) if family == "qwen2" else (False,):
        assert_close(decoded(params, dataclasses.replace(config, scan_layers=scan), tokens), expected[:, 8:])


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_gradients_follow_from_those_of_merged_weights(remat):
    """W' = W + s A B, so dA = s dW' B^T and dB = s A^T dW'."""
    config, adapters, frozen = policy("qwen2")
    config = dataclasses.replace(config, remat=remat)
    adapters, tokens = noisy(adapters, 4), some_tokens()
    target = jax.random.normal(jax.random.key(5), (2, 20, 62))

    @jax.jit
    def gradients(adapters):
        through = lambda part: (forward(lora.policy_params(part, frozen), config, tokens) * target).sum()  # noqa: E731
        merged = lora.merge(adapters, frozen, config.lora)
        whole = lambda params: (forward(params, plain(config), tokens) * target).sum()  # noqa: E731
        return jax.grad(through)(adapters), jax.grad(whole)(merged)

    ours, full = gradients(adapters)
    assert jax.tree.structure(ours) == jax.tree.structure(adapters)
    for part in ("self_attn", "mlp"):
        for name, grad in ours["layers"][part].items():
            own, kernel = adapters["layers"][part][name], full["layers"][part][name]["kernel"]
            assert_close(grad["lora_a"], 1.7 * kernel @ own["lora_b"].swapaxes(1, 2), 1e-4)
            assert_close(grad["lora_b"], 1.7 * own["lora_a"].swapaxes(1, 2) @ kernel, 1e-4)


def test_the_formula_is_pefts():
    """result = base(x) + lora_B(lora_A(x)) * (alpha / r) with torch's layers, as in peft/tuners/lora/layer.py."""
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(5, 12)), rng.normal(size=(12, 7)), rng.normal(size=7)
    a, b = rng.normal(size=(12, 4)), rng.normal(size=(4, 7))
    base_layer, lora_a, lora_b = torch.nn.Linear(12, 7), torch.nn.Linear(12, 4, False), torch.nn.Linear(4, 7, False)
    with torch.no_grad():
        for layer, value in ((base_layer, kernel), (lora_a, a), (lora_b, b)):
            layer.weight.copy_(torch.tensor(value.T))
        base_layer.bias.copy_(torch.tensor(bias))
        batch = torch.tensor(x, dtype=torch.float32)
        theirs = base_layer(batch) + lora_b(lora_a(batch)) * (16 / 4)
    params = {"kernel": kernel, "bias": bias, "lora_a": a, "lora_b": b}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    ours = AdaptedDense(7, lora=Lora(4, 16 / 4, ("q_proj",))).apply({"params": params}, jnp.asarray(x, jnp.float32))
    assert_close(ours, theirs.numpy(), 1e-6)


def test_adapters_begin_as_pefts():
    """nn.init.kaiming_uniform_(lora_A.weight, a=sqrt(5)) and zeros."""
    theirs = torch.nn.Linear(400, 64, bias=False)
    torch.nn.init.kaiming_uniform_(theirs.weight, a=5**0.5)
    params = AdaptedDense(7, lora=Lora(64, 1.0, ())).init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    a = np.asarray(params["lora_a"])
    assert np.abs(a).max() <= 1 / 20 and np.abs(a).max() > 0.99 / 20
    np.testing.assert_allclose(a.std(), theirs.weight.std().item(), rtol=0.02)
    assert not params["lora_b"].any()


def test_full_rank_adapters_can_be_any_change():
    rng = np.random.default_rng(0)
    x, kernel, change = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 6), (6, 9), (6, 9)))
    params = {"kernel": kernel, "lora_a": jnp.eye(6), "lora_b": change / 0.5}
    layer = AdaptedDense(9, use_bias=False, lora=Lora(6, 0.5, ("q_proj",)))
    assert_close(layer.apply({"params": params}, x), x @ (kernel + change))


def test_a_bfloat16_policy_has_float32_adapters():
    config = dataclasses.replace(FAMILIES["qwen3"], param_dtype="bfloat16", dtype="bfloat16", num_layers=1)
    frozen = noisy(started(plain(config), 0), 2)
    adapters = noisy(lora.trained(started(config, 1), config.lora), 4, 0.02)
    assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.bfloat16.dtype}
    loss = lambda part: forward(lora.policy_params(part, frozen), config, some_tokens()).mean()  # noqa: E731
    gradient = jax.eval_shape(jax.grad(loss), adapters)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {np.dtype(np.float32)}
    merged = lora.merge(adapters, frozen, config.lora)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.bfloat16.dtype}

    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 32)), jnp.bfloat16)
    whole, part = (tree["layers"]["mlp"]["up_proj"] for tree in (merged, lora.policy_params(adapters, frozen)))
    layer = AdaptedDense(48, use_bias=False, dtype=jnp.bfloat16, lora=ALL)
    ours = layer.apply({"params": jax.tree.map(lambda x: x[0], part)}, x)
    assert ours.dtype == jnp.bfloat16
    assert_close(ours, x @ whole["kernel"][0], 0.02)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_merged_policy_is_one_of_transformers(family, tmp_path):
    config, adapters, frozen = policy(family)
    adapters, tokens = noisy(adapters, 4), some_tokens()
    weights.save_hf(tmp_path, plain(config), lora.merge(adapters, frozen, config.lora))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert_close(forward(lora.policy_params(adapters, frozen), config, tokens), theirs, 1e-4)


def learner_rows(rows: int, width: int) -> tuple[Text, LearnerBatch]:
    """Random sequences behind one prompt of 8 tokens, no grammar; leaves [rows, width]."""
    rng = np.random.default_rng(0)
    shape, zeros = (rows, width), np.zeros((rows, width), np.int32)
    length = np.sort(rng.integers(3, width + 1, rows))[::-1].astype(np.int32)
    trainable = np.arange(width) < length[:, None]
    batch = LearnerBatch(
        tokens=rng.integers(1, 62, shape).astype(np.int32) * trainable, length=length, trainable=trainable,
        old_logp=(-3 + 0.3 * rng.normal(size=shape)).astype(np.float32) * trainable, state=zeros, remaining=zeros,
        ops=zeros, advantage=rng.normal(size=shape).astype(np.float32),
        weight=(trainable / trainable.sum()).astype(np.float32),
    )  # fmt: skip
    return Text(some_tokens()[:1, :8], np.array([8], np.int32)), batch


def updated(family: str, mesh, rules: str):
    """(adapters, optimizer state, metrics) after one learn.update with a reference, and logits by the cache."""
    config, adapters, frozen = policy(family)
    config = dataclasses.replace(config, remat="full")
    adapters, optimizer = noisy(adapters, 4, 0.05), Optimizer(optax.scale_by_adam(), lambda update: 1e-2)
    rl = base.get_config().rl
    rl.kl_coef, rl.logit_chunk = 0.1, 16
    prefix, batch = learner_rows(8, 10)
    spec = LearnSpec(8, (10,), 1.0, Layout(mesh, rules))
    out = None
    if mesh is not None:
        adapters = jax.device_put(adapters, lora.trained(param_shardings(config, mesh), config.lora))
        frozen = jax.device_put(frozen, param_shardings(plain(config), mesh))
        out = state_shardings(config, optimizer, mesh), None
    actor = dataclasses.replace(config, layout=Layout(mesh, "rollout"))
    tokens = np.tile(some_tokens(), (2, 1))

    def play(adapters, frozen):
        return decoded(qwen.to_layout(lora.policy_params(adapters, frozen), actor), actor, tokens)

    def step(state, frozen):
        return learn.update(state, frozen, optimizer, config, None, prefix, batch, spec, rl, jnp.bool_(True))

    logits = jax.jit(play)(adapters, frozen)
    state = new_state(adapters, optimizer)
    new, metrics = jax.jit(step, out_shardings=out)(state, frozen)
    if mesh is not None:
        same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), new, state)
        assert all(jax.tree.leaves(same))
    assert metrics["kl_reference"] > 1e-3 and metrics["grad_norm"] > 0
    return jax.device_get((new.params, new.opt_state, metrics, logits))


@functools.cache
def updated_alone(family: str):
    return updated(family, None, "update_fsdp")


@pytest.mark.parametrize("rules", ["update_fsdp", "update_tensor"])
def test_a_mesh_changes_nothing(rules):
    alone = updated_alone("qwen2")
    spread = updated("qwen2", sharding.make_mesh(2, 2, 2), rules)
    assert_close(spread[3], alone[3])
    for name, value in alone[2].items():
        np.testing.assert_allclose(spread[2][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(spread[:2]), jax.tree.leaves(alone[:2]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(np.abs(b).max(), 1e-6), err_msg=jax.tree_util.keystr(path))


SMALL = dict(policy__lora_alpha=8.0, policy__num_layers=1, rl__kl_coef=0.1, rl__tasks_per_update=1)
SMALL |= dict(rollout__history_widths=1, rl__widths=1)


def test_a_run_trains_and_saves_adapters_alone_and_is_exported_merged(tmp_path):
    run = build(small_config(**SMALL, policy__lora_rank=4))
    assert run.model.lora == Lora(4, 2.0, PROJECTIONS)
    held = jax.device_get(run.frozen)
    state = new_state(run.start(), run.optimizer)
    begun = jax.device_get(state.params)
    for update in range(2):
        task = put_batch(run, update)
        asked = settings(run, update, update=True)
        state, outcome, _ = trajectory(run.programs, state, run.frozen, task, run.world, jax.device_get(asked))
        metrics = jax.device_get(outcome["metrics"])
        assert metrics["logp_gap_max"] < 1e-3 and metrics["grad_norm"] > 0  # rollout and learner agree on the policy
        if update == 0:
            assert metrics["kl_reference"] < 1e-9  # B is 0, and so A stays: its gradient has B as a factor
            assert all((x == 0).all() for x in leaves_of(begun, "lora_b"))
            np.testing.assert_array_equal(leaves_of(state.params, "lora_a")[0], leaves_of(begun, "lora_a")[0])
    assert metrics["kl_reference"] > 1e-9
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.frozen), held)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.params, begun)
    assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) == 14
    assert {program._cache_size() for program in run.programs.values()} == {1}
    folder = tmp_path / "checkpoints"
    with Checkpointer(folder, run.config, 1) as checkpoints:
        checkpoints.save(2, state, {}, wait=True)
        update, restored, _ = checkpoints.restore_latest(state_shapes(run.model, run.optimizer, run.mesh))
        assert update == 2
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    names = json.loads((folder / "00000002" / "arrays.json").read_text())
    assert len(names) == 3 * 14 + 3 - 1  # parameters and two moments of each, update and step
    assert not [name for name in names if name.endswith("['kernel']") or "embed" in name]
    other = small_config(**SMALL, policy__lora_rank=2)
    with Checkpointer(folder, other, 1) as checkpoints:
        with pytest.raises(ConfigError, match="policy.lora_rank is 2, was 4"):
            checkpoints.restore_latest(state)

    figures = export(tmp_path, tmp_path / "released", None, weights.SHARD_BYTES)
    start = starting_params(run.config, run.model, run.mesh)
    merged = lora.merge(state.params, start, run.model.lora)
    assert figures["parameters"] == sum(x.size for x in jax.tree.leaves(start))
    model, loaded = weights.load(tmp_path / "released")
    assert model.lora is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loaded, merged)


def leaves_of(tree: dict, name: str) -> list:
    return [x for path, x in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key == name]


def test_a_change_that_bfloat16_rounds_away_is_told_and_kept_in_float32():
    _, adapters, frozen = policy("qwen2")
    adapters = noisy(adapters, 3, by=1e-3)
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
    assert lora.rounded_away(adapters, frozen, ALL, "bfloat16") > 0.5
    assert lora.rounded_away(adapters, frozen, ALL, "float32") < 1e-2
    assert lora.rounded_away(jax.tree.map(jnp.zeros_like, adapters), frozen, ALL, "bfloat16") == 0
    kept, rounded = (lora.merge(adapters, frozen, ALL, dtype) for dtype in ("float32", None))
    before, own = frozen["layers"]["mlp"]["up_proj"]["kernel"], adapters["layers"]["mlp"]["up_proj"]
    change = ALL.scale * np.einsum("lir,lro->lio", np.asarray(own["lora_a"]), np.asarray(own["lora_b"]))
    kernel = lambda tree: np.asarray(tree["layers"]["mlp"]["up_proj"]["kernel"])  # noqa: E731
    np.testing.assert_allclose(kernel(kept), np.asarray(before, np.float32) + change, rtol=1e-6, atol=1e-7)
    assert kernel(rounded).dtype == jnp.bfloat16 and kept["norm"]["weight"].dtype == jnp.bfloat16


def test_seeds_begin_with_other_adapters():
    mesh = sharding.make_mesh(1, 1, 1)
    a, b, c = (leaves_of(init_adapters(FAMILIES["qwen3"], mesh, seed), "lora_a") for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all((x != y).any() for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": -1}, "policy.lora_rank = -1: must be at least 0"),
        ({"lora_alpha": 0.0}, "policy.lora_alpha = 0.0: must be greater than 0"),
        ({"lora_targets": ("q_prj",)}, "there is no projection 'q_prj'; .*did you mean q_proj?"),
        ({"lora_targets": ("q_proj", "q_proj")}, "names a projection twice"),
        ({"lora_rank": 4, "lora_targets": ()}, "with policy.lora_rank = 4 nothing would be trained"),
    ],
)
def test_impossible_adapters_are_refused(changes, message):
    config = base.get_config()
    config.policy.update(changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)
