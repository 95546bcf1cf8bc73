"""GRPO on plain tokens, one jitted program an update, from the package's own parts: the peers' task in our way.

A rollout is a prompt and then turns of `observed` random tokens from the environment and `generated` ones from the
policy; single-turn GRPO is one turn without an observation. The reward is the number of different tokens generated.
Prompts are the learner's prefixes: what a group shares runs once in the rollout and once in the update.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agemem_jax.models import kv_cache
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rl import advantages, losses
from agemem_jax.rl.batch import LearnerBatch
from agemem_jax.rollout.decode import Generation, Policy, Turns, decode, generate
from agemem_jax.training.learn import LearnSpec, update
from agemem_jax.training.state import Optimizer
from agemem_jax.types import Text, TrainState
from configs import base

FIRST_WORD = 10  # smaller token ids are left to special tokens, as in the peers' vocabulary


@dataclass(frozen=True)
class Sizes:
    """What is rolled out and how it is learnt from."""

    tasks: int
    group: int  # rollouts of a task
    prompt: int  # tokens
    turns: int
    observed: int  # tokens of the environment before each turn
    generated: int  # tokens of the policy in each turn
    micro_batch: int  # rollouts of a gradient-accumulation step
    columns: tuple[int, ...] = ()  # see rollout.decode.decode

    @property
    def rows(self) -> int:
        return self.tasks * self.group

    @property
    def context(self) -> int:
        """Tokens of a rollout after its prompt."""
        return self.turns * (self.observed + self.generated)

    @property
    def new_tokens(self) -> int:
        """Tokens that an update generates, and trains on."""
        return self.rows * self.turns * self.generated


# The sizes of the comparison; the peers' scripts have the same.
MODEL = ModelConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=1024, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=64,
    qkv_bias=True,
)  # fmt: skip
SINGLE_TURN = Sizes(tasks=16, group=8, prompt=128, turns=1, observed=0, generated=64, micro_batch=32)
MULTI_TURN = Sizes(
    tasks=4, group=8, prompt=64, turns=12, observed=16, generated=16, micro_batch=8, columns=(96, 192, 288)
)  # fmt: skip


def settings(group: int) -> ConfigDict:
    """The peers' GRPO: no KL term, clipping at 0.2, every token the same weight."""
    config = base.get_config()
    config.rl.group_size = group
    config.rl.kl_coef = 0.0
    return config


def rollout(params: dict, model: ModelConfig, sizes: Sizes, prompts: jax.Array, key: jax.Array):
    """Plays all turns of all rollouts.

    Args:
      prompts: [tasks, prompt] int32.

    Returns:
      (tokens [rows, context] int32 observed and generated, logp [rows, context] float32, 0 where observed).
    """
    rows, observed, written = sizes.rows, sizes.observed, sizes.generated
    params = kv_cache.split_layers(params, model)
    prefix, last = kv_cache.encode_prefix(params, model, prompts, jnp.full((sizes.tasks,), sizes.prompt, jnp.int32))
    policy = Policy(model, params, prefix)
    zeros, on = jnp.zeros((rows,), jnp.int32), jnp.ones((rows,), bool)
    # No grammar: any token, until the budget is spent.
    free = lambda key: Turns(  # noqa: E731
        on, None, zeros, zeros, zeros + written, written, jnp.float32(1.0), key, columns=sizes.columns
    )

    if not observed:  # one turn, straight from the prompt
        history = kv_cache.init_history(model, rows, 0)
        hidden = jnp.repeat(last, sizes.group, axis=0)
        _, turn = decode(policy, history, zeros, hidden, free(key))
        return turn.tokens, turn.logp

    def play(i, carry):
        history, cached, tokens, logp = carry
        see, act = jax.random.split(jax.random.fold_in(key, i))
        seen = jax.random.randint(see, (rows, observed), FIRST_WORD, model.vocab_size)
        at = i * (observed + written)
        tokens = jax.lax.dynamic_update_slice(tokens, seen, (0, at))
        turn: Generation
        history, cached, turn = generate(
            policy, history, cached, tokens, zeros + at + observed, free(act), observed + 1
        )
        tokens = jax.lax.dynamic_update_slice(tokens, turn.tokens, (0, at + observed))
        logp = jax.lax.dynamic_update_slice(logp, turn.logp, (0, at + observed))
        return history, cached, tokens, logp

    # Each turn also runs the last token of the one before.
    history = kv_cache.init_history(model, rows, sizes.context + observed + 1)
    blank = jnp.zeros((rows, sizes.context), jnp.int32)
    carry = jax.lax.fori_loop(0, sizes.turns, play, (history, zeros, blank, blank.astype(jnp.float32)))
    return carry[2], carry[3]


