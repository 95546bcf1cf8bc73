"""What calls were worth: copies of a trajectory draw its noise, and one call left out changes what comes after it."""

import dataclasses

import jax
import numpy as np
import pytest
from small import chained, play, played, settings

from agemem_jax.errors import InputError
from agemem_jax.rollout.turn import NO_CALL, call_number
from agemem_jax.training.attribute import Call, attribute, by_tool
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.evaluate import Pass, evaluate
from agemem_jax.training.state import new_state
from agemem_jax.types import TOOL_NAMES, Op, Status
from experiments import saved

SAMPLED = Pass("agemem", "sampled")


def copies(source: np.ndarray, suppress: np.ndarray):
    """The sampled batch of `played` again: row i is a copy of row `source[i]` without the call `suppress[i]`."""
    run = chained()
    task, _, _ = played()
    asked = settings(run).replace(noise_row=source, suppress=suppress)
    _, after, outcomes = play(run, jax.tree.map(lambda x: x[source], task), asked)
    return after[-1], outcomes


def test_suppressing_nothing_gives_the_identical_trajectory():
    _, after, outcomes = played()
    source = np.array([5, 2, 2, 7, 0, 5, 5, 1], np.int32)
    rows, again = copies(source, np.full(8, NO_CALL, np.int32))
    for name in ("tokens", "length", "trainable", "turn", "stage"):
        np.testing.assert_array_equal(getattr(rows.segments, name), getattr(after[-1].segments, name)[source])
    np.testing.assert_array_equal(rows.store.tokens, after[-1].store.tokens[source])
    for name, values in outcomes[-1]["rows"].items():
        np.testing.assert_array_equal(again[-1]["rows"][name], values[source], err_msg=name)
    first = after[-1].segments.tokens[:, 0]
    assert (first[5] != first[7]).any()  # sampled: other noise, another trajectory


def test_one_call_left_out_changes_nothing_before_it():
    spec = chained().spec.rollout
    _, after, outcomes = played()
    trace = outcomes[1]["trace"]
    made = np.argwhere((trace.op >= 0) & (trace.op <= Op.FILTER) & (trace.status == Status.OK) & trace.ran[..., None])
    slot, row, call = made[0]  # of stage 2
    turn = trace.turn[slot, row]
    source = np.full(8, row, np.int32)
    suppress = np.where(np.arange(8) % 2, NO_CALL, call_number(spec, 2, turn, call)).astype(np.int32)
    rows, again = copies(source, suppress)
    for stage in (0, 1):
        of_copy, of_row = (o[stage]["trace"].said.tokens for o in (again, outcomes))
        upto = slot + 1 if stage else len(of_row)
        np.testing.assert_array_equal(of_copy[:upto], of_row[:upto, source])
    status = again[1]["trace"].status[slot, :, call]
    np.testing.assert_array_equal(status, [Status.NOT_RUN, Status.OK] * 4)
    np.testing.assert_array_equal(rows.segments.tokens[1::2], after[-1].segments.tokens[source[1::2]])
    assert (rows.segments.tokens[0] != rows.segments.tokens[1]).any()
    np.testing.assert_array_equal(rows.segments.tokens[0], rows.segments.tokens[2])


@pytest.fixture(scope="module")
def attributed() -> tuple[list[Call], int, dict]:
    """Every call of eleven test tasks, two batches, and the numbers of the same evaluation."""
    run = chained()
    state, numbers, *_ = evaluate(run, new_state(run.start(), run.optimizer), run.frozen, SAMPLED, 11)
    before = {stage: program._cache_size() for stage, program in run.programs.items()}
    calls, unlike = attribute(run, state, SAMPLED, 11, "reward")
    assert {stage: program._cache_size() for stage, program in run.programs.items()} == before
    return calls, unlike, numbers


def test_every_memory_call_of_an_evaluation_is_left_out_once(attributed):
    calls, unlike, numbers = attributed
    assert unlike == 0
    names = {tool: f"calls_{Op(i).name.lower()}" for i, tool in enumerate(TOOL_NAMES)}
    for tool, name in names.items():
        assert sum(call.op == tool for call in calls) == numbers[name].sum(), tool
    assert len({(call.task, call.stage, call.turn, call.call) for call in calls}) == len(calls) > 30
    assert len({call.task for call in calls}) > 8
    rewards = set(np.float32(numbers["reward"]).tolist())
    assert all(np.float32(call.score) in rewards for call in calls)
    assert any(call.effect for call in calls)


def test_the_table_by_tool_by_hand():
    def call(op: str, score: float, without: float) -> Call:
        return Call(0, 1, 0, 0, op, {}, "OK", score, without)

    table = by_tool([call(TOOL_NAMES[0], 1.0, 0.0), call(TOOL_NAMES[0], 0.5, 1.0), call(TOOL_NAMES[3], 0.5, 0.5)])
    assert table == {
        "Add_memory": {"calls": 2, "effect": 0.25, "helped": 0.5, "hurt": 0.5, "nothing": 0.0},
        "Retrieve_memory": {"calls": 1, "effect": 0.0, "helped": 0.0, "hurt": 0.0, "nothing": 1.0},
        "all": {"calls": 3, "effect": pytest.approx(0.5 / 3), "helped": pytest.approx(1 / 3),
                "hurt": pytest.approx(1 / 3), "nothing": pytest.approx(1 / 3)},
    }  # fmt: skip


def test_a_run_is_reopened_with_a_trace_of_every_row(tmp_path, monkeypatch):
    run, config = chained(), chained().config.copy_and_resolve_references()
    config.train.traces, config.mesh.data = 2, 64
    with Checkpointer(tmp_path / "checkpoints", config, 2, run.identity) as saver:
        saver.save(3, new_state(run.start(), run.optimizer), {}, wait=True)
    built = []
    monkeypatch.setattr(saved, "build", lambda config: built.append(config) or run)
    assert saved.reopened(saved.newest(tmp_path)) is run
    assert built[0].train.traces == 8 and built[0].mesh.data == 1  # there are no 64 devices
    other = {**run.identity, "prompt": "another"}
    monkeypatch.setattr(saved, "build", lambda config: dataclasses.replace(run, identity=other))
    with pytest.raises(InputError, match="system prompt"):
        saved.reopened(saved.newest(tmp_path))
