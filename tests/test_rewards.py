"""Reward terms, their sum and their split over stages, on episodes made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax.rl import rewards
from agemem_jax.types import Op, empty_stats
from configs.base import get_config

LIMIT = 100


def episodes():
    """Row 0 did everything right, row 1 nothing, row 2 a bit of each with every fault."""
    calls_ok = np.zeros((3, 9), np.int32)
    calls_ok[0, Op.UPDATE] = 1
    calls_ok[2, Op.ADD] = 4
    return empty_stats(3).replace(
        answered=jnp.array([True, False, True]),
        f1=jnp.array([1.0, 0.0, 0.4]),
        exact_match=jnp.array([1.0, 0.0, 0.0]),
        context_tokens=jnp.array([0, 100, 130]),
        reduced_in_time=jnp.array([True, False, True]),
        preservation=jnp.array([1.0, 0.0, 0.5]),
        added=jnp.array([2, 0, 4]),
        added_good=jnp.array([2, 0, 1]),
        calls_ok=jnp.asarray(calls_ok),
        relevance_sum=jnp.array([3.0, 0.0, 0.6]),
        relevance_count=jnp.array([3, 0, 2]),
        over_turns=jnp.array([False, True, True]),
        over_context=jnp.array([False, False, True]),
        malformed=jnp.array([0, 0, 2]),
    )


EXPECTED = {
    "task": [1.0, -1.0, 0.4],
    "compression": [1.0, 0.0, 0.0],
    "preventive": [1.0, 0.0, 1.0],
    "preservation": [1.0, 0.0, 0.5],
    "storage": [1.0, 0.0, 0.25],
    "maintenance": [1.0, 0.0, 0.0],
    "relevance": [1.0, 0.0, 0.3],
    "over_turns": [0.0, 1.0, 1.0],
    "over_context": [0.0, 0.0, 1.0],
    "malformed": [0.0, 0.0, 2.0],
}


def test_terms_by_hand():
    terms = rewards.terms(episodes(), get_config().reward, LIMIT)
    assert set(terms) == set(EXPECTED)
    for name, expected in EXPECTED.items():
        assert terms[name].dtype == jnp.float32
        np.testing.assert_allclose(terms[name], expected, rtol=1e-6, err_msg=name)


def test_the_papers_defaults():
    """Everything right is 3; an episode without an answer in time is -2."""
    cfg = get_config().reward
    total, groups = rewards.combine(rewards.terms(episodes(), cfg, LIMIT), cfg)
    penalty = -1.0 - 0.5 - 0.2
    np.testing.assert_allclose(total, [3.0, -2.0, 0.4 + 1.5 / 3 + 0.55 / 3 + penalty], rtol=1e-5)
    np.testing.assert_allclose(groups["context"], [1.0, 0.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(groups["memory"], [1.0, 0.0, 0.55 / 3], rtol=1e-6)
    np.testing.assert_allclose(groups["penalty"], [0.0, -1.0, penalty], rtol=1e-6)
    np.testing.assert_allclose(sum(groups.values()), total, rtol=1e-6)


def test_task_metrics():
    cfg = get_config().reward
    cfg.task_metric = "exact_match"
    np.testing.assert_allclose(rewards.terms(episodes(), cfg, LIMIT)["task"], [1.0, -1.0, 0.0])
    cfg.task_metric = "judge"
    judged = jnp.array([0.9, 0.8, 0.7])
    np.testing.assert_allclose(rewards.terms(episodes(), cfg, LIMIT, judged)["task"], [0.9, -1.0, 0.7])
    with pytest.raises(ValueError, match="judge scores"):
        rewards.terms(episodes(), cfg, LIMIT)
    cfg.task_metric = "bleu"
    with pytest.raises(ValueError, match="reward.task_metric is 'bleu'"):
        rewards.terms(episodes(), cfg, LIMIT)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_weight_of_zero_takes_a_term_out(name):
    """Exactly out: even a term that is not a number leaves no trace."""
    cfg = get_config().reward
    terms = rewards.terms(episodes(), cfg, LIMIT)
    cfg[name] = 0.0
    broken = terms | {name: jnp.full(3, jnp.nan)}
    without, _ = rewards.combine(broken, cfg)
    zeroed, _ = rewards.combine(terms | {name: jnp.zeros(3)}, get_config().reward)
    np.testing.assert_allclose(without, zeroed, rtol=1e-6)


def test_a_group_weight_of_zero_takes_the_group_out():
    cfg = get_config().reward
    cfg.memory = 0.0
    _, groups = rewards.combine(rewards.terms(episodes(), cfg, LIMIT), cfg)
    assert not groups["memory"].any() and groups["context"].any()


def test_stage_rewards_add_up_to_the_reward():
    cfg = get_config().reward
    cfg.update(dict(task=0.7, context=2.0, memory=0.5, storage=0.9, relevance=0.2))
    terms = rewards.terms(episodes(), cfg, LIMIT)
    total, _ = rewards.combine(terms, cfg)
    per_stage = rewards.stage_rewards(terms, cfg)
    assert per_stage.shape == (3, 3)
    np.testing.assert_allclose(per_stage.sum(1), total, rtol=1e-5)
    assert sorted(name for names in rewards.STAGE_TERMS.values() for name in names) == sorted(EXPECTED)


def test_stage_objectives():
    cfg = get_config().reward
    terms = rewards.terms(episodes(), cfg, LIMIT)
    faults = np.array([0.0, 0.0, -0.7])  # over_context and two malformed turns
    np.testing.assert_allclose(rewards.stage_objective(1, terms, cfg), [2 / 3, 0.0, 0.25 / 3 + faults[2]], rtol=1e-5)
    np.testing.assert_allclose(rewards.stage_objective(2, terms, cfg), [2 / 3, 0.0, 1 / 3 + faults[2]], rtol=1e-5)
    np.testing.assert_array_equal(rewards.stage_objective(3, terms, cfg), rewards.combine(terms, cfg)[0])
    with pytest.raises(ValueError, match="stage is 4"):
        rewards.stage_objective(4, terms, cfg)
