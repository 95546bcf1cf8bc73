"""What the programs of benchmark_memory share: texts, vectors, a clock and the line that they print. Imports nothing of
this project.

Operations are of 64 agents, one after another: `clock` runs one operation of each and reports the median of the rounds.
"""

import json
import random
import statistics
import time
import zlib
from collections.abc import Callable

import numpy as np

AGENTS, WIDTH, TOP_K = 64, 384, 20
ROUNDS = {100: 20, 1000: 8, 10000: 3}  # timed rounds, by entries of an agent; any other number: 3
ENOUGH = 20.0  # seconds after which no further round of a peer's operation begins
NAMES, THINGS = ["Ada", "Hugo", "Ines", "Milo"], ["a violin", "the lake house", "a chess book", "the desk lamp"]
VERBS, PLACES = ["bought", "sold", "found", "repaired"], ["in Halden", "near the river", "at the market", "at home"]


def text(agent: int, number: int) -> str:
    """A sentence of about a dozen words, each one different."""
    rng = random.Random(f"{agent}/{number}")
    did = " ".join(rng.choice(part) for part in (NAMES, VERBS, THINGS, PLACES))
    return f"{did} and kept the ticket {agent}-{number} for later"


def vector(text: str) -> np.ndarray:
    """A unit vector [WIDTH] of a text, without a negative number: every cosine passes every threshold."""
    drawn = np.abs(np.random.default_rng(zlib.crc32(text.encode())).standard_normal(WIDTH, dtype=np.float32))
    return drawn / np.linalg.norm(drawn)


def clock(operate: Callable[[int, int], None], entries: int, slow: bool = False) -> float:
    """Operations per second of operate(agent, round); the first round does not count, and one at least does.

    slow: an operation takes so long that a round of it is that of 8 agents.
    """
    agents = range(0, AGENTS, 8) if slow else range(AGENTS)
    seconds = []
    for number in range(1 + ROUNDS.get(entries, 3)):
        began = time.perf_counter()
        for agent in agents:
            operate(agent, number)
        seconds.append(time.perf_counter() - began)
        if number and sum(seconds) > ENOUGH:
            break
    return round(len(agents) / statistics.median(seconds[1:]), 2)


def report(**figures) -> None:
    """Prints the figures as one JSON line."""
    print(json.dumps(figures), flush=True)
