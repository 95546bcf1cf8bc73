"""Times TextWorld with ALFWorld's games: python textworld_alfworld.py, with `alfworld` and `textworld`; see walks.py.

A game is the path of its file. A state is [what is seen, the admissible commands, won]; TextWorld makes the commands at
every step, asked or not.
"""

import functools

from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv
from walks import replay


@functools.cache
def loaded(path):
    """The game as alfworld plays it."""
    engine = AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)))
    engine.load(path)
    return engine


def begin(path):
    engine = loaded(path)
    return engine, engine.reset()


def step(engine, command):
    return engine.step(command)[0]


def look(engine, said):
    return [said.feedback, list(said["admissible_commands"]), bool(said["won"])]


if __name__ == "__main__":
    replay(begin, step, look)
