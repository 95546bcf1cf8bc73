"""Measures a run on the accelerator that is here: attention kernels against plain attention, updates against the plan.

    python -m experiments.benchmark_device --config=configs/one_gpu.py --topology=h100:1 \\
        --config.policy.tokenizer=QWEN3_FOLDER [--updates=10] [--out=FILE]

The policy begins from nothing where the config names no weights: what it writes then makes no sense, and turns are as
long as they may be. Each stage program is compiled once, timed, and its plan made from that very program and the
turns that were played, so that what differs is the plan's model of the machine. XLA_FLAGS are in the figures: on a GPU
they decide (README, "Many devices").
"""

import functools
import math
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from agemem_jax import sharding
from agemem_jax.config import ConfigError
from agemem_jax.models.attention import Keys, attention
from agemem_jax.planning import plan
from agemem_jax.planning.hardware import GIB, Slice, parse_slice
from agemem_jax.planning.stand_in import shapes
from agemem_jax.rollout.rows import new_rows, row_shardings
from agemem_jax.training.evaluate import control
from agemem_jax.training.programs import STAGES
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import new_state
from experiments import cli, out
from experiments.benchmark.parts import timed
from experiments.plan import PHASES, PREFILL_CHUNKS, TOPOLOGY

UPDATES = flags.DEFINE_integer("updates", 10, "updates that are timed, after the one that compiles", lower_bound=1)
ROWS, TOKENS, PROMPT = 4, 4096, 1024  # of the attention that is timed
SHAPES = {"qwen2.5-7b": (28, 4, 128), "qwen2.5-0.5b": (14, 2, 64), "qwen3-0.6b": (16, 8, 128)}  # heads, KV heads, size
BLOCK = 256  # queries at a time of "xla in blocks"
REPEATS = 10


def main(config) -> None:
    try:
        where = parse_slice(TOPOLOGY.value)
    except ValueError as error:
        raise ConfigError(f"--topology={TOPOLOGY.value}: {error}") from error
    if (width := config.rollout.decode_width) > 1:
        raise ConfigError(
            f"rollout.decode_width = {width}: the plan is made from the turns played, at one token a step; set 1"
        )
    figures = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "devices": jax.device_count()}
    figures["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    print(figures, flush=True)
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend())
    figures["attention"] = {name: attention_figures(shape, kernel) for name, shape in SHAPES.items()}
    out.write(figures)
    figures["updates"] = update_figures(build(config), where)
    out.write(figures)


# --- attention ---


def attention_figures(shape: tuple[int, int, int], kernel: str | None) -> dict:
    """Time and error of each implementation, forward and with gradients, for one layer's attention."""
    heads, kv, size = shape
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda key, *dims: jax.random.normal(key, dims, jnp.bfloat16)  # noqa: E731
    q, out_grad = (draw(key, ROWS, TOKENS, heads, size) for key in keys[:2])
    own = draw(keys[2], ROWS, kv, size, TOKENS), draw(keys[3], ROWS, kv, TOKENS, size)
    shared = draw(keys[4], 1, kv, size, PROMPT), draw(keys[5], 1, kv, PROMPT, size)
    ways = {"xla": ("xla", 0), f"xla, {BLOCK} queries at a time": ("xla", BLOCK)}
    if kernel:
        ways[kernel] = (kernel, 0)

    def run(q, own, shared, way, block):
        parts = [Keys(*shared, length=jnp.int32(PROMPT - 100)), Keys(*own, offset=0)]
        return attention(q, parts, way, block)

    def grads(way, block):
        loss = lambda q, own, shared: (run(q, own, shared, way, block) * out_grad.reshape(ROWS, TOKENS, -1)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2)))

    exact = [x.astype(jnp.float32) for x in (q, *own, *shared)]
    with jax.default_matmul_precision("float32"):
        right = jax.jit(functools.partial(run, way="xla", block=BLOCK))(exact[0], exact[1:3], exact[3:])
    # Matmuls over the pairs that are seen: 2 forward, 5 more for the gradients, which need the forward pass again.
    pairs = ROWS * TOKENS * (PROMPT - 100 + TOKENS / 2)
    flops = 2.0 * pairs * heads * size
    figures = {}
    for name, (way, block) in ways.items():
        forward = jax.jit(functools.partial(run, way=way, block=block))
        got = forward(q, own, shared).astype(jnp.float32)
        forward_s, both_s = seconds(forward, q, own, shared), seconds(grads(way, block), q, own, shared)
        figures[name] = {
            "forward_ms": 1e3 * forward_s,
            "forward_and_gradients_ms": 1e3 * both_s,
            "forward_tflops": 2 * flops / forward_s / 1e12,
            "forward_and_gradients_tflops": 7 * flops / both_s / 1e12,
            "relative_error": float(jnp.linalg.norm(got - right) / jnp.linalg.norm(right)),
        }
        print(f"attention {shape}, {name}: {figures[name]}", flush=True)
    return figures


def seconds(function, *args) -> float:
    """Median time of a call, after one that compiles."""
    timed(function, *args)
    return statistics.median(timed(function, *args)[0] for _ in range(REPEATS))


# --- updates ---


