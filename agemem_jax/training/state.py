"""The optimizer, and the train state made from scratch or around loaded weights."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from agemem_jax import sharding
from agemem_jax.models import lora, qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.sharding import Layout
from agemem_jax.types import TrainState


@dataclass(frozen=True)
class Optimizer:
    """How a gradient changes parameters: new = old - rate x direction."""

    direction: optax.GradientTransformation  # from a gradient to what is subtracted, but for the rate
    rate: Callable[[jax.Array], jax.Array]  # of an update, [] int32 from 0 -> [] float32


def make_optimizer(optim) -> Optimizer:
    """AdamW after clipping by global norm; `optim` is config.optim.

    The rate rises linearly to `learning_rate`, which update number `warmup_updates` is the first to have, and stays. It
    goes by updates: all epochs of one have the same rate, and updates that are skipped count too.
    """

    def rate(update: jax.Array) -> jax.Array:
        warm = jnp.minimum(1.0, (update + 1) / float(optim.warmup_updates)) if optim.warmup_updates else 1.0
        return jnp.float32(optim.learning_rate) * warm

    return Optimizer(adamw(optim.max_grad_norm, optim.weight_decay, optim.b1, optim.b2), rate)


def adamw(max_grad_norm: float, weight_decay: float, b1: float = 0.9, b2: float = 0.999):
    """The direction of AdamW after clipping by global norm."""
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(b1, b2), optax.add_decayed_weights(weight_decay)
    )


def master_copy(params: dict) -> dict | None:
    """Parameters in float32 if they are narrower, for the optimizer to work on; None if they are not.

    A step of 1e-6 is lost in a bfloat16 parameter of 0.02, whose neighbours are 1e-4 away.
    """
    if all(x.dtype.itemsize >= 4 for x in jax.tree.leaves(params)):
        return None
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def new_state(params: dict, optimizer: Optimizer) -> TrainState:
    """A state at update 0, on the mesh of its parameters.

    `params` become its own: the programs donate their state, so they are gone after the first update.
    """
    master = master_copy(params)
    opt_state = optimizer.direction.init(params if master is None else master)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, master=master)
    home = jax.tree.leaves(params)[0].sharding
    if not isinstance(home, NamedSharding):
        return state
    # Moments lie where their parameters do; counters, which begin on one device, are wanted everywhere.
    everywhere = sharding.replicated(home.mesh)
    return jax.tree.map(lambda x: x if x.ndim else sharding.put(x, everywhere), state)


@jax.named_scope("optimizer")
def descend(state: TrainState, optimizer: Optimizer, gradient: dict) -> TrainState:
    """The state after one step; `step`, which counts updates, stays.

    gradient: float32, in the structure of the parameters. The new parameters are the new master, rounded, if there is
    one.
    """
    old = state.params if state.master is None else state.master
    direction, opt_state = optimizer.direction.update(gradient, state.opt_state, old)
    rate = optimizer.rate(state.step)
    new = jax.tree.map(lambda x, by: x - rate * by, old, direction)
    if state.master is None:
        return state.replace(params=new, opt_state=opt_state)
    params = jax.tree.map(lambda x, narrow: x.astype(narrow.dtype), new, state.params)
    return state.replace(params=params, opt_state=opt_state, master=new)


def init_adapters(model: ModelConfig, mesh: Mesh, seed: int) -> dict:
    """The adapters of `model.lora` as they begin, stored over the mesh."""
    init = lambda key: lora.trained(qwen.init_params(model, key), model.lora)  # noqa: E731
    where = lora.trained(param_shardings(model, mesh), model.lora)
    return jax.jit(init, out_shardings=where)(jax.random.key(seed))


def param_shardings(model: ModelConfig, mesh: Mesh) -> dict:
    """Where each parameter is stored, adapters included: a tree of NamedSharding."""
    return sharding.param_shardings(qwen.logical_axes(model), Layout(mesh, "stored"))


def state_shapes(model: ModelConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """ShapeDtypeStructs of a train state, with where each array lies: master and moments beside their parameters."""
    params = jax.eval_shape(lambda key: qwen.init_params(model, key), jax.random.key(0))
    params, where = (lora.trained(tree, model.lora) for tree in (params, param_shardings(model, mesh)))
    everywhere = sharding.replicated(mesh)
    put = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
    master = jax.eval_shape(master_copy, params)
    init = optimizer.direction.init
    moments = optax.tree_utils.tree_map_params(
        init, put, jax.eval_shape(init, params if master is None else master), where,
        transform_non_params=lambda x: put(x, everywhere),
    )  # fmt: skip
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
        params=jax.tree.map(put, params, where),
        opt_state=moments,
        master=None if master is None else jax.tree.map(put, master, where),
    )


def state_shardings(model: ModelConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Where each array of a train state lies."""
    return jax.tree.map(lambda x: x.sharding, state_shapes(model, optimizer, mesh))
