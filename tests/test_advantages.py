"""Group-relative advantages: hand-computed arrays and a slow reference."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from agemem_jax.rl import advantages


def rl_config(**changes):
    return ConfigDict(dict(group_size=2, advantage_eps=1e-6, advantage_std=True, credit="broadcast") | changes)


def test_by_hand():
    advantage, varied = advantages.group_advantages(jnp.array([0.0, 1.0, 2.0, 5.0, 5.0, 5.0]), 3, eps=0.0)
    np.testing.assert_allclose(advantage, [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(varied, [True] * 3 + [False] * 3)


def test_slow_reference():
    reward = np.random.default_rng(0).normal(size=24).astype(np.float32)
    expected, plain = [], []
    for start in range(0, 24, 8):
        group = reward[start : start + 8].astype(np.float64)
        mean = sum(group) / 8
        std = (sum((r - mean) ** 2 for r in group) / 7) ** 0.5
        expected += [(r - mean) / (std + 1e-6) for r in group]
        plain += [r - mean for r in group]
    np.testing.assert_allclose(advantages.group_advantages(jnp.asarray(reward), 8, 1e-6)[0], expected, rtol=1e-4)
    got = advantages.group_advantages(jnp.asarray(reward), 8, 1e-6, divide_by_std=False)[0]
    np.testing.assert_allclose(got, plain, rtol=1e-4, atol=1e-6)


def test_group_of_one_keeps_its_reward():
    advantage, varied = advantages.group_advantages(jnp.array([2.0, -1.0]), 1, eps=0.0)
    np.testing.assert_allclose(advantage, [2.0, -1.0])
    assert varied.all()


def test_equal_rewards_that_round_have_no_advantage():
    reward = jnp.full((6,), 0.1, jnp.float32)
    for divide in (True, False):
        advantage, varied = advantages.group_advantages(reward, 6, 1e-6, divide)
        assert not advantage.any() and not varied.any()


def test_whole_groups_only():
    with pytest.raises(ValueError, match="5 rewards"):
        advantages.group_advantages(jnp.zeros(5), 2, 1e-6)


def test_credit_by_hand():
    """Two rollouts: their normalised difference is +-1/sqrt(2) wherever their returns differ."""
    stage_rewards = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 4.0]])
    high, low = 0.5**0.5, -(0.5**0.5)
    expected = {
        "broadcast": [[low, low, low], [high, high, high]],  # 3 against 4
        "per_stage": [[high, 0.0, low], [low, 0.0, high]],
        "return_to_go": [[low, low, low], [high, high, high]],  # 3, 2, 2 against 4, 4, 4
    }
    for credit, values in expected.items():
        got, varied = advantages.step_credit(stage_rewards.sum(1), stage_rewards, rl_config(credit=credit))
        np.testing.assert_allclose(got, values, atol=1e-5, err_msg=credit)
        np.testing.assert_array_equal(varied, np.array(values) != 0)


def test_return_to_go_of_stage_one_is_the_broadcast_advantage():
    stage_rewards = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)), jnp.float32)
    to_go, _ = advantages.step_credit(
        stage_rewards.sum(1), stage_rewards, rl_config(credit="return_to_go", group_size=4)
    )
    broadcast, _ = advantages.step_credit(stage_rewards.sum(1), stage_rewards, rl_config(group_size=4))
    np.testing.assert_allclose(to_go[:, 0], broadcast[:, 0], atol=1e-5)
    last, _ = advantages.group_advantages(stage_rewards[:, 2], 4, 1e-6)
    np.testing.assert_allclose(to_go[:, 2], last, atol=1e-5)


def test_turn_to_go_by_hand():
    """Two groups of two; what stands before a turn is taken off the trajectory's reward."""
    rl = rl_config(credit="turn_to_go")
    reward = jnp.array([2.0, 1.0, 3.0, 3.0])
    standing = jnp.array([[1.5, 2.0, 2.0], [0.0, 1.0, 1.0], [0.0, 0.5, 0.5], [1.0, 0.5, 2.0]])
    turn = jnp.array([[[0, 1], [2, 9]]] * 4, jnp.int32)  # 9: of another stage, reads the last
    expected = np.zeros((4, 2, 2))
    expected[0] = [[0.5, -0.25], [0, 0]]  # 2, 0.5, 0 against 1, 1, 0
    expected[2] = [[0, 0.5], [0, 0]]  # 3, 3, 2.5 against 3, 2, 2.5
    expected[1], expected[3] = -expected[0], -expected[2]
    undivided = advantages.turn_to_go(reward, standing, turn, rl_config(credit="turn_to_go", advantage_std=False))
    np.testing.assert_allclose(undivided, expected, atol=1e-5)
    std = ((4 * 0.5**2 + 2 * 0.25**2) / 12) ** 0.5  # of all four rollouts' three turns
    np.testing.assert_allclose(advantages.turn_to_go(reward, standing, turn, rl), expected / std, atol=1e-4)
    alike = advantages.turn_to_go(jnp.full(4, 0.1), jnp.full((4, 3), 0.3), turn, rl)
    np.testing.assert_array_equal(alike, 0)
    parts = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)
    stages, _ = advantages.step_credit(parts.sum(1), parts, rl)
    later, _ = advantages.step_credit(parts.sum(1), parts, rl_config(credit="return_to_go"))
    np.testing.assert_array_equal(stages, later)
    plain = rl_config(credit="turn_to_go", advantage_std=False)
    nothing = advantages.turn_to_go(parts.sum(1), jnp.zeros((4, 3)), turn, plain)  # nothing stands: as return_to_go
    later, _ = advantages.step_credit(parts.sum(1), parts, plain)
    np.testing.assert_allclose(nothing, np.broadcast_to(later[:, :1, None], nothing.shape), atol=1e-5)


