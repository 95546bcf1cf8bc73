"""The store against its plain Python twin, and against what users of other memory systems report broken."""

import functools
import io

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from memory_twin import StoreTwin, cosine, embed

from agemem_jax.memory import store as memory
from agemem_jax.memory.encoder import TokenTable, encode, lexical_table, policy_table
from agemem_jax.memory.equality import equality_table
from agemem_jax.types import NO_ID, PAD_ID, Status, Text

WORDS, WEIGHTLESS = 7, (8, 9)  # tokens 1..7 weigh something, 8 and 9 nothing
N, L, A, E, G, LT, KMAX = 5, 4, 6, 8, 3, 2, 4
TABLE = np.random.default_rng(7).normal(size=(10, E)).astype(np.float32)
TABLE[[PAD_ID, *WEIGHTLESS]] = 0
ENCODE = TokenTable(TABLE)
PIECES = [b"<pad>", *(b"%c" % c for c in b"abcdefg"), b" ", b"."]  # the text of each token
SAME = equality_table(PIECES)
# Another vocabulary of as many tokens, in which many texts say the same.
VARIED = [b"<pad>", b"Ada", b" ada", b"ADA. ", b"Oslo", b" OSLO!", b"\xc3\x89", b" \n", b"\xc3", b"?"]
OPS = ("add", "update", "delete", "delete_all", "retrieve")


