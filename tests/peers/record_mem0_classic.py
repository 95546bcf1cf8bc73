"""Records what mem0ai 1.0.11 does with scripted answers, for tests/test_peers.py.

    python3.11 -m venv PEERS/mem0_classic
    PEERS/mem0_classic/bin/pip install mem0ai==1.0.11 qdrant-client==1.20.0 numpy
    cd tests
    PEERS/mem0_classic/bin/python -m peers.record_mem0_classic fixtures/peers/mem0_classic.json

The published class Memory runs as it is, on its default kind of store (Qdrant inside the process, in memory). Only its
model and its embedder are replaced. Nothing of its prompts is kept but what they show of messages and memories.
"""

import ast
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


def told(user: str, text: str, facts: Any, memory: Any = None, reply: str = "Noted.", **scope: str) -> Step:
    """A message with its reply. `facts`: what the extraction answers; `memory`: what the decision answers.

    Lists are put into the form that the role asks for; anything else is the answer itself.
    """
    messages = [{"role": "user", "content": text}] + ([{"role": "assistant", "content": reply}] if reply else [])
    facts = {"facts": facts} if isinstance(facts, list) else facts
    memory = {"memory": memory} if isinstance(memory, list) else memory
    return {"user": user, **scope, "messages": messages, "answers": {"extract": said(facts), "decide": said(memory)}}


def asked(user: str, query: str, limit: int = 100, **other: Any) -> Step:
    return {"user": user, "query": query, "limit": limit, **other}


def add(text: str, id: str = "new") -> dict[str, str]:
    return {"id": id, "text": text, "event": "ADD"}


def update(old: str, new: str) -> dict[str, str]:
    return {"id": f"@{old}", "text": new, "event": "UPDATE", "old_memory": old}


def delete(text: str) -> dict[str, str]:
    return {"id": f"@{text}", "text": text, "event": "DELETE"}


def keep(text: str) -> dict[str, str]:
    return {"id": f"@{text}", "text": text, "event": "NONE"}


CHANGES = [  # facts of two people that are added, changed, contradicted, repeated and taken back
    told("ana", "Hi, I am Ana and I live in Oslo.", ["Name is Ana", "Lives in Oslo"],
         [add("Name is Ana", "0"), add("Lives in Oslo", "1")]),
    told("ben", "Hello, Ben here. I live in Bergen with my dog Rex.",
         ["Name is Ben", "Lives in Bergen", "Has a dog named Rex"],
         [add("Name is Ben"), add("Lives in Bergen"), add("Has a dog named Rex")]),
    told("ana", "Nice weather today, isn't it?", [], reply="It is."),
    told("ana", "I moved from Oslo to Lisbon last month.", ["Moved from Oslo to Lisbon"],
         [keep("Name is Ana"), update("Lives in Oslo", "Lives in Lisbon")]),
    asked("ana", "Where does Ana live now?"),
    asked("ben", "Where does Ana live now?"),
    told("ana", "I love cheese pizza and I play the violin.", ["Loves cheese pizza", "Plays the violin"],
         [keep("Name is Ana"), keep("Lives in Lisbon"), add("Loves cheese pizza"), add("Plays the violin")]),
    told("ben", "Rex eats only fish.", ["Dog Rex eats only fish"],
         [update("Has a dog named Rex", "Has a dog named Rex that eats only fish")]),
    # The trap of the published decision: what contradicts deletes, and the new fact is stored nowhere.
    told("ana", "Actually I dislike cheese pizza now.", ["Dislikes cheese pizza"], [delete("Loves cheese pizza")]),
    asked("ana", "cheese pizza"),
    told("ana", "As I said, I play the violin.", ["Plays the violin"], [keep("Plays the violin")]),
    told("ben", "I have a meeting with Carla on Friday at noon.", ["Has a meeting with Carla on Friday at noon"],
         [add("Has a meeting with Carla on Friday at noon")]),
    told("ben", "The meeting with Carla is off, forget it.", ["Meeting with Carla is cancelled"],
         [delete("Has a meeting with Carla on Friday at noon")]),
    told("ana", "I take lessons for the violin each Tuesday with Mister Holm.",
         ["Takes lessons for the violin each Tuesday", "Violin teacher is Mister Holm"],
         [update("Plays the violin", "Plays the violin with lessons each Tuesday"),
          add("Violin teacher is Mister Holm")]),
    told("ana", "My sister Eva lives in Lisbon too.", ["Sister Eva lives in Lisbon"],
         [add("Sister Eva lives in Lisbon")]),
    # One answer of several kinds, in an order of its own.
    told("ana", "Eva moved to Porto, and I stopped my lessons.",
         ["Sister Eva moved to Porto", "Stopped lessons for the violin"],
         [add("Stopped lessons for the violin"), delete("Plays the violin with lessons each Tuesday"),
          keep("Name is Ana"), update("Sister Eva lives in Lisbon", "Sister Eva lives in Porto")]),
    told("ben", "I like tea.", ["Likes tea"], [add("Likes tea")]),
    asked("ana", "Where does sister Eva live?", limit=2),
    asked("ben", "Which food does the dog eat?", limit=3),
    asked("ben", "tea with Carla", threshold=0.15),
    asked("carla", "anything"),
]  # fmt: skip

