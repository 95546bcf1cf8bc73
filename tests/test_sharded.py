"""The same run on one device and on eight: the mesh changes where things are computed, not what."""

import dataclasses
from functools import lru_cache

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small import small_config

from agemem_jax import sharding
from agemem_jax.config import ConfigError
from agemem_jax.models import qwen
from agemem_jax.rollout.rows import new_rows
from agemem_jax.sharding import Layout
from agemem_jax.training.evaluate import control
from agemem_jax.training.programs import judge_answers, trajectory
from agemem_jax.training.setup import build
from agemem_jax.training.state import new_state, param_shardings

UPDATES = 2
MESHES = {
    "fsdp": dict(data=1, fsdp=8, tensor=1, learner="fsdp"),
    "all three": dict(data=2, fsdp=2, tensor=2, learner="fsdp"),
    "all three, tensor-parallel update": dict(data=2, fsdp=2, tensor=2, learner="tensor"),
    "data": dict(data=8, fsdp=1, tensor=1, learner="fsdp"),
}


def sharded_config(data: int, fsdp: int, tensor: int, learner: str, **changes):
    """A run whose rows, heads and vocabulary divide by every mesh here; the reference policy takes part."""
    return small_config(
        policy__num_heads=4, policy__num_kv_heads=2, policy__vocab_size=576, rl__kl_coef=0.1, rl__widths=1,
        rollout__history_widths=1, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, mesh__learner=learner,
        **changes,
    )  # fmt: skip


@lru_cache
def trained(data: int = 1, fsdp: int = 1, tensor: int = 1, learner: str = "fsdp", **changes):
    """Two updates: (metrics of each, what was said in each, parameters at the end, all on the host; the state)."""
    run = build(sharded_config(data, fsdp, tensor, learner, **changes))
    state, metrics, said = new_state(run.start(), run.optimizer), [], []
    for update in range(UPDATES):
        task = sharding.put(run.source.batch(update), sharding.rows(run.mesh))
        settings = control(run, run.config.seed, update, "agemem", 0.8, update=True)
        state, outcome, traces = trajectory(run.programs, state, run.frozen, task, run.world, settings)
        metrics.append(jax.device_get((outcome["metrics"], outcome["rows"])))
        said.append(jax.device_get([traces[stage].said for stage in (1, 2, 3)]))
    return metrics, said, jax.device_get(state.params), state


def assert_same_run(one, other):
    """The same tokens and rewards; losses, gradients and parameters within float tolerance."""
    for (metrics, rows), (expected, expected_rows) in zip(one[0], other[0], strict=True):
        for name in expected_rows:
            np.testing.assert_allclose(rows[name], expected_rows[name], rtol=1e-5, atol=1e-5, err_msg=name)
        for name in ("loss", "grad_norm", "entropy", "kl_reference", "reward"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
        assert metrics["logp_gap_max"] < 1e-4
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    # Adam turns the rounding of a gradient near zero into a part of a whole step.
    step = small_config().optim.learning_rate
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=UPDATES * step / 2), one[2], other[2])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).mean(), one[2], other[2])
    assert max(jax.tree.leaves(moved)) < step / 50


def test_one_run_on_eight_devices_is_the_run_on_one():
    """Scanned layers and blocked attention too, as the large configs have them."""
    mesh = MESHES["all three, tensor-parallel update"]
    sharded = trained(**mesh, policy__scan_layers=True, policy__query_block=8, policy__remat="minimal")
    assert_same_run(sharded, trained())
    # Parameters and moments are stored in pieces.
    kernel = sharded[3].params["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moments = [x for x in jax.tree.leaves(sharded[3].opt_state) if x.shape == kernel.shape]
    assert len(moments) == 4 and all(x.sharding == kernel.sharding for x in moments)


@pytest.mark.heavy
@pytest.mark.parametrize("mesh", ["fsdp", "all three", "data"])
def test_other_meshes_give_the_same_run(mesh):
    assert_same_run(trained(**MESHES[mesh]), trained())


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_forward_and_its_gradient_are_those_of_one_device(mesh):
    config = sharded_config(**MESHES[mesh])
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    model = qwen.ModelConfig(64, 32, 48, 2, 4, 2, 8, qk_norm=True, tie_word_embeddings=False)
    params = jax.tree.map(lambda x: 4 * x, qwen.init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    prefix, tokens = rng.integers(1, 64, (1, 5)), rng.integers(1, 64, (1, 8, 12))
    cotangent = rng.normal(size=(1, 8, 12, 32)).astype(np.float32)

    def loss(params, model):
        hidden = qwen.rows_forward(params, model, prefix, np.array([5]), tokens)[1]
        return (hidden * cotangent).sum() + (qwen.logits(params, model, hidden[0]) ** 2).mean()

    value = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected, gradient = value(params, model)
    layout = Layout(devices, f"update_{config.mesh.learner}")
    stored = jax.device_put(params, param_shardings(model, devices))
    got, sharded_gradient = value(stored, dataclasses.replace(model, layout=layout))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), sharded_gradient, gradient)


