"""Games of PDDL as AgentBoard plays them, on the device (benchmarks/pddl/__init__.py says what that means)."""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.envs import strips
from agemem_jax.envs.base import Outcome
from agemem_jax.envs.strips import Strips
from agemem_jax.envs.text import Pool, WordTable, alone, running_sum, says, spell_pool, words
from agemem_jax.types import Text

MOST_TERMS = 7  # of an action: its code has a byte for each, and one for the verb
NO_OBJECT = 255


class Piece(IntEnum):
    """The first texts of a game's pool."""

    NOTHING = 0
    VALID = 1
    CHECK = 2
    CHECK_OR_LOOK = 3
    NO_EFFECT = 4
    UNKNOWN = 5
    SATISFIED = 6


@struct.dataclass
class Shared:
    """Tables of a vocabulary."""

    words: WordTable
    check: jax.Array  # [V, 6] uint8 phrase_table of "check"
    look: jax.Array  # [V, 12] uint8 of "look around"


@struct.dataclass
class Game:
    """What one game is. Facts and actions are in the order of their sentences."""

    strips: Strips
    # Each Piece, each fact with the space before it, each fact as a text begins with it, and each action with the comma
    # behind it (in a list it is always followed by something).
    texts: Pool
    letters: jax.Array  # [B, a, n] uint8 UTF-8 of the pool's alphabet, for people
    code: jax.Array  # [B, A, 2] uint32 actions as their verbs and objects, in ascending order
    coded: jax.Array  # [B, A] int32 which action each code is
    verb_key: jax.Array  # [B, Vb, 2] uint32 keys of its actions' names
    verb_terms: jax.Array  # [B, Vb] int32 how many objects they have
    verb_actions: jax.Array  # [B, Vb, Aw] uint32 bits of its actions
    name_key: jax.Array  # [B, O, 2] uint32
    tells_new: jax.Array  # [B] bool: only what is new is told, and looking around is listed
    told: jax.Array  # [B, Fw] uint32 facts that are told where they hold: all, or all but those that stage 1 tells


@struct.dataclass
class State:
    """What play changes."""

    facts: jax.Array  # [B, Fw] uint32
    lacks: jax.Array  # [B, P, Aw] uint32 how many conditions each action lacks (strips.lacking)
    best: jax.Array  # [B] int32 most conditions of the goal that held after an action
    steps: jax.Array  # [B] int32 actions, those without effect included


