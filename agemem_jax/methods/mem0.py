"""Mem0 as published, on the device: the two calls of mem0ai 1.0.11 ("classic"), the one of mem0ai 2.x ("additive").

Classic, what papers before 2026 compare with (mem0/memory/main.py, Memory.add): the policy lists the facts of a
message; for each of them the five nearest memories of the user are found; these are listed without repetition, under
temporary ids 0, 1, ...; the policy lists what becomes of them, ADD, UPDATE, DELETE or NONE; that is carried out in its
order. A message without facts takes one call. Additive (2.x): what is like the message as a whole is found, up to ten
memories; one call lists new memories, with the last messages of the user in view; those whose text is among the ten, or
came twice, are dropped, the others added.

Otherwise than there:
- Prompts are in words of our own, with the same inputs, outputs and rules of decision. Lists are bounded (config group
  `methods`), and an event is named before its arguments. DELETE and NONE do not repeat the memory's text, so that what
  is skipped there for want of one cannot happen; `old_memory`, which nothing reads, is not written.
- A message comes without the assistant's reply, and is the user's alone: the prompt about the assistant is not there.
- A store has room for as many memories as messages are told, and a memory for `store.entry_tokens`: longer ones are
  cut, and what a full store is told to add is not stored (the status says so).
- Additive: similarity is the cosine alone, as it is where spaCy and fastembed are not installed; its threshold of 0.1
  when searching is `store.min_score` here. Equal texts are those of memory/equality.py, not of equal bytes. The links
  that its prompt asks for are dropped there, and are not asked for here.
- The published decision deletes what a new fact contradicts and stores the fact nowhere; `methods.contradiction_adds`
  (off) stores it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.memory import context as context_lib
from agemem_jax.memory import store as store_lib
from agemem_jax.memory.encoder import Known
from agemem_jax.memory.equality import text_key
from agemem_jax.methods import parts
from agemem_jax.methods.base import DONE, Heard, Message, Role, RoleTables, call_of, some_calls
from agemem_jax.rollout.rows import RolloutSpec, Rows, World, select
from agemem_jax.rollout.turn import count_call, memory_lines
from agemem_jax.tools.layout import Field, Part, Parts, either, listed
from agemem_jax.types import NO_ID, Op, Status, Task, Text, ToolCalls

EXTRACT, DECIDE = 0, 1


def content(call: int, op: Op) -> Field:
    return Field("string", Part.CONTENT, call, op)


def number(call: int, op: Op) -> Field:
    return Field("digits", Part.MEMORY_ID, call, op)


def adds(count: int) -> list[Parts]:
    """So many calls that add something."""
    return [call_of("Add_memory", '"content": "', content(i, Op.ADD), '"') for i in range(count)]


def facts_form(key: str, count: int) -> Parts:
    """{"KEY": ["...", ...]}"""
    return (f'{{"{key}": [', *listed([('"', content(i, Op.ADD), '"') for i in range(count)]), "]}")


def event(i: int) -> Parts:
    """What becomes of a memory, in JSON."""
    text, at = ('", "text": "', content), ('", "id": "', number)
    return (
        '{"event": "',
        *either(
            ("ADD", text[0], text[1](i, Op.ADD)),
            ("UPDATE", at[0], at[1](i, Op.UPDATE), text[0], text[1](i, Op.UPDATE)),
            ("DELETE", at[0], at[1](i, Op.DELETE)),
            ("NONE", at[0], at[1](i, Op.PASS)),
        ),
        '"}',
    )


def event_call(i: int) -> Parts:
    """The same as a tool call; what stays as it is is not called."""
    return either(
        call_of("Add_memory", '"content": "', content(i, Op.ADD), '"'),
        call_of(
            "Update_memory", '"memory_id": "', number(i, Op.UPDATE), '", "content": "', content(i, Op.UPDATE), '"'
        ),
        call_of("Delete_memory", '"memory_id": "', number(i, Op.DELETE), '", "confirmation": true'),
    )


@struct.dataclass
class ClassicNotes:
    """What a row knows between its two calls."""

    facts: Text  # [B, F, L]
    listed: jax.Array  # [B, F * neighbours] int32 ids, in the order in which they are listed


@dataclass(frozen=True)
class Classic:
    """mem0ai 1.0.11."""

    facts: int  # most of a message
    events: int  # most of a decision
    neighbours: int  # memories found for a fact
    contradiction_adds: bool

    reads_messages = asks = False
    fixed = (("\nMemories:", ":"), ("\nNew facts:", " facts"), ("\n", ":"))

    @property
    def roles(self) -> tuple[Role, ...]:
        return (
            Role(
                "extract",
                "Role extract: list the facts in the message that are worth remembering about the user: preferences, "
                "personal details, plans, events, relations, names, places, dates. Each fact is one short sentence "
                'that can be understood alone. Small talk holds none. Answer {"facts": ["...", ...]}.',
                "Role: extract\nMessage:\n",
                facts_form("facts", self.facts),
                some_calls(adds(self.facts)),
            ),
            Role(
                "decide",
                "Role decide: compare the new facts with the memories, which are listed with their ids. ADD a fact "
                "that is new; UPDATE the memory that a fact says better or anew, with its id and the whole new text; "
                "DELETE the memory that a fact contradicts; NONE for a memory that stays as it is. Answer "
                '{"memory": [{"event": ..., ...}, ...]}.',
                "Role: decide",
                ('{"memory": [', *listed([event(i) for i in range(self.events)]), "]}"),
                some_calls([event_call(i) for i in range(self.events)]),
            ),
        )

    def prompt_tokens(self, tables: RoleTables, entry_tokens: int, message_tokens: int) -> int:
        width = tables.fixed.tokens.shape[-1]
        entries = parts.width_of_lines(tables, self.facts * self.neighbours, entry_tokens)
        return max(width + message_tokens, 3 * width + entries + self.facts * (width + entry_tokens))

    def new_notes(self, spec: RolloutSpec) -> ClassicNotes:
        b, f = spec.batch, self.facts
        return ClassicNotes(
            facts=Text(jnp.zeros((b, f, spec.entry_tokens), jnp.int32), jnp.zeros((b, f), jnp.int32)),
            listed=jnp.full((b, f * self.neighbours), NO_ID, jnp.int32),
        )

    def ask(
        self, rows: Rows, notes: ClassicNotes, told: Message, role: jax.Array, task: Task, tables: RoleTables,
        spec: RolloutSpec, stage: int,
    ) -> Text:  # fmt: skip
        extracts, decides = role == EXTRACT, role == DECIDE
        say = lambda i, on: parts.fixed(tables.fixed, i, on)  # noqa: E731
        found = parts.listing(rows.store, notes.listed, decides)
        return context_lib.pack([
            say(0, extracts), parts.said(extracts, told.body),
            say(1, decides), say(2, decides & found.found.any(1)), *memory_lines(tables, found),
            say(3, decides), *parts.lines(notes.facts, decides, parts.column(tables.fixed, 4, 0)),
        ])  # fmt: skip

    def texts(
        self, rows: Rows, notes, told: Message, role: jax.Array, calls: ToolCalls, tables: RoleTables
    ) -> tuple[Text, jax.Array]:
        content = parts.fit(calls.content, notes.facts.tokens.shape[-1])
        every = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), content, notes.facts)
        return every, jnp.broadcast_to((role == EXTRACT)[:, None], every.length.shape)

    def hear(
        self, rows: Rows, notes: ClassicNotes, told: Message, role: jax.Array, calls: ToolCalls, vectors: jax.Array,
        on: jax.Array, tables: RoleTables, world: World, spec: RolloutSpec,
    ) -> Heard:  # fmt: skip
        content = parts.fit(calls.content, spec.entry_tokens)
        extracted, decided = on & (role == EXTRACT), on & (role == DECIDE)
        facts = jax.tree.map(lambda x: x[:, : self.facts], content)
        given = extracted[:, None] & (calls.op[:, : self.facts] == Op.ADD) & (facts.length > 0)
        facts = parts.where(given, facts)
        found = parts.nearest_of_each(rows.store, facts, self.neighbours, told.owner, vectors[:, : self.facts])
        fresh = ClassicNotes(facts, parts.without_repetition(found))
        op = jnp.where(decided[:, None], calls.op, Op.NONE)
        ids = parts.named(notes.listed, calls.memory_id)
        rows, status = carry_out(rows, told, op, ids, content, vectors[:, : op.shape[1]], world)
        if self.contradiction_adds:
            deleted = ((op == Op.DELETE) & (status == Status.OK)).any(1)
            lost = decided & deleted & ~((op == Op.ADD) | (op == Op.UPDATE)).any(1)
            add = jnp.where(lost[:, None] & (notes.facts.length > 0), Op.ADD, Op.NONE)
            none = jnp.full_like(add, NO_ID)
            rows, _ = carry_out(rows, told, add, none, notes.facts, vectors[:, op.shape[1] :], world)
        more = given.any(1)
        return Heard(rows, select(extracted, fresh, notes), jnp.where(more, DECIDE, DONE), status)


@dataclass(frozen=True)
class Additive:
    """mem0ai 2.x."""

    facts: int  # most memories of a message
    neighbours: int  # memories found for a message
    recent: int  # earlier messages in view

    reads_messages, asks = True, False
    fixed = (("\nEarlier messages:", " the"), ("\n", ":"), ("\nMemories:", ":"), ("\nMessage:\n", " said"))

    @property
    def roles(self) -> tuple[Role, ...]:
        return (
            Role(
                "remember",
                "Role remember: list what the message tells that is worth remembering and is not yet among the "
                "memories; the earlier messages help to understand it. Each memory is one sentence that can be "
                "understood alone, with its names and dates. Nothing is changed or removed: what is new about "
                'something known is a memory of its own. Answer {"memory": [{"text": "..."}, ...]}.',
                "Role: remember",
                ('{"memory": [', *listed([('{"text": "', content(i, Op.ADD), '"}') for i in range(self.facts)]), "]}"),
                some_calls(adds(self.facts)),
            ),
        )

    def prompt_tokens(self, tables: RoleTables, entry_tokens: int, message_tokens: int) -> int:
        width = tables.fixed.tokens.shape[-1]
        entries = parts.width_of_lines(tables, self.neighbours, entry_tokens)
        return 4 * width + entries + self.recent * (width + message_tokens) + message_tokens

    def new_notes(self, spec: RolloutSpec) -> tuple:
        return ()

    def ask(
        self, rows: Rows, notes: tuple, told: Message, role: jax.Array, task: Task, tables: RoleTables,
        spec: RolloutSpec, stage: int,
    ) -> Text:  # fmt: skip
        on = role >= 0
        say = lambda i, on: parts.fixed(tables.fixed, i, on)  # noqa: E731
        earlier = parts.earlier_messages(task, rows.turn, told.owner, stage, self.recent)
        found = parts.listing(rows.store, self._like(rows, told, on), on)
        return context_lib.pack([
            say(0, on), say(1, on & (earlier.length > 0).any(1)),
            *parts.lines(earlier, on, parts.column(tables.fixed, 2, 0)),
            say(3, on & found.found.any(1)), *memory_lines(tables, found), say(4, on), parts.said(on, told.body),
        ])  # fmt: skip

    def texts(
        self, rows: Rows, notes, told: Message, role: jax.Array, calls: ToolCalls, tables: RoleTables
    ) -> tuple[Text, jax.Array]:
        content = parts.fit(calls.content, rows.store.tokens.shape[-1])
        return content, jnp.zeros(content.length.shape, bool)

    def hear(
        self, rows: Rows, notes: tuple, told: Message, role: jax.Array, calls: ToolCalls, vectors: jax.Array,
        on: jax.Array, tables: RoleTables, world: World, spec: RolloutSpec,
    ) -> Heard:  # fmt: skip
        content = parts.fit(calls.content, spec.entry_tokens)
        given = on[:, None] & (calls.op == Op.ADD) & (content.length > 0)
        key = text_key(world.equality, content)  # [B, J, 2]
        # [B, n, 2]; where none is 0, the key of an empty text
        known = parts.at_ids(rows.store.key, rows.store, self._like(rows, told, on))
        same = lambda keys: (key[:, :, None] == keys[:, None]).all(-1)  # noqa: E731
        earlier = jnp.arange(key.shape[1])[:, None] > jnp.arange(key.shape[1])
        twice = same(known).any(2) | (same(key) & earlier & given[:, None]).any(2)
        op = jnp.where(given & ~twice, Op.ADD, Op.NONE)
        none = jnp.full_like(op, NO_ID)
        rows, status = carry_out(rows, told, op, none, content, vectors, world)
        status = jnp.where(given & twice, Status.DUPLICATE, status)
        return Heard(rows, notes, jnp.full_like(role, DONE), status)

    def _like(self, rows: Rows, told: Message, on: jax.Array) -> jax.Array:
        """Ids of the memories that are like the message: [B, neighbours]."""
        return parts.nearest(rows.store, on, told.body, self.neighbours, told.owner, Known(told.query)).id



def carry_out(
    rows: Rows, told: Message, op: jax.Array, ids: jax.Array, content: Text, vectors: jax.Array, world: World
) -> tuple[Rows, jax.Array]:
    """Carries out a list of events in its order: (rows, status [B, J]).

    Args:
      op: [B, J] Op.ADD, UPDATE, DELETE, or PASS: the memory stays as it is; Op.NONE: no event.
      ids: [B, J] int32 of the entries that are meant, NO_ID of one that is not known.
      content: [B, J, L]; vectors: [B, J, E] of it.
    """
    tags, everything = parts.blank_tags(rows.store), jnp.ones_like(told.owner, bool)

    def one(carry, item):
        store, stats = carry
        op, memory_id, text, vector = item
        encode = Known(vector)
        store, added, _ = store_lib.add(
            store, op == Op.ADD, text, tags, told.owner, told.session, told.now, encode, world.equality, "add"
        )
        store, updated = store_lib.update(
            store, op == Op.UPDATE, memory_id, text, tags, told.owner, told.now, encode, world.equality, "add"
        )
        store, deleted = store_lib.delete(store, op == Op.DELETE, memory_id, everything, told.owner)
        status = jnp.full_like(op, Status.NOT_RUN)
        for kind, became in ((Op.ADD, added), (Op.UPDATE, updated), (Op.DELETE, deleted), (Op.PASS, 0 * added)):
            status = jnp.where(op == kind, became, status)
        return (store, count_call(stats, op, op != Op.NONE, status)), status

    items = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (op, ids, content, vectors))
    (store, stats), status = jax.lax.scan(one, (rows.store, rows.stats), items)
    return rows.replace(store=store, stats=stats), jnp.swapaxes(status, 0, 1)
