"""Times AgentBoard's BabyAI: python agentboard_babyai.py CHECKOUT, with minigrid 3.2.0; see walks.py.

A game is [minigrid's id, seed]. A state is [what is seen, primitive actions so far].

AgentBoard's class runs as it is; what it imports and does not use here is left out.
"""

import importlib
import sys
import types

import numpy as np
from minigrid_babyai import made
from walks import module, replay


def agentboard(checkout):
    """AgentBoard's module of the environment."""
    module("gym", Env=object)
    module("matplotlib").pyplot = module("matplotlib.pyplot")
    module("common")
    register = lambda _: lambda cls: cls  # noqa: E731
    module("common.registry", registry=types.SimpleNamespace(register_environment=register))
    module("environment", __path__=[f"{checkout}/agentboard/environment"])
    environment = importlib.import_module("environment.babyai_env")
    # As it was with NumPy below 2.
    environment.np = types.SimpleNamespace(**{**vars(np), "cross": lambda a, b: a[0] * b[1] - a[1] * b[0]})
    return environment


def step(engine, text):
    return engine.step(text)[0]


def look(engine, said):
    return [said, int(engine.env.step_count)]


def main(checkout):
    environment = agentboard(checkout)

    def begin(game):
        name, seed = game
        # As it was with gymnasium below 1.
        environment.gymnasium = types.SimpleNamespace(make=lambda _: made(name, seed))
        engine = environment.BabyAI(game_name=name, seed=seed)
        return engine, engine.init_obs

    replay(begin, step, look)


if __name__ == "__main__":
    main(sys.argv[1])
