"""The training command from end to end: what it writes, killed and started again, and what it refuses."""

import gc
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import ROOMY, small_config

from agemem_jax.benchmarks.hotpotqa.tasks import HotpotQA
from agemem_jax.config import ConfigError, to_json
from agemem_jax.data.batches import LIMITS
from agemem_jax.envs.judge import SILENCE
from agemem_jax.errors import InputError
from agemem_jax.memory.encoder import policy_table
from agemem_jax.metrics import Clock
from agemem_jax.report import page as report_page
from agemem_jax.training import loop, setup
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.distributed import Preempted
from agemem_jax.training.evaluate import METHODS, UNTRAINED, Pass, count_unheard, passes_of
from agemem_jax.training.loop import put_batch, train, train_update
from agemem_jax.training.setup import build
from agemem_jax.training.state import new_state, state_shapes
from agemem_jax.types import TOOL_NAMES
from configs import tiny

ROOT = Path(__file__).parent.parent
UPDATES = 8
EVALUATED = [name for name in METHODS if name in UNTRAINED or name == "agemem"]
FREE_OF_TIME = ("time", "seconds", "tokens_per_s", "trained_tokens_per_s")
CONFIG_FILE = """
from agemem_jax.config import from_json
def get_config():
    return from_json({text!r})
"""


