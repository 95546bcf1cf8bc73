"""Arms of a study: each is the run of its own config, all in one program; what may differ, and what is refused."""

import json
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import sharper, small_config

from agemem_jax.config import ConfigError
from agemem_jax.errors import InputError
from agemem_jax.report import ablation
from agemem_jax.rl import rewards
from agemem_jax.rl.advantages import CREDITS
from agemem_jax.rl.switches import switches_of
from agemem_jax.rollout import stage as stage_lib
from agemem_jax.rollout.rows import new_segments
from agemem_jax.training import programs
from agemem_jax.training.arms import (
    FIELDS,
    Study,
    arms_of,
    build_study,
    evaluate_arms,
    inputs,
    last_stage,
    metrics_of,
    starting_states,
    train_arms,
    update_arms,
)
from agemem_jax.training.distributed import Preempted
from agemem_jax.training.evaluate import Pass, evaluate
from agemem_jax.training.loop import put_batch, train_update
from agemem_jax.training.programs import Played
from agemem_jax.training.setup import build
from agemem_jax.training.state import new_state
from agemem_jax.types import empty_stats
from configs import ablations, tiny
from experiments import ablate

WHOLE = {"rl.stage1_updates": 0, "rl.stage2_updates": 0}
TABLE = {
    "all": {},
    "alone": {"rl.schedule": "sequential", "rl.credit": "broadcast", **WHOLE},
    "again": {},  # on the other device than "all"
    "early": {
        "rl.updates": 1, "rl.credit": "hindsight", "reward.terms": "paper", "reward.task": 2.0, **WHOLE,
        "masked": ("Add_memory", "Retrieve_memory"),
    },
    "untrained": {"rl.updates": 0},
}  # fmt: skip


def base(**changes):
    sizes = dict(
        policy__num_layers=1, rollout__history_widths=1, rl__widths=1, rl__updates=3, train__eval_tasks=6,
        train__checkpoint_every=1, reward__storage=1.0, reward__preservation=0.5, rl__credit="turn_to_go",
        rl__stage1_updates=1, rl__stage2_updates=1,
    )  # fmt: skip
    return small_config(**sizes | changes)


@pytest.fixture(scope="module", autouse=True)
def stages_vary():
    """A policy that knows nothing stores and keeps nothing of worth: here any entries, any lengths count."""
    with pytest.MonkeyPatch.context() as patch:
        any_entry = lambda rows, *_: (rows.store.valid.mean(1), rows.store.length.sum(1) % 5 / 5)  # noqa: E731
        patch.setattr(stage_lib, "store_worth", any_entry)
        patch.setattr(stage_lib, "in_view", lambda rows, *_: rows.context.length % 7 / 7)
        yield


@lru_cache
def study() -> Study:
    """Five arms on two devices: the last place of the second one is empty."""
    made = build_study(base(), arms_of(base(), TABLE), jax.devices()[:2])
    return replace(made, starts={seed: lambda start=start: sharper(start()) for seed, start in made.starts.items()})


@lru_cache
def trained():
    """The states on the host after each update, and the metrics of each."""
    states = starting_states(study())
    kept, metrics = [jax.device_get(states)], []
    for update in range(3):
        given = inputs(study(), update)
        with jax.transfer_guard("disallow"):
            states, outcome = update_arms(study(), states, given)
        kept.append(jax.device_get(states))
        metrics.append(jax.device_get(outcome["metrics"]))
    return kept, metrics


def arm_at(tree, i: int):
    return jax.tree.map(lambda x: x[i], tree)


