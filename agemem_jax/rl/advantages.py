"""Group-relative advantages, and how a trajectory's advantage reaches its steps."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agemem_jax.rl.switches import Switches, choose

CREDITS = ("broadcast", "per_stage", "return_to_go", "turn_to_go", "hindsight")


def group_advantages(
    reward: jax.Array, group_size: int, eps: float, divide_by_std: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Advantage of each rollout within its group: (r - mean) / (std + eps), std over K - 1 (the paper's Algorithm 2).

    A group of one has mean 0 and standard deviation 1, as in Trinity-RFT. A group of equal rewards has advantage 0.

    Args:
      reward: `[B]` float32; the K rollouts of a task are consecutive.
      group_size: K; B must be a multiple of it.
      eps: added to the standard deviation.
      divide_by_std: False leaves the division out (Dr.GRPO, arXiv 2503.20783).

    Returns:
      advantage: `[B]` float32.
      varied: `[B]` bool, False for rollouts of a group of equal rewards, which teach nothing (DAPO drops them).

    Raises:
      ValueError: B is no multiple of `group_size`.
    """
    if reward.shape[0] % group_size:
        raise ValueError(f"{reward.shape[0]} rewards do not make groups of {group_size}; give whole groups")
    groups = reward.astype(jnp.float32).reshape(-1, group_size)
    if group_size == 1:
        scale = 1.0 + eps if divide_by_std else 1.0
        return groups[:, 0] / scale, jnp.ones(reward.shape, bool)
    # Compared as they are: the mean of equal rewards is rounded, so their deviations from it may not be exactly 0.
    varied = groups.max(1, keepdims=True) > groups.min(1, keepdims=True)
    advantage = groups - groups.mean(1, keepdims=True)
    if divide_by_std:
        advantage = advantage / (groups.std(1, ddof=1, keepdims=True) + eps)
    advantage = jnp.where(varied, advantage, 0.0)
    return advantage.reshape(-1), jnp.broadcast_to(varied, groups.shape).reshape(-1)


def step_credit(
    reward: jax.Array, stage_rewards: jax.Array, rl: ConfigDict, on: Switches | None = None
) -> tuple[jax.Array, jax.Array]:
    """Advantage that the steps of each stage share.

    - "broadcast" (the paper): the advantage of the trajectory's reward, for every step of every stage
    - "per_stage": a stage's own reward, normalised in the group
    - "return_to_go": the sum of the rewards of this and the later stages, normalised in the group
    - "turn_to_go": that of "return_to_go" in stage 3; the turns of stages 1 and 2 are told apart by `turn_to_go`
    - "hindsight": that of "broadcast", to which `hindsight` adds what calls with an effect get beyond it

    Args:
      reward: `[B]` float32, the reward of the trajectory.
      stage_rewards: `[B, 3]` float32, the part of each stage; used by all but "broadcast" and "hindsight".
      rl: `config.rl` (credit, group_size, advantage_eps, advantage_std).
      on: which credit it is in place of `rl.credit`.

    Returns:
      advantage: `[B, 3]` float32; a token's advantage is `advantage[b, stage - 1]`.
      varied: `[B, 3]` bool, see `group_advantages`.

    Raises:
      ValueError: an unknown `rl.credit`.
    """
    if on is None and rl.credit not in CREDITS:
        raise ValueError(f"rl.credit is {rl.credit!r}; it must be one of {', '.join(CREDITS)}")
    per_stage = rl.credit == "per_stage" if on is None else on.per_stage
    summed = rl.credit in ("return_to_go", "turn_to_go") if on is None else on.to_go
    whole = jnp.broadcast_to(reward[:, None], (reward.shape[0], 3))
    to_go = jnp.flip(jnp.cumsum(jnp.flip(stage_rewards, 1), 1), 1)
    returns = choose(per_stage, stage_rewards, choose(summed, to_go, whole))
    columns = [group_advantages(returns[:, k], rl.group_size, rl.advantage_eps, rl.advantage_std) for k in range(3)]
    advantage, varied = zip(*columns, strict=True)
    return jnp.stack(advantage, 1), jnp.stack(varied, 1)


