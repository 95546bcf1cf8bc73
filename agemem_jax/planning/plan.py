"""From compiled stage programs to one dictionary: what fits, what binds, what it yields. See page.py for its text."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence

from agemem_jax.planning import hlo, roofline
from agemem_jax.planning.costs import Trips, walk
from agemem_jax.planning.hardware import GIB, H100_TARGET, Slice, coordinates

DEEPEST = 12  # lines of the tables of arrays and of scopes


def topology_devices(where: Slice) -> list:
    """The devices of a slice that is not here, to make a mesh of (sharding.make_mesh) and compile for.

    Raises RuntimeError where the compiler is not installed: libtpu, or JAX's CUDA plugin (which needs no GPU for this).
    """
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no metadata server which TPU this machine has
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is opened, so programs may compile side by side
    # Without a TPU libtpu complains that it does not find these; the slice is that of `where`, whatever they say.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    name, extra, options = where.topology, "tpu", {}
    if not where.chip.torus:
        extra, options = "cuda", {"target_config": H100_TARGET, "topology": f"1x1x{where.size}"}
    try:
        platform = "tpu" if where.chip.torus else "cuda"
        return list(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)
    except (NotImplementedError, RuntimeError) as error:
        if has_compiler(where):
            raise
        raise RuntimeError(f"{name}: its compiler is not installed: pip install agemem_jax[{extra}]") from error


def has_compiler(where: Slice) -> bool:
    """Whether programs can be compiled for a slice here."""
    if where.chip.torus:
        return importlib.util.find_spec("libtpu") is not None
    plugins = importlib.util.find_spec("jax_plugins")
    return plugins is not None and any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))


def analyse(
    compiled,
    mesh,
    where: Slice,
    trips: Trips | Mapping[str, float],
    phases: roofline.Phases,
    name: str,
    compile_s: float = 0.0,
) -> dict:
    """What one compiled stage program costs on a slice, as plain numbers. All of it is per chip.

    Args:
      compiled: of jax.jit(...).lower(...).compile(), for this slice or (GPUs) a stand-in with as many devices.
      mesh: the jax Mesh that the program was compiled for.
      trips: mean runs of the loops whose number depends on data, by scope ("rollout/decode"; a scope's own end is
        enough: "decode"). Words of control flow are left out of scopes. A function (scope) -> float or None does too.
      phases: name -> scopes that begin with one of these.

    Returns:
      a dictionary for `page.write` and JSON; `fits` says whether the program's memory is below the chip's.
    """
    module = hlo.parse(compiled.as_text())
    coords = coordinates(list(mesh.devices.flat)) if where.chip.torus else None
    asked = trips if callable(trips) else by_end(trips)
    costs, loops = walk(module, dict(mesh.shape), asked)
    times = roofline.phase_times(costs, phases, where, coords)
    memory = memory_of(compiled.memory_analysis(), where)
    return {
        "stage": name,
        "fits": memory["total"] <= memory["capacity"],
        "hbm_gib_per_chip": memory["total"],
        "hbm": memory,
        "arguments": roofline.arguments(module),
        "largest_arrays": roofline.largest_arrays(module, DEEPEST),
        "compile_s": compile_s,
        "flops": sum(t["flops"] for t in times),
        "bytes": sum(t["bytes"] for t in times),
        "seconds": sum(t["predicted_s"] for t in times),
        "phases": times,
        "collectives": roofline.collectives(costs, phases, where, coords),
        "costliest": roofline.costliest(costs, phases, where, coords, DEEPEST),
        "loops": [vars(loop) | {} for loop in dict.fromkeys(loops)],
    }


def by_end(table: Mapping[str, float]) -> Trips:
    """Trip counts by the end of a loop's scope; the longest that fits is taken."""

    def trips(scope: str) -> float | None:
        ends = [end for end in table if f"/{scope}".endswith(f"/{end}")]
        return table[max(ends, key=len)] if ends else None

    return trips


