"""ALFWorld on the device: households of objects and receptacles, played in text, as TextWorld plays the game files.

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
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.envs.base import Outcome
from agemem_jax.envs.text import ByteTable, compose, covering, key_of, piece_of, spell, text_key
from agemem_jax.memory.equality import join
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

WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
IN_ROOM = "You are in the middle of a room. Looking quickly around you, you see"
FACING = "You are facing the"
NEXT_TO_IT = ". Next to it, you see"
HELP = "\n".join(
    [
        "Available commands:",
        "  look:                             look around your current location",
        "  inventory:                        check your current inventory",
        "  go to (receptacle):               move to a receptacle",
        "  open (receptacle):                open a receptacle",
        "  close (receptacle):               close a receptacle",
        "  take (object) from (receptacle):  take an object from a receptacle",
        "  move (object) to (receptacle):  place an object in or on a receptacle",
        "  examine (something):              examine a receptacle or an object",
        "  use (object):                     use an object",
        "  heat (object) with (receptacle):  heat an object using a receptacle",
        "  clean (object) with (receptacle): clean an object using a receptacle",
        "  cool (object) with (receptacle):  cool an object using a receptacle",
        "  slice (object) with (object):     slice an object using a sharp object",
        "",
    ]
)
# How an answer begins, goes on behind its first name and ends behind its second one; [0] as of json_2.1.1, [1] of 2.1.3
ANSWERS = {
    Verb.NOTHING: ("Nothing happens.", "", ""),
    Verb.GO: ("You arrive at", ".", ""),
    Verb.OPEN: ("You open the", ".", ""),
    Verb.CLOSE: ("You close the", ".", ""),
    Verb.EXAMINE: ("", "", ""),
    Verb.INSPECT: ("", "", ""),
    Verb.TAKE: ("You pick up the", " from the", "."),
    Verb.PUT: ("You put the", " in/on the", "."),
    Verb.CLEAN: ("You clean the", " using the", "."),
    Verb.HEAT: ("You heat the", " using the", "."),
    Verb.COOL: ("You cool the", " using the", "."),
    Verb.SLICE: ("You sliced the", " with the", "."),
    Verb.USE: ("You turn on the", ".", ""),
    Verb.LOOK: ("", "", ""),
    Verb.INVENTORY: ("You are not carrying anything.", "", ""),
    Verb.HELP: (HELP, "", ""),
}
MOVED = ("You move the", " to the", ".")  # PUT in 2.1.3
# Commands: what stands before the first name, between the names.
COMMANDS = {
    Verb.GO: ("go to", ""),
    Verb.OPEN: ("open", ""),
    Verb.CLOSE: ("close", ""),
    Verb.EXAMINE: ("examine", ""),
    Verb.TAKE: ("take", " from"),
    Verb.PUT: ("put", " in/on"),
    Verb.CLEAN: ("clean", " with"),
    Verb.HEAT: ("heat", " with"),
    Verb.COOL: ("cool", " with"),
    Verb.SLICE: ("slice", " with"),
    Verb.USE: ("use", ""),
    Verb.LOOK: ("look", ""),
    Verb.INVENTORY: ("inventory", ""),
    Verb.HELP: ("help", ""),
}
MOVE = ("move", " to")  # PUT in 2.1.3
NORMAL = "This is a normal"
# What an object is said to be, if it has all of the flags: the first that holds.
LOOKS = (
    ((Flag.CLEAN, Flag.HOT, Flag.SLICED), "This is a hot and clean sliced"),
    ((Flag.CLEAN, Flag.COOL, Flag.SLICED), "This is a cool and clean sliced"),
    ((Flag.CLEAN, Flag.SLICED), "This is a clean sliced"),
    ((Flag.HOT, Flag.SLICED), "This is a hot sliced"),
    ((Flag.COOL, Flag.SLICED), "This is a cool sliced"),
    ((Flag.CLEAN, Flag.HOT), "This is a hot and clean"),
    ((Flag.CLEAN, Flag.COOL), "This is a cool and clean"),
    ((Flag.HOT,), "This is a hot"),
    ((Flag.CLEAN,), "This is a clean"),
    ((Flag.COOL,), "This is a cold"),
)
ON, SLICED, PLAIN = "This", "This is a sliced", "There's nothing special about"
LISTS = ("", " a", ",", ", a", ", and", ", and a", " nothing")  # what stands before a name in a listing
OTHERS = (
    ".\n\n", IN_ROOM, WELCOME + IN_ROOM, FACING, WELCOME + FACING, NEXT_TO_IT, "You are carrying:", "The", " The",
    "On the", " On the", ", you see", " is closed.", " is open. In it, you see", ". In it, you see", " is on.", ".",
    NORMAL, ON, SLICED, PLAIN,
)  # fmt: skip
# Every piece that is no name; number 0 is the empty one.
PIECES = tuple(
    dict.fromkeys(
        [*LISTS, *OTHERS, *(text for _, text in LOOKS), *MOVED, *MOVE]
        + [text for parts in (*ANSWERS.values(), *COMMANDS.values()) for text in parts]
        + [f", {parts[0]}" for parts in (*COMMANDS.values(), MOVE)]
    )
)
NUMBER = {text: i for i, text in enumerate(PIECES)}


@dataclass(frozen=True)
class Spelling:
    """The bytes of a vocabulary's tokens, for people; equal where the vocabulary's path is."""

    path: str
    pieces: tuple[bytes | None, ...] = field(compare=False, repr=False)

    def __call__(self, text: Text) -> str:
        """One text [W] as a string, on the host."""
        ids = np.asarray(text.tokens)[: int(text.length)]
        return b"".join(self.pieces[i] or b"" for i in ids).decode("utf-8", "replace")


@struct.dataclass
class Shared:
    """What no game changes."""

    pieces: Text  # [n, W] PIECES
    bytes: ByteTable
    spelling: Spelling = struct.field(pytree_node=False)


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
    inside: jax.Array  # [B, R, w] uint32 state at the start, as in State
    at: jax.Array  # [B, R, w] uint32
    opened: jax.Array  # [B, R] bool
    flags: jax.Array  # [B, len(Flag), w] uint32
    location: jax.Array  # [B] int32


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


NOWHERE = -1

_rows = jax.vmap(lambda x, i: x[i])  # entries of a table of each row: [B, n, ...] and [B, ...] -> [B, ..., ...]


def unpack(words: jax.Array, n: int) -> jax.Array:
    """Sets of objects [..., w] uint32 as [..., n] bool."""
    number = np.arange(n)
    return (words[..., number // 32] >> (number % 32).astype(np.uint32)) & 1 > 0


def _only(number: jax.Array, words: int) -> jax.Array:
    """The set [B, w] of one object [B]; empty if it is NOWHERE."""
    bit = jnp.uint32(1) << (jnp.maximum(number, 0) % 32).astype(jnp.uint32)
    return jnp.where(number[:, None] // 32 == jnp.arange(words), bit[:, None], 0)


def _meet(one: jax.Array, other: jax.Array) -> jax.Array:
    """Whether two sets [..., w] have an object in common."""
    return (one & other != 0).any(-1)


def _here(game: Game, state: State) -> tuple[jax.Array, jax.Array]:
    """The receptacles at the agent's location [B, H], and what lies there [B, w]; none in the middle of the room."""
    is_room, place = (state.location == NOWHERE)[:, None], jnp.maximum(state.location, 0)
    return jnp.where(is_room, NOWHERE, _rows(game.together, place)), jnp.where(is_room, 0, _rows(state.at, place))


