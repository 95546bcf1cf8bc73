"""Measures the whole loop, and the libraries that it is compared with, on this machine's CPU:

    python -m experiments.benchmark_loop [--peers=all|none|trl,tunix] [--out=FILE]

Each program runs in a process of its own, one after another; leave the machine alone meanwhile. The peers' environments
are made on first use, in ~/.cache/agemem_jax/peers.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from absl import flags

from experiments import cli, out
from experiments.benchmark import parts
from experiments.benchmark.sitting import PEERS, SCRIPTS, chosen_peers, environment, run

PART = flags.DEFINE_enum("part", None, parts.PARTS, "measure this part alone, in this process")

PACKAGES = {
    "trl": ["torch==2.13.0", "trl==1.16.*", "transformers", "datasets", "accelerate"],
    "tunix": ["google-tunix==0.1.7", "jax==0.10.2", "flax", "optax", "transformers"],
}
PROGRAMS = {
    "trl": {
        "single_turn": ["trl_grpo.py"],
        "multi_turn": ["trl_multiturn.py", "4", "0"],
        "multi_turn_kv_reuse": ["trl_multiturn.py", "4", "1"],
    },
    "tunix": {"single_turn": ["tunix_grpo.py"], "multi_turn": ["tunix_multiturn.py"]},
}


def main() -> None:
    if PART.value:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(parts.measure(PART.value, Path(folder))), flush=True)
        return
    peers = chosen_peers(PEERS.value, PACKAGES)
    try:
        pythons = {peer: environment(peer, PACKAGES[peer]) for peer in peers}
        ours = {part: run_part(part) for part in parts.PARTS}
        theirs = {peer: {name: run_peer(peer, name, pythons[peer]) for name in PROGRAMS[peer]} for peer in peers}
    except RuntimeError as error:  # of another program, with the end of what it printed
        sys.exit(f"error: {error}")
    figures = summarise(ours, theirs)
    print(table(figures))
    out.write(figures)


def run_part(part: str) -> dict:
    """Measures one of our own parts."""
    return run(
        f"ours: {part}", [sys.executable, "-m", "experiments.benchmark_loop", f"--part={part}"], Path.cwd(), speed
    )


def run_peer(peer: str, name: str, python: Path) -> dict:
    """Measures one of a peer's programs, in an empty folder."""
    script, *arguments = PROGRAMS[peer][name]
    with tempfile.TemporaryDirectory() as folder:
        return run(f"{peer}: {name}", [python, SCRIPTS / script, *arguments], Path(folder), speed)


def speed(figures: dict) -> str:
    """What is printed of a program when it has run."""
    rate = figures.get("tokens_per_s")
    return f"{rate:,.0f} tokens/s" if rate else f"{figures['matmul_gflops']:,.0f} GFLOP/s"


def summarise(ours: dict, theirs: dict) -> dict:
    """The ratios of the comparison, with every figure behind them. A ratio to peers that did not run is left out."""

    def best(name: str) -> float | None:
        return max((figures[name]["tokens_per_s"] for figures in theirs.values() if name in figures), default=None)

    rate = {name: figures.get("tokens_per_s") for name, figures in ours.items()}
    pairs = {
        "host_driven": (rate["fused"], rate["host_driven"]),
        "single_turn": (rate["single_turn"], best("single_turn")),
        "multi_turn": (rate["multi_turn"], best("multi_turn")),
        "multi_turn_kv_reuse": (rate["multi_turn"], best("multi_turn_kv_reuse")),
    }
    peak = ours["matmul"]["matmul_gflops"]
    share = lambda name: round(ours[name]["update_gflops"] / peak, 3)  # noqa: E731
    return {
        "ratio": {name: round(ours / other, 2) for name, (ours, other) in pairs.items() if other},
        "update_share_of_matmul": share("single_turn"),
        "update_share_of_matmul_multi_turn": share("multi_turn"),
        "matmul_gflops": peak,
        "growth": {
            name: round(ours[f"double_{name}"]["step_s"] / ours["fused"]["step_s"], 2) for name in parts.DOUBLED
        },
        "ours": ours,
        "peers": theirs,
        "cpus": os.cpu_count(),
    }


def table(figures: dict) -> str:
    """All of it, as lines to read."""
    programs = [("agemem_jax", name, f) for name, f in figures["ours"].items() if "tokens_per_s" in f]
    programs += [(peer, name, f) for peer, parts in figures["peers"].items() for name, f in parts.items()]
    lines = [f"{'':12}{'':22}{'tokens/s':>10}{'step s':>9}{'compile s':>11}{'peak GB':>9}"]
    for who, name, f in programs:
        compile_s = f"{f['compile_s']:.1f}" if "compile_s" in f else ""
        rate, step, peak = f["tokens_per_s"], f["step_s"], f["peak_rss_gb"]
        lines.append(f"{who:12}{name:22}{rate:>10,.0f}{step:>9.2f}{compile_s:>11}{peak:>9.2f}")
    lines.append("")
    fused = figures["ours"]["fused"]
    lines.append(f"trained tokens/s of the fused stage programs: {fused['trained_tokens_per_s']:,.0f}")
    for name, goal in (("host_driven", 3), ("single_turn", 3.5), ("multi_turn", 3), ("multi_turn_kv_reuse", None)):
        if name in figures["ratio"]:
            aim = f" (goal {goal})" if goal else ""
            lines.append(f"times as fast as {name:22}{figures['ratio'][name]:>6.2f}{aim}")
    lines.append(
        f"share of the matmul rate ({figures['matmul_gflops']:,.0f} GFLOP/s) in the update: "
        f"{figures['update_share_of_matmul']:.2f} single-turn (goal 0.5), "
        f"{figures['update_share_of_matmul_multi_turn']:.2f} multi-turn"
    )
    growth = ", ".join(f"{name} {factor:.2f}" for name, factor in figures["growth"].items())
    lines.append(f"time of an update when each doubles (2 = linear): {growth}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
