"""HotpotQA records: both published layouts, errors that name the record, and the three stages."""

import json
import os
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from agemem_jax.data import hotpotqa, questions

OFFICIAL = {
    "_id": "a1",
    "question": "In what year was the author of Silver River born?",
    "answer": "1931",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Silver River", 0], ["Ada Keller (writer)", 1]],
    "context": [
        ["Silver River", ["Silver River is a novel by Ada Keller.", " It sold well."]],
        ["Ada Keller (writer)", ["Ada Keller is a writer.", " She was born in 1931."]],
        ["Hugo Keller", ["Hugo Keller is a pianist.", " He was born in 1940.", " "]],
    ],
}


def columns(record):
    """The record in the Hugging Face layout."""
    facts, context = record["supporting_facts"], record["context"]
    return {
        "id": record["_id"],
        **{key: record[key] for key in ("question", "answer", "type", "level")},
        "supporting_facts": {"title": [title for title, _ in facts], "sent_id": [index for _, index in facts]},
        "context": {"title": [title for title, _ in context], "sentences": [sentences for _, sentences in context]},
    }


def write(tmp_path, content):
    path = tmp_path / "records.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_both_layouts_load_alike(tmp_path):
    assert hotpotqa.load(write(tmp_path, [OFFICIAL])) == [OFFICIAL]
    assert hotpotqa.load(write(tmp_path, [columns(OFFICIAL)])) == [OFFICIAL]


def test_generated_questions_survive_a_file(tmp_path):
    records = questions.generate(0, 20, "train")
    assert hotpotqa.load(write(tmp_path, records)) == records
    assert hotpotqa.load(write(tmp_path, [columns(record) for record in records])) == records


def test_tensorflow_datasets_rows_load(monkeypatch):
    row = columns(OFFICIAL)
    row = {key: value.encode() if isinstance(value, str) else value for key, value in row.items()}
    row["supporting_facts"] = {
        "title": np.array([title.encode() for title in row["supporting_facts"]["title"]], object),
        "sent_id": np.array(row["supporting_facts"]["sent_id"], np.int32),
    }
    row["context"] = {
        "title": np.array([title.encode() for title in row["context"]["title"]], object),
        "sentences": [np.array([text.encode() for text in part], object) for part in row["context"]["sentences"]],
    }
    asked = []
    fake = SimpleNamespace(data_source=lambda name, split: asked.append((name, split)) or [row])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    assert hotpotqa.load("tfds:huggingface:hotpot_qa/distractor:train") == [OFFICIAL]
    assert asked == [("huggingface:hotpot_qa/distractor", "train")]
    with pytest.raises(ValueError, match="tfds:NAME:SPLIT"):
        hotpotqa.load("tfds:hotpot_qa")


def test_errors_name_file_record_and_field(tmp_path):
    with pytest.raises(ValueError, match="no file .*missing.json"):
        hotpotqa.load(str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match="is not JSON"):
        hotpotqa.load(write(tmp_path, "{not json"))
    with pytest.raises(ValueError, match="no list of records"):
        hotpotqa.load(write(tmp_path, {"data": []}))
    with pytest.raises(ValueError, match="record 1 is a str"):
        hotpotqa.load(write(tmp_path, [OFFICIAL, "x"]))
    for field in hotpotqa.FIELDS:
        broken = {key: value for key, value in OFFICIAL.items() if key != field}
        with pytest.raises(ValueError, match=f"record 1 lacks the field '{field}'"):
            hotpotqa.load(write(tmp_path, [OFFICIAL, broken]))
    uneven = {"title": ["a"], "sent_id": []}
    for field, value in (("context", [["title only"]]), ("supporting_facts", uneven), ("context", 3)):
        with pytest.raises(ValueError, match="record 0: supporting_facts or context is in neither published layout"):
            hotpotqa.load(write(tmp_path, [OFFICIAL | {field: value}]))


