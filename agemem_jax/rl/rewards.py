"""The reward of a trajectory: its terms from the raw facts of an episode, and their weighted sum.

`earned` gives every term by itself, unweighted, stage by stage; `terms` what a trajectory has of each. `combine` adds
them up as `config.reward` says:

    R = w_task task + w_context (w_c compression + w_p preventive + w_k preservation)
      + w_memory (w_s storage + w_m maintenance + w_r relevance) + penalties

which is the paper's R = w . (R_task, R_context, R_memory) + P with inner weights of 1/3. Weights are data (`factors`):
to change one compiles nothing. A weight of 0 takes its term out of the sum altogether.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agemem_jax.rl.switches import choose
from agemem_jax.types import TURN_TERMS, EpisodeStats, in_stage

CONTEXT_TERMS = ("compression", "preventive", "preservation")
MEMORY_TERMS = ("storage", "maintenance", "relevance")
PENALTY_TERMS = ("over_turns", "over_context", "malformed")
ANY_STAGE = ("over_context", "malformed")  # penalties that every stage can run into

# The stage whose behaviour a term judges. The sequential schedule trains a stage on its terms.
STAGE_TERMS = {
    1: ("storage", "maintenance"),
    2: ("compression", "preventive", "preservation", "over_context"),
    3: ("task", "relevance", "over_turns", "malformed"),
}
# Terms that are 1 or 0, however often their reason arises: a trajectory has them from the first stage that earned them.
ONCE = ("preventive", "maintenance", "over_context")

Factors = dict[str, jax.Array]  # [] float32 by term, of its sum in R; and "no_answer", the task term without an action


def factors(reward: ConfigDict) -> Factors:
    """The weights of `config.reward`, on the host: a term's own times its group's."""
    weights = (
        {"task": reward.task, "no_answer": reward.no_answer}
        | {name: reward.context * reward[name] for name in CONTEXT_TERMS}
        | {name: reward.memory * reward[name] for name in MEMORY_TERMS}
        | {name: reward[name] for name in PENALTY_TERMS}
    )
    return {name: np.float32(weight) for name, weight in weights.items()}


def earned(
    stats: EpisodeStats,
    reward: ConfigDict,
    factors: Factors,
    context_limit: int,
    judged: jax.Array | None = None,
    strict: bool | jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Every term of the reward, unweighted, as each stage by itself earned it: `[B, 3]` float32 each.

    With `reward.terms` "paper" (the paper's Reward section; the stage is that in which it happened, or (1), (2), (3)):

    - task (3): `task_metric` of the task ("progress", "success", or `judged`), in [0, 1]; `no_answer` without an action
    - compression (2): max(0, 1 - T_used / T_max), T_used the context tokens at the answer (prefix included)
    - preventive: 1 if FILTER or SUMMARY succeeded while the context was within its limit
    - preservation (3): share of the query's key tokens still in the context at the answer
    - storage (1): entries added in stage 1 that hold a supporting fact / max(1, entries added in stage 1)
    - maintenance: 1 if any UPDATE or DELETE succeeded
    - relevance: mean overlap of the entries retrieved by call with the gold facts; 0 without a retrieval
    - over_turns (3): 1 if stage 3 ran out of turns; over_context: 1 if the context passed its limit
    - malformed: number of turns that did not parse

    With "strict" four of them ask for the thing itself, and not for the call:

    - preservation (2): what stage 2 told to be kept in view that is in view when it ends (scoring.view_share); the
      query, which comes later, is pinned
    - preventive: 1 if edits kept the context of stages 2 and 3 from being too full, which its messages alone would
      have made it (rollout/turn.py: prevented)
    - storage (1): what is in the store when stage 1 ends, against what is worth keeping (scoring.kept_quality)
    - maintenance (1): revisions done when stage 1 ends / revisions told (scoring.revised_share)

    Args:
      stats: raw facts of B episodes.
      reward: `config.reward`, for `terms` and `task_metric` alone.
      factors: of `factors`, for "no_answer" alone.
      context_limit: T_max, tokens.
      judged: `[B]` float32 in [0, 1], the host judge's scores; needed by `task_metric = "judge"` only.
      strict: whether it is the strict terms that are earned, in place of what `reward.terms` says.

    Raises:
      ValueError: an unknown `terms` or `task_metric`, or "judge" without `judged`.
    """
    metrics = {"progress": stats.progress, "success": stats.success, "judge": judged}
    if reward.task_metric not in metrics:
        raise ValueError(f"reward.task_metric is {reward.task_metric!r}; it must be one of {', '.join(metrics)}")
    metric = metrics[reward.task_metric]
    if metric is None:
        raise ValueError("reward.task_metric is 'judge' but no judge scores were given; pass them as `judged`")
    if reward.terms not in ("strict", "paper"):
        raise ValueError(f"reward.terms is {reward.terms!r}; it must be 'strict' or 'paper'")
    things = {
        "storage": in_stage(stats.kept, 1),
        "maintenance": in_stage(stats.revised, 1),
        "preventive": stats.prevented,
        "preservation": in_stage(stats.in_view, 2),
    }
    calls = {
        "storage": in_stage(stats.added_good / jnp.maximum(stats.added, 1), 1),
        "maintenance": stats.maintained,
        "preventive": stats.reduced_in_time,
        "preservation": in_stage(stats.preservation, 3),
    }
    strict = reward.terms == "strict" if strict is None else strict
    chosen = {name: choose(strict, things[name], calls[name]) for name in things}
    task = jnp.where(stats.actions > 0, metric, jnp.asarray(factors["no_answer"], jnp.float32))
    values = chosen | {
        "task": in_stage(task, 3),
        "compression": in_stage(jnp.maximum(0.0, 1.0 - stats.context_tokens / context_limit), 2),
        "relevance": stats.relevance_sum / jnp.maximum(stats.relevance_count.sum(1, keepdims=True), 1),
        "over_turns": in_stage(stats.over_turns, 3),
        "over_context": stats.over_context,
        "malformed": stats.malformed,
    }
    return {name: value.astype(jnp.float32) for name, value in values.items()}