TRIPS = ["Visited Rome in March", "Visited Paris in April", "Visited Berlin in May", "Visited Madrid in June",
         "Visited Athens in July", "Visited Vienna in August", "Visited Prague in September"]  # fmt: skip

CROWDED = [  # more memories than the five that a fact is shown, several facts a message
    told("ana", "I was in Rome, then in Paris, then in Berlin.", TRIPS[:3], [add(text) for text in TRIPS[:3]]),
    told("ana", "In June I saw Madrid, in July Athens.", TRIPS[3:5], [add(text) for text in TRIPS[3:5]]),
    told("ana", "Then came Vienna and Prague.", TRIPS[5:], [add(text) for text in TRIPS[5:]]),
    told("ana", "I keep bees and I grow tomatoes on the roof.", ["Keeps bees", "Grows tomatoes on the roof"],
         [add("Keeps bees"), add("Grows tomatoes on the roof")]),
    told("ana", "The trip to Rome was in February, not in March.", ["Visited Rome in February"],
         [update("Visited Rome in March", "Visited Rome in February")]),
    told("ana", "The bees live on the roof, and Prague was in October.",
         ["Bees live on the roof", "Visited Prague in October"],
         [update("Keeps bees", "Keeps bees on the roof"),
          update("Visited Prague in September", "Visited Prague in October")]),
    told("ana", "My bees died. In Vienna in August I bought honey.", ["Bees died", "Bought honey in Vienna in August"],
         [delete("Keeps bees on the roof"), add("Bees died"), add("Bought honey in Vienna in August")]),
    told("ana", "The same fact comes twice.", ["Collects stamps", "Collects stamps"], [add("Collects stamps")]),
    told("ana", "The trip of June was to Seville, the one of July to Crete, and Berlin never happened.",
         ["Visited Seville in June", "Visited Crete in July", "Did not visit Berlin in May"],
         [update("Visited Madrid in June", "Visited Seville in June"),
          update("Visited Athens in July", "Visited Crete in July"),
          delete("Visited Berlin in May")]),
    told("ben", "I was in Rome in March as well.", ["Visited Rome in March"], [add("Visited Rome in March")]),
    asked("ana", "What happened in Rome?", limit=5),
    asked("ana", "honey of the bees", limit=4),
    asked("ana", "visited in June", threshold=0.5),
    asked("ben", "What happened in Rome?"),
]  # fmt: skip

