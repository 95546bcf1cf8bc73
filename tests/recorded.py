"""What the tests of memory systems share: a vocabulary of a recorded system's words, and answers as parsed calls."""

import contextlib
import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from peers.embedding import DIM, word_vector, words
from small import small_config

from agemem_jax.data.batches import pad_texts, stack
from agemem_jax.memory import equality
from agemem_jax.rollout.rows import RolloutSpec
from agemem_jax.training.setup import build
from agemem_jax.types import NO_ID, Op, Text, ToolCalls

FOLDER = Path(__file__).parent / "fixtures" / "peers"
LENGTH = 16  # tokens of an entry


@lru_cache
def histories(system: str) -> dict[str, list[dict]]:
    recorded = json.loads((FOLDER / f"{system}.json").read_text())
    return {history["name"]: history["steps"] for history in recorded["histories"]}


class Vocabulary:
    """What stands between two spaces is a token; a text has the vector that the recorders' embedder gives it."""

    def __init__(self, system: str, *more: str):
        def texts(node):
            if isinstance(node, str):
                yield node
                if node.startswith("{"):  # an answer: what it says
                    with contextlib.suppress(ValueError):
                        yield from texts(json.loads(node, strict=False))
            for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                yield from texts(inner)

        told = [*texts(list(histories(system).values())), *more]
        known = sorted({word for text in told for word in text.split(" ")})
        self.pieces = ["", *known]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        table = np.zeros((len(self.pieces), DIM), np.float32)
        for i, piece in enumerate(self.pieces):
            table[i] = sum((word_vector(word) for word in words(piece)), np.zeros(DIM))
        self.table = jnp.array(table)
        bytes_of = [f" {piece}".encode() if piece else None for piece in self.pieces]
        self.world = SimpleNamespace(equality=equality.equality_table(bytes_of), encoder=self.table)

    def encode(self, text: str) -> list[int]:
        return [self.ids[piece] for piece in text.split(" ")] if text else []

    def decode(self, text: Text, *at: int) -> str:
        return " ".join(self.pieces[i] for i in text.tokens[at][: text.length[at]].tolist())

    def texts(self, rows: list[list[str]], count: int) -> Text:
        return stack([pad_texts([self.encode(text) for text in row], count, LENGTH) for row in rows])


@lru_cache
def spec(batch: int) -> RolloutSpec:
    whole = build(small_config()).spec.rollout
    return dataclasses.replace(
        whole, batch=batch, entries=48, entry_tokens=LENGTH, embedding_size=DIM, capacity=16, messages=3, reader=None
    )


def items_of(vocabulary: Vocabulary, rows: list[list[tuple[Op, int, str]]], count: int) -> ToolCalls:
    """Parsed answers: (operation, listed number, text) of each item."""
    pad = lambda values, fill: values + [fill] * (count - len(values))  # noqa: E731
    column = lambda i, fill: jnp.array([pad([item[i] for item in row], fill) for row in rows])  # noqa: E731
    content = vocabulary.texts([[item[2] for item in row] for row in rows], count)
    rest = dict.fromkeys(("tags", "said", "malformed", "think_tokens"))
    none = jnp.zeros((len(rows), count), jnp.int32)
    rest |= {"top_k": none, "span": none, "confirmed": none > 0}
    return ToolCalls(op=column(0, Op.NONE), memory_id=column(1, NO_ID), content=content, **rest)
