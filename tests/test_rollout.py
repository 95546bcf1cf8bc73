"""Rollouts of a random policy: what was recorded is what the policy saw and did, with edits and without."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from rendered import contexts
from small import EDITS, chained, play, played, settings
from test_export import save_run
from test_exported_trajectory import log_probs

from agemem_jax.models import kv_cache, qwen
from agemem_jax.rl.batch import learner_batch
from agemem_jax.rl.losses import masked_log_prob
from agemem_jax.rollout.decode import Policy
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import allowed_ops, policy_writer, run_stage
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training import learn
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.types import NO_ID, NUM_OPS, PAD_ID, Mode, Op, Status, StopReason
from experiments.export import export

BATCHES = {"all tools": (ALL_TOOLS, 0), "edits": (EDITS, 1)}
batches = pytest.mark.parametrize("name", BATCHES)


def slots_of(outcomes, row: int):
    """The generation slots of a row in order: (stage, trace, slot)."""
    for stage, outcome in enumerate(outcomes, 1):
        trace = outcome["trace"]
        for slot in np.flatnonzero(trace.ran[:, row]):
            yield stage, trace, slot


def text(padded, *index) -> np.ndarray:
    """The real tokens of one entry of a padded Text."""
    return padded.tokens[index][: padded.length[index]]


@batches
def test_batches_hold_what_the_tests_need(name):
    """Edits, rows of several segments, turns that overflow, summaries: otherwise the tests below would say little."""
    _, after, outcomes = played(*BATCHES[name])
    rows = after[-1]
    assert rows.segments.count.max() > 2 and rows.segments.count.min() >= 1
    modes = np.concatenate([o["trace"].mode[o["trace"].ran] for o in outcomes])
    assert (modes == Mode.SUMMARIZE).any()
    if name == "edits":
        edits = rows.stats.calls_ok[:, [Op.SUMMARY, Op.FILTER]]
        assert (edits.sum(0) > 3).all() and (edits.sum(1) > 0).sum() >= 6
        # All edits that are not kept for overflow.
        assert rows.segments.count.max() > chained().spec.rollout.edit_limit(3)


@batches
def test_learner_recomputes_the_recorded_log_probabilities(name):
    run = chained()
    _, after, _ = played(*BATCHES[name])
    segments = after[-1].segments
    batch = learner_batch(segments, jnp.zeros((8, 3)), jnp.ones(segments.tokens.shape), 1)
    logp, entropy = jax.jit(
        lambda params, batch: learn.log_probs(
            params, run.model, run.world.grammar, run.world.pieces.prefix, jax.tree.map(lambda x: x[None], batch),
            run.spec.learn.temperature, 64,
        )  # fmt: skip
    )(run.frozen, batch)
    trainable = np.asarray(batch.trainable)
    assert trainable.sum() > 200
    np.testing.assert_allclose(logp[0][trainable], batch.old_logp[trainable], atol=1e-4)
    assert (np.asarray(logp)[0][~trainable] == 0).all()
    assert (np.asarray(entropy)[0][trainable] > 0).all()


@batches
def test_every_sampled_token_is_trainable_exactly_once(name):
    _, after, outcomes = played(*BATCHES[name])
    rows = after[-1]
    seg = rows.segments
    np.testing.assert_array_equal(seg.trainable.sum((1, 2)), rows.stats.sampled_tokens)
    inside = np.arange(seg.tokens.shape[-1]) < seg.length[..., None]
    assert not (seg.trainable & ~inside).any()
    used = np.arange(seg.length.shape[1]) < seg.count[:, None]
    np.testing.assert_array_equal(seg.length > 0, used)
    np.testing.assert_array_equal(seg.trainable.any(-1), used)
    for stage in (1, 2, 3):
        before = after[stage - 2].stats.sampled_tokens if stage > 1 else 0
        of_stage = (seg.trainable & (seg.stage == stage)).sum((1, 2))
        np.testing.assert_array_equal(of_stage, after[stage - 1].stats.sampled_tokens - before)
    said = sum(o["trace"].said.length.sum(0) for o in outcomes)
    np.testing.assert_array_equal(said, rows.stats.generated_tokens)
    ran = sum(o["trace"].ran.sum(0) for o in outcomes)
    np.testing.assert_array_equal(ran, rows.stats.turns)


@batches
def test_what_turns_read_and_wrote_is_counted_by_what_they_asked_for(name):
    """Once more, slot by slot: a turn was read as far as the place where its first token was written."""
    run = chained()
    grammar, spec = jax.device_get(run.world.grammar), run.spec.rollout
    _, after, outcomes = played(*BATCHES[name])
    seg, stats = after[-1].segments, after[-1].stats
    begins = (seg.state == grammar.start_act) & (seg.remaining == spec.action_tokens)
    begins |= (seg.state == grammar.start_summary) & (seg.remaining == spec.summary_tokens)
    for row in range(spec.batch):
        read = {}
        for s, place in zip(*np.nonzero(begins[row]), strict=True):
            at = (row, s, place)
            key = int(seg.stage[at]), int(seg.turn[at]), bool(seg.state[at] == grammar.start_summary)
            read[key] = read.get(key, 0) + int(place) + spec.prefix_tokens
        assert sum(read.values()) == stats.prompt_tokens[row]
        took, entries, tokens = np.zeros((2, NUM_OPS)), [0], [0]
        for stage, trace, slot in slots_of(outcomes, row):
            summary = trace.mode[slot, row] == Mode.SUMMARIZE
            ops = [Op.WRITE_SUMMARY] if summary else [op for op in trace.op[slot, row] if op != Op.NONE]
            seen = read.pop((stage, int(trace.turn[slot, row]), bool(summary)), 0)  # summaries of a turn: all at once
            for op in ops:
                took[:, op] += np.array([seen, trace.said.length[slot, row]]) / len(ops)
            held = trace.store_id[slot, row] != NO_ID
            entries.append(held.sum())
            tokens.append(trace.store_tokens.length[slot, row][held].sum())
        assert not read and (max(entries), max(tokens)) == (stats.peak_entries[row], stats.peak_store_tokens[row])
        np.testing.assert_allclose(stats.op_prompt_tokens[row], took[0], rtol=1e-6)
        np.testing.assert_allclose(stats.op_generated_tokens[row], took[1], rtol=1e-6)
        assert stats.op_generated_tokens[row].sum() == pytest.approx(stats.generated_tokens[row])  # none is malformed
    assert stats.peak_entries.max() > 0 or name == "edits"


@batches
def test_segments_hold_the_contexts_that_the_policy_saw(name):
    """Before each turn the context is what the slot before left, then what was observed. Some segment holds exactly
    that, followed by the turn, and in it, and only there, the turn's sampled tokens are trainable."""
    run = chained()
    grammar, spec = jax.device_get(run.world.grammar), run.spec.rollout
    _, after, outcomes = played(*BATCHES[name])
    seg = after[-1].segments
    checked, overflowed = 0, 0
    masks = partial(grammar_lib.allowed_tokens, run.world.grammar)
    for row in range(spec.batch):
        context = np.zeros((0,), np.int32)
        found = np.zeros(seg.tokens.shape[1:], bool)
        for stage, trace, slot in slots_of(outcomes, row):
            if stage == 2 and slot == 0:
                context = context[:0]
            seen, said = text(trace.seen, slot, row), text(trace.said, slot, row)
            before = np.concatenate([context, seen])
            whole = np.concatenate([before, said])
            context = trace.context[slot, row][: trace.context_length[slot, row]]
            begin = [np.array_equal(tokens[: len(whole)], whole) for tokens in seg.tokens[row]]
            summary = trace.mode[slot, row] == Mode.SUMMARIZE
            budget = spec.summary_tokens if summary else spec.action_tokens
            kept_for_summary = 0 if summary else spec.summary_tokens + 5  # its prompt and marks are a token each
            if len(before) + budget + kept_for_summary >= spec.capacity:
                overflowed += 1  # older messages went first: the end is still what was seen and said
                tail = np.concatenate([seen, said])
                begin = [tail.tobytes() in tokens.astype(np.int32).tobytes() for tokens in seg.tokens[row]]
                assert any(begin)
                continue
            ops = int(allowed_ops(spec, stage, jnp.int32(BATCHES[name][0])))
            state, states = grammar.start_summary if summary else grammar.start_act, []
            for token in said:
                states.append(state)
                state = grammar.next_state[state, grammar.token_class[token]]
            assert state == grammar.end
            remaining = budget - np.arange(len(said))
            allowed = np.asarray(masks(jnp.array(states), jnp.array(remaining), jnp.full(len(said), ops)))
            assert allowed[np.arange(len(said)), said].all()
            chosen = allowed.sum(-1) > 1
            span = slice(len(before), len(whole))
            owners = [s for s in np.flatnonzero(begin) if np.array_equal(seg.trainable[row, s, span], chosen)]
            assert len(owners) == 1, f"row {row}, stage {stage}, slot {slot}"
            s = owners[0]
            found[s, span] |= chosen
            np.testing.assert_array_equal(seg.state[row, s, span], states)
            np.testing.assert_array_equal(seg.remaining[row, s, span], remaining)
            assert (seg.ops[row, s, span] == ops).all()
            assert (seg.stage[row, s, span] == stage).all()
            assert (seg.turn[row, s, span] == trace.turn[slot, row]).all()
            checked += 1
        assert not (found & ~seg.trainable[row]).any()
    assert checked > 40 and checked > 4 * overflowed