INVALID = [  # answers as small models give them
    told("ana", "I live in Oslo and drive a bus.", '```json\n{"facts": ["Lives in Oslo", "Drives a bus"]}\n```',
         '```json\n{"memory": [{"id": "0", "text": "Lives in Oslo", "event": "ADD"},\n'
         '{"id": "1", "text": "Drives a bus", "event": "ADD"}]}\n```'),
    told("ana", "I sing.", "There is nothing to store here."),
    told("ana", "I sing.", 'Here you are: {"facts": ["Sings in a choir"]} Anything else?',
         'Sure! {"memory": [{"id": "5", "text": "Sings in a choir", "event": "ADD"}]} Done.'),
    told("ana", "I sing.", "<think>Is {this} a fact?</think>\n{\"facts\": []}"),
    told("ana", "I sing.", "<think>Is {this} a fact?</think> It is: {\"facts\": [\"Sings\"]}"),
    told("ana", "I sing.", {"fact": ["Sings"]}),
    told("ana", "I sing.", ["Sings"], "I would add it."),
    told("ana", "I sing.", ["Sings"], ""),
    told("ana", "I sing.", ["Sings"], {"memories": [add("Sings")]}),
    told("ana", "I sing.", ["Sings"], {"memory": []}),
    told("ana", "I sing.", ["Sings"], {"memory": None}),
    told("ana", "I sing.", '{"facts": ["Sings"', None),
    told("ana", "I swim.", [{"fact": "Swims on Mondays"}, {"text": "Swims with Kim"}, {"other": "lost"}, 7, ""],
         [add("Swims on Mondays"), add("Swims with Kim"), add("7")]),
    # Unknown ids, ids as numbers, no id, no text, no event, an event of another name, not an object.
    told("ana", "I live in Rome.", ["Lives in Rome"],
         [{"id": "99", "text": "Lives in Rome", "event": "UPDATE"},
          {"id": 0, "text": "Lives in Rome", "event": "UPDATE"},
          {"text": "Lives in Rome", "event": "UPDATE"}, {"id": "99", "text": "Lives in Oslo", "event": "DELETE"},
          {"id": "@Lives in Oslo", "event": "DELETE"}, {"id": "@Lives in Oslo", "text": "", "event": "DELETE"},
          {"id": "@Lives in Oslo", "text": "Lives in Rome"},
          {"id": "@Lives in Oslo", "text": "Lives in Rome", "event": "update"},
          {"id": "@Lives in Oslo", "text": "Lives in Rome", "event": "REPLACE"},
          {"id": "99", "text": "Lives in Oslo", "event": "NONE"},
          {"event": "ADD"}, "ADD", None, {"id": "0", "text": 12, "event": "ADD"}]),
    asked("ana", "Where does she live?"),
    # Delete with any text, twice, then update what is gone; what follows is still applied.
    told("ana", "I drive no bus.", ["Drives no bus"],
         [{"id": "@Drives a bus", "text": "x", "event": "DELETE"},
          {"id": "@Drives a bus", "text": "x", "event": "DELETE"},
          {"id": "@Drives a bus", "text": "Drives a tram", "event": "UPDATE"}, add("Drives a tram")]),
    # An update to the same text, and one id updated twice.
    told("ana", "I live in Oslo, as ever.", ["Lives in Oslo"],
         [update("Lives in Oslo", "Lives in Oslo"), update("Lives in Oslo", "Lives in Oslo for ever"),
          {"id": "@Lives in Oslo", "text": "Lives in Oslo for ever and a day", "event": "UPDATE",
           "old_memory": "never said"}]),
    # A text in place of the list of facts is read letter by letter.
    told("ana", "Ok.", {"facts": "no"}, []),
    # The list of operations without its key; a single operation in place of the list.
    told("ana", "I paint.", ["Paints"], '[{"id": "0", "text": "Paints", "event": "ADD"}]'),
    told("ana", "I paint.", ["Paints"], {"memory": add("Paints")}),
    told("ana", "I paint.", ["Paints\tin oil"], '{"memory": [{"id": "0", "text": "Paints\tin oil", "event": "ADD"}]}'),
    asked("ana", "What does she paint?"),
    # The same text is added although it is there: nothing but the model prevents duplicates. Nothing is
    # written after this, since the order of equal scores is not defined.
    told("ana", "I sing in a choir.", ["Sings in a choir"], [add("Sings in a choir"), add("Sings in a choir")]),
    asked("ana", "What does she sing?"),
]  # fmt: skip

