"""Says how long a run trained until its policy had a score on validation tasks, greedy:

    python -m experiments.train --config=configs/tiny.py --workdir=runs/timed --config.train.eval_every=10
    python -m experiments.time_to_score --run=runs/timed/seed_0 --score=0.6

The seconds are those of the updates, compiling included; evaluations, reading and saving are not counted. The score is
reached at the first evaluation that shows it, so that `train.eval_every` updates are how exact this is.
"""

from pathlib import Path

from absl import flags

from agemem_jax.errors import InputError
from agemem_jax.metrics import METRICS_FILE, read_metrics
from experiments import cli, out, shared_flags

RUN = shared_flags.run()
SCORE = flags.DEFINE_float("score", 0.8, "task score to reach (progress: token F1 of answers)", 0.0, 1.0)
EVALUATED = "eval/progress"


def main() -> None:
    path = Path(RUN.value) / METRICS_FILE
    figures = time_to(read_metrics(path), SCORE.value, str(path))
    print(in_words(figures))
    out.write(figures)


def time_to(records: list[dict], score: float, path: str) -> dict:
    """Figures of the first evaluation that reaches `score`, and of the best one, of a run's metrics in order.

    Raises InputError if the run was not evaluated in between.
    """
    spent, curve = 0.0, []
    for record in records:
        spent += record.get("seconds", 0.0)
        if EVALUATED in record:
            curve.append({"update": record["step"], "seconds": round(spent, 1), "score": record[EVALUATED]})
    if not curve:
        raise InputError(f"{path} has no evaluation between updates; train with --config.train.eval_every=10")
    reached = next((one for one in curve if one["score"] >= score), None)
    return {"score": score, "reached": reached, "best": max(curve, key=lambda one: one["score"]), "curve": curve}


def in_words(figures: dict) -> str:
    """The figures, as a line to read."""
    reached, best = figures["reached"], figures["best"]
    if reached:
        return f"{reached['seconds']:.0f} s of training to {figures['score']:.2f}: update {reached['update']}"
    return (
        f"{figures['score']:.2f} was not reached; the best was {best['score']:.3f} after {best['seconds']:.0f} s of "
        f"training, at update {best['update']}"
    )


if __name__ == "__main__":
    cli.run(main, takes_config=False)
