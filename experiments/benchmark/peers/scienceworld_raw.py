"""Times ScienceWorld's engine by itself: python scienceworld_raw.py replay|draw WORKER JAVA OPTION ...; see walks.py.

WORKER is agemem_jax/benchmarks/scienceworld/worker.py, of which the engine alone is used. A game is [task, variation,
simplifications]. A state is [what is seen, progress, terminated].

With `draw` walks have a number of "steps" in place of actions, and valid ones are drawn: {"actions": [[...], ...]}.
"""

import json
import random
import sys

from scienceworld_clock import worker
from walks import replay


def begin(game):
    engine.close({"episode": 0})
    return engine, {**engine.start({"episode": 0, "game": game}), "progress": 0.0, "terminated": False}


def step(engine, text):
    return engine.step({"episode": 0, "text": text})


def look(_, said):
    return [said["text"], round(said["progress"], 5), said["terminated"]]


def drawn(walk, seed: int) -> list[str]:
    """Random valid actions until the episode is over."""
    rng, actions = random.Random(seed), []
    begin(walk["game"])
    while len(actions) < walk["steps"]:
        valid = sorted(engine.episodes[0].world.getValidActionObjectCombinations())
        actions.append(rng.choice([text for text in valid if not text.startswith("focus")]))
        if step(engine, actions[-1])["terminated"]:
            break
    return actions


if __name__ == "__main__":
    what, path, java, *options = sys.argv[1:]
    engine = worker(path).Engine(java, options)
    if what == "replay":
        replay(begin, step, look)
    else:
        print(json.dumps({"actions": [drawn(walk, i) for i, walk in enumerate(json.load(sys.stdin))]}))