def turn_to_go(objective: jax.Array, standing: jax.Array, turn: jax.Array, rl: ConfigDict) -> jax.Array:
    """Advantage of the tokens of stage 1 or 2: what the stage gained from their turn on.

        A(b, t) = (G(b, t) - its mean in the group) / std,   G(b, t) = R(b) - M(b, t - 1),   M(b, -1) = 0

    R is the stage's own objective (rewards.stage_objective): what later stages make of store and context is noise to
    its turns, and the more so the longer they are. M(b, t) is what both are worth after turn t, in the reward's own
    measure (rewards.standing). A turn is thus credited with what it and later ones add, and neither praised nor blamed
    for what stands already. Turn t brings all rollouts of a group the same message, so they are compared at like
    moments. It is the reward-to-go of the policy gradient theorem with the differences of M as the rewards of turns.

    The standard deviation is one for all turns of the batch (around the groups' means): by its own, a turn at which
    nothing is at stake would count as much as one that decides. `rl.advantage_std` False leaves the division out.

    Args:
      objective: `[B]` float32, R.
      standing: `[B, turns of the stage]` float32, M.
      turn: `[B, ...]` int32 number of each token's turn in the stage; of other stages' tokens anything.
      rl: `config.rl` (group_size, advantage_eps, advantage_std).

    Returns:
      `[B, ...]` float32; to be used for tokens of the stage alone.
    """
    before = jnp.pad(standing, ((0, 0), (1, 0)))[:, :-1]
    centred = lambda gain: group_advantages(gain, rl.group_size, rl.advantage_eps, divide_by_std=False)[0]  # noqa: E731
    table = jax.vmap(centred, in_axes=1, out_axes=1)(objective[:, None] - before)
    if rl.advantage_std:
        table = table / (jnp.sqrt(jnp.mean(table**2)) + rl.advantage_eps)
    return _of_turns(table, turn)


def hindsight(outcome: jax.Array, effective: jax.Array, turn: jax.Array, rl: ConfigDict) -> jax.Array:
    """What the tokens of turns with an effect get beyond the broadcast advantage, by the outcome of their trajectory.

        A(b, t) = A_R(b) + rl.hindsight e(b, t) A_task(b)

    A_R is the broadcast advantage of the whole reward, A_task the outcome alone (the task's score) normalised in the
    group as rewards are, and e is 1 in a turn whose call had an effect that the rest of the trajectory used:

    - an ADD or UPDATE whose entry a RETRIEVE call of a later turn returned: the turn that made the entry, and the turn
      that wrote the text which was returned, so that of several updates the one counts that replaced the stale text
    - a FILTER or SUMMARY without which the context would have passed its limit later: its length and the tokens freed
      by edits since it was last emptied together passed it, while it alone never has; what a summary's own call, prompt
      and text took is not counted as freed

    Other turns have e = 0: the broadcast advantage and no more. A group's A_task add up to 0, so what every rollout of
    a group did is neither encouraged nor discouraged by this; a write that was used where the task was solved, and
    not where it was not, is encouraged twice.

    Args:
      outcome: `[B]` float32, the task term of the reward, unweighted.
      effective: `[B, turns]` bool, e (Rows.effective).
      turn: `[B, ...]` int32 number of each token's turn in the trajectory (rollout.rows.numbered_turns).
      rl: `config.rl` (hindsight, group_size, advantage_eps, advantage_std).

    Returns:
      `[B, ...]` float32, the second term of A.
    """
    advantage, _ = group_advantages(outcome, rl.group_size, rl.advantage_eps, rl.advantage_std)
    table = rl.hindsight * advantage[:, None] * effective
    return _of_turns(table, turn)


def _of_turns(table: jax.Array, turn: jax.Array) -> jax.Array:
    """`table [B, turns]` at the turn of each token, `[B, ...]`; what is past the last reads the last."""
    index = jnp.clip(turn.astype(jnp.int32), 0, table.shape[1] - 1).reshape(turn.shape[0], -1)
    return jnp.take_along_axis(table, index, axis=1).reshape(turn.shape)


def of_tokens(per_stage: jax.Array, stage: jax.Array) -> jax.Array:
    """Values of the stage in which each token was sampled.

    Args:
      per_stage: `[B, 3]`, e.g. advantages.
      stage: `[B, ...]` integer, 1, 2 or 3; anything else (padding) reads the nearest stage and is to be masked.

    Returns:
      `[B, ...]` of the dtype of `per_stage`.
    """
    index = jnp.clip(stage.astype(jnp.int32) - 1, 0, 2).reshape(stage.shape[0], -1)
    return jnp.take_along_axis(per_stage, index, axis=1).reshape(stage.shape)
