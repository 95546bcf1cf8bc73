"""How often a world's tasks can be won within so many turns, by who knows it, who remembers it, and who searches.

    python -m experiments.ceilings --config=configs/alfworld.py:tiny --tasks=200

"known" acts at once on all that stage 1 told, "remembered" first looks up each fact that it needs, a turn each, and
"searched" has nothing but what it sees (benchmarks/worlds.py: Solver). Training tasks alone are played, 200 if --tasks
is not given. Where known and searched are close, memory cannot matter: choose `rollout.stage3_turns` where they are
apart.
"""

import random

from tqdm import tqdm

from agemem_jax import benchmarks
from agemem_jax.config import refuse
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.training.setup import tokenizer_path
from agemem_jax.training.summary import aligned
from experiments import cli, out, shared_flags

TASKS = shared_flags.tasks()
BUDGETS = (4, 6, 8, 10, 12, 15, 20, 30, 50)


def main(config) -> None:
    config.rollout.stage3_turns = max(BUDGETS)
    tokenizer = Tokenizer.load(tokenizer_path(config.policy))
    tasks = benchmarks.load(config, tokenizer).tasks
    if not hasattr(tasks, "solve"):
        refuse("task.benchmark", config.task.benchmark, "has no world to search; give one that has")
    source = TaskSource(config, tokenizer, tasks)
    turns: dict[str, list[int | None]] = {"known": [], "remembered": [], "searched": []}
    for index in tqdm(range(min(TASKS.value or 200, source.num_train)), desc="tasks", disable=None):
        staged = source.staged(index)
        known, searched = (tasks.solve(staged, random.Random(index), knows) for knows in (True, False))
        lengths = [None if plan is None else len(plan) for plan in (known, searched)]
        turns["known"].append(lengths[0])
        turns["remembered"].append(None if known is None else lengths[0] + len(staged.gold))
        turns["searched"].append(lengths[1])
    shares = {who: {budget: share(found, budget) for budget in BUDGETS} for who, found in turns.items()}
    rows = [["won within", *(f"{budget} turns" for budget in BUDGETS), "mean turns"]]
    for who, by_budget in shares.items():
        won = [n for n in turns[who] if n is not None]
        mean = f"{sum(won) / len(won):.1f}" if won else "-"
        rows.append([who, *(f"{100 * value:.0f} %" for value in by_budget.values()), mean])
    print(aligned(rows))
    out.write({"benchmark": config.task.benchmark, "tasks": len(turns["known"]), "won": shares})


def share(turns: list[int | None], budget: int) -> float:
    """Of tasks by the turns that they take (None: not won), those won within a budget."""
    return sum(n is not None and n <= budget for n in turns) / len(turns)


if __name__ == "__main__":
    cli.run(main)
