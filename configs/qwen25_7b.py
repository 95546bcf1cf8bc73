"""Qwen2.5-7B-Instruct, the paper's first model, with its recipe.

    python -m experiments.train --config=configs/qwen25_7b.py:v5p-16 --config.policy.weights=DIR \\
        --config.task.path=hotpot_train_v1.1.json --workdir=runs/qwen25_7b
    python -m experiments.plan --config=configs/qwen25_7b.py:v5p-16 --topology=v5p-16

Not run on such machines yet: compiled for them ahead of time; the README has the figures that `plan` prints.
"""

from configs.scale import LONG, published, shape

SLICES = {
    "v5e-64": dict(mesh__tensor=4, mesh__learner="tensor", rl__tasks_per_update=8, rl__micro_batch=16),
    "v6e-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=16),
    "v5p-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=8, policy__remat="minimal"),
    "v5p-128": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=64, policy__remat="minimal"),
    # Rows of 35,900 positions: Qwen2.5's 32,768 are scaled as its model card says, by a rope_scaling in its config.json
    # (yarn, factor 2 or more).
    "v5p-32-32k": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=16, **LONG),
    # In a loop, a GPU copies each layer's weights and cache for every token before it reads them.
    "h100-8": dict(
        policy__attention="cudnn",
        policy__scan_layers=False,
        mesh__tensor=4,
        rl__tasks_per_update=8,
        rl__micro_batch=16,
    ),
}


def get_config(variant: str = "v5p-128"):
    return shape(
        published("qwen25_7b", variant, SLICES),
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=28, num_heads=28, num_kv_heads=4,
        head_dim=128, qkv_bias=True, qk_norm=False, tie_word_embeddings=False, rope_theta=1e6, rms_norm_eps=1e-6,
    )  # fmt: skip
