"""PDDL's four domains as AgentBoard plays them, with goals that are told in stage 1 and asked for in stage 3.

    python -m experiments.train --config=configs/pddl.py --config.policy.weights=FILE \\
        --config.task.test_path=FOLDER --workdir=runs/pddl

`weights` as in configs/hotpotqa.py. Training problems are generated; `test_path` is AgentBoard's pddl folder (gripper,
blockworld, barman, tyreworld, each with domain.pddl and problems), "" = generated test problems as well.
`:tiny` is a small policy for a laptop.
"""

from ml_collections import ConfigDict

from configs import base, tiny


def get_config(variant: str = "") -> ConfigDict:
    return small() if base.is_tiny("pddl", variant) else real()


def worlds(c: ConfigDict) -> None:
    """What both have."""
    c.task.benchmark = "pddl"
    c.task.revised = 0.4
    c.task.train_size = 1024  # they are grounded before training begins
    c.task.validation_size = 64
    c.task.test_size = 128
    c.tools.action_tag = "action"
    c.train.eval_tasks = 128


def real() -> ConfigDict:
    c = base.workstation()
    worlds(c)
    c.name = "pddl"
    c.tools.action_brief = (
        "An action is its name and its objects, such as: pick ball1 rooma left. "
        "check valid actions lists those that can be taken now; look around tells what holds."
    )
    c.tools.max_top_k = 4
    c.tools.default_top_k = 4
    c.store.entry_tokens = 64
    c.task.highest_level = 3
    c.task.facts = 16
    c.task.chatter = 2
    c.task.distractors = 6
    c.task.message_tokens = 96
    c.task.seen_tokens = 512
    c.context.limit = 4800
    c.context.capacity = 4096  # without the system prompt, which is shared
    c.context.messages = 96
    c.context.max_segments = 8
    c.rollout.stage3_turns = 30

    return c


def small() -> ConfigDict:
    c = tiny.world()
    worlds(c)
    c.name = "pddl-tiny"
    c.tools.max_top_k = 4
    c.tools.default_top_k = 4
    c.store.entries = 4
    c.store.entry_tokens = 12
    c.store.min_score = -1.0  # the query names nothing: what was kept is found whatever is asked for
    c.task.facts = 10
    c.task.chatter = 1
    c.task.distractors = 22
    c.task.message_tokens = 28
    c.task.seen_tokens = 144
    c.rollout.action_tokens = 34  # a call with any message in it
    c.rollout.stage3_turns = 12
    # As in babyai.py.
    c.context.limit = c.context.capacity = 288
    return c
