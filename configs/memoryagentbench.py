"""MemoryAgentBench: a long text in chunks, then questions; each competence is a file of its own.

    python -m experiments.train --config=configs/memoryagentbench.py --config.policy.weights=FILE \\
        --config.task.path=FILE --workdir=runs/memoryagentbench

Nothing is trained and all questions are tested; task.parts names sources of the file.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    c = base.conversations()
    c.name = "memoryagentbench"
    c.task.benchmark = "memoryagentbench"
    c.task.facts = 1000
    c.task.answer_tokens = 64
    return c
