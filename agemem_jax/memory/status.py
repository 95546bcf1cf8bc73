"""How an operation says what became of it."""

import jax
import jax.numpy as jnp

from agemem_jax.types import Status


def first_failure(on: jax.Array, *cases: tuple[jax.Array, Status]) -> jax.Array:
    """Status `[B]` int32: NOT_RUN where not `on`, else that of the first case whose condition `[B]` holds, else OK."""
    status = jnp.full(on.shape, Status.OK, jnp.int32)
    for applies, failure in reversed(((~on, Status.NOT_RUN), *cases)):
        status = jnp.where(applies, failure, status)
    return status
