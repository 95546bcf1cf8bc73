"""SmolLM2-135M-Instruct with adapters on short HotpotQA questions: what reinforcement learning of a real model takes on
two CPU cores.

    python -m experiments.warm_start --config=configs/smollm2.py --export=runs/smollm2_warm \\
        --config.policy.weights=smollm2-135m-instruct-q4_1.gguf --config.task.path=hotpot_dev_distractor_v1.json
    python -m experiments.train --config=configs/smollm2.py --workdir=runs/smollm2 \\
        --config.policy.weights=runs/smollm2_warm --config.task.path=hotpot_dev_distractor_v1.json

Any instruct model of one's own goes the same way. Two supporting facts are told, then something beside the point, then
comes the question; a turn is one call. The warm start comes first: untrained, a model of this size
never answers in the format, and rollouts that all fail teach nothing.
"""

from ml_collections import ConfigDict

from configs import hotpotqa


def get_config() -> ConfigDict:
    c = hotpotqa.real()
    c.name = "smollm2"
    c.policy.lora_rank = 16
    c.policy.lora_alpha = 32.0
    c.policy.remat = "minimal"
    c.policy.query_block = 128  # the scores of all queries at once would be most of the memory
    # What two facts need: a prompt of 690 tokens instead of 1,180, which is what a step takes longest for.
    c.tools.enabled = ("Add_memory", "Retrieve_memory", "Filter_context")
    c.tools.max_calls = 1
    c.tools.min_calls = 0
    c.tools.optional_arguments = False
    c.tools.body_tokens = 72
    c.store.entries = 3
    c.store.entry_tokens = 72
    c.store.min_score = -0.1  # the second fact of a chain may have no word of the question
    c.task.message_tokens = 80
    c.task.auto_top_k = 0
    c.task.test_fraction = 0.3
    c.context.limit = 1280
    c.context.capacity = 640
    c.context.messages = 24
    c.rl.updates = 50
    c.rl.tasks_per_update = 2
    c.rl.group_size = 4
    c.rl.micro_batch = 4
    c.rl.credit = "turn_to_go"
    c.optim.learning_rate = 2e-4
    c.optim.warmup_updates = 3
    c.warm.steps = 24
    c.warm.batch = 8
    c.warm.learning_rate = 2e-3
    c.warm.final_learning_rate = 2e-4
    c.warm.warmup_steps = 5
    c.train.eval_tasks = 32
    c.train.traces = 8
    c.train.checkpoint_every = 5
    return c