def tiny_run():
    """The config of the runs below: one layer, two tasks, two tokens a step, a checkpoint after each update."""
    return small_config(
        policy__num_layers=1, rollout__history_widths=1, rollout__decode_width=2, rl__updates=UPDATES, rl__group_size=2,
        rl__micro_batch=4, train__checkpoint_every=1, train__traces=2, train__eval_tasks=6, tools__min_calls=1, **ROOMY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the processes below find their config and keep their runs."""
    path = tmp_path_factory.mktemp("train")
    (path / "run_config.py").write_text(CONFIG_FILE.format(text=to_json(tiny_run())))
    return path


def command(folder: Path, workdir: str, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "experiments.train", f"--config={folder}/run_config.py", f"--workdir={folder}/{workdir}",
        *overrides,
    ]  # fmt: skip


def start(folder: Path, workdir: str, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, workdir, *overrides), capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def whole(folder) -> tuple[Path, str]:
    """A run of two seeds that nobody disturbed: (workdir, what it printed)."""
    ran = start(folder, "whole", "--config.num_seeds=2", f"--out={folder}/out.json")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder / "whole", ran.stdout


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "seed_0" / "metrics.jsonl").read_text().splitlines()]


def final_state(workdir: Path):
    """Update and state of the newest checkpoint of seed 0."""
    run = build(tiny_run())
    saved = Checkpointer(workdir / "seed_0" / "checkpoints", run.config, 2)
    update, state, _ = saved.restore_latest(state_shapes(run.model, run.optimizer, run.mesh))
    saved.close()
    return update, jax.device_get(state), jax.device_get(run.start())


def test_summary_holds_every_method_and_metric(whole, folder):
    workdir, printed = whole
    summary = json.loads((workdir / "summary.json").read_text())
    greedy, sampled = summary["methods"], summary["sampled"]["methods"]
    assert list(greedy) == list(sampled) == EVALUATED and greedy != sampled
    assert summary["one_policy"] == []  # fresh weights are another policy for every seed
    for part in (summary, summary["sampled"]):
        assert list(part["masked"]) == list(tiny.get_config().tools.enabled) and list(part["by_kind"]) == EVALUATED
        for lost in part["masked"].values():
            assert len(lost["overall"]["seeds"]) == 2 and ("mean" in lost) == (lost["tasks"] > 0)
    for method, metrics in (*greedy.items(), *sampled.items()):
        assert {"task_score", "success", "memory_quality", "context_tokens", "calls_add", "reward"} <= set(metrics)
        for value in metrics.values():
            assert set(value) == {"mean", "ci95", "seeds"} and len(value["seeds"]) == 2
            assert np.isfinite([value["mean"], value["ci95"]]).all()
        assert metrics["task_score"] == metrics["progress"]
        assert method in printed
    no_memory = summary["methods"]["no_memory"]
    assert all(no_memory[f"calls_{op}"]["mean"] == 0 for op in ("add", "update", "delete", "retrieve", "summary"))
    assert summary["methods"]["agemem_norl"] != summary["methods"]["agemem"]
    assert summary["seeds"] == [0, 1] and summary["test_tasks"] == 6
    identity = json.loads((workdir / "seed_1" / "identity.json").read_text())["parts"]
    assert summary["identity"]["weights"] == "fresh parameters"
    assert summary["identity"]["prompt"] == identity["prompt"][:12] in (workdir / "report.html").read_text()
    assert summary["seconds"]["train"] > 0 and summary["environment"]["jax"] == jax.__version__
    assert summary["cut_texts"]["queries"]["share"] == 0 and len(summary["cut_texts"]) == len(LIMITS | HotpotQA.limits)
    assert "experiments.train --config=" in summary["command"]
    assert json.loads((folder / "out.json").read_text()) == summary


def test_everything_else_is_written(whole):
    workdir, printed = whole
    page = (workdir / "report.html").read_text()
    assert len(page) > 20_000 and "agemem_norl" in page and "https://" not in page.split("<body")[0]
    for seed in ("seed_0", "seed_1"):
        assert list((workdir / seed / "tensorboard").glob("events.out.tfevents.*"))
        for method in EVALUATED:
            traces = json.loads((workdir / seed / f"traces_{method}.json").read_text())
            assert len(traces) == 2
            for trace in traces:
                assert (trace["method"], trace["kind"]) == (method, "recall")
                assert trace["question"] and trace["gold"] and trace["turns"]
                assert {turn["stage"] for turn in trace["turns"]} == {1, 2, 3}
                silent = [turn for turn in trace["turns"] if turn["stage"] < 3 and not METHODS[method].tools]
                assert all(turn["context"] and bool(turn["said"]) == (turn not in silent) for turn in trace["turns"])
                assert all(message["text"] for turn in trace["turns"] for message in turn["saw"])
                # Nothing is seen only after a turn that let stage 3 pass.
                for before, turn in itertools.pairwise([{"calls": []}, *trace["turns"]]):
                    passed = turn["stage"] == 3 and [call["op"] for call in before["calls"]] == ["pass"]
                    assert turn["saw"] or passed
    lines = records(workdir)
    assert [line["update"] for line in lines] == list(range(1, UPDATES + 1))
    for line in lines:
        assert {"loss", "grad_norm", "reward", "tokens_per_s", "stage", "term/task", "calls/add"} <= set(line)
        assert line["logp_gap_max"] < 1e-3
    assert f"update {UPDATES}/{UPDATES}" in printed and "reward" in printed and "left" in printed
    update, state, begun = final_state(workdir)
    assert update == int(state.step) == UPDATES
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.params["layers"], begun["layers"]))))  # noqa: B905


def test_seeds_differ(whole):
    files = (whole[0] / seed / "evaluation_agemem-sampled.json" for seed in ("seed_0", "seed_1"))
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["numbers"]["reward"] != second["numbers"]["reward"]


def test_killed_and_started_again_ends_with_the_same_bits(whole, folder):
    killed = subprocess.Popen(
        command(folder, "killed"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saved = folder / "killed" / "seed_0" / "checkpoints" / "00000002"
    deadline = time.monotonic() + 300
    while not saved.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = len(records(folder / "killed"))
    assert 2 <= done < UPDATES

    again = start(folder, "killed")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "going on from update" in again.stdout
    (update, state, _), (updates, reference, _) = final_state(folder / "killed"), final_state(whole[0])
    assert update == updates == UPDATES
    jax.tree.map(np.testing.assert_array_equal, state, reference)
    lines, expected = records(folder / "killed"), records(whole[0])
    for name in FREE_OF_TIME:
        for line in (*lines, *expected):
            line.pop(name)
    assert lines == expected
    for one in (one for method in EVALUATED for one in passes_of(tiny_run(), method)):
        ours, theirs = (
            json.loads((path / "seed_0" / f"evaluation_{one.name}.json").read_text())["numbers"]
            for path in (folder / "killed", whole[0])
        )
        assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "beside", "restored"),
    [
        ({}, 0, 3),
        ({"rl__kl_coef": 0.1}, 1, 3),
        ({"policy__lora_rank": 2}, 1, 0),
        ({"rl__kl_coef": 0.1, "policy__param_dtype": "bfloat16"}, 1, 4),
    ],
    ids=["no reference", "reference", "adapters", "master"],
)
def test_a_run_that_goes_on_makes_no_policy_but_a_frozen_one(monkeypatch, tmp_path, changes, beside, restored):
    """Counted in arrays of the token embeddings' shape: of the frozen policy, and of the state (with two moments,
    and a bfloat16 policy's master)."""
    config = small_config(policy__num_layers=1, rollout__history_widths=1, **changes)
    run = build(config)
    shape = run.model.vocab_size, run.model.hidden_size
    with Checkpointer(tmp_path / "checkpoints", config, 1) as checkpoints:
        checkpoints.save(config.rl.updates, new_state(run.start(), run.optimizer), {"clock": {}}, wait=True)
    del run

    def count() -> int:
        gc.collect()
        return sum(x.shape == shape for x in jax.live_arrays())

    before, held, made = count(), {}, []
    make, restore = setup.starting_params, Checkpointer.restore_latest

    def noted(checkpoints, like):
        held["until restored"] = count() - before
        return restore(checkpoints, like)

    def stop() -> bool:
        held["then"] = count() - before
        return True

    monkeypatch.setattr(setup, "starting_params", lambda *args: made.append(args) or make(*args))
    monkeypatch.setattr(Checkpointer, "restore_latest", noted)
    with pytest.raises(Preempted, match="before the last evaluation"):
        train(build(config), tmp_path, stop)
    assert held == {"until restored": beside, "then": beside + restored}
    assert len(made) == beside


def test_the_store_is_given_the_embeddings_of_the_starting_policy():
    for changes in ({}, {"policy__weights": tiny.get_config().policy.weights, "policy__param_dtype": "bfloat16"}):
        run = build(small_config(store__encoder="policy", **changes))
        table = setup.token_embeddings(run.config, run.model)
        np.testing.assert_array_equal(table, run.start()["embed_tokens"]["embedding"])
        assert table.dtype == run.model.param_dtype
        counts = setup.document_counts(run.source, len(run.tokenizer.token_bytes()))
        expected = policy_table(table[: len(counts)].astype(np.float32), counts)
        np.testing.assert_array_equal(run.world.encoder, expected)


def test_a_workdir_of_another_config_is_refused(whole, folder):
    ran = start(folder, "whole", "--config.optim.learning_rate=0.5", "--config.store.entries=4")
    assert ran.returncode == 2
    assert "optim.learning_rate is 0.5" in ran.stderr and "store.entries is 4" in ran.stderr
    assert "start in a new --workdir" in ran.stderr and "Traceback" not in ran.stderr


def test_a_wrong_override_ends_the_command_before_anything_is_made(folder):
    for override, hint in (
        ("--config.rl.gruop_size=4", "did you mean rl.group_size?"),
        ("--config.context.limit=10", "context.limit = 10: shorter than the prompt"),
    ):
        ran = start(folder, "wrong", override)
        assert ran.returncode == 2 and hint in ran.stderr, ran.stderr
        assert ran.stderr.count("\n") == 1 and not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"context__limit": 20}, "context.limit = 20: shorter than the prompt"),
        ({"context__capacity": 40}, "context.capacity = 40: "),
        ({"rl__group_size": 1}, "rl.group_size = 1: "),
        ({"store__entries": 0}, "store.entries = 0: "),
        ({"rollout__action_tokens": 3}, "rollout.action_tokens = 3: must lie between"),
        ({"rl__schedule": "sequential", "rl__updates": 4}, "rl.updates = 4: "),
    ],
)
def test_impossible_configs_are_refused_before_the_policy_is_made(monkeypatch, changes, hint):
    def never(*_):
        raise AssertionError("the checks come first")

    for name in ("starting_params", "build_world", "compile_programs"):
        monkeypatch.setattr(setup, name, never)
    with pytest.raises(ConfigError) as refused:
        build(small_config(**changes))
    assert str(refused.value).startswith(hint)


