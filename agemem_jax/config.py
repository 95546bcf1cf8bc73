"""The config of a run, checked before anything compiles: a refusal names field, value and what would be right.

`validate` holds the checks that need the config alone, `check_prompt` the one that needs the tokenised prompt, and
`check_fields` and `check_override` those against misspelt names and wrong types. `derive` has the sizes that follow.
"""

import difflib
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from ml_collections import ConfigDict

from agemem_jax.errors import InputError
from agemem_jax.types import TOOL_NAMES

CHOICES = {
    "policy.dtype": ("float32", "bfloat16", "float16"),
    "policy.param_dtype": ("float32", "bfloat16", "float16"),
    "policy.attention": ("xla", "splash", "cudnn"),
    "policy.remat": ("none", "minimal", "full"),
    "tools.format": ("paper", "hermes"),
    "tools.turn": ("either", "both"),
    "tools.action_tag": ("answer", "action"),
    "tools.actions": ("free", "language"),
    "tools.summary_by": ("policy", "call"),
    "store.duplicates": ("refuse", "add"),
    "store.encoder": ("lexical", "policy", "policy_hidden", "model"),
    "store.encoder_pooling": ("mean", "last"),
    "reward.terms": ("strict", "paper"),
    "reward.task_metric": ("progress", "success", "judge"),
    "mesh.learner": ("fsdp", "tensor"),
    "rl.schedule": ("chained", "sequential"),
    "rl.credit": ("broadcast", "per_stage", "return_to_go", "turn_to_go", "hindsight"),
    "rl.zero_variance": ("keep", "drop"),
    "rl.loss_average": ("token", "sequence", "constant", "turn"),
}

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # that can have adapters

# Smallest values. Fields that are not listed here or below only have to be finite.
AT_LEAST = {
    "seed": 0,
    "task.seed": 0,
    "num_seeds": 1,
    "policy.vocab_size": 0,
    "policy.hidden_size": 1,
    "policy.intermediate_size": 1,
    "policy.num_layers": 1,
    "policy.num_heads": 1,
    "policy.num_kv_heads": 1,
    "policy.head_dim": 2,
    "policy.query_block": 0,
    "policy.lora_rank": 0,
    "tools.max_calls": 1,
    "tools.min_calls": 0,
    "tools.max_tags": 0,
    "tools.body_tokens": 0,
    "tools.max_top_k": 1,
    "tools.default_top_k": 1,
    "store.entries": 1,
    "store.entry_tokens": 1,
    "store.tag_tokens": 1,
    "store.embedding_size": 1,
    "store.encoder_layer": 0,
    "context.limit": 1,
    "context.capacity": 1,
    "context.messages": 3,  # what a turn adds; more with a pinned query and with summaries (check_context)
    "context.max_segments": 2,  # one for stage 1, one for stages 2 and 3
    "task.lowest_level": 1,
    "task.highest_level": 1,
    "task.train_size": 1,
    "task.validation_size": 1,
    "task.test_size": 1,
    "task.facts": 2,  # a question takes two hops
    "task.chatter": 0,
    "task.distractors": 1,
    "task.seen_tokens": 0,
    "task.chunk_tokens": 16,
    "task.documents": 1,
    "task.message_tokens": 1,
    "task.answer_tokens": 1,
    "task.share_recall": 0,
    "task.share_changed": 0,
    "task.share_closed": 0,
    "task.share_misled": 0,
    "task.share_bids": 0,
    "task.share_split": 0,
    "task.auto_top_k": 0,
    "task.owners": 1,
    "rollout.action_tokens": 1,
    "rollout.summary_tokens": 1,
    "rollout.stage1_extra_turns": 0,
    "rollout.stage2_extra_turns": 0,
    "rollout.stage3_turns": 1,
    "rollout.summary_slots": 0,
    "rollout.prefill_chunk": 1,
    "rollout.history_widths": 1,
    "rollout.decode_width": 1,
    "rollout.prefill_rows": 0,
    "methods.facts": 1,
    "methods.events": 1,
    "methods.neighbours": 1,
    "methods.recent": 1,
    "methods.keywords": 1,
    "methods.tags": 1,
    "methods.word_tokens": 1,
    "methods.context_tokens": 1,
    "methods.memory_tokens": 1,
    "methods.answer_tokens": 1,
    "prices.prompt": 0,
    "prices.generated": 0,
    "rl.stage1_updates": 0,
    "rl.stage2_updates": 0,
    "rl.whole_every": 0,
    "rl.updates": 0,
    "rl.tasks_per_update": 1,
    "rl.dual_clip": 0,
    "rl.epochs": 1,
    "rl.micro_batch": 1,
    "rl.logit_chunk": 1,
    "rl.widths": 1,
    "optim.warmup_updates": 0,
    "optim.weight_decay": 0,
    "warm.lessons": 0,
    "warm.dealings": 0,
    "warm.lesson_tokens": 64,
    "warm.lesson_batch": 1,
    "warm.lesson_every": 0,
    "warm.acting": 0,
    "warm.steps": 0,
    "warm.distractors": 0,
    "warm.batch": 1,
    "warm.warmup_steps": 1,
    "warm.final_learning_rate": 0,
    "warm.weight_decay": 0,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1,
    "train.eval_every": 0,
    "train.eval_tasks": 1,
    "train.traces": 0,
}

