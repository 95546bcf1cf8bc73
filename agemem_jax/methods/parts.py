"""Pieces of prompts and of bookkeeping that several memory systems have in common."""

import jax
import jax.numpy as jnp

from agemem_jax.memory import context as context_lib
from agemem_jax.memory import store as store_lib
from agemem_jax.memory.encoder import Encoder, Known
from agemem_jax.memory.store import MemoryStore, Retrieved
from agemem_jax.methods.base import RoleTables
from agemem_jax.rollout.turn import spread, where_text
from agemem_jax.types import NO_ID, PAD_ID, Task, Text


def fixed(table: Text, index: int, on: jax.Array) -> Text:
    """Fixed string `index` of a table for the rows that are `on`: [B, w]."""
    return spread(Text(table.tokens[index], table.length[index]), on)


def said(on: jax.Array, text: Text) -> Text:
    """A text that a message of rows `on` says."""
    return context_lib.saying(where_text(on, text))


def column(texts: Text, i: int, axis: int = 1) -> Text:
    """Text `i` along an axis: of each row [B, n, W] -> [B, W]; with axis 0 [n, W] -> [W]."""
    at = (slice(None),) * axis + (i,)
    return Text(texts.tokens[at], texts.length[at])


def where(on: jax.Array, texts: Text) -> Text:
    """The texts that are `on` [...], empty ones elsewhere."""
    return Text(texts.tokens, jnp.where(on, texts.length, 0))


def fit(text: Text, width: int) -> Text:
    """The text cut or padded to `width` places: [..., W] -> [..., width]; what is past its length is PAD_ID."""
    tokens = text.tokens[..., :width]
    spare = [(0, 0)] * (tokens.ndim - 1) + [(0, width - tokens.shape[-1])]
    length = jnp.minimum(text.length, width)
    tokens = jnp.pad(tokens, spare, constant_values=PAD_ID)
    return Text(jnp.where(jnp.arange(width) < length[..., None], tokens, PAD_ID), length)


def without_repetition(ids: jax.Array) -> jax.Array:
    """Ids [B, n], each once, in the order in which they first come, then NO_ID."""
    n = ids.shape[1]
    earlier = jnp.arange(n)[:, None] > jnp.arange(n)
    twice = ((ids[:, :, None] == ids[:, None]) & earlier).any(2)
    kept = (ids != NO_ID) & ~twice
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, n + jnp.arange(n))
    put = lambda row, i: jnp.full((n,), NO_ID, jnp.int32).at[i].set(row, mode="drop", unique_indices=True)  # noqa: E731
    return jax.vmap(put)(ids, place)


def at_ids(array: jax.Array, store: MemoryStore, ids: jax.Array) -> jax.Array:
    """What an array [B, N, ...] beside the store has of the entries of these ids [B, n], 0 where there is none."""
    at = (store.id[:, None] == ids[:, :, None]) & store.valid[:, None] & (ids != NO_ID)[:, :, None]  # [B, n, N]
    taken = jax.vmap(lambda row, i: row[i])(array, jnp.argmax(at, axis=2))
    return jnp.where(at.any(2).reshape(*ids.shape, *[1] * (array.ndim - 2)), taken, 0)


def entries_of(store: MemoryStore, ids: jax.Array) -> Text:
    """The contents of the entries of these ids [B, n], empty where there is none: [B, n, L]."""
    return Text(at_ids(store.tokens, store, ids), at_ids(store.length, store, ids))


