"""The three stage programs: rollout, rewards, credit and update of a stage in one XLA program each.

Chained (the paper): stages 1 and 2 roll out; stage 3 rolls out, scores the whole trajectory and updates on the segments
of all three. Sequential (the article): each stage updates on its own objective, and the rollouts of a group begin it
with what the stages before gave to the first of them. The chained schedule may begin with trajectories that end after
stage 1, then after stage 2, each stage on its own objective (`rl.stage1_updates`, `rl.stage2_updates`). What differs
between training, evaluation and the methods under evaluation enters as data (`Control`), so that every stage compiles
once in a run.
"""

import dataclasses
from collections.abc import Callable
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
from agemem_jax.rollout.stage import policy_writer, run_stage
from agemem_jax.sharding import LOCAL, Layout
from agemem_jax.training.learn import LearnSpec, update
from agemem_jax.training.state import Optimizer, state_shardings
from agemem_jax.types import NUM_OPS, Op, StopReason, Task, TrainState

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


class Scores(NamedTuple):
    """What the trajectories of a batch earned, as credit needs it."""

    objective: jax.Array  # [B] what is trained on
    by_stage: jax.Array  # [B, 3] the part of each stage in it
    own: dict[int, jax.Array]  # {1, 2, as far as played: [B] what the stage gained of its own objective}
    outcome: jax.Array  # [B] the task's score


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

    alone, learns = rl.schedule == "sequential", learns and updates_after(stage, rl)

    def program(state: TrainState, frozen: dict, rows: Rows | None, task: Task, world: World, control: Control):
        actor = dataclasses.replace(model, layout=spec.rollout.layout)
        params = qwen.to_layout(lora.policy_params(state.params, frozen), actor)
        if actor.layout.is_spread:  # on one device these are the state's own arrays, and pieces of them a second copy
            params = kv_cache.split_layers(params, actor)
        rows = new_rows(spec.rollout, actor) if stage == 1 else rows
        if stage > 1 and rl.schedule == "sequential":
            rows = share_in_groups(rows, rl.group_size, control.update)
        world = world.for_method(control.rules)
        if reader := spec.rollout.reader:
            world = world.replace(reader=to_layout(frozen if reader.shares_frozen else world.reader, reader))
        prefix_tokens = world.pieces.prefix
        prefix, _ = kv_cache.encode_prefix(params, actor, prefix_tokens.tokens, prefix_tokens.length)
        write = policy_writer(
            Policy(actor, params, prefix), world, spec.rollout, control.temperature,
            jax.random.fold_in(jax.random.fold_in(jax.random.key(control.seed), control.step), stage),
            control.noise_row,
        )  # fmt: skip
        rows, trace = run_stage(rows, task, world, spec.rollout, stage, write, control.tools, control.suppress)
        judged, verdicts = None, {}
        if judge is not None:  # before stage 3 there is no answer to judge
            judged = jnp.zeros((spec.rollout.batch,))
            if stage == 3:
                judged = judge_answers(judge, task, rows, spec.rollout.layout)
                failed, asked = jnp.isnan(judged), rows.action.length > 0
                judged, verdicts = jnp.where(failed, 0.0, judged), {"judge_asked": asked, "judge_failed": failed}
                # Without a single verdict nothing is learnt; the loop stops when that lasts (evaluate.count_unheard).
                control = control.replace(update=control.update & ~(failed.any() & (failed == asked).all()))
        earned = rewards.earned(rows.stats, reward, control.reward, spec.rollout.limit, judged)
        terms = rewards.terms(earned)
        total, groups = rewards.combine(terms, control.reward)
        metrics, by_row = {}, {}
        if learns:
            own = {k: rewards.stage_objective(k, earned, control.reward) for k in (1, 2)[:stage]}
            if stage == 3:
                objective, parts = total, rewards.stage_rewards(earned, control.reward)
            else:
                parts = jnp.stack([own.get(k, jnp.zeros_like(total)) for k in STAGES], 1)
                objective = own[stage] if alone else parts.sum(1)
                # What is trained here; stage 3 tells of the whole trajectory.
                for k in (stage,) if alone else own:
                    metrics |= {f"term_{name}": earned[name][:, k - 1].mean() for name in rewards.STAGE_TERMS[k]}
            scores = Scores(objective, parts, own, terms["task"])
            state, learnt = learn_stage(state, frozen, rows, scores, stage, world, control)
            metrics |= learnt | {"reward": objective.mean()}
        if stage == 3:
            by_row = row_numbers(rows, terms, groups, total) | {"cut_messages": task.cut} | verdicts
            metrics |= {f"rollout/{name}": value.astype(jnp.float32).mean() for name, value in by_row.items()}
            by_row |= operation_numbers(rows)
        return state, lay_out_rows(rows, spec.rollout.layout), {"metrics": metrics, "rows": by_row, "trace": trace}

    def learn_stage(state, frozen, rows, scores: Scores, stage, world, control):
        """Credit and update; the segments of a chained trajectory are those of all its stages."""
        segments = rows.segments
        if stage == 2:  # the context runs on: its tokens so far are learnt from, and the open segment stays open
            segments = close_segment(rows, jnp.ones((spec.rollout.batch,), bool)).segments
        credit = rl.copy_and_resolve_references()
        if alone:  # a stage's own objective is all the credit that its steps get
            credit.credit = "broadcast"
        advantage, varied = advantages.step_credit(scores.objective, scores.by_stage, credit)
        trainable = segments.trainable
        if alone:
            trainable = trainable & (segments.stage == stage)
        if rl.zero_variance == "drop":
            trainable = trainable & advantages.of_tokens(varied, segments.stage)
        segments = segments.replace(trainable=trainable)
        trained = (stage,) if alone else STAGES[:stage]
        budget = sum(spec.rollout.budget(stage) for stage in trained)
        turn = numbered_turns(spec.rollout, segments.stage, segments.turn)
        weight = losses.token_weights(trainable, rl.loss_average, budget, turn, spec.rollout.all_turns)
        by_token = advantages.of_tokens(advantage, segments.stage)
        if credit.credit == "turn_to_go":
            for k, gained in scores.own.items():
                turns = slice(spec.rollout.turns_before(k), spec.rollout.turns_before(k + 1))
                standing = rewards.standing(rows.standing[:, turns], control.reward)
                by_turn = advantages.turn_to_go(gained, standing, segments.turn, rl)
                by_token = jnp.where(segments.stage == k, by_turn, by_token)
        if credit.credit == "hindsight":
            by_token += advantages.hindsight(scores.outcome, rows.effective, turn, rl)
        batch = learner_batch(segments, by_token, weight, spec.learn.micro_batch)
        state, metrics = update(
            state, frozen, optimizer, model, world.grammar, world.pieces.prefix, batch, spec.learn, rl, control.update
        )
        metrics["segments"] = (batch.length > 0).sum() / spec.rollout.batch
        metrics["trained_tokens"] = trainable.sum()
        metrics["context_positions"] = batch.length.sum()
        metrics["zero_variance_groups"] = 1 - varied.mean()
        return state, metrics

    return program


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


