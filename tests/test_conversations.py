"""Conversations and documents before a question: made-up files in each published layout, and how they are told."""

import datetime
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from vocabularies import write_bpe

from agemem_jax import benchmarks
from agemem_jax.benchmarks import conversations, task_source
from agemem_jax.benchmarks.conversations import Conversation, Turn, chunked, day
from agemem_jax.config import ConfigError, validate
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError

SAID = [
    ("Ada", "I went to the support group yesterday. It was powerful."),
    ("Ben", "I sold my violin last week."),
    ("Ada", "The lake house is red now."),
]


def locomo(people: int = 10) -> list[dict]:
    """Conversations of two sessions, with a question of each category about each."""
    turn = lambda s, i: {"speaker": SAID[i][0], "dia_id": f"D{s}:{i + 1}", "text": SAID[i][1]}  # noqa: E731
    return [
        {
            "sample_id": f"conv-{n}",
            "conversation": {
                "speaker_a": "Ada", "speaker_b": "Ben",
                "session_1_date_time": "1:56 pm on 8 May, 2023", "session_1": [turn(1, 0), turn(1, 1)],
                "session_2_date_time": "7:55 pm on 9 June, 2023",
                "session_2": [turn(2, 2) | {"blip_caption": "a photo of a house"}],
            },
            "qa": [
                {"question": "What did Ada and Ben tell?", "answer": "group, violin", "evidence": ["D1:1", "D1:2"],
                 "category": 1},
                {"question": "When did Ada go to the group?", "answer": "7 May 2023", "evidence": ["D1:1"],
                 "category": 2},
                {"question": "Is Ada at peace?", "answer": "Likely yes", "evidence": [], "category": 3},
                {"question": "In which year was the house red?", "answer": 2023, "evidence": ["D2:3"], "category": 4},
                {"question": "Who bought the piano?", "evidence": [], "category": 5, "adversarial_answer": "Ben"},
            ],
        }
        for n in range(people)
    ]  # fmt: skip


def longmemeval(count: int = 4) -> list[dict]:
    chat = lambda text, **more: [{"role": "user", "content": text} | more, {"role": "assistant", "content": "I see."}]  # noqa: E731
    return [
        {
            "question_id": f"q{n}" + "_abs" * (n == 1), "question_type": "temporal-reasoning",
            "question": "When did I sell it?", "answer": 2022 if n == 0 else "last week",
            "question_date": "2023/05/30 (Tue) 23:40", "haystack_session_ids": ["s2", "s1"],
            "haystack_dates": ["2023/05/21 (Sun) 02:36", "2023/05/20 (Sat) 02:36"],
            "haystack_sessions": [chat("I sold my violin yesterday.", has_answer=True), chat("It rains.")],
            "answer_session_ids": ["s2"],
        }
        for n in range(count)
    ]  # fmt: skip


def beam(folder: Path, count: int = 2) -> Path:
    """A folder of chats, the second of which was cut."""
    for n in range(1, count + 1):
        chat = folder / str(n)
        (chat / "probing_questions").mkdir(parents=True)
        turns = [[
            {"role": "user", "id": 0, "time_anchor": "March-15-2024", "content": "The sprint ends soon."},
            {"role": "assistant", "id": 1, "time_anchor": None, "content": "Good."},
        ], [{"role": "user", "id": 2, "content": "It took 250ms."}]]  # fmt: skip
        told = [{"batch_number": 1, "time_anchor": None, "turns": turns}]
        (chat / "chat.json").write_text(json.dumps(told))
        if n == 2:
            (chat / "chat_trunecated.json").write_text(json.dumps([{"batch_number": 1, "turns": turns[:1]}]))
        probing = {
            "abstention": [{"question": "Who paid?", "ideal_response": "Nothing is said of it.", "rubric": "[]"}],
            "knowledge_update": [
                {"question": "How fast is it?", "answer": "250ms", "source_chat_ids": {"old": [0], "new": [2]}}
            ],
            "summarization": [{"question": "Sum it up", "ideal_summary": "A sprint", "source_chat_ids": [0, 2]}],
        }
        (chat / "probing_questions" / "probing_questions.json").write_text(json.dumps(probing))
    return folder


def memoryagentbench(count: int = 2) -> list[dict]:
    metadata = {"source": "factconsolidation_sh_6k", "qa_pair_ids": ["a", "b"], "question_types": None}
    text = " ".join(f"{n}. The door number {n} is red." for n in range(30))
    row = {"context": text, "questions": ["Which colour?", "Which number?"], "answers": [["red", "crimson"], ["7"]]}
    return [row | {"metadata": dict(metadata)} for _ in range(count)]


