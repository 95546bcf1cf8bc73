"""Where arrays live: one mesh (data, fsdp, tensor), one table from logical axis names to mesh axes.

A stage program wants three layouts of the same parameters, and moves them inside the program:

    stored    matrices cut over fsdp and tensor: parameters, optimizer state and gradients between uses
    rollout   cut over tensor alone, rows over data and fsdp: a decoding step reads the weights and gathers none
    update    "fsdp": each layer is gathered whole when it runs, rows over all three axes
              "tensor": cut over tensor, rows over data and fsdp, and between blocks their tokens over tensor, for
              models and contexts too large for one
    replicated  an embedding model of the store: whole on every device, rows over data and fsdp

A `Layout` names the mesh axes of each logical axis. Functions that take one work unchanged on a single device, where
LOCAL says nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # axes that the rollout's rows are cut over
Axes = tuple[str, ...]

# Logical axis -> mesh axes, by layout. Names that are in no table are an error.
WHOLE: dict[str, Axes] = {name: () for name in ("layers", "norm", "head_dim", "lora", "sequence")}
TENSOR: dict[str, Axes] = {name: ("tensor",) for name in ("vocab", "heads", "kv_heads", "mlp")}
RULES: dict[str, dict[str, Axes]] = {
    "stored": WHOLE | TENSOR | {"embed": ("fsdp",), "rows": ROWS, "tokens": ROWS},
    "rollout": WHOLE | TENSOR | {"embed": (), "rows": ROWS, "tokens": AXES},
    "update_tensor": WHOLE | TENSOR | {"embed": (), "rows": ROWS, "tokens": ROWS, "sequence": ("tensor",)},
    "replicated": WHOLE | dict.fromkeys(TENSOR, ()) | {"embed": (), "rows": ROWS, "tokens": ROWS},
    "update_fsdp": WHOLE | dict.fromkeys(TENSOR, ()) | {"embed": (), "rows": AXES, "tokens": AXES},
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the row of RULES that arrays follow on it; hashable, so that it can be a static argument."""

    mesh: Mesh | None = None
    rules: str = "stored"

    def axes(self, name: str | None) -> Axes:
        """Mesh axes of a logical axis; none for None. Raises ValueError for a name that the table lacks."""
        if name is None:
            return ()
        if name not in RULES[self.rules]:
            raise ValueError(f"no rule for the logical axis {name!r}; there are {sorted(RULES[self.rules])}")
        return RULES[self.rules][name]

    def spec(self, *names: str | None) -> PartitionSpec:
        """The partition of an array whose axes have these logical names. Two of them on one mesh axis is an error."""
        axes = [self.axes(name) for name in names]
        used = [axis for group in axes for axis in group]
        if len(set(used)) < len(used):
            raise ValueError(f"{names} put a mesh axis of {used} to use twice ({self.rules})")
        return PartitionSpec(*(group if len(group) > 1 else group[0] if group else None for group in axes))

    def sharding(self, *names: str | None) -> NamedSharding:
        """The sharding of an array whose axes have these logical names; needs a mesh."""
        return NamedSharding(self.mesh, self.spec(*names))

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """`x` laid out by the logical names of its axes; as it is on a single device."""
        if not self.is_spread:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(*names))

    def ways(self, name: str) -> int:
        """Pieces that a logical axis is cut into."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes(name)) if self.mesh is not None else 1

    @property
    def is_spread(self) -> bool:
        """Whether there is more than one device."""
        return self.mesh is not None and self.mesh.size > 1

    @property
    def is_on_cpu(self) -> bool:
        """Whether the mesh is of CPUs, whatever machine compiles for it."""
        return self.mesh is not None and self.mesh.devices.flat[0].platform == "cpu"


LOCAL = Layout()


def make_mesh(data: int, fsdp: int, tensor: int, devices: list | None = None) -> Mesh:
    """The mesh of a run. Neighbouring devices share the last axis, which talks most.

    Args:
      data, fsdp, tensor: sizes; one of them may be -1: as many as the devices allow.
      devices: all devices if None. A mesh smaller than these takes the first ones (in one process only).

    Raises ValueError naming the fields if the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = ", ".join(f"mesh.{name} = {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"{asked}: only one of them can be -1 (the devices that the others leave)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if len(devices) % fixed:
            raise ValueError(f"{asked}: the {len(devices)} devices cannot be divided by {fixed}")
        sizes[free[0]] = len(devices) // fixed
    count = math.prod(sizes.values())
    if count > len(devices):
        raise ValueError(f"{asked}: that is {count} devices, and there are {len(devices)}; one size can be -1")
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(f"{asked}: that is {count} of {len(devices)} devices; with several processes all must be used")
    grid = arrange(devices[:count], tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(devices: list, shape: tuple[int, ...]) -> np.ndarray:
    """Devices as an array of the mesh's shape; on TPUs so that neighbours on an axis are neighbours in the torus."""
    if devices[0].platform == "tpu":
        from jax.experimental import mesh_utils

        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices, dtype=object).reshape(shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_stored(params: Any, axes: Any, mesh: Mesh | None) -> Any:
    """Arrays like the parameters, brought to where these are stored."""
    keep = lambda names, x: Layout(mesh, "stored").constrain(x, *names)  # noqa: E731
    return jax.tree.map(keep, axes, params, is_leaf=lambda x: isinstance(x, tuple))


def rows(mesh: Mesh) -> NamedSharding:
    """The leading axis over data and fsdp: everything that has one entry a rollout."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same in every process, as global arrays; each process fills its own devices."""

    def place(x):
        x = np.asarray(x)
        with jax.transfer_guard_host_to_device("allow"):  # as explicit as device_put, which cannot do this
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.device_put(tree, sharding) if sharding.is_fully_addressable else jax.tree.map(place, tree)


def param_shardings(axes: Any, layout: Layout) -> Any:
    """The shardings of parameters whose logical axes are given as a tree of tuples (models.qwen.logical_axes)."""
    return jax.tree.map(lambda names: layout.sharding(*names), axes, is_leaf=lambda x: isinstance(x, tuple))


def lay_out(params: Any, axes: Any, layout: Layout, dtype: jnp.dtype) -> Any:
    """Parameters cast to `dtype`, then moved to a layout (in this order: half the bytes travel).

    Args:
      axes: the tree of `params` with a tuple of logical axis names in place of each array.
    """
    if not layout.is_spread:
        return params
    move = lambda names, x: _move(x, names, layout, dtype)  # noqa: E731
    return jax.tree.map(move, axes, params, is_leaf=lambda x: isinstance(x, tuple))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _move(x: jax.Array, names: tuple, layout: Layout, dtype: jnp.dtype) -> jax.Array:
    return layout.constrain(x.astype(dtype), *names)


def _move_forward(x, names, layout, dtype):
    return _move(x, names, layout, dtype), jnp.zeros((0,), x.dtype)


def _move_backward(names, layout, dtype, like, gradient):
    """Each device's part of the gradient goes straight to where it is stored: a reduce-scatter, not an all-reduce."""
    return (Layout(layout.mesh, "stored").constrain(gradient.astype(like.dtype), *names),)


_move.defvjp(_move_forward, _move_backward)


def by_rows(layout: Layout, function: Callable, sliced: tuple, whole: tuple = ()) -> Any:
    """`function(*sliced, *whole)` on each device's rows by itself: nothing in it crosses devices.

    For what is a function of one row at a time (memory, context, environment): every array in `sliced` and in the
    result has the rows as its leading axis; `whole` is the same everywhere. Devices that share rows repeat the work.
    """
    if not layout.is_spread:
        return function(*sliced, *whole)
    cut = PartitionSpec(ROWS)
    specs = (*(cut for _ in sliced), *(PartitionSpec() for _ in whole))
    return jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=cut, check_vma=False)(*sliced, *whole)