def test_a_tensor_parallel_update_keeps_pieces_of_tokens():
    """The stacked inputs of six layers, as one of eight devices holds them: 2 of 8 rows, 6 of 12 tokens."""
    layout = Layout(sharding.make_mesh(2, 2, 2), "update_tensor")
    model = qwen.ModelConfig(64, 32, 48, 6, 4, 2, 8, remat="full", layout=layout)
    params = qwen.init_params(dataclasses.replace(model, layout=sharding.LOCAL), jax.random.key(0))
    stored = jax.device_put(params, param_shardings(model, layout.mesh))
    tokens = np.ones((1, 8, 12), np.int32)

    def loss(params):
        return (qwen.rows_forward(params, model, tokens[0, :1, :4], np.array([4]), tokens)[1] ** 2).sum()

    program = jax.jit(jax.grad(loss)).lower(stored).compile().as_text()
    assert "f32[6,2,6,32]" in program
    assert "f32[6,2,12,32]" not in program and "f32[6,24,32]" not in program


def test_a_layout_names_every_axis():
    mesh = sharding.make_mesh(2, 2, 2)
    assert Layout(mesh, "stored").spec("layers", "embed", "mlp") == PartitionSpec(None, "fsdp", "tensor")
    assert Layout(mesh, "rollout").spec("vocab", "embed") == PartitionSpec("tensor", None)
    assert Layout(mesh, "update_fsdp").spec("rows", None) == PartitionSpec(("data", "fsdp", "tensor"), None)
    assert [Layout(mesh, rules).ways("rows") for rules in ("rollout", "update_fsdp", "update_tensor")] == [4, 8, 4]
    assert [Layout(mesh, rules).ways("sequence") for rules in ("rollout", "update_fsdp", "update_tensor")] == [1, 1, 2]
    with pytest.raises(ValueError, match="no rule for the logical axis 'width'"):
        Layout(mesh, "stored").spec("width")
    with pytest.raises(ValueError, match="twice"):
        Layout(mesh, "update_fsdp").spec("rows", "tokens")


def test_meshes_that_do_not_fit_the_devices_are_refused():
    assert dict(sharding.make_mesh(1, -1, 2).shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert sharding.make_mesh(1, 1, 1).size == 1
    with pytest.raises(ValueError, match="only one of them can be -1"):
        sharding.make_mesh(-1, -1, 1)
    with pytest.raises(ValueError, match="the 8 devices cannot be divided by 3"):
        sharding.make_mesh(1, -1, 3)
    with pytest.raises(ValueError, match="16 devices, and there are 8"):
        sharding.make_mesh(2, 4, 2)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(mesh__fsdp=8, rl__tasks_per_update=1, rl__group_size=4), "rl.tasks_per_update"),
        (dict(mesh__fsdp=8, rl__micro_batch=4), "rl.micro_batch"),
        (dict(mesh__fsdp=2, mesh__tensor=2), "mesh.tensor"),  # one key-value head
        (dict(mesh__fsdp=0), "mesh.fsdp"),
        (dict(mesh__learner="rows"), "mesh.learner"),
        (dict(policy__vocab_size=100), "policy.vocab_size"),
    ],
)
def test_configs_that_cannot_be_cut_over_the_mesh_are_refused(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} = "):
        build(small_config(**changes))


def test_put_and_by_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    placed = sharding.put({"x": np.arange(8.0)}, sharding.rows(mesh))["x"]
    assert placed.sharding == NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    layout = Layout(mesh, "rollout")
    sizes = []

    def doubled(x, y):
        sizes.append(x.shape)
        return 2 * x + y

    out = jax.jit(lambda x: sharding.by_rows(layout, doubled, (x,), (np.float32(1),)))(placed)
    np.testing.assert_array_equal(out, 2 * np.arange(8.0) + 1)
    assert sizes == [(2,)]


def test_each_row_is_judged_once_by_the_process_that_has_it():
    mesh, asked = sharding.make_mesh(2, 2, 2), []
    layout = Layout(mesh, "rollout")

    def judge(index, tokens, length):
        asked.extend(np.asarray(index).tolist())
        return np.asarray(index, np.float32) / 8

    run = build(small_config())
    task = run.source.batch(0).replace(index=np.arange(8, dtype=np.int32))
    rows = jax.eval_shape(lambda: new_rows(run.spec.rollout))
    rows = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rows)
    scores = jax.jit(lambda task, rows: judge_answers(judge, task, rows, layout))(task, rows)
    np.testing.assert_allclose(scores, np.arange(8) / 8)
    assert sorted(asked) == list(range(8))
