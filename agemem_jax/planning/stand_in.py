"""The stage programs of a config with shapes in place of arrays, to be compiled for devices that are not here.

With a tokenizer in the config (or weights that bring one) every shape is the run's own. Without, the small built-in
vocabulary stands in: arrays over the vocabulary get the policy's size, the prompt the length of Qwen's.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from agemem_jax import benchmarks, sharding
from agemem_jax.benchmarks import vocabulary
from agemem_jax.config import validate
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.models import qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl import rewards
from agemem_jax.rollout.reader import Reader, first_layers, needed
from agemem_jax.rollout.rows import Rows, World, new_rows, row_shardings, rules
from agemem_jax.sharding import Layout
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training.programs import Control, ProgramSpec, compile_programs
from agemem_jax.training.setup import (
    architecture,
    build_world,
    check_policy_mesh,
    document_counts,
    fitted,
    make_reader,
    program_spec,
    reference_dtype,
    tokenizer_path,
)
from agemem_jax.training.state import make_optimizer, param_shardings, state_shapes
from agemem_jax.types import Text

PROMPT_TOKENS = 1152  # of the system prompt with Qwen's vocabulary (measured: 1,081), in whole tiles of 128


@dataclass(frozen=True)
class StandIn:
    """What a plan compiles."""

    config: ConfigDict
    mesh: Mesh
    model: ModelConfig
    spec: ProgramSpec
    prompt_tokens: int
    is_exact: bool  # shapes from the run's own tokenizer
    programs: dict
    arguments: tuple  # (state, frozen, task, world, control), all shapes
    rows: Rows  # shapes, of what goes into stages 2 and 3

    def lower(self, stage: int):
        """The program of a stage, traced: `.compile()` is next."""
        state, frozen, task, world, control = self.arguments
        rows = None if stage == 1 else self.rows
        return self.programs[stage].lower(state, frozen, rows, task, world, control)


def stand_in(config: ConfigDict, mesh: Mesh) -> StandIn:
    """Checks the config and describes its programs on a mesh. Raises ConfigError as a run would."""
    validate(config)
    is_exact = bool(config.policy.tokenizer or config.policy.weights)
    tokenizer = Tokenizer.load(tokenizer_path(config.policy)) if is_exact else small_vocabulary(config)
    pieces = build_pieces(tokenizer, config)
    if not is_exact:
        prefix = Text(np.zeros((1, PROMPT_TOKENS), np.int32), np.full((1,), PROMPT_TOKENS, np.int32))
        pieces = pieces.replace(prefix=prefix, plain_prefix=prefix)
    model = fitted(config, architecture(config.policy, tokenizer.vocab_size), tokenizer.vocab_size, pieces)
    check_policy_mesh(config, model, mesh)
    small = config.copy_and_resolve_references()
    small.task.train_size = small.task.validation_size = small.task.test_size = small.train.eval_tasks = 8
    benchmark = benchmarks.load(small, tokenizer)
    source = TaskSource(small, tokenizer, benchmark.tasks)
    grammar = grammar_lib.build_grammar(config.tools, tokenizer)
    blank = np.broadcast_to(np.float32(0), (tokenizer.vocab_size, model.hidden_size))
    counts = document_counts(source, tokenizer.vocab_size)
    world = build_world(small, tokenizer, counts, pieces, grammar, lambda: blank, benchmark.shared)
    reader = make_reader(config, model, tokenizer, mesh)
    spec = program_spec(config, world, mesh, reader, benchmark.env)
    optimizer = make_optimizer(config.optim)
    everywhere, by_row = sharding.replicated(mesh), sharding.rows(mesh)
    dtype = model.param_dtype if model.lora else reference_dtype(config)
    plain = dataclasses.replace(model, lora=None, param_dtype=dtype)
    fresh = jax.eval_shape(lambda key: qwen.init_params(plain, key), jax.random.key(0))
    frozen = shapes(fresh, param_shardings(plain, mesh)) if config.rl.kl_coef or model.lora else {}
    scalars = {"seed": np.uint32(0), "step": np.int32(0), "temperature": np.float32(1), "tools": np.int32(0)}
    by_rows = np.zeros((spec.rollout.batch,), np.int32)
    control = Control(
        **scalars, rules=rules(), update=np.bool_(True), reward=rewards.factors(config.reward), noise_row=by_rows,
        suppress=by_rows,
    )  # fmt: skip
    task = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, source.batch(0)))
    if not is_exact:
        world = resized(world, tokenizer.vocab_size, model.vocab_size)
    world = everywhere_shapes(world, everywhere)
    if reader:
        world = world.replace(reader=reader_shapes(reader, dtype, mesh))
    rows = jax.eval_shape(lambda: new_rows(spec.rollout, model))
    return StandIn(
        config=config,
        mesh=mesh,
        model=model,
        spec=spec,
        prompt_tokens=int(pieces.prefix.length.sum()),
        is_exact=is_exact,
        programs=compile_programs(spec, model, optimizer, config.rl, config.reward),
        arguments=(
            state_shapes(model, optimizer, mesh), frozen, everywhere_shapes(task, by_row),
            world, everywhere_shapes(control, everywhere),
        ),
        rows=shapes(rows, row_shardings(rows, spec.rollout.layout)),
    )  # fmt: skip


def reader_shapes(reader: Reader, dtype: str, mesh: Mesh) -> dict:
    """Shapes of the parameters of the store's encoder (setup.reader_params); the frozen ones count where they are."""
    plain = dataclasses.replace(reader.model, param_dtype=dtype)
    kept = jax.eval_shape(lambda key: first_layers(qwen.init_params(plain, key), reader), jax.random.key(0))
    rules = "replicated" if reader.model.layout.rules == "replicated" else "stored"
    return shapes(kept, needed(sharding.param_shardings(qwen.logical_axes(plain), Layout(mesh, rules))))


def small_vocabulary(config: ConfigDict) -> Tokenizer:
    """The built-in vocabulary with the literals of this config's tools."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / vocabulary.FILE_NAME)
        vocabulary.build(path, config.tools)
        return Tokenizer.load(path)


def shapes(tree, where):
    """ShapeDtypeStructs of arrays, with the shardings of a tree of the same structure."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


def everywhere_shapes(tree, where: NamedSharding):
    """ShapeDtypeStructs of arrays (or numbers), all with one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def resized(world: World, old: int, new: int) -> World:
    """The tables with the policy's vocabulary in place of the small one: whatever has `old` entries in front."""

    def resize(x):
        shape = (new, *x.shape[1:]) if x.ndim and x.shape[0] == old else x.shape
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return jax.tree.map(resize, world)
