"""experiments/benchmark_envs.py: how walks are drawn and timed, and the figures made of them. No real engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from vocabularies import write_bpe

from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.types import Text
from experiments import benchmark_envs
from experiments.benchmark import envs

PEERS = Path(envs.__file__).parent / "peers"
PART = {"steps_per_s": 6000.0, "steps_per_cpu_s": 4000.0, "slowest_and_fastest": [1.0, 2.0], "compile_s": 1.0}


def part() -> dict:
    return {"batch": {str(b): PART for b in envs.BATCHES}, "bytes_a_game": 10, "bytes_a_state": 5, "bytes_shared": 1}


def test_ratios_are_of_the_largest_batch_and_none_where_nothing_was_measured():
    ours = {name: part() for name in envs.PARTS}
    reasons = {name: "no --python" for name in benchmark_envs.PEERS if name != "pddl"}
    theirs = {"pddl": {"steps": 30, "seconds": [2.0, 3.0, 9.0], "cpu_seconds": [1.0, 2.0, 2.0]}}
    states = [["x", 0], ["y", 0], ["Valid actions are: p, q", 0]]
    walks = {"pddl": [{"game": "g", "actions": ["a", "check"], "states": states}]}
    theirs["pddl"]["states"] = [[["x", 0], ["z", 0], ["Valid actions are: q, p", 0]]]
    figures = benchmark_envs.summarise(ours, theirs, walks, reasons)
    assert figures["ratio_at_batch_1024"] == dict(alfworld=None, pddl=600.0, babyai=None, babyai_primitives=None)
    assert figures["ratio_per_cpu_second_at_batch_1024"]["pddl"] == 266.7
    assert figures["identical"] == {"pddl": {"compared": 3, "identical": 2, "share": 0.6667}}
    assert figures["not_measured"] == reasons and figures["scienceworld_bridge_adds"] is None
    told = benchmark_envs.table(figures)
    assert told.count("not measured (no --python)") == 4
    for text in ("362.8 s an iteration, at most 17.6 environment steps/s", "arXiv 2505.10978v3", "2.53 h to"):
        assert text in told
    json.dumps(figures, allow_nan=False)


def test_what_the_bridge_adds_is_told():
    ours = {name: part() for name in envs.PARTS}
    ours["scienceworld"] = {"batch": {"1": {"bridge_adds": 0.04}, "16": {"bridge_adds": 0.011}}}
    theirs = {"scienceworld": {"steps": 4, "seconds": [2.0], "cpu_seconds": [0.1], "states": [[["a", 0.0, False]]]}}
    walks = {"scienceworld": [{"game": [], "actions": [], "states": [["a", 0.0, False]]}]}
    figures = benchmark_envs.summarise(ours, theirs, walks, {})
    assert figures["scienceworld_bridge_adds"] == {"1": 0.04, "16": 0.011}
    figures["not_measured"] = dict.fromkeys(benchmark_envs.GOALS, "no engine")
    told = benchmark_envs.table(figures)
    assert "the raw JVM 2.0 steps/s; the bridge adds 4.0% with 1 at a time, 1.1% with 16 at a time (goal 5%" in told


def test_lists_without_an_order_are_compared_as_sets():
    same = benchmark_envs.comparable
    assert same("pddl", "check valid actions", ["Valid actions are: b, a", 1]) == [["a", "b"], 1]
    assert same("pddl", "look around", ["B is. A is.", 1]) == same("pddl", "look around", ["A is. B is.", 1])
    assert same("pddl", "move", ["B is. A is.", 1]) == ["B is. A is.", 1]
    assert same("babyai", "check available actions", ["b, a"]) == ["b, a"]


def test_pythons_are_named(tmp_path):
    python = sys.executable
    assert benchmark_envs.named_pythons([f"pddl={python}", f"babyai={python}"]) == {"pddl": python, "babyai": python}
    for text, what in (("textworld=/p", "one of alfworld, babyai, pddl, scienceworld"), (python, "give NAME=PYTHON"),
                       (f"pddl={tmp_path}", "is no program"), ("pddl=/nowhere", "is no program")):  # fmt: skip
        with pytest.raises(InputError, match=what):
            benchmark_envs.named_pythons([text])
    assert benchmark_envs.missing("pddl", {}, None) == "no --python=pddl=PYTHON and no --agentboard=CHECKOUT"
    assert benchmark_envs.missing("babyai_primitives", {"babyai": python}, None) is None


@struct.dataclass
class Counting:
    at: jax.Array  # [B] int32


@struct.dataclass
class Ended:
    seen: Text
    success: jax.Array
    terminated: jax.Array


class Toy:
    """Counts what "one" and "two" add, up to the number of its game; `shared` spells these and "over"."""

    seen_tokens, action_tokens = 4, 4

    def reset(self, shared, game):
        zero = jnp.zeros_like(game)
        return Counting(zero), Text(jnp.tile(shared.tokens[0], (len(game), 1)), jnp.tile(shared.length[0], len(game)))

    def step(self, shared, game, state, action, on):
        is_two = (action.tokens == shared.tokens[1]).all(1)
        at = state.at + jnp.where(on, 1 + is_two, 0)
        over = at >= game
        which = jnp.where(over, 2, is_two)
        seen = Text(shared.tokens[which], jnp.where(on, shared.length[which], 0))
        return Counting(at), Ended(seen, over, over)


def test_walks_are_drawn_once_timed_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(envs, "ROWS", 8)
    monkeypatch.setattr(envs, "BATCHES", (1, 8))
    monkeypatch.setattr(envs, "REPEATS", {1: 3, 8: 2})
    spelling = envs.Spelling(Tokenizer.load(write_bpe(tmp_path)))
    words = spelling.write(["one", "two", "over"], 4)
    played = envs.Played(Toy(), words, np.array([2, 6], np.int32), 2, spelling)
    actions, on, lists = played.drawn(lambda state: [["one", "two"]] * 8, 5, seed=1)
    assert lists == [[["one", "two"]] * 2] * 6
    again = played.drawn(lambda state: [["one", "two"]] * 8, 5, seed=1)
    assert again[0] == actions and (again[1] == on).all()
    figures, (outcome, kept) = played.timed(actions, on)
    assert set(figures) == {"1", "8"} and kept == ()
    assert all(one["steps_per_s"] > 0 and one["compile_s"] > 0 for one in figures.values())
    seen = played.told(outcome)
    walks = played.walks(["small", "large"], actions, on, lambda step, row: [seen[step][row]])
    for walk, goal in zip(walks, (2, 6), strict=True):
        at = 0
        assert walk["states"][0] == ["one"]
        for action, (told,) in zip(walk["actions"], walk["states"][1:], strict=True):
            assert at < goal  # nothing is said to a game that is over
            at += 1 + (action == "two")
            assert told == ("over" if at >= goal else action)
    assert len(walks[0]["actions"]) < len(walks[1]["actions"])


def test_spelling_refuses_what_does_not_fit(tmp_path):
    spelling = envs.Spelling(Tokenizer.load(write_bpe(tmp_path)))
    assert spelling.read(spelling.write(["Silver River", ""], 30)) == ["Silver River", ""]
    with pytest.raises(ValueError, match="more than 1"):
        spelling.write(["Silver River, and so on"], 1)


def test_vocabularies_are_trained_on_texts(tmp_path):
    made = envs.vocabulary(tmp_path, ["You see a drawer 12, and a drawer 3."] * 3)
    assert made.decode(made.encode("You see nothing, 京.")) == "You see nothing, 京."
    assert len(made.encode(" drawer")) == 1


PEER = """
from walks import replay
def begin(game):
    print("engines print")
    return [game], game
