"""The recall experiment: hand-made rankings, and a small measurement on generated questions."""

import numpy as np
import pytest

from agemem_jax.data.questions import generate
from agemem_jax.types import Text
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


def test_generated_questions():
    results = encoder_recall.measure("", "", generated=8)
    sizes = [(row["encoder"], row["size"]) for row in results["encoders"]]
    assert sizes[:-1] == [("lexical", size) for size in encoder_recall.LEXICAL_SIZES] and sizes[-1][0] == "policy"
    sentences = sum(len(paragraph) for _, paragraph in generate(0, 1, "test")[0]["context"])
    assert results["records"] == 8 and results["sentences_per_record"] == sentences
    for row in results["encoders"]:
        assert 0 < row["recall@5"] <= 1 and row["recall@1"] <= row["recall@3"] <= row["recall@5"]


def test_a_file_needs_a_vocabulary():
    with pytest.raises(ValueError, match="--path needs --weights"):
        encoder_recall.measure("hotpot.json", "")