def same(a, b) -> bool:
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_one_compilation_serves_all_arms_and_evaluations():
    kept, metrics = trained()
    assert study().mesh.size == 2 and len(study().arms) == 5
    assert [[last_stage(arm, update) for update in range(3)] for arm in study().arms] == [
        [1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 0, 0], [0, 0, 0]
    ]  # fmt: skip
    for state in kept:  # wherever an arm lies, its numbers are the same
        assert same(arm_at(state, 0), arm_at(state, 2)) and same(arm_at(state, 4), arm_at(kept[0], 4))
    ends = [arm_at(kept[3], i).params for i in (0, 1, 3, 4)]
    assert not any(same(a, b) for a, b in combinations(ends, 2))
    for i in (0, 1):  # in every stage there is something to learn
        assert not any(same(arm_at(a, i).params, arm_at(b, i).params) for a, b in zip(kept, kept[1:], strict=False))
    assert same(arm_at(kept[1], 3), arm_at(kept[3], 3))  # it has made its one update
    assert [state.step.tolist() for state in kept[1:]] == [[1, 1, 1, 1, 0, 0], [2, 2, 2, 1, 0, 0], [3, 3, 3, 1, 0, 0]]
    states = study().put([arm_at(kept[3], i) for i in range(5)])
    states, greedy = evaluate_arms(study(), states, "greedy")
    states, sampled = evaluate_arms(study(), states, "sampled")
    assert study().program._cache_size() == 1
    assert same(jax.device_get(states), kept[3])
    assert {len(values) for one in greedy + sampled for values in one.values()} == {6}
    assert same(greedy[0], greedy[2]) and not same(greedy[0], greedy[3]) and not same(sampled[0], greedy[0])
    calls = [one["calls_add"].sum() + one["calls_retrieve"].sum() for one in sampled]
    assert calls[3] == 0 and calls[0] > 0  # masked


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["all", "alone", "early"])
def test_an_arm_is_the_run_of_its_config(name):
    """Bit for bit: metrics and parameters after each update, and the evaluation at the end."""
    kept, metrics = trained()
    i, arm = next((i, arm) for i, arm in enumerate(study().arms) if arm.name == name)
    run = build(arm.config)
    if arm.masked:
        run.config.tools.enabled = tuple(tool for tool in run.config.tools.enabled if tool not in arm.masked)
    state = new_state(sharper(run.start()), run.optimizer)
    for update in range(arm.config.rl.updates):
        state, outcome = train_update(run, state, run.frozen, update, put_batch(run, update))
        expected = jax.device_get(outcome["metrics"])
        found = metrics_of(arm, arm_at(metrics[update], i), last_stage(arm, update))
        if last_stage(arm, update) == 3:  # of which some stand under two names
            expected = {key: value for key, value in expected.items() if not key.startswith("term_")}
        assert expected.keys() == found.keys()
        assert {key: (expected[key], found[key]) for key in expected if expected[key] != found[key]} == {}
        assert same(jax.device_get(state), arm_at(kept[update + 1], i))
    state, numbers, _ = evaluate(run, state, run.frozen, Pass("agemem", "sampled"), 6)
    _, found = evaluate_arms(study(), study().put([arm_at(kept[3], k) for k in range(5)]), "sampled")
    assert same(numbers, found[i])


def random_play(sizes, last: int) -> Played:
    """A batch of trajectories that ended after a stage, of random facts."""
    rng = np.random.default_rng(last)

    def any_of(x):
        if x.dtype == bool:
            return rng.random(x.shape) < 0.5
        return (rng.random(x.shape) if x.dtype == np.float32 else rng.integers(0, 4, x.shape)).astype(x.dtype)

    segments = jax.tree.map(any_of, new_segments(sizes.batch, sizes.segments, sizes.capacity))
    stage = rng.integers(1, last + 1, segments.stage.shape).astype(np.int8)
    turns = np.array([sizes.turns(k) for k in (1, 2, 3)])
    segments = segments.replace(
        stage=stage,
        turn=(rng.integers(0, 99, stage.shape) % turns[stage - 1]).astype(np.int16),
        length=rng.integers(1, sizes.capacity, segments.length.shape).astype(np.int32),
    )
    standing = rng.random((sizes.batch, sizes.turns_before(3), 3)).astype(np.float32)
    effective = rng.random((sizes.batch, sizes.all_turns)) < 0.5
    return Played(jax.tree.map(any_of, empty_stats(sizes.batch)), segments, effective, standing)


