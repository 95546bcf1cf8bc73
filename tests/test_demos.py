"""Scripted demonstrations: in the tool format, within the budget, the same each time; the warm start on them."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import build_small, vocabulary_file

from agemem_jax.benchmarks import task_source, vocabulary
from agemem_jax.benchmarks.hotpotqa.demos import Demonstrator
from agemem_jax.benchmarks.hotpotqa.oracles import is_closing, is_revision
from agemem_jax.config import ConfigError
from agemem_jax.data.scripts import Shadow, names
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.rollout.rows import new_rows
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training.state import Optimizer, new_state
from agemem_jax.training.warm import embeddings_for, recorded, seed_store, watch_step
from agemem_jax.types import TOOL_NAMES, Op
from configs import tiny

ROOT = Path(__file__).parent.parent
END = "<|im_end|>"
BATCH = 256
TASKS = 200


def demonstrator(config) -> Demonstrator:
    source = task_source(config, Tokenizer.load(config.policy.tokenizer))
    return Demonstrator(source, config, END)


def tiny_config(tmp_path, **tools):
    """The shipped config, with other tool settings and the vocabulary for them."""
    c = tiny.get_config()
    c.task.train_size, c.task.test_size = TASKS, 4
    c.tools.update(tools)
    c.policy.tokenizer = vocabulary_file()
    if tools:
        c.policy.tokenizer = str(tmp_path / vocabulary.FILE_NAME)
        vocabulary.build(c.policy.tokenizer, c.tools)
    return c


@pytest.mark.parametrize(
    "tools",
    [{}, {"min_calls": 1}, {"format": "hermes"}, {"format": "hermes", "max_calls": 1, "min_calls": 1}],
    ids=["tiny", "must", "hermes", "hermes_one"],
)
def test_every_turn_parses_and_fits_its_budget(tmp_path, tools):
    config = tiny_config(tmp_path, **tools)
    demos = demonstrator(config)
    grammar = grammar_lib.build_grammar(config.tools, demos.source.tokenizer)
    parse = jax.jit(lambda tokens, count, start: grammar_lib.parse(grammar, tokens, count, start, 4))
    seen = [Counter(), Counter(), Counter()]
    for step in range(2):
        _, told = demos.batch(step, BATCH)
        for stage, text in enumerate(told.script.stages):
            tokens, length = text.tokens.reshape(-1, text.tokens.shape[-1]), text.length.reshape(-1)
            assert length.max() <= config.rollout.action_tokens
            said = length > 0
            for row, n in zip(tokens[said][:100], length[said], strict=False):
                assert demos.source.tokenizer.decode(row[:n].tolist()).endswith(END)
            calls = parse(tokens, length, jnp.full(length.shape, grammar.start_act))
            assert not np.asarray(calls.malformed)[said].any()
            seen[stage].update(Op(o).name for o in np.asarray(calls.op)[said].ravel() if o != Op.NONE)
        assert (told.entries.length > 0).sum(1).max() <= config.store.entries
        summaries = told.script.summaries
        tokens, length = summaries.tokens.reshape(-1, summaries.tokens.shape[-1]), summaries.length.reshape(-1)
        assert length.max() <= config.rollout.summary_tokens and (length > 1).any()
        summary = parse(tokens, length, jnp.full(length.shape, grammar.start_summary))
        assert not summary.malformed.any() and (summary.op[:, 0] == Op.WRITE_SUMMARY).all()
    memory_tools = {"ADD", "UPDATE", "DELETE", "RETRIEVE", "SUMMARY", "FILTER"}
    passing = {"PASS"} if config.tools.min_calls == 0 else set()
    assert set(seen[0]) == set(seen[1]) == memory_tools | passing
    assert {"ACT", "RETRIEVE"} <= set(seen[2]) and seen[2]["ACT"] > BATCH  # most end with one


def test_a_turn_that_does_not_fit_is_refused(tmp_path):
    """It would be cut, and so be malformed."""
    config = tiny_config(tmp_path)
    config.rollout.action_tokens = 7
    with pytest.raises(ConfigError, match=r"rollout.action_tokens = 7: a script has a turn of \d+ tokens"):
        demonstrator(config).batch(0, 16)


def test_scripts_are_a_function_of_seed_and_place(tmp_path):
    config = tiny_config(tmp_path)
    (task, told), (again_task, again) = (demonstrator(config).batch(3, 16) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, (task, told), (again_task, again))
    _, other = demonstrator(config).batch(4, 16)
    assert (other.script.stages[0].tokens != told.script.stages[0].tokens).any()
    config.seed = 1
    _, seeded = demonstrator(config).batch(3, 16)
    assert (seeded.script.stages[0].tokens != told.script.stages[0].tokens).any()


def test_demonstrations_are_of_training_tasks_with_a_script_of_its_own_each_epoch(tmp_path):
    config = tiny_config(tmp_path)
    config.task.train_size = 12
    demos = demonstrator(config)
    task, told = demos.batch(0, 24)
    assert (task.index < 12).all() and (task.index[:12] == task.index[12:]).all()
    assert (told.script.stages[0].tokens[:12] != told.script.stages[0].tokens[12:]).any()


def test_which_tool_to_use_is_not_taught(tmp_path):
    """Each tool is called as often after any kind of message; what it is called with suits the message at times."""
    demos = demonstrator(tiny_config(tmp_path))
    calls = {"revision": Counter(), "closing": Counter(), "talk": Counter(), "fact": Counter()}
    ids, answers = Counter(), []
    for index in range(1200):
        place = index % TASKS, index // TASKS
        lines, _ = demos.tell(*place)
        staged = demos.source.staged(*place)
        shadow = Shadow(demos.config)
        for line, text, who in zip(lines.stages[0], staged.facts, staged.fact_speakers, strict=True):
            kind = "revision" if is_revision(text) else "closing" if is_closing(text) else (
                "fact" if len(names(text)) > 2 else "talk"
            )  # fmt: skip
            calls[kind].update([next((name for name in TOOL_NAMES if name in line), "pass")])
            if "Update_memory" in line and (related := shadow.related(who, text)):
                ids.update([f'"memory_id": "{related}"' in line])
            if "Add_memory" in line:
                shadow.add(who, line.split('"content": " ')[1].split('"')[0])
        answers.append(f"<answer> {staged.answer}<" in lines.stages[2][-1])
    for name in ("Add_memory", "Update_memory", "Delete_memory", "pass"):
        shares = [counts[name] / counts.total() for counts in calls.values()]
        assert max(shares) - min(shares) < 0.08 and min(shares) > 0.05, (name, shares)
    assert 0.3 < ids[True] / ids.total() < 0.95  # the right id, and others
    assert 0.3 < np.mean(answers) < 0.95


def test_the_shipped_vocabulary_is_the_one_that_the_config_makes():
    shipped = ROOT / tiny.get_config().policy.tokenizer
    assert shipped.read_bytes() == Path(vocabulary_file()).read_bytes()


def test_the_seeded_store_replaces_what_stage_one_stored():
    run = build_small(policy__num_layers=1, rollout__action_tokens=24, rollout__summary_tokens=12)
    spec = run.spec.rollout
    _, told = Demonstrator(run.source, run.config, END).batch(0, spec.batch)
    store = jax.jit(lambda told: seed_store(new_rows(spec), told, run.world, spec))(told).store
    for b in range(spec.batch):
        given = [told.entries.tokens[b, i, : told.entries.length[b, i]].tolist() for i in range(spec.entries)]
        held = [store.tokens[b, i, : store.length[b, i]].tolist() for i in np.flatnonzero(store.valid[b])]
        assert held == [tokens for tokens in given if tokens]


def test_a_slip_is_played_and_not_imitated():
    run = build_small(policy__num_layers=1, rollout__action_tokens=24, rollout__summary_tokens=12)
    play = jax.jit(recorded(run.spec.rollout))
    task, told = Demonstrator(run.source, run.config, END).batch(0, run.spec.rollout.batch)
    slips = np.zeros_like(told.script.slips)
    slips[::2, 0] = True
    as_told, _ = play(task, told, run.world)
    slipped, _ = play(task, told.replace(script=told.script.replace(slips=slips)), run.world)
    assert not told.script.slips.any()
    np.testing.assert_array_equal(slipped.tokens, as_told.tokens)
    first = (np.asarray(as_told.stage) == 3) & (np.asarray(as_told.turn) == 0)
    lost = np.asarray(as_told.trainable & ~slipped.trainable)
    assert lost[::2].any((1, 2)).all() and not lost[1::2].any()
    np.testing.assert_array_equal(lost, np.asarray(as_told.trainable) & first & slips[:, :1, None])


def test_the_warm_start_lowers_the_loss_of_well_formed_demonstrations():
    run = build_small(
        policy__num_layers=1, rollout__action_tokens=24, rollout__summary_tokens=12, store__entries=4
    )  # fmt: skip
    optimizer = Optimizer(optax.scale_by_adam(), lambda step: 1e-2)
    # A forbidden token in a demonstration would make the loss astronomical.
    play = jax.jit(recorded(run.spec.rollout))
    step = jax.jit(watch_step(run.spec.learn, run.model, optimizer, 64), donate_argnums=0)
    demos = Demonstrator(run.source, run.config, END)
    state, losses, scores = new_state(run.start(), optimizer), [], []
    for i in range(12):
        segments, seen = play(*demos.batch(i, run.spec.rollout.batch), run.world)
        state, metrics = step(state, run.frozen, segments, run.world)
        assert float(seen["malformed"]) == 0 and float(metrics["segments"]) >= 1
        losses.append(float(metrics["loss"]))
        scores.append(float(seen["demo_score"]))
    assert losses[0] < 20 and np.mean(losses[-3:]) < 0.7 * losses[0]
    assert 0.2 < np.mean(scores) <= 1 and int(state.step) == 12


def test_embeddings_go_over_to_another_vocabulary():
    table = jax.random.normal(jax.random.key(0), (4, 64)) * 0.02
    theirs, ours = [None, b" a", b" b", b" b"], [b" new", b" b", None, b" a", b" other"]
    moved = np.asarray(embeddings_for(table, theirs, ours, seed=1))
    assert moved.shape == (5, 64) and moved.dtype == np.float32
    np.testing.assert_array_equal(moved[[1, 3]], table[jnp.array([2, 1])])  # of two alike the first
    fresh = moved[[0, 2, 4]]
    assert 0.015 < fresh.std() < 0.025 and len(np.unique(fresh, axis=0)) == 3
    np.testing.assert_array_equal(moved, embeddings_for(table, theirs, ours, seed=1))