def admissible(game: Game, state: State) -> Admissible:
    """What can be done in each row."""
    here, near = _here(game, state)
    present, at = here != NOWHERE, jnp.maximum(here, 0)
    openable, opened = _rows(game.openable, at), _rows(state.opened, at)
    reachable = present & (~openable | opened)
    inside = jnp.where(present[..., None], _rows(state.inside, at), 0)
    is_full, held = state.held != NOWHERE, _only(state.held, state.inside.shape[-1])
    treatable = jnp.stack(
        [_meet(game.able[:, i], held) for i in (Able.CLEANABLE, Able.HEATABLE, Able.COOLABLE)], axis=1
    )
    objects, takeable = game.object_piece.shape[1], inside & game.able[:, None, Able.PICKUPABLE]
    visible = jnp.bitwise_or.reduce(inside, axis=1)
    knife = _meet(game.able[:, Able.KNIFE], held)
    return Admissible(
        here=here,
        go=(game.place != NOWHERE) & (game.place != state.location[:, None]),
        open=present & openable & ~opened,
        close=present & openable & opened,
        examine=present,
        put=reachable & _meet(_rows(game.fits, at), held[:, None]),
        treat=present[:, None] & jax.vmap(lambda x, i: x[:, i])(game.appliance, at) & treatable[..., None],
        take=unpack(takeable, objects) & (reachable & ~is_full[:, None])[..., None],
        slice=unpack(near & game.able[:, Able.SLICEABLE], objects) & knife[:, None],
        use=unpack(visible & game.able[:, Able.TOGGLEABLE], objects),
        inspect=is_full,
        help=game.is_moves,
    )


