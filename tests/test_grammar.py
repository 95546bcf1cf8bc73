"""The tool grammar: whatever is sampled under it parses with the json module to what the device extracted."""

import hashlib
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

from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.config import ConfigError
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.schemas import STATUS_TEXT, read_calls, tool_schemas, validate_call
from agemem_jax.types import NO_ID, NUM_OPS, PAD_ID, TOOL_NAMES, Op, Status
from configs import tiny
from configs.base import get_config

ROWS, WIDTH, TAG_WIDTH = 96, 400, 64
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)  # as serving programs find the calls of a reply
MARK = re.compile(r"<[a-zA-Z/|!\u0080-\U0010ffff]")
VARIANTS = {
    "paper": {},
    "empty_array": {"min_calls": 0, "think": False, "max_calls": 2},
    "required_only": {"optional_arguments": False, "min_calls": 2},
    "summary_in_call": {"summary_by": "call", "max_tags": 3, "max_top_k": 9},
    "few_tools": {"enabled": ("Add_memory", "Retrieve_memory", "Summary_context"), "max_calls": 1, "max_tags": 0},
    "hermes": {"format": "hermes"},
    "hermes_none": {"format": "hermes", "max_calls": 2, "min_calls": 0, "optional_arguments": False},
}


def tools_config(**changes):
    config = get_config().tools
    config.update(changes)
    return config


def load(kind: str, config, folder) -> Tokenizer:
    if kind == "weights":
        return Tokenizer.load(os.path.join(os.environ["AGEMEM_WEIGHTS_DIR"], "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"))
    if kind in ("bpe", "bytes"):
        return Tokenizer.load(write_bpe(folder, vocab_size=800 if kind == "bpe" else 256))
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
    """The calls of a turn, read with regular expressions and the json module."""
    thought = THOUGHT.match(text)
    assert thought and text.endswith(END), text
    body, blocks = text[thought.end() : -len(END)], BLOCK.findall(text)
    if not blocks and (answer := ANSWER.fullmatch(body)):
        return [{"op": Op.ACT, "content": answer[1]}]
    read = [json.loads(block, object_pairs_hook=Pairs) for block in blocks]
    if config.format == "hermes":
        assert body == "\n".join(f"<tool_call>{block}</tool_call>" for block in blocks)
        assert all(block.startswith("\n{") and block.endswith("}\n") for block in blocks)
    else:
        (read,) = read
        assert body == f"<tool_call>{blocks[0]}</tool_call>"
    for call in read_calls(text):
        validate_call(call, config)
    found = [_expected(dict(call)) for call in read]
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
    enabled = [TOOL_NAMES.index(name) for name in config.enabled] + [Op.ACT] + [Op.PASS] * (config.min_calls == 0)
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


