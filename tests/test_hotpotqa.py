"""HotpotQA records: both published layouts, errors that name the record, and the three stages."""

import json
import os
import random

import pytest

from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.benchmarks.hotpotqa.environment import question_of
from agemem_jax.benchmarks.hotpotqa.tasks import check_splits
from agemem_jax.config import ConfigError
from agemem_jax.errors import InputError
from configs import base

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
        **{key: value for key, value in record.items() if key not in ("_id", "supporting_facts", "context")},
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


def published(count, **mix):
    """Generated records in the published layout alone, two supporting facts each."""
    records = questions.generate(0, count, "train", {"recall": 1.0, "split": 1.0} | mix)
    optional = ("kind", "told", "later", "asker", "keep", "revisions", "view")
    return [{name: value for name, value in record.items() if name not in optional} for record in records]


def test_what_a_record_says_is_told_is_told(tmp_path):
    records = questions.generate(0, 60, "train")
    for record in hotpotqa.load(write(tmp_path, records)):
        staged = hotpotqa.stages(record, random.Random(0), facts=7, distractors=10)
        assert list(map(list, zip(staged.fact_speakers, staged.facts, strict=True))) == record["told"]
        assert list(map(list, zip(staged.distractor_speakers, staged.distractors, strict=True))) == record["later"]
        assert (staged.asker, staged.kind, staged.keep) == (record["asker"], record["kind"], record["keep"])
        assert [list(revision) for revision in staged.revisions] == record["revisions"]
        assert staged.view == record["view"]
        spoken = hotpotqa.stages(record, random.Random(0), facts=7, distractors=10, casual=True)
        several = len({who for who, _ in record["told"]}) > 1
        assert all(text.startswith(("Host: ", "Guest: ")) for text in spoken.facts) == several


@pytest.mark.parametrize(
    "change, told",
    [
        ({"told": [["x", "Ada"]]}, "told has the speaker 'x'; 0 to 1 are known"),
        ({"later": "Ada"}, "later must be"),
        ({"asker": 2}, "asker has the speaker 2"),
        ({"keep": None}, "keep must be a list"),
        ({"kind": "other"}, "kind is 'other'; it must be one of recall"),
        ({"revisions": [["Ada"]]}, "revisions must be"),
        ({"view": "Ada"}, "view must be a list"),
    ],
)
def test_a_telling_that_is_not_one_is_refused(tmp_path, change, told):
    assert told in refused(tmp_path, questions.generate(0, 1, "train")[0] | change)


def test_a_changed_copy_comes_before_the_true_sentence():
    revised = 0
    for number, record in enumerate(published(100)):
        staged = hotpotqa.stages(record, random.Random(number), facts=6, revise=True)
        assert staged == hotpotqa.stages(record, random.Random(number), facts=6, revise=True)
        for stale, present in staged.revisions:
            revised += 1
            assert stale != present and present in staged.gold and stale not in staged.gold
            assert staged.facts.index(stale) < staged.facts.index(present) and len(staged.facts) <= 6
            assert len(set(stale.split()) ^ set(present.split())) <= 4
    assert revised > 60
    assert hotpotqa.stages(OFFICIAL, random.Random(0), facts=2, revise=True).revisions == []  # there is no room


def test_a_copy_changes_whole_words_alone():
    """A "no" within "known" is no answer told; an answer is changed wherever it stands by itself."""
    record = OFFICIAL | {"context": [["Ada Keller", ["Born in 1931.", "Then 1940."]], ["Hugo Novak", ["A pianist."]]]}
    changed = lambda text, answer: hotpotqa.changed_copy(text, record | {"answer": answer}, random.Random(0))  # noqa: E731
    assert changed("Ada Keller is known for a novel", "no") == ""
    assert changed("Ada Keller said no", "no") == changed("Ada Keller said no", "No") == ""
    assert changed("Ada Keller, known since 1931, wrote a novel", "no") == "Ada Keller, known since 1940, wrote a novel"
    assert changed("Ada Keller likes art and art", "art") == "Ada Keller likes Hugo Novak and Hugo Novak"
    assert changed("Ada Keller likes artists", "art") == ""
    assert changed("Ada Keller won 8-1 (8-1 again)", "8-1") == ""


def test_what_a_stranger_told_is_unknown_to_the_asker():
    staged = hotpotqa.stages(OFFICIAL, random.Random(0), facts=5, chatter=1, stranger=True)
    assert staged.answer == questions.UNKNOWN and staged.gold == [] and not any(staged.is_gold)
    assert set(staged.fact_speakers) == {1} and staged.asker == 0