def text(*rows, width=A):
    """Token lists -> Text [B, width]."""
    tokens = np.full((len(rows), width), PAD_ID, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Text(jnp.asarray(tokens), jnp.asarray([len(row) for row in rows], jnp.int32))


def tags(*rows, slots=G):
    """A list of {slot: (key, value)} -> Text [B, slots, 2, LT]."""
    tokens, length = np.zeros((len(rows), slots, 2, LT), np.int32), np.zeros((len(rows), slots, 2), np.int32)
    for i, row in enumerate(rows):
        for slot, pair in row.items():
            for part, piece in enumerate(pair):
                tokens[i, slot, part, : len(piece)] = piece
                length[i, slot, part] = len(piece)
    return Text(jnp.asarray(tokens), jnp.asarray(length))


def ints(*values):
    return jnp.asarray(values, jnp.int32)


def on(batch=1):
    return jnp.ones((batch,), bool)


def new_store(batch=1, entries=N):
    return memory.empty(batch, entries, L, E, G, LT)


def add(store, words, pairs=None, owner=0, turn=0, duplicates="refuse"):
    """Adds the same text to every row; returns the store and the statuses and ids as lists."""
    batch = store.valid.shape[0]
    store, status, new_id = _add(
        store, on(batch), text(*[words] * batch), tags(*[pairs or {}] * batch), ints(*[owner] * batch),
        ints(*[0] * batch), ints(*[turn] * batch), ENCODE, SAME, duplicates=duplicates,
    )  # fmt: skip
    return store, status.tolist(), new_id.tolist()


_add = jax.jit(memory.add, static_argnames="duplicates")
_update, _delete, _delete_all = jax.jit(memory.update), jax.jit(memory.delete), jax.jit(memory.delete_all)
_retrieve = jax.jit(memory.retrieve, static_argnames=("max_k", "count_hits"))


def retrieve(store, words, k=KMAX, pairs=None, owner=0, **options):
    """Asks every row the same; returns the store, the ids found of row 0, and its status."""
    batch = store.valid.shape[0]
    store, found, status = _retrieve(
        store, on(batch), text(*[words] * batch), ints(*[k] * batch), tags(*[pairs or {}] * batch),
        ints(*[owner] * batch), ENCODE, **{"max_k": KMAX, **options},
    )  # fmt: skip
    return store, found.id[0][found.found[0]].tolist(), int(status[0])


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


# Random sequences of operations against the twin.


@functools.partial(jax.jit, static_argnames="duplicates")
def run_sequence(store, steps, same, min_score, duplicates):
    """Operations [T, B] one after another; per step what each returned, and which rows' stores changed."""

    def step(store, s):
        before, asked = store, {name: s["on"] & (s["op"] == i) for i, name in enumerate(OPS)}
        store, added, new_id = memory.add(
            store, asked["add"], s["content"], s["tags"], s["owner"], s["session"], s["turn"], ENCODE, same, duplicates
        )
        store, updated = memory.update(
            store, asked["update"], s["id"], s["content"], s["tags"], s["owner"], s["turn"], ENCODE, same, duplicates
        )
        store, deleted = memory.delete(store, asked["delete"], s["id"], s["confirmed"], s["owner"])
        store, cleared = memory.delete_all(store, asked["delete_all"], s["owner"])
        store, found, retrieved = memory.retrieve(
            store, asked["retrieve"], s["content"], s["k"], s["filter"], s["owner"], ENCODE, KMAX, min_score
        )
        statuses = jnp.stack([added, updated, deleted, cleared, retrieved])
        differs = [jnp.any((a != b).reshape(a.shape[0], -1), axis=1) for a, b in _pairs(before, store)]
        return store, (statuses, new_id, found, functools.reduce(jnp.logical_or, differs))

    return lax.scan(step, store, steps)


def _pairs(one, other):
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


def random_steps(rng, length, batch, op_weights, owners):
    """A pytree of operations [T, B]. Few words and short texts, so that duplicates and ties are frequent."""
    shape = (length, batch)
    content_length = rng.choice(A + 1, shape, p=[0.05, 0.25, 0.3, 0.2, 0.1, 0.05, 0.05])
    content = np.where(np.arange(A) < content_length[..., None], rng.integers(1, 10, (*shape, A)), PAD_ID)

    def random_tags(share):
        sizes = rng.integers(1, LT + 1, (*shape, G, 2)) * (rng.random((*shape, G, 1)) < share)
        pieces = rng.integers(1, 3, (*shape, G, 2, LT))
        return Text(np.where(np.arange(LT) < sizes[..., None], pieces, PAD_ID).astype(np.int32), sizes.astype(np.int32))

    number = lambda low, high: rng.integers(low, high, shape).astype(np.int32)  # noqa: E731
    return {
        "on": rng.random(shape) < 0.95,
        "op": rng.choice(len(OPS), shape, p=np.asarray(op_weights) / sum(op_weights)).astype(np.int32),
        "content": Text(content.astype(np.int32), content_length.astype(np.int32)),
        "tags": random_tags(0.4),
        "filter": random_tags(0.12),
        "owner": number(0, owners),
        "session": number(0, 3),
        "turn": np.broadcast_to(np.arange(length, dtype=np.int32)[:, None], shape),
        "id": number(-1, 10),
        "confirmed": rng.random(shape) < 0.8,
        "k": number(-1, KMAX + 2),
    }


def python_text(tokens, length):
    return tuple(tokens[:length])


def python_tags(tokens, length):
    return [tuple(python_text(t, n) for t, n in zip(*pair, strict=True)) for pair in zip(tokens, length, strict=True)]


def check_retrieval(candidates, k, ids, scores):
    """The device's ids are the twin's best k; scores on neighbouring grid points may change places, equal texts not."""
    best = candidates[: min(max(k, 0), KMAX)]
    score = {entry.id: value for value, entry in candidates}
    assert len(ids) == len(best) and len(set(ids)) == len(ids)
    for rank, memory_id in enumerate(ids):
        assert abs(score[memory_id] - best[rank][0]) <= 2.1 * memory.SCORE_STEP
        assert abs(score[memory_id] - scores[rank]) <= 1.1 * memory.SCORE_STEP
    entries = {entry.id: entry for _, entry in candidates}
    for rank, memory_id in enumerate(ids):
        earlier = {i for i in entries if i < memory_id and entries[i].tokens == entries[memory_id].tokens}
        assert earlier <= set(ids[:rank])


def check_contents(twin, store, row):
    live = {}
    for slot in np.flatnonzero(store.valid[row]):
        n = store.length[row, slot]
        live[int(store.id[row, slot])] = (
            tuple(store.tokens[row, slot, :n].tolist()),
            python_tags(store.tags.tokens[row, slot].tolist(), store.tags.length[row, slot].tolist()),
            *(int(getattr(store, name)[row, slot]) for name in ("owner", "session", "created", "updated", "hits")),
        )
        np.testing.assert_allclose(store.embedding[row, slot], embed(TABLE, store.tokens[row, slot, :n]), atol=1e-5)
    assert live == {e.id: (e.tokens, e.tags, e.owner, e.session, e.created, e.updated, e.hits) for e in twin.entries}
    assert int(store.next_id[row]) == twin.next_id
    blank = ~store.valid[row]
    assert (store.id[row][blank] == NO_ID).all() and not store.tokens[row][blank].any()
    assert not store.key[row][blank].any()


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    duplicates=st.sampled_from(["refuse", "add"]),
    op_weights=st.sampled_from([(6, 2, 2, 0.2, 5), (8, 1, 1, 0, 4), (4, 4, 4, 1, 3)]),
    owners=st.integers(1, 3),
    pieces=st.sampled_from([PIECES, VARIED]),
    min_score=st.sampled_from([-1.0, 0.3]),
)
def test_random_sequences_agree_with_the_twin(seed, duplicates, op_weights, owners, pieces, min_score):
    length, batch = 24, 64  # 40 examples: 2,560 sequences of 24 operations
    steps = random_steps(np.random.default_rng(seed), length, batch, op_weights, owners)
    same = equality_table(pieces)
    store, outputs = jax.device_get(run_sequence(new_store(batch), steps, same, min_score, duplicates))
    statuses, new_ids, found, changed = outputs

    plain = jax.tree.map(lambda x: x.tolist(), {k: v for k, v in steps.items() if not isinstance(v, Text)})
    texts = {k: (v.tokens.tolist(), v.length.tolist()) for k, v in steps.items() if isinstance(v, Text)}
    found_ids, found_scores = found.id.tolist(), found.score.tolist()
    for row in range(batch):
        twin = StoreTwin(N, L, TABLE, pieces, duplicates)
        for t in range(length):
            get = lambda name, t=t, row=row: plain[name][t][row]  # noqa: E731
            piece = lambda name, t=t, row=row: (texts[name][0][t][row], texts[name][1][t][row])  # noqa: E731
            words, pairs = python_text(*piece("content")), python_tags(*piece("tags"))
            owner, got_ids = get("owner"), [i for i in found_ids[t][row] if i != NO_ID]
            new_id, op = None, OPS[get("op")]
            if not get("on"):
                status = Status.NOT_RUN
            elif op == "add":
                status, new_id = twin.add(words, pairs, owner, get("session"), get("turn"))
            elif op == "update":
                status = twin.update(get("id"), words, pairs, owner, get("turn"))
            elif op == "delete":
                status = twin.delete(get("id"), get("confirmed"), owner)
            elif op == "delete_all":
                status = twin.delete_all(owner)
            else:
                wanted = python_tags(*piece("filter"))
                asked = bool(words) or any(pair != ((), ()) for pair in wanted)
                candidates = twin.candidates(words, wanted, owner, min_score) if asked else []
                check_retrieval(candidates, get("k"), got_ids, found_scores[t][row])
                status = Status.OK if got_ids else Status.NOTHING_FOUND if asked else Status.EMPTY_TEXT
                for entry in twin.entries:
                    entry.hits += entry.id in got_ids
            expected = [Status.NOT_RUN] * len(OPS)
            expected[get("op")] = status
            assert statuses[t, :, row].tolist() == expected
            assert new_ids[t, row] == (NO_ID if new_id is None else new_id)
            if status != Status.OK:
                assert not changed[t, row] and not (got_ids and op != "retrieve")
        check_contents(twin, store, row)