def earlier_messages(task: Task, turn: jax.Array, owner: jax.Array, stage: int, most: int) -> Text:
    """The owner's last messages before turn [B] of stage 1 or 2, oldest first: [B, most, W]."""
    by = [(task.facts, task.fact_owner, turn if stage == 1 else task.num_facts)]
    if stage == 2:
        by.append((task.distractors, task.distractor_owner, turn))
    valid = [(owners == owner[:, None]) & (jnp.arange(owners.shape[1]) < count[:, None]) for _, owners, count in by]
    texts = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *(text for text, _, _ in by))
    valid = jnp.concatenate(valid, 1)
    number = jnp.cumsum(valid, axis=1)
    wanted = jnp.maximum(number[:, -1:] - most, 0) + 1 + jnp.arange(most)  # [B, most]
    at = valid[:, None] & (number[:, None] == wanted[:, :, None])
    slot, found = jnp.argmax(at, axis=2), at.any(2)
    tokens = jnp.take_along_axis(texts.tokens, slot[..., None], 1)
    return Text(tokens, jnp.where(found, jnp.take_along_axis(texts.length, slot, 1), 0))


def listing(store: MemoryStore, ids: jax.Array, on: jax.Array) -> Retrieved:
    """Entries [B, n] as they are listed in a prompt: under numbers 0, 1, ... in place of their ids."""
    texts, shown = entries_of(store, ids), (ids != NO_ID) & on[:, None]
    number = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return Retrieved(
        tokens=texts.tokens,
        length=jnp.where(shown, texts.length, 0),
        id=jnp.where(shown, number, NO_ID),
        score=jnp.zeros(ids.shape),
        found=shown,
    )


def named(ids: jax.Array, number: jax.Array) -> jax.Array:
    """The ids that are listed under numbers, NO_ID of a number that is not: [B, n], [B, J] -> [B, J]."""
    known = (number >= 0) & (number < ids.shape[1])
    found = jnp.take_along_axis(ids, jnp.clip(number, 0, ids.shape[1] - 1), 1)
    return jnp.where(known, found, NO_ID)


def blank_tags(store: MemoryStore) -> Text:
    """Tags of an entry that has none: [B, G, 2, Lt]."""
    return jax.tree.map(lambda x: jnp.zeros_like(x[:, 0]), store.tags)


def nearest(store: MemoryStore, on: jax.Array, query: Text, k: int, owner: jax.Array, encode: Encoder) -> Retrieved:
    """The owner's `k` entries nearest to a text, for rows `on`; a look that leaves the store as it is."""
    wanted = jnp.full(owner.shape, k, jnp.int32)
    _, found, _ = store_lib.retrieve(
        store, on, query, wanted, None, owner, encode, max_k=k, count_hits=False
    )
    return found


def nearest_of_each(store: MemoryStore, texts: Text, k: int, owner: jax.Array, vectors: jax.Array) -> jax.Array:
    """Ids of the owner's `k` entries nearest to each text [B, F, W] that is not empty, text by text: [B, F * k].

    vectors: [B, F, E] of the texts.
    """

    def of_text(_, one):
        text, vector = one
        return None, nearest(store, text.length > 0, text, k, owner, Known(vector)).id

    _, ids = jax.lax.scan(of_text, None, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (texts, vectors)))
    return jnp.swapaxes(ids, 0, 1).reshape(owner.shape[0], -1)


def to_front(texts: Text) -> Text:
    """Texts [B, n, W] with the empty ones last."""
    order = jnp.argsort(texts.length == 0, axis=1, stable=True)
    return Text(jnp.take_along_axis(texts.tokens, order[..., None], 1), jnp.take_along_axis(texts.length, order, 1))


def lines(texts: Text, on: jax.Array, bullet: Text) -> list[Text]:
    """Texts [B, n, W] of rows `on`, each that is there behind a bullet [w], ready to be packed; texts are SAID."""
    packed = []
    for i in range(texts.length.shape[1]):
        there = on & (texts.length[:, i] > 0)
        packed += [spread(bullet, there), said(there, column(texts, i))]
    return packed


def width_of_lines(tables: RoleTables, entries: int, entry_tokens: int) -> int:
    """Most tokens of so many listed entries."""
    p = tables.pieces
    around = sum(text.tokens.shape[-1] for text in (p.numbers, p.id_mark, p.line_break))
    return entries * (around + entry_tokens)