def hotpotqa(count: int = 20) -> list[dict]:
    return [
        {
            "_id": f"a{n}", "question": f"Where was the author of River {n} born?", "answer": f"Halden {n}",
            "type": "bridge", "level": "hard", "supporting_facts": [[f"River {n}", 0], [f"Keller {n}", 1]],
            "context": [
                [f"River {n}", [f"River {n} is by Keller {n}.", " It sold well."]],
                [f"Keller {n}", ["She writes.", f" She was born in Halden {n}."]],
                [f"Other {n}", ["It is far."]],
            ],
        }
        for n in range(count)
    ]  # fmt: skip


MADE = {"locomo": locomo, "longmemeval": longmemeval, "memoryagentbench": memoryagentbench, "long_hotpotqa": hotpotqa}
NAMES = (*MADE, "beam")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(write_bpe(tmp_path_factory.mktemp("bpe")))


def path_of(name: str, folder: Path, content=None) -> str:
    if name == "beam":
        return str(beam(folder / "chats"))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(MADE[name]() if content is None else content))
    return str(path)


def config_of(name: str, path: str, **changes):
    config = runpy.run_path(f"configs/{name}.py")["get_config"]()
    config.policy.weights = "unused.gguf"
    config.task.path = path
    config.task.documents = 6
    config.update_from_flattened_dict({field.replace("__", "."): value for field, value in changes.items()})
    return config


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_valid_and_the_tasks_are_told(tmp_path, tokenizer, name):
    config = config_of(name, path_of(name, tmp_path))
    validate(config)
    source = task_source(config, tokenizer)
    splits = {split: {record["conversation"] for record in source.records_of(split)} for split in source.places}
    assert not splits["train"] & splits["test"] and not splits["validation"] & (splits["train"] | splits["test"])
    task, valid = source.split_batch("test", 0, 2)
    assert valid.all() and (task.num_facts > 0).all() and (task.kind >= 0).all()
    for index in source.places["test"]:
        staged = source.staged(index)
        assert staged.query and staged.answer and len(staged.distractors) == config.task.distractors
        assert all(len(source.encode(text)) <= config.task.message_tokens for text in staged.facts)
        assert staged == source.staged(index)
    json.dumps(source.records)  # as a run's identity is made of them
    if source.num_train:
        assert len(source.batch(0, tasks=2, group_size=2).owner) == 4


def test_locomo(tmp_path, tokenizer):
    path = path_of("locomo", tmp_path)
    source = task_source(config_of("locomo", path), tokenizer)
    assert {split: len(places) for split, places in source.places.items()} == {"train": 4, "validation": 4, "test": 32}
    assert source.tasks.kinds == ("multi-hop", "open-domain", "single-hop", "temporal")
    staged = source.staged(1)
    assert staged.facts == [
        "[Monday, 8 May 2023] Ada: I went to the support group yesterday. It was powerful.\n"
        "Ben: I sold my violin last week.",
        "[Friday, 9 June 2023] Ada: The lake house is red now. (shares a picture: a photo of a house)",
    ]
    assert (staged.query, staged.answer, staged.kind) == ("When did Ada go to the group?", "7 May 2023", "temporal")
    assert staged.is_gold == [True, False] and staged.fact_sessions == [1, 2]
    assert staged.gold == ["Ada: I went to the support group yesterday. It was powerful."]
    task = source.rows([(1, 0)])
    assert task.fact_session[0, :2].tolist() == [1, 2] and len(set(task.fact_owner[0, :2].tolist())) == 1

    whole = dict(task__parts=(), rl__updates=0, task__test_fraction=1.0, task__validation_fraction=0.0)
    source = task_source(config_of("locomo", path, **whole), tokenizer)
    assert {split: len(places) for split, places in source.places.items()} == {"train": 0, "validation": 0, "test": 50}
    assert [source.staged(i).answer for i in range(3, 5)] == ["2023", "unknown"]
    assert source.staged(4).kind == "adversarial"


