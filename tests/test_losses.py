"""Policy loss: hand-computed values, slow references, and what must not matter (padding, micro-batches, chunks)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from agemem_jax.rl import losses


def rl_config(**changes):
    return ConfigDict(dict(clip_low=0.2, clip_high=0.2, dual_clip=0.0, kl_coef=0.0) | changes)


def test_masked_log_prob_by_hand():
    logits = jnp.log(jnp.array([[1.0, 1.0, 2.0], [1.0, 3.0, 4.0]]))
    allowed = jnp.array([[True, False, True], [False, True, False]])
    logp, entropy = losses.masked_log_prob(logits, allowed, jnp.array([0, 1]), 1.0)
    np.testing.assert_allclose(logp, [np.log(1 / 3), 0.0], atol=1e-6)
    np.testing.assert_allclose(entropy, [-(1 / 3) * np.log(1 / 3) - (2 / 3) * np.log(2 / 3), 0.0], atol=1e-6)


def test_masked_log_prob_divides_by_the_temperature():
    logits = jnp.array([[0.0, 2.0]])
    logp, _ = losses.masked_log_prob(logits, None, jnp.array([1]), 2.0)
    np.testing.assert_allclose(logp, [1.0 - np.log(1 + np.e)], rtol=1e-6)


def test_masked_log_prob_of_forbidden_tokens_is_finite_with_finite_gradients():
    def f(logits):
        allowed = jnp.array([[True, False], [False, False]])
        return losses.masked_log_prob(logits, allowed, jnp.array([1, 0]), 1.0)[0].sum()

    value, grad = jax.value_and_grad(f)(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    assert np.isfinite(value) and np.isfinite(grad).all()


def head(params, hidden):
    return hidden @ params["kernel"] + params["bias"]


def allowed_tokens(tables, info):
    return tables[info["state"]]


def chunk_case(n=23, d=5, v=11, states=4, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    tables = rng.random((states, v)) < 0.6
    tables[:, 0] = True
    state = rng.integers(0, states, n)
    token = np.array([rng.choice(np.flatnonzero(tables[s])) for s in state])
    params = {"kernel": rng.normal(size=(d, v)), "bias": rng.normal(size=v)}
    arrays = (params, rng.normal(size=(n, d)), rng.normal(size=n))
    params, hidden, cotangent = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    return params, hidden, jnp.asarray(token), jnp.asarray(rng.random(n) < share), jnp.asarray(tables), state, cotangent


@pytest.mark.parametrize("chunk, shards, share", [(4, 1, 0.5), (23, 1, 0.5), (100, 1, 0.3), (1, 1, 1.0), (4, 1, 0.0)])
def test_chunked_log_probs_equal_dense_ones_in_value_and_gradient(chunk, shards, share):
    params, hidden, token, select, tables, state, cotangent = chunk_case(share=share)

    def dense(params, hidden):
        logp, entropy = losses.masked_log_prob(head(params, hidden), tables[state], token, 0.7)
        return jnp.where(select, logp, 0.0), jnp.where(select, entropy, 0.0)

    def chunked(params, hidden):
        return losses.chunked_log_probs(
            head, params, hidden, token, select, allowed_tokens, tables, {"state": jnp.asarray(state)},
            chunk=chunk, temperature=0.7, shards=shards,
        )  # fmt: skip

    for a, b in zip(jax.jit(chunked)(params, hidden), dense(params, hidden), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    grads = [
        jax.jit(jax.grad(lambda p, h, f=f: jnp.vdot(f(p, h)[0], cotangent), argnums=(0, 1)))(params, hidden)
        for f in (chunked, dense)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)


def test_chunked_log_probs_without_grammar_in_shards():
    params, hidden, token, select, _, _, cotangent = chunk_case(n=24)

    def chunked(params, hidden, shards):
        return losses.chunked_log_probs(head, params, hidden, token, select, chunk=3, shards=shards)

    dense = jnp.where(select, losses.masked_log_prob(head(params, hidden), None, token, 1.0)[0], 0.0)
    for shards in (1, 2, 4):
        np.testing.assert_allclose(chunked(params, hidden, shards)[0], dense, atol=1e-5)
    one, four = (jax.grad(lambda p, k=k: jnp.vdot(chunked(p, hidden, k)[0], cotangent))(params) for k in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, four)


def test_chunked_log_probs_differentiate_inside_a_scan_under_remat():
    """As the learner calls it: the gradient of a scan over micro-batches, everything an argument of one jit."""
    params, hidden, token, select, tables, state, cotangent = chunk_case(n=24)
    cut = lambda x: jnp.asarray(x).reshape(3, 8, *x.shape[1:])  # noqa: E731
    batches = tuple(map(cut, (hidden, token, select, state, cotangent)))

    @jax.jit
    def scanned(params, tables, batches):
        @jax.checkpoint
        def body(total, batch):
            h, t, s, q, c = batch
            logp, _ = losses.chunked_log_probs(head, params, h, t, s, allowed_tokens, tables, {"state": q}, chunk=3)
            return total + jnp.vdot(logp, c), None

        return jax.lax.scan(body, 0.0, batches)[0]

    def dense(params):
        logp, _ = losses.masked_log_prob(head(params, hidden), tables[state], token, 1.0)
        return jnp.vdot(jnp.where(select, logp, 0.0), cotangent)

    got = jax.jit(jax.grad(scanned))(params, tables, batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, jax.grad(dense)(params))


def test_chunked_log_probs_leave_sharded_tokens_where_they_are():
    """One shard a device: the same gradients, and the only collectives are sums."""
    params, hidden, token, select, _, _, cotangent = chunk_case(n=64)
    arrays = (hidden, token, select, cotangent)
    mesh = jax.make_mesh((8,), ("data",))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def total(params, hidden, token, select, cotangent):
        logp, _ = losses.chunked_log_probs(head, params, hidden, token, select, chunk=3, shards=8)
        return jnp.vdot(logp, cotangent)

    gradient = jax.jit(
        jax.grad(total, argnums=(0, 1)), in_shardings=(everywhere, *[rows] * 4), out_shardings=(everywhere, rows)
    )
    program = gradient.lower(params, *arrays).compile()
    moves = ("all-gather", "all-to-all", "collective-permute")
    assert not any(f"{name}(" in program.as_text() for name in moves)

    def dense(params, hidden):
        logp, _ = losses.masked_log_prob(head(params, hidden), None, token, 1.0)
        return jnp.vdot(jnp.where(select, logp, 0.0), cotangent)

    got = program(jax.device_put(params, everywhere), *(jax.device_put(x, rows) for x in arrays))
    expected = jax.grad(dense, argnums=(0, 1))(params, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def test_chunked_log_probs_never_hold_all_logits():
    n, d, v, chunk = 64, 4, 1000, 8
    args = (jnp.zeros((d, v)), jnp.zeros((n, d)))

    def f(kernel, hidden):
        select = jnp.ones(n, bool)
        return losses.chunked_log_probs(
            lambda p, h: h @ p, kernel, hidden, jnp.zeros(n, int), select, chunk=chunk
        )[0].sum()  # fmt: skip

    hlo = jax.jit(jax.grad(f, argnums=(0, 1))).lower(*args).compile().as_text()
    assert f"[{chunk},{v}]" in hlo and f"[{n},{v}]" not in hlo


def test_chunked_log_probs_refuse_uneven_shards():
    params, hidden, token, select, *_ = chunk_case(n=23)
    with pytest.raises(ValueError, match="shards=4"):
        losses.chunked_log_probs(head, params, hidden, token, select, chunk=4, shards=4)
    with pytest.raises(ValueError, match="chunk is 0"):
        losses.chunked_log_probs(head, params, hidden, token, select, chunk=0)


def trajectory_mask():
    mask = np.zeros((3, 2, 4), bool)
    mask[0, 0, :3] = True
    mask[0, 1, 1] = True  # 4 tokens in two segments
    mask[1, 0, 2:] = True  # 2 tokens; row 2 has none
    return jnp.asarray(mask)


def test_token_weights_by_hand():
    mask = trajectory_mask()
    for mode, row0, row1 in (("token", 1 / 6, 1 / 6), ("sequence", 1 / 8, 1 / 4), ("constant", 1 / 20, 1 / 20)):
        weight = losses.token_weights(mask, mode, constant=10)
        expected = np.array([row0, row1, 0.0])[:, None, None] * np.asarray(mask)
        np.testing.assert_allclose(weight, expected, rtol=1e-6, err_msg=mode)
    np.testing.assert_allclose(losses.token_weights(mask, "token").sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(losses.token_weights(mask, "sequence").sum(), 1.0, rtol=1e-6)
    assert not losses.token_weights(jnp.zeros_like(mask), "sequence").any()


def test_every_turn_weighs_the_same_by_hand():
    """Row 0: turn 0 of three tokens, turn 2 of one token in a second segment; row 1: turn 2 of two tokens."""
    turn = np.zeros((3, 2, 4), np.int32)
    turn[0, 1], turn[1] = 2, 2
    mask = np.asarray(trajectory_mask())
    expected = np.zeros((3, 2, 4))
    expected[0, 0, :3], expected[0, 1, 1], expected[1, 0, 2:] = 1 / 9, 1 / 3, 1 / 6
    weight = losses.token_weights(jnp.asarray(mask), "turn", turn=jnp.asarray(turn), turns=3)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    turn[0, 1] = 0  # a turn in two segments is one turn: four tokens of it
    expected[0], expected[1, 0, 2:] = mask[0] / 8, 1 / 4
    weight = losses.token_weights(jnp.asarray(mask), "turn", turn=jnp.asarray(turn), turns=3)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    assert not losses.token_weights(jnp.zeros_like(mask), "turn", turn=jnp.asarray(turn), turns=3).any()


def test_token_weights_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="loss_average is 'tokens'"):
        losses.token_weights(trajectory_mask(), "tokens")
    with pytest.raises(ValueError, match="at least 1 token"):
        losses.token_weights(trajectory_mask(), "constant")
    with pytest.raises(ValueError, match="turns of the tokens"):
        losses.token_weights(trajectory_mask(), "turn")


def reference_loss(logp, old, ref, advantage, weight, rl):
    """One token after another, in Python."""
    loss, clipped_tokens, tokens = 0.0, 0, 0
    for new_t, old_t, ref_t, a, w in zip(logp, old, ref, advantage, weight, strict=True):
        if w == 0:
            continue
        ratio = np.exp(new_t - old_t)
        bounded = min(max(ratio, 1 - rl.clip_low), 1 + rl.clip_high)
        kl = np.exp(ref_t - new_t) - (ref_t - new_t) - 1
        gain = min(ratio * a, bounded * a)
        if rl.dual_clip and a < 0:
            gain = max(gain, rl.dual_clip * a)
        loss += w * (-gain + rl.kl_coef * kl)
        clipped_tokens += gain != ratio * a
        tokens += 1
    return loss, clipped_tokens / tokens


def loss_case(n=40, seed=0):
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, n)
    logp, ref = old + rng.normal(0, 0.3, n), old + rng.normal(0, 0.3, n)
    mask = rng.random(n) < 0.7
    arrays = (logp, old, ref, rng.normal(size=n), mask / mask.sum(), rng.random(n))
    return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("changes", [{}, {"kl_coef": 0.1}, {"clip_high": 0.28, "kl_coef": 0.5}, {"dual_clip": 1.3}])
def test_policy_loss_equals_the_slow_reference(changes):
    rl = rl_config(**changes)
    logp, old, ref, advantage, weight, entropy = loss_case()
    loss, metrics, ratio_max = losses.policy_loss(logp, old, ref, advantage, weight, entropy, rl)
    arrays = [np.asarray(x, np.float64) for x in (logp, old, ref, advantage, weight)]
    expected, clip_fraction = reference_loss(*arrays, rl)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"].mean(), clip_fraction, rtol=1e-6)
    real = np.asarray(weight) > 0
    np.testing.assert_allclose(metrics["entropy"].mean(), np.asarray(entropy)[real].mean(), rtol=1e-5)
    np.testing.assert_allclose(ratio_max, np.exp(np.asarray(logp - old))[real].max(), rtol=1e-5)


def test_policy_loss_by_hand():
    """Ratios 2, 2, 0.5, 0.5 with advantages 1, -1, 1, -1, clipped to [0.8, 1.2]."""
    logp = jnp.log(jnp.array([2.0, 2.0, 0.5, 0.5]))
    advantage = jnp.array([1.0, -1.0, 1.0, -1.0])
    args = (jnp.zeros(4), None, advantage, jnp.full(4, 0.25), jnp.zeros(4), rl_config())
    loss, metrics, ratio_max = losses.policy_loss(logp, *args)
    np.testing.assert_allclose(loss, (-1.2 + 2.0 - 0.5 + 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"].mean(), 0.5)
    np.testing.assert_allclose(ratio_max, 2.0, rtol=1e-6)
    # A clipped token gives no gradient, another one -rho A.
    grad = jax.grad(lambda x: losses.policy_loss(x, *args)[0])(logp)
    np.testing.assert_allclose(grad, [0.0, 2.0 / 4, -0.5 / 4, 0.0], rtol=1e-6)


def test_dual_clip_by_hand():
    """Ratios 5, 5, 2, 0.5 with advantages -1, 1, -1, -1, clipped to [0.8, 1.2], and to 3 where it is negative."""
    logp = jnp.log(jnp.array([5.0, 5.0, 2.0, 0.5]))
    advantage = jnp.array([-1.0, 1.0, -1.0, -1.0])
    args = (jnp.zeros(4), None, advantage, jnp.full(4, 0.25), jnp.zeros(4), rl_config(dual_clip=3.0))
    loss, metrics, _ = losses.policy_loss(logp, *args)
    np.testing.assert_allclose(loss, (3.0 - 1.2 + 2.0 + 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"].mean(), 0.75)
    grad = jax.grad(lambda x: losses.policy_loss(x, *args)[0])(logp)
    np.testing.assert_allclose(grad, [0.0, 0.0, 2.0 / 4, 0.0], rtol=1e-6)
    plain, _, _ = losses.policy_loss(logp, *args[:-1], rl_config())
    np.testing.assert_allclose(plain, (5.0 - 1.2 + 2.0 + 0.8) / 4, rtol=1e-6)


def test_policy_gradient_on_policy_is_reinforce_with_kl():
    """At rho = 1: -w A, and beta w (1 - pi_ref / pi) of the k3 estimator."""
    logp, _, ref, advantage, weight, entropy = loss_case()
    rl = rl_config(kl_coef=0.1)
    grad = jax.grad(lambda x: losses.policy_loss(x, logp, ref, advantage, weight, entropy, rl)[0])(logp)
    np.testing.assert_allclose(grad, weight * (-advantage + 0.1 * (1 - jnp.exp(ref - logp))), atol=1e-6)


def test_micro_batches_and_padding_change_nothing():
    rl = rl_config(kl_coef=0.1)
    case = loss_case()
    whole, metrics, peak = losses.policy_loss(*case, rl)
    padded = [jnp.pad(x, (0, 24), constant_values=v) for x, v in zip(case, (-1e30, 0, -1e30, 9, 0, 9), strict=True)]
    pieces = [losses.policy_loss(*(x[i : i + 8] for x in padded), rl) for i in range(0, 64, 8)]
    np.testing.assert_allclose(sum(loss for loss, _, _ in pieces), whole, rtol=1e-5)
    np.testing.assert_allclose(max(top for _, _, top in pieces), peak)
    added = jax.tree.map(lambda *parts: sum(parts), *[m for _, m, _ in pieces])
    for name, value in metrics.items():
        np.testing.assert_allclose(added[name].mean(), value.mean(), rtol=1e-5, err_msg=name)


def test_far_apart_policies_stay_finite():
    args = (jnp.array([-300.0, 0.0]), jnp.array([0.0, -300.0]), jnp.array([0.0, -300.0]))
    f = lambda x: losses.policy_loss(x, *args[1:], jnp.ones(2), jnp.ones(2), jnp.zeros(2), rl_config(kl_coef=0.1))[0]  # noqa: E731
    value, grad = jax.value_and_grad(f)(args[0])
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_kl_needs_a_reference():
    with pytest.raises(ValueError, match="rl.kl_coef is 0.1"):
        losses.policy_loss(*[jnp.zeros(1)] * 2, None, *[jnp.zeros(1)] * 3, rl_config(kl_coef=0.1))
