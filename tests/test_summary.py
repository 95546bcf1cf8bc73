"""Intervals and the table."""

import numpy as np
import pytest

from agemem_jax.benchmarks.hotpotqa.questions import KINDS, MADE_FOR
from agemem_jax.benchmarks.hotpotqa.tasks import HotpotQA
from agemem_jax.training.evaluate import Pass
from agemem_jax.training.summary import interval, summarise, table


def test_interval_of_one_seed_covers_the_tasks():
    scores = [0.0, 1.0, 1.0, 0.0]
    got = interval([scores])
    assert got["mean"] == 0.5 and got["seeds"] == [0.5]
    assert got["ci95"] == pytest.approx(1.96 * np.std(scores, ddof=1) / 2)


def test_interval_of_equal_seeds_is_that_of_the_tasks():
    scores = [0.0, 1.0, 1.0, 0.0]
    assert interval([scores] * 3)["ci95"] == pytest.approx(interval([scores])["ci95"])


def test_interval_adds_the_spread_of_seeds():
    values = [[0.2, 0.2], [0.4, 0.4], [0.6, 0.6]]  # no spread between tasks
    got = interval(values)
    assert got["mean"] == pytest.approx(0.4)
    assert got["ci95"] == pytest.approx(4.303 * 0.2 / np.sqrt(3))


def results(seeds: int = 2) -> dict:
    """Two kinds of tasks, two of each; the trained agent needs UPDATE for those of kind "changed" alone."""
    kinds = [float(KINDS.index(name)) for name in ("changed", "recall", "changed", "recall")]

    def numbers(f1: list[float]) -> dict:
        return {"progress": f1, "success": [0.0] * 4, "context_tokens": [9, 11, 9, 11], "kind": kinds}

    one = {}
    for way, off in (("greedy", 0.0), ("sampled", 0.25)):
        one[Pass("no_memory", way)] = numbers([0.0, 0.0, off, off])
        one[Pass("agemem", way)] = numbers([1.0 - off, 0.5, 0.5, 1.0 - off])
        one[Pass("agemem", way, "Update_memory")] = numbers([0.25 - off, 0.5, 0.25 - off, 1.0 - off])
    return {0: one} | {seed: {p: v for p, v in one.items() if p.method != "no_memory"} for seed in range(1, seeds)}


def test_methods_kinds_and_what_a_masked_tool_costs():
    greedy = summarise(results(), "progress", "greedy", HotpotQA)
    trained, plain = greedy["methods"]["agemem"], greedy["methods"]["no_memory"]
    assert trained["task_score"] == trained["progress"]
    assert trained["progress"]["seeds"] == [0.75, 0.75] and "kind" not in trained
    assert plain["progress"]["seeds"] == [0.0]  # evaluated once: no spread of seeds to speak of
    kinds = greedy["by_kind"]["agemem"]
    assert {name: (value["mean"], value["tasks"]) for name, value in kinds.items()} == {
        "changed": (0.75, 2), "recall": (0.75, 2)
    }  # fmt: skip
    lost = greedy["masked"]["Update_memory"]
    assert list(greedy["masked"]) == ["Update_memory"] and lost["kinds"] == list(MADE_FOR["Update_memory"])
    assert (lost["mean"], lost["tasks"], lost["overall"]["mean"]) == (0.5, 2, 0.25)
    assert lost["ci95"] == pytest.approx(interval([[0.75, 0.25]] * 2)["ci95"])  # of differences, task by task
    sampled = summarise(results(), "progress", "sampled", HotpotQA)
    assert sampled["masked"]["Update_memory"]["mean"] == pytest.approx(0.625)


def test_tasks_without_a_kind_have_no_part_made_for_a_tool():
    of_a_file = {0: {one: numbers | {"kind": [-1.0] * 4} for one, numbers in results(1)[0].items()}}
    found = summarise(of_a_file, "progress", "greedy", HotpotQA)
    assert found["by_kind"] == {"no_memory": {}, "agemem": {}}
    lost = found["masked"]["Update_memory"]
    assert "mean" not in lost and lost["tasks"] == 0 and lost["overall"]["mean"] == 0.25


def test_table_has_a_row_for_each_method_greedy_and_sampled_and_for_each_tool():
    greedy, sampled = (summarise(results(), "progress", way, HotpotQA) for way in ("greedy", "sampled"))
    text = table({**greedy, "sampled": sampled, "one_policy": ["no_memory"]})
    first, tools, kinds = (part.splitlines() for part in text.split("\n\n"))
    assert len(first) == 6 and first[5].startswith("* the same weights for every seed")
    assert [line.split()[:2] for line in first[1:5]] == [
        ["no_memory*", "greedy"], ["no_memory*", "sampled"], ["agemem", "greedy"], ["agemem", "sampled"]
    ]  # fmt: skip
    assert "0.750 ±" in first[3] and len(tools) == 2 and tools[1].split()[:2] == ["Update_memory", "0.500"]
    assert tools[1].endswith("2 tasks: changed") and len(kinds) == 5 and "changed" in kinds[0]
    older = {"methods": greedy["methods"]}  # of a summary that had nothing else
    assert len(table(older).splitlines()) == 3
