"""Times multi-turn GRPO with tunix's agentic GRPOLearner, vanilla JAX rollout: python tunix_multiturn.py [steps]

tunix runs every episode by itself: a model call with a batch of one for each turn and episode, from a pool of threads,
and no KV reuse between turns. Three things are set so that it runs, and runs well: exactly `generated` tokens a turn
instead of whatever is left of the response's budget, which would compile a program for each turn; a new seed for each
call, without which a prompt always gets the same answer; and every length of prompt compiled once before the clock
starts.
"""

import dataclasses
import itertools
import random
import sys
import threading
import time

import numpy as np
from common import MULTI, report, tokenizer, words
from tunix.rl.agentic import agentic_grpo_learner
from tunix.rl.agentic.environments import base_environment
from tunix_grpo import make_cluster, wait_for_weights

TASKS, GROUP, PROMPT, TURNS, OBSERVED, GENERATED = (
    MULTI[name] for name in ("tasks", "group", "prompt", "turns", "observed", "generated")
)
FIRST = PROMPT + OBSERVED  # the first observation comes with the prompt
ANSWER = TURNS * (OBSERVED + GENERATED) - OBSERVED
BUDGET = ANSWER + 1  # tunix drops the turn that uses up max_response_length


def padded(length: int) -> int:
    """tunix pads prompts longer than max_prompt_length to a power of two."""
    return FIRST if length <= FIRST else 1 << (length - 1).bit_length()


class PlainParser:
    """The messages' words one after another, without chat marks."""

    def parse(self, messages, add_generation_prompt=False, is_first_msg=False):
        texts = [m["content"] for m in messages if m["role"] != "system"]
        return " ".join(str(np.asarray(text).item()) for text in texts)


class Episode(base_environment.BaseTaskEnv):
    """Random words after each turn; the reward is the number of different tokens written."""

    encode = None
    finished: list[list[int]] = []

    def __init__(self, task, **kwargs):
        super().__init__(task, max_steps=TURNS, **kwargs)
        self.made = []

    def _initial_observation(self):
        return {**self.task, "prompts": np.array([self.task["prompts"].item() + " " + words(OBSERVED)])}

    def _step_impl(self, action):
        self.made.append(Episode.encode(action))
        if len(self.made) < TURNS:
            return base_environment.EnvStepResult(words(OBSERVED), 0.0, False, {})
        Episode.finished.append([len(turn) for turn in self.made])
        return base_environment.EnvStepResult(None, float(len(set(sum(self.made, [])))), True, {})


def main(steps: int) -> None:
    random.seed(0)
    encoder = tokenizer()
    Episode.encode = lambda text: encoder.encode(text, add_special_tokens=False)
    micro = MULTI["micro_batch"] // GROUP
    cluster = make_cluster(
        steps,
        dict(
            mini_batch_size=TASKS,
            train_micro_batch_size=micro,
            rollout_micro_batch_size=1,
            compute_logps_micro_batch_size=micro,
        ),
        # max_prompt_length is the first turn's: training rows would be padded to a longer one.
        dict(
            max_tokens_to_generate=BUDGET,
            max_prompt_length=FIRST,
            kv_cache_size=padded(FIRST + ANSWER - GENERATED) + GENERATED,
            return_logprobs=True,
        ),
    )
    seeds, own_generate = itertools.count(1), cluster.rollout.generate
    cluster.rollout.generate = lambda prompts, config: own_generate(
        prompts, dataclasses.replace(config, seed=next(seeds))
    )
    calls, lock = [], threading.Lock()

    class Learner(agentic_grpo_learner.GRPOLearner):
        def _model_call(self, chat_lists, env=None, max_generation_steps=None):
            began = time.perf_counter()
            out = super()._model_call(chat_lists, env, GENERATED)
            with lock:
                calls.append((began, time.perf_counter()))
            return out

    learner = Learner(
        rl_cluster=cluster,
        reward_fns=None,
        chat_parser=PlainParser(),
        env_class=Episode,
        algo_config=agentic_grpo_learner.GRPOConfig(
            num_generations=GROUP,
            num_iterations=1,
            beta=0.0,
            epsilon=0.2,
            max_response_length=BUDGET,
            max_concurrency=TASKS * GROUP,
        ),
    )
    begun, updates, trained = [], [], set()
    own_put, own_update = learner._put_prompts_to_queue, cluster.update_actor

    def put(queue, batch):
        begun.append(time.perf_counter())
        own_put(queue, batch)

    def update(examples, *args, **kwargs):
        began = time.perf_counter()
        for example in examples:
            counts = np.asarray(example.completion_mask).sum(1)
            trained.update((tuple(example.completion_ids.shape), int(count)) for count in counts)
        out = own_update(examples, *args, **kwargs)
        wait_for_weights(cluster)
        updates.append((began, time.perf_counter()))
        return out

    learner._put_prompts_to_queue, cluster.update_actor = put, update
    for length in sorted({padded(FIRST + turn * (OBSERVED + GENERATED)) for turn in range(TURNS)}):
        cluster.generate([words(length)], max_generation_steps=GENERATED)
    learner.train([{"prompts": np.array([words(PROMPT) for _ in range(TASKS)])} for _ in range(steps + 1)])

    edges = begun[:steps] + [updates[-1][1]]
    within = lambda spans, i: [span for span in spans if edges[i] <= span[0] < edges[i + 1]]  # noqa: E731
    step = [after - before for before, after in zip(edges, edges[1:], strict=False)]
    # Updates on finished groups overlap with the rollouts of others.
    rollout = [max(end for _, end in within(calls, i)) - edges[i] for i in range(steps)]
    busy = [sum(end - began for began, end in within(updates, i)) for i in range(steps)]
    assert Episode.finished == [[GENERATED] * TURNS] * (TASKS * GROUP * steps)
    assert trained == {((micro * GROUP, BUDGET), TURNS * GENERATED)}, trained
    report("tunix", TASKS * GROUP * TURNS * GENERATED, step, rollout, busy, skip=1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