def row_numbers(rows: Rows, terms: dict, groups: dict, total: jax.Array) -> dict:
    """What is reported of each trajectory: [B] arrays by name.

    stop_REASON: 1 where stage 3, which ends the row, ended so; cut_stage1, cut_stage2: where a size ended that stage.
    """
    s = rows.stats
    stops = {f"stop_{reason.name.lower()}": s.stop[:, 2] == reason for reason in StopReason if reason}
    cut = {f"cut_stage{stage}": s.stop[:, stage - 1] >= StopReason.CONTEXT for stage in (1, 2)}
    calls = {f"calls_{op.name.lower()}": s.calls[:, op] for op in Op if 0 <= op < NUM_OPS and op != Op.WRITE_SUMMARY}
    return {
        "reward": total,
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
        "effective_turns": rows.effective.sum(1),
        "acted": s.actions > 0,
        "actions": s.actions,
        "misunderstood": s.actions - s.understood,
        "generated_tokens": s.generated_tokens,
        "sampled_tokens": s.sampled_tokens,
        "malformed_turns": s.malformed.sum(1),
        **calls,
        **stops,
        **cut,
        **{f"reward_{name}": value for name, value in groups.items()},
        **{f"term_{name}": value for name, value in terms.items()},
    }


def operation_numbers(rows: Rows) -> dict:
    """What the operations took of each trajectory, {prompt_tokens_OP and generated_tokens_OP: [B]}."""
    took = {"prompt_tokens": rows.stats.op_prompt_tokens, "generated_tokens": rows.stats.op_generated_tokens}
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