def _understand(shared: Shared, game: Game, state: State, can: Admissible, action: Text):
    """The command that a text [B, A] is: (verb, receptacle, object), each [B] int32; NOTHING if it cannot be done."""
    key = text_key(shared.bytes, action)
    same = lambda a, b: (a == b).all(-1)  # noqa: E731
    held = _rows(game.object_piece, jnp.maximum(state.held, 0))
    of_held = lambda begin, behind: join(join(key_of(begin), held), piece_of(behind))[:, None]  # noqa: E731
    # What is left of the text when the name of a receptacle here, or of the object held, is taken from its end.
    stem = join(key[:, None], _rows(game.receptacle_cut, jnp.maximum(can.here, 0)))
    before_held = join(key, _rows(game.object_cut, jnp.maximum(state.held, 0)))[:, None]
    one_of = lambda mask: (mask.any(1), jnp.argmax(mask, 1).astype(jnp.int32))  # noqa: E731

    def at_hand(mask):
        there, slot = one_of(mask)
        return there, jnp.take_along_axis(can.here, slot[:, None], 1)[:, 0]

    nothing = jnp.full_like(state.held, NOWHERE)
    put = jnp.where(game.is_moves[:, None, None], of_held(*MOVE), of_held(*COMMANDS[Verb.PUT]))
    takes = same(stem[:, :, None], game.take_key[:, None]) & can.take
    taken = one_of(takes.any(1))[1]
    with_receptacle = {
        Verb.GO: one_of(same(game.go_key, key[:, None]) & can.go),
        Verb.OPEN: at_hand(same(stem, key_of("open")) & can.open),
        Verb.CLOSE: at_hand(same(stem, key_of("close")) & can.close),
        Verb.EXAMINE: at_hand(same(stem, key_of("examine")) & can.examine),
        Verb.TAKE: at_hand(takes.any(2)),
        Verb.PUT: at_hand(same(stem, put) & can.put),
    }
    for i, treatment in enumerate(TREATMENTS):
        with_receptacle[treatment] = at_hand(same(stem, of_held(*COMMANDS[treatment])) & can.treat[:, i])
    with_object = {
        Verb.SLICE: one_of(same(before_held, game.slice_key) & can.slice),
        Verb.USE: one_of(same(key[:, None], game.use_key) & can.use),
    }
    alone = {
        Verb.INSPECT: same(join(key_of("examine"), held), key) & can.inspect,
        Verb.LOOK: same(key, key_of("look")),
        Verb.INVENTORY: same(key, key_of("inventory")),
        Verb.HELP: same(key, key_of("help")) & can.help,
    }
    verb, receptacle, thing = jnp.full_like(state.held, Verb.NOTHING), nothing, nothing
    for number, (there, which) in with_receptacle.items():
        verb, receptacle = jnp.where(there, number, verb), jnp.where(there, which, receptacle)
        thing = jnp.where(there, taken if number == Verb.TAKE else state.held, thing)
    for number, (there, which) in with_object.items():
        verb, thing = jnp.where(there, number, verb), jnp.where(there, which, thing)
    for number, there in alone.items():
        verb = jnp.where(there, number, verb)
    return verb, receptacle, thing


def _act(game: Game, state: State, verb: jax.Array, receptacle: jax.Array, thing: jax.Array) -> State:
    """What a command that can be done leads to."""
    receptacles, words = state.inside.shape[1:]
    number = jnp.arange(receptacles)
    this, here = (number == place[:, None] for place in (receptacle, state.location))
    when = lambda *verbs: sum(verb == v for v in verbs) > 0  # noqa: E731
    what = _only(thing, words)
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
    place = _rows(game.place, jnp.maximum(receptacle, 0))
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
    in_hand = _meet(game.goal_held, _only(state.held, state.inside.shape[-1])) | ~game.goal_is_held
    return (place & (count >= game.goal_count[:, None])).any(-1) & in_hand


