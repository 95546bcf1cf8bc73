"""The built-in default: a policy of about a million parameters learns to use its memory on a laptop.

    python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny

Hardware, minutes and the measured numbers are in the README ("The numbers").
"""

from pathlib import Path

from ml_collections import ConfigDict

import agemem_jax
from configs import base

ASSETS = Path(agemem_jax.__file__).parent / "assets"  # ship with the package, wherever that is installed
POLICY, WORLDS = ASSETS / "tiny", ASSETS / "worlds"


def get_config() -> ConfigDict:
    c = base.get_config()
    c.name = "tiny"
    # Made by experiments/warm_start.py. Weights "" begin from nothing.
    c.policy.weights = str(POLICY)
    c.policy.tokenizer = str(POLICY / "tokenizer.model")

    c.tools.max_calls = 1  # one call a message: what to do with it is a choice
    c.tools.min_calls = 0  # a turn without a call lets a message pass
    c.tools.max_tags = 1
    c.tools.max_top_k = 2
    c.tools.default_top_k = 2
    c.tools.think = False
    c.tools.optional_arguments = False

    # Small enough for the questions to be about memory (benchmarks/hotpotqa/questions.py): more is told than the places
    # of the store hold, and more than a context holds.
    c.store.entries = 3
    c.store.entry_tokens = 12
    c.store.tag_tokens = 4
    c.store.embedding_size = 128
    # Only what points away from the query is not found: what the warm start asks for is near chance, and with a floor
    # above the noise of 128 dimensions (0.1) it finds too little to learn from (experiments/LOG.md).
    c.store.min_score = 0.0
    c.task.facts = 7
    c.task.distractors = 10
    c.task.message_tokens = 12
    c.task.answer_tokens = 4
    c.task.auto_top_k = 1
    c.task.auto_min_score = 0.5
    # Each of the four takes much to learn; adding and retrieving is part of all kinds.
    c.task.share_changed = c.task.share_closed = c.task.share_misled = c.task.share_bids = 2.0

    c.context.limit = 128
    c.context.capacity = 128
    c.context.messages = 48
    c.context.max_segments = 10
    c.context.low_water = 0.85
    c.context.filter_threshold = 0.5
    c.rollout.action_tokens = 16
    c.rollout.summary_tokens = 6  # the best bid, and hardly a whole fact: to keep these takes a filter
    c.rollout.stage3_turns = 4
    c.rollout.stage1_answer_ends = False
    c.rollout.summary_slots = 2
    c.rollout.prefill_chunk = 16
    c.rollout.prefill_rows = 16
    c.rollout.history_widths = 3

    # A message holds one fact.
    c.methods.facts = 1
    c.methods.events = 2
    c.methods.recent = 2
    c.methods.neighbours = 3
    c.methods.keywords = c.methods.tags = 2
    c.methods.word_tokens = 2
    c.methods.context_tokens = 6
    c.methods.memory_tokens = 36  # as much as the store's entries
    c.methods.answer_tokens = 48

    # What to keep, revise and forget comes first, then what to filter out and sum up: each is quick to learn by itself.
    c.rl.stage1_updates = 50
    c.rl.stage2_updates = 70
    c.rl.updates = 200
    c.rl.tasks_per_update = 12
    c.rl.group_size = 8
    c.rl.kl_coef = 0.05  # without it rare calls are gone before they pay (experiments/LOG.md)
    c.rl.micro_batch = 16  # small pieces stay in the cache of a CPU core
    c.rl.credit = "turn_to_go"
    c.reward.context = 0.6
    c.reward.compression = c.reward.preventive = 0.0  # a short context is no aim: what is lost with it is
    c.reward.preservation = 1.0
    c.reward.memory = 2.0
    c.reward.storage = 1.0
    c.reward.maintenance = 1.0
    c.warm.lessons = 3000
    c.warm.dealings = 200
    c.warm.lesson_every = 4
    c.warm.steps = 250
    c.warm.batch = 64
    c.train.eval_tasks = 256
    c.optim.learning_rate = 1e-3
    c.optim.warmup_updates = 5
    return c


def world() -> ConfigDict:
    """What the small policies of worlds have in common (alfworld.py, pddl.py, babyai.py, scienceworld.py: tiny)."""
    c = get_config()
    # Made of the policy above by demonstrations of the four of them, in four runs, each from what the one before gave:
    #   python -m experiments.warm_start --config=configs/alfworld.py:tiny --config.task.path=json_2.1.1/valid_train
    #     --config.task.test_path=json_2.1.1/valid_seen --also=configs/pddl.py:tiny,configs/babyai.py:tiny
    #     --export=runs/worlds
    #   the same with --also=...,configs/scienceworld.py:tiny --config.warm.weights=runs/worlds and
    #     --config.warm.steps=760; --config.warm.steps=360 --config.warm.distractors=4; and
    #     --config.warm.steps=120 --config.warm.learning_rate=1e-3
    # Both long ones were made before demonstrations slipped and were told anew each time, and all four while a third of
    # ALFWorld's went to what nobody had seen (experiments/LOG.md).
    c.policy.weights = str(WORLDS)
    c.policy.tokenizer = str(WORLDS / "tokenizer.model")
    c.tools.action_tag = "action"
    c.tools.actions = "language"
    c.context.messages = 64
    c.context.low_water = 0.6  # long observations: fewer, deeper cuts cost fewer segments
    c.rollout.prefill_chunk = 32
    c.rollout.summary_tokens = 16
    c.rl.stage1_updates = c.rl.stage2_updates = 0
    c.warm.weights = str(POLICY)
    c.warm.lessons = c.warm.dealings = c.warm.lesson_every = 0
    c.warm.steps = 330
    c.warm.batch = 32
    c.warm.warmup_steps = 20
    c.warm.learning_rate = 2e-3
    return c
