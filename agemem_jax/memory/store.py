"""Long-term memory: padded arrays of entries and pure operations on them.

Every operation is batched over rows `B` (each row is one rollout with a store of its own), can be jitted, and is total:
what cannot be done gives a `types.Status` and leaves the store bit for bit as it was. `on` selects the rows that run;
the others keep their store and report NOT_RUN. Entries are named by ids 1, 2, 3, ... of their row, which are never used
again and say nothing about the place of an entry. Entries of one owner do not exist for another: their ids are
UNKNOWN_ID and no retrieval shows them.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from agemem_jax.memory.encoder import Encoder
from agemem_jax.memory.equality import EqualityTable, text_key
from agemem_jax.memory.status import first_failure
from agemem_jax.types import NO_ID, PAD_ID, Status, Text

# Cosines are rounded to this grid: what orders entries is then the same on every device and in every program, where the
# last bits of a float sum are not, and equal texts tie exactly.
SCORE_STEP = 2.0**-16


@struct.dataclass
class MemoryStore:
    """Entries of `B` stores. Places without an entry (`valid` False) hold PAD_ID, NO_ID and zeros."""

    tokens: jax.Array  # [B, N, L] int32 content
    length: jax.Array  # [B, N] int32
    embedding: jax.Array  # [B, N, E] float32, unit norm (zero if no token weighs anything)
    key: jax.Array  # [B, N, 2] uint32 of `equality.text_key`: entries with the same one say the same
    valid: jax.Array  # [B, N] bool
    id: jax.Array  # [B, N] int32
    next_id: jax.Array  # [B] int32 the id of the next entry
    created: jax.Array  # [B, N] int32 turn, counted over the whole trajectory (RolloutSpec.turns_before)
    updated: jax.Array  # [B, N] int32 turn of the last write, counted alike
    hits: jax.Array  # [B, N] int32 how often it was retrieved
    owner: jax.Array  # [B, N] int32
    session: jax.Array  # [B, N] int32 session in which it was added
    tags: Text  # [B, N, G, 2, Lt] (key, value) pairs; slot 0 is memory_type; both lengths 0 = no tag


@struct.dataclass
class Retrieved:
    """What a retrieval found, best first; places that are not `found` hold PAD_ID, NO_ID and zeros."""

    tokens: jax.Array  # [B, Kmax, L] int32
    length: jax.Array  # [B, Kmax] int32
    id: jax.Array  # [B, Kmax] int32
    score: jax.Array  # [B, Kmax] float32 cosine
    found: jax.Array  # [B, Kmax] bool


def empty(
    batch: int, entries: int, entry_tokens: int, embedding_size: int, tag_slots: int, tag_tokens: int
) -> MemoryStore:
    """`batch` stores without entries; sizes are B, N, L, E, G and Lt."""
    zeros = lambda *axes: jnp.zeros((batch, entries, *axes), jnp.int32)  # noqa: E731
    return MemoryStore(
        tokens=jnp.full((batch, entries, entry_tokens), PAD_ID, jnp.int32),
        length=zeros(),
        embedding=jnp.zeros((batch, entries, embedding_size)),
        key=zeros(2).astype(jnp.uint32),
        valid=zeros().astype(bool),
        id=jnp.full((batch, entries), NO_ID, jnp.int32),
        next_id=jnp.ones((batch,), jnp.int32),
        created=zeros(),
        updated=zeros(),
        hits=zeros(),
        owner=zeros(),
        session=zeros(),
        tags=Text(jnp.full((batch, entries, tag_slots, 2, tag_tokens), PAD_ID, jnp.int32), zeros(tag_slots, 2)),
    )


def add(
    store: MemoryStore,
    on: jax.Array,
    content: Text,
    tags: Text,
    owner: jax.Array,
    session: jax.Array,
    turn: jax.Array,
    encode: Encoder,
    equality: EqualityTable,
    duplicates: str = "refuse",
) -> tuple[MemoryStore, jax.Array, jax.Array]:
    """Stores a new entry (the paper's Add_memory).

    Args:
        on: `[B]` bool.
        content: `[B, A]`, any width.
        tags: `[B, G, 2, Lt]` pairs; slot 0 is memory_type.
        owner, session, turn: `[B]` int32.
        encode: the encoder of all texts of this store.
        equality: of `text_key`.
        duplicates: what a text that says the same again, for the same owner, is: "refuse" (DUPLICATE) or "add" (a new
            entry).

    Returns:
        The store, status `[B]` (EMPTY_TEXT, TEXT_TOO_LONG, DUPLICATE, STORE_FULL: the first that applies), and the new
        entry's id `[B]` (NO_ID if there is none).
    """
    text, fits = _fit(content, store.tokens.shape[-1])
    key = text_key(equality, text)
    twice = jnp.any(_holds(store, owner, key), axis=1) & _refuses(duplicates)
    full = jnp.all(store.valid, axis=1)
    status = first_failure(
        on,
        (content.length <= 0, Status.EMPTY_TEXT),
        (~fits | ~_whole(tags), Status.TEXT_TOO_LONG),
        (twice, Status.DUPLICATE),
        (full, Status.STORE_FULL),
    )
    ok = status == Status.OK
    new_id = jnp.where(ok, store.next_id, NO_ID)
    store = _write_row(
        store,
        ok,
        slot=jnp.argmin(store.valid, axis=1),
        tokens=text.tokens,
        length=text.length,
        embedding=encode(text, False),
        key=key,
        valid=True,
        id=store.next_id,
        created=turn,
        updated=turn,
        hits=0,
        owner=owner,
        session=session,
        tags=_clean(tags),
    )
    return store.replace(next_id=store.next_id + ok), status, new_id


def update(
    store: MemoryStore,
    on: jax.Array,
    memory_id: jax.Array,
    content: Text,
    tags: Text,
    owner: jax.Array,
    turn: jax.Array,
    encode: Encoder,
    equality: EqualityTable,
    duplicates: str = "refuse",
) -> tuple[MemoryStore, jax.Array]:
    """Replaces an entry's content and what follows from it (the paper's Update_memory).

    Id, created, hits, owner and session stay.

    A given memory_type replaces the entry's. Every other given pair replaces the entry's pair with the same key, or
    takes a free tag slot; pairs not given stay. Arguments are those of `add`, and `memory_id` `[B]` int32.

    Returns:
        The store and status `[B]`: UNKNOWN_ID, EMPTY_TEXT, TEXT_TOO_LONG (the content, or a tag without a free slot),
        UNCHANGED (the entry says the same already, with the same tags), DUPLICATE (another entry of the owner says the
        same, and duplicates are refused).
    """
    text, fits = _fit(content, store.tokens.shape[-1])
    named, slot = _find(store, memory_id, owner)
    key = text_key(equality, text)
    same = _holds(store, owner, key)
    twice = jnp.any(same & ~named, axis=1) & _refuses(duplicates)
    old = jax.tree.map(lambda x: _take_row(x, slot), store.tags)
    merged, tags_fit = _merge_tags(old, _clean(tags))
    unchanged = jnp.any(same & named, axis=1) & _same_tags(merged, old)
    status = first_failure(
        on,
        (~jnp.any(named, axis=1), Status.UNKNOWN_ID),
        (content.length <= 0, Status.EMPTY_TEXT),
        (~fits | ~tags_fit | ~_whole(tags), Status.TEXT_TOO_LONG),
        (unchanged, Status.UNCHANGED),
        (twice, Status.DUPLICATE),
    )
    store = _write_row(
        store,
        status == Status.OK,
        slot,
        tokens=text.tokens,
        length=text.length,
        embedding=encode(text, False),
        key=key,
        updated=turn,
        tags=merged,
    )
    return store, status


def delete(
    store: MemoryStore, on: jax.Array, memory_id: jax.Array, confirmed: jax.Array, owner: jax.Array
) -> tuple[MemoryStore, jax.Array]:
    """Removes one entry and wipes its arrays (the paper's Delete_memory).

    `memory_id` `[B]` int32, `confirmed` `[B]` bool. Returns the store and status `[B]`: UNKNOWN_ID, NOT_CONFIRMED.
    """
    named, slot = _find(store, memory_id, owner)
    status = first_failure(
        on, (~jnp.any(named, axis=1), Status.UNKNOWN_ID), (~confirmed.astype(bool), Status.NOT_CONFIRMED)
    )
    return _write_row(store, status == Status.OK, slot, **_BLANK), status


def drop_oldest(store: MemoryStore, on: jax.Array) -> MemoryStore:
    """Removes and wipes the entry that was added first, whosever it is, in rows `on` `[B]`; an empty store stays so."""
    age = jnp.where(store.valid, store.id, jnp.iinfo(jnp.int32).max)
    return _write_row(store, on & jnp.any(store.valid, axis=1), jnp.argmin(age, axis=1), **_BLANK)


def delete_all(store: MemoryStore, on: jax.Array, owner: jax.Array) -> tuple[MemoryStore, jax.Array]:
    """Removes and wipes every entry of the owner `[B]`; ids are still not used again.

    Returns the store and status `[B]`: NOTHING_FOUND if the owner has none.
    """
    gone = store.valid & (store.owner == owner[:, None]) & on[:, None]
    status = first_failure(on, (~jnp.any(gone, axis=1), Status.NOTHING_FOUND))

    def wipe(array: jax.Array, blank: int | float | bool) -> jax.Array:
        return jnp.where(_expand(gone, array), blank, array)

    return store.replace(**{name: jax.tree.map(wipe, getattr(store, name), _BLANK[name]) for name in _BLANK}), status


def retrieve(
    store: MemoryStore,
    on: jax.Array,
    query: Text,
    k: jax.Array,
    filter: Text | None,
    owner: jax.Array,
    encode: Encoder,
    max_k: int,
    min_score: float = -jnp.inf,
    count_hits: bool = True,
) -> tuple[MemoryStore, Retrieved, jax.Array]:
    """The owner's entries nearest to the query by cosine (the paper's Retrieve_memory).

    Owner and filter are masks applied before the best are chosen, so that exactly min(k, matching entries of the owner)
    come back (fewer only by `min_score`). Higher cosine first, then lower id. An entry matches the filter if it holds
    every given pair, with equal key and value tokens, in any of its tag slots. An empty query with a filter takes the
    matching entries in order of id, with score 0 and whatever `min_score` is.

    Args:
        on: `[B]` bool.
        query: `[B, A]`.
        k: `[B]` int32, cut to 0..max_k.
        filter: `[B, G', 2, Lt]` pairs; both lengths 0 = not given. Any number of pairs G'. None: no row has any,
            and the tags are not looked at.
        owner: `[B]` int32.
        encode: the encoder of all texts of this store.
        max_k: Kmax, static.
        min_score: lowest cosine shown.
        count_hits: False leaves the store as it was (a look that the agent did not ask for).

    Returns:
        The store with the hits counted, what was found, and status `[B]`: EMPTY_TEXT (neither query nor filter),
        NOTHING_FOUND.
    """
    asks = query.length > 0
    filters, match = jnp.zeros_like(asks), store.valid & (store.owner == owner[:, None])
    if filter is not None:
        filters, match = jnp.any(filter.length > 0, axis=(1, 2)), match & _matches(store.tags, _clean(filter))
    cosine = jnp.einsum("bne,be->bn", store.embedding, encode(query, True), precision="highest")
    score = jnp.round(cosine / SCORE_STEP) * SCORE_STEP
    match &= (score >= min_score) | ~asks[:, None]
    match &= (on & (asks | filters))[:, None]
    slot, found, score = _best(jnp.where(asks[:, None], score, 0), match, store.id, k, max_k)
    result = _retrieved(store, slot, found, score)
    status = first_failure(on, (~asks & ~filters, Status.EMPTY_TEXT), (~jnp.any(found, axis=1), Status.NOTHING_FOUND))
    if count_hits:
        store = store.replace(hits=jax.vmap(lambda row, i, hit: row.at[i].add(hit))(store.hits, slot, found))
    return store, result, status


def best(store: MemoryStore, score: jax.Array, match: jax.Array, k: jax.Array, max_k: int) -> Retrieved:
    """The `k` [B] entries of highest score [B, N] among the matches [B, N], ties by lower id; `max_k` is Kmax."""
    return _retrieved(store, *_best(score, match, store.id, k, max_k))


def _retrieved(store: MemoryStore, slot: jax.Array, found: jax.Array, score: jax.Array) -> Retrieved:
    """The entries in slots [B, Kmax], as far as they were found."""
    return Retrieved(
        tokens=jnp.where(found[..., None], _take_rows(store.tokens, slot), PAD_ID),
        length=jnp.where(found, _take_rows(store.length, slot), 0),
        id=jnp.where(found, _take_rows(store.id, slot), NO_ID),
        score=score,
        found=found,
    )


# What a place without an entry holds, for every array with one row per entry.
_BLANK = dict(
    tokens=PAD_ID, length=0, embedding=0.0, key=0, valid=False, id=NO_ID, created=0, updated=0, hits=0, owner=0,
    session=0, tags=Text(tokens=PAD_ID, length=0),
)  # fmt: skip


def _fit(text: Text, width: int) -> tuple[Text, jax.Array]:
    """The text in `width` places, clean, and whether nothing was cut `[B]`."""
    tokens = text.tokens[:, :width]
    tokens = jnp.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD_ID)
    return _clean(Text(tokens, jnp.clip(text.length, 0, width))), text.length <= width


def _clean(text: Text) -> Text:
    """The text with PAD_ID past its length, so that equal texts are equal arrays."""
    real = jnp.arange(text.tokens.shape[-1]) < text.length[..., None]
    return Text(jnp.where(real, text.tokens, PAD_ID).astype(jnp.int32), text.length.astype(jnp.int32))


def _whole(tags: Text) -> jax.Array:
    """Whether no key or value of `tags` `[B, G, 2, Lt]` was longer than Lt when it was written: `[B]`."""
    return jnp.all(tags.length <= tags.tokens.shape[-1], axis=(1, 2))


def _holds(store: MemoryStore, owner: jax.Array, key: jax.Array) -> jax.Array:
    """Entries of the owner that say the same as a text of this key `[B, 2]`: `[B, N]` bool."""
    return store.valid & (store.owner == owner[:, None]) & jnp.all(store.key == key[:, None], axis=-1)


def _refuses(duplicates: str) -> bool:
    if duplicates not in ("refuse", "add"):
        raise ValueError(f'store.duplicates is "{duplicates}"; it must be "refuse" or "add"')
    return duplicates == "refuse"


def _find(store: MemoryStore, memory_id: jax.Array, owner: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The owner's entry of that id as a mask `[B, N]` (all False if there is none) and its slot `[B]`."""
    named = store.valid & (store.id == memory_id[:, None]) & (store.owner == owner[:, None])
    return named, jnp.argmax(named, axis=1)


