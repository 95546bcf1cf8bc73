"""The tool grammar: whatever is sampled under it parses with the json module to what the device extracted."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import END, write_bpe, write_sentencepiece

from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.schemas import STATUS_TEXT, tool_schemas, validate_call
from agemem_jax.types import NO_ID, NUM_OPS, PAD_ID, TOOL_NAMES, Op, Status
from configs.base import get_config

ROWS, WIDTH, TAG_WIDTH = 96, 400, 64
TURN = re.compile(
    r"<think>([^<]*)</think>(?:<tool_call>(.*)</tool_call>|<answer>([^<]*)</answer>)<\|im_end\|>", re.DOTALL
)
VARIANTS = {
    "paper": {},
    "empty_array": {"min_calls": 0, "think": False, "max_calls": 2},
    "required_only": {"optional_arguments": False, "min_calls": 2},
    "summary_in_call": {"summary_by": "call", "max_tags": 3, "max_top_k": 9},
    "few_tools": {"enabled": ("Add_memory", "Retrieve_memory", "Summary_context"), "max_calls": 1, "max_tags": 0},
    "hermes": {"format": "hermes", "max_calls": 1},
}


def tools_config(**changes):
    config = get_config().tools
    config.update(changes)
    return config


def load(kind: str, config, folder) -> Tokenizer:
    if kind == "weights":
        return Tokenizer.load(os.path.join(os.environ["AGEMEM_WEIGHTS_DIR"], "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"))
    if kind == "bpe":
        return Tokenizer.load(write_bpe(folder))
    return Tokenizer.load(write_sentencepiece(folder / "tiny.model", grammar_lib.literals(config, END)))


@partial(jax.jit, static_argnames="width")
def walk(grammar, start, budget, ops, by_class, key, width=WIDTH):
    """Writes random turns: uniform over the allowed tokens, or over their classes where `by_class`.

    Returns tokens [B, A], count [B], stuck [B] (no token was allowed), forced_wrong [B] (is_forced and mask disagree).
    """
    vocabulary = grammar.token_class.shape[0]

    def step(carry, i):
        state, count, stuck, forced_wrong = carry
        left = budget - i
        live = (state != grammar.end) & (left > 0)
        allowed = grammar_lib.allowed_tokens(grammar, state, left, ops)
        forced, only = grammar_lib.is_forced(grammar, state, left, ops)
        one, two = jax.random.split(jax.random.fold_in(key, i))
        of_class = jax.random.uniform(one, (len(budget), grammar.class_size.shape[0]))
        score = jax.random.uniform(two, (len(budget), vocabulary))
        score = score + jnp.where(by_class[:, None], 10 * of_class[:, grammar.token_class], 0)
        token = jnp.argmax(jnp.where(allowed, score, -1), axis=-1)
        wrong = (forced != (allowed.sum(-1) == 1)) | (forced & (only != token)) | (~forced & (only != PAD_ID))
        state = jnp.where(live, grammar_lib.advance(grammar, state, token), state)
        carry = state, count + live, stuck | (live & ~allowed.any(-1)), forced_wrong | (live & wrong)
        return carry, jnp.where(live, token, PAD_ID)

    zeros = jnp.zeros(len(budget), jnp.int32)
    carry = (start, zeros, zeros > 0, zeros > 0)
    (_, count, stuck, forced_wrong), tokens = jax.lax.scan(step, carry, jnp.arange(width))
    return tokens.T, count, stuck, forced_wrong


parse = jax.jit(grammar_lib.parse, static_argnames="tag_width")


class Pairs(list):
    """A JSON object as its pairs, so that a key written twice is seen twice."""


def expected_calls(text: str, config) -> list[dict]:
    """The calls of a turn, read with the json module."""
    match = TURN.fullmatch(text)
    assert match, text
    _, calls, answer = match.groups()
    if answer is not None:
        return [{"op": Op.ANSWER, "content": answer}]
    if config.format == "hermes":
        assert calls.startswith("\n") and calls.endswith("\n"), calls
        calls = f"[{calls}]"
    for call in json.loads(calls):
        validate_call(call, config)
    found = [_expected(dict(call)) for call in json.loads(calls, object_pairs_hook=Pairs)]
    assert config.min_calls <= len(found) <= config.max_calls
    return found or [{"op": Op.PASS}]


def _expected(call: dict) -> dict:
    arguments = dict(call["arguments"])
    text = [arguments.pop(name) for name in ("content", "query", "criteria", "summary") if name in arguments]
    span = arguments.pop("span", "all")
    found = {
        "op": TOOL_NAMES.index(call["name"]),
        "content": text[0] if text else "",
        "type": arguments.pop("memory_type", ""),
        "tags": [tuple(pair) for pair in arguments.pop("metadata", arguments.pop("metadata_filter", []))],
        "memory_id": int(arguments.pop("memory_id", NO_ID)),
        "top_k": arguments.pop("top_k", 0),
        "span": 0 if span == "all" else int(span),
        "confirmed": arguments.pop("confirmation", False),
    }
    assert not arguments
    return found


def device_calls(calls, row: int, tokenizer: Tokenizer) -> list[dict]:
    """The calls of one row as the device parsed them, with their texts decoded."""

    def text(piece, *at) -> str:
        length = int(piece.length[at])
        assert (piece.tokens[at][length:] == PAD_ID).all()
        return tokenizer.decode(piece.tokens[at][:length])

    found = []
    for j in range(calls.op.shape[1]):
        if calls.op[row, j] == Op.NONE:
            assert (calls.op[row, j:] == Op.NONE).all() and not calls.content.length[row, j:].any()
            break
        pairs = [
            tuple(text(calls.tags, row, j, slot, side) for side in (0, 1)) for slot in range(calls.tags.length.shape[2])
        ]
        assert pairs[0][0] == ("memory_type" if pairs[0][1] else "")
        found.append(
            {
                "op": int(calls.op[row, j]),
                "content": text(calls.content, row, j),
                "type": pairs[0][1],
                "tags": pairs[1:],
                "memory_id": int(calls.memory_id[row, j]),
                "top_k": int(calls.top_k[row, j]),
                "span": int(calls.span[row, j]),
                "confirmed": bool(calls.confirmed[row, j]),
            }
        )
    return found


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    absent = {"content": "", "type": "", "tags": [], "memory_id": NO_ID, "top_k": 0, "span": 0, "confirmed": False}
    for one, other in zip(found, expected, strict=True):
        other = absent | other
        # A tag slot that was not written looks like a pair of empty strings.
        tags = [pair for pair in other["tags"] if pair != ("", "")]
        assert [pair for pair in one["tags"] if pair != ("", "")] == tags
        assert one | {"tags": []} == other | {"tags": []}


def random_turns(grammar, config, seed: int, rows: int = ROWS):
    """Random turns under random budgets and operation masks, as numpy arrays."""
    rng = np.random.default_rng(seed)
    enabled = [TOOL_NAMES.index(name) for name in config.enabled] + [Op.ANSWER] + [Op.PASS] * (config.min_calls == 0)
    lowest = max(grammar_lib.max_distance(grammar, op) for op in Op if op != Op.NONE)
    some = rng.random((rows, NUM_OPS)) < 0.6
    some[np.arange(rows), rng.choice(enabled, rows)] = True
    some &= np.isin(np.arange(NUM_OPS), enabled)
    budget = np.where(rng.random(rows) < 0.3, lowest, rng.integers(lowest, WIDTH + 1, rows))
    ops = (some << np.arange(NUM_OPS)).sum(1)
    start = np.full(rows, grammar.start_act, np.int32)
    inputs = (jnp.asarray(x, jnp.int32) for x in (start, budget, ops))
    by_class = jnp.asarray(rng.random(rows) < 0.7)
    tokens, count, stuck, wrong = walk(grammar, *inputs, by_class, jax.random.key(seed))
    assert not stuck.any() and not wrong.any()
    assert (count <= budget).all()
    return np.asarray(tokens), np.asarray(count), some


def check_turns(grammar, config, tokenizer: Tokenizer, seed: int, rows: int = ROWS) -> set[int]:
    """Samples turns and compares both readings of them; returns the operations that were seen."""
    tokens, count, allowed = random_turns(grammar, config, seed, rows)
    start = jnp.full(rows, grammar.start_act)
    calls = jax.tree.map(np.asarray, parse(grammar, tokens, count, start, tag_width=WIDTH))
    assert not calls.malformed.any()
    seen = set()
    for row in range(rows):
        ids = tokens[row, : count[row]]
        text = tokenizer.decode(ids)
        assert "\ufffd" not in text  # whole UTF-8
        expected = expected_calls(text, config)
        assert_same(device_calls(calls, row, tokenizer), expected)
        ops = {call["op"] for call in expected}
        assert all(allowed[row, op] for op in ops)
        seen |= ops
        assert (calls.think_tokens[row] > 0) == bool(TURN.fullmatch(text).group(1))
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["tiny", "bpe", pytest.param("weights", marks=pytest.mark.weights)])
def test_sampled_turns_parse_to_what_the_device_extracted(kind, variant, tmp_path):
    config = tools_config(**VARIANTS[variant])
    tokenizer = load(kind, config, tmp_path)
    grammar = grammar_lib.build_grammar(config, tokenizer)
    rows = 8 if kind == "weights" else ROWS  # a row of scores over Qwen's vocabulary is 600 kB
    seen = set().union(*(check_turns(grammar, config, tokenizer, seed, rows) for seed in range(3)))
    tools = {TOOL_NAMES.index(name) for name in config.enabled}
    writable = tools | {Op.ANSWER} | ({Op.PASS} if config.min_calls == 0 else set())
    assert seen <= writable if kind == "weights" else seen == writable


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    config = tools_config()
    tokenizer = load("bpe", config, tmp_path_factory.mktemp("bpe"))
    return config, tokenizer, grammar_lib.build_grammar(config, tokenizer)


@pytest.fixture(scope="module")
def free(bpe):
    """The same vocabulary, unconstrained."""
    return grammar_lib.build_grammar(tools_config(constrained=False), bpe[1])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_any_seed_budget_and_operations(bpe, seed):
    config, tokenizer, grammar = bpe
    check_turns(grammar, config, tokenizer, seed)


def spelled_in_bytes(tokenizer: Tokenizer, ids) -> list[int]:
    """The same text in single-byte tokens (markers stay)."""
    single = {piece: token for token, piece in enumerate(tokenizer.token_bytes()) if piece and len(piece) == 1}
    pieces = [(token, tokenizer.token_bytes()[token]) for token in map(int, ids)]
    return [t for token, piece in pieces for t in ([single[bytes([b])] for b in piece] if piece else [token])]


def test_unconstrained_parsing_reads_any_tokenisation_with_exact_boundaries(bpe, free):
    config, tokenizer, grammar = bpe
    tokens, count, _ = random_turns(grammar, config, 5)
    lengthy = [spelled_in_bytes(tokenizer, tokens[row, : count[row]]) for row in range(ROWS)]
    width = max(map(len, lengthy))
    padded = np.array([ids + [PAD_ID] * (width - len(ids)) for ids in lengthy], np.int32)
    start = jnp.full(ROWS, free.start_act)
    lengths = np.array(list(map(len, lengthy)))
    read = jax.tree.map(np.asarray, parse(free, padded, lengths, start, tag_width=width))
    assert not read.malformed.any()
    for row in range(ROWS):
        assert_same(device_calls(read, row, tokenizer), expected_calls(tokenizer.decode(lengthy[row]), config))
    canonical = parse(free, tokens, count, start, tag_width=TAG_WIDTH)
    constrained = parse(grammar, tokens, count, jnp.full(ROWS, grammar.start_act), tag_width=TAG_WIDTH)
    jax.tree.map(np.testing.assert_array_equal, canonical, constrained)


def test_unconstrained_sampling_allows_all_but_control_tokens_until_the_end(bpe, free):
    _, tokenizer, _ = bpe
    usable = np.array([piece is not None for piece in tokenizer.token_bytes()])
    usable[tokenizer.eos_id] = True
    states = jnp.array([free.start_act, free.dead, free.start_summary])
    nothing = jnp.zeros(3, jnp.int32)
    allowed = grammar_lib.allowed_tokens(free, states, nothing + 1, nothing + 1)
    np.testing.assert_array_equal(allowed, np.broadcast_to(usable, allowed.shape))
    assert not grammar_lib.allowed_tokens(free, jnp.array([free.end]), jnp.array([9]), jnp.array([511])).any()
    lost = grammar_lib.advance(free, states, jnp.full(3, tokenizer.encode_markup("]")[0]))
    assert lost[0] == free.dead and lost[1] == free.dead and lost[2] == free.start_summary
    assert (grammar_lib.advance(free, lost, jnp.full(3, tokenizer.eos_id)) == free.end).all()
    assert (grammar_lib.advance(free, jnp.array([free.end]), jnp.array([5])) == free.end).all()


def parse_text(grammar, tokenizer, text: str, start: int | None = None):
    ids = tokenizer.encode_markup(text)
    tokens = np.array([ids + [PAD_ID] * (WIDTH - len(ids))], np.int32)
    begin = jnp.array([grammar.start_act if start is None else start])
    return jax.tree.map(np.asarray, parse(grammar, tokens, jnp.array([len(ids)]), begin, tag_width=TAG_WIDTH))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello<|im_end|>",
        "<think></think><|im_end|>",
        "<think></think><answer>yes</answer>",  # no end of turn
        "<think></think><answer>yes</answer> <|im_end|>",
        "<answer>yes</answer><|im_end|>",
        "<think></think><tool_call>[]</tool_call><|im_end|>",  # min_calls is 1
        '<think></think><tool_call>[{"name": "Forget", "arguments": {"content": "x"}}]</tool_call><|im_end|>',
        '<think></think><tool_call>[{"name": "Delete_memory", "arguments": {"memory_id": "'
        '12345", "confirmation": true}}]</tool_call><|im_end|>',
    ],
)
def test_malformed_turns_have_no_calls(bpe, free, text):
    calls = parse_text(free, bpe[1], text)
    assert calls.malformed.all() and (calls.op == Op.NONE).all()
    assert not calls.content.length.any() and not calls.tags.length.any() and (calls.memory_id == NO_ID).all()


def test_damaged_turns_are_malformed(bpe):
    """Cutting the end, or dropping a token of a literal, leaves the language."""
    config, tokenizer, grammar = bpe
    tokens, count, _ = random_turns(grammar, config, 7)
    start = jnp.full(ROWS, grammar.start_act)
    assert parse(grammar, tokens, count - 1, start, tag_width=TAG_WIDTH).malformed.all()
    assert parse(grammar, tokens[:, 1:], count - 1, start, tag_width=TAG_WIDTH).malformed.all()
    late = np.insert(tokens, WIDTH // 2, 0, axis=1)  # something after the end
    late[np.arange(ROWS), count] = tokenizer.encode_markup("a")[0]
    assert parse(grammar, late, count + 1, start, tag_width=TAG_WIDTH).malformed.all()


def test_summary_is_plain_text_up_to_the_end(bpe):
    _, tokenizer, grammar = bpe
    calls = parse_text(grammar, tokenizer, "Ada wrote Silver River.\n<|im_end|>", grammar.start_summary)
    assert calls.op[0].tolist() == [Op.WRITE_SUMMARY, Op.NONE, Op.NONE]
    assert tokenizer.decode(calls.content.tokens[0, 0, : calls.content.length[0, 0]]) == "Ada wrote Silver River.\n"
    assert parse_text(grammar, tokenizer, "a <answer>b<|im_end|>", grammar.start_summary).malformed.all()
    empty = parse_text(grammar, tokenizer, "<|im_end|>", grammar.start_summary)
    assert empty.op[0, 0] == Op.WRITE_SUMMARY and empty.content.length[0, 0] == 0
    ops, budget = jnp.full(ROWS, 1 << Op.WRITE_SUMMARY), jnp.arange(1, ROWS + 1)
    start = jnp.full(ROWS, grammar.start_summary)
    tokens, count, stuck, wrong = walk(grammar, start, budget, ops, budget % 2 == 0, jax.random.key(0))
    calls = parse(grammar, tokens, count, start, tag_width=TAG_WIDTH)
    assert not (stuck | wrong | calls.malformed).any() and (count <= budget).all()
    np.testing.assert_array_equal(calls.content.length[:, 0], count - 1)


def test_a_tag_longer_than_its_room_is_cut_and_says_so(bpe):
    _, tokenizer, grammar = bpe
    opening = '</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "'
    parts = ("<think>", opening, "x", '", "memory_type": "', "0123456789", '"}}]</tool_call>' + END)
    ids = [token for part in parts for token in tokenizer.encode_markup(part)]
    start = jnp.array([grammar.start_act])
    calls = parse(grammar, np.array([ids]), jnp.array([len(ids)]), start, tag_width=4)
    assert not calls.malformed[0] and calls.tags.length[0, 0, 0, 1] == len(tokenizer.encode_markup("0123456789")) > 4
    assert tokenizer.decode(np.asarray(calls.tags.tokens)[0, 0, 0, 1]) == "0123456789"[:4]


def test_the_smallest_budget_leaves_every_operation_open(bpe):
    """One token less allows nothing; with just enough, each operation can be written, the costliest in one way only."""
    _, _, grammar = bpe
    ops = [op for op in Op if op not in (Op.NONE, Op.PASS, Op.WRITE_SUMMARY)]
    fewest = [grammar_lib.max_distance(grammar, op) for op in ops]
    assert min(fewest) > 0 and grammar_lib.max_distance(grammar, Op.PASS) == 0
    start, mask = jnp.full(len(ops), grammar.start_act), jnp.array([1 << op for op in ops])
    budget = jnp.full(len(ops), max(fewest))
    assert not grammar_lib.allowed_classes(grammar, start, budget - 1, mask).any()
    assert not grammar_lib.allowed_classes(grammar, start, budget, mask * 0).any()
    tokens, count, stuck, _ = walk(grammar, start, budget, mask, mask > 0, jax.random.key(1))
    calls = parse(grammar, tokens, count, start, tag_width=TAG_WIDTH)
    assert not stuck.any() and (count <= budget).all()
    np.testing.assert_array_equal(calls.op[:, 0], ops)
    costliest = int(np.argmax(fewest))
    assert count[costliest] == max(fewest) and calls.content.length[costliest, 0] == 0


def test_parse_and_masks_call_no_host(bpe):
    _, _, grammar = bpe
    tokens, ones = jnp.zeros((2, 8), jnp.int32), jnp.ones(2, jnp.int32)
    jaxpr = str(jax.make_jaxpr(partial(grammar_lib.parse, tag_width=4))(grammar, tokens, ones, ones))
    jaxpr += str(jax.make_jaxpr(grammar_lib.allowed_tokens)(grammar, ones, ones, ones))
    assert "callback" not in jaxpr


@pytest.mark.parametrize("room", [0, 60, 90])
def test_thinking_leaves_room_for_the_body(tmp_path, room):
    """Turns that think as long as they may: at least `body_tokens` of the budget are left when thinking ends."""
    config = tools_config(body_tokens=room, optional_arguments=False)
    tokenizer = load("bpe", config, tmp_path)
    grammar = grammar_lib.build_grammar(config, tokenizer)
    budget, opening = 130, len(tokenizer.encode_markup("<think>"))
    state, written = jnp.int32(grammar.start_act), 0
    word = tokenizer.encode_markup(" the")[0]
    for token in [*tokenizer.encode_markup("<think>"), *[word] * budget]:
        allowed = grammar_lib.allowed_tokens(grammar, state, jnp.int32(budget - written), jnp.int32(2**NUM_OPS - 1))
        if not allowed[token]:
            break
        state, written = grammar_lib.advance(grammar, state, jnp.int32(token)), written + 1
    assert written > opening and allowed.any()
    left = max(room, max(grammar.shortest) - opening)  # without a wish, enough for any operation with empty strings
    assert budget - written == left


def test_tiny_literals_are_single_forced_tokens(tmp_path):
    """An answer of n words costs n + 2 tokens: opening, words, close with the end of the turn."""
    config = tools_config(think=False, max_calls=2, min_calls=0, optional_arguments=False)
    tokenizer = load("tiny", config, tmp_path)
    grammar = grammar_lib.build_grammar(config, tokenizer)
    shortest = [grammar_lib.max_distance(grammar, op) for op in (Op.ADD, Op.SUMMARY, Op.FILTER, Op.ANSWER, Op.PASS)]
    assert shortest == [2, 3, 2, 2, 1]
    assert len(grammar_lib.literals(config, END)) == len(set(grammar_lib.literals(config, END))) < 60
    close = tokenizer.encode_markup('"}}]</tool_call>' + END)
    assert len(close) == 1 and grammar_lib.ends_turn(grammar, jnp.array(close)).all()
    assert not grammar_lib.ends_turn(grammar, jnp.array(tokenizer.encode_markup(" Ada"))).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "xml"}, "tools.format"),
        ({"format": "hermes"}, "tools.max_calls"),
        ({"min_calls": 4}, "tools.min_calls"),
        ({"max_calls": 0, "min_calls": 0}, "tools.max_calls"),
        ({"max_tags": -1}, "tools.max_tags"),
        ({"max_top_k": 10}, "tools.max_top_k"),
        ({"summary_by": "magic"}, "tools.summary_by"),
        ({"enabled": ("Add_memory", "Forget")}, "Forget"),
    ],
)
def test_impossible_configs_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        grammar_lib.literals(tools_config(**changes), END)


def test_a_vocabulary_that_cannot_spell_the_format_is_refused(tmp_path):
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path / "bare.model", []))
    with pytest.raises(ValueError, match="cannot spell"):
        grammar_lib.build_grammar(tools_config(), tokenizer)


def test_schemas_show_the_arguments_that_may_be_written():
    schemas = {s["function"]["name"]: s["function"]["parameters"] for s in tool_schemas(tools_config())}
    assert list(schemas) == list(TOOL_NAMES)
    assert list(schemas["Add_memory"]["properties"]) == ["content", "memory_type", "metadata"]
    assert schemas["Retrieve_memory"]["properties"]["top_k"]["maximum"] == 5
    plain = tool_schemas(tools_config(optional_arguments=False, enabled=("Summary_context",), summary_by="call"))
    assert plain[0]["function"]["parameters"]["required"] == ["span", "summary"]
    assert json.loads(json.dumps(plain)) == plain
    assert set(STATUS_TEXT) == set(Status)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "Forget", "arguments": {}}, "not an enabled tool"),
        ({"name": "Add_memory"}, "object with name and arguments"),
        ({"name": "Add_memory", "arguments": {}}, "lacks the argument 'content'"),
        ({"name": "Add_memory", "arguments": {"content": "x", "colour": "red"}}, "no argument 'colour'"),
        ({"name": "Delete_memory", "arguments": {"memory_id": "12345", "confirmation": True}}, "memory_id is '12345'"),
        ({"name": "Delete_memory", "arguments": {"memory_id": "1", "confirmation": "true"}}, "confirmation is 'true'"),
        ({"name": "Retrieve_memory", "arguments": {"query": "x", "top_k": 6}}, "top_k is 6"),
        ({"name": "Summary_context", "arguments": {"span": "full"}}, "span is 'full'"),
        ({"name": "Add_memory", "arguments": {"content": "x", "metadata": {"a": 1}}}, "metadata is"),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        validate_call(call, tools_config())


def test_every_process_numbers_the_states_alike():
    """Sets are ordered by hashes that differ between processes; the tables of a run on several must not."""
    code = (
        "import sys, hashlib; sys.path.insert(0, 'tests')\n"
        "import jax, numpy as np\n"
        "from small import small_config\n"
        "from agemem_jax.data.tokenizer import Tokenizer\n"
        "from agemem_jax.tools import grammar\n"
        "c = small_config()\n"
        "tables = grammar.build_grammar(c.tools, Tokenizer.load(c.policy.tokenizer))\n"
        "print(hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(tables))).hexdigest())"
    )
    root = Path(__file__).parent.parent
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1
