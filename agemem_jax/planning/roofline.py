"""How long a compiled stage program takes on a slice, by what its instructions cost: a roofline, no measurement.

Of each phase (a named scope) three times are given, from the hopeful to the careful:

    overlapped  max(compute, HBM, interconnect): everything hides behind what is slowest
    predicted   instruction after instruction, each max(its FLOPs / peak, its bytes / HBM rate), and collectives that
                the schedule does not start early added whole; those it does, and prefetches, hide behind the work of
                the same loop body. This is the figure that speeds are made from.
    serial      compute + HBM + interconnect: nothing overlaps

All take attention kernels at KERNEL_SHARE of the peak. None knows launch gaps, the vector unit or a matrix unit that is
not full. `compiler_s` is the TPU compiler's own estimate of its kernels, which does (and takes HBM for slower than the
vendor does); collectives are not in it.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from agemem_jax.planning.costs import FREE, Collective, Cost
from agemem_jax.planning.hardware import GIB, Coords, Slice, collective_seconds, permute_seconds
from agemem_jax.planning.hlo import Module, plain, scope_of

Phases = dict[str, Sequence[str]]  # name -> scopes; the first that begins an instruction's scope takes it
OTHER = "other"
KERNEL_SHARE = 0.5  # of the peak, that attention kernels (splash, cuDNN's) are taken to reach


def seconds_of(collective: Collective, where: Slice, coords: list[Coords] | None) -> float:
    """Time of one collective by itself: of its slowest group."""
    return _seconds(collective, where, tuple(coords) if coords else None)


@lru_cache(maxsize=10_000)
def _seconds(collective: Collective, where: Slice, coords: tuple[Coords, ...] | None) -> float:
    if collective.kind == "collective-permute":
        return permute_seconds(collective.payload, collective.groups, where, coords)
    kind = collective.kind.removeprefix("ragged-")
    return max(collective_seconds(kind, collective.payload, group, where, coords) for group in collective.groups)


def phase_of(cost: Cost, phases: Phases) -> str:
    """The first phase that has a scope which begins the instruction's, words of control flow left out."""
    name = plain(cost.scope) + "/"
    return next((p for p, scopes in phases.items() if any(name.startswith(s + "/") for s in scopes)), OTHER)


def phase_times(costs: list[Cost], phases: Phases, where: Slice, coords: list[Coords] | None) -> list[dict]:
    """Work and time of every phase that the program has, in the order of `phases`, "other" last.

    Args:
      costs: of one device, from `walk` (costs.py).
      coords: torus coordinates in mesh order; None for GPUs.
    """
    chip = where.chip
    bodies: dict[str, dict[str, list[Cost]]] = defaultdict(lambda: defaultdict(list))
    for cost in costs:
        bodies[phase_of(cost, phases)][cost.computation].append(cost)
    result = []
    for name in (*phases, OTHER):
        if name not in bodies:
            continue
        mine = [c for body in bodies[name].values() for c in body]
        flops = sum(c.times * c.flops for c in mine)
        hbm = sum(c.times * c.hbm for c in mine)
        wire = sum(c.times * seconds_of(c.collective, where, coords) for c in mine if c.collective)
        compute = sum(c.times * _compute(c, where) for c in mine)
        terms = {"compute": compute, "HBM": hbm / chip.hbm_rate, "interconnect": wire}
        cycles = sum(c.times * c.cycles for c in mine)
        result.append(
            {
                "phase": name,
                "flops": flops,
                "bytes": hbm,
                "wire_bytes": sum(c.times * _wire(c.collective) for c in mine if c.collective),
                "compute_s": terms["compute"],
                "hbm_s": terms["HBM"],
                "interconnect_s": terms["interconnect"],
                "binds": max(terms, key=terms.get),
                "overlapped_s": max(terms.values()),
                "predicted_s": sum(_schedule(body, where, coords) for body in bodies[name].values()),
                "serial_s": sum(terms.values()),
                "compiler_s": cycles / chip.clock_rate if chip.clock_rate and cycles else None,
            }
        )
    return result


def _schedule(body: list[Cost], where: Slice, coords: list[Coords] | None) -> float:
    """Predicted time of one phase's instructions in one computation, all runs of it."""
    chip = where.chip
    work = moved = early = exposed = 0.0
    for cost in body:
        moved += cost.times * cost.hbm / chip.hbm_rate
        if cost.collective:
            time = cost.times * seconds_of(cost.collective, where, coords)
            early, exposed = (early + time, exposed) if cost.collective.overlaps else (early, exposed + time)
        elif not cost.opcode.endswith("-start"):
            work += cost.times * max(_compute(cost, where), cost.hbm / chip.hbm_rate)
    return max(work, moved, early) + exposed


def _compute(cost: Cost, where: Slice) -> float:
    """Seconds of an instruction's matmuls, one run: at the peak, or what of it an attention kernel reaches."""
    is_kernel = cost.opcode == "custom-call" and "dot_product_attention" in "/".join(cost.scope[-1:])
    return cost.flops / where.chip.flops_rate / (KERNEL_SHARE if is_kernel else 1.0)


def _wire(collective: Collective) -> float:
    """Bytes that one device sends, by the ring algorithm."""
    n = len(collective.groups[0])
    if collective.kind == "collective-permute":
        return collective.payload
    return collective.payload * (n - 1) / n * (2 if collective.kind == "all-reduce" else 1)


