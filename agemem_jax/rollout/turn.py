"""What happens around a generation: the observation before it, and the calls that it asked for after it."""

import jax
import jax.numpy as jnp

from agemem_jax.envs import scoring
from agemem_jax.memory import bm25
from agemem_jax.memory import context as context_lib
from agemem_jax.memory import store as store_lib
from agemem_jax.memory.encoder import Encoder
from agemem_jax.rollout.decode import Generation
from agemem_jax.rollout.reading import given, read_where
from agemem_jax.rollout.rows import (
    RolloutSpec,
    Rows,
    World,
    close_segment,
    light_cond,
    may_edit,
    may_overflow,
    remove,
    select,
    stop,
)
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.types import NUM_OPS, Mode, Op, Role, Status, StopReason, Task, Text, in_stage

NO_CALL = -1  # the number of no call


def spread(piece: Text, on: jax.Array) -> Text:
    """A fixed string [w] for every row that is `on`, nothing for the others: [B, w]."""
    tokens = jnp.broadcast_to(piece.tokens, (on.shape[0], piece.tokens.shape[-1]))
    return Text(tokens, jnp.where(on, piece.length, 0))


def where_text(on: jax.Array, text: Text) -> Text:
    """The text in rows `on`, an empty one elsewhere."""
    return Text(text.tokens, jnp.where(on, text.length, 0))


def take(texts: Text, index: jax.Array) -> Text:
    """Text `index[b]` of each row: [B, n, W] -> [B, W]."""
    i = jnp.clip(index, 0, texts.length.shape[1] - 1)
    tokens = jnp.take_along_axis(texts.tokens, i[:, None, None], 1)[:, 0]
    return Text(tokens, jnp.take_along_axis(texts.length, i[:, None], 1)[:, 0])


def entry_line(world: World, text: Text, number: jax.Array, on: jax.Array) -> list[Text]:
    """An entry [B, L] of rows `on` with a number [B], after a line break, ready to be packed; the entry is SAID."""
    p = world.pieces
    i = jnp.clip(number, 0, p.numbers.length.shape[0] - 1)
    shown = Text(p.numbers.tokens[i], jnp.where(on, p.numbers.length[i], 0))
    entry = context_lib.saying(where_text(on, text))
    first, last = (shown, entry) if p.id_first else (entry, shown)
    return [spread(p.line_break, on), first, spread(p.id_mark, on), last]


def memory_lines(world: World, found: store_lib.Retrieved) -> list[Text]:
    """Retrieved entries with their ids, best first, each after a line break, ready to be packed; entries are SAID."""
    lines = []
    for k in range(found.id.shape[1]):
        lines += entry_line(
            world, Text(found.tokens[:, k], found.length[:, k]), found.id[:, k], found.found[:, k]
        )
    return lines


def message(rows: Rows, world: World, task: Task, spec: RolloutSpec, stage: int) -> tuple[Text, jax.Array]:
    """The user message of a turn (Algorithms 3 to 5 of the paper): ([B, W] body, [B] bool whether there is one).

    In stage 3 that is the query, then what the environment answers.
    """
    turn = rows.turn
    if stage == 1:
        return take(task.facts, turn), turn < task.num_facts
    if stage == 2:
        return take(task.distractors, turn), turn < task.num_distractors
    begins = turn == 0
    if not spec.env.seen_tokens:
        return task.query, begins
    shown = rows.seen.length > 0
    between = spread(world.pieces.seen_open, begins & shown)
    return context_lib.pack([where_text(begins, task.query), between, rows.seen]), begins | shown


