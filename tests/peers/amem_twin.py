"""Slow twin of A-Mem as its paper evaluates it: github.com/WujiangXu/A-mem at d81fb22, memory_layer.py (classes
AgenticMemorySystem, MemoryNote, SimpleEmbeddingRetriever) and test_advanced.py (class advancedMemAgent).

Every turn becomes a note, with two model calls; nothing is ever deleted, merged or found equal. There are no users: a
conversation has a system of its own, which holds the notes of both speakers. Notes are numbered by their places from 0;
these numbers are what the model is shown and what links hold. The evaluation writes a turn as "Speaker NAMEsays : TEXT"
(no space before "says") with its session's date as its time.

1. *Analyze* (`MemoryNote.analyze_content`). Shown: the text alone. Role instruction, in other words: find the salient
   keywords (at least three, the most important first, no names of speakers, no times), one sentence about topic, points
   and purpose, and at least three broad tags. Answer:
       {"keywords": ["WORD", ...], "context": "SENTENCE", "tags": ["WORD", ...]}
   No JSON: no keywords, no tags, the context "General" (an empty one becomes it too). A context that is a list is
   joined with spaces.
2. *Search* (`SimpleEmbeddingRetriever.search`): the 5 notes whose embedded text is nearest, by cosine, to the new
   note's text alone, however far; none at first.
3. *Evolve* (`process_memory`; called even when there are no notes yet). Shown: the new note's context, text and
   keywords (not its tags or time), of each neighbour, best first, number, time, text, context, keywords and tags (not
   its links), and how many there are. Role instruction, in other words: decide whether the new note should evolve, and
   how: strengthen (which notes to link it to, and its tags then) and update_neighbor (context and tags of every
   neighbour in the order shown, unchanged ones repeated, as many as neighbours). Answer:
       {"should_evolve": true|false, "actions": ["strengthen"|"update_neighbor", ...],
        "suggested_connections": [NUMBER, ...], "tags_to_update": ["WORD", ...],
        "new_context_neighborhood": ["SENTENCE", ...], "new_tags_neighborhood": [["WORD", ...], ...]}
   No JSON: nothing evolves. If it should, each action in turn, one given twice twice:
   - strengthen: the numbers are appended to the new note's links, unchecked: repeated, unlisted, of notes to come,
     negative; its tags are replaced, even by none;
   - update_neighbor: neighbour after neighbour gets new tags and new context, as long as there are lists of tags; where
     there is no context, the old one stays. Links go from the new note only;
   - any other action: nothing.
4. *Store* (`add_note`): the note comes last, embedded as text, context, keywords and tags in one text. A changed
   neighbour is shown as it now is, yet found by what it was. An answer that should evolve counts, with actions or
   without (should_evolve as a text acts, but does not count); each 100th rebuilds (`consolidate_memories`): all notes
   are embedded anew, in another form and with their present context and tags.

How answers are read: from the first brace to the last. A missing field, or JSON that is no object, raises in the
published code and ends the run. Here the call reports the error and the note is lost; neighbours that were changed
before stay changed. Keywords or tags that are no texts raise after the note was stored and before it was embedded:
places and embeddings no longer agree from then on. (The published run asks for answers by a strict JSON schema, which
excludes all of this.)

Reading (`answer_question`): *Query*. Shown: the question. Role instruction, in other words: give several keywords (the
separator is called 'cosmos', the example has commas). Answer: `{"keywords": "WORD, WORD, WORD"}`; anything else is
taken as it stands. This one text is embedded and the k nearest notes are found (10, swept from 10 to 50 a model in the
paper). `find_related_memories_raw` shows each, best first, as time, text, context, keywords and tags, and after it the
notes that it links to, in the order of its links, found already or not. One counter goes over all of them: once k links
were shown, each further hit shows its first link only. A negative link counts from the last note; a link to no note
raises: the call reports the error and shows nothing. *Answer*. Shown: this and the question. Role instruction, in other
words: a short phrase, with words of the notes where possible (in LoCoMo's category 2 a date, in 5 a choice between the
gold answer and that it was not mentioned). Answer: `{"answer": "TEXT"}`, or the text as it stands.

The order of equal scores is not defined in the published code; here the oldest comes first.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

NEIGHBOURS = 5
Embed = Callable[[str], np.ndarray]
Model = Callable[[str, dict[str, Any]], str]
ERRORS = (KeyError, TypeError, IndexError, AttributeError)


def read_json(answer: str) -> Any:
    """Raises json.JSONDecodeError when there is no JSON in the answer."""
    answer = answer.strip()
    if "{" in answer:
        answer = answer[answer.index("{") :]
    if "}" in answer:
        answer = answer[: answer.rindex("}") + 1]
    return json.loads(answer)


def indexed(note: dict[str, Any]) -> str:
    """The text that is embedded when a note is stored."""
    keywords, tags = ", ".join(note["keywords"]), ", ".join(note["tags"])
    return f"content:{note['text']} context:{note['context']} keywords: {keywords} tags: {tags}"


def rebuilt(note: dict[str, Any]) -> str:
    """The text that is embedded when all notes are."""
    return f"{note['text']} , {note['context']} {' '.join(note['keywords'])} {' '.join(note['tags'])}"


class AMem:
    """`model(role, shown)` answers "analyze", "evolve" and "query"; `embed(text)` is `[D]` float32 of unit length."""

    def __init__(self, model: Model, embed: Embed, rebuild_every: int = 100):
        self.model, self.embed, self.rebuild_every = model, embed, rebuild_every
        self.notes: list[dict[str, Any]] = []
        self.embedded: list[str] = []
        self.evolutions = 0

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """(place, score) of the nearest notes, best first."""
        vector = self.embed(query)
        scored = [(n, float(self.embed(text) @ vector)) for n, text in enumerate(self.embedded)]
        return sorted(scored, key=lambda pair: (-round(pair[1], 6), pair[0]))[:k]

    def add(self, text: str, time: str) -> dict[str, Any]:
        """What the call showed and found; `error` names what the published code would raise."""
        record = {"analyze": None, "searches": [], "evolve": None, "error": None}
        try:
            note = self.analyze(text, time, record)
            evolves = self.evolve(note, record)
            self.notes.append(note)
            self.embedded.append(indexed(note))
        except ERRORS as reason:
            return record | {"error": type(reason).__name__}
        if evolves == 1:  # JSON's true
            self.evolutions += 1
            if self.evolutions % self.rebuild_every == 0:
                self.embedded = [rebuilt(note) for note in self.notes]
        return record

    def analyze(self, text: str, time: str, record: dict[str, Any]) -> dict[str, Any]:
        answer = self.model("analyze", {"shown": text})
        record["analyze"] = {"shown": text, "answer": answer}
        try:
            found = read_json(answer)
        except json.JSONDecodeError:
            found = {"keywords": [], "context": "General", "tags": []}
        keywords, context, tags = found["keywords"], found["context"], found["tags"]
        context = " ".join(context) if isinstance(context, list) and context else context or "General"
        note = {"text": text, "time": time, "context": context, "keywords": keywords or [], "tags": tags or []}
        return note | {"links": []}

    def evolve(self, note: dict[str, Any], record: dict[str, Any]) -> Any:
        near = []
        if self.notes:
            hits = self.search(note["text"], NEIGHBOURS)
            record["searches"].append({"query": note["text"], "limit": NEIGHBOURS, "hits": hits})
            near = [n for n, _ in hits]
        fields = ("time", "text", "context", "keywords", "tags")
        shown = {key: note[key] for key in ("context", "text", "keywords")}
        shown["listed"] = [{"id": n} | {key: self.notes[n][key] for key in fields} for n in near]
        answer = self.model("evolve", shown)
        record["evolve"] = shown | {"answer": answer}
        try:
            found = read_json(answer)
        except json.JSONDecodeError:
            return False
        if not found["should_evolve"]:
            return False
        for action in found["actions"]:
            if action == "strengthen":
                links, tags = found["suggested_connections"], found["tags_to_update"]
                note["links"] += links
                note["tags"] = tags
            elif action == "update_neighbor":
                contexts, tag_lists = found["new_context_neighborhood"], found["new_tags_neighborhood"]
                for place, (n, tags) in enumerate(zip(near, tag_lists, strict=False)):
                    self.notes[n]["tags"] = tags
                    if place < len(contexts):
                        self.notes[n]["context"] = contexts[place]
        return found["should_evolve"]

    def ask(self, question: str, k: int = 10) -> dict[str, Any]:
        """What the call found; `shown` has the places of the notes that the answer's prompt holds, in their order."""
        answer = self.model("query", {"question": question})
        record = {"query": {"question": question, "answer": answer}, "searches": [], "shown": [], "error": None}
        try:
            keywords = json.loads(answer)["keywords"]
        except (ValueError, *ERRORS):
            keywords = answer.strip()
        if not self.notes:
            return record
        hits = self.search(keywords, k)
        record["searches"].append({"query": keywords, "limit": k, "hits": hits})
        places, shown, counter = range(len(self.notes)), [], 0
        try:
            for n, _ in hits:
                shown.append(n)
                for link in self.notes[n]["links"]:
                    shown.append(places[link])
                    if counter >= k:
                        break
                    counter += 1
        except ERRORS as reason:
            return record | {"error": type(reason).__name__}
        return record | {"shown": shown}