def _write_row(store: MemoryStore, ok: jax.Array, slot: jax.Array, **fields) -> MemoryStore:
    """Sets the named fields of one entry per row where `ok`; a scatter, so that a donated store is written in place."""

    def write(array: jax.Array, value) -> jax.Array:
        place = jnp.where(ok, slot, array.shape[1])  # past the end: dropped
        value = jnp.broadcast_to(jnp.asarray(value, array.dtype), (array.shape[0], *array.shape[2:]))
        return jax.vmap(lambda row, i, v: row.at[i].set(v, mode="drop"))(array, place, value)

    return store.replace(**{name: jax.tree.map(write, getattr(store, name), new) for name, new in fields.items()})


def _take_row(array: jax.Array, slot: jax.Array) -> jax.Array:
    """`[B, N, ...]` at slot `[B]` -> `[B, ...]`."""
    return jax.vmap(lambda row, i: row[i])(array, slot)


def _take_rows(array: jax.Array, slots: jax.Array) -> jax.Array:
    """`[B, N, ...]` at slots `[B, Kmax]` -> `[B, Kmax, ...]`."""
    return jax.vmap(lambda row, i: row[i])(array, slots)


def _expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def _matches(tags: Text, filter: Text) -> jax.Array:
    """Entries `[B, N]` whose tags `[B, N, G, 2, Lt]` hold every given pair of the filter `[B, G', 2, Lt]`."""
    same = jnp.all(tags.tokens[:, :, None] == filter.tokens[:, None, :, None], axis=-1)
    same &= tags.length[:, :, None] == filter.length[:, None, :, None]
    held = jnp.any(jnp.all(same, axis=-1), axis=-1)
    given = jnp.any(filter.length > 0, axis=-1)
    return jnp.all(held | ~given[:, None], axis=-1)


