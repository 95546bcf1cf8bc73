"""A-Mem on the device against what the published code did with the same answers (tests/fixtures/peers)."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from peers.embedding import embed
from recorded import LENGTH, Vocabulary, histories, items_of, spec
from small import small_config

from agemem_jax.data.batches import pad_texts
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.memory import encoder
from agemem_jax.methods import amem, parts
from agemem_jax.methods.amem import CONSTRUCT, EVOLVE, FIXED, AMem, with_links
from agemem_jax.methods.base import DONE, Message, RoleTables
from agemem_jax.rollout.rows import new_rows
from agemem_jax.types import NO_ID, Op, Text

SYSTEM = AMem(keywords=4, tags=4, neighbours=5, context_tokens=LENGTH, word_tokens=3)
ROWS = 2
COUNT = SYSTEM._list(SYSTEM.neighbours)
BLANK = (Op.NONE, NO_ID, "")


def tables(vocabulary: Vocabulary) -> RoleTables:
    config = small_config()
    words = [vocabulary.encode(text.strip()) if text.strip() in vocabulary.ids else [] for _, text, _ in FIXED]
    pieces = build_pieces(Tokenizer.load(config.policy.tokenizer), config)
    fixed = pad_texts([[]] * 3 + words, 3 + len(FIXED), 2)
    return jax.tree.map(jnp.asarray, RoleTables(grammar=None, pieces=pieces, fixed=fixed))


def constructed(answer: str) -> dict[int, tuple[Op, int, str]]:
    """The items of an analysis; none if it is no JSON."""
    try:
        found = json.loads(answer)
    except ValueError:
        return {}
    k = SYSTEM.keywords
    texts = {i: text for i, text in enumerate(found["keywords"])} | {k: found["context"]}
    texts |= {k + 1 + i: text for i, text in enumerate(found["tags"])}
    return {i: (Op.ADD, NO_ID, text) for i, text in texts.items()}


def evolved(answer: str) -> tuple[dict[int, tuple[Op, int, str]], int, list[int]]:
    """The items of a decision, its actions, and the numbers of the lists of tags that it gives."""
    found = json.loads(answer)
    if found["should_evolve"] is not True:
        return {}, -1, []
    links, tags, contexts, _ = SYSTEM._evolve
    items = {links + i: (Op.ADD, link, "") for i, link in enumerate(found["suggested_connections"])}
    items |= {tags + i: (Op.ADD, NO_ID, text) for i, text in enumerate(found["tags_to_update"])}
    items |= {contexts + i: (Op.ADD, NO_ID, text) for i, text in enumerate(found["new_context_neighborhood"])}
    lists = found["new_tags_neighborhood"][: SYSTEM.neighbours]
    for i, texts in enumerate(lists):
        items |= {SYSTEM._list(i) + 1 + t: (Op.ADD, NO_ID, text) for t, text in enumerate(texts)}
    bits = {"strengthen": amem.STRENGTHEN, "update_neighbor": amem.UPDATE_NEIGHBOR}
    return items, sum(bits[action] for action in set(found["actions"])), [SYSTEM._list(i) for i in range(len(lists))]


@cache
def compiled():
    """(vocabulary, sizes, SYSTEM.hear, SYSTEM.texts), compiled once for all tests."""
    # What stands in composed texts before or behind a word is a token of its own here.
    vocabulary = Vocabulary("amem", "content: context: keywords: tags: , General")
    fixed, sizes = tables(vocabulary), spec(ROWS)
    hear = jax.jit(partial(SYSTEM.hear, tables=fixed, world=vocabulary.world, spec=sizes))
    return vocabulary, sizes, hear, jax.jit(partial(SYSTEM.texts, tables=fixed))


class Played:
    """A-Mem, ROWS rows."""

    def __init__(self):
        self.vocabulary, sizes, self.hear, self.texts = compiled()
        self.rows, self.notes = new_rows(sizes), SYSTEM.new_notes(sizes)

    def message(self, texts: list[str]) -> Message:
        owner = jnp.zeros(len(texts), jnp.int32)
        body = parts.column(self.vocabulary.texts([[text] for text in texts], 1), 0)
        return Message(body, owner, owner, owner, jnp.stack([embed(text) for text in texts]))

    def answer(self, told: Message, role: int, items: list[dict], on, actions=None, lists=None):
        calls = items_of(self.vocabulary, [[row.get(i, BLANK) for i in range(COUNT)] for row in items], COUNT)
        if actions is not None:
            says = jnp.array(actions) >= 0
            first = jnp.arange(COUNT) == 0
            span = jnp.array([[int(i in row) for i in range(COUNT)] for row in lists])
            calls = calls.replace(
                confirmed=says[:, None] & first, top_k=jnp.maximum(jnp.array(actions), 0)[:, None] * first, span=span
            )
        role = told.owner * 0 + role
        texts, _ = self.texts(self.rows, self.notes, told, role, calls)
        heard = self.hear(
            self.rows, self.notes, told, role, calls, encoder.encode(self.vocabulary.table, texts),
            jnp.array(on),
        )  # fmt: skip
        self.rows, self.notes = heard.rows, heard.notes
        return np.asarray(heard.next)

    def store(self, b: int) -> list[dict]:
        """The notes of a row, oldest first."""
        store, stored = jax.device_get((self.rows.store, self.notes.stored))
        decode = self.vocabulary.decode

        def words(texts: Text, n: int) -> list[str]:
            return [decode(texts, b, n, k) for k in range(texts.length.shape[2]) if texts.length[b, n, k]]

        return [
            {
                "text": decode(Text(store.tokens, store.length), b, n),
                "context": decode(stored.context, b, n),
                "keywords": words(stored.keywords, n),
                "tags": words(stored.tags, n),
                "links": [int(i) - 1 for i in stored.links[b, n] if i != NO_ID],
            }
            for n in np.flatnonzero(store.valid[b])
        ]


def test_notes_evolve_and_are_found_as_in_the_published_code():
    names = ["evolution", "links"]
    told = [histories("amem")[name] for name in names]
    played, asked, evolutions = Played(), 0, 0
    for i in range(max(map(len, told))):
        steps = [steps[i] if i < len(steps) else None for steps in told]
        reads = [step is not None and "text" in step for step in steps]
        both = list(zip(steps, reads, strict=True))
        message = played.message([step["text"] if on else "" for step, on in both])
        following = played.answer(
            message, CONSTRUCT, [constructed(step["analyze"]["answer"]) if on else {} for step, on in both], reads
        )
        assert (following[np.array(reads)] == EVOLVE).all()
        for b, (step, on) in enumerate(both):
            if on:
                near = [int(n) - 1 for n in played.notes.listed[b] if n != NO_ID]
                assert near == [item["id"] for item in step["evolve"]["listed"]], (names[b], i)
        answers = [evolved(step["evolve"]["answer"]) if on else ({}, -1, []) for step, on in both]
        items, actions, lists = (list(column) for column in zip(*answers, strict=True))
        following = played.answer(message, EVOLVE, items, reads, actions, lists)
        assert (following == DONE).all()
        for b, (step, on) in enumerate(both):
            if on:
                wanted = [{key: note[key] for key in note if key != "time"} for note in step["store"]]
                assert played.store(b) == wanted, (names[b], i)
                assert int(played.notes.evolutions[b]) == step["evolutions"]
                evolutions += actions[b] >= 0
            elif step and step["searches"]:
                query = step["searches"][0]["query"]
                owner = message.owner
                text = parts.column(played.vocabulary.texts([[query]] * len(names), 1), 0)
                found = parts.nearest(
                    played.rows.store, owner == 0, text, step["k"], owner, encoder.TokenTable(played.vocabulary.table)
                )
                links = parts.at_ids(played.notes.stored.links, played.rows.store, found.id)
                shown = with_links(found.id, links)
                assert [int(n) - 1 for n in shown[b] if n not in (NO_ID, 0)] == step["shown"], (names[b], i)
                asked += 1
    assert asked > 8 and evolutions > 10


def test_an_answer_that_is_no_json_makes_a_bare_note():
    (first, *_) = histories("amem")["invalid"]
    played, on = Played(), [True] * ROWS
    message = played.message([first["text"]] * ROWS)
    played.answer(message, CONSTRUCT, [constructed(first["analyze"]["answer"])] * ROWS, on)
    played.answer(message, EVOLVE, [{}] * ROWS, on, [-1] * ROWS, [[]] * ROWS)
    for b in range(ROWS):
        assert played.store(b) == [{key: note[key] for key in note if key != "time"} for note in first["store"]]
        assert played.store(b)[0]["context"] == "General"


def test_links_follow_their_hits_until_so_many_are_shown():
    hits, none = jnp.array([[1, 2, 3]]), NO_ID
    links = jnp.array([[[4, 5, none], [6, 7, 8], [9, 4, none]]])
    assert with_links(hits, links)[0].tolist() == [1, 4, 5, none, 2, 6, 7, none, 3, 9, none, none]


def test_a_link_to_nothing_or_to_anothers_note_shows_nothing():
    played, on = Played(), [True] * ROWS
    linked = [{1: (Op.ADD, 0, ""), 2: (Op.ADD, 7, "")}] * ROWS
    for owner, text in ((0, "I sing."), (1, "I ski.")):
        message = played.message([text] * ROWS)
        message = message._replace(owner=message.owner + owner)
        played.answer(message, CONSTRUCT, [{}] * ROWS, on)
        played.answer(message, EVOLVE, linked, on, [amem.STRENGTHEN] * ROWS, [[]] * ROWS)
    assert [note["links"] for note in played.store(0)] == [[0, 7], [0, 7]]
    question = played.message(["I ski."] * ROWS)
    calls = [{0: (Op.ADD, NO_ID, "I ski.")}] * ROWS
    played.answer(question._replace(owner=question.owner + 1), amem.QUERY, calls, on)
    shown = played.rows.result
    said = played.vocabulary.encode("I ski.")
    plain = (np.asarray(shown.tokens[0]) & ~(1 << 30)).tolist()
    assert any(plain[i : i + len(said)] == said for i in range(len(plain)))
    sing = played.vocabulary.encode("I sing.")
    assert not any(plain[i : i + len(sing)] == sing for i in range(len(plain)))
