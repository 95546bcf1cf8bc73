"""Stages 1 and 2 of a memory system: it reads the messages, and the policy plays its roles, slot by slot.

A row's context is the scratch of its calls: it is emptied, the role's prompt is put into it as one user message, the
policy writes, the answer is parsed and applied to the store. So roles share the batched generation of turns and its KV
history; rows are at different roles and messages in the same slot, and rows that have read all wait, masked. Stage 3 is
that of an agent that only answers (rollout/stage.py), with what was stored shown by rule.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.memory import context as context_lib
from agemem_jax.methods.base import DONE, Message, RoleTables, System
from agemem_jax.rollout import stage as stage_lib
from agemem_jax.rollout import turn as turn_lib
from agemem_jax.rollout.decode import Generation
from agemem_jax.rollout.reading import encoder_of
from agemem_jax.rollout.rows import RolloutSpec, Rows, World, rowwise, select, stop
from agemem_jax.rollout.stage import Trace, Writer
from agemem_jax.rollout.turn import spread
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.grammar import ANY_OP
from agemem_jax.types import Mode, Role, StopReason, Task, Text, in_stage


@struct.dataclass
class Counts:
    """What the calls of each role were and took, [B, roles] int32."""

    calls: jax.Array
    valid: jax.Array  # answers in the role's form
    prompt_tokens: jax.Array  # read, the shared prompt included
    generated_tokens: jax.Array


def role_spec(spec: RolloutSpec, answer_tokens: int) -> RolloutSpec:
    """The rollout's sizes with answers of roles, in place of turns, in its generation slots."""
    return dataclasses.replace(spec, action_tokens=answer_tokens, summary_tokens=0)


def scripted_roles(world: World, width: int, script: Text, roles: int) -> Writer:
    """Answers are read from a script [B, messages * roles, A]: those of a message's roles follow each other."""

    def write(rows: Rows, slot, on, start, ops, budget):
        line = turn_lib.take(script, rows.turn * roles + rows.mode - Mode.ROLE)
        return rows, stage_lib.written(line, world, width, on, start, ops, budget)

    return write


def prompted(rows: Rows, said: Text, live: jax.Array, world: World, spec: RolloutSpec) -> tuple[Rows, Text]:
    """Rows whose contexts hold a prompt [B, W] and no more, where `live`, and that as one Text, for traces."""
    p = world.pieces
    user = context_lib.pack([spread(p.user_open, live), turn_lib.where_text(live, said), spread(p.close, live)])
    opening = spread(p.assistant_open, live)
    context = context_lib.empty(spec.batch, spec.capacity, spec.messages)
    context, _ = context_lib.append(context, live, user, Role.USER, False, rows.round)
    context, _ = context_lib.append(context, live, opening, Role.ASSISTANT, False, rows.round)
    used = jnp.where(live, context.length + world.prefix_tokens, 0)
    stats = rows.stats.replace(peak_context_tokens=jnp.maximum(rows.stats.peak_context_tokens, used))
    seen = context_lib.plain(context_lib.pack([user, opening]))
    return rows.replace(context=context, cached=jnp.zeros_like(rows.cached), stats=stats), seen


