"""Scripts in the real environment at tiny's sizes: oracles, with all tools and without each, and farmers."""

import pytest
from small import vocabulary_file

from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.hotpotqa.farmers import PLAIN, TRICKS, Player
from agemem_jax.benchmarks.hotpotqa.oracles import FULL, WITHOUT, read_answer
from agemem_jax.data.staged import REVISIONS
from agemem_jax.training.setup import build
from agemem_jax.types import Op
from configs import tiny
from experiments import audit_reward
from experiments.audit_reward import HONEST
from experiments.oracles import Stage, measure

TASKS = 20


@pytest.fixture(scope="module")
def stage():
    c = tiny.get_config()
    c.policy.weights, c.policy.tokenizer = "", vocabulary_file()
    c.policy.num_layers, c.policy.hidden_size, c.policy.intermediate_size = 1, 32, 32  # it generates nothing
    c.rl.tasks_per_update, c.task.train_size, c.task.test_size, c.train.eval_tasks = 15, 32, 200, 8
    return Stage(build(c))


def test_without_any_tool_the_best_oracle_left_loses(stage):
    results = measure(stage, TASKS)
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


def test_an_oracle_plays_what_it_is_told(stage):
    run = stage.run
    index = next(i for i, r in enumerate(run.source.records) if r["kind"] == "changed")
    lines = stage.oracle.play(run.source.staged(index), FULL)
    rows = stage.run_lines([index] * run.spec.rollout.batch, [lines] * run.spec.rollout.batch)
    assert rows.stats.calls_ok[0, Op.UPDATE] == REVISIONS == sum("Update" in line for line in lines.stages[0])
    held = [run.tokenizer.decode(t[:n].tolist()).strip() for t, n in zip(
        rows.store.tokens[0], rows.store.length[0], strict=True
    )]  # fmt: skip
    assert sorted(held) == sorted(run.source.records[index]["keep"])


def test_no_farmer_earns_more_than_honest_play_or_than_without_its_trick(stage):
    """With the default config's terms and weights; with the published terms some do, which is why there are others."""
    terms = audit_reward.measure(stage, TASKS)["terms"]
    strict, paper = ({name: row["reward"] for name, row in terms[kind].items()} for kind in ("strict", "paper"))
    assert stage.run.config.reward.terms == "strict" and set(strict) == {HONEST, PLAIN, *TRICKS}
    for trick in TRICKS:
        assert strict[trick] <= strict[PLAIN] + 1e-6 < strict[HONEST], (trick, terms["strict"])
    assert any(paper[trick] > paper[PLAIN] + 0.01 for trick in TRICKS)
    for row in terms["strict"].values():
        assert sum(row.values()) - row["reward"] == pytest.approx(row["reward"], abs=1e-5)
    shown = audit_reward.table(terms["strict"], "strict").split("\n")
    assert len(shown) == 3 + len(TRICKS) and f"{strict[HONEST]:.3f}" in shown[1]


def test_farmers_do_what_they_are_named_for(stage):
    """The calls of each trick are made, and succeed or are refused as they should."""
    indices = [chosen[0] for chosen in stage.picks(1).values()]
    calls = {}
    for trick in (PLAIN, *TRICKS):
        player = Player(stage.run.config, trick)
        stats = stage.episodes(player.play, indices, player.answers)
        calls[trick] = stats.calls.sum(0), stats.calls_ok.sum(0), stats
    extra = lambda trick, op, kind=0: int(calls[trick][kind][op] - calls[PLAIN][kind][op])  # noqa: E731
    assert extra("add, delete, add", Op.DELETE, 1) > 0 and extra("add, delete, add", Op.ADD, 1) > 0
    assert extra("rewrite", Op.UPDATE) > 0 and extra("rewrite", Op.UPDATE, 1) == 0  # changes nothing, and is told so
    assert extra("summarise small talk", Op.SUMMARY, 1) > 0 and extra("fill and empty", Op.SUMMARY, 1) > 0
    assert extra("retrieve everything", Op.RETRIEVE) > extra("fill and empty", Op.RETRIEVE) > 0
    assert extra("answer at once", Op.RETRIEVE) == -len(indices)
    assert not calls["never answer"][2].actions.any() and calls[PLAIN][2].actions.all()
    for trick in ("near duplicates", "scrambled words"):
        assert extra(trick, Op.ADD, 1) == 0 and calls[trick][2].kept.mean() <= calls[PLAIN][2].kept.mean()