def refused(tmp_path, *records) -> str:
    with pytest.raises(InputError) as error:
        hotpotqa.load(write(tmp_path, list(records)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_name_file_record_and_field(tmp_path):
    path = str(tmp_path / "records.json")
    assert f"task.path: {path!r}, record 1 is a text; an object with the fields" in refused(tmp_path, OFFICIAL, "x")
    for field in hotpotqa.FIELDS:
        broken = {key: value for key, value in OFFICIAL.items() if key != field}
        assert f"record 1 lacks the field {field!r}" in refused(tmp_path, OFFICIAL, broken)


NOT_TEXT = (
    (None, "null"), (3, "a number"), (0.5, "a number"), (True, "true or false"), (["a"], "a list"), ({}, "an object")
)  # fmt: skip


@pytest.mark.parametrize("told, place", [
    ("question", lambda record, value: record.update(question=value)),
    ("answer", lambda record, value: record.update(answer=value)),
    ("a title of supporting_facts", lambda record, value: record["supporting_facts"][0].__setitem__(0, value)),
    ("a title of context", lambda record, value: record["context"][0].__setitem__(0, value)),
    ("context sentence 1 under 'Silver River'", lambda record, value: record["context"][0][1].__setitem__(1, value)),
])  # fmt: skip
def test_what_is_no_text_is_refused_in_every_field_of_every_layout(tmp_path, told, place):
    bad = [(value, f"{told} is {kind}; text is needed") for value, kind in NOT_TEXT]
    bad += [("a\ud800b", f"{told} holds half of a surrogate pair ('\\ud800')")]
    bad += [("x" * 100_001, f"{told} has 100001 characters; at most 100000 are read")]
    if "sentence" not in told:
        bad += [(blank, f"{told} is blank; remove the record") for blank in ("", " \n", "\u200b\u00a0", "\0")]
    for value, message in bad:
        record = json.loads(json.dumps(OFFICIAL))
        place(record, value)
        for layout in (record, columns(record)):
            assert f"record 1: {message}" in refused(tmp_path, OFFICIAL, layout)


def test_labels_may_be_absent_or_numbers(tmp_path):
    plain = {key: OFFICIAL[key] for key in hotpotqa.FIELDS}
    loaded = hotpotqa.load(write(tmp_path, [plain, plain | {"id": 7, "type": None, "level": 3}]))
    assert [(r["_id"], r["type"], r["level"]) for r in loaded] == [("", "", ""), ("7", "", "3")]
    for field in ("_id", "type", "level"):
        for value, kind in NOT_TEXT[2:]:
            assert f"record 0: {field} is {kind}; text is needed" in refused(tmp_path, plain | {field: value})


def test_layouts_that_nobody_published_are_refused(tmp_path):
    for field, value in (
        ("context", [["title only"]]),
        ("context", [{"title": "a", "sentences": []}]),
        ("context", {"title": "ab", "sentences": "cd"}),
        ("context", {"title": ["a"]}),
        ("context", None),
        ("context", 3),
        ("supporting_facts", {"title": ["a"], "sent_id": []}),
        ("supporting_facts", {"title": ["a"], "sent_id": 0}),
        ("supporting_facts", [["a", 0, 1]]),
        ("supporting_facts", ["ab"]),
        ("supporting_facts", "a"),
    ):
        assert f"record 0: {field} is in neither published layout; needed: [[" in refused(
            tmp_path, OFFICIAL | {field: value}
        )
    text = refused(tmp_path, OFFICIAL | {"context": [["Silver River", "It is a novel. It sold well."]]})
    assert "context has a text under 'Silver River'; a list is needed" in text
    for index in (None, True, 0.0, "0", [0]):
        assert f"supporting_facts has the index {index!r}; whole numbers" in refused(
            tmp_path, OFFICIAL | {"supporting_facts": [["Silver River", index]]}
        )


def test_what_the_published_files_have_here_and_there_is_left_out_and_counted_once(tmp_path):
    dangling = [["Silver River", 9], ["Nowhere", 0], ["Hugo Keller", 2], ["Hugo Keller", -1], ["Hugo Keller", 0]]
    records = [
        OFFICIAL,
        OFFICIAL | {"supporting_facts": dangling},  # beyond the end, no paragraph, blank, negative, right
        OFFICIAL | {"supporting_facts": [["Nowhere", 0]]},
        OFFICIAL | {"supporting_facts": []},
        OFFICIAL | {"context": []},
        OFFICIAL | {"answer": "The"},
        OFFICIAL | {"answer": "19\x0031\x85"},
    ]
    with pytest.warns(UserWarning) as warned:
        loaded = hotpotqa.load(write(tmp_path, records), lambda answer: question_of(answer).num_words > 0)
    assert len(warned) == 1
    assert str(warned[0].message).endswith(
        "records.json: 3 of 7 records are used; left out 2 control characters; left out 1 records whose answer has no "
        "word to score, articles and punctuation aside; left out 3 records without a supporting fact; left out 7 "
        "supporting facts that name a title or sentence which the context lacks, or has blank or twice"
    )
    assert [record["supporting_facts"] for record in loaded[:2]] == [OFFICIAL["supporting_facts"], [["Hugo Keller", 0]]]
    assert loaded[2]["answer"] == "19 31 "
    assert "no record that can be used: 1 were read; left out 1 records without" in refused(tmp_path, records[2])


def test_a_title_that_occurs_twice_says_nothing_of_its_facts(tmp_path):
    twice = OFFICIAL | {"context": OFFICIAL["context"] + [["Silver River", ["It is in Halden."]]]}
    with pytest.warns(UserWarning, match="left out 1 supporting facts"):
        (record,) = hotpotqa.load(write(tmp_path, [twice]))
    assert record["supporting_facts"] == [["Ada Keller (writer)", 1]]
    again = OFFICIAL | {"context": OFFICIAL["context"] + OFFICIAL["context"][:1]}
    assert hotpotqa.load(write(tmp_path, [again]))[0]["supporting_facts"] == OFFICIAL["supporting_facts"]


def test_titles_are_the_same_whatever_their_spaces(tmp_path):
    context = [[" Silver\u00a0 River\n", OFFICIAL["context"][0][1]], *OFFICIAL["context"][1:]]
    facts = [["Silver River ", 0], ["Silver  River", 0], ["Ada Keller (writer)", 1]]
    assert hotpotqa.load(write(tmp_path, [OFFICIAL | {"context": context, "supporting_facts": facts}])) == [OFFICIAL]


def test_the_same_task_is_known_by_question_and_id_or_supporting_sentences():
    def same(one, other):
        return not set(hotpotqa.identities(one)).isdisjoint(hotpotqa.identities(other))

    asked_alike = OFFICIAL | {"_id": "b", "question": OFFICIAL["question"].upper() + " "}
    other_facts = OFFICIAL | {"supporting_facts": [["Hugo Keller", 0]]}
    assert same(OFFICIAL, asked_alike) and same(OFFICIAL, other_facts)
    assert not same(OFFICIAL, other_facts | {"_id": "b"})  # "Where is he?" is another question in another story
    assert not same(OFFICIAL, OFFICIAL | {"question": "Who?"})  # ids that mean nothing
    assert not same(OFFICIAL | {"_id": ""}, other_facts | {"_id": ""})


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
    for number, record in enumerate(published(200)):
        staged = hotpotqa.stages(record, random.Random(number), facts=3, distractors=3)
        assert len(staged.facts) == 3 and sum(staged.is_gold) == 2 and len(staged.distractors) == 3
        assert not set(staged.distractors) & (set(staged.facts) | set(staged.gold))
        assert any(staged.distractors[1].startswith(opening) for opening in talk)


def test_stages_make_do_with_what_a_record_has():
    alone = OFFICIAL | {"context": OFFICIAL["context"][:1], "supporting_facts": [["Silver River", 1]]}
    for facts, chatter, distractors in ((2, 0, 0), (9, 2, 5), (1, 3, 1)):
        staged = hotpotqa.stages(alone, random.Random(0), facts, chatter, distractors, casual=True)
        assert staged.gold == ["Silver River: It sold well."] and sum(staged.is_gold) == 1
        assert len(staged.facts) == len(staged.is_gold) == 1 + min(chatter, facts - 1)
        assert len(staged.distractors) == distractors and all(staged.distractors)


def test_long_runs_of_marks_cost_linear_time():
    for mark in ("-", "(", "'", ".", "a-"):
        assert hotpotqa.key_words(mark * 50_000) == []
        assert hotpotqa.told_sentence(mark * 50_000, "x").endswith(": x")


def test_gold_facts_come_before_all_else_where_room_is_short():
    staged = hotpotqa.stages(OFFICIAL, random.Random(0), facts=1, chatter=3)
    assert staged.facts == ["Silver River is a novel by Ada Keller."] and staged.is_gold == [True]
    assert staged.distractors == []


def test_stages_are_deterministic_and_shuffled():
    record = published(1)[0]
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
        ("Is 'Allo 'Allo! older than \u201cTaxi\u201d?", ["Allo", "Taxi"]),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_fraction": 1.0, "path": "x.json"}, "between 0 and 1"),
        ({"test_fraction": 0.0, "path": "x.json"}, "or give task.test_path"),
        ({"validation_fraction": 0.0, "path": "x.json"}, "or give task.validation_path"),
        ({"validation_fraction": 0.8, "path": "x.json"}, "no split of task.path is empty"),
        ({"test_path": "x.json"}, "task.path, the training records, names none"),
    ],
)
def test_splits_that_cannot_be_are_refused(changes, words):
    config = base.get_config()
    config.train.eval_every = 5
    config.task.update(changes)
    with pytest.raises(ConfigError, match=words):
        check_splits(config)
