"""FAISS: a flat index for each agent. Prints operations per second for as many entries as the argument says.

Vectors alone: no text, id, owner or tag, and no look for duplicates. An update is a removal and an addition.
"""

import sys

import faiss
import numpy as np
from memory import AGENTS, TOP_K, WIDTH, clock, report

entries = int(sys.argv[1])
rng = np.random.default_rng(0)
drawn = rng.standard_normal((AGENTS, WIDTH), dtype=np.float32)
drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
indices = []
for _ in range(AGENTS):
    held = rng.standard_normal((entries, WIDTH), dtype=np.float32)
    indices.append(faiss.IndexFlatIP(WIDTH))
    indices[-1].add(held / np.linalg.norm(held, axis=1, keepdims=True))


def search(agent, number):
    indices[agent].search(drawn[agent : agent + 1], TOP_K)


def add(agent, number):
    indices[agent].add(drawn[agent : agent + 1])


def delete(agent, number):
    indices[agent].remove_ids(np.array([number]))


def update(agent, number):
    delete(agent, number)
    add(agent, number)


operations = {"search": search, "add": add, "update": update, "delete": delete}
report(**{name: clock(operation, entries) for name, operation in operations.items()})
