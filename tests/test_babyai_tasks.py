"""What is told of BabyAI's levels, where play begins after a walk, and whether it can then be won."""

import importlib
import json
import random
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from agemem_jax import config as config_lib
from agemem_jax.benchmarks import load
from agemem_jax.benchmarks.babyai import environment as engine
from agemem_jax.benchmarks.babyai import levels, tasks, telling, walks, wording
from agemem_jax.benchmarks.babyai.macros import Macros
from agemem_jax.config import ConfigError
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.types import Text
from configs import babyai
from tests.vocabularies import write_bpe

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("minigrid") is None, reason="minigrid is not installed (pip install 'agemem_jax[babyai]')"
)
LEVELS = ("PickupDist", "GoToSeqS5R2", "FindObjS5", "PickupLoc", "ActionObjDoor", "PutNextS5N2Carrying")
TURNS = 6
start, act = jax.jit(engine.start), jax.jit(engine.act)
reset, step = (jax.jit(function, static_argnums=0) for function in (Macros.reset, Macros.step))


def of(*names: str) -> tuple[str, ...]:
    return tuple(f"BabyAI-{name}-v0" for name in names)


def config(**changes):
    sizes = dict(facts=7, distractors=5, message_tokens=24, seen_tokens=128, revised=0.5)
    sizes |= dict(train_size=18, validation_size=6, test_size=12)
    fixed = dict(
        task__benchmark="babyai", task__parts=of(*LEVELS), rollout__action_tokens=24, rollout__stage3_turns=TURNS,
        tools__action_tag="action", tools__min_calls=0, context__capacity=512, context__limit=512,
    )  # fmt: skip
    return small_config(**fixed | {f"task__{name}": value for name, value in sizes.items()} | changes)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = (text for group in wording.PIECES.values() for text in group)
    return Tokenizer.load(write_bpe(tmp_path_factory.mktemp("bpe"), texts=texts))


@pytest.fixture(scope="module")
def benchmark(tokenizer):
    return load(config(), tokenizer)


@pytest.fixture(scope="module")
def source(benchmark, tokenizer):
    return TaskSource(config(), tokenizer, benchmark.tasks)


@pytest.fixture(scope="module")
def told(source):
    """The training records and how they are told."""
    return [(source.records[i], source.staged(i)) for i in range(source.num_train)]


def same(one, other) -> None:
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


# ------------------------------------------------------------------------------------------------------------- walks


def replayed(told: list, sizes: levels.Sizes) -> int:
    """Walks of tasks in the engine and in minigrid, which must both be where play begins; returns how many moved."""
    for record, staged in told:
        walk, on = staged.play, jnp.array([True])
        before = levels.stack([levels.read(record.name, record.seed, sizes)])
        state, real = start(before), levels.make(record.name, record.seed)
        for move in walk.moves:
            state, verdict = act(before, state, jnp.array([move]), on)
            _, reward, terminated, *_ = real.step(move)
            assert not verdict.terminated[0] and not terminated and reward == 0
        same(start(levels.stack([walk.level])), state)
        game = walk.level.game
        assert game.position.tolist() == list(map(int, real.agent_pos)) and game.direction == real.agent_dir
        assert game.steps == real.step_count == len(walk.moves)
        for i, thing in enumerate(real.grid.grid):
            holds = game.cells[divmod(i, real.width)] - levels.FIRST
            if thing is not None and thing.type == "door":
                assert bool(game.doors[holds] & levels.OPEN) == thing.is_open
            elif thing is not None and thing.type != "wall":
                assert levels.KINDS[thing.type] == game.kind[holds]
    return sum(bool(staged.play.moves) for _, staged in told)


def test_play_begins_where_the_engine_and_minigrid_are_after_the_walk(told, benchmark):
    assert replayed(told, benchmark.tasks.level_sizes) > len(told) // 2


@pytest.mark.heavy
def test_play_begins_there_on_all_levels_of_agentboards(tokenizer):
    benchmark = load(config(task__parts=(), task__train_size=280), tokenizer)
    records = benchmark.tasks.splits["train"]
    told = [(r, benchmark.tasks.tell(r, random.Random(i), random.Random(i))) for i, r in enumerate(records)]
    print("walks:", replayed(told, benchmark.tasks.level_sizes), "of", len(told))


