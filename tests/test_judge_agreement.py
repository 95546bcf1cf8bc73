"""Verdicts of a judge beside the rules on the device."""

import json

import numpy as np
import pytest
from test_judge import asked, code_of, completion, endpoint  # noqa: F401

from agemem_jax.errors import InputError
from experiments import judge_agreement as command


def trace(action: str | None, exact: float, f1: float, method: str = "agemem", answer: str = "Ann Lee") -> dict:
    return {
        "method": method, "question": "who?", "answer": answer, "action": action, "success": exact, "progress": f1,
        "turns": [],
    }  # fmt: skip


def test_kappa_leaves_out_what_agrees_by_chance():
    # 20 and 15 agree of 50; one rater says yes to 25, the other to 30: chance is 0.5.
    ours = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    theirs = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert command.kappa(ours, theirs) == pytest.approx(0.4)
    assert command.kappa([True, False], [True, False]) == 1 and command.kappa([True, False], [False, True]) == -1
    assert command.kappa([True] * 3, [True] * 3) is None and command.kappa([], []) is None


def test_each_rule_is_held_against_the_verdicts():
    answers = [trace("Ann Lee", 1, 1.0), trace("Ann", 0, 2 / 3), trace("Bob", 0, 0.0), trace("Lee A", 0, 0.5)]
    found = command.compared(answers, np.array([1.0, 0.9, 0.0, np.nan], np.float32), 0.5)
    assert (found["answers"], found["without_verdict"]) == (4, 1)
    assert found["judged_right"] == pytest.approx(2 / 3)
    exact, f1 = found["rules"]["exact match"], found["rules"]["token F1"]
    assert exact["agreement"] == pytest.approx(2 / 3) and exact["kappa"] == pytest.approx(0.4)
    assert f1["agreement"] == 1 and f1["kappa"] == 1 and not f1["disagreements"]
    (only,) = exact["disagreements"]
    assert only["action"] == "Ann" and only["success"] == 0 and only["verdict"] == pytest.approx(0.9)
    text = command.table(found, 5)
    assert "4 answers, 1 of them without a verdict" in text and "'Ann' for 'Ann Lee'; who?" in text
    assert "and 1 more" in command.table(found, 0)
    silent = command.compared(answers, np.full(4, np.nan), 0.5)
    assert silent["rules"]["token F1"]["agreement"] is None and "-" in command.table(silent, 5)


def test_answers_are_those_of_all_methods_each_once(tmp_path):
    below = tmp_path / "seed_0" / "store_all_rl"
    below.mkdir(parents=True)
    found = [trace("Ann", 0, 0.5), trace("Ann", 0, 0.5, "no_memory"), trace(None, 0, 0), trace(" ", 0, 0)]
    (tmp_path / "seed_0" / "traces_agemem.json").write_text(json.dumps(found))
    (below / "traces_store_all_rl.json").write_text(json.dumps([trace("Bob", 0, 0, "store_all_rl")]))
    assert [one["action"] for one in command.answers_in(tmp_path)] == ["Ann", "Bob"]
    assert len(command.answers_in(tmp_path / "seed_0")) == 2 and len(command.answers_in(below)) == 1
    (tmp_path / "seed_0" / "traces_agemem.json").write_text(json.dumps([trace("go", 1, 1, answer="")]))
    (below / "traces_store_all_rl.json").unlink()
    with pytest.raises(InputError, match="none of its 1 traces .* has an answer to judge"):
        command.answers_in(tmp_path)
    with pytest.raises(InputError, match="none of its 0 traces"):
        command.answers_in(tmp_path / "nowhere")


def test_the_judge_is_asked_about_every_answer(endpoint, tmp_path):  # noqa: F811
    def answer_of(path, body, headers):
        right = asked(body)["candidate_answer"] in ("Ann Lee", "7 days", "A. Lee")
        return completion(f"Score {code_of(body)}: {int(right)}")

    judge = command.judge_of(endpoint(answer_of), "m")
    answers = [trace("Ann Lee", 1, 1.0), trace("A. Lee", 0, 0.4), trace("Bob", 0, 0.0)]
    verdicts = judge.score(*([one[name] for one in answers] for name in ("question", "answer", "action")))
    found = command.compared(answers, verdicts, 0.5)
    assert verdicts.tolist() == [1, 1, 0]
    assert found["rules"]["exact match"]["agreement"] == found["rules"]["token F1"]["agreement"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("url", "model", "told"),
    [
        ("localhost", "m", r"^--judge = 'localhost'"),
        ("http://localhost:8000/v1", "", "^--judge_model = ''"),
        ("http://a:b@localhost/v1", "m", "^--judge holds a user name"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_named_by_its_flag(url, model, told):
    with pytest.raises(InputError, match=told):
        command.judge_of(url, model)
