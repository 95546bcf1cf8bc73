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

from configs import base, tiny


def get_config(variant: str = "") -> ConfigDict:
    return tiny.get_config() if base.is_tiny("hotpotqa", variant) else real()


def real() -> ConfigDict:
    c = base.workstation()
    c.name = "hotpotqa"
    c.store.entry_tokens = 96
    c.task.facts = 2  # four of ten questions have more supporting facts, of which two are told
    c.task.chatter = 0
    c.task.distractors = 1
    c.task.message_tokens = 96  # 97 % of the messages, 99 % of the supporting facts
    c.context.limit = 2300
    c.context.capacity = 1280  # without the system prompt of about 1,100 tokens, which is shared
    c.context.messages = 32
    c.rollout.stage3_turns = 2

    return c
