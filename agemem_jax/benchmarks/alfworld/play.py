"""What ALFWorld's games are on the device, and what play changes: households of objects and receptacles.

State is factored. What lies where is bits of objects for each receptacle (an object may lie in several), and so is
what lies at a location; a location is known by its first receptacle, for no other can be reached. Every command is a
verb with an object, a receptacle or both. Objects and receptacles are numbered in the order of their sorted ids, in
which every listing tells them.

Where play is odd, it is the published game's: only what is held can be examined, beside the receptacles here; one
cannot go to where one is; "Next to it" tells only what was once taken from a receptacle here; what was once turned on
is turned on again by using it, and stays on.

Sizes of the axes, beside those of types.py:

    R  receptacles      O  objects      w  32-bit words of O bits      H  receptacles at one location
"""

import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.types import Text


@dataclass(frozen=True)
class Sizes:
    """What a game may have at most; the defaults hold all published validation games. A larger one is refused."""

    objects: int = 64  # O that can be met in play
    receptacles: int = 56  # R
    together: int = 8  # H receptacles at one location
    name_tokens: int = 16  # of " drawer 12"
    task_tokens: int = 48
    seen_tokens: int = 512  # of the longest answer, the first one
    action_tokens: int = 40  # of the longest command

    @property
    def words(self) -> int:
        """w, the words of a set of objects."""
        return -(-self.objects // 32)


class Verb(enum.IntEnum):
    """What a command does."""

    NOTHING = 0  # it is none, or cannot be done now
    GO = 1
    OPEN = 2
    CLOSE = 3
    EXAMINE = 4  # a receptacle here
    INSPECT = 5  # what is held; says "examine" too
    TAKE = 6
    PUT = 7
    CLEAN = 8
    HEAT = 9
    COOL = 10
    SLICE = 11
    USE = 12
    LOOK = 13
    INVENTORY = 14
    HELP = 15


class Flag(enum.IntEnum):
    """What play changes about an object."""

    HOT = 0
    COOL = 1
    CLEAN = 2
    TOGGLED = 3
    SLICED = 4


class Able(enum.IntEnum):
    """What an object is for."""

    PICKUPABLE = 0
    CLEANABLE = 1
    HEATABLE = 2
    COOLABLE = 3
    SLICEABLE = 4
    TOGGLEABLE = 5
    HOLDER = 6  # things can lie in it
    KNIFE = 7


TREATMENTS = (Verb.CLEAN, Verb.HEAT, Verb.COOL)  # what an appliance does to what is held, in the order of `appliance`
NOWHERE = -1


@struct.dataclass
class Game:
    """One game a row. Sets of objects are bits: object o is bit o % 32 of word o // 32."""

    names: Text  # [B, 2R + O, W] of where one arrives by going to a receptacle, of the receptacles, of the objects
    task: Text  # [B, W]
    is_moves: jax.Array  # [B] bool: the wording is that of json_2.1.3, with "move" and "help"
    place: jax.Array  # [B, R] int32 the first receptacle at the same location; NOWHERE: it cannot be reached
    together: jax.Array  # [B, R, H] int32 receptacles at the location of which this one is the first; NOWHERE after
    openable: jax.Array  # [B, R] bool
    appliance: jax.Array  # [B, 3, R] bool it does these TREATMENTS
    fits: jax.Array  # [B, R, w] uint32 what may be put there
    able: jax.Array  # [B, len(Able), w] uint32
    contents: jax.Array  # [B, O, w] uint32 what lies in an object that holds things
    order: jax.Array  # [B, R + O] int32 place of each name among all in alphabetical order
    go_key: jax.Array  # [B, R, 2] uint32 key of "go to drawer 1"
    take_key: jax.Array  # [B, O, 2] of "take apple 1 from"
    slice_key: jax.Array  # [B, O, 2] of "slice apple 1 with"
    use_key: jax.Array  # [B, O, 2] of "use apple 1"
    object_piece: jax.Array  # [B, O, 2, 2] uint32 piece of " apple 1"
    object_cut: jax.Array  # [B, O, 2, 2] uint32 what takes that piece from the end of a key
    receptacle_cut: jax.Array  # [B, R, 2, 2] of " drawer 1"
    goal_objects: jax.Array  # [B, w] uint32 what counts, if it has the flags of `goal_flags`
    goal_flags: jax.Array  # [B, len(Flag)] bool
    goal_receptacles: jax.Array  # [B, R] bool where it counts
    goal_count: jax.Array  # [B] int32 how many in one of these
    goal_is_here: jax.Array  # [B] bool: that one has to be where the agent is
    goal_is_held: jax.Array  # [B] bool: something has to be held besides
    goal_held: jax.Array  # [B, w] uint32 one of these
    inside: jax.Array  # [B, R, w] uint32 state at the start, as in State, with empty hands
    left: jax.Array  # [B, R, w] uint32
    at: jax.Array  # [B, R, w] uint32
    opened: jax.Array  # [B, R] bool
    flags: jax.Array  # [B, len(Flag), w] uint32
    location: jax.Array  # [B] int32
    is_resumed: jax.Array  # [B] bool: it goes on after a walk; then all receptacles are told, wherever the agent is


@struct.dataclass
class State:
    """What play changes."""

    inside: jax.Array  # [B, R, w] uint32 what lies in or on a receptacle
    left: jax.Array  # [B, R, w] uint32 what was taken from it and not put back
    at: jax.Array  # [B, R, w] uint32 what lies at the location of which this receptacle is the first
    opened: jax.Array  # [B, R] bool
    flags: jax.Array  # [B, len(Flag), w] uint32
    location: jax.Array  # [B] int32 its first receptacle, or NOWHERE: in the middle of the room
    held: jax.Array  # [B] int32 object, or NOWHERE
    won: jax.Array  # [B] bool; from then on nothing changes


@struct.dataclass
class Admissible:
    """What can be done now. The receptacles here are those of `here`, [B, H]."""

    here: jax.Array  # [B, H] int32 receptacles at this location, NOWHERE after the last
    go: jax.Array  # [B, R] bool
    open: jax.Array  # [B, H] bool
    close: jax.Array  # [B, H] bool
    examine: jax.Array  # [B, H] bool
    put: jax.Array  # [B, H] bool what is held
    treat: jax.Array  # [B, 3, H] bool TREATMENTS of what is held
    take: jax.Array  # [B, H, O] bool
    slice: jax.Array  # [B, O] bool with what is held
    use: jax.Array  # [B, O] bool
    inspect: jax.Array  # [B] bool what is held
    help: jax.Array  # [B] bool


by_row = jax.vmap(lambda x, i: x[i])  # entries of a table of each row: [B, n, ...] and [B, ...] -> [B, ..., ...]


def unpack(words: jax.Array, n: int) -> jax.Array:
    """Sets of objects [..., w] uint32 as [..., n] bool."""
    number = np.arange(n)
    return (words[..., number // 32] >> (number % 32).astype(np.uint32)) & 1 > 0


def only(number: jax.Array, words: int) -> jax.Array:
    """The set [B, w] of one object [B]; empty if it is NOWHERE."""
    bit = jnp.uint32(1) << (jnp.maximum(number, 0) % 32).astype(jnp.uint32)
    return jnp.where(number[:, None] // 32 == jnp.arange(words), bit[:, None], 0)


def meet(one: jax.Array, other: jax.Array) -> jax.Array:
    """Whether two sets [..., w] have an object in common."""
    return (one & other != 0).any(-1)


def nearby(game: Game, state: State) -> tuple[jax.Array, jax.Array]:
    """The receptacles at the agent's location [B, H], and what lies there [B, w]; none in the middle of the room."""
    is_room, place = (state.location == NOWHERE)[:, None], jnp.maximum(state.location, 0)
    return jnp.where(is_room, NOWHERE, by_row(game.together, place)), jnp.where(is_room, 0, by_row(state.at, place))


def admissible(game: Game, state: State) -> Admissible:
    """What can be done in each row."""
    here, near = nearby(game, state)
    present, at = here != NOWHERE, jnp.maximum(here, 0)
    openable, opened = by_row(game.openable, at), by_row(state.opened, at)
    reachable = present & (~openable | opened)
    inside = jnp.where(present[..., None], by_row(state.inside, at), 0)
    is_full, held = state.held != NOWHERE, only(state.held, state.inside.shape[-1])
    treatable = jnp.stack(
        [meet(game.able[:, i], held) for i in (Able.CLEANABLE, Able.HEATABLE, Able.COOLABLE)], axis=1
    )
    objects, takeable = game.object_piece.shape[1], inside & game.able[:, None, Able.PICKUPABLE]
    visible = jnp.bitwise_or.reduce(inside, axis=1)
    knife = meet(game.able[:, Able.KNIFE], held)
    return Admissible(
        here=here,
        go=(game.place != NOWHERE) & (game.place != state.location[:, None]),
        open=present & openable & ~opened,
        close=present & openable & opened,
        examine=present,
        put=reachable & meet(by_row(game.fits, at), held[:, None]),
        treat=present[:, None] & jax.vmap(lambda x, i: x[:, i])(game.appliance, at) & treatable[..., None],
        take=unpack(takeable, objects) & (reachable & ~is_full[:, None])[..., None],
        slice=unpack(near & game.able[:, Able.SLICEABLE], objects) & knife[:, None],
        use=unpack(visible & game.able[:, Able.TOGGLEABLE], objects),
        inspect=is_full,
        help=game.is_moves,
    )


def act(game: Game, state: State, verb: jax.Array, receptacle: jax.Array, thing: jax.Array) -> State:
    """What a command that can be done leads to."""
    receptacles, words = state.inside.shape[1:]
    number = jnp.arange(receptacles)
    this, here = (number == place[:, None] for place in (receptacle, state.location))
    when = lambda *verbs: sum(verb == v for v in verbs) > 0  # noqa: E731
    what = only(thing, words)
    of = lambda *verbs: jnp.where(when(*verbs)[:, None], what, 0)  # noqa: E731
    taken, put = of(Verb.TAKE)[:, None], of(Verb.PUT)[:, None]

    def swap(sets, where, off, on):
        where = where[..., None]
        return (sets & ~jnp.where(where, off, 0)) | jnp.where(where, on, 0)

    nothing = jnp.zeros_like(what)
    on = {Flag.HOT: of(Verb.HEAT), Flag.COOL: of(Verb.COOL), Flag.CLEAN: of(Verb.CLEAN),
          Flag.TOGGLED: of(Verb.USE), Flag.SLICED: of(Verb.SLICE)}  # fmt: skip
    off = {Flag.HOT: of(Verb.COOL), Flag.COOL: of(Verb.HEAT)}
    stack = lambda sets: jnp.stack([sets.get(flag, nothing) for flag in Flag], axis=1)  # noqa: E731
    place = by_row(game.place, jnp.maximum(receptacle, 0))
    return State(
        inside=swap(state.inside, this, taken, put),
        left=swap(state.left, this, put, taken),
        at=swap(state.at, here, taken, put),
        opened=(state.opened | (this & when(Verb.OPEN)[:, None])) & ~(this & when(Verb.CLOSE)[:, None]),
        flags=(state.flags & ~stack(off)) | stack(on),
        location=jnp.where(when(Verb.GO), place, state.location),
        held=jnp.where(when(Verb.TAKE), thing, jnp.where(when(Verb.PUT), NOWHERE, state.held)),
        won=state.won,
    )


def reached(game: Game, state: State) -> jax.Array:
    """Whether the goal holds, [B]."""
    missing = jnp.where(game.goal_flags[..., None], ~state.flags, np.uint32(0))
    good = game.goal_objects & ~jnp.bitwise_or.reduce(missing, axis=1)
    count = lax.population_count(state.inside & good[:, None]).sum(-1).astype(jnp.int32)
    is_here = (game.place == state.location[:, None]) & (game.place != NOWHERE)
    place = game.goal_receptacles & (~game.goal_is_here[:, None] | is_here)
    in_hand = meet(game.goal_held, only(state.held, state.inside.shape[-1])) | ~game.goal_is_held
    return (place & (count >= game.goal_count[:, None])).any(-1) & in_hand
