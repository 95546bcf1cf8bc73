"""The state of B rollouts between generation slots, and how a context edit closes a segment."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.envs.base import Environment
from agemem_jax.envs.names import NameTable
from agemem_jax.memory import context as context_lib
from agemem_jax.memory import store as store_lib
from agemem_jax.memory.context import ContextWindow
from agemem_jax.memory.equality import EqualityTable
from agemem_jax.memory.store import MemoryStore
from agemem_jax.models import kv_cache
from agemem_jax.rollout.reader import Reader
from agemem_jax.sharding import LOCAL, Layout, by_rows
from agemem_jax.tools.grammar import ToolGrammar
from agemem_jax.types import (
    NO_ID,
    TURN_TERMS,
    EpisodeStats,
    Mode,
    Op,
    Pieces,
    Segments,
    Status,
    Text,
    ToolCalls,
    empty_stats,
)


@dataclass(frozen=True)
class RolloutSpec:
    """Static sizes and switches of a rollout, read from the config once (see `rollout_spec`)."""

    batch: int
    capacity: int
    limit: int
    messages: int
    low_water: float
    prefix_tokens: int
    action_tokens: int
    summary_tokens: int
    max_calls: int  # of a turn, a task action included
    tag_slots: int
    tag_tokens: int
    default_top_k: int
    max_top_k: int
    auto_top_k: int
    auto_min_score: float
    min_score: float
    filter_threshold: float
    duplicates: str
    pin_query: bool
    summary_by_policy: bool
    pass_allowed: bool
    early_answer_ends: bool
    stage1_extra_turns: int
    stage2_extra_turns: int
    stage3_turns: int
    summary_slots: int
    segments: int
    entries: int
    entry_tokens: int
    embedding_size: int
    good_entry: float
    shortest_turn: int  # tokens of the shortest turn that can be written
    chunk: int
    few_rows: int  # rows of a prefill chunk after the first; 0 = all
    columns: tuple[int, ...]  # history columns that the decode loop is compiled for, beside all of them
    decode_width: int  # tokens of a row that a step of the decode loop may run
    trace_rows: int
    result_tokens: int
    rule_top_k: int  # entries shown by rule with the query: as many as a turn of an agent can be shown
    facts: int
    distractors: int
    env: Environment
    by_turn: bool = False  # what stages 1 and 2 are paid for is measured after each turn, for credit "turn_to_go"
    by_words: bool = False  # entries that are shown by rule are ranked by BM25 (World.words), not by the encoder
    always_retrieves: bool = False  # what is like it is shown with every message, of all stages
    reader: Reader | None = None  # a decoder as the store's encoder; None: the table `World.encoder`
    layout: Layout = LOCAL  # of the rows, and of the policy while it acts

    @property
    def on_a_device(self) -> "RolloutSpec":
        """The rollout as one device sees its share of the rows."""
        return dataclasses.replace(self, batch=self.batch // self.layout.ways("rows"), layout=LOCAL)

    @property
    def width(self) -> int:
        """Columns of a generation slot."""
        return max(self.action_tokens, self.summary_tokens)

    def turns(self, stage: int) -> int:
        """Most turns of a stage."""
        return {
            1: self.facts + self.stage1_extra_turns,
            2: self.distractors + self.stage2_extra_turns,
            3: self.stage3_turns,
        }[stage]

    def turns_before(self, stage: int) -> int:
        """Most turns of the stages before one, from which turns are numbered over the whole trajectory."""
        return sum(self.turns(earlier) for earlier in range(1, stage))

    @property
    def all_turns(self) -> int:
        """Most turns of a trajectory."""
        return self.turns_before(4)

    def slots(self, stage: int) -> int:
        """Most generation slots of a stage: turns, and those spent on summaries."""
        return self.turns(stage) + (self.summary_slots if self.summary_by_policy else 0)

    def budget(self, stage: int) -> int:
        """Most tokens that a row can generate in a stage: all its turns and summaries at full length."""
        turns = self.turns(stage)
        return turns * self.action_tokens + (self.slots(stage) - turns) * self.summary_tokens

    def segment_limit(self, stage: int) -> int:
        """Segments that may be in use when a stage ends: stage 1 may take half of them."""
        return max(1, self.segments // 2) if stage == 1 else self.segments

    def edit_limit(self, stage: int) -> int:
        """Segments that may be in use when FILTER or SUMMARY begins another.

        Half of the edits that stage 1, and then stages 2 and 3, have room for are left to overflow: without them a
        row that tidied up would end where one that did not goes on.
        """
        edits = self.segment_limit(stage) - (self.segment_limit(1) if stage > 1 else 0) - 1
        return self.segment_limit(stage) - 1 - max(0, edits) // 2


@struct.dataclass
class Rules:
    """What the environment does in place of an agent with tools. Data, so that all methods share a program: [] bool."""

    answers_only: jax.Array  # the agent reads in silence until the question comes, then answers; a prompt of its own
    keeps_context: jax.Array  # the context is not emptied after stage 1
    keeps_limit: jax.Array  # what would pass the context's limit pushes the oldest messages out
    stores: jax.Array  # each message of stages 1 and 2 is stored, and the best entries are shown with the question


def rules(**on: bool) -> Rules:
    """The rules named are on."""
    return Rules(**{name: np.bool_(on.get(name, False)) for name in Rules.__dataclass_fields__})


@struct.dataclass
class World:
    """Device tables that every stage reads and none changes."""

    grammar: ToolGrammar
    pieces: Pieces
    encoder: jax.Array  # [V, E] float32 token directions, of FILTER and, without a reader, of the store
    equality: EqualityTable  # when two entries say the same
    token_weight: jax.Array  # [V] float32: 0 for punctuation and marks, in overlaps
    names: NameTable  # of the names, dates and numbers in a text
    env: Any  # tables of the environment that no game changes (envs/base.py: shared)
    rules: Rules = struct.field(default_factory=rules)  # of the method that plays
    words: jax.Array | tuple = ()  # [V] int32 number of each token's word (memory/bm25.py), with RolloutSpec.by_words
    reader: dict = struct.field(default_factory=dict)  # parameters of RolloutSpec.reader, stored as the policy's are

    @property
    def prefix_tokens(self) -> jax.Array:
        """[] int32 tokens of the shared prompt."""
        return self.pieces.prefix.length.sum()

    def for_method(self, rules: Rules) -> "World":
        """The tables with a method's rules and prompt."""
        plain = jax.tree.map(
            lambda plain, prefix: jnp.where(rules.answers_only, plain, prefix),
            self.pieces.plain_prefix, self.pieces.prefix,
        )  # fmt: skip
        return self.replace(rules=rules, pieces=self.pieces.replace(prefix=plain))


