"""Plays given walks in a real engine and times it, for the peers of benchmark_envs. Imports nothing of this project.

On standard input a JSON list of walks {"game": ..., "actions": [...]}. The last line of standard output is
{"steps": n, "seconds": [of each repetition], "cpu_seconds": [...], "states": [[state, ...] of each walk]}. The clocks
run in steps alone.
"""

import contextlib
import io
import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any

REPEATS = 3


def replay(begin: Callable[[Any], Any], step: Callable[[Any, Any], Any], look: Callable[[Any, Any], Any]) -> None:
    """Plays all walks REPEATS times.

    Args:
      begin: from a walk's game, (the engine, what it says at the start).
      step: from the engine and an action, what it says.
      look: from the engine and what it has said, the state to be compared; called in the first repetition alone.
    """
    walks, seconds, cpu_seconds, states = json.load(sys.stdin), [], [], []
    for repetition in range(REPEATS):
        spent = cpu_spent = 0.0
        for walk in walks:
            with contextlib.redirect_stdout(io.StringIO()):  # engines print
                engine, said = begin(walk["game"])
                told = [look(engine, said)] if repetition == 0 else []
                for action in walk["actions"]:
                    began, cpu_began = time.perf_counter(), time.process_time()
                    said = step(engine, action)
                    spent += time.perf_counter() - began
                    cpu_spent += time.process_time() - cpu_began
                    if repetition == 0:
                        told.append(look(engine, said))
            if repetition == 0:
                states.append(told)
        seconds.append(round(spent, 4))
        cpu_seconds.append(round(cpu_spent, 4))
    steps = sum(len(walk["actions"]) for walk in walks)
    print(json.dumps({"steps": steps, "seconds": seconds, "cpu_seconds": cpu_seconds, "states": states}))


def module(name: str, **content: Any) -> types.ModuleType:
    """A module that is imported and hardly used, put in place of the real one."""
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(content)
    return made
