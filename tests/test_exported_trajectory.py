"""A recorded trajectory and what transformers makes of the exported folder: the same tokens, the same probabilities."""

import re
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from small import SHARPER, chained, played, small_config
from test_chat_template import LLAMA_TEMPLATE
from test_export import save_run
from vocabularies import LLAMA3_WORDS, QWEN2_WORDS, write_bpe

from agemem_jax.data.batches import pad_text, pad_texts
from agemem_jax.data.demos import write_turn
from agemem_jax.data.prompts import system_prompt
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
FAMILIES = {
    "tiny": (None, None, dict()),
    "qwen3": (QWEN3_TEMPLATE, QWEN2_WORDS, dict(tools__format="hermes", tools__max_calls=1, tools__min_calls=1)),
    "qwen2": (QWEN3_TEMPLATE, QWEN2_WORDS, dict(policy__qk_norm=False, policy__qkv_bias=True)),
    "llama": (LLAMA_TEMPLATE, LLAMA3_WORDS, dict(policy__qk_norm=False)),
}
COMMON = dict(
    rl__tasks_per_update=1, rl__group_size=2, task__facts=3, task__chatter=0, task__distractors=1, tools__max_calls=2,
    context__limit=900, context__capacity=900, context__max_segments=4, rollout__action_tokens=160,
    rollout__summary_tokens=24, rollout__stage3_turns=2, store__entry_tokens=40, task__message_tokens=48,
)  # fmt: skip


@dataclass
class Recorded:
    """Scripted trajectories of a family, its run, and the exported folder as transformers loads it."""

    run: object
    params: dict
    segments: Segments
    tokenizer: object
    model: object


@lru_cache
def recorded(family: str, root) -> Recorded:
    template, words, changes = FAMILIES[family]
    config = small_config(**COMMON | changes)
    if template:
        config.policy.tokenizer = write_bpe(root / family, template, words)
        config.tools.think, config.tools.optional_arguments = True, True
        config.context.limit += len(Tokenizer.load(config.policy.tokenizer).encode(system_prompt(config.tools)))
    run = build(config)
    params = jax.tree.map(lambda x: x * SHARPER if x.ndim > 1 and x.shape[-1] > 16 else x, run.start())
    params = save_run(root / f"{family}-run", config, params)
    export(root / f"{family}-run" / "seed_0", root / f"{family}-out", None, 1 << 30)
    loaded = transformers.AutoTokenizer.from_pretrained(root / f"{family}-out")
    model = transformers.AutoModelForCausalLM.from_pretrained(root / f"{family}-out", dtype=torch.float32).eval()
    return Recorded(run, params, play(run), loaded, model)


def play(run) -> Segments:
    """Two scripted agents: stores, a look of its own, a retrieval by call, a summary, a filter, an answer."""
    spec, tokenizer, tools = run.spec.rollout, run.tokenizer, run.config.tools
    staged = run.source.staged(0)
    space = " " if tokenizer.is_small else ""
    thought = "<think> so</think>" if tools.think else "<think></think>"

    def turn(*calls, answer=None) -> list[int]:
        text = write_turn(tools, list(calls), answer).replace("<think></think>", thought)
        return tokenizer.encode(text + tokenizer.end_of_turn)

    add = lambda text: (Op.ADD, {"content": space + text})  # noqa: E731
    look = lambda text: (Op.RETRIEVE, {"query": space + text})  # noqa: E731
    pair = lambda *calls: calls[: tools.max_calls]  # noqa: E731
    facts = staged.gold + staged.distractors
    shorten, drop = (Op.SUMMARY, {"span": "1"}), (Op.FILTER, {"criteria": space + staged.facts[0]})
    stages = [
        [turn(*pair(add(facts[0]), add(facts[-1]))), turn(*pair(look(facts[0]), shorten)), turn(shorten)],
        [turn(*pair(drop, look(facts[-1])))],
        [turn(*pair(look(staged.query), (Op.DELETE, {"memory_id": "7", "confirmation": True}))), turn(answer="Halden")],
    ]
    rows = lambda text: Text(*(np.stack([x] * spec.batch) for x in (text.tokens, text.length)))  # noqa: E731
    scripts = [rows(pad_texts(lines, len(lines), spec.width)) for lines in stages]
    summary = rows(pad_text(tokenizer.encode(f"{space}{facts[0]}{tokenizer.end_of_turn}"), spec.width))

    @jax.jit
    def episode(task, scripts, summary, world):
        rows = new_rows(spec)
        for stage in (1, 2, 3):
            write = scripted_writer(world, spec, scripts[stage - 1], summary)
            rows, _ = run_stage(rows, task, world, spec, stage, write, jnp.int32(ALL_TOOLS))
        return rows

    after = jax.device_get(episode(run.source.rows([(0, 0)] * spec.batch), scripts, summary, run.world))
    ok = after.stats.calls_ok[0]
    assert after.stats.malformed.sum() == 0 and after.stats.answered.all() and after.segments.count[0] == 4
    assert (ok[[Op.ADD, Op.RETRIEVE, Op.SUMMARY]] > 0).all(), ok
    return after.segments


