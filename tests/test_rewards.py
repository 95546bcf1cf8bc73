"""Reward terms, their sum and their split over stages, on episodes made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax.rl import rewards
from agemem_jax.types import empty_stats
from configs.base import get_config

LIMIT = 100
NEVER = [False] * 3


def episodes():
    """Row 0 did everything right, row 1 nothing, row 2 a bit of each with every fault."""
    return empty_stats(3).replace(
        actions=jnp.array([1, 0, 3]),
        progress=jnp.array([1.0, 0.0, 0.4]),
        success=jnp.array([1.0, 0.0, 0.0]),
        context_tokens=jnp.array([0, 100, 130]),
        reduced_in_time=jnp.array([[True, True, False], NEVER, [False, False, True]]),
        prevented=jnp.array([[False, True, True], NEVER, NEVER]),
        preservation=jnp.array([1.0, 0.0, 0.5]),
        in_view=jnp.array([0.25, 0.0, 1.0]),
        added=jnp.array([2, 0, 4]),
        added_good=jnp.array([2, 0, 1]),
        kept=jnp.array([1.0, 0.0, 0.4]),
        maintained=jnp.array([[True, False, True], NEVER, NEVER]),
        revised=jnp.array([1.0, 0.0, 0.5]),
        relevance_sum=jnp.array([[0.0, 0.0, 3.0], [0.0] * 3, [0.1, 0.0, 0.5]]),
        relevance_count=jnp.array([[0, 0, 3], [0] * 3, [1, 0, 1]]),
        over_turns=jnp.array([False, True, True]),
        over_context=jnp.array([NEVER, NEVER, [False, True, True]]),
        malformed=jnp.array([[0] * 3, [0] * 3, [0, 2, 1]]),
    )


PAPER = {
    "task": [1.0, -1.0, 0.4],
    "compression": [1.0, 0.0, 0.0],
    "preventive": [1.0, 0.0, 1.0],
    "preservation": [1.0, 0.0, 0.5],
    "storage": [1.0, 0.0, 0.25],
    "maintenance": [1.0, 0.0, 0.0],
    "relevance": [1.0, 0.0, 0.3],
    "over_turns": [0.0, 1.0, 1.0],
    "over_context": [0.0, 0.0, 1.0],
    "malformed": [0.0, 0.0, 3.0],
}
STRICT = PAPER | {
    "preventive": [1.0, 0.0, 0.0],
    "preservation": [0.25, 0.0, 1.0],
    "storage": [1.0, 0.0, 0.4],
    "maintenance": [1.0, 0.0, 0.5],
}


def settings(terms: str = "paper"):
    """The paper's weights, of either terms."""
    cfg = get_config().reward
    cfg.terms, cfg.preservation = terms, 1 / 3
    return cfg


def scored(cfg, judged=None):
    """(earned, terms, weights) of the episodes."""
    factors = rewards.factors(cfg)
    earned = rewards.earned(episodes(), cfg, factors, LIMIT, judged)
    return earned, rewards.terms(earned), factors


@pytest.mark.parametrize(("kind", "expected"), [("paper", PAPER), ("strict", STRICT)])
def test_terms_by_hand(kind, expected):
    earned, terms, _ = scored(settings(kind))
    assert set(terms) == set(earned) == set(expected)
    for name, values in expected.items():
        assert terms[name].dtype == jnp.float32 and earned[name].shape == (3, 3)
        np.testing.assert_allclose(terms[name], values, rtol=1e-6, err_msg=name)


def test_strict_is_the_default_and_an_unknown_kind_is_refused():
    assert get_config().reward.terms == "strict"
    cfg = settings("lax")
    with pytest.raises(ValueError, match="reward.terms is 'lax'"):
        scored(cfg)


