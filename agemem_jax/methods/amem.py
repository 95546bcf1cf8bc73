"""A-Mem as its paper evaluates it, on the device: github.com/WujiangXu/A-mem at d81fb22 (memory_layer.py,
AgenticMemorySystem; test_advanced.py), the release that behaves as the paper says.

Every message becomes a note. The policy writes its keywords, a context of one sentence and tags ("construct"); the five
nearest notes are found by the message alone; shown the new note and these, the policy says whether it evolves, and how
("evolve"): strengthen links the new note to others and replaces its tags, update_neighbor gives neighbours new tags and
contexts. Then the note is stored, its vector that of text, context, keywords and tags together. Nothing is ever deleted
or found equal. For the question the policy writes keywords ("query"); the k nearest notes are shown, each followed by
the notes that it links to, until k links are shown in all, and then by its first one.

Otherwise than there:
- Prompts are in words of our own, with the same inputs but for times, which messages do not have here. Lists are
  bounded, and fields that an answer's decision leaves unread are not written.
- Notes are numbered over a row, and found and shown by their owner; a link to no note, or to another's, shows nothing
  (there it ends the run). An answer that is no JSON makes a note without keywords and tags, or one that does not
  evolve, as there; one that lacks a field, which ends the run there, does the same here.
- All notes are embedded anew after each 100th evolution there, and never here; as there, a changed neighbour is found
  by what it was.
- A store has room for as many notes as messages are told, and what is shown for the question ends with the room for
  results. In worlds that is what the goal finds, shown before the first action.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.memory import context as context_lib
from agemem_jax.memory import store as store_lib
from agemem_jax.memory.encoder import Known
from agemem_jax.methods import parts
from agemem_jax.methods.base import DONE, Heard, Message, Role, RoleTables, call_of
from agemem_jax.rollout.rows import RolloutSpec, Rows, World, select
from agemem_jax.rollout.turn import count_call, entry_line, spread
from agemem_jax.tools.layout import Field, Part, Parts, either, listed
from agemem_jax.types import NO_ID, Op, Status, Task, Text, ToolCalls

CONSTRUCT, EVOLVE, QUERY = 0, 1, 2
STRENGTHEN, UPDATE_NEIGHBOR = 1, 2  # bits of an answer's actions
FIXED = (  # (text, in the tiny vocabulary), by name
    ("text", "content:", ""), ("context", " context:", ":"), ("keywords", " keywords:", ":"), ("tags", " tags:", ":"),
    ("comma", ",", ""), ("general", "General", ""), ("note", "\nMemory:\n", ":"),
    ("neighbours", "\nNeighbours:", " the"),
)  # fmt: skip
NAMES = tuple(name for name, _, _ in FIXED)


@struct.dataclass
class Note:
    """What a note has beside its text: arrays lead with [B], or with [B, N] of stored ones."""

    context: Text  # [..., Lc]
    keywords: Text  # [..., Kw, Lw]
    tags: Text  # [..., T, Lw]
    links: jax.Array  # [..., n] int32 ids of notes, NO_ID


@struct.dataclass
class AMemNotes:
    """A row's notes: the stored ones by place in the store, the one that is being made, and its neighbours."""

    stored: Note
    made: Note
    listed: jax.Array  # [B, n] int32 ids
    evolutions: jax.Array  # [B] int32


