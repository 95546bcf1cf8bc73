"""Answer scores against the official HotpotQA definition, and memory overlap against plain Python."""

import re
import string
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agemem_jax.envs import scoring
from agemem_jax.types import Text

# --- The official definition (hotpot_evaluate_v1.py), as it stands there -------------------------------------------


def normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def official_f1(prediction, ground_truth):
    normalized_prediction = normalize_answer(prediction)
    normalized_ground_truth = normalize_answer(ground_truth)
    if normalized_prediction in ["yes", "no", "noanswer"] and normalized_prediction != normalized_ground_truth:
        return 0.0
    if normalized_ground_truth in ["yes", "no", "noanswer"] and normalized_prediction != normalized_ground_truth:
        return 0.0
    prediction_tokens = normalized_prediction.split()
    ground_truth_tokens = normalized_ground_truth.split()
    num_same = sum((Counter(prediction_tokens) & Counter(ground_truth_tokens)).values())
    if num_same == 0:
        return 0.0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


# --- A byte-level BPE-like vocabulary ------------------------------------------------------------------------------

MERGES = (
    " the", " The", "the", "an", " an", " a", "A ", "th", "he", " yes", "no", "answer", ", ", "...", ". The", "  \n",
    "n\t", "É", "é", "Ö", "中", "–", "\u00a0", "“", "’", "a–", "x’s", "Paris", " 42", "s a", "a b", "\r\n",
)  # fmt: skip
VOCAB = [None] + [bytes([i]) for i in range(256)] + [piece.encode() for piece in MERGES]
TOKEN_OF = {token: i for i, token in enumerate(VOCAB) if token is not None}
TABLE = scoring.answer_table(VOCAB)
BATCH, WIDTH, WORDS = 8, 48, 24

PIECES = (
    "a", "an", "the", "The", "A", "THE", "than", "ant", " ", "  ", "\n", "\t", "\u00a0", "yes", "Yes", "no",
    "noanswer", ".", ",", "'", "-", "_", "|", "!", "(", "–", "“", "’", "É", "é", "Ö", "中", "x", "X", "42", "Paris",
    "paris", "\0", "\x1c",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=BATCH)


def tokenize(text: str, rng) -> list[int]:
    """Bytes to tokens, sometimes by a longest merge and sometimes not; characters stay whole where a token has them."""
    raw, ids = text.encode(), []
    while raw:
        found = [t for t in TOKEN_OF if raw.startswith(t)]
        whole = [t for t in found if len(t) > 1 or t[0] < 128] or found
        token = max(whole, key=len) if rng.random() < 0.6 else whole[rng.integers(len(whole))]
        ids.append(TOKEN_OF[token])
        raw = raw[len(token) :]
    return ids


scored = jax.jit(scoring.score)


def device_scores(ids: list[list[int]], golds: list[str]):
    """Scores of up to BATCH answers, padded to one shape so that everything runs one compiled program."""
    tokens, length = np.zeros((BATCH, WIDTH), np.int32), np.zeros(BATCH, np.int32)
    words, count, closed = np.zeros((BATCH, WORDS, 2), np.uint32), np.zeros(BATCH, np.int32), np.zeros(BATCH, bool)
    for b, (row, gold) in enumerate(zip(ids, golds, strict=True)):
        tokens[b, : len(row)], length[b] = row, len(row)
        tokens[b, len(row) :] = 77  # what lies behind the end must not matter
        hashes, closed[b] = scoring.hash_words(gold)
        words[b, : len(hashes)], count[b] = hashes, len(hashes)
        words[b, len(hashes) :] = hashes[0] if len(hashes) else 0
    exact, f1 = scored(jnp.asarray(TABLE), Text(jnp.asarray(tokens), jnp.asarray(length)), words, count, closed)
    return np.asarray(exact)[: len(ids)], np.asarray(f1)[: len(ids)]


@settings(max_examples=250)
@given(pairs, st.integers(0, 2**32 - 1))
def test_scores_are_the_official_ones(cases, seed):
    rng = np.random.default_rng(seed)
    exact, f1 = device_scores([tokenize(answer, rng) for answer, _ in cases], [gold for _, gold in cases])
    for b, (answer, gold) in enumerate(cases):
        assert exact[b] == (normalize_answer(answer) == normalize_answer(gold)), (answer, gold)
        np.testing.assert_allclose(f1[b], official_f1(answer, gold), rtol=1e-6, err_msg=repr((answer, gold)))


@settings(max_examples=150)
@given(st.lists(texts, min_size=1, max_size=BATCH), st.integers(0, 2**32 - 1))
def test_an_answer_matches_its_own_normalisation(answers, seed):
    """Exact match from the other side: random pairs rarely agree."""
    rng = np.random.default_rng(seed)
    exact, f1 = device_scores([tokenize(a, rng) for a in answers], [normalize_answer(a).upper() for a in answers])
    assert exact.all()
    np.testing.assert_allclose(f1, [float(normalize_answer(a) != "") for a in answers])


