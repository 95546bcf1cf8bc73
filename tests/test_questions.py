"""Generated questions: layout, splits without a common entity, and answers that follow from what was told and holds."""

import random
from collections import Counter

import pytest

from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.hotpotqa.words import FIRST_NAMES, LAST_NAMES, NUMBERS, PLACE_WORDS, YEARS
from agemem_jax.data.staged import REVISIONS, SPLITS

SIZES = questions.Sizes()
RECORDS = {split: questions.generate(0, 1500, split) for split in SPLITS}
ALL = [record for records in RECORDS.values() for record in records]


def of_kind(kind):
    return [record for record in ALL if record["kind"] == kind]


def gold_sentences(record):
    paragraphs = dict(record["context"])
    return [paragraphs[title][index] for title, index in record["supporting_facts"]]


def names_of(text):
    """The pairs of neighbouring words that are a person or a work."""
    words = text.split()
    pairs = list(zip(words, words[1:], strict=False))
    people = [p for p in pairs if p[0] in FIRST_NAMES and p[1] in LAST_NAMES]
    works = [p for p in pairs if p[0] in questions.WORK_FIRST and p[1] in questions.WORK_SECOND]
    return people + works


def solve(question, facts):
    """Answers a question from texts that hold, or gives None: a reader of its own, not the generator's."""
    words = question.split()
    asked = " ".join(words)

    def find(start, end=""):
        hits = [f[len(start) :] for f in facts if f.startswith(start) and (not end or f.endswith(end))]
        return hits[0] if hits else None

    def born(name, year):
        hits = [f.split(" was born in ")[1] for f in facts if f.removeprefix("no ").startswith(f"{name} was born in ")]
        return next((hit for hit in hits if hit.isdigit() == year), None)

    if asked.startswith(("Where was the author of ", "When was the author of ")):
        author = find(f"{words[5]} {words[6]} was written by ")
        return born(author, words[0] == "When")
    if asked.startswith("Who was born first"):
        one, other = " ".join(words[4:6]), " ".join(words[7:9])
        years = born(one, True), born(other, True)
        return None if None in years else one if years[0] < years[1] else other
    if asked.startswith("Do "):
        places = born(" ".join(words[1:3]), False), born(" ".join(words[4:6]), False)
        return None if None in places else "yes" if places[0] == places[1] else "no"
    if asked.startswith("Who bid most"):
        bids = [f.split() for f in facts if " bid " in f]
        return " ".join(max(bids, key=lambda b: questions.NUMBERS.index(b[3]))[:2]) if bids else None
    name = " ".join(words[2:4])
    if asked.endswith("born"):
        return born(name, words[0] == "When")
    if asked.endswith("published"):
        return find(f"no {name} was published in ") or find(f"{name} was published in ")
    if asked.endswith("written by"):
        return find(f"{name} was written by ")
    past = asked.endswith("before")
    change = find(f"{name} moved from " if "live" in asked else f"{name} left ")
    if change:
        before, after = change.split(" to " if "live" in asked else " for ")
        return before if past else after
    return None if past else find(f"{name} lives in " if "live" in asked else f"{name} works for ")


@pytest.mark.parametrize("split", SPLITS)
def test_layout_is_hotpotqas_with_a_few_fields_more(split):
    published = {"_id", "question", "answer", "type", "level", "supporting_facts", "context"}
    for record in RECORDS[split]:
        assert set(record) - published == {"kind", "told", "later", "asker", "keep", "revisions", "view"}
        assert published < set(record)
        assert record["type"] in ("bridge", "comparison")
        paragraphs = dict(record["context"])
        assert len(paragraphs) == len(record["context"]), "titles are distinct"
        assert all(0 <= index < len(paragraphs[title]) for title, index in record["supporting_facts"])
        told = {text for _, text in record["told"] + record["later"]}
        assert set(gold_sentences(record)) <= told
        assert len(record["told"]) <= SIZES.facts and 1 <= len(record["later"]) <= SIZES.distractors
    assert len({record["_id"] for record in RECORDS[split]}) == 1500


def test_answers_follow_from_what_holds_and_belongs_to_the_asker():
    for record in ALL:
        texts = record["keep"] + [text for _, text in record["later"]]
        speakers = {text: speaker for speaker, text in record["told"] + record["later"]}
        answer = solve(record["question"], [text for text in texts if speakers[text] == record["asker"]])
        assert (answer or questions.UNKNOWN) == record["answer"], record
        if record["answer"] != questions.UNKNOWN:
            assert solve(record["question"], gold_sentences(record)) == record["answer"]


def test_what_is_worth_having_in_view_is_told_in_stage_two_and_answers_what_is_asked_of_it():
    """The true facts among misleading talk, the best bid, where the authors were born; nothing in the other kinds."""
    for record in ALL:
        later, view, gold = [text for _, text in record["later"]], record["view"], gold_sentences(record)
        assert all(any(text.startswith(told) for text in later) for told in view)
        assert {"misled": 4, "bids": 1, "split": 2}.get(record["kind"], 0) == len(view)
        if record["kind"] == "bids":
            best = max((text.split() for text in later), key=lambda bid: NUMBERS.index(bid[3]))
            assert view == [" ".join(best[:4])]
        if record["kind"] in ("misled", "bids", "split"):
            of_stage_two = [text for text in gold if text in later]
            assert all(any(text.startswith(told) for told in view) for text in of_stage_two)