@batches
def test_recorded_log_probabilities_equal_a_plain_forward(name):
    """Each segment after the prompt as one ordinary causal sequence: no cache, no shared prefix, no chunks."""
    run = chained()
    _, after, _ = played(*BATCHES[name])
    seg = after[-1].segments
    prompt = np.asarray(run.world.pieces.prefix.tokens[0])
    b, s, c = seg.tokens.shape
    tokens = np.concatenate([np.broadcast_to(prompt, (b * s, len(prompt))), seg.tokens.reshape(b * s, c)], 1)

    @jax.jit
    def plain(params, tokens):
        nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros((1,), jnp.int32)
        _, hidden = qwen.rows_forward(params, run.model, *nothing, tokens[None])
        return qwen.logits(params, run.model, hidden[0])

    logits = np.asarray(plain(run.frozen, tokens))[:, len(prompt) - 1 : -1].reshape(b, s, c, -1)
    where = np.nonzero(seg.trainable)
    allowed = grammar_lib.allowed_tokens(
        run.world.grammar, *(jnp.asarray(x[where], jnp.int32) for x in (seg.state, seg.remaining, seg.ops))
    )
    logp, _ = masked_log_prob(logits[where], allowed, jnp.asarray(seg.tokens[where]), 0.8)
    np.testing.assert_allclose(logp, seg.logp[where], atol=1e-4)
    # And it matters what was seen: with the first token of each context exchanged it is another distribution.
    changed = tokens.copy()
    changed[:, len(prompt) + 1] = 7 + changed[:, len(prompt) + 1] % 500
    other = np.asarray(plain(run.frozen, changed))[:, len(prompt) - 1 : -1].reshape(b, s, c, -1)
    moved, _ = masked_log_prob(other[where], allowed, jnp.asarray(seg.tokens[where]), 0.8)
    assert np.median(np.abs(moved - seg.logp[where])) > 1e-2


