"""Qwen3-4B-Instruct, the paper's second model, with its recipe.

    python -m experiments.train --config=configs/qwen3_4b.py:v5p-16 --config.policy.weights=DIR \\
        --config.task.path=hotpot_train_v1.1.json --workdir=runs/qwen3_4b
    python -m experiments.plan --config=configs/qwen3_4b.py:v5p-16 --topology=v5p-16

Not run on such machines yet: compiled for them ahead of time; the README has the figures that `plan` prints.
"""

from configs.scale import published, shape

SLICES = {
    "v5p-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=16),
    # In a loop, a GPU copies each layer's weights and cache for every token before it reads them.
    # Stage 3 takes 60.4 GiB, and JAX unasked reserves 59.7: run with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
    "h100-4": dict(
        policy__attention="cudnn",
        policy__scan_layers=False,
        mesh__tensor=4,
        rl__tasks_per_update=8,
        rl__micro_batch=4,
    ),
}


def get_config(variant: str = "v5p-16"):
    return shape(
        published("qwen3_4b", variant, SLICES),
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32, num_kv_heads=8,
        head_dim=128, qkv_bias=False, qk_norm=True, tie_word_embeddings=True, rope_theta=5e6, rms_norm_eps=1e-6,
    )  # fmt: skip
