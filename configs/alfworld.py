"""ALFWorld: households whose game files are read from folders, as alfworld-download fetches them.

    python -m experiments.train --config=configs/alfworld.py:tiny --config.task.path=FOLDER \\
        --config.task.test_path=FOLDER --workdir=runs/alfworld

`path`: json_2.1.1/train or json_2.1.3/train; `test_path`: .../valid_seen or .../valid_unseen. Variant "tiny" is a
policy of about a million parameters, for 2 CPU cores; without it `policy.weights` names real weights
(configs/hotpotqa.py).

Stage 3 has 10 turns, which is where memory matters. Of 340 published games, told five times each as the variant tells
them, so many are won within so many commands by one who knows what was told (5.6 on average) and by one who searches,
first where such things fit and nothing has to be opened (12 on average):

    commands      6      7      8      9     10     12     16     20     30
    told       77 %   83 %   99 %  100 %  100 %  100 %  100 %  100 %  100 %
    searching  16 %   25 %   35 %   45 %   54 %   69 %   83 %   89 %   97 %

The benchmark's own protocol: --config.task.official=True --config.rollout.stage3_turns=50 (30 in AgentBoard).
"""

from ml_collections import ConfigDict

from configs import base, tiny

COMMANDS = """Write one command, in these words: go to R, open R, close R, examine R, take O from R, put O in/on R, \
clean O with R, heat O with R, cool O with R, slice O with O, use O, look, inventory. R is a receptacle and O an \
object, with their numbers: take mug 1 from shelf 2. In some games it is move O to R in place of put O in/on R."""


def get_config(variant: str = "") -> ConfigDict:
    c = _tiny() if base.is_tiny("alfworld", variant) else _real()
    c.task.benchmark = "alfworld"
    c.task.revised = 0.45  # in one of six of these nothing can be carried elsewhere
    c.task.validation_fraction = 0.1
    c.tools.action_tag = "action"
    c.rl.stage1_updates = c.rl.stage2_updates = 0
    return c


def _tiny() -> ConfigDict:
    c = tiny.world()
    c.name = "alfworld-tiny"
    c.store.entries = 3
    c.store.entry_tokens = 16
    c.task.facts = 7
    c.task.chatter = 1
    c.task.distractors = 24
    c.task.message_tokens = 16
    c.task.answer_tokens = 1  # there are none
    c.task.seen_tokens = 240  # of the receptacles of the largest household
    # As in babyai.py.
    c.context.limit = c.context.capacity = 352
    c.rollout.action_tokens = 24
    c.rollout.stage3_turns = 10
    return c


def _real() -> ConfigDict:
    c = base.workstation()
    c.name = "alfworld"
    c.tools.action_brief = COMMANDS
    c.tools.body_tokens = 64
    c.store.entry_tokens = 48
    c.task.facts = 8
    c.task.chatter = 1
    c.task.distractors = 4
    c.task.message_tokens = 48
    c.task.seen_tokens = 512
    c.context.limit = 3600
    c.context.capacity = 2560  # without the system prompt, which is shared
    c.context.messages = 64
    c.rollout.action_tokens = 96
    c.rollout.stage3_turns = 10
    return c
