"""The decode benchmark: steps of turns known by hand, and all of it on a small run."""

import json

import numpy as np
import pytest
from small import small_config

from agemem_jax.errors import InputError
from agemem_jax.rollout.decode import Generation
from agemem_jax.training import loop
from agemem_jax.training.setup import build
from experiments import benchmark_decode


def test_steps_of_turns_known_by_hand():
    """Without a grammar nothing is forced: a turn that repeats its context is a copy once a token agrees."""
    context, turn = [9, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 8, 8]
    text = np.zeros((2, 24), np.int32)
    text[0, : len(context)] = context
    text[0, len(context) : len(context) + len(turn)] = turn
    text[1, :8], text[1, 8:16] = range(20, 28), range(30, 38)
    z = np.zeros((2, 8), np.int32)
    made = Generation(text[:, 8:16], np.full(2, 8), z * 0.0, z, np.tile(8 - np.arange(8), (2, 1)), z > 0)
    begin, ops = np.full(2, 8), np.zeros(2, np.int32)
    took, proposed, held = map(np.asarray, benchmark_decode.replay(None, text, begin, made, ops, 4, True))
    # 2, 3, 4 held and 5 was drawn; of 6 and 7 (no last token is proposed) the first held, and 8 was drawn; 8 alone.
    assert (took.tolist(), held.tolist(), proposed.tolist()) == ([3, 7], [4, 0], [5, 0])
    took, proposed, _ = map(np.asarray, benchmark_decode.replay(None, text, begin, made, ops, 4, False))
    assert took.tolist() == [7, 7] and proposed.tolist() == [0, 0]


def test_the_turns_of_all_rows_are_kept_whatever_the_run_traces(monkeypatch):
    """Also of a slot in which the rows that are traced have ended."""
    monkeypatch.setattr(benchmark_decode, "STAGES", (1,))
    run = build(small_config(policy__num_layers=1, rollout__history_widths=1, rl__tasks_per_update=1, train__traces=1))
    task = run.source.batch(0)
    run.source.batch = lambda _: task.replace(num_facts=np.array([1, 4, 2, 4], np.int32))
    slots = benchmark_decode.play(run, run.start())
    assert len(slots) >= 4 and [slot.on.sum() for slot in slots[:2]] == [4, 3]
    for slot in slots:
        assert len(slot.op) == len(slot.summary) == 4
        assert len(benchmark_decode.names_of(slot)) == slot.on.sum() > 0


def test_updates_of_the_tiny_default_are_of_whole_trajectories():
    assert loop.stages_of(benchmark_decode.configured("", ""), 0) == 3


@pytest.mark.heavy
def test_a_small_run():
    config = small_config(policy__num_layers=1, rollout__history_widths=1, rl__tasks_per_update=1, train__traces=1)
    figures = benchmark_decode.measure(config, 4, 1)
    json.dumps(figures, allow_nan=False)
    assert figures["turns"] >= figures["slots"] > 3 and figures["tokens"] > figures["turns"]
    today, wide = figures["steps"]["1"], figures["steps"]["4"]
    assert wide["forced_and_copied"]["a_turn"] <= wide["forced"]["a_turn"] <= today["a_turn"] <= today["a_slot"]
    assert sum(f["turns"] for f in wide["copies"].values()) == figures["turns"]
    assert set(figures["decoding"]) == {"1", "2", "4", "nothing proposed"}
    assert all(f["same_turns"] == 1 for f in figures["decoding"].values())
    (wide, wide_update), (one, update) = figures["updates"].items()
    assert one == "1" and wide in ("2", "4") and wide_update["generated_tokens"] == update["generated_tokens"]
    tables = benchmark_decode.steps_table, benchmark_decode.seconds_table, benchmark_decode.updates_table
    told = "".join(table(figures) for table in tables)
    for words in ("steps a turn", "width 4, and copies", "nothing proposed costs", "whole updates"):
        assert words in told


def test_a_file_needs_a_vocabulary():
    with pytest.raises(InputError, match="--path needs --weights"):
        benchmark_decode.configured("", "hotpot.json")
