"""Walks through ALFWorld games in TextWorld itself: `pip install alfworld textworld`, and run this file.

Standard input is a JSON list of walks: {"path": ..., "commands": [...]} or {"path": ..., "seed": n, "steps": n}, by
random choice. For each, a line of JSON comes out: {"commands": [...], "states": [[seen, admissible, won], ...]}.
"""

import json
import random
import sys


def make(path: str):
    """The game as alfworld plays it."""
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld import EnvInfos
    from textworld.envs.pddl import PddlEnv

    environment = AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)))
    environment.load(path)
    return environment


def chosen(rng: random.Random, admissible: list[str]) -> str:
    """A command by chance: mostly those that change something, now and then one that is none."""
    idle = ("go to", "look", "inventory", "examine", "help")
    doing = [command for command in admissible if not command.startswith(idle)]
    going = [command for command in admissible if command.startswith("go to")]
    x = rng.random()
    if x < 0.05:
        return rng.choice(["take foo", "go to", rng.choice(admissible).upper(), f"  {rng.choice(admissible)} \n"])
    if x < 0.6 and doing:
        return rng.choice(doing)
    return rng.choice(going if x < 0.8 and going else admissible)


def walked(environment, step, commands: list[str] | None, seed: int, steps: int) -> dict:
    """The commands of a walk, and what came of each; it ends when the game is won."""
    rng, said, states = random.Random(seed), [], []
    seen, admissible, won = environment
    while True:
        states.append([seen, admissible, won])
        if won or len(said) == (steps if commands is None else len(commands)):
            return {"commands": said, "states": states}
        said.append(chosen(rng, admissible) if commands is None else commands[len(said)])
        seen, admissible, won = step(said[-1])


def main() -> None:
    for walk in json.load(sys.stdin):
        environment = make(walk["path"])
        told = lambda state: (state.feedback, list(state["admissible_commands"]), bool(state["won"]))  # noqa: E731
        step = lambda command: told(environment.step(command)[0])  # noqa: B023, E731
        out = walked(told(environment.reset()), step, walk.get("commands"), walk.get("seed", 0), walk.get("steps", 0))
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
