"""Slow twin of Mem0 since 2.0: mem0ai 2.2.1, class Memory of mem0/memory/main.py, where neither spaCy nor fastembed is
installed. Then nothing is lemmatised, no entities are found or linked, and keywords do not count (`lemmatize_for_bm25`,
`extract_entities_batch`, `Qdrant.keyword_search`): what is left is plain cosine.

One `add` makes one model call and can only add: what changes or is taken back stands beside what was. Names below are
the published code's functions.

1. *Last messages* (`SQLiteManager.get_last_messages`): the 10 newest that earlier calls kept for exactly the same scope
   (the same set of user, session and agent), oldest first, as lines "role: content", contents longer than 300
   characters cut to 300 and "...". All messages of a call have one time: where only some of a call fit, its first ones
   are kept and its last ones dropped (so does SQLite, which promises no order).
2. *Search*: the 10 memories nearest to all new messages as one text, lines "role: content" with a line feed after each,
   by cosine, however far. The scope is every id that the call was given, each of which must match exactly; one that was
   not given matches anything.
3. *Extract* (`generate_additive_extraction_prompt`). Shown: the last messages, the memories found as (id, text) with
   temporary ids "0", "1", ... in their order, the new messages, and today's date twice: as the day of the conversation
   and as the present day (no caller can say when it was). A summary and a list of recently extracted memories have
   places in the prompt and are always empty. Role instruction, in other words: write down everything worth remembering
   of both the user's and the assistant's new messages, each fact once, in one or two sentences that stand alone (names
   for pronouns, exact titles and numbers, dates for "yesterday", what a change replaced), nothing for mere politeness,
   nothing that a listed memory already says; say whom it came from, and which listed memories it is related to. For a
   call with an agent and no user, the same from the agent's view. Answer (the list may be empty):
       {"memory": [{"id": "0", "text": "TEXT", "attributed_to": "user"|"assistant",
                    "linked_memory_ids": ["0", ...]}, ...]}
4. *Write*, in the order of the answer, all at once: each text becomes a new memory with the scope of the call and
   `attributed_to` as it stands (none if empty), unless
   - it is empty, missing or a number: dropped;
   - it is exactly, by its MD5, the text of one of the 10 memories found, or came before in the same answer: dropped. A
     text that is stored but is not among the 10 that are near the messages is stored again.

   The id, `linked_memory_ids` and any other field are ignored: links are lost.
5. *Keep* the call's messages for later ones, also when nothing was extracted; the 10 newest of the scope stay.

How answers are read (`remove_code_blocks`, `extract_json`): a fence around all of it and <think> parts are dropped;
what is no JSON then is cut to what is inside the first fence, or else from the first brace to the last; control
characters in strings are allowed. No JSON, JSON that is no object, and an empty or missing "memory": nothing was found.
A "memory" that is no list, an entry that is no object, or a text that is a list or an object raises in the published
code after the model's call: here the call reports the error; nothing is written, and the messages are not kept.

Reading (`search`, `score_and_rank`): the `limit` (20 by default) nearest memories of the scope by cosine, best first,
those from a score of `threshold` (0.1 by default) on; the query's outer spaces do not count. The published order of
equal scores is not defined; here the oldest comes first.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from peers.mem0_classic_twin import cut_json, without_fence

NEIGHBOURS = 10
MESSAGES = 10
CHARACTERS = 300
THRESHOLD = 0.1
ERRORS = (AttributeError, TypeError)
Embed = Callable[[str], np.ndarray]
Model = Callable[[str, dict[str, Any]], str]


def read_entries(answer: str) -> Any:
    """The answer's list, or what stands in its place; an empty one when there is none."""
    answer = without_fence(answer)
    try:
        try:
            found = json.loads(answer, strict=False)
        except json.JSONDecodeError:
            found = json.loads(cut_json(answer), strict=False)
        return found.get("memory", []) or []
    except (ValueError, AttributeError):
        return []


class Mem0Additive:
    """`model("extract", shown)` gives the one answer; `embed(text)` gives `[D]` float32 of unit length."""

    def __init__(self, model: Model, embed: Embed):
        self.model, self.embed = model, embed
        self.memories: list[dict[str, Any]] = []  # memory n is at n - 1
        self.messages: dict[tuple[tuple[str, str], ...], list[tuple[int, dict[str, str]]]] = {}
        self.calls = 0

    def search(self, query: str, scope: dict[str, str], limit: int = 20, threshold: float = THRESHOLD):
        """(id, score) of the nearest memories of a scope, best first."""
        vector = self.embed(query.strip())
        seen = [memory for memory in self.memories if all(memory[key] == scope[key] for key in scope)]
        scored = [(memory["memory"], float(self.embed(memory["text"]) @ vector)) for memory in seen]
        scored = [pair for pair in scored if pair[1] >= threshold]
        return sorted(scored, key=lambda pair: (-round(pair[1], 6), pair[0]))[:limit]

    def newest(self, key: tuple[tuple[str, str], ...]) -> list[tuple[int, dict[str, str]]]:
        """(call, message) of a scope's newest messages, oldest first."""
        kept = sorted(self.messages.get(key, []), key=lambda pair: -pair[0])[:MESSAGES]
        return sorted(kept, key=lambda pair: pair[0])

    def keep(self, messages: list[dict[str, str]], key: tuple[tuple[str, str], ...]) -> None:
        self.calls += 1
        self.messages[key] = self.messages.get(key, []) + [(self.calls, message) for message in messages]
        self.messages[key] = self.newest(key)

    def add(self, messages: list[dict[str, str]], scope: dict[str, str]) -> dict[str, Any]:
        """`scope` has some of "user", "session" and "agent". What the call showed, found and returned."""
        key = tuple(sorted(scope.items()))
        last = ""
        for _, message in self.newest(key):
            content = message["content"]
            cut = content if len(content) <= CHARACTERS else content[:CHARACTERS] + "..."
            last += f"{message['role']}: {cut}\n"
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        hits = self.search(text, scope, NEIGHBOURS, threshold=-np.inf)
        old = [self.memories[n - 1]["text"] for n, _ in hits]
        shown = {
            "about": "agent" if "agent" in scope and "user" not in scope else "user",
            "last": last,
            "listed": [{"id": str(place), "text": memory} for place, memory in enumerate(old)],
            "shown": text,
        }
        answer = self.model("extract", shown)
        searches = [{"query": text, "limit": NEIGHBOURS, "hits": hits}]
        record = {"searches": searches, "extract": shown | {"answer": answer}, "error": None, "returned": []}
        try:
            entries = [(entry.get("text"), entry.get("attributed_to")) for entry in read_entries(answer)]
            {text for text, _ in entries if text}  # lists and objects have no place in a set
        except ERRORS as reason:
            return record | {"error": type(reason).__name__}
        blank = {"user": None, "session": None, "agent": None}
        for text, about in entries:
            if not isinstance(text, str) or not text or text in old:
                continue
            old.append(text)
            n = len(self.memories) + 1
            self.memories.append({"memory": n, "text": text, **blank, **scope, "about": about or None})
            record["returned"].append({"id": n, "memory": text, "event": "ADD"})
        self.keep(messages, key)
        return record
