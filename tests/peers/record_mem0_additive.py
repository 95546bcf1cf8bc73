"""Records what mem0ai 2.2.1 does with scripted answers, for tests/test_peers.py.

    python3.11 -m venv PEERS/mem0_additive
    PEERS/mem0_additive/bin/pip install mem0ai==2.2.1 qdrant-client==1.20.0 numpy
    cd tests
    PEERS/mem0_additive/bin/python -m peers.record_mem0_additive fixtures/peers/mem0_additive.json

The published class Memory runs as it is, on its default kind of store (Qdrant inside the process, in memory). Only its
model and its embedder are replaced. Neither spaCy nor fastembed may be there, so that it ranks by plain cosine, as it
does without a word wherever they are not installed. Nothing of its prompts is kept but what they show of messages and
memories.
"""

import importlib.util
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(MEM0_TELEMETRY="False", MEM0_DIR=tempfile.mkdtemp(prefix="mem0-"), OPENAI_API_KEY="unused")

import mem0
from mem0 import Memory
from peers.embedding import DIM, embed
from peers.scripted import Numbers, ScriptedModel, said, write
from qdrant_client import QdrantClient

Step = dict[str, Any]


def told(user: str | None, text: str, memory: Any, reply: str = "Noted.", **scope: str) -> Step:
    """A message with its reply. A list `memory` is put into the role's form; anything else is the answer itself."""
    messages = [{"role": "user", "content": text}] + ([{"role": "assistant", "content": reply}] if reply else [])
    memory = {"memory": memory} if isinstance(memory, list) else memory
    scope = ({"user": user} if user else {}) | scope
    return scope | {"messages": messages, "answers": {"extract": said(memory)}}


def asked(user: str | None, query: str, limit: int = 20, **other: Any) -> Step:
    return ({"user": user} if user else {}) | {"query": query, "limit": limit, **other}


def facts(*texts: str, about: str = "user", links: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    linked = {"linked_memory_ids": [f"@{text}" for text in links]} if links else {}
    return [{"id": str(n), "text": text, "attributed_to": about, **linked} for n, text in enumerate(texts)]


CHANGES = [  # nothing is ever changed or deleted: what changes, contradicts or takes back stands beside what was
    told("ana", "Hi, I am Ana and I live in Oslo.", facts("User's name is Ana", "Ana lives in Oslo")),
    told("ben", "Hello, Ben here. I live in Bergen with my dog Rex.",
         facts("User's name is Ben", "Ben lives in Bergen with his dog Rex")),
    told("ana", "Nice weather today, isn't it?", [], reply="It is."),
    told("ana", "I moved from Oslo to Lisbon last month.",
         facts("Ana moved from Oslo to Lisbon in April", links=("Ana lives in Oslo",))),
    asked("ana", "Where does Ana live now?"),
    asked("ben", "Where does Ana live now?"),
    told("ana", "I love cheese pizza and I play the violin. Where can I take lessons?",
         facts("Ana loves cheese pizza", "Ana plays the violin")
         + facts("Ana was told of violin lessons with Mister Holm", about="assistant"),
         reply="Mister Holm gives lessons."),
    told("ana", "Actually I dislike cheese pizza now.",
         facts("Ana dislikes cheese pizza", links=("Ana loves cheese pizza",))),
    told("ana", "As I said, I play the violin.", facts("Ana plays the violin")),
    told("ana", "Again: I play the violin, I do.", facts("Ana plays her violin", "Ana does play the violin")),
    told("ben", "I play the violin as well.", facts("Ana plays the violin")),
    told("ben", "I have a meeting with Carla on Friday at noon.", facts("Ben meets Carla on Friday at noon")),
    told("ben", "The meeting with Carla is off, forget it.",
         facts("Ben's meeting with Carla on Friday is cancelled", links=("Ben meets Carla on Friday at noon",))),
    told("ana", "My sister Eva lives in Porto.",
         facts("Ana's sister Eva lives in Porto", "Ana's sister Eva lives in Porto")),
    asked("ana", "Does Ana like cheese pizza?", limit=3),
    asked("ana", "violin", threshold=0.3),
    asked("ana", "violin", threshold=0.0),
    asked("ben", "  meeting with Carla "),
    asked("carla", "anything"),
]  # fmt: skip

TRIPS = [f"Ana visited {city} in {month}" for city, month in zip(
    ["Rome", "Paris", "Berlin", "Madrid", "Athens", "Vienna", "Prague", "Turin", "Ghent", "Basel", "Lyon", "Crete"],
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
     "December"], strict=True)]  # fmt: skip