def memory_of(stats, where: Slice) -> dict[str, float]:
    """GiB per chip from `compiled.memory_analysis()`; what is donated is counted once."""
    parts = {
        "arguments": stats.argument_size_in_bytes / GIB,
        "outputs": (stats.output_size_in_bytes - stats.alias_size_in_bytes) / GIB,
        "temporaries": stats.temp_size_in_bytes / GIB,
        "code": stats.generated_code_size_in_bytes / GIB,
    }
    donated = stats.alias_size_in_bytes / GIB
    return parts | {"total": sum(parts.values()), "donated": donated, "capacity": where.chip.hbm_bytes / GIB}


def refused(error: Exception, name: str, where: Slice, compile_s: float = 0.0) -> dict | None:
    """The dictionary of a program that the compiler refused because it does not fit; None for any other error."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    gib = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}
    sizes = [float(number) * gib[unit] for number, unit in re.findall(r"([\d.]+)([KMGT])\b", text)]
    return {
        "stage": name,
        "fits": False,
        "hbm_gib_per_chip": max(sizes, default=None),
        "hbm": {"total": max(sizes, default=None), "capacity": where.chip.hbm_bytes / GIB},
        "compile_s": compile_s,
        "refused": text.split("\n\n")[0][:600],
    }


def advice(stage: dict) -> list[str]:
    """What to change about a stage that does not fit, by what takes the memory; nothing if it fits."""
    if stage["fits"]:
        return []
    if "refused" in stage:
        scopes, parts, over = stage["refused"], {}, None
    else:
        parts = stage["hbm"]
        over = parts["total"] - parts["capacity"]
        scopes = " ".join(line["scope"] for line in stage["largest_arrays"][:4])
    lines = [] if over is None else [f"{over:.1f} GiB a chip too much."]
    if parts.get("arguments", 0) > 0.6 * parts.get("capacity", 1):
        most = f"{parts['arguments']:.1f} GiB, most of it {next(iter(stage['arguments']), '')}"
        lines.append(f"Arguments alone take {most}: a larger mesh.fsdp, more chips.")
    if "update" in scopes or "grad" in scopes:
        lines.append("The largest arrays are the update's: less rl.micro_batch or rl.logit_chunk, policy.remat=full.")
    if any(word in scopes for word in ("rollout", "decode", "prefill")):
        lines.append("The largest arrays are the rollout's: less rl.tasks_per_update, or a larger mesh.tensor.")
    return lines or ["Smaller rl.micro_batch first, then a larger mesh.fsdp, then more chips."]


def summary(stages: Sequence[dict], generated_tokens: float, **shares: float) -> dict:
    """Speeds of a whole update: every stage once, one after another.

    Args:
      generated_tokens: of one update, all chips.
      shares: what the page prints beside them, where the caller has it: `bandwidth_share` of decoding and
        `utilisation` of the update (see roofline.py).
    """
    seconds = sum(s.get("seconds") or 0.0 for s in stages)
    known = seconds > 0 and all(s["fits"] for s in stages)
    return {
        "fits": all(s["fits"] for s in stages),
        "seconds_per_update": seconds if known else None,
        "updates_per_hour": 3600 / seconds if known else None,
        "generated_tokens_per_s": generated_tokens / seconds if known else None,
        **shares,
    }


def mesh_shapes(chips: int, tensor: Sequence[int], data: Sequence[int] = (1,)) -> list[dict[str, int]]:
    """Meshes that use all chips, with these sizes of tensor and data: {"data", "fsdp", "tensor"}."""
    return [{"data": d, "fsdp": chips // (d * t), "tensor": t} for d in data for t in tensor if chips % (d * t) == 0]


def best(candidates: Sequence[dict]) -> dict | None:
    """Of {"seconds_per_update", "fits", ...} the fastest that fits; None if none does."""
    fitting = [c for c in candidates if c["fits"] and c["seconds_per_update"]]
    return min(fitting, key=lambda c: c["seconds_per_update"], default=None)
