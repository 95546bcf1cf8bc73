"""Axis legend, named sentinels, and every pytree that passes between the parts of the project.

Axes, one letter each in the whole package:

    B  rollouts (rows); the K rollouts of a task are consecutive rows
    N  store entries          L  tokens of a store entry      E  embedding width
    K  group size             J  calls in one turn            G  tag slots of an entry (slot 0 is memory_type)
    C  context tokens         M  messages in a context        W  tokens of a piece of text (any fixed width)
    A  tokens of one action   S  segments of a trajectory     P  tokens of the shared prompt (prefix)
    D  model width            V  vocabulary                   F  facts (stage-1 messages) of a task
    R  revisions of a task

Every array is padded to a static shape; what is real is told by a `length`, a `valid` mask or a count beside it.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

PAD_ID = 0  # the token that fills unused places; never attended to and never scored
NO_ID = -1  # no store entry
NO_MESSAGE = -1  # this context place holds no message


class Role(enum.IntEnum):
    """Who wrote a message (Qwen's chat roles)."""

    SYSTEM = 0
    USER = 1
    ASSISTANT = 2
    TOOL = 3


class Op(enum.IntEnum):
    """What one call of a turn asks for. The first six are the paper's memory tools."""

    NONE = -1
    ADD = 0
    UPDATE = 1
    DELETE = 2
    RETRIEVE = 3
    SUMMARY = 4
    FILTER = 5
    ACT = 6  # the task action, for the environment; of a question its answer
    PASS = 7  # no call: nothing to do this turn
    WRITE_SUMMARY = 8  # the text of a generation slot under the summarising prompt


NUM_OPS = 9
# Terms of the reward that are measured after each turn of stages 1 and 2, by the strict measures (Rows.standing).
TURN_TERMS = ("storage", "maintenance", "preservation")
TOOL_NAMES = ("Add_memory", "Update_memory", "Delete_memory", "Retrieve_memory", "Summary_context", "Filter_context")


class Status(enum.IntEnum):
    """What became of a call. The agent reads it as text; an operation that is not OK changed nothing."""

    OK = 0
    UNKNOWN_ID = 1  # no live entry of this owner has that id
    STORE_FULL = 2
    TEXT_TOO_LONG = 3  # longer than an entry can hold; nothing was cut, nothing was stored
    EMPTY_TEXT = 4
    DUPLICATE = 5  # a text that says the same (memory/equality.py) is already stored for this owner
    NOT_CONFIRMED = 6
    NOTHING_FOUND = 7  # a retrieval or a filter that matched nothing
    NOTHING_TO_EDIT = 8  # a summary of a span without messages
    NO_ROOM = 9  # the context cannot hold the result
    EDIT_LIMIT = 10  # the trajectory's last segment: no further context edits
    MALFORMED = 11  # the turn is not in the tool format
    NOT_RUN = 12  # no such call, or the row is inactive
    UNCHANGED = 13  # an update to what the entry says already


NUM_STATUSES = 14


class Mode(enum.IntEnum):
    """What a row generates in its next slot."""

    ACT = 0
    SUMMARIZE = 1
    DONE = 2
    ROLE = 3  # the first role of a memory system that reads for it, the others follow (methods/)


class StopReason(enum.IntEnum):
    """Why a row's stage is over."""

    NONE = 0  # it is not
    FINISHED = 1  # its episode is over; in stages 1 and 2: the agent took a task action
    TURNS = 2  # all turns are made
    CONTEXT = 3  # the next turn does not fit, although everything that may go has gone
    SEGMENTS = 4  # the next turn does not fit, and no segment is left in which to go on without the older messages


@struct.dataclass
class Text:
    """Padded token sequences. Positions at or after `length` hold PAD_ID."""

    tokens: jax.Array  # [..., W] int32
    length: jax.Array  # [...] int32


@struct.dataclass
class Task:
    """One problem a row. Rows of a group hold the same task (arrays repeated)."""

    facts: Text  # [B, F, W] stage-1 messages, in the order they are told (body only, no chat marks)
    num_facts: jax.Array  # [B] int32
    fact_is_gold: jax.Array  # [B, F] bool: this message tells a supporting fact
    distractors: Text  # [B, D2, W] stage-2 messages
    num_distractors: jax.Array  # [B] int32
    query: Text  # [B, W] the stage-3 message
    gold: Text  # [B, Gf, W] the supporting facts as told, for memory quality
    num_gold: jax.Array  # [B] int32
    key_tokens: jax.Array  # [B, Kq] int32 key tokens of the query (entities, dates); PAD_ID where unused
    answer: Text  # [B, W] the gold answer's tokens (demonstrations and traces)
    game: Any  # [B, ...] what the environment plays (envs/base.py)
    fact_owner: jax.Array  # [B, F] int32 who speaks, and whose memory it is in that turn
    fact_session: jax.Array  # [B, F] int32
    distractor_owner: jax.Array  # [B, D2] int32
    distractor_session: jax.Array  # [B, D2] int32
    owner: jax.Array  # [B] int32 who asks the query
    session: jax.Array  # [B] int32
    keep: Text  # [B, F, W] what holds and is open when stage 1 ends, and is worth keeping
    num_keep: jax.Array  # [B] int32
    view: Text  # [B, D2, W] what stage 2 tells that should still be in view when the query comes
    num_view: jax.Array  # [B] int32
    stale: Text  # [B, R, W] what stage 1 tells and then revises
    present: Text  # [B, R, W] what holds instead; length 0 = it was taken back, and nothing does
    num_revisions: jax.Array  # [B] int32
    kind: jax.Array  # [B] int32 which of the benchmark's kinds of task (data/batches.py: Tasks), -1 of none
    cut: jax.Array  # [B] float32 share of its messages, the query with them, that were cut to their limit
    index: jax.Array  # [B] int32 row of the record in its file, for traces


@struct.dataclass
class ToolCalls:
    """One parsed turn. Calls are in the order written; `op` is Op.NONE after the last."""

    op: jax.Array  # [B, J] int32
    content: Text  # [B, J, A] content, query, criteria, task action or summary
    tags: Text  # [B, J, G, 2, Lt] (key, value) pairs; slot 0 is memory_type; length 0 = absent; a filter for RETRIEVE
    memory_id: jax.Array  # [B, J] int32, NO_ID if absent
    top_k: jax.Array  # [B, J] int32, 0 if absent
    span: jax.Array  # [B, J] int32: 0 = all, n = the last n rounds
    confirmed: jax.Array  # [B, J] bool
    said: jax.Array  # [B, A] bool: the token as written is part of a text (thought, content, tag), not of the format
    malformed: jax.Array  # [B] bool: the turn does not parse; op is NONE throughout
    think_tokens: jax.Array  # [B] int32


@struct.dataclass
class Segments:
    """Append-only pieces of trajectories, the learner's unit.

    A token is trainable in exactly one segment: the one in which it was sampled. Forced tokens (grammar states with one
    way on) have log-probability 0 and are not trainable.
    """

    tokens: jax.Array  # [B, S, C] int32, without the shared prefix
    length: jax.Array  # [B, S] int32; 0 = unused
    trainable: jax.Array  # [B, S, C] bool
    logp: jax.Array  # [B, S, C] float32, of the sampling distribution; 0 where not trainable
    state: jax.Array  # [B, S, C] int16 grammar state before the token
    remaining: jax.Array  # [B, S, C] int16 action tokens left before the token, itself included
    ops: jax.Array  # [B, S, C] int16 bit mask of the operations allowed in that turn
    turn: jax.Array  # [B, S, C] int16 turn within the stage
    stage: jax.Array  # [B, S, C] int8 stage 1, 2 or 3 in which the token was sampled
    count: jax.Array  # [B] int32 segments in use


@struct.dataclass
class EpisodeStats:
    """Raw facts of an episode; rewards.py turns them into terms. Stages add to the same record.

    Axis 3: stages 1 to 3; what is counted there is counted in the stage in which it happened.
    """

    calls: jax.Array  # [B, NUM_OPS] int32 calls made
    calls_ok: jax.Array  # [B, NUM_OPS] int32 calls whose status was OK
    added: jax.Array  # [B] int32 entries added in stage 1
    added_good: jax.Array  # [B] int32 of these, entries that hold a supporting fact
    kept: jax.Array  # [B] float32: how well the store of stage 1's end is what is worth keeping (scoring.kept_quality)
    stale_held: jax.Array  # [B] int32 bit r: in stage 1 an entry held the stale text of revision r at some time
    revised: jax.Array  # [B] float32: revisions done when stage 1 ends / revisions told; 0 where none was told
    maintained: jax.Array  # [B, 3] bool: an UPDATE or a DELETE succeeded
    relevance_sum: jax.Array  # [B, 3] float32 sum over entries retrieved by call of their overlap with the gold facts
    relevance_count: jax.Array  # [B, 3] int32
    reduced_in_time: jax.Array  # [B, 3] bool: FILTER or SUMMARY succeeded while the context was within its limit
    prevented: jax.Array  # [B, 3] bool: edits kept the context from being too full (rollout/turn.py: prevented)
    actions: jax.Array  # [B] int32 that the environment was given
    understood: jax.Array  # [B] int32 of these, those that could be taken
    success: jax.Array  # [B] float32 0 or 1, of a question exact match
    progress: jax.Array  # [B] float32, of a question token F1
    in_view: jax.Array  # [B] float32: how much of what stage 2 told to be kept in view is so when it ends
    preservation: jax.Array  # [B] float32: share of the query's key tokens in the context at the end
    context_tokens: jax.Array  # [B] int32 context length (prefix included) at the end
    peak_context_tokens: jax.Array  # [B] int32
    memory_coverage: jax.Array  # [B] float32: gold facts found in the store after stage 1
    memory_precision: jax.Array  # [B] float32: stored entries that hold a gold fact
    memory_quality: jax.Array  # [B] float32: harmonic mean of the two
    turns: jax.Array  # [B] int32 generations of all stages
    prompt_tokens: jax.Array  # [B] int32 tokens before each of these, the shared prompt included, whether cached or not
    op_prompt_tokens: jax.Array  # [B, NUM_OPS] float32 of these, by what the turn asked for; several calls share evenly
    op_generated_tokens: jax.Array  # [B, NUM_OPS] float32 of the generated ones; a malformed turn counts for none
    peak_entries: jax.Array  # [B] int32 most entries in the store after a generation slot
    peak_store_tokens: jax.Array  # [B] int32 most tokens in them
    over_turns: jax.Array  # [B] bool: stage 3 ran out of turns before its episode was over
    over_context: jax.Array  # [B, 3] bool: the context passed its limit
    stop: jax.Array  # [B, 3] int32 StopReason of each stage
    malformed: jax.Array  # [B, 3] int32 turns that did not parse
    generated_tokens: jax.Array  # [B] int32 tokens written by the policy, forced ones included
    sampled_tokens: jax.Array  # [B] int32 of these, sampled ones


def empty_stats(batch: int) -> EpisodeStats:
    """Neutral statistics of `batch` rows that have not begun."""
    i = lambda: jnp.zeros((batch,), jnp.int32)  # noqa: E731
    f = lambda: jnp.zeros((batch,))  # noqa: E731
    b = lambda: jnp.zeros((batch,), bool)  # noqa: E731
    ops = lambda: jnp.zeros((batch, NUM_OPS), jnp.int32)  # noqa: E731
    stages = lambda dtype: jnp.zeros((batch, 3), dtype)  # noqa: E731
    return EpisodeStats(
        calls=ops(), calls_ok=ops(), added=i(), added_good=i(), kept=f(), stale_held=i(), revised=f(),
        maintained=stages(bool), relevance_sum=stages(jnp.float32), relevance_count=stages(jnp.int32),
        reduced_in_time=stages(bool), prevented=stages(bool), actions=i(), understood=i(), success=f(), progress=f(),
        in_view=f(), preservation=f(), context_tokens=i(), peak_context_tokens=i(), memory_coverage=f(),
        memory_precision=f(), memory_quality=f(), turns=i(), prompt_tokens=i(),
        op_prompt_tokens=jnp.zeros((batch, NUM_OPS)), op_generated_tokens=jnp.zeros((batch, NUM_OPS)),
        peak_entries=i(), peak_store_tokens=i(), over_turns=b(), over_context=stages(bool), stop=stages(jnp.int32),
        malformed=stages(jnp.int32), generated_tokens=i(), sampled_tokens=i(),
    )  # fmt: skip


def in_stage(values: jax.Array, stage: int) -> jax.Array:
    """Values [B] of a stage, 1 to 3, as [B, 3]: 0 or False in the others."""
    return jnp.where(jnp.arange(3) == stage - 1, values[:, None], jnp.zeros((), values.dtype))


@struct.dataclass
class TrainState:
    """All that a run changes. `params` is a plain nested dict with Hugging Face names."""

    step: jax.Array  # [] int32 updates done
    params: dict
    opt_state: tuple
    master: dict | None = None  # of parameters narrower than float32: what the optimizer works on, float32


@struct.dataclass
class WeightedSum:
    """A sum and its weight; divide once, at the end, so that padding and micro-batches change nothing."""

    total: jax.Array
    weight: jax.Array

    def mean(self) -> jax.Array:
        return self.total / jnp.maximum(self.weight, 1e-9)


@struct.dataclass
class Pieces:
    """Tokenised fixed strings that observations are composed of (built by data/prompts.py)."""

    prefix: Text  # [1, P] the system message, shared by all rows
    plain_prefix: Text  # [1, P] that of an agent without tools
    user_open: Text  # [w]
    assistant_open: Text  # [w]
    tool_open: Text  # [w]
    close: Text  # [w] end of a message written by the environment
    tool_close: Text  # [w] end of a tool message
    after_turn: Text  # [w] what follows the policy's end-of-turn token in the chat template
    summary_prompt: Text  # [w] body of the user message that asks for a summary
    summary_open: Text  # [w] said before a summary in the message that replaces the span
    statuses: Text  # [NUM_OPS, NUM_STATUSES, w] what the agent reads after a call
    numbers: Text  # [max_id + 1, w] memory ids as text
    id_mark: Text  # [w] between an entry and its id
    line_break: Text  # [w] between two lines of a tool message
    related: Text  # [w] the line before automatically retrieved entries
    seen_open: Text  # [w] between the query and what the environment shows with it
    id_first: bool = struct.field(pytree_node=False)  # "1: entry", else "entry | memory_id=1"