def step(engine, action):
    engine.append(action)
    return "".join(engine)
replay(begin, step, lambda engine, said: [said, len(engine)])
"""


def test_peers_replay_walks_and_print_one_line():
    walks = [{"game": "a", "actions": ["b", "c"]}, {"game": "d", "actions": []}]
    command = [sys.executable, "-c", PEER]
    done = subprocess.run(command, input=json.dumps(walks), cwd=PEERS, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["steps"] == 2 and len(told["seconds"]) == len(told["cpu_seconds"]) == 3
    assert told["states"] == [[["a", 1], ["ab", 2], ["abc", 3]], [["d", 1]]]


GROUNDING = """
import pddlgym
class PDDL:
    def __init__(self, problem_index, game_name):
        pddlgym.make("")
        self.states, self.infos, self.reward, self.won, self.actions = [game_name], {}, 0, False, []
    def _get_action_space(self):
        self.actions = ["b", "a"]
        return self.actions
    def step(self, text):
        assert self.actions, "grounded in a step"
        return text + "!", 0, False, {}
"""


def test_agentboards_pddl_grounds_before_the_clock_runs(tmp_path):
    """In a stand-in for AgentBoard and nltk. Grounding takes it about as long as 17 steps; ours is done before too."""
    agentboard = tmp_path / "agentboard" / "environment" / "pddl_env"
    files = {
        agentboard / "pddl_env.py": GROUNDING,
        agentboard / "pddlgym" / "core.py": "PDDLEnv = lambda *_, **__: None",
        tmp_path / "nltk" / "__init__.py": "",
        tmp_path / "nltk" / "tokenize" / "destructive.py": "class NLTKWordTokenizer: tokenize = None",
        tmp_path / "p.pddl": "",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    game = {"kind": "gripper", "domain": "d.pddl", "problem": str(tmp_path / "p.pddl")}
    done = subprocess.run(
        [sys.executable, PEERS / "agentboard_pddl.py", tmp_path], input=json.dumps([{"game": game, "actions": ["a"]}]),
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    states = [["gripper", 0, False, True, ["a", "b"]], ["a!", 0, False, True, ["a", "b"]]]
    assert json.loads(done.stdout)["states"] == [states]


def test_programs_find_nothing_compiled(monkeypatch):
    """Compiling is measured."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache")
    say = "import json, os, sys; keys = ('JAX_COMPILATION_CACHE_DIR', 'JAX_PLATFORMS')\n"
    say += "print(json.dumps({'told': json.load(sys.stdin), 'settings': [os.environ.get(key) for key in keys]}))"
    done = benchmark_envs.run("settings", [sys.executable, "-c", say], [{"game": 1}])
    assert done == {"told": [{"game": 1}], "settings": [None, "cpu"]}
