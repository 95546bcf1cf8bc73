"""A config that cannot run is refused with the field's name, its value and what would be right; the others pass."""

import subprocess
import sys
from pathlib import Path

import pytest

from agemem_jax.config import (
    ABOVE_ZERO,
    AT_LEAST,
    AT_MOST,
    ConfigError,
    check_fields,
    check_override,
    check_prompt,
    check_turns,
    derive,
    difference,
    flatten,
    from_json,
    to_json,
    validate,
)
from configs import base, tiny

ROOT = Path(__file__).parent.parent

REFUSED = {
    # name of the case: (changes, what the message must hold beside the field and its value)
    "group of one": ({"rl.group_size": 1}, "set rl.group_size >= 2"),
    "empty group": ({"rl.group_size": 0}, "at least 2 rollouts"),
    "empty store": ({"store.entries": 0}, "at least 1"),
    "negative entry": ({"store.entry_tokens": -3}, "at least 1"),
    "no layers": ({"policy.num_layers": 0}, "at least 1"),
    "no messages": ({"context.messages": 2}, "at least 3"),
    "few messages": ({"context.messages": 5}, "and the pinned query; set context.messages >= 6"),
    "one segment": ({"context.max_segments": 1}, "at least 2"),
    "no seeds": ({"num_seeds": 0}, "at least 1"),
    "negative updates": ({"rl.updates": -1}, "at least 0"),
    "capacity for no turn": ({"context.capacity": 3100}, "a message or the pinned query"),
    "heads": ({"policy.num_heads": 5}, "multiple of policy.num_kv_heads = 2"),
    "biases and norms": ({"policy.qkv_bias": True}, "policy.qk_norm = True"),
    "odd head": ({"policy.head_dim": 31}, "even"),
    "unknown tool": ({"tools.enabled": ("Add_memroy",)}, "did you mean Add_memory?"),
    "tool twice": ({"tools.enabled": ("Add_memory", "Add_memory")}, "once"),
    "calls": ({"tools.min_calls": 4}, "tools.max_calls"),
    "top k": ({"tools.default_top_k": 9}, "at most tools.max_top_k = 5"),
    "format": ({"tools.format": "hermess"}, "did you mean hermes?"),
    "summary by": ({"tools.summary_by": "judge"}, "'policy' or 'call'"),
    "duplicates": ({"store.duplicates": "keep"}, "'refuse' or 'add'"),
    "encoder": ({"store.encoder": "bert"}, "'lexical' or 'policy'"),
    "schedule": ({"rl.schedule": "chain"}, "did you mean chained?"),
    "credit": ({"rl.credit": "step"}, "'hindsight'"),
    "no hindsight": ({"rl.hindsight": 0.0}, "nothing is added"),
    "bound of the sampled ratio": ({"rl.dual_clip": 1.0}, "above 1"),
    "average": ({"rl.loss_average": "mean"}, "'turn'"),
    "zero variance": ({"rl.zero_variance": "skip"}, "'drop'"),
    "metric": ({"reward.task_metric": "em"}, "'success'"),
    "dtype": ({"policy.dtype": "float64"}, "'bfloat16'"),
    "chatter": ({"task.chatter": 7}, "task.chatter <= 6"),
    "judge": ({"reward.task_metric": "judge"}, "http://"),
    "cold": ({"rollout.temperature": 0.0}, "greater than 0"),
    "threshold": ({"context.filter_threshold": 1.5}, "between 0 and 1"),
    "entry share": ({"reward.good_entry": -0.1}, "between 0 and 1"),
    "not a number": ({"reward.no_answer": float("nan")}, "finite"),
    "test tasks": ({"train.eval_tasks": 513}, "task.test_size = 512"),
    "no checkpoint": ({"train.keep_checkpoints": 0}, "at least 1"),
    "micro-batch": ({"rl.micro_batch": 0}, "at least 1"),
    "no decay of moments": ({"optim.b1": 1.0}, "Adam divides by 1 less this"),
    "none in float32": ({"optim.b2": 1 - 1e-9}, "in float32, below 1"),
    "negative moments": ({"optim.b2": -0.1}, "at least 0"),
    "huge rate": ({"optim.learning_rate": 1e3}, "overwrite"),
    "rate that rounds away": ({"optim.learning_rate": 1e-12}, "round away"),
    "decay of everything": ({"optim.weight_decay": 1e6}, "set optim.weight_decay < 1e+06"),
    "clipped to nothing": ({"optim.max_grad_norm": 1e-9}, "nothing moves"),
    "clip low": ({"rl.clip_low": 0.0}, "which tokens are trained"),
    "clip high": ({"rl.clip_high": 1e-6}, "which tokens are trained"),
    "clip above 1": ({"rl.clip_low": 1.5}, "between 0.0001 and 1"),
    "negative reference": ({"rl.kl_coef": -0.1}, "between 0 and 1e+06"),
    "reference alone": ({"rl.kl_coef": 1e7}, "outweighs an advantage of 1"),
    "freezing": ({"rollout.temperature": 1e-6}, "changed policy"),
    "boiling": ({"rollout.temperature": 1e6}, "lost in the noise"),
    "infinite in float32": ({"reward.task": 1e39}, "float32"),
    "zero in float32": ({"rl.advantage_eps": 1e-46}, "float32"),
    "squared reward": ({"reward.no_answer": -1e20}, "rewards are squared"),
    "terms": ({"reward.terms": "lax"}, "'strict' or 'paper'"),
    "turns of paper terms": ({"rl.credit": "turn_to_go", "reward.terms": "paper"}, 'reward.terms = "strict"'),
    "turns in sequence": (
        {"rl.credit": "turn_to_go", "rl.schedule": "sequential", "rl.updates": 99}, 'rl.credit = "return_to_go"'
    ),
    "stage 1 in sequence": (
        {"rl.stage1_updates": 3, "rl.schedule": "sequential", "rl.updates": 99}, "set rl.stage1_updates = 0"
    ),
    "stage 2 in sequence": (
        {"rl.stage2_updates": 3, "rl.schedule": "sequential", "rl.updates": 99}, "set rl.stage2_updates = 0"
    ),
    "whole ones in sequence": (
        {"rl.whole_every": 3, "rl.schedule": "sequential", "rl.updates": 99}, "set rl.whole_every = 0"
    ),
    "every entry": ({"reward.good_entry": 0.0}, "set it above 0"),
    "adapters of no weight": ({"policy.lora_alpha": 1e-9, "policy.lora_rank": 8}, "adapters would count"),
    "warm-up without end": ({"warm.warmup_steps": 500}, "below warm.steps = 500"),
    "warm-up of lessons without end": ({"warm.warmup_steps": 40, "warm.lessons": 40}, "below warm.lessons = 40"),
    "no warm steps": ({"warm.warmup_steps": 1, "warm.steps": 0}, "below warm.steps = 0"),
    "warm rate": ({"warm.learning_rate": 2.0}, "overwrite"),
    "final warm rate": ({"warm.final_learning_rate": -1e-4}, "at least 0"),
    "warm decay": ({"warm.weight_decay": 300.0, "warm.learning_rate": 4e-3}, "set warm.weight_decay < 250"),
    "decay in lessons": (
        {"warm.weight_decay": 300.0, "warm.lessons": 100, "warm.lesson_rate": 4e-3}, "set warm.weight_decay < 250"
    ),
    "half parameters": ({"policy.param_dtype": "float16"}, "policy.param_dtype = 'bfloat16' or 'float32'"),
    "half activations": ({"policy.dtype": "float16"}, "policy.dtype = 'bfloat16' or 'float32'"),
    "seed below 0": ({"seed": -1}, "at least 0"),
    "task seed below 0": ({"task.seed": -1}, "at least 0"),
    "seed beyond uint32": ({"seed": 2**32}, "at most 4294967295"),
    "task seed beyond uint32": ({"task.seed": 2**32}, "at most 4294967295"),
    "last seed beyond uint32": ({"num_seeds": 3, "seed": 2**32 - 2}, "the last seed would be 4294967296"),
    "beyond int32": ({"rl.updates": 10**12}, "at most 2147483647"),
    "below int32": ({"rollout.prefill_rows": -(10**12)}, "at least 0"),
    "a list of all questions": ({"task.train_size": 10**12}, "at most 1000000"),
    "a program for each width": ({"rl.widths": 100_000}, "at most 64"),
    "no token a step": ({"rollout.decode_width": 0}, "at least 1"),
    "a step for each width": ({"rollout.decode_width": 65}, "at most 64"),
    "ids": ({"store.entries": 10_000}, "at most 9999"),
    "wide": ({"policy.hidden_size": 10**5, "policy.intermediate_size": 10**5}, "would have 10,000,000,000 entries"),
    "rows": ({"rl.group_size": 10**6}, "rl.group_size x context.max_segments x context.capacity would have"),
    "store": ({"store.embedding_size": 10**8}, "store.entries x store.embedding_size would have"),
    "warm rows": ({"warm.batch": 10**6}, "warm.batch x context.max_segments"),
    "end of a text": ({"task.path": "a\0b"}, "NUL"),
    "end of a text in a tuple": ({"tools.enabled": ("Add_memory\0",)}, "NUL"),
    "thirds": ({"rl.updates": 100, "rl.schedule": "sequential"}, "set 99 or 102"),
}