def test_scores_of_chosen_answers():
    cases = [
        ("", "", 1.0, 0.0),
        ("The Paris.", "paris", 1.0, 1.0),
        ("yes, it is", "yes", 0.0, 0.0),
        ("yes", "yes it is", 0.0, 0.0),
        ("no no x", "x no", 0.0, 0.8),
        ("...", "x", 0.0, 0.0),
        ("x a 42", "42 x", 0.0, 1.0),
        ("a–x the", "–X", 1.0, 1.0),
    ]
    rng = np.random.default_rng(0)
    exact, f1 = device_scores([tokenize(answer, rng) for answer, *_ in cases], [gold for _, gold, *_ in cases])
    np.testing.assert_array_equal(exact, [em for *_, em, _ in cases])
    np.testing.assert_allclose(f1, [value for *_, value in cases], rtol=1e-6)


def test_lower_case_characters_may_split_across_tokens():
    ids = [[TOKEN_OF[bytes([byte])] for byte in "chez né 中 🙂x".encode()], [0, TOKEN_OF[b"x"], 0]]
    exact, _ = device_scores(ids, ["Chez NÉ 中 🙂x", "x"])
    np.testing.assert_array_equal(exact, [1.0, 1.0])


def test_host_normalisation_is_the_official_one():
    for text in ("The  End.", "a–b", "U.S.A.", "an_ant", "Ünï the", "\u00a0x"):
        assert scoring.normalize_answer(text) == normalize_answer(text)
    hashes, closed = scoring.hash_words("The No!")
    assert hashes.shape == (1, 2) and closed
    assert scoring.hash_words("the")[0].shape == (0, 2)


def test_an_empty_vocabulary_makes_a_table():
    assert scoring.answer_table([None, b"."]).shape == (2, 1)


# --- Memory --------------------------------------------------------------------------------------------------------

VOCAB_SIZE = 7


def random_texts(rng, *shape, width):
    tokens = rng.integers(0, VOCAB_SIZE, (*shape, width)).astype(np.int32)
    return Text(jnp.asarray(tokens), jnp.asarray(rng.integers(0, width + 1, shape), jnp.int32))


def slow_overlap(entry: list[int], gold: list[int], weight) -> float:
    mass = lambda counter: sum(weight[t] * n for t, n in counter.items())  # noqa: E731
    total = mass(Counter(entry)) + mass(Counter(gold))
    return 2 * mass(Counter(entry) & Counter(gold)) / total if total else 0.0


def test_overlap_equals_counters():
    rng = np.random.default_rng(0)
    entry, gold = random_texts(rng, 3, 4, width=9), random_texts(rng, 3, 2, width=6)
    weight = jnp.array([0.0, 1.0, 2.0, 0.5, 1.0, 0.0, 3.0])
    got = np.asarray(jax.jit(scoring.overlap)(entry, gold, weight))
    assert got.shape == (3, 4, 2) and got.dtype == np.float32
    for b in range(3):
        for n in range(4):
            for g in range(2):
                a = np.asarray(entry.tokens[b, n, : entry.length[b, n]]).tolist()
                c = np.asarray(gold.tokens[b, g, : gold.length[b, g]]).tolist()
                np.testing.assert_allclose(got[b, n, g], slow_overlap(a, c, np.asarray(weight)), atol=1e-6)


def test_overlap_ignores_padding():
    rng = np.random.default_rng(1)
    entry, gold = random_texts(rng, 2, 3, width=5), random_texts(rng, 2, 2, width=5)
    weight = jnp.ones(VOCAB_SIZE)
    wide = lambda t: Text(jnp.pad(t.tokens, [(0, 0), (0, 0), (0, 4)], constant_values=3), t.length)  # noqa: E731
    overlap = jax.jit(scoring.overlap)
    np.testing.assert_array_equal(overlap(wide(entry), wide(gold), weight), overlap(entry, gold, weight))


