"""The supervised warm start: reading lessons, then imitation of demonstrations played in the real environment."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from agemem_jax.data.scripts import Demonstration, Script
from agemem_jax.memory import store as store_lib
from agemem_jax.methods.base import Message, RoleTables, System
from agemem_jax.methods.reading import prompted
from agemem_jax.methods.teaching import Moments
from agemem_jax.rl import losses
from agemem_jax.rl.batch import learner_batch
from agemem_jax.rollout.reading import encoder_of
from agemem_jax.rollout.rows import RolloutSpec, Rows, World, close_segment, new_rows
from agemem_jax.rollout.stage import run_stage, scripted_writer, written
from agemem_jax.rollout.turn import record
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.grammar import ANY_OP
from agemem_jax.training.learn import LearnSpec, gradients, imitation_loss
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.state import Optimizer, descend
from agemem_jax.types import Mode, Segments, Task, Text, TrainState

ADAM_B2 = 0.99  # of what Muon leaves to Adam: embeddings and norms


def seed_store(rows: Rows, told: Demonstration, world: World, spec: RolloutSpec) -> Rows:
    """Fills emptied stores with the entries of a demonstration, in their order."""
    store = store_lib.empty(
        spec.batch, spec.entries, spec.entry_tokens, spec.embedding_size, spec.tag_slots, spec.tag_tokens
    )
    no_tags = Text(jnp.zeros_like(store.tags.tokens[:, 0]), jnp.zeros_like(store.tags.length[:, 0]))

    def add(store, i):
        text = Text(told.entries.tokens[:, i], told.entries.length[:, i])
        store, _, _ = store_lib.add(
            store, text.length > 0, text, no_tags, told.owners[:, i], jnp.zeros_like(rows.round), rows.round,
            encoder_of(world, spec), world.equality, spec.duplicates,
        )  # fmt: skip
        return store, None

    store, _ = jax.lax.scan(add, store, jnp.arange(told.owners.shape[1]))
    return rows.replace(store=store)


def demonstrate(spec: RolloutSpec, world: World, task: Task, told: Demonstration) -> tuple[Segments, Rows]:
    """Plays the scripts through the three stages; returns what was recorded, and the rows at the end."""
    tools = jnp.int32(ALL_TOOLS)
    rows = new_rows(spec)
    for stage in (1, 2, 3):
        if stage == 2:
            rows = seed_store(rows, told, world, spec)
        rows, _ = run_stage(rows, task, world, spec, stage, script_writer(world, spec, told.script, stage), tools)
    return rows.segments, rows


def script_writer(world: World, spec: RolloutSpec, script: Script, stage: int):
    """Who writes what a script says in a stage."""
    summaries = jax.tree.map(lambda x: x[:, stage - 1], script.summaries)
    return scripted_writer(world, spec, script.stages[stage - 1], summaries, script.slips if stage == 3 else None)


def warm_optimizer(warm, rate: float, steps: int, max_grad_norm: float) -> Optimizer:
    """Muon with a linear rise and a cosine decay over the `steps` of a phase; `warm` is config.warm.

    Matrices move by orthogonalised momentum, scaled so that one rate suits them and what Adam moves, embeddings and
    norms (arXiv 2502.16982, section 2.2). A policy that begins from nothing learns with it in a third of the steps that
    Adam takes (experiments/LOG.md). Adapters move by Adam: neither of the two thin matrices whose product changes a
    kernel is one whose directions should all grow alike.

    Step number `warmup_steps` is the first at `rate`, the last one is at `final_learning_rate`; none is at 0.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm.warmup_steps, steps, warm.final_learning_rate)
    muon = optax.contrib.muon(
        1.0, weight_decay=warm.weight_decay, adam_weight_decay=warm.weight_decay, adam_b2=ADAM_B2,
        muon_weight_dimension_numbers=matrices, consistent_rms=0.2,
    )  # fmt: skip
    # Its direction is subtracted times the rate of the schedule.
    direction = optax.chain(optax.clip_by_global_norm(max_grad_norm), muon, optax.scale(-1.0))
    return Optimizer(direction, lambda step: schedule(step + 1))


def matrices(params: dict) -> dict:
    """Which axes of which parameters Muon takes for a matrix: those of the layers' stacked kernels `[L, in, out]`."""
    stacked = lambda path, x: path[-1].key == "kernel" and x.ndim == 3  # noqa: E731
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree_util.tree_map_with_path(lambda path, x: axes if stacked(path, x) else None, params)