def test_branches_chosen_by_data_are_those_of_the_config(monkeypatch):
    """Every credit and schedule, terms of both kinds, after each stage: the batch that the learner gets."""
    monkeypatch.setattr(programs, "update", lambda state, *rest: (rest[5], {}))
    run = study().run
    sizes = run.spec.rollout
    asked = study().arms[0].config
    control = programs.Control(*[None] * 6, reward=rewards.factors(asked.reward), noise_row=None, suppress=None)

    def learnt(last, played, rl, reward, on):
        scores = programs.score(last, sizes, played.stats, reward, control.reward, on)
        return scores.objective, *programs.learn(
            last, run.spec, run.model, run.optimizer, rl, None, {}, played, scores, run.world, control, on
        )

    by_data, seen = {}, set()
    for schedule, credit, last in product(("chained", "sequential"), CREDITS, (1, 2, 3)):
        rl, reward = asked.rl.copy_and_resolve_references(), asked.reward.copy_and_resolve_references()
        drop = (last + CREDITS.index(credit)) % 2
        rl.update({"zero_variance": ("keep", "drop")[drop], "loss_average": ("constant", "turn")[drop]})
        if drop not in by_data:  # compiled once for all that follow
            by_data[drop] = jax.jit(lambda last, played, on, rl=rl: learnt(last, played, rl, asked.reward, on))
        rl.update({"schedule": schedule, "credit": credit})
        reward.terms = "paper" if credit == "per_stage" else "strict"
        on, played = switches_of(rl, reward), random_play(sizes, last)
        expected = learnt(last, played, rl, reward, on)
        found = by_data[drop](np.int32(last), played, jax.tree.map(np.bool_, on))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, found)
        seen.add(np.asarray(found[1].advantage).tobytes())
    assert len(seen) >= 12
    assert [one._cache_size() for one in by_data.values()] == [1, 1]


def test_a_study_that_is_stopped_goes_on_to_the_same_end(tmp_path):
    """Stopped after an update and after the updates; curves, checkpoints and evaluations are those of one that ran."""
    kept, metrics = trained()
    answers = iter([False, True])
    with pytest.raises(Preempted, match="after update 2 of 3"):
        train_arms(study(), tmp_path, lambda: next(answers))
    answers = iter([False, False, True])
    with pytest.raises(Preempted, match="before the last evaluations"):
        train_arms(study(), tmp_path, lambda: next(answers))
    numbers, seconds = train_arms(study(), tmp_path, lambda: False)
    again, in_all = train_arms(study(), tmp_path, lambda: False)
    assert in_all["eval"] == pytest.approx(seconds["eval"])  # also of a call that finds all done
    for way in numbers:
        for a, b in zip(numbers[way], again[way], strict=True):
            assert same(a, b)
    assert seconds["train"] > 0 and seconds["eval"] > 0
    rows = {
        arm.name: [json.loads(line) for line in (arm.folder(tmp_path) / "metrics.jsonl").read_text().splitlines()]
        for arm in study().arms
    }
    told = {name: [(row["update"], row["stage"], "progress" in row) for row in of_arm] for name, of_arm in rows.items()}
    whole = [(1, 1, False), (2, 2, False), (3, 3, True)]
    assert told == {"all": whole, "alone": whole, "again": whole, "early": [(1, 3, True)], "untrained": []}
    for update, row in enumerate(rows["alone"]):
        assert row["reward"] == pytest.approx(float(metrics[update]["reward"][1]))
        assert row["loss"] == pytest.approx(float(metrics[update]["loss"][1]))
    assert "term/preservation" in rows["all"][1] and "term/storage" in rows["all"][1]
    assert "term/preservation" in rows["alone"][1] and "term/storage" not in rows["alone"][1]
    figures = ablate.compared(study(), tmp_path, numbers) | {"cost": ablate.cost_of(study(), seconds)}
    shown(figures, tmp_path)


def shown(figures: dict, tmp_path) -> None:
    """What table and page say of the study above."""
    assert list(figures["arms"]) == list(TABLE) and figures["seeds"] == [0] and figures["test_tasks"] == 6
    assert figures["arms"]["again"]["greedy"]["gain"] == {"mean": 0.0, "ci95": 0.0, "seeds": [0.0]}
    assert "gain" not in figures["arms"]["all"]["greedy"] and "to_bar" not in figures["arms"]["untrained"]
    early, alone = figures["arms"]["early"], figures["arms"]["alone"]
    assert early["sampled"]["calls_add"]["mean"] == 0 and early["curves"]["progress"][0][0][0] == 1
    assert "experiments.ablate" in early["command"] and "--arms=early" in early["command"]
    assert "experiments.train" in alone["command"] and "--config.rl.schedule=sequential" in alone["command"]
    text = ablate.table(json.loads(json.dumps(figures)))
    assert "alone" in text and "gain over all" in text and "5 arms on 2 devices" in text
    page = ablation.write(json.loads(json.dumps(figures)), tmp_path / "ablate.html").read_text()
    for words in ("untrained", "rl.schedule = &#34;sequential&#34;", "Task score in training", "<svg", "as the config"):
        assert words in page