@dataclass(frozen=True)
class Pddl:
    """The engine. `tasks.fit` finds the sizes that hold given games."""

    sizes: strips.Sizes
    objects: int  # O
    verbs: int  # Vb
    text_tokens: int  # tokens of all texts of a game
    alphabet: int  # a, how many different ones there are
    letters: int  # n, the most bytes of one
    listed: int  # the most facts or actions that an answer tells; those after them are left out
    seen_tokens: int
    action_tokens: int
    limit: int = 30  # actions of an episode

    def reset(self, shared: Shared, game: Game) -> tuple[State, Text]:
        facts = jnp.asarray(game.strips.init)
        zero = jnp.zeros(len(facts), jnp.int32)
        lacks = strips.lacking(game.strips, facts, self.sizes.planes)
        seen = self._tell(game, facts & game.told, jnp.zeros_like(lacks[:, 0]), zero, zero)
        return State(facts, lacks, zero, zero), seen

    def step(self, shared: Shared, game: Game, state: State, action: Text, on: jax.Array) -> tuple[State, Outcome]:
        live = strips.can_be_taken(state.lacks)
        asks = says(shared.check, action)
        looks = ~asks & says(shared.look, action)
        keys, is_word = words(shared.words, action)
        parsed, number = alone(on, self._parse, game, keys[..., 0], keys[..., 1], is_word, live)
        acts = on & parsed & ~asks & ~looks & (number >= 0)
        stay = lambda _, facts, lacks, *__: (facts, lacks)  # noqa: E731
        given = game.strips, state.facts, state.lacks, number, acts
        after, lacks = lax.cond(acts.any(), self._after, stay, *given)
        moved = (after != state.facts).any(1)
        met = strips.met(game.strips, after)
        won = met == game.strips.goals
        best = jnp.where(moved, jnp.maximum(state.best, met), state.best)
        new = State(after, lacks, best, state.steps + on)

        shown = jnp.where((moved & game.tells_new)[:, None], after & ~state.facts, after)
        shown = jnp.where((on & (moved | looks))[:, None], shown & game.told, 0)
        refused = jnp.where(parsed, Piece.NO_EFFECT, Piece.UNKNOWN)
        head = jnp.where(asks, Piece.VALID, jnp.where(moved | looks, Piece.NOTHING, refused))
        checks = jnp.where(game.tells_new, Piece.CHECK_OR_LOOK, Piece.CHECK)
        tail = jnp.where(asks, checks, jnp.where(moved & won, Piece.SATISFIED, Piece.NOTHING))
        head, tail = (jnp.where(on, piece, Piece.NOTHING) for piece in (head, tail))
        listed = jnp.where((asks & on)[:, None], live, 0)
        seen = alone(on, self._tell, game, shown, listed, head, tail)
        return new, Outcome(
            seen=seen,
            progress=best / jnp.maximum(game.strips.goals, 1).astype(jnp.float32),
            success=won,
            terminated=won,
            truncated=~won & (new.steps >= self.limit),
            understood=on & (asks | looks | moved),
        )

    def render(self, shared: Shared, game: Game, state: State, row: int) -> str:
        game = jax.tree.map(lambda x: np.asarray(x)[row], game)
        texts, facts = game.texts, self.sizes.words * strips.BITS

        def told(i: int) -> str:
            start = texts.start[len(Piece) + i :][:2]
            letters = game.letters[texts.tokens[start[0] : start[1]]]
            return bytes(letters[letters > 0]).decode(errors="replace").strip()

        holds, wanted = (np.asarray(strips.unpack(x)) for x in (jnp.asarray(state.facts)[row], game.strips.goal))
        goal = [f"[{'x' if holds[i] else ' '}] {told(i)}" for i in np.flatnonzero(wanted)]
        lines = [f"step {np.asarray(state.steps)[row]} of {self.limit}", *goal, ""]
        return "\n".join([*lines, *(told(i) for i in range(facts) if holds[i])])

    def _parse(
        self, game: Game, high: jax.Array, low: jax.Array, is_word: jax.Array, live: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Whether texts name an action and enough objects [B], and which one can be taken and is meant [B], or -1.

        The action is the first word that is one of those which can be taken now, and its objects are the first words
        that name any, wherever they stand. Keys of words: the halves `high` and `low` [B, n]. live: [B, Aw] uint32.
        """

        def which(keys: jax.Array, open_: jax.Array) -> jax.Array:
            """Number of the one that each word names, -1 if none; of those that are open [B, n]."""
            found = jnp.full(is_word.shape, -1)
            for i in range(keys.shape[1]):  # a comparison of whole rows each
                same = (high == keys[:, i, :1]) & (low == keys[:, i, 1:])
                found = jnp.where(same & open_[:, i, None], i, found)
            return jnp.where(is_word, found, -1)

        verbs = which(game.verb_key, (game.verb_actions & live[:, None] != 0).any(-1))
        place = jnp.where(verbs >= 0, jnp.arange(verbs.shape[1]), verbs.shape[1]).min(1, keepdims=True)
        verb = jnp.take_along_axis(verbs, place, 1, mode="fill", fill_value=-1)
        terms = jnp.take_along_axis(jnp.asarray(game.verb_terms), jnp.maximum(verb, 0), 1)

        named = which(game.name_key, jnp.ones(game.name_key.shape[:2], bool))
        rank = running_sum((named >= 0).astype(jnp.float32)).astype(jnp.int32)  # which object this word is, from 1 on
        parsed = (verb[:, 0] >= 0) & (rank[:, -1:] >= terms)[:, 0]
        # Of the code: the verb's byte, those of the objects, and NO_OBJECT behind them.
        counts = (named >= 0) & (rank <= terms)
        byte = jnp.arange(4)

        def word(first_byte: int) -> jax.Array:
            at = rank - first_byte
            objects = jnp.where(counts & (at >= 0) & (at < 4), named << 8 * jnp.clip(at, 0, 3), 0).sum(1)
            rest = jnp.where(first_byte + byte > terms, NO_OBJECT << 8 * byte, 0).sum(1)
            return (objects + rest).astype(jnp.uint32)

        verb_byte = (verb[:, 0] & 0xFF).astype(jnp.uint32)
        number, known = _action(game, jnp.stack([word(0) | verb_byte, word(4)], 1))
        return parsed, jnp.where(known & strips.holds(live, number), number, -1)

    def _after(self, game: Strips, facts: jax.Array, lacks: jax.Array, number: jax.Array, on: jax.Array):
        """Facts, and what actions lack, after the actions [B] of rows `on`."""
        after = strips.apply(game, facts, jnp.maximum(number, 0), on)
        return after, strips.lacking_after(game, lacks, facts, after, self.sizes.changes)

    def _tell(self, game: Game, facts: jax.Array, actions: jax.Array, head: jax.Array, tail: jax.Array) -> Text:
        """Sentences of facts [B, Fw] uint32 or of actions [B, Aw], in their order, between two pieces [B]."""
        room, last = facts.shape[1] * strips.BITS, self.listed + 1
        place = jnp.arange(last + 1)
        number, there = strips.first(jnp.concatenate([facts, actions], 1), last + 1, free=1)
        opens = (place == 1) & (head == Piece.NOTHING)[:, None]
        number += jnp.where(opens | (number >= room), room, 0)  # the pool has facts twice
        items = jnp.where(there, len(Piece) + number, Piece.NOTHING)
        ids = jnp.where(place == 0, head[:, None], jnp.where(place == last, tail[:, None], items))
        return alone(ids != Piece.NOTHING, partial(spell_pool, width=self.seen_tokens), game.texts, ids)


def _action(game: Game, code: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The actions [B] int32 with codes [B, 2], and whether there is one."""
    codes, most = jnp.asarray(game.code), game.code.shape[1]
    pick = lambda at: jnp.take_along_axis(codes, at[:, None, None], 1, mode="clip")[:, 0]  # noqa: E731
    steps = most.bit_length()

    def one(i, less):  # codes that are less than this one, by halves
        at = less + (1 << steps - 1 - i)
        that = pick(at - 1)
        is_less = (that[:, 0] < code[:, 0]) | ((that[:, 0] == code[:, 0]) & (that[:, 1] < code[:, 1]))
        return jnp.where((at <= most) & is_less, at, less)

    place = lax.fori_loop(0, steps, one, jnp.zeros(len(code), jnp.int32))
    number = jnp.take_along_axis(jnp.asarray(game.coded), place[:, None], 1, mode="clip")[:, 0]
    return number, (pick(place) == code).all(1)


def code_of(verb: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Codes [n, 2] uint32 of actions, on the host: verbs [n] and objects [n, MOST_TERMS]."""
    each = np.concatenate([verb[:, None], objects], 1).astype(np.uint32).reshape(-1, 2, 4)
    return (each << np.arange(0, 32, 8, dtype=np.uint32)).sum(-1, dtype=np.uint32)
