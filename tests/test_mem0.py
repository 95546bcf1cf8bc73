"""Mem0 on the device against what the published code did with the same answers (tests/fixtures/peers), step by step."""

import dataclasses
import json
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers.embedding import DIM, word_vector, words
from small import small_config

from agemem_jax.data.batches import pad_text, pad_texts, stack
from agemem_jax.memory import encoder, equality
from agemem_jax.methods import parts
from agemem_jax.methods.base import DONE, Message
from agemem_jax.methods.mem0 import DECIDE, EXTRACT, Additive, Classic
from agemem_jax.rollout.rows import RolloutSpec, new_rows
from agemem_jax.training.setup import build
from agemem_jax.types import NO_ID, Op, Status, Text, ToolCalls

FOLDER = Path(__file__).parent / "fixtures" / "peers"
LENGTH = 16  # tokens of a memory
ITEMS = 16
OPS = {"ADD": Op.ADD, "UPDATE": Op.UPDATE, "DELETE": Op.DELETE}
CLASSIC = Classic(facts=4, events=ITEMS, neighbours=5, contradiction_adds=False)


@lru_cache
def histories(system: str) -> dict[str, list[dict]]:
    recorded = json.loads((FOLDER / f"{system}.json").read_text())
    return {history["name"]: history["steps"] for history in recorded["histories"]}


class Vocabulary:
    """What stands between two spaces is a token; a text has the vector that the recorders' embedder gives it."""

    def __init__(self, system: str):
        def texts(node):
            if isinstance(node, str):
                yield node
            for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                yield from texts(inner)

        known = sorted({word for text in texts(list(histories(system).values())) for word in text.split(" ")})
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


def items_of(vocabulary: Vocabulary, rows: list[list[tuple[Op, int, str]]]) -> ToolCalls:
    """Parsed answers: (operation, listed number, text) of each item."""
    pad = lambda values, fill: values + [fill] * (ITEMS - len(values))  # noqa: E731
    column = lambda i, fill: jnp.array([pad([item[i] for item in row], fill) for row in rows])  # noqa: E731
    content = vocabulary.texts([[item[2] for item in row] for row in rows], ITEMS)
    return SimpleNamespace(op=column(0, Op.NONE), memory_id=column(1, NO_ID), content=content)


def events_of(answer: str) -> list[tuple[Op, int, str]]:
    """The events of an answer that the published code reads, as the form of the decision has them.

    An event without a text is skipped there, also a DELETE, which has none here: it is left out.
    """
    try:
        found = json.loads(answer.removeprefix("```json\n").removesuffix("\n```").removeprefix("Sure! ").removesuffix(" Done."), strict=False)
    except ValueError:
        return []
    events = found.get("memory") if isinstance(found, dict) else None
    out = []
    for one in events if isinstance(events, list) else []:
        if isinstance(one, dict) and one.get("text") and (one.get("event") in OPS or one.get("event") == "NONE"):
            number = one.get("id")
            known = isinstance(number, str) and number.isdigit()
            out.append((OPS.get(one["event"], Op.PASS), int(number) if known else 99, str(one["text"])))
    return out


def test_the_classic_pipeline_writes_what_mem0_writes():
    vocabulary = Vocabulary("mem0_classic")
    told = {name: steps for name, steps in histories("mem0_classic").items() if name != "sessions"}
    batch, names = len(told), list(told)
    users = sorted({step["user"] for steps in told.values() for step in steps})
    sizes, world = spec(batch), vocabulary.world
    hear = jax.jit(partial(CLASSIC.hear, world=world, spec=sizes))
    encode = jax.jit(partial(encoder.encode, vocabulary.table))
    rows, notes = new_rows(sizes), CLASSIC.new_notes(sizes)
    compared = 0
    for i in range(max(map(len, told.values()))):
        steps = [steps[i] if i < len(steps) else None for steps in told.values()]
        active = [step is not None and "messages" in step for step in steps]
        owner = jnp.array([users.index(step["user"]) if step else 0 for step in steps], jnp.int32)
        message = Message(None, owner, owner * 0, owner * 0 + i, None)
        facts = [step["decide"]["facts"] if on and step["decide"] else [] for step, on in zip(steps, active, strict=True)]
        answers = items_of(vocabulary, [[(Op.ADD, NO_ID, text) for text in row] for row in facts])
        on = jnp.array(active)
        texts, queries = CLASSIC.texts(rows, notes, message, owner * 0 + EXTRACT, answers)
        assert bool(queries.all())
        rows, notes, following, _ = hear(rows, notes, message, owner * 0 + EXTRACT, answers, encode(texts), on)
        decides = on & (following == DECIDE)
        listed = jax.device_get(parts.listing(rows.store, notes.listed, decides))
        answers = items_of(vocabulary, [events_of(step["decide"]["answer"]) if on and step["decide"] else [] for step, on in zip(steps, active, strict=True)])
        texts, _ = CLASSIC.texts(rows, notes, message, owner * 0 + DECIDE, answers)
        rows, notes, after, status = hear(rows, notes, message, owner * 0 + DECIDE, answers, encode(texts), decides)
        assert (np.asarray(after) == DONE).all()
        store = jax.device_get(rows.store)
        for b, (step, on) in enumerate(zip(steps, active, strict=True)):
            if step is None:
                continue
            where = names[b], i
            if not on:
                if "threshold" not in step:
                    assert searched(vocabulary, rows, b, step, owner) == [hit["memory"] for hit in step["hits"]], where
                continue
            assert bool(decides[b]) == (step["decide"] is not None), where
            if step["decide"]:
                texts = [vocabulary.decode(Text(listed.tokens, listed.length), b, k) for k in range(listed.found[b].sum())]
                assert texts == [one["text"] for one in step["decide"]["listed"]], where
                assert [str(k) for k in listed.id[b][: len(texts)]] == [one["id"] for one in step["decide"]["listed"]]
                compared += len(texts)
            kept = {
                int(store.id[b, n]): (vocabulary.decode(Text(store.tokens, store.length), b, n), users[store.owner[b, n]])
                for n in np.flatnonzero(store.valid[b])
            }
            assert kept == {row["memory"]: (row["text"], row["user"]) for row in step["store"]}, where
    assert compared > 100


def searched(vocabulary: Vocabulary, rows, b: int, step: dict, owner: jax.Array) -> list[int]:
    """Ids that a search of row b finds."""
    query = vocabulary.texts([[step["query"]]] * len(owner), 1)
    query = Text(query.tokens[:, 0], query.length[:, 0])
    most = rows.store.id.shape[1]
    found = parts.nearest(rows.store, owner >= 0, query, most, owner, encoder.TokenTable(vocabulary.table))
    return np.asarray(found.id[b])[np.asarray(found.found[b])][: step["limit"]].tolist()
