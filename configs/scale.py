"""What the large configs share: the published recipe's sizes, and how they lie on a slice of chips.

Not a run of its own: see qwen25_7b.py and qwen3_4b.py, the published models, and the shapes beside them. Each takes the
slice as an argument of the file, and the context if it is not 8k:

    --config=configs/qwen25_7b.py:v5e-64      --config=configs/qwen25_7b.py:v5p-16-32k
"""

from ml_collections import ConfigDict

from configs import base

# Name of a slice: its topology, as experiments/plan.py takes it. Google counts v5p by its cores, two a chip.
TOPOLOGIES = {
    "v5e-16": "v5e:4x4",
    "v5e-64": "v5e:8x8",
    "v5p-16": "v5p:2x2x2",
    "v5p-128": "v5p:4x4x4",
    "v6e-16": "v6e:4x4",
    "4xh100": "h100:4",
    "8xh100": "h100:8",
}
CONTEXTS = {"8k": (8192, 10240), "32k": (32768, 36864)}  # context.limit and context.capacity


def published(name: str, variant: str, slices: dict[str, dict]) -> ConfigDict:
    """The published recipe (group 8, KL 0.1, context 8,192, responses of up to 2,048 tokens) on a slice.

    Args:
      variant: a slice of `slices`, with the context behind it if that is not 8k.
      slices: {variant: fields that differ from the recipe's}, names as in `rl__micro_batch`.

    Raises ValueError naming the variants there are.
    """
    if variant not in slices:
        known = ", ".join(slices)
        raise ValueError(f"--config=configs/{name}.py:{variant}: there is no such variant; there are {known}")
    c = base.get_config()
    c.name = f"{name}-{variant}"
    c.policy.dtype = "bfloat16"
    c.policy.scan_layers = True
    c.policy.remat = True
    c.policy.attention = "cudnn" if "h100" in variant else "splash"
    c.policy.query_block = 64  # of the prefill behind a history
    c.context.limit, c.context.capacity = CONTEXTS["32k" if variant.endswith("-32k") else "8k"]
    c.tools.body_tokens = 512
    c.rollout.prefill_chunk = 512
    c.rl.group_size = 8
    c.rl.kl_coef = 0.1
    c.rl.updates = 100
    c.rl.widths = 1
    c.rl.logit_chunk = 512
    c.optim.learning_rate = 1e-6
    c.optim.warmup_updates = 5
    c.train.checkpoint_every = 10
    c.train.eval_tasks = 64
    c.update_from_flattened_dict({field.replace("__", "."): value for field, value in slices[variant].items()})
    return c


def shape(c: ConfigDict, **sizes) -> ConfigDict:
    """Sets the architecture: read where no weights are given (to plan, or to train from nothing)."""
    c.policy.update(sizes)
    return c