def _listing(places: jax.Array, is_place: jax.Array, count: jax.Array, facing: jax.Array, empty: jax.Array, start: int):
    """Numbers of the pieces [B, 2 * slots] of one or two listings: what stands before each name, and the name.

    There are as many slots as candidates; what would be told beyond them is left out.

    Args:
      places: [B, p] int32 numbers of the names of receptacles.
      is_place: [B, p] bool which of them are told.
      count: [B, O] int32 how often each object is told.
      facing: [B] bool receptacles are told without an article, and NEXT_TO_IT comes between them and the objects.
      empty: [B] bool "nothing" is told in the end.
      start: number of the first object's name.
    """
    batch, p = is_place.shape
    objects = count.shape[1]
    told = jnp.concatenate([is_place, facing[:, None], count, empty[:, None]], axis=1, dtype=jnp.int32)
    things = jnp.broadcast_to(start + jnp.arange(objects), (batch, objects))
    zero = jnp.zeros((batch, 1), jnp.int32)
    names = jnp.concatenate([places, zero, things, zero], axis=1)
    ends = jnp.cumsum(told, axis=1)
    slot = jnp.arange(told.shape[1])
    which = covering(ends, told.shape[1])
    is_object = which > p
    begin = jnp.where(is_object, ends[:, p, None], 0)
    end = jnp.where(is_object, ends[:, p + objects, None], ends[:, p - 1, None])
    kind = jnp.where(slot == begin, 0, jnp.where(slot == end - 1, 4, 2))  # of LISTS, without an article
    before = kind + (is_object | ~facing[:, None])
    before = jnp.where(which == p, NUMBER[NEXT_TO_IT], before)
    before = jnp.where(which == p + 1 + objects, NUMBER[" nothing"], before)
    name = _rows(names, jnp.minimum(which, told.shape[1] - 1))
    pairs = jnp.stack([before, name], axis=2)
    return jnp.where((slot < ends[:, -1:])[..., None], pairs, 0).reshape(batch, -1)


def _pick(texts: list[str]) -> jax.Array:
    """Numbers of pieces, to be indexed on the device."""
    return jnp.array([NUMBER[text] for text in texts], jnp.int32)


