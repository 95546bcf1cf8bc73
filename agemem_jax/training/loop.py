"""The training loop on the host: batches in, three programs, one metrics fetch an update, checkpoints, evaluations."""

import contextlib
import json
import time
from pathlib import Path

import jax
import numpy as np

from agemem_jax.config import difference, from_json
from agemem_jax.metrics import Clock, MetricWriter, Progress, write_json
from agemem_jax.training.checkpoint import Checkpointer, may_differ
from agemem_jax.training.evaluate import METHODS, control, evaluate
from agemem_jax.training.programs import trajectory
from agemem_jax.training.setup import Run
from agemem_jax.training.state import new_state
from agemem_jax.training.traces import render_traces
from agemem_jax.types import TrainState


def stages_of(config, update: int) -> int:
    """The last stage that runs, and trains, in an update: 3, or in the sequential schedule each stage for a third."""
    if config.rl.schedule == "chained":
        return 3
    return min(3, 1 + update * 3 // config.rl.updates)


def train_update(run: Run, state: TrainState, ref_params: dict, update: int, task):
    """One update: (state, outcome). A function of (config.seed, update) and the state alone."""
    settings = control(run, run.config.seed, update, "agemem", run.config.rollout.temperature, update=True)
    state, outcome, _ = trajectory(
        run.programs, state, ref_params, task, run.world, settings, until=stages_of(run.config, update)
    )
    return state, outcome


def train(run: Run, workdir: Path) -> dict:
    """Trains one seed in `workdir`, or goes on where an earlier call was stopped; returns its evaluations.

    Returns:
      {method: {number: [tasks] list}} for no_memory, agemem_norl and agemem.
    """
    config = run.config
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpointer(workdir / "checkpoints", config, config.train.keep_checkpoints)
    with contextlib.closing(checkpoints):
        train_seed(run, workdir, checkpoints)
    return {method: read_json(result_path(workdir, method))["numbers"] for method in METHODS}


def train_seed(run: Run, workdir: Path, checkpoints: Checkpointer) -> None:
    """The loop itself: evaluations before, updates, evaluation after."""
    config, clock = run.config, Clock()
    ref_params = run.params if config.rl.kl_coef else {}
    state = new_state(run.params, run.optimizer, keep_params=bool(config.rl.kl_coef))
    done = 0
    restored = checkpoints.restore_latest(state)
    if restored is not None:
        done, state, host = restored
        clock.load(host["clock"])
        print(f"seed {config.seed}: going on from update {done}", flush=True)
    count_compiling(clock)
    writer = MetricWriter(workdir, config, resume_from=done)
    with clock.measure("eval"):
        for method in ("no_memory", "agemem_norl"):
            if done == 0:
                state = evaluate_once(run, state, ref_params, method, 0, workdir)
    progress = Progress(config.rl.updates, done, name=f"seed {config.seed}")
    task = jax.device_put(run.source.batch(done)) if done < config.rl.updates else None
    for update in range(done, config.rl.updates):
        began = time.perf_counter()
        with jax.transfer_guard("disallow" if config.train.transfer_guard else "allow"):
            state, outcome = train_update(run, state, ref_params, update, task)
            if update + 1 < config.rl.updates:  # made while the device works
                task = jax.device_put(run.source.batch(update + 1))
            metrics = jax.device_get(outcome["metrics"])
        seconds = time.perf_counter() - began
        clock.add("train", seconds)
        record = tidy(metrics, update, stages_of(config, update), seconds, run)
        check_finite(record)
        writer.write(update + 1, record)
        progress.step(update + 1, record)
        last = update + 1 == config.rl.updates
        if config.train.eval_every and (update + 1) % config.train.eval_every == 0 and not last:
            with clock.measure("eval"):
                state, numbers, _ = evaluate(run, state, ref_params, "agemem", config.train.eval_tasks)
                writer.write(update + 1, {f"eval/{k}": float(v.mean()) for k, v in numbers.items()})
        if last or (update + 1) % config.train.checkpoint_every == 0:
            checkpoints.save(update + 1, state, {"clock": clock.state()}, wait=last)
    progress.close()
    checkpoints.wait()
    with clock.measure("eval"):
        evaluate_once(run, state, ref_params, "agemem", config.rl.updates, workdir)
    writer.close()
    write_json(workdir / "seconds.json", clock.state())


def count_compiling(clock: Clock) -> None:
    """Adds every compilation of this process to the clock; its seconds are part of "train" or "eval" as well."""

    def listen(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            clock.add("compile", seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)


def result_path(workdir: Path, method: str) -> Path:
    """Where the evaluation of a method is kept."""
    return workdir / f"evaluation_{method}.json"


def evaluate_once(
    run: Run, state: TrainState, ref_params: dict, method: str, updates: int, workdir: Path
) -> TrainState:
    """Evaluates a method after `updates` updates and keeps numbers and traces; skipped where that was done before."""
    path = result_path(workdir, method)
    if path.exists():
        kept = read_json(path)
        before = from_json(json.dumps(kept["config"]))
        changed = difference(run.config, before)
        if kept["updates"] == updates and all(free_of_evaluation(name, run.config) for name in changed):
            return state
    print(f"seed {run.config.seed}: evaluating {method} on {run.config.train.eval_tasks} test tasks", flush=True)
    state, numbers, traced = evaluate(run, state, ref_params, method, run.config.train.eval_tasks)
    when = "after" if method == "agemem" else "before"
    write_json(workdir / f"traces_{method}.json", render_traces(run, traced, method, when))
    write_json(path, {"updates": updates, "config": run.config.to_dict(), "numbers": numbers})
    shown = ", ".join(f"{name} {np.mean(numbers[name]):.3f}" for name in ("f1", "memory_quality", "reward"))
    print(f"seed {run.config.seed}: {method}: {shown}", flush=True)
    return state


def free_of_evaluation(name: str, config) -> bool:
    """Whether an evaluation stays valid with another value of this field."""
    return may_differ(name, config) and name not in ("train.eval_tasks", "train.eval_temperature", "train.traces")


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def tidy(metrics: dict, update: int, stage: int, seconds: float, run: Run) -> dict:
    """The metrics of an update as they are written: plain floats under the report's names."""
    out: dict = {"update": update + 1, "stage": stage, "seconds": seconds}
    for name, value in metrics.items():
        name = name.removeprefix("rollout/")
        for short, long in (("term_", "term/"), ("reward_", "reward/"), ("calls_", "calls/"), ("memory_", "memory/")):
            name = long + name.removeprefix(short) if name.startswith(short) else name
        out[name] = float(value)
    rows = run.spec.rollout.batch
    if "generated_tokens" in out:
        out["tokens_per_s"] = out["generated_tokens"] * rows / seconds
        out["trained_tokens_per_s"] = out["trained_tokens"] / seconds
    return out


def check_finite(record: dict) -> None:
    """A run that has diverged stops here, with its last good checkpoint on disk."""
    bad = [name for name in ("loss", "grad_norm", "reward") if name in record and not np.isfinite(record[name])]
    if bad:
        raise FloatingPointError(
            f"update {record['update']}: {', '.join(bad)} not finite; the last checkpoint is intact. "
            "Lower optim.learning_rate or optim.max_grad_norm and start again in a new workdir."
        )