def speaker(task: Task, stage: int, turn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whose turn it is: owner and session `[B]`. After the last message of a stage its speaker is still meant."""
    if stage == 3:
        return task.owner, task.session
    owners, sessions, count = (
        (task.fact_owner, task.fact_session, task.num_facts)
        if stage == 1
        else (task.distractor_owner, task.distractor_session, task.num_distractors)
    )
    i = jnp.clip(turn, 0, jnp.maximum(count - 1, 0))[:, None]
    return jnp.take_along_axis(owners, i, 1)[:, 0], jnp.take_along_axis(sessions, i, 1)[:, 0]


def turns_of(task: Task, spec: RolloutSpec, stage: int) -> jax.Array:
    """[B] int32 turns after which a stage ends."""
    if stage == 1:
        return task.num_facts + spec.stage1_extra_turns
    if stage == 2:
        return task.num_distractors + spec.stage2_extra_turns
    return jnp.full((spec.batch,), spec.stage3_turns, jnp.int32)


def retrievals(rows: Rows, world: World, spec: RolloutSpec, stage: int, present: jax.Array):
    """Which rows are shown entries that go with their message, how many at most, and from which cosine on.

    Stage 1: automatic retrieval. Stage 3: the question's, by rule.
    """
    if spec.always_retrieves:
        return present, spec.rule_top_k, spec.min_score
    return {
        1: (present & ~is_silent(world, stage), spec.auto_top_k, spec.auto_min_score),
        2: (present, 0, 0.0),
        3: (present & world.rules.stores, spec.rule_top_k, spec.min_score),
    }[stage]


def read_message(rows: Rows, world: World, task: Task, spec: RolloutSpec, stage: int) -> tuple:
    """Vectors `[B, E]` of the messages that come now, as an entry and as a query, where they will be one; () without a
    reader.
    """
    if spec.reader is None:
        return ()
    body, present = message(rows, world, task, spec, stage)
    present = present & (rows.mode == Mode.ACT)
    shows, top_k, _ = retrievals(rows, world, spec, stage, present)
    none = jnp.zeros((spec.batch, spec.embedding_size))
    as_entry = read_where(present & world.rules.stores, body, False, none, world, spec) if stage < 3 else none
    return as_entry, read_where(shows, body, True, none, world, spec) if top_k else none


def observe(rows: Rows, world: World, task: Task, spec: RolloutSpec, stage: int, read: tuple = ()) -> tuple[Rows, Text]:
    """Appends what each row sees before it generates: tool results, related memories, the user message.

    Rows that write a summary get the summarising prompt. Where the context would pass its capacity, or the table of its
    messages is full, the oldest messages that are not pinned go first, down to the low-water mark; a row that still has
    no room, or no segment left to drop them, ends its stage. A turn that may ask for a summary keeps room for it: what
    is to be summarised is still there when the summary is written.

    Where the agent only answers (Rules), messages come without an assistant's turn after them, until the question.

    Args:
      read: of `read_message`.

    Returns:
      (rows, the observation as one Text [B, W], for traces).
    """
    pieces, rules = world.pieces, world.rules
    silent = is_silent(world, stage)
    act, summarize = rows.mode == Mode.ACT, rows.mode == Mode.SUMMARIZE
    body, present = message(rows, world, task, spec, stage)
    present = present & act
    related: list[Text] = []
    as_entry, as_query = (given(world, vectors) for vectors in read or (None, None))
    store = rows.store
    if stage < 3:
        store = store_by_rule(store, rows, present, body, task, world, spec, stage, as_entry)
    shows, top_k, min_score = retrievals(rows, world, spec, stage, present)
    if top_k:
        wanted = jnp.full((spec.batch,), top_k, jnp.int32)
        if spec.by_words:
            score = bm25.scores(store, body, speaker(task, stage, rows.turn)[0], world.words)
            found = store_lib.best(store, score, (score > 0) & shows[:, None], wanted, top_k)
        else:
            store, found, _ = store_lib.retrieve(
                store, shows, body, wanted, None, speaker(task, stage, rows.turn)[0], as_query,
                max_k=top_k, min_score=min_score, count_hits=False,
            )  # fmt: skip
        found = found.replace(found=found.found & shows[:, None])
        any_found = found.found.any(1)
        between = spread(pieces.line_break, any_found & (rows.result.length > 0))
        related = [between, spread(pieces.related, any_found), *memory_lines(world, found)]
    shown = context_lib.pack([where_text(act, rows.result), *related])
    has_tool = act & (shown.length > 0)
    tool = context_lib.pack([spread(pieces.tool_open, has_tool), shown, spread(pieces.tool_close, has_tool)])
    asks = present | summarize
    said = context_lib.pack([context_lib.saying(where_text(present, body)), spread(pieces.summary_prompt, summarize)])
    user = context_lib.pack([spread(pieces.user_open, asks), said, spread(pieces.close, asks)])
    live = act | summarize
    speaks = live & ~silent
    opening = spread(pieces.assistant_open, speaks)

    may_ask = act & may_edit(rows, spec, stage) & (rows.summaries < spec.summary_slots) & spec.summary_by_policy
    may_ask = may_ask & ~rules.answers_only
    ending = pieces.close.length
    summary = pieces.user_open.length + pieces.summary_prompt.length + pieces.assistant_open.length + 2 * ending
    budget = jnp.where(act, spec.action_tokens, spec.summary_tokens)
    budget = budget + ending + jnp.where(may_ask, summary + spec.summary_tokens, 0)
    written = jnp.where(speaks, budget, 0)
    need = jnp.where(live, tool.length + user.length + opening.length + written, 0)
    slots = has_tool + asks + speaks + jnp.where(may_ask, 2, 0)
    # To keep the limit is to keep free what the capacity has beyond it; and what still fits then stays.
    beyond = jnp.where(rules.keeps_limit, jnp.maximum(spec.capacity - spec.limit + world.prefix_tokens, 0), 0)
    low_water = jnp.where(rules.keeps_limit, 1.0, spec.low_water)
    drop = context_lib.oldest_drop(rows.context, need + jnp.where(live, beyond, 0), slots, low_water)
    may_drop = may_overflow(rows, spec, stage)
    rows = remove(rows.replace(store=store), drop & may_drop[:, None])
    used = jnp.sum(rows.context.alive, axis=1) + slots
    stuck = live & ((rows.context.length + need > spec.capacity) | (used > spec.messages))
    why = jnp.where(drop.any(1) & ~may_drop, StopReason.SEGMENTS, StopReason.CONTEXT)
    rows = stop(rows, stuck, why, stage)
    over = in_stage(stuck & (why == StopReason.CONTEXT), stage)
    stats = rows.stats.replace(over_context=rows.stats.over_context | over)
    spilled = rows.spilled | (drop.any(1) & may_drop) | stuck
    go = ~stuck

    context = rows.context
    pinned = present & (rows.turn == 0) if stage == 3 and spec.pin_query else jnp.zeros_like(present)
    context, _ = context_lib.append(context, has_tool & go, tool, Role.TOOL, False, rows.round)
    context, _ = context_lib.append(context, asks & go, user, Role.USER, pinned, rows.round)
    context, _ = context_lib.append(context, speaks & go, opening, Role.ASSISTANT, False, rows.round)
    result = where_text(~act, rows.result)
    seen = context_lib.plain(context_lib.pack([tool, user, opening]))
    rows = rows.replace(context=context, stats=stats, result=result, spilled=spilled)
    if stage == 3:
        rows = rows.replace(seen=where_text(~act, rows.seen))
    rows = track_crowd(rows, present & go, user, opening, budget, world, spec)
    return track_length(rows, world, spec, stage), seen


def is_silent(world: World, stage: int) -> jax.Array:
    """[] bool: nobody speaks in this stage (Rules.answers_only)."""
    return world.rules.answers_only & (stage < 3)


def no_tags(rows: Rows) -> Text:
    """Tags of an entry that has none: [B, G, 2, Lt]."""
    return jax.tree.map(lambda x: jnp.zeros_like(x[:, 0]), rows.calls.tags)


def store_by_rule(
    store: store_lib.MemoryStore,
    rows: Rows,
    on: jax.Array,
    body: Text,
    task: Task,
    world: World,
    spec: RolloutSpec,
    stage: int,
    encode: Encoder,
) -> store_lib.MemoryStore:
    """Where the rules say so, adds the message of rows `on` as an entry of its speaker, also one that is there already.

    A full store gives up its oldest entry for it.
    """
    owner, session = speaker(task, stage, rows.turn)
    now = spec.turns_before(stage) + rows.turn

    def add(store):
        store = store_lib.drop_oldest(store, on & store.valid.all(1))
        return store_lib.add(store, on, body, no_tags(rows), owner, session, now, encode, world.equality, "add")[0]

    return jax.lax.cond(world.rules.stores, add, lambda store: store, store)


def track_length(rows: Rows, world: World, spec: RolloutSpec, stage: int) -> Rows:
    """Notes the longest context so far and whether it passed its limit."""
    used = rows.context.length + world.prefix_tokens
    peak = jnp.maximum(rows.stats.peak_context_tokens, used)
    over = (used > spec.limit) & (rows.mode != Mode.DONE)
    stats = rows.stats.replace(
        peak_context_tokens=peak, over_context=rows.stats.over_context | in_stage(over, stage)
    )
    # Without the edits made since it was last emptied, the context would have passed its limit now; it never has.
    kept = ~over & ~rows.spilled & (used + rows.freed > spec.limit)
    effective = rows.effective | (rows.edits & kept[:, None])
    return rows.replace(stats=stats, spilled=rows.spilled | over, effective=effective)


def track_crowd(
    rows: Rows, on: jax.Array, user: Text, opening: Text, budget: jax.Array, world: World, spec: RolloutSpec
) -> Rows:
    """Notes what the messages told in this context need by themselves, when one more (`user`, `opening`) comes to rows
    `on`.

    Each needs the shortest turn that can be written, the last one the `budget` [B] that room is kept for as well. What
    the agent brings in itself (retrieved entries, long turns) is not counted: to fill a context and to empty it again
    is no use.
    """
    asked = rows.told + user.length + opening.length
    full = asked + budget > spec.capacity
    over = asked + spec.shortest_turn + world.pieces.after_turn.length + world.prefix_tokens > spec.limit
    told = jnp.where(on, asked + spec.shortest_turn + world.pieces.after_turn.length, rows.told)
    return rows.replace(told=told, crowded=rows.crowded | (on & (full | over)))


def prevented(rows: Rows, stage: int) -> jax.Array:
    """[B, 3] bool, at the end of a stage: the strict `preventive`, that edits were needed, and in time.

    The messages of the context would alone have been too much for it (`Rows.crowded`), and it was never too full
    (`Rows.spilled`): FILTER or SUMMARY made room before something fell out. Never in stage 1, after which the context
    is emptied anyway.
    """
    return in_stage(rows.crowded & ~rows.spilled & (stage > 1), stage)


def mark_turns(marks: jax.Array, turn: jax.Array, on: jax.Array) -> jax.Array:
    """`marks` [B, turns] with those of `turn` [B, n] set where `on` [B, n] bool."""
    return marks | ((turn[..., None] == jnp.arange(marks.shape[1])) & on[..., None]).any(1)


def mark_writers(effective: jax.Array, store: store_lib.MemoryStore, found: store_lib.Retrieved, now) -> jax.Array:
    """Marks the turns before `now` [B] that added the entries found, and those that wrote the text they have."""
    shown = ((store.id[:, None] == found.id[..., None]) & found.found[..., None]).any(1)  # [B, N]
    for turn in (store.created, store.updated):
        effective = mark_turns(effective, turn, shown & (turn < now[:, None]))
    return effective


def mark_edit(rows: Rows, before: jax.Array, on: jax.Array, now: jax.Array) -> Rows:
    """Notes that the turns `now` [B] of rows `on` have made their contexts of `before` [B] tokens shorter."""
    freed = jnp.where(on, before - rows.context.length, 0)
    return rows.replace(edits=mark_turns(rows.edits, now[:, None], on[:, None]), freed=rows.freed + freed)


def record(
    rows: Rows, world: World, gen: Generation, said: jax.Array, ops: jax.Array, spec: RolloutSpec, stage: int
) -> Rows:
    """Appends what was written to the open assistant message and to the tape; `said` [B, A] as in ToolCalls."""
    on = gen.count > 0
    start = rows.context.length
    last = jnp.take_along_axis(gen.tokens, jnp.maximum(gen.count - 1, 0)[:, None], 1)[:, 0]
    ended = grammar_lib.ends_turn(world.grammar, last)
    after = context_lib.pack([spread(world.pieces.after_turn, on & ended), spread(world.pieces.close, on & ~ended)])
    written = context_lib.saying(Text(gen.tokens, gen.count), said)
    context = context_lib.extend(rows.context, context_lib.pack([written, after]))
    fill = lambda value: jnp.broadcast_to(jnp.asarray(value)[..., None], gen.tokens.shape)  # noqa: E731
    put = lambda buffer, new: context_lib.write(buffer, new.astype(buffer.dtype), start, gen.count)  # noqa: E731
    tape = rows.tape.replace(
        trainable=put(rows.tape.trainable, gen.sampled),
        logp=put(rows.tape.logp, gen.logp),
        state=put(rows.tape.state, gen.state),
        remaining=put(rows.tape.remaining, gen.remaining),
        ops=put(rows.tape.ops, fill(ops)),
        turn=put(rows.tape.turn, fill(rows.turn)),
        stage=put(rows.tape.stage, fill(jnp.full_like(rows.turn, stage))),
    )
    stats = rows.stats.replace(
        turns=rows.stats.turns + on,
        generated_tokens=rows.stats.generated_tokens + gen.count,
        sampled_tokens=rows.stats.sampled_tokens + gen.sampled.sum(1),
    )
    begun = jnp.where(on & (rows.mode == Mode.ACT), start, rows.begun)
    return track_length(rows.replace(context=context, tape=tape, stats=stats, begun=begun), world, spec, stage)


def say(rows: Rows, world: World, on: jax.Array, op: jax.Array, status: jax.Array, extra: list[Text]) -> Rows:
    """Adds a status line, and what belongs to it, to the results that the agent sees in its next turn."""
    pieces = world.pieces
    text = Text(pieces.statuses.tokens[op, status], jnp.where(on, pieces.statuses.length[op, status], 0))
    line = context_lib.pack([spread(pieces.line_break, on & (rows.result.length > 0)), text, *extra])
    result = context_lib.write(rows.result.tokens, line.tokens, rows.result.length, line.length)
    return rows.replace(result=Text(result, rows.result.length + line.length))


def count_call(stats, op: jax.Array, ran: jax.Array, status: jax.Array):
    """Counts calls by operation, all and successful ones."""
    hot = ran[:, None] & (op[:, None] == jnp.arange(NUM_OPS))
    return stats.replace(calls=stats.calls + hot, calls_ok=stats.calls_ok + (hot & (status == Status.OK)[:, None]))


def count_tokens(rows: Rows, world: World, op: jax.Array, on: jax.Array, count: jax.Array) -> Rows:
    """Counts what the policy read and wrote in rows `on`, before what it wrote is appended to their contexts.

    op: [B, J] what each turn asks for, Op.NONE beside; count: [B] int32 tokens written.
    """
    stats = rows.stats
    read = jnp.where(on, rows.context.length + world.prefix_tokens, 0)
    hot = (op[..., None] == jnp.arange(NUM_OPS)).sum(1)  # [B, NUM_OPS] calls
    share = hot / jnp.maximum(hot.sum(1, keepdims=True), 1)
    written = jnp.where(on, count, 0)
    return rows.replace(
        stats=stats.replace(
            prompt_tokens=stats.prompt_tokens + read,
            op_prompt_tokens=stats.op_prompt_tokens + read[:, None] * share,
            op_generated_tokens=stats.op_generated_tokens + written[:, None] * share,
        )
    )


def track_store(rows: Rows) -> Rows:
    """Notes how much the store holds, where that is more than it ever held."""
    stats, store = rows.stats, rows.store
    return rows.replace(
        stats=stats.replace(
            peak_entries=jnp.maximum(stats.peak_entries, store.valid.sum(1)),
            peak_store_tokens=jnp.maximum(stats.peak_store_tokens, jnp.where(store.valid, store.length, 0).sum(1)),
        )
    )


def finish_summary(rows: Rows, world: World, gen_calls, was: jax.Array, spec: RolloutSpec, stage: int) -> Rows:
    """Puts the summary that rows `was` have just written in place of the span that they asked to summarise."""
    text = Text(gen_calls.content.tokens[:, 0], jnp.where(was, gen_calls.content.length[:, 0], 0))

    def apply(rows: Rows) -> Rows:
        # The call, the prompt and the summary itself belong to the current round, which is always part of the span.
        rows, status = summarise(rows, world, was, rows.span, text, spec, stage)
        stats = rows.stats.replace(
            calls_ok=rows.stats.calls_ok.at[:, Op.SUMMARY].add(was & (status == Status.OK)),
        )
        rows = rows.replace(stats=stats, mode=jnp.where(was, Mode.ACT, rows.mode))
        return say(rows, world, was, jnp.full_like(rows.turn, Op.SUMMARY), status, [])

    return light_cond(was.any(), apply, rows)


def summarise(rows: Rows, world: World, on: jax.Array, span, text: Text, spec: RolloutSpec, stage: int):
    """Replaces the span (0 = all, n = the last n rounds and the current one) by the text: (rows, status [B])."""
    drop, status = context_lib.span_drop(rows.context, jnp.where(span > 0, span + 1, 0))
    status = jnp.where(text.length == 0, Status.EMPTY_TEXT, status)
    status = jnp.where(may_edit(rows, spec, stage), status, Status.EDIT_LIMIT)
    on = on & (status == Status.OK)
    pieces = world.pieces
    said = context_lib.saying(where_text(on, text))
    body = context_lib.pack(
        [spread(pieces.user_open, on), spread(pieces.summary_open, on), said, spread(pieces.close, on)]
    )
    in_time = rows.context.length + world.prefix_tokens <= spec.limit
    closed = close_segment(rows, on)
    context, cut, made = context_lib.replace(closed.context, on, drop & on[:, None], body, Role.USER, rows.round)
    status = jnp.where(on, made, status)
    done = on & (made == Status.OK)
    stats = rows.stats.replace(reduced_in_time=rows.stats.reduced_in_time | in_stage(done & in_time, stage))
    edited = closed.replace(context=context, cached=jnp.minimum(rows.cached, cut), stats=stats)
    # What the call, the prompt and the summary took is nothing freed: without them it would not be there.
    edited = mark_edit(edited, rows.begun, done, spec.turns_before(stage) + rows.turn)
    return select_light(done, edited, rows), status


def select_light(on, new: Rows, old: Rows) -> Rows:
    """Row-wise choice that leaves the KV history alone (an edit never changes it)."""
    return select(on, new.replace(history=()), old.replace(history=())).replace(history=old.history)


def call_number(spec: RolloutSpec, stage: int, turn: jax.Array, call: jax.Array) -> jax.Array:
    """The number of a call among all calls of a trajectory, by its stage, its turn there and its place in the turn."""
    return (spec.turns_before(stage) + turn) * spec.max_calls + call


def run_calls(
    rows: Rows, world: World, task: Task, spec: RolloutSpec, stage: int, active: jax.Array, suppress: jax.Array
) -> Rows:
    """Runs the calls of each row's turn in order, from `rows.pointer` on, until a summary has to be written first.

    The call whose number a row has in `suppress` [B] changes nothing, and the agent reads that it was not run.
    """

    def body(j, rows: Rows) -> Rows:
        return run_call(rows, world, task, spec, stage, active, suppress, j)

    light = jax.lax.fori_loop(0, spec.max_calls, body, rows.replace(history=()))
    return light.replace(history=rows.history)


def run_call(rows: Rows, world: World, task: Task, spec: RolloutSpec, stage: int, active, suppress, j) -> Rows:
    """Call `j` of every active row whose pointer has reached it."""
    at = lambda tree: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, j, 1, keepdims=False), tree)  # noqa: E731
    calls = rows.calls
    op = at(calls.op)
    run = active & (rows.mode == Mode.ACT) & (j >= rows.pointer) & (op != Op.NONE)
    content, tags, memory_id = at(calls.content), at(calls.tags), at(calls.memory_id)
    executed = run & (suppress != call_number(spec, stage, rows.turn, j))
    is_op = lambda o: executed & (op == o)  # noqa: E731
    encode = given(world, None if spec.reader is None else at(rows.vectors))
    status = jnp.full_like(op, Status.NOT_RUN)
    batch = spec.batch
    owner, session = speaker(task, stage, rows.turn)
    now = spec.turns_before(stage) + rows.turn

    def adding(store):
        return store_lib.add(
            store, is_op(Op.ADD), content, tags, owner, session, now, encode, world.equality,
            spec.duplicates,
        )  # fmt: skip

    none = jnp.zeros((batch,), jnp.int32)
    store, s, new_id = jax.lax.cond(
        is_op(Op.ADD).any(), adding, lambda store: (store, none + Status.NOT_RUN, none), rows.store
    )
    status = jnp.where(is_op(Op.ADD), s, status)

    def updating(store):
        return store_lib.update(
            store, is_op(Op.UPDATE), memory_id, content, tags, owner, now, encode, world.equality,
            spec.duplicates,
        )  # fmt: skip

    store, s = jax.lax.cond(is_op(Op.UPDATE).any(), updating, lambda store: (store, none + Status.NOT_RUN), store)
    status = jnp.where(is_op(Op.UPDATE), s, status)

    def deleting(store):
        return store_lib.delete(store, is_op(Op.DELETE), memory_id, at(calls.confirmed), owner)

    store, s = jax.lax.cond(is_op(Op.DELETE).any(), deleting, lambda store: (store, none + Status.NOT_RUN), store)
    status = jnp.where(is_op(Op.DELETE), s, status)

    retrieving = is_op(Op.RETRIEVE)
    top_k = jnp.where(at(calls.top_k) > 0, at(calls.top_k), spec.default_top_k)
    store, found, s = store_lib.retrieve(
        store, retrieving, content, top_k, tags, owner, encode, max_k=spec.max_top_k,
        min_score=spec.min_score,
    )  # fmt: skip
    found = found.replace(found=found.found & retrieving[:, None])
    status = jnp.where(retrieving, s, status)

    # Statistics that need the facts.
    stats = rows.stats
    gold_valid = jnp.arange(task.gold.length.shape[1]) < task.num_gold[:, None]
    done = run & (status == Status.OK)
    added, maintained = done & (op == Op.ADD), done & ((op == Op.UPDATE) | (op == Op.DELETE))
    written, in_stage1 = added | (done & (op == Op.UPDATE)), stage == 1

    def relevance(_):
        length = jnp.minimum(content.length, spec.entry_tokens)  # of what was written, all
        entry = Text(content.tokens[:, None, : spec.entry_tokens], length[:, None])
        holds = lambda facts: scoring.holds(  # noqa: E731
            entry, facts, world.token_weight, world.names, spec.good_entry
        )[:, 0]
        hits = scoring.overlap(Text(found.tokens, found.length), task.gold, world.token_weight)
        best = jnp.where(gold_valid[:, None], hits, 0.0).max(-1)
        stale = stale_bits(holds(task.stale)) if in_stage1 else none
        return (holds(task.gold) & gold_valid).any(1), stale, (best * found.found).sum(-1)

    good, stale, gained = jax.lax.cond(
        (written | retrieving).any(), relevance, lambda _: (none > 0, none, jnp.zeros((batch,))), None
    )
    stats = stats.replace(
        added=stats.added + (added & in_stage1),
        added_good=stats.added_good + (added & good & in_stage1),
        stale_held=stats.stale_held | jnp.where(written & in_stage1, stale, 0),
        maintained=stats.maintained | in_stage(maintained, stage),
        relevance_sum=stats.relevance_sum + in_stage(gained, stage),
        relevance_count=stats.relevance_count + in_stage(found.found.sum(1), stage),
    )
    rows = rows.replace(store=store, stats=stats, effective=mark_writers(rows.effective, store, found, now))

    # FILTER removes messages by similarity; the turn that asks for it stays.
    filtering = is_op(Op.FILTER)

    def filter_context(rows: Rows):
        drop, s = context_lib.filter_drop(rows.context, content, world.encoder, spec.filter_threshold)
        own = jnp.arange(spec.messages) == context_lib.newest(rows.context)[:, None]
        drop = drop & ~own
        s = jnp.where((s == Status.OK) & ~drop.any(1), Status.NOTHING_FOUND, s)
        s = jnp.where((s == Status.OK) & ~may_edit(rows, spec, stage), Status.EDIT_LIMIT, s)
        edit = filtering & (s == Status.OK)
        before = rows.context.length
        in_time = before + world.prefix_tokens <= spec.limit
        rows = mark_edit(remove(rows, drop & edit[:, None]), before, edit, now)
        reduced = rows.stats.reduced_in_time | in_stage(edit & in_time, stage)
        return rows.replace(stats=rows.stats.replace(reduced_in_time=reduced)), s

    rows, s = jax.lax.cond(filtering.any(), filter_context, lambda rows: (rows, none + Status.NOT_RUN), rows)
    status = jnp.where(filtering, s, status)

    # SUMMARY: by the text of the call, or by a generation slot of its own, after which the remaining calls run.
    summing = is_op(Op.SUMMARY)
    waiting = jnp.zeros((batch,), bool)
    if spec.summary_by_policy:
        allowed = may_edit(rows, spec, stage) & (rows.summaries < spec.summary_slots)
        waiting = summing & allowed
        status = jnp.where(summing, jnp.where(allowed, Status.OK, Status.EDIT_LIMIT), status)
        span = at(calls.span)
        rows = rows.replace(
            mode=jnp.where(waiting, Mode.SUMMARIZE, rows.mode),
            span=jnp.where(waiting, span, rows.span),
            summaries=rows.summaries + waiting,
        )
    else:

        def sum_up(rows: Rows):
            text = where_text(summing, content)
            return summarise(rows, world, summing, at(calls.span), text, spec, stage)

        rows, s = jax.lax.cond(summing.any(), sum_up, lambda rows: (rows, none + Status.NOT_RUN), rows)
        status = jnp.where(summing, s, status)

    acting = is_op(Op.ACT)
    status = jnp.where(acting | is_op(Op.PASS), Status.OK, status)
    if stage == 3:
        rows = take_action(rows, world, task, spec, acting, content)

    stats = count_call(rows.stats, op, run, jnp.where(waiting, Status.NOT_RUN, status))
    here = run[:, None] & (jnp.arange(spec.max_calls) == j)
    rows = rows.replace(
        stats=stats,
        status=jnp.where(here, status[:, None], rows.status),
        pointer=jnp.where(run, j + 1, rows.pointer),
    )
    speaks = run & ~waiting & (op < Op.ACT)
    i = jnp.clip(new_id, 0, world.pieces.numbers.length.shape[0] - 1)
    number = Text(world.pieces.numbers.tokens[i], jnp.where(added, world.pieces.numbers.length[i], 0))
    return say(rows, world, speaks, jnp.maximum(op, 0), status, [number, *memory_lines(world, found)])


def stale_bits(holds: jax.Array) -> jax.Array:
    """`[B, R]` bool -> `[B]` int32 with bit r set where it holds. R is at most 31."""
    return jnp.sum(jnp.where(holds, 1 << jnp.arange(holds.shape[1], dtype=jnp.int32), 0), axis=1, dtype=jnp.int32)


def take_action(rows: Rows, world: World, task: Task, spec: RolloutSpec, on: jax.Array, action: Text) -> Rows:
    """Gives the actions of rows `on` to the environment, and notes what it says of them."""

    def step(rows: Rows) -> Rows:
        width = min(action.tokens.shape[1], spec.env.action_tokens)
        cut = Text(action.tokens[:, :width], jnp.minimum(action.length, width))
        state, out = spec.env.step(world.env, task.game, rows.env, cut, on)
        stats = rows.stats
        stats = stats.replace(
            actions=stats.actions + on,
            understood=stats.understood + (on & out.understood),
            success=jnp.where(on, out.success, stats.success),
            progress=jnp.where(on, out.progress, stats.progress),
        )
        return rows.replace(
            env=state,
            seen=select(on, out.seen, rows.seen),
            finished=rows.finished | (on & (out.terminated | out.truncated)),
            action=select(on, action, rows.action),
            stats=stats,
        )

    return light_cond(on.any(), step, rows)
