"""Generated questions: layout, splits without a common entity, and answers that follow from the gold facts alone."""

import random
from collections import Counter

import pytest

from agemem_jax.data import questions

RECORDS = {split: questions.generate(0, 1500, split) for split in questions.SPLITS}


def gold_sentences(record):
    paragraphs = dict(record["context"])
    return [paragraphs[title][index] for title, index in record["supporting_facts"]]


def entities(record):
    """The titles: every person and work that has a paragraph, and the authors who have none."""
    names = {title for title, _ in record["context"]}
    for _, sentences in record["context"]:
        names |= {sentence.split(" was written by ")[1] for sentence in sentences if " was written by " in sentence}
    return names


def solve(question, facts):
    """Answers a question from a list of facts, or gives None."""
    author, births = {}, {}
    for fact in facts:
        if " was written by " in fact:
            work, person = fact.split(" was written by ")
            author[work] = person
        elif " was born in " in fact:
            person, where = fact.split(" was born in ")
            births.setdefault((person, where.isdigit()), where)
    words = question.split()
    if words[0] in ("Where", "When"):
        return births.get((author.get(" ".join(words[5:7])), words[0] == "When"))
    if words[0] == "Who":
        one, other = " ".join(words[4:6]), " ".join(words[7:9])
        years = births.get((one, True)), births.get((other, True))
        return None if None in years else one if years[0] < years[1] else other
    places = births.get((" ".join(words[1:3]), False)), births.get((" ".join(words[4:6]), False))
    return None if None in places else "yes" if places[0] == places[1] else "no"


@pytest.mark.parametrize("split", questions.SPLITS)
def test_layout_is_hotpotqas(split):
    for record in RECORDS[split]:
        assert set(record) == {"_id", "question", "answer", "type", "level", "supporting_facts", "context"}
        assert record["type"] in ("bridge", "comparison")
        assert len(record["context"]) == 10
        paragraphs = dict(record["context"])
        assert len(paragraphs) == 10, "titles are distinct"
        assert len(record["supporting_facts"]) == 2
        assert all(0 <= index < len(paragraphs[title]) for title, index in record["supporting_facts"])
        assert len({title for title, _ in record["supporting_facts"]}) == 2
    assert len({record["_id"] for record in RECORDS[split]}) == 1500


def test_every_kind_of_question_and_the_share_of_comparisons():
    kinds = Counter(record["question"].split()[0] for record in RECORDS["train"])
    assert set(kinds) == {"Where", "When", "Who", "Do"}
    assert 0.2 < (kinds["Who"] + kinds["Do"]) / 1500 < 0.3
    assert all(r["type"] == "bridge" for r in questions.generate(1, 50, "train", comparison_share=0.0))
    assert all(r["type"] == "comparison" for r in questions.generate(1, 50, "train", comparison_share=1.0))
    answers = Counter(r["answer"] for r in RECORDS["train"] if r["question"].startswith("Do "))
    assert 0.35 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.65


@pytest.mark.parametrize("split", questions.SPLITS)
def test_gold_facts_suffice_and_are_needed(split):
    for record in RECORDS[split]:
        gold = gold_sentences(record)
        everything = [sentence for _, sentences in record["context"] for sentence in sentences]
        assert solve(record["question"], gold) == record["answer"]
        assert solve(record["question"], everything) == record["answer"], "no paragraph contradicts the gold"
        for missing in gold:
            assert solve(record["question"], [fact for fact in everything if fact != missing]) is None


def test_the_splits_share_no_entity_pair():
    seen = {split: set().union(*map(entities, RECORDS[split])) for split in questions.SPLITS}
    other_seed = set().union(*map(entities, questions.generate(7, 1500, "train")))
    assert len(seen["train"]) > 3000 and len(seen["test"]) > 800
    assert not (seen["train"] | other_seed) & seen["test"]
    for split, names in seen.items():
        assert all(questions.split_of(tuple(name.split())) == split for name in names)


def test_distractors_share_words_with_the_gold_facts():
    for record in RECORDS["train"]:
        gold_titles = {title for title, _ in record["supporting_facts"]}
        gold_words = {word for title in gold_titles for word in title.split()}
        near = [title for title, _ in record["context"] if title not in gold_titles and gold_words & set(title.split())]
        assert len(near) >= 4


def test_the_gold_fact_matches_a_precise_query_best():
    for record in RECORDS["train"][:300]:
        everything = [sentence for _, sentences in record["context"] for sentence in sentences]
        for title, index in record["supporting_facts"]:
            gold = dict(record["context"])[title][index]
            query = set(title.split()) | {"born" if "born" in gold else "written"}
            overlap = {sentence: len(query & set(sentence.split())) for sentence in everything}
            assert overlap[gold] == max(overlap.values())


def test_sentences_are_short_and_use_the_vocabulary_only():
    known = set(questions.vocabulary())
    assert len(known) <= 450
    rng = random.Random(0)
    for record in RECORDS["train"][:300] + RECORDS["test"][:300]:
        sentences = [sentence for _, paragraph in record["context"] for sentence in paragraph]
        for text in [*sentences, questions.chatter(rng)]:
            assert len(text.split()) <= 7 and set(text.split()) <= known
        assert len(record["question"].split()) <= 9 and set(record["question"].split()) <= known
        assert set(record["answer"].split()) <= known
    lower = [word.lower() for word in known]
    assert len(set(lower)) == len(lower), "no two words that a lower-casing scorer would take for one"


def test_deterministic_and_independent_of_count():
    assert questions.generate(3, 40, "test") == questions.generate(3, 60, "test")[:40]
    assert questions.generate(3, 40, "test") != questions.generate(4, 40, "test")
    assert questions.generate(0, 1, "train")[0]["_id"] == "58fa7e8757e422b43d8bef7f"  # the same in every process


def test_small_talk_names_no_entity():
    named = set(questions.FIRST_NAMES + questions.LAST_NAMES + questions.PLACE_WORDS + questions.YEARS)
    rng = random.Random(1)
    texts = {questions.chatter(rng) for _ in range(500)}
    assert len(texts) > 250
    assert not named & {word for text in texts for word in text.split()}


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split is 'dev'"):
        questions.generate(0, 1, "dev")
    with pytest.raises(ValueError, match="comparison_share is 2"):
        questions.generate(0, 1, "train", comparison_share=2)
