"""Real weights on real questions, sized for a workstation without an accelerator.

    python -m experiments.train --config=configs/hotpotqa.py --config.policy.weights=FILE --config.task.path=FILE \\
        --workdir=runs/hotpotqa

`weights`: a .gguf file, a .safetensors file or index, or a Hugging Face folder of a Qwen2.5, Qwen3 or Llama-style
instruct model; tokenizer and chat template are read from it. `path`: HotpotQA records (configs/base.py).
Three updates of a 0.5B model run on 2 CPU cores; the README has the minutes, tokens/s and memory measured. On
accelerators raise group_size, tasks_per_update and the token limits to configs/base.py's.
`:tiny` is the built-in default (configs/tiny.py), on generated questions.
"""

from ml_collections import ConfigDict

from agemem_jax.config import refuse
from configs import base, tiny


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "tiny"):
        refuse("config", f"hotpotqa.py:{variant}", "there are configs/hotpotqa.py and configs/hotpotqa.py:tiny")
    return tiny.get_config() if variant else real()


def real() -> ConfigDict:
    c = base.get_config()
    c.name = "hotpotqa"

    c.tools.body_tokens = 80  # thinking ends early enough to tell a fact in full
    c.tools.max_calls = 2
    c.tools.max_tags = 1
    c.tools.max_top_k = 2
    c.tools.default_top_k = 2
    c.store.entries = 16
    c.store.entry_tokens = 96
    c.task.facts = 2  # four of ten questions have more supporting facts, of which two are told
    c.task.chatter = 0
    c.task.distractors = 1
    c.task.message_tokens = 96  # 97 % of the messages, 99 % of the supporting facts
    c.task.auto_top_k = 1
    c.task.auto_min_score = 0.2

    c.context.limit = 2300
    c.context.capacity = 1280  # without the system prompt of about 1,100 tokens, which is shared
    c.context.messages = 32
    c.rollout.action_tokens = 112
    c.rollout.summary_tokens = 64
    c.rollout.stage1_answer_ends = False
    c.rollout.stage3_turns = 2
    c.rollout.summary_slots = 1
    c.rollout.prefill_chunk = 64

    c.rl.updates = 3
    c.rl.tasks_per_update = 1
    c.rl.group_size = 4
    c.rl.kl_coef = 0.0  # a reference would need a second copy of the weights
    c.rl.micro_batch = 4  # the prompt, longer than most segments, runs once for them
    c.rl.logit_chunk = 256
    c.optim.learning_rate = 1e-6
    c.policy.remat = "full"
    c.train.eval_tasks = 4
    c.train.traces = 4
    c.train.checkpoint_every = 3
    return c
