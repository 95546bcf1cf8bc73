"""The tiny vocabulary (one word, one piece) and batches that depend on (seed, update) alone."""

import json
import logging
import random
import re

import jax
import numpy as np
import pytest

from agemem_jax.data import questions, vocabulary
from agemem_jax.data.batches import TaskSource, pad_text, pad_texts
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.types import PAD_ID
from configs import base


def hash_answer(text):
    """Stands in for envs.scoring.hash_words."""
    words = re.findall(r"\w+", text.lower())
    return np.array([[len(word), ord(word[0])] for word in words], np.uint32).reshape(-1, 2), text in ("yes", "no")


def tiny_config(**task):
    config = base.get_config()
    config.task.update({"train_size": 30, "test_size": 10, "facts": 6, "chatter": 1, "distractors": 3, "owners": 4})
    config.task.update({"message_tokens": 9, "answer_tokens": 3} | task)
    config.rl.update({"tasks_per_update": 4, "group_size": 3})
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    vocabulary.build(str(path), base.get_config().tools)
    return path


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer.load(str(model))


@pytest.fixture(scope="module")
def source(tokenizer):
    return TaskSource(tiny_config(), tokenizer, hash_answer)


def rows(task):
    return jax.tree.leaves(task)[0].shape[0]


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_every_word_is_one_piece(tokenizer):
    rng, texts, pieces = random.Random(5), [], tokenizer.token_bytes()
    for record in questions.generate(99, 250, "train"):
        texts += [sentence for _, paragraph in record["context"] for sentence in paragraph]
        texts += [record["question"], record["answer"], questions.chatter(rng)]
    assert len(texts) > 5000
    for text in texts:
        ids = tokenizer.encode(" " + text)
        assert len(ids) == len(text.split())
        assert [pieces[i] for i in ids] == [f" {word}".encode() for word in text.split()]
    assert tokenizer.vocab_size < 650


def test_chat_marks_and_literals_are_single_pieces_next_to_text(tokenizer):
    for mark in vocabulary.CHAT_MARKS:
        ids = tokenizer.encode_markup(f"{mark} Ada Keller was born in 1931{vocabulary.END_OF_TURN}")
        assert len(ids) == 8
        assert tokenizer.decode(ids[:1]) == mark and tokenizer.token_bytes()[ids[1]] == b" Ada"
    for literal in vocabulary.literals(base.get_config().tools, vocabulary.END_OF_TURN):
        assert len(tokenizer.encode_markup(literal)) == 1
    assert len(tokenizer.encode(" true")) == len(tokenizer.encode(" false")) == 1
    assert len(tokenizer.encode("17")) == 2  # ids are spelled


def test_the_vocabulary_is_the_same_bytes_for_the_same_seed(model, tmp_path):
    again, other = tmp_path / "again.model", tmp_path / "other.model"
    vocabulary.build(str(again), base.get_config().tools, seed=0)
    vocabulary.build(str(other), base.get_config().tools, seed=1)
    assert again.read_bytes() == model.read_bytes() != other.read_bytes()


def test_arrays_hold_the_staged_record(source, tokenizer):
    task = source.batch(0, tasks=8, group_size=1)
    text = lambda piece, *at: tokenizer.decode(piece.tokens[at][: piece.length[at]]).strip()  # noqa: E731
    for b in range(8):
        index = int(task.index[b])
        staged = source.staged(index)
        assert [text(task.facts, b, i) for i in range(task.num_facts[b])] == staged.facts
        assert list(task.fact_is_gold[b, : task.num_facts[b]]) == staged.is_gold
        assert [text(task.distractors, b, i) for i in range(task.num_distractors[b])] == staged.distractors
        assert [text(task.gold, b, i) for i in range(task.num_gold[b])] == staged.gold
        assert text(task.query, b) == staged.query and text(task.answer, b) == staged.answer
        key_words = {tokenizer.decode([int(i)]).strip() for i in task.key_tokens[b] if i != PAD_ID}
        assert key_words == set(staged.key_words) and key_words
        hashes, closed = hash_answer(staged.answer)
        assert np.array_equal(task.answer_words[b, : task.num_answer_words[b]], hashes)
        assert task.answer_is_closed[b] == closed
        assert task.owner[b] == index % 4
    assert task.facts.tokens.shape == (8, 6, 9) and task.gold.tokens.shape == (8, 2, 9)
    assert task.facts.tokens.dtype == np.int32 and task.answer_words.dtype == np.uint32
    places = np.arange(9) >= task.facts.length[..., None]
    assert (task.facts.tokens[places] == PAD_ID).all() and (task.facts.tokens[~places] != PAD_ID).all()
    assert source.truncated == 0
    assert source.encode("Ada Keller") == tokenizer.encode(" Ada Keller")


