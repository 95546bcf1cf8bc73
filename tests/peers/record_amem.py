"""Records what A-Mem (github.com/WujiangXu/A-mem at d81fb22) does with scripted answers, for tests/test_peers.py.

    python3.11 -m venv PEERS/amem
    PEERS/amem/bin/pip install numpy scikit-learn
    git clone https://github.com/WujiangXu/A-mem PEERS/amem/source
    git -C PEERS/amem/source checkout d81fb22
    cd tests
    PEERS/amem/bin/python -m peers.record_amem fixtures/peers/amem.json

The published AgenticMemorySystem and the advancedMemAgent of its evaluation run as they are. Only the model and the
embedder are replaced, and what the two files import and do not use here. Notes are numbered by their places, from 0.
"""

import ast
import contextlib
import io
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from peers.embedding import embed
from peers.scripted import ScriptedModel, said, write

Step = dict[str, Any]
SOURCE = Path(sys.prefix) / "source"


class Sentences:
    """Stands for SentenceTransformer."""

    def __init__(self, name: str):
        pass

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack([embed(text) for text in texts])


def import_published() -> tuple[Any, Any]:
    anything = type("Anything", (types.ModuleType,), {"__getattr__": lambda self, name: None})
    unused = "rank_bm25 transformers nltk.tokenize litellm requests openai load_dataset utils tqdm".split()
    for name in (*unused, "sentence_transformers", "sentence_transformers.util", "nltk"):
        sys.modules[name] = anything(name)
    sys.modules["sentence_transformers"].SentenceTransformer = Sentences
    sys.modules["nltk"].data = types.SimpleNamespace(find=lambda name: None)
    sys.path.insert(0, str(SOURCE))
    import memory_layer
    import test_advanced

    return memory_layer, test_advanced


def told(speaker: str, text: str, time: str, keywords: Any, context=None, tags=None, evolve: Any = None) -> Step:
    """A turn. `keywords` alone is the whole answer of the analysis; without `evolve`, nothing evolves."""
    note = {"keywords": keywords, "context": context, "tags": tags} if context is not None else keywords
    evolve = decision() if evolve is None else evolve
    return {
        "text": f"Speaker {speaker}says : {text}",
        "time": time,
        "answers": {"analyze": said(note), "evolve": evolve if callable(evolve) else said(evolve)},
    }


def asked(question: str, keywords: Any, k: int = 10) -> Step:
    keywords = keywords if isinstance(keywords, dict) else said(keywords)
    return {"question": question, "k": k, "answers": {"query": said(keywords), "answer": said({"answer": "unknown"})}}


def decision(evolves: Any = False, actions=(), links=(), tags=(), contexts=(), tag_lists=()) -> dict[str, Any]:
    return {
        "should_evolve": evolves,
        "actions": list(actions),
        "suggested_connections": list(links),
        "tags_to_update": list(tags),
        "new_context_neighborhood": list(contexts),
        "new_tags_neighborhood": list(tag_lists),
    }


def grow(links: tuple[str, ...] = (), tags: Any = (), **changed: tuple[str, list[str]]):
    """Connects to the neighbours that contain a word, and gives neighbours that contain a word new context and tags."""

    def answer(shown: dict[str, Any]) -> dict[str, Any]:
        listed = shown["listed"]
        found = [item["id"] for word in links for item in listed if word in item["text"]]
        assert len(found) == len(links), (links, listed)
        new = [next((changed[word] for word in changed if word in item["text"]), (item["context"], item["tags"]))
               for item in listed]  # fmt: skip
        assert all(any(word in item["text"] for item in listed) for word in changed), (changed, listed)
        actions = ["strengthen"] * bool(links) + ["update_neighbor"] * bool(changed)
        return decision(bool(actions), actions, found, tags, [context for context, _ in new], [tag for _, tag in new])

    return answer


MONDAY, FRIDAY, JUNE = "1:56 pm on 8 May, 2023", "10:05 am on 12 May, 2023", "6:30 pm on 3 June, 2023"

