"""Mem0 on the device against what the published code did with the same answers (tests/fixtures/peers), step by step."""

import dataclasses
import json
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from peers.embedding import DIM, word_vector, words
from small import small_config

from agemem_jax.data.batches import pad_texts, stack
from agemem_jax.memory import encoder, equality
from agemem_jax.methods import parts
from agemem_jax.methods.base import DONE, Message
from agemem_jax.methods.mem0 import DECIDE, EXTRACT, Classic
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
    rest = dict.fromkeys(("tags", "top_k", "span", "confirmed", "said", "malformed", "think_tokens"))
    return ToolCalls(op=column(0, Op.NONE), memory_id=column(1, NO_ID), content=content, **rest)


def events_of(answer: str) -> list[tuple[Op, int, str]]:
    """The events of an answer that the published code reads, as the form of the decision has them.

    An event without a text is skipped there, also a DELETE, which has none here: it is left out.
    """
    for noise in ("```json\n", "\n```", "Sure! ", " Done."):
        answer = answer.removeprefix(noise).removesuffix(noise)
    try:
        found = json.loads(answer, strict=False)
    except ValueError:
        return []
    events = found.get("memory") if isinstance(found, dict) else None
    out = []
    for one in events if isinstance(events, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("text"), str) or not one["text"]:
            continue
        if one.get("event") in (*OPS, "NONE"):
            number = one.get("id")
            known = isinstance(number, str) and number.isdigit()
            out.append((OPS.get(one["event"], Op.PASS), int(number) if known else 99, one["text"]))
    return out


class Played:
    """The classic pipeline, one row for each history, a step of all at a time."""

    def __init__(self, system: Classic, told: dict[str, list[dict]]):
        self.system, self.vocabulary = system, Vocabulary("mem0_classic")
        self.users = sorted({step["user"] for steps in told.values() for step in steps})
        sizes = spec(len(told))
        self.hear = jax.jit(partial(system.hear, world=self.vocabulary.world, spec=sizes))
        self.encode = jax.jit(partial(encoder.encode, self.vocabulary.table))
        self.rows, self.notes = new_rows(sizes), system.new_notes(sizes)

    def message(self, steps: list[dict | None]) -> Message:
        owner = jnp.array([self.users.index(step["user"]) if step else 0 for step in steps], jnp.int32)
        return Message(None, owner, owner * 0, owner * 0, None)

    def answer(self, told: Message, role: int, rows: list[list[tuple[Op, int, str]]], on: jax.Array):
        """The rows `on` give these answers: (next role, status of each item)."""
        items, role = items_of(self.vocabulary, rows), told.owner * 0 + role
        texts, queries = self.system.texts(self.rows, self.notes, told, role, items)
        assert bool((queries == (role == EXTRACT)[:, None]).all())
        heard = self.hear(self.rows, self.notes, told, role, items, self.encode(texts), on)
        self.rows, self.notes = heard.rows, heard.notes
        return heard.next, heard.status

    def listed(self, b: int) -> list[dict]:
        """What the decision's prompt of a row lists."""
        every = jnp.ones(len(self.notes.listed), bool)
        found = jax.device_get(parts.listing(self.rows.store, self.notes.listed, every))
        texts = Text(found.tokens, found.length)
        count = int(found.found[b].sum())
        return [{"id": str(found.id[b, k]), "text": self.vocabulary.decode(texts, b, k)} for k in range(count)]

    def kept(self, b: int) -> dict[int, tuple[str, str]]:
        """{id: (text, user)} of a row's store."""
        store = jax.device_get(self.rows.store)
        texts = Text(store.tokens, store.length)
        return {
            int(store.id[b, n]): (self.vocabulary.decode(texts, b, n), self.users[store.owner[b, n]])
            for n in np.flatnonzero(store.valid[b])
        }


def test_the_classic_pipeline_writes_what_mem0_writes():
    told = {name: steps for name, steps in histories("mem0_classic").items() if name != "sessions"}
    played, compared = Played(CLASSIC, told), 0
    for i in range(max(map(len, told.values()))):
        steps = [steps[i] if i < len(steps) else None for steps in told.values()]
        reads = [step is not None and "messages" in step for step in steps]
        decisions = [step["decide"] if on else None for step, on in zip(steps, reads, strict=True)]
        facts = [[(Op.ADD, NO_ID, text) for text in one["facts"]] if one else [] for one in decisions]
        message = played.message(steps)
        following, _ = played.answer(message, EXTRACT, facts, jnp.array(reads))
        decides = jnp.array(reads) & (following == DECIDE)
        assert decides.tolist() == [one is not None for one in decisions]
        for b, decision in enumerate(decisions):
            if decision:
                assert played.listed(b) == decision["listed"], (b, i)
                compared += len(decision["listed"])
        events = [events_of(one["answer"]) if one else [] for one in decisions]
        after, _ = played.answer(message, DECIDE, events, decides)
        assert (np.asarray(after) == DONE).all()
        for b, (step, on) in enumerate(zip(steps, reads, strict=True)):
            if on:
                assert played.kept(b) == {row["memory"]: (row["text"], row["user"]) for row in step["store"]}, (b, i)
            elif step and "threshold" not in step:
                found = searched(played.vocabulary, played.rows, b, step, message.owner)
                assert found == [hit["memory"] for hit in step["hits"]], (b, i)
    assert compared > 100


def test_what_is_contradicted_is_lost_as_published_or_kept_by_a_flag():
    steps = [{"user": "ana"}]
    for flag, texts in ((False, []), (True, ["Dislikes cheese pizza"])):
        played = Played(dataclasses.replace(CLASSIC, contradiction_adds=flag), {"one": steps})
        message, on = played.message(steps), jnp.array([True])
        for fact, event in (
            ("Loves cheese pizza", (Op.ADD, NO_ID, "Loves cheese pizza")), ("Dislikes cheese pizza", (Op.DELETE, 0, ""))
        ):  # fmt: skip
            played.answer(message, EXTRACT, [[(Op.ADD, NO_ID, fact)]], on)
            _, status = played.answer(message, DECIDE, [[event]], on)
            assert status[0, 0] == Status.OK
        assert [text for text, _ in played.kept(0).values()] == texts
        assert played.rows.stats.calls_ok[0, Op.DELETE] == 1


def searched(vocabulary: Vocabulary, rows, b: int, step: dict, owner: jax.Array) -> list[int]:
    """Ids that a search of row b finds."""
    query = vocabulary.texts([[step["query"]]] * len(owner), 1)
    query = Text(query.tokens[:, 0], query.length[:, 0])
    most = rows.store.id.shape[1]
    found = parts.nearest(rows.store, owner >= 0, query, most, owner, encoder.TokenTable(vocabulary.table))
    return np.asarray(found.id[b])[np.asarray(found.found[b])][: step["limit"]].tolist()
