"""LongMemEval: a question about some 40 chats, 115,000 tokens in all.

    python -m experiments.train --config=configs/longmemeval.py --config.policy.weights=FILE \\
        --config.task.path=longmemeval_s.json --workdir=runs/longmemeval

Nothing is trained and all 500 questions are tested; --config.rl.updates=N --config.task.test_fraction=0.5 trains on the
first half. Its answers want a judge: reward.task_metric.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.workstation()
    c.name = "longmemeval"
    c.store.entries = 256
    c.store.entry_tokens = 96
    c.task.benchmark = "longmemeval"
    c.task.validation_fraction = 0.0
    c.task.test_fraction = 1.0
    c.task.facts = 500
    c.task.distractors = 1
    c.task.chunk_tokens = 512
    c.task.message_tokens = 512
    c.task.answer_tokens = 64
    c.context.limit = 6144
    c.context.capacity = 4608  # without the system prompt, which is shared
    c.rollout.stage3_turns = 3
    c.rl.updates = 0
    return c
