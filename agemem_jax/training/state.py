"""The optimizer, and the train state made from scratch or around loaded weights."""

import jax
import jax.numpy as jnp
import optax

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
    """A state at update 0.

    The programs donate their state: with `keep_params` it starts from a copy, without it `params` are its own and are
    gone after the first update.
    """
    if keep_params:
        params = jax.tree.map(jnp.array, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))
