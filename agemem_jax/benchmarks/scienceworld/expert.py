"""Plays ScienceWorld to win: the engine's own solutions, kept in a file as they are made.

A solution takes the engine from half a second to some minutes. A few do not win, and some do not after a walk: `wins`
tries them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from agemem_jax.benchmarks.scienceworld.pool import Pool
from agemem_jax.benchmarks.scienceworld.variations import PLACES, TASKS, kept, variations
from agemem_jax.envs.workers import WorkerError
from agemem_jax.errors import InputError

SLOWEST = 600.0  # seconds for one solution
IDLE = re.compile(r"open door to .*|look around|wait\d*")


def solutions(pool: Pool, folder: str | Path, numbers: Sequence[int]) -> list[list[str]]:
    """Actions that solve each game; none where the engine knows no solution, or took too long.

    folder: where they are kept, as in variations.variations.
    Raises InputError for a game of the test split: demonstrations are never of these.
    """
    secret = set(variations(pool, folder, "test", {TASKS[n // PLACES] for n in numbers}))
    if found := [n for n in numbers if n in secret]:
        task, variation, _ = pool.games(found[0])
        raise InputError(f"scienceworld: {task} {variation} is of the test split; take solutions of train or dev")

    def ask(key: str) -> list[str]:
        try:
            game = pool.games(int(key.split()[0]))
            actions = pool.ask("gold", game=game, timeout=SLOWEST)["actions"]
        except WorkerError:
            return []
        return [] if any(action.startswith("ERROR") for action in actions) else actions

    keys = [f"{number} {pool.games(number)[2]}" for number in numbers]  # with other simplifications it is another
    known = kept(Path(folder) / f"solutions-{pool.version}.json", keys, ask)
    return [known[key] for key in keys]


def after_walk(pool: Pool, folder: str | Path, number: int, walk: Sequence[str]) -> list[str]:
    """Actions that win a game where a walk has ended, by the engine's solution; [] if that does not do there.

    A solution also looks around, waits at its end and opens doors that stand open: if it wins without that, all the
    better. Raises as `solutions`.
    """
    (whole,) = solutions(pool, folder, [number])

    def ask(_: str) -> list[str]:
        for actions in ([action for action in whole if not IDLE.fullmatch(action)], whole):
            won, _, played = wins(pool, number, actions, walk)
            if won:
                return actions[:played]
        return []

    key = " ".join([str(number), *pool.games(number)[2:], *walk])
    return kept(Path(folder) / f"solved-{pool.version}.json", [key], ask)[key] if whole else []


def wins(
    pool: Pool, number: int, actions: Sequence[str], walk: Sequence[str] = ()
) -> tuple[bool, float, int]:  # fmt: skip
    """Plays actions until the episode is over: (whether it was won, progress, actions played)."""
    game, progress = pool.game(walks={number: walk}), 0.0
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
