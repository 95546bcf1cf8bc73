"""A recorded trajectory and what transformers makes of the exported folder: the same tokens, the same probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from rendered import assert_rendered, contexts
from small import SHARPER, small_config
from test_export import save_run
from vocabularies import DATE, write_bpe

from agemem_jax.data.batches import pad_texts
from agemem_jax.data.gguf_vocabulary import PRE_TOKENIZERS
from agemem_jax.data.prompts import system_prompt
from agemem_jax.data.scripts import write_turn
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.rl.batch import learner_batch
from agemem_jax.rl.losses import masked_log_prob
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import run_stage, scripted_writer
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training import learn
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.setup import build
from agemem_jax.types import Op, Segments, Text
from experiments.export import export

# Drops earlier think blocks and joins neighbouring tool results, as Qwen3's own does.
QWEN3_TEMPLATE = """\
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages if m.role == 'user' %}{% set ns.last = messages.index(m) %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' and loop.index0 < ns.last %}
        {{- '<|im_start|>assistant\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}"""


def small_bpe_config(tokenizer: str):
    """A run of two rows, whose contexts hold the system prompt."""
    config = small_config(
        rl__tasks_per_update=1, rl__group_size=2, task__facts=3, task__chatter=0, task__distractors=1,
        tools__max_calls=2, context__capacity=900, context__max_segments=4, rollout__action_tokens=160,
        rollout__summary_tokens=60, rollout__stage3_turns=2, store__entry_tokens=64, task__message_tokens=64,
        task__answer_tokens=16, tools__think=True,
    )  # fmt: skip
    config.policy.tokenizer = tokenizer
    config.context.limit = 900 + len(Tokenizer.load(tokenizer).encode_markup(system_prompt(config.tools)))
    return config


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(run, its parameters, recorded segments, transformers' tokenizer and model of the exported folder)."""
    root = tmp_path_factory.mktemp("bpe")
    run = build(small_bpe_config(write_bpe(root / "source", QWEN3_TEMPLATE, PRE_TOKENIZERS["qwen2"][0])))
    params = jax.tree.map(lambda x: x * SHARPER if x.ndim > 1 and x.shape[-1] > 16 else x, run.start())
    params = save_run(root / "run", run.config, params)
    export(root / "run" / "seed_0", root / "out", None, 1 << 30)
    loaded = transformers.AutoTokenizer.from_pretrained(root / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "out", dtype=torch.float32).eval()
    return run, params, play(run), loaded, model


def play(run) -> Segments:
    """Scripted agents: two entries, retrieval of its own and by call, a summary, a filter, an unknown id, an answer."""
    spec, tokenizer, tools = run.spec.rollout, run.tokenizer, run.config.tools
    staged = run.source.staged(0)
    facts = staged.gold

    def turn(*calls, answer=None) -> list[int]:
        text = write_turn(tools, list(calls), answer).replace("<think></think>", "<think> so be it</think>")
        return tokenizer.encode_markup(text + tokenizer.end_of_turn)

    add = lambda text: (Op.ADD, {"content": text})  # noqa: E731
    look = lambda text: (Op.RETRIEVE, {"query": text})  # noqa: E731
    delete = Op.DELETE, {"memory_id": "7", "confirmation": True}
    stages = [
        [turn(add(facts[0]), add(facts[-1])), turn(look(facts[0]), (Op.SUMMARY, {"span": "1"})), turn(look(facts[-1]))],
        [turn((Op.FILTER, {"criteria": facts[-1]}), look(facts[-1]))],
        [turn(look(staged.query), delete), turn(answer="Halden")],
    ]
    rows = lambda text: Text(*(np.stack([x] * spec.batch) for x in (text.tokens, text.length)))  # noqa: E731
    scripts = [rows(pad_texts(lines, len(lines), spec.width)) for lines in stages]
    summary = rows(pad_texts([tokenizer.encode_markup(facts[0] + tokenizer.end_of_turn)], 1, spec.width))

    @jax.jit
    def episode(task, scripts, summary, world):
        rows = new_rows(spec)
        for stage in (1, 2, 3):
            write = scripted_writer(world, spec, scripts[stage - 1], summary)
            rows, _ = run_stage(rows, task, world, spec, stage, write, jnp.int32(ALL_TOOLS))
        return rows

    after = jax.device_get(episode(run.source.rows([(0, 0)] * spec.batch), scripts, summary, run.world))
    assert after.stats.malformed.sum() == 0 and (after.stats.actions == 1).all() and not after.stats.over_context.any()
    assert (after.stats.calls_ok[:, [Op.ADD, Op.RETRIEVE, Op.SUMMARY, Op.FILTER]] > 0).all()
    return after.segments


def test_the_exported_template_gives_the_recorded_tokens(recorded):
    run, _, segments, loaded, _ = recorded
    texts = []
    for _, ids in contexts(run, segments):
        texts.append(run.tokenizer.decode(ids))
        assert_rendered(loaded, ids, texts[-1], run.tokenizer.chat_pieces(DATE))
    seen = "".join(text.split(system_prompt(run.config.tools))[1] for text in texts)
    for part in (
        ": done, memory_id=2", "Related memories\n", " | memory_id=1\n", "Summarise the conv", "unknown memory_id",
        "Summary of earlier messages:\n", "<think> so be it</think>",
    ):  # fmt: skip
        assert part in seen, part


def test_the_exported_model_gives_the_learners_log_probabilities(recorded):
    run, params, segments, _, model = recorded
    batch = learner_batch(segments, jnp.zeros((2, 3)), jnp.ones(segments.tokens.shape), 1)
    ours, _ = jax.jit(
        lambda params, batch: learn.log_probs(
            params, run.model, run.world.grammar, run.world.pieces.prefix, jax.tree.map(lambda x: x[None], batch),
            run.spec.learn.temperature, 64,
        )  # fmt: skip
    )(params, batch)
    checked = 0
    for (row, s), ids in contexts(run, segments):
        (place,) = np.flatnonzero((np.asarray(batch.tokens) == segments.tokens[row, s]).all(1))[:1]
        where = np.flatnonzero(segments.trainable[row, s])
        theirs = log_probs(run, model, segments, row, s, ids)
        np.testing.assert_allclose(theirs, np.asarray(ours)[0, place][where], atol=1e-3)
        checked += len(where)
    assert checked > 60


def log_probs(run, model, segments: Segments, row: int, s: int, ids: list[int]) -> np.ndarray:
    """transformers' log-probabilities of the trainable tokens of a segment, in the distribution of the rollout."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    where = np.flatnonzero(segments.trainable[row, s])
    allowed = grammar_lib.allowed_tokens(
        run.world.grammar,
        *(jnp.asarray(getattr(segments, name)[row, s][where], jnp.int32) for name in ("state", "remaining", "ops")),
    )
    at = logits[len(ids) - segments.length[row, s] + where - 1][:, : allowed.shape[1]]
    tokens = jnp.asarray(segments.tokens[row, s][where])
    return np.asarray(masked_log_prob(at, allowed, tokens, run.spec.learn.temperature)[0])
