"""Compiles a config's stage programs for a machine that is not here, and prints what fits, what binds, and how fast.

    python -m experiments.plan --config=configs/qwen25_7b.py:v5p-16 --topology=v5p:2x2x2 [--stages=1,2,3] [--out=FILE]

TPUs need the extra `tpu` (libtpu), GPUs (--topology=h100:8) JAX's CUDA plugin; neither needs a device. Turns are as
long as the flags say, and take as many steps (--step_tokens, with --config.rollout.decode_width above 1); the page
says so too. `--search` tries other meshes and micro-batches on stage 3 and prints
the best.
"""

import math
import sys
import time

import jax
from absl import flags
from tqdm import tqdm

from agemem_jax.config import ConfigError, derive
from agemem_jax.planning import page, plan, roofline
from agemem_jax.planning.hardware import Slice, parse_slice
from agemem_jax.planning.roofline import KERNEL_SHARE
from agemem_jax.planning.stand_in import StandIn, stand_in
from agemem_jax.training.setup import run_mesh
from experiments import cli, out

TOPOLOGY = flags.DEFINE_string("topology", None, "slice or node, e.g. v5p:4x4x4, v5e-64, h100:8", required=True)
STAGES = flags.DEFINE_list("stages", ["1", "2", "3"], "stage programs to compile")
TURN = flags.DEFINE_integer("turn_tokens", 256, "tokens of a turn, on average", lower_bound=1)
LONGEST = flags.DEFINE_integer("longest_turn", 512, "tokens of the longest turn of a slot", lower_bound=1)
STEP = flags.DEFINE_float(
    "step_tokens", 1.0, "tokens of the longest turn that a step of decoding writes (experiments.benchmark_decode "
    "measures it); at most rollout.decode_width", lower_bound=1.0,
)  # fmt: skip
SEGMENTS = flags.DEFINE_float("segments", 2.5, "segments of a trajectory that hold anything", lower_bound=1)
SEARCH = flags.DEFINE_bool("search", False, "try meshes and micro-batches on stage 3, print the best")

PHASES = {
    "layout": ["layout"],
    "prompt": ["prompt"],
    "prefill": ["rollout/prefill"],
    "decode": ["rollout/decode"],
    "memory": ["rollout"],
    "gradient": ["update/gradient"],
    "optimizer": ["update"],
}
PREFILL_CHUNKS = 1.5  # a slot: one for the observation, more after an edit


def main(config) -> None:
    stages = [3] if SEARCH.value else stage_numbers()
    if STEP.value > config.rollout.decode_width:
        raise ConfigError(
            f"--step_tokens={STEP.value:g}: a step writes at most rollout.decode_width = {config.rollout.decode_width} "
            "tokens of a row; lower it, or set --config.rollout.decode_width"
        )
    try:
        where = parse_slice(TOPOLOGY.value)
        devices = plan.topology_devices(where)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--topology={TOPOLOGY.value}: {error}") from error
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are among the figures
    result = search(config, where, devices) if SEARCH.value else plan_config(config, where, devices, stages)
    print(page.write(result))
    out.write(result)
    if not result["summary"]["fits"]:
        sys.exit(1)


def stage_numbers() -> list[int]:
    """The stages of --stages. Raises ConfigError for any but 1, 2 and 3."""
    if unknown := [name for name in STAGES.value if name not in ("1", "2", "3")]:
        raise ConfigError(f"--stages={','.join(STAGES.value)}: {unknown[0]!r} is no stage; give of 1,2,3")
    if not STAGES.value:
        raise ConfigError("--stages=: names no stage; give of 1,2,3")
    return sorted({int(name) for name in STAGES.value})


