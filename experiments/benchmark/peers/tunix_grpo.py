"""Times tunix's GRPOLearner, single turn, vanilla JAX rollout: python tunix_grpo.py [steps]

A random Qwen2 of 5M parameters, float32; see common.py for the sizes. No KL term, one AdamW step on all rollouts. The
clocks stand around tunix's own stages and wait for the device; nothing inside them is changed.
"""

import random
import sys
import time

import jax
import numpy as np
import optax
from common import MODEL, RATE, SINGLE, VOCAB, report, tokenizer, words
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


def random_qwen2():
    """The policy, float32, and its mesh of one device. Matrices are N(0, 0.02): tunix's MLP would begin with zeros."""
    config = qwen2.ModelConfig(
        num_layers=MODEL["layers"],
        vocab_size=VOCAB,
        embed_dim=MODEL["width"],
        hidden_dim=MODEL["intermediate"],
        num_heads=MODEL["heads"],
        head_dim=MODEL["head_dim"],
        num_kv_heads=MODEL["kv_heads"],
        rope_theta=10000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    # jax's default axis type is Explicit, which tunix rejects.
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        policy = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
        leaves, tree = jax.tree.flatten(nnx.state(policy))
        keys = jax.random.split(jax.random.key(0), len(leaves))
        drawn = [
            0.02 * jax.random.normal(key, leaf.shape, leaf.dtype) if leaf.ndim > 1 else leaf
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        nnx.update(policy, jax.tree.unflatten(tree, drawn))
    return policy, mesh


def make_cluster(steps: int, training: dict, rollout: dict) -> rl_cluster.RLCluster:
    """tunix's cluster on this device. The end token lies outside the vocabulary, so that nothing stops early."""
    policy, mesh = random_qwen2()
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    config = rl_cluster.ClusterConfig(
        role_to_mesh={role: mesh for role in roles},
        rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(RATE), eval_every_n_steps=10**6, max_steps=steps, **training
        ),
        rollout_config=base_rollout.RolloutConfig(
            temperature=1.0, top_p=1.0, top_k=None, eos_tokens=[VOCAB], **rollout
        ),
    )
    return rl_cluster.RLCluster(actor=policy, tokenizer=tokenizer(), cluster_config=config)


def wait_for_weights(cluster) -> None:
    """Returns when the last update is done."""
    jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))


def main(steps: int) -> None:
    random.seed(0)
    tasks, group, prompt, generated = (SINGLE[k] for k in ("tasks", "group", "prompt", "generated"))
    micro = SINGLE["micro_batch"] // group
    cluster = make_cluster(
        steps,
        dict(
            mini_batch_size=tasks,
            train_micro_batch_size=micro,
            rollout_micro_batch_size=tasks,
            compute_logps_micro_batch_size=tasks,
        ),
        # The shortest cache that fits; the default of 1024 is slower.
        dict(max_tokens_to_generate=generated, max_prompt_length=prompt, kv_cache_size=prompt + generated),
    )
    lengths, shapes = set(), set()

    def distinct(prompts, completions, **kwargs):
        lengths.update(len(text.split()) for text in completions)
        return [float(len(set(text.split()))) for text in completions]

    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        reward_fns=distinct,
        algo_config=grpo_learner.GRPOConfig(num_generations=group, num_iterations=1, beta=0.0, epsilon=0.2),
    )
    seconds = {"step": [], "rollout": [], "update": []}

    def timed(name, function, wait):
        def run(*args, **kwargs):
            began = time.perf_counter()
            out = function(*args, **kwargs)
            wait()
            seconds[name].append(time.perf_counter() - began)
            return out

        return run

    own_update = cluster.update_actor

    def noted_update(examples, *args, **kwargs):
        shapes.update((tuple(e.prompt_ids.shape), tuple(e.completion_ids.shape)) for e in examples)
        return own_update(examples, *args, **kwargs)

    weights = lambda: wait_for_weights(cluster)  # noqa: E731
    cluster.generate = timed("rollout", cluster.generate, lambda: None)  # gives host arrays
    cluster.update_actor = timed("update", noted_update, weights)
    learner._run_global_step = timed("step", learner._run_global_step, weights)

    prompts = [words(prompt) for _ in range(tasks * steps)]
    learner.train([{"prompts": np.array(prompts[i : i + tasks])} for i in range(0, len(prompts), tasks)])
    assert lengths == {generated}, lengths
    assert shapes == {((micro * group, prompt), (micro * group, generated))}, shapes
    calls = len(seconds["update"]) // len(seconds["step"])
    update = [sum(seconds["update"][i * calls : (i + 1) * calls]) for i in range(len(seconds["step"]))]
    report("tunix", tasks * group * generated, seconds["step"], seconds["rollout"], update, skip=2)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
