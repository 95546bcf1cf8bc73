"""Times AgentBoard's PDDL environment: python agentboard_pddl.py CHECKOUT, with gym 0.26, nltk, numpy 1; see walks.py.

A game is {"kind", "domain", "problem"}: AgentBoard's name of the domain, and two paths. A state is
[what is seen, progress, won, whether the action was valid, the valid actions, sorted].

AgentBoard's own code plays, and its copy of pddlgym; what both import beside it is replaced: the registry, the drawing,
and nltk's sentence splitter, whose data would have to be fetched (its word tokenizer takes the text as one sentence).
"""

import importlib
import shutil
import sys
import tempfile
import types
from pathlib import Path

import nltk
from nltk.tokenize.destructive import NLTKWordTokenizer
from walks import module, replay


def agentboard(checkout: Path) -> tuple:
    """AgentBoard's module of the environment, and pddlgym's core."""
    nltk.download = lambda *_: True
    nltk.word_tokenize = NLTKWordTokenizer().tokenize
    register = lambda _: lambda cls: cls  # noqa: E731
    module("imageio")
    module("common", registry=None)
    module("common.registry", registry=types.SimpleNamespace(register_environment=register))
    sys.path.insert(0, str(checkout / "agentboard"))
    folder = checkout / "agentboard" / "environment" / "pddl_env" / "pddlgym"
    module("pddlgym", __path__=[str(folder)])  # without the drawing that its __init__ imports
    core = importlib.import_module("pddlgym.core")
    return importlib.import_module("environment.pddl_env.pddl_env"), core


def step(engine, text):
    return engine.step(text)[0]


def look(engine, said):
    is_valid = engine.infos.get("action_is_valid", True)
    return [said, round(engine.reward, 5), engine.won, is_valid, sorted(engine._get_action_space())]


def main(checkout: Path, scratch: Path) -> None:
    environment, core = agentboard(checkout)

    def begin(game):
        folder = scratch / game["problem"].strip("/").replace("/", "_")  # of this problem alone
        folder.mkdir(exist_ok=True)
        shutil.copy(game["problem"], folder / "problem.pddl")
        sys.modules["pddlgym"].make = lambda _: core.PDDLEnv(
            game["domain"], str(folder), operators_as_actions=True, dynamic_action_space=True
        )
        engine = environment.PDDL(problem_index=0, game_name=game["kind"])
        engine._get_action_space()  # grounds the operators, else its first step does; ours are when a problem is read
        return engine, engine.states[-1]

    replay(begin, step, look)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1]), Path(scratch))
