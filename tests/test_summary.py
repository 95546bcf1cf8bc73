"""Intervals and the table."""

import numpy as np
import pytest

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


def test_table_has_a_row_for_each_method():
    numbers = {"f1": [0.0, 1.0], "exact_match": [0.0, 0.0], "memory_quality": [0.5, 0.5], "context_tokens": [9, 11]}
    methods = summarise({0: {"no_memory": numbers, "agemem": numbers}}, "f1")
    assert methods["agemem"]["task_score"] == methods["agemem"]["f1"]
    lines = table({"methods": methods}).splitlines()
    assert len(lines) == 3 and "0.500" in lines[1] and lines[2].startswith("agemem")
