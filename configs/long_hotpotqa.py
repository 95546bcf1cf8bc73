"""Long HotpotQA: 50, 100, 200 or 400 documents are read in chunks, then the question.

    python -m experiments.train --config=configs/long_hotpotqa.py --config.policy.weights=FILE \\
        --config.task.path=hotpot_dev_distractor_v1.json --workdir=runs/long_hotpotqa

--config.task.documents=200 sets how many. A document has some 120 tokens: task.facts, the messages that there is room
for, is to be a third of the documents at chunks of 512 tokens.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.workstation()
    c.name = "long_hotpotqa"
    c.store.entries = 64
    c.store.entry_tokens = 96
    c.task.benchmark = "long_hotpotqa"
    c.task.documents = 50
    c.task.validation_fraction = 0.1
    c.task.test_fraction = 0.2
    c.task.facts = 160
    c.task.distractors = 1
    c.task.chunk_tokens = 512
    c.task.message_tokens = 512
    c.task.answer_tokens = 32
    c.context.limit = 6144
    c.context.capacity = 4608  # without the system prompt, which is shared
    c.rollout.stage3_turns = 3
    return c