def test_a_walk_ends_before_what_would_end_the_episode(benchmark):
    """Facing what is to be gone to, opening what is to be opened."""
    level = levels.read("BabyAI-OpenRedDoor-v0", 0)
    whole = walks._Walker(level.game)
    door = next(thing for thing in walks.places(level.game) if level.game.kind[thing] == levels.DOOR)
    assert whole.face(walks.places(level.game)[door])
    walk = walks.follow(level, [*whole.moves, engine.TOGGLE, engine.FORWARD])
    assert list(walk.moves) == whole.moves and not walk.level.game.doors[door] & levels.OPEN
    assert len(walk.sights) == len(walk.moves)


def test_instructions_about_where_the_agent_stands_are_told_where_it_stands(told):
    relative = [staged for _, staged in told if not telling.may_walk(staged.play.level)]
    assert relative and all(staged.play.moves == () for staged in relative)


def test_sights_are_agentboards_sentences(told, benchmark, tokenizer):
    last = [staged.play for _, staged in told if staged.play.moves]
    _, seen = reset(Macros(seen_tokens=512), benchmark.shared, levels.stack([walk.level for walk in last]))
    for walk, tokens, length in zip(last, np.asarray(seen.tokens), np.asarray(seen.length), strict=True):
        text = tokenizer.decode(tokens[:length])
        said = telling.sentences(walk.sights[-1].view)
        assert all(sentence in text for sentence in said) and text.count("There is a") == len(said)


# ----------------------------------------------------------------------------------------------------------- telling


def test_what_is_told_fits_and_what_is_gold_is_told(told):
    task = config().task
    for record, staged in told:
        assert len(staged.facts) <= task.facts and len(staged.distractors) <= task.distractors
        assert set(staged.gold) <= set(staged.keep) <= set(staged.facts)
        assert [text in staged.gold for text in staged.facts] == staged.is_gold
        assert staged.kind in tasks.BabyAI.kinds
        number = staged.query.split("level ")[1][0]
        asked = f"In level {number}"
        assert all(text.startswith(asked) for text in staged.gold) and not any(asked in t for t in staged.distractors)
        mission = staged.play.level.mission
        assert staged.gold[0] in (f"{asked} {mission}.", f"{asked} now {mission}.")
        assert staged.play.level.name == record.name
        others = [text for text in staged.keep if not text.startswith(asked)]
        assert others, "among instructions of other levels"


def test_revised_instructions_come_later_and_in_other_words(told):
    revisions = [(staged, *pair) for _, staged in told for pair in staged.revisions]
    share = np.mean([staged.gold[0].startswith(staged.gold[0][:10] + " now") for _, staged in told])
    assert 0.1 < share < 0.9 and any(present not in staged.gold for staged, _, present in revisions)
    for staged, stale, present in revisions:
        assert staged.facts.index(stale) < staged.facts.index(present) and present in staged.keep
        assert stale not in staged.keep and stale[:10] == present[:10]
        common = set(stale.split()) & set(present.split())
        assert len(common) <= 0.6 * len(present.split())


def test_what_is_said_to_be_behind_a_door_is_there(told, benchmark):
    found = 0
    for record, staged in told:
        game = levels.read(record.name, record.seed, benchmark.tasks.level_sizes).game
        room, where = walks.rooms(game), walks.places(game)
        here = int(room[int(game.position[1]), int(game.position[0])])
        behind = {}
        for door, other in walks.doors_of(game, room, here).items():
            for thing, cell in where.items():
                if room[cell] == other:
                    behind[f"behind the {telling._name(game, door)} there is a {telling._name(game, thing)}."] = thing
        for text in staged.facts:
            if text[:10] == staged.gold[0][:10] and "behind the" in text:
                assert text[len("In level 1 ") :] in behind
                found += text in staged.gold
    assert found


def test_telling_is_a_function_of_its_seeds(source, benchmark):
    one, again, later = source.staged(1), source.staged(1), source.staged(1, 1)
    assert one.facts == again.facts and one.play.moves == later.play.moves and one.keep == later.keep
    assert any(source.staged(i).facts != source.staged(i, 1).facts for i in range(6))
    with jax.transfer_guard("disallow"):  # as in the training loop
        task = source.batch(0)
    assert task.game.cells.shape[0] == source.config.rl.tasks_per_update * source.config.rl.group_size
    seeds = [{record.seed for record in benchmark.tasks.splits[split]} for split in ("train", "validation", "test")]
    assert sum(map(len, seeds)) == len(set().union(*seeds)) and min(set().union(*seeds)) > 1237
    other = tasks.BabyAI(config(task__seed=1), benchmark.tasks.tokenizer)
    assert not {record.seed for records in other.splits.values() for record in records} & set().union(*seeds)


