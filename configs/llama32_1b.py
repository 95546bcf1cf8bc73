"""Llama-3.2-1B-Instruct in the published recipe.

    python -m experiments.train --config=configs/llama32_1b.py:v5e-16 --config.policy.weights=DIR \\
        --config.task.path=hotpot_train_v1.1.json --workdir=runs/llama32_1b
    python -m experiments.plan --config=configs/llama32_1b.py:v5e-16 --topology=v5e-16

Not run on such machines yet: compiled for them ahead of time; the README has the figures that `plan` prints. Llama's
scaled positions come with its weights.
"""

from configs.scale import published, shape

SLICES = {
    "v5e-16": dict(mesh__tensor=2, rl__micro_batch=16),
}


def get_config(variant: str = "v5e-16"):
    return shape(
        published("llama32_1b", variant, SLICES),
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, num_kv_heads=8,
        head_dim=64, qkv_bias=False, qk_norm=False, tie_word_embeddings=True, rope_theta=5e5, rms_norm_eps=1e-5,
    )  # fmt: skip
