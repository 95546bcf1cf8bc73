"""Text environments on the host behind the device protocol: whole programs against the same games played in Python."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from agemem_jax import sharding
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.host import LOST, Bridge, HostEnvironment, HostGame, Reply
from agemem_jax.envs.workers import WorkerError, Workers
from agemem_jax.errors import InputError
from agemem_jax.sharding import LOCAL, Layout
from agemem_jax.types import Text
from tests.readme import program
from tests.text_games import WORKER, Corridor, byte_tokenizer

W, A, TURNS = 64, 16, 5
BYTES = byte_tokenizer()
ROOT = Path(__file__).parent.parent


def spelt(texts: list[str], width: int = A) -> Text:
    ids = [BYTES.encode(text) for text in texts]
    tokens = np.array([row + [0] * (width - len(row)) for row in ids], np.int32)
    return Text(jnp.asarray(tokens), jnp.array([len(row) for row in ids], jnp.int32))


def read(text: Text, *place) -> str:
    length = int(text.length[place])
    assert not np.asarray(text.tokens[place])[length:].any()
    return BYTES.decode(np.asarray(text.tokens[place])[:length])


def games(numbers, fresh: bool = False) -> HostGame:
    index = np.asarray(numbers, np.int32)
    return HostGame(index, np.full(index.shape, fresh))


def engine(game=Corridor, layout: Layout = LOCAL, width: int = W) -> HostEnvironment:
    return HostEnvironment(width, A, Bridge(game, BYTES), layout)


@functools.partial(jax.jit, static_argnums=0)
def play(env: HostEnvironment, game: HostGame, script: Text):
    """Acts from a script [B, TURNS, A] in a while_loop, as a stage does; "" leaves a row out for a turn."""
    state, seen = env.reset(None, game)
    batch = len(game.index)
    _, like = jax.eval_shape(
        env.step, None, game, state, jax.tree.map(lambda x: x[:, 0], script), jnp.zeros(batch, bool)
    )
    record = jax.tree.map(lambda x: jnp.zeros((TURNS, *x.shape), x.dtype), like)

    def turn(carry):
        t, state, record = carry
        action = jax.tree.map(lambda x: x[:, t], script)
        on = (action.length > 0) & ~state.terminated & ~state.truncated
        state, outcome = env.step(None, game, state, action, on)
        return t + 1, state, jax.tree.map(lambda all, new: all.at[t].set(new), record, outcome)

    _, state, record = lax.while_loop(lambda carry: carry[0] < TURNS, turn, (jnp.int32(0), state, record))
    return state, seen, record


def twin(number: int, actions: list[str]):
    """The same in Python: (first sight, outcomes as (seen, progress, success, terminated, truncated, understood))."""
    game, rows = Corridor(), []
    first, best, over = game.start(number), 0.0, (False, False, False)
    for action in actions:
        if not action or over[1] or over[2]:
            rows.append(("", best, *over, False))
            continue
        try:
            reply = game.step(action)
        except BaseException:
            reply, over = Reply(LOST, best, False, False, True, False), (False, False, True)
        best = max(best, 0.0 if np.isnan(reply.progress) else reply.progress)
        over = reply.success, reply.terminated, reply.truncated
        rows.append((reply.text, best, *over, reply.understood))
    return first, rows


def scripts(batch: int, seed: int = 0) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    words = ["left", "right", " right\n", "dance", "", "crash", "exit"]
    return [[str(w) for w in rng.choice(words, TURNS, p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.05, 0.05])] for _ in range(batch)]


def stacked(lines: list[list[str]]) -> Text:
    rows = [spelt(line) for line in lines]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def assert_is_twins(numbers, lines, seen, record):
    for i, (number, line) in enumerate(zip(numbers, lines, strict=True)):
        first, wanted = twin(number, [action.strip() for action in line])
        assert read(seen, i) == first
        for t, (text, *rest) in enumerate(wanted):
            assert read(record.seen, t, i) == text
            names = "progress", "success", "terminated", "truncated", "understood"
            np.testing.assert_allclose([getattr(record, name)[t, i] for name in names], np.float32(rest))


def test_a_program_plays_as_python_does_and_again_when_it_is_run_again():
    numbers, env = [3, 3, 0, 1, 4, 7], engine()
    for seed in range(3):
        lines = scripts(len(numbers), seed)
        state, seen, record = play(env, games(numbers), stacked(lines))
        assert_is_twins(numbers, lines, seen, record)
        np.testing.assert_array_equal(state.episode, seed * len(numbers) + np.arange(len(numbers)))
        np.testing.assert_array_equal(state.row, np.arange(len(numbers)))
    assert play._cache_size() == 1
    report = env.bridge.report()
    assert report["started"] == 18 and report["groups_alike"] == 1
    assert report["lost"] == sum("game crashed" in r or r.endswith(": 3") for r in env.bridge.reasons)
    env.bridge.close()


def test_rows_on_a_mesh_are_asked_once_each():
    numbers = [0, 1, 2, 3] * 2
    for sizes in ((8, 1, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(*sizes)
        env = engine(layout=Layout(mesh, "rollout"))
        for seed in (1, 2):
            lines = scripts(8, seed)
            game, script = jax.device_put((games(numbers), stacked(lines)), sharding.rows(mesh))
            state, seen, record = play(env, game, script)
            assert_is_twins(numbers, lines, seen, record)
            np.testing.assert_array_equal(state.row, np.arange(8))
        assert env.bridge.started == 16
        assert len(set(np.asarray(state.episode).tolist())) == 8


def test_it_works_inside_of_by_rows():
    mesh = sharding.make_mesh(4, 1, 2)
    layout = Layout(mesh, "rollout")
    env, numbers = engine(layout=layout), [0, 1, 2, 3] * 2

    @jax.jit
    def program(game, action):
        def local(game, action):
            state, _ = env.reset(None, game)
            return env.step(None, game, state, action, state.row % 2 == 0)

        return sharding.by_rows(layout, local, (game, action))

    state, outcome = program(games(numbers), spelt(["left"] * 8))
    assert [read(outcome.seen, i) for i in range(8)] == ["You are in room 1.", ""] * 4
    np.testing.assert_array_equal(state.turn, [1, 0] * 4)
    assert env.bridge.steps == 4


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 1, 2)])
def test_large_arrays_and_busy_threads_do_not_lock_each_other(sizes):
    """Arguments of more than 100 KiB are copied by threads that may all be waiting for the callback."""
    rows, width = 1024, 128
    env = HostEnvironment(8, width, Bridge(Corridor, BYTES), Layout(sharding.make_mesh(*sizes), "rollout"))

    @jax.jit
    def program(game, x):
        def turn(carry):
            t, state, x = carry
            x = x @ x * 1e-3
            action = Text(jnp.full((rows, width), 1 + ord("d")) + (x[0, 0] > 1e30), jnp.full((rows,), width))
            state, _ = env.step(None, game, state, action, ~state.terminated)
            return t + 1, state, x

        state, _ = env.reset(None, game)
        return lax.while_loop(lambda carry: carry[0] < 3, turn, (0, state, x))[1]

    for _ in range(2):
        assert (program(games([0] * rows), jnp.full((512, 512), 1e-3)).turn == 3).all()


def test_rows_that_are_off_keep_their_state_bit_for_bit():
    env = engine()
    state, _ = env.reset(None, games([0, 1]))
    state, _ = env.step(None, None, state, spelt(["left", "left"]), jnp.array([True, True]))
    after, outcome = env.step(None, None, state, spelt(["left", "left"]), jnp.array([True, False]))
    same = jax.tree.map(lambda new, old: bool(new[1] == old[1]), after, state)
    assert all(jax.tree.leaves(same)) and int(outcome.seen.length[1]) == 0 and not outcome.understood[1]
    assert float(outcome.progress[1]) == float(state.progress[1]) == 1
    assert env.bridge.steps == 3
    steps = env.bridge.steps
    env.step(None, None, after, spelt(["left", "left"]), jnp.zeros(2, bool))
    assert env.bridge.steps == steps


def test_an_action_out_of_its_order_cuts_the_episode_off():
    env = engine()
    before, _ = env.reset(None, games([4, 4]))
    on = jnp.array([True, True])
    env.step(None, None, before, spelt(["left"] * 2), on)
    after, outcome = env.step(None, None, before, spelt(["left"] * 2), on)  # the same turn once more
    assert outcome.truncated.all() and read(outcome.seen, 0) == LOST
    assert "action 0 comes in place of action 1" in env.bridge.reasons[-1]
    old = after
    env.reset(None, games([4, 4]))
    _, outcome = env.step(None, None, old, spelt(["left"] * 2), on)
    assert outcome.truncated.all() and "is gone" in env.bridge.reasons[-1]


def test_episodes_are_closed_when_they_end_and_when_their_row_begins_another():
    made = []

    def new(fresh):
        made.append(Corridor(fresh))
        return made[-1]

    env = engine(new)
    state, _ = env.reset(None, games([3, 0]))
    env.step(None, None, state, spelt(["right", "right"]), jnp.array([True, True]))
    assert [game.is_closed for game in made] == [True, False]
    assert env.render(None, None, state, 1).splitlines() == [
        "Go to room 0. You are in room 2.", "> right", "You are in room 3.",
    ]  # fmt: skip
    env.reset(None, games([1, 1]))
    assert [game.is_closed for game in made] == [True, True, False, False]
    assert "gone" in env.render(None, None, state, 1)
    env.bridge.close()
    assert all(game.is_closed for game in made)


def test_an_episode_that_is_over_stays_as_it_was():
    env, on = engine(), jnp.array([True])
    state, _ = env.reset(None, games([3]))
    state, won = env.step(None, None, state, spelt(["right"]), on)
    after, outcome = env.step(None, None, state, spelt(["left"]), on)
    assert won.success.all() and outcome.success.all() and outcome.terminated.all() and outcome.progress[0] == 1
    assert not outcome.understood.any() and outcome.seen.length[0] == 0 and env.bridge.lost == 0


def test_a_game_that_cannot_begin_or_tells_nonsense_is_cut_off_and_counted():
    class Broken(Corridor):
        def start(self, index):
            if index == 1:
                raise OSError("no such world")
            return super().start(index)

        def step(self, action):
            return ("text",) if action == "left" else super().step(action)

    env = engine(Broken)
    state, seen = env.reset(None, games([0, 1]))
    np.testing.assert_array_equal(state.truncated, [False, True])
    assert read(seen, 1) == LOST
    _, outcome = env.step(None, None, state, spelt(["left", "left"]), jnp.array([True, True]))
    assert outcome.truncated.all() and env.bridge.lost == 2


def test_long_texts_are_cut_by_bytes_and_strange_ones_are_spelt_as_far_as_can_be():
    class Says(Corridor):
        def start(self, index):
            return ["é" * 40, "naïve \udc80 京"][index]

    env = engine(Says, width=31)
    _, seen = env.reset(None, games([0, 1]))
    raw = b"".join(BYTES.pieces[i] for i in np.asarray(seen.tokens[0]))
    assert raw == ("é" * 40).encode()[:31] and env.bridge.cut == 1
    assert read(seen, 1) == "naïve ? 京"

    tiny = Tokenizer.load(str(ROOT / "agemem_jax/assets/tiny/tokenizer.model"))
    env = HostEnvironment(W, A, Bridge(Corridor, tiny))
    _, seen = env.reset(None, games([0]))
    assert tiny.decode(np.asarray(seen.tokens[0])[: int(seen.length[0])]) == "Go to room 0 You are in room 2"
    assert env.bridge.unspelt == 1


def test_groups_whose_worlds_differ_are_told():
    made = []

    class Drifts(Corridor):
        def start(self, index):
            made.append(index)
            return f"{super().start(index)} It is {len(made) < 3}."

    env = engine(Drifts)
    env.reset(None, games([2, 2, 2, 2, 5, 5]))  # the first and the second are alike
    assert env.bridge.report()["groups_alike"] == 2 / 4


# Worker processes


@pytest.fixture
def workers():
    made = []

    def make(*args, count=2, **settings):
        settings = {"timeout": 2.0, "boot": 30.0} | settings
        made.append(Workers([sys.executable, "-I", str(WORKER), *args], lambda i: f"game {i}", count, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(lives, pids))


def test_workers_play_through_the_bridge(workers):
    pool = workers()
    env = engine(pool.game)
    state, seen = env.reset(None, games([0, 1, 2, 3]))
    assert {read(seen, i).split(" of ")[1] for i in range(4)} == {f"game {i}" for i in range(4)}
    for turn in range(1, 5):
        state, outcome = env.step(None, None, state, spelt(["a", "b", "mumble", "d"]), ~state.terminated)
        assert [read(outcome.seen, i) for i in range(4)] == [f"{w}, {turn}" for w in ("a", "b", "mumble", "d")]
        np.testing.assert_array_equal(outcome.understood, [True, True, False, True])
    assert outcome.success.all() and env.bridge.lost == pool.replaced == 0


def test_more_requests_than_a_pipe_holds(workers):
    pool = workers()
    env = engine(pool.game)
    state, _ = env.reset(None, games(range(1500)))
    _, outcome = env.step(None, None, state, spelt(["well"] * 1500), ~state.truncated)
    assert (outcome.progress == 0.25).all() and env.bridge.lost == 0


@pytest.mark.parametrize("how", ["hang", "die", "garbage", "endless", "stranger"])
def test_a_worker_that_fails_is_replaced_and_its_episode_cut_off(workers, how):
    pool = workers()
    env = engine(pool.game)
    before = [pool.info[name] for name in ("pid", "child")]
    state, _ = env.reset(None, games([0, 1]))
    state, outcome = env.step(None, None, state, spelt([how, "well"]), jnp.array([True, True]))
    np.testing.assert_array_equal(outcome.truncated, [True, False])
    assert read(outcome.seen, 0) == LOST and read(outcome.seen, 1) == "well, 1"
    assert env.bridge.lost == pool.replaced == 1
    state, outcome = env.step(None, None, state, spelt(["more", "more"]), ~state.truncated)
    assert read(outcome.seen, 1) == "more, 2"
    state, seen = env.reset(None, games([0, 1]))  # both play again
    assert not state.truncated.any() and "game 0" in read(seen, 0)
    whose = {answer["pid"]: answer["child"] for answer in (pool.ask("who") for _ in range(4))}
    assert all(map(lives, [*whose, *whose.values()]))
    pool.close()
    assert wait_for_end([*whose, *whose.values(), *before])


def test_fresh_episodes_get_workers_that_have_done_nothing(workers):
    pool = workers()
    env = engine(pool.game)
    for fresh in (False, False, True, True, False):
        state, seen = env.reset(None, games([7, 7], fresh))
        assert not state.truncated.any()
        if fresh:
            assert [read(seen, i) for i in range(2)] == ["world 1 of game 7"] * 2
    assert pool.replaced == 0  # replaced for having failed
    state, _ = env.reset(None, games([7, 7, 7], fresh=True))
    assert np.asarray(state.truncated).sum() == 1 and "as many workers as rows" in env.bridge.reasons[-1]


@pytest.mark.parametrize(
    ("how", "told"), [("refuse", "no engine; install it"), ("stillborn", "it died"), ("mute", "silent for too long")]
)
def test_workers_that_do_not_come_up_say_why(workers, how, told):
    with pytest.raises(InputError, match=f"^workers: no worker comes up: .*{told}"):
        workers(how, boot=0.5 if how == "mute" else 30.0)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(InputError, match="nothing_of_that_name"):
        Workers(["/nothing_of_that_name"], str, 1)


def test_when_the_supervisor_is_killed_its_workers_are_too(workers):
    pool = workers()
    env = engine(pool.game)
    state, _ = env.reset(None, games([0, 1]))
    pids = [pool.ask("who")["pid"] for _ in range(4)]
    pool._process.kill()
    _, outcome = env.step(None, None, state, spelt(["a", "b"]), jnp.array([True, True]))
    assert outcome.truncated.all()
    with pytest.raises(WorkerError, match="supervisor is gone"):
        pool.ask("who")
    assert wait_for_end(pids)


TRAINER = """
import os, sys, time
from agemem_jax.envs.workers import Workers
pool = Workers([sys.executable, "-I", sys.argv[1]], str, 2)
if os.fork() == 0:  # holds all that its parent had open
    print("child", os.getpid(), flush=True)
    time.sleep(1000)