def test_agentboards_episodes_are_told_nothing(tokenizer):
    benchmark = load(config(task__official=True, task__parts=()), tokenizer)
    records = benchmark.tasks.splits["test"]
    assert len(records) == 112 and {record.seed for record in records} == {1234, 1235, 1236, 1237}
    assert len({record.name for record in records}) == 28
    rng = random.Random(0)
    for record in records[::16]:
        staged = benchmark.tasks.tell(record, rng, rng)
        level = levels.read(record.name, record.seed)
        assert staged.facts == staged.distractors == staged.gold == [] and staged.query == level.goal
        same(staged.play.level.game.position, level.game.position)
        assert staged.play.level.game.steps == 0
    assert not {1234, 1235, 1236, 1237} & {record.seed for record in benchmark.tasks.splits["train"]}


def label_file(folder, lines: list) -> str:
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "labels.jsonl")


def test_with_agentboards_label_file_its_episodes_have_its_subgoals(tokenizer, tmp_path):
    lines = [{"goal": "", "subgoals": [f"episode {i}", "red * ball"], "difficulty": "easy"} for i in range(112)]
    lines[111] = {"subgoals_1": ["You are"], "subgoals_2": ["There is", "never asked for"], "difficulty": "hard"}
    asked = config(task__official=True, task__parts=of("KeyCorridorS6R3", "GoToRedBall"))
    asked.task.labels_path = label_file(tmp_path, lines)
    benchmark = load(asked, tokenizer)
    source = TaskSource(asked, tokenizer, benchmark.tasks)
    assert benchmark.tasks.scores == {"success": "success", "progress": "progress (AgentBoard's subgoals)"}
    task, valid = source.split_batch("test", 0, 8)
    assert valid.all()
    subgoals = task.game[1]
    np.testing.assert_array_equal(subgoals.count, [2, 2, 2, 1, 2, 2, 2, 2])  # AgentBoard's last level, and an early one
    spelt = [x.tobytes().rstrip(b"\0").decode() for x in subgoals.parts[:, 0, 0, 0]]
    assert spelt == ["episode 108", "episode 109", "episode 110", "You are", *(f"episode {i}" for i in range(4, 8))]
    assert subgoals.parts[3, 0, 1, 0].tobytes().rstrip(b"\0") == b"There is" and subgoals.real[3].sum() == 2
    assert not source.split_batch("validation", 0, 2)[0].game[1].count.any()
    task = jax.tree.map(jnp.asarray, task.game)
    state, _ = jax.jit(benchmark.env.reset)(benchmark.shared, task)
    action = np.zeros((8, benchmark.env.action_tokens), np.int32)
    ids = tokenizer.encode("turn left")
    action[:, : len(ids)] = ids
    turned = Text(jnp.asarray(action), jnp.full(8, len(ids)))
    state, outcome = jax.jit(benchmark.env.step)(benchmark.shared, task, state, turned, jnp.arange(8) != 4)
    assert np.asarray(outcome.progress)[:5].tolist() == [0, 0, 0, 1, 0] and outcome.success[3]
    assert "The task is completed." in tokenizer.decode(np.asarray(outcome.seen.tokens)[3, : outcome.seen.length[3]])
    assert benchmark.env.render(benchmark.shared, task, state, 0).endswith("subgoals left: 2")


def test_a_label_file_that_is_not_agentboards_says_so(tokenizer, tmp_path):
    good = [{"subgoals": ["a"]}] * 112

    def refused(error, match: str, lines=None, **changes):
        changed = config(**{"task__official": True, "task__parts": of("GoToRedBall"), **changes})
        changed.task.labels_path = label_file(tmp_path, lines or good)
        with pytest.raises(error, match=match):
            load(changed, tokenizer)

    refused(InputError, "task.labels_path: .* has 111 lines, and AgentBoard has 112 episodes", good[1:])
    refused(InputError, "line 2 has no `subgoals`", [good[0], {"goal": "x"}, *good[2:]])
    refused(InputError, "line 1 has no `subgoals`", [{"subgoals": []}, *good[1:]])
    refused(InputError, "line 1 has no `subgoals`", [{"subgoals": [[]]}, *good[1:]])
    refused(InputError, "line 1: `subgoals` has .*not all texts", [{"subgoals": [3]}, *good[1:]])
    refused(InputError, "line 112 is not an object", [*good[1:], ["a"]])
    refused(ConfigError, "task.labels_path.*task.official", task__official=False)
    refused(ConfigError, "no subgoals of BabyAI-FindObjS5-v0", task__parts=of("FindObjS5"))
    refused(ConfigError, "pddl reads no label file", task__benchmark="pddl")
    missing = config(task__official=True, task__parts=of("GoToRedBall"), task__labels_path=str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="task.labels_path.*none.jsonl"):
        load(missing, tokenizer)


