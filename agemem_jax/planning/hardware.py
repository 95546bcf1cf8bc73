"""Chips, slices of them and their interconnect: what a roofline needs to know of a machine that is not here.

Peak numbers are the vendors'. Capacities are what the compiler leaves a program: libtpu 0.0.42 refuses a larger one
with "exceeds available HBM (15.75G)" (v5e), "(95.74G)" (v5p), "(31.25G)" (v6e).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

GIB = 2**30
Coords = tuple[int, ...]


@dataclass(frozen=True)
class Chip:
    """One accelerator, as the compiler sees a device (a v5p chip is one device of two TensorCores)."""

    name: str
    hbm_bytes: float  # that a program may use
    hbm_rate: float  # bytes/s
    flops_rate: float  # bfloat16 matmul FLOP/s
    link_rate: float  # bytes/s in one direction: of one torus link, or of a GPU into its switch
    torus: int  # dimensions of the torus; 0: all devices of a node hang on one switch
    ring_of: int  # a torus dimension closes to a ring if every dimension (or, in 2-D, this one) is a multiple of it
    step_seconds: float  # of one hop of a collective; on a switch: of one collective
    clock_rate: (
        float  # Hz of the matrix unit, to read the compiler's cycle estimates; 0 = it makes none, or it is unknown
    )


# TPU: docs.cloud.google.com/tpu/docs/{v5e,v5p-training,v6e}: "Peak compute per chip (bf16)", "HBM bandwidth per chip",
# "Bidirectional ICI bandwidth (per chip)": 400, 1200 and 800 GB/s over 4, 6 and 4 links, both directions counted, so
# 50, 100 and 100 GB/s a link and direction. Rings and the microsecond a hop: jax-ml.github.io/scaling-book/tpus (a
# wraparound "when we have a full 16 axis, or on training chips when we have an axis which is a multiple of 4"; slices
# of v5p smaller than a 4x4x4 cube have none). Clocks follow from the peaks: FLOP/s over 2 x 128 x 128 x matrix units
# (v5e 4, v5p 8); that of v6e is not published.
# H100 SXM: NVIDIA's data sheet: 989 TFLOP/s dense bf16, 3.35 TB/s, NVLink 900 GB/s (450 each way). Its 80 GB are 81,559
# MiB in nvidia-smi, of which JAX takes XLA_PYTHON_CLIENT_MEM_FRACTION, here 0.92. 10 us a collective is our assumption.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 15.75 * GIB, 819e9, 197e12, 50e9, 2, 16, 1e-6, 1.5e9),
        Chip("v5p", 95.74 * GIB, 2765e9, 459e12, 100e9, 3, 4, 1e-6, 1.75e9),
        Chip("v6e", 31.25 * GIB, 1638e9, 918e12, 100e9, 2, 16, 1e-6, 0.0),
        Chip("h100", 0.92 * 81559 * 2**20, 3350e9, 989e12, 450e9, 0, 0, 10e-6, 0.0),
    )
}
# What the CUDA compiler wants to know of a GPU that is not here (XLA's own spec of an H100 SXM, without what only its
# cost model reads).
H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
NODE = 8  # GPUs on one NVLink switch

# The shapes behind the names under which slices are sold: v5e and v6e count chips, v5p counts TensorCores (two a chip).
SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"},
}


@dataclass(frozen=True)
class Slice:
    """Connected chips: a torus of `shape`, or `shape == (n,)` GPUs of one node."""

    chip: Chip
    shape: Coords

    @property
    def size(self) -> int:
        """Chips."""
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """The name under which libtpu knows it, e.g. "v5p:2x2x4"."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def is_ring(self, dim: int) -> bool:
        """Whether a dimension of the torus closes."""
        sizes = self.shape if self.chip.torus == 3 else (self.shape[dim],)
        return all(size % self.chip.ring_of == 0 for size in sizes)


