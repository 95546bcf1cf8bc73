"""Makes the warm-started policy of the tiny default from nothing: vocabulary, lessons, demonstrations.

    python -m experiments.warm_start --config=configs/tiny.py --export=agemem_jax/assets/tiny

The export is a Hugging Face folder (config.json, model.safetensors) with the sentencepiece model beside it.
"""

import dataclasses
import functools
import json
import shutil
import time
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from agemem_jax import sharding
from agemem_jax.benchmarks import vocabulary
from agemem_jax.config import check_precision, refuse
from agemem_jax.models import weights
from agemem_jax.training.lock import hold
from agemem_jax.training.setup import build
from agemem_jax.training.state import new_state
from agemem_jax.training.warm import lesson_step, warm_optimizer, warm_step
from agemem_jax.types import TrainState
from experiments import cli, out, paths

EXPORT = paths.define_path("export", None, "folder for the warm-started policy", required=True)


def main(config) -> None:
    folder = paths.folder_to_write("export", EXPORT.value)
    with hold(folder, "--export"):
        make(config, folder)


def make(config, folder: Path) -> None:
    """Trains the policy and writes it with its vocabulary."""
    config.policy.weights, config.policy.lora_rank = config.warm.weights, 0  # trains all of it
    check_precision(config.policy)
    file = folder / vocabulary.FILE_NAME
    if config.warm.weights:
        shutil.copyfile(config.policy.tokenizer, file)
    else:
        vocabulary.build(str(file), config.tools)
    config.policy.tokenizer = str(file)
    group = config.rl.group_size
    config.rl.tasks_per_update = -(-config.warm.batch // group)
    run = build(config)
    learn, size = run.spec.learn, run.spec.rollout.batch
    # It reads what lessons and rows reach, whichever is longer.
    reach = max(run.model.max_positions, int(run.world.pieces.prefix.length[0]) + config.warm.lesson_tokens)
    model = dataclasses.replace(run.model, max_positions=reach)
    warm, params, tasks = config.warm, run.start(), run.source.tasks
    for name in ("lessons", "dealings", "lesson_every"):
        if warm[name] and not tasks.lessons:
            refuse(f"warm.{name}", warm[name], f"{config.task.benchmark} has no lessons; set it to 0")
    demos = tasks.demonstrator(run.source, config, run.tokenizer.end_of_turn)
    lessons = tasks.lessons and tasks.lessons(config, run.tokenizer, run.world.pieces)
    read = functools.partial(lesson_step, learn), lambda i: (lessons.batch(i, warm.lesson_batch),)
    watch = functools.partial(warm_step, run.spec.rollout, learn), lambda i: demos.batch(i, size)
    every, after = warm.lesson_every, warm.lessons + warm.dealings
    phases = {
        "lessons": (warm.lesson_rate, [(read, i) for i in range(warm.lessons)]),
        "dealings": (warm.lesson_rate, [(read, warm.lessons + i) for i in range(warm.dealings)]),
        # What it has learnt to read is kept up while it watches.
        "demonstrations": (
            warm.learning_rate,
            [(read, after + i) if every and i % every == every - 1 else (watch, i) for i in range(warm.steps)],
        ),
    }
    curves, began = {}, time.time()
    for name, (rate, steps) in phases.items():
        optimizer = warm_optimizer(warm, rate, len(steps), config.optim.max_grad_norm)
        state, curves[name] = placed(new_state(params, optimizer), run.mesh), []
        # It stays where it is, so that each kind of step compiles once.
        where = jax.tree.map(lambda x: x.sharding, state), None
        jitted = {
            kind: jax.jit(kind(model, optimizer, config.rl.logit_chunk), donate_argnums=0, out_shardings=where)
            for kind, _ in (read, watch)
        }
        bar = tqdm(steps, desc=name)
        for step, ((kind, batch_at), i) in enumerate(bar):
            state, metrics = jitted[kind](state, *batch_at(i), run.world)
            if step % 20 == 0 or step + 1 == len(steps):
                metrics = {key: float(value) for key, value in metrics.items()}
                curves[name].append({"step": step, "seconds": time.time() - began, **metrics})
                bar.set_postfix(loss=f"{metrics['loss']:.4f}")
        params = state.params
    weights.save_hf(folder, model, params)
    out.write({"config": json.loads(config.to_json_best_effort()), "curves": curves})


def placed(state: TrainState, mesh: Mesh) -> TrainState:
    """The state with what lies on no mesh (counters) on every device of this one."""
    everywhere = sharding.replicated(mesh)
    put = lambda x: x if isinstance(x.sharding, NamedSharding) else sharding.put(x, everywhere)  # noqa: E731
    return jax.tree.map(put, state)


if __name__ == "__main__":
    cli.run(main)
