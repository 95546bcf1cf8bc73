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


def new_state(params: dict, optimizer: optax.GradientTransformation, keep_params: bool = True) -> TrainState:
    """A state at update 0, on the mesh of its parameters.

    The programs donate their state: with `keep_params` it starts from a copy, without it `params` are its own and are
    gone after the first update.
    """
    if keep_params:
        params = jax.tree.map(jnp.array, params)
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


def state_shardings(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where each array of a train state lies: the optimizer's moments beside their parameters."""
    params = jax.eval_shape(lambda key: qwen.init_params(model, key), jax.random.key(0))
    params, where = (lora.trained(tree, model.lora) for tree in (params, param_shardings(model, mesh)))
    everywhere = sharding.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, place: place, jax.eval_shape(optimizer.init, params), where,
        transform_non_params=lambda _: everywhere,
    )  # fmt: skip
    return TrainState(step=everywhere, params=where, opt_state=moments)
