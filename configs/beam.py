"""BEAM: long chats with twenty probing questions each; `path` is a folder such as chats/100K.

    python -m experiments.train --config=configs/beam.py --config.policy.weights=FILE \\
        --config.task.path=FOLDER --workdir=runs/beam

Nothing is trained and all questions are tested. Ideal answers are whole sentences and want a judge: reward.task_metric.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.workstation()
    c.name = "beam"
    c.store.entries = 256
    c.store.entry_tokens = 96
    c.task.benchmark = "beam"
    c.task.validation_fraction = 0.0
    c.task.test_fraction = 1.0
    c.task.facts = 500
    c.task.distractors = 1
    c.task.chunk_tokens = 512
    c.task.message_tokens = 512
    c.task.answer_tokens = 256
    c.context.limit = 6144
    c.context.capacity = 4608  # without the system prompt, which is shared
    c.rollout.stage3_turns = 3
    c.rl.updates = 0
    return c
