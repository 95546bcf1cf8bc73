"""Scripted demonstrations: in the tool format, within the budget, the same each time; the warm start on them."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import build_small, vocabulary_file

from agemem_jax.config import ConfigError
from agemem_jax.data import vocabulary
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.demos import Demonstrator
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.scoring import hash_words
from agemem_jax.rollout.rows import new_rows
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training.state import Optimizer, new_state
from agemem_jax.training.warm import seed_store, warm_step
from agemem_jax.types import Op
from configs import tiny

ROOT = Path(__file__).parent.parent
END = "<|im_end|>"
BATCH = 256
TASKS = 200


def demonstrator(config) -> Demonstrator:
    source = TaskSource(config, Tokenizer.load(config.policy.tokenizer), hash_words)
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
        _, script = demos.batch(step, BATCH)
        for stage, text in enumerate(script.stages):
            tokens, length = text.tokens.reshape(-1, text.tokens.shape[-1]), text.length.reshape(-1)
            assert length.max() <= config.rollout.action_tokens
            said = length > 0
            for row, n in zip(tokens[said][:100], length[said], strict=False):
                assert demos.source.tokenizer.decode(row[:n].tolist()).endswith(END)
            calls = parse(tokens, length, jnp.full(length.shape, grammar.start_act))
            assert not np.asarray(calls.malformed)[said].any()
            seen[stage].update(Op(o).name for o in np.asarray(calls.op)[said].ravel() if o != Op.NONE)
        assert script.seeded.sum(1).max() <= config.store.entries
        assert (script.summary.length <= config.rollout.summary_tokens).all() and (script.summary.length > 1).all()
        summary = parse(script.summary.tokens, script.summary.length, jnp.full((BATCH,), grammar.start_summary))
        assert not summary.malformed.any() and (summary.op[:, 0] == Op.WRITE_SUMMARY).all()
    memory_tools = {"ADD", "UPDATE", "DELETE", "RETRIEVE", "SUMMARY", "FILTER"}
    passing = {"PASS"} if config.tools.min_calls == 0 else set()
    assert set(seen[0]) == set(seen[1]) == memory_tools | passing
    assert {"ANSWER", "RETRIEVE"} <= set(seen[2]) and seen[2]["ANSWER"] > BATCH  # most end with an answer


@pytest.mark.parametrize("field", ["action_tokens", "summary_tokens"])
def test_a_turn_that_does_not_fit_is_refused(tmp_path, field):
    """It would be cut, and so be malformed."""
    config = tiny_config(tmp_path)
    config.rollout[field] = 7
    with pytest.raises(ConfigError, match=rf"rollout.{field} = 7: a demonstration has a turn of \d+ tokens"):
        demonstrator(config).batch(0, 16)


def test_scripts_are_a_function_of_seed_and_place(tmp_path):
    config = tiny_config(tmp_path)
    (task, script), (again_task, again) = (demonstrator(config).batch(3, 16) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, (task, script), (again_task, again))
    _, other = demonstrator(config).batch(4, 16)
    assert (other.stages[0].tokens != script.stages[0].tokens).any()
    config.seed = 1
    _, seeded = demonstrator(config).batch(3, 16)
    assert (seeded.stages[0].tokens != script.stages[0].tokens).any()


def test_demonstrations_are_of_training_tasks_told_anew_each_epoch(tmp_path):
    config = tiny_config(tmp_path)
    config.task.train_size = 12
    demos = demonstrator(config)
    task, script = demos.batch(0, 24)
    assert (task.index < 12).all() and (task.index[:12] == task.index[12:]).all()
    assert (task.facts.tokens[:12] != task.facts.tokens[12:]).any()
    assert (script.stages[0].tokens[:12] != script.stages[0].tokens[12:]).any()


def test_memory_is_not_taught_only_answers_from_facts_in_view(tmp_path):
    """What is stored in stage 1 has nothing to do with what is gold."""
    demos = demonstrator(tiny_config(tmp_path))
    stored, gold, answers = np.zeros(2), np.zeros(2), []
    for index in range(600):
        place = index % TASKS, index // TASKS
        one, _, three, _, _ = demos._script(*place)
        staged = demos.source.staged(*place)
        for line, is_gold in zip(one, staged.is_gold, strict=True):
            gold[int(is_gold)] += 1
            stored[int(is_gold)] += "Add_memory" in line
        answers.append(f"<answer> {staged.answer}<" in three[-1])
    shares = stored / gold
    assert abs(shares[0] - shares[1]) < 0.06 and 0.3 < shares.mean() < 0.6
    assert 0.3 < np.mean(answers) < 0.95


def test_the_shipped_vocabulary_is_the_one_that_the_config_makes():
    shipped = ROOT / tiny.get_config().policy.tokenizer
    assert shipped.read_bytes() == Path(vocabulary_file()).read_bytes()


def test_the_seeded_store_replaces_what_stage_one_stored():
    run = build_small(policy__num_layers=1, rollout__action_tokens=24, rollout__summary_tokens=12)
    spec = run.spec.rollout
    task, script = Demonstrator(run.source, run.config, END).batch(0, spec.batch)
    rows = jax.jit(lambda task, seeded: seed_store(new_rows(spec), task, run.world, spec, seeded))(task, script.seeded)
    store = rows.store
    for b in range(spec.batch):
        told = [task.facts.tokens[b, i, : task.facts.length[b, i]].tolist() for i in np.flatnonzero(script.seeded[b])]
        held = [store.tokens[b, i, : store.length[b, i]].tolist() for i in np.flatnonzero(store.valid[b])]
        assert held == told


def test_the_warm_start_lowers_the_loss_of_well_formed_demonstrations():
    run = build_small(
        policy__num_layers=1, rollout__action_tokens=24, rollout__summary_tokens=12, store__entries=4
    )  # fmt: skip
    optimizer = Optimizer(optax.scale_by_adam(), lambda step: 1e-2)
    # A forbidden token in a demonstration would make the loss astronomical.
    step = jax.jit(warm_step(run.spec.rollout, run.spec.learn, run.model, optimizer, 64), donate_argnums=0)
    demos = Demonstrator(run.source, run.config, END)
    state, losses, scores = new_state(run.start(), optimizer), [], []
    for i in range(12):
        state, metrics = step(state, *demos.batch(i, run.spec.rollout.batch), run.world)
        assert float(metrics["malformed"]) == 0
        losses.append(float(metrics["loss"]))
        scores.append(float(metrics["demo_score"]))
    assert losses[0] < 20 and np.mean(losses[-3:]) < 0.7 * losses[0]
    assert 0.2 < np.mean(scores) <= 1 and int(state.step) == 12
