"""MemAgent's memory, on the device: one text that is written anew with every message (arXiv 2507.02259, figure 2).

Otherwise than there: messages come one at a time, not in chunks of 5,000 tokens; the question is not known while they
are read, as for every method here; each owner has a text of its own, of up to `methods.memory_tokens`; an empty answer
leaves it as it is. The published agent is trained for this by RL, here the policy only plays its role.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from agemem_jax.memory import context as context_lib
from agemem_jax.methods import parts
from agemem_jax.methods.base import DONE, Heard, Message, Role, RoleTables, call_of, some_calls
from agemem_jax.methods.mem0 import carry_out
from agemem_jax.rollout.rows import RolloutSpec, Rows, World
from agemem_jax.tools.layout import Field, Part
from agemem_jax.types import NO_ID, Op, Task, Text, ToolCalls

MEMORY = Field("string", Part.CONTENT, 0, Op.ADD)


@dataclass(frozen=True)
class MemAgent:
    """One memory text an owner."""

    reads_messages = asks = False
    fixed = (("\nMemory:\n", ":"), ("\nMessage:\n", " said"))

    @property
    def roles(self) -> tuple[Role, ...]:
        return (
            Role(
                "rewrite",
                "Role rewrite: write the memory anew with the message, which is told once and not shown again. Keep "
                "every detail of the memory that still holds, take in what the message tells, drop what it takes back "
                'and small talk. Answer {"memory": "..."}.',
                "Role: rewrite",
                ('{"memory": "', MEMORY, '"}'),
                some_calls([call_of("Add_memory", '"content": "', MEMORY, '"')]),
            ),
        )

    def prompt_tokens(self, tables: RoleTables, entry_tokens: int, message_tokens: int) -> int:
        return 3 * tables.fixed.tokens.shape[-1] + entry_tokens + message_tokens

    def new_notes(self, spec: RolloutSpec) -> tuple:
        return ()

    def ask(
        self, rows: Rows, notes: tuple, told: Message, role: jax.Array, task: Task, tables: RoleTables,
        spec: RolloutSpec, stage: int,
    ) -> Text:  # fmt: skip
        on = role >= 0
        say = lambda i, on: parts.fixed(tables.fixed, i, on)  # noqa: E731
        memory = parts.column(parts.entries_of(rows.store, self._held(rows, told)[:, None]), 0)
        has = on & (memory.length > 0)
        return context_lib.pack(
            [say(0, on), say(1, has), parts.said(has, memory), say(2, on), parts.said(on, told.body)]
        )

    def texts(
        self, rows: Rows, notes: tuple, told: Message, role: jax.Array, calls: ToolCalls, tables: RoleTables
    ) -> tuple[Text, jax.Array]:
        content = parts.fit(jax.tree.map(lambda x: x[:, :1], calls.content), rows.store.tokens.shape[-1])
        return content, jnp.zeros(content.length.shape, bool)

    def hear(
        self, rows: Rows, notes: tuple, told: Message, role: jax.Array, calls: ToolCalls, vectors: jax.Array,
        on: jax.Array, tables: RoleTables, world: World, spec: RolloutSpec,
    ) -> Heard:  # fmt: skip
        content = parts.fit(jax.tree.map(lambda x: x[:, :1], calls.content), spec.entry_tokens)
        held = self._held(rows, told)[:, None]
        op = jnp.where(held == NO_ID, Op.ADD, Op.UPDATE)
        op = jnp.where(on[:, None] & (calls.op[:, :1] == Op.ADD) & (content.length > 0), op, Op.NONE)
        rows, status = carry_out(rows, told, op, held, content, vectors, world)
        rest = jnp.zeros((len(role), calls.op.shape[1] - 1), jnp.int32)
        return Heard(rows, notes, jnp.full_like(role, DONE), jnp.concatenate([status, rest], 1))

    def _held(self, rows: Rows, told: Message) -> jax.Array:
        """The id of the owner's text [B], NO_ID before the first."""
        store = rows.store
        return jnp.where(store.valid & (store.owner == told.owner[:, None]), store.id, NO_ID).max(1)
