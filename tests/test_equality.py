"""Keys of texts against plain Python, in any tokens: a byte-level BPE, the tiny vocabulary, single bytes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_twin import same_text
from vocabularies import write_bpe

from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.memory.equality import BASES, PRIME, equality_table, normal_form, text_key
from agemem_jax.types import Text
from configs import tiny

BATCH, WIDTH = 4, 96
BYTES = [bytes([i]) for i in range(256)] + [text.encode() for text in ("É", "ß", " 東", "京。", "Oslo. ")] + [None]
PIECES = (
    "Ada", " ada", "ADA", "Oslo", "oslo", " ", "  ", "\n", "\t", ".", "!", "?", ",", ":", "...", "…", "。", "é", "É",
    "ß", "SS", "京", "C++", "50%", "(", ")", '"', "1", " 23", "\0", "\xa0", "\x1c", "I", "İ",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
_keys = jax.jit(text_key)


def keys(table, rows: list[list[int]]) -> list[tuple[int, int]]:
    """Keys of up to BATCH texts, in one compiled shape; what lies behind their ends must not matter."""
    tokens, length = np.full((BATCH, WIDTH), 77, np.int32), np.zeros(BATCH, np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], length[b] = row, len(row)
    return [tuple(key) for key in np.asarray(_keys(table, Text(tokens, length))).tolist()][: len(rows)]


def expected(text: str) -> tuple[int, ...]:
    """The key by its definition: a polynomial over the bytes of the normal form."""
    values = []
    for base in BASES:
        data = normal_form(text).encode("utf-8", "surrogateescape")
        values.append(sum((byte + 1) * pow(base, len(data) - 1 - i, PRIME) for i, byte in enumerate(data)) % PRIME)
    return tuple(values)


def cut(pieces: list[bytes | None], text: str, rng) -> list[int]:
    """Random tokens of a vocabulary that spell a text; a character of which there is a token stays whole."""
    number = {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}
    longest, raw, ids = max(map(len, number)), text.encode(), []
    while raw:
        found = [raw[:n] for n in range(1, min(longest, len(raw)) + 1) if raw[:n] in number]
        whole = [piece for piece in found if not 0x80 <= (raw + b" ")[len(piece)] < 0xC0]
        piece = (whole or found)[rng.integers(len(whole or found))]
        ids.append(number[piece])
        raw = raw[len(piece) :]
    return ids


@cache
def vocabulary(name: str, folder) -> tuple[Tokenizer | None, list, object]:
    """(tokenizer, token bytes, table) of "bpe", "tiny" or "bytes"."""
    if name == "bytes":
        return None, BYTES, equality_table(BYTES)
    path = write_bpe(folder / "bpe") if name == "bpe" else tiny.get_config().policy.tokenizer
    tokenizer = Tokenizer.load(path)
    return tokenizer, tokenizer.token_bytes(), equality_table(tokenizer.token_bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabularies")


@settings(max_examples=300)
@given(one=texts, other=texts, seed=st.integers(0, 2**32 - 1))
def test_keys_are_equal_where_the_texts_say_the_same(one, other, seed):
    """Whatever the tokens, as far as none splits a character; the key is exactly the one that it is defined to be."""
    rng = np.random.default_rng(seed)
    pieces = [*BYTES, *(piece.encode() for piece in PIECES)]
    whole = {c for piece in PIECES for c in piece}
    pieces += [c.encode() for c in whole]
    a, b, again = keys(table_of(tuple(pieces)), [cut(pieces, text, rng) for text in (one, other, one)])
    assert a == again == expected(one) and b == expected(other)
    assert (a == b) == (same_text((one.encode(),)) == same_text((other.encode(),)))


@cache
def table_of(pieces: tuple):
    return equality_table(pieces)


@pytest.mark.parametrize("name", ["bpe", "tiny", "bytes"])
def test_tokens_of_a_vocabulary_do_not_matter(name, folder):
    tokenizer, pieces, table = vocabulary(name, folder)
    rng = np.random.default_rng(0)
    sentences = ["Ada wrote River in 1984 .", " ada  wrote river in 1984", "ADA WROTE RIVER IN 1984!", "Ada 19 84."]
    if name == "tiny":  # it has no other letters than its words': capitals and spaces differ by token
        sentences = [" Halden small 1984", " Halden  small 1984 ", "Halden small 1984", " Halden small 198 4"]
    spell = tokenizer.encode if tokenizer else lambda text: list(text.encode())
    first = keys(table, [spell(text) for text in sentences])
    assert first[0] == first[1] == first[2] != first[3]
    for _ in range(5):
        assert keys(table, [cut(pieces, text, rng) for text in sentences]) == first
    if name != "tiny":
        assert first[0] == expected(sentences[0])


@pytest.mark.parametrize(
    "one, other, same",
    [("Ada was born in Oslo.", "ada was born in oslo", True), ("Oslo", " \n Oslo . ?! ", True),
     ("Straße", "STRASSE", True), ("É", "é", True), ("Rosa 京。", "rosa 京", True), ("Alice!?", "ALICE...", True),
     ("", "  ", True),
     ("in 12 3", "in 1 23", False), ("C++", "C", False), ("50%", "50", False), ("a live", "alive", False),
     ('"Oslo"', "Oslo", True), ("Ada, a poet, lives - in (Oslo)", "Ada a poet lives - in Oslo", True),
     ("U.S.", "u s", True), ("...", "?", True), ("it’s", "it's", True), ("1844–1846", "1844 1846", True),
     ("U.S", "US", False), ("3.5", "35", False), ("-5", "5", False), ("Oslo", "Oslo\0", False)],
)  # fmt: skip
def test_what_says_the_same(one, other, same):
    pieces = tuple(BYTES) + tuple(c.encode() for c in "京é。’–")
    rng = np.random.default_rng(0)
    a, b = keys(table_of(pieces), [cut(list(pieces), text, rng) for text in (one, other)])
    assert (a == b) == (normal_form(one) == normal_form(other)) == same


def test_split_characters_are_bytes_and_tokens_without_text_themselves():
    table = equality_table(BYTES)
    whole, split, small = keys(table, [[256], list("É".encode()), list("é".encode())])
    assert whole == small != split
    control, other, nothing = keys(equality_table([*BYTES, None]), [[261], [262], []])
    assert len({control, other, nothing}) == 3 and nothing == (0, 0)


def test_patterns_on_which_hashes_modulo_powers_of_two_collide():
    """Thue-Morse words and their complements."""
    ids = np.array([bin(i).count("1") % 2 for i in range(1024)], np.int32)
    rows = Text(jnp.asarray(np.stack([ids, 1 - ids]) + ord("a")), jnp.full((2,), 1024, jnp.int32))
    one, other = np.asarray(_keys(equality_table(BYTES), rows))
    assert (one != other).all()


def test_any_leading_axes():
    table = equality_table(BYTES)
    tokens = np.random.default_rng(0).integers(97, 123, (2, 3, 5)).astype(np.int32)
    length = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    got = np.asarray(_keys(table, Text(tokens, length)))
    for i in np.ndindex(2, 3):
        text = bytes(tokens[i][: length[i]].tolist()).decode()
        assert tuple(got[i].tolist()) == expected(text)
