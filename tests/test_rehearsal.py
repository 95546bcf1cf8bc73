"""Lessons between updates (rl.rehearsal): what they change, what they leave alone, on one device and on eight."""

import dataclasses

import jax
import numpy as np
import pytest
from small import build_small, small_config

from agemem_jax import sharding
from agemem_jax.config import ConfigError
from agemem_jax.data.lessons import Lessons
from agemem_jax.training import loop
from agemem_jax.training.loop import train_update
from agemem_jax.training.setup import build
from agemem_jax.training.state import new_state
from configs import tiny

LESSONS = 8
PAGE = dict(rl__rehearsal=LESSONS, warm__lesson_tokens=96)


def rehearsed(run, updates, state=None):
    """The state and the losses after the lessons of these updates alone."""
    state, losses = new_state(run.start(), run.optimizer) if state is None else state, []
    for update in updates:
        lessons = sharding.put(run.lessons(update), sharding.replicated(run.mesh))
        state, loss = run.rehearse(state, run.frozen, lessons, run.world)
        losses.append(float(loss))
    return state, losses


def test_the_lessons_of_an_update_follow_it_and_are_learnt(monkeypatch):
    run = build_small(**PAGE)
    played = lambda programs, state, *_: (state.replace(step=state.step + 1), {"metrics": {"loss": 1.0}}, {})  # noqa: E731
    monkeypatch.setattr(loop, "trajectory", played)
    both, outcome = train_update(run, new_state(run.start(), run.optimizer), run.frozen, 3, None)
    after, (loss,) = rehearsed(run, [3])
    assert float(outcome["metrics"]["rehearsal_loss"]) == loss and outcome["metrics"]["loss"] == 1.0
    assert int(both.step) == 1 and int(after.step) == 0  # which counts updates
    for one, other in zip(jax.tree.leaves(both.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(one, other)
    without = dataclasses.replace(run, lessons=None)
    plain, outcome = train_update(without, new_state(run.start(), run.optimizer), run.frozen, 3, None)
    assert outcome["metrics"] == {"loss": 1.0}
    np.testing.assert_array_equal(plain.params["norm"]["weight"], run.start()["norm"]["weight"])
    _, losses = rehearsed(run, [0] * 12)
    assert losses[-1] < losses[0] - 0.5 and run.rehearse._cache_size() == 1


def test_lessons_are_new_in_each_update_and_none_of_the_warm_start():
    config = small_config(**PAGE, warm__lessons=4, warm__dealings=2, warm__steps=3, warm__warmup_steps=1)
    run = build(config)
    lessons = Lessons(config, run.tokenizer, jax.device_get(run.world.pieces))
    seen = {lessons.batch(step, LESSONS).tokens.tobytes() for step in range(4 + 2 + 3)}
    pages = [run.lessons(update).tokens for update in range(4)]
    assert pages[0].shape == (LESSONS, 1, 96)
    assert len(seen | {page.tobytes() for page in pages}) == 9 + 4
    np.testing.assert_array_equal(pages[2], build(config).lessons(2).tokens)  # a function of seed and update
    assert build(small_config()).lessons is None


@pytest.mark.parametrize("mesh", [dict(mesh__fsdp=8), dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)], ids=str)
def test_eight_devices_learn_the_same(mesh):
    sizes = dict(policy__num_heads=4, policy__num_kv_heads=2, policy__vocab_size=576)
    one, losses = rehearsed(build(small_config(**PAGE, **sizes)), range(2))
    run = build(small_config(**PAGE, **sizes, **mesh))
    state = new_state(run.start(), run.optimizer)
    where = jax.tree.map(lambda x: x.sharding, state)
    many, spread = rehearsed(run, range(2), state)
    np.testing.assert_allclose(spread, losses, rtol=1e-5)
    assert jax.tree.map(lambda x: x.sharding, many) == where
    for a, b in zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(many)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_adapters_learn_beside_a_frozen_policy():
    run = build(small_config(**PAGE, policy__lora_rank=2, optim__learning_rate=1e-2))
    frozen = jax.device_get(run.frozen)
    state, losses = rehearsed(run, [0] * 8)
    assert losses[-1] < losses[0]
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    assert names == {"lora_a", "lora_b"}
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(jax.device_get(run.frozen)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pages_longer_than_the_weights_reach_are_refused():
    config = tiny.get_config()
    config.rl.rehearsal, config.warm.lesson_tokens = 4, 4000
    with pytest.raises(ConfigError, match=r"warm.lesson_tokens = 4000: .* was made for \d+; set it to \d+ at most"):
        build(config)
