"""experiments/plan.py: what it compiles is the run's own program; each family compiles for a TPU that is not here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from small import build_small, small_config

from agemem_jax import sharding
from agemem_jax.config import ConfigError, check_fields, validate
from agemem_jax.planning.hardware import GIB, Slice, parse_slice
from agemem_jax.planning.plan import has_compiler
from agemem_jax.planning.stand_in import stand_in
from agemem_jax.training.evaluate import control
from agemem_jax.training.state import new_state
from configs import base, llama32, qwen3, qwen25_7b
from experiments import plan as plan_command

ROOT = Path(__file__).parent.parent
MODELS = {module.__name__.split(".")[-1]: module for module in (qwen25_7b, qwen3, llama32)}
PUBLISHED = [(name, variant) for name, module in MODELS.items() for variant in module.SLICES]
SLICE = r"(v5e|v5p|v6e|h100)-\d+"  # in a variant's name


def compilable(topology: str) -> Slice:
    """The slice; skips the test where its compiler is not installed."""
    where = parse_slice(topology)
    if not has_compiler(where):
        pytest.skip(f"no compiler for {topology}")
    return where


def plan(config: str, topology: str, *flags: str, out: Path) -> tuple[dict, str]:
    """Runs the command in a process of its own: (the JSON, the page)."""
    command = [sys.executable, "-m", "experiments.plan", f"--config={config}", f"--topology={topology}", f"--out={out}"]
    # Eight virtual devices are of no use here, and the optimisation level of the tests would reach the TPU's compiler.
    settings = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, *flags], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text()), done.stdout


def test_a_stand_in_describes_the_arrays_of_the_run():
    """Every argument of every stage program has the shape, dtype and sharding that the planner gives it."""
    changes = dict(mesh__fsdp=4, rl__kl_coef=0.1, policy__dtype="bfloat16")
    run = build_small(**changes)
    planned = stand_in(small_config(**changes), run.mesh)
    assert planned.is_exact and planned.spec.rollout == run.spec.rollout
    state = new_state(run.start(), run.optimizer)
    task = sharding.put(run.source.batch(0), sharding.rows(run.mesh))
    settings = sharding.put(control(run, 0, 0, "agemem", 1.0, True), sharding.replicated(run.mesh))
    real = (state, run.frozen, task, run.world, settings)

    def assert_same(shape, array):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)

    jax.tree.map(assert_same, planned.arguments, real)
    _, rows, _ = run.programs[1](state, run.frozen, None, task, run.world, settings)
    jax.tree.map(assert_same, planned.rows, rows)


@pytest.mark.parametrize(("param_dtype", "size"), [("float32", 4 + 8), ("bfloat16", 2 + 4 + 8)])
def test_a_plan_counts_master_and_moments(param_dtype, size):
    mesh = sharding.make_mesh(1, 4, 1)
    state = stand_in(small_config(mesh__fsdp=4, policy__param_dtype=param_dtype), mesh).arguments[0]
    arrays = jax.tree.leaves((state.params, state.master, state.opt_state[1].mu, state.opt_state[1].nu))
    held = lambda x: np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize  # noqa: E731
    of_params = sum(held(x) / x.dtype.itemsize for x in jax.tree.leaves(state.params))
    assert sum(map(held, arrays)) == size * of_params


@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_large_configs_are_valid(name, variant):
    config = MODELS[name].get_config(variant)
    check_fields(config, base.get_config())
    validate(config)
    assert parse_slice(re.search(SLICE, variant)[0]).size >= 4
    assert (config.rl.group_size, config.rl.kl_coef, config.context.limit % 8192) == (8, 0.1, 0)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="v5p-16"):
        qwen25_7b.get_config("v9-16")


@pytest.mark.parametrize(("remat", "kl_coef", "matmuls"), [("full", 0.1, 11), ("minimal", 0.1, 9), ("minimal", 0.0, 7)])
def test_kernels_are_counted_by_their_matmuls(monkeypatch, remat, kl_coef, matmuls):
    monkeypatch.setattr(plan_command, "positions", lambda run: 100.0)
    config = qwen3.get_config("4b-v5p-16")
    config.rl.kl_coef = kl_coef
    model = SimpleNamespace(remat=remat, num_heads=4, head_dim=8, num_layers=3)
    learn = SimpleNamespace(widths=(20, 40))
    run = SimpleNamespace(model=model, spec=SimpleNamespace(learn=learn), prompt_tokens=10, config=config)
    where = parse_slice("v5p-16")
    found = plan_command.attention_kernels(run, where)
    pairs = 100 * (10 + 40 / 2)  # the prompt, and half of what is causal
    assert found["flops"] == matmuls * 2 * pairs * 4 * 8 * 3 / 8
    assert found["predicted_s"] == found["compute_s"] == 2 * found["flops"] / where.chip.flops_rate


def test_a_step_of_several_tokens_takes_fewer_steps_a_slot():
    run = SimpleNamespace(
        config=qwen3.get_config("4b-v5p-16"),
        spec=SimpleNamespace(
            learn=SimpleNamespace(micro_batch=8, layout=sharding.Layout()), rollout=SimpleNamespace(batch=64)
        ),
    )
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    steps = {}
    for tokens in (1.0, 2.5):
        with flagsaver.flagsaver(longest_turn=512, step_tokens=tokens):
            steps[tokens] = plan_command.trips(run, 3)
    assert steps[1.0].pop("rollout/decode") == 512 and steps[2.5].pop("rollout/decode") == 204.8
    assert steps[1.0] == steps[2.5]  # as many tokens are written and learnt from


def test_search_tries_what_is_possible_and_keeps_the_fastest(monkeypatch):
    asked = []

    def planned(config, where, devices, stages):
        mesh, rows = config.mesh, config.rl.micro_batch
        asked.append((mesh.fsdp, mesh.tensor, mesh.learner, rows))
        if mesh.tensor == 4:
            raise ConfigError("mesh.tensor = 4: cannot be")
        fits = mesh.learner == "tensor" or rows == 4  # one row a device
        seconds = 10.0 / rows if fits else None
        return {"fits": fits, "asked": asked[-1], "summary": {"fits": fits, "seconds_per_update": seconds}}

    monkeypatch.setattr(plan_command, "plan_config", planned)
    config, where = qwen3.get_config("4b-v5e-16"), parse_slice("v5e:2x2")
    best = plan_command.search(config, where, [])
    assert asked[:3] == [(4, 1, "fsdp", 4), (4, 1, "fsdp", 8), (2, 2, "fsdp", 4)]
    assert asked[4:7] == [(2, 2, "tensor", 2), (2, 2, "tensor", 4), (2, 2, "tensor", 8)]
    assert len(asked) == 2 + 2 + 3 + 6 and best["asked"] == (2, 2, "tensor", 8)
    assert config.mesh.tensor == 4  # left as it was
    monkeypatch.setattr(plan_command.plan, "mesh_shapes", lambda *_: [{"data": 1, "fsdp": 1, "tensor": 4}])
    with pytest.raises(ConfigError, match="v5e:2x2: no mesh suits"):
        plan_command.search(config, where, [])


@pytest.mark.heavy
@pytest.mark.parametrize(("variant", "topology"), [("4b-v5e-16", "v5e:2x2"), ("4b-h100-4", "h100:4")])
def test_the_command_writes_page_and_json(variant, topology, tmp_path):
    """A small Qwen3 on one v5e host or four GPUs, its third stage."""
    where = compilable(topology)
    small = [f"--config.policy.{name}={value}" for name, value in dict(
        hidden_size=256, intermediate_size=512, num_layers=2, num_heads=8, vocab_size=2048).items()]  # fmt: skip
    sizes = ["--config.context.capacity=2560", "--config.context.limit=2048", "--config.rollout.action_tokens=256",
             "--config.task.facts=4", "--config.rl.micro_batch=4", "--config.rl.tasks_per_update=1"]  # fmt: skip
    flags = ["--stages=3", *small, *sizes]
    result, text = plan(f"configs/qwen3.py:{variant}", topology, *flags, out=tmp_path / "plan.json")
    assert result["fits"] and result["mesh"] == {"data": 1, "fsdp": 1, "tensor": 4}
    (stage,) = result["stages"]
    assert stage["fits"] and 0 < stage["hbm_gib_per_chip"] < where.chip.hbm_bytes / GIB and stage["compile_s"] > 0
    assert stage["flops"] > 0 and stage["bytes"] > 0 and stage["collectives"]
    assert {"prefill", "decode", "gradient", "optimizer"} <= {phase["phase"] for phase in stage["phases"]}
    # Decoding adds up the layers' partial sums and moves the logits; it does not gather weights.
    moved = [c for c in stage["collectives"] if c["phase"] == "decode" and c["kind"] == "all-gather"]
    assert all(c["bytes"] < 256 * 512 for c in moved)
    summary = result["summary"]
    assert summary["generated_tokens_per_s"] > 0 and summary["updates_per_hour"] is None
    assert summary["bandwidth_share"] > 0  # more than 1 where so small a cache need not leave the chip
    assert 0 < summary["utilisation"] < 1
    assert "fits" in text and "GiB a chip" in text and "generated tokens/s" in text


@pytest.mark.plans
@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_every_large_config_fits_its_slice(name, variant, tmp_path):
    """All three stages, for the slice in the config's name (minutes each)."""
    topology = re.search(SLICE, variant)[0]
    compilable(topology)
    result, text = plan(f"configs/{name}.py:{variant}", topology, out=tmp_path / "plan.json")
    assert result["fits"], text
    assert np.isfinite(result["summary"]["updates_per_hour"])
