"""Texts of environments against plain Python strings, in any tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agemem_jax.envs.text import (
    WORD,
    byte_table,
    compose,
    key_of,
    phrase_table,
    piece_of,
    pool,
    running_sum,
    says,
    spell_pool,
    text_key,
    word_table,
    words,
)
from agemem_jax.memory.equality import join
from agemem_jax.types import Text

PIECES = ("go", " to", " drawer", " 1", "12", "  ", "\n", " ", "take ", "é", "京", "\t open", "A", "a")
VOCABULARY = [None, *(bytes([i]) for i in range(256)), *(piece.encode() for piece in PIECES)]
NUMBER = {piece: 257 + i for i, piece in enumerate(PIECES)}
TABLE = byte_table(VOCABULARY)
ROWS, WIDTH = 2, 64
_keys = jax.jit(text_key)
SPOKEN = ("pick", " Pick", "Up", "-up", " (", ", ", ").", ".", "b1", " b2,b3", "\n", " ", "é", " ÉÉ", "a:b;", "look ar")
SPOKEN_VOCABULARY = [None, *(bytes([i]) for i in range(256)), *(piece.encode() for piece in SPOKEN), b""]
SPOKEN_NUMBER = {piece: 257 + i for i, piece in enumerate(SPOKEN)}
WORDS = word_table(SPOKEN_VOCABULARY)
PHRASE = phrase_table(SPOKEN_VOCABULARY, "look around")
_words, _says = jax.jit(words), jax.jit(says)


def padded(rows: list[list[int]], width: int = WIDTH) -> Text:
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Text(jnp.asarray(tokens), jnp.array([len(ids) for ids in rows], jnp.int32))


@settings(max_examples=200)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=10))
def test_a_key_is_of_the_bytes_whatever_the_tokens(pieces):
    text = "".join(pieces)
    by_piece, by_byte = [NUMBER[piece] for piece in pieces], [1 + byte for byte in text.encode()]
    found = np.asarray(_keys(TABLE, padded([by_piece, by_byte])))
    wanted = key_of(text.strip(" \t\n\r\x0b\x0c"))
    assert (found == wanted).all()
    assert (key_of(f" \n{text} ") == wanted).all()


def test_keys_tell_texts_apart():
    texts = ["", "a", "A", "é", "e", "go to", "go  to", "goto", "to go", "go to drawer", "go to drawer 12"]
    assert len({tuple(key_of(text)) for text in texts}) == len(texts)
    token_without_text = np.asarray(_keys(TABLE, padded([[0], [1]])))
    assert (token_without_text != key_of("")).all()


def test_the_key_of_a_command_follows_from_its_words():
    key = jnp.asarray(key_of("take"))
    for word in (" apple 1", " from", " drawer 12"):
        key = join(key, jnp.asarray(piece_of(word)))
    assert (np.asarray(key) == key_of("take apple 1 from drawer 12")).all()


def test_pieces_are_put_one_behind_the_other_and_cut_at_the_end():
    tokens = jnp.arange(1, 19).reshape(2, 3, 3)
    text = compose(tokens, jnp.array([[2, 0, 3], [3, 3, 3]]), 7)
    np.testing.assert_array_equal(text.tokens, [[1, 2, 7, 8, 9, 0, 0], [10, 11, 12, 13, 14, 15, 16]])
    np.testing.assert_array_equal(text.length, [5, 7])


@settings(max_examples=200)
@given(pieces=st.lists(st.sampled_from(SPOKEN), max_size=10))
def test_words_are_those_of_the_text_in_lower_case(pieces):
    by_piece = [SPOKEN_NUMBER[piece] for piece in pieces]
    with_gaps = [i for piece in by_piece for i in (piece, len(SPOKEN_VOCABULARY) - 1)]  # tokens that say nothing
    keys, there = (np.asarray(x) for x in _words(WORDS, padded([by_piece, with_gaps])))
    wanted = [key_of(word).tolist() for word in WORD.findall("".join(pieces).lower())]
    for row in range(2):
        assert keys[row][there[row]].tolist() == wanted


def test_words_may_be_cut_anywhere_and_control_tokens_end_them():
    ids = [1 + byte for byte in b"Pick-Up b1."]
    keys, there = (np.asarray(x) for x in _words(WORDS, padded([ids, [SPOKEN_NUMBER["b1"], 0, SPOKEN_NUMBER["b1"]]])))
    assert keys[0][there[0]].tolist() == [key_of("pick-up").tolist(), key_of("b1").tolist()]
    assert keys[1][there[1]].tolist() == [key_of("b1").tolist()] * 2


def test_a_token_of_many_words_says_its_first_ones():
    table = word_table([b"a b c d", b"e"])
    keys, there = jax.jit(words)(table, padded([[0, 1]]))
    assert np.asarray(keys)[np.asarray(there)].tolist() == [key_of(word).tolist() for word in "abe"]


def test_a_phrase_is_found_in_any_case_and_within_words():
    said = ["look around", "LOOK Around!", "xlook aroundx", "llook around", "look look around"]
    spell_out = lambda text: [1 + byte for byte in text.encode()]  # noqa: E731
    rows = [spell_out(text) for text in [*said, "look  around", "look aroun"]]
    rows.append([SPOKEN_NUMBER["look ar"], *spell_out("ound")])
    assert np.asarray(_says(PHRASE, padded(rows))).tolist() == [True] * 5 + [False] * 2 + [True]


def test_texts_of_a_pool_are_spelt_by_their_numbers():
    rows = [pool([[], [7, 5], [9]], 4, 6, 5), pool([[5, 5, 5], [], [70000], [1]], 4, 6, 5)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    text = jax.jit(spell_pool, static_argnums=2)(both, jnp.array([[1, 0, 2, 1, 3], [2, 0, 1, 3, 0]]), 6)
    np.testing.assert_array_equal(text.tokens, [[7, 5, 9, 7, 5, 0], [70000, 5, 5, 5, 1, 5]])
    np.testing.assert_array_equal(text.length, [5, 6])
    text = spell_pool(both, jnp.zeros((2, 3), jnp.int32), 4)
    np.testing.assert_array_equal(text.tokens, [[0] * 4, [5] * 4])
    np.testing.assert_array_equal(text.length, [0, 4])


def test_running_sums_are_exact():
    x = np.random.default_rng(0).integers(-60_000, 60_000, (3, 77))
    np.testing.assert_array_equal(jax.jit(running_sum)(jnp.asarray(x, jnp.float32)), np.cumsum(x, 1))
