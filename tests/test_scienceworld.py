"""ScienceWorld without Java, by a worker that answers in its place; and with it, where it is installed.

The heavy tests need Java and AGEMEM_SCIENCEWORLD: a Python that has the package `scienceworld`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax.benchmarks.scienceworld import expert, pool, variations, worker
from agemem_jax.benchmarks.scienceworld.environment import environment, report
from agemem_jax.errors import InputError
from tests.test_host_env import BYTES, lives, read, spelt, wait_for_end

PYTHON = os.environ.get("AGEMEM_SCIENCEWORLD", "")
W, A = 1024, 80
ROOT = Path(__file__).parent.parent


def of(task: str, variation: int = 0) -> int:
    return variations.number_of(task, variation)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes pools of workers that answer without Java."""
    worker = tmp_path / "worker.py"
    worker.write_text((Path(__file__).parent / "scienceworld_worker.py").read_text())
    (tmp_path / "worker.py.tasks").write_text(json.dumps(variations.TASKS))
    monkeypatch.setattr(pool, "WORKER", worker)
    monkeypatch.setattr(pool, "find_java", lambda: "java")
    made = []

    def make(count=2):
        made.append(pool.Pool(count))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_every_game_has_a_number_and_tasks_of_electricity_keep_their_actions():
    assert len(variations.TASKS) == len(set(variations.TASKS)) == 30
    for task in variations.TASKS:
        name, variation, simplified = variations.game_of(of(task, 7))
        assert (name, variation) == (task, 7)
        assert simplified.startswith("selfWateringFlowerPots,openContainers,openDoors")
        assert simplified.endswith("noElectricalAction") != ("power-component" in task or "conductivity" in task)
    assert variations.game_of(of("boil"), ()) == ["boil", 0, ""]
    with pytest.raises(InputError, match="no task 'cook'; the tasks are boil, melt"):
        of("cook")


def test_lists_are_asked_for_once(stand_in, tmp_path):
    made = stand_in()
    names = ["melt", "boil"]
    train = [of("melt"), of("melt", 1), of("boil"), of("boil", 1)]
    assert variations.variations(made, tmp_path, "train", names) == train
    goals = variations.goals(made, tmp_path, [of("boil"), of("melt", 1)])
    assert goals == ["Your task is boil, 0.", "Your task is melt, 1."]
    solved = expert.solutions(made, tmp_path, [of("boil"), of("boil", 2)])
    assert solved == [["open door to kitchen", "focus on water", "wait1"], []]
    made.close()  # nothing is asked from here on
    test = [of("melt", 3), of("melt", 4), of("boil", 3), of("boil", 4)]
    assert variations.variations(made, tmp_path, "test", names) == test
    assert variations.goals(made, tmp_path, [of("melt", 1)]) == goals[1:]
    assert expert.solutions(made, tmp_path, [of("boil", 2), of("boil")]) == solved[::-1]
    with pytest.raises(InputError, match="boil 3 is of the test split"):
        expert.solutions(made, tmp_path, [of("boil"), of("boil", 3)])
    with pytest.raises(InputError, match="no split 'valid'; the splits are train, dev, test"):
        variations.variations(made, tmp_path, "valid")
    (tmp_path / "goals-9.9.json").write_text('{"cut')
    with pytest.raises(InputError, match="goals-9.9.json' cannot be read; delete it"):
        variations.goals(made, tmp_path, [of("boil")])


def test_episodes_are_won_lost_and_counted(stand_in):
    made = stand_in()
    env = environment(made, BYTES, W, A)
    state, seen = env.reset(None, variations.games([of("boil")] * 4))
    assert {read(seen, i).split(".")[0] for i in range(4)} == {"This room is called the art studio"}
    on = jnp.array([True, True, True, False])
    actions = ["focus on water", "focus on agent", "open door", ""]
    state, outcome = env.step(None, None, state, spelt(actions, A), on)
    np.testing.assert_array_equal(outcome.success, [True, False, False, False])
    np.testing.assert_array_equal(outcome.terminated, [True, True, False, False])
    np.testing.assert_array_equal(outcome.progress, [1, 0, 0.25, 0])
    assert report(env, made) | {"started": 0} == {
        "started": 0, "steps": 3, "lost": 0, "cut": 0, "unspelt": 0, "groups_alike": 1, "replaced": 0,
    }  # fmt: skip


