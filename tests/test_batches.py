"""The tiny vocabulary (one word, one piece), batches that depend on (seed, update) alone, and what data must hold."""

import json
import random

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import write_bpe

from agemem_jax.benchmarks import task_source, vocabulary
from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.benchmarks.hotpotqa.environment import question_of
from agemem_jax.config import ConfigError
from agemem_jax.data.batches import pad_text, pad_texts
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.scoring import hash_words
from agemem_jax.errors import InputError
from agemem_jax.types import PAD_ID
from configs import base


def tiny_config(**task):
    config = base.get_config()
    config.task.update({"train_size": 30, "validation_size": 4, "test_size": 10, "facts": 6, "chatter": 1})
    config.task.update({"distractors": 3, "owners": 4})
    config.task.update({"message_tokens": 10, "answer_tokens": 3} | task)
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
    return task_source(tiny_config(), tokenizer)


def rows(task):
    return jax.tree.leaves(task)[0].shape[0]


def equal(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_every_word_is_one_piece(tokenizer):
    rng, texts, pieces = random.Random(5), [], tokenizer.token_bytes()
    for record in questions.generate(99, 250, "train"):
        texts += [text for _, text in record["told"] + record["later"]]
        texts += [record["question"], record["answer"], questions.chatter(rng)]
    assert len(texts) > 3000
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
        hashes, closed = hash_words(staged.answer)
        assert np.array_equal(task.game.words[b, : task.game.num_words[b]], hashes)
        assert task.game.is_closed[b] == closed
        assert task.owner[b] == index % 4 + 4 * staged.asker
        assert task.fact_owner[b, : task.num_facts[b]].tolist() == [index % 4 + 4 * who for who in staged.fact_speakers]
        assert [text(task.keep, b, i) for i in range(task.num_keep[b])] == staged.keep
        revisions = [(text(task.stale, b, i), text(task.present, b, i)) for i in range(task.num_revisions[b])]
        assert revisions == staged.revisions
        assert [text(task.view, b, i) for i in range(task.num_view[b])] == staged.view
        assert questions.KINDS[task.kind[b]] == staged.kind
    assert task.facts.tokens.shape == (8, 6, 10) and task.gold.tokens.shape == (8, 2, 10)
    assert task.facts.tokens.dtype == np.int32 and task.game.words.dtype == np.uint32
    places = np.arange(10) >= task.facts.length[..., None]
    assert (task.facts.tokens[places] == PAD_ID).all() and (task.facts.tokens[~places] != PAD_ID).all()
    assert source.encode("Ada Keller") == tokenizer.encode(" Ada Keller")


def test_groups_are_consecutive_and_equal(source):
    task = source.batch(2)
    assert rows(task) == 12
    first = jax.tree.map(lambda x: x[::3], task)
    for k in range(3):
        assert equal(first, jax.tree.map(lambda x, k=k: x[k::3], task))
    assert len(set(task.index.tolist())) == 4


def test_a_batch_is_a_function_of_seed_and_update(source, tokenizer):
    again = task_source(tiny_config(), tokenizer)
    again.batch(40)  # whatever was asked before
    assert equal(again.batch(5), source.batch(5))
    assert not equal(source.batch(6), source.batch(5))
    other = tiny_config()
    other.seed = 1
    assert not equal(task_source(other, tokenizer).batch(5), source.batch(5))


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
        task, valid = source.split_batch("test", index, 4)
        assert rows(task) == 4 and valid.dtype == bool
        seen += task.index[valid].tolist()
    assert seen == list(source.places["test"]) == list(range(34, 44))
    assert valid.tolist() == [True, True, False, False]


def published(count: int) -> list[dict]:
    """Records with the fields of HotpotQA's file alone."""
    fields = ("_id", "question", "answer", "type", "level", "supporting_facts", "context")
    return [{name: record[name] for name in fields} for record in questions.generate(0, count, "train", {"recall": 1})]


def write(path, records) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def test_splits_of_a_file_are_disjoint(tmp_path, tokenizer):
    path = write(tmp_path / "records.json", published(20))
    source = task_source(tiny_config(path=path, test_fraction=0.25, validation_fraction=0.1), tokenizer)
    assert {split: list(places) for split, places in source.places.items()} == {
        "train": list(range(13)), "validation": [13, 14], "test": list(range(15, 20))
    }  # fmt: skip
    trained = {i for update in range(8) for i in source.batch(update).index.tolist()}
    assert trained <= set(range(13)) and source.split_batch("test", 0, 5)[0].index.tolist() == list(range(15, 20))
    assert source.split_batch("validation", 0, 2)[0].index.tolist() == [13, 14]
    for fraction, told in ((0.01, "20 train, 0 validation, 0 test"), (0.99, "0 train, 0 validation, 20 test")):
        config = tiny_config(path=path, test_fraction=fraction, validation_fraction=0.0)
        with pytest.raises(InputError, match=f"give {told} tasks.*task.test_fraction = {fraction}, .*of task.path = "):
            task_source(config, tokenizer)
    config = tiny_config(path=path, test_fraction=0.25, validation_fraction=0.0)
    assert len(task_source(config, tokenizer).places["validation"]) == 0
    config.train.eval_every, config.task.validation_fraction = 5, 0.01
    with pytest.raises(InputError, match="15 train, 0 validation, 5 test tasks; .* so does validation with train.eval"):
        task_source(config, tokenizer)


def test_a_record_that_tells_more_than_fits_is_refused(tmp_path, tokenizer):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(questions.generate(0, 20, "train", {"bids": 1.0})))
    with pytest.raises(ConfigError, match=r"task.distractors = 3: record 0 tells 10 messages of stage 2; .* >= 10"):
        task_source(tiny_config(path=str(path), test_fraction=0.25), tokenizer)