MAX_INT = 2**31 - 1  # of an integer on the devices, and entries of one array
MAX_SEED = 2**32 - 1
# Largest values of what is unrolled in a program, built into a table or listed on the host; other whole numbers end at
# MAX_INT, and so do their products (check_sizes).
AT_MOST = {
    "seed": MAX_SEED,
    "task.seed": MAX_SEED,
    "policy.num_layers": 1000,
    "tools.max_calls": 64,
    "tools.max_tags": 64,
    "tools.max_top_k": 9,  # written as one digit
    "store.entries": 9999,  # ids have four digits
    "task.lowest_level": 12,  # problems of thousands of ground actions
    "task.highest_level": 12,
    "task.train_size": 1_000_000,
    "task.validation_size": 1_000_000,
    "task.test_size": 1_000_000,
    "task.facts": 1000,
    "task.distractors": 1000,
    "task.seen_tokens": 4096,
    "rollout.history_widths": 64,
    "rollout.decode_width": 64,
    "methods.facts": 16,
    "methods.events": 32,
    "methods.neighbours": 16,
    "methods.recent": 64,
    "methods.keywords": 16,
    "methods.tags": 16,
    "rl.widths": 64,
}

ABOVE_ZERO = (
    "policy.rope_theta",
    "policy.rms_norm_eps",
    "policy.lora_alpha",
    "rollout.temperature",
    "rl.advantage_eps",
    "optim.learning_rate",
    "optim.max_grad_norm",
    "warm.learning_rate",
    "warm.lesson_rate",
)

# Lowest and highest value.
WITHIN = {
    "context.filter_threshold": (0, 1),
    "context.low_water": (0, 1),
    "store.min_score": (-1, 1),
    "task.auto_min_score": (-1, 1),
    "task.validation_fraction": (0, 1),
    "task.test_fraction": (0, 1),
    "task.revised": (0, 1),
    "task.strangers": (0, 1),
    "reward.good_entry": (0, 1),
    "warm.roles": (0, 1),
}

# Lowest and highest value with which float32 training can work, and why.
CLIP = "smaller, rounding between rollout and update decides which tokens are trained"
RATE = "smaller steps round away in float32 parameters, and larger ones overwrite them"
COLD = "colder, rounding passes for a changed policy; hotter, what the policy says is lost in the noise"
TRAINS_WITHIN = {
    "rl.clip_low": (1e-4, 1, CLIP),
    "rl.clip_high": (1e-4, math.inf, CLIP),
    "rl.hindsight": (1e-3, 1e3, "smaller, nothing is added; larger, nothing but the outcome of used calls is learnt"),
    "rl.kl_coef": (0, 1e6, "larger, rounding of log-probabilities alone outweighs an advantage of 1"),
    "rollout.temperature": (1e-2, 1e2, COLD),
    "optim.learning_rate": (1e-10, 1, RATE),
    "optim.max_grad_norm": (1e-8, math.inf, "smaller, nothing moves: Adam adds 1e-8 to what it divides by"),
    "warm.learning_rate": (1e-10, 1, RATE),
    "warm.lesson_rate": (1e-10, 1, RATE),
    "warm.final_learning_rate": (0, 1, RATE),
}
FLOAT32 = (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max))  # magnitudes, but for 0
REWARDS = (1e-9, 1e9)  # magnitude of a weight that is not 0: products and squares of two must hold in float32
LORA_SCALES = (1e-6, 1e6)