@dataclass(frozen=True)
class AMem:
    """A-Mem at d81fb22."""

    keywords: int  # most of a note
    tags: int
    neighbours: int
    context_tokens: int
    word_tokens: int  # of a keyword or tag

    reads_messages = True
    asks = True
    fixed = tuple((text, short) for _, text, short in FIXED)

    # Numbers of the items of answers: construct's are keywords, the context, tags; evolve's the decision, connections,
    # tags, the neighbours' contexts, and for each neighbour its list and the tags in it.

    @property
    def _evolve(self) -> tuple[int, int, int, int]:
        """First numbers of connections, tags, contexts and lists of tags."""
        n = self.neighbours
        return 1, 1 + n, 1 + n + self.tags, 1 + 2 * n + self.tags

    def _list(self, i: int) -> int:
        """Number of the list of neighbour i."""
        return self._evolve[3] + i * (1 + self.tags)

    @property
    def roles(self) -> tuple[Role, ...]:
        return (
            Role(
                "construct",
                "Role construct: analyse the message. Keywords: the most telling words, the most important first, no "
                "names of speakers, no times. Context: one sentence on topic, points and purpose. Tags: broad "
                'categories. Answer {"keywords": ["...", ...], "context": "...", "tags": ["...", ...]}.',
                "Role: construct\nMessage:\n",
                self._construct_form(),
                self._construct_calls,
            ),
            Role(
                "evolve",
                "Role evolve: decide whether the new memory should evolve with its neighbours. Strengthen: which "
                "memories to connect it to, by their numbers, and its tags then. Update_neighbor: contexts and tags of "
                "the neighbours, in the order shown, unchanged ones repeated. Answer "
                '{"should_evolve": true or false, "actions": [...], ...}.',
                "Role: evolve",
                self._evolve_form(),
                self._evolve_calls,
            ),
            Role(
                "query",
                "Role query: write several keywords by which to search the memory for the question. Answer "
                '{"keywords": "..., ..., ..."}.',
                "Role: query\nQuestion:\n",
                ('{"keywords": "', text(0), '"}'),
                lambda _none, first, _between, last: (first, *retrieval(text(0)), last),
            ),
        )

    def _construct_form(self) -> Parts:
        k, strings = self.keywords, lambda first, n: listed([quoted(first + i) for i in range(n)])  # noqa: E731
        begin, end = ('{"keywords": [', *strings(0, k)), (*strings(k + 1, self.tags), "]}")
        return (*begin, '], "context": "', text(k), '", "tags": [', *end)

    def _construct_calls(self, none: str, first: str, between: str, last: str) -> Parts:
        """Adds are keywords, the retrieval's query is the context, the filters' criteria are tags."""
        k = self.keywords
        context = retrieval(text(k))
        keywords = [(*call_of("Add_memory", '"content": "', text(i), '"'), between) for i in range(k)]
        tags = [(between, *call_of("Filter_context", '"criteria": "', text(k + 1 + i), '"')) for i in range(self.tags)]
        return (first, *listed(keywords, ""), *context, *listed(tags, ""), last)

    def _evolve_form(self) -> Parts:
        links, tags, contexts, _ = self._evolve
        n = self.neighbours
        connect = (
            ', "suggested_connections": [', *listed([(number(links + i),) for i in range(n)]),
            '], "tags_to_update": [', *listed([quoted(tags + i) for i in range(self.tags)]), "]",
        )  # fmt: skip
        lists = [
            ("[", mark(first, Part.SPAN, 1), *listed([quoted(first + 1 + t) for t in range(self.tags)]), "]")
            for first in map(self._list, range(n))
        ]
        change = (
            ', "new_context_neighborhood": [', *listed([quoted(contexts + i) for i in range(n)]),
            '], "new_tags_neighborhood": [', *listed(lists), "]",
        )  # fmt: skip
        act = lambda actions: mark(0, Part.TOP_K, actions)  # noqa: E731
        return (
            '{"should_evolve": ',
            *either(
                ("false}",),
                (
                    "true", mark(0, Part.CONFIRMED, 1), ', "actions": [',
                    *either(
                        ("]}",),
                        ('"strengthen"]', act(STRENGTHEN), *connect, "}"),
                        ('"update_neighbor"]', act(UPDATE_NEIGHBOR), *change, "}"),
                        ('"strengthen", "update_neighbor"]', act(STRENGTHEN | UPDATE_NEIGHBOR), *connect, *change, "}"),
                    ),
                ),
            ),
        )  # fmt: skip

    def _evolve_calls(self, none: str, first: str, between: str, last: str) -> Parts:
        """Retrievals name connections, adds are tags, an update is a neighbour's context and filters are its tags."""
        links, tags, contexts, _ = self._evolve

        def neighbour(i: int) -> Parts:
            context = call_of(
                "Update_memory", '"memory_id": "', number(contexts + i), '", "content": "', text(contexts + i), '"'
            )
            items = [text(self._list(i) + 1 + t) for t in range(self.tags)]
            filters = [(between, *call_of("Filter_context", '"criteria": "', item, '"')) for item in items]
            return (*context, *listed(filters, ""))

        groups = [
            [retrieval(number(links + i)) for i in range(self.neighbours)],
            [call_of("Add_memory", '"content": "', text(tags + i), '"') for i in range(self.tags)],
            [neighbour(i) for i in range(self.neighbours)],
        ]
        ways = []
        for g, group in enumerate(groups):
            rest = [[(between, *item) for item in more] for more in (group[1:], *groups[g + 1 :])]
            ways.append((first, *group[0], *(part for more in rest for part in listed(more, "")), last))
        return either((none,), *ways)

    def prompt_tokens(self, tables: RoleTables, entry_tokens: int, message_tokens: int) -> int:
        at = lambda name: int(tables.fixed.length[len(self.roles) + NAMES.index(name)])  # noqa: E731
        size = lambda *names: sum(map(at, names))  # noqa: E731
        words = (self.keywords + self.tags) * (self.word_tokens + size("comma"))
        note = size("context", "keywords", "tags") + self.context_tokens + words
        listed = self.neighbours * (note + parts.width_of_lines(tables, 1, entry_tokens))
        opening = max(int(tables.fixed.length[r]) for r in range(len(self.roles)))
        return opening + size("note", "neighbours") + message_tokens + note + listed

    def new_notes(self, spec: RolloutSpec) -> AMemNotes:
        def blank(*lead: int) -> Note:
            texts = lambda *axes: Text(jnp.zeros((*lead, *axes), jnp.int32), jnp.zeros((*lead, *axes[:-1]), jnp.int32))  # noqa: E731
            return Note(
                context=texts(self.context_tokens),
                keywords=texts(self.keywords, self.word_tokens),
                tags=texts(self.tags, self.word_tokens),
                links=jnp.full((*lead, self.neighbours), NO_ID, jnp.int32),
            )

        b = spec.batch
        none = jnp.full((b, self.neighbours), NO_ID, jnp.int32)
        return AMemNotes(blank(b, spec.entries), blank(b), none, jnp.zeros((b,), jnp.int32))

    def ask(
        self, rows: Rows, notes: AMemNotes, told: Message, role: jax.Array, task: Task, tables: RoleTables,
        spec: RolloutSpec, stage: int,
    ) -> Text:  # fmt: skip
        say = lambda name, on: parts.fixed(tables.fixed, len(self.roles) + NAMES.index(name), on)  # noqa: E731
        evolves, found = role == EVOLVE, parts.listing(rows.store, notes.listed, role == EVOLVE)
        packed = [parts.fixed(tables.fixed, r, role == r) for r in range(len(self.roles))]
        packed += [parts.said(role != EVOLVE, told.body), say("note", evolves), parts.said(evolves, told.body)]
        # Without its tags; the neighbours with theirs.
        packed += described(notes.made, say, evolves, with_tags=False)
        packed += [say("neighbours", evolves & found.found.any(1))]
        for i in range(self.neighbours):
            there = found.found[:, i]
            packed += entry_line(tables, parts.column(found, i), notes.listed[:, i] - 1, there)
            packed += described(at_id(notes.stored, rows.store, notes.listed[:, i]), say, there)
        return context_lib.pack(packed)

    def texts(
        self, rows: Rows, notes: AMemNotes, told: Message, role: jax.Array, calls: ToolCalls, tables: RoleTables
    ) -> tuple[Text, jax.Array]:
        """What the new note is embedded by, or the keywords of the question."""
        say = lambda name, on: parts.fixed(tables.fixed, len(self.roles) + NAMES.index(name), on)  # noqa: E731
        evolves, asks = role == EVOLVE, role == QUERY
        made, _ = self._evolved(notes.made, calls)
        packed = [say("text", evolves), parts.where(evolves, told.body), *described(made, say, evolves)]
        packed += [parts.where(asks, self._items(calls, 0, 1, calls.content.tokens.shape[-1], 0))]
        text = context_lib.plain(context_lib.pack(packed))
        return jax.tree.map(lambda x: x[:, None], text), asks[:, None]

    def hear(
        self, rows: Rows, notes: AMemNotes, told: Message, role: jax.Array, calls: ToolCalls, vectors: jax.Array,
        on: jax.Array, tables: RoleTables, world: World, spec: RolloutSpec,
    ) -> Heard:  # fmt: skip
        constructed, evolved, asked = (on & (role == r) for r in (CONSTRUCT, EVOLVE, QUERY))
        encode = Known(vectors[:, 0])
        status = jnp.full_like(calls.op, Status.NOT_RUN)
        found = parts.nearest(rows.store, constructed, told.body, self.neighbours, told.owner, Known(told.query)).id
        fresh = notes.replace(made=self._constructed(calls, tables), listed=found)

        made, acts = self._evolved(notes.made, calls)
        stored = self._changed_neighbours(notes, rows.store, calls, evolved & acts)
        store, became, new_id = store_lib.add(
            rows.store, evolved, told.body_as_entry(spec.entry_tokens), parts.blank_tags(rows.store), told.owner,
            told.session, told.now, encode, world.equality, "add",
        )  # fmt: skip
        here = (store.id == new_id[:, None]) & (evolved & (became == Status.OK))[:, None]  # [B, N]
        stored = put(here, made, stored)
        stats = count_call(rows.stats, jnp.full_like(role, Op.ADD), evolved, became)
        after = notes.replace(stored=stored, evolutions=notes.evolutions + (evolved & acts))
        status = status.at[:, 0].set(jnp.where(evolved, became, status[:, 0]))

        hits = self._query(rows.store, calls, asked, told.owner, encode, spec)
        result = self._shown(rows, notes, hits, asked, told.owner, tables, spec)
        rows = rows.replace(store=store, stats=stats, result=select(asked, result, rows.result))
        notes = select(constructed, fresh, select(evolved, after, notes))
        return Heard(rows, notes, jnp.where(constructed, EVOLVE, DONE), status)

    def _items(self, calls: ToolCalls, first: int, count: int, width: int, item: int | None = None) -> Text:
        """The contents of some items, those that are not empty first: [B, count, width], or [B, width] of one."""
        content = jax.tree.map(lambda x: x[:, first : first + count], calls.content)
        content = parts.fit(content, width)
        return content if item is None else parts.column(content, item)

    def _constructed(self, calls: ToolCalls, tables: RoleTables) -> Note:
        """The note that an analysis describes: an empty context is "General"."""
        k = self.keywords
        context = self._items(calls, k, 1, self.context_tokens, 0)
        general = parts.fixed(tables.fixed, len(self.roles) + NAMES.index("general"), context.length == 0)
        return Note(
            context=parts.fit(context_lib.pack([context, general]), self.context_tokens),
            keywords=parts.to_front(self._items(calls, 0, k, self.word_tokens)),
            tags=parts.to_front(self._items(calls, k + 1, self.tags, self.word_tokens)),
            links=jnp.full((*calls.op.shape[:1], self.neighbours), NO_ID, jnp.int32),
        )

    def _actions(self, calls: ToolCalls) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of an answer [B]: it evolves, it strengthens, it updates neighbours. Calls tell by what they name."""
        links, tags, contexts, end = self._evolve
        written = lambda first, end: (calls.op[:, first:end] != Op.NONE).any(1)  # noqa: E731
        says = calls.confirmed[:, 0]
        strengthens = jnp.where(says, (calls.top_k[:, 0] & STRENGTHEN) > 0, written(links, contexts))
        updates = jnp.where(says, (calls.top_k[:, 0] & UPDATE_NEIGHBOR) > 0, written(contexts, end))
        return says | strengthens | updates, strengthens, updates

    def _evolved(self, made: Note, calls: ToolCalls) -> tuple[Note, jax.Array]:
        """The new note as an answer leaves it, and whether it evolves [B]."""
        links, tags, contexts, _ = self._evolve
        acts, strengthens, _ = self._actions(calls)
        named = calls.memory_id[:, links:tags]
        new = made.replace(
            links=jnp.where(named == NO_ID, NO_ID, named + 1),
            tags=parts.to_front(self._items(calls, tags, self.tags, self.word_tokens)),
        )
        return select(strengthens, new, made), acts

    def _changed_neighbours(self, notes: AMemNotes, store, calls: ToolCalls, on: jax.Array) -> Note:
        """The stored notes after an answer of rows `on` has changed neighbours."""
        _, _, contexts, _ = self._evolve
        stored, updates = notes.stored, on & self._actions(calls)[2]
        for i in range(self.neighbours):
            c, first = contexts + i, self._list(i)
            # By its number where the answer gives one, else in the order shown.
            given = calls.memory_id[:, c]
            by_number = jnp.where((notes.listed == given[:, None] + 1).any(1), given + 1, NO_ID)
            meant = jnp.where(given != NO_ID, by_number, notes.listed[:, i])
            changed = updates & ((calls.span[:, first] > 0) | (given != NO_ID)) & (meant != NO_ID)
            here = (store.id == meant[:, None]) & store.valid & changed[:, None]
            tags = parts.to_front(self._items(calls, first + 1, self.tags, self.word_tokens))
            context = self._items(calls, c, 1, self.context_tokens, 0)
            with_context = here & (calls.op[:, c] != Op.NONE)[:, None]
            stored = stored.replace(
                tags=put(here, tags, stored.tags), context=put(with_context, context, stored.context)
            )
        return stored

    def _query(self, store, calls: ToolCalls, on: jax.Array, owner: jax.Array, encode, spec: RolloutSpec) -> jax.Array:
        """Ids of the notes that a question's keywords find: [B, k]."""
        query = self._items(calls, 0, 1, calls.content.tokens.shape[-1], 0)
        return parts.nearest(store, on, query, spec.rule_top_k, owner, encode).id

    def _shown(
        self, rows: Rows, notes: AMemNotes, hits: jax.Array, on: jax.Array, owner, tables: RoleTables, spec: RolloutSpec
    ) -> Text:
        """What is shown for the question: the hits and what they link to, as lines of results."""
        say = lambda name, on: parts.fixed(tables.fixed, len(self.roles) + NAMES.index(name), on)  # noqa: E731
        p, store = tables.pieces, rows.store
        ids = with_links(hits, parts.at_ids(notes.stored.links, store, hits))
        mine = (store.id[:, None] == ids[:, :, None]) & (store.owner == owner[:, None])[:, None] & store.valid[:, None]
        ids = jnp.where(mine.any(2) & on[:, None], ids, NO_ID)
        texts = parts.entries_of(store, ids)
        packed = [spread(p.related, (ids != NO_ID).any(1))]
        for i in range(ids.shape[1]):
            there = ids[:, i] != NO_ID
            packed += entry_line(tables, parts.column(texts, i), ids[:, i] - 1, there)
            packed += described(at_id(notes.stored, store, ids[:, i]), say, there)
        return parts.fit(context_lib.pack(packed), rows.result.tokens.shape[-1])