CROWDED = [  # more memories than are shown, more messages than are kept, long ones, odd numbers of them
    told("ana", "I travelled a lot.", facts(*TRIPS[:4])),
    told("ana", "And more.", facts(*TRIPS[4:8]), reply=""),
    told("ana", "And then some more. " + "It was a long year with many trains. " * 12, facts(*TRIPS[8:])),
    told("ana", "I keep bees.", facts("Ana keeps bees"), reply=""),
    told("ana", "Bees need flowers.", [], reply="They do, " + "and water, " * 40 + "too."),
    told("ana", "I grow tomatoes on the roof.", facts("Ana grows tomatoes on the roof")),
    told("ana", "In Rome I bought honey.", facts("Ana bought honey in Rome", links=(TRIPS[0],)), reply=""),
    told("ana", "My bees are well.", facts("Ana's bees are well", "Ana keeps bees", links=("Ana keeps bees",))),
    told("ana", "Tomatoes too.", facts("Ana's tomatoes are well")),
    told("ben", "I was in Rome.", facts("Ben visited Rome")),
    told("ana", "I sing.", facts("Ana sings")),
    # The same text again, while the ten that are near the message do not hold it: it is stored a second time. Nothing
    # is written after this, since the order of equal scores is not defined.
    told("ana", "Flowers need water, too.", facts("Ana keeps bees", "Ana grows tomatoes on the roof", *TRIPS[:12])),
    asked("ana", "bees", limit=4),
    asked("ana", "honey in Rome", limit=2),
    asked("ana", "visited"),
]  # fmt: skip

INVALID = [  # answers as small models give them
    told("ana", "I live in Oslo.", '```json\n{"memory": [{"id": "0", "text": "Ana lives in Oslo"}]}\n```'),
    told("ana", "I sing.", "There is nothing to store here."),
    told("ana", "I sing.", 'Here: {"memory": [{"id": "0", "text": "Ana sings", "attributed_to": "user"}]} Ok?'),
    told("ana", "I sing.", '<think>Is {this} new?</think> No: {"memory": [{"text": "Ana sings in Oslo"}]} Done.'),
    told("ana", "I sing.", ""),
    told("ana", "I sing.", {"facts": ["Ana sings"]}),
    told("ana", "I sing.", {"memory": None}),
    told("ana", "I sing.", '[{"id": "0", "text": "Ana sings loudly"}]'),
    told("ana", "I sing.", '{"memory": [{"id": "0", "text": "Ana sings'),
    told("ana", "I swim.",
         [{"id": "0"}, {"id": "0", "text": ""}, {"text": "Ana swims"}, {"text": "Ana swims", "id": "7"},
          {"id": 1, "text": "Ana dives", "attributed_to": ""}, {"id": "2", "text": 12},
          {"text": "Ana rows", "event": "DELETE", "attributed_to": "nobody"}]),
    # Links are dropped, whatever they name.
    told("ana", "I climb.", [{"id": "0", "text": "Ana climbs", "linked_memory_ids": ["@Ana swims", "99", 3]}]),
    # One entry that is no object ends the call: nothing is stored, and the messages are not kept either.
    told("ana", "I ski.", {"memory": [{"id": "0", "text": "Ana skis"}, "Ana skis in winter"]}),
    told("ana", "I ski.", {"memory": ["Ana skis"]}),
    told("ana", "I ski.", {"memory": {"id": "0", "text": "Ana skis"}}),
    told("ana", "I ski.", {"memory": "Ana skis"}),
    told("ana", "I ski.", {"memory": 1}),
    told("ana", "I paint.", '{"memory": [{"id": "0", "text": "Ana paints\tin oil"}]}'),
    told("ana", "Good bye.", []),
    asked("ana", "What does Ana do?"),
]  # fmt: skip

SESSIONS = [  # messages are kept by exactly the given scopes, memories found by them
    told("ana", "I plan a trip to Rome.", facts("Ana plans a trip to Rome"), session="monday"),
    told("ana", "The trip is in May.", facts("Ana's trip to Rome is in May"), session="monday"),
    told("ana", "I plan a trip by train.", facts("Ana plans a trip to Rome by train"), session="tuesday"),
    told("ana", "I like window seats.", facts("Ana likes window seats")),
    told("ana", "The trip starts early.", facts("Ana's trip starts early"), session="tuesday"),
    told("ana", "What can you do?", facts("The guide can book trains", about="assistant"), reply="I can book trains.",
         agent="guide"),
    told(None, "Speak slowly.", facts("Agent was told to speak slowly"), agent="guide"),
    told("ana", "There is no trip to Rome.", facts("Ana has no trip to Rome", "Ana plans a trip to Rome")),
    asked("ana", "trip to Rome"),
    asked("ana", "trip to Rome", session="monday"),
    asked("ana", "trip to Rome", session="tuesday"),
    asked(None, "trains for the agent", agent="guide"),
]  # fmt: skip

