"""BabyAI: instructions are told among those of other levels, and carried out later, in AgentBoard's words.

    python -m experiments.train --config=configs/babyai.py --config.policy.weights=FILE --workdir=runs/babyai
    python -m experiments.train --config=configs/babyai.py:tiny --workdir=runs/babyai_tiny

minigrid makes the levels (pip install 'agemem_jax[babyai]'): of the config AgentBoard's, of ":tiny" small ones, for a
small policy on a laptop. AgentBoard's own 112 episodes, without anything told: --config.task.official=true.
"""

from pathlib import Path

from ml_collections import ConfigDict

import agemem_jax
from agemem_jax.errors import InputError
from configs import base

WORLDS = Path(agemem_jax.__file__).parent / "assets" / "worlds"  # words of all benchmarks
# Of each kind, with few objects in view: what is seen is then some 30 tokens. Who knows what to do needs 3 actions; who
# tries what is in view is done within 6 in one case of three.
SMALL = tuple(
    f"BabyAI-{name}-v0"
    for name in """
    PickupDist OpenDoorColor PutNextLocalS6N4 GoToSeqS5R2 FindObjS5 GoToObjMazeS5 ActionObjDoor GoToDoor
    """.split()
)
BRIEF = (
    "turn left, turn right, move forward, toggle, drop, pickup NAME NUMBER, go to NAME NUMBER, "
    "go through NAME NUMBER, toggle and go through NAME NUMBER, check available actions"
)


def get_config(variant: str = "") -> ConfigDict:
    """The run with real weights, or the one of a small policy ("tiny"). Raises InputError for another variant."""
    if variant not in ("", "tiny"):
        raise InputError(f"--config=configs/babyai.py:{variant}: there is no such variant; there is 'tiny'")
    c = base.get_config()
    c.name = f"babyai-{variant}" if variant else "babyai"
    c.task.benchmark = "babyai"
    c.task.revised = 0.45  # a third of the tasks has an instruction of its own that is revised
    c.tools.action_tag = "action"
    c.rollout.stage1_answer_ends = False
    return _small(c) if variant else _real(c)


def _real(c: ConfigDict) -> ConfigDict:
    c.tools.action_brief = BRIEF
    c.tools.body_tokens = 80
    c.tools.max_calls = 2
    c.tools.max_tags = 1
    c.tools.max_top_k = 2
    c.tools.default_top_k = 2
    c.store.entries = 16
    c.store.entry_tokens = 48
    c.task.facts = 8
    c.task.distractors = 6
    c.task.message_tokens = 48
    c.task.seen_tokens = 224
    c.task.auto_top_k = 1
    c.task.auto_min_score = 0.2
    c.task.train_size = 2048
    c.task.test_size = 112
    c.context.limit = 6144
    c.context.capacity = 6656
    c.context.messages = 96
    c.rollout.action_tokens = 112
    c.rollout.summary_tokens = 64
    c.rollout.stage3_turns = 12
    c.rollout.summary_slots = 1
    c.rollout.prefill_chunk = 64
    c.rl.updates = 3
    c.rl.tasks_per_update = 1
    c.rl.group_size = 4
    c.rl.kl_coef = 0.0  # a reference would need a second copy of the weights
    c.rl.micro_batch = 4
    c.rl.logit_chunk = 256
    c.optim.learning_rate = 1e-6
    c.policy.remat = "full"
    c.train.eval_tasks = 4
    c.train.traces = 4
    c.train.checkpoint_every = 3
    return c


def _small(c: ConfigDict) -> ConfigDict:
    c.policy.tokenizer = str(WORLDS / "tokenizer.model")
    c.tools.max_calls = 1
    c.tools.min_calls = 0
    c.tools.max_tags = 1
    c.tools.max_top_k = 2
    c.tools.default_top_k = 2
    c.tools.think = False
    c.tools.optional_arguments = False
    c.store.entries = 4
    c.store.entry_tokens = 28
    c.store.tag_tokens = 4
    c.store.embedding_size = 128
    c.store.min_score = 0.0
    c.task.parts = SMALL
    c.task.facts = 8
    c.task.distractors = 6
    c.task.message_tokens = 28
    c.task.answer_tokens = 4
    c.task.seen_tokens = 96
    c.task.auto_top_k = 1
    c.task.auto_min_score = 0.5
    c.context.limit = 512
    c.context.capacity = 512
    c.context.messages = 64
    c.context.max_segments = 8
    c.context.low_water = 0.85
    c.context.filter_threshold = 0.5
    c.rollout.action_tokens = 32
    c.rollout.summary_tokens = 16
    c.rollout.stage3_turns = 6
    c.rollout.summary_slots = 2
    c.rollout.prefill_chunk = 32
    c.rollout.prefill_rows = 16
    c.rollout.history_widths = 3
    c.rl.updates = 200
    c.rl.tasks_per_update = 12
    c.rl.group_size = 8
    c.rl.kl_coef = 0.05
    c.rl.micro_batch = 16
    c.rl.credit = "turn_to_go"
    c.reward.context = 0.6
    c.reward.compression = c.reward.preventive = 0.0
    c.reward.memory = 2.0
    c.reward.storage = 1.0
    c.reward.maintenance = 1.0
    c.reward.task_metric = "success"
    c.warm.steps = 500
    c.warm.batch = 64
    c.train.eval_tasks = 256
    c.optim.learning_rate = 1e-3
    c.optim.warmup_updates = 5
    return c
