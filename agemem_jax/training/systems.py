"""The stage programs of memory systems (methods/): 1 and 2 read, 3 is that of rows that only answer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from agemem_jax import sharding
from agemem_jax.methods.base import RoleTables, System
from agemem_jax.methods.reading import Counts, read_stage, role_spec
from agemem_jax.models import kv_cache, lora, qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rollout.decode import Policy
from agemem_jax.rollout.reader import to_layout
from agemem_jax.rollout.rows import RolloutSpec, Rows, World, lay_out_rows, new_rows
from agemem_jax.rollout.stage import policy_writer
from agemem_jax.training.programs import Control
from agemem_jax.training.state import Optimizer, state_shardings
from agemem_jax.types import Task, TrainState


def reading_program(stage: int, system: System, spec: RolloutSpec, model: ModelConfig, answer_tokens: int):
    """The function of stage 1 or 2, to be jitted with `state` and `rows` donated.

    (state, frozen, rows, task, world, control, notes, tables) -> (state, rows, notes, outcome), but for the notes and
    tables of the system as training.programs.stage_program. Rows and notes are None before stage 1, notes after 2.
    """

    def program(
        state: TrainState, frozen: dict, rows: Rows | None, task: Task, world: World, control: Control, notes: Any,
        tables: RoleTables,
    ):  # fmt: skip
        actor = dataclasses.replace(model, layout=spec.layout)
        params = kv_cache.for_decoding(qwen.to_layout(lora.policy_params(state.params, frozen), actor), actor)
        if stage == 1:
            rows, notes = new_rows(spec, actor), system.new_notes(spec)
        world = world.for_method(control.rules).replace(grammar=tables.grammar, pieces=tables.pieces)
        if reader := spec.reader:
            world = world.replace(reader=to_layout(frozen if reader.shares_frozen else world.reader, reader))
        prefix, _ = kv_cache.encode_prefix(params, actor, tables.pieces.prefix.tokens, tables.pieces.prefix.length)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(control.seed), control.step), stage)
        write = policy_writer(
            Policy(actor, params, prefix), world, role_spec(spec, answer_tokens), control.temperature, key,
            control.noise_row,
        )  # fmt: skip
        rows, notes, counts, trace = read_stage(
            rows, notes, task, world, tables, system, spec, stage, write, answer_tokens
        )
        rows = lay_out_rows(rows, spec.layout)
        outcome = {"metrics": {}, "rows": count_numbers(system, counts), "trace": trace}
        return state, rows, notes if stage == 1 else None, outcome

    return program


def count_numbers(system: System, counts: Counts) -> dict[str, jax.Array]:
    """What is reported of the roles: {role_NAME_calls, role_NAME_valid, ...: [B]}."""
    return {
        f"role_{role.name}_{field}": getattr(counts, field)[:, i].astype(jnp.float32)
        for i, role in enumerate(system.roles)
        for field in Counts.__dataclass_fields__
    }


def compile_system(
    system: System, tables: RoleTables, spec: RolloutSpec, model: ModelConfig, optimizer: Optimizer,
    answer_tokens: int, last: Callable,
) -> dict[int, Callable]:  # fmt: skip
    """The programs of a system, called as those of training.programs; they compile on first use.

    Between the stages, (rows, notes) stand in place of the rows.

    Args:
      spec: sizes of the rows, those of the program `last` of stage 3.
    """
    mesh = spec.layout.mesh
    out = None if mesh is None else (state_shardings(model, optimizer, mesh), None, None, sharding.replicated(mesh))
    tables = tables if mesh is None else sharding.put(tables, sharding.replicated(mesh))

    def compiled(stage: int) -> Callable:
        program = reading_program(stage, system, spec, model, answer_tokens)
        return jax.jit(program, donate_argnums=(0, 2), out_shardings=out)

    first, second = compiled(1), compiled(2)

    def read_first(state, frozen, rows, task, world, control):
        state, rows, notes, outcome = first(state, frozen, rows, task, world, control, None, tables)
        return state, (rows, notes), outcome

    def read_second(state, frozen, rows, task, world, control):
        rows, notes = rows
        state, rows, _, outcome = second(state, frozen, rows, task, world, control, notes, tables)
        return state, rows, outcome

    return {1: read_first, 2: read_second, 3: last}