EVOLUTION = [
    asked("Who is there?", {"keywords": "people"}),
    told("Ana", "I live in Oslo and I work as a nurse.", MONDAY,
         ["Oslo", "nurse", "job"], "Ana tells where she lives and works.", ["personal", "work", "home"]),
    told("Ben", "I live in Bergen with my dog Rex.", MONDAY,
         ["Bergen", "dog", "Rex"], "Ben tells about his home and his dog.", ["personal", "pets", "home"],
         grow(("Oslo",), ["personal", "pets", "cities"])),
    told("Ana", "I play the violin since I was six.", MONDAY,
         ["violin", "music", "childhood"], "Ana plays an instrument.", ["hobby", "music", "personal"]),
    told("Ben", "Rex eats only fish.", MONDAY,
         ["fish", "dog food", "Rex"], "Ben describes what his dog eats.", ["pets", "food", "habit"],
         grow(("Bergen",), ["pets", "food"],
              Bergen=("Ben lives in Bergen with his dog Rex, who eats fish.", ["pets", "home"]))),
    asked("What does Rex eat?", {"keywords": "Rex, dog, food"}),
    asked("What does Rex eat?", {"keywords": "Rex, dog, food"}, k=1),
    told("Ana", "I moved to Lisbon last week.", FRIDAY,
         ["Lisbon", "move", "city"], "Ana moved to another city.", ["personal", "home", "travel"],
         grow(("Oslo",), ["home", "move"], Oslo=("Ana lived in Oslo before she moved to Lisbon.", ["past", "home"]))),
    told("Ben", "Nice! Lisbon is warm.", FRIDAY,
         ["warm", "Lisbon", "weather"], "Ben likes a city.", ["smalltalk", "city", "weather"], decision(True)),
    told("Ana", "I have violin lessons on Tuesdays with Mister Holm.", FRIDAY,
         ["violin lessons", "Tuesdays", "Mister Holm"], "Ana takes music lessons.", ["music", "hobby", "schedule"],
         grow(("violin since",), ["music", "lessons"],
              violin=("Ana plays the violin and takes lessons.", ["music", "lessons"]))),
    told("Ben", "Rex is ill, so he eats rice now.", FRIDAY,
         ["Rex", "ill", "rice"], "Ben's dog is ill.", ["pets", "health", "food"],
         grow(("fish", "Bergen"), ["pets", "health"], fish=("Rex ate only fish before he was ill.", ["pets", "past"]))),
    told("Ana", "My sister Eva lives in Porto.", JUNE,
         ["Eva", "sister", "Porto"], "Ana speaks about her family.", ["family", "city", "personal"],
         grow(("Lisbon last",), ["family", "home"])),
    told("Ana", "I stopped my violin lessons.", JUNE,
         ["violin lessons", "stop"], "Ana ended her lessons.", ["music", "change", "hobby"],
         grow(("Tuesdays", "since"), ["music", "past"], Tuesdays=("Ana took lessons until June.", ["music", "past"]))),
    told("Ben", "Rex is well again.", JUNE,
         ["Rex", "well", "health"], "Ben's dog recovered.", ["pets", "health", "news"],
         grow(("ill", "Bergen"), ["pets", "news"])),
    asked("Where does Ana live now?", {"keywords": "Ana, home, Lisbon"}),
    asked("Where does Ana live now?", {"keywords": "Ana, home, Lisbon"}, k=3),
    asked("Which instrument does Ana play?", 'cosmos violin cosmos music'),
    asked("How is the dog?", '{"words": "dog"}', k=2),
    asked("How is the dog?", {"keywords": "dog health cosmos Rex cosmos ill"}, k=2),
]  # fmt: skip

CITIES = ["Rome", "Paris", "Berlin", "Madrid", "Athens", "Vienna", "Prague"]
MONTHS = ["March", "April", "May", "June", "July", "August", "September"]

REBUILD = [  # every third evolution embeds all notes anew, in another form
    *(told("Ana", f"I visited {city} in {month}.", f"9:00 am on {day + 1} July, 2023", [city, month, "trip"],
           f"Ana was in {city}.", ["travel", "city", month],
           grow((last,), ["travel", city], **{last: (f"Ana saw {last} before {city}.", ["past"])}) if last else None)
      for day, (last, city, month) in enumerate(zip([None, *CITIES], CITIES, MONTHS, strict=False))),
    asked("What came before Berlin?", {"keywords": "Berlin, trip"}, k=3),
    told("Ana", "Best of all was the food in Rome.", JUNE,
         ["food", "Rome", "best"], "Ana liked the food.", ["travel", "food", "taste"],
         decision(True, ["update_neighbor"], contexts=["Ana liked it here."], tag_lists=[["liked"], ["seen"]])),
    told("Ana", "I will go back to Rome.", JUNE,
         ["Rome", "return", "plan"], "Ana plans a trip.", ["travel", "plan", "city"]),
    told("Ana", "And Paris again.", JUNE, ["Paris", "again"], "Ana plans another trip.", ["travel", "plan", "city"],
         grow(("back",), ["plan"])),
    told("Ana", "Not Prague.", JUNE, ["Prague", "not"], "Ana does not go back.", ["travel", "plan", "city"],
         grow(("Prague",), ["plan"])),
    asked("Where does Ana go back to?", {"keywords": "plan, back, again"}, k=4),
]  # fmt: skip

