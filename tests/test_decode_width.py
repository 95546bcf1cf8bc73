"""Decoding several tokens a step: the very turns that one token a step writes, whatever is proposed."""

import dataclasses
import itertools
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import build_small, settings, small_config
from small import play as play_stages
from vocabularies import write_bpe

from agemem_jax import sharding
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.models import kv_cache, qwen, weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl.losses import masked_log_prob
from agemem_jax.rollout import decode, drafts
from agemem_jax.rollout.decode import Policy, Turns, decode_ahead, generate, prefill
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import policy_writer
from agemem_jax.sharding import Layout
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training.setup import build
from agemem_jax.types import PAD_ID
from configs import tiny
from configs.base import get_config

ALL_OPS = grammar_lib.ANY_OP
BUDGETS = np.array([72, 51, 33, 58, 64, 53], np.int32)  # of the rows: a random policy writes until it has to end
B, C, A = 6, 48, 72  # rows, context tokens, tokens of a turn
WIDTHS = (2, 4, 8)


@cache
def tool_grammar(folder: Path, form: str, **changes):
    """A grammar over a byte-level BPE, in which most of a call's skeleton is forced."""
    config = get_config().tools
    config.update(dict(format=form, max_calls=1, max_tags=0, optional_arguments=False, body_tokens=0) | changes)
    tokenizer = Tokenizer.load(write_bpe(folder))
    return jax.device_get(grammar_lib.build_grammar(config, tokenizer))


@pytest.fixture(scope="module")
def grammar_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    return lambda form: tool_grammar(folder, form)


@cache
def policy_of(vocab: int, scan_layers: bool = False) -> tuple[ModelConfig, dict]:
    """A random policy whose next token depends on all that it sees."""
    config = ModelConfig(vocab, 32, 48, 2, 4, 2, 8, qk_norm=True, scan_layers=scan_layers)
    return config, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, qwen.init_params(config, jax.random.key(0)))


