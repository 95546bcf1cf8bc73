"""What the reward pays to those who farm it: scripted farmers in the real environment, against honest play.

    python -m experiments.audit_reward --config=configs/tiny.py [--questions=64] [--out=FILE]

Test questions of every kind are played by the oracle with all tools (benchmarks/hotpotqa/oracles.py), which solves
them, by a plain player, and by farmers, each a plain player with one trick (benchmarks/hotpotqa/farmers.py). The
tables have the mean reward and what each term gives to it; `trick` is what a farmer earns beyond the plain player. The
first has the terms of the config (`reward.terms`), the second those of the other kind at the same weights.
"""

import jax
import numpy as np
from absl import flags

from agemem_jax.benchmarks.hotpotqa.farmers import PLAIN, TRICKS, Player
from agemem_jax.benchmarks.hotpotqa.oracles import FULL
from agemem_jax.errors import InputError
from agemem_jax.rl import rewards
from agemem_jax.training.setup import Run, build
from agemem_jax.types import EpisodeStats
from experiments import cli, out
from experiments.oracles import Stage

QUESTIONS = flags.DEFINE_integer("questions", 64, "test questions of each kind", lower_bound=1)
HONEST = "honest"


def main(config) -> None:
    if config.task.path:
        raise InputError("task.path: the honest player knows the generated questions alone; leave it empty")
    config.policy.weights = ""  # nothing is generated
    if config.reward.task_metric == "judge":
        config.reward.task_metric = "progress"  # scripts answer in the words of the gold answer, or wrongly
    results = measure(Stage(build(config)), QUESTIONS.value)
    for kind in sorted(results["terms"], key=lambda kind: kind != config.reward.terms):
        print(table(results["terms"][kind], f'reward.terms = "{kind}"'))
    out.write(results)


def measure(stage: Stage, questions: int) -> dict:
    """Mean reward and weighted terms of every player, by `reward.terms`."""
    run, indices = stage.run, [index for chosen in stage.picks(questions).values() for index in chosen]
    stats = {HONEST: stage.episodes(lambda record: stage.oracle.play(record, FULL), indices)}
    for trick in (PLAIN, *TRICKS):
        player = Player(run.config, trick)
        stats[trick] = stage.episodes(player.play, indices, player.answers)
    figures = {kind: {name: earned(run, kind, s) for name, s in stats.items()} for kind in ("strict", "paper")}
    return {"questions": len(indices), "config": run.config.name, "terms": figures}


def earned(run: Run, kind: str, stats: EpisodeStats) -> dict[str, float]:
    """The mean reward, and what each term gives to it."""
    reward = run.config.reward.copy_and_resolve_references()
    reward.terms = kind
    factors = rewards.factors(reward)
    terms = rewards.terms(rewards.earned(stats, reward, factors, run.spec.rollout.limit))
    total, _ = rewards.combine(terms, factors)
    parts = {name: np.where(factors[name] == 0, 0.0, factors[name] * value) for name, value in terms.items()}
    return jax.tree.map(lambda x: float(np.mean(x)), {"reward": total} | parts)


def table(rows: dict[str, dict[str, float]], title: str) -> str:
    """The figures as lines of text."""
    names = [name for name in next(iter(rows.values())) if name != "reward"]
    head = f"{title:<24}{'reward':>8}{'trick':>8}" + "".join(f"{name:>{len(name) + 2}}" for name in names)
    lines = [head]
    for player, row in rows.items():
        trick = f"{row['reward'] - rows[PLAIN]['reward']:+8.3f}" if player in TRICKS else " " * 8
        parts = "".join(f"{row[name]:>{len(name) + 2}.3f}" for name in names)
        lines.append(f"{player:<24}{row['reward']:>8.3f}{trick}{parts}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
