"""What each instruction of a compiled program costs, and how often it runs.

XLA's own `cost_analysis` counts the body of a loop once. Here every computation gets its number of runs: known trip
counts are read, those that depend on data come from the caller. All costs are of one device.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

from agemem_jax.planning.hlo import (
    BITS,
    Computation,
    Instruction,
    Module,
    Shape,
    ints,
    iota,
    plain,
    replica_groups,
    scope_of,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain", "get-dimension-size", "while", "conditional", "call", "async-start",
    "async-update", "async-done",
}  # fmt: skip
FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding"}
SLICES = {"dynamic-slice", "slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # operand that holds what is written, into operand 0 in place
ELEMENTWISE = set(
    "abs add and atan2 ceil clamp compare convert divide floor is-finite maximum minimum multiply negate not or "
    "popcnt remainder round-nearest-afz round-nearest-even select shift-left shift-right-arithmetic "
    "shift-right-logical sign subtract xor stochastic-convert count-leading-zeros".split()
)
TINY = 1024  # elements up to which an instruction hides nothing
WEIGH_FLOPS, WEIGH_BYTES = 4e14, 2e12  # rates by which a conditional's most expensive branch is found


# --- costs of one instruction ---


def _flops(computation: Computation, instruction: Instruction) -> float:
    """Matmul FLOPs, two an element and multiply-add, of a dot or a convolution."""
    out = instruction.shapes[0]
    operands = computation.operands(instruction)
    if instruction.opcode == "dot":
        lhs = operands[0].shapes[0].dims
        return 2.0 * out.size * math.prod(lhs[i] for i in instruction.dims("lhs_contracting_dims"))
    lhs, rhs = (o.shapes[0].dims for o in operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    at_lhs, at_rhs, at_out = labels.groups()
    window = _window(instruction.attributes)
    positions = 1.0
    for label in (x for x in at_out if x.isdigit()):
        k = int(label)
        positions *= _positions(
            lhs[at_lhs.index(label)], rhs[at_rhs.index(label)], out.dims[at_out.index(label)],
            window["stride"](k), window["pad"](k), window["lhs_dilate"](k), window["rhs_dilate"](k),
        )  # fmt: skip
    groups = instruction.number("batch_group_count") or 1
    # The kernel's input features are already those of one feature group.
    return 2.0 * positions * lhs[at_lhs.index("b")] / groups * rhs[at_rhs.index("i")] * rhs[at_rhs.index("o")]


def _gemm_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a call of cuBLAS: its result's size times the contracted dimensions of its left operand."""
    found = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', instruction.attributes)
    if found is None:
        return 0.0
    lhs = computation.operands(instruction)[0].shapes[0].dims
    return 2.0 * instruction.shapes[0].size * math.prod(lhs[i] for i in ints(found.group(1)))


def _fmha_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of cuDNN's attention: two matmuls forward and five backward, half of them where it is causal.

    Its operands begin with queries [B, T, heads, head_dim] and keys [B, S, KV heads, head_dim].
    """
    queries, keys = (o.shapes[0] for o in computation.operands(instruction)[:2])
    matmuls = 5 if "Backward" in instruction.attributes else 2
    half = 0.5 if re.search(r'"mask_type":\s*"\w*CAUSAL"', instruction.attributes) else 1.0
    return half * matmuls * 2.0 * queries.size * keys.dims[1]


def _window(attributes: str) -> dict[str, Callable[[int], int]]:
    """Per spatial dimension: stride, low padding and dilations of a convolution."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found.group(1).split()) if found else {}

    def reader(name: str, default: int) -> Callable[[int], int]:
        values = [int(x.split("_")[0]) for x in fields.get(name, "").split("x") if x]
        return lambda k: values[k] if k < len(values) else default

    return {n: reader(n, d) for n, d in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))}


