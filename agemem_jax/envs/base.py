"""What an environment is to a rollout: two pure functions over B rows, chosen when a program is traced.

An engine of a benchmark is a frozen dataclass with static sizes. Its arrays come in three parts: `shared` (tables that
no game changes, without a rows axis: names, wordings), `game` (what one game is, [B, ...], the same for the rows of a
group) and `state` (what play changes, [B, ...]). Texts go in and out as tokens; envs/text.py composes and compares
them. Nothing raises and nothing is refused: what cannot be done is answered in the benchmark's own words.

A benchmark is a folder, agemem_jax/benchmarks/NAME:

    tasks.py        on the host: reads the benchmark's own files into `shared` and `game`, and names what is wrong
    environment.py  on the device: the engine
    expert.py       on the host: plays to win
"""

from typing import Any, Protocol

import jax
from flax import struct

from agemem_jax.types import Text


@struct.dataclass
class Outcome:
    """What a step has led to. Rows that did not step keep what they had: `state` tells, and `seen` is empty."""

    seen: Text  # [B, W] what the environment answers
    progress: jax.Array  # [B] float32 in 0..1, the best so far: 1 is success
    success: jax.Array  # [B] bool: the goal is reached, by the benchmark's own rule
    terminated: jax.Array  # [B] bool: the episode is over, won or lost
    truncated: jax.Array  # [B] bool: it was cut off by a limit of the benchmark's own, or its host program died
    understood: jax.Array  # [B] bool: the action was one that could be taken


class Environment(Protocol):
    """The engine of a benchmark. Hashable, so that it can be a static argument."""

    seen_tokens: int  # W, the most tokens of an answer; a longer one is cut at its end
    action_tokens: int  # A, more than an action has that is understood: longer ones come cut to these

    def reset(self, shared: Any, game: Any) -> tuple[Any, Text]:
        """(state, what is seen at the start [B, W])."""
        ...

    def step(self, shared: Any, game: Any, state: Any, action: Text, on: jax.Array) -> tuple[Any, Outcome]:
        """Takes the actions [B, A] of rows `on` [B]; the state of the others stays bit for bit."""
        ...

    def render(self, shared: Any, game: Any, state: Any, row: int) -> str:
        """One row as text for people, on the host."""
        ...