found = [pool.ask("who") for _ in range(2)]
time.sleep(0.5)
print("all", pool._process.pid, *(a["pid"] for a in found), *(a["child"] for a in found), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_trainer_leaves_no_worker_though_its_forked_child_lives_on(signal_number):
    trainer = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAINER, str(WORKER)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = dict(trainer.stdout.readline().split(" ", 1) for _ in range(2))
    child, pids = int(told["child"]), [int(pid) for pid in told["all"].split()]
    try:
        assert all(map(lives, pids))
        os.kill(trainer.pid, signal_number)
        trainer.wait()
        assert lives(child)
        # The workers' children die with the group that the supervisor kills.
        assert wait_for_end(pids)
    finally:
        os.kill(child, signal.SIGKILL)
        trainer.stdout.close()


@pytest.mark.heavy
def test_the_real_textworld_plays_through_the_bridge(tmp_path):
    """By the README's worker program."""
    python, data = os.environ.get("AGEMEM_TEXTWORLD", ""), os.environ.get("AGEMEM_DATA", "")
    if not (python and data):
        pytest.skip("AGEMEM_TEXTWORLD names no Python that has alfworld, or AGEMEM_DATA no folder that has its games")
    files = sorted(Path(data).glob("alfworld/json_2.1.1/valid_seen/*/*/game.tw-pddl"))
    files = [str(file) for file in sorted(files, key=lambda file: (file.stat().st_size, file))[:2]]
    worker = tmp_path / "textworld_worker.py"
    worker.write_text(program("from textworld import"))
    pool = Workers([python, str(worker)], files.__getitem__, 1, timeout=300.0, boot=300.0, name="textworld")
    try:
        env = engine(pool.game, width=2048)
        for game in range(2):
            # The engine itself, without a bridge, along commands that it allows; between them one that it does not.
            told = pool.ask("start", episode=-1, game=files[game])
            state, seen = env.reset(None, games([game]))
            assert read(seen, 0) == told["text"]
            rng, on = np.random.default_rng(game), jnp.array([True])
            for turn in range(12):
                action = "dance" if turn == 5 else str(rng.choice(told["commands"]))
                told = pool.ask("step", episode=-1, text=action)
                state, outcome = env.step(None, None, state, spelt([action], 80), on)
                assert read(outcome.seen, 0) == told["text"]
                assert outcome.understood.tolist() == [told["understood"]] and told["understood"] == (turn != 5)
                assert outcome.terminated.tolist() == [told["terminated"]]
            pool.ask("close", episode=-1)
        assert env.bridge.lost == 0
    finally:
        pool.close()
