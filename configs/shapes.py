"""Other models in the published recipe: Qwen3-0.6B, 1.7B and 8B, Llama-3.2-1B and 3B (Instruct).

    python -m experiments.train --config=configs/shapes.py:qwen3_8b-v5p-16 --config.policy.weights=DIR ...
    python -m experiments.plan --config=configs/shapes.py:llama32_1b-v5e-16

Not run on such machines yet: compiled for them ahead of time. Llama's scaled positions come with its weights.
"""

from configs.scale import published, shape

QWEN3 = dict(vocab_size=151936, head_dim=128, num_kv_heads=8, qkv_bias=False, qk_norm=True, rope_theta=1e6)
LLAMA = dict(vocab_size=128256, num_kv_heads=8, qkv_bias=False, qk_norm=False, rope_theta=5e5, rms_norm_eps=1e-5)
MODELS = {
    "qwen3_06b": QWEN3 | dict(hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16),
    "qwen3_17b": QWEN3 | dict(hidden_size=2048, intermediate_size=6144, num_layers=28, num_heads=16),
    "qwen3_8b": QWEN3
    | dict(hidden_size=4096, intermediate_size=12288, num_layers=36, num_heads=32, tie_word_embeddings=False),
    "llama32_1b": LLAMA | dict(hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, head_dim=64),
    "llama32_3b": LLAMA | dict(hidden_size=3072, intermediate_size=8192, num_layers=28, num_heads=24, head_dim=128),
}
SLICES = {
    "qwen3_06b-v5e-16": dict(mesh__tensor=2, rl__micro_batch=16),
    "qwen3_17b-v5e-16": dict(mesh__tensor=2, rl__micro_batch=16),
    "qwen3_8b-v5p-16": dict(mesh__tensor=4, rl__tasks_per_update=8, rl__micro_batch=16),
    "llama32_1b-v5e-16": dict(mesh__tensor=2, rl__micro_batch=16),
    "llama32_3b-v5e-16": dict(mesh__tensor=4, rl__micro_batch=16),
}


def get_config(variant: str = "qwen3_8b-v5p-16"):
    return shape(published("shapes", variant, SLICES), **MODELS[variant.partition("-")[0]])