def test_longmemeval(tmp_path, tokenizer):
    source = task_source(config_of("longmemeval", path_of("longmemeval", tmp_path)), tokenizer)
    first, second = source.staged(0), source.staged(1)
    assert first.facts == [
        "[Saturday, 20 May 2023] User: It rains.\nAssistant: I see.",
        "[Sunday, 21 May 2023] User: I sold my violin yesterday.\nAssistant: I see.",
    ]
    assert first.is_gold == [False, True] and first.gold == ["User: I sold my violin yesterday."]
    assert (first.query, first.answer) == ("[Tuesday, 30 May 2023] When did I sell it?", "2022")
    assert (second.kind, second.answer) == ("abstention", "unknown")


def test_beam(tmp_path, tokenizer):
    source = task_source(config_of("beam", path_of("beam", tmp_path)), tokenizer)
    staged = [source.staged(i) for i in range(6)]
    assert [one.answer for one in staged[:3]] == ["unknown", "250ms", "A sprint"]
    assert [one.kind for one in staged[:3]] == ["abstention", "knowledge_update", "summarization"]
    day_ = "[Friday, 15 March 2024] User: The sprint ends soon.\nAssistant: Good."
    assert staged[0].facts == [f"{day_}\nUser: It took 250ms."] and staged[3].facts == [day_]
    assert staged[1].gold == ["User: The sprint ends soon.", "User: It took 250ms."]


def test_memoryagentbench(tmp_path, tokenizer):
    config = config_of("memoryagentbench", path_of("memoryagentbench", tmp_path), task__chunk_tokens=64)
    source = task_source(config, tokenizer)
    staged = source.staged(0)
    assert (staged.answer, staged.kind, staged.gold) == ("red", "factconsolidation_sh_6k", [])
    assert len(staged.facts) > 3 and " ".join(staged.facts) == memoryagentbench()[0]["context"]


@pytest.mark.parametrize("documents", [6, 9, 12])
def test_long_hotpotqa(tmp_path, tokenizer, documents):
    content = hotpotqa(40)
    path = path_of("long_hotpotqa", tmp_path, content)
    source = task_source(config_of("long_hotpotqa", path, task__documents=documents, task__chunk_tokens=64), tokenizer)
    for split, begin, end in (("train", 0, 28), ("validation", 28, 32), ("test", 32, 40)):
        for index in source.places[split]:
            staged = source.staged(index)
            told = "\n".join(staged.facts)
            titles = {
                (title, n) for n in range(40) for title in ("River", "Keller", "Other") if f"{title} {n}: " in told
            }
            assert len(titles) == documents and {("River", index), ("Keller", index), ("Other", index)} <= titles
            assert {n for _, n in titles} <= set(range(begin, end))
            assert staged.gold == [
                f"River {index} is by Keller {index}.",
                f"Keller {index}: She was born in Halden {index}.",
            ]


def test_too_few_documents_are_refused(tmp_path, tokenizer):
    config = config_of("long_hotpotqa", path_of("long_hotpotqa", tmp_path), task__documents=50)
    with pytest.raises(ConfigError, match="task.documents = 50: record 0 .* and the others of its split have 42; set"):
        benchmarks.load(config, tokenizer)


def without(content, *names):
    """The content with the last of these names taken out of what the others lead to."""
    at = content
    for name in names[:-1]:
        at = at[name]
    del at[names[-1]]
    return content


@pytest.mark.parametrize(
    "name, missing, told",
    [
        ("locomo", (3, "sample_id"), "conversation 3 lacks the field 'sample_id'"),
        ("locomo", (0, "conversation", "session_1"), "lacks the field 'session_1'"),
        ("locomo", (1, "conversation", "session_2_date_time"), "lacks the field 'session_2_date_time'"),
        ("locomo", (1, "conversation", "session_2", 0, "dia_id"), "session_2 lacks the field 'dia_id'"),
        ("locomo", (2, "qa", 1, "answer"), "question 1 lacks the field 'answer'"),
        ("longmemeval", (2, "haystack_dates"), "question 2 lacks the field 'haystack_dates'"),
        ("longmemeval", (0, "haystack_sessions", 1, 0, "content"), "session 1 lacks the field 'content'"),
        ("longmemeval", (0, "question_date"), "lacks the field 'question_date'"),
        ("memoryagentbench", (1, "metadata", "source"), "row 1 lacks the field 'source'"),
        ("memoryagentbench", (0, "answers"), "lacks the field 'answers'"),
        ("long_hotpotqa", (4, "context"), "record 4 lacks the field 'context'"),
    ],
)
def test_a_missing_field_is_named(tmp_path, tokenizer, name, missing, told):
    path = path_of(name, tmp_path, without(MADE[name](), *missing))
    with pytest.raises(InputError, match=f"task.path: .*{told}"):
        benchmarks.load(config_of(name, path), tokenizer)