def test_the_exported_model_gives_the_recorded_log_probabilities(tmp_path):
    run = chained()
    save_run(tmp_path / "run", run.config, jax.tree.map(jnp.array, run.frozen))
    export(tmp_path / "run" / "seed_0", tmp_path / "out", None, 1 << 30)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    segments = played()[1][-1].segments
    for (row, s), ids in contexts(run, segments):
        theirs = log_probs(run, model, segments, row, s, ids)
        np.testing.assert_allclose(theirs, segments.logp[row, s][segments.trainable[row, s]], atol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generation_after_edits_equals_generation_from_an_empty_cache(temperature):
    run = chained()
    spec, world = run.spec.rollout, run.world
    task = jax.device_put(run.source.batch(1))

    @jax.jit
    def uncached(params, task, temperature):
        """Stage 1 with every context prefilled as a whole, before every slot."""
        prefix, _ = kv_cache.encode_prefix(params, run.model, world.pieces.prefix.tokens, world.pieces.prefix.length)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.config.seed), 1), 1)
        write = policy_writer(Policy(run.model, params, prefix), world, spec, temperature, key)

        def write_anew(rows, *args):
            return write(rows.replace(cached=jnp.zeros_like(rows.cached)), *args)

        rows, _ = run_stage(new_rows(spec, run.model), task, world, spec, 1, write_anew, jnp.int32(EDITS))
        return rows

    _, after, _ = play(run, task, settings(run, 1, temperature, EDITS), stages=(1,))
    rows = jax.device_get(uncached(run.frozen, task, jnp.float32(temperature)))
    np.testing.assert_array_equal(after[0].segments.tokens, rows.segments.tokens)
    np.testing.assert_array_equal(after[0].segments.length, rows.segments.length)
    np.testing.assert_array_equal(after[0].segments.trainable, rows.segments.trainable)
    np.testing.assert_allclose(after[0].segments.logp, rows.segments.logp, atol=1e-4)
    np.testing.assert_array_equal(after[0].stats.calls_ok, rows.stats.calls_ok)
    if temperature:
        assert after[0].stats.calls_ok[:, [Op.FILTER, Op.SUMMARY]].sum() > 4


