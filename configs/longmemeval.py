"""LongMemEval: a question about some 40 chats, 115,000 tokens in all.

    python -m experiments.train --config=configs/longmemeval.py --config.policy.weights=FILE \\
        --config.task.path=longmemeval_s.json --workdir=runs/longmemeval

Nothing is trained and all 500 questions are tested; --config.rl.updates=N --config.task.test_fraction=0.5 trains on the
first half. Its answers want a judge: reward.task_metric.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.conversations()
    c.name = "longmemeval"
    c.task.benchmark = "longmemeval"
    c.task.facts = 500
    c.task.answer_tokens = 64
    return c