def terms(earned: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What a trajectory has of each term: `[B, 3]` -> `[B]` float32, of what its stages earned."""
    return {name: value.max(1) if name in ONCE else value.sum(1) for name, value in earned.items()}


def combine(terms: dict[str, jax.Array], factors: Factors) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The reward and what each group gives to it.

    Args:
      terms: `[B]` each, from `terms`.
      factors: of `factors`.

    Returns:
      total: `[B]` float32, R.
      groups: `task`, `context`, `memory`, `penalty`, `[B]` float32 each; they add up to `total`.
    """
    groups = {
        "task": _weighted(("task",), terms, factors),
        "context": _weighted(CONTEXT_TERMS, terms, factors),
        "memory": _weighted(MEMORY_TERMS, terms, factors),
        "penalty": _weighted(PENALTY_TERMS, terms, factors),
    }
    return sum(groups.values()), groups


def stage_rewards(earned: dict[str, jax.Array], factors: Factors) -> jax.Array:
    """R split over the stages that earned it, `[B, 3]` float32; rows add up to R.

    For the credits of chained training that tell stages apart. A term of ONCE goes to the first stage that earned it.
    """

    def first(value: jax.Array) -> jax.Array:
        so_far = jax.lax.cummax(value, axis=1)
        return jnp.diff(so_far, axis=1, prepend=jnp.zeros_like(so_far[:, :1]))

    return _weighted(earned, {n: first(x) if n in ONCE else x for n, x in earned.items()}, factors)


def standing(terms: jax.Array, factors: Factors) -> jax.Array:
    """What stage 1 or 2 would be paid if it ended after a turn: `[..., 3]` float32, TURN_TERMS (strict) -> `[...]`."""
    return _weighted(TURN_TERMS, {name: terms[..., i] for i, name in enumerate(TURN_TERMS)}, factors)


def stage_objective(stage: int, earned: dict[str, jax.Array], factors: Factors) -> jax.Array:
    """What a stage is trained on in the sequential schedule, `[B]` float32.

    Stage 1: storage and maintenance. Stage 2: compression, preventive action and (strict) preservation. Both with the
    penalties that they can run into (ANY_STAGE), and all as earned in that very stage. Stage 3: the whole reward, R.

    Raises:
      ValueError: `stage` is not 1, 2 or 3.
    """
    if stage not in STAGE_TERMS:
        raise ValueError(f"stage is {stage!r}; it must be 1, 2 or 3")
    if stage == 3:
        return combine(terms(earned), factors)[0]
    names = dict.fromkeys((*STAGE_TERMS[stage], *ANY_STAGE))
    return _weighted(names, {name: value[:, stage - 1] for name, value in earned.items()}, factors)


def _weighted(names, values: dict[str, jax.Array], factors: Factors) -> jax.Array:
    """Weighted sum of the named values. One of weight 0 is left out, not multiplied by 0: it may be no number."""
    total = jnp.zeros_like(next(iter(values.values())))
    for name in names:
        total = total + jnp.where(factors[name] == 0, 0.0, factors[name] * values[name])
    return total
