"""ScienceWorld as an Environment: the bridge of envs/host.py to a pool of machines."""

import functools
from collections.abc import Mapping, Sequence

from agemem_jax.benchmarks.scienceworld.pool import NO_WALKS, Pool
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.host import Bridge, HostEnvironment
from agemem_jax.sharding import LOCAL, Layout


def environment(
    pool: Pool, tokenizer: Tokenizer, seen_tokens: int, action_tokens: int,
    walks: Mapping[int, Sequence[str]] = NO_WALKS, layout: Layout = LOCAL,
) -> HostEnvironment:  # fmt: skip
    """The environment; an episode is won at score 1, and lost at a negative one (a wrong focus).

    walks: commands that are taken before an episode begins, by the game's number.
    """
    new_game = functools.partial(pool.game, walks=walks)
    return HostEnvironment(seen_tokens, action_tokens, Bridge(new_game, tokenizer), layout)


def report(env: HostEnvironment, pool: Pool) -> dict[str, float]:
    """Counts of bridge and pool since the beginning: `replaced` are machines that hung or died; `groups_alike` is the
    share of the rows of groups whose world began as that of the group's first row."""
    return env.bridge.report() | {"replaced": float(pool.replaced)}
