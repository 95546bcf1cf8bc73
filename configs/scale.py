"""What the large configs share: the published recipe's sizes, and how they lie on a slice of chips.

Not a run of its own: see qwen25_7b.py, qwen3.py and llama32.py. Each takes size, slice and context as an argument of
the file, as in --config=configs/qwen3.py:4b-v5p-16. All were compiled for their slices.
"""

from ml_collections import ConfigDict

from agemem_jax.errors import InputError
from configs import base

LONG = dict(context__limit=32768, context__capacity=34816)  # "-32k", in place of 8,192


def published(name: str, variant: str, slices: dict[str, dict]) -> ConfigDict:
    """The published recipe (group 8, KL 0.1, context 8,192, responses of up to 2,048 tokens), fitted to a slice.

    Args:
      variant: one of `slices`; its name says which slice, e.g. "v5p-16", "4b-h100-4", "v5p-32-32k".
      slices: {variant: fields that differ from the recipe's}, names as in `rl__micro_batch`.

    Raises InputError naming the variants there are.
    """
    if variant not in slices:
        known = ", ".join(slices)
        raise InputError(f"--config=configs/{name}.py:{variant}: there is no such variant; there are {known}")
    c = base.get_config()
    c.name = f"{name}-{variant}"
    c.policy.dtype = "bfloat16"
    c.policy.scan_layers = True
    c.policy.remat = "full"
    c.policy.attention = "splash"
    c.policy.query_block = 64  # of the prefill behind a history
    c.context.limit, c.context.capacity = 8192, 10240
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