def changed(changes: dict):
    """The base config with some fields set."""
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changes, hint = REFUSED[case]
    name, value = list(changes.items())[0 if case != "split" else 1]
    with pytest.raises(ConfigError) as refused:
        validate(changed(changes))
    message = str(refused.value)
    assert hint in message
    if case == "judge":
        name, value = "reward.judge", ""
    assert message.startswith(f"{name} = {value!r}: ")


def test_every_whole_number_has_a_lower_bound():
    own = {"mesh.data", "mesh.fsdp", "mesh.tensor", "rl.group_size"}  # with words of their own
    numbers = [name for name, value in flatten(base.get_config()).items() if type(value) is int]
    assert not [name for name in numbers if name not in AT_LEAST.keys() | own | set(ABOVE_ZERO)]
    assert set(AT_MOST) <= set(numbers)


@pytest.mark.parametrize("name", [name for name, value in flatten(base.get_config()).items() if type(value) is int])
def test_no_whole_number_is_too_large_to_be_refused(name):
    for value in (10**12, -(10**12)):
        with pytest.raises(ConfigError):
            validate(changed({name: value}))


def test_judge_needs_a_model_too():
    with pytest.raises(ConfigError, match="reward.judge_model"):
        validate(changed({"reward.task_metric": "judge", "reward.judge": "http://localhost:8000/v1"}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rl.updates": 99, "rl.schedule": "sequential"},
        {"rl.updates": 0},
        {"tools.enabled": ()},
        {"tools.format": "hermes"},
        {"reward.task_metric": "judge", "reward.judge": "http://localhost:8000/v1", "reward.judge_model": "m"},
        {"policy.param_dtype": "bfloat16", "policy.dtype": "bfloat16"},
        {"policy.param_dtype": "float16", "policy.lora_rank": 8},
        {"policy.param_dtype": "float16", "policy.dtype": "float16", "rl.updates": 0},  # to evaluate only
        {"optim.b1": 0.0, "optim.b2": 0.9999999, "optim.max_grad_norm": 1e30, "rl.clip_low": 1.0, "rl.clip_high": 1e9},
        {"reward.good_entry": 1.0, "reward.task": 0.0},
        {"reward.preservation": 0.3},
        {"reward.preservation": 0.3, "context.pin_query": False},
        {"reward.preservation": 0.3, "reward.terms": "paper"},
        {"reward.preservation": 0.3, "reward.context": 0.0},
        {"optim.warmup_updates": 10**9, "warm.final_learning_rate": 0.0},
        {"policy.weights": "some/folder", "policy.num_heads": 5},  # the file's sizes count
    ],
)
def test_accepted(changes):
    validate(changed(changes))


