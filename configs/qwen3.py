"""Qwen3 in the published recipe: 4B, the paper's second model (as Instruct-2507), 0.6B, 1.7B and 8B.

    python -m experiments.train --config=configs/qwen3.py:4b-v5p-16 --config.policy.weights=DIR \\
        --config.task.path=hotpot_train_v1.1.json --workdir=runs/qwen3_4b
    python -m experiments.plan --config=configs/qwen3.py:4b-v5p-16 --topology=v5p-16

Not run on such machines yet: compiled for them ahead of time; the README has the figures that `plan` prints.
"""

from configs.scale import LONG, published, shape

SIZES = {
    "0.6b": dict(hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16),
    "1.7b": dict(hidden_size=2048, intermediate_size=6144, num_layers=28, num_heads=16),
    "4b": dict(hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32, rope_theta=5e6),
    "8b": dict(hidden_size=4096, intermediate_size=12288, num_layers=36, num_heads=32, tie_word_embeddings=False),
}
SLICES = {
    "0.6b-v5e-16": dict(mesh__tensor=2, rl__tasks_per_update=8, rl__micro_batch=16),
    "1.7b-v5e-16": dict(mesh__tensor=2, rl__tasks_per_update=4, rl__micro_batch=16),
    "4b-v5e-16": dict(mesh__tensor=4, mesh__learner="tensor", rl__tasks_per_update=4, rl__micro_batch=4),
    "4b-v6e-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=16),
    "4b-v5p-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=8, policy__remat="minimal"),
    # In a loop, a GPU copies each layer's weights and cache for every token before it reads them.
    # Stage 3 takes 57.5 GiB of the 59.7 that JAX reserves unasked: XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 leaves room.
    "4b-h100-4": dict(
        mesh__tensor=4, policy__attention="cudnn", policy__scan_layers=False, rl__tasks_per_update=8, rl__micro_batch=4,
    ),
    "4b-v5p-32-32k": dict(mesh__tensor=4, rl__tasks_per_update=4, rl__micro_batch=16, **LONG),
    "8b-v5p-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=8, policy__remat="minimal"),
}


def get_config(variant: str = "4b-v5p-16"):
    c = published("qwen3", variant, SLICES)
    common = dict(vocab_size=151936, num_kv_heads=8, head_dim=128, qkv_bias=False, qk_norm=True)
    common |= dict(tie_word_embeddings=True, rope_theta=1e6, rms_norm_eps=1e-6)
    return shape(c, **common | SIZES[variant.split("-")[0]])