def situation(vocab: int, seed: int = 0):
    """Contexts, of which some are cached already: (tokens [B, C], length [B], prompt [1, 7])."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, min(vocab, 40), (B, C)).astype(np.int32)  # few words, so that much can be looked up
    length = np.array([C, 30, 41, 5, 17, 1], np.int32)
    return np.where(np.arange(C) < length[:, None], tokens, PAD_ID), length, rng.integers(1, vocab, (1, 7))


@partial(jax.jit, static_argnames=("config", "width", "decode_width", "columns", "propose"))
def turns(
    params, grammar, tokens, length, prompt, on, start, budget, key, temperature, noise_row, config, width,
    decode_width, columns=(), propose=None,
):  # fmt: skip
    """One slot from empty caches: (history, cached, Generation)."""
    prefix, _ = kv_cache.encode_prefix(params, config, prompt, jnp.array([prompt.shape[1]]))
    history = kv_cache.init_history(config, len(length), tokens.shape[1] + max(16, width))
    policy, zeros, ops = Policy(config, params, prefix), jnp.zeros_like(length), jnp.full_like(length, ALL_OPS)
    asked = Turns(on, grammar, start, ops, budget, width, temperature, key, noise_row, columns)
    if propose is None:
        return generate(policy, history, zeros, tokens, length, asked, 16, decode_width=decode_width)
    history, cached, hidden = prefill(policy, history, zeros, tokens, length, on, 16)
    slot, made = decode_ahead(policy, history, cached, hidden, asked, tokens, decode_width, propose)
    return kv_cache.merge_slot(history, slot, cached), cached + made.count - 1, made


def play(
    policy, grammar, decode_width, temperature=0.0, seed=0, on=None, budget=None, noise_row=None, columns=(),
    propose=None,
):  # fmt: skip
    config, params = policy
    tokens, length, prompt = situation(config.vocab_size, seed)
    on = np.ones(B, bool) if on is None else on
    start = np.full(B, grammar.start_act, np.int32)
    start[2] = grammar.start_summary
    budget = BUDGETS if budget is None else budget
    noise_row = np.arange(B) if noise_row is None else noise_row
    made = turns(
        params, grammar, tokens, length, prompt, on, start, budget, jax.random.key(seed), jnp.float32(temperature),
        noise_row, config, A, decode_width, columns, propose,
    )  # fmt: skip
    return jax.device_get(made)


def assert_same_turns(made, expected):
    """The same tokens and marks; log-probabilities up to rounding; everything but a row's last token cached."""
    (_, cached, ours), (_, other_cached, theirs) = made, expected
    for name in ("tokens", "count", "state", "remaining", "sampled"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_allclose(ours.logp, theirs.logp, atol=1e-4)
    np.testing.assert_array_equal(cached, other_cached)


def assert_same_cache(made, expected):
    """Keys and values of each row's cached tokens."""
    (history, cached, _), (other, _, _) = made, expected
    for x, y in zip(jax.tree.leaves(history), jax.tree.leaves(other), strict=True):
        stacked = x.ndim == 5
        for b in range(B):
            one, two = (np.take(z, b, axis=1 if stacked else 0) for z in (x, y))
            axis = one.ndim - 1 if one.shape[-1] == x.shape[-1] != 8 else one.ndim - 2
            np.testing.assert_allclose(
                np.take(one, range(cached[b]), axis), np.take(two, range(cached[b]), axis), atol=1e-4
            )


@pytest.mark.parametrize(
    ("form", "scan_layers", "widths"),
    [
        ("paper", False, (8,)),
        ("hermes", True, (4,)),
        pytest.param("paper", True, WIDTHS, marks=pytest.mark.heavy),
        pytest.param("hermes", False, WIDTHS, marks=pytest.mark.heavy),
    ],
)
def test_turns_are_those_of_one_token_a_step(grammar_of, form, scan_layers, widths):
    grammar = grammar_of(form)
    policy = policy_of(len(grammar.token_class), scan_layers)
    for temperature in (0.0, 1.0):
        expected = play(policy, grammar, 1, temperature)
        assert (expected[2].count > 20).all() and len(set(expected[2].count)) > 2
        for width in widths:
            made = play(policy, grammar, width, temperature)
            assert_same_turns(made, expected)
            assert_same_cache(made, expected)


def test_history_widths_prompts_noise_rows_and_silent_rows(grammar_of):
    """Rows that are off write nothing, and others draw the noise of the rows that they are told."""
    grammar = grammar_of("paper")
    policy = policy_of(len(grammar.token_class))
    on, noise_row = np.array([1, 0, 1, 1, 0, 1], bool), np.array([4, 1, 0, 3, 3, 2])
    expected = play(policy, grammar, 1, 1.0, 1, on, noise_row=noise_row, columns=(80,))
    made = play(policy, grammar, 3, 1.0, 1, on, noise_row=noise_row, columns=(80,))
    assert_same_turns(made, expected)
    assert (made[2].count[~on] == 0).all() and not made[2].tokens[~on].any() and (made[1][~on] == 0).all()
    other = play(policy, grammar, 8, 1.0, 1, on)
    assert (other[2].tokens[3] == made[2].tokens[3]).all() and (other[2].tokens[0] != made[2].tokens[0]).any()


def test_a_budget_may_end_inside_a_step(grammar_of):
    """All rows write summaries, of text that may be copied, within a few tokens."""
    grammar = grammar_of("paper")
    policy = policy_of(len(grammar.token_class))
    budget = np.array([1, 2, 3, 4, 5, 7], np.int32)
    start = dataclasses.replace(grammar, start_act=grammar.start_summary)
    expected = play(policy, start, 1, 1.0, 2, budget=budget)
    np.testing.assert_array_equal(expected[2].count, budget)
    assert_same_turns(play(policy, start, 8, 1.0, 2, budget=budget), expected)


def test_shipped_weights_write_the_same():
    """The built-in policy, whose turns end by themselves."""
    config = tiny.get_config()
    tokenizer = Tokenizer.load(config.policy.tokenizer)
    grammar = jax.device_get(grammar_lib.build_grammar(config.tools, tokenizer))
    policy = weights.load(config.policy.weights)
    words = np.array(tokenizer.encode(" the old friend said that Ada wrote Silver River and the old friend said"))
    length = np.array([len(words), 7, 12, 5, 9, 3], np.int32)
    tokens = np.zeros((B, C), np.int32)
    for row, n in zip(tokens, length, strict=True):
        row[:n] = words[:n]
    start = np.full(B, grammar.start_act, np.int32)
    start[1] = grammar.start_summary
    made, most = {}, max(grammar.shortest) + 12
    for width in (1, 4):
        made[width] = jax.device_get(turns(
            policy[1], grammar, tokens, length, words[None, :7], np.ones(B, bool), start, np.full(B, most, np.int32),
            jax.random.key(0), jnp.float32(0.0), np.arange(B), policy[0], most, width,
        ))  # fmt: skip
        assert_same_turns(made[width], made[1])
    assert (made[1][2].count < most).any()


def test_log_probabilities_are_the_learners(grammar_of):
    """Of the masked distribution at each written token, by one ordinary forward over prompt, context and turn."""
    grammar = grammar_of("paper")
    config, params = policy_of(len(grammar.token_class))
    _, _, made = play((config, params), grammar, 8, 0.8, 3)  # compiled before
    tokens, length, prompt = situation(config.vocab_size, 3)
    whole = np.zeros((B, prompt.shape[1] + C + A), np.int32)
    for b in range(B):
        said = np.concatenate([prompt[0], tokens[b, : length[b]], made.tokens[b, : made.count[b]]])
        whole[b, : len(said)] = said
    row, at = np.nonzero(np.arange(A) < made.count[:, None])
    written = [x[row, at] for x in (made.state, made.remaining, made.tokens)]
    place = prompt.shape[1] + length[row] + at - 1

    @jax.jit
    def learners(params, grammar, whole, state, left, token):
        nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros(1, jnp.int32)
        hidden = qwen.rows_forward(params, config, *nothing, whole[None])[1][0, row, place]
        allowed = grammar_lib.allowed_tokens(grammar, state, left, jnp.full_like(state, ALL_OPS))
        return masked_log_prob(qwen.logits(params, config, hidden), allowed, token, 0.8)[0], allowed.sum(-1) > 1

    logp, choice = learners(params, grammar, whole, *written)
    np.testing.assert_allclose(made.logp[row, at], logp, atol=1e-3)
    np.testing.assert_array_equal(made.sampled[row, at], choice)
    assert made.sampled.sum() > 50 and (made.logp[made.sampled] < -0.1).sum() > 30


# --- the distribution, and proposals of all kinds ---

WORDS, LENGTH, MANY = 3, 4, 1 << 14


def free_turns(key, decode_width, propose=drafts.propose):
    """LENGTH tokens of a vocabulary of WORDS, in MANY rows that all begin alike, at temperature 1.5."""
    config, params = policy_of(WORDS)
    return write_freely(params, key, config, decode_width, propose)


@partial(jax.jit, static_argnames=("config", "decode_width", "propose"))
def write_freely(params, key, config, decode_width, propose):
    prompt = jnp.array([[1, 2, 2, 0, 1, 2]])
    prefix, last = kv_cache.encode_prefix(params, config, prompt, jnp.array([6]))
    zeros = jnp.zeros(MANY, jnp.int32)
    context = jnp.tile(jnp.array([[1, 2, 1, 1]]), (MANY, 1))
    history = kv_cache.init_history(config, MANY, 4)
    hidden, history = kv_cache.extend(params, config, prefix, history, zeros, context, zeros + 4)
    asked = Turns(zeros == 0, None, zeros, zeros, zeros + LENGTH, LENGTH, jnp.float32(1.5), key)
    policy = Policy(config, params, prefix)
    _, made = decode_ahead(policy, history, zeros + 4, hidden[:, -1], asked, context, decode_width, propose)
    return made


@cache
def probabilities() -> np.ndarray:
    """Of each of the WORDS ** LENGTH turns, by forwards of whole sequences."""
    config, params = policy_of(WORDS)
    turns = np.array(list(itertools.product(range(WORDS), repeat=LENGTH)))
    whole = np.concatenate([np.tile([1, 2, 2, 0, 1, 2, 1, 2, 1, 1], (len(turns), 1)), turns], 1)
    nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros(1, jnp.int32)
    hidden = qwen.rows_forward(params, config, *nothing, whole[None])[1][0]
    logp = jax.nn.log_softmax(qwen.logits(params, config, hidden[:, -LENGTH - 1 : -1]) / 1.5)
    return np.exp(np.take_along_axis(np.asarray(logp, np.float64), turns[..., None], 2).sum((1, 2)))


@pytest.mark.parametrize("decode_width", [2, 4])
def test_whole_turns_have_their_exact_distribution(decode_width):
    p = probabilities()
    assert abs(p.sum() - 1) < 1e-5 and (p > 3 / MANY).sum() > 40 and p.max() < 0.5
    made = jax.device_get(free_turns(jax.random.key(5), decode_width))
    assert (made.count == LENGTH).all() and made.sampled.all()
    counts = np.bincount(made.tokens @ WORDS ** np.arange(LENGTH)[::-1], minlength=len(p))
    common = p * MANY > 5
    statistic = ((counts - p * MANY)[common] ** 2 / (p * MANY)[common]).sum()
    freedom = common.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def always(draft_of):
    """A proposer that fills every step: `draft_of(last token [B], n)` are its n tokens [B, n]."""

    def propose(grammar, text, end, state, left, ops, width):
        last = jnp.take_along_axis(text, end[:, None] - 1, 1)[:, 0]
        tokens = draft_of(last, width)
        states, count, going = [state], 0 * state, left > 1
        for j in range(width - 1):
            if grammar is not None:
                states.append(grammar_lib.advance(grammar, states[-1], tokens[:, j]))
                going &= states[-1] != grammar.end
            count += going & (left > j + 1)
        states = jnp.stack(states, 1) if grammar is not None else 0 * tokens
        return drafts.Draft(tokens, count, states, tokens < 0)

    return propose


WRONG = always(lambda last, n: (7 * last[:, None] + jnp.arange(n) + 1) % WORDS)
LUCKY = always(lambda last, n: last[:, None] + 0 * jnp.arange(n))


@pytest.mark.parametrize(
    ("propose", "form", "scan_layers"),
    [(WRONG, "hermes", False), (WRONG, "paper", True), pytest.param(LUCKY, "paper", False, marks=pytest.mark.heavy)],
)
def test_no_proposal_does_harm(grammar_of, propose, form, scan_layers):
    """Neither tokens that are not allowed nor ones that now and then hold: what is written and cached is the same."""
    grammar = grammar_of(form)
    policy = policy_of(len(grammar.token_class), scan_layers)
    expected = play(policy, grammar, 1, 1.0, 4)
    made = play(policy, grammar, 3, 1.0, 4, propose=propose)
    assert_same_turns(made, expected)
    assert_same_cache(made, expected)


def test_proposals_are_made_of_what_the_row_has_read_and_written(grammar_of):
    grammar = grammar_of("paper")
    policy = policy_of(len(grammar.token_class))
    steps = []

    def propose(grammar, text, end, state, left, ops, width):
        jax.debug.callback(lambda *now: steps.append(jax.device_get(now)), text, end, state, left)
        return drafts.propose(grammar, text, end, state, left, ops, width)

    budget = np.full(B, A)  # one row's last columns are run beside others' proposals
    expected = play(policy, grammar, 1, 1.0, 5, budget=budget)
    made = play(policy, grammar, 3, 1.0, 5, budget=budget, propose=propose)
    assert_same_turns(made, expected)
    assert_same_cache(made, expected)
    jax.effects_barrier()
    tokens, length, prompt = situation(policy[0].vocab_size, 5)
    turn, live = made[2], 0
    for text, end, state, left in steps:
        for b in range(B):
            written = end[b] - prompt.shape[1] - length[b]
            if written < turn.count[b]:
                whole = [*prompt[0], *tokens[b, : length[b]], *turn.tokens[b, :written]]
                assert text[b, : end[b]].tolist() == whole
                assert (state[b], left[b]) == (turn.state[b, written], turn.remaining[b, written])
                live += 1
    assert 0 < live < turn.count.sum() - B


@pytest.mark.parametrize("propose", [WRONG, LUCKY], ids=["wrong", "the same again"])
def test_no_proposal_changes_free_turns(propose):
    same = free_turns(jax.random.key(7), 4, propose).tokens == free_turns(jax.random.key(7), 2).tokens
    assert same.mean() > 0.9999  # rounding may move one of many draws over its edge


def test_four_devices_write_what_one_does(grammar_of):
    grammar = grammar_of("paper")
    config, params = policy_of(len(grammar.token_class) + 1)
    expected = play((config, params), grammar, 1, 1.0, 6)
    layout = Layout(sharding.make_mesh(2, 1, 2, jax.devices()[:4]), "rollout")
    spread = dataclasses.replace(config, layout=layout, scan_layers=True)
    assert_same_turns(play((spread, qwen.to_layout(params, spread)), grammar, 4, 1.0, 6), expected)


def test_the_width_of_the_config_is_that_of_the_loop(monkeypatch):
    """What is written does not tell."""
    asked = []
    monkeypatch.setattr(decode, "decode_ahead", lambda *args: asked.append(args[-1]) or decode_ahead(*args))
    for width in (1, 3):
        run = build(small_config(rollout__decode_width=width))
        spec = run.spec.rollout

        def write(params, run=run, spec=spec):
            text, rows = run.world.pieces.prefix, new_rows(spec, run.model)
            prefix, _ = kv_cache.encode_prefix(params, run.model, text.tokens, text.length)
            policy = Policy(run.model, params, prefix)
            writes = policy_writer(policy, run.world, spec, jnp.float32(1.0), jax.random.key(0))
            return writes(rows, 0, rows.turn == 0, rows.turn, rows.turn + ALL_OPS, rows.turn + spec.width)[1]

        made = jax.eval_shape(write, jax.eval_shape(run.start))
        assert made.tokens.shape == (spec.batch, spec.width)
    assert asked == [3]


@pytest.mark.heavy
def test_a_stage_is_the_same_at_every_width():
    """A stage of whole trajectories, their segments and caches' lengths."""
    changes = dict(policy__num_layers=1, rollout__history_widths=2, tools__max_calls=1)
    runs = [build_small(**changes, rollout__decode_width=width) for width in (1, 4)]
    (one,), (wide,) = (play_stages(run, run.source.batch(0), settings(run), stages=(1,))[1] for run in runs)
    for x, y in zip(jax.tree.leaves(one.replace(history=())), jax.tree.leaves(wide.replace(history=())), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    assert one.stats.generated_tokens.sum() > 50


# --- what is proposed ---


def looked_up(text: list[int], recent: list[int]) -> int | None:
    """The token after the longest end of `recent` in the text, of equally long ones the last."""
    for n in range(len(recent), drafts.SHORTEST - 1, -1):
        for place in range(len(text) - n - 1, -1, -1):
            if text[place : place + n] == recent[-n:]:
                return text[place + n]
    return None


def test_a_copy_goes_on_where_the_longest_end_last_stood():
    rng = np.random.default_rng(0)
    text = rng.integers(1, 6, (64, 12)).astype(np.int32)
    end = rng.integers(1, 13, 64)
    recent = rng.integers(1, 6, (64, drafts.LONGEST)).astype(np.int32)
    token, found = map(np.asarray, drafts.look_up(text, end, recent))
    expected = [looked_up(row[:n].tolist(), last.tolist()) for row, n, last in zip(text, end, recent, strict=True)]
    assert found.tolist() == [one is not None for one in expected]
    assert token[found].tolist() == [one for one in expected if one is not None]
    assert 10 < found.sum() < 64


def copied(text: list[int], left: int, width: int) -> list[int]:
    """What is proposed where everything is allowed."""
    tokens = []
    while len(tokens) < min(width, left) - 1:
        token = looked_up(text, (text + tokens)[-drafts.LONGEST :])
        if token is None:
            break
        tokens.append(token)
    return tokens


def test_a_copy_goes_on_with_what_it_says_itself():
    rng = np.random.default_rng(1)
    text = rng.integers(1, 6, (64, 12)).astype(np.int32)
    end = np.concatenate([np.arange(1, 5), rng.integers(1, 13, 60)])
    left, none = rng.integers(1, 8, 64), np.zeros(64, np.int32)
    draft = jax.device_get(drafts.propose(None, text, end, none, left, none, 6))
    expected = [copied(row[:n].tolist(), most, 6) for row, n, most in zip(text, end, left, strict=True)]
    assert [row[:n].tolist() for row, n in zip(draft.tokens, draft.count, strict=True)] == expected
    assert {len(row) for row in expected} == {0, 1, 2, 3, 4, 5} and not draft.forced.any()


def test_what_is_proposed_is_allowed(grammar_of):
    """In all places of random turns, with their budgets and with the least: copies of the turn itself."""
    grammar = grammar_of("paper")
    _, _, made = play(policy_of(len(grammar.token_class)), grammar, 1, 1.0)  # compiled before
    row, at = np.nonzero(np.arange(A) < made.count[:, None])
    state = made.state[row, at]
    least = grammar.need[state].min(1)
    assert (least <= made.remaining[row, at]).all() and (least > 1).sum() > 50
    state, left = np.tile(state, 2), np.concatenate([made.remaining[row, at], least])
    row, at, ops = np.tile(row, 2), np.tile(at, 2), np.full(2 * len(row), ALL_OPS)
    grammar = jax.device_put(grammar)
    draft = drafts.propose(grammar, jnp.asarray(made.tokens[row]), at + 1, state, left, ops, 4)
    assert draft.count.sum() > 200
    for j in range(3):
        allowed = grammar_lib.allowed_tokens(grammar, draft.state[:, j], left - j, ops)
        assert (np.take_along_axis(np.asarray(allowed), draft.tokens[:, j, None], 1)[:, 0] | (draft.count <= j)).all()
        after = grammar_lib.advance(grammar, draft.state[:, j], draft.tokens[:, j])
        assert ((after == draft.state[:, j + 1]) | (draft.count <= j)).all()


def test_forced_runs_are_proposed_whole_and_end_before_the_turn_does(grammar_of):
    grammar = jax.device_put(grammar_of("paper"))
    ops, left = jnp.full(1, ALL_OPS), jnp.full(1, A)
    mark = jnp.zeros((1, 4), jnp.int32)
    draft = drafts.propose(grammar, mark, jnp.ones(1, jnp.int32), jnp.full(1, grammar.start_act), left, ops, 8)
    state, run = grammar.start_act, []
    while True:
        forced, token = grammar_lib.is_forced(grammar, jnp.full(1, state), left - len(run), ops)
        if not forced[0]:
            break
        run.append(int(token[0]))
        state = int(grammar.next_state[state, grammar.token_class[run[-1]]])
    assert 1 < len(run) < 8 and int(draft.count[0]) == len(run)  # "<think>", behind which there is a choice
    assert draft.tokens[0, : len(run)].tolist() == run and draft.forced[0].tolist()[: len(run) + 1] == [True] * len(
        run
    ) + [False]
    assert int(draft.state[0, len(run)]) == state
    # From the only way on to the end: its last token ends the turn, and nothing comes behind it.
    remaining = grammar.need[grammar.start_summary].min()
    draft = drafts.propose(
        grammar, mark, jnp.ones(1, jnp.int32), jnp.full(1, grammar.start_summary), jnp.full(1, int(remaining)), ops, 8
    )
    assert int(draft.count[0]) == 0 and bool(draft.forced[0, 0])


def test_a_copy_is_proposed_where_it_is_allowed(grammar_of):
    """Inside a summary any text may stand, but no mark; the budget's last token is not proposed."""
    grammar = jax.device_put(grammar_of("paper"))
    end_token = int(np.flatnonzero(grammar.class_ends[grammar.token_class])[0])
    text = jnp.array([[300, 301, 302, 303, 304, 305, 300, 301], [300, 301, 302, end_token, 7, 7, 300, 301]])
    text = jnp.pad(text, ((0, 0), (0, 4)))
    state = jnp.full(2, grammar.start_summary)
    ops = jnp.full(2, ALL_OPS)
    draft = drafts.propose(grammar, text, jnp.full(2, 8), state, jnp.full(2, 40), ops, 6)
    allowed = grammar_lib.allowed_tokens(grammar, state, jnp.full(2, 40), ops)
    assert allowed[0, 302:306].all()
    assert draft.tokens[0, :4].tolist() == [302, 303, 304, 305] and int(draft.count[0]) == 5
    assert draft.tokens[1, 0] == 302 and int(draft.count[1]) == 1  # the end of a turn is drawn, never proposed
    short = drafts.propose(grammar, text, jnp.full(2, 8), state, jnp.full(2, 3), ops, 6)
    assert short.count.tolist() == [2, 1]
