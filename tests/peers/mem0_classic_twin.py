"""Slow twin of Mem0 as papers compare with it: mem0ai 1.0.11, class Memory of mem0/memory/main.py, without a graph.

One `add` makes at most two model calls; nothing of earlier messages is shown to either. Names below are the published
code's functions.

1. *Extract* (`_add_to_vector_store`; the prompt of mem0/configs/prompts.py). Shown: the messages alone, one line "role:
   content" each, a line feed after the last. Role instruction, in other words: note the user's preferences, personal
   details, plans, health, work and other lasting facts as short separate statements without a subject, from the user's
   messages only, in their language; nothing for small talk or general knowledge. With an agent id and an assistant's
   message, the same about the assistant, from its messages only. Answer (the list may be empty):
       {"facts": ["TEXT", ...]}
   No facts: no search, no second call, no write.
2. *Search* (`Qdrant.search`): for each fact in turn, repeated ones too, its 5 nearest memories by cosine, however far.
   The scope is every id that the call was given (user, session, agent), each of which must match exactly; one that was
   not given matches anything.
3. *List*: the union in the order in which memories were first found; temporary ids "0", "1", ... are its places.
4. *Decide* (`get_update_memory_messages`). Shown: the listed memories as (id, text), or that there are none, and the
   facts, repeated ones too. Role instruction, in other words: for each fact choose ADD if it is new (with a new id);
   UPDATE if a memory says something else or less about the same (same id; keep what says more; leave it if both mean
   the same); DELETE if it contradicts a memory or asks for its removal; NONE if it is known or irrelevant. Answer with
   the whole memory that was listed and what is new (`old_memory` for UPDATE only):
       {"memory": [{"id": "0", "text": "TEXT", "event": "ADD"|"UPDATE"|"DELETE"|"NONE", "old_memory": "TEXT"}, ...]}
   In the instruction's example a fact that contradicts deletes and is itself added nowhere, so that it is lost. That is
   the model's choice: an ADD in the same answer would be carried out.
5. *Write*, in the order of the answer, each entry by itself; one that fails is skipped and the rest goes on.
   - no text, or an empty one: skipped, even a DELETE, which does not use it;
   - ADD: a new memory with the scope of the call; its id is ignored, a listed one too; nothing looks for duplicates;
   - UPDATE: the memory keeps its id; text and embedding are replaced, even by the same text; user, session and agent
     stay (those of the call would be written, by which it was found); `old_memory` is returned, not checked;
   - DELETE: the memory goes, whatever its text says;
   - UPDATE or DELETE with an id that is not listed, is a number or is missing, or of a memory that an earlier entry
     deleted: skipped. Two updates of one memory: both are applied, the last one stays;
   - NONE, any other event (lower case too) or none: nothing. (NONE writes the call's session and agent, too: no
     change.)

How answers are read (`remove_code_blocks`, `extract_json`, `normalize_facts`): a fence around all of it and <think>
parts are dropped; if that is no JSON, the whole answer, thoughts and all, is cut to what is inside the first fence, or
else from the first brace to the last; control characters in strings are allowed. Whatever is wrong still counts as an
answer without facts, or without entries. A fact may be an object with "fact" or "text"; other objects and empty ones
are dropped (an object with a number there raises in the published code); numbers become text. Kept: a text in place of
the list of facts is read as one fact a letter.

Reading (`search`): the `limit` (100 by default) nearest memories of the scope by cosine, best first, those with a
`threshold` only from that score on. The published order of equal scores is not defined; here the oldest comes first.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

NEIGHBOURS = 5
Embed = Callable[[str], np.ndarray]
Model = Callable[[str, dict[str, Any]], str]


def without_fence(answer: str) -> str:
    """The answer inside a fence that spans all of it, without thoughts."""
    lines = answer.strip().split("\n")
    if len(lines) >= 3 and re.fullmatch("```[a-zA-Z0-9]*", lines[0]) and lines[-1] == "```":
        lines = lines[1:-1]
    return re.sub("(?s)<think>.*?</think>", "", "\n".join(lines).strip()).strip()


def cut_json(answer: str) -> str:
    """What is inside the answer's first fence, or else between its first and its last brace."""
    if answer.count("```") >= 2:
        return answer.split("```")[1].removeprefix("json").strip()
    first, last = answer.find("{"), answer.rfind("}")
    return answer[first : last + 1] if 0 <= first < last else answer


