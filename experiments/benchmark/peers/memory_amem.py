"""A-Mem's paper code (a checkout of WujiangXu/A-mem at d81fb22): operations per second of 64 systems, one an agent.

    memory_amem.py CHECKOUT ENTRIES

Its models are replaced: the one that writes notes answers with fixed JSON, and vectors are ready. It has no update and
no delete.
"""

import contextlib
import io
import json
import sys

import numpy as np
from memory import AGENTS, TOP_K, clock, report, text, vector
from walks import module

checkout, entries = sys.argv[1], int(sys.argv[2])
NOTE = {"keywords": ["violin", "river", "ticket"], "context": "A person tells of a thing.", "tags": ["a", "b", "c"]}
STAYS = {"should_evolve": False, "actions": [], "suggested_connections": [], "tags_to_update": [],
         "new_context_neighborhood": [], "new_tags_neighborhood": []}  # fmt: skip


class Encoder:
    """In place of SentenceTransformer(model_name)."""

    def __init__(self, *_):
        pass

    def encode(self, texts):
        return np.stack([vector(one) for one in texts]) if isinstance(texts, list) else vector(texts)


class Controller:
    """In place of LLMController."""

    def __init__(self, *_):
        self.llm = self

    def get_completion(self, prompt, **_):
        return json.dumps(NOTE | STAYS)


module("rank_bm25", BM25Okapi=None)
module("sentence_transformers", SentenceTransformer=Encoder)
module("transformers", AutoModel=None, AutoTokenizer=None)
module("nltk")
module("nltk.tokenize", word_tokenize=None)
module("litellm", completion=None)
module("requests")
sys.path.insert(0, checkout)
with contextlib.redirect_stdout(io.StringIO()):
    import memory_layer

memory_layer.LLMController = Controller
systems = []
for agent in range(AGENTS):
    system = memory_layer.AgenticMemorySystem()
    texts = [text(agent, number) for number in range(entries)]
    for one in texts:
        note = memory_layer.MemoryNote(content=one, keywords=["k"], context="c", tags=["t"], timestamp="202601010000")
        system.memories[note.id] = note
    system.retriever.add_documents(texts)
    systems.append(system)


def search(agent, number):
    with contextlib.redirect_stdout(io.StringIO()):
        systems[agent].find_related_memories_raw(text(agent, number), k=TOP_K)


def add(agent, number):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its prompts
        systems[agent].add_note(text(agent, entries + number))


report(search=clock(search, entries), add=clock(add, entries))
