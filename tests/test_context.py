"""The context window against its plain Python twin, and the padded-text helpers."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from memory_twin import ContextTwin

from agemem_jax.memory import context
from agemem_jax.types import NO_MESSAGE, PAD_ID, Role, Status, Text

C, M, W, E = 16, 5, 6, 8
LOW_WATER = 0.75
TABLE = np.random.default_rng(5).normal(size=(10, E)).astype(np.float32)
TABLE[[PAD_ID, 9]] = 0
THETA = 0.6
OPS = ("append", "filter", "summarize", "make_room", "drop_some")


def text(*rows, width=W):
    """Token lists -> Text [B, width]."""
    tokens = np.full((len(rows), width), PAD_ID, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Text(jnp.asarray(tokens), jnp.asarray([len(row) for row in rows], jnp.int32))


def ints(*values):
    return jnp.asarray(values, jnp.int32)


def window(*messages, capacity=C):
    """One row with messages of (tokens, round, pinned)."""
    ctx = context.empty(1, capacity, M)
    for tokens, number, pinned in messages:
        said = context.saying(text(tokens))
        ctx, status = _append(ctx, jnp.ones(1, bool), said, Role.USER, pinned, ints(number))
        assert status.tolist() == [Status.OK]
    return ctx


_append = jax.jit(context.append)
_replace = jax.jit(context.replace)


def drops(*messages):
    return jnp.isin(jnp.arange(M), jnp.asarray(messages, jnp.int32))[None]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


# Random sequences of edits against the twin.


@jax.jit
def run_sequence(ctx, steps):
    """Edits [T, B] one after another, and after each the whole window."""

    def step(ctx, s):
        before, asked = ctx, {name: s["on"] & (s["op"] == i) for i, name in enumerate(OPS)}
        ctx, appended = context.append(ctx, asked["append"], s["text"], s["role"], s["pinned"], s["round"])

        criteria = context.plain(s["text"])
        similarity = context.similarity(before, criteria, TABLE)
        filtered, found = context.filter_drop(ctx, criteria, TABLE, THETA)
        ctx, filter_cut = context.remove(ctx, asked["filter"], filtered)

        spanned, spans = context.span_drop(ctx, s["span"])
        ctx, summary_cut, summarized = context.replace(ctx, asked["summarize"], spanned, s["text"], 2, s["round"])

        oldest = context.oldest_drop(ctx, s["need"], s["more"], LOW_WATER)
        ctx, room_cut = context.remove(ctx, asked["make_room"], oldest)
        ctx, some_cut = context.remove(ctx, asked["drop_some"], s["some"])

        statuses = jnp.stack([appended, found, summarized, spans])
        cuts = jnp.stack([filter_cut, summary_cut, room_cut, some_cut])
        drop = jnp.stack([filtered, spanned, oldest])
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(ctx), strict=True)
        changed = functools.reduce(jnp.logical_or, [jnp.any((a != b).reshape(len(a), -1), axis=1) for a, b in pairs])
        return ctx, (statuses, cuts, drop, similarity, changed, ctx)

    return lax.scan(step, ctx, steps)[1]


def random_steps(rng, length, batch, op_weights):
    shape = (length, batch)
    sizes = rng.choice(W + 1, shape, p=[0.06, 0.26, 0.26, 0.18, 0.12, 0.06, 0.06])
    tokens = rng.integers(1, 10, (*shape, W)) | np.where(rng.random((*shape, W)) < 0.7, context.SAID, 0)
    tokens = np.where(np.arange(W) < sizes[..., None], tokens, PAD_ID)
    number = lambda low, high: rng.integers(low, high, shape).astype(np.int32)  # noqa: E731
    return {
        "on": rng.random(shape) < 0.95,
        "op": rng.choice(len(OPS), shape, p=np.asarray(op_weights) / sum(op_weights)).astype(np.int32),
        "text": Text(tokens.astype(np.int32), sizes.astype(np.int32)),
        "role": number(0, 4),
        "pinned": rng.random(shape) < 0.2,
        "round": np.cumsum(number(0, 2), axis=0, dtype=np.int32),
        "span": number(-1, 4),
        "need": number(0, W + 1),
        "more": number(0, 4),
        "some": rng.random((*shape, M)) < 0.3,
    }


def check_window(twin, ctx, t, row):
    length = ctx.length[t, row]
    assert length == len(twin.tokens)
    assert ctx.tokens[t, row].tolist() == twin.tokens + [PAD_ID] * (C - length)
    said = [t for m in twin.messages for t in m.said]
    assert ctx.tokens[t, row][ctx.said[t, row]].tolist() == said
    owners = [m.slot for m in twin.messages for _ in m.tokens]
    assert ctx.message[t, row].tolist() == owners + [NO_MESSAGE] * (C - length)
    assert np.flatnonzero(ctx.alive[t, row]).tolist() == sorted(m.slot for m in twin.messages)
    assert ctx.count[t, row] == twin.count
    for m in twin.messages:
        got = [getattr(ctx, name)[t, row, m.slot] for name in ("role", "pinned", "round", "born")]
        assert got == [m.role, m.pinned, m.round, m.born]


def near_threshold(twin, criteria):
    return any(abs(score - THETA) < 1e-5 for score in twin.similarity(criteria).values())


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1), op_weights=st.sampled_from([(6, 1, 1, 1, 0.3), (4, 2, 2, 2, 1), (8, 0, 2, 1, 0)])
)
def test_random_sequences_agree_with_the_twin(seed, op_weights):
    length, batch = 16, 64  # 30 examples: 1,920 sequences of 16 edits
    steps = random_steps(np.random.default_rng(seed), length, batch, op_weights)
    outputs = jax.device_get(run_sequence(context.empty(batch, C, M), steps))
    statuses, cuts, drop, similarity, changed, ctx = outputs
    assert ctx.count[-1].max() > M  # slots were used again
    for row in range(batch):
        twin = ContextTwin(C, M, TABLE)
        for t in range(length):
            get = lambda name, t=t, row=row: steps[name][t, row].item()  # noqa: E731
            written = steps["text"].tokens[t, row, : steps["text"].length[t, row]]
            words = tuple((written & ~context.SAID).tolist())
            pairs = tuple(zip(words, (written >= context.SAID).tolist(), strict=True))
            on, op, before = get("on"), OPS[get("op")], len(twin.tokens)
            scores = twin.similarity(words)
            wanted = [scores.get(i, 0.0) for i in range(M)]
            np.testing.assert_allclose(similarity[t, row], wanted, atol=1e-5)
            expected_cuts, edited = [None] * 4, False
            if op == "append":
                status = twin.append(pairs, get("role"), get("pinned"), get("round")) if on else Status.NOT_RUN
                assert statuses[t, 0, row] == status
                edited = status == Status.OK
            elif op == "filter":
                if near_threshold(twin, words):
                    break  # either answer is right; the rest of this row's sequence is not compared
                chosen, status = twin.filter_drop(words, THETA)
                assert statuses[t, 1, row] == status and set(np.flatnonzero(drop[t, 0, row])) == chosen
                if on:
                    expected_cuts[0] = twin.remove(chosen)
                    edited = bool(chosen)
            elif op == "summarize":
                chosen, spans = twin.span_drop(get("span"))
                assert statuses[t, 3, row] == spans and set(np.flatnonzero(drop[t, 1, row])) == chosen
                if on:
                    expected_cuts[1], status = twin.replace(chosen, pairs, 2, get("round"))
                    edited = status == Status.OK
                    assert statuses[t, 2, row] == status
            elif op == "make_room":
                chosen = twin.oldest_drop(get("need"), get("more"), LOW_WATER)
                assert set(np.flatnonzero(drop[t, 2, row])) == chosen
                if on:
                    expected_cuts[2] = twin.remove(chosen)
                    edited = bool(chosen)
            elif on:
                chosen = {m.slot for m in twin.messages if steps["some"][t, row, m.slot]}
                expected_cuts[3] = twin.remove(chosen)
                edited = bool(chosen)
            for got, cut in zip(cuts[t, :, row], expected_cuts, strict=True):
                unchanged = before if op != "append" else len(twin.tokens)
                assert got == cut or (cut is None and got in (unchanged, len(twin.tokens)))
            assert edited == changed[t, row]
            check_window(twin, ctx, t, row)


# Single edits, where the expected window can be read off.


def test_remove_cuts_at_the_first_token_that_goes():
    ctx = window(([1, 2], 0, False), ([3], 0, False), ([4, 5], 1, False))
    after, cut = context.remove(ctx, jnp.ones(1, bool), drops(1))
    assert after.tokens[0, :5].tolist() == [1, 2, 4, 5, PAD_ID] and cut.tolist() == [2]
    assert after.message[0, :5].tolist() == [0, 0, 2, 2, NO_MESSAGE] and after.alive[0, :3].tolist() == [
        True,
        False,
        True,
    ]
    same, cut = context.remove(ctx, jnp.zeros(1, bool), drops(1))
    assert equal(same, ctx) and cut.tolist() == [5]
    same, cut = context.remove(ctx, jnp.ones(1, bool), drops(5))
    assert equal(same, ctx) and cut.tolist() == [5]


def test_replace_puts_the_summary_where_the_first_removed_message_was():
    ctx = window(([1], 0, True), ([2, 2], 0, False), ([3], 0, True), ([4, 4, 4], 1, False), ([5], 2, True))
    after, cut, status = _replace(ctx, jnp.ones(1, bool), drops(1, 3), text([7, 8, 9]), Role.USER, ints(2))
    assert after.tokens[0, :7].tolist() == [1, 7, 8, 9, 3, 5, PAD_ID]
    assert after.message[0, :6].tolist() == [0, 1, 1, 1, 2, 4]  # it takes the first slot that is free
    assert after.born[0].tolist() == [0, 5, 2, 3, 4] and context.newest(after).tolist() == [1]
    assert cut.tolist() == [1] and status.tolist() == [Status.OK] and after.count.tolist() == [6]


def test_replace_longer_than_what_goes_and_without_room():
    ctx = window(([1], 0, False), ([2], 1, False), ([3], 1, True), capacity=6)
    after, cut, status = _replace(ctx, jnp.ones(1, bool), drops(0), text([6, 7, 8, 9]), Role.USER, ints(1))
    assert after.tokens[0].tolist() == [6, 7, 8, 9, 2, 3] and status.tolist() == [Status.OK] and cut.tolist() == [0]
    for summary, drop, expected in (
        ([6] * 5, drops(0), Status.NO_ROOM),
        ([], drops(0), Status.EMPTY_TEXT),
        ([6], drops(7), Status.NOTHING_TO_EDIT),
    ):
        after, cut, status = _replace(ctx, jnp.ones(1, bool), drop, text(summary), Role.USER, ints(1))
        assert equal(after, ctx) and status.tolist() == [expected] and cut.tolist() == [3]


def test_append_refuses_what_does_not_fit():
    ctx = window(([1, 2, 3], 0, False), capacity=5)
    after, status = _append(ctx, jnp.ones(1, bool), text([4, 5, 6]), Role.TOOL, False, ints(0))
    assert equal(after, ctx) and status.tolist() == [Status.NO_ROOM]
    after, status = _append(ctx, jnp.ones(1, bool), text([4, 5]), Role.TOOL, False, ints(0))
    assert status.tolist() == [Status.OK] and after.tokens[0].tolist() == [1, 2, 3, 4, 5]
    full = window(*[([1], 0, False)] * M)
    after, status = _append(full, jnp.ones(1, bool), text([4]), Role.TOOL, False, ints(0))
    assert equal(after, full) and status.tolist() == [Status.NO_ROOM]


def test_filter_leaves_pinned_messages():
    ctx = window(([1, 1], 0, True), ([1], 0, False), ([2], 0, False), ([9], 0, False))
    drop, status = context.filter_drop(ctx, text([1]), TABLE, 0.99)
    assert np.flatnonzero(drop[0]).tolist() == [1] and status.tolist() == [Status.OK]
    drop, status = context.filter_drop(ctx, text([]), TABLE, -1.0)
    assert not drop.any() and status.tolist() == [Status.EMPTY_TEXT]
    drop, status = context.filter_drop(ctx, text([9]), TABLE, 0.1)
    assert not drop.any() and status.tolist() == [Status.NOTHING_FOUND]


def test_span_counts_rounds_that_still_have_messages():
    ctx = window(([1], 0, False), ([2], 3, False), ([3], 3, True), ([4], 7, False))
    for span, messages in ((0, [0, 1, 3]), (1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (9, [0, 1, 3]), (-1, [])):
        drop, status = context.span_drop(ctx, ints(span))
        assert np.flatnonzero(drop[0]).tolist() == messages
        assert status.tolist() == [Status.OK if messages else Status.NOTHING_TO_EDIT]


def test_oldest_drop_frees_enough_with_the_fewest_messages():
    ctx = window(([1] * 4, 0, True), ([2] * 3, 1, False), ([3] * 3, 2, False), ([4] * 4, 3, False))  # 14 of 16
    for need, messages in ((0, []), (2, []), (3, [1]), (5, [1]), (6, [1, 2]), (9, [1, 2, 3]), (99, [1, 2, 3])):
        assert np.flatnonzero(context.oldest_drop(ctx, ints(need))[0]).tolist() == messages


def test_overflow_goes_down_to_the_low_water_mark():
    ctx = window(([1] * 4, 0, True), ([2] * 3, 1, False), ([3] * 3, 2, False), ([4] * 4, 3, False))  # 14 of 16
    dropped = lambda *args: np.flatnonzero(context.oldest_drop(ctx, *args)[0]).tolist()  # noqa: E731
    assert dropped(ints(2), 1, 0.5) == []  # all that is needed fits: nothing goes, full as it is
    assert dropped(ints(3), 0, 0.75) == [1, 2]  # 17 of 16: down to 12
    assert dropped(ints(0), 2, 1.0) == [1] and dropped(ints(0), 2, 0.6) == [1, 2, 3]  # 6 of 5 messages: to 5, to 3
    assert dropped(ints(3), 2, 1.0) == [1] and dropped(ints(6), 2, 1.0) == [1, 2]


def test_age_is_the_order_of_creation_and_not_the_slot():
    on = jnp.ones(1, bool)
    ctx = window(([1] * 3, 0, False), ([2] * 3, 1, False), ([3] * 3, 2, False))
    ctx, _ = context.remove(ctx, on, drops(0))
    ctx, _ = _append(ctx, on, text([4] * 3), Role.USER, False, ints(3))  # in slot 0 again, and the youngest
    assert ctx.message[0, :9].tolist() == [1] * 3 + [2] * 3 + [0] * 3 and ctx.born[0, :3].tolist() == [3, 1, 2]
    assert np.flatnonzero(context.oldest_drop(ctx, ints(8))[0]).tolist() == [1]
    assert np.flatnonzero(context.oldest_drop(ctx, ints(13))[0]).tolist() == [1, 2]
    assert np.flatnonzero(context.span_drop(ctx, ints(1))[0][0]).tolist() == [0] == context.newest(ctx).tolist()


def test_any_number_of_messages_fits_a_small_table():
    ctx, on = context.empty(1, C, M), jnp.ones(1, bool)
    for i in range(4 * M):
        drop = context.oldest_drop(ctx, ints(3), 1)
        ctx, _ = context.remove(ctx, on, drop)
        ctx, status = _append(ctx, on, text([1 + i % 8] * 3), Role.USER, False, ints(i))
        assert status.tolist() == [Status.OK]
    assert ctx.count.tolist() == [4 * M]
    assert ctx.tokens[0].tolist() == [1 + i % 8 for i in range(4 * M - 5, 4 * M) for _ in range(3)] + [PAD_ID]


def test_a_message_that_grew_counts_in_full():
    ctx = window(([1], 0, True), ([2], 1, False), capacity=8)
    more = text([5, 6, 7])
    grown = context.extend(ctx, context.saying(more, jnp.asarray([[True, False, True] + [False] * (W - 3)])))
    assert grown.tokens[0].tolist() == [1, 2, 5, 6, 7] + [PAD_ID] * 3 and grown.message[0, :5].tolist() == [0] + [1] * 4
    assert grown.said[0].tolist() == [True] * 3 + [False, True] + [False] * 3
    assert np.flatnonzero(context.oldest_drop(grown, ints(4))[0]).tolist() == [1]
    after, cut, status = _replace(grown, jnp.ones(1, bool), drops(1), text([3] * 6), Role.USER, ints(1))
    assert (
        after.tokens[0].tolist() == [1] + [3] * 6 + [PAD_ID] and cut.tolist() == [1] and status.tolist() == [Status.OK]
    )
    assert after.said[0].tolist() == [True] + [False] * 7


def test_similarity_over_several_chunks():
    capacity = context.SIMILARITY_CHUNK + 50
    rng = np.random.default_rng(0)
    long = rng.integers(1, 9, 200).tolist()
    ctx, twin = context.empty(1, capacity, M), ContextTwin(capacity, M, TABLE)
    for tokens in ([3, 4], long, [5], long[:90]):  # the last one across the border
        said = context.saying(text(tokens, width=256))
        ctx, _ = context.append(ctx, jnp.ones(1, bool), said, 1, False, ints(0))
        twin.append([(token, True) for token in tokens], 1, False, 0)
    got = jax.jit(context.similarity)(ctx, text([5, 1, 2]), TABLE)[0]
    wanted = twin.similarity((5, 1, 2))
    np.testing.assert_allclose(got, [wanted.get(i, 0) for i in range(M)], atol=1e-5)


# Helpers on padded buffers.


@hypothesis.settings(max_examples=40)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_write_and_pack_agree_with_lists(seed):
    rng, rows = np.random.default_rng(seed), 8
    buffer, block = rng.random((rows, 10, 2), np.float32), rng.random((rows, 4, 2), np.float32)
    start, count = rng.integers(0, 12, rows), rng.integers(0, 5, rows)
    got = _write(buffer, block, start, count)
    for row in range(rows):
        for i in range(count[row]):
            if start[row] + i < 10:
                buffer[row, start[row] + i] = block[row, i]
    np.testing.assert_array_equal(got, buffer)

    lists = [[rng.integers(1, 9, rng.integers(0, width + 1)).tolist() for _ in range(rows)] for width in (3, 5)]
    shared = [7, 8]
    parts = [text(*lists[0], width=3), Text(jnp.asarray(shared + [0]), jnp.asarray(2)), text(*lists[1], width=5)]
    for width in (None, 6):
        packed = _pack(parts, width)
        assert packed.tokens.shape == (rows, width or 11)
        for row in range(rows):
            joined = (lists[0][row] + shared + lists[1][row])[:width]
            assert packed.length[row] == len(joined)
            assert packed.tokens[row].tolist() == joined + [PAD_ID] * (packed.tokens.shape[1] - len(joined))


_write = jax.jit(context.write)
_pack = jax.jit(context.pack, static_argnums=1)


def test_write_keeps_every_dtype():
    for dtype in (jnp.int8, jnp.int16, bool, jnp.bfloat16):
        buffer = jnp.zeros((1, 4), dtype)
        got = context.write(buffer, jnp.ones((1, 6), jnp.int32), ints(1), ints(2))
        assert got.dtype == dtype and got[0].astype(int).tolist() == [0, 1, 1, 0]
