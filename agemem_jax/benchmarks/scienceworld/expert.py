"""Plays ScienceWorld to win: the engine's own solutions, kept in a file as they are made.

A solution takes the engine from four seconds to some minutes. It was found in one world; in another of the same
variation, where cups hold other things, it may not do: `wins` tries it.
"""

from collections.abc import Sequence
from pathlib import Path

from agemem_jax.benchmarks.scienceworld.pool import Pool
from agemem_jax.benchmarks.scienceworld.tasks import PLACES, TASKS, kept, variations
from agemem_jax.envs.workers import WorkerError
from agemem_jax.errors import InputError

SLOWEST = 600.0  # seconds for one solution


def solutions(pool: Pool, folder: str | Path, numbers: Sequence[int]) -> list[list[str]]:
    """Actions that solve each game; none where the engine knows no solution, or took too long.

    folder: where they are kept, as in tasks.variations.
    Raises InputError for a game of the test split: demonstrations are never of these.
    """
    secret = set(variations(pool, folder, "test", {TASKS[n // PLACES] for n in numbers}))
    if found := [n for n in numbers if n in secret]:
        task, variation, _ = pool.games(found[0])
        raise InputError(f"scienceworld: {task} {variation} is of the test split; take solutions of train or dev")

    def ask(key: str) -> list[str]:
        try:
            game = pool.games(int(key.split()[0]))[:3]
            actions = pool.ask("gold", game=game, timeout=SLOWEST)["actions"]
        except WorkerError:
            return []
        return [] if any(action.startswith("ERROR") for action in actions) else actions

    keys = [f"{number} {pool.games(number)[2]}" for number in numbers]  # with other simplifications it is another
    known = kept(Path(folder) / f"solutions-{pool.version}.json", keys, ask)
    return [known[key] for key in keys]


def wins(pool: Pool, number: int, actions: Sequence[str], fresh: bool = True) -> tuple[bool, float, int]:
    """Plays actions until the episode is over: (whether it was won, progress, actions played)."""
    game, progress = pool.game(fresh), 0.0
    try:
        game.start(number).result()
        for played, action in enumerate(actions, 1):
            reply = game.step(action).result()
            progress = max(progress, reply.progress)
            if reply.terminated:
                return reply.success, progress, played
        return False, progress, len(actions)
    finally:
        game.close()