@jax.named_scope("rollout")
def read_stage(
    rows: Rows,
    notes: Any,
    task: Task,
    world: World,
    tables: RoleTables,
    system: System,
    spec: RolloutSpec,
    stage: int,
    write: Writer,
    answer_tokens: int,
) -> tuple[Rows, Any, Counts, Trace]:
    """Reads the messages of stage 1 or 2.

    Args:
      rows, notes: as the stage before left them.
      world: with the grammar and the pieces of `tables`.
      spec: the sizes of the rows.
      write: who plays the roles, in slots of `answer_tokens`.

    Returns:
      (rows, notes, what the calls took, trace of the first `spec.trace_rows` rows).
    """
    batch, roles = spec.batch, system.roles
    zeros = jnp.zeros((batch,), jnp.int32)
    starts = jnp.array(tables.grammar.start_forms, jnp.int32)
    told = {1: task.num_facts, 2: task.num_distractors}[stage]
    asks = system.asks and stage == 2  # the question is read as a last message
    last = told + asks
    none = jnp.zeros((batch, len(roles)), jnp.int32)

    def first_role(turn, told):
        """The first role for the message of a turn [B]; after those that are told comes the question."""
        return jnp.where(asks & (turn >= told), len(roles) - 1, 0)

    rows = rows.replace(mode=Mode.ROLE + first_role(zeros, told), turn=zeros, pointer=zeros)
    rows = stop(rows, last <= 0, StopReason.TURNS, stage)
    most = {1: spec.facts, 2: spec.distractors}[stage] * (len(roles) - system.asks) + asks
    own = world.replace(reader={})  # what each device needs for its own rows

    def body_of(rows: Rows, task: Task) -> Text:
        body, _ = turn_lib.message(rows, world, task, spec, stage)
        return select(rows.turn >= task.num_distractors, task.query, body) if asks else body

    def message(rows: Rows, task: Task, query) -> Message:
        owner, session = turn_lib.speaker(task, stage, rows.turn)
        if asks:
            owner, session = select(rows.turn >= task.num_distractors, (task.owner, task.session), (owner, session))
        return Message(body_of(rows, task), owner, session, spec.turns_before(stage) + rows.turn, query)

    def read(rows: Rows):
        """Vectors [B, E] of the messages as queries, where the system looks for what is like them."""
        if not system.reads_messages:
            return None
        return encoder_of(world, spec)(body_of(rows, task), True)

    def ask(rows: Rows, notes, task: Task, query, world: World, tables: RoleTables, spec: RolloutSpec):
        """Rows whose contexts hold what they are asked now, and that as one Text, for traces."""
        said = system.ask(
            rows, notes, message(rows, task, query), rows.mode - Mode.ROLE, task, tables, spec, stage
        )
        return prompted(rows, said, rows.mode != Mode.DONE, world, spec)

    def listen(
        rows: Rows, notes, counts: Counts, task: Task, query, gen: Generation, start, world: World,
        tables: RoleTables, spec: RolloutSpec,
    ):  # fmt: skip
        """Parses the answers: (rows, their items, the texts whose vectors are needed, which are queries, counts)."""
        on, role = rows.mode != Mode.DONE, rows.mode - Mode.ROLE
        calls = grammar_lib.parse(world.grammar, gen.tokens, gen.count, start, tag_width=spec.tag_tokens)
        hot = on[:, None] & (role[:, None] == jnp.arange(len(roles)))
        add = lambda old, new: old + jnp.where(hot, new[:, None], 0).astype(jnp.int32)  # noqa: E731
        read = jnp.where(on, rows.context.length + world.prefix_tokens, 0)
        counts = Counts(
            calls=add(counts.calls, on),
            valid=add(counts.valid, ~calls.malformed),
            prompt_tokens=add(counts.prompt_tokens, read),
            generated_tokens=add(counts.generated_tokens, gen.count),
        )
        written = context_lib.saying(Text(gen.tokens, gen.count), calls.said)
        stats = rows.stats.replace(
            turns=rows.stats.turns + on,
            prompt_tokens=rows.stats.prompt_tokens + read,
            generated_tokens=rows.stats.generated_tokens + gen.count,
            sampled_tokens=rows.stats.sampled_tokens + gen.sampled.sum(1),
            malformed=rows.stats.malformed + in_stage(on & calls.malformed, stage),
        )
        rows = rows.replace(context=context_lib.extend(rows.context, written), stats=stats)
        texts, queries = system.texts(rows, notes, message(rows, task, query), role, calls, tables)
        return rows, calls, texts, queries, counts

    def vectors_of(texts: Text, queries, on):
        """Vectors [B, n, E] of the texts of rows `on`."""
        encode = encoder_of(world, spec)

        def one(_, text):
            text, is_query = text
            vector = jax.lax.cond(
                (on & (text.length > 0)).any(),
                lambda: jnp.where(is_query[:, None], encode(text, True), encode(text, False)),
                lambda: jnp.zeros((batch, spec.embedding_size)),
            )
            return None, vector

        by_text = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)  # noqa: E731
        return by_text(jax.lax.scan(one, None, by_text((texts, queries)))[1])

    def hear(
        rows: Rows, notes, task: Task, query, calls, vectors, last, world: World, tables: RoleTables, spec: RolloutSpec
    ):
        """Applies the answers, and moves rows on to their next role or message."""
        on, role = rows.mode != Mode.DONE, rows.mode - Mode.ROLE
        heard = system.hear(
            rows, notes, message(rows, task, query), role, calls, vectors, on, tables, world, spec
        )
        rows, over = turn_lib.track_store(heard.rows), on & (heard.next == DONE)
        turn = rows.turn + over
        following = jnp.where(over, first_role(turn, last - asks), heard.next)
        mode = jnp.where(on, Mode.ROLE + following, rows.mode)
        rows = rows.replace(mode=mode, turn=turn, round=rows.round + over)
        return stop(rows, over & (turn >= last), StopReason.TURNS, stage), heard.notes, heard.status

    def body(carry):
        slot, rows, notes, counts, trace = carry
        query = read(rows)
        rows, seen = rowwise(spec, ask, rows, notes, task, query, whole=(own, tables))
        live, mode, turn = rows.mode != Mode.DONE, rows.mode, rows.turn
        start = starts[jnp.clip(mode - Mode.ROLE, 0, len(roles) - 1)]
        rows, gen = write(rows, slot, live, start, jnp.full_like(start, ANY_OP), zeros + answer_tokens)
        rows, calls, texts, queries, counts = rowwise(
            spec, listen, rows, notes, counts, task, query, gen, start, whole=(own, tables)
        )
        vectors = vectors_of(texts, queries, live)
        rows, notes, status = rowwise(spec, hear, rows, notes, task, query, calls, vectors, last, whole=(own, tables))
        trace = stage_lib.add_to_trace(trace, slot, taken(rows, live, mode, turn, seen, gen, calls.op, status))
        return slot + 1, rows, notes, counts, trace

    def taken(rows: Rows, live, mode, turn, seen: Text, gen: Generation, op, status) -> Trace:
        shown = rows.replace(status=status)
        return stage_lib.snapshot(shown, live, mode, turn, seen, gen, op, spec, stage)

    def going(carry):
        slot, rows, *_ = carry
        return (rows.mode != Mode.DONE).any() & (slot < most)

    def blank() -> Trace:
        """An empty trace."""

        def shape():
            shown, seen = ask(rows, notes, task, read(rows), own, tables, spec)
            z = jnp.zeros((batch, answer_tokens), jnp.int32)
            items = jnp.zeros((batch, tables.grammar.max_calls), jnp.int32)
            return taken(shown, zeros > 0, zeros, zeros, seen, Generation(z, zeros, z * 0.0, z, z, z > 0), items, items)

        one = jax.eval_shape(shape)
        return jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), one)

    carry = (jnp.int32(0), rows, notes, Counts(none, none, none, none), blank())
    _, rows, notes, counts, trace = jax.lax.while_loop(going, body, carry)
    rows = rows.replace(
        context=context_lib.empty(batch, spec.capacity, spec.messages), cached=zeros, mode=zeros + Mode.DONE
    )
    rows = rowwise(spec, lambda *args: stage_lib.end_stage(stage, *args), rows, task, whole=(own,))
    return rows, notes, counts, trace
