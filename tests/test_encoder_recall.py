"""The recall experiment: hand-made rankings, and a small measurement on generated questions."""

import numpy as np
import pytest

from agemem_jax.benchmarks.hotpotqa.questions import KINDS, Sizes, generate
from agemem_jax.memory.bm25 import word_table
from agemem_jax.types import Text
from configs import tiny
from experiments import encoder_recall

TABLE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.2]], np.float32)  # directions of tokens 0 to 3


def test_recall_of_a_ranking_known_by_hand():
    # Asked for token 1, the sentences rank: 0 (the same word), 2 (nearly), 1 (another word); place 3 is empty.
    sentences = encoder_recall.padded([[1], [2], [3, 3], []])
    sentences = Text(sentences.tokens[None], sentences.length[None])
    queries = encoder_recall.padded([[1]])
    best = np.asarray(encoder_recall.ranked(TABLE, sentences, queries))
    assert best.tolist() == [[0, 2, 1, -1, -1]]
    found = encoder_recall.recall(TABLE, sentences, queries, np.array([[True, True, False, False]]))
    assert found == {"recall@1": 0.5, "recall@3": 1.0, "recall@5": 1.0}


def test_bm25_of_a_collection_known_by_hand():
    pieces = [None, b"oak", b" Oak.", b"hill", b"the", b" ,"]
    rows = [[1, 4], [3, 4, 4], [4, 5, 3, 3], []]  # oak the; hill the the; the hill hill
    sentences = encoder_recall.padded(rows)
    sentences = Text(sentences.tokens[None], sentences.length[None])
    words = word_table(pieces)
    ranked = lambda query: encoder_recall.ranked_by_words(words, sentences, encoder_recall.padded([query]))  # noqa: E731
    best = lambda query: np.asarray(ranked(query))[0].tolist()  # noqa: E731
    assert best([2]) == [0, 1, 2, -1, -1]  # the same word in other signs; the others in their order
    assert best([3]) == [2, 1, 0, -1, -1]
    # The rarer word counts more, once, than the other twice; a query without words finds all in their order.
    assert best([1, 3])[0] == 0 and best([5]) == [0, 1, 2, -1, -1]


def test_generated_questions():
    results = encoder_recall.measure("", "", layers=(1,), generated=8)
    names = [row["encoder"] for row in results["encoders"]]
    assert names[:5] == ["bm25", "lexical", "lexical", "lexical", "policy"]
    layers = results["encoders"][5:]
    assert [row["encoder"].split()[:2] for row in layers] == [["policy_hidden", "mean"], ["policy_hidden", "last"]]
    assert all(row["batch_s"] > 0 for row in layers) and results["decode_step_s"] > 0
    config = tiny.get_config()
    mix = {kind: config.task[f"share_{kind}"] for kind in KINDS}
    sizes = Sizes(config.store.entries, config.task.facts, config.task.distractors)
    records = generate(config.task.seed, 8, "test", mix, sizes)
    sentences = sum(len(paragraph) for record in records for _, paragraph in record["context"])
    assert results["records"] == 8 and results["sentences_per_record"] == sentences / 8
    for row in results["encoders"]:
        assert 0 < row["recall@5"] <= 1 and row["recall@1"] <= row["recall@3"] <= row["recall@5"]


def test_a_file_needs_a_vocabulary():
    with pytest.raises(ValueError, match="--path needs --weights"):
        encoder_recall.measure("hotpot.json", "")
