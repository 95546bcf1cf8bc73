"""ScienceWorld: things are carried about in a house before the task is told, and have to be found again.

    python -m experiments.train --config=configs/scienceworld.py --config.policy.weights=FILE --workdir=FOLDER

`weights` as in configs/hotpotqa.py. Needs Java 17 and `pip install scienceworld==1.2.3` (benchmarks/scienceworld/
tasks.py); the engine's JVMs take a core each. `:tiny` is a small policy for a laptop.
"""

from ml_collections import ConfigDict

from configs import base, tiny

ERRANDS = ("find-plant", "find-animal", "find-living-thing")  # short ones: 450 variations to train, 225, 225


def get_config(variant: str = "") -> ConfigDict:
    return small() if base.is_tiny("scienceworld", variant) else real()


def worlds(c: ConfigDict) -> None:
    """What both have."""
    c.task.benchmark = "scienceworld"
    c.task.revised = 0.4
    c.tools.action_tag = "action"
    c.reward.no_answer = 0.0  # what was reached says enough


def real() -> ConfigDict:
    c = base.workstation()
    worlds(c)
    c.name = "scienceworld"
    c.tools.action_brief = (
        "An action is a command such as: go to kitchen, look around, focus on thermometer, pick up metal pot, "
        "move metal pot to red box, use thermometer on soap, pour cup in jug, mix jug, activate sink, inventory, wait1."
    )
    c.task.parts = (*ERRANDS, "use-thermometer")
    c.task.train_size = 256  # their walks are recorded before training begins, once
    c.task.validation_size = 32
    c.task.test_size = 128
    c.tools.max_top_k = 4
    c.tools.default_top_k = 4
    c.store.entry_tokens = 64
    c.task.facts = 12
    c.task.chatter = 2
    c.task.distractors = 6
    c.task.message_tokens = 128  # the goals of use-thermometer
    c.task.seen_tokens = 384  # what is in a kitchen
    c.context.limit = 5200
    c.context.capacity = 4096  # without the system prompt, which is shared
    c.context.messages = 96
    c.context.max_segments = 8
    c.rollout.stage3_turns = 30
    c.train.eval_tasks = 128
    return c


def small() -> ConfigDict:
    c = tiny.world()
    worlds(c)
    c.name = "scienceworld-tiny"
    c.tools.actions = "free"
    c.task.parts = ERRANDS
    c.task.train_size = 448
    c.task.validation_size = 32
    c.task.test_size = 128
    c.store.entries = 3
    c.store.entry_tokens = 32
    c.task.facts = 7
    c.task.chatter = 1
    c.task.distractors = 10
    c.task.message_tokens = 40
    c.task.seen_tokens = 96  # longer ones are cut: of a kitchen its first things
    c.rollout.action_tokens = 48  # an entry to be written, and the marks around it
    c.rollout.stage3_turns = 7  # who was told needs 4 to 6 actions, who searches 8 or 9, and a look into the store 1
    # As in babyai.py.
    c.context.limit = c.context.capacity = 320
    c.reward.task_metric = "success"  # the walk has come by some of the engine's score already
    c.rl.tasks_per_update = 6
    c.train.eval_tasks = 128
    return c