def check_turns(grammar, config, tokenizer: Tokenizer, seed: int, rows: int = ROWS) -> tuple[set[int], str]:
    """Samples turns and compares both readings of them; returns the operations that were seen, and the contents."""
    tokens, count, allowed = random_turns(grammar, config, seed, rows)
    start = jnp.full(rows, grammar.start_act)
    calls = jax.tree.map(np.asarray, parse(grammar, tokens, count, start, tag_width=WIDTH))
    assert not calls.malformed.any()
    seen, texts = set(), ""
    for row in range(rows):
        ids = tokens[row, : count[row]]
        text = tokenizer.decode(ids)
        assert "\ufffd" not in text  # whole UTF-8
        expected = expected_calls(text, config)
        assert_same(device_calls(calls, row, tokenizer), expected)
        ops = {call["op"] for call in expected}
        assert all(allowed[row, op] for op in ops)
        seen |= ops
        assert (calls.think_tokens[row] > 0) == bool(THOUGHT.match(text)[1])
        texts += "".join(call.get("content", "") + "\n" for call in expected)
    assert not MARK.search(texts)
    return seen, texts


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        *((kind, variant) for kind in ("tiny", "bpe") for variant in VARIANTS),
        ("bytes", "paper"),
        ("bytes", "hermes_none"),
        *(pytest.param("weights", variant, marks=pytest.mark.weights) for variant in VARIANTS),
    ],
)
def test_sampled_turns_parse_to_what_the_device_extracted(kind, variant, tmp_path):
    config = tools_config(**VARIANTS[variant])
    tokenizer = load(kind, config, tmp_path)
    grammar = grammar_lib.build_grammar(config, tokenizer)
    rows = 8 if kind == "weights" else ROWS  # a row of scores over Qwen's vocabulary is 600 kB
    played = [check_turns(grammar, config, tokenizer, seed, rows) for seed in range(3)]
    seen, texts = set().union(*(ops for ops, _ in played)), "".join(text for _, text in played)
    tools = {TOOL_NAMES.index(name) for name in config.enabled}
    writable = tools | {Op.ACT} | ({Op.PASS} if config.min_calls == 0 else set())
    assert seen <= writable if kind == "weights" else seen == writable
    if kind != "tiny":
        assert '"' in texts and "\\" in texts and "<" in texts


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    config = tools_config()
    tokenizer = load("bpe", config, tmp_path_factory.mktemp("bpe"))
    return config, tokenizer, grammar_lib.build_grammar(config, tokenizer)


@pytest.fixture(scope="module")
def free(bpe):
    """The same vocabulary, unconstrained."""
    return grammar_lib.build_grammar(tools_config(constrained=False), bpe[1])


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31 - 1))
def test_any_seed_budget_and_operations(bpe, seed):
    config, tokenizer, grammar = bpe
    check_turns(grammar, config, tokenizer, seed)


def cut_up(tokenizer: Tokenizer, ids, share: float = 1.0) -> list[int]:
    """The same text with that share of the tokens spelled in single bytes (markers stay)."""
    single = {piece: token for token, piece in enumerate(tokenizer.token_bytes()) if piece and len(piece) == 1}
    rng, found = np.random.default_rng(len(ids)), []
    for token in map(int, ids):
        piece = tokenizer.token_bytes()[token]
        found += [single[bytes([b])] for b in piece] if piece and rng.random() < share else [token]
    return found


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_unconstrained_parsing_reads_any_tokenisation_with_exact_boundaries(bpe, free, share):
    config, tokenizer, grammar = bpe
    tokens, count, _ = random_turns(grammar, config, 5)
    lengthy = [cut_up(tokenizer, tokens[row, : count[row]], share) for row in range(ROWS)]
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


def test_what_a_turn_says_is_its_texts(bpe, free):
    """Thought, content, query and tags; no id, number or choice, and nothing of the format."""
    _, tokenizer, grammar = bpe
    call = '{"name": "%s", "arguments": {%s}}'
    tags = '"memory_type": "¦fact¦", "metadata": {"¦born¦": "¦Halden¦"}'
    add = call % ("Add_memory", f'"content": "¦Ada <3 tea¦", {tags}')
    look = call % ("Retrieve_memory", '"query": "¦1984¦", "top_k":¦ 2¦')
    delete = call % ("Delete_memory", '"memory_id": "¦17¦", "confirmation":¦ true¦')
    for text, wanted in {
        f"<think>¦so be it¦</think><tool_call>[{add}, {look}, {delete}]</tool_call>": [
            "so be it", "Ada <3 tea", "fact", "born", "Halden", "1984",
        ],
        f"<think>¦</think><tool_call>[{delete}]</tool_call>": [],
        "<think>¦known¦</think><answer>¦yes¦</answer>": ["known", "yes"],
    }.items():  # fmt: skip
        ids = [token for part in f"{text}{END}".split("¦") for token in tokenizer.encode_markup(part)]
        begin = jnp.array([grammar.start_act])
        calls = parse(grammar, np.array([ids]), jnp.array([len(ids)]), begin, tag_width=TAG_WIDTH)
        where = np.flatnonzero(calls.said[0])
        pieces = np.split(np.array(ids)[where], np.flatnonzero(np.diff(where) > 1) + 1) if len(where) else []
        assert not calls.malformed[0] and [tokenizer.decode(piece.tolist()) for piece in pieces] == wanted
    # A turn that is not in the format says all that was written.
    words = tokenizer.encode_markup("I would say <answer>")
    assert parse_text(free, tokenizer, f"I would say <answer>{END}").said[0].sum() == len(words)


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