SESSIONS = [  # a session or an agent narrows what is seen: all given scopes must match exactly
    told("ana", "I plan a trip to Rome.", ["Plans a trip to Rome"], [add("Plans a trip to Rome")], session="monday"),
    told("ana", "The trip to Rome is in May.", ["Trip to Rome is in May"],
         [update("Plans a trip to Rome", "Plans a trip to Rome in May")], session="monday"),
    told("ana", "I plan a trip to Rome by train.", ["Plans a trip to Rome by train"],
         [add("Plans a trip to Rome by train")], session="tuesday"),
    told("ana", "The trip to Rome starts early.", ["Trip to Rome starts early"],
         [keep("Plans a trip to Rome by train"), add("Trip to Rome starts early")], session="tuesday"),
    # Without a session all sessions of the user are seen; an update keeps the session that was stored.
    told("ana", "There is no trip to Rome in May.", ["No trip to Rome in May"],
         [delete("Plans a trip to Rome in May"), update("Trip to Rome starts early", "Trip to Rome starts at six"),
          keep("Plans a trip to Rome by train")]),
    told("ana", "I like window seats.", ["Likes window seats"], [add("Likes window seats")]),
    told("ana", "What can you do?", ["Can book trains"], [add("Can book trains")],
         reply="I can book trains.", agent="guide"),
    told("ana", "Do more.", [], reply="", agent="guide"),
    asked("ana", "trip to Rome"),
    asked("ana", "trip to Rome", session="monday"),
    asked("ana", "trip to Rome", session="tuesday"),
    asked("ana", "book a trip", agent="guide"),
]  # fmt: skip

HISTORIES = {"changes": CHANGES, "crowded": CROWDED, "invalid": INVALID, "sessions": SESSIONS}


def read(messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
    """The role of a prompt and what it shows beside the role's fixed instruction."""
    if messages[0]["role"] == "system":
        about = "agent" if messages[0]["content"].startswith("You are an Assistant") else "user"
        return "extract", {"about": about, "shown": messages[1]["content"].removeprefix("Input:\n"), "listed": []}
    blocks = re.findall(r"```\n    (.*)\n    ```", messages[0]["content"])
    listed = ast.literal_eval(blocks[0]) if len(blocks) == 2 else []
    return "decide", {"listed": listed, "facts": ast.literal_eval(blocks[-1])}


class Embedder:
    config = type("Config", (), {"embedding_dims": DIM})

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return embed(text).tolist()


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
    numbers, searches, writes = Numbers(), [], []
    search, history = memory.vector_store.search, memory.db.add_history

    def searched(query: str, vectors: list[float], limit: int, filters: dict[str, str]) -> list[Any]:
        hits = search(query=query, vectors=vectors, limit=limit, filters=filters)
        found = [[numbers[hit.id], round(float(hit.score), 6)] for hit in hits]
        searches.append({"fact": query, "limit": limit, "hits": found})
        return hits

    def written(memory_id: str, old: str | None, new: str | None, event: str, **_: Any) -> None:
        writes.append({"event": event, "memory": numbers[memory_id], "old": old, "new": new})
        history(memory_id, old, new, event, **_)

    memory.vector_store.search, memory.db.add_history = searched, written
    record = []
    for step in script:
        searches.clear(), writes.clear()
        if "query" in step:
            extra = {"threshold": step["threshold"]} if "threshold" in step else {}
            found = memory.search(step["query"], limit=step["limit"], **scope(step), **extra)["results"]
            hits = [{"memory": numbers[hit["id"]], "text": hit["memory"], "score": round(hit["score"], 6)}
                    for hit in found]  # fmt: skip
            # Texts that are stored twice tie, and numpy's sort puts them in any order: here the oldest comes first.
            record.append(step | {"hits": sorted(hits, key=lambda hit: (-hit["score"], hit["memory"]))})
            continue
        model.next(step["answers"])
        returned = memory.add(step["messages"], **scope(step))["results"]
        points = memory.vector_store.client.scroll("m", limit=1000)[0]
        rows = [{"memory": numbers[point.id], "text": point.payload["data"], "user": point.payload["user_id"],
                 "session": point.payload.get("run_id"), "agent": point.payload.get("agent_id")}
                for point in points]  # fmt: skip
        extract, decide = (model.calls + [None])[:2]
        del extract["role"], extract["listed"]
        if decide:
            del decide["role"]
        given = {key: step[key] for key in ("user", "session", "agent", "messages") if key in step}
        record.append(given | {
            "extract": extract,
            "searches": list(searches),
            "decide": decide,
            "writes": list(writes),
            "returned": [{**item, "id": numbers[item["id"]]} for item in returned],
            "store": sorted(rows, key=lambda row: row["memory"]),
        })  # fmt: skip
    return record


if __name__ == "__main__":
    found = [{"name": name, "steps": play(script)} for name, script in HISTORIES.items()]
    write(Path(sys.argv[1]), f"mem0ai {mem0.__version__}", found)
