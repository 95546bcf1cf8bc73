"""BabyAI: instructions are told among those of other levels, and carried out later, in AgentBoard's words.

    python -m experiments.train --config=configs/babyai.py --config.policy.weights=FILE --workdir=runs/babyai
    python -m experiments.train --config=configs/babyai.py:tiny --workdir=runs/babyai_tiny

minigrid makes the levels (pip install 'agemem_jax[babyai]'): of the config AgentBoard's, of ":tiny" small ones, for a
small policy on a laptop. AgentBoard's own 112 episodes, without anything told: --config.task.official=true. Their
progress is success, or with AgentBoard's label file (--config.task.labels_path=data/babyai/test.jsonl) its subgoals.
"""

from ml_collections import ConfigDict

from configs import base, tiny

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
    """The run with real weights, or the one of a small policy ("tiny"). Raises ConfigError for another variant."""
    small = base.is_tiny("babyai", variant)
    c = tiny.world() if small else base.workstation()
    c.name = "babyai-tiny" if small else "babyai"
    c.task.benchmark = "babyai"
    c.task.revised = 0.45  # a third of the tasks has an instruction of its own that is revised
    c.tools.action_tag = "action"
    c.rollout.stage1_answer_ends = False
    return _small(c) if small else _real(c)


def _real(c: ConfigDict) -> ConfigDict:
    c.tools.action_brief = BRIEF
    c.store.entry_tokens = 48
    c.task.facts = 8
    c.task.distractors = 6
    c.task.message_tokens = 48
    c.task.seen_tokens = 224
    c.task.train_size = 2048
    c.task.test_size = 112
    c.context.limit = 6144
    c.context.capacity = 6656
    c.context.messages = 96
    c.rollout.stage3_turns = 12
    return c


def _small(c: ConfigDict) -> ConfigDict:
    c.store.entries = 4
    c.store.entry_tokens = 20
    c.task.parts = SMALL
    c.task.facts = 8
    c.task.distractors = 13
    c.task.message_tokens = 20
    c.task.seen_tokens = 80
    # What was told in stage 1 is out of sight when the task comes, whether the agent cared for its context or not.
    c.context.limit = c.context.capacity = 216
    c.context.max_segments = 8
    c.rollout.action_tokens = 34  # a call with any message in it
    c.rollout.stage3_turns = 6
    c.reward.task_metric = "success"
    return c