def messages_of(text: str, chat) -> list[dict]:
    """The messages of a context's text, by the fixed strings around them."""
    kinds = sorted(
        ((role, getattr(chat, f"{role}_open")) for role in ("system", "user", "assistant", "tool")),
        key=lambda kind: -len(kind[1]),
    )
    close = {role: chat.tool_close if role == "tool" else chat.message_close for role, _ in kinds}
    messages, at = [], 0
    while at < len(text):
        role, begin = next((role, opening) for role, opening in kinds if text.startswith(opening, at))
        end = text.index(close[role], at + len(begin))
        messages.append({"role": role, "content": text[at + len(begin) : end]})
        at = end + len(close[role])
    return messages


def contexts(r: Recorded):
    """(row, segment, ids with the prompt) of every segment."""
    prefix = np.asarray(r.run.world.pieces.prefix.tokens[0]).tolist()
    for row, count in enumerate(r.segments.count):
        for s in range(int(count)):
            yield row, s, prefix + r.segments.tokens[row, s][: r.segments.length[row, s]].tolist()


def log_probs(r: Recorded, ids: list[int], tokens, where, state, remaining, ops) -> np.ndarray:
    """transformers' log-probabilities of the tokens at `where` of a context, in the distribution of the rollout."""
    with torch.no_grad():
        logits = r.model(torch.tensor([ids])).logits[0].numpy()
    begin = len(ids) - len(tokens)
    allowed = grammar_lib.allowed_tokens(
        r.run.world.grammar, *(jnp.asarray(x[where], jnp.int32) for x in (state, remaining, ops))
    )
    at = logits[begin + where - 1][:, : allowed.shape[1]]
    return np.asarray(masked_log_prob(at, allowed, jnp.asarray(tokens[where]), r.run.spec.learn.temperature)[0])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_template_gives_the_recorded_tokens(family, root):
    r = recorded(family, root)
    chat, seen = r.run.tokenizer.chat_pieces(), ""
    ids_of = lambda messages, **more: r.tokenizer.apply_chat_template(messages, return_dict=True, **more)["input_ids"]  # noqa: E731
    for _, _, ids in contexts(r):
        text = r.run.tokenizer.decode(ids)
        messages = messages_of(text, chat)
        assert messages[0]["role"] == "system" and ids_of(messages) == ids
        assert ids_of(messages[1:]) == ids  # the system message of training is put in
        for i, message in enumerate(messages):  # and the context before each turn
            if message["role"] == "assistant":
                before = ids_of(messages[1:i], add_generation_prompt=True)
                assert before == ids[: len(before)]
        seen += text
    if r.run.tokenizer.is_small:
        parts = ("related memories", "summarise", "summary", "done")
    else:
        parts = ("Related memories", "Summarise the conv", "Summary of earlier messages", "memory_id=2", ": done")
    assert all(part in seen for part in parts)
    assert re.search("found nothing|unknown memory_id|failed", seen) or r.run.config.tools.max_calls == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_model_gives_the_learners_log_probabilities(family, root):
    r = recorded(family, root)
    batch = learner_batch(r.segments, jnp.zeros((2, 3)), jnp.ones(r.segments.tokens.shape), 1)
    ours, _ = jax.jit(
        lambda params, batch: learn.log_probs(
            params, r.run.model, r.run.world.grammar, r.run.world.pieces.prefix,
            jax.tree.map(lambda x: x[None], batch), r.run.spec.learn.temperature, 64,
        )  # fmt: skip
    )(r.params, batch)
    rows = {tokens.tobytes(): logp for tokens, logp in zip(np.asarray(batch.tokens), np.asarray(ours[0]), strict=True)}
    checked = 0
    for row, s, ids in contexts(r):
        seg = jax.tree.map(lambda x: x[row, s], r.segments.replace(count=r.segments.tokens))  # noqa: B023
        where = np.flatnonzero(seg.trainable)
        tokens = seg.tokens[: seg.length]
        theirs = log_probs(r, ids, tokens, where, seg.state, seg.remaining, seg.ops)
        np.testing.assert_allclose(theirs, rows[seg.tokens.tobytes()][where], atol=1e-3)
        checked += len(where)
    assert checked > 60


def test_the_exported_model_gives_the_log_probabilities_that_sampling_recorded(root):
    """Of a random policy, on the very tokens: what it wrote need not be as a tokenizer would write it."""
    run = chained()
    params = save_run(root / "sampled", run.config, jax.device_get(run.frozen))
    export(root / "sampled" / "seed_0", root / "sampled-out", None, 1 << 30)
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "sampled-out", dtype=torch.float32).eval()
    segments = played()[1][-1].segments
    r = Recorded(run, params, segments, None, model)
    for row, s, ids in contexts(r):
        seg = jax.tree.map(lambda x: x[row, s], segments.replace(count=segments.tokens))  # noqa: B023
        where = np.flatnonzero(seg.trainable)
        theirs = log_probs(r, ids, seg.tokens[: seg.length], where, seg.state, seg.remaining, seg.ops)
        np.testing.assert_allclose(theirs, seg.logp[where], atol=1e-3)
