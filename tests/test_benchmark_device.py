"""experiments/benchmark_device.py: its figures are of what was run, here on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from small import build_small

from agemem_jax.models.attention import attention
from agemem_jax.planning.hardware import parse_slice
from experiments import benchmark_device

SHAPE = (4, 2, 16)


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    for name, size in dict(ROWS=2, TOKENS=32, PROMPT=128, BLOCK=8, REPEATS=1).items():
        monkeypatch.setattr(benchmark_device, name, size)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def test_every_way_of_attending_is_timed_and_its_error_found(monkeypatch):
    figures = benchmark_device.attention_figures(SHAPE, None)
    assert list(figures) == ["xla", "xla, 8 queries at a time"]
    for one in figures.values():
        assert 0 < one["relative_error"] < 0.01  # of bfloat16
        assert one["forward_ms"] > 0 and one["forward_and_gradients_tflops"] > 0

    def wrong(q, parts, way, block):  # blind to the prompt, where it runs in bfloat16
        return attention(q, parts if q.dtype == jnp.float32 else parts[1:], way, block)

    monkeypatch.setattr(benchmark_device, "attention", wrong)
    assert benchmark_device.attention_figures(SHAPE, None)["xla"]["relative_error"] > 0.1


def test_trips_of_a_loop_in_a_loop_keep_their_total():
    short = {"rollout": 2.0, "rollout/decode": 10.0, "head": 3.0}
    long = {"rollout": 6.0, "rollout/decode": 30.0, "head": 5.0}
    assert benchmark_device.mean_trips([short, long]) == {"rollout": 4.0, "rollout/decode": 25.0, "head": 4.0}
    assert benchmark_device.mean_trips([{"rollout": 0.0, "rollout/decode": 7.0}])["rollout/decode"] == 7.0


@pytest.mark.heavy
def test_updates_are_timed_stage_by_stage_beside_their_plan():
    run = build_small(policy__num_layers=1)
    with flagsaver.flagsaver(updates=1):
        figures = benchmark_device.update_figures(run, parse_slice("h100:1"))
    assert list(figures["stages"]) == ["stage 1", "stage 2", "stage 3"] and len(figures["updates"]) == 2
    total = sum(stage["measured_s"] for stage in figures["stages"].values())
    assert 0 < total <= figures["updates"][1]["seconds"]
    first, last = figures["stages"]["stage 1"], figures["stages"]["stage 3"]
    assert first["trips"]["update/gradient"] == 0 < last["trips"]["update/gradient"]
    turns, summaries = run.config.task.facts, run.config.rollout.summary_slots
    assert turns <= first["trips"]["rollout"] <= turns + summaries and 0 < first["trips"]["rollout/decode"] <= 14
    for stage in figures["stages"].values():
        assert stage["predicted_s"] > 0
        np.testing.assert_allclose(sum(stage["phases"].values()), stage["predicted_s"])
    assert all(one["params_finite"] == 1 and one["generated_tokens"] > 0 for one in figures["updates"])
    assert jax.devices()[0].platform == "cpu"