def collectives(costs: list[Cost], phases: Phases, where: Slice, coords: list[Coords] | None) -> list[dict]:
    """Collectives of a program, those of the same phase, kind, axis and size in one line, the longest first."""
    table: dict[tuple, dict] = {}
    for cost in costs:
        if (c := cost.collective) is None:
            continue
        key = (phase_of(cost, phases), c.kind, c.axis, c.payload, c.overlaps)
        line = table.setdefault(
            key,
            {
                "phase": key[0],
                "kind": c.kind,
                "axis": c.axis,
                "devices": 2 if c.kind == "collective-permute" else len(c.groups[0]),
                "bytes": c.payload,
                "overlaps": c.overlaps,
                "times": 0.0,
                "seconds": 0.0,
                "scope": plain(cost.scope),
            },
        )
        line["times"] += cost.times
        line["seconds"] += cost.times * seconds_of(c, where, coords)
    return sorted(table.values(), key=lambda line: -line["seconds"])


def costliest(costs: list[Cost], phases: Phases, where: Slice, coords: list[Coords] | None, count: int) -> list[dict]:
    """The scopes on which most predicted time goes (the primitive's name included), longest first."""
    chip, table = where.chip, defaultdict(lambda: defaultdict(float))
    for cost in costs:
        line = table[phase_of(cost, phases), plain(cost.scope), cost.collective.kind if cost.collective else ""]
        line["compute_s"] += cost.times * _compute(cost, where)
        line["hbm_s"] += cost.times * cost.hbm / chip.hbm_rate
        if cost.collective:
            line["interconnect_s"] += cost.times * seconds_of(cost.collective, where, coords)
        line["seconds"] += cost.times * max(
            _compute(cost, where),
            cost.hbm / chip.hbm_rate,
            seconds_of(cost.collective, where, coords) if cost.collective else 0.0,
        )
    lines = sorted(table.items(), key=lambda item: -item[1]["seconds"])[:count]
    return [{"phase": p, "scope": s, "collective": k, **line} for (p, s, k), line in lines]


def arguments(module: Module) -> dict[str, float]:
    """GiB per chip of the program's arguments, by the first two parts of their paths, e.g. "state.params"."""
    entry, table = module.computations[module.entry], defaultdict(float)
    for name in entry.parameters:
        parameter = entry.instructions[name]
        path = parameter.op_name.replace("\\'", "'") or name
        words = [w for w in path.replace("[", ".").replace("]", "").replace("'", "").split(".") if w]
        table[".".join(words[:2])] += sum(s.hbm for s in parameter.shapes) / GIB
    return dict(sorted(table.items(), key=lambda item: -item[1]))


def largest_arrays(module: Module, count: int) -> list[dict]:
    """The largest arrays in HBM that the program makes, one line a shape and scope. Not all are alive at once."""
    entry, found = module.computations[module.entry], {}
    for computation in _scheduled(module, module.entry, set()):
        for instruction in computation.instructions.values():
            if instruction.opcode in FREE or (computation is entry and instruction.opcode == "parameter"):
                continue
            for shape in instruction.shapes:
                scope = plain(scope_of(instruction.op_name)) or instruction.opcode
                text = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
                found[text, scope] = max(found.get((text, scope), 0.0), shape.hbm / GIB)
    lines = sorted(found.items(), key=lambda item: -item[1])[:count]
    return [{"shape": shape, "scope": scope, "gib": gib} for (shape, scope), gib in lines]


def _scheduled(module: Module, name: str, seen: set[str]):
    """Computations whose instructions run by themselves: not the insides of fusions."""
    if name in seen:
        return
    seen.add(name)
    yield module.computations[name]
    for instruction in module.computations[name].instructions.values():
        if instruction.opcode in ("while", "conditional", "call", "async-start"):
            for names in instruction.called.values():
                for inner in names:
                    yield from _scheduled(module, inner, seen)


def model_flops(
    trained_tokens: float, parameters: float, layers: int, heads: int, head_dim: int, mean_context: float
) -> float:
    """FLOPs that an update needs by the model's own size, forward and backward: 6 a parameter and token, and attention.

    Attention: 12 layers x heads x head_dim a token and token attended to (two matmuls, two FLOPs, and twice that again
    backward). Recomputed layers are not counted: remat lowers the utilisation.

    Args:
      trained_tokens: positions that the update runs over, padding not counted.
      parameters: that take part in matmuls: with the head, without the embedding table.
      mean_context: tokens that a token attends to, on average (half the length, where it is causal).
    """
    return trained_tokens * (6.0 * parameters + 12.0 * layers * heads * head_dim * mean_context)


def utilisation(flops: float, seconds: float, where: Slice) -> float:
    """Share of the slice's peak that `flops` in `seconds` come to."""
    return flops / (seconds * where.chip.flops_rate * where.size)


def bandwidth_share(bytes_per_chip: float, seconds: float, where: Slice) -> float:
    """Share of the HBM rate that reading just `bytes_per_chip` in `seconds` comes to.

    For decoding: weights once a step, and keys and values of the context, as one chip holds them.
    """
    return bytes_per_chip / (seconds * where.chip.hbm_rate)
