"""Makes the warm-started policy of the tiny default from nothing: vocabulary, demonstrations, supervised training.

    python -m experiments.warm_start --config=configs/tiny.py --export=agemem_jax/assets/tiny

The export is a Hugging Face folder (config.json, model.safetensors) with the sentencepiece model beside it.
"""

import json
import time
from pathlib import Path

import jax
from tqdm import tqdm

from agemem_jax.config import check_precision
from agemem_jax.data import vocabulary
from agemem_jax.data.demos import Demonstrator
from agemem_jax.models import weights
from agemem_jax.training.lock import hold
from agemem_jax.training.setup import build
from agemem_jax.training.state import new_state
from agemem_jax.training.warm import warm_optimizer, warm_step
from experiments import cli, out, paths

EXPORT = paths.define_path("export", None, "folder for the warm-started policy", required=True)


def main(config) -> None:
    folder = paths.folder_to_write("export", EXPORT.value)
    with hold(folder, "--export"):
        make(config, folder)


def make(config, folder: Path) -> None:
    """Trains the policy and writes it with its vocabulary."""
    config.policy.weights, config.policy.lora_rank = "", 0  # begins from nothing, and trains all of it
    check_precision(config.policy)
    config.policy.tokenizer = str(folder / vocabulary.FILE_NAME)
    vocabulary.build(config.policy.tokenizer, config.tools)
    group = config.rl.group_size
    config.rl.tasks_per_update = -(-config.warm.batch // group)
    run = build(config)
    optimizer = warm_optimizer(config.warm, config.optim.max_grad_norm)
    state = new_state(run.start(), optimizer)
    step = jax.jit(
        warm_step(run.spec.rollout, run.spec.learn, run.model, optimizer, config.rl.logit_chunk), donate_argnums=0
    )
    demos = Demonstrator(run.source, config, run.tokenizer.end_of_turn)
    curve, began = [], time.time()
    batch = demos.batch(0, run.spec.rollout.batch)
    bar = tqdm(range(config.warm.steps), desc="warm start")
    for i in bar:
        state, metrics = step(state, *batch, run.world)
        batch = demos.batch(i + 1, run.spec.rollout.batch)  # made while the device works
        if i % 20 == 0 or i + 1 == config.warm.steps:
            metrics = {name: float(value) for name, value in metrics.items()}
            curve.append({"step": i, "seconds": time.time() - began, **metrics})
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", demo=f"{metrics['demo_score']:.2f}")
    weights.save_hf(folder, run.model, state.params)
    out.write({"config": json.loads(config.to_json_best_effort()), "curve": curve})


if __name__ == "__main__":
    cli.run(main)