def plan_config(config, where: Slice, devices: list, stages: list[int]) -> dict:
    """Compiles the stages and puts all figures together."""
    mesh = run_mesh(config, devices)
    run = stand_in(config, mesh)
    done = [compile_stage(run, where, stage) for stage in tqdm(stages, desc=f"compiling for {where.topology}")]
    summary = plan.summary(done, generated_tokens(run, stages), **shares(run, where, done)) | {"of_stages": stages}
    if len(stages) < 3:
        summary["updates_per_hour"] = None  # nobody knows what the other stages take
    notes = [
        f"mesh {dict(mesh.shape)}, update in layout {config.mesh.learner!r}, {derive(config).rows} rollouts of "
        f"{config.context.capacity:,} tokens beside a prompt of {run.prompt_tokens:,}, micro-batch "
        f"{run.spec.learn.micro_batch}",
        f"assumed: turns of {TURN.value} tokens, the longest of a slot {LONGEST.value}, in {decode_steps():,.0f} "
        f"steps, each of them as costly as one of {config.rollout.decode_width} tokens a row; {SEGMENTS.value} "
        "segments a trajectory, each as long as the context can get; attention kernels at half the peak",
    ]
    if not run.is_exact:
        notes.append("the grammar is that of the small built-in vocabulary; give policy.tokenizer for the model's own")
    title = f"{config.name} on {where.topology} ({where.size} chips)"
    return {
        "title": title, "notes": notes, "fits": summary["fits"], "mesh": dict(mesh.shape),
        "micro_batch": run.spec.learn.micro_batch, "stages": done, "summary": summary,
    }  # fmt: skip


def compile_stage(run: StandIn, where: Slice, stage: int) -> dict:
    """Compiles one stage program and says what it costs."""
    lowered = run.lower(stage)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = plan.refused(error, f"stage {stage}", where, time.perf_counter() - began)
        if refused is None:
            raise
        return refused
    spent = time.perf_counter() - began
    result = plan.analyse(compiled, run.mesh, where, trips(run, stage), PHASES, f"stage {stage}", spent)
    if stage == 3 and run.model.attention == "splash":
        kernels = attention_kernels(run, where)
        result["phases"].append(kernels)
        result["flops"] += kernels["flops"]
        result["seconds"] += kernels["predicted_s"]
    return result


def attention_kernels(run: StandIn, where: Slice) -> dict:
    """The update's splash kernels as a phase: the program does not say their cost (cuDNN's show it by their shapes).

    Matmuls over the visible pairs: 2 forward, 2 of the reference, 2 again where whole layers are recomputed, 5 for
    the gradients.
    """
    model, width = run.model, run.spec.learn.widths[-1]
    pairs = positions(run) * (run.prompt_tokens + width / 2)
    matmuls = 2 + 2 * bool(run.config.rl.kl_coef) + 2 * (model.remat == "full") + 5
    flops = 2.0 * matmuls * pairs * model.num_heads * model.head_dim * model.num_layers / where.size
    compute = flops / where.chip.flops_rate / KERNEL_SHARE
    blank = dict.fromkeys(("bytes", "wire_bytes", "hbm_s", "interconnect_s"), 0.0)
    times = {"compute_s": compute, "overlapped_s": compute, "predicted_s": compute, "serial_s": compute}
    return {"phase": "kernels", "flops": flops, **blank, **times, "binds": "compute", "compiler_s": None}


def trips(run: StandIn, stage: int) -> dict[str, float]:
    """How often the loops run whose number depends on data, by scope."""
    learn, logit_chunk = run.spec.learn, run.config.rl.logit_chunk
    written = TURN.value * turns(run, stage=0) / SEGMENTS.value  # trainable tokens of a segment
    per_shard = written * learn.micro_batch / learn.layout.ways("rows")
    return {
        "rollout": turns(run, stage),
        "rollout/prefill": PREFILL_CHUNKS,
        "rollout/decode": decode_steps(),
        "update/gradient": micro_batches(run),
        "head": math.ceil(per_shard / logit_chunk),
    }


def decode_steps() -> float:
    """Steps of the decode loop in a slot."""
    return LONGEST.value / STEP.value


def turns(run: StandIn, stage: int) -> float:
    """Turns of a stage, or of all three (0)."""
    rollout, task = run.config.rollout, run.config.task
    by_stage = (
        task.facts + rollout.stage1_extra_turns,
        task.distractors + rollout.stage2_extra_turns,
        (1 + rollout.stage3_turns) / 2,
    )
    return sum(by_stage) if stage == 0 else by_stage[stage - 1]


