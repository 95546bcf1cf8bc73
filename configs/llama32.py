"""Llama-3.2-Instruct of 1B and 3B in the published recipe.

    python -m experiments.train --config=configs/llama32.py:1b-v5e-16 --config.policy.weights=DIR \\
        --config.task.path=hotpot_train_v1.1.json --workdir=runs/llama32_1b
    python -m experiments.plan --config=configs/llama32.py:1b-v5e-16 --topology=v5e-16

Not run on such machines yet: compiled for them ahead of time; the README has the figures that `plan` prints. Llama's
scaled positions come with its weights.
"""

from configs.scale import published, shape

SIZES = {
    "1b": dict(hidden_size=2048, num_layers=16, num_heads=32, head_dim=64),
    "3b": dict(hidden_size=3072, num_layers=28, num_heads=24, head_dim=128),
}
SLICES = {
    "1b-v5e-16": dict(mesh__tensor=2, rl__micro_batch=16),
    "3b-v5e-16": dict(mesh__tensor=4, mesh__learner="tensor", rl__tasks_per_update=4, rl__micro_batch=4),
}


def get_config(variant: str = "1b-v5e-16"):
    c = published("llama32", variant, SLICES)
    common = dict(vocab_size=128256, intermediate_size=8192, num_kv_heads=8, qkv_bias=False, qk_norm=False)
    common |= dict(tie_word_embeddings=True, rope_theta=5e5, rms_norm_eps=1e-5)
    return shape(c, **common | SIZES[variant.split("-")[0]])