def _answer(
    shared: Shared, game: Game, state: State, verb, receptacle, thing, on, width: int, is_start: bool = False
) -> Text:
    """What is said after a command: `state` is what it has led to. At the start the command is LOOK."""
    receptacles, words = state.inside.shape[1:]
    objects, n = game.object_piece.shape[1], len(PIECES)
    is_verb = lambda *verbs: sum(verb == v for v in verbs) > 0  # noqa: E731
    here, near = _here(game, state)
    is_room, is_full = state.location == NOWHERE, state.held != NOWHERE
    held = _only(state.held, words)

    # Behind a command that shows a receptacle, what it is like.
    shows = is_verb(Verb.GO, Verb.OPEN, Verb.EXAMINE)
    this = jnp.maximum(receptacle, 0)
    openable, opened = _rows(game.openable, this), _rows(state.opened, this)
    is_behind = ~is_verb(Verb.EXAMINE)
    head = jnp.where(openable, *(jnp.where(is_behind, NUMBER[f" {text}"], NUMBER[text]) for text in ("The", "On the")))
    body = jnp.where(
        ~openable, NUMBER[", you see"], jnp.where(opened, NUMBER[" is open. In it, you see"], NUMBER[" is closed."])
    )
    sight = [jnp.where(shows, x, 0) for x in (head, n + receptacles + this, body)]

    # The object held, when it is inspected.
    has = lambda flag: _meet(state.flags[:, flag], held)  # noqa: E731
    can = lambda able: _meet(game.able[:, able], held)  # noqa: E731
    inspects, is_holder = is_verb(Verb.INSPECT), can(Able.HOLDER)
    is_on, is_sliced = can(Able.TOGGLEABLE) & has(Flag.TOGGLED), can(Able.SLICEABLE) & has(Flag.SLICED)
    cases = [(is_holder, NORMAL), *((jnp.stack([has(f) for f in flags]).all(0), text) for flags, text in LOOKS),
             (is_on, ON), (is_sliced, SLICED)]  # fmt: skip
    like = jnp.select([case for case, _ in cases], [NUMBER[text] for _, text in cases], NUMBER[PLAIN])
    after_like = jnp.where(like == NUMBER[ON], NUMBER[" is on."], NUMBER["."])
    after_like = jnp.where(is_holder, NUMBER[". In it, you see"], after_like)

    looks, carries = is_verb(Verb.LOOK), is_verb(Verb.INVENTORY)
    view = jnp.where(is_room, *(NUMBER[(WELCOME if is_start else "") + text] for text in (IN_ROOM, FACING)))
    opening, middle, closing = (_pick([parts[i] for parts in ANSWERS.values()])[verb] for i in range(3))
    moves = is_verb(Verb.PUT) & game.is_moves
    opening, middle, closing = (
        jnp.where(moves, NUMBER[text], x) for x, text in zip((opening, middle, closing), MOVED, strict=True)
    )
    opening = jnp.where(looks, view, opening)
    opening = jnp.where(carries & is_full, NUMBER["You are carrying:"], opening)
    opening, middle = jnp.where(inspects, like, opening), jnp.where(inspects, after_like, middle)
    # Names: the object or, of a command without one, the receptacle; then the receptacle, or the knife.
    name_of = lambda x: n + 2 * receptacles + jnp.maximum(x, 0)  # noqa: E731
    first = jnp.where(is_verb(Verb.TAKE, Verb.PUT, *TREATMENTS, Verb.SLICE, Verb.USE), name_of(thing), 0)
    first = jnp.where(inspects, name_of(state.held), first)
    first = jnp.where(is_verb(Verb.OPEN, Verb.CLOSE), n + receptacles + this, first)
    first = jnp.where(is_verb(Verb.GO), n + this, first)
    second = jnp.where(is_verb(Verb.TAKE, Verb.PUT, *TREATMENTS), n + receptacles + this, 0)
    second = jnp.where(is_verb(Verb.SLICE), name_of(state.held), second)

    # Listings. In the middle of the room, receptacles are told at the start alone.
    faces = looks & ~is_room
    if is_start:
        places = jnp.broadcast_to(jnp.arange(receptacles), game.place.shape)
        is_place = jnp.where(is_room[:, None], game.place != NOWHERE, (here[..., None] == places[:, None]).any(1))
    else:
        places, is_place = jnp.maximum(here, 0), here != NOWHERE
    is_place &= looks[:, None]
    left = jnp.where((here != NOWHERE)[..., None], _rows(state.left, jnp.maximum(here, 0)) & near[:, None], 0)
    shows_inside = shows & (~openable | opened)
    within = jnp.where(shows_inside[:, None], _rows(state.inside, this), 0)
    within = jnp.where(carries[:, None], held, within)
    within = jnp.where(inspects[:, None] & is_holder[:, None], _rows(game.contents, jnp.maximum(state.held, 0)), within)
    count = unpack(within, objects).astype(jnp.int32)
    count += jnp.where(faces[:, None], unpack(left, objects).sum(1, dtype=jnp.int32), 0)
    lists = faces | shows_inside | (inspects & is_holder)
    is_empty = (lists & (count.sum(1) == 0)) | (looks & is_room & ~is_place.any(1))
    listing = _listing(n + receptacles + places, is_place, count, faces, is_empty, n + 2 * receptacles)
    end = jnp.where(lists | looks | (carries & is_full), NUMBER[".\n\n" if is_start else "."], 0)

    parts = jnp.stack([opening, first, middle, second, closing, *sight], axis=1)
    numbers = jnp.concatenate([parts, listing, end[:, None]], axis=1).astype(jnp.int32)
    return spell(shared.pieces, game.names, jnp.where(on[:, None], numbers, 0), width)