# What users of other memory systems report broken.


def test_every_acknowledged_write_of_64_writers_is_readable():
    store = new_store(64, entries=10)
    for turn in range(10):
        words = [[1 + (row + turn) % WORDS, 1 + turn % WORDS, 1 + row % WORDS, 1 + turn // WORDS] for row in range(64)]
        store, status, _ = _add(
            store, on(64), text(*words), tags(*[{}] * 64), ints(*[0] * 64), ints(*[0] * 64), ints(*[turn] * 64), ENCODE,
            SAME, duplicates="add",
        )  # fmt: skip
        assert (status == Status.OK).all()
        for row in range(64):
            assert store.tokens[row, turn, :4].tolist() == words[row]
    assert store.valid.all() and (store.id == jnp.arange(1, 11)).all()


def test_owner_mask_comes_before_top_k():
    store, of_owner = new_store(entries=64), {}
    rng = np.random.default_rng(0)
    for _ in range(64):
        owner, words = int(rng.integers(16)), rng.integers(1, WORDS + 1, 4).tolist()
        store, _, new_id = add(store, words, owner=owner, duplicates="add")
        of_owner.setdefault(owner, []).append((new_id[0], words))
    for owner in range(17):
        mine = of_owner.get(owner, [])
        for k in range(1, KMAX + 1):
            _, ids, status = retrieve(store, [1, 2], k=k, owner=owner)
            brute = sorted(mine, key=lambda entry: (-cosine(TABLE, (1, 2), entry[1]), entry[0]))
            assert ids == [memory_id for memory_id, _ in brute[:k]]
            assert status == (Status.OK if mine else Status.NOTHING_FOUND)


def test_ids_of_other_owners_are_unknown():
    store, _, (mine,) = add(new_store(), [1, 2], owner=3)
    for op in (
        lambda: _update(store, on(), ints(mine), text([5]), tags({}), ints(4), ints(1), ENCODE, SAME),
        lambda: _delete(store, on(), ints(mine), on(), ints(4)),
    ):
        after, status = op()
        assert status.tolist() == [Status.UNKNOWN_ID] and equal(after, store)
    after, status = _delete_all(store, on(), ints(4))
    assert status.tolist() == [Status.NOTHING_FOUND] and equal(after, store)
    _, ids, status = retrieve(store, [1, 2], owner=4)
    assert ids == [] and status == Status.NOTHING_FOUND


@pytest.mark.parametrize("duplicates, rows", [("refuse", 1), ("add", 2)])
def test_the_same_text_twice(duplicates, rows):
    store, _, _ = add(new_store(), [1, 2, 3])
    after, (status,), (new_id,) = add(store, [1, 2, 3], duplicates=duplicates)
    assert int(after.valid.sum()) == rows
    assert (status, new_id) == ((Status.DUPLICATE, NO_ID) if rows == 1 else (Status.OK, 2))
    assert equal(after, store) == (rows == 1)
    _, (status,), _ = add(store, [1, 2, 3], owner=1)
    assert status == Status.OK  # another owner's memory


def test_equal_texts_come_back_by_id_even_from_slots_used_again():
    store = new_store()
    for words in ([1], [2], [3]):
        store, _, _ = add(store, words)
    store, _ = _delete(store, on(), ints(1), on(), ints(0))
    store, _, _ = add(store, [5, 6], duplicates="add")  # id 4, in the first slot
    store, _ = _update(store, on(), ints(3), text([6, 5]), tags({}), ints(0), ints(1), ENCODE, SAME)
    store, _, _ = add(store, [5, 6], duplicates="add")
    assert store.id[0].tolist() == [4, 2, 3, 5, NO_ID]
    assert retrieve(store, [5, 6], k=3)[1] == [3, 4, 5]


def test_update_keeps_what_it_does_not_name_and_refreshes_the_embedding():
    kind, place, year = ((1,), (1, 1)), ((2,), (7,)), ((3,), (5,))
    store, _, _ = add(new_store(), [1, 2], {0: kind, 1: place}, owner=2, turn=3)
    store, _, _ = retrieve(store, [1], owner=2)
    store, status = _update(store, on(), ints(1), text([5, 6]), tags({1: year}), ints(2), ints(9), ENCODE, SAME)
    assert status.tolist() == [Status.OK]
    for name, value in dict(id=1, created=3, updated=9, hits=1, owner=2, length=2).items():
        assert int(getattr(store, name)[0, 0]) == value
    pairs = python_tags(store.tags.tokens[0, 0].tolist(), store.tags.length[0, 0].tolist())
    assert pairs == [kind, place, year]
    np.testing.assert_allclose(store.embedding[0, 0], embed(TABLE, (5, 6)), atol=1e-6)
    assert retrieve(store, [5, 6], owner=2, min_score=0.99)[1] == [1]
    assert retrieve(store, [1, 2], owner=2, min_score=0.99)[1] == []

    # A given key replaces its value; a pair for which no slot is left is refused, not dropped.
    store, status = _update(store, on(), ints(1), text([5]), tags({2: ((2,), (6,))}), ints(2), ints(9), ENCODE, SAME)
    pairs = python_tags(store.tags.tokens[0, 0].tolist(), store.tags.length[0, 0].tolist())
    assert status.tolist() == [Status.OK] and pairs == [kind, ((2,), (6,)), year]
    after, status = _update(store, on(), ints(1), text([4]), tags({1: ((4,), (4,))}), ints(2), ints(9), ENCODE, SAME)
    assert status.tolist() == [Status.TEXT_TOO_LONG] and equal(after, store)


def test_a_contradicting_replacement_never_ends_with_nothing():
    store, _, _ = add(new_store(), [1, 2, 3])
    for words, status in (
        ([1, 2, 4], Status.OK),
        ([], Status.EMPTY_TEXT),
        ([4, 4, 4, 4, 4], Status.TEXT_TOO_LONG),
        ([1, 2, 4], Status.UNCHANGED),
    ):
        store, got = _update(store, on(), ints(1), text(words), tags({}), ints(0), ints(1), ENCODE, SAME)
        assert got.tolist() == [status]
        assert store.tokens[0, 0, :3].tolist() == [1, 2, 4] and int(store.valid.sum()) == 1
    store, _, _ = add(store, [7])
    after, status = _update(store, on(), ints(2), text([1, 2, 4]), tags({}), ints(0), ints(1), ENCODE, SAME)
    assert status.tolist() == [Status.DUPLICATE] and equal(after, store)


def test_an_update_that_changes_nothing_is_none():
    """Neither the text, as far as texts can say the same, nor a tag: hits, turn and arrays stay as they are."""
    place, other = ((2,), (7,)), ((2,), (6,))
    store, _, _ = add(new_store(), [1, 2], {1: place}, turn=3)
    again = lambda store, words, pairs: _update(  # noqa: E731
        store, on(), ints(1), text(words), tags(pairs), ints(0), ints(9), ENCODE, SAME
    )
    for pairs in ({}, {1: place}, {2: place}):
        after, status = again(store, [1, 2], pairs)
        assert status.tolist() == [Status.UNCHANGED] and equal(after, store)
    after, status = again(store, [1, 2], {1: other})
    assert status.tolist() == [Status.OK] and int(after.updated[0, 0]) == 9
    after, status = again(store, [2, 1], {})
    assert status.tolist() == [Status.OK] and not equal(after, store)


def test_delete_all_has_no_page_size_and_wipes_the_text():
    entries = 1500
    numbers = jnp.arange(entries)
    store = new_store(entries=entries)

    def one(store, i):
        words = Text(jnp.stack([1 + i % 7, 1 + i // 7 % 7, 1 + i // 49 % 7, 1 + i // 343 % 7])[None], ints(4))
        return memory.add(store, on(), words, tags({}), ints(0) + i % 2, ints(0), ints(0), ENCODE, SAME)[:2]

    store, statuses = jax.jit(lambda s: lax.scan(one, s, numbers))(store)
    assert (statuses == Status.OK).all() and store.valid.all()
    store, status = _delete_all(store, on(), ints(0))
    assert status.tolist() == [Status.OK] and int(store.valid.sum()) == entries // 2
    assert retrieve(store, [1])[1] == [] and len(retrieve(store, [1], owner=1)[1]) == KMAX
    assert not store.tokens[~store.valid].any() and not store.embedding[~store.valid].any()
    store, _, new_id = add(store, [1])
    assert new_id == [entries + 1]


def test_ids_are_never_used_again():
    store, seen = new_store(), []
    for _ in range(3 * N):
        store, status, (new_id,) = add(store, [1, 2])
        assert status == [Status.OK]
        seen.append(new_id)
        store, _ = _delete(store, on(), ints(new_id), on(), ints(0))
    assert seen == list(range(1, 3 * N + 1)) and equal(store.replace(next_id=ints(1)), new_store())


def test_the_oldest_entry_is_dropped_whosever_it_is():
    store, first = new_store(batch=2), ints(1, 1)
    for words, owner in (([1], 1), ([2], 0), ([3], 1)):
        store, _, _ = add(store, words, owner=owner)
    store, _ = _delete(store, on(2), first, on(2), first)  # its place, the first one, is the newest entry's now
    store, _, _ = add(store, [4], owner=1)
    held = store
    for left in ([3, 4], [4], [], []):
        held = memory.drop_oldest(held, jnp.array([True, False]))
        assert sorted(held.id[0][held.valid[0]].tolist()) == left
        assert sorted(held.id[1][held.valid[1]].tolist()) == [2, 3, 4]
    blank = new_store(batch=2)
    assert equal(*(jax.tree.map(lambda x: x[0], one.replace(next_id=first)) for one in (held, blank)))
    assert equal(*(jax.tree.map(lambda x: x[1], one) for one in (held, store)))


def test_a_higher_threshold_never_shows_more():
    store = new_store()
    for words in ([1], [1, 2], [2, 3], [4], [1, 2, 3]):
        store, _, _ = add(store, words)
    shown = [set(retrieve(store, [1, 2], min_score=s)[1]) for s in np.linspace(-1, 1.1, 15)]
    assert all(more >= fewer for more, fewer in zip(shown, shown[1:], strict=False))
    assert (
        len(shown[0]) == KMAX and shown[-1] == set() and 2 in shown[-2] | set(retrieve(store, [1, 2], min_score=1)[1])
    )


def test_metadata_filter():
    kind, place = ((1,), (1, 1)), ((2,), (7,))
    store, _, _ = add(new_store(), [1], {0: kind, 1: place})
    store, _, _ = add(store, [2], {0: kind})
    store, _, _ = add(store, [3], {2: place})
    assert retrieve(store, [2], pairs={1: kind})[1] == [2, 1]  # in any slot of entry and filter
    assert sorted(retrieve(store, [2], pairs={1: place})[1]) == [1, 3]
    assert retrieve(store, [2], pairs={0: kind, 1: place})[1] == [1]
    assert retrieve(store, [2], pairs={1: ((1,), (1,))})[1:] == ([], Status.NOTHING_FOUND)
    assert retrieve(store, [], pairs={1: kind}, min_score=0.5)[1:] == ([1, 2], Status.OK)
    assert retrieve(store, [])[1:] == ([], Status.EMPTY_TEXT)
    assert retrieve(store, [2], k=1, pairs={1: kind})[1] == [2]


def test_a_look_without_counting_leaves_the_store_alone():
    store, _, _ = add(new_store(), [1])
    after, ids, _ = retrieve(store, [1], count_hits=False)
    assert ids == [1] and equal(after, store)
    after, _, _ = retrieve(store, [1])
    assert after.hits[0, 0] == 1


def test_more_results_asked_than_the_store_has_places():
    store, _, _ = add(new_store(), [1])
    _, found, _ = memory.retrieve(store, on(), text([1]), ints(50), tags({}), ints(0), ENCODE, max_k=2 * N)
    assert found.id.tolist() == [[1] + [NO_ID] * (2 * N - 1)] and found.tokens.shape == (1, 2 * N, L)


def test_rows_are_independent():
    store = new_store(2)
    words, none = text([1, 2], [3]), tags({}, {})
    only_first = jnp.array([True, False])
    store, status, _ = _add(store, only_first, words, none, ints(0, 0), ints(0, 0), ints(0, 0), ENCODE, SAME)
    assert status.tolist() == [Status.OK, Status.NOT_RUN] and store.valid.sum(axis=1).tolist() == [1, 0]
    _, found, status = memory.retrieve(store, on(2), words, ints(3, 3), none, ints(0, 0), ENCODE, max_k=3)
    assert found.id[:, 0].tolist() == [1, NO_ID] and status.tolist() == [Status.OK, Status.NOTHING_FOUND]


def test_a_reopened_store_holds_exactly_the_rows():
    store = new_store()
    for turn, words in enumerate(([1, 2], [3], [4, 5, 6])):
        store, _, _ = add(store, words, {0: ((1,), (2, 2))}, turn=turn)
    store, _ = _delete(store, on(), ints(2), on(), ints(0))
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(jax.device_get(store)))
    file.seek(0)
    arrays = np.load(file)
    reopened = jax.tree.unflatten(jax.tree.structure(store), [jnp.asarray(arrays[name]) for name in arrays.files])
    assert equal(reopened, store)
    assert retrieve(reopened, [4])[1] == retrieve(store, [4])[1]
    assert add(reopened, [7])[2] == [4]


def test_rows_on_eight_devices_give_the_same_without_talking():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rng = np.random.default_rng(3)
    steps = jax.tree.map(lambda x: jnp.asarray(x[0]), random_steps(rng, 1, 16, (1, 1, 1, 1, 1), 2))
    store, _, _ = add(new_store(16), [1, 2, 3])

    def both(store, s):
        store, status, new_id = memory.add(
            store, s["on"], s["content"], s["tags"], s["owner"], s["session"], s["turn"], ENCODE, SAME
        )
        store, found, looked = memory.retrieve(
            store, s["on"], s["content"], s["k"], s["filter"], s["owner"], ENCODE, KMAX
        )
        return store, status, new_id, found, looked

    compiled = jax.jit(both).lower(*jax.device_put((store, steps), rows)).compile()
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-reduce", "all-to-all", "permute"))
    assert equal(compiled(*jax.device_put((store, steps), rows)), jax.jit(both)(store, steps))


def test_a_wrong_duplicates_setting_names_itself():
    with pytest.raises(ValueError, match='store.duplicates is "ignore"'):
        add(new_store(), [1], duplicates="ignore")


# The encoders.


def test_encode_is_a_unit_sum_of_rows():
    vectors = encode(jnp.asarray(TABLE), text([1, 2, 2], [], [8, 9], [99, -5, 3]))
    np.testing.assert_allclose(vectors[0], embed(TABLE, (1, 2, 2)), atol=1e-6)
    assert not vectors[1].any() and not vectors[2].any()
    np.testing.assert_allclose(vectors[3], embed(TABLE, (3,)), atol=1e-6)  # tokens outside the table weigh nothing


def test_lexical_table():
    pieces = [None, b"Paris", b" paris", "▁PARIS,".encode(), b"London", b", ", b"\n", b"\xe2\x96", b"the", b""]
    counts = np.array([9, 1, 2, 0, 1, 9, 9, 0, 9, 0])
    table = lexical_table(pieces, counts, 64, seed=1)
    assert table.shape == (10, 64) and table.dtype == np.float32
    assert (table[1] == table[2]).all() and (table[1] == table[3]).all() and (table[1] != table[4]).any()
    assert not table[[0, 5, 6, 9]].any()  # special, punctuation, control, empty
    norms = np.linalg.norm(table, axis=1)
    np.testing.assert_allclose(norms[[1, 4, 7, 8]], np.log([10 / 4, 10 / 2, 10 / 4, 10 / 10]), atol=1e-6)
    np.testing.assert_array_equal(table, lexical_table(pieces, counts, 64, seed=1))
    assert (table != lexical_table(pieces, counts, 64, seed=2)).any()
    np.testing.assert_allclose(np.linalg.norm(lexical_table(pieces, None, 64, 1), axis=1)[[1, 8]], 1, atol=1e-6)


def test_policy_table():
    rows = np.random.default_rng(0).normal(size=(6, 4)) + 10
    table = policy_table(rows, None)
    np.testing.assert_allclose(table, rows - rows.mean(axis=0), atol=1e-5)
    weighted = policy_table(rows, np.array([3, 0, 1, 0, 0, 0]))
    unseen = np.log(2) / 2  # the median of the two that were seen
    np.testing.assert_allclose(weighted, table * np.array([0, unseen, np.log(2), *[unseen] * 3])[:, None], atol=1e-5)


def test_a_token_that_was_never_seen_is_not_the_most_telling_one():
    counts = np.array([40, 20, 5, 2, 1, 0, 0])
    words = [b"the", b"of", b"river", b"Halden", b"Ada", b"Zyx", b"Qqq"]
    norms = np.linalg.norm(lexical_table(words, counts, 64, 1), axis=1)
    assert norms[0] == 0 and (np.diff(norms[:5]) > 0).all()  # the rarer, the more
    np.testing.assert_allclose(norms[5:], norms[2])  # of five seen words the third


def test_encoders_refuse_wrong_sizes():
    with pytest.raises(ValueError, match="counts has shape"):
        lexical_table([b"a", b"b"], np.ones(3), 8, 0)
    with pytest.raises(ValueError, match="counts has shape"):
        policy_table(np.ones((4, 2)), np.ones(3))
    with pytest.raises(ValueError, match="store.embedding_size is 0"):
        lexical_table([b"a"], None, 0, 0)
