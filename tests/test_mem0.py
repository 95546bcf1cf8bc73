"""Mem0 on the device against what the published code did with the same answers (tests/fixtures/peers), step by step."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from peers.embedding import embed
from recorded import Vocabulary, histories, items_of, spec

from agemem_jax.memory import encoder
from agemem_jax.methods import parts
from agemem_jax.methods.base import DONE, Message
from agemem_jax.methods.mem0 import DECIDE, EXTRACT, Additive, Classic
from agemem_jax.rollout.rows import new_rows
from agemem_jax.types import NO_ID, Op, Status, Text

ITEMS = 16
OPS = {"ADD": Op.ADD, "UPDATE": Op.UPDATE, "DELETE": Op.DELETE}
CLASSIC = Classic(facts=4, events=ITEMS, neighbours=5, contradiction_adds=False)


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
        items, role = items_of(self.vocabulary, rows, ITEMS), told.owner * 0 + role
        texts, queries = self.system.texts(self.rows, self.notes, told, role, items, None)
        assert bool((queries == (role == EXTRACT)[:, None]).all())
        heard = self.hear(self.rows, self.notes, told, role, items, self.encode(texts), on, None)
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


ADDITIVE = Additive(facts=ITEMS, neighbours=10, recent=10)


def memories_of(answer: str) -> list[tuple[Op, int, str]]:
    """The memories of an answer that is JSON, those that are text."""
    try:
        entries = json.loads(answer)["memory"]
    except (ValueError, KeyError, TypeError):
        return []
    texts = [entry.get("text") for entry in entries if isinstance(entry, dict)]
    return [(Op.ADD, NO_ID, text) for text in texts if isinstance(text, str)]


def test_the_additive_pipeline_writes_what_mem0_writes():
    told = {name: steps for name, steps in histories("mem0_additive").items() if name in ("changes", "crowded")}
    vocabulary, sizes = Vocabulary("mem0_additive"), spec(len(told))
    users = sorted({step["user"] for steps in told.values() for step in steps})
    hear = jax.jit(partial(ADDITIVE.hear, tables=None, world=vocabulary.world, spec=sizes))
    rows, compared, dropped = new_rows(sizes), 0, 0
    for i in range(max(map(len, told.values()))):
        steps = [steps[i] if i < len(steps) else None for steps in told.values()]
        reads = [step is not None and "messages" in step for step in steps]
        owner = jnp.array([users.index(step["user"]) if step else 0 for step in steps], jnp.int32)
        both = list(zip(steps, reads, strict=True))
        vector = jnp.stack([embed(step["extract"]["shown"] if on else "") for step, on in both])
        body = vocabulary.texts([["I"]] * len(told), 1)  # what is nearest is told by the vector
        message = Message(parts.column(body, 0), owner, owner * 0, owner * 0, vector)
        near = ADDITIVE._like(rows, message, jnp.array(reads))
        listed = jax.device_get(parts.listing(rows.store, near, jnp.array(reads)))
        answers = [memories_of(step["extract"]["answer"]) if on else [] for step, on in zip(steps, reads, strict=True)]
        calls = items_of(vocabulary, answers, ITEMS)
        texts, queries = ADDITIVE.texts(rows, (), message, owner * 0, calls, None)
        assert not bool(queries.any())
        heard = hear(rows, (), message, owner * 0, calls, encoder.encode(vocabulary.table, texts), jnp.array(reads))
        rows = heard.rows
        assert (np.asarray(heard.next) == DONE).all()
        store = jax.device_get(rows.store)
        for b, (step, on) in enumerate(zip(steps, reads, strict=True)):
            if on:
                found, texts = int(listed.found[b].sum()), Text(listed.tokens, listed.length)
                shown = [{"id": str(k), "text": vocabulary.decode(texts, b, k)} for k in range(found)]
                assert shown == step["extract"]["listed"], (b, i)
                kept = {
                    int(store.id[b, n]): vocabulary.decode(Text(store.tokens, store.length), b, n)
                    for n in np.flatnonzero(store.valid[b])
                }
                assert kept == {row["memory"]: row["text"] for row in step["store"]}, (b, i)
                compared += found
                dropped += int((heard.status[b] == Status.DUPLICATE).sum())
    assert compared > 100 and dropped > 1


def test_earlier_messages_are_the_speakers_last_ones_oldest_first():
    sizes = spec(2)
    vocabulary = Vocabulary("mem0_additive")
    facts = vocabulary.texts([["I", "and", "the", "in"]] * 2, 4)
    later = vocabulary.texts([["a", "to", "with"]] * 2, 3)
    task = SimpleNamespace(
        facts=facts, num_facts=jnp.array([4, 3]), fact_owner=jnp.array([[0, 1, 0, 0]] * 2),
        distractors=later, distractor_owner=jnp.array([[0, 1, 0]] * 2),
    )  # fmt: skip
    read = lambda turn, stage, most: parts.earlier_messages(  # noqa: E731
        task, jnp.array(turn), jnp.zeros(sizes.batch, jnp.int32), stage, most
    )
    said = lambda texts, b: [vocabulary.decode(texts, b, k) for k in range(texts.length.shape[1])]  # noqa: E731
    first = read([3, 0], 1, 2)
    assert (said(first, 0), said(first, 1)) == (["I", "the"], ["", ""])
    second = read([2, 1], 2, 3)
    assert (said(second, 0), said(second, 1)) == (["the", "in", "a"], ["I", "the", "a"])


def searched(vocabulary: Vocabulary, rows, b: int, step: dict, owner: jax.Array) -> list[int]:
    """Ids that a search of row b finds."""
    query = vocabulary.texts([[step["query"]]] * len(owner), 1)
    query = Text(query.tokens[:, 0], query.length[:, 0])
    most = rows.store.id.shape[1]
    found = parts.nearest(rows.store, owner >= 0, query, most, owner, encoder.TokenTable(vocabulary.table))
    return np.asarray(found.id[b])[np.asarray(found.found[b])][: step["limit"]].tolist()
