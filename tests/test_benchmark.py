"""The benchmark's own parts at tiny sizes: they compute the right thing; the file that it writes. No timings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import build_small

from agemem_jax.models import qwen
from agemem_jax.training.learn import log_probs
from agemem_jax.training.state import make_optimizer, new_state
from agemem_jax.types import Op, Text
from experiments import benchmark_loop
from experiments.benchmark import host_loop, parts, token_env
from experiments.benchmark.sitting import chosen_peers
from experiments.benchmark.token_env import Sizes

MODEL = dataclasses.replace(
    token_env.MODEL, vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8,
)  # fmt: skip
SINGLE = Sizes(tasks=2, group=4, prompt=6, turns=1, observed=0, generated=5, micro_batch=4)
MULTI = Sizes(tasks=2, group=4, prompt=6, turns=4, observed=3, generated=4, micro_batch=4, columns=(8, 15))


def setup(sizes: Sizes):
    params = qwen.init_params(MODEL, jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (sizes.tasks, sizes.prompt), token_env.FIRST_WORD, 64)
    return params, prompts


def full_log_probs(params: dict, sizes: Sizes, prompts: jax.Array, tokens: jax.Array) -> np.ndarray:
    """Log-probabilities of rollouts [rows, context] by one forward pass over prompt and rollout, without any cache."""
    sequence = jnp.concatenate([jnp.repeat(prompts, sizes.group, 0), tokens], 1)
    empty = jnp.zeros((1, 0), jnp.int32)
    _, hidden = qwen.rows_forward(params, MODEL, empty, jnp.zeros((1,), jnp.int32), sequence[None])
    scores = jax.nn.log_softmax(qwen.logits(params, MODEL, hidden[0]))
    return np.asarray(jnp.take_along_axis(scores[:, sizes.prompt - 1 : -1], tokens[..., None], 2)[..., 0])


@pytest.mark.parametrize("sizes", [SINGLE, MULTI, dataclasses.replace(MULTI, columns=())], ids=["one", "many", "whole"])
def test_rollout_log_probs_are_those_of_the_learner_and_of_a_plain_forward(sizes):
    params, prompts = setup(sizes)
    play = jax.jit(lambda params, prompts, key: token_env.rollout(params, MODEL, sizes, prompts, key))
    tokens, logp = play(params, prompts, jax.random.key(2))
    assert tokens.shape == logp.shape == (sizes.rows, sizes.context)
    rl = token_env.settings(sizes.group).rl
    batch = token_env.learner_batch(sizes, tokens, logp, rl)
    made = np.asarray(batch.trainable.reshape(tokens.shape))
    assert made.sum() == sizes.new_tokens
    assert len({row.tobytes() for row in np.asarray(tokens)}) == sizes.rows
    plain = np.where(made, full_log_probs(params, sizes, prompts, tokens), 0)
    np.testing.assert_allclose(np.where(made, logp, 0), plain, atol=1e-4)
    prefix = Text(prompts, jnp.full((sizes.tasks,), sizes.prompt, jnp.int32))
    learnt, _ = log_probs(params, MODEL, None, prefix, batch, 1.0, 16)
    np.testing.assert_allclose(np.asarray(learnt).reshape(plain.shape), plain, atol=1e-4)


def test_columns_change_nothing():
    params, prompts = setup(MULTI)
    whole = dataclasses.replace(MULTI, columns=())
    tokens, logp = token_env.rollout(params, MODEL, MULTI, prompts, jax.random.key(3))
    again, again_logp = token_env.rollout(params, MODEL, whole, prompts, jax.random.key(3))
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_allclose(logp, again_logp, atol=1e-5)


def test_reward_counts_different_generated_tokens():
    tokens = jnp.array([[1, 2, 2, 5], [7, 7, 7, 7], [3, 9, 8, 4]])
    np.testing.assert_array_equal(token_env.reward(tokens, jnp.array([True] * 4)), [3, 1, 4])
    np.testing.assert_array_equal(token_env.reward(tokens, jnp.array([False, True, True, True])), [2, 1, 3])


def test_one_program_updates_the_policy_and_its_first_ratio_is_one():
    params, prompts = setup(MULTI)
    begun = jax.device_get(params)
    config = token_env.settings(MULTI.group)
    config.optim.learning_rate = 1e-2
    optimizer = make_optimizer(config.optim)
    step = jax.jit(token_env.make_step(MODEL, MULTI, optimizer, config.rl), donate_argnums=0)
    state, metrics = step(new_state(params, optimizer), prompts, jax.random.key(4))
    assert float(metrics["logp_gap_max"]) < 1e-4
    assert float(metrics["grad_norm"]) > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), begun, state.params)
    assert all(jax.tree.leaves(moved))


def test_update_flops_are_six_for_each_weight_and_position():
    flops = token_env.update_flops(token_env.MODEL, token_env.SINGLE_TURN)
    layers = 4 * (256 * (2 * 256 + 2 * 128) + 3 * 256 * 1024)
    positions, heads = 16 * 128 + 128 * 64, 256 * 4096 * 128 * 64
    assert flops > 6 * (layers * positions + heads)
    assert flops < 1.1 * 6 * (layers * positions + heads)


def test_turns_are_parsed_from_their_text():
    turn = (
        '<think></think><tool_call>[{"name": "Add_memory", "arguments": {"content": " a b"}}, '
        '{"name": "Delete_memory", "arguments": {"memory_id": "3", "confirmation": true}}]</tool_call><|im_end|>'
    )
    calls = host_loop.parse(turn, False, "<|im_end|>")
    assert calls == [(Op.ADD, {"content": " a b"}), (Op.DELETE, {"memory_id": "3", "confirmation": True})]
    assert host_loop.parse("<think></think><tool_call>[]</tool_call><|im_end|>", False, "<|im_end|>") == [(Op.PASS, {})]
    assert host_loop.parse("<answer> Rome</answer><|im_end|>", False, "<|im_end|>") == [
        (Op.ACT, {"content": " Rome"})
    ]
    assert host_loop.parse(" all quiet<|im_end|>", True, "<|im_end|>") == [
        (Op.WRITE_SUMMARY, {"content": " all quiet"})
    ]


def test_answer_scores():
    assert host_loop.answer_scores(" the Rome", "Rome") == (1.0, 1.0)
    assert host_loop.answer_scores("no", "yes") == (0.0, 0.0)
    assert host_loop.answer_scores("old Rome", "Rome") == (0.0, pytest.approx(2 / 3))


def test_summary_has_the_documented_keys():
    agent = dict(tokens_per_s=300.0, trained_tokens_per_s=200.0, step_s=2.0, compile_s=9.0, peak_rss_gb=1.0)
    token = dict(tokens_per_s=4000.0, step_s=1.5, compile_s=9.0, peak_rss_gb=1.0, update_gflops=60.0)
    ours = {"matmul": {"matmul_gflops": 100.0}, "single_turn": token, "multi_turn": token, "fused": agent}
    ours |= {"host_driven": agent | {"tokens_per_s": 100.0}}
    ours |= {f"double_{name}": agent | {"step_s": 3.0} for name in parts.DOUBLED}
    peer = lambda rate: dict(tokens_per_s=rate, step_s=4.0, peak_rss_gb=1.0)  # noqa: E731
    theirs = {
        "trl": {"single_turn": peer(800.0), "multi_turn": peer(500.0), "multi_turn_kv_reuse": peer(2000.0)},
        "tunix": {"single_turn": peer(1000.0), "multi_turn": peer(400.0)},
    }
    figures = benchmark_loop.summarise(ours, theirs)
    assert figures["ratio"] == dict(host_driven=3.0, single_turn=4.0, multi_turn=8.0, multi_turn_kv_reuse=2.0)
    assert figures["update_share_of_matmul"] == 0.6
    assert figures["matmul_gflops"] == 100.0
    assert figures["growth"] == dict(entries=1.5, turns=1.5, rollouts=1.5)
    assert "times as fast as single_turn" in benchmark_loop.table(figures)
    alone = benchmark_loop.summarise(ours, {})
    assert alone["ratio"] == dict(host_driven=3.0)
    assert "single-turn" in benchmark_loop.table(alone)


def test_the_host_driven_agent_knows_all_that_the_measured_config_has(tmp_path):
    run = parts.agent(tmp_path)
    host_loop.HostLoop(run)
    assert run.frozen  # rl.kl_coef: both agents have a policy to stay near


@pytest.mark.heavy
def test_the_host_driven_agent_plays_what_the_programs_play():
    run = build_small(rl__credit="broadcast", rl__kl_coef=0.1)
    fused, host = parts.fused_agent(run, 1), parts.host_agent(run, 1)
    assert host["same_trajectories"] == 1 and fused["trained_tokens"][0] == host["trained_tokens"][0] > 0


def test_unknown_peers_are_refused():
    assert chosen_peers("none", benchmark_loop.PACKAGES) == []
    assert chosen_peers("tunix", benchmark_loop.PACKAGES) == ["tunix"]
    with pytest.raises(ValueError, match="verl"):
        chosen_peers("trl,verl", benchmark_loop.PACKAGES)


def test_settings_are_the_peers():
    config = token_env.settings(8)
    assert (config.rl.kl_coef, config.rl.clip_low, config.rl.group_size) == (0, 0.2, 8)
    assert config.optim.learning_rate == 1e-6
