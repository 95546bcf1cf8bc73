"""Several owners in one store and many in one batch, over sessions: none ever meets what another one has stored.

Every owner writes in tokens (or names) of its own, so that whatever array they turn up in tells whose they are. Owners
say alike things in them: without the mask, another's entries would be as near to a query as one's own.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import lax
from memory_twin import ContextTwin, StoreTwin
from test_stages import END, QUERY, answer, stage, task_of
from test_stages import Script as Agent

from agemem_jax.benchmarks.hotpotqa.words import LAST_NAMES
from agemem_jax.data.batches import pad_texts, stack
from agemem_jax.data.scripts import write_turn
from agemem_jax.errors import InputError
from agemem_jax.memory import context, store
from agemem_jax.memory.encoder import TokenTable
from agemem_jax.memory.equality import equality_table
from agemem_jax.rollout.turn import NO_CALL
from agemem_jax.training import stores
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.types import NO_ID, PAD_ID, Op, Role, Status, Text

B, OWNERS, WORDS = 8, 3, 5  # rows, owners of a row, words that each owner has
FIRST = 1000  # token of the first owner's first word: above all ids, turns and counts
V = FIRST + B * OWNERS * WORDS
N, L, A, E, G, LT, K = 6, 4, 5, 8, 2, 2, 3
C, M, LINE = 40, 6, K * L
T = 12  # operations of a session
rng = np.random.default_rng(5)
TABLE = np.zeros((V, E), np.float32)
TABLE[FIRST:] = np.tile(rng.normal(size=(WORDS, E)), (B * OWNERS, 1)) + 0.01 * rng.normal(size=(V - FIRST, E))
ENCODE = TokenTable(TABLE)
PIECES = [b"<%d>" % i for i in range(V)]
SAME = equality_table(PIECES)
OPS = ("add", "update", "delete", "delete_all", "drop_oldest", "retrieve", "filter", "summary")
WEIGHTS = (6, 3, 2, 0.5, 0.5, 6, 1, 1)


def words_of(row: int, owner: int) -> range:
    """The tokens of one owner of one row."""
    first = FIRST + (row * OWNERS + owner) * WORDS
    return range(first, first + WORDS)


@jax.jit
def play_session(memory, steps, same):
    """Operations [T, B] of a session, whose contexts begin empty: what was said and found is put at their ends."""

    def step(carry, s):
        memory, ctx = carry
        asked = {name: s["op"] == i for i, name in enumerate(OPS)}
        memory, added, new_id = store.add(
            memory, asked["add"], s["content"], s["tags"], s["owner"], s["session"], s["turn"], ENCODE, same
        )
        memory, updated = store.update(
            memory, asked["update"], s["id"], s["content"], s["tags"], s["owner"], s["turn"], ENCODE, same
        )
        memory, deleted = store.delete(memory, asked["delete"], s["id"], asked["delete"], s["owner"])
        memory, cleared = store.delete_all(memory, asked["delete_all"], s["owner"])
        memory = store.drop_oldest(memory, asked["drop_oldest"])
        memory, found, retrieved = store.retrieve(
            memory, asked["retrieve"], s["content"], s["k"], s["filter"], s["owner"], ENCODE, K
        )
        entries = [Text(found.tokens[:, k], found.length[:, k]) for k in range(K)]
        shown = context.pack([Text(s["content"].tokens, jnp.where(asked["add"], s["content"].length, 0)), *entries])
        drop = context.oldest_drop(ctx, shown.length, 1)
        ctx, _ = context.remove(ctx, shown.length > 0, drop)
        ctx, _ = context.append(ctx, shown.length > 0, context.saying(shown), Role.TOOL, False, s["turn"])
        drop, filtered = context.filter_drop(ctx, s["content"], TABLE, 0.6)
        ctx, _ = context.remove(ctx, asked["filter"] & (filtered == Status.OK), drop)
        drop, _ = context.span_drop(ctx, s["k"])
        ctx, _, summed = context.replace(
            ctx, asked["summary"], drop, context.saying(s["content"]), Role.USER, s["turn"]
        )
        statuses = jnp.stack([added, updated, deleted, cleared, jnp.zeros_like(added), retrieved, filtered, summed])
        return (memory, ctx), (statuses, new_id, found, ctx.tokens, ctx.length)

    return lax.scan(step, (memory, context.empty(B, C, M)), steps)


def random_session(rng, number: int):
    """Operations [T, B] of an owner a row, in its own words."""
    owner = rng.integers(OWNERS, size=B)
    first = np.array([words_of(row, who)[0] for row, who in enumerate(owner)])
    own = lambda *shape: rng.integers(WORDS, size=shape) + first.reshape(1, B, *[1] * (len(shape) - 2))  # noqa: E731

    def texts(*axes, width, low, share=1.0):
        length = rng.integers(low, width + 1, (T, B, *axes)) * (rng.random((T, B, *axes)) < share)
        tokens = np.where(np.arange(width) < length[..., None], own(T, B, *axes, width), PAD_ID)
        return Text(jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32))

    number_of = lambda low, high: jnp.asarray(rng.integers(low, high, (T, B)), jnp.int32)  # noqa: E731
    whole = lambda x: jnp.asarray(np.broadcast_to(x, (T, B)), jnp.int32)  # noqa: E731
    return {
        "op": jnp.asarray(rng.choice(len(OPS), (T, B), p=np.array(WEIGHTS) / sum(WEIGHTS)), jnp.int32),
        "content": texts(width=A, low=0),
        "tags": texts(G, 2, width=LT, low=1, share=0.3),
        "filter": texts(G, 2, width=LT, low=1, share=0.05),
        "owner": whole(owner),
        "session": whole(number),
        "turn": whole(number * T + np.arange(T)[:, None]),
        "id": number_of(1, 12),
        "k": number_of(0, K + 2),
    }


def plain(text: Text, *at) -> tuple:
    """A text as a tuple of tokens; tags as pairs of such."""
    tokens, length = np.asarray(text.tokens)[at], np.asarray(text.length)[at]
    if length.ndim:
        return [
            tuple(tuple(t[:n].tolist()) for t, n in zip(*pair, strict=True))
            for pair in zip(tokens, length, strict=True)
        ]
    return tuple(tokens[:length].tolist())


def twin_step(memory: StoreTwin, window: ContextTwin, s: dict, at: tuple, found: list[int]):
    """One operation of one row by the twins: (status, new id or None, ids that may be found in order)."""
    content, owner, turn = plain(s["content"], *at), int(s["owner"][at]), int(s["turn"][at])
    tags, k = plain(s["tags"], *at), int(s["k"][at])
    op, memory_id = OPS[int(s["op"][at])], int(s["id"][at])
    new_id, ids, shown = None, [], ()
    if op == "add":
        status, new_id = memory.add(content, tags, owner, int(s["session"][at]), turn)
        shown = content
    elif op == "update":
        status = memory.update(memory_id, content, tags, owner, turn)
    elif op == "delete":
        status = memory.delete(memory_id, True, owner)
    elif op == "delete_all":
        status = memory.delete_all(owner)
    elif op == "drop_oldest":
        status = Status.OK
        memory.drop_oldest()
    elif op == "retrieve":
        wanted = plain(s["filter"], *at)
        asked = bool(content) or any(pair != ((), ()) for pair in wanted)
        candidates = memory.candidates(content, wanted, owner, -np.inf) if asked else []
        best = candidates[: min(k, K)]
        assert len(found) == len(best) and set(found) <= {entry.id for _, entry in candidates}
        scores = {entry.id: score for score, entry in candidates}
        assert np.allclose([scores[i] for i in found], [score for score, _ in best], atol=2.1 * store.SCORE_STEP)
        entries = {entry.id: entry for _, entry in candidates}
        for i in found:
            entries[i].hits += 1
            shown += entries[i].tokens
        status = Status.OK if found else Status.NOTHING_FOUND if asked else Status.EMPTY_TEXT
        ids = found
    if shown:
        window.remove(window.oldest_drop(len(shown), 1, 1.0))
        window.append([(token, True) for token in shown], Role.TOOL, False, turn)
    if op == "filter":
        drop, status = window.filter_drop(content, 0.6)
        if status == Status.OK:
            window.remove(drop)
    elif op == "summary":
        drop, _ = window.span_drop(k)
        _, status = window.replace(drop, [(token, True) for token in content], Role.USER, turn)
    return status, new_id, ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@hypothesis.given(seed=st.integers(0, 2**32 - 1), sessions=st.integers(1, 4))
@hypothesis.settings(max_examples=10)
def test_no_owner_meets_anothers_entries_in_any_session(folder, seed, sessions):
    rng = np.random.default_rng(seed)
    memory = store.empty(B, N, L, E, G, LT)
    twins = [StoreTwin(N, L, TABLE, PIECES, "refuse") for _ in range(B)]
    for number in range(sessions):
        steps = random_session(rng, number)
        (memory, _), outputs = play_session(memory, steps, SAME)
        statuses, new_ids, found, tokens, length = jax.device_get(outputs)
        steps = jax.device_get(steps)
        for row, twin in enumerate(twins):
            owner = int(steps["owner"][0, row])
            mine, window = set(words_of(row, owner)), ContextTwin(C, M, TABLE)
            for t in range(T):
                ids = [i for i in found.id[t, row].tolist() if i != NO_ID]
                status, new_id, shown = twin_step(twin, window, steps, (t, row), ids)
                op = int(steps["op"][t, row])
                if OPS[op] != "drop_oldest":
                    assert statuses[t, op, row] == status
                assert new_ids[t, row] == (NO_ID if new_id is None else new_id)
                assert ids == shown
                assert set(found.tokens[t, row].ravel().tolist()) <= mine | {PAD_ID}
                held = tokens[t, row, : length[t, row]].tolist()
                assert set(held) <= mine and held == window.tokens
        check_whose(memory, twins)
        stores.save(folder / "property", memory, PIECES, ENCODE)
        again = stores.reopen(folder / "property", PIECES, ENCODE)
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(again), strict=True))
        memory = again


def check_whose(memory: store.MemoryStore, twins: list[StoreTwin]) -> None:
    """Each row holds what its twin holds, and each entry words of its owner alone."""
    memory = jax.device_get(memory)
    for row, twin in enumerate(twins):
        entries = {}
        for n in np.flatnonzero(memory.valid[row]):
            entry = plain(Text(memory.tokens, memory.length), row, n)
            owner, tags = int(memory.owner[row, n]), plain(memory.tags, row, n)
            entries[int(memory.id[row, n])] = (
                owner,
                entry,
                tags,
                int(memory.hits[row, n]),
                int(memory.session[row, n]),
            )
            assert set(entry) | {t for pair in tags for part in pair for t in part} <= set(words_of(row, owner))
        assert entries == {e.id: (e.owner, e.tokens, e.tags, e.hits, e.session) for e in twin.entries}
        assert int(memory.next_id[row]) == twin.next_id


# What is deleted is gone.


def filled(seed: int, forgotten: int, words: range) -> store.MemoryStore:
    """A row in which three owners have stored alike; the texts and tags of `forgotten` are drawn from `words`."""
    rng, memory = np.random.default_rng(seed), store.empty(1, N, L, E, G, LT)
    one = lambda value: jnp.full((1,), value, jnp.int32)  # noqa: E731
    for turn in range(N):
        owner = turn % OWNERS
        own = list(words) if owner == forgotten else list(words_of(0, owner))
        tokens = jnp.asarray([[own[turn // OWNERS], *rng.choice(own, L - 1)]], jnp.int32)
        tags = Text(jnp.asarray(rng.choice(own, (1, G, 2, LT)), jnp.int32), jnp.full((1, G, 2), LT, jnp.int32))
        memory, status, _ = _add(memory, Text(tokens, one(L)), tags, one(owner), one(turn))
        assert status.tolist() == [Status.OK]
    return memory


@jax.jit
def _add(memory, text, tags, owner, turn):
    on = jnp.ones((1,), bool)
    return store.add(memory, on, text, tags, owner, turn, turn, ENCODE, SAME)


def patterns(memory: store.MemoryStore, owner: int) -> list[bytes]:
    """The bytes of each text, tag, key and vector that an owner has in row 0."""
    memory = jax.device_get(memory)
    mine = memory.owner[0] == owner
    arrays = memory.tokens[0], memory.tags.tokens[0], memory.key[0], memory.embedding[0]
    return [np.ascontiguousarray(entry).tobytes() for array in arrays for entry in array[mine]]


def holds(tree, searched: list[bytes]) -> int:
    """How many of the patterns occur in the arrays of a tree."""
    data = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    return sum(any(pattern in one for one in data) for pattern in searched)


@pytest.mark.parametrize("owner", range(OWNERS))
def test_delete_all_leaves_nothing_of_an_owner_in_any_array_or_file(tmp_path, owner):
    memory, on = filled(3, owner, words_of(0, owner)), jnp.ones((1,), bool)
    gone, kept = patterns(memory, owner), [p for o in range(OWNERS) if o != owner for p in patterns(memory, o)]
    read = lambda path: ocp.StandardCheckpointer().restore(path / "state")  # noqa: E731  (as it lies there)
    path = stores.save(tmp_path, memory, PIECES, ENCODE)
    assert holds(memory, gone) == holds(read(path), gone) == len(gone)
    after, status = store.delete_all(memory, on, jnp.full((1,), owner, jnp.int32))
    assert status.tolist() == [Status.OK]
    path = stores.save(tmp_path, after, PIECES, ENCODE)
    for tree in (after, read(path)):
        assert holds(tree, gone) == 0 and holds(tree, kept) == len(kept)
        integers = [leaf for leaf in jax.tree.leaves(tree) if np.issubdtype(leaf.dtype, np.signedinteger)]
        assert not any(np.isin(leaf, words_of(0, owner)).any() for leaf in integers)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # and no file of an earlier save is left
    data = [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    assert not any(pattern in one for pattern in gone for one in data)
    # Nothing that is left, count, order or place, depends on what was deleted.
    other = filled(3, owner, words_of(1, 0))
    assert not np.array_equal(other.tokens, memory.tokens)
    other, _ = store.delete_all(other, on, jnp.full((1,), owner, jnp.int32))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(after), strict=True))


# Saved stores.


def test_a_store_of_another_vocabulary_or_encoder_is_refused(tmp_path):
    memory = filled(0, 0, words_of(0, 0))
    stores.save(tmp_path, memory, PIECES, ENCODE)
    with pytest.raises(InputError, match="tokens of another vocabulary; give the tokenizer"):
        stores.reopen(tmp_path, [*PIECES[:-1], b"other"], ENCODE)
    for encode in (TokenTable(TABLE[:, :4]), TokenTable(np.roll(TABLE, 1, axis=0))):
        with pytest.raises(
            InputError, match="the store is of another encoder: .*; give the one that it was saved with"
        ):
            stores.reopen(tmp_path, PIECES, encode)
    rounded = TokenTable(TABLE * np.float32(1 + 1e-5))  # as on another machine
    assert np.array_equal(stores.reopen(tmp_path, PIECES, rounded).tokens, memory.tokens)


def test_a_save_that_was_cut_leaves_the_one_before(tmp_path, monkeypatch):
    memory = filled(0, 0, words_of(0, 0))
    path = stores.save(tmp_path, memory, PIECES, ENCODE)

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        stores.save(tmp_path, store.empty(1, N, L, E, G, LT), PIECES, ENCODE)
    monkeypatch.undo()
    assert path.exists() and stores.reopen(tmp_path, PIECES, ENCODE).valid.all()
    path = stores.save(tmp_path, memory, PIECES, ENCODE)  # what was half-written goes
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_damaged_or_missing_store_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no store was saved there"):
            stores.reopen(place, PIECES, ENCODE)
    path = stores.save(tmp_path, filled(0, 0, words_of(0, 0)), PIECES, ENCODE)
    (path / stores.FILE).write_text("{}")
    with pytest.raises(InputError, match=f"{stores.FILE} has 2 bytes instead of"):
        stores.reopen(tmp_path, PIECES, ENCODE)


# Whole stages: what an agent is shown, and its trace.


def name_of(row: int, owner: int) -> str:
    """The last name that stands in everything one speaker says."""
    return [name for name in LAST_NAMES if name not in QUERY][2 * row + owner]


def random_agents(rng, count: int) -> tuple[list[Agent], np.ndarray]:
    """Agents whose every call is drawn, and who speaks in each turn of stages 1 to 3 [count, 3 + 1 + 1]."""
    speakers, agents = rng.integers(2, size=(count, 5)), []
    for row in range(count):

        def said(owner, row=row) -> str:
            first, place = rng.choice(["Ada", "Ben", "Cora"]), rng.choice(["Halden", "Marnby"])
            return f"{first} {name_of(row, owner)} lives in {place}"

        def calls(owner, said=said) -> list:
            made = []
            for op in rng.choice(
                [Op.ADD, Op.UPDATE, Op.DELETE, Op.RETRIEVE, Op.FILTER], 3, p=[0.35, 0.15, 0.1, 0.3, 0.1]
            ):
                number, text = str(rng.integers(1, 6)), f" {said(owner)}"
                made.append((Op(op), {
                    Op.ADD: {"content": text}, Op.UPDATE: {"memory_id": number, "content": text},
                    Op.DELETE: {"memory_id": number, "confirmation": True}, Op.RETRIEVE: {"query": " lives in Halden"},
                    Op.FILTER: {"criteria": text},
                }[op]))  # fmt: skip
            return made

        who = speakers[row]
        agents.append(Agent(
            facts=[said(who[t]) for t in range(3)], distractors=[said(who[3])], one=[calls(who[t]) for t in range(3)],
            two=[calls(who[3])], three=[calls(who[4]), calls(who[4]), answer("Halden")],
        ))  # fmt: skip
    return agents, speakers


@pytest.mark.parametrize("seed", range(4))
def test_what_a_row_is_shown_is_the_speakers_own(seed):
    run, episode = stage("paper")
    spec, source = run.spec.rollout, run.source
    agents, speakers = random_agents(np.random.default_rng(seed), spec.batch)
    most = max(spec.turns(k) for k in (1, 2, 3))

    def turns(lines):
        ids = [
            source.tokenizer.encode_markup(x if isinstance(x, str) else write_turn(run.config.tools, x) + END)
            for x in lines
        ]
        rest = source.tokenizer.encode_markup(write_turn(run.config.tools, []) + END)
        return pad_texts(ids + [rest] * (most - len(ids)), most, spec.width)

    scripts = [stack([turns(getattr(agent, name)) for agent in agents]) for name in ("one", "two", "three")]
    summary = stack([pad_texts([source.tokenizer.encode_markup(f" Ada{END}")], 1, spec.width)] * spec.batch)
    owners = speakers + 10 * np.arange(spec.batch)[:, None]
    task = task_of(run, agents).replace(
        fact_owner=owners[:, :3].astype(np.int32),
        distractor_owner=owners[:, 3:4].astype(np.int32),
        owner=owners[:, 4].astype(np.int32),
    )
    suppress = jnp.full((spec.batch,), NO_CALL, jnp.int32)
    after, traces = jax.device_get(
        episode(jax.device_put(task), scripts, summary, run.world, jnp.int32(ALL_TOOLS), suppress)
    )
    decode = run.tokenizer.decode
    named = functools.partial(names_in, [name_of(r, o) for r in range(spec.batch) for o in range(2)])
    retrieved = foreign = 0
    for row in range(spec.batch):
        mine = {name_of(row, owner) for owner in range(2)}
        entries, before = {}, set()
        for k, trace in enumerate(traces, 1):
            before = set() if k == 2 else before
            for slot in np.flatnonzero(trace.ran[:, row]):
                at = lambda text, slot=slot, row=row: decode(text.tokens[slot, row][: text.length[slot, row]].tolist())  # noqa: E731
                who = name_of(row, speakers[row, min(trace.turn[slot, row], 2) if k == 1 else k + 1])
                shown, seen = named(at(trace.shown)), named(at(trace.seen))
                assert shown <= {who} and seen <= {who} | before
                retrieved += bool(shown)
                held = {
                    int(i): decode(tokens[:n].tolist())
                    for i, tokens, n in zip(
                        trace.store_id[slot, row], trace.store_tokens.tokens[slot, row],
                        trace.store_tokens.length[slot, row], strict=True,
                    ) if i != NO_ID
                }  # fmt: skip
                for i in entries.keys() | held.keys():  # what changed in the store is the speaker's
                    if entries.get(i) != held.get(i):
                        assert named(entries.get(i, "")) | named(held.get(i, "")) <= {who}
                foreign += bool(named(" ".join(held.values())) - {who})
                context_names = named(decode(trace.context[slot, row][: trace.context_length[slot, row]].tolist()))
                assert context_names <= mine
                entries, before = held, shown
        memory = after[-1].store
        for n in np.flatnonzero(memory.valid[row]):
            owner = int(memory.owner[row, n]) - 10 * row
            assert named(decode(memory.tokens[row, n][: memory.length[row, n]].tolist())) == {name_of(row, owner)}
        segments = after[-1].segments.tokens[row]
        assert named(" ".join(decode(segment.tolist()) for segment in segments)) <= mine
    assert retrieved > 10 and foreign > 10  # otherwise this would say little


def names_in(names: list[str], text: str) -> set[str]:
    return {name for name in names if name in text}
