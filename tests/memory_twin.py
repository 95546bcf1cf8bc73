"""Slow, obvious reference of store and context: Python lists and dicts, one row at a time."""

import functools
import re
from dataclasses import dataclass, field

import numpy as np

from agemem_jax.types import Status


@dataclass
class Entry:
    id: int
    tokens: tuple[int, ...]
    owner: int
    session: int
    created: int
    updated: int
    tags: list  # one (key, value) pair of token tuples per slot; ((), ()) = no tag
    hits: int = 0


@dataclass
class StoreTwin:
    """One store. Entries are kept in a list, in no particular order."""

    capacity: int
    entry_tokens: int
    table: np.ndarray
    pieces: list[bytes]  # text of each token
    duplicates: str
    entries: list[Entry] = field(default_factory=list)
    next_id: int = 1

    def find(self, memory_id, owner):
        return next((e for e in self.entries if e.id == memory_id and e.owner == owner), None)

    def holds(self, tokens, owner, but=None):
        says = lambda ids: same_text(tuple(self.pieces[i] for i in ids))  # noqa: E731
        return any(says(e.tokens) == says(tokens) and e.owner == owner and e is not but for e in self.entries)

    def add(self, tokens, tags, owner, session, turn):
        if not tokens:
            return Status.EMPTY_TEXT, None
        if len(tokens) > self.entry_tokens:
            return Status.TEXT_TOO_LONG, None
        if self.duplicates == "refuse" and self.holds(tokens, owner):
            return Status.DUPLICATE, None
        if len(self.entries) == self.capacity:
            return Status.STORE_FULL, None
        self.entries.append(Entry(self.next_id, tokens, owner, session, turn, turn, list(tags)))
        self.next_id += 1
        return Status.OK, self.next_id - 1

    def update(self, memory_id, tokens, tags, owner, turn):
        entry = self.find(memory_id, owner)
        if entry is None:
            return Status.UNKNOWN_ID
        if not tokens:
            return Status.EMPTY_TEXT
        merged = merge_tags(entry.tags, tags)
        if len(tokens) > self.entry_tokens or merged is None:
            return Status.TEXT_TOO_LONG
        says = lambda ids: same_text(tuple(self.pieces[i] for i in ids))  # noqa: E731
        if says(tokens) == says(entry.tokens) and merged == entry.tags:
            return Status.UNCHANGED
        if self.duplicates == "refuse" and self.holds(tokens, owner, but=entry):
            return Status.DUPLICATE
        entry.tokens, entry.tags, entry.updated = tokens, merged, turn
        return Status.OK

    def delete(self, memory_id, confirmed, owner):
        entry = self.find(memory_id, owner)
        if entry is None:
            return Status.UNKNOWN_ID
        if not confirmed:
            return Status.NOT_CONFIRMED
        self.entries.remove(entry)
        return Status.OK

    def delete_all(self, owner):
        kept = [e for e in self.entries if e.owner != owner]
        found = len(kept) < len(self.entries)
        self.entries = kept
        return Status.OK if found else Status.NOTHING_FOUND

    def drop_oldest(self):
        self.entries = sorted(self.entries, key=lambda e: e.id)[1:]

    def candidates(self, query, pairs, owner, min_score):
        """The owner's entries that match, with their scores, best first; a query's below `min_score` do not count."""
        given = [pair for pair in pairs if pair != ((), ())]
        matching = [e for e in self.entries if e.owner == owner and all(pair in e.tags for pair in given)]
        scored = [(cosine(self.table, query, e.tokens) if query else 0.0, e) for e in matching]
        scored = [pair for pair in scored if not query or pair[0] >= min_score]
        return sorted(scored, key=lambda pair: (-pair[0], pair[1].id))


@functools.cache
def same_text(pieces):
    """What makes two texts equal, of the bytes of their tokens; characters split between tokens stay bytes."""
    text = "".join(piece.decode("utf-8", "surrogateescape").casefold() for piece in pieces)
    return " ".join(re.split(r"[\s.,:;!?¡¿…。．｡，､、：；！？؟،؛।\"'`´‘’‚“”„«»‹›()\[\]{}–—―]+", text)).strip()


