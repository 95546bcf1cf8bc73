"""Short-term memory: a token window per row, edited by whole messages.

The window holds the row's own messages one after another; the shared system prompt (prefix) is not in here. A message
is named by its slot in a table of `M`, which it keeps while it is in the window and which the next message takes when
it has left. How old a message is tells its number in creation order (`born`), never its slot. All functions are batched
over rows `B`, can be jitted, and are total: what does not fit gives a `types.Status` and leaves the window as it was.
`on` selects the rows that run; the others are left alone and report NOT_RUN.

An edit moves tokens, so that keys and values of a cache are valid only before the first token that changed: edits
return that position as `cut`. A message that is still being written (the policy's own) grows by `extend`; nothing else
depends on its size.

A message is more than what it says: chat marks, the literals of the turn format, fixed strings and ids are around it.
FILTER compares what is said. While a message is put together, tokens of what it says carry `SAID`.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from agemem_jax.memory.encoder import encode, token_rows, unit
from agemem_jax.memory.status import first_failure
from agemem_jax.types import NO_MESSAGE, PAD_ID, Status, Text

SIMILARITY_CHUNK = 256  # tokens of a row whose table rows exist at once
SAID = 1 << 30  # set in the tokens of a text that is not in the window yet: part of what its message says


@struct.dataclass
class ContextWindow:
    """`B` windows. The tokens of a message are contiguous; places from `length` on hold PAD_ID and NO_MESSAGE."""

    tokens: jax.Array  # [B, C] int32
    message: jax.Array  # [B, C] int32 slot of the token's message, or NO_MESSAGE
    said: jax.Array  # [B, C] bool: the token is part of what its message says
    length: jax.Array  # [B] int32
    role: jax.Array  # [B, M] int32 types.Role
    pinned: jax.Array  # [B, M] bool: no filter, summary or overflow takes it
    round: jax.Array  # [B, M] int32
    alive: jax.Array  # [B, M] bool: its tokens are in the window; other slots are free, and what they hold is old
    born: jax.Array  # [B, M] int32 number of the message in creation order
    count: jax.Array  # [B] int32 messages ever made


def empty(batch: int, capacity: int, messages: int) -> ContextWindow:
    """`batch` windows without messages, for up to `capacity` (C) tokens and `messages` (M) messages at a time."""
    table = jnp.zeros((batch, messages), jnp.int32)
    return ContextWindow(
        tokens=jnp.full((batch, capacity), PAD_ID, jnp.int32),
        message=jnp.full((batch, capacity), NO_MESSAGE, jnp.int32),
        said=jnp.zeros((batch, capacity), bool),
        length=jnp.zeros((batch,), jnp.int32),
        role=table,
        pinned=table.astype(bool),
        round=table,
        alive=table.astype(bool),
        born=table,
        count=jnp.zeros((batch,), jnp.int32),
    )


def append(
    ctx: ContextWindow, on: jax.Array, text: Text, role: jax.Array | int, pinned: jax.Array | bool, round: jax.Array
) -> tuple[ContextWindow, jax.Array]:
    """Puts a message at the end: text `[B, W]` with SAID; role and pinned for all rows or `[B]`; round `[B]`.

    Returns the window and status `[B]`: EMPTY_TEXT, NO_ROOM (the tokens, or one more message, do not fit).
    """
    status = first_failure(
        on, (text.length <= 0, Status.EMPTY_TEXT), (~_room(ctx, ctx.alive, text.length), Status.NO_ROOM)
    )
    return _insert(ctx, status == Status.OK, text, ctx.length, role, pinned, round), status


def extend(ctx: ContextWindow, text: Text) -> ContextWindow:
    """Adds text `[B, W]` with SAID, which must fit, to the message that was made last and stands last."""
    return _put(ctx, text, newest(ctx)[:, None], ctx.length, text.length)


def remove(ctx: ContextWindow, on: jax.Array, drop: jax.Array) -> tuple[ContextWindow, jax.Array]:
    """Takes the messages `drop` `[B, M]` out, pinned or not, and closes the gaps.

    Returns the window and `cut` `[B]`: the first changed position; the length if nothing changed.
    """
    drop = drop & ctx.alive & on[:, None]
    cut = _first_token(ctx, drop)
    return _compact(ctx, drop, cut, jnp.zeros_like(ctx.length)), cut


def replace(
    ctx: ContextWindow, on: jax.Array, drop: jax.Array, text: Text, role: jax.Array | int, round: jax.Array
) -> tuple[ContextWindow, jax.Array, jax.Array]:
    """Takes the messages `drop` `[B, M]` out and puts one new, unpinned message where the first of them began.

    Args are those of `append` and `remove`. The new message is the youngest, although it may stand before others.

    Returns:
        The window, `cut` `[B]` as in `remove`, and status `[B]`: EMPTY_TEXT, NOTHING_TO_EDIT (`drop` names no message
        of the window), NO_ROOM (also after the removal).
    """
    drop = drop & ctx.alive
    freed = jnp.sum(_token_mask(ctx, drop), axis=1)
    status = first_failure(
        on,
        (text.length <= 0, Status.EMPTY_TEXT),
        (~jnp.any(drop, axis=1), Status.NOTHING_TO_EDIT),
        (~_room(ctx, ctx.alive & ~drop, text.length - freed), Status.NO_ROOM),
    )
    ok = status == Status.OK
    drop = drop & ok[:, None]
    cut = _first_token(ctx, drop)
    ctx = _compact(ctx, drop, cut, jnp.where(ok, text.length, 0))
    return _insert(ctx, ok, text, cut, role, False, round), cut, status


def similarity(ctx: ContextWindow, criteria: Text, table: jax.Array) -> jax.Array:
    """Cosine `[B, M]` float32 of what each message says with the criteria `[B, W]`, encoded as by `encoder.encode`.

    0 for messages that are gone or say nothing, and for empty criteria. The table is that of `World.encoder` also where
    the store's encoder reads with a decoder: that would read all messages anew for every criteria, and a threshold
    holds for one scale of cosines.
    """
    batch, capacity = ctx.tokens.shape
    width = min(SIMILARITY_CHUNK, capacity)
    spare = -capacity % width
    chunks = [
        jnp.pad(x, ((0, 0), (0, spare)), constant_values=fill).reshape(batch, -1, width).swapaxes(0, 1)
        for x, fill in ((ctx.tokens, PAD_ID), (jnp.where(ctx.said, ctx.message, NO_MESSAGE), NO_MESSAGE))
    ]

    def add_chunk(sums: jax.Array, chunk: list[jax.Array]) -> tuple[jax.Array, None]:
        tokens, message = chunk
        member = jax.nn.one_hot(message, ctx.alive.shape[1], dtype=jnp.float32)  # NO_MESSAGE: all zeros
        return sums + jnp.einsum("bwm,bwe->bme", member, token_rows(table, tokens), precision="highest"), None

    sums, _ = lax.scan(add_chunk, jnp.zeros((*ctx.alive.shape, table.shape[1])), chunks)
    return jnp.einsum("bme,be->bm", unit(sums), encode(table, criteria), precision="highest")


def filter_drop(
    ctx: ContextWindow, criteria: Text, table: jax.Array, theta: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which messages FILTER removes: those, not pinned, whose cosine with the criteria is at least theta (paper: 0.6).

    Returns drop `[B, M]` and status `[B]`: EMPTY_TEXT, NOTHING_FOUND.
    """
    given = criteria.length > 0
    drop = ctx.alive & ~ctx.pinned & (similarity(ctx, criteria, table) >= theta) & given[:, None]
    status = first_failure(
        jnp.ones_like(given), (~given, Status.EMPTY_TEXT), (~jnp.any(drop, axis=1), Status.NOTHING_FOUND)
    )
    return drop, status