def test_answers_without_a_verdict_are_counted_in_a_row():
    assert count_unheard(asked=4, failed=4) == 4 and count_unheard(4, 4, before=12) == 16
    assert count_unheard(4, 3, 12) == count_unheard(4, 0, 12) == 0  # somebody is there
    assert count_unheard(0, 0, 12) == 12  # nobody was asked


def test_a_judge_that_falls_silent_stops_the_run_before_it_is_mistaken_for_a_bad_policy(tmp_path, monkeypatch):
    """Of each update's rollouts one half answers. Update 3 has a verdict, from 4 on there is none."""
    config = tiny_run()
    config.rl.updates, config.train.checkpoint_every, config.reward.judge = 50, 50, "http://localhost/v1"
    run, made = build(config), []
    assert run.spec.rollout.batch == 4

    def silent_update(run, state, frozen, update, task, method):
        made.append(update)
        failed = 0.25 if update == 2 else 0.5
        return state, {"metrics": {"loss": 0.0, "rollout/judge_asked": 0.5, "rollout/judge_failed": failed}}

    monkeypatch.setattr(loop, "train_update", silent_update)
    monkeypatch.setattr(loop, "evaluate_once", lambda run, state, *_: state)
    with pytest.raises(InputError, match="reward.judge = 'http://localhost/v1' gave no verdict.*update 11 ") as caught:
        train(run, tmp_path)
    assert "\n" not in str(caught.value) and made == list(range(3 + SILENCE // 2))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["judge_failed"] for r in records[:4]] == [0.5, 0.5, 0.25, 0.5]
    with Checkpointer(tmp_path / "checkpoints", config, 2) as checkpoints:
        update, _, _ = checkpoints.restore_latest(state_shapes(run.model, run.optimizer, run.mesh))
    assert update == made[-1]


def test_the_seconds_of_an_evaluation_count_in_every_call_that_has_it(tmp_path, monkeypatch):
    scores = {"progress": [1.0], "memory_quality": [0.0], "reward": [1.0], "kind": [0]}
    run = SimpleNamespace(config=tiny_run(), identity={})
    monkeypatch.setattr(loop, "evaluate", lambda run, state, *_: time.sleep(0.05) or (state, scores, None, [(1, 0.01)]))
    spent = []
    for _ in range(2):
        clock = Clock()
        loop.evaluate_once(run, "state", {}, Pass("agemem", "sampled"), 3, tmp_path, clock)
        spent.append(clock.state()["eval"])
    assert spent[0] > 0.05 and spent[1] == pytest.approx(spent[0])


def test_traces_say_whether_the_policy_that_played_was_trained(tmp_path, monkeypatch):
    """Memory systems too begin with a policy that nothing has trained."""
    numbers, said = {"progress": [1.0], "memory_quality": [0.0], "reward": [1.0]}, []
    monkeypatch.setattr(loop, "evaluate", lambda run, state, *_: (state, numbers, None, []))
    monkeypatch.setattr(loop, "render_traces", lambda run, traced, method, when: said.append((method, when)) or [])
    monkeypatch.setattr(loop, "roles_played", lambda *_: {})
    run = SimpleNamespace(config=tiny_run(), identity={})
    for method, updates in (("amem", 0), ("agemem", 8)):
        loop.evaluate_once(run, "state", {}, Pass(method, "greedy"), updates, tmp_path, Clock())
    assert said == [("amem", "before"), ("agemem", "after")]


@pytest.mark.heavy
def test_verdicts_are_the_task_reward_and_without_any_nothing_is_learnt(tmp_path, monkeypatch):
    class FakeJudge:
        verdict = 0.75

        def __init__(self, *_):
            pass

        def check(self):
            pass

        def score(self, questions, golds, answers):
            return np.full(len(answers), self.verdict, np.float32)

    monkeypatch.setattr(setup, "Judge", FakeJudge)
    config = tiny_run()
    config.reward.update({"task_metric": "judge", "judge": "http://localhost/v1", "judge_model": "m"})
    config.rollout.stage3_turns = 6  # so that some rollout answers
    run = build(config)
    state = new_state(run.start(), run.optimizer)
    learnt = []
    for update, verdict in enumerate((0.75, np.nan)):
        FakeJudge.verdict = verdict
        before = jax.device_get(state.params)
        state, outcome = train_update(run, state, run.frozen, update, put_batch(run, update))
        rows = jax.device_get(outcome["rows"])
        answered = rows["judge_asked"]
        assert answered.any() and (rows["judge_failed"] == (answered if update else 0)).all()
        np.testing.assert_allclose(rows["term_task"][answered], 0 if update else verdict)
        assert np.isfinite(rows["reward"]).all()
        changes = jax.tree.map(lambda a, b: (a != b).any(), before, jax.device_get(state.params))
        learnt.append(any(jax.tree.leaves(changes)))
    assert learnt == [True, False]


def test_what_the_calls_of_a_run_were_worth(whole):
    """The calls of the traces are found again and left out one by one; the report then shows what each was worth."""
    workdir, _ = whole
    ran = subprocess.run(
        [sys.executable, "-m", "experiments.attribute", f"--run={workdir}/seed_1", "--tasks=3"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    kept = json.loads((workdir / "seed_1" / "attribution.json").read_text())
    assert kept["tasks"] == 3 and kept["unlike"] == 0 and kept["way"] == "greedy" and kept["checkpoint"] == "00000008"
    assert kept["tools"]["all"]["calls"] == len(kept["calls"]) > 0 and "all" in ran.stdout
    shown = [
        call
        for trace in report_page.load(workdir).traces[1] if trace["method"] == "agemem"
        for turn in trace["turns"] for call in turn["calls"] if call["op"] in TOOL_NAMES
    ]  # fmt: skip
    assert shown and all(call["worth"] is not None for call in shown)  # of both tasks that have a trace
    assert "What each call was worth" in report_page.write(workdir).read_text()
