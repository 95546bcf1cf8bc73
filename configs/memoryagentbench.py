"""MemoryAgentBench: a long text in chunks, then questions; each competence is a file of its own.

    python -m experiments.train --config=configs/memoryagentbench.py --config.policy.weights=FILE \\
        --config.task.path=FILE --workdir=runs/memoryagentbench

Nothing is trained and all questions are tested; task.parts names sources of the file.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.workstation()
    c.name = "memoryagentbench"
    c.store.entries = 256
    c.store.entry_tokens = 96
    c.task.benchmark = "memoryagentbench"
    c.task.validation_fraction = 0.0
    c.task.test_fraction = 1.0
    c.task.facts = 1000
    c.task.distractors = 1
    c.task.chunk_tokens = 512
    c.task.message_tokens = 512
    c.task.answer_tokens = 64
    c.context.limit = 6144
    c.context.capacity = 4608  # without the system prompt, which is shared
    c.rollout.stage3_turns = 3
    c.rl.updates = 0
    return c
