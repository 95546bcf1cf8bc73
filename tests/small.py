"""Runs small enough to compile in seconds: the tiny config with a narrow policy of two layers and few, short turns.

What is expensive (vocabularies, compiled stages, played batches) is made once a process and shared by the tests.
"""

import dataclasses
import os
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from agemem_jax import sharding
from agemem_jax.benchmarks import vocabulary
from agemem_jax.training.evaluate import control
from agemem_jax.training.programs import ALL_TOOLS, compile_programs
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import new_state
from agemem_jax.types import Op
from configs import tiny

TURN_FORMAT = ("summary_by", "optional_arguments", "format", "turn", "action_tag")  # of config.tools
SHARPER = 5.0  # matrices are made so much larger than fresh ones: each token then depends on the whole context
EDITS = 1 << Op.SUMMARY | 1 << Op.FILTER
WIDTHS = 2  # lengths to which the learner cuts its micro-batches; a run has twice as many
# Sizes of rows that hold all that is told: no method needs programs of its own.
ROOMY = dict(
    store__entries=5, store__entry_tokens=16, task__message_tokens=16, context__messages=40, context__capacity=144
)  # fmt: skip


def small_config(**changes) -> ConfigDict:
    """The config, with changes named like `rl__group_size=2`."""
    c = tiny.get_config()
    c.policy.weights = ""
    c.policy.hidden_size = 32
    c.policy.intermediate_size = 48
    c.policy.num_layers = 2
    c.policy.num_heads = 2
    c.policy.num_kv_heads = 1
    c.policy.head_dim = 16
    c.mesh.fsdp = 1
    c.tools.max_calls = 2
    c.store.entries = 3
    c.store.embedding_size = 64
    c.task.train_size = 32
    c.task.validation_size = 8
    c.task.test_size = 16
    c.task.facts = 4
    for kind in ("changed", "closed", "misled", "bids", "split"):  # which take more messages
        c.task[f"share_{kind}"] = 0.0
    c.task.chatter = 1
    c.task.distractors = 1
    c.context.limit = 104
    c.context.capacity = 112
    c.context.messages = 40
    c.context.filter_threshold = 0.1
    c.context.max_segments = 6
    c.rollout.action_tokens = 14
    c.rollout.summary_tokens = 6
    c.rollout.stage3_turns = 3
    c.rollout.prefill_chunk = 16
    c.rollout.history_widths = 2
    c.rollout.temperature = 0.8
    c.rl.stage1_updates = c.rl.stage2_updates = 0
    c.rl.updates = 6
    c.rl.tasks_per_update = 2
    c.rl.group_size = 4
    c.rl.credit = "broadcast"
    c.rl.kl_coef = 0.0
    c.reward.storage = c.reward.maintenance = c.reward.preventive = 1 / 3
    c.reward.preservation = 0.0
    c.rl.micro_batch = 8
    c.rl.logit_chunk = 64
    c.optim.learning_rate = 1e-3
    c.optim.warmup_updates = 0
    c.train.eval_tasks = 8
    c.train.traces = 8
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    c.policy.tokenizer = vocabulary_file(**{name: c.tools[name] for name in TURN_FORMAT})
    return c


@lru_cache
def vocabulary_file(**changes) -> str:
    """A sentencepiece model whose symbols are the literals of the small config's grammar, with changes in `tools`."""
    tools = tiny.get_config().tools
    tools.update(changes)
    named = "-".join(str(tools[name]) for name in TURN_FORMAT)
    path = Path(os.environ["AGEMEM_TEST_FOLDER"]) / f"{named}-{vocabulary.FILE_NAME}"
    if not path.exists():
        unfinished = path.with_stem(f"{path.stem}-{os.getpid()}")
        vocabulary.build(str(unfinished), tools)
        unfinished.replace(path)
    return str(path)


def build_small(**changes) -> Run:
    """A run with sharper starting weights and a learner of fewer widths."""
    run = build(small_config(**changes))
    config, capacity = run.config, run.spec.rollout.capacity
    widths = tuple(capacity * (i + 1) // WIDTHS for i in range(WIDTHS))
    spec = dataclasses.replace(run.spec, learn=dataclasses.replace(run.spec.learn, widths=widths))
    return dataclasses.replace(
        run,
        start=run.start if run.model.lora else lambda: sharper(run.start()),
        frozen=sharper(run.frozen),
        spec=spec,
        programs=compile_programs(spec, run.model, run.optimizer, config.rl, config.reward),
    )


def sharper(params: dict) -> dict:
    """Fresh parameters with larger matrices."""
    return jax.tree.map(lambda x: x * SHARPER if x.ndim > 1 and x.shape[-1] > 16 else x, params)


@lru_cache
def chained() -> Run:
    """The run that most tests share: the paper's schedule, with a reference policy."""
    return build_small(rl__kl_coef=0.1)


def settings(run: Run, step: int = 0, temperature: float = 0.8, tools: int = ALL_TOOLS, update: bool = False):
    """Control of a pass, on the device."""
    asked = control(run, run.config.seed, step, "agemem", temperature, update)
    return sharding.put(asked.replace(tools=np.int32(tools)), jax.tree.leaves(run.world)[0].sharding)


def play(run: Run, task, asked, state=None, stages=(1, 2, 3)):
    """Runs stages one after another: (state, [rows after each, on the host], [outcome of each, on the host]).

    Tasks and settings go where the loop puts them; for arrays that lie elsewhere the programs would compile anew.
    """
    task = sharding.put(task, sharding.rows(run.mesh))
    asked = sharding.put(asked, jax.tree.leaves(run.world)[0].sharding)
    state = new_state(run.start(), run.optimizer) if state is None else state
    rows, after, outcomes = None, [], []
    for stage in stages:
        state, rows, outcome = run.programs[stage](state, run.frozen, rows, task, run.world, asked)
        after.append(jax.device_get(rows))
        outcomes.append(jax.device_get(outcome))
    return state, after, outcomes


@lru_cache
def played(tools: int = ALL_TOOLS, step: int = 0):
    """A batch of the chained run, nothing trained: (task, rows after each stage, outcomes of each)."""
    run = chained()
    task = run.source.batch(step)
    _, after, outcomes = play(run, task, settings(run, step, tools=tools))
    return task, after, outcomes