def admissible_text(shared: Shared, game: Game, state: State, width: int) -> Text:
    """The admissible commands in alphabetical order, with ", " between them: [B, width].

    At most R + 2O + 4H + 4 of them, and what is longer is cut at its end.
    """
    can = admissible(game, state)
    batch, n = len(state.held), len(PIECES)
    receptacles, objects = game.place.shape[1], game.object_piece.shape[1]
    rank = lambda who: _rows(game.order, who)  # noqa: E731
    sort = lambda x: jnp.argsort(x, axis=1)  # noqa: E731
    behind = receptacles + objects  # after every rank
    by_name = sort(jnp.where(can.here != NOWHERE, rank(jnp.maximum(can.here, 0)), behind))
    go_order, object_order = sort(game.order[:, :receptacles]), sort(game.order[:, receptacles:])
    here = n + receptacles + _rows(jnp.maximum(can.here, 0), by_name)
    held = (n + 2 * receptacles + jnp.maximum(state.held, 0))[:, None]
    places, things = n + receptacles + go_order, n + 2 * receptacles + object_order
    examined = jnp.concatenate([here, held], axis=1)
    in_hand = rank(receptacles + jnp.maximum(state.held, 0)[:, None])
    examine_order = sort(jnp.concatenate([rank(here - n - receptacles), in_hand], axis=1))
    examine = jnp.concatenate([_rows(can.examine, by_name), can.inspect[:, None]], axis=1)
    take = _rows(jnp.swapaxes(jax.vmap(lambda x, i: x[i])(can.take, by_name), 1, 2), object_order)
    moves, here_of = game.is_moves[:, None], lambda mask: _rows(mask, by_name)
    always, hands = jnp.ones((batch, 1), bool), len(by_name[0])
    treat = lambda verb: here_of(can.treat[:, TREATMENTS.index(verb)])  # noqa: E731
    flat = lambda x: jnp.broadcast_to(x, (batch, objects, hands)).reshape(batch, -1)  # noqa: E731
    # Each with its words, the mask, the first names and the second ones.
    blocks = (
        (COMMANDS[Verb.CLEAN], treat(Verb.CLEAN), held, here),
        (COMMANDS[Verb.CLOSE], here_of(can.close), here, 0),
        (COMMANDS[Verb.COOL], treat(Verb.COOL), held, here),
        (COMMANDS[Verb.EXAMINE], _rows(examine, examine_order), _rows(examined, examine_order), 0),
        (COMMANDS[Verb.GO], _rows(can.go, go_order), places, 0),
        (COMMANDS[Verb.HEAT], treat(Verb.HEAT), held, here),
        (COMMANDS[Verb.HELP], can.help[:, None], 0, 0),
        (COMMANDS[Verb.INVENTORY], always, 0, 0),
        (COMMANDS[Verb.LOOK], always, 0, 0),
        (MOVE, here_of(can.put) & moves, held, here),
        (COMMANDS[Verb.OPEN], here_of(can.open), here, 0),
        (COMMANDS[Verb.PUT], here_of(can.put) & ~moves, held, here),
        (COMMANDS[Verb.SLICE], _rows(can.slice, object_order), things, held),
        (COMMANDS[Verb.TAKE], flat(take), flat(things[..., None]), flat(here[:, None])),
        (COMMANDS[Verb.USE], _rows(can.use, object_order), things, 0),
    )
    mask = jnp.concatenate([block[1] for block in blocks], axis=1)
    sizes = [block[1].shape[1] for block in blocks]
    words = jnp.array(
        np.repeat([[NUMBER[w] for w in (f", {b[0][0]}", b[0][0], b[0][1])] for b in blocks], sizes, axis=0)
    )
    names = [jnp.concatenate([jnp.broadcast_to(b[i], b[1].shape) for b in blocks], axis=1) for i in (2, 3)]
    slot = jnp.arange(receptacles + 2 * objects + 4 * hands + 4)
    ends = jnp.cumsum(mask, axis=1)
    which = jnp.minimum(covering(ends, len(slot)), mask.shape[1] - 1)
    begin = jnp.where(slot == 0, words[which, 1], words[which, 0])
    told = slot < ends[:, -1:]
    parts = jnp.stack([begin, _rows(names[0], which), words[which, 2], _rows(names[1], which)], axis=2)
    numbers = jnp.where(told[..., None], parts, 0).reshape(batch, -1).astype(jnp.int32)
    return spell(shared.pieces, game.names, numbers, width)


def commands(shared: Shared, game: Game, state: State, row: int) -> list[str]:
    """The admissible commands of one row, sorted, on the host."""
    game, state = (jax.tree.map(lambda x: np.asarray(x)[row : row + 1], tree) for tree in (game, state))
    can = jax.tree.map(lambda x: np.asarray(x)[0], jax.jit(admissible)(game, state))
    place, thing = _names(shared, game)
    held, moves = thing(state.held[0]), bool(game.is_moves[0])
    put = MOVE if moves else COMMANDS[Verb.PUT]
    here = lambda mask: [place(r) for r in can.here[np.flatnonzero(mask)]]  # noqa: E731
    found = ["look", "inventory", *(["help"] if moves else []), *([f"examine{held}"] if can.inspect else [])]
    found += [f"go to{place(r)}" for r in np.flatnonzero(can.go)]
    for verb, mask in (("open", can.open), ("close", can.close), ("examine", can.examine)):
        found += [verb + r for r in here(mask)]
    for (verb, behind), mask in ((put, can.put), *zip((COMMANDS[v] for v in TREATMENTS), can.treat, strict=True)):
        found += [verb + held + behind + r for r in here(mask)]
    found += [f"take{thing(o)} from{place(can.here[h])}" for h, o in zip(*np.nonzero(can.take), strict=True)]
    found += [f"slice{thing(o)} with{held}" for o in np.flatnonzero(can.slice)]
    return sorted({*found, *(f"use{thing(o)}" for o in np.flatnonzero(can.use))})