SHIPPED = sorted(path for path in (ROOT / "configs").glob("[!_]*.py") if path.stem != "scale")  # scale.py: shared parts


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_sound(path):
    config = __import__(f"configs.{path.stem}", fromlist=["get_config"]).get_config()
    check_fields(config, base.get_config())
    if path.stem == "hotpotqa":
        config.task.path = "some/file.json"
    validate(config)


def test_prompt_longer_than_the_context():
    config = changed({"context.limit": 3000})
    check_prompt(config, 800)
    with pytest.raises(ConfigError) as refused:
        check_prompt(config, 1000)
    assert str(refused.value).startswith("context.limit = 3000: ")
    assert "1000 tokens" in str(refused.value) and "context.limit >= 3112" in str(refused.value)


def test_capacity_below_the_limit():
    config = changed({"context.limit": 8192, "context.capacity": 7192})
    check_prompt(config, 1000)  # the limit counts the prompt, the capacity does not
    with pytest.raises(ConfigError) as refused:
        check_prompt(config, 999)
    assert str(refused.value).startswith("context.capacity = 7192: ")
    assert "context.limit = 8192" in str(refused.value) and "context.capacity >= 7193" in str(refused.value)


def test_derived_sizes():
    sizes = derive(changed({"rl.micro_batch": 1000}))
    assert (sizes.rows, sizes.sequences, sizes.micro_batch) == (32, 128, 128)
    assert sizes.observation_tokens == 64 + (3 * 5 + 3) * 64  # what was asked for, and what is shown unasked
    assert sizes.turn_tokens == sizes.observation_tokens + 2048 + 256 and sizes.summaries
    assert not derive(changed({"tools.summary_by": "call"})).summaries
    assert not derive(changed({"rollout.summary_slots": 0})).summaries