PATH_FIELDS = (
    "policy.weights", "policy.tokenizer", "store.encoder_weights", "warm.weights",
    "task.path", "task.validation_path", "task.test_path", "task.labels_path",
)  # fmt: skip
WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple of texts"}


class ConfigError(InputError):
    """A config that cannot run. The message has the field's dotted name, its value and what would be right."""


@dataclass(frozen=True)
class Derived:
    """Sizes that follow from a config."""

    rows: int  # B, rollouts of an update
    sequences: int  # segments that an update can record
    micro_batch: int  # of these, in a gradient-accumulation step
    observation_tokens: int  # most content tokens that a row is shown before a turn, chat marks not counted
    turn_tokens: int  # most content tokens that one turn needs, with a summary that it asks for
    summaries: bool  # whether a turn may ask for a summary that the policy writes in a slot of its own


def derive(config: ConfigDict) -> Derived:
    """The sizes that follow from a checked config."""
    tools, task, rollout = config.tools, config.task, config.rollout
    rows = config.rl.tasks_per_update * config.rl.group_size
    sequences = rows * config.context.max_segments
    shown = tools.max_calls * tools.max_top_k + task.auto_top_k
    observation = task.message_tokens + task.seen_tokens + shown * config.store.entry_tokens
    summaries = tools.summary_by == "policy" and rollout.summary_slots > 0
    return Derived(
        rows=rows,
        sequences=sequences,
        micro_batch=min(config.rl.micro_batch, sequences),
        observation_tokens=observation,
        turn_tokens=observation + rollout.action_tokens + (rollout.summary_tokens if summaries else 0),
        summaries=summaries,
    )


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for a value or a combination of values that cannot run."""
    fields = flatten(config)
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            refuse(name, value, "a finite number is needed")
        if "\0" in "".join([value] if isinstance(value, str) else value if isinstance(value, tuple) else ()):
            refuse(name, value, "a text must not hold the character NUL")
        if name in CHOICES and value not in CHOICES[name]:
            known = CHOICES[name]
            refuse(name, value, f"must be {' or '.join(map(repr, known))}{nearest_of(str(value), known)}")
        if name in AT_LEAST and value < AT_LEAST[name]:
            refuse(name, value, f"must be at least {AT_LEAST[name]}")
        if isinstance(value, int) and value > AT_MOST.get(name, MAX_INT):
            refuse(name, value, f"must be at most {AT_MOST.get(name, MAX_INT)}")
        if name in ABOVE_ZERO and value <= 0:
            refuse(name, value, "must be greater than 0")
        if name in WITHIN:
            low, high = WITHIN[name]
            if not low <= value <= high:
                refuse(name, value, f"must lie between {low} and {high}")
    if config.seed + config.num_seeds - 1 > MAX_SEED:
        refuse(
            "num_seeds", config.num_seeds,
            f"the last seed would be {config.seed + config.num_seeds - 1}, over {MAX_SEED}; lower it or seed",
        )  # fmt: skip
    check_sizes(config, fields)
    check_policy(config)
    check_encoder(config)
    check_mesh_sizes(config)
    check_tools(config)
    check_task(config)
    check_context(config)
    check_learning(config)
    check_numbers(config)


def check_sizes(config: ConfigDict, fields: dict[str, Any]) -> None:
    """Arrays of more than MAX_INT entries, by the fields whose product they are; those of `rl` count the rollouts."""
    rollouts = ("rl.tasks_per_update", "rl.group_size")
    arrays = [
        (*rollouts, "context.max_segments", "context.capacity"),
        (*rollouts, "context.messages"),
        (*rollouts, "store.entries", "store.entry_tokens"),
        (*rollouts, "store.entries", "store.embedding_size"),
        (*rollouts, "store.entries", "store.tag_tokens"),
        (*rollouts, "task.facts", "task.message_tokens"),
        (*rollouts, "task.distractors", "task.message_tokens"),
        (*rollouts, "task.answer_tokens"),
        (*rollouts, "rollout.action_tokens"),
        (*rollouts, "rollout.summary_tokens"),
        ("warm.batch", "context.max_segments", "context.capacity"),
    ]
    if not config.policy.weights:
        arrays += [
            ("policy.vocab_size", "policy.hidden_size"),
            ("policy.hidden_size", "policy.intermediate_size"),
            ("policy.hidden_size", "policy.num_heads", "policy.head_dim"),
        ]
    for names in arrays:
        entries = math.prod(fields[name] for name in names)
        if entries > MAX_INT:
            largest = max(names, key=fields.get)
            refuse(
                largest, fields[largest],
                f"an array of {' x '.join(names)} would have {entries:,} entries, over {MAX_INT:,}; lower one of them",
            )  # fmt: skip


def check_policy(config: ConfigDict) -> None:
    """Adapters, and sizes of a fresh policy; with weights they come from the file."""
    p = config.policy
    if p.attention == "cudnn" and p.dtype == "float32":
        refuse("policy.attention", p.attention, "cannot do policy.dtype = 'float32'; set policy.dtype = 'bfloat16'")
    for name in p.lora_targets:
        if name not in PROJECTIONS:
            refuse(
                "policy.lora_targets", tuple(p.lora_targets),
                f"there is no projection {name!r}; the projections are {', '.join(PROJECTIONS)}"
                f"{nearest_of(str(name), PROJECTIONS)}",
            )  # fmt: skip
    if len(set(p.lora_targets)) < len(p.lora_targets):
        refuse("policy.lora_targets", tuple(p.lora_targets), "names a projection twice; name each once")
    if p.lora_rank and not p.lora_targets:
        refuse(
            "policy.lora_targets", (),
            f"with policy.lora_rank = {p.lora_rank} nothing would be trained; name a projection, or set "
            "policy.lora_rank = 0 to train all parameters",
        )  # fmt: skip
    if p.weights:
        return
    if p.num_heads % p.num_kv_heads:
        refuse(
            "policy.num_heads", p.num_heads,
            f"must be a multiple of policy.num_kv_heads = {p.num_kv_heads}, since every key-value head serves as many "
            "query heads",
        )  # fmt: skip
    if p.qkv_bias and p.qk_norm:
        refuse(
            "policy.qkv_bias", True,
            "with policy.qk_norm = True it is neither Qwen2 (biases) nor Qwen3 (norms), and could not be exported; set "
            "one of them to False",
        )  # fmt: skip
    if p.head_dim % 2:
        refuse("policy.head_dim", p.head_dim, "must be even, since rotary embeddings turn pairs of dimensions")


def check_encoder(config: ConfigDict) -> None:
    """Whether the store's encoder and the weights of one go together; what they hold is known when they are read."""
    store = config.store
    if store.encoder == "model" and not store.encoder_weights:
        refuse(
            "store.encoder_weights", "",
            "store.encoder = 'model' needs the path of an embedding model; without one store.encoder = 'policy_hidden' "
            "takes the policy's own states",
        )  # fmt: skip
    if store.encoder_weights and store.encoder != "model":
        refuse(
            "store.encoder_weights", store.encoder_weights,
            f"store.encoder = {store.encoder!r} reads none; set store.encoder = 'model', or leave it empty",
        )  # fmt: skip