def test_store_quality_by_hand():
    holds = jnp.array([
        [[1, 0], [0, 0], [0, 0], [1, 1]],  # one of two facts, in one of three entries; the last is free
        [[1, 0], [1, 1], [0, 0], [0, 0]],  # one fact only, held twice
        [[1, 1], [1, 1], [1, 1], [1, 1]],  # an empty store
    ], bool)  # fmt: skip
    entry_valid = jnp.array([[True, True, True, False], [True, True, False, False], [False] * 4])
    gold_valid = jnp.array([[True, True], [True, False], [True, True]])
    coverage, precision, quality = scoring.store_quality(holds, entry_valid, gold_valid)
    np.testing.assert_allclose(coverage, [0.5, 1.0, 0.0])
    np.testing.assert_allclose(precision, [1 / 3, 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(quality, [0.4, 1.0, 0.0], rtol=1e-6)


def test_kept_quality_by_hand():
    """Four places; what is worth keeping may be more than these."""
    full, some = [True] * 4, [True, True, False, False]
    cases = [
        (np.eye(4, 6), full, 6, 1.0),  # all that can be held
        (np.eye(4, 6), some, 3, 2 * 2 / (3 + 2)),
        (np.tile([1, 0, 0, 0, 0, 0], (4, 1)), full, 6, 2 * 1 / (4 + 4)),  # the same fact four times
        (np.zeros((4, 6)), full, 6, 0.0),
        (np.eye(4, 6), [False] * 4, 6, 0.0),  # nothing stored: what is in free places does not count
        (np.zeros((4, 6)), some, 0, 0.0),  # nothing worth keeping
        (np.zeros((4, 6)), [False] * 4, 0, 0.0),
        (np.tile([1, 1, 0, 0, 0, 0], (4, 1)), [True, False, False, False], 2, 1.0),  # two texts of the same content
    ]
    holds, valid, count, expected = zip(*cases, strict=True)
    got = scoring.kept_quality(jnp.array(holds, bool), jnp.array(valid), jnp.array(count))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_revised_share_by_hand():
    """One entry, two revisions: the first says something else now, the second is taken back."""
    present = Text(jnp.ones((6, 2, 3), jnp.int32), jnp.array([[2, 0]] * 6))
    stale = jnp.array([[0, 0], [0, 0], [1, 0], [0, 1], [0, 0], [0, 0]], bool)[:, None]
    holds = jnp.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0]], bool)[:, None]
    held = jnp.array([[0, 1], [1, 1], [1, 1], [0, 1], [0, 0], [0, 1]], bool)
    told = jnp.array([2, 2, 2, 2, 2, 1])
    got = scoring.revised_share(stale, holds, jnp.ones((6, 1), bool), held, present, told)
    # both; nothing new stored; the old still there; not taken back; never stored; one told
    np.testing.assert_allclose(got, [1.0, 0.5, 0.5, 0.5, 0.5, 1.0])
    nothing = scoring.revised_share(stale, holds, jnp.zeros((6, 1), bool), held, present, jnp.zeros(6, int))
    np.testing.assert_array_equal(nothing, np.zeros(6))


def test_view_share_by_hand():
    """Token 0 and 7 weigh nothing; the best of the messages counts, and a text's second copy of a token does not."""
    weight = jnp.array([0, 0, 1.0, 2.0, 3.0, 1.0, 1.0, 0])
    texts = Text(jnp.array([[[2, 3, 4, 3], [5, 6, 7, 0]]] * 3), jnp.array([[4, 3]] * 3))
    tokens, message = jnp.array([[2, 3, 7, 4, 5, 6, 4, 4]] * 3), jnp.array([[0, 0, 0, 1, 1, 1, 0, 0]] * 3)
    got = scoring.view_share(texts, jnp.array([2, 1, 0]), tokens, message, jnp.array([6, 3, 0]), 3, weight)
    np.testing.assert_allclose(got, [(3 / 6 + 1) / 2, 3 / 6, 1.0], rtol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_view_share_is_that_of_plain_python(seed):
    rng = np.random.default_rng(seed)
    weight = np.array([0, *rng.random(5), 0], np.float32)
    texts = Text(jnp.asarray(rng.integers(0, 7, (2, 3, 4))), jnp.asarray(rng.integers(1, 5, (2, 3))))
    count, length = rng.integers(0, 4, 2), rng.integers(0, 13, 2)
    tokens, message = rng.integers(0, 7, (2, 12)), rng.integers(0, 3, (2, 12))
    for b, got in enumerate(scoring.view_share(texts, count, tokens, message, length, 3, jnp.asarray(weight))):
        shares = []
        for d in range(count[b]):
            wanted = set(np.asarray(texts.tokens[b, d, : texts.length[b, d]]).tolist())
            held = [set(tokens[b, : length[b]][message[b, : length[b]] == m].tolist()) for m in range(3)]
            total = sum(weight[t] for t in wanted)
            shares.append(max(sum(weight[t] for t in wanted & one) for one in held) / total if total else 0.0)
        np.testing.assert_allclose(got, np.mean(shares) if shares else 1.0, atol=1e-5)


def test_token_share_by_hand():
    keys = jnp.array([[5, 6, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]])
    tokens = jnp.array([[6, 5, 9], [5, 9, 6], [1, 2, 3]])
    np.testing.assert_allclose(scoring.token_share(keys, tokens, jnp.array([1, 3, 3])), [0.5, 0.5, 1.0])