def reward(tokens: jax.Array, made: jax.Array) -> jax.Array:
    """How many different tokens each row generated: [rows, context], made [context] bool -> [rows] float32."""
    ordered = jnp.sort(jnp.where(made, tokens, -1), axis=1)
    return (ordered[:, 1:] != ordered[:, :-1]).sum(1) + jnp.where(made.all(), 1.0, 0.0)


def learner_batch(sizes: Sizes, tokens: jax.Array, logp: jax.Array, rl: ConfigDict) -> LearnerBatch:
    """The rollouts as [tasks, group, context] with their advantages."""
    made = jnp.arange(sizes.context) % (sizes.observed + sizes.generated) >= sizes.observed
    advantage, _ = advantages.group_advantages(reward(tokens, made), sizes.group, rl.advantage_eps)
    grouped = lambda x: x.reshape(sizes.tasks, sizes.group, *x.shape[1:])  # noqa: E731
    trainable = grouped(jnp.broadcast_to(made, tokens.shape))
    unused = jnp.zeros(trainable.shape, jnp.int32)  # what a grammar would need
    return LearnerBatch(
        tokens=grouped(tokens),
        length=jnp.full(trainable.shape[:2], sizes.context, jnp.int32),
        trainable=trainable,
        old_logp=grouped(logp),
        state=unused,
        remaining=unused,
        ops=unused,
        advantage=jnp.broadcast_to(grouped(advantage)[..., None], trainable.shape),
        weight=losses.token_weights(trainable, rl.loss_average),
    )


def make_update(model: ModelConfig, sizes: Sizes, optimizer: Optimizer, rl: ConfigDict):
    """(state, prompts, tokens, logp) -> (state, metrics): the learner's half of `make_step`."""
    learn = LearnSpec(micro_batch=sizes.micro_batch, widths=(sizes.context,), temperature=1.0)

    def learn_from(state: TrainState, prompts: jax.Array, tokens: jax.Array, logp: jax.Array):
        prefix = Text(prompts, jnp.full((sizes.tasks,), sizes.prompt, jnp.int32))
        batch = learner_batch(sizes, tokens, logp, rl)
        return update(state, {}, optimizer, model, None, prefix, batch, learn, rl, jnp.bool_(True))

    return learn_from


def make_step(model: ModelConfig, sizes: Sizes, optimizer: Optimizer, rl: ConfigDict):
    """One GRPO update, to be jitted with `state` donated: (state, prompts [tasks, prompt], key) -> (state, metrics)."""
    learn_from = make_update(model, sizes, optimizer, rl)

    def step(state: TrainState, prompts: jax.Array, key: jax.Array):
        tokens, logp = rollout(state.params, model, sizes, prompts, key)
        return learn_from(state, prompts, tokens, logp)

    return step


def update_flops(model: ModelConfig, sizes: Sizes) -> float:
    """Multiplications and additions of the matmuls of one update, the prompt of a group counted once.

    Forward: 2 for each weight and position, 2 x 2 x heads x head size for each visible (query, key) pair, 2 D V for the
    logits of each trained token. The backward pass is twice the forward; what is computed again there counts nothing.
    """
    width, heads = model.hidden_size, model.num_heads * model.head_dim
    weights = width * (2 * heads + 2 * model.num_kv_heads * model.head_dim + 3 * model.intermediate_size)
    positions = sizes.tasks * sizes.prompt + sizes.rows * sizes.context
    causal = lambda n: n * (n + 1) / 2  # noqa: E731
    pairs = sizes.tasks * causal(sizes.prompt) + sizes.rows * (causal(sizes.context) + sizes.context * sizes.prompt)
    layer = 2 * weights * positions + 4 * heads * pairs
    return 3.0 * (model.num_layers * layer + 2 * width * model.vocab_size * sizes.new_tokens)
