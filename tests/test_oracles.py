"""Each tool is needed: scripted oracles in the real environment, with all tools and without each (tiny's sizes)."""

import pytest
from small import vocabulary_file

from agemem_jax.data import questions
from agemem_jax.data.oracles import FULL, WITHOUT, read_answer
from agemem_jax.training.setup import build
from agemem_jax.types import Op
from configs import tiny
from experiments.oracles import Stage, measure

TASKS = 20


@pytest.fixture(scope="module")
def run():
    c = tiny.get_config()
    c.policy.weights, c.policy.tokenizer = "", vocabulary_file()
    c.policy.num_layers, c.policy.hidden_size, c.policy.intermediate_size = 1, 32, 32  # it generates nothing
    c.rl.tasks_per_update, c.task.train_size, c.task.test_size, c.train.eval_tasks = 15, 32, 200, 8
    return build(c)


def test_without_any_tool_the_best_oracle_left_loses(run):
    results = measure(run, TASKS)
    assert set(results["full"]) == set(questions.KINDS) and min(results["full"].values()) >= 0.95
    assert set(results["tools"]) == set(questions.MADE_FOR)
    for tool, row in results["tools"].items():
        assert row["full"] - row["without"] >= 0.1, (tool, row)
        assert row["without"] == max(row["strategies"].values())


def test_the_answer_is_read_off_what_is_in_view():
    stale, change = "Ada Keller lives in Halden", "Ada Keller moved from Halden to Marnby"
    assert read_answer("Where does Ada Keller live", [stale]) == "Halden"
    assert read_answer("Where does Ada Keller live", [stale, change]) == "Marnby"
    assert read_answer("Where did Ada Keller live before", [change]) == "Halden"
    assert read_answer("Where does Ada Keller live", []) == questions.UNKNOWN
    corrected = ["Ada Keller was born in 1931", "no Ada Keller was born in 1940"]
    assert read_answer("When was Ada Keller born", corrected) == "1940"
    joined = ["Silver River was written by Ada Keller and Ada Keller was born in Halden"]
    assert read_answer("Where was the author of Silver River born", joined) == "Halden"
    bids = ["Ada Keller bid nine coins for Silver River today", "Hugo Novak bid ten"]
    assert read_answer("Who bid most for Silver River", bids) == "Hugo Novak"
    for record in questions.generate(5, 300, "train"):
        told = [text for _, text in record["told"] + record["later"]]
        if record["answer"] != questions.UNKNOWN:
            assert read_answer(record["question"], told) == record["answer"]


def test_every_tool_has_strategies_without_it():
    assert set(WITHOUT) == {Op.ADD, Op.UPDATE, Op.DELETE, Op.RETRIEVE, Op.SUMMARY, Op.FILTER}
    assert all(s.without == op and not s.has(op) for op, strategies in WITHOUT.items() for s in strategies)
    assert all(FULL.has(op) for op in WITHOUT)


def test_an_oracle_plays_what_it_is_told(run):
    stage = Stage(run)
    index = next(i for i, r in enumerate(run.source.records) if r["kind"] == "changed")
    lines = stage.oracle.play(run.source.staged(index), FULL)
    rows = stage.run_lines([index] * run.spec.rollout.batch, [lines] * run.spec.rollout.batch)
    assert rows.stats.calls_ok[0, Op.UPDATE] == questions.REVISIONS == sum("Update" in line for line in lines.stages[0])
    held = [run.tokenizer.decode(t[:n].tolist()).strip() for t, n in zip(
        rows.store.tokens[0], rows.store.length[0], strict=True
    )]  # fmt: skip
    assert sorted(held) == sorted(run.source.records[index]["keep"])