def with_links(hits: jax.Array, links: jax.Array) -> jax.Array:
    """Ids in the order in which they are shown: each hit [B, k], then those that it links to [B, k, n]; NO_ID between.

    One counter goes over the links of all hits: once k were shown, each further hit shows its first alone.
    """
    k, n = links.shape[1:]
    linked = (links != NO_ID) & (hits != NO_ID)[..., None]
    number = jnp.cumsum(linked, axis=2)  # of a link among its hit's
    count = linked.sum(2)
    before = jnp.minimum(jnp.cumsum(count, axis=1) - count, k)
    shown = linked & (number <= jnp.maximum(k - before, 0)[..., None] + 1)
    return jnp.concatenate([hits[..., None], jnp.where(shown, links, NO_ID)], 2).reshape(hits.shape[0], k * (1 + n))


def described(note: Note, say, on: jax.Array, with_tags: bool = True) -> list[Text]:
    """Context, keywords and tags of notes [B, ...], ready to be packed; `say` gives fixed strings by name."""

    def words(texts: Text) -> list[Text]:
        packed = []
        for i in range(texts.length.shape[1]):
            there = on & (texts.length[:, i] > 0)
            packed += [say("comma", there)] * (i > 0) + [parts.said(there, parts.column(texts, i))]
        return packed

    packed = [say("context", on), parts.said(on, note.context), say("keywords", on), *words(note.keywords)]
    return packed + ([say("tags", on), *words(note.tags)] if with_tags else [])


def at_id(stored: Note, store, ids: jax.Array) -> Note:
    """The stored notes [B, N, ...] of ids [B]: [B, ...]."""
    return jax.tree.map(lambda x: parts.at_ids(x, store, ids[:, None])[:, 0], stored)


def put(on: jax.Array, new, stored):
    """Trees of arrays [B, N, ...] with what each row has as `new` [B, ...] where `on` [B, N]."""
    expand = lambda like: on.reshape(*on.shape, *[1] * (like.ndim - 2))  # noqa: E731
    return jax.tree.map(lambda new, old: jnp.where(expand(old), new[:, None], old), new, stored)


def text(call: int) -> Field:
    return Field("string", Part.CONTENT, call, Op.ADD)


def number(call: int) -> Field:
    return Field("digits", Part.MEMORY_ID, call, Op.ADD)


def mark(call: int, part: Part, value: int) -> Field:
    return Field("choice", part, call, Op.ADD, value)


def retrieval(field: Field) -> Parts:
    return call_of("Retrieve_memory", '"query": "', field, '"')


def quoted(call: int) -> Parts:
    return ('"', text(call), '"')
