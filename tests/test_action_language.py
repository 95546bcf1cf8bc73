"""Task actions bound to a language: all of it can be written, nothing else, and the device reads what was written."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_grammar import END, load, parse, tools_config, walk

import agemem_jax
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.types import NUM_OPS, Op

NUMBERS = tuple(f" {n}" for n in (1, 2, 12, 21))
KINDS = (" pen", " pencil", " towel", " towelholder", " red pen")  # some begin as others do
LANGUAGE = (
    ((" go to",), KINDS, NUMBERS),
    ((" take",), KINDS, NUMBERS, (" from",), KINDS[:2], NUMBERS),
    ((" look", " inventory"),),
    ((" examine",), KINDS, NUMBERS),
    ((" examine",), (" it",)),  # begins as another template does
)
SENTENCES = {"".join(words) for template in LANGUAGE for words in itertools.product(*template)}
ALL = 2**NUM_OPS - 1
ROOM = 60  # tokens
WORLDS = Path(agemem_jax.__file__).parent / "assets/worlds/tokenizer.model"


@pytest.fixture(scope="module", params=["worlds", "bpe", "bytes"])
def spoken(request, tmp_path_factory):
    config = tools_config(action_tag="action", think=False, turn="both", max_calls=1)
    if request.param == "worlds":
        tokenizer = Tokenizer.load(str(WORLDS))
    else:
        tokenizer = load(request.param, config, tmp_path_factory.mktemp(request.param))
    return config, tokenizer, grammar_lib.build_grammar(config, tokenizer, LANGUAGE)


def test_every_sentence_can_be_written_and_is_read(spoken):
    config, tokenizer, grammar = spoken
    sentences = sorted({words for template in LANGUAGE for words in itertools.product(*template)}, key="".join)
    # In the tokens of each slot by itself.
    parts = [("<think></think><action>", *words, f"</action>{END}") for words in sentences]
    turns = [[i for part in row for i in tokenizer.encode_markup(part)] for row in parts]
    width = max(map(len, turns))
    tokens = np.zeros((len(turns), width), np.int32)
    for row, ids in enumerate(turns):
        tokens[row, : len(ids)] = ids
    count = np.array(list(map(len, turns)))
    read = parse(grammar, tokens, count, jnp.full(len(turns), grammar.start_act), tag_width=8)
    assert not read.malformed.any() and (read.op[:, 0] == Op.ACT).all()
    said = [
        tokenizer.decode(read.content.tokens[row, 0][: read.content.length[row, 0]].tolist())
        for row in range(len(turns))
    ]
    assert said == sorted(SENTENCES)


def test_nothing_else_can_be_written(spoken):
    config, tokenizer, grammar = spoken
    rows = 64
    budget = jnp.full(rows, max(grammar.shortest) + ROOM)  # enough for the longest tool's turn, and for any sentence
    start = jnp.full(rows, grammar.start_act)
    ops = jnp.full(rows, 1 << Op.ACT)
    seen = set()
    for seed in range(4):
        by_class = jnp.arange(rows) % 2 == 0
        tokens, count, stuck, wrong = walk(grammar, start, budget, ops, by_class, jax.random.key(seed))
        assert not stuck.any() and not wrong.any()
        read = parse(grammar, tokens, count, start, tag_width=8)
        assert not read.malformed.any()
        for row in range(rows):
            turn = tokenizer.decode(np.asarray(tokens[row])[: int(count[row])].tolist())
            tokens_said = np.asarray(read.content.tokens[row, 0])[: int(read.content.length[row, 0])]
            said = tokenizer.decode(tokens_said.tolist())
            assert turn == f"<think></think><action>{said}</action>{END}" and said in SENTENCES
            seen.add(said.split()[0])
    assert seen == {"go", "take", "look", "inventory", "examine"}


def test_a_short_budget_still_ends_in_a_sentence(spoken):
    config, tokenizer, grammar = spoken
    shortest = grammar_lib.max_distance(grammar, Op.ACT)
    start, rows = jnp.full(8, grammar.start_act), 8
    tokens, count, stuck, _ = walk(
        grammar, start, jnp.full(rows, max(grammar.shortest)), jnp.full(rows, 1 << Op.ACT), jnp.zeros(rows, bool),
        jax.random.key(0),
    )  # fmt: skip
    assert not stuck.any() and (count >= shortest).all() and (count <= max(grammar.shortest)).all()
    assert not parse(grammar, tokens, count, start, tag_width=8).malformed.any()