def test_stale_values_are_wrong_answers():
    for record in of_kind("changed"):
        stale = [text for text, _ in record["revisions"]]
        told = [text for _, text in record["told"]]
        assert len(stale) == REVISIONS and all(told.index(a) < told.index(b) for a, b in record["revisions"])
        assert not set(stale) & set(record["keep"])
        assert all(present in record["keep"] for _, present in record["revisions"])
    asked = [r for r in of_kind("changed") if "before" not in r["question"] and r["revisions"]]
    wrong = [solve(r["question"], [stale for stale, _ in r["revisions"]]) for r in asked]
    hit = [(w, r["answer"]) for w, r in zip(wrong, asked, strict=True) if w is not None]
    assert len(hit) > len(asked) / 3 and all(w != right for w, right in hit)
    relations = {text.split()[2] for r in of_kind("changed") for text, _ in r["revisions"]}
    assert {"lives", "works", "was"} == relations
    assert sum("before" in r["question"] for r in of_kind("changed")) > 50


def test_closed_records_need_the_places_back_and_keep_people_apart():
    records, quiet = of_kind("closed"), 0
    for record in records:
        own = [text for speaker, text in record["told"] if speaker == 0 and not text.startswith(("forget", "never"))]
        others = [text for speaker, text in record["told"] if speaker == 1]
        assert len(own) == SIZES.places == len(record["keep"]) and len(others) == len(record["revisions"])
        assert len(others) in (0, REVISIONS)
        quiet += not others
        # Nothing tells beforehand whether places will be needed: where they are not, stage 1 ends with the facts.
        assert [text for _, text in record["told"][: len(own)]] == own
        assert len(record["told"]) == len(own) + 2 * len(others)
    assert 0.3 < quiet / len(records) < 0.5
    answers = Counter(record["answer"] == questions.UNKNOWN for record in records)
    assert 0.2 < answers[True] / len(records) < 0.5
    asked_of_others = [r for r in records if r["answer"] == questions.UNKNOWN and solve(r["question"], r["keep"])]
    assert len(asked_of_others) > 50


def test_stage_two_is_long_where_it_has_to_be():
    for record in of_kind("misled"):
        texts = [text for _, text in record["later"]]
        subject = Counter(" ".join(text.split()[:2]) for text in texts).most_common(1)[0]
        assert len(texts) == SIZES.distractors and subject[1] == SIZES.distractors - questions.TRUE_FACTS
        assert subject[0] not in record["question"]
        facts = [i for i, text in enumerate(texts) if not text.startswith(subject[0])]
        assert facts[-1] == 2 * questions.TRUE_FACTS - 2  # as much talk before the last fact as facts
    for record in of_kind("bids"):
        texts = [text for _, text in record["later"]]
        assert len(texts) == SIZES.distractors and all(" bid " in text for text in texts)
        best = max(texts, key=lambda text: questions.NUMBERS.index(text.split()[3]))
        assert texts.index(best) < SIZES.distractors // 3
    for record in of_kind("split"):
        first, second = gold_sentences(record)
        assert first in [text for _, text in record["told"]] and second in [text for _, text in record["later"]]


def test_shares_of_the_mix():
    kinds = Counter(record["kind"] for record in ALL)
    assert set(kinds) == set(questions.KINDS) and min(kinds.values()) > 0.8 * len(ALL) / len(kinds)
    only = questions.generate(1, 50, "train", {"changed": 3.0, "bids": 0.0})
    assert {record["kind"] for record in only} == {"changed"}
    assert {kind for kinds in questions.MADE_FOR.values() for kind in kinds} == set(questions.KINDS)


def test_splits_share_no_person_and_no_work():
    seen = {
        split: {pair for r in records for _, text in r["told"] + r["later"] for pair in names_of(text)}
        for split, records in RECORDS.items()
    }
    for split, names in seen.items():
        assert len(names) > 500
        assert all(questions.split_of(pair) == split for pair in names)


def test_vocabulary_holds_every_word():
    known, rng = set(questions.vocabulary()), random.Random(0)
    for record in ALL[::7]:
        for text in [t for _, t in record["told"] + record["later"]] + [record["question"], record["answer"]]:
            assert set(text.split()) <= known
    assert set(questions.chatter(rng).split()) <= known
    assert len(known) == len(questions.vocabulary())


def test_records_are_a_function_of_seed_split_and_number():
    assert questions.generate(3, 40, "test") == questions.generate(3, 60, "test")[:40]
    assert questions.generate(3, 40, "test") != questions.generate(4, 40, "test")


def test_small_talk_holds_no_name():
    rng, named = random.Random(0), set(FIRST_NAMES + LAST_NAMES + PLACE_WORDS + YEARS)
    texts = {questions.chatter(rng) for _ in range(500)}
    assert len(texts) > 200 and not any(set(text.split()) & named for text in texts)


@pytest.mark.parametrize("sizes", [(2, 6, 2), (3, 8, 10), (64, 8, 4), (5, 9, 12)])
def test_other_sizes_are_told_in_full(sizes):
    for record in questions.generate(2, 200, "train", sizes=questions.Sizes(*sizes)):
        assert len(record["told"]) <= sizes[1] and 1 <= len(record["later"]) <= sizes[2]
        assert record["kind"] == "closed" or len(record["keep"]) <= sizes[0]


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="split is 'dev'"):
        questions.generate(0, 1, "dev")
    with pytest.raises(ValueError, match="shares of"):
        questions.generate(0, 1, "train", {"recalled": 1.0})
    with pytest.raises(ValueError, match="too small for 'closed'"):
        questions.generate(0, 1, "train", sizes=questions.Sizes(3, 5, 10))