def micro_batches(run: StandIn) -> float:
    """Micro-batches of an update."""
    return math.ceil(run.spec.rollout.batch * SEGMENTS.value / run.spec.learn.micro_batch)


def positions(run: StandIn) -> float:
    """Context tokens that the update runs over, the prompt not counted."""
    return micro_batches(run) * run.spec.learn.micro_batch * run.spec.learn.widths[-1]


def generated_tokens(run: StandIn, stages: list[int]) -> float:
    """Tokens that all rollouts of an update write in these stages."""
    return run.spec.rollout.batch * TURN.value * sum(turns(run, stage) for stage in stages)


def shares(run: StandIn, where: Slice, stages: list[dict]) -> dict[str, float]:
    """Decoding as a share of the HBM rate, and the update's model FLOPs as a share of the peak."""
    model, spec, result = run.model, run.spec, {}
    size = jax.numpy.dtype(model.dtype).itemsize
    layers, head = matmul_parameters(model)
    phase = lambda name: [p for s in stages for p in s.get("phases", []) if p["phase"] == name]  # noqa: E731
    if decoding := phase("decode"):
        rows = spec.rollout.batch / spec.rollout.layout.ways("rows")
        tensor = spec.rollout.layout.ways("heads")
        keys = 2 * model.num_layers * model.num_kv_heads * model.head_dim * size
        columns = run.config.context.capacity + run.prompt_tokens / rows  # the prompt's are read once for all rows
        read = ((layers + head) * size + rows * keys * columns) / tensor
        steps = sum(decode_steps() * turns(run, int(s["stage"][-1])) for s in stages if "phases" in s)
        seconds = sum(p["predicted_s"] for p in decoding)
        result["bandwidth_share"] = roofline.bandwidth_share(read * steps, seconds, where)
    if learning := phase("gradient") + phase("kernels") + phase("optimizer"):
        width = spec.learn.widths[-1]
        context = run.prompt_tokens + width / 2
        flops = roofline.model_flops(
            positions(run), layers, model.num_layers, model.num_heads, model.head_dim, context
        )  # fmt: skip
        flops += 6.0 * head * generated_tokens(run, [1, 2, 3])  # only what was written has logits
        result["utilisation"] = roofline.utilisation(flops, sum(p["predicted_s"] for p in learning), where)
    return result


def matmul_parameters(model) -> tuple[int, int]:
    """Parameters of all layers' projections, and of the head."""
    d, hd = model.hidden_size, model.head_dim
    attention = d * hd * (2 * model.num_heads + 2 * model.num_kv_heads)
    return model.num_layers * (attention + 3 * d * model.intermediate_size), d * model.vocab_size


def search(config, where: Slice, devices: list) -> dict:
    """Stage 3 under other meshes (all of fsdp and tensor, tensor up to 8) and micro-batches; the plan of the best."""
    tried: list[dict] = []
    for shape in plan.mesh_shapes(where.size, (1, 2, 4, 8)):
        for learner in ("fsdp", "tensor") if shape["tensor"] > 1 else ("fsdp",):
            for rows in (1, 2, 4):
                one = config.copy_and_resolve_references()
                one.mesh.update(shape)
                one.mesh.learner = learner
                one.rl.micro_batch = rows * where.size // (shape["tensor"] if learner == "tensor" else 1)
                what = f"{shape}, {learner}, {rows} a device"
                try:
                    result = plan_config(one, where, devices, [3])
                except ConfigError as error:
                    tqdm.write(f"{what}: not possible, {error}")
                    continue
                tried.append(result | result["summary"])
                if not result["fits"]:
                    tqdm.write(f"{what}: does not fit")
                    break  # nor would more rows
                tqdm.write(f"{what}: {result['summary']['seconds_per_update']:.1f} s")
    if not tried:
        raise ConfigError(f"--topology={where.topology}: no mesh suits this config; see the lines above")
    return plan.best(tried) or tried[-1]


if __name__ == "__main__":
    cli.run(main)