def _same_tags(one: Text, other: Text) -> jax.Array:
    """Whether the pairs of two entries `[B, G, 2, Lt]` are the same in every slot: `[B]`."""
    return jnp.all(one.tokens == other.tokens, axis=(1, 2, 3)) & jnp.all(one.length == other.length, axis=(1, 2))


def _merge_tags(old: Text, new: Text) -> tuple[Text, jax.Array]:
    """The pairs `[B, G, 2, Lt]` after an update by `new`, and whether each given pair found a slot `[B]`."""
    slots = jnp.arange(old.length.shape[1])
    fits = jnp.ones(old.length.shape[:1], bool)
    for g in range(len(slots)):
        given = jnp.any(new.length[:, g] > 0, axis=-1)
        if g == 0:
            target = jnp.broadcast_to(slots == 0, old.length.shape[:2])
        else:
            key = jnp.all(old.tokens[:, :, 0] == new.tokens[:, g, None, 0], axis=-1)
            key &= old.length[:, :, 0] == new.length[:, g, None, 0]
            free = jnp.all(old.length == 0, axis=-1)
            key, free = key & ~free & (slots > 0), free & (slots > 0)
            target = jnp.where(jnp.any(key, axis=1, keepdims=True), key, free)
        fits &= jnp.any(target, axis=1) | ~given
        target = target & (jnp.argmax(target, axis=1)[:, None] == slots) & given[:, None]
        old = jax.tree.map(lambda o, n, t=target, g=g: jnp.where(_expand(t, o), n[:, g, None], o), old, new)
    return old, fits