def test_splits_may_have_files_of_their_own(tmp_path, tokenizer):
    records = published(12)
    files = {name: write(tmp_path / f"{name}.json", part) for name, part in (
        ("path", records[:7]), ("validation_path", records[7:9]), ("test_path", records[9:])
    )}  # fmt: skip
    source = task_source(tiny_config(**files), tokenizer)
    assert [source.records_of(split) for split in source.places] == [records[:7], records[7:9], records[9:]]
    only_test = {name: file for name, file in files.items() if name != "validation_path"}
    source = task_source(tiny_config(**only_test, validation_fraction=0.3), tokenizer)
    assert [len(places) for places in source.places.values()] == [5, 2, 3]
    for name, text in (("validation_path", "{"), ("test_path", "[]")):
        broken = tmp_path / "broken.json"
        broken.write_text(text)
        with pytest.raises(InputError, match=f"^task.{name}: '{broken}' "):
            task_source(tiny_config(**files | {name: str(broken)}), tokenizer)


def test_records_that_a_later_split_has_are_left_out(tmp_path, tokenizer):
    records = published(20)
    again = [record | {"_id": "", "question": record["question"].lower() + ":"} for record in records[3:8]]
    path = write(tmp_path / "records.json", records + records[:2] + again)
    with pytest.warns(UserWarning, match="left out 5 of 22 train records that are in a later split too"):
        config = tiny_config(path=path, test_fraction=5 / 27, validation_fraction=0.0)
        source = task_source(config, tokenizer)
    assert [len(places) for places in source.places.values()] == [17, 0, 5]
    assert source.records == records[:3] + records[8:] + records[:2] + again
    files = {"path": write(tmp_path / "a.json", records), "validation_path": write(tmp_path / "b.json", records[4:9]),
             "test_path": write(tmp_path / "c.json", records[7:12])}  # fmt: skip
    with pytest.warns(UserWarning, match="b.json: left out 2 of 5 validation records"):
        source = task_source(tiny_config(**files), tokenizer)
    assert source.records == records[:4] + records[12:] + records[4:7] + records[7:12]
    path = write(tmp_path / "records.json", records[:2] * 2)
    none_left = pytest.raises(InputError, match="2 records give 0 train, 0 validation, 2 test tasks")
    with none_left, pytest.warns(UserWarning, match="left out 2 of 2"):
        task_source(tiny_config(path=path, test_fraction=0.5, validation_fraction=0.0), tokenizer)


def test_padding_refuses_what_does_not_fit():
    assert pad_texts([[5, 6], []], 3, 2).tokens.tolist() == [[5, 6], [PAD_ID] * 2, [PAD_ID] * 2]
    assert pad_text([], 2).length == 0
    with pytest.raises(ValueError, match="3 tokens do not fit 2"):
        pad_text([1, 2, 3], 2)
    with pytest.raises(ValueError, match="2 texts do not fit 1"):
        pad_texts([[1], [2]], 1, 2)


def test_cut_texts_are_counted_by_kind(tokenizer, recwarn):
    source = task_source(tiny_config(), tokenizer)
    cuts = source.cut_texts
    assert all(cut["share"] == 0 for cut in cuts.values()) and not recwarn.list
    assert cuts["queries"]["holds_99"] == max(len(source.encode(r["question"])) for r in source.records)

    config = tiny_config(message_tokens=7, answer_tokens=1, share_bids=0.0)
    config.store.entry_tokens = 5
    source = task_source(config, tokenizer)
    lengths = [len(source.encode(record["question"])) for record in source.records]
    assert source.cut_texts["queries"] == {
        "field": "task.message_tokens", "limit": 7, "share": np.mean(np.array(lengths) > 7), "holds_99": max(lengths)
    }  # fmt: skip
    answers = [len(source.encode(record["answer"])) for record in source.records]
    assert source.cut_texts["answers"]["share"] == np.mean(np.array(answers) > 1) > 0
    assert source.cut_texts["supporting facts"]["share"] < source.cut_texts["supporting facts as entries"]["share"]
    (message,) = [str(warning.message) for warning in recwarn.list]
    for kind, field in (("queries", "task.message_tokens = 7"), ("answers", "task.answer_tokens = 1")):
        cut = source.cut_texts[kind]
        assert f"{cut['share']:.1%} of {kind} ({field}; 99 % need {cut['holds_99']})" in message
    task = source.batch(0, tasks=16, group_size=1)
    for row, index in enumerate(task.index.tolist()):
        staged = source.staged(index)
        told = [*staged.facts, *staged.distractors, staged.query]
        assert task.cut[row] == pytest.approx(np.mean([len(source.encode(text)) > 7 for text in told]))
    assert task.cut.max() > 0
    assert task.query.length.max() == 7 and task.answer.length.max() == 1 == task.game.num_words.max()