def test_the_papers_weights():
    """Everything right is 3; an episode without an answer in time is -2."""
    _, terms, factors = scored(settings())
    total, groups = rewards.combine(terms, factors)
    penalty = -1.0 - 0.5 - 0.3
    np.testing.assert_allclose(total, [3.0, -2.0, 0.4 + 1.5 / 3 + 0.55 / 3 + penalty], rtol=1e-5)
    np.testing.assert_allclose(groups["context"], [1.0, 0.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(groups["memory"], [1.0, 0.0, 0.55 / 3], rtol=1e-6)
    np.testing.assert_allclose(groups["penalty"], [0.0, -1.0, penalty], rtol=1e-6)
    np.testing.assert_allclose(sum(groups.values()), total, rtol=1e-6)


def test_task_metrics():
    cfg = settings()
    cfg.task_metric = "success"
    np.testing.assert_allclose(scored(cfg)[1]["task"], [1.0, -1.0, 0.0])
    cfg.task_metric = "judge"
    cfg.no_answer = -0.5
    np.testing.assert_allclose(scored(cfg, jnp.array([0.9, 0.8, 0.7]))[1]["task"], [0.9, -0.5, 0.7])
    with pytest.raises(ValueError, match="judge scores"):
        scored(cfg)
    cfg.task_metric = "bleu"
    with pytest.raises(ValueError, match="reward.task_metric is 'bleu'"):
        scored(cfg)


@pytest.mark.parametrize("name", list(PAPER))
def test_a_weight_of_zero_takes_a_term_out(name):
    """Exactly out: even a term that is not a number leaves no trace."""
    cfg = settings()
    earned, terms, factors = scored(cfg)
    without = factors | {name: np.float32(0)}
    cfg[name] = 0.0
    assert rewards.factors(cfg) == without
    broken = terms | {name: jnp.full(3, jnp.nan)}
    zeroed, _ = rewards.combine(terms | {name: jnp.zeros(3)}, factors)
    np.testing.assert_allclose(rewards.combine(broken, without)[0], zeroed, rtol=1e-6)
    broken = earned | {name: jnp.full((3, 3), jnp.nan)}
    np.testing.assert_allclose(rewards.stage_rewards(broken, without).sum(1), zeroed, rtol=1e-5, atol=1e-6)


def test_a_group_weight_of_zero_takes_the_group_out():
    cfg = settings()
    cfg.memory = 0.0
    _, terms, factors = scored(cfg)
    _, groups = rewards.combine(terms, factors)
    assert not groups["memory"].any() and groups["context"].any()


def test_weights_are_data():
    """One compilation for two weightings, and each has its own reward."""
    cfg = settings("strict")
    reward = jax.jit(lambda stats, factors: rewards.combine(
        rewards.terms(rewards.earned(stats, cfg, factors, LIMIT)), factors)[0])  # fmt: skip
    first = reward(episodes(), rewards.factors(cfg))
    cfg.update(dict(task=2.0, storage=0.0, no_answer=-3.0))
    second = reward(episodes(), rewards.factors(cfg))
    assert reward._cache_size() == 1
    expected = np.array([1.0 - 1 / 3, -6.0 + 1.0, 0.4 - 0.4 / 3])
    np.testing.assert_allclose(second - first, expected, rtol=1e-5)


def test_stage_rewards_add_up_to_the_reward():
    cfg = settings()
    cfg.update(dict(task=0.7, context=2.0, memory=0.5, storage=0.9, relevance=0.2))
    for kind in ("paper", "strict"):
        cfg.terms = kind
        earned, terms, factors = scored(cfg)
        total, _ = rewards.combine(terms, factors)
        per_stage = rewards.stage_rewards(earned, factors)
        assert per_stage.shape == (3, 3)
        np.testing.assert_allclose(per_stage.sum(1), total, rtol=1e-5)
    assert sorted(name for names in rewards.STAGE_TERMS.values() for name in names) == sorted(PAPER)


def test_a_term_goes_to_the_stage_that_earned_it():
    """Row 0 maintained in stages 1 and 3, reduced in 1 and 2; row 2 reduced in 3, passed the limit in 2 and 3."""
    cfg = settings()
    earned, _, factors = scored(cfg)
    alone = lambda name: np.asarray(  # noqa: E731
        rewards.stage_rewards(earned, {n: w * (n == name) for n, w in factors.items()})
    )
    third = 1 / 3
    np.testing.assert_allclose(alone("maintenance"), [[third, 0, 0], [0] * 3, [0] * 3], rtol=1e-6)
    np.testing.assert_allclose(alone("preventive"), [[third, 0, 0], [0] * 3, [0, 0, third]], rtol=1e-6)
    np.testing.assert_allclose(alone("over_context"), [[0] * 3, [0] * 3, [0, -0.5, 0]], rtol=1e-6)
    np.testing.assert_allclose(alone("malformed")[2], [0, -0.2, -0.1], rtol=1e-6)
    np.testing.assert_allclose(alone("relevance")[2], [0.05 / 3, 0, 0.25 / 3], rtol=1e-6)
    np.testing.assert_allclose(alone("task"), [[0, 0, 1], [0, 0, -1], [0, 0, 0.4]], rtol=1e-6)


def test_stage_objectives():
    """What a stage earned itself, also what an earlier one had earned before."""
    earned, terms, factors = scored(settings())
    np.testing.assert_allclose(rewards.stage_objective(1, earned, factors), [2 / 3, 0.0, 0.25 / 3], rtol=1e-5)
    np.testing.assert_allclose(rewards.stage_objective(2, earned, factors), [2 / 3, 0.0, -0.5 - 0.2], rtol=1e-5)
    np.testing.assert_array_equal(rewards.stage_objective(3, earned, factors), rewards.combine(terms, factors)[0])
    earned, _, factors = scored(settings("strict"))  # compression, and what is in view at the end of stage 2
    expected = [1 / 3 + 1 / 3 + 0.25 / 3, 0.0, 1 / 3 - 0.5 - 0.2]
    np.testing.assert_allclose(rewards.stage_objective(2, earned, factors), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="stage is 4"):
        rewards.stage_objective(4, earned, factors)
