"""LoCoMo: ten long conversations of two people, with dates.

    python -m experiments.train --config=configs/locomo.py --config.policy.weights=FILE \\
        --config.task.path=locomo10.json --workdir=runs/locomo

The split is that of trained systems, 152, 81 and 1,307 questions (benchmarks/locomo/tasks.py). All 1,986, with nothing
trained: --config.task.parts="()" --config.rl.updates=0 --config.task.test_fraction=1.0
--config.task.validation_fraction=0.0
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.workstation()
    c.name = "locomo"
    c.store.entries = 128
    c.store.entry_tokens = 96
    c.task.benchmark = "locomo"
    c.task.parts = ("multi-hop", "temporal", "open-domain", "single-hop")
    c.task.validation_fraction = 0.1
    c.task.test_fraction = 0.8
    c.task.facts = 256
    c.task.distractors = 1
    c.task.chunk_tokens = 256
    c.task.message_tokens = 256
    c.task.answer_tokens = 32
    c.context.limit = 4096
    c.context.capacity = 2560  # without the system prompt, which is shared
    c.rollout.stage3_turns = 3
    return c