# ----------------------------------------------------------------------------------------------------------- playing


def wins(benchmark, tokenizer, told: list, said: list[list[str] | None], whole: bool = True) -> np.ndarray:
    """Whether the actions of each record win, which none but the last may."""
    env, game = benchmark.env, levels.stack([staged.play.level for _, staged in told])
    said = [row or [] for row in said]
    state, _ = reset(env, benchmark.shared, game)
    for i in range(TURNS):
        texts = [tokenizer.encode(row[i]) if i < len(row) else [] for row in said]
        action = np.zeros((len(said), env.action_tokens), np.int32)
        for row, ids in zip(action, texts, strict=True):
            row[: len(ids)] = ids
        on = np.array([i < len(row) for row in said])
        assert not np.asarray(state.won)[on].any()
        state, outcome = step(env, benchmark.shared, game, state, Text(action, np.array(list(map(len, texts)))), on)
        assert not whole or np.asarray(outcome.understood)[on].all()
    return np.asarray(state.won)


def test_who_knows_the_level_wins_where_who_does_not_rarely_does(told, benchmark, tokenizer):
    known, blind = (
        [benchmark.tasks.solve(staged, random.Random(i), knows) for i, (_, staged) in enumerate(told)]
        for knows in (True, False)
    )
    for said in (known, blind):
        assert wins(benchmark, tokenizer, told, said).tolist() == [bool(row) for row in said]
        assert max(len(row) for row in said if row) <= TURNS
    assert sum(map(bool, known)) > 0.7 * len(told) > 2 * sum(map(bool, blind)) > 0


def test_nobody_wins_in_more_actions_than_an_episode_has(tokenizer):
    """Also where stage 3 has more turns."""
    benchmark = load(config(task__train_size=12, rollout__stage3_turns=50), tokenizer)
    benchmark.tasks.engine = replace(benchmark.tasks.engine, turns=2)
    told = [benchmark.tasks.tell(r, random.Random(0), random.Random(0)) for r in benchmark.tasks.splits["train"]]
    for knows in (True, False):
        found = [benchmark.tasks.solve(staged, random.Random(0), knows) for staged in told]
        assert all(len(plan) <= 2 for plan in found if plan is not None) and None in found


def test_a_slip_changes_nothing(tokenizer):
    benchmark = load(config(task__parts=of("PutNextLocalS6N4"), task__train_size=12), tokenizer)
    records = benchmark.tasks.splits["train"]
    told = [(r, benchmark.tasks.tell(r, random.Random(i), random.Random(i))) for i, r in enumerate(records)]
    tried, slips = [], 0
    for _, staged in told:
        plan = benchmark.tasks.solve(staged, random.Random(0), True) or []
        pairs = [(benchmark.tasks.slip(staged, plan, step), action) for step, action in enumerate(plan)]
        tried.append([action for pair in pairs for action in pair if action])
        slips += len(tried[-1]) - len(plan)
    tried = [row if len(row) <= TURNS else [] for row in tried]
    assert slips > 0 and wins(benchmark, tokenizer, told, tried, whole=False).tolist() == list(map(bool, tried))


# ----------------------------------------------------------------------------------------------------- what is wrong


def test_configs_can_run():
    for variant in ("", "tiny"):
        config_lib.validate(babyai.get_config(variant))
    with pytest.raises(InputError, match="'tiny'"):
        babyai.get_config("small")


def test_fields_that_mean_nothing_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="task.path = 'levels.json'.*leave it empty"):
        load(config(task__path="levels.json"), tokenizer)
    with pytest.raises(ConfigError, match="task.seen_tokens = 0"):
        load(config(task__seen_tokens=0), tokenizer)
    with pytest.raises(InputError, match="no BabyAI level 'BabyAI-GoToo-v0'"):
        load(config(task__parts=of("GoToo")), tokenizer)