def test_what_the_engine_refuses_was_not_taken():
    """All the ways in which it says so, by the texts of its actions."""
    refused = """No known action matches that input.
Unknown action.
Ambiguous request: Please enter the number for the action you intended (or blank to cancel):
It's not clear how to get there from here.
 It's not clear how to read that.
Its not clear how to go to/through a table.
I'm not sure how to use those two things together.
The door doesn't appear to go anywhere.
That can't be moved there, because it's not a container.
That object already appears to be in the inventory.
You can't pick up a liquid directly.  Try pouring it from one container to another, or dunking empty containers.
Something can't be connected to itself.
The agent is not moveable.
The drawer isn't open, so you can't see inside.
The door is already open.
The stove is not something that can be deactivated.
The lighter appears broken, and can't be activated or deactivated.
The anode in battery is already connected, and must be disconnected before it can be connected to something else.
The water can't be poured out because it doesn't appear to be in a container."""
    assert [text for text in refused.split("\n") if not worker.is_refusal(text)] == []
    taken = [
        "You move to the kitchen.", "You focus on the pea plant.", "The stove is now activated.", "a drawing",
        "The door is now open.", "the thermometer measures a temperature of 10 degrees celsius",
        "You decide to wait for 10 iterations.", "In your inventory, you see:\n\ta jug, which is not full",
        "Your task is to boil water. If it is not there, go elsewhere.",
        "This room is called the kitchen. In it, you see:\n\ta freezer. The freezer door is open.",
    ]  # fmt: skip
    assert [text for text in taken if worker.is_refusal(text)] == []


def test_an_expert_is_tried(stand_in, tmp_path):
    made = stand_in()
    assert expert.wins(made, of("boil"), ["open door", "focus on water", "open door"]) == (True, 1.0, 2)
    assert expert.wins(made, of("boil"), ["focus on agent"]) == (False, 0.0, 1)
    assert expert.wins(made, of("boil"), ["open door"]) == (False, 0.25, 1)
    walk = ["go to hallway", "open door"]
    assert expert.wins(made, of("boil"), ["look around"], walk) == (False, 0.25, 1)
    assert expert.after_walk(made, tmp_path, of("boil"), walk) == ["focus on water"]
    assert expert.after_walk(made, tmp_path, of("boil", 2), walk) == []


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="Java is missing .none is on the PATH.; install a Java 17 runtime"):
        pool.Pool(1)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(InputError, match="JAVA_HOME = .* has none"):
        pool.Pool(1)
    java = tmp_path / "bin/java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    with pytest.raises(InputError, match="^scienceworld: no worker comes up: .* pip install scienceworld==1.2.3"):
        pool.Pool(1)  # the tests' own Python does not have it
    with pytest.raises(InputError, match="no worker comes up: .*no_python"):
        pool.Pool(1, python="/no_python")


def test_another_version_is_refused(stand_in, tmp_path):
    (tmp_path / "worker.py.tasks").write_text('["boil"]')
    with pytest.raises(InputError, match="version 9.9 has other tasks"):
        stand_in()


# With the real engine