def test_dangling_supporting_facts_are_left_out_and_counted(tmp_path):
    dangling = OFFICIAL | {"supporting_facts": [["Silver River", 9], ["Nowhere", 0], ["Hugo Keller", 0]]}
    hopeless = OFFICIAL | {"supporting_facts": [["Nowhere", 0]]}
    with pytest.warns(UserWarning, match="left out 3 supporting facts .* and 1 records"):
        records = hotpotqa.load(write(tmp_path, [OFFICIAL, dangling, hopeless]))
    assert [record["supporting_facts"] for record in records] == [OFFICIAL["supporting_facts"], [["Hugo Keller", 0]]]


def test_stages_tell_gold_facts_and_distractors():
    staged = hotpotqa.stages(OFFICIAL, random.Random(0), facts=5, chatter=1, distractors=3)
    assert staged.gold == ["Silver River is a novel by Ada Keller.", "Ada Keller (writer): She was born in 1931."]
    told = {text for text, gold in zip(staged.facts, staged.is_gold, strict=True) if gold}
    assert told == set(staged.gold)
    rest = {text for text, gold in zip(staged.facts, staged.is_gold, strict=True) if not gold}
    assert len(staged.facts) == 5 and {"Hugo Keller is a pianist.", "Hugo Keller: He was born in 1940."} < rest
    assert len(staged.distractors) == 3  # nothing is left to tell, so small talk
    assert staged.query == OFFICIAL["question"] and staged.answer == "1931"
    assert staged.key_words == ["Silver", "River"]


def test_stage_two_is_misleading_irrelevant_related_and_never_gold():
    talk = {part for choices in questions.CHATTER[:1] for part in choices}
    for number, record in enumerate(questions.generate(0, 200, "train")):
        staged = hotpotqa.stages(record, random.Random(number), facts=6, chatter=1, distractors=3)
        assert len(staged.facts) == 6 and sum(staged.is_gold) == 2 and len(staged.distractors) == 3
        assert not set(staged.distractors) & (set(staged.facts) | set(staged.gold))
        gold_words = set(" ".join(staged.gold).split())
        assert len(gold_words & set(staged.distractors[0].split())) >= 3
        assert any(staged.distractors[1].startswith(opening) for opening in talk)


def test_gold_facts_come_before_all_else_where_room_is_short():
    staged = hotpotqa.stages(OFFICIAL, random.Random(0), facts=1, chatter=3)
    assert staged.facts == ["Silver River is a novel by Ada Keller."] and staged.is_gold == [True]
    assert staged.distractors == []


def test_stages_are_deterministic_and_shuffled():
    record = questions.generate(0, 1, "train")[0]
    tell = lambda seed: hotpotqa.stages(record, random.Random(seed), 6, 1, 3, casual=True)  # noqa: E731
    assert tell(0) == tell(0)
    assert len({tuple(tell(seed).is_gold) for seed in range(20)}) > 5


def test_casual_wording_wraps_the_sentence():
    staged = hotpotqa.stages(OFFICIAL, random.Random(0), facts=4, chatter=1, casual=True)
    for text, gold in zip(staged.facts, staged.is_gold, strict=True):
        if gold:
            assert text.startswith(hotpotqa.LEAD_INS) and text.endswith(tuple(staged.gold))
    assert not any(text.startswith(hotpotqa.LEAD_INS) for text in staged.gold)


@pytest.mark.parametrize(
    "question, words",
    [
        ("Where was the author of Silver River born", ["Silver", "River"]),
        ("Which of Jon Craig and Pete Doherty's bands broke up in 2008?", ["Jon", "Craig", "Pete", "Doherty", "2008"]),
        ("who wrote it?", []),
    ],
)
def test_key_words(question, words):
    assert hotpotqa.key_words(question) == words


@pytest.mark.skipif("AGEMEM_HOTPOTQA" not in os.environ, reason="set AGEMEM_HOTPOTQA to a published HotpotQA file")
def test_a_published_file():
    records = hotpotqa.load(os.environ["AGEMEM_HOTPOTQA"])
    assert records
    for number, record in enumerate(records):
        staged = hotpotqa.stages(record, random.Random(number), facts=8, chatter=1, distractors=4, casual=True)
        assert any(staged.is_gold) and staged.gold and staged.query and staged.answer
        assert len(staged.facts) <= 8 and len(staged.distractors) == 4