def test_curves_of_the_task_score_are_of_the_metric_that_is_it():
    curves = {"progress": [[(1, 0.5), (2, 0.75)]], "success": [[(1, 0.25), (2, 0.5)]]}
    other = {"memory/quality": [[]], "generated_tokens": [[]]}
    of_way = dict.fromkeys(("task_score", "memory_quality", *(f"calls_{name}" for name in ablation.CALLS)))
    way = of_way | {"by_kind": {}}
    arm = {"changes": {}, "command": "", "greedy": way, "sampled": way, "curves": curves | other}
    figures = dict.fromkeys(("name", "base", "seeds", "updates", "test_tasks", "command"))
    figures |= {"bar": 0.0, "scores": {}, "arms": {"all": arm}, "cost": {"seconds": {}}, "environment": {}}
    figures |= {"identity": {}}
    for metric, begin in (("success", "0.25"), ("progress", "0.5")):
        ((heading, (chart,)),) = ablation.contents(figures | {"task_metric": metric})["curves"]
        assert (heading, chart.begin) == ("Task score in training", begin)


def test_the_shipped_study_is_one():
    config = ablations.get_config()
    arms = arms_of(config, ablations.ARMS)
    count = len(ablations.ARMS)
    assert len(arms) == 3 * count and [arm.seed for arm in arms[::count]] == [0, 1, 2]
    assert {arm.config.rl.credit for arm in arms} == set(CREDITS)
    changed = [arm.changes for arm in arms[:count]]
    assert len({json.dumps(one, sort_keys=True) for one in changed}) == len(changed)
    assert {name for one in changed for name in one} - {"masked"} <= set(FIELDS)


