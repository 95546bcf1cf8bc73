"""Games of PDDL as AgentBoard plays them, on the device (benchmarks/pddl/__init__.py says what that means)."""

from dataclasses import dataclass
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.envs import strips
from agemem_jax.envs.base import Outcome
from agemem_jax.envs.strips import Strips
from agemem_jax.envs.text import WordTable, says, spell, words
from agemem_jax.types import Text

MOST_TERMS = 7  # of an action: its code has a byte for each, and one for the verb
NO_OBJECT = 255


class Piece(IntEnum):
    """The first pieces of the pool."""

    NOTHING = 0
    VALID = 1
    CHECK = 2
    CHECK_OR_LOOK = 3
    NO_EFFECT = 4
    UNKNOWN = 5
    SATISFIED = 6


class Form(IntEnum):
    """The pieces of an object's name."""

    INSIDE = 0  # " ball1"
    CAPITAL = 1  # " Ball1"
    FIRST = 2  # "Ball1", which begins a text


@struct.dataclass
class Shared:
    """Tables of a vocabulary and of the sentences of all games.

    A sentence is a piece, a name, a piece, a name, ..., a piece, any of which may be empty. A fact's has the space
    before it, an action's the comma behind it too: an action is always followed by something in a list.
    """

    words: WordTable
    check: jax.Array  # [V, 6] uint8 phrase_table of "check"
    look: jax.Array  # [V, 12] uint8 of "look around"
    pool: Text  # [n, w] pieces, Piece first
    between: jax.Array  # [S, T + 1] int16 pieces of each sentence before, between and after its names
    opening: jax.Array  # [S] int16 its first piece where it begins a text
    names: jax.Array  # [S] int8 how many objects it names
    begins: jax.Array  # [S] bool: it begins with a name, in capitals
    verb: jax.Array  # [S, 2] uint32 key of its action's name
    terms: jax.Array  # [S] int8 objects of its action
    says: tuple[tuple[str, str], ...] = struct.field(pytree_node=False)  # (name, format) of each, for people


@struct.dataclass
class Game:
    """What one game is. Facts and actions are in the order of their sentences."""

    strips: Strips
    sentence: jax.Array  # [B, F + A] int16 of facts, then of actions
    objects: jax.Array  # [B, F + A, T] uint8 what they are about; NO_OBJECT where they have less
    code: jax.Array  # [B, A, 2] uint32 an action as its verb and its objects
    verbs: jax.Array  # [B, Vb] int16 sentences of its actions
    names: Text  # [B, O * 3, w] in each Form
    name_key: jax.Array  # [B, O, 2] uint32
    spelling: jax.Array  # [B, O, n] uint8 UTF-8, for people
    tells_new: jax.Array  # [B] bool: only what is new is told, and looking around is listed


@struct.dataclass
class State:
    """What play changes."""

    facts: jax.Array  # [B, Fw] uint32
    best: jax.Array  # [B] int32 most conditions of the goal that held after an action
    steps: jax.Array  # [B] int32 actions, those without effect included