@struct.dataclass
class Tape:
    """What was recorded of each token of the open segment, aligned with `context.tokens`."""

    trainable: jax.Array  # [B, C] bool
    logp: jax.Array  # [B, C] float32
    state: jax.Array  # [B, C] int16
    remaining: jax.Array  # [B, C] int16
    ops: jax.Array  # [B, C] int16
    turn: jax.Array  # [B, C] int16
    stage: jax.Array  # [B, C] int8


@struct.dataclass
class Rows:
    """B rollouts: working context, store, recorded segments, and what the row does next."""

    context: ContextWindow
    tape: Tape
    segments: Segments
    history: tuple  # per-layer KV caches of the context; () where nothing generates
    cached: jax.Array  # [B] int32 context tokens whose keys and values are valid
    told: jax.Array  # [B] int32 tokens that the messages told in this context take, each with the shortest turn
    crowded: jax.Array  # [B] bool: these alone would have been too much for the context
    spilled: jax.Array  # [B] bool: this context was too full: it passed its limit, or old messages fell out of it
    store: MemoryStore
    calls: ToolCalls  # the turn being executed
    vectors: jax.Array | tuple  # [B, J, E] of these calls' contents, for the store; () without a reader
    status: jax.Array  # [B, J] int32 Status of each of these calls
    pointer: jax.Array  # [B] int32 next call to run
    result: Text  # [B, Wr] tool results that the agent has not seen yet, with context.SAID
    mode: jax.Array  # [B] int32 Mode
    turn: jax.Array  # [B] int32 turn within the stage
    round: jax.Array  # [B] int32 turns of all stages, for SUMMARY's rounds
    span: jax.Array  # [B] int32 span of the summary being written
    summaries: jax.Array  # [B] int32 summary slots used in this stage
    action: Text  # [B, A] the last one that the environment was given
    env: Any  # [B, ...] the environment's state in stage 3; () before
    seen: Text | tuple  # [B, Ws] what the environment has answered and the agent has not seen yet; () before stage 3
    finished: jax.Array  # [B] bool: the environment's episode is over
    effective: jax.Array  # [B, turns of a trajectory] bool: a call of the turn had an effect that was used later
    edits: jax.Array  # [B, turns of a trajectory] bool: the turn made the context shorter, which was not emptied since
    freed: jax.Array  # [B] int32 tokens by which these turns made it shorter
    begun: jax.Array  # [B] int32 context tokens before the turn's own words
    standing: jax.Array | tuple  # [B, turns of stages 1 and 2, 3] float32 TURN_TERMS after each; () unless by_turn
    stats: EpisodeStats


