"""Keys of the names in texts against plain Python, in any tokens, and what an entry must say to hold a fact."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import write_bpe

from agemem_jax.data.batches import pad_text, pad_texts
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import scoring
from agemem_jax.envs.names import COMMON_WORDS, is_name, name_key, name_table
from configs import tiny

BATCH, WIDTH = 4, 80
BYTES = [bytes([i]) for i in range(256)]
PIECES = (
    "Ada", " Ada", " ada", "Oak", "mere", " Oak", " Old", "The", " The", "the", "re", " born in",
    " Old Oakmere, Halden", " Ada Keller and Hugo", " ", ", ", ".", "-", "'s", "’", "1", "98", " 1984", "1,000",
    "_", "\n", "É", "é", "京", " I", "McDonald", " However, Ada", "x2", "(Hugo)", "",
)  # fmt: skip
VOCABULARY = [None, *BYTES, *(piece.encode() for piece in PIECES if piece)]
TABLE = name_table(VOCABULARY)
_keys = jax.jit(name_key)


def names(text: str) -> Counter:
    """The names of a text, from the text itself."""
    return Counter(word.casefold() for word in re.findall(r"[^\W_]+", text) if is_name(word))


def keys(table, rows: list[list[int]]) -> list[tuple[int, int]]:
    tokens, length = np.full((BATCH, WIDTH), 70, np.int32), np.zeros(BATCH, np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], length[b] = row, len(row)
    return [tuple(key) for key in np.asarray(_keys(table, jax.tree.map(jnp.asarray, text(tokens, length)))).tolist()]


def text(tokens, length):
    return scoring.Text(tokens, length)


@settings(max_examples=200)
@given(
    one=st.lists(st.sampled_from(PIECES), max_size=9), other=st.lists(st.sampled_from(PIECES), max_size=9),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_keys_are_equal_where_the_names_are(one, other, seed):
    """Whatever the tokens are, as far as none splits a character: single bytes of ASCII, or pieces of any kind."""
    rng, number = np.random.default_rng(seed), {piece: i for i, piece in enumerate(VOCABULARY) if piece}

    def encode(pieces: list[str]) -> list[int]:
        cut = [[p] if not p.isascii() or rng.random() < 0.5 else list(p) for p in pieces if p]
        return [number[part.encode()] for parts in cut for part in parts]

    shuffled = [one[i] for i in rng.permutation(len(one))]
    rows = [one, other, shuffled, one]
    got = keys(TABLE, [encode(row) for row in rows])
    told = [names("".join(row)) for row in rows]
    for i in range(BATCH):
        assert (got[i] == (0, 0)) == (not told[i])
        assert [got[i] == key for key in got] == [told[i] == other for other in told]


def test_what_is_a_name():
    assert all(is_name(word) for word in ("Ada", "1984", "McDonald", "iPhone", "42nd", "May", "Élan"))
    assert not any(is_name(word) for word in ("born", "The", "However", "He", "ada", "é", ""))
    assert all(word == word.lower() for word in COMMON_WORDS)


FACT = "Ada Keller was born in Oakmere"
HELD = {
    FACT: True,
    f"{FACT}.": True,
    "Ada Keller, born in Oakmere": True,
    "The old friend Ada Keller was born in Oakmere": True,  # a word that only begins the sentence
    "Keller Ada was born in Oakmere": True,  # the same words: their order is not compared
    "Ada Keller was born in Old Oakmere": False,
    "Ada Keller was born in Oakmere in 1984": False,
    "Ada was born in Oakmere": False,
    "Ada Keller was born in Halden": False,
    "Ada Ada Keller was born in Oakmere": False,
    "Oakmere Ada Keller": True,
    "Ada Keller born Oakmer": False,  # a piece of a word is another word
    "": False,
}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return Tokenizer.load(write_bpe(tmp_path_factory.mktemp("names")))


@pytest.mark.parametrize("turned", [False, True])
def test_an_entry_holds_a_fact_with_its_names_and_no_others(bpe, turned):
    """In a byte-level BPE whose words have several tokens; both ways round."""
    encode = lambda text: bpe.encode(f" {text}" if text else "")  # noqa: E731
    longest = max(len(encode(text)) for text in HELD)
    assert len(encode("Oakmere")) > 1
    facts = jax.tree.map(lambda x: x[None], pad_texts([encode(t) for t in HELD], len(HELD), longest))
    fact = jax.tree.map(lambda x: x[None, None], pad_text(encode(FACT), longest))
    weight = np.array([float(any(c.isalnum() for c in (t or b"").decode(errors="replace"))) for t in bpe.token_bytes()])
    table = name_table(bpe.token_bytes())
    entry, gold = (fact, facts) if turned else (facts, fact)
    got = np.asarray(scoring.holds(entry, gold, jnp.asarray(weight, jnp.float32), table, 0.4)).ravel()
    assert dict(zip(HELD, got.tolist(), strict=True)) == HELD


def test_holding_takes_enough_of_the_other_words_too(bpe):
    weight, table = jnp.ones(bpe.vocab_size), name_table(bpe.token_bytes())
    one, other = (
        jax.tree.map(lambda x: x[None, None], pad_text(bpe.encode(text), 80))
        for text in (" Ada Keller was born in Oakmere", " Keller missed warm soup in Oakmere with Ada")
    )
    assert scoring.holds(one, other, weight, table, 0.3).all()
    assert not scoring.holds(one, other, weight, table, 0.9).any()


def test_names_of_the_tiny_vocabulary():
    """Its words are single pieces with their space; literals of many words have no name that would count."""
    tokenizer = Tokenizer.load(tiny.get_config().policy.tokenizer)
    table = name_table(tokenizer.token_bytes())
    texts = [
        " Ada Keller was born in Oakmere", " no Ada Keller was born in Oakmere", " Ada Keller moved to Oakmere today",
        " Ada Keller was born in Oakmere Oakmere",
    ]  # fmt: skip
    first, second, third, fourth = keys(table, [tokenizer.encode(text) for text in texts])
    assert first == second == third != fourth