def read_json(answer: str) -> Any:
    """Raises ValueError when there is no JSON in the answer."""
    try:
        return json.loads(without_fence(answer), strict=False)
    except json.JSONDecodeError:
        return json.loads(cut_json(answer), strict=False)


def read_facts(answer: str) -> list[str]:
    try:
        found = list(read_json(answer)["facts"] or [])
    except (ValueError, KeyError, TypeError, IndexError):
        return []
    texts = []
    for fact in found:
        if isinstance(fact, dict):
            fact = fact.get("fact") or fact.get("text")
            fact = fact if isinstance(fact, str) else ""
        texts.append(fact if isinstance(fact, str) else str(fact))
    return [text for text in texts if text]


def read_entries(answer: str) -> list[dict[str, Any]]:
    """Entries that are objects with a text; whatever else the answer holds changes nothing."""
    try:
        entries = read_json(answer).get("memory", [])
    except (ValueError, AttributeError):
        return []
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("text")]


class Mem0Classic:
    """`model(role, shown)` answers "extract" and "decide"; `embed(text)` gives `[D]` float32 of unit length."""

    def __init__(self, model: Model, embed: Embed):
        self.model, self.embed = model, embed
        self.memories: dict[int, dict[str, Any]] = {}  # by id, oldest first
        self.ids = 0

    def search(self, query: str, scope: dict[str, str], limit: int = 100, threshold: float | None = None):
        """(id, score) of the nearest memories of a scope, best first."""
        vector = self.embed(query)
        seen = [n for n, memory in self.memories.items() if all(memory[key] == scope[key] for key in scope)]
        scored = [(n, float(self.memories[n]["vector"] @ vector)) for n in seen]
        best = sorted(scored, key=lambda pair: (-round(pair[1], 6), pair[0]))[:limit]
        return [pair for pair in best if threshold is None or pair[1] >= threshold]

    def add(self, messages: list[dict[str, str]], scope: dict[str, str]) -> dict[str, Any]:
        """`scope` has some of "user", "session" and "agent". What the call showed, found, wrote and returned."""
        about = "agent" if "agent" in scope and any(m["role"] == "assistant" for m in messages) else "user"
        shown = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        answer = self.model("extract", {"about": about, "shown": shown})
        record = {"extract": {"about": about, "shown": shown, "answer": answer}, "searches": [], "decide": None}
        record |= {"writes": [], "returned": []}
        facts = read_facts(answer)
        if not facts:
            return record
        listed: list[int] = []
        for fact in facts:
            hits = self.search(fact, scope, NEIGHBOURS)
            record["searches"].append({"fact": fact, "limit": NEIGHBOURS, "hits": hits})
            listed += [n for n, _ in hits if n not in listed]
        shown = {
            "listed": [{"id": str(place), "text": self.memories[n]["text"]} for place, n in enumerate(listed)],
            "facts": facts,
        }
        answer = self.model("decide", shown)
        record["decide"] = shown | {"answer": answer}
        ids = {str(place): n for place, n in enumerate(listed)}
        for entry in read_entries(answer):
            self.apply(entry, ids, scope, record)
        return record

    def apply(self, entry: dict[str, Any], ids: dict[str, int], scope: dict[str, str], record: dict[str, Any]) -> None:
        event, text = entry.get("event"), entry["text"]
        if event == "ADD" and isinstance(text, str):
            self.ids += 1
            n, old = self.ids, None
            blank = {"user": None, "session": None, "agent": None}
            self.memories[n] = blank | scope | {"text": text, "vector": self.embed(text)}
        elif event in ("UPDATE", "DELETE"):
            place = entry.get("id")
            n = ids.get(place) if isinstance(place, str) else None
            if n not in self.memories or (event == "UPDATE" and not isinstance(text, str)):
                return
            old = self.memories[n]["text"]
            if event == "UPDATE":
                self.memories[n] |= {"text": text, "vector": self.embed(text)}
            else:
                del self.memories[n]
        else:
            return
        record["writes"].append({"event": event, "memory": n, "old": old, "new": None if event == "DELETE" else text})
        returned = {"id": n, "memory": text, "event": event}
        if event == "UPDATE":
            returned["previous_memory"] = entry.get("old_memory")
        record["returned"].append(returned)

    def store(self) -> list[dict[str, Any]]:
        return [
            {"memory": n, **{key: memory[key] for key in ("text", "user", "session", "agent")}}
            for n, memory in self.memories.items()
        ]