@dataclass(frozen=True)
class Pddl:
    """The engine. `tasks.fit` finds the sizes that hold given games."""

    sizes: strips.Sizes
    objects: int  # O
    verbs: int  # Vb
    terms: int  # T, the most objects of a fact or an action
    name_tokens: int  # w
    name_bytes: int  # n
    listed: int  # the most facts or actions that an answer tells; those after them are left out
    seen_tokens: int
    action_tokens: int
    limit: int = 30  # actions of an episode

    def reset(self, shared: Shared, game: Game) -> tuple[State, Text]:
        facts = jnp.asarray(game.strips.init)
        zero = jnp.zeros(len(facts), jnp.int32)
        none = jnp.zeros(game.strips.there.shape, bool)
        seen = self._tell(shared, game, strips.unpack(facts), none, zero, zero)
        return State(facts, zero, zero), seen

    def step(self, shared: Shared, game: Game, state: State, action: Text, on: jax.Array) -> tuple[State, Outcome]:
        live = strips.applicable(game.strips, state.facts)
        asks = says(shared.check, action)
        looks = ~asks & says(shared.look, action)
        parsed, code = self._parse(shared, game, action, live)
        acts = on & parsed & ~asks & ~looks
        meant = live & (jnp.asarray(game.code) == code[:, None]).all(-1)
        after = strips.apply(game.strips, state.facts, meant.argmax(1), acts & meant.any(1))
        moved = (after != state.facts).any(1)
        met = strips.met(game.strips, after)
        won = met == game.strips.goals
        best = jnp.where(moved, jnp.maximum(state.best, met), state.best)
        new = State(after, best, state.steps + on)

        shown = jnp.where((moved & game.tells_new)[:, None], after & ~state.facts, after)
        shown = jnp.where((on & (moved | looks))[:, None], shown, 0)
        refused = jnp.where(parsed, Piece.NO_EFFECT, Piece.UNKNOWN)
        head = jnp.where(asks, Piece.VALID, jnp.where(moved | looks, Piece.NOTHING, refused))
        checks = jnp.where(game.tells_new, Piece.CHECK_OR_LOOK, Piece.CHECK)
        tail = jnp.where(asks, checks, jnp.where(moved & won, Piece.SATISFIED, Piece.NOTHING))
        head, tail = (jnp.where(on, piece, Piece.NOTHING) for piece in (head, tail))
        seen = self._tell(shared, game, strips.unpack(shown), live & (asks & on)[:, None], head, tail)
        return new, Outcome(
            seen=seen,
            progress=best / jnp.maximum(game.strips.goals, 1).astype(jnp.float32),
            success=won,
            terminated=won,
            truncated=~won & (new.steps >= self.limit),
            understood=on & (asks | looks | moved),
        )

    def render(self, shared: Shared, game: Game, state: State, row: int) -> str:
        of_row = lambda x: np.asarray(x)[row]  # noqa: E731
        names = [bytes(letters[letters > 0]).decode() for letters in of_row(game.spelling)]
        holds, wanted = (of_row(strips.unpack(jnp.asarray(x))) for x in (state.facts, game.strips.goal))
        told = {}
        for i in np.flatnonzero(holds | wanted):
            name, form = shared.says[of_row(game.sentence)[i]]
            told[i] = form.format(*(names[o] for o in of_row(game.objects)[i] if o != NO_OBJECT)).strip()
        goal = [f"[{'x' if holds[i] else ' '}] {told[i]}" for i in np.flatnonzero(wanted)]
        lines = [f"step {of_row(state.steps)} of {self.limit}", *goal, "", *(told[i] for i in np.flatnonzero(holds))]
        return "\n".join(lines)

    def _parse(self, shared: Shared, game: Game, action: Text, live: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether texts [B, A] name an action and enough objects [B], and its code [B, 2].

        The action is the first word that is one of those which can be taken now, and its objects are the first words
        that name any, wherever they stand.
        """
        key, is_word = words(shared.words, action)
        is_one = lambda keys: is_word[..., None] & (key[:, :, None] == keys[:, None]).all(-1)  # noqa: E731
        number = jnp.arange(self.verbs)
        of_verb = (game.code[:, :, 0] & 0xFF)[:, None] == number[:, None].astype(jnp.uint32)
        can = (of_verb & live[:, None]).any(-1)  # [B, Vb]
        names_verb = is_one(jnp.asarray(shared.verb)[game.verbs]) & can[:, None]
        first = names_verb.any(-1).argmax(1)
        verb = jnp.take_along_axis(names_verb, first[:, None, None], 1)[:, 0].argmax(-1)
        terms = jnp.asarray(shared.terms)[jnp.take_along_axis(jnp.asarray(game.verbs), verb[:, None], 1)[:, 0]]

        names_object = is_one(jnp.asarray(game.name_key))
        said = names_object.any(-1)
        place = jnp.where(said, jnp.cumsum(said, 1) - 1, MOST_TERMS)  # which object this word is
        chosen = jnp.where(place[..., None] == jnp.arange(MOST_TERMS), names_object.argmax(-1)[..., None], 0).sum(1)
        chosen = jnp.where(jnp.arange(MOST_TERMS) < terms[:, None], chosen, NO_OBJECT)
        parsed = names_verb.any((1, 2)) & (said.sum(1) >= terms)
        return parsed, code_of(verb, chosen)

    def _tell(self, shared: Shared, game: Game, facts, actions, head: jax.Array, tail: jax.Array) -> Text:
        """Sentences of facts [B, Fw * 32] and actions [B, A], in their order, between two pieces [B]."""
        told = jnp.concatenate([facts, actions], 1)
        place = jnp.where(told, jnp.cumsum(told, 1) - 1, self.listed)
        put = lambda row, at: row.at[at].set(jnp.arange(told.shape[1]), mode="drop")  # noqa: E731
        item = jax.vmap(put)(jnp.zeros((len(told), self.listed), jnp.int32), place)
        slot = jnp.arange(self.listed)
        there = slot < told.sum(1, keepdims=True)
        sentence = jnp.where(there, jnp.take_along_axis(jnp.asarray(game.sentence), item, 1), 0)
        objects = jax.vmap(lambda x, at: x[at])(jnp.asarray(game.objects), item).astype(jnp.int32)
        opens = (slot == 0) & (head == Piece.NOTHING)[:, None]

        between = jnp.asarray(shared.between)[sentence].astype(jnp.int32)
        between = between.at[..., 0].set(jnp.where(opens, shared.opening[sentence], between[..., 0]))
        form = jnp.where(opens, Form.FIRST, Form.CAPITAL) * shared.begins[sentence]
        form = jnp.pad(form[..., None], [(0, 0), (0, 0), (0, self.terms - 1)])  # of the first name alone
        name = shared.pool.length.shape[0] + objects * len(Form) + form
        name = jnp.where(jnp.arange(self.terms) < shared.names[sentence][..., None], name, Piece.NOTHING)
        pairs = jnp.stack([between[..., :-1], name], -1).reshape(*sentence.shape, -1)
        pieces = jnp.concatenate([pairs, between[..., -1:]], -1)
        pieces = jnp.where(there[..., None], pieces, Piece.NOTHING).reshape(len(told), -1)
        ids = jnp.concatenate([head[:, None], pieces, tail[:, None]], 1)
        pool, names = jax.tree.map(jnp.asarray, (shared.pool, game.names))
        return spell(ids, pool, names, self.seen_tokens)


def code_of(verb, objects):
    """Codes [..., 2] uint32 of actions: verbs [...] and objects [..., MOST_TERMS]."""
    array = jnp if isinstance(verb, jax.Array) else np
    each = array.concatenate([verb[..., None], objects], -1).astype(array.uint32).reshape(*verb.shape, 2, 4)
    return (each << array.arange(0, 32, 8, dtype=array.uint32)).sum(-1, dtype=array.uint32)