def update_figures(run: Run, where: Slice) -> dict:
    """`--updates` updates by the stage programs: what was compiled, predicted and measured of each stage."""
    rows = run.spec.rollout.batch
    state = new_state(run.start(), run.optimizer)
    everywhere = jax.tree.leaves(run.world)[0].sharding
    programs, compile_s = compiled(run, state)
    measured, trips, updates = {stage: [] for stage in STAGES}, {stage: [] for stage in STAGES}, []
    for update in range(UPDATES.value + 1):
        task, held = sharding.put(run.source.batch(update), sharding.rows(run.mesh)), None
        outcomes, began = {}, time.perf_counter()
        for stage in STAGES:
            learns = stage == 3
            settings = control(run, run.config.seed, update, "agemem", run.config.rollout.temperature, update=learns)
            args = state, run.frozen, held, task, run.world, sharding.put(settings, everywhere)
            spent, (state, held, outcomes[stage]) = timed(programs[stage], *args)
            measured[stage].append(spent)
            print(f"update {update}, stage {stage}: {spent:.2f} s", flush=True)
        spent = time.perf_counter() - began
        for stage in STAGES:
            trips[stage].append(played(run, outcomes[stage], outcomes[3]["metrics"], stage))
        updates.append(
            {
                "seconds": spent,
                **{name: float(outcomes[3]["metrics"][name]) for name in ("reward", "loss", "grad_norm", "ratio_max")},
                "generated_tokens": float(outcomes[3]["rows"]["generated_tokens"].sum()),
                "trained_tokens": float(outcomes[3]["metrics"]["trained_tokens"]),
                "params_finite": float(outcomes[3]["metrics"]["params_finite"]),
                "logp_gap_max": float(outcomes[3]["metrics"]["logp_gap_max"]),
            }
        )
        print(f"update {update}: {updates[-1]}", flush=True)
    stages = {}
    for stage in STAGES:
        mean = mean_trips(trips[stage][1:])  # the plan is linear in them
        planned = plan.analyse(programs[stage], run.mesh, where, mean, PHASES, f"stage {stage}")
        spent = statistics.mean(measured[stage][1:])
        stages[f"stage {stage}"] = {
            "compile_s": compile_s[stage],
            "measured_s": spent,
            "predicted_s": planned["seconds"],
            "ratio": spent / planned["seconds"],
            "planned_gib": planned["hbm_gib_per_chip"],
            "phases": {p["phase"]: p["predicted_s"] for p in planned["phases"]},
            "trips": mean,
        }
        print(f"stage {stage}: {stages[f'stage {stage}']}", flush=True)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "config": run.config.name,
        "rows": rows,
        "updates": updates,
        "seconds": statistics.mean(one["seconds"] for one in updates[1:]),
        "tokens_per_s": statistics.mean(u["generated_tokens"] / u["seconds"] for u in updates[1:]),
        "peak_gib": peak and peak / GIB,
        "stages": stages,
    }


def compiled(run: Run, state) -> tuple[dict, dict]:
    """The three stage programs, compiled side by side, and the seconds that each took."""
    settings = control(run, run.config.seed, 0, "agemem", run.config.rollout.temperature, update=True)
    settings = sharding.put(settings, jax.tree.leaves(run.world)[0].sharding)
    task = sharding.put(run.source.batch(0), sharding.rows(run.mesh))
    rows = jax.eval_shape(lambda: new_rows(run.spec.rollout, run.model))
    rows = shapes(rows, row_shardings(rows, run.spec.rollout.layout))

    def compile_one(stage: int):
        lowered = run.programs[stage].lower(state, run.frozen, rows if stage > 1 else None, task, run.world, settings)
        began = time.perf_counter()
        return lowered.compile(), time.perf_counter() - began

    with ThreadPoolExecutor() as pool:
        done = dict(zip(STAGES, pool.map(compile_one, STAGES), strict=True))
    print(f"compiled in {[round(spent, 1) for _, spent in done.values()]} s", flush=True)
    return {stage: one for stage, (one, _) in done.items()}, {stage: spent for stage, (_, spent) in done.items()}


def played(run: Run, outcome: dict, metrics: dict, stage: int) -> dict[str, float]:
    """How often the loops of a stage ran, from its trace (of train.traces rows) and the update's metrics."""
    trace = jax.device_get(outcome["trace"])
    ran, length = np.asarray(trace.ran), np.asarray(trace.said.length)
    slots = ran.any(1)
    pieces = math.ceil(float(metrics["segments"]) * run.spec.rollout.batch / run.spec.learn.micro_batch)
    written = float(metrics["trained_tokens"]) / pieces / run.spec.learn.layout.ways("rows")
    return {
        "rollout": float(slots.sum()),
        "rollout/prefill": PREFILL_CHUNKS,
        "rollout/decode": float((length * ran).max(1)[slots].mean()),
        "update/gradient": float(pieces) if stage == 3 else 0.0,
        "head": float(math.ceil(written / run.config.rl.logit_chunk)),
    }


if __name__ == "__main__":
    cli.run(main)


def mean_trips(trips: list[dict[str, float]]) -> dict[str, float]:
    """Means over updates of how often loops ran; of a loop within another one, so that the mean of the products is the
    product of the means."""
    mean = {name: statistics.mean(one[name] for one in trips) for name in trips[0]}
    for name in mean:
        outer, _, _ = name.rpartition("/")
        if outer in mean and mean[outer]:
            mean[name] = statistics.mean(one[outer] * one[name] for one in trips) / mean[outer]
    return mean