def test_segments_for_the_turns_asked_for():
    sizes = dict(told=70, around=5, summary=300, shortest=20)
    check_turns(changed({}), **sizes)
    long = {"rollout.stage3_turns": 50, "context.messages": 32}
    with pytest.raises(ConfigError) as refused:
        check_turns(changed(long), **sizes)
    # Of 59 messages 30 go in, since a turn keeps 3 places; then 9 at a time, since 24 - 3 stay.
    assert str(refused.value).startswith("context.max_segments = 4: ")
    assert "0 times in stage 1 and 4 times in stages 2 and 3" in str(refused.value)
    assert "set context.max_segments >= 9" in str(refused.value)
    check_turns(changed(long | {"context.max_segments": 9}), **sizes)
    check_turns(changed(long | {"context.messages": 64}), **sizes)
    small = {"task.facts": 40, "context.capacity": 4000, "context.limit": 4000}
    with pytest.raises(ConfigError, match="context.max_segments >= 8, better twice that, or raise context.capacity"):
        check_turns(changed(small), **sizes)


def test_fields_set_in_a_config_file():
    config = base.get_config()
    config.rl.gruop_size = 4
    with pytest.raises(ConfigError, match="rl.gruop_size = 4: .*did you mean rl.group_size?"):
        check_fields(config, base.get_config())
    for name, value, right in (
        ("rl.group_size", 4.5, "a whole number"),
        ("rl.group_size", True, "a whole number"),
        ("tools.think", 1, "true or false"),
        ("reward.task", "x", "a number"),
        ("name", 3, "a text"),
        ("tools.enabled", 5, "a tuple of texts"),
        ("tools.enabled", (5,), "a tuple of texts"),
        ("tools.enabled", "Add_memory", "a tuple of texts"),
        ("seed", False, "a whole number"),
        ("reward.task", True, "a number"),
    ):
        config = base.get_config().to_dict()
        group, _, field = name.rpartition(".")
        (config[group] if group else config)[field] = value
        with pytest.raises(ConfigError, match=f"{name} = .*{right}"):
            check_fields(type(base.get_config())(config), base.get_config())
    whole = base.get_config()
    with whole.ignore_type():
        whole.reward.task = 1
    check_fields(whole, base.get_config())
    del whole.rl.credit
    with pytest.raises(ConfigError, match="rl.credit is missing"):
        check_fields(whole, base.get_config())


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("rl.gruop_size", "4", "did you mean rl.group_size?"),
        ("group_size", "4", "did you mean rl.group_size?"),
        ("rll.group_size", "4", "did you mean rl.group_size?"),
        ("rl.group_size.x", "4", "no such field"),
        ("rl.group_size", "abc", "a whole number is needed, such as 8"),
        ("rl.group_size", "4.0", "a whole number"),
        ("reward.task", "much", "a number is needed, such as 1.0"),
        ("tools.think", "maybe", "true or false is needed, such as true"),
        ("rl", "3", "set one of them: rl.advantage_eps"),
    ],
)
def test_overrides(name, text, hint):
    with pytest.raises(ConfigError) as refused:
        check_override(base.get_config(), name, text)
    assert str(refused.value).startswith(f"{name} = {text!r}: ") and hint in str(refused.value)


def test_good_overrides():
    for name, text in (("rl.group_size", "4"), ("reward.task", "1"), ("tools.think", "false"), ("tools.enabled", "()")):
        check_override(base.get_config(), name, text)


def test_json_round_trip_and_difference():
    config = tiny.get_config()
    back = from_json(to_json(config))
    assert flatten(back) == flatten(config)
    assert isinstance(back.tools.enabled, tuple)
    assert difference(config, back) == []
    back.rl.group_size, back.tools.enabled = 4, ("Add_memory",)
    del back.store.encoder
    assert difference(config, back) == ["rl.group_size", "store.encoder", "tools.enabled"]


COMMAND = """
from absl import flags
from agemem_jax.config import validate
from experiments import cli
WORKDIR = flags.DEFINE_string("workdir", None, "folder", required=True)
def main(config):
    validate(config)
    print("ran with", config.rl.group_size, WORKDIR.value)
cli.run(main)
"""


def command(*args: str) -> subprocess.CompletedProcess:
    """A command that reads the flags as those in experiments/ do."""
    return subprocess.run([sys.executable, "-c", COMMAND, *args], capture_output=True, text=True, cwd=ROOT)


def test_command_line():
    ran = command("--config=configs/tiny.py", "--workdir=w", "--config.rl.group_size=4")
    assert (ran.returncode, ran.stdout) == (0, "ran with 4 w\n"), ran.stderr