REFUSED = {
    "size": ({"rl.group_size": 4}, "arm 'x': rl.group_size = 4: .*give such runs configs of their own.*rl.credit"),
    "seed": ({"seed": 3}, "arm 'x': seed = 3: the seeds of every arm are num_seeds"),
    "misspelt": ({"rl.credits": "broadcast"}, "rl.credits = 'broadcast': .*did you mean rl.credit"),
    "value": ({"rl.credit": "turn"}, "arm 'x': rl.credit = 'turn': must be"),
    "type": ({"rl.updates": "three"}, "rl.updates = 'three': a value like 3"),
    "together": ({"rl.schedule": "sequential"}, "arm 'x': rl.stage1_updates = 1: belongs to"),
    "tool": ({"masked": ("Add",)}, "masked = .*no tool 'Add'"),
    "tool alone": ({"masked": "Add_memory"}, "arm 'x': masked = 'Add_memory': a tuple of tools is needed"),
    "group": ({"rl": {"credit": "broadcast"}}, "arm 'x': rl = .*no such field"),
    "no dict": (3, "arm 'x': changes = 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_arm_can_have_is_refused(case):
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        arms_of(base(), {"x": changes})


def test_what_no_study_can_have_is_refused(monkeypatch):
    judged = dict(reward__task_metric="judge", reward__judge="http://localhost:1/v1", reward__judge_model="m")
    for changes, words in (
        (judged, "reward.task_metric = 'judge': arms share a program that never waits for the host"),
        (dict(mesh__tensor=2), "mesh.tensor = 2: an arm lies whole on one device"),
        (dict(train__eval_every=2), "train.eval_every = 2"),
        (dict(train__baselines=True), "train.baselines = True"),
    ):
        with pytest.raises(ConfigError, match=words):
            arms_of(base(**changes), {"x": {}})
    with pytest.raises(ConfigError, match="no arm"):
        arms_of(base(), {})
    with pytest.raises(ConfigError, match="arms = 'a/b'"):
        arms_of(base(), {"a/b": {}})
    seeds = base(num_seeds=2, rl__kl_coef=0.1)
    with pytest.raises(ConfigError, match="every seed would have a reference"):
        build_study(seeds, arms_of(seeds, {"x": {}}), jax.devices()[:1])
    monkeypatch.setattr("agemem_jax.training.arms.HostEnvironment", object)
    with pytest.raises(ConfigError, match="its games are played on the host"):
        build_study(base(), arms_of(base(), {"x": {}}), jax.devices()[:1])


def test_arms_are_read_from_the_config_file(tmp_path):
    assert ablate.asked_for(ablate.arm_table(f"{ablations.__file__}"), []) == ablations.ARMS
    assert list(ablate.asked_for(ablations.ARMS, ["sequential", "all"])) == ["all", "sequential"]
    with pytest.raises(InputError, match="--arms=sequentiel: there is no such arm; did you mean sequential"):
        ablate.asked_for(ablations.ARMS, ["sequentiel"])
    with pytest.raises(InputError, match="it has no ARMS"):
        ablate.arm_table(tiny.__file__)


def test_the_bar_and_what_reaches_it_by_hand():
    """Final training scores 1.0 and 0.8 of two seeds, and 0.5 and 0.7: the bar is 0.63."""
    curves = {
        "broadcast": [[(1, 0.5), (2, 0.7), (3, 1.0)], [(1, 0.1), (2, 0.2), (3, 0.8)]],
        "hindsight": [[(1, 0.63), (2, 0.2), (3, 0.5)], [(1, 0.1), (2, 0.6), (3, 0.62)]],
        "untrained": [[], []],
    }
    found = ablate.learning_speed(curves)
    assert found["bar"] == pytest.approx(0.63) and list(found["arms"]) == ["broadcast", "hindsight"]
    broadcast, hindsight = found["arms"]["broadcast"], found["arms"]["hindsight"]
    assert broadcast["to_bar"]["seeds"] == [2, 3] and broadcast["reached"] == 2
    assert hindsight["to_bar"]["seeds"] == [1, 3] and hindsight["reached"] == 1
    assert broadcast["training_score"]["mean"] == pytest.approx(0.9)
    assert broadcast["training_score"]["ci95"] == pytest.approx(12.706 * np.std([0.8, 1.0], ddof=1) / 2**0.5)
    assert ablate.learning_speed({"untrained": [[]]}) == {"bar": 0.0, "arms": {}}


def test_cost_by_hand():
    seconds = ablate.parts_of({"compile": 90.0, "train": 200.0, "eval": 20.0, "checkpoint": 1.0})
    assert seconds == {"compile": 90.0, "updates": 110.0, "evaluations": 20.0, "total": 221.0}
    cost = {"arms": 8, "devices": 1, "seconds": seconds}
    assert ablate.cost_in_words(cost) == (
        "8 arms on 1 device: 221 s (compile 90 s, updates 110 s, evaluations 20 s)."
    )


def test_cost_of_separate_runs_by_hand():
    """Two seeds of an arm with 10 updates, of one with 5, and of one with none; a command compiles once."""
    table = {"ten": {"rl.updates": 10}, "five": {"rl.updates": 5}, "none": {"rl.updates": 0}}
    arms = arms_of(base(num_seeds=2, rl__stage1_updates=0, rl__stage2_updates=0), table)
    one = {"compile": 90.0, "updates": 20.0, "evaluations": 7.0, "total": 120.0}
    assert ablate.seconds_alone(arms, arms[0], one) == pytest.approx(3 * 90 + 2 * (30 + 20 + 10))
    assert ablate.separate_arm(arms) is arms[0]
    with pytest.raises(ConfigError, match="--measure_separate: no arm is trained with all its tools"):
        ablate.separate_arm([arm for arm in arms if arm.name == "none"])


def test_the_command_of_an_arm_has_the_config_as_it_was_given(monkeypatch):
    arms = arms_of(base(), {"alone": TABLE["alone"], "early": TABLE["early"]})
    given = ["ablate.py", "--config", "x.py:a b", "--config.rl.updates", "3", "--noconfig.tools.think", "--arms=alone"]
    monkeypatch.setattr("sys.argv", given)
    fields = "'--config=x.py:a b' --config.rl.updates=3 --config.tools.think=false"
    one, other = map(ablate.command_of, arms)
    assert one.startswith(f"python -m experiments.train {fields} --config.rl.schedule=sequential ")
    assert other == f"python -m experiments.ablate {fields} --arms=early --workdir=DIR"


def test_untrained_parameters_and_tables_are_shared():
    """Without an arm axis: a study of adapters holds the policy once a device."""
    shapes = jax.tree.map(jnp.shape, study().run.world)
    assert jax.tree.map(jnp.shape, study().world) == shapes
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(study().world)} == {2}
