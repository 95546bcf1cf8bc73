"""The reward of a trajectory: the paper's terms from the raw facts of an episode, and their weighted sum.

`terms` gives every term by itself, unweighted, each for its own curve. `combine` adds them up as `config.reward` says:

    R = w_task task + w_context (w_c compression + w_p preventive + w_k preservation)
      + w_memory (w_s storage + w_m maintenance + w_r relevance) + penalties

which is the paper's R = w . (R_task, R_context, R_memory) + P with inner weights of 1/3. A weight of 0 takes its term
out of the sum altogether. Weights are Python numbers: to change one is to compile another program.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agemem_jax.types import EpisodeStats, Op

CONTEXT_TERMS = ("compression", "preventive", "preservation")
MEMORY_TERMS = ("storage", "maintenance", "relevance")
PENALTY_TERMS = ("over_turns", "over_context", "malformed")

# The stage whose behaviour a term judges. Every term has one stage, so the three stage rewards add up to R.
STAGE_TERMS = {
    1: ("storage", "maintenance"),
    2: ("compression", "preventive", "over_context"),
    3: ("task", "preservation", "relevance", "over_turns", "malformed"),
}


def terms(
    stats: EpisodeStats, reward: ConfigDict, context_limit: int, judged: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Every term of the reward, unweighted, `[B]` float32 each (the paper's Reward section).

    - task: `task_metric` of the answer ("f1", "exact_match", or `judged`), in [0, 1]; `no_answer` without an answer
    - compression: max(0, 1 - T_used / T_max), T_used the context tokens at the answer (prefix included)
    - preventive: 1 if FILTER or SUMMARY succeeded while the context was within its limit
    - preservation: share of the query's key tokens still in the context at the answer
    - storage: entries added in stage 1 that hold a supporting fact / max(1, entries added in stage 1)
    - maintenance: 1 if any UPDATE or DELETE succeeded
    - relevance: mean overlap of the entries retrieved by call with the gold facts; 0 without a retrieval
    - over_turns: 1 if stage 3 ran out of turns; over_context: 1 if the context passed its limit
    - malformed: number of turns that did not parse

    Args:
      stats: raw facts of B finished episodes.
      reward: `config.reward`.
      context_limit: T_max, tokens.
      judged: `[B]` float32 in [0, 1], the host judge's scores; needed by `task_metric = "judge"` only.

    Raises:
      ValueError: an unknown `task_metric`, or "judge" without `judged`.
    """
    metrics = {"f1": stats.f1, "exact_match": stats.exact_match, "judge": judged}
    if reward.task_metric not in metrics:
        raise ValueError(f"reward.task_metric is {reward.task_metric!r}; it must be one of {', '.join(metrics)}")
    metric = metrics[reward.task_metric]
    if metric is None:
        raise ValueError("reward.task_metric is 'judge' but no judge scores were given; pass them as `judged`")

    def share(part: jax.Array, whole: jax.Array) -> jax.Array:
        return part.astype(jnp.float32) / jnp.maximum(whole, 1)

    maintained = stats.calls_ok[:, Op.UPDATE] + stats.calls_ok[:, Op.DELETE] > 0
    values = {
        "task": jnp.where(stats.answered, metric, reward.no_answer),
        "compression": jnp.maximum(0.0, 1.0 - stats.context_tokens / context_limit),
        "preventive": stats.reduced_in_time,
        "preservation": stats.preservation,
        "storage": share(stats.added_good, stats.added),
        "maintenance": maintained,
        "relevance": share(stats.relevance_sum, stats.relevance_count),
        "over_turns": stats.over_turns,
        "over_context": stats.over_context,
        "malformed": stats.malformed,
    }
    return {name: value.astype(jnp.float32) for name, value in values.items()}


def weights(reward: ConfigDict) -> dict[str, float]:
    """The factor of each term in R: the product of its own weight and its group's."""
    return (
        {"task": reward.task}
        | {name: reward.context * reward[name] for name in CONTEXT_TERMS}
        | {name: reward.memory * reward[name] for name in MEMORY_TERMS}
        | {name: reward[name] for name in PENALTY_TERMS}
    )


def combine(terms: dict[str, jax.Array], reward: ConfigDict) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The reward and what each group gives to it.

    Args:
      terms: `[B]` each, from `terms`.
      reward: `config.reward`.

    Returns:
      total: `[B]` float32, R.
      groups: `task`, `context`, `memory`, `penalty`, `[B]` float32 each; they add up to `total`.
    """
    groups = {
        "task": _weighted(("task",), terms, reward),
        "context": _weighted(CONTEXT_TERMS, terms, reward),
        "memory": _weighted(MEMORY_TERMS, terms, reward),
        "penalty": _weighted(PENALTY_TERMS, terms, reward),
    }
    return sum(groups.values()), groups


def stage_rewards(terms: dict[str, jax.Array], reward: ConfigDict) -> jax.Array:
    """R split over the stages that earn it, `[B, 3]` float32 (see `STAGE_TERMS`); rows add up to R.

    For the credits "per_stage" and "return_to_go" of chained training. Turns that did not parse are counted over the
    whole trajectory and stand with the last stage.
    """
    return jnp.stack([_weighted(STAGE_TERMS[stage], terms, reward) for stage in (1, 2, 3)], axis=-1)


def stage_objective(stage: int, terms: dict[str, jax.Array], reward: ConfigDict) -> jax.Array:
    """What a stage is trained on in the sequential schedule, `[B]` float32.

    Stage 1: storage and maintenance. Stage 2: compression and preventive action. Both with the penalties that they can
    run into (context overflow, malformed turns). Stage 3: the whole reward, R.

    Raises:
      ValueError: `stage` is not 1, 2 or 3.
    """
    if stage not in STAGE_TERMS:
        raise ValueError(f"stage is {stage!r}; it must be 1, 2 or 3")
    if stage == 3:
        return combine(terms, reward)[0]
    faults = ("over_context", "malformed")
    return _weighted((*STAGE_TERMS[stage], *(f for f in faults if f not in STAGE_TERMS[stage])), terms, reward)


def _weighted(names: tuple[str, ...], terms: dict[str, jax.Array], reward: ConfigDict) -> jax.Array:
    """Weighted sum of the named terms, `[B]`. A term of weight 0 is left out, not multiplied by 0."""
    factors = weights(reward)
    total = jnp.zeros_like(terms["task"])
    for name in names:
        if factors[name] != 0:
            total = total + factors[name] * terms[name]
    return total