def test_a_limit_that_cuts_most_of_what_must_be_whole_is_refused(tmp_path, tokenizer):
    path = tmp_path / "records.json"
    most = questions.generate(0, 9, "train", sizes=questions.Sizes(2, 6, 3))
    path.write_text(json.dumps([record | {"answer": "Ada Keller was born in Halden"} for record in most]))
    for change, told in (
        ({"message_tokens": 4}, r"task.message_tokens = 4: cuts \d+% of the queries, .* have at most \d+ tokens"),
        ({"path": str(path), "answer_tokens": 5}, "task.answer_tokens = 5: cuts 100% of the answers, .* most 6 tokens"),
        ({"path": str(path), "answer_tokens": 6}, None),
    ):
        if told is None:
            task_source(tiny_config(**change), tokenizer)
            continue
        with pytest.raises(ConfigError, match=told):
            task_source(tiny_config(**change), tokenizer)


SMALL_TEXT = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(["a", "The", "yes", " ", "", "\0"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(allow_nan=False) | SMALL_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SMALL_TEXT, inner, max_size=3),
    max_leaves=6,
)
GOOD_TEXT = st.builds("{}{}".format, st.sampled_from(["Zoe ", "7", "the x"]), st.text(max_size=30))
TITLES = st.sampled_from(["A", "A ", "B (c)", "((", "D"])
SENTENCES = st.lists(GOOD_TEXT | SMALL_TEXT.filter(lambda text: text.isprintable()), min_size=1, max_size=3)
FACTS = st.lists(st.tuples(TITLES, st.integers(-1, 2)), min_size=1, max_size=9)
CONTEXT = st.lists(st.tuples(TITLES, SENTENCES), min_size=1, max_size=4)


def as_columns(pairs, names):
    return {name: [pair[i] for pair in pairs] for i, name in enumerate(names)}


@st.composite
def json_records(draw):
    """A record of which at most one field is anything at all."""
    facts, context = draw(FACTS), draw(CONTEXT)
    columns = draw(st.booleans())
    record = {
        "question": draw(GOOD_TEXT),
        "answer": draw(GOOD_TEXT),
        "supporting_facts": as_columns(facts, ("title", "sent_id")) if columns else facts,
        "context": as_columns(context, ("title", "sentences")) if columns else context,
    }
    wrong = draw(st.sampled_from([None] * 16 + ["_id", "id", "type", "level", *record]))
    return record if wrong is None else record | {wrong: draw(JSON_VALUES)}


@pytest.fixture(scope="module")
def bpe_source(tmp_path_factory):
    """A source for real text, to be given other records."""
    tokenizer = Tokenizer.load(write_bpe(tmp_path_factory.mktemp("bpe")))
    return task_source(tiny_config(message_tokens=64, answer_tokens=16), tokenizer)


@pytest.mark.filterwarnings("ignore:.*left out", "ignore:cut to their limits")
@settings(max_examples=150)
@given(st.lists(json_records(), max_size=3) | JSON_VALUES, st.integers(0, 3))
def test_any_json_is_refused_in_one_line_or_becomes_tasks(tmp_path_factory, bpe_source, rows, epoch):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(rows))
    try:
        records = hotpotqa.load(str(path), lambda answer: question_of(answer).num_words > 0)
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("task.path: ")
        return
    bpe_source.records, bpe_source.max_gold = records, 6
    task = bpe_source.rows([(i, epoch) for i in range(len(records))])
    assert (task.num_gold > 0).all() and (task.game.num_words > 0).all() and (task.query.length > 0).all()
    assert (task.facts.length.sum(1) > 0).all() and (task.num_distractors == 3).all()
    assert bpe_source._measure().keys() == bpe_source.cut_texts.keys()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"facts": 5}, "task.facts = 5: 'closed' questions need 6; raise it, or set task.share_closed = 0"),
        ({"distractors": 1}, "task.distractors = 1: 'misled' questions need 2"),
        ({f"share_{kind}": 0.0 for kind in questions.KINDS}, "task.share_recall = 0.0: every kind has share 0"),
    ],
)
def test_a_mix_that_does_not_fit_is_refused(tokenizer, change, told):
    with pytest.raises(ConfigError, match=told):
        task_source(tiny_config(**change), tokenizer)


def test_a_benchmark_that_is_none_is_refused_with_those_that_are(tokenizer):
    with pytest.raises(ConfigError, match=r"^task.benchmark = 'chess': must be one of .*hotpotqa"):
        task_source(tiny_config(benchmark="chess"), tokenizer)
