"""Plays texts in AgentBoard's own PDDL environment. Run by test_pddl.py with a Python that has gym and nltk.

CHECKOUT: folder of AgentBoard. On stdin a JSON list of {kind, domain, problems (a folder), index, texts}. On stdout
for each a list of {seen, goal, reward, won, valid, listed}, the first of the start.

AgentBoard's own code plays, and its copy of pddlgym; what both import beside it is replaced: the registry, the drawing,
and nltk's sentence splitter, whose data would have to be fetched (its word tokenizer takes the text as one sentence).
"""

import contextlib
import importlib
import io
import json
import sys
import types
from pathlib import Path

import nltk
from nltk.tokenize.destructive import NLTKWordTokenizer

checkout = Path(sys.argv[1]) / "agentboard"


def module(name: str, **content) -> types.ModuleType:
    made = sys.modules[name] = types.ModuleType(name)
    for key, value in content.items():
        setattr(made, key, value)
    return made


nltk.download = lambda *_: True
nltk.word_tokenize = NLTKWordTokenizer().tokenize
register = lambda _: lambda cls: cls  # noqa: E731
module("imageio")
module("common", registry=None)
module("common.registry", registry=types.SimpleNamespace(register_environment=register))
sys.path.insert(0, str(checkout))
folder = checkout / "environment" / "pddl_env" / "pddlgym"
module("pddlgym", __path__=[str(folder)])  # without the drawing that its __init__ imports
core = importlib.import_module("pddlgym.core")

requests = json.load(sys.stdin)
answers = []
with contextlib.redirect_stdout(io.StringIO()):
    pddl_env = importlib.import_module("environment.pddl_env.pddl_env")
    for request in requests:
        sys.modules["pddlgym"].make = lambda _, at=request: core.PDDLEnv(
            at["domain"], at["problems"], operators_as_actions=True, dynamic_action_space=True
        )
        game = pddl_env.PDDL(problem_index=request["index"], game_name=request["kind"])
        told = lambda valid: {  # noqa: E731
            "seen": game.states[-1],  # noqa: B023
            "goal": game.goal,  # noqa: B023
            "reward": game.reward,  # noqa: B023
            "won": game.won,  # noqa: B023
            "valid": valid,
            "listed": sorted(game._get_action_space()),  # noqa: B023
        }
        played = [told(True)]
        for text in request["texts"]:
            game.step(text)
            played.append(told(game.infos["action_is_valid"]))
        answers.append(played)
json.dump(answers, sys.stdout)
