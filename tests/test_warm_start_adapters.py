"""The warm start of a model of one's own: adapters beside it, its vocabulary, demonstrations of a file's records."""

import dataclasses
import json
import os
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_inputs import write_records
from test_weights import our_logits
from vocabularies import END, write_bpe

from agemem_jax.benchmarks import task_source
from agemem_jax.benchmarks.hotpotqa.demos import RecordDemonstrator
from agemem_jax.benchmarks.hotpotqa.questions import generate
from agemem_jax.config import ConfigError
from agemem_jax.data.prompts import system_prompt
from agemem_jax.data.scripts import write_turn
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.models import lora, qwen, weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.layout import SUMMARY, Layout
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.setup import build, tokenizer_path
from agemem_jax.training.warm import recorded
from agemem_jax.types import TOOL_NAMES, Op
from configs import base, smollm2, tiny
from experiments import warm_start

STEPS = 6
SIZES = dict(hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a Llama-style model of one layer, a vocabulary and a chat template, and records."""
    folder = tmp_path_factory.mktemp("files")
    write_bpe(folder / "model", texts=(system_prompt(smollm2.get_config().tools),), vocab_size=1200)
    size = Tokenizer.load(str(folder / "model")).vocab_size
    model = ModelConfig(vocab_size=size, max_positions=4096, tie_word_embeddings=True, **SIZES)
    params = qwen.init_params(model, jax.random.key(0))
    # With embeddings as small as fresh ones, which stay, all tokens would be as likely whatever is learnt.
    params["embed_tokens"]["embedding"] *= 20
    weights.save_hf(folder / "model", model, jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, params))
    write_records(folder / "hotpot.json")
    return folder


def config_of(files):
    c = smollm2.get_config()
    c.policy.weights, c.task.path = str(files / "model"), str(files / "hotpot.json")
    c.policy.lora_rank = 4
    c.task.test_fraction, c.task.validation_fraction = 0.25, 0.0
    c.task.message_tokens, c.store.entry_tokens, c.rollout.action_tokens, c.rollout.summary_tokens = 100, 90, 200, 60
    c.context.limit, c.context.capacity = 1500, 1000
    c.mesh.fsdp = 1
    c.policy.query_block, c.policy.remat = 0, "none"
    c.rl.tasks_per_update, c.rl.group_size, c.rl.widths, c.rl.logit_chunk = 1, 4, 1, 256
    c.warm.steps, c.warm.batch, c.warm.warmup_steps = STEPS, 4, 1
    c.warm.learning_rate = c.warm.final_learning_rate = 5e-2
    c.train.checkpoint_every, c.train.traces = 2, 0
    return c


def demonstrator(config) -> RecordDemonstrator:
    source = task_source(config, Tokenizer.load(tokenizer_path(config.policy)))
    made = source.tasks.demonstrator(source, config, END)
    assert type(made) is RecordDemonstrator
    return made


def assert_in_the_format(demos, steps: int, size: int = 12) -> Counter:
    """Every turn and summary is in the grammar's language, and holds the text that was written; returns their calls."""
    grammar = grammar_lib.build_grammar(demos.config.tools, demos.source.tokenizer)
    parse = jax.jit(lambda tokens, count, start: grammar_lib.parse(grammar, tokens, count, start, 4))
    seen = Counter()
    for step in range(steps):
        _, told = demos.batch(step, size)
        for text, start in [*((s, grammar.start_act) for s in told.script.stages),
                            (told.script.summaries, grammar.start_summary)]:  # fmt: skip
            tokens, length = text.tokens.reshape(-1, text.tokens.shape[-1]), text.length.reshape(-1)
            calls = parse(tokens, length, jnp.full(length.shape, start))
            assert not np.asarray(calls.malformed)[length > 0].any()
            seen.update(Op(op).name for op in np.asarray(calls.op)[length > 0, 0])
    return seen


def test_a_turn_is_cut_where_the_policy_begins_and_ends_to_write():
    tools = base.get_config().tools
    tools.min_calls = 0
    layout = Layout(tools, END)
    calls = [
        (Op.UPDATE, {"memory_id": "12", "content": 'a "b", c \\'}),
        (Op.DELETE, {"memory_id": "3", "confirmation": True}),
    ]
    assert layout.pieces(write_turn(tools, calls, None, " 1 < 2") + END) == [
        ("<think>", False), (" 1 < 2", True),
        ('</think><tool_call>[{"name": "Update_memory", "arguments": {"memory_id": "', False), ("12", True),
        ('", "content": "', False), (r"a \"b\", c \\", True),
        ('"}}, {"name": "Delete_memory", "arguments": {"memory_id": "', False), ("3", True),
        ('", "confirmation":', False), (" true", False), ("}}]</tool_call>" + END, False),
    ]  # fmt: skip
    assert layout.pieces(write_turn(tools, [], "b") + END) == [
        ("<think>", False), ("</think><answer>", False), (" b", True), ("</answer>" + END, False)
    ]  # fmt: skip
    assert layout.pieces(write_turn(tools, []) + END)[1] == ("</think><tool_call>[]</tool_call>" + END, False)
    assert layout.pieces(" in short" + END, SUMMARY) == [(" in short", True), (END, False)]
    for wrong in ("", "no" + END, write_turn(tools, [], "b"), write_turn(tools, []) + END + " more"):
        with pytest.raises(ValueError, match="does not go on in the tool format|stands behind the end of a turn"):
            layout.pieces(wrong)


SOME = {"ADD", "RETRIEVE", "FILTER", "PASS", "ACT", "WRITE_SUMMARY"}


@pytest.mark.parametrize(
    "tools, calls",
    [
        ({"format": "paper", "enabled": TOOL_NAMES}, {*SOME, "UPDATE", "DELETE", "SUMMARY"}),
        ({"format": "hermes"}, SOME),
    ],
    ids=["paper", "hermes, some tools"],
)
def test_demonstrations_of_records_are_in_the_format(files, tools, calls):
    config = config_of(files)
    config.tools.update(tools)
    config.task.facts = 4  # a summary takes two messages
    demos = demonstrator(config)
    assert set(assert_in_the_format(demos, 6)) == calls
    calls = [(Op.ADD, {"content": 'the "café of 東京"\\'})]
    tokens, thought = demos.writer.tokens(demos.turn(calls)), " The user tells me a fact, so I store it"
    assert demos.source.tokenizer.decode(tokens) == write_turn(config.tools, calls, None, thought) + END


def test_what_is_stored_is_the_sentence_and_what_is_answered_the_answer(files):
    demos = demonstrator(config_of(files))
    assert demos.fact("By the way: Ada wrote <b>it</b> in 1984. ") == "Ada wrote b>it/b> in 1984"
    cut = demos.fact("one two three small " * 100)
    assert cut.startswith("one two three small one") and 40 < len(demos.source.encode(cut)) <= 90
    answered = Counter()
    for index in range(60):
        place = index % demos.source.num_train, index // demos.source.num_train
        (lines, held), staged = demos.tell(*place), demos.source.staged(*place)
        last, thinks = lines.stages[2][-1], "The memory that I found answers the question" in lines.stages[2][-1]
        facts = [demos.fact(text) for text in staged.gold]
        assert not thinks or last.endswith(f"<answer> {demos.fact(staged.answer)}</answer>")
        stored = {text for _, text in held}
        told = " ".join(lines.stages[2][:-1]) + " ".join(staged.distractors)
        answered.update([(thinks, all(fact in stored or fact in told for fact in facts))])
        for line, message in zip(lines.stages[0], staged.facts, strict=True):
            if "Add_memory" in line and json.dumps(demos.fact(message), ensure_ascii=False) in line:
                answered.update(["stored"])
    assert answered[True, False] == 0 and answered[True, True] > 20 and answered[False, False] > 5
    assert answered["stored"] > 30


def test_no_test_record_is_shown(files):
    demos = demonstrator(config_of(files))
    source = demos.source
    assert source.num_train == 9 and len(source.places["test"]) == 3
    hidden = {source.staged(index).query for index in source.places["test"]}
    shown, said = set(), set()
    for step in range(6):
        task, told = demos.batch(step, 6)
        shown |= set(task.index.tolist())
        for text in told.script.stages:
            rows = zip(text.tokens.reshape(-1, text.tokens.shape[-1]), text.length.reshape(-1), strict=True)
            said |= {source.tokenizer.decode(row[:n].tolist()) for row, n in rows}
    assert shown == set(range(9))
    assert not any(demos.fact(question) in text for question in hidden for text in said)
    assert any(demos.fact(source.staged(0).query) in text for text in said)


def test_demonstrations_are_played_as_they_are_written(files):
    run = build(config_of(files))
    demos, spec = demonstrator(run.config), run.spec.rollout
    task, told = demos.batch(0, spec.batch)
    segments, seen = jax.jit(recorded(spec))(task, told, run.world)
    assert float(seen["malformed"]) == 0 and float(seen["demo_score"]) > 0
    decode = run.tokenizer.decode
    for b in range(spec.batch):
        rows = zip(np.asarray(segments.tokens[b]), np.asarray(segments.length[b]), strict=True)
        played = "".join(decode(row[:n].tolist()) for row, n in rows)
        for text in told.script.stages[:1] + told.script.stages[2:]:
            for row, n in zip(text.tokens[b], text.length[b], strict=True):
                assert decode(row[:n].tolist()) in played
    written = sum(int(text.length.sum()) for text in told.script.stages)
    assert 0.1 * written < int(segments.trainable.sum()) < written  # but for what the grammar forces


def make(config, folder, monkeypatch) -> tuple:
    """The warm start: (its adapters, what it wrote)."""
    learn, kept, wrote = warm_start.learn, [], {}

    def learnt(*args):
        params, curves = learn(*args)
        kept.append(jax.device_get(params))
        return params, curves

    monkeypatch.setattr(warm_start, "learn", learnt)
    monkeypatch.setattr(warm_start.out, "write", wrote.update)
    warm_start.make([config], folder)
    return kept[0], wrote


class Stopped(Exception):
    pass


def test_it_trains_adapters_and_exports_the_model_with_them(files, tmp_path, monkeypatch):
    saved, whole = [], tmp_path / "whole"
    save = Checkpointer.save

    def note(self, update, state, host):
        saved.append(state.params)
        save(self, update, state, host)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", note)
        adapters, wrote = make(config_of(files), whole, patch)
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(saved[0])}
    assert leaves == {"lora_a", "lora_b"} and len(saved) == STEPS // 2
    curve = wrote["curves"]["demonstrations"]
    assert [at["malformed"] for at in curve] == [0.0] * len(curve)
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]

    # The model with its adapters, the exported one, and the one before.
    model, frozen = weights.load(files / "model")
    adapted = dataclasses.replace(model, lora=lora.Lora(4, 32.0 / 4, tuple(base.get_config().policy.lora_targets)))
    exported, params = weights.load(whole)
    assert exported == model and exported.max_positions == 4096
    tokens = np.random.default_rng(0).integers(5, model.vocab_size, 24).tolist()
    through = our_logits(adapted, lora.policy_params(adapters, frozen), tokens)
    merged, before = our_logits(exported, params, tokens), our_logits(model, frozen, tokens)
    assert np.abs(through - before).max() > 0.05 * np.abs(before).max()
    np.testing.assert_allclose(merged, through, rtol=0, atol=1e-4 * np.abs(through).max())

    # All that a run begins with is there, and means the same.
    ours, theirs = Tokenizer.load(str(files / "model")), Tokenizer.load(str(whole))
    assert theirs.pieces == ours.pieces and theirs.markers == ours.markers
    assert theirs.chat_pieces("") == ours.chat_pieces("")
    assert not (whole / "progress").exists()
    config = config_of(files)
    config.policy.weights = str(whole)
    run = build(config)
    np.testing.assert_array_equal(run.frozen["embed_tokens"]["embedding"], frozen["embed_tokens"]["embedding"])

    def stop(self, update, state, host):
        save(self, update, state, host, wait=True)
        if update == 4:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpointer, "save", stop)
        make(config_of(files), tmp_path / "parts", patch)
    with monkeypatch.context() as patch:
        again, _ = make(config_of(files), tmp_path / "parts", patch)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"policy.weights": ""}, "policy.lora_rank = 4: adapters are trained beside policy.weights"),
        ({"warm.weights": "another"}, "warm.weights = 'another': adapters are trained beside policy.weights"),
        ({"policy.lora_rank": 0}, "policy.lora_rank = 0: policy.weights = .* has a vocabulary of its own"),
    ],
)
def test_what_does_not_go_with_adapters_is_refused(files, tmp_path, changes, what):
    config = config_of(files)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=what):
        warm_start.make([config], tmp_path)


def test_records_that_say_what_is_told_have_demonstrations_of_their_own(files, tmp_path):
    config = tiny.get_config()
    config.task.path, config.task.test_fraction = str(tmp_path / "generated.json"), 0.5
    made = generate(0, 8, "train", {"recall": 1.0})
    (tmp_path / "generated.json").write_text(json.dumps(made))
    source = task_source(config, Tokenizer.load(config.policy.tokenizer))
    assert source.tasks.demonstrator.__name__ == ("Demonstrator" if "told" in made[0] else "RecordDemonstrator")


@pytest.mark.weights
@pytest.mark.skipif("AGEMEM_HOTPOTQA" not in os.environ, reason="set AGEMEM_HOTPOTQA to a published HotpotQA file")
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "smollm2-135m-instruct-q4_1.gguf"])
def test_demonstrations_of_published_records_are_in_the_format(name):
    config = smollm2.get_config()
    config.policy.weights = os.path.join(os.environ["AGEMEM_WEIGHTS_DIR"], name)
    config.task.path = os.environ["AGEMEM_HOTPOTQA"]
    seen = assert_in_the_format(demonstrator(config), 10, 16)
    assert seen["ACT"] > 150 and seen["ADD"] > 100
