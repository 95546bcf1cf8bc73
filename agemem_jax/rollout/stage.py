"""One stage of a trajectory: a loop over generation slots that ends when every row has."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.envs import scoring
from agemem_jax.memory import context as context_lib
from agemem_jax.rollout import turn as turn_lib
from agemem_jax.rollout.decode import Generation, Policy, Turns, generate
from agemem_jax.rollout.reading import read_calls
from agemem_jax.rollout.rows import RolloutSpec, Rows, World, close_segment, reset_context, rowwise, select, stop
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.types import Mode, Op, Status, StopReason, Task, Text, in_stage

# (rows, slot, on [B], start [B], ops [B], budget [B]) -> (rows with updated caches, what was written)
Writer = Callable[..., tuple[Rows, Generation]]


@struct.dataclass
class Trace:
    """The first R rows of a stage, slot by slot. Slots that never ran have `ran` False."""

    ran: jax.Array  # [T, R] bool
    mode: jax.Array  # [T, R] int32
    turn: jax.Array  # [T, R] int32
    seen: Text  # [T, R, W] the observation
    said: Text  # [T, R, A] what the policy wrote
    op: jax.Array  # [T, R, J] int32 calls of this turn
    status: jax.Array  # [T, R, J] int32 what became of them (a summary's own status follows in `shown`)
    shown: Text  # [T, R, Wr] results that the calls left for the next observation
    store_tokens: Text  # [T, R, N, L] the store after the slot
    store_tags: Text  # [T, R, N, G, 2, Lt]
    store_id: jax.Array  # [T, R, N] int32, NO_ID where empty
    store_hits: jax.Array  # [T, R, N] int32
    context: jax.Array  # [T, R, C] int32 the context after the slot
    message: jax.Array  # [T, R, C] int32 message slot of each place
    born: jax.Array  # [T, R, M] int32 number of the slot's message in creation order
    pinned: jax.Array  # [T, R, M] bool
    role: jax.Array  # [T, R, M] int32
    context_length: jax.Array  # [T, R] int32
    stop: jax.Array  # [T, R] int32 StopReason; rows that do not fit end before they speak (`ran` is False)


def policy_writer(
    policy: Policy,
    world: World,
    spec: RolloutSpec,
    temperature: jax.Array,
    key: jax.Array,
    noise_row: jax.Array | None = None,
) -> Writer:
    """Turns are sampled from the policy; the noise is a function of (key, slot, column, noise row: see `decode`)."""

    def write(rows: Rows, slot, on, start, ops, budget):
        turns = Turns(
            on, world.grammar, start, ops, budget, spec.width, temperature, jax.random.fold_in(key, slot), noise_row,
            spec.columns,
        )  # fmt: skip
        history, cached, gen = generate(
            policy, rows.history, rows.cached, rows.context.tokens, rows.context.length, turns, spec.chunk,
            spec.few_rows, spec.decode_width,
        )  # fmt: skip
        return rows.replace(history=history, cached=cached), gen

    return write


def scripted_writer(
    world: World, spec: RolloutSpec, script: Text, summaries: Text, slips: jax.Array | None = None
) -> Writer:
    """Turns are read from a script, in the very same environment.

    Args:
      script: [B, turns, A] what is written in each turn.
      summaries: [B, S, A] the S-th summary that is asked for.
      slips: [B, turns] bool turns of which no token counts as chosen, so that none is imitated; None: no turn.
    """

    def write(rows: Rows, slot, on, start, ops, budget):
        summary = turn_lib.take(summaries, rows.summaries - 1)
        line = select(rows.mode == Mode.SUMMARIZE, summary, turn_lib.take(script, rows.turn))
        made = written(line, world, spec.width, on, start, ops, budget)
        if slips is not None:
            slipped = jnp.take_along_axis(slips, rows.turn[:, None], 1) & (rows.mode != Mode.SUMMARIZE)[:, None]
            made = made.replace(sampled=made.sampled & ~slipped)
        return rows, made

    return write


def written(line: Text, world: World, width: int, on, start, ops, budget) -> Generation:
    """What a policy would have that writes the lines [B, A], in rows `on`; see `decode` for the other arguments."""
    count = jnp.where(on, jnp.minimum(line.length, budget), 0)
    tokens = jnp.pad(line.tokens, ((0, 0), (0, width - line.tokens.shape[1])))
    columns = jnp.arange(width)

    def step(state, i):
        left = budget - i
        allowed = grammar_lib.allowed_tokens(world.grammar, state, left, ops)
        live = i < count
        after = jnp.where(live, grammar_lib.advance(world.grammar, state, tokens[:, i]), state)
        return after, (state, left, live & (allowed.sum(-1) > 1))

    _, (state, left, choice) = jax.lax.scan(step, start, columns)
    return Generation(
        tokens=jnp.where(columns < count[:, None], tokens, 0),
        count=count,
        logp=jnp.zeros(tokens.shape),
        state=state.T,
        remaining=left.T,
        sampled=choice.T,
    )


def allowed_ops(spec: RolloutSpec, stage: int, tools: jax.Array, answers_only: jax.Array | bool = False) -> jax.Array:
    """Bit mask of a stage's operations: the method's tools, the empty turn, a task action where one may be taken.

    `answers_only`: of Rules; then a task action is all that may be written.
    """
    mask = tools | (1 << Op.WRITE_SUMMARY)
    if spec.pass_allowed:
        mask = mask | (1 << Op.PASS)
    if stage == 3:
        return jnp.where(answers_only, 1 << Op.ACT, mask | (1 << Op.ACT))
    if spec.early_answer_ends:
        return mask | (1 << Op.ACT)
    # Without tools and empty turns, a plain reply is the only thing left to say.
    speechless = (mask & ~(1 << Op.WRITE_SUMMARY)) == 0
    return jnp.where(speechless, mask | (1 << Op.ACT), mask)


@jax.named_scope("rollout")
def run_stage(
    rows: Rows,
    task: Task,
    world: World,
    spec: RolloutSpec,
    stage: int,
    write: Writer,
    tools: jax.Array,
    suppress: jax.Array | None = None,
) -> tuple[Rows, Trace]:
    """Runs stage 1, 2 or 3 of every row (Algorithms 3, 4 and 5 of the paper).

    Args:
      rows: rows as the stage before left them (`new_rows` before stage 1).
      stage: static, 1 to 3.
      write: who writes the turns.
      tools: [] int32 bit mask over Op of the memory tools that the method may use.
      suppress: [B] int32 the call of each trajectory that is not run, as `call_number` numbers them; NO_CALL or None:
        all are run.

    Returns:
      (rows, trace of the first `spec.trace_rows` rows).
    """
    batch = spec.batch
    ops = jnp.broadcast_to(allowed_ops(spec, stage, tools, world.rules.answers_only).astype(jnp.int32), (batch,))
    last_turn = turn_lib.turns_of(task, spec, stage)
    zeros = jnp.zeros((batch,), jnp.int32)
    suppress = zeros + turn_lib.NO_CALL if suppress is None else spec.layout.constrain(suppress, "rows")
    rows = rows.replace(mode=zeros + Mode.ACT, turn=zeros, summaries=zeros, pointer=zeros)
    rows = stop(rows, last_turn <= 0, StopReason.TURNS, stage)

    def body(carry):
        slot, rows, trace = carry
        read = turn_lib.read_message(rows, world, task, spec, stage)
        rows, seen = rowwise(spec, observe, rows, task, read, whole=(tables,))
        mode, turn = rows.mode, rows.turn
        live, summing = mode != Mode.DONE, mode == Mode.SUMMARIZE
        on = live & ~turn_lib.is_silent(world, stage)
        start = jnp.where(summing, world.grammar.start_summary, world.grammar.start_act)
        budget = jnp.where(summing, spec.summary_tokens, spec.action_tokens)
        rows, gen = write(rows, slot, on, start, ops, budget)
        rows, op, spoke = rowwise(spec, listen, rows, gen, start, ops, summing, on, whole=(tables,))
        rows = read_calls(rows, spoke, world, spec)
        rows = rowwise(spec, act, rows, task, op, live, on, last_turn, suppress, whole=(tables,))
        trace = add_to_trace(trace, slot, snapshot(rows, live, mode, turn, seen, gen, op, spec, stage))
        return slot + 1, rows, trace

    def observe(rows: Rows, task: Task, read: tuple, world: World, spec: RolloutSpec):
        return turn_lib.observe(rows, world, task, spec, stage, read)

    def listen(rows: Rows, gen: Generation, start, ops, summing, on, world: World, spec: RolloutSpec):
        """Records and parses what the rows `on` wrote: (rows, op `[B, J]` of their calls, which of them have some)."""
        calls = grammar_lib.parse(world.grammar, gen.tokens, gen.count, start, tag_width=spec.tag_tokens)
        # An unconstrained turn may ask for what the stage or the method does not allow.
        stray = ((calls.op != Op.NONE) & ((ops[:, None] >> jnp.maximum(calls.op, 0)) & 1 == 0)).any(1)
        calls = calls.replace(op=jnp.where(stray[:, None], Op.NONE, calls.op), malformed=calls.malformed | stray)
        summary = jnp.where(jnp.arange(spec.max_calls) == 0, Op.WRITE_SUMMARY, Op.NONE)
        rows = turn_lib.count_tokens(rows, world, jnp.where(summing[:, None], summary, calls.op), on, gen.count)
        rows = turn_lib.record(rows, world, gen, calls.said, ops, spec, stage)
        spoke = on & ~summing
        wrong = on & calls.malformed
        rows = rows.replace(
            calls=select(spoke, calls, rows.calls),
            pointer=jnp.where(spoke, 0, rows.pointer),
            status=jnp.where(spoke[:, None], Status.NOT_RUN, rows.status),
        )
        rows = rows.replace(stats=rows.stats.replace(malformed=rows.stats.malformed + in_stage(wrong, stage)))
        op = jnp.where(spoke[:, None], calls.op, Op.NONE)
        rows = turn_lib.finish_summary(rows, world, calls, on & summing, spec, stage)
        none = jnp.zeros_like(rows.turn)
        rows = turn_lib.say(rows, world, wrong & spoke, none, none + Status.MALFORMED, [])
        return rows, op, spoke

    def act(rows: Rows, task: Task, op, live, on, last_turn, suppress, world: World, spec: RolloutSpec):
        """Runs the calls of the rows `on`, and moves the `live` ones whose turn is over to their next."""
        rows = turn_lib.track_store(turn_lib.run_calls(rows, world, task, spec, stage, on, suppress))
        over = live & (rows.mode == Mode.ACT)
        if stage < 3 and spec.by_turn:
            since = jnp.arange(spec.turns_before(3)) >= (spec.turns_before(stage) + rows.turn)[:, None]
            since = since & over[:, None]  # until something changes
            now = standing_now(rows, task, world, spec, stage)
            rows = rows.replace(standing=jnp.where(since[..., None], now[:, None], rows.standing))
        turn = rows.turn + over
        acted = (rows.calls.op == Op.ACT).any(1)
        early = acted if spec.early_answer_ends else jnp.zeros_like(acted)
        ends = rows.finished if stage == 3 else early
        why = jnp.where(ends, StopReason.FINISHED, StopReason.TURNS)
        rows = stop(rows, over & (ends | (turn >= last_turn)), why, stage)
        return rows.replace(turn=turn, round=rows.round + over)

    def going(carry):
        slot, rows, _ = carry
        return (rows.mode != Mode.DONE).any() & (slot < spec.slots(stage))

    tables = world.replace(reader={})  # what each device needs for its own rows
    if stage == 3:
        rows = rowwise(spec, begin, rows, task, whole=(tables,))
    trace = new_trace(spec, tables, rows, task, stage)
    _, rows, trace = jax.lax.while_loop(going, body, (jnp.int32(0), rows, trace))
    return rowwise(spec, functools.partial(end_stage, stage), rows, task, whole=(tables,)), trace


def begin(rows: Rows, task: Task, world: World, spec: RolloutSpec) -> Rows:
    """Rows whose environment is as its game begins."""
    state, seen = spec.env.reset(world.env, task.game)
    return rows.replace(env=state, seen=seen)


def end_stage(stage: int, rows: Rows, task: Task, world: World, spec: RolloutSpec) -> Rows:
    """What is measured when a stage is over; the context is emptied after stage 1, the last segment closed after 3."""
    stats = rows.stats
    if stage == 1:
        entries = Text(rows.store.tokens, rows.store.length)
        gold = scoring.holds(entries, task.gold, world.token_weight, world.names, spec.good_entry)
        gold_valid = jnp.arange(task.gold.length.shape[1]) < task.num_gold[:, None]
        coverage, precision, quality = scoring.store_quality(gold, rows.store.valid, gold_valid)
        kept, revised = store_worth(rows, task, world, spec)
        stats = stats.replace(
            memory_coverage=coverage,
            memory_precision=precision,
            memory_quality=quality,
            kept=kept,
            revised=revised,
        )
        rows = reset_context(rows.replace(stats=stats), world, spec)
        return rows.replace(result=rows.result.replace(length=jnp.zeros_like(rows.result.length)))
    stats = stats.replace(
        context_tokens=rows.context.length + world.prefix_tokens,
        prevented=stats.prevented | turn_lib.prevented(rows, stage),
        preservation=scoring.token_share(task.key_tokens, rows.context.tokens, rows.context.length),
    )
    if stage == 2:
        return rows.replace(stats=stats.replace(in_view=in_view(rows, task, world)))
    rows = rows.replace(stats=stats.replace(over_turns=stats.stop[:, 2] == StopReason.TURNS))
    return close_segment(rows, jnp.ones((spec.batch,), bool))


def store_worth(rows: Rows, task: Task, world: World, spec: RolloutSpec) -> tuple[jax.Array, jax.Array]:
    """What the store is worth as it is, by the strict terms: (storage, maintenance), `[B]` float32 each."""
    entries, valid = Text(rows.store.tokens, rows.store.length), rows.store.valid
    holds = lambda facts: scoring.holds(  # noqa: E731
        entries, facts, world.token_weight, world.names, spec.good_entry
    )
    was_held = rows.stats.stale_held[:, None] >> jnp.arange(task.stale.length.shape[1]) & 1 > 0
    revised = scoring.revised_share(
        holds(task.stale), holds(task.present), valid, was_held, task.present, task.num_revisions
    )
    return scoring.kept_quality(holds(task.keep), valid, task.num_keep), revised


def in_view(rows: Rows, task: Task, world: World) -> jax.Array:
    """How much of what should be in view is in the context as it is, `[B]` float32."""
    context = rows.context
    return scoring.view_share(
        task.view, task.num_view, context.tokens, context.message, context.length, context.born.shape[1],
        world.token_weight,
    )  # fmt: skip


def standing_now(rows: Rows, task: Task, world: World, spec: RolloutSpec, stage: int) -> jax.Array:
    """What stage 1 or 2 would have of each of TURN_TERMS if it ended now, `[B, 3]` float32."""
    none = jnp.zeros((spec.batch,))
    if stage == 1:
        return jnp.stack([*store_worth(rows, task, world, spec), none], -1)
    return jnp.stack([none, none, in_view(rows, task, world)], -1)


def snapshot(rows: Rows, on, mode, turn, seen: Text, gen: Generation, op, spec: RolloutSpec, stage) -> Trace:
    """The first `spec.trace_rows` rows after one slot: a Trace without its [T] axis."""
    whole = lambda x: spec.layout.constrain(x, *[None] * x.ndim)  # noqa: E731  (few rows: every device has them)
    head = lambda tree: jax.tree.map(lambda x: whole(x[: spec.trace_rows]), tree)  # noqa: E731
    store, context = rows.store, rows.context
    return head(
        Trace(
            ran=on,
            mode=mode,
            turn=turn,
            seen=seen,
            said=Text(gen.tokens, gen.count),
            op=op,
            status=rows.status,
            shown=context_lib.plain(rows.result),
            store_tokens=Text(store.tokens, store.length),
            store_tags=store.tags,
            store_id=jnp.where(store.valid, store.id, -1),
            store_hits=store.hits,
            context=context.tokens,
            message=context.message,
            born=context.born,
            pinned=context.pinned,
            role=context.role,
            context_length=context.length,
            stop=rows.stats.stop[:, stage - 1],
        )
    )


def new_trace(spec: RolloutSpec, world: World, rows: Rows, task: Task, stage: int) -> Trace:
    """An empty trace of the shapes that `snapshot` makes."""

    def shape(rows):
        vectors = jnp.zeros((spec.batch, spec.embedding_size))
        rows, seen = turn_lib.observe(rows, world, task, spec, stage, (vectors, vectors) if spec.reader else ())
        z = jnp.zeros((spec.batch, spec.width), jnp.int32)
        gen = Generation(z, rows.turn, z * 0.0, z, z, z > 0)
        return snapshot(rows, rows.mode > 0, rows.mode, rows.turn, seen, gen, rows.calls.op, spec, stage)

    one = jax.eval_shape(shape, rows)
    return jax.tree.map(lambda x: jnp.zeros((spec.slots(stage), *x.shape), x.dtype), one)


def add_to_trace(trace: Trace, slot: jax.Array, one: Trace) -> Trace:
    """Writes one slot's snapshot into the trace."""
    return jax.tree.map(lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, slot, 0), trace, one)
