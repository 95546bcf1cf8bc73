"""Everything that a run needs, built from its config once: tokenizer, tasks, device tables, policy, programs."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agemem_jax.config import check_prompt, derive, refuse, validate
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import scoring
from agemem_jax.envs.judge import Judge
from agemem_jax.memory import encoder
from agemem_jax.models import qwen, weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rollout.rows import RolloutSpec, World
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training.learn import LearnSpec
from agemem_jax.training.programs import ProgramSpec, compile_programs
from agemem_jax.training.state import make_optimizer
from agemem_jax.types import Pieces

WIDTHS = 4  # lengths to which the learner cuts its micro-batches
COUNTED_RECORDS = 2000  # training records whose messages give the encoder its document frequencies
ENCODER_SEED = 0


@dataclass(frozen=True)
class Run:
    """What the training loop works with."""

    config: ConfigDict
    tokenizer: Tokenizer
    source: TaskSource
    world: World
    model: ModelConfig
    params: dict  # the starting policy; also the frozen reference
    optimizer: object
    spec: ProgramSpec
    programs: dict[int, Callable]


def build(config: ConfigDict) -> Run:
    """Checks the config, then builds the run. Nothing compiles before the checks are over."""
    validate(config)
    tokenizer = Tokenizer.load(config.policy.tokenizer or config.policy.weights)
    source = TaskSource(config, tokenizer, scoring.hash_words)
    pieces = build_pieces(tokenizer, config)
    check_prompt(config, int(pieces.prefix.length.sum()))
    grammar = grammar_lib.build_grammar(config.tools, tokenizer)
    check_budget(config, grammar)
    model, params = load_policy(config, tokenizer)
    world = build_world(config, tokenizer, source, pieces, grammar, params)
    rollout = rollout_spec(config, world)
    step = -(-rollout.capacity // WIDTHS)
    learn = LearnSpec(
        micro_batch=derive(config).micro_batch,
        widths=tuple(min(step * (i + 1), rollout.capacity) for i in range(WIDTHS)),
        temperature=config.rollout.temperature,
    )
    spec = ProgramSpec(rollout=rollout, learn=learn)
    optimizer = make_optimizer(config.optim)
    judge = host_judge(config, source, tokenizer) if config.reward.task_metric == "judge" else None
    programs = compile_programs(spec, model, optimizer, config.rl, config.reward, judge)
    return Run(config, tokenizer, source, world, model, params, optimizer, spec, programs)


def check_budget(config: ConfigDict, grammar) -> None:
    """Raises ConfigError if the shortest turn of some operation does not fit a turn's tokens."""
    need = max(*grammar.shortest, int(grammar.need[grammar.start_act].min()) if grammar.constrained else 0)
    if not need <= config.rollout.action_tokens <= grammar_lib.MAX_BUDGET:
        refuse(
            "rollout.action_tokens", config.rollout.action_tokens,
            f"must lie between {need}, the longest tool's turn with empty strings or, if more, tools.body_tokens after "
            f"an empty think block, and {grammar_lib.MAX_BUDGET}",
        )  # fmt: skip


def load_policy(config: ConfigDict, tokenizer: Tokenizer) -> tuple[ModelConfig, dict]:
    """The starting policy: loaded from `policy.weights`, or fresh ones of the sizes in the config."""
    p = config.policy
    if p.weights:
        return weights.load(p.weights, dtype=p.dtype, param_dtype=p.param_dtype, remat=p.remat)
    model = ModelConfig(
        vocab_size=p.vocab_size or tokenizer.vocab_size,
        hidden_size=p.hidden_size,
        intermediate_size=p.intermediate_size,
        num_layers=p.num_layers,
        num_heads=p.num_heads,
        num_kv_heads=p.num_kv_heads,
        head_dim=p.head_dim,
        rope_theta=p.rope_theta,
        rms_norm_eps=p.rms_norm_eps,
        qkv_bias=p.qkv_bias,
        qk_norm=p.qk_norm,
        tie_word_embeddings=p.tie_word_embeddings,
        dtype=p.dtype,
        param_dtype=p.param_dtype,
        remat=p.remat,
    )
    return model, qwen.init_params(model, jax.random.key(config.seed))