def assert_rows_equal(a, b, of_a, of_b) -> None:
    """The same trajectories in rows `of_a` of one batch and `of_b` of another."""
    pick = lambda rows, index: (  # noqa: E731
        rows.segments.tokens[index], rows.segments.length[index], rows.segments.trainable[index],
        rows.store.tokens[index], rows.store.valid[index], rows.action.tokens[index], rows.stats.calls[index],
        rows.stats.generated_tokens[index], rows.context.tokens[index], rows.stats.progress[index],
    )  # fmt: skip
    for x, y in zip(pick(a, of_a), pick(b, of_b), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(a.segments.logp[of_a], b.segments.logp[of_b], atol=1e-4)


def test_rows_do_not_depend_on_the_tasks_of_other_rows():
    """The noise is a function of the row. Greedy, rows move with their tasks."""
    run = chained()
    task, after, _ = played(*BATCHES["all tools"])
    other = run.source.batch(5)
    mine = np.array([0, 3, 6])
    mixed = jax.tree.map(lambda a, b: np.where(np.isin(np.arange(8), mine).reshape(-1, *[1] * (a.ndim - 1)), a, b),
                         task, other)  # fmt: skip
    _, again, _ = play(run, mixed, settings(run))
    assert_rows_equal(after[-1], again[-1], mine, mine)
    assert (after[-1].segments.tokens != again[-1].segments.tokens).any()

    eight = run.source.rows([(i, 0) for i in range(8)])
    order = np.array([5, 2, 7, 0, 1, 6, 4, 3])
    _, straight, _ = play(run, eight, settings(run, temperature=0.0))
    moved_task = jax.tree.map(lambda x: x[order], eight)
    _, moved, _ = play(run, moved_task, settings(run, temperature=0.0))
    assert_rows_equal(straight[-1], moved[-1], order, np.arange(8))


def test_rows_that_end_early_leave_the_others_alone():
    """A row is the same whether its neighbours answer at once or go on: those with fewer messages end stages first."""
    run = chained()
    task, after, _ = played(*BATCHES["all tools"])
    short = np.array([1, 2, 4])
    fewer = task.replace(num_facts=task.num_facts.copy(), num_distractors=task.num_distractors.copy())
    fewer.num_facts[short] = [1, 0, 2]
    fewer.num_distractors[short] = [0, 1, 0]
    _, again, outcomes = play(run, fewer, settings(run))
    rest = np.setdiff1d(np.arange(8), short)
    assert_rows_equal(after[-1], again[-1], rest, rest)
    ran = outcomes[0]["trace"].ran & (outcomes[0]["trace"].mode == Mode.ACT)
    np.testing.assert_array_equal(ran.sum(0)[short], [1, 0, 2])
    np.testing.assert_array_equal(ran.sum(0)[rest], task.num_facts[rest])
    assert again[-1].stats.turns[2] >= 2  # no first stage, but the others


def test_the_noise_is_a_function_of_seed_and_step():
    run = chained()
    task, after, _ = played(*BATCHES["all tools"])
    _, again, _ = play(run, task, settings(run))
    assert_rows_equal(after[-1], again[-1], np.arange(8), np.arange(8))
    _, other, _ = play(run, task, settings(run, step=1))
    assert (after[-1].segments.tokens != other[-1].segments.tokens).any(axis=(1, 2)).all()
    first = after[-1].segments.tokens[:, 0]
    assert (first[0] != first[1]).any()  # rows of a group differ


def test_no_tools_means_plain_replies():
    """The baseline without memory: no call is possible, every reply is an answer, the store stays empty."""
    run = chained()
    task, _, _ = played(*BATCHES["all tools"])
    _, after, outcomes = play(run, task, settings(run, tools=0))
    rows = after[-1]
    assert rows.stats.calls[:, : Op.FILTER + 1].sum() == 0 and not rows.store.valid.any()
    assert rows.stats.malformed.sum() == 0
    for outcome in outcomes:
        ops = outcome["trace"].op[outcome["trace"].ran]
        assert np.isin(ops, [Op.NONE, Op.PASS, Op.ACT]).all()


def test_contexts_stay_within_their_bounds():
    run = chained()
    for tools, step in BATCHES.values():
        _, after, outcomes = played(tools, step)
        stats = after[-1].stats
        acted = stats.actions > 0
        np.testing.assert_array_equal(stats.stop[:, 2], np.where(acted, StopReason.FINISHED, StopReason.TURNS))
        assert (stats.stop != StopReason.NONE).all() and (stats.over_turns == ~acted).all()
        for rows, outcome in zip(after, outcomes, strict=True):
            assert (rows.context.length <= run.spec.rollout.capacity).all()
            assert (rows.cached <= rows.context.length).all()
            inside = np.arange(rows.context.tokens.shape[1]) < rows.context.length[:, None]
            assert (rows.context.tokens[~inside] == PAD_ID).all()
            trace = outcome["trace"]
            assert np.isin(trace.stop, (StopReason.NONE, StopReason.FINISHED, StopReason.TURNS)).all()
            limits = (trace.status == Status.EDIT_LIMIT) & trace.ran[..., None]
            assert ((trace.op == Op.SUMMARY) | (trace.op == Op.FILTER))[limits & (trace.op != Op.NONE)].all()
