"""The three stage programs: rollout, rewards, credit and update of a stage in one XLA program each.

Chained (the paper): stages 1 and 2 roll out; stage 3 rolls out, scores the whole trajectory and updates on the segments
of all three. Sequential (the article): each stage updates on its own objective, and the rollouts of a group begin it
with what the stages before gave to the first of them. The chained schedule may begin with trajectories that end after
stage 1, then after stage 2, each stage on its own objective (`rl.stage1_updates`, `rl.stage2_updates`). What differs
between training, evaluation and the methods under evaluation enters as data (`Control`), so that every stage compiles
once in a run.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from agemem_jax import sharding
from agemem_jax.envs.host import in_pieces, whole
from agemem_jax.models import kv_cache, lora, qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl import advantages, losses, rewards
from agemem_jax.rl.batch import learner_batch
from agemem_jax.rl.switches import Switches, choose, switches_of
from agemem_jax.rollout.decode import Policy
from agemem_jax.rollout.reader import to_layout
from agemem_jax.rollout.rows import (
    RolloutSpec,
    Rows,
    Rules,
    World,
    close_segment,
    lay_out_rows,
    new_rows,
    numbered_turns,
)
from agemem_jax.rollout.stage import Trace, policy_writer, run_stage
from agemem_jax.sharding import LOCAL, Layout
from agemem_jax.training.learn import LearnSpec, update
from agemem_jax.training.state import Optimizer, state_shardings
from agemem_jax.types import NUM_OPS, EpisodeStats, Op, Segments, StopReason, Task, TrainState

STAGES = (1, 2, 3)
ALL_TOOLS = (1 << (Op.FILTER + 1)) - 1  # bit mask of the six memory tools
# (task index, answer tokens, length) -> verdicts [B] in 0..1, NaN where there is none
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@struct.dataclass
class Control:
    """What a call of a stage program is to do; data, not structure."""

    seed: jax.Array  # [] uint32 of the run; all noise is a function of (seed, step, stage, slot, column, row)
    step: jax.Array  # [] int32 the update, or the batch of an evaluation
    temperature: jax.Array  # [] float32; 0 = greedy
    tools: jax.Array  # [] int32 bit mask of the memory tools that may be used
    rules: Rules  # of the method that plays
    update: jax.Array  # [] bool: False rolls out and scores only
    reward: rewards.Factors  # weights of the reward's terms
    noise_row: jax.Array  # [B] int32 rows whose noise the rows draw: each its own, but for copies of a trajectory
    suppress: jax.Array  # [B] int32 the call of each row that is not run (rollout.turn.call_number), or NO_CALL
    switches: Switches | None = None  # branches of reward and credit, where a program has them all (arm_program)


class Played(NamedTuple):
    """What is scored and learnt from when a stage was the last one played."""

    stats: EpisodeStats
    segments: Segments  # those that are still open with them
    effective: jax.Array  # of Rows
    standing: jax.Array | tuple  # of Rows


class Scores(NamedTuple):
    """What the trajectories of a batch earned, as credit needs it."""

    earned: dict[str, jax.Array]  # of rewards.earned
    terms: dict[str, jax.Array]  # [B] each
    groups: dict[str, jax.Array]  # [B] each
    total: jax.Array  # [B] the reward of a trajectory that was played to its end
    objective: jax.Array  # [B] what is trained on
    by_stage: jax.Array  # [B, 3] the part of each stage in it
    own: dict[int, jax.Array]  # {1, 2: [B] what the stage gained of its own objective}


@dataclass(frozen=True)
class ProgramSpec:
    """Static settings of the stage programs."""

    rollout: RolloutSpec
    learn: LearnSpec


def stage_program(
    stage: int,
    spec: ProgramSpec,
    model: ModelConfig,
    optimizer: Optimizer,
    rl,
    reward,
    judge: Judge | None = None,
    learns: bool = True,
):
    """The function of one stage, to be jitted with `state` and `rows` donated.

    (state, frozen, rows, task, world, control) -> (state, rows, outcome); rows is None before stage 1. The outcome
    holds "metrics" (scalars), "rows" (per-row numbers) and "trace". `rl` and `reward` are config.rl and config.reward,
    whose weights come with `control`. Without `learns` nothing is ever updated, and the program compiles faster.
    `frozen` are parameters that training leaves alone (setup.Run.frozen).
    """

    on, learns = switches_of(rl, reward), learns and updates_after(stage, rl)

    def program(state: TrainState, frozen: dict, rows: Rows | None, task: Task, world: World, control: Control):
        policy, world = enter(spec.rollout, model, state, frozen, world, control)
        rows, trace = play(stage, spec.rollout, policy, world, rows, task, control, rl.group_size, on)
        judged, verdicts = None, {}
        if judge is not None:  # before stage 3 there is no answer to judge
            judged = jnp.zeros((spec.rollout.batch,))
            if stage == 3:
                judged = judge_answers(judge, task, rows, spec.rollout.layout)
                failed, asked = jnp.isnan(judged), rows.action.length > 0
                judged, verdicts = jnp.where(failed, 0.0, judged), {"judge_asked": asked, "judge_failed": failed}
                # Without a single verdict nothing is learnt; the loop stops when that lasts (evaluate.count_unheard).
                control = control.replace(update=control.update & ~(failed.any() & (failed == asked).all()))
        played = record(stage, spec.rollout, rows)
        scores = score(stage, spec.rollout, played.stats, reward, control.reward, on, judged)
        metrics, by_row = {}, {}
        if learns:
            if stage < 3:  # what is trained here; stage 3 tells of the whole trajectory
                metrics = trained_terms(scores.earned, [k for k in STAGES[:stage] if on.chained or k == stage])
            state, learnt = learn(stage, spec, model, optimizer, rl, state, frozen, played, scores, world, control, on)
            metrics |= learnt | {"reward": scores.objective.mean()}
        if stage == 3:
            by_row = row_numbers(played, scores) | {"cut_messages": task.cut} | verdicts
            metrics |= {f"rollout/{name}": value.astype(jnp.float32).mean() for name, value in by_row.items()}
            by_row |= operation_numbers(played.stats)
        return state, lay_out_rows(rows, spec.rollout.layout), {"metrics": metrics, "rows": by_row, "trace": trace}

    return program


def arm_program(spec: ProgramSpec, model: ModelConfig, optimizer: Optimizer, rl, reward):
    """The function of a whole trajectory and its update, in which everything that arms of a study differ in is data.

    (state, frozen, task, world, control, last) -> (state, outcome): plays stages 1 to `last` [] int32 and updates on
    what `control.switches` say. What is played, scored and learnt is that of the stage programs, which have the same
    parts. The outcome has "metrics" and "rows" of a trajectory that was played to its end; before stage 3 what is named
    "rollout/" in it means nothing, and of the metrics named "term_" those of the stages that are trained count
    (`trained_terms`).
    """
    sizes = spec.rollout

    def program(state: TrainState, frozen: dict, task: Task, world: World, control: Control, last: jax.Array):
        on = control.switches
        policy, world = enter(sizes, model, state, frozen, world, control)

        def from_stage(stage: int, rows: Rows | None) -> Played:
            settings = control.replace(update=control.update & (last == stage))
            rows, _ = play(stage, sizes, policy, world, rows, task, settings, rl.group_size, on)
            if stage == 3:
                return record(stage, sizes, rows)
            return jax.lax.cond(
                last == stage, lambda rows: record(stage, sizes, rows), lambda rows: from_stage(stage + 1, rows), rows
            )

        played = from_stage(1, None)
        scores = score(last, sizes, played.stats, reward, control.reward, on)
        state, learnt = learn(last, spec, model, optimizer, rl, state, frozen, played, scores, world, control, on)
        by_row = row_numbers(played, scores) | {"cut_messages": task.cut}
        metrics = trained_terms(scores.earned, (1, 2)) | learnt | {"reward": scores.objective.mean()}
        metrics |= {f"rollout/{name}": value.astype(jnp.float32).mean() for name, value in by_row.items()}
        return state, {"metrics": metrics, "rows": by_row}

    return program


def enter(
    sizes: RolloutSpec, model: ModelConfig, state: TrainState, frozen: dict, world: World, control: Control
) -> tuple[Policy, World]:
    """The policy that acts, with the shared prompt read, and the world of the method that plays."""
    actor = dataclasses.replace(model, layout=sizes.layout)
    params = kv_cache.for_decoding(qwen.to_layout(lora.policy_params(state.params, frozen), actor), actor)
    world = world.for_method(control.rules)
    if reader := sizes.reader:
        world = world.replace(reader=to_layout(frozen if reader.shares_frozen else world.reader, reader))
    prefix_tokens = world.pieces.prefix
    prefix, _ = kv_cache.encode_prefix(params, actor, prefix_tokens.tokens, prefix_tokens.length)
    return Policy(actor, params, prefix), world


def play(
    stage: int, sizes: RolloutSpec, policy: Policy, world: World, rows: Rows | None, task: Task, control: Control,
    group_size: int, on: Switches,
) -> tuple[Rows, Trace]:  # fmt: skip
    """Runs a stage of every row; `policy` and `world` are of `enter`, `rows` is None before stage 1."""
    rows = new_rows(sizes, policy.config) if stage == 1 else rows
    if stage > 1 and on.chained is not True:
        rows = share_in_groups(rows, group_size, choose(on.chained, jnp.zeros((), bool), control.update))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(control.seed), control.step), stage)
    write = policy_writer(policy, world, sizes, control.temperature, key, control.noise_row)
    return run_stage(rows, task, world, sizes, stage, write, control.tools, control.suppress)


def record(stage: int, sizes: RolloutSpec, rows: Rows) -> Played:
    """What is kept of rows that end after a stage."""
    segments = rows.segments
    if stage == 2:  # the context runs on: its tokens so far are learnt from, and the open segment stays open
        segments = close_segment(rows, jnp.ones((sizes.batch,), bool)).segments
    return Played(rows.stats, segments, rows.effective, rows.standing)


def score(
    last: int | jax.Array, sizes: RolloutSpec, stats: EpisodeStats, reward, weights: rewards.Factors, on: Switches,
    judged: jax.Array | None = None,
) -> Scores:  # fmt: skip
    """What trajectories earned whose last stage was `last`; `judged` as in rewards.earned."""
    earned = rewards.earned(stats, reward, weights, sizes.limit, judged, on.strict)
    terms = rewards.terms(earned)
    total, groups = rewards.combine(terms, weights)
    own = {k: rewards.stage_objective(k, earned, weights) for k in (1, 2)}
    nothing = jnp.zeros_like(total)
    early = jnp.stack([own[1], choose(last >= 2, own[2], nothing), nothing], 1)
    alone = choose(last == 1, own[1], own[2])
    return Scores(
        earned, terms, groups, total,
        objective=choose(last == 3, total, choose(on.chained, early.sum(1), alone)),
        by_stage=choose(last == 3, rewards.stage_rewards(earned, weights), early),
        own=own,
    )  # fmt: skip


def trained_terms(earned: dict[str, jax.Array], stages: Iterable[int]) -> dict[str, jax.Array]:
    """The terms that these stages are trained on, as each earned them: [] each."""
    return {f"term_{name}": earned[name][:, k - 1].mean() for k in stages for name in rewards.STAGE_TERMS[k]}


def learn(
    last: int | jax.Array, spec: ProgramSpec, model: ModelConfig, optimizer: Optimizer, rl, state: TrainState,
    frozen: dict, played: Played, scores: Scores, world: World, control: Control, on: Switches,
) -> tuple[TrainState, dict]:  # fmt: skip
    """Credit and update after stage `last`; the segments of a chained trajectory are those of all its stages."""
    sizes, segments = spec.rollout, played.segments
    advantage, varied = advantages.step_credit(scores.objective, scores.by_stage, rl, on)
    trainable = choose(on.chained, segments.trainable, segments.trainable & (segments.stage == last))
    if rl.zero_variance == "drop":
        trainable = trainable & advantages.of_tokens(varied, segments.stage)
    segments = segments.replace(trainable=trainable)
    budget = sum(sizes.budget(k) * ((k == last) | ((k < last) & on.chained)) for k in STAGES)
    turn = numbered_turns(sizes, segments.stage, segments.turn)
    weight = losses.token_weights(trainable, rl.loss_average, budget, turn, sizes.all_turns)
    by_token = advantages.of_tokens(advantage, segments.stage)
    for k in (1, 2) if sizes.by_turn else ():
        turns = slice(sizes.turns_before(k), sizes.turns_before(k + 1))
        standing = rewards.standing(played.standing[:, turns], control.reward)
        by_turn = advantages.turn_to_go(scores.own[k], standing, segments.turn, rl)
        by_turn = jnp.where(segments.stage == k, by_turn, by_token)
        by_token = choose(on.by_turn & (k <= last), by_turn, by_token)
    extra = advantages.hindsight(scores.terms["task"], played.effective, turn, rl)
    by_token = choose(on.hindsight, by_token + extra, by_token)
    batch = learner_batch(segments, by_token, weight, spec.learn.micro_batch)
    state, metrics = update(
        state, frozen, optimizer, model, world.grammar, world.pieces.prefix, batch, spec.learn, rl, control.update
    )
    metrics["segments"] = (batch.length > 0).sum() / sizes.batch
    metrics["trained_tokens"] = trainable.sum()
    metrics["context_positions"] = batch.length.sum()
    metrics["zero_variance_groups"] = 1 - varied.mean()
    return state, metrics


def updates_after(stage: int, rl) -> bool:
    """Whether there are updates that play a stage last; `rl` is config.rl."""
    return stage == 3 or rl.schedule == "sequential" or (rl.stage1_updates, rl.stage2_updates)[stage - 1] > 0


def share_in_groups(rows: Rows, group_size: int, on: jax.Array) -> Rows:
    """Gives all rows of a group the state of its first one, if `on` []: a stage that is trained alone then compares
    rollouts that began it alike.

    Noise stays a function of (seed, step, stage, slot, column, row): what is shared is what the first row did with its
    own. The keys and values of the context are made again by each row: the copied tokens are the only state.
    """
    first = lambda x: jnp.repeat(x[::group_size], group_size, axis=0)  # noqa: E731
    light = rows.replace(history=())
    shared = jax.tree.map(lambda x: jnp.where(on, first(x), x), light)
    return shared.replace(history=rows.history, cached=jnp.where(on, 0, rows.cached))


def judge_answers(judge: Judge, task: Task, rows: Rows, layout: Layout = LOCAL) -> jax.Array:
    """Verdicts [B] in 0..1 of a judge on the host, NaN where it gave none, called from inside the program.

    On a mesh each process asks its own judge about its own rows, once: of devices that share rows the first one asks.
    """

    def ask(index, tokens, length):
        shape = jax.ShapeDtypeStruct(index.shape, jnp.float32)
        host = lambda given: judge(*map(whole, given))  # noqa: E731
        call = lambda *answers: io_callback(host, shape, list(map(in_pieces, answers)))  # noqa: E731
        if not layout.is_spread:
            return call(index, tokens, length)
        silent = lambda *_: jnp.zeros(shape.shape, shape.dtype)  # noqa: E731
        first = jax.lax.axis_index("tensor") == 0
        return jax.lax.psum(jax.lax.cond(first, call, silent, index, tokens, length), "tensor")

    return sharding.by_rows(layout, ask, (task.index, rows.action.tokens, rows.action.length))


def row_numbers(played: Played, scores: Scores) -> dict:
    """What is reported of each trajectory: [B] arrays by name.

    stop_REASON: 1 where stage 3, which ends the row, ended so; cut_stage1, cut_stage2: where a size ended that stage.
    """
    s = played.stats
    stops = {f"stop_{reason.name.lower()}": s.stop[:, 2] == reason for reason in StopReason if reason}
    cut = {f"cut_stage{stage}": s.stop[:, stage - 1] >= StopReason.CONTEXT for stage in (1, 2)}
    calls = {f"calls_{op.name.lower()}": s.calls[:, op] for op in Op if 0 <= op < NUM_OPS and op != Op.WRITE_SUMMARY}
    return {
        "reward": scores.total,
        "success": s.success,
        "progress": s.progress,
        "memory_quality": s.memory_quality,
        "memory_coverage": s.memory_coverage,
        "memory_precision": s.memory_precision,
        "context_tokens": s.context_tokens,
        "peak_context_tokens": s.peak_context_tokens,
        "turns": s.turns,
        "prompt_tokens": s.prompt_tokens,
        "peak_entries": s.peak_entries,
        "peak_store_tokens": s.peak_store_tokens,
        "effective_turns": played.effective.sum(1),
        "acted": s.actions > 0,
        "actions": s.actions,
        "misunderstood": s.actions - s.understood,
        "generated_tokens": s.generated_tokens,
        "sampled_tokens": s.sampled_tokens,
        "malformed_turns": s.malformed.sum(1),
        **calls,
        **stops,
        **cut,
        **{f"reward_{name}": value for name, value in scores.groups.items()},
        **{f"term_{name}": value for name, value in scores.terms.items()},
    }


def operation_numbers(stats: EpisodeStats) -> dict:
    """What the operations took of each trajectory, {prompt_tokens_OP and generated_tokens_OP: [B]}."""
    took = {"prompt_tokens": stats.op_prompt_tokens, "generated_tokens": stats.op_generated_tokens}
    return {f"{name}_{op.name.lower()}": tokens[:, op] for name, tokens in took.items() for op in Op if op >= 0}


def compile_programs(
    spec: ProgramSpec, model: ModelConfig, optimizer, rl, reward, judge: Judge | None = None, learns: bool = True
) -> dict[int, Callable]:
    """The three jitted programs. They compile on first use, once; `_cache_size()` of each tells.

    The state comes out where it went in; metrics, numbers of rows and traces are whole on every device.
    """
    mesh = spec.rollout.layout.mesh
    out = None if mesh is None else (state_shardings(model, optimizer, mesh), None, sharding.replicated(mesh))
    program = lambda stage: stage_program(stage, spec, model, optimizer, rl, reward, judge, learns)  # noqa: E731
    return {stage: jax.jit(program(stage), donate_argnums=(0, 2), out_shardings=out) for stage in STAGES}


def trajectory(
    programs: dict, state: TrainState, frozen: dict, task: Task, world: World, control: Control, until: int = 3
) -> tuple[TrainState, dict, dict]:
    """Runs stages 1 to `until` for one batch of tasks; only the last of them may update. `control` is on the host.

    Returns:
      (state, outcome of the last stage, with "read": the numbers of rows of those before; traces by stage). Arrays stay
      on the device.
    """
    rows, traces, outcome, read = None, {}, {}, []
    everywhere = jax.tree.leaves(world)[0].sharding
    asked, quiet = sharding.put((control, control.replace(update=np.bool_(False))), everywhere)
    for stage in range(1, until + 1):
        settings = asked if stage == until else quiet
        state, rows, outcome = programs[stage](state, frozen, rows, task, world, settings)
        traces[stage] = outcome["trace"]
        read.append(outcome["rows"])
    return state, outcome | {"read": read[:-1]}, traces