def _best(
    score: jax.Array, match: jax.Array, ids: jax.Array, k: jax.Array, max_k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k highest scores among the matches, ties by lower id: slots, found and scores, each `[B, Kmax]`.

    Places are cut into blocks, of which the best entry is known: one pass over all, then each pick looks at the blocks'
    best and at one block. `lax.top_k` breaks ties by slot, which is not the order of ids once a slot has been used
    again, and gathers rows that are spread over devices; sorting all entries by (score, id) took longer than computing
    their cosines.
    """
    batch, entries = score.shape
    width = 1 << (((entries - 1).bit_length() + 1) // 2)  # near the square root
    last = jnp.iinfo(jnp.int32).max
    blocks = lambda x, fill: jnp.pad(  # noqa: E731
        x, ((0, 0), (0, -entries % width)), constant_values=fill
    ).reshape(batch, -1, width)
    score, ids = blocks(jnp.where(match, score, -jnp.inf), -jnp.inf), blocks(ids, last)

    def following(score: jax.Array, ids: jax.Array, before: tuple) -> tuple[jax.Array, jax.Array]:
        """Score and id of the best entry along the last axis that comes after the one of score and id `before`."""
        same, lower = score == before[0][..., None], score < before[0][..., None]
        rest = jnp.where(lower | (same & (ids > before[1][..., None])), score, -jnp.inf)
        best = jnp.max(rest, axis=-1)
        return best, jnp.min(jnp.where(rest == best[..., None], ids, last), axis=-1)

    def pick(heads: tuple, _) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
        best, first = heads
        top = jnp.max(best, axis=1, keepdims=True)
        block = jnp.argmin(jnp.where(best == top, first, last), axis=1)[:, None]
        take = lambda x: jnp.take_along_axis(x, block[(..., *[None] * (x.ndim - 2))], axis=1)[:, 0]  # noqa: E731
        inside, numbers, (before, number) = take(score), take(ids), map(take, heads)
        place = jnp.argmax((inside == before[:, None]) & (numbers == number[:, None]), axis=1)
        after, here = following(inside, numbers, (before, number)), jnp.arange(best.shape[1]) == block
        heads = tuple(jnp.where(here, new[:, None], old) for new, old in zip(after, heads, strict=True))
        return heads, (block[:, 0] * width + place, before)

    start = jnp.full(score.shape[:2], jnp.inf), jnp.zeros(score.shape[:2], jnp.int32)
    _, picks = lax.scan(pick, following(score, ids, start), length=max_k)
    slot, best = (jnp.swapaxes(x, 0, 1) for x in picks)
    found = (best > -jnp.inf) & (jnp.arange(max_k) < k[:, None])
    return slot, found, jnp.where(found, best, 0)