def imitate(
    state: TrainState,
    frozen: dict,
    segments: Segments,
    world: World,
    grammar,
    learn: LearnSpec,
    model,
    optimizer,
    logit_chunk: int,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """One optimizer step towards the trainable tokens: (state, loss [], used segments []).

    Args:
      frozen: what the state's adapters are beside, if these are what is trained.
      grammar: see log_probs.
    """
    rows = segments.tokens.shape[0]
    weight = losses.token_weights(segments.trainable, "token")
    batch = learner_batch(segments, jnp.zeros((rows, 3)), weight, learn.micro_batch)
    used = (batch.length > 0).sum()
    loss = imitation_loss(frozen, model, grammar, learn, logit_chunk)
    grad, (sums, _) = gradients(loss, state.params, world.pieces.prefix, batch, used, learn)
    return descend(state, optimizer, grad).replace(step=state.step + 1), sums["loss"], used


def lesson_step(learn: LearnSpec, model, optimizer: Optimizer, logit_chunk: int):
    """One step on reading lessons, to be jitted with `state` donated: (state, frozen, lessons, world) -> (state,
    metrics); `frozen` as in `imitate`.

    No grammar narrows the choice of a token: to write something else than an answer is unlearnt here too.
    """

    def step(state: TrainState, frozen: dict, lessons: Segments, world: World):
        spec = dataclasses.replace(learn, widths=(lessons.tokens.shape[-1],))
        state, loss, _ = imitate(state, frozen, lessons, world, None, spec, model, optimizer, logit_chunk)
        return state, {"loss": loss}

    return step


def recorded(spec: RolloutSpec):
    """Plays a batch of demonstrations, to be jitted: (task, told, world) -> (segments, metrics)."""

    def play(task: Task, told: Demonstration, world: World):
        segments, rows = demonstrate(spec, world, task, told)
        return segments, {
            "demo_score": rows.stats.progress.mean(),
            "malformed": rows.stats.malformed.sum(1).mean(),
            "peak_context_tokens": rows.stats.peak_context_tokens.max(),
            "mean_context_tokens": rows.stats.peak_context_tokens.mean(),
        }

    return play


def watch_step(learn: LearnSpec, model, optimizer: Optimizer, logit_chunk: int):
    """One step on demonstrations, to be jitted with `state` donated: (state, frozen, segments, world) -> (state,
    metrics); `frozen` as in `imitate`.
    """

    def step(state: TrainState, frozen: dict, segments: Segments, world: World):
        state, loss, used = imitate(state, frozen, segments, world, world.grammar, learn, model, optimizer, logit_chunk)
        return state, {"loss": loss, "segments": used / segments.tokens.shape[0]}

    return step


def role_segments(
    reading: System, tables: RoleTables, spec: RolloutSpec, world: World, told: Moments
) -> tuple[Segments, jax.Array]:
    """Calls of roles with their right answers as segments [B, 1, C], and which answers are in their form [B].

    Args:
      world: with the grammar and the pieces of `tables`.
    """
    on = jnp.ones((spec.batch,), bool)
    rows = new_rows(spec).replace(mode=told.role + Mode.ROLE, turn=told.turn)
    seeded = Demonstration(None, told.entries, told.owners)
    rows = seed_store(rows, seeded, world, dataclasses.replace(spec, duplicates="add"))
    query = encoder_of(world, spec)(told.body, True) if reading.reads_messages else None
    message = Message(told.body, told.owner, told.task.session, told.turn, query)
    said = reading.ask(rows, told.notes, message, told.role, told.task, tables, spec, 1)
    rows, _ = prompted(rows, said, on, world, spec)
    start = jnp.array(tables.grammar.start_forms, jnp.int32)[told.role]
    ops, width = jnp.full_like(start, ANY_OP), told.answer.tokens.shape[1]
    gen = written(told.answer, world, width, on, start, ops, jnp.full_like(start, width))
    calls = grammar_lib.parse(tables.grammar, gen.tokens, gen.count, start, tag_width=spec.tag_tokens)
    rows = close_segment(record(rows, world, gen, calls.said, ops, spec, 1), on)
    return jax.tree.map(lambda x: x[:, :1], rows.segments.replace(count=())), ~calls.malformed


def role_step(reading, learn: LearnSpec, model, optimizer: Optimizer, logit_chunk: int):
    """One step on calls of a memory system's roles, to be jitted with `state` donated: (state, frozen, (moments,
    tables), world) -> (state, metrics); `frozen` as in `imitate`.

    reading: setup.Reading.
    """
    system, _, spec = reading

    def step(state: TrainState, frozen: dict, told: tuple[Moments, RoleTables], world: World):
        told, tables = told
        world = world.replace(grammar=tables.grammar, pieces=tables.pieces)
        segments, valid = role_segments(system, tables, spec.rollout, world, told)
        short = dataclasses.replace(learn, widths=(segments.tokens.shape[-1],))
        segments = segments.replace(count=valid.astype(jnp.int32))
        state, loss, used = imitate(state, frozen, segments, world, world.grammar, short, model, optimizer, logit_chunk)
        return state, {"loss": loss, "malformed": 1 - valid.mean(), "segments": used / spec.rollout.batch}

    return step


def embeddings_for(table: jax.Array, theirs: list[bytes | None], ours: list[bytes | None], seed: int) -> jax.Array:
    """Embeddings [V, D] of another vocabulary: of a piece that both have the same, of a new one as spread as these.

    Args:
      table: [V', D], of the pieces `theirs`.
      theirs, ours: what each token is (setup.named_pieces).
    """
    place = {piece: i for i, piece in reversed(list(enumerate(theirs))) if piece is not None}
    known = jnp.array([place.get(piece, -1) for piece in ours])
    fresh = jax.random.normal(jax.random.key(seed), (len(ours), table.shape[1])) * jnp.std(table)
    return jnp.where(known[:, None] >= 0, table[known], fresh).astype(table.dtype)