def no_calls(spec: RolloutSpec) -> ToolCalls:
    """Calls of rows that have not spoken yet."""
    b, j, g = spec.batch, spec.max_calls, spec.tag_slots
    i = lambda *shape: jnp.zeros(shape, jnp.int32)  # noqa: E731
    return ToolCalls(
        op=i(b, j) + Op.NONE,
        content=Text(i(b, j, spec.width), i(b, j)),
        tags=Text(i(b, j, g, 2, spec.tag_tokens), i(b, j, g, 2)),
        memory_id=i(b, j) + NO_ID,
        top_k=i(b, j),
        span=i(b, j),
        confirmed=jnp.zeros((b, j), bool),
        said=jnp.zeros((b, spec.width), bool),
        malformed=jnp.zeros((b,), bool),
        think_tokens=i(b),
    )


def new_tape(batch: int, capacity: int) -> Tape:
    """An empty record."""
    z = lambda dtype: jnp.zeros((batch, capacity), dtype)  # noqa: E731
    return Tape(z(bool), z(jnp.float32), z(jnp.int16), z(jnp.int16), z(jnp.int16), z(jnp.int16), z(jnp.int8))


def new_segments(batch: int, segments: int, capacity: int) -> Segments:
    """Empty segments."""
    z = lambda dtype: jnp.zeros((batch, segments, capacity), dtype)  # noqa: E731
    return Segments(
        tokens=z(jnp.int32),
        length=jnp.zeros((batch, segments), jnp.int32),
        trainable=z(bool),
        logp=z(jnp.float32),
        state=z(jnp.int16),
        remaining=z(jnp.int16),
        ops=z(jnp.int16),
        turn=z(jnp.int16),
        stage=z(jnp.int8),
        count=jnp.zeros((batch,), jnp.int32),
    )


def new_rows(spec: RolloutSpec, model=None) -> Rows:
    """Rows that have not begun; `model` (a ModelConfig) gives the KV cache its sizes, None leaves it out."""
    b, i = spec.batch, lambda *shape: jnp.zeros(shape, jnp.int32)
    slack = max(spec.chunk, spec.width)  # chunks and slots are written whole; what is past a row's end is never read
    rows = Rows(
        context=context_lib.empty(b, spec.capacity, spec.messages),
        tape=new_tape(b, spec.capacity),
        segments=new_segments(b, spec.segments, spec.capacity),
        history=kv_cache.init_history(model, b, spec.capacity + slack) if model is not None else (),
        cached=i(b),
        told=i(b),
        crowded=jnp.zeros((b,), bool),
        spilled=jnp.zeros((b,), bool),
        store=store_lib.empty(b, spec.entries, spec.entry_tokens, spec.embedding_size, spec.tag_slots, spec.tag_tokens),
        calls=no_calls(spec),
        vectors=jnp.zeros((b, spec.max_calls, spec.embedding_size)) if spec.reader else (),
        status=i(b, spec.max_calls) + Status.NOT_RUN,
        pointer=i(b),
        result=Text(i(b, spec.result_tokens), i(b)),
        mode=i(b) + Mode.ACT,
        turn=i(b),
        round=i(b),
        span=i(b),
        summaries=i(b),
        action=Text(i(b, spec.width), i(b)),
        env=(),
        seen=(),
        finished=jnp.zeros((b,), bool),
        effective=jnp.zeros((b, spec.all_turns), bool),
        edits=jnp.zeros((b, spec.all_turns), bool),
        freed=i(b),
        begun=i(b),
        standing=jnp.zeros((b, spec.turns_before(3), len(TURN_TERMS))) if spec.by_turn else (),
        stats=empty_stats(b),
    )
    return lay_out_rows(rows, spec.layout)


def row_shardings(rows: Rows, layout: Layout) -> Rows:
    """The shardings that rows have between programs: a tree like `rows` (shapes will do)."""
    by_row = layout.sharding("rows")
    light = jax.tree.map(lambda _: by_row, rows.replace(history=()))
    return light.replace(history=kv_cache.shardings(rows.history, layout))


def lay_out_rows(rows: Rows, layout: Layout) -> Rows:
    """Rows on the devices that the layout gives them; the KV history says so itself (models.kv_cache)."""
    place = lambda x: layout.constrain(x, "rows", *[None] * (x.ndim - 1))  # noqa: E731
    return jax.tree.map(place, rows.replace(history=())).replace(history=rows.history)


def numbered_turns(spec: RolloutSpec, stage: jax.Array, turn: jax.Array) -> jax.Array:
    """A turn's number in the trajectory, int32, of its stage (1 to 3; others read the nearest) and number in it."""
    before = jnp.array([spec.turns_before(k) for k in (1, 2, 3)], jnp.int32)
    return before[jnp.clip(stage.astype(jnp.int32) - 1, 0, 2)] + turn