def merge_tags(old, new):
    """Tags after an update, or None if a new pair finds no free slot."""
    merged = list(old)
    if new[0] != ((), ()):
        merged[0] = new[0]
    for pair in new[1:]:
        if pair == ((), ()):
            continue
        same = [i for i in range(1, len(merged)) if merged[i] != ((), ()) and merged[i][0] == pair[0]]
        free = [i for i in range(1, len(merged)) if merged[i] == ((), ())]
        if not same and not free:
            return None
        merged[(same or free)[0]] = pair
    return merged


def embed(table, tokens):
    total = sum((np.asarray(table[t], np.float64) for t in tokens), np.zeros(table.shape[1]))
    norm = np.linalg.norm(total)
    return total / norm if norm > 0 else total


def cosine(table, one, other):
    """Cosine on the grid of 2^-16 that the store documents."""
    return float(np.round(embed(table, one) @ embed(table, other) * 2**16) / 2**16)


@dataclass
class Message:
    slot: int
    born: int
    tokens: tuple[int, ...]
    said: tuple[int, ...]  # of these, those that are not format
    role: int
    pinned: bool
    round: int


@dataclass
class ContextTwin:
    """One window: messages in the order of their tokens. Texts come as (token, whether it is said) pairs."""

    capacity: int
    max_messages: int
    table: np.ndarray
    messages: list[Message] = field(default_factory=list)
    count: int = 0

    @property
    def tokens(self):
        return [t for m in self.messages for t in m.tokens]

    def insert(self, place, text, role, pinned, round):
        slot = min(set(range(self.max_messages)) - {m.slot for m in self.messages})
        tokens, said = tuple(token for token, _ in text), tuple(token for token, is_said in text if is_said)
        self.messages.insert(place, Message(slot, self.count, tokens, said, role, pinned, round))
        self.count += 1

    def append(self, text, role, pinned, round):
        if not text:
            return Status.EMPTY_TEXT
        if len(self.tokens) + len(text) > self.capacity or len(self.messages) == self.max_messages:
            return Status.NO_ROOM
        self.insert(len(self.messages), text, role, pinned, round)
        return Status.OK

    def remove(self, slots):
        cut, before = None, 0
        for message in self.messages:
            if message.slot in slots and cut is None:
                cut = before
            before += len(message.tokens)
        self.messages = [m for m in self.messages if m.slot not in slots]
        return before if cut is None else cut

    def replace(self, slots, text, role, round):
        here = [m for m in self.messages if m.slot in slots]
        left = len(self.tokens) - sum(len(m.tokens) for m in here)
        if not text:
            return len(self.tokens), Status.EMPTY_TEXT
        if not here:
            return len(self.tokens), Status.NOTHING_TO_EDIT
        if left + len(text) > self.capacity:
            return len(self.tokens), Status.NO_ROOM
        place = self.messages.index(here[0])
        cut = self.remove(slots)
        self.insert(place, text, role, False, round)
        return cut, Status.OK

    def similarity(self, criteria):
        wanted = embed(self.table, criteria)
        return {m.slot: float(embed(self.table, m.said) @ wanted) for m in self.messages}

    def filter_drop(self, criteria, theta):
        if not criteria:
            return set(), Status.EMPTY_TEXT
        scores = self.similarity(criteria)
        drop = {m.slot for m in self.messages if not m.pinned and scores[m.slot] >= theta}
        return drop, Status.OK if drop else Status.NOTHING_FOUND

    def span_drop(self, span):
        rounds = sorted({m.round for m in self.messages}, reverse=True)
        chosen = rounds if span == 0 else rounds[: max(span, 0)]
        drop = {m.slot for m in self.messages if not m.pinned and m.round in chosen}
        return drop, Status.OK if drop else Status.NOTHING_TO_EDIT

    def oldest_drop(self, need, more_messages, low_water):
        drop, tokens, messages = set(), len(self.tokens) + need, len(self.messages) + more_messages
        wanted_tokens = int(low_water * self.capacity) if tokens > self.capacity else tokens
        wanted_messages = int(low_water * self.max_messages) if messages > self.max_messages else messages
        for message in sorted(self.messages, key=lambda m: m.born):
            over = tokens > wanted_tokens or messages > wanted_messages
            if over and not message.pinned:
                drop.add(message.slot)
                tokens, messages = tokens - len(message.tokens), messages - 1
        return drop
