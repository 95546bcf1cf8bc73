"""Sampling: the masked softmax at a temperature, by inverse transform, for vocabularies of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax.rl.losses import masked_log_prob
from agemem_jax.rollout.sampling import sample

SIZES = (2, 7, 8, 37, 529, 32_003)
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))


def probabilities(logits: np.ndarray, allowed: np.ndarray | None, temperature: float) -> np.ndarray:
    """The masked softmax in double precision: [V] -> [V]."""
    z = logits.astype(np.float64) / temperature
    z = np.where(True if allowed is None else allowed, z, -np.inf)
    weight = np.exp(z - z.max())
    return weight / weight.sum()


def case(vocab: int, seed: int = 0, share: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Logits [V] and a mask [V] with at least one token."""
    rng = np.random.default_rng([vocab, seed])
    allowed = rng.random(vocab) < share
    allowed[rng.integers(vocab)] = True
    return rng.normal(size=vocab).astype(np.float32) * 3, allowed


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("vocab", [2, 8, 37, 529])
@pytest.mark.parametrize("masked", [True, False])
def test_an_even_grid_of_uniforms_gives_every_token_its_share(vocab, temperature, masked):
    """With n uniforms at (i + 1/2) / n the inverse transform gives each token n p draws, give or take its two ends."""
    logits, allowed = case(vocab)
    n = 20_000
    rows = jnp.broadcast_to(jnp.asarray(logits), (n, vocab))
    mask = jnp.broadcast_to(jnp.asarray(allowed), (n, vocab)) if masked else None
    token, _ = jax.jit(sample)(rows, mask, (jnp.arange(n) + 0.5) / n, temperature)
    counts = np.bincount(np.asarray(token), minlength=vocab)
    expected = n * probabilities(logits, allowed if masked else None, temperature)
    np.testing.assert_allclose(counts, expected, atol=2.0)
    assert (counts[~allowed] == 0).all() or not masked


def test_random_uniforms_pass_a_chi_square_test():
    logits, allowed = case(60, share=0.6)
    n = 40_000
    uniform = jax.random.uniform(jax.random.key(3), (n,))
    token, _ = sample(jnp.broadcast_to(logits, (n, 60)), jnp.broadcast_to(allowed, (n, 60)), uniform, 1.3)
    expected = n * probabilities(logits, allowed, 1.3)[allowed]
    counts = np.bincount(np.asarray(token), minlength=60)[allowed]
    common = expected > 5
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations above the mean


@pytest.mark.parametrize("vocab", SIZES)
def test_the_token_is_where_the_cumulative_distribution_passes_the_uniform(vocab):
    logits, allowed = case(vocab)
    uniform = np.random.default_rng(1).random(64).astype(np.float32)
    token, _ = sample(jnp.tile(logits, (64, 1)), jnp.tile(allowed, (64, 1)), jnp.asarray(uniform), 0.7)
    p = probabilities(logits, allowed, 0.7)
    end = np.cumsum(p)
    token = np.asarray(token)
    slack = 2e-6  # float32 sums
    assert (uniform >= end[token] - p[token] - slack).all() and (uniform <= end[token] + slack).all()
    assert allowed[token].all()


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_no_forbidden_token_at_the_ends_of_the_unit_interval(vocab, temperature):
    """Forbidden tokens are by far the likelier ones; one, few, or all but one tokens are allowed."""
    rng = np.random.default_rng(vocab)
    uniform = np.tile(np.array([0, 1e-7, 0.5, 1 - 1e-6, ALMOST_ONE], np.float32), 6)
    rows = len(uniform)
    allowed = np.zeros((rows, vocab), bool)
    for i in range(rows):
        few = rng.choice(vocab, size=(1, 2, vocab - 1)[i % 3] or 1, replace=False)
        allowed[i, few] = True
    logits = np.where(allowed, rng.normal(size=allowed.shape) * 40 - 60, 90).astype(np.float32)
    token, logp = jax.jit(sample)(jnp.asarray(logits), jnp.asarray(allowed), jnp.asarray(uniform), temperature)
    assert allowed[np.arange(rows), np.asarray(token)].all()
    assert np.isfinite(logp).all() and (np.asarray(logp) <= 1e-6).all()
    alone = allowed.sum(1) == 1
    np.testing.assert_array_equal(np.asarray(logp)[alone], 0.0)


def test_without_a_mask_the_token_is_in_the_vocabulary():
    """The last block is padded where V is no multiple of its size."""
    for vocab in (2, 9, 37, 529):
        logits = jnp.full((2, vocab), -3.0).at[:, -1].set(-80.0)
        token, _ = sample(logits, None, jnp.array([0.0, ALMOST_ONE]), 1.0)
        assert (np.asarray(token) >= 0).all() and (np.asarray(token) < vocab).all()


@pytest.mark.parametrize("vocab", SIZES)
def test_greedy_takes_the_first_of_the_likeliest_allowed_tokens(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.integers(0, 4, (32, vocab)).astype(np.float32)  # many ties
    allowed = rng.random((32, vocab)) < 0.5
    allowed[:, -1] = True
    token, logp = sample(jnp.asarray(logits), jnp.asarray(allowed), jnp.asarray(rng.random(32), jnp.float32), 0.0)
    best = np.where(allowed, logits, -np.inf).argmax(1)
    np.testing.assert_array_equal(token, best)
    p = np.stack([probabilities(*row, 1.0) for row in zip(logits, allowed, strict=True)])
    np.testing.assert_allclose(logp, np.log(p[np.arange(32), best]), atol=1e-5)


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_log_probability_is_the_learners(vocab, temperature):
    """Logits are divided by the temperature, then masked, in the rollout and in the loss alike."""
    rng = np.random.default_rng(vocab)
    logits = jnp.asarray(rng.normal(size=(16, vocab)) * 4, jnp.float32)
    allowed = rng.random((16, vocab)) < 0.3
    allowed[:, 0] = True
    for mask in (jnp.asarray(allowed), None):
        token, logp = sample(logits, mask, jnp.asarray(rng.random(16), jnp.float32), temperature)
        again, _ = masked_log_prob(logits, mask, token, temperature)
        np.testing.assert_allclose(logp, again, atol=2e-5)
        given = None if mask is None else allowed
        for i in range(16):
            p = probabilities(np.asarray(logits[i]), None if given is None else given[i], temperature)
            np.testing.assert_allclose(logp[i], np.log(p[token[i]]), atol=2e-5)


def test_rows_are_drawn_independently():
    logits, allowed = case(37)
    uniform = jax.random.uniform(jax.random.key(0), (64,))
    rows, masks = jnp.tile(logits, (64, 1)), jnp.tile(allowed, (64, 1))
    together, _ = sample(rows, masks, uniform, 1.0)
    alone = [sample(rows[i : i + 1], masks[i : i + 1], uniform[i : i + 1], 1.0)[0][0] for i in range(8)]
    np.testing.assert_array_equal(together[:8], jnp.stack(alone))
