"""The README's benchmark and its engine on the host, as they stand there, put into a folder and played."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax import benchmarks
from agemem_jax.errors import InputError
from agemem_jax.training.setup import build
from agemem_jax.training.warm import demonstrate
from tests.readme import program
from tests.test_host_env import BYTES, games, read, spelt

# Where the README's worker looks for them: a game of one step, which prints, as TextWorld does.
STAND_INS = {
    "textworld/__init__.py": "def EnvInfos(**wanted): return wanted",
    "textworld/envs/__init__.py": "",
    "textworld/envs/pddl.py": """
class Seen:
    def __init__(self, feedback, won=False):
        self.feedback, self.won, self.admissible_commands = feedback, won, ["win"]

class PddlEnv:
    def __init__(self, infos):
        assert infos == {"won": True, "admissible_commands": True}
    def load(self, game):
        print("loading", game)
        self.game = game
    def reset(self):
        return Seen(f"This is {self.game}.")
    def step(self, text):
        won = text == "win"
        return Seen("You win." if won else "Nothing happens.", won), 0, won
    def close(self):
        print("closed")
""",
    "alfworld/__init__.py": "",
    "alfworld/agents/__init__.py": "",
    "alfworld/agents/environment/__init__.py": "",
    "alfworld/agents/environment/alfred_tw_env.py": "def AlfredDemangler(env): return env",
}


@pytest.fixture
def safe(tmp_path, monkeypatch):
    """The config of a run on it."""
    folder = tmp_path / "safe"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "tasks.py").write_text(program("\ndef load("))
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    named = {}
    exec(program("\ndef get_config("), named)
    config = named["get_config"]()
    config.policy.weights, config.policy.num_layers = "", 1
    config.task.train_size, config.task.validation_size, config.task.test_size = 16, 4, 8
    config.task.facts, config.task.distractors, config.train.eval_tasks = 3, 1, 8
    config.rl.stage1_updates = config.rl.stage2_updates = 0
    config.rl.tasks_per_update, config.rl.group_size = 4, 2
    return config


def test_the_benchmark_of_the_readme_is_played(safe):
    """Scripts look the code up and open the safe, as the engine says in tokens."""
    run = build(safe)
    demos = run.source.tasks.demonstrator(run.source, safe, run.tokenizer.end_of_turn)
    task, told = demos.batch(0, run.spec.rollout.batch)
    segments, rows = jax.jit(lambda task, told, world: demonstrate(run.spec.rollout, world, task, told))(
        task, told, run.world
    )
    stats = jax.tree.map(np.asarray, rows.stats)
    assert (stats.malformed == 0).all() and (stats.actions <= 1).all() and stats.success.mean() > 0.8
    assert (stats.success == (stats.actions > 0)).all()
    row = int(np.argmax(stats.success))
    last = int(segments.count[row]) - 1
    shown = run.tokenizer.decode(np.asarray(segments.tokens[row, last])[: int(segments.length[row, last])].tolist())
    assert "safe.\nA safe is before you." in shown and "<action>" in shown


def test_what_the_player_cannot_know_is_played_and_not_imitated(safe):
    """A code that was not looked up, is not kept, or is one of more than a retrieval shows, is no action to learn."""
    safe.task.train_size, safe.tools.default_top_k = 200, 1
    run = build(safe)
    demos = run.source.tasks.demonstrator(run.source, safe, run.tokenizer.end_of_turn)
    imitated, blind = 0, 0
    for index in range(200):
        (lines, held), staged = demos.tell(index, 0), run.source.staged(index)
        turns = lines.stages[2]
        acts = [turn for turn, said in enumerate(turns) if f"<action> {staged.play}" in said]
        assert len(acts) == 1
        looked_up = any("Retrieve_memory" in said for said in turns[: acts[0]])
        kept = staged.gold[0] in [text for _, text in held]
        if acts[0] not in lines.slips:
            assert looked_up and kept, turns
            imitated += 1
        blind += not kept
    assert imitated > 100 and blind > 10


@pytest.fixture
def textworld(tmp_path, monkeypatch):
    """The names of the README's program that plays TextWorld, with stand-ins for it."""
    for name, text in STAND_INS.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "textworld_worker.py").write_text(program("from textworld import"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.chdir(tmp_path)
    named = {"python": sys.executable, "files": ["one.tw-pddl", "two.tw-pddl"], "tokenizer": BYTES}
    exec(program("HostEnvironment("), named)
    yield named
    named["workers"].close()


def test_the_worker_of_the_readme_is_played(textworld):
    env = textworld["env"]
    state, seen = env.reset(None, games([1, 0]))
    assert [read(seen, i) for i in range(2)] == ["This is two.tw-pddl.", "This is one.tw-pddl."]
    state, outcome = env.step(None, None, state, spelt(["dance", "win"]), jnp.array([True, True]))
    assert [read(outcome.seen, i) for i in range(2)] == ["Nothing happens.", "You win."]
    for found in (outcome.understood, outcome.success, outcome.terminated, outcome.progress == 1):
        assert found.tolist() == [False, True]
    assert not outcome.truncated.any() and env.bridge.lost == textworld["workers"].replaced == 0


def test_the_worker_of_the_readme_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "textworld_worker.py").write_text(program("from textworld import"))
    with pytest.raises(InputError, match="textworld: .*No module named 'alfworld'; pip install alfworld"):
        exec(program("HostEnvironment("), {"python": sys.executable, "files": [], "tokenizer": BYTES})
