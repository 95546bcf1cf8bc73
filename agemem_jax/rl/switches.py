"""The branches of reward and credit, which a program may have as constants or as data."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict


@struct.dataclass
class Switches:
    """Which branches are taken.

    Python bools in a program that knows only one of each (`switches_of`): the others are not part of it. `[]` bool
    arrays in a program whose arms differ: all branches are computed, and one is chosen.
    """

    strict: bool | jax.Array  # reward.terms "strict"; else "paper"
    chained: bool | jax.Array  # rl.schedule "chained"; else "sequential": a stage's own objective is all its credit
    per_stage: bool | jax.Array  # returns of rl.credit "per_stage",
    to_go: bool | jax.Array  # of "return_to_go" and "turn_to_go"; else those of "broadcast"
    by_turn: bool | jax.Array  # "turn_to_go" in stages 1 and 2
    hindsight: bool | jax.Array  # beyond "broadcast"


def switches_of(rl: ConfigDict, reward: ConfigDict) -> Switches:
    """The branches that config.rl and config.reward ask for."""
    chained = rl.schedule == "chained"
    credit = rl.credit if chained else "broadcast"
    return Switches(
        strict=reward.terms == "strict",
        chained=chained,
        per_stage=credit == "per_stage",
        to_go=credit in ("return_to_go", "turn_to_go"),
        by_turn=credit == "turn_to_go",
        hindsight=credit == "hindsight",
    )


def choose(on: bool | jax.Array, a: Any, b: Any) -> Any:
    """`a` where `on`, else `b`, arrays of one shape; of a Python bool the other is not part of the program."""
    return (a if on else b) if isinstance(on, bool) else jnp.where(on, a, b)