def check_mesh_sizes(config: ConfigDict) -> None:
    """Sizes of the mesh by themselves; whether they fit the devices is known when these are."""
    for name in ("data", "fsdp", "tensor"):
        if config.mesh[name] < 1 and config.mesh[name] != -1:
            refuse(f"mesh.{name}", config.mesh[name], "must be at least 1, or -1 for the devices that the others leave")


def check_mesh(config: ConfigDict, shape: dict[str, int], kv_heads: int, sizes: dict[str, int]) -> None:
    """Raises ConfigError if rows or parameters cannot be cut evenly over a mesh.

    Args:
      shape: sizes of data, fsdp and tensor.
      kv_heads: key-value heads of the policy.
      sizes: {name of a size of the policy: its value} that tensor and fsdp cut.
    """
    rows, cut = derive(config).rows, shape["data"] * shape["fsdp"]
    if rows % cut:
        refuse(
            "rl.tasks_per_update", config.rl.tasks_per_update,
            f"times rl.group_size = {config.rl.group_size} gives {rows} rollouts, which cannot be cut over mesh.data x "
            f"mesh.fsdp = {cut} devices; choose a multiple",
        )  # fmt: skip
    micro = derive(config).micro_batch
    cut *= shape["tensor"] if config.mesh.learner == "fsdp" else 1
    if micro % cut:
        refuse(
            "rl.micro_batch", config.rl.micro_batch,
            f"gives micro-batches of {micro} segments, which cannot be cut over the {cut} devices that the update's "
            f"rows are spread over; choose a multiple of {cut} (at most rollouts x context.max_segments)",
        )  # fmt: skip
    if kv_heads % shape["tensor"]:
        refuse("mesh.tensor", shape["tensor"], f"must divide the policy's {kv_heads} key-value heads")
    for name, size in sizes.items():
        axis = "fsdp" if name == "hidden_size" else "tensor"
        if size % shape[axis]:
            refuse(f"mesh.{axis}", shape[axis], f"must divide the policy's {name} = {size}")


