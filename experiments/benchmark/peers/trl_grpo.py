"""Times TRL's GRPOTrainer, single turn, transformers generation: python trl_grpo.py [steps]

A random Qwen2 of 5M parameters, float32; see common.py for the sizes. No KL term, one AdamW step on all rollouts.
The clocks stand around TRL's own stages; nothing inside them is changed.
"""

import random
import sys
import tempfile
import time

import torch
from common import MODEL, RATE, SINGLE, VOCAB, report, tokenizer, words
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def random_qwen2() -> Qwen2ForCausalLM:
    """The policy, float32."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=MODEL["width"],
        intermediate_size=MODEL["intermediate"],
        num_hidden_layers=MODEL["layers"],
        num_attention_heads=MODEL["heads"],
        num_key_value_heads=MODEL["kv_heads"],
        max_position_embeddings=1024,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=3,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def settings(steps: int, rows: int, micro_batch: int, group: int, generated: int) -> GRPOConfig:
    """GRPO of exactly `generated` new tokens a generation."""
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows // micro_batch,
        num_generations=group,
        max_completion_length=generated,
        generation_kwargs={"min_new_tokens": generated},
        temperature=1.0,
        beta=0.0,
        learning_rate=RATE,
        max_steps=steps,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,  # on by default, and slower
        disable_tqdm=True,
    )


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.step = []

    def on_step_begin(self, *args, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.step.append(time.perf_counter() - self.began)


def main(steps: int) -> None:
    random.seed(0)
    tasks, group, prompt, generated = (SINGLE[k] for k in ("tasks", "group", "prompt", "generated"))
    rollout, shapes, clock = [], set(), Clock()

    class Timed(GRPOTrainer):
        def _generate(self, prompts):
            began = time.perf_counter()
            out = super()._generate(prompts)
            rollout.append(time.perf_counter() - began)
            return out

        def _compute_loss(self, model, inputs):
            ids, mask = inputs["completion_ids"], inputs["completion_mask"]
            shapes.add((tuple(inputs["prompt_ids"].shape), tuple(ids.shape), int(mask.sum())))
            return super()._compute_loss(model, inputs)

    def distinct(completions, **kwargs):
        return [float(len(set(text.split()))) for text in completions]

    trainer = Timed(
        model=random_qwen2(),
        reward_funcs=distinct,
        args=settings(steps, tasks * group, SINGLE["micro_batch"], group, generated),
        train_dataset=Dataset.from_list([{"prompt": words(prompt)} for _ in range(tasks * (steps + 1))]),
        processing_class=tokenizer(),
    )
    trainer.add_callback(clock)
    trainer.train()
    micro = SINGLE["micro_batch"]
    assert shapes == {((micro, prompt), (micro, generated), micro * generated)}, shapes
    update = [a - b for a, b in zip(clock.step, rollout, strict=True)]
    report("trl", tasks * group * generated, clock.step, rollout, update, skip=1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