def test_hindsight_by_hand():
    """Two groups of two; turns 0, 1 and 2, of which some had an effect that was used."""
    rl = rl_config(credit="hindsight", hindsight=0.5)
    reward = jnp.array([1.0, 3.0, 2.0, 2.0])
    outcome = jnp.array([0.0, 1.0, 1.0, 1.0])  # nothing to tell apart in the second group
    effective = jnp.array([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
    turn = jnp.array([[[0, 0, 1], [2, 2, 7]]] * 4, jnp.int32)  # 7: no turn, reads the last
    extra = advantages.hindsight(outcome, effective, turn, rl)
    high = 0.5**0.5
    expected = np.zeros((4, 2, 3))
    expected[0, 0, :2] = -0.5 * high  # its first turn was of use, and the task was not solved
    expected[1, 0, 2], expected[1, 1] = 0.5 * high, 0.5 * high
    np.testing.assert_allclose(extra, expected, atol=1e-5)
    shared, varied = advantages.step_credit(reward, jnp.zeros((4, 3)), rl)
    broadcast, _ = advantages.step_credit(reward, jnp.zeros((4, 3)), rl_config())
    np.testing.assert_array_equal(shared, broadcast)
    np.testing.assert_allclose(shared[:2], [[-high] * 3, [high] * 3], atol=1e-5)


def test_what_all_of_a_group_did_is_not_credited_beyond_the_broadcast():
    rng = np.random.default_rng(0)
    outcome = jnp.asarray(rng.random(12), jnp.float32)
    extra = advantages.hindsight(
        outcome, jnp.ones((12, 5), bool), jnp.zeros((12, 1), jnp.int32), rl_config(group_size=4, hindsight=1.0)
    )
    np.testing.assert_allclose(np.asarray(extra).reshape(3, 4).sum(1), 0, atol=1e-5)
    assert np.abs(extra).min() > 1e-3


def test_unknown_credit():
    with pytest.raises(ValueError, match="rl.credit is 'turn'"):
        advantages.step_credit(jnp.zeros(2), jnp.zeros((2, 3)), rl_config(credit="turn"))


def test_of_tokens_reads_the_stage_of_each_token():
    per_stage = jnp.array([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]])
    stage = jnp.array([[[1, 2], [3, 0]], [[3, 3], [1, 2]]], jnp.int8)
    np.testing.assert_array_equal(advantages.of_tokens(per_stage, stage), [[[10, 20], [30, 10]], [[3, 3], [1, 2]]])
