"""The seconds that a run trained until it had a score."""

import pytest

from agemem_jax.errors import InputError
from experiments.time_to_score import in_words, time_to

RECORDS = [
    {"step": 1, "seconds": 30.0},  # compiling
    {"step": 2, "seconds": 2.0},
    {"step": 2, "eval/progress": 0.5, "time": 100.0},
    {"step": 3, "seconds": 2.5},
    {"step": 4, "seconds": 2.5},
    {"step": 4, "eval/progress": 0.7, "time": 900.0},
    {"step": 5, "seconds": 3.0},
    {"step": 6, "seconds": 3.0},
    {"step": 6, "eval/progress": 0.65, "time": 1000.0},
]


def test_seconds_of_updates_until_the_first_evaluation_that_shows_the_score():
    figures = time_to(RECORDS, 0.6, "metrics.jsonl")
    assert figures["reached"] == {"update": 4, "seconds": 37.0, "score": 0.7}
    assert in_words(figures) == "37 s of training to 0.60: update 4"
    assert [one["seconds"] for one in figures["curve"]] == [32.0, 37.0, 43.0]


def test_a_score_that_was_not_reached_is_said_with_the_best_one():
    figures = time_to(RECORDS, 0.8, "metrics.jsonl")
    assert figures["reached"] is None
    assert in_words(figures) == "0.80 was not reached; the best was 0.700 after 37 s of training, at update 4"


def test_a_run_that_was_not_evaluated_in_between_is_refused():
    with pytest.raises(InputError, match=r"metrics.jsonl has no evaluation .* --config.train.eval_every=10"):
        time_to(RECORDS[:2], 0.8, "runs/x/metrics.jsonl")