LINKS = [  # many links: one counter for all hits ends the links after k, and then shows one more for each hit
    *(told("Ben", f"Part {n} of my model ship is the {part}.", f"{n}:00 pm on 1 May, 2023", [part, "ship", "model"],
           f"Ben builds the {part}.", ["hobby", "ship", part],
           grow(tuple(f"Part {m} " for m in range(max(1, n - 4), n)), ["hobby", part]))
      for n, part in enumerate(["hull", "mast", "sail", "rudder", "deck", "keel"], 1)),
    *(asked("Which parts does the ship have?", {"keywords": "ship, hull, keel"}, k) for k in (1, 2, 3, 4, 10)),
    asked("And the sail?", {"keywords": "sail"}, 2),
]  # fmt: skip

INVALID = [
    told("Ana", "I live in Oslo.", MONDAY, "No analysis today."),
    told("Ana", "I drive a bus.", MONDAY,
         'Here: {"keywords": ["bus", "job"], "context": "Ana drives.", "tags": ["work"]} Done.',
         evolve='So: {"should_evolve": true, "actions": ["strengthen"], "suggested_connections": [0], '
                '"tags_to_update": ["work", "new"], "new_context_neighborhood": [], "new_tags_neighborhood": []} Ok.'),
    told("Ana", "I sing.", MONDAY, {"keywords": ["sing"], "context": "Ana sings."}),
    told("Ana", "I sing.", MONDAY, '["sing"]'),
    told("Ana", "I sing in a choir.", MONDAY, {"keywords": [], "context": "", "tags": []}, evolve="Nothing evolves."),
    told("Ana", "I swim.", MONDAY,
         {"keywords": "swim, water", "context": ["Ana", "swims."], "tags": ["sport"], "more": 1},
         evolve=decision("False", ["strengthen"], tags=["text is true"])),
    told("Ana", "I ski.", FRIDAY, ["ski", "snow"], "Ana skis.", ["sport"], {"actions": []}),
    told("Ana", "I ski.", FRIDAY, ["ski", "snow"], "Ana skis.", ["sport"], []),
    told("Ana", "I ski in winter.", FRIDAY, ["ski", "snow"], "Ana skis.", ["sport"],
         decision(True, ["merge", "strengthen", "strengthen"], [0, 2, 2], ["sport", "winter"])),
    # Fewer contexts than neighbours, more lists of tags than neighbours, an action given twice.
    told("Ana", "I run.", FRIDAY, ["run"], "Ana runs.", ["sport"],
         decision(True, ["update_neighbor", "update_neighbor"], contexts=["First.", "Second."],
                  tag_lists=[[f"n{n}"] for n in range(8)])),
    # Neighbours change although the answer then turns out to lack a field, and the note is lost.
    told("Ana", "I walk.", FRIDAY, ["walk"], "Ana walks.", ["sport"],
         {"should_evolve": True, "actions": ["update_neighbor", "strengthen"], "suggested_connections": [],
          "new_context_neighborhood": ["Changed."], "new_tags_neighborhood": [["changed"]]}),
    asked("What does she do?", {"keywords": "sport"}, k=3),
    # A link to a note that only comes later, and one that counts from the end.
    told("Ana", "I climb.", FRIDAY, ["climb"], "Ana climbs.", ["sport"],
         decision(True, ["strengthen"], [7, -1], ["sport"])),
    told("Ana", "I row.", JUNE, ["row"], "Ana rows.", ["sport"]),
    asked("Does she climb?", {"keywords": "climb"}, k=1),
    asked("Does she climb?", {"keywords": "climb"}, k=4),
    # A link to nowhere: questions that come across it fail.
    told("Ana", "I dance.", JUNE, ["dance"], "Ana dances.", ["hobby"], decision(True, ["strengthen"], [99], ["hobby"])),
    asked("Does she dance?", {"keywords": "dance"}, k=2),
    asked("Does she live here?", {"keywords": "live"}, k=1),
    asked("", ""),
    # Keywords that are numbers: the note is stored and not embedded, and what comes later is found under its place.
    told("Ana", "I count.", JUNE, [3, 4], "Ana counts.", ["hobby"]),
    told("Ana", "I juggle.", JUNE, ["juggle"], "Ana juggles.", ["hobby"]),
    asked("Does she juggle?", {"keywords": "juggle"}, k=1),
]  # fmt: skip

HISTORIES = {"evolution": (EVOLUTION, 100), "rebuild": (REBUILD, 3), "links": (LINKS, 100), "invalid": (INVALID, 100)}


def read_list(text: str) -> Any:
    return ast.literal_eval(text) if text.startswith("[") else text


