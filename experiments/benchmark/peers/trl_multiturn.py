"""Times multi-turn GRPO with TRL's GRPOTrainer through `rollout_func`: python trl_multiturn.py [steps] [reuse]

Every turn is one call of the trainer's own batched generation on the whole token history of all rows, as TRL's tool
loop makes it; `env_mask` keeps observed tokens out of the loss. With reuse = 1, which is not TRL's own, rollout_func
calls the model's `generate` with the KV cache of the turn before: the most that a user of rollout_func can get.
"""

import os
import random
import sys
import time

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
import torch
from common import MULTI, report, tokenizer, words
from datasets import Dataset
from transformers import DynamicCache
from trl import GRPOTrainer
from trl_grpo import Clock, random_qwen2, settings


def main(steps: int, reuse: bool) -> None:
    random.seed(0)
    names = ("tasks", "group", "prompt", "turns", "observed", "generated", "micro_batch")
    tasks, group, prompt, turns, observed, generated, micro_batch = (MULTI[name] for name in names)
    rows, encoder, clock = tasks * group, tokenizer(), Clock()
    rollouts, seen = [], set()
    encode = lambda text: encoder(text)["input_ids"]  # noqa: E731

    def write(trainer, ids, cache):
        """One turn of all rows: (new tokens of each row, cache)."""
        if not reuse:
            return trainer._generate_single_turn(ids, None, {}, 1)[0], None
        tokens = torch.tensor(ids)
        with torch.no_grad():
            out = trainer.model.eval().generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                past_key_values=cache,
                generation_config=trainer.generation_config,
                return_dict_in_generate=True,
            )
        trainer.model.train()
        return out.sequences[:, tokens.shape[1] :].tolist(), out.past_key_values

    def play(prompts, trainer):
        """The prompt is the task's and the first observation; the completion is generated and observed in turn."""
        began = time.perf_counter()
        assert len(prompts) == rows and len(set(prompts)) == tasks
        ids = [encode(text) + encode(words(observed)) for text in prompts]
        first, mask, made = len(ids[0]), [[] for _ in ids], [[] for _ in ids]
        cache = DynamicCache() if reuse else None
        for turn in range(turns):
            new, cache = write(trainer, ids, cache)
            for row, tokens in enumerate(new):
                assert len(tokens) == generated, len(tokens)
                ids[row] += tokens
                mask[row] += [1] * generated
                made[row] += tokens
                if turn + 1 < turns:
                    ids[row] += encode(words(observed))
                    mask[row] += [0] * observed
        assert len({tuple(tokens) for tokens in made}) == rows  # rollouts of a group differ
        rollouts.append(time.perf_counter() - began)
        return {
            "prompt_ids": [row[:first] for row in ids],
            "completion_ids": [row[first:] for row in ids],
            "logprobs": None,
            "env_mask": mask,
            "made": made,
        }

    class Checked(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            shape = tuple(inputs["completion_ids"].shape)
            seen.update((shape, int(count)) for count in inputs["tool_mask"].sum(1))
            return super()._compute_loss(model, inputs)

    def distinct(completions, made, **kwargs):
        return [float(len(set(tokens))) for tokens in made]

    trainer = Checked(
        model=random_qwen2(),
        reward_funcs=distinct,
        args=settings(steps, rows, micro_batch, group, generated),
        train_dataset=Dataset.from_list([{"prompt": words(prompt)} for _ in range(tasks * (steps + 1))]),
        processing_class=encoder,
        rollout_func=play,
    )
    trainer.add_callback(clock)
    trainer.train()
    assert seen == {((micro_batch, turns * (generated + observed) - observed), turns * generated)}, seen
    update = [a - b for a, b in zip(clock.step, rollouts, strict=True)]
    report("trl with KV reuse" if reuse else "trl", rows * turns * generated, clock.step, rollouts, update, skip=1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, sys.argv[2:] == ["1"])