@pytest.fixture
def machines():
    """Makes a pool of real machines."""
    if not PYTHON:
        pytest.skip("AGEMEM_SCIENCEWORLD names no Python that has the package scienceworld")
    made = []

    def make(count=2, **settings):
        made.append(pool.Pool(count, python=PYTHON, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.heavy
def test_the_package_has_these_tasks_and_splits(machines, tmp_path):
    made = machines()
    sizes = [len(variations.variations(made, tmp_path, split)) for split in variations.SPLITS]
    assert sizes == [3592, 1796, 1819]
    boil = [n - of("boil") for n in variations.variations(made, tmp_path, "dev", ["boil"])]
    assert boil == list(range(14, 21))


@pytest.mark.heavy
def test_solutions_win_through_the_bridge_on_machines_that_agree(machines, tmp_path):
    made = machines()
    env = environment(made, BYTES, W, A)
    step = jax.jit(env.step)
    for task in ("find-plant", "power-component", "chemistry-mix"):
        (actions,) = expert.solutions(made, tmp_path, [of(task)])
        state, seen = env.reset(None, variations.games([of(task)] * 2))
        assert read(seen, 0) == read(seen, 1) and read(seen, 0).startswith("This room is called")
        for action in actions:
            state, outcome = step(None, None, state, spelt([action] * 2, A), ~state.terminated)
            assert read(outcome.seen, 0) == read(outcome.seen, 1)
            if state.terminated.all():
                break
        assert state.success.all(), task
    assert report(env, made)["groups_alike"] == 1 and env.bridge.lost == 0


@pytest.mark.heavy
def test_an_episode_is_the_same_whatever_its_machine_plays_beside_it(machines):
    """Each game alone, and twice among all others on two machines in an order of chance: all answers are the same."""
    made, rng = machines(2), np.random.default_rng(0)
    numbers = [of(task, v) for task in ("find-plant", "boil", "chemistry-mix-paint-secondary-color") for v in (0, 5)]
    route = ["kitchen", "outside", "greenhouse", "hallway", "art studio"]
    actions = [x for room in route for x in (f"go to {room}", "look around", "pick up cup")] + ["mix jug", "wait"]

    def play(order):
        games = [made.game() for _ in order]
        told = [[game.start(number).result()] for game, number in zip(games, order, strict=True)]
        for i in rng.permutation(np.repeat(np.arange(len(games)), len(actions))).tolist():
            told[i].append(games[i].step(actions[len(told[i]) - 1]).result())
        for game in games:
            game.close()
        return told

    alone = {number: play([number])[0] for number in numbers}
    order = rng.permutation(numbers * 2).tolist()
    assert play(order) == [alone[number] for number in order]


@pytest.mark.heavy
def test_what_is_not_understood_and_what_loses(machines):
    env = environment(machines(), BYTES, W, A)
    state, _ = env.reset(None, variations.games([of("boil"), of("melt")]))
    on = jnp.array([True, True])
    # Which door is asked; the one that "0" means stands open.
    wanted = {
        "dance": False, "go to foundry": False, "open door": False, "0": False, "look around": True,
        " look around ": True, "": False,
    }  # fmt: skip
    for action, understood in wanted.items():
        state, outcome = env.step(None, None, state, spelt([action] * 2, A), on)
        assert outcome.understood.tolist() == [understood] * 2, action
    state, outcome = env.step(None, None, state, spelt(["focus on agent"] * 2, A), on)
    assert outcome.terminated.all() and not outcome.success.any() and (outcome.progress == 0).all()


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_machine_that_is_killed_or_hangs_is_replaced(machines, how):
    made = machines(1, timeout=5.0)
    env = environment(made, BYTES, W, A)
    state, _ = env.reset(None, variations.games([of("boil")]))
    os.kill(made.info["jvm"], how)
    state, outcome = env.step(None, None, state, spelt(["look around"], A), jnp.array([True]))
    assert outcome.truncated.all() and env.bridge.lost == 1
    state, seen = env.reset(None, variations.games([of("boil")]))
    assert not state.truncated.any() and made.replaced == 1
    assert wait_for_end([made.info["jvm"]])


TRAINER = """
import os, sys, time
from agemem_jax.benchmarks.scienceworld.pool import Pool
pool = Pool(1, python=sys.argv[1])
if os.fork() == 0:
    print("child", os.getpid(), flush=True)
    time.sleep(1000)
time.sleep(0.5)
print("jvm", pool.info["jvm"], flush=True)
time.sleep(1000)
"""


@pytest.mark.heavy
def test_a_killed_trainer_leaves_no_machine_though_its_forked_child_lives_on():
    if not PYTHON:
        pytest.skip("AGEMEM_SCIENCEWORLD names no Python that has the package scienceworld")
    trainer = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAINER, PYTHON], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = dict(trainer.stdout.readline().split() for _ in range(2))
    child, machine = int(told["child"]), int(told["jvm"])
    try:
        assert lives(machine)
        trainer.kill()
        trainer.wait()
        assert lives(child)
        assert wait_for_end([machine])
    finally:
        os.kill(child, signal.SIGKILL)
        trainer.stdout.close()