def parse_slice(text: str) -> Slice:
    """A slice from "v5p:4x4x4", "h100:8", or a sold name such as "v5e-64" or "v5p-16".

    Raises ValueError that says what the forms are.
    """
    name, mark, size = text.partition(":" if ":" in text else "-")
    chip = CHIPS.get(name)
    if chip is None or not mark:
        raise ValueError(f"topology {text!r}: give CHIP:SHAPE or CHIP-COUNT, e.g. v5p:2x2x4; chips are {sorted(CHIPS)}")
    if mark == "-" and chip.torus:
        if not size.isdigit():
            raise ValueError(f"topology {text!r}: after the dash comes a number, e.g. {name}-16")
        chips = int(size) // (2 if chip.torus == 3 else 1)
        if chips not in SHAPES[chip.torus]:
            raise ValueError(f"topology {text!r}: no usual slice has {chips} chips; give the shape, e.g. {name}:4x4")
        size = SHAPES[chip.torus][chips]
    parts = size.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"topology {text!r}: {size!r} is no shape, e.g. {'4x4x4' if chip.torus == 3 else '8'}")
    shape = tuple(map(int, parts))
    if len(shape) != max(chip.torus, 1):
        raise ValueError(f"topology {text!r}: a slice of {name} has {max(chip.torus, 1)} dimensions, not {len(shape)}")
    if not chip.torus and shape[0] > NODE:
        raise ValueError(f"topology {text!r}: GPUs are modelled up to one node of {NODE} on one switch")
    return Slice(chip, shape)


def collective_seconds(
    kind: str, payload: float, group: Sequence[int], where: Slice, coords: Sequence[Coords] | None
) -> float:
    """Time of one collective by itself: bandwidth of the links that the group spans, plus a constant a hop.

    Bidirectional rings (lines where the torus does not close) run over all spanned dimensions at once. A group that
    skips chips on a dimension shares the links with the groups between, so it gets that share of them.

    Args:
      kind: "all-gather", "reduce-scatter", "all-reduce" or "all-to-all".
      payload: bytes: of the gathered array; of the array to be reduced; of what one device sends.
      group: positions in `coords` of the devices that take part.
      coords: of all devices in mesh order; None where there is no torus.
    """
    n, chip = len(group), where.chip
    if n < 2 or payload == 0:
        return 0.0
    share = (n - 1) / n
    if not chip.torus:
        return chip.step_seconds + share * payload / chip.link_rate * (2 if kind == "all-reduce" else 1)
    spans = _spans([coords[i] for i in group], where)
    hops = sum(max(size // 2, 1) if ring else size - 1 for size, ring, _ in spans)
    if kind == "all-to-all":  # half of a dimension's devices send half of their data across its middle
        across = max(size / 4 / (ways * chip.link_rate) for size, _, ways in spans)
        return hops * chip.step_seconds + payload * across
    rounds = 2 if kind == "all-reduce" else 1
    rate = chip.link_rate * sum(ways for _, _, ways in spans)
    return rounds * (hops * chip.step_seconds + share * payload / rate)


def permute_seconds(
    payload: float, pairs: Sequence[tuple[int, int]], where: Slice, coords: Sequence[Coords] | None
) -> float:
    """Time in which every (source, target) of `pairs` sends `payload` bytes, each dimension by its shorter way."""
    chip = where.chip
    pairs = [(a, b) for a, b in pairs if a != b]
    if not pairs or not chip.torus:
        return chip.step_seconds + payload / chip.link_rate if pairs else 0.0
    load: Counter = Counter()  # of each link and direction
    longest = 0
    for source, target in pairs:
        place, hops = list(coords[source]), 0
        for dim, end in enumerate(coords[target]):
            size = where.shape[dim] if dim < len(where.shape) else 1
            way = 1 if end > place[dim] else -1
            if where.is_ring(dim if size > 1 else 0) and abs(end - place[dim]) > size / 2:
                way = -way
            while place[dim] != end:
                load[tuple(place), dim, way] += 1
                place[dim] = (place[dim] + way) % size
                hops += 1
        longest = max(longest, hops)
    return longest * chip.step_seconds + max(load.values()) * payload / chip.link_rate


def _spans(places: list[Coords], where: Slice) -> list[tuple[int, bool, float]]:
    """The torus dimensions that a group spans: (devices along it, whether they are a ring, links' worth of rate)."""
    sets = [sorted(set(axis)) for axis in zip(*places, strict=True)]
    sizes = [len(values) for values in sets]
    if math.prod(sizes) != len(places):  # no box: taken as one line, which is the worst that it can be
        return [(len(places), False, 1.0)]
    spans = []
    for dim, (values, size) in enumerate(zip(sets, sizes, strict=True)):
        if size == 1:
            continue
        ring = where.is_ring(dim) and where.shape[dim] % size == 0 and size > 2
        stride = where.shape[dim] / size if ring else (values[-1] - values[0]) / (size - 1)
        spans.append((size, ring, (2.0 if ring else 1.0) / stride))
    return spans


def coordinates(devices: Sequence) -> list[Coords] | None:
    """Torus coordinates of a mesh's devices, in its order; None where they have none."""
    if not all(hasattr(device, "coords") for device in devices):
        return None
    return [tuple(device.coords) for device in devices]