def test_what_beam_lacks_is_named(tmp_path, tokenizer):
    with pytest.raises(InputError, match="has no <number>/chat.json in it"):
        benchmarks.load(config_of("beam", str(tmp_path)), tokenizer)
    folder = beam(tmp_path / "chats")
    file = folder / "1" / "probing_questions" / "probing_questions.json"
    file.write_text(json.dumps({"summarization": [{"question": "Sum it up", "answer": "A sprint"}]}))
    with pytest.raises(InputError, match="summarization 0 lacks the field 'ideal_summary'"):
        benchmarks.load(config_of("beam", str(folder)), tokenizer)
    file = folder / "1" / "chat.json"
    file.write_text(json.dumps([{"plan-1": []}]))
    with pytest.raises(InputError, match="batch 1 lacks the field 'turns'"):
        benchmarks.load(config_of("beam", str(folder)), tokenizer)


def test_what_does_not_fit_is_refused(tmp_path, tokenizer):
    path = path_of("locomo", tmp_path)
    refused = {
        "task.facts = 2: conversation .* chunks of 64 tokens; set >= ": dict(task__facts=2, task__chunk_tokens=64),
        "task.chunk_tokens = 512: set <= task.message_tokens": dict(task__chunk_tokens=512),
        "task.parts = 'sad'": dict(task__parts=("sad",)),
        "task.test_path = 'x'": dict(task__test_path="x"),
        "train needs at least one; set task.test_fraction": dict(task__test_fraction=1.0),
    }
    for told, changes in refused.items():
        with pytest.raises(InputError, match=told):
            benchmarks.load(config_of("locomo", path, **changes), tokenizer)


def test_chunks_are_of_one_session_and_begin_with_their_day():
    may, june = datetime.date(2023, 5, 8), datetime.date(2023, 6, 9)
    talk = Conversation("c", (
        Turn("One two three. Four five six.", "Ada", 1, may, "a"),
        Turn("Seven.", "Ben", 1, may, "b"),
        Turn("a b c d e f g h i j k l", "Ben", 2, june, "c"),
    ))  # fmt: skip
    words = lambda text: len(text.split())  # noqa: E731
    whole = chunked(talk, words, 100)
    assert [chunk.text for chunk in whole] == [
        "[Monday, 8 May 2023] Ada: One two three. Four five six.\nBen: Seven.",
        "[Friday, 9 June 2023] Ben: a b c d e f g h i j k l",
    ]
    assert [(chunk.session, set(chunk.names)) for chunk in whole] == [(1, {"a", "b"}), (2, {"c"})]
    small = chunked(talk, words, 9)
    assert [chunk.text.split("] ")[1] for chunk in small] == [
        "Ada: One two three.", "Ada: Four five six.", "Ben: Seven.", "Ben: a b c d", "Ben: e f g h", "Ben: i j k l",
    ]  # fmt: skip
    assert all(chunk.text.startswith("[") and words(chunk.text) <= 9 for chunk in small)


@pytest.mark.parametrize(
    "text, when",
    [
        ("1:56 pm on 8 May, 2023", (2023, 5, 8)), ("2023/05/30 (Tue) 23:40", (2023, 5, 30)),
        ("March-15-2024", (2024, 3, 15)), ("July 4, 2021", (2021, 7, 4)),
    ],
)  # fmt: skip
def test_days(text, when):
    assert day(text, "here") == datetime.date(*when)


@pytest.mark.parametrize("text", ["", "soon", "2023/13/01", "31 April 2023", "8 Maybe 2023"])
def test_what_is_no_day_is_refused(text):
    with pytest.raises(InputError, match="here: .* is no date of the published layout"):
        day(text, "here")


def test_demonstrations_are_written(tmp_path, tokenizer):
    config = config_of("locomo", path_of("locomo", tmp_path))
    source = task_source(config, tokenizer)
    made = conversations.Demonstrator(source, config, "<|im_end|>")
    lines, held = made.tell(1, 0)
    assert lines.stages[2][-1].startswith("<think> I know what to do</think><answer> ") and len(lines.stages[0]) == 2
    assert {text for _, text in held} <= set(source.staged(1).facts + source.staged(1).gold)
    assert np.all([len(stage) for stage in lines.stages])
