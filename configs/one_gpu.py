"""Qwen3-0.6B on one GPU: short contexts and turns, 32 rollouts.

    python -m experiments.train --config=configs/one_gpu.py --config.policy.weights=DIR \\
        --config.task.path=hotpot_train_v1.1.json --workdir=runs/one_gpu

Also what `experiments/benchmark_device` measures: 28 s an update on an H100, with the XLA_FLAGS of the README.
"""

from ml_collections import ConfigDict

from configs import qwen3


def get_config() -> ConfigDict:
    c = qwen3.get_config("0.6b-v5e-16")
    c.name = "one_gpu"
    c.policy.attention = "cudnn"
    c.policy.scan_layers = False  # in a loop, a GPU copies each layer's weights and cache for every token
    c.mesh.tensor = 1
    c.context.limit = 4096
    c.context.capacity = 3072  # beside Qwen's prompt of 1,100 tokens
    c.tools.body_tokens = 64
    c.rollout.action_tokens = 96
    c.rollout.summary_tokens = 96
    c.rollout.stage3_turns = 3
    c.rl.tasks_per_update = 4
    c.rl.micro_batch = 8
    c.train.traces = 32
    return c