def build_world(config, tokenizer: Tokenizer, source: TaskSource, pieces: Pieces, grammar, params: dict) -> World:
    """The device tables. Token weights are idf over the training messages, 0 for what has no letter or digit."""
    token_bytes = tokenizer.token_bytes()
    counts = document_counts(source, len(token_bytes))
    lexical = encoder.lexical_table(token_bytes, counts, config.store.embedding_size, ENCODER_SEED)
    if config.store.encoder == "policy":
        embedding = np.asarray(params["embed_tokens"]["embedding"], np.float32)[: len(token_bytes)]
        table = encoder.policy_table(embedding, counts)
    else:
        table = lexical
    weight = np.linalg.norm(lexical, axis=-1)
    world = World(
        grammar=grammar,
        pieces=pieces,
        encoder=table.astype(np.float32),
        token_weight=weight.astype(np.float32),
        answer_table=scoring.answer_table(token_bytes),
    )
    return jax.tree.map(jnp.asarray, world)


def document_counts(source: TaskSource, vocab: int) -> np.ndarray:
    """In how many training messages each token occurs [V]."""
    counts = np.zeros((vocab,), np.int64)
    for index in range(min(source.num_train, COUNTED_RECORDS)):
        for text in source.staged(index).facts:
            counts[np.unique(source.encode(text))] += 1
    return counts


def rollout_spec(config: ConfigDict, world: World) -> RolloutSpec:
    """Every static size of a rollout, in one place."""
    pieces = world.pieces
    width = lambda text: int(text.tokens.shape[-1])  # noqa: E731
    line = width(pieces.numbers) + width(pieces.id_end) + config.store.entry_tokens + width(pieces.line_end)
    call = width(pieces.statuses) + width(pieces.numbers) + 2 * width(pieces.line_end) + config.tools.max_top_k * line
    c, t, r, sizes = config.context, config.tools, config.rollout, derive(config)
    return RolloutSpec(
        batch=sizes.rows,
        capacity=c.capacity,
        limit=c.limit,
        messages=c.messages,
        prefix_tokens=int(pieces.prefix.length.sum()),
        action_tokens=r.action_tokens,
        summary_tokens=r.summary_tokens,
        max_calls=sizes.max_calls,
        tag_slots=1 + t.max_tags,
        tag_tokens=config.store.tag_tokens,
        default_top_k=t.default_top_k,
        max_top_k=t.max_top_k,
        auto_top_k=config.task.auto_top_k,
        auto_min_score=config.task.auto_min_score,
        filter_threshold=c.filter_threshold,
        duplicates=config.store.duplicates,
        pin_query=c.pin_query,
        summary_by_policy=t.summary_by == "policy",
        pass_allowed=t.min_calls == 0,
        early_answer_ends=r.stage1_answer_ends,
        stage1_extra_turns=r.stage1_extra_turns,
        stage2_extra_turns=r.stage2_extra_turns,
        stage3_turns=r.stage3_turns,
        summary_slots=r.summary_slots,
        segments=c.max_segments,
        entries=config.store.entries,
        entry_tokens=config.store.entry_tokens,
        embedding_size=int(world.encoder.shape[1]),
        good_entry=config.reward.good_entry,
        chunk=min(r.prefill_chunk, c.capacity),
        few_rows=r.prefill_rows,
        columns=tuple(c.capacity * i // r.history_widths for i in range(1, r.history_widths)),
        trace_rows=min(config.train.traces, sizes.rows),
        # A summary finished in between adds a status of its own.
        result_tokens=(sizes.max_calls + 1) * call,
        facts=config.task.facts,
        distractors=config.task.distractors,
    )


def host_judge(config: ConfigDict, source: TaskSource, tokenizer: Tokenizer):
    """Scores answers through the endpoint `reward.judge`, for the callback of the stage-3 program."""
    judge = Judge(config.reward.judge, config.reward.judge_model)

    def score(index: np.ndarray, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        records = [source.records[int(i)] for i in index]
        rows = zip(np.asarray(tokens), np.asarray(length), strict=True)
        answers = [tokenizer.decode(row[:n].tolist()) for row, n in rows]
        return judge.score([r["question"] for r in records], [r["answer"] for r in records], answers)

    return score
