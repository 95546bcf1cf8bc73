"""ScienceWorld through the bridge of envs/host.py: what it adds to the engine's own time (benchmark_envs).

One machine plays given walks; a clock in its worker (peers/scienceworld_clock.py) tells how long the engine's own calls
took in the same steps. Batches above 1 play many worlds on that machine, so that host work hides behind its answers.
"""

import statistics
import time
from pathlib import Path

import jax
import numpy as np
from jax import lax

from agemem_jax.benchmarks.scienceworld import pool, variations
from agemem_jax.envs.host import Bridge, HostEnvironment
from agemem_jax.envs.workers import Workers
from experiments.benchmark.envs import Spelling, vocabulary

CLOCK = Path(__file__).parent / "peers" / "scienceworld_clock.py"
BATCHES = (1, 16)
REPEATS = 3
STEPS = 15
GAMES = ("find-plant", "boil", "power-component", "chemistry-mix")  # the first variation of each
SEEN_TOKENS, ACTION_TOKENS = 512, 64


def engine() -> list[str]:
    """What a script of the engine is told: worker, Java and options. Raises InputError where Java is missing."""
    return [str(pool.WORKER), pool.find_java(), "-Xmx1g", *pool.OPTIONS]


def games() -> list[list]:
    """[task, variation, simplifications] of the games."""
    return [variations.game_of(variations.number_of(task, 0)) for task in GAMES]


def play(python: str, walks: list[dict], folder: Path) -> dict:
    """The figures, and the walks {"game", "actions"} with their states as peers/scienceworld_raw.py tells them.

    Raises:
      InputError: no machine comes up; it says what is missing.
    """
    texts = [text for walk in walks for text in (*walk["actions"], *(state[0] for state in walk["states"]))]
    tokenizer = vocabulary(folder, texts)
    workers = Workers([python, str(CLOCK), *engine()], lambda i: walks[i]["game"], 1, name="scienceworld")
    try:
        env = HostEnvironment(SEEN_TOKENS, ACTION_TOKENS, Bridge(workers.game, tokenizer))
        return measured(env, workers, walks, Spelling(tokenizer))
    finally:
        workers.close()


def measured(env: HostEnvironment, workers: Workers, walks: list[dict], spelling: Spelling) -> dict:
    """As `play`. A world of the first passes, one row at a time, is the one that the raw engine has played."""

    @jax.jit
    def begin(game):
        return env.reset(None, game)

    @jax.jit
    def steps(game, state, given):
        def one(state, given):
            return env.step(None, game, state, *given)

        return lax.scan(one, state, given)[1]

    figures, told = {}, []
    for batch in BATCHES:
        wall, own, compile_s = [], [], 0.0
        for repetition in range(REPEATS):
            spent = 0.0
            workers.ask("spent")
            for row in range(0, max(len(walks), batch), batch):
                numbers = np.arange(row, row + batch) % len(walks)
                game = variations.games(numbers)
                given, on = actions([walks[i] for i in numbers], spelling)
                state, seen = jax.block_until_ready(begin(game))
                if repetition == row == 0:
                    began = time.perf_counter()
                    compiled = steps.lower(game, state, (given, on)).compile()
                    compile_s = time.perf_counter() - began
                    jax.block_until_ready(compiled(game, state, (given, on & False)))  # nobody steps
                began = time.perf_counter()
                outcome = jax.block_until_ready(compiled(game, state, (given, on)))
                spent += time.perf_counter() - began
                if batch == 1 and repetition == 0:
                    told.append(states(spelling, seen, outcome, int(on.sum())))
            wall.append(spent)
            own.append(workers.ask("spent")["seconds"])
        rows = np.arange(max(len(walks), batch)) % len(walks)
        taken = sum(len(walks[i]["actions"]) for i in rows)
        adds = [spent / inside - 1 for spent, inside in zip(wall, own, strict=True)]
        figures[str(batch)] = {
            "steps_per_s": round(taken / statistics.median(wall), 1),
            "engine_s_a_step": round(statistics.median(own) / taken, 5),
            "bridge_adds": round(statistics.median(adds), 4),
            "compile_s": round(compile_s, 2),
        }
    walks = [{**walk, "states": states} for walk, states in zip(walks, told, strict=True)]
    return {"figures": {"batch": figures}, "walks": walks}


def actions(walks: list[dict], spelling: Spelling) -> tuple:
    """Actions [T, B, A] of walks, one a row, and where there is one [T, B]."""
    said = [[walk["actions"][i] if i < len(walk["actions"]) else "" for walk in walks] for i in range(STEPS)]
    written = [spelling.write(texts, ACTION_TOKENS) for texts in said]
    on = np.array([[i < len(walk["actions"]) for walk in walks] for i in range(STEPS)])
    return jax.tree.map(lambda *x: np.stack(x), *written), on


def states(spelling: Spelling, seen, outcome, steps: int) -> list[list]:
    """The states of one walk, played by a batch of one."""
    texts = spelling.read(seen) + spelling.read(jax.tree.map(lambda x: x[:steps, 0], outcome.seen))
    ends = [(round(float(outcome.progress[i, 0]), 5), bool(outcome.terminated[i, 0])) for i in range(steps)]
    return [[text, *end] for text, end in zip(texts, [(0.0, False), *ends], strict=True)]