def span_drop(ctx: ContextWindow, span: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which messages SUMMARY replaces: the unpinned ones of the last `span` `[B]` rounds, or of all rounds if 0.

    The last rounds are the highest distinct `round` numbers among the messages of the window, pinned ones included.

    Returns drop `[B, M]` and status `[B]`: NOTHING_TO_EDIT.
    """
    alive, number = ctx.alive, ctx.round
    same = (number[:, :, None] == number[:, None]) & alive[:, None]  # [B, M, M]: message, another of its round
    first = alive & (jnp.argmax(same, axis=2) == jnp.arange(alive.shape[1]))  # one message speaks for its round
    later_rounds = jnp.sum(first[:, None] & (number[:, None] > number[:, :, None]), axis=2)
    drop = alive & ~ctx.pinned & ((span[:, None] == 0) | (later_rounds < span[:, None]))
    status = first_failure(jnp.ones_like(span, bool), (~jnp.any(drop, axis=1), Status.NOTHING_TO_EDIT))
    return drop, status


def newest(ctx: ContextWindow) -> jax.Array:
    """The slot `[B]` of the message of the window that was made last; 0 if there is none."""
    return jnp.argmax(jnp.where(ctx.alive, ctx.born, -1), axis=1)


def oldest_drop(
    ctx: ContextWindow, need: jax.Array, slots: jax.Array | int = 0, low_water: float | jax.Array = 1.0
) -> jax.Array:
    """Which messages go when `need` `[B]` more tokens or `slots` (`[B]` or for all) more messages do not fit: `[B, M]`.

    The oldest go, and then not one by one: down to where the window with what is needed fills the share `low_water` of
    its capacity, or of its table, whichever overflowed. Every such edit costs a segment of the trajectory.

    Pinned messages are left alone; if all others are not enough, all of them go.
    """
    may_go = ctx.alive & ~ctx.pinned
    older = may_go[:, None] & (ctx.born[:, None] < ctx.born[:, :, None])  # [B, M, M]: message, another that goes before
    before = lambda size: jnp.sum(jnp.where(older, size[:, None], 0), axis=2)  # noqa: E731

    def short(used: jax.Array, whole: int) -> jax.Array:
        """By how much `used` `[B]` is over the low-water mark, where it is over the whole."""
        return jnp.where(used > whole, used - jnp.floor(low_water * whole).astype(jnp.int32), 0)[:, None]

    tokens = short(ctx.length + need, ctx.tokens.shape[1])
    places = short(jnp.sum(ctx.alive, axis=1) + slots, ctx.alive.shape[1])
    return may_go & ((before(_sizes(ctx)) < tokens) | (before(ctx.alive) < places))


def saying(text: Text, where: jax.Array | bool = True) -> Text:
    """The text with SAID in its tokens, or in those of `where`."""
    return Text(jnp.where(where, text.tokens | SAID, text.tokens), text.length)


def plain(text: Text) -> Text:
    """The text without SAID."""
    return Text(text.tokens & ~SAID, text.length)


def write(buffer: jax.Array, block: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
    """Writes block[b, :count[b]] into buffer[b] from start[b] on; other places stay, what is past the end is dropped.

    Args:
        buffer: `[B, C, ...]` of any dtype.
        block: `[B, W, ...]`.
        start: `[B]`, not negative.
        count: `[B]`.
    """
    capacity, offset = buffer.shape[1], jnp.arange(block.shape[1])
    place = start[:, None] + offset
    inside = (offset < count[:, None]) & (place < capacity)
    place = jnp.where(inside, place, capacity + offset)  # dropped, and the indices stay unique
    return jax.vmap(lambda row, i, new: row.at[i].set(new, mode="drop", unique_indices=True))(
        buffer, place, block.astype(buffer.dtype)
    )


def pack(parts: list[Text], width: int | None = None) -> Text:
    """Joins texts row by row: parts `[B, Wi]` (or `[Wi]`, the same for all rows) -> one Text `[B, width]`.

    `width` is the sum of the parts' widths unless given; with a smaller one, what does not fit is cut off the end.
    """
    batch = jnp.broadcast_shapes(*(part.length.shape for part in parts))
    lengths = [jnp.broadcast_to(part.length, batch) for part in parts]
    padded = jnp.concatenate([jnp.broadcast_to(p.tokens, (*batch, p.tokens.shape[-1])) for p in parts], axis=-1)
    width = padded.shape[-1] if width is None else width

    # Place j of the result comes from place j of the padded parts, moved on by the padding of the parts before it.
    place = jnp.arange(width)
    source, end = jnp.broadcast_to(place, (*batch, width)), jnp.zeros(batch, jnp.int32)
    for part, length in zip(parts, lengths, strict=True):
        end = end + length
        source = source + jnp.where(place >= end[..., None], (part.tokens.shape[-1] - length)[..., None], 0)
    joined = jnp.take_along_axis(padded, source, axis=-1, mode="clip")
    total = jnp.minimum(end, width)
    return Text(jnp.where(place < total[..., None], joined, PAD_ID), total)


def _room(ctx: ContextWindow, kept: jax.Array, more: jax.Array) -> jax.Array:
    """Whether a message fits beside the messages `kept` `[B, M]`: `[B]`, if the window then grows by `more` `[B]`."""
    return (ctx.length + more <= ctx.tokens.shape[1]) & ~jnp.all(kept, axis=1)


def _token_mask(ctx: ContextWindow, messages: jax.Array) -> jax.Array:
    """Messages `[B, M]` bool -> their tokens `[B, C]` bool."""
    return (ctx.message != NO_MESSAGE) & jnp.take_along_axis(messages, ctx.message, axis=1, mode="clip")


def _sizes(ctx: ContextWindow) -> jax.Array:
    """Tokens of each message `[B, M]`."""
    return jnp.sum(ctx.message[:, :, None] == jnp.arange(ctx.alive.shape[1]), axis=1, dtype=jnp.int32)


def _first_token(ctx: ContextWindow, messages: jax.Array) -> jax.Array:
    """Position `[B]` of the first token of any of the messages `[B, M]`; the length if there is none."""
    mask = _token_mask(ctx, messages)
    return jnp.where(jnp.any(mask, axis=1), jnp.argmax(mask, axis=1), ctx.length)


def _compact(ctx: ContextWindow, drop: jax.Array, cut: jax.Array, gap: jax.Array) -> ContextWindow:
    """Takes the messages `drop` `[B, M]` out; what stood behind `cut` `[B]` moves to `gap` `[B]` places behind it."""
    capacity = ctx.tokens.shape[1]
    place = jnp.arange(capacity)
    keep = (place < ctx.length[:, None]) & ~_token_mask(ctx, drop)
    target = jnp.cumsum(keep, axis=1) - 1 + jnp.where(place >= cut[:, None], gap[:, None], 0)
    target = jnp.where(keep, target, capacity + place)  # dropped, and the indices stay unique

    def move(array: jax.Array, fill: int) -> jax.Array:
        put = lambda row, i: jnp.full_like(row, fill).at[i].set(row, mode="drop", unique_indices=True)  # noqa: E731
        return jax.vmap(put)(array, target)

    return ctx.replace(
        tokens=move(ctx.tokens, PAD_ID),
        message=move(ctx.message, NO_MESSAGE),
        said=move(ctx.said, False),
        length=jnp.sum(keep, axis=1, dtype=jnp.int32),
        alive=ctx.alive & ~drop,
    )


def _put(ctx: ContextWindow, text: Text, slot: jax.Array, start: jax.Array, size: jax.Array) -> ContextWindow:
    """Writes `size` `[B]` tokens of `text` to the free places from `start` `[B]` on, as the message `slot` `[B, 1]`."""
    return ctx.replace(
        tokens=write(ctx.tokens, plain(text).tokens, start, size),
        message=write(ctx.message, jnp.broadcast_to(slot, text.tokens.shape), start, size),
        said=write(ctx.said, text.tokens & SAID, start, size),
        length=ctx.length + size,
    )


def _insert(
    ctx: ContextWindow,
    ok: jax.Array,
    text: Text,
    start: jax.Array,
    role: jax.Array | int,
    pinned: jax.Array | bool,
    round: jax.Array,
) -> ContextWindow:
    """Writes a new message of the rows `ok` to the free places from `start` `[B]` on, in the first free slot."""
    size = jnp.where(ok, text.length, 0)
    slot = jnp.argmin(ctx.alive, axis=1)[:, None]
    new = ok[:, None] & (jnp.arange(ctx.alive.shape[1]) == slot)
    column = lambda value: jnp.broadcast_to(value, ok.shape)[:, None]  # noqa: E731
    return _put(ctx, text, slot, start, size).replace(
        role=jnp.where(new, column(role), ctx.role),
        pinned=jnp.where(new, column(pinned), ctx.pinned),
        round=jnp.where(new, column(round), ctx.round),
        alive=ctx.alive | new,
        born=jnp.where(new, ctx.count[:, None], ctx.born),
        count=ctx.count + ok,
    )