def check_tools(config: ConfigDict) -> None:
    """Tool names, and how many calls and results a turn may have."""
    t = config.tools
    for tool in t.enabled:
        if tool not in TOOL_NAMES:
            refuse(
                "tools.enabled", tuple(t.enabled),
                f"there is no tool {tool!r}; the tools are {', '.join(TOOL_NAMES)}{nearest_of(str(tool), TOOL_NAMES)}",
            )  # fmt: skip
    if len(set(t.enabled)) < len(t.enabled):
        refuse("tools.enabled", tuple(t.enabled), "names a tool twice; name each once")
    if t.actions == "language" and not t.constrained:
        refuse("tools.actions", t.actions, "binds constrained turns alone; set 'free', or tools.constrained = True")
    if t.min_calls > t.max_calls:
        refuse("tools.min_calls", t.min_calls, f"a turn can hold {t.max_calls} calls (tools.max_calls)")
    if t.default_top_k > t.max_top_k:
        refuse("tools.default_top_k", t.default_top_k, f"must be at most tools.max_top_k = {t.max_top_k}")


def check_task(config: ConfigDict) -> None:
    """What is told in stage 1, which questions are asked, and who scores the answers."""
    t, r = config.task, config.reward
    if t.chatter > t.facts - 2:
        refuse(
            "task.chatter", t.chatter,
            f"with task.facts = {t.facts} messages there is no place for two supporting facts; set task.chatter <= "
            f"{t.facts - 2} or task.facts >= {t.chatter + 2}",
        )  # fmt: skip
    if not t.path and config.train.eval_tasks > t.test_size:
        refuse(
            "train.eval_tasks", config.train.eval_tasks,
            f"only task.test_size = {t.test_size} test tasks are generated; ask for at most as many, or raise "
            "task.test_size",
        )  # fmt: skip
    check_judge(r)


def check_judge(r: ConfigDict) -> None:
    """The judge's address, which every file of a run will show: it may hold no secret. What it says is not checked."""
    if any(mark in r.judge for mark in "@?#"):
        raise ConfigError(
            "reward.judge holds a user name, a password or a query (it is not shown here, but every file of the run "
            "would show it); give the address alone, such as http://localhost:8000/v1, and the key in the environment "
            "as OPENAI_API_KEY; an endpoint that wants another kind of login needs a proxy on this machine that adds it"
        )
    if r.task_metric != "judge":
        return
    try:
        url = urlsplit(r.judge)
        right = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # of a port or a bracket
        right = False
    if not right or not re.fullmatch(r"[!-~]+", r.judge):
        refuse(
            "reward.judge", r.judge,
            'reward.task_metric = "judge" needs the base URL of an OpenAI-compatible endpoint, such as '
            "http://localhost:8000/v1",
        )  # fmt: skip
    if not r.judge_model:
        refuse("reward.judge_model", r.judge_model, "must name a model that the endpoint reward.judge serves")


