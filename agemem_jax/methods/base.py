"""What a memory system is to a rollout: pure functions from the state of B rows to their next prompts and writes.

A system does not act in stages 1 and 2. It reads the messages, and for each of them the policy plays its *roles* in
turn, one generation slot each (methods/reading.py). Its answers are forms of the tool grammar (tools/layout.py: Form),
which `parse` reads as calls: items with an operation, a content and an id. In stage 3 what it has stored is shown by
rule, and the policy only acts.

Types alone; the systems are frozen dataclasses with static sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.rollout.rows import RolloutSpec, Rows, World
from agemem_jax.tools.grammar import ToolGrammar
from agemem_jax.tools.layout import Field, Parts, either, listed
from agemem_jax.types import Pieces, Task, Text, ToolCalls


class Role(NamedTuple):
    """What the policy is asked to play."""

    name: str  # the tiny vocabulary has it before the prompt's inputs
    instruction: str  # a paragraph of the system message
    opening: str  # what its prompt begins with
    parts: Parts  # of its answer, in JSON
    # The same as tool calls, which a vocabulary of the tiny kind can spell, of what stands for no call, before the
    # first, between two, and after the last.
    calls: Callable[[str, str, str, str], Parts]


@struct.dataclass
class RoleTables:
    """Device tables of a system, beside those of the world."""

    grammar: ToolGrammar  # with the forms of its roles
    pieces: Pieces  # whose prefix is the system's
    fixed: Text  # [n, w] the openings of its roles, then its other fixed strings


class Message(NamedTuple):
    """What a row reads now."""

    body: Text  # [B, W]
    owner: jax.Array  # [B] int32 whose memory it is
    session: jax.Array  # [B] int32
    now: jax.Array  # [B] int32 turn, counted over the whole trajectory
    query: jax.Array | None  # [B, E] vector of the body as a query, if the system reads messages

    def body_as_entry(self, width: int) -> Text:
        """The body, cut to what an entry holds."""
        return Text(self.body.tokens[:, :width], jnp.minimum(self.body.length, width))


class Heard(NamedTuple):
    """What a row's answer has led to."""

    rows: Rows
    notes: Any
    next: jax.Array  # [B] int32 number of the role that is played next, DONE: the message has been dealt with
    status: jax.Array  # [B, J] int32 what became of the answer's items


DONE = -1


class System(Protocol):
    """A memory system. Hashable, so that it can be a static argument; `role` [B] is the number of each row's role."""

    reads_messages: bool  # it looks for what is like a message
    asks: bool  # its last role is played for the question, when all messages are read
    fixed: tuple[tuple[str, str], ...]  # strings of its prompts: (text, what the tiny vocabulary has for it)

    @property
    def roles(self) -> tuple[Role, ...]:
        """What the policy is asked to play for a message; it begins with the first."""
        ...

    def prompt_tokens(self, tables: RoleTables, entry_tokens: int, message_tokens: int) -> int:
        """Most tokens of a prompt, without its chat marks."""
        ...

    def new_notes(self, spec: RolloutSpec) -> Any:
        """What rows carry between roles and messages, [B, ...], as a trajectory begins."""
        ...

    def ask(
        self, rows: Rows, notes: Any, told: Message, role: jax.Array, task: Task, tables: RoleTables, spec: RolloutSpec,
        stage: int,
    ) -> Text:  # fmt: skip
        """What the user message of each row's role says: [B, W] with context.SAID."""
        ...

    def texts(
        self, rows: Rows, notes: Any, told: Message, role: jax.Array, calls: ToolCalls, tables: RoleTables
    ) -> tuple[Text, jax.Array]:
        """Texts whose vectors `hear` needs, [B, n, W], and which of them are queries, [B, n] bool."""
        ...

    def hear(
        self, rows: Rows, notes: Any, told: Message, role: jax.Array, calls: ToolCalls, vectors: jax.Array,
        on: jax.Array, tables: RoleTables, world: World, spec: RolloutSpec,
    ) -> Heard:  # fmt: skip
        """Applies the answers of rows `on` [B]; vectors [B, n, E] of `texts`. The KV history does not take part."""
        ...


def call_of(name: str, *arguments: str | Field) -> Parts:
    """A tool call, in answers that are calls."""
    return (f'{{"name": "{name}", "arguments": {{', *arguments, "}}")


def some_calls(items: list[Parts]) -> Callable[[str, str, str, str], Parts]:
    """`Role.calls` of an answer that is none or some of these calls, from the first on."""

    def calls(none: str, first: str, between: str, last: str) -> Parts:
        return either((none,), (first, *items[0], *listed(items, between, 1), last))

    return calls