@lru_cache(maxsize=10_000)
def _positions(size: int, window: int, out: int, stride: int, pad: int, dilate: int, spread: int) -> int:
    """Pairs (output, place in the window) that meet an element of the input, not padding and not a dilation's hole."""
    count = 0
    for k in range(window):
        shift = k * spread - pad  # an output o reads o * stride + shift, of which each dilate-th is an element
        first = max(0, -(shift // stride))  # the first that is not before the input
        last = min(out - 1, ((size - 1) * dilate - shift) // stride)
        if last < first:
            continue
        step = dilate // math.gcd(stride, dilate)
        if shift % math.gcd(stride, dilate):
            continue
        while first <= last and (first * stride + shift) % dilate:
            first += 1
        count += (last - first) // step + 1 if first <= last else 0
    return count


def _work(computation: Computation, instruction: Instruction, module: Module) -> tuple[float, float]:
    """(matmul FLOPs, elementwise operations) of an instruction, those of a fusion's inside included."""
    code = instruction.opcode
    if code in ("dot", "convolution"):
        return _flops(computation, instruction), 0.0
    if code in ELEMENTWISE:
        return 0.0, float(instruction.shapes[0].size)
    if code in ("reduce", "reduce-window"):
        return 0.0, float(computation.operands(instruction)[0].shapes[0].size)
    if code == "fusion":
        inner = module.computations[instruction.called["calls"][0]]
        parts = [_work(inner, i, module) for i in inner.instructions.values()]
        return sum(p[0] for p in parts), sum(p[1] for p in parts)
    if code == "custom-call":
        found = re.search(r'"cost_estimate":\s*\{"flops":\s*"?(\d+)', instruction.attributes)
        if found is None and "__cudnn$fmha" in instruction.attributes:
            return _fmha_flops(computation, instruction), 0.0
        if found is None and "gemm" in instruction.attributes:
            return _gemm_flops(computation, instruction), 0.0
        return float(found.group(1)) if found else 0.0, 0.0
    return 0.0, 0.0


def traffic(computation: Computation, instruction: Instruction, module: Module) -> float:
    """HBM bytes that an instruction reads and writes.

    An operand of which only slices are used counts these; an update in place counts what it writes.
    """
    code = instruction.opcode
    if code in FREE or code.endswith("-done") or code.endswith("-update"):
        return 0.0
    operands = computation.operands(instruction)
    written = sum(s.hbm for s in instruction.shapes)
    if code in SLICES:
        cut = instruction.shapes[0].bytes * (operands[0].shapes[0].space == 0)
        return written + cut + sum(s.hbm for o in operands[1:] for s in o.shapes)
    if code in UPDATES:
        update = operands[UPDATES[code]].shapes[0]
        in_hbm = instruction.shapes[0].space == 0
        reads = sum(s.hbm for o in operands[1:] for s in o.shapes)
        return reads + update.bytes * in_hbm * (2 if code == "scatter" else 1)
    if code in ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"):
        arrays = [s for s in instruction.shapes if s.dims]
        moved = min(arrays, key=lambda s: s.size)  # the piece, where the other array is what it is cut from
        return moved.bytes * sum(s.space == 0 for s in arrays[:2])
    if code == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if target and target.group(1) in FREE_CALLS:
            return 0.0
        if found := re.search(r'"cost_estimate":\s*\{[^}]*"bytes_accessed":\s*"?(\d+)', instruction.attributes):
            return float(found.group(1))
        if target and target.group(1).startswith("__cublas"):  # behind its result: a workspace, which it hardly touches
            written = instruction.shapes[0].hbm
    if code == "fusion":
        inner = module.computations[instruction.called["calls"][0]]
        reads = sum(
            _read(inner, inner.parameters[i], operand.shapes[0], module)
            for i, operand in enumerate(operands)
            if len(operand.shapes) == 1 and operand.shapes[0].space == 0
        )
        return reads + sum(w for w, s in zip(_writes(inner, module), instruction.shapes, strict=True) if s.space == 0)
    return written + sum(s.hbm for o in operands for s in o.shapes)


def _read(inner: Computation, name: str, shape: Shape, module: Module) -> float:
    """Bytes of a parameter that a fusion reads."""
    total = 0.0
    for user in inner.users[name]:
        code = user.opcode
        if code in ("bitcast", "convert"):  # what is converted may be cut afterwards
            total += _read(inner, user.name, shape, module)
        elif code in SLICES and user.operands[0] == name:
            total += user.shapes[0].size * shape.bytes / shape.size
        elif code in UPDATES and user.operands[0] == name and _is_result(inner, user):
            continue
        elif code == "fusion":
            nested = module.computations[user.called["calls"][0]]
            total += sum(
                _read(nested, nested.parameters[i], shape, module) for i, o in enumerate(user.operands) if o == name
            )
        elif code == "tuple" or collective_kind(user) or _is_async_marker(user):
            continue
        else:
            return shape.bytes
    return min(total, shape.bytes)


def _is_result(inner: Computation, instruction: Instruction) -> bool:
    """Whether an instruction's value is (part of) the root's, unchanged and nothing else."""
    return instruction.name == inner.root or all(
        user.opcode in ("bitcast", "tuple") and _is_result(inner, user) for user in inner.users[instruction.name]
    )


def _writes(inner: Computation, module: Module) -> list[float]:
    """Bytes that a fusion writes, for each array of its result."""

    def write(instruction: Instruction) -> list[float]:
        code = instruction.opcode
        if code == "tuple":
            return [w for operand in inner.operands(instruction) for w in write(operand)]
        if code == "bitcast":
            inside = write(inner.operands(instruction)[0])
            return inside if len(inside) == 1 else [s.bytes for s in instruction.shapes]
        if code in UPDATES:
            return [inner.operands(instruction)[UPDATES[code]].shapes[0].bytes]
        if code == "parameter" or collective_kind(instruction) or _is_async_marker(instruction):
            return [0.0 for _ in instruction.shapes]
        if code == "fusion":
            return _writes(module.computations[instruction.called["calls"][0]], module)
        return [s.bytes for s in instruction.shapes]

    return write(inner.instructions[inner.root])


def _is_async_marker(instruction: Instruction) -> bool:
    """Whether it only marks where a chain of fusions starts or ends a collective."""
    return instruction.opcode == "custom-call" and "AsyncCollective" in instruction.attributes


def collective_kind(instruction: Instruction) -> str | None:
    """The collective that an instruction is or starts."""
    code = instruction.opcode.removesuffix("-start")
    return code if code in COLLECTIVES else None


# --- collectives ---


@dataclass(frozen=True)
class Collective:
    """One collective of a program."""

    kind: str
    payload: float  # bytes: of the gathered array; of the array to be reduced; of what one device sends
    groups: tuple[tuple[int, ...], ...]  # of positions in the mesh; of a permute: (source, target) pairs
    axis: str  # mesh axes it runs over, e.g. "fsdp" or "data+fsdp"
    overlaps: bool  # whether the schedule starts it early and waits for it later


def axis_of(groups: Sequence[Sequence[int]], mesh: dict[str, int], pairs: bool = False) -> str:
    """The smallest combination of mesh axes that holds the groups: "fsdp", "data+fsdp"; "part of ..." if finer.

    Args:
      mesh: axis sizes in order; devices are numbered in the mesh's order.
      pairs: the groups are a permute's sources and targets.
    """
    axes = [name for name, size in mesh.items() if size > 1]
    asked = {frozenset(g) for g in groups}
    for count in range(len(axes) + 1):
        for some in combinations(axes, count):
            order = iota(list(mesh.values()), [i for i, name in enumerate(mesh) if name not in some]
                          + [i for i, name in enumerate(mesh) if name in some])  # fmt: skip
            size = math.prod(mesh[name] for name in some)
            have = [frozenset(order[i : i + size]) for i in range(0, len(order), size)]
            if asked == set(have):
                return "+".join(some) or "none"
            if all(any(g <= h for h in have) for g in asked):
                return ("" if pairs else "part of ") + "+".join(some)
    return "unknown"


# --- the walk ---


@dataclass(frozen=True)
class Cost:
    """What an instruction costs each time, and how often it runs. One device's."""

    scope: tuple[str, ...]
    computation: str  # whose schedule it is part of
    name: str
    opcode: str
    times: float
    flops: float  # of matmuls
    vector: float  # elementwise operations
    hbm: float  # bytes
    cycles: float  # the compiler's own estimate; 0 where it makes none
    collective: Collective | None = None


@dataclass(frozen=True)
class Loop:
    """A loop and how often its body was taken to run."""

    scope: str
    trips: float
    source: str  # "program" (a constant), "caller", "bound" (at most so many) or "unknown" (taken as once)


Trips = Callable[[str], float | None]


def walk(module: Module, mesh: dict[str, int], trips: Trips) -> tuple[list[Cost], list[Loop]]:
    """Every instruction that costs something, with the number of times it runs, and the loops that this rests on.

    Of a conditional the most expensive branch is counted.

    Args:
      mesh: axis sizes in order.
      trips: (scope of a loop, control flow's own words left out) -> mean runs of its body each time it is reached, or
        None if the caller does not know. Asked only for loops whose count is not a constant of the program.
    """
    loops: list[Loop] = []
    callers: dict[str, tuple[Computation, Instruction]] = {}

    def visit(name: str, times: float, outer: tuple[str, ...]) -> Iterator[Cost]:
        computation = module.computations[name]
        chained: set[int] = set()
        for instruction in computation.instructions.values():
            code, called = instruction.opcode, instruction.called
            if code == "while":
                callers[called["body"][0]] = callers[called["condition"][0]] = (computation, instruction)
                scope = _loop_scope(module, computation, instruction, outer)
                count, source = _trips(module, callers, computation, instruction)
                if source != "program":
                    told = trips(plain(scope))
                    count, source = (count, source) if told is None else (float(told), "caller")
                loops.append(Loop(plain(scope), count, source))
                yield from visit(called["body"][0], times * count, (*scope, "while", "body"))
                yield from visit(called["condition"][0], times * count, (*scope, "while", "cond"))
                continue
            if code == "conditional":
                roles = ("branch_computations", "true_computation", "false_computation")
                branches = [b for role in roles for b in called.get(role, [])]
                found, kept = [], list(loops)
                for branch in branches:
                    del loops[len(kept) :]
                    found.append((list(visit(branch, times, scope_of(instruction.op_name) or outer)), list(loops)))
                best, loops[:] = max(found, key=lambda f: sum(_weight(c) for c in f[0]))
                yield from best
                continue
            if code in ("call", "async-start"):
                for inner in called.get("calls", []) or re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes):
                    inside = visit(inner, times, scope_of(instruction.op_name) or outer)
                    early = code == "async-start" and _is_early(computation, instruction)
                    yield from (_started(cost, computation.name, early) for cost in inside)
                continue
            yield from cost(computation, instruction, times, outer, chained)

    def cost(computation, instruction, times, outer, chained) -> Iterator[Cost]:
        # A name without a path is the compiler's own, and says nothing of the place.
        scope = scope_of(instruction.op_name) if "/" in instruction.op_name else outer
        found = _collective(module, computation, instruction, mesh)
        if found is not None:
            channel, collective = found
            if channel is not None:  # a chain of fusions does one collective, piece by piece
                collective = None if channel in chained else collective
                chained.add(channel)
            if collective is not None:
                hbm = _collective_hbm(computation, instruction, collective)
                yield Cost(scope, computation.name, instruction.name, collective.kind, times, 0, 0, hbm, 0, collective)
            if instruction.opcode != "fusion" or channel is None:
                return
        flops, vector = _work(computation, instruction, module)
        hbm = traffic(computation, instruction, module)
        cycles = float(instruction.number("estimated_cycles") or 0)
        if flops or vector or hbm or cycles:
            yield Cost(scope, computation.name, instruction.name, instruction.opcode, times, flops, vector, hbm, cycles)

    return list(visit(module.entry, 1.0, ())), loops


def _started(cost: Cost, computation: str, early: bool) -> Cost:
    """The cost of an instruction that another computation calls, as part of that one's schedule."""
    collective = cost.collective and replace(cost.collective, overlaps=early)
    return replace(cost, computation=computation, collective=collective)


def _is_early(computation: Computation, start: Instruction) -> bool:
    """Whether the schedule does something between the start of an asynchronous instruction and the wait for it."""
    at = start
    while not at.opcode.endswith("-done"):
        at = next((u for u in computation.users[at.name] if u.opcode.endswith(("-update", "-done"))), None)
        if at is None:  # waited for in the loop's next run
            return True
    order = list(computation.instructions.values())
    between = order[order.index(start) + 1 : order.index(at)]
    waits = ("-start", "-update", "-done")
    loops = ("while", "conditional", "call")
    busy = (i for i in between if i.opcode in loops or not (i.opcode in FREE or i.opcode.endswith(waits)))
    return any(shape.size > TINY for i in busy for shape in i.shapes)


def _weight(cost: Cost) -> float:
    wire = cost.collective.payload if cost.collective else 0.0
    return cost.times * (cost.flops / WEIGH_FLOPS + (cost.hbm + 10 * wire) / WEIGH_BYTES)


def _collective(
    module: Module, computation: Computation, instruction: Instruction, mesh: dict[str, int]
) -> tuple[int | None, Collective] | None:
    """The collective of an instruction, or inside a fusion, with the channel if it is one piece of a chain."""
    kind, inner, at = collective_kind(instruction), computation, instruction
    channel = None
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called["calls"][0]]
        inside = [i for i in inner.instructions.values() if collective_kind(i)]
        if not inside:
            return None
        at = inside[0]
        kind = collective_kind(at)
        if "chain_id" in at.attributes or any(map(_is_async_marker, inner.instructions.values())):
            channel = at.number("channel_id")
        elif kind == "all-reduce" and inner.instructions[inner.root].opcode == "dynamic-slice":
            kind = "reduce-scatter"
    if kind is None:
        return None
    groups = replica_groups(at.attributes, module.devices)
    arrays = [s for o in inner.operands(at) for s in o.shapes]
    payload = sum(s.size * BITS.get(s.dtype, 8) / 8 for s in arrays)
    if kind == "all-gather":
        payload *= len(groups[0])
    overlaps = channel is not None or (at.opcode.endswith("-start") and _is_early(inner, at))
    return channel, Collective(kind, payload, groups, axis_of(groups, mesh, kind == "collective-permute"), overlaps)


def _collective_hbm(computation: Computation, instruction: Instruction, collective: Collective) -> float:
    """HBM bytes that a collective reads and writes on one device."""
    size = len(collective.groups[0])
    reads, writes = {"all-gather": (1 / size, 1.0), "reduce-scatter": (1.0, 1 / size)}.get(collective.kind, (1.0, 1.0))
    sources = [s for o in computation.operands(instruction) for s in o.shapes if s.dims]
    near = not sources or any(s.space == 0 for s in sources)
    far = any(s.space == 0 for s in instruction.shapes if s.dims)
    return collective.payload * (reads * near + writes * far)


def _loop_scope(module: Module, computation: Computation, loop: Instruction, outer: tuple[str, ...]) -> tuple[str, ...]:
    """The scope in which a loop was written, without its own "while"."""
    names = [loop.op_name, *(u.op_name for u in computation.users[loop.name])]
    for words in map(scope_of, names):
        if words and words[-1] == "while":
            return words[:-1]
    votes: Counter = Counter()  # of the body's instructions, for the innermost loop that they name
    for instruction in _deep(module, loop.called["body"][0]):
        words = scope_of(instruction.op_name)
        marks = [i for i in range(len(words) - 1) if words[i : i + 2] == ("while", "body")]
        if marks:
            votes[words[: marks[-1]]] += 1
    return votes.most_common(1)[0][0] if votes else outer


def _deep(module: Module, name: str) -> Iterator[Instruction]:
    for instruction in module.computations[name].instructions.values():
        yield instruction
        if instruction.opcode == "fusion":
            yield from _deep(module, instruction.called["calls"][0])


def _trips(module: Module, callers: dict, computation: Computation, loop: Instruction) -> tuple[float, str]:
    """How often a loop runs, and where that comes from: stated by XLA, or read from a condition `i < constant`."""
    if (known := loop.attributes.find('"known_trip_count"')) >= 0:
        return float(re.search(r"\d+", loop.attributes[known:]).group()), "program"
    condition = module.computations[loop.called["condition"][0]]
    body = module.computations[loop.called["body"][0]]
    root = condition.instructions[condition.root]
    bounds = []
    for name in condition.instructions:
        compare = condition.instructions[name]
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            continue
        at, bound = condition.operands(compare)
        index, limit = _element(condition, at), _constant(module, callers, condition, bound)
        if index is None or limit is None:
            continue
        tuple_of = computation.operands(loop)[0]
        first = None
        if tuple_of.opcode == "tuple":
            first = _constant(module, callers, computation, computation.operands(tuple_of)[index])
        step = _step(module, callers, body, index)
        bounds.append((compare.name == root.name, max(0.0, math.ceil((limit - (first or 0)) / (step or 1)))))
    if not bounds:
        return 1.0, "unknown"
    exact, count = bounds[0]
    return count, "program" if exact and len(bounds) == 1 else "bound"


def _through(computation: Computation, instruction: Instruction) -> Instruction:
    """What an instruction is a mere copy of."""
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start") and instruction.operands:
        instruction = computation.operands(instruction)[0]
    return instruction


def _element(computation: Computation, instruction: Instruction) -> int | None:
    """Which element of the loop's state an instruction is."""
    instruction = _through(computation, instruction)
    if instruction.opcode != "get-tuple-element" or computation.operands(instruction)[0].opcode != "parameter":
        return None
    return instruction.number("index")


def _constant(module: Module, callers: dict, computation: Computation, instruction: Instruction) -> int | None:
    """An integer constant, also one that is handed into the loop as part of its state."""
    instruction = _through(computation, instruction)
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    index = _element(computation, instruction)
    if index is None or computation.name not in callers:
        return None
    outer, loop = callers[computation.name]
    state = outer.operands(loop)[0]
    if state.opcode != "tuple" or not _carried(module.computations[loop.called["body"][0]], index):
        return None
    return _constant(module, callers, outer, outer.operands(state)[index])


def _carried(body: Computation, index: int) -> bool:
    """Whether the body leaves an element of the state as it is."""
    root = body.instructions[body.root]
    return root.opcode == "tuple" and _element(body, body.operands(root)[index]) == index


def _step(module: Module, callers: dict, body: Computation, index: int) -> int | None:
    """By how much the body raises an element of its state."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    add = _through(body, body.operands(root)[index])
    if add.opcode != "add":
        return None
    sides = body.operands(add)
    steps = [_constant(module, callers, body, side) for side in sides]
    counts = [_element(body, side) == index for side in sides]
    return next((s for s, other in zip(steps, reversed(counts), strict=True) if other and s), None)