def check_context(config: ConfigDict) -> None:
    """Whether one turn fits the context and the table of its messages."""
    c, sizes = config.context, derive(config)
    if c.capacity < sizes.turn_tokens:
        refuse(
            "context.capacity", c.capacity,
            f"must hold the largest observation ({sizes.observation_tokens} tokens: a message or the pinned query, and "
            f"the entries retrieved) and one turn ({sizes.turn_tokens - sizes.observation_tokens}, with a summary if "
            f"it may ask for one), chat marks not counted; set context.capacity > {sizes.turn_tokens}, or lower "
            "task.message_tokens, store.entry_tokens, tools.max_top_k or rollout.action_tokens",
        )  # fmt: skip
    messages = turn_messages(config, told=1) + (1 if c.pin_query else 0)
    if c.messages < messages:
        refuse(
            "context.messages", c.messages,
            f"must hold the messages of one turn (tool results, the user's, the agent's; a summary takes two more) and "
            f"the pinned query; set context.messages >= {messages}",
        )  # fmt: skip


def turn_messages(config: ConfigDict, told: int, results: int = 1) -> int:
    """Most messages that a turn needs with so many user messages told, tool results or not, and a summary asked for."""
    return results + told + 1 + (2 if derive(config).summaries else 0)


def check_turns(config: ConfigDict, told: int, around: int, summary: int, shortest: int) -> None:
    """Raises ConfigError if the segments cannot hold the turns that are asked for, though each is as short as can be.

    Where the context or the table of its messages is full, the oldest go and another segment begins. A row that uses
    its tools needs more of them than this.

    Args:
      told: tokens of a told message of full length with its chat marks.
      around: tokens around what the policy writes in a turn.
      summary: tokens that a turn keeps for a summary.
      shortest: tokens of the shortest turn.
    """
    c, task, rollout = config.context, config.task, config.rollout

    def overflows(turns: list[int]) -> int:
        """How often the oldest messages go in turns of so many told messages each."""
        count, window = 0, []  # tokens of the messages, oldest first
        for new in turns:
            need = new * told + around + rollout.action_tokens + summary
            slots = turn_messages(config, new, results=0)
            tokens, places = c.capacity - need, c.messages - slots
            if sum(window) > tokens or len(window) > places:
                count += 1
                tokens = tokens if sum(window) <= tokens else int(c.low_water * c.capacity) - need
                places = places if len(window) <= places else int(c.low_water * c.messages) - slots
                while window and (sum(window) > tokens or len(window) > places):
                    window.pop(0)
            window += [told] * new + [around + shortest]
        return count

    first = [1] * task.facts + [0] * rollout.stage1_extra_turns
    later = [1] * task.distractors + [0] * rollout.stage2_extra_turns + [1] + [0] * (rollout.stage3_turns - 1)
    one, two = overflows(first), overflows(later)
    need = max(2 * one + 2, 2 * two + 1)  # stage 1 may take half of them
    if c.max_segments < need:
        refuse(
            "context.max_segments", c.max_segments,
            f"too few for the turns asked for: with context.capacity = {c.capacity} and context.messages = "
            f"{c.messages} the oldest messages go {one} times in stage 1 and {two} times in stages 2 and 3, even if "
            "every turn is as short as can be, and each time another segment begins; set "
            f"context.max_segments >= {need}, better twice that, or raise context.capacity or context.messages",
        )  # fmt: skip


def check_learning(config: ConfigDict) -> None:
    """Groups and schedule."""
    r = config.rl
    if r.group_size < 2:
        refuse(
            "rl.group_size", r.group_size,
            "a group needs at least 2 rollouts, since the advantage compares them; set rl.group_size >= 2",
        )  # fmt: skip
    if 0 < r.dual_clip <= 1:
        refuse(
            "rl.dual_clip", r.dual_clip,
            "must be 0, which is off, or above 1: a ratio of 1 is the policy that sampled, which must still learn",
        )  # fmt: skip
    if r.schedule == "sequential" and r.updates % 3:
        refuse(
            "rl.updates", r.updates,
            f'rl.schedule = "sequential" splits them evenly over three stages; set {r.updates // 3 * 3} or '
            f"{r.updates // 3 * 3 + 3}",
        )  # fmt: skip
    for name in ("stage1_updates", "stage2_updates", "whole_every"):
        if r.schedule == "sequential" and r[name]:
            refuse(
                f"rl.{name}", r[name],
                'belongs to rl.schedule = "chained": the sequential schedule trains each stage alone in a third of its '
                f"updates; set rl.{name} = 0",
            )  # fmt: skip
    if r.credit == "turn_to_go" and (config.reward.terms != "strict" or r.schedule != "chained"):
        refuse(
            "rl.credit", r.credit,
            "credits the turns of stages 1 and 2 by what store and context are worth after each, by the strict terms, "
            'in the chained schedule; set reward.terms = "strict" and rl.schedule = "chained", or rl.credit = '
            '"return_to_go"',
        )  # fmt: skip


