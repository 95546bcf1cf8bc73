"""BEAM: long chats with twenty probing questions each; `path` is a folder such as chats/100K.

    python -m experiments.train --config=configs/beam.py --config.policy.weights=FILE \\
        --config.task.path=FOLDER --workdir=runs/beam

Nothing is trained and all questions are tested. Ideal answers are whole sentences and want a judge: reward.task_metric.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.conversations()
    c.name = "beam"
    c.task.benchmark = "beam"
    c.task.facts = 500
    c.task.answer_tokens = 256
    return c