HISTORIES = {"changes": CHANGES, "crowded": CROWDED, "invalid": INVALID, "sessions": SESSIONS}


def read(messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
    """What the one prompt showed beside its fixed instruction; what it could show and never does is empty."""
    parts = re.split(r"(?:^|\n\n)## ([^\n]*)\n", messages[1]["content"].removesuffix("\n\n# Output:"))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert sections.pop("Summary") == "" and sections.pop("Recently Extracted Memories") == "[]"
    assert sections.pop("Observation Date") == sections.pop("Current Date")  # both are today
    about = "agent" if "The primary entity is an AI agent" in messages[0]["content"] else "user"
    shown = {
        "about": about,
        "last": sections.pop("Last k Messages"),
        "listed": json.loads(sections.pop("Existing Memories")),
        "shown": sections.pop("New Messages"),
    }
    assert not sections
    return "extract", shown


class Embedder:
    config = type("Config", (), {"embedding_dims": DIM})

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return embed(text).tolist()

    def embed_batch(self, texts: list[str], memory_action: str = "add") -> list[list[float]]:
        return [self.embed(text) for text in texts]


def fresh() -> tuple[Memory, ScriptedModel]:
    where = os.environ["MEM0_DIR"]
    store = {"collection_name": "m", "embedding_model_dims": DIM, "client": QdrantClient(":memory:")}
    memory = Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": store},
            "llm": {"provider": "openai", "config": {"model": "scripted"}},
            "embedder": {"provider": "openai", "config": {"embedding_dims": DIM}},
            "history_db_path": tempfile.mkdtemp(dir=where) + "/history.db",
        }
    )
    model = ScriptedModel(read)
    memory.embedding_model = Embedder()
    memory.llm = type("Model", (), {"generate_response": lambda self, messages, **_: model(messages)})()
    return memory, model


def scope(step: Step) -> dict[str, str]:
    named = {"user": "user_id", "session": "run_id", "agent": "agent_id"}
    return {named[key]: step[key] for key in named if key in step}


def play(script: list[Step]) -> list[Step]:
    memory, model = fresh()
    numbers, searches = Numbers(), []
    search, insert = memory.vector_store.search, memory.vector_store.insert

    def searched(query: str, vectors: list[float], top_k: int, filters: dict[str, str]) -> list[Any]:
        hits = search(query=query, vectors=vectors, top_k=top_k, filters=filters)
        found = [[numbers[hit.id], round(float(hit.score), 6)] for hit in hits]
        searches.append({"query": query, "limit": top_k, "hits": found})
        return hits

    def inserted(vectors: list[list[float]], ids: list[str], payloads: list[dict[str, Any]]) -> None:
        insert(vectors=vectors, ids=ids, payloads=payloads)
        for memory_id in ids:
            numbers[memory_id]

    memory.vector_store.search, memory.vector_store.insert = searched, inserted
    record = []
    for step in script:
        searches.clear()
        if "query" in step:
            extra = {"threshold": step["threshold"]} if "threshold" in step else {}
            found = memory.search(step["query"], top_k=step["limit"], filters=scope(step), **extra)["results"]
            hits = [{"memory": numbers[hit["id"]], "text": hit["memory"], "score": round(hit["score"], 6)}
                    for hit in found]  # fmt: skip
            # Texts that are stored twice tie, and numpy's sort puts them in any order: here the oldest comes first.
            record.append(step | {"hits": sorted(hits, key=lambda hit: (-hit["score"], hit["memory"]))})
            continue
        model.next(step["answers"])
        returned, error = [], None
        try:
            returned = memory.add(step["messages"], **scope(step))["results"]
        except (AttributeError, TypeError) as reason:
            error = type(reason).__name__
        [extract] = model.calls
        del extract["role"]
        payloads = {numbers[point.id]: point.payload for point in memory.vector_store.client.scroll("m", limit=1000)[0]}
        rows = [{"memory": n, "text": payload["data"], "user": payload.get("user_id"), "session": payload.get("run_id"),
                 "agent": payload.get("agent_id"), "about": payload.get("attributed_to")}
                for n, payload in sorted(payloads.items())]  # fmt: skip
        given = {key: step[key] for key in ("user", "session", "agent", "messages") if key in step}
        record.append(given | {
            "searches": list(searches),
            "extract": extract,
            "error": error,
            "returned": [{**item, "id": numbers[item["id"]]} for item in returned],
            "store": rows,
        })  # fmt: skip
    return record


if __name__ == "__main__":
    for package in ("spacy", "fastembed"):
        if importlib.util.find_spec(package):
            sys.exit(f"error: {package} is installed; mem0 would rank with it")
    found = [{"name": name, "steps": play(script)} for name, script in HISTORIES.items()]
    write(Path(sys.argv[1]), f"mem0ai {mem0.__version__}", found)
