"""The optimizer, and the train state made from scratch or around loaded weights."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from agemem_jax import sharding
from agemem_jax.models import lora, qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.sharding import Layout
from agemem_jax.types import TrainState


def make_optimizer(optim) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; `optim` is config.optim. The rate rises linearly, then stays."""
    rate = optim.learning_rate
    if optim.warmup_updates:
        rate = optax.linear_schedule(0.0, optim.learning_rate, optim.warmup_updates)
    return optax.chain(
        optax.clip_by_global_norm(optim.max_grad_norm),
        optax.adamw(rate, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay),
    )


def new_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at update 0, on the mesh of its parameters.

    `params` become its own: the programs donate their state, so they are gone after the first update.
    """
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))
    home = jax.tree.leaves(params)[0].sharding
    if not isinstance(home, NamedSharding):
        return state
    # Moments lie where their parameters do; counters, which begin on one device, are wanted everywhere.
    everywhere = sharding.replicated(home.mesh)
    return jax.tree.map(lambda x: x if x.ndim else sharding.put(x, everywhere), state)


def init_adapters(model: ModelConfig, mesh: Mesh, seed: int) -> dict:
    """The adapters of `model.lora` as they begin, stored over the mesh."""
    init = lambda key: lora.trained(qwen.init_params(model, key), model.lora)  # noqa: E731
    where = lora.trained(param_shardings(model, mesh), model.lora)
    return jax.jit(init, out_shardings=where)(jax.random.key(seed))


def param_shardings(model: ModelConfig, mesh: Mesh) -> dict:
    """Where each parameter is stored, adapters included: a tree of NamedSharding."""
    return sharding.param_shardings(qwen.logical_axes(model), Layout(mesh, "stored"))


def state_shapes(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """ShapeDtypeStructs of a train state, with where each array lies: moments beside their parameters."""
    params = jax.eval_shape(lambda key: qwen.init_params(model, key), jax.random.key(0))
    params, where = (lora.trained(tree, model.lora) for tree in (params, param_shardings(model, mesh)))
    everywhere = sharding.replicated(mesh)
    put = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
    moments = optax.tree_utils.tree_map_params(
        optimizer, put, jax.eval_shape(optimizer.init, params), where,
        transform_non_params=lambda x: put(x, everywhere),
    )  # fmt: skip
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(step=step, params=jax.tree.map(put, params, where), opt_state=moments)


def state_shardings(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where each array of a train state lies."""
    return jax.tree.map(lambda x: x.sharding, state_shapes(model, optimizer, mesh))