def check_numbers(config: ConfigDict) -> None:
    """Numbers with which nothing can be learnt."""
    fields, p = flatten(config), config.policy
    low, high = FLOAT32
    for name, value in fields.items():
        if isinstance(value, float) and value and not low <= abs(value) <= high:
            refuse(name, value, f"must be 0 or, but for its sign, {low:.2g} to {high:.2g} (float32)")
    for name, (low, high, why) in TRAINS_WITHIN.items():
        if not low <= fields[name] <= high:
            bounds = f"must be at least {low:g}" if math.isinf(high) else f"must lie between {low:g} and {high:g}"
            refuse(name, fields[name], f"{bounds}: {why}")
    for name in ("optim.b1", "optim.b2"):
        if not 0 <= np.float32(fields[name]) < 1:
            refuse(name, fields[name], "must be at least 0 and, in float32, below 1: Adam divides by 1 less this")
    phases = ["steps"] + [name for name in ("lessons", "dealings", "acting") if config.warm[name]]
    reads = config.warm.lessons or config.warm.dealings
    for name in ["optim.learning_rate", "warm.learning_rate"] + ["warm.lesson_rate"] * bool(reads):
        group, rate = name.split(".")[0], fields[name]
        decay = config[group].weight_decay
        if decay * rate >= 1:
            refuse(
                f"{group}.weight_decay", decay,
                f"times {name} = {rate:g} is {decay * rate:g} of a parameter taken off in each step; "
                f"set {group}.weight_decay < {1 / rate:g}",
            )  # fmt: skip
    for phase in phases:
        if config.warm.warmup_steps >= config.warm[phase]:
            refuse(
                "warm.warmup_steps", config.warm.warmup_steps,
                f"must be below warm.{phase} = {config.warm[phase]}, since the rate falls after it",
            )  # fmt: skip
    low, high = LORA_SCALES
    if p.lora_rank and not low <= p.lora_alpha / p.lora_rank <= high:
        refuse(
            "policy.lora_alpha", p.lora_alpha,
            f"adapters would count alpha / rank = {p.lora_alpha / p.lora_rank:g} times (policy.lora_rank = "
            f"{p.lora_rank}); between {low:g} and {high:g} they can learn",
        )  # fmt: skip
    low, high = REWARDS
    for name, value in config.reward.items():
        if isinstance(value, float) and value and not low <= abs(value) <= high:
            refuse(f"reward.{name}", value, f"must be 0 or, but for its sign, {low:g} to {high:g}: rewards are squared")
    if config.reward.good_entry == 0:
        refuse("reward.good_entry", 0.0, "every entry would count as high quality; set it above 0")
    if config.rl.updates:
        check_precision(p)


def check_precision(p: ConfigDict) -> None:
    """Raises ConfigError if gradients do not survive the dtypes of `config.policy`, for whatever trains it."""
    why = "gradients of float16 are 0 below 6e-8 and overflow above 65504; set"
    if p.dtype == "float16":
        refuse("policy.dtype", p.dtype, f"cannot be trained in: {why} policy.dtype = 'bfloat16' or 'float32'")
    if p.param_dtype == "float16" and not p.lora_rank:
        refuse(
            "policy.param_dtype", p.param_dtype,
            f"cannot be trained: {why} policy.param_dtype = 'bfloat16' or 'float32', or train adapters beside it with "
            "policy.lora_rank",
        )  # fmt: skip


def check_prompt(config: ConfigDict, prompt_tokens: int) -> None:
    """Raises ConfigError if limit and capacity of the context do not suit the shared prompt.

    The limit counts the prompt, the capacity is what each row has beside it.

    Args:
      prompt_tokens: tokens of the system message, tool schemas included.
    """
    c = config.context
    need = prompt_tokens + config.task.message_tokens + config.rollout.action_tokens
    if c.limit < need:
        refuse(
            "context.limit", c.limit,
            f"shorter than the prompt ({prompt_tokens} tokens), one message (task.message_tokens = "
            f"{config.task.message_tokens}) and one turn (rollout.action_tokens = {config.rollout.action_tokens}); set "
            f"context.limit >= {need}",
        )  # fmt: skip
    if c.capacity + prompt_tokens < c.limit:
        refuse(
            "context.capacity", c.capacity,
            f"with the prompt's {prompt_tokens} tokens less than context.limit = {c.limit}: past the limit a context "
            f"costs a penalty, past the capacity it cannot grow; set context.capacity >= {c.limit - prompt_tokens}",
        )  # fmt: skip