def write_entry(tables, tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """A turn that stores `text`, in the tokens that the tokenizer makes of the JSON string; those that are not in the
    language are spelled in bytes. Returns the tokens, and how many had to be spelled."""
    opening = '</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "'
    before = tokenizer.encode_markup("<think>") + tokenizer.encode_markup(opening)
    content = tokenizer.encode(json.dumps(text, ensure_ascii=False)[1:-1])
    state, ids, cut = tables.start_act, [], 0
    for token in [*before, *content, *tokenizer.encode_markup('"}}]</tool_call>' + END)]:
        known = tables.next_state[state, tables.token_class[token]] >= 0
        cut += not known
        for one in [token] if known else cut_up(tokenizer, [token]):
            state = tables.next_state[state, tables.token_class[one]]
            assert state >= 0, (text, tokenizer.decode([one]))
            ids.append(one)
    return ids, cut


def stored_entries(grammar, tokenizer: Tokenizer, turns: list[list[int]], width: int) -> list[str]:
    """What turns of one Add_memory store."""
    padded = np.array([ids + [PAD_ID] * (width - len(ids)) for ids in turns], np.int32)
    count = jnp.array([len(ids) for ids in turns])
    calls = parse(grammar, padded, count, jnp.full(len(turns), grammar.start_act), tag_width=TAG_WIDTH)
    tokens, length = (np.asarray(x)[:, 0] for x in (calls.content.tokens, calls.content.length))
    assert not calls.malformed.any() and (calls.op[:, 0] == Op.ADD).all()
    return [tokenizer.decode(row[:n]) for row, n in zip(tokens, length, strict=True)]


any_text = st.text(alphabet='""\\\\<<> =/|!,)}aé東😀', max_size=24)
writable_text = any_text.map(lambda text: MARK.sub(lambda mark: f"< {mark[0][1:]}", text))


@settings(max_examples=10)
@given(texts=st.lists(writable_text, min_size=16, max_size=16))
def test_any_text_is_stored_as_it_was_meant(bpe, free, texts):
    """Quotation marks, backslashes and "<" come out as they went in, in whatever tokens."""
    _, tokenizer, grammar = bpe
    for tables in (grammar, free):
        turns = [write_entry(jax.device_get(tables), tokenizer, text)[0] for text in texts]
        assert stored_entries(tables, tokenizer, turns, 200) == texts


def test_escapes_inside_tokens_are_taken_off(bpe):
    """What is stored are tokens of the text; a token whose text without escapes is none is not in the language."""
    _, tokenizer, grammar = bpe
    for text, tokens, spelled in (('"', 1, 0), (' "', 1, 0), ("\\", 1, 0), ('" "', 2, 0), (' ("', 3, 1)):
        ids, cut = write_entry(jax.device_get(grammar), tokenizer, text)
        padded = np.array([ids + [PAD_ID] * (WIDTH - len(ids))], np.int32)
        start, count = jnp.array([grammar.start_act]), jnp.array([len(ids)])
        calls = parse(grammar, padded, count, start, tag_width=TAG_WIDTH)
        length = int(calls.content.length[0, 0])
        assert tokenizer.decode(np.asarray(calls.content.tokens[0, 0, :length])) == text
        assert (length, cut) == (tokens, spelled), text


@pytest.mark.weights
def test_real_questions_can_be_stored_as_they_are(tmp_path):
    """Sentences with quotation marks, in the tokens that Qwen's vocabulary makes of them."""
    config = tools_config(optional_arguments=False, max_calls=1)
    tokenizer = load("weights", config, tmp_path)
    grammar = grammar_lib.build_grammar(config, tokenizer)
    sentences = ['She sang "Kiss and Tell".', r'It is "a\b" <3, or "c"<"d"', '"', "\\", '""\\\\"', 'Жук "東京" 😀"']
    if "AGEMEM_HOTPOTQA" in os.environ:
        records = hotpotqa.load(os.environ["AGEMEM_HOTPOTQA"])
        told = {line for record in records for _, lines in record["context"] for line in lines}
        special = sorted(line for line in told if set(line) & set('"\\<'))
        writable = [line for line in special if not MARK.search(line)]
        assert len(writable) > 0.99 * len(special) > 0
        sentences += writable
    turns, cut = zip(*(write_entry(jax.device_get(grammar), tokenizer, text) for text in sentences), strict=True)
    assert sum(cut) == 0
    assert stored_entries(grammar, tokenizer, list(turns), max(map(len, turns))) == sentences


def test_the_tiny_vocabulary_has_the_tables_that_its_policy_was_made_with():
    """It spells no backslash and no lone "<"; nothing may come or go unless the policy is made anew."""
    config = tiny.get_config()
    tables = grammar_lib.build_grammar(config.tools, Tokenizer.load(config.policy.tokenizer))
    kept = (
        "token_class", "class_size", "class_token", "class_digit", "class_ends", "next_state", "need", "reach", "part",
        "call", "op", "value",
    )  # fmt: skip
    found = hashlib.sha256(b"".join(np.asarray(getattr(tables, name)).tobytes() for name in kept)).hexdigest()
    assert found == "e648b04699af83c4b912d2dd5bd47fa8c372985040ed0b972502ca4ec69a56e3"
    np.testing.assert_array_equal(tables.stored, np.tile(np.arange(tables.stored.shape[1]), (3, 1)))
    assert grammar_lib.Spelling.ESCAPED not in tables.spelling


def test_summary_is_plain_text_up_to_the_end(bpe):
    _, tokenizer, grammar = bpe
    said = 'Ada wrote "Silver River" \\ <2.\n'
    calls = parse_text(grammar, tokenizer, said + END, grammar.start_summary)
    assert calls.op[0].tolist() == [Op.WRITE_SUMMARY, Op.NONE, Op.NONE]
    assert tokenizer.decode(calls.content.tokens[0, 0, : calls.content.length[0, 0]]) == said
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
    shortest = [grammar_lib.max_distance(grammar, op) for op in (Op.ADD, Op.SUMMARY, Op.FILTER, Op.ACT, Op.PASS)]
    assert shortest == [2, 3, 2, 2, 1]
    assert len(grammar_lib.literals(config, END)) == len(set(grammar_lib.literals(config, END))) < 60
    close = tokenizer.encode_markup('"}}]</tool_call>' + END)
    assert len(close) == 1 and grammar_lib.ends_turn(grammar, jnp.array(close)).all()
    assert not grammar_lib.ends_turn(grammar, jnp.array(tokenizer.encode_markup(" Ada"))).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "xml"}, "tools.format"),
        ({"min_calls": 4}, "tools.min_calls"),
        ({"max_calls": 0, "min_calls": 0}, "tools.max_calls"),
        ({"max_tags": -1}, "tools.max_tags"),
        ({"max_top_k": 10}, "tools.max_top_k"),
        ({"summary_by": "magic"}, "tools.summary_by"),
        ({"enabled": ("Add_memory", "Forget")}, "Forget"),
    ],
)
def test_impossible_configs_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        grammar_lib.literals(tools_config(**changes), END)


def test_a_vocabulary_that_cannot_spell_the_format_is_refused(tmp_path):
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path / "bare.model", []))
    with pytest.raises(InputError, match="cannot spell"):
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