def read_neighbour(line: str) -> dict[str, Any]:
    parts = re.fullmatch(
        r"memory index:(\d+)\t talk start time:(.*?)\t memory content: (.*?)\t memory context: (.*?)"
        r"\t memory keywords: (.*?)\t memory tags: (.*)",
        line,
    )
    index, time, text, context, keywords, tags = parts.groups()
    return {"id": int(index), "time": time, "text": text, "context": context, "keywords": read_list(keywords),
            "tags": read_list(tags)}  # fmt: skip


def read(messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
    prompt = messages[0]["content"]
    if "Content for analysis:" in prompt:
        return "analyze", {"shown": prompt.split("Content for analysis:\n            ")[1], "listed": []}
    if "The nearest neighbors memories:" in prompt:
        lines = [line.strip(" ") for line in prompt.split("\n")]
        start = lines.index("The new memory context:")
        context, text, keywords = lines[start + 1 : start + 4]
        listed = [read_neighbour(line) for line in lines if line.startswith("memory index:")]
        number = re.search(r"The number of neighbors is (\d+)\.", prompt)[1]
        assert int(number) == len(listed)
        return "evolve", {"context": context, "text": text.removeprefix("content: "),
                          "keywords": read_list(keywords.removeprefix("keywords: ")), "listed": listed}  # fmt: skip
    if "generate several keywords" in prompt:
        return "query", {"question": re.search("Question: (.*)", prompt)[1], "listed": []}
    return "answer", {"listed": []}


def play(script: list[Step], threshold: int, memory_layer: Any, test_advanced: Any) -> list[Step]:
    model = ScriptedModel(read)
    controller = types.SimpleNamespace()
    controller.llm = types.SimpleNamespace(get_completion=lambda prompt, **_: model([{"content": prompt}]))
    memory_layer.LLMController = test_advanced.LLMController = lambda *_, **__: controller
    agent = test_advanced.advancedMemAgent("scripted", "openai", 10, 0.5)
    system, searches, scores = agent.memory_system, [], []
    system.evo_threshold = threshold
    cosine, search = memory_layer.cosine_similarity, memory_layer.SimpleEmbeddingRetriever.search

    def compared(*args: Any) -> np.ndarray:
        scores[:] = (found := cosine(*args))[0]
        return found

    def searched(self: Any, query: str, k: int = 5) -> np.ndarray:
        found = search(self, query, k)
        hits = [[int(index), round(float(scores[index]), 6)] for index in found]
        searches.append({"query": query, "limit": k, "hits": hits})
        return found

    memory_layer.cosine_similarity, memory_layer.SimpleEmbeddingRetriever.search = compared, searched
    record = []
    for step in script:
        model.next(step["answers"])
        searches.clear()
        given = {key: value for key, value in step.items() if key != "answers"}
        error = None
        try:
            if "question" in step:
                agent.retrieve_k = step["k"]
                _, _, context = agent.answer_question(step["question"], 4, "")
            else:
                agent.add_memory(step["text"], step["time"])
        except (KeyError, TypeError, IndexError, AttributeError) as reason:
            error = type(reason).__name__
        calls = {call.pop("role"): call for call in model.calls}
        notes = list(system.memories.values())
        if "question" in step:
            del calls["query"]["listed"]
            keys = [f"talk start time:{note.timestamp}memory content: {note.content}memory" for note in notes]
            lines = context.splitlines() if notes and not error else []
            shown = [[n for n, key in enumerate(keys) if line.startswith(key)] for line in lines]
            assert all(len(found) == 1 for found in shown)
            record.append(given | {"query": calls["query"], "searches": list(searches), "error": error,
                                   "shown": [found[0] for found in shown]})  # fmt: skip
            continue
        del calls["analyze"]["listed"]
        record.append(given | {
            "analyze": calls["analyze"],
            "searches": list(searches),
            "evolve": calls.get("evolve"),
            "error": error,
            "evolutions": system.evo_cnt,
            "store": [{"text": note.content, "time": note.timestamp, "context": note.context, "keywords": note.keywords,
                       "tags": note.tags, "links": note.links} for note in notes],
            "embedded": list(system.retriever.corpus),
        })  # fmt: skip
    memory_layer.cosine_similarity, memory_layer.SimpleEmbeddingRetriever.search = cosine, search
    return record


if __name__ == "__main__":
    published = import_published()
    with contextlib.redirect_stdout(io.StringIO()):
        found = [
            {"name": name, "rebuild_every": every, "steps": play(script, every, *published)}
            for name, (script, every) in HISTORIES.items()
        ]
    write(Path(sys.argv[1]), "github.com/WujiangXu/A-mem d81fb22", found)