def _names(shared: Shared, game: Game):
    """Of a batch of one row, the names by number, each with its space before it: of receptacles, and of objects."""
    receptacles = game.place.shape[1]
    name = lambda i: shared.spelling(jax.tree.map(lambda x: np.asarray(x)[0, i], game.names))  # noqa: E731
    return lambda r: name(receptacles + r), lambda o: name(2 * receptacles + o)


@dataclass(frozen=True)
class AlfWorld:
    """The engine (envs/base.py: Environment)."""

    sizes: Sizes = Sizes()

    @property
    def seen_tokens(self) -> int:
        return self.sizes.seen_tokens

    @property
    def action_tokens(self) -> int:
        return self.sizes.action_tokens

    def reset(self, shared: Shared, game: Game) -> tuple[State, Text]:
        """(state, the welcome with what is around and the task [B, W])."""
        batch = len(game.location)
        state = State(
            inside=game.inside,
            left=jnp.zeros_like(game.inside),
            at=game.at,
            opened=game.opened,
            flags=game.flags,
            location=game.location,
            held=jnp.full((batch,), NOWHERE, jnp.int32),
            won=jnp.zeros((batch,), bool),
        )
        state = state.replace(won=reached(game, state))
        look, none = jnp.full((batch,), Verb.LOOK, jnp.int32), jnp.full((batch,), NOWHERE, jnp.int32)
        width, on = self.seen_tokens, jnp.ones((batch,), bool)
        around = _answer(shared, game, state, look, none, none, on, width, is_start=True)
        task = jnp.pad(game.task.tokens, ((0, 0), (0, width - game.task.tokens.shape[1])))
        lengths = jnp.stack([around.length, game.task.length], axis=1)
        return state, compose(jnp.stack([around.tokens, task], axis=1), lengths, width)

    def step(self, shared: Shared, game: Game, state: State, action: Text, on: jax.Array) -> tuple[State, Outcome]:
        """Takes the commands [B, A] of rows `on` [B] that have not won."""
        on = on & ~state.won
        verb, receptacle, thing = _understand(shared, game, state, admissible(game, state), action)
        verb = jnp.where(on, verb, Verb.NOTHING)
        state = _act(game, state, verb, receptacle, thing)
        state = state.replace(won=state.won | (on & reached(game, state)))
        seen = _answer(shared, game, state, verb, receptacle, thing, on, self.seen_tokens)
        return state, Outcome(
            seen=seen,
            progress=state.won.astype(jnp.float32),
            success=state.won,
            terminated=state.won,
            truncated=jnp.zeros_like(state.won),
            understood=verb != Verb.NOTHING,
        )

    def render(self, shared: Shared, game: Game, state: State, row: int) -> str:
        """The task, where the agent is, what it holds and what lies where."""
        task = shared.spelling(jax.tree.map(lambda x: np.asarray(x)[row], game.task))
        game, state = (jax.tree.map(lambda x: np.asarray(x)[row : row + 1], tree) for tree in (game, state))
        place, thing = _names(shared, game)
        inside = np.asarray(unpack(state.inside[0], game.object_piece.shape[1]))
        here, held = int(state.location[0]), int(state.held[0])
        lines = [task, f"at:{place(here) if here != NOWHERE else ' the middle of the room'}"]
        lines.append(f"holding:{thing(held) if held != NOWHERE else ' nothing'}")
        for r in np.flatnonzero(game.place[0] != NOWHERE):
            mark = (" (open)" if state.opened[0, r] else " (closed)") if game.openable[0, r] else ""
            lines.append(
                f"{place(r).strip()}{mark}:{','.join(thing(o) for o in np.flatnonzero(inside[r])) or ' nothing'}"
            )
        return "\n".join(lines)