def check_fields(config: ConfigDict, known: ConfigDict) -> None:
    """Raises ConfigError for a field that `known` lacks or has with another type, or that `config` lacks."""
    fields, reference = flatten(config), flatten(known)
    for name, value in fields.items():
        if name not in reference:
            refuse(name, value, f"there is no such field{nearest_of(name, reference)}")
        if not fits(value, reference[name]):
            refuse(name, value, f"{WANTED[type(reference[name])]} is needed, such as {reference[name]!r}")
    for name in reference:
        if name not in fields:
            raise ConfigError(f"{name} is missing from the config; start from configs/base.py's get_config()")


def check_override(config: ConfigDict, name: str, text: str) -> None:
    """Raises ConfigError if the command line's `--config.NAME=TEXT` names no field, or its text is of another type."""
    node: Any = config
    for part in name.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            refuse(name, text, f"there is no such field{nearest_of(name, flatten(config))}")
        node = node[part]
    if isinstance(node, ConfigDict):
        refuse(name, text, f"a group of fields; set one of them: {', '.join(f'{name}.{key}' for key in node)}")
    kind = type(node)
    if kind is bool:
        right = text.lower() in ("true", "false", "t", "f", "1", "0", "")
    else:
        right = kind not in (int, float) or parses(kind, text)
    if not right:
        refuse(name, text, f"{WANTED[kind]} is needed, such as {str(node).lower() if kind is bool else node}")


def make_absolute(config: ConfigDict) -> None:
    """Changes the paths in a config so that they mean the same from every folder; ~ is the home folder."""
    for name in PATH_FIELDS:
        value = flatten(config)[name]
        if value and not value.startswith("tfds:"):
            config.update_from_flattened_dict({name: os.path.abspath(os.path.expanduser(value))})


def without_folders(config: ConfigDict) -> ConfigDict:
    """A copy whose paths are bare names, to be shown to others: where they lie is nobody's business."""
    shown = config.copy_and_resolve_references()
    fields = flatten(shown)
    names = [name for name in PATH_FIELDS if not fields.get(name, "tfds:").startswith("tfds:")]
    shown.update_from_flattened_dict({name: os.path.basename(fields[name]) for name in names})
    return shown


def difference(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Dotted names of the fields that differ between two configs, or that one of them lacks; sorted."""
    x, y = flatten(a), flatten(b)
    return sorted(name for name in x.keys() | y.keys() if name not in x or name not in y or x[name] != y[name])


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of every field."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON."""
    return json.dumps(config.to_dict(), indent=1)


def from_json(text: str) -> ConfigDict:
    """The config of `to_json`; lists come back as the tuples that they were."""

    def restored(node):
        if isinstance(node, dict):
            return {name: restored(value) for name, value in node.items()}
        return tuple(node) if isinstance(node, list) else node

    return ConfigDict(restored(json.loads(text)))


def refuse(name: str, value: Any, why: str) -> None:
    """Raises the ConfigError of a field; a login or a query in an address is not shown."""
    shown = re.sub(r"(?<=//)[^/\s'\"]*@|(?<=\?)[^\s'\"]+", "***", repr(value)) if "://" in repr(value) else repr(value)
    raise ConfigError(f"{name} = {shown}: {why}")


def nearest_of(name: str, known) -> str:
    """A question that offers the known name most like `name`, or nothing."""
    match = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {match[0]}?" if match else ""


def fits(value: Any, example: Any) -> bool:
    """Whether a value has the type of an example; a whole number will do for a float."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, float):
        return isinstance(value, int | float)
    if isinstance(example, tuple):
        return isinstance(value, tuple | list) and all(isinstance(item, str) for item in value)
    return isinstance(value, type(example))


def parses(kind: type, text: str) -> bool:
    """Whether a text is a number of a kind."""
    try:
        kind(text)
    except ValueError:
        return False
    return True