def select(on: jax.Array, new, old):
    """Row-wise choice between two pytrees whose leaves all begin with [B]."""
    pick = lambda a, b: jnp.where(on.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, new, old)


def close_segment(rows: Rows, on: jax.Array) -> Rows:
    """Moves the open segment of rows `on` into `segments`; a segment without a sampled token is not kept."""
    seg, tape = rows.segments, rows.tape
    keep = on & tape.trainable.any(1)
    here = keep[:, None] & (jnp.arange(seg.length.shape[1]) == seg.count[:, None])  # [B, S]
    put = lambda buffer, new: jnp.where(here[..., None], new[:, None].astype(buffer.dtype), buffer)  # noqa: E731
    segments = Segments(
        tokens=put(seg.tokens, rows.context.tokens),
        length=jnp.where(here, rows.context.length[:, None], seg.length),
        count=seg.count + keep,
        **{name: put(getattr(seg, name), getattr(tape, name)) for name in tape.__dataclass_fields__},
    )
    blank = jax.tree.map(jnp.zeros_like, tape)
    return rows.replace(segments=segments, tape=select(on, blank, tape))


def rowwise(spec: RolloutSpec, function, rows: Rows, *sliced, whole: tuple = ()):
    """`function(rows, *sliced, *whole, spec)` on each device's rows by itself; the KV history does not take part.

    Args:
      function: returns Rows, or a tuple that begins with Rows; every array it returns has the rows as its first axis.
      sliced: pytrees whose arrays have the rows as their first axis.
      whole: pytrees that every device has a copy of.
    """
    local = spec.on_a_device
    with jax.named_scope("memory"):
        out = by_rows(spec.layout, lambda *args: function(*args, local), (rows.replace(history=()), *sliced), whole)
    if isinstance(out, Rows):
        return out.replace(history=rows.history)
    return out[0].replace(history=rows.history), *out[1:]


def may_edit(rows: Rows, spec: RolloutSpec, stage: int) -> jax.Array:
    """[B] bool: FILTER or SUMMARY may edit the context."""
    return used_segments(rows) <= spec.edit_limit(stage)


def may_overflow(rows: Rows, spec: RolloutSpec, stage: int) -> jax.Array:
    """[B] bool: a context edit would still leave room for the segment that follows it."""
    return used_segments(rows) < spec.segment_limit(stage)


def used_segments(rows: Rows) -> jax.Array:
    """[B] segments in use, the open one with them if anything in it is to be kept."""
    return rows.segments.count + rows.tape.trainable.any(1)


def stop(rows: Rows, on: jax.Array, reason: jax.Array | int, stage: int) -> Rows:
    """Ends the stage for rows `on` and notes why (`types.StopReason`, of all rows or `[B]`)."""
    here = on[:, None] & (jnp.arange(3) == stage - 1)
    noted = jnp.where(here, jnp.broadcast_to(reason, on.shape)[:, None], rows.stats.stop)
    return rows.replace(mode=jnp.where(on, Mode.DONE, rows.mode), stats=rows.stats.replace(stop=noted))


def remove(rows: Rows, drop: jax.Array) -> Rows:
    """Removes messages `drop` [B, M] from the contexts; rows that lose none keep their segment open."""
    on = drop.any(1)

    def edit(rows):
        rows = close_segment(rows, on)
        context, cut = context_lib.remove(rows.context, on, drop)
        return rows.replace(context=context, cached=jnp.where(on, jnp.minimum(rows.cached, cut), rows.cached))

    return light_cond(on.any(), edit, rows)


def light_cond(predicate: jax.Array, then, rows: Rows) -> Rows:
    """`then(rows)` where the predicate holds. The KV history stays outside: a conditional would copy it."""
    light = jax.lax.cond(predicate, then, lambda rows: rows, rows.replace(history=()))
    return light.replace(history=rows.history)


def reset_context(rows: Rows, world: World, spec: RolloutSpec) -> Rows:
    """The context before stage 2: emptied, unless the rules keep it; the store stays."""
    rows = close_segment(rows, jnp.ones((spec.batch,), bool))
    nothing = jnp.zeros_like(rows.cached)
    emptied = rows.replace(
        context=context_lib.empty(spec.batch, spec.capacity, spec.messages),
        cached=nothing,
        told=nothing,
        crowded=nothing > 0,
        spilled=nothing > 0,
        edits=jnp.zeros_like(rows.edits),
        freed=nothing,
    )
    return select((nothing > 0) | world.rules.keeps_context, rows, emptied)