def test_groups_are_consecutive_and_equal(source):
    task = source.batch(2)
    assert rows(task) == 12
    first = jax.tree.map(lambda x: x[::3], task)
    for k in range(3):
        assert equal(first, jax.tree.map(lambda x, k=k: x[k::3], task))
    assert len(set(task.index.tolist())) == 4


def test_a_batch_is_a_function_of_seed_and_update(source, tokenizer):
    again = TaskSource(tiny_config(), tokenizer, hash_answer)
    again.batch(40)  # whatever was asked before
    assert equal(again.batch(5), source.batch(5))
    assert not equal(source.batch(6), source.batch(5))
    other = tiny_config()
    other.seed = 1
    assert not equal(TaskSource(other, tokenizer, hash_answer).batch(5), source.batch(5))


def test_every_epoch_visits_all_training_records_in_another_order(source):
    epochs = [[source.batch(update, 6, 1).index.tolist() for update in range(5 * e, 5 * e + 5)] for e in range(3)]
    epochs = [sum(epoch, []) for epoch in epochs]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    over_the_edge = source.batch(1, 20, 1).index.tolist()  # the last ten of one epoch and the first ten of the next
    assert over_the_edge == epochs[0][20:] + epochs[1][:10]


def test_test_batches_cover_the_split_once(source):
    seen = []
    for index in range(3):
        task, valid = source.test_batch(index, 4)
        assert rows(task) == 4 and valid.dtype == bool
        seen += task.index[valid].tolist()
    assert seen == list(range(30, 40))
    assert valid.tolist() == [True, True, False, False]


def test_splits_of_a_file_are_disjoint(tmp_path, tokenizer):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(questions.generate(0, 20, "train")))
    source = TaskSource(tiny_config(path=str(path), test_fraction=0.25), tokenizer, hash_answer)
    assert (source.num_train, source.num_test) == (15, 5)
    trained = {i for update in range(8) for i in source.batch(update).index.tolist()}
    assert trained <= set(range(15)) and source.test_batch(0, 5)[0].index.tolist() == list(range(15, 20))
    with pytest.raises(ValueError, match="give 20 training and 0 test tasks"):
        TaskSource(tiny_config(path=str(path), test_fraction=0.0), tokenizer, hash_answer)


def test_padding_refuses_what_does_not_fit():
    assert pad_texts([[5, 6], []], 3, 2).tokens.tolist() == [[5, 6], [PAD_ID] * 2, [PAD_ID] * 2]
    assert pad_text([], 2).length == 0
    with pytest.raises(ValueError, match="3 tokens do not fit 2"):
        pad_text([1, 2, 3], 2)
    with pytest.raises(ValueError, match="2 texts do not fit 1"):
        pad_texts([[1], [2]], 1, 2)


def test_long_messages_are_cut_counted_and_warned_of_once(tokenizer, caplog):
    source = TaskSource(tiny_config(message_tokens=4), tokenizer, hash_answer)
    with caplog.at_level(logging.WARNING):
        task = source.batch(0)
    assert task.facts.length.max() == 4 and source.truncated > 4
    assert len([record for record in caplog.records if "was cut to 4" in record.getMessage()]) == 1
