"""What ALFWorld says and understands on the device: texts composed of pieces, and commands told by their keys."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.benchmarks.alfworld.play import (
    NOWHERE,
    TREATMENTS,
    Able,
    Admissible,
    Flag,
    Game,
    State,
    Verb,
    admissible,
    by_row,
    meet,
    nearby,
    only,
    unpack,
)
from agemem_jax.envs.text import ByteTable, covering, key_of, piece_of, spell, text_key
from agemem_jax.memory.equality import join
from agemem_jax.types import Text

WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
IN_ROOM = "You are in the middle of a room. Looking quickly around you, you see"
FACING = "You are facing the"
NEXT_TO_IT = ". Next to it, you see"
AROUND = ". Looking quickly around you, you see"  # behind where one is, when a game is resumed
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
    ".\n\n", IN_ROOM, WELCOME + IN_ROOM, FACING, WELCOME + FACING, NEXT_TO_IT, AROUND, "You are carrying:",
    "The", " The", "On the", " On the", ", you see", " is closed.", " is open. In it, you see", ". In it, you see",
    " is on.", ".", NORMAL, ON, SLICED, PLAIN,
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


def understand(shared: Shared, game: Game, state: State, can: Admissible, action: Text):
    """The command that a text [B, A] is: (verb, receptacle, object), each [B] int32; NOTHING if it cannot be done."""
    key = text_key(shared.bytes, action)
    same = lambda a, b: (a == b).all(-1)  # noqa: E731
    held = by_row(game.object_piece, jnp.maximum(state.held, 0))
    of_held = lambda begin, behind: join(join(key_of(begin), held), piece_of(behind))[:, None]  # noqa: E731
    # What is left of the text when the name of a receptacle here, or of the object held, is taken from its end.
    stem = join(key[:, None], by_row(game.receptacle_cut, jnp.maximum(can.here, 0)))
    before_held = join(key, by_row(game.object_cut, jnp.maximum(state.held, 0)))[:, None]
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
    name = by_row(names, jnp.minimum(which, told.shape[1] - 1))
    pairs = jnp.stack([before, name], axis=2)
    return jnp.where((slot < ends[:, -1:])[..., None], pairs, 0).reshape(batch, -1)


def _pick(texts: list[str]) -> jax.Array:
    """Numbers of pieces, to be indexed on the device."""
    return jnp.array([NUMBER[text] for text in texts], jnp.int32)


def answer(
    shared: Shared, game: Game, state: State, verb, receptacle, thing, on, width: int, is_start: bool = False
) -> Text:
    """What is said after a command: `state` is what it has led to. At the start the command is LOOK."""
    receptacles, words = state.inside.shape[1:]
    objects, n = game.object_piece.shape[1], len(PIECES)
    is_verb = lambda *verbs: sum(verb == v for v in verbs) > 0  # noqa: E731
    here, near = nearby(game, state)
    is_room, is_full = state.location == NOWHERE, state.held != NOWHERE
    held = only(state.held, words)

    # Behind a command that shows a receptacle, what it is like.
    shows = is_verb(Verb.GO, Verb.OPEN, Verb.EXAMINE)
    this = jnp.maximum(receptacle, 0)
    openable, opened = by_row(game.openable, this), by_row(state.opened, this)
    is_behind = ~is_verb(Verb.EXAMINE)
    head = jnp.where(openable, *(jnp.where(is_behind, NUMBER[f" {text}"], NUMBER[text]) for text in ("The", "On the")))
    body = jnp.where(
        ~openable, NUMBER[", you see"], jnp.where(opened, NUMBER[" is open. In it, you see"], NUMBER[" is closed."])
    )
    sight = [jnp.where(shows, x, 0) for x in (head, n + receptacles + this, body)]

    # The object held, when it is inspected.
    has = lambda flag: meet(state.flags[:, flag], held)  # noqa: E731
    can = lambda able: meet(game.able[:, able], held)  # noqa: E731
    inspects, is_holder = is_verb(Verb.INSPECT), can(Able.HOLDER)
    is_on, is_sliced = can(Able.TOGGLEABLE) & has(Flag.TOGGLED), can(Able.SLICEABLE) & has(Flag.SLICED)
    cases = [(is_holder, NORMAL), *((jnp.stack([has(f) for f in flags]).all(0), text) for flags, text in LOOKS),
             (is_on, ON), (is_sliced, SLICED)]  # fmt: skip
    like = jnp.select([case for case, _ in cases], [NUMBER[text] for _, text in cases], NUMBER[PLAIN])
    after_like = jnp.where(like == NUMBER[ON], NUMBER[" is on."], NUMBER["."])
    after_like = jnp.where(is_holder, NUMBER[". In it, you see"], after_like)

    looks, carries = is_verb(Verb.LOOK), is_verb(Verb.INVENTORY)
    plain, welcome = (
        jnp.where(is_room, *(NUMBER[before + text] for text in (IN_ROOM, FACING))) for before in ("", WELCOME)
    )
    # A game that is resumed is known by its receptacles, as one that begins in the middle of the room.
    resumes = looks & ~is_room & game.is_resumed & is_start
    view = jnp.where(game.is_resumed, plain, welcome) if is_start else plain
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
    first = jnp.where(resumes, n + receptacles + jnp.maximum(state.location, 0), first)
    middle = jnp.where(resumes, NUMBER[AROUND], middle)
    second = jnp.where(is_verb(Verb.TAKE, Verb.PUT, *TREATMENTS), n + receptacles + this, 0)
    second = jnp.where(is_verb(Verb.SLICE), name_of(state.held), second)

    # Listings. In the middle of the room, receptacles are told at the start alone.
    faces = looks & ~is_room & ~resumes
    if is_start:
        places = jnp.broadcast_to(jnp.arange(receptacles), game.place.shape)
        is_told = (here[..., None] == places[:, None]).any(1)
        is_place = jnp.where((is_room | resumes)[:, None], game.place != NOWHERE, is_told)
    else:
        places, is_place = jnp.maximum(here, 0), here != NOWHERE
    is_place &= looks[:, None]
    left = jnp.where((here != NOWHERE)[..., None], by_row(state.left, jnp.maximum(here, 0)) & near[:, None], 0)
    shows_inside = shows & (~openable | opened)
    within = jnp.where(shows_inside[:, None], by_row(state.inside, this), 0)
    within = jnp.where(carries[:, None], held, within)
    looked_into = inspects[:, None] & is_holder[:, None]
    within = jnp.where(looked_into, by_row(game.contents, jnp.maximum(state.held, 0)), within)
    count = unpack(within, objects).astype(jnp.int32)
    count += jnp.where(faces[:, None], unpack(left, objects).sum(1, dtype=jnp.int32), 0)
    lists = faces | shows_inside | (inspects & is_holder)
    is_empty = (lists & (count.sum(1) == 0)) | (looks & is_room & ~is_place.any(1))
    listing = _listing(n + receptacles + places, is_place, count, faces, is_empty, n + 2 * receptacles)
    stop = jnp.where(game.is_resumed, NUMBER["."], NUMBER[".\n\n"]) if is_start else NUMBER["."]
    end = jnp.where(lists | looks | (carries & is_full), stop, 0)

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
    rank = lambda who: by_row(game.order, who)  # noqa: E731
    sort = lambda x: jnp.argsort(x, axis=1)  # noqa: E731
    behind = receptacles + objects  # after every rank
    by_name = sort(jnp.where(can.here != NOWHERE, rank(jnp.maximum(can.here, 0)), behind))
    go_order, object_order = sort(game.order[:, :receptacles]), sort(game.order[:, receptacles:])
    here = n + receptacles + by_row(jnp.maximum(can.here, 0), by_name)
    held = (n + 2 * receptacles + jnp.maximum(state.held, 0))[:, None]
    places, things = n + receptacles + go_order, n + 2 * receptacles + object_order
    examined = jnp.concatenate([here, held], axis=1)
    in_hand = rank(receptacles + jnp.maximum(state.held, 0)[:, None])
    examine_order = sort(jnp.concatenate([rank(here - n - receptacles), in_hand], axis=1))
    examine = jnp.concatenate([by_row(can.examine, by_name), can.inspect[:, None]], axis=1)
    take = by_row(jnp.swapaxes(jax.vmap(lambda x, i: x[i])(can.take, by_name), 1, 2), object_order)
    moves, here_of = game.is_moves[:, None], lambda mask: by_row(mask, by_name)
    always, hands = jnp.ones((batch, 1), bool), len(by_name[0])
    treat = lambda verb: here_of(can.treat[:, TREATMENTS.index(verb)])  # noqa: E731
    flat = lambda x: jnp.broadcast_to(x, (batch, objects, hands)).reshape(batch, -1)  # noqa: E731
    # Each with its words, the mask, the first names and the second ones.
    blocks = (
        (COMMANDS[Verb.CLEAN], treat(Verb.CLEAN), held, here),
        (COMMANDS[Verb.CLOSE], here_of(can.close), here, 0),
        (COMMANDS[Verb.COOL], treat(Verb.COOL), held, here),
        (COMMANDS[Verb.EXAMINE], by_row(examine, examine_order), by_row(examined, examine_order), 0),
        (COMMANDS[Verb.GO], by_row(can.go, go_order), places, 0),
        (COMMANDS[Verb.HEAT], treat(Verb.HEAT), held, here),
        (COMMANDS[Verb.HELP], can.help[:, None], 0, 0),
        (COMMANDS[Verb.INVENTORY], always, 0, 0),
        (COMMANDS[Verb.LOOK], always, 0, 0),
        (MOVE, here_of(can.put) & moves, held, here),
        (COMMANDS[Verb.OPEN], here_of(can.open), here, 0),
        (COMMANDS[Verb.PUT], here_of(can.put) & ~moves, held, here),
        (COMMANDS[Verb.SLICE], by_row(can.slice, object_order), things, held),
        (COMMANDS[Verb.TAKE], flat(take), flat(things[..., None]), flat(here[:, None])),
        (COMMANDS[Verb.USE], by_row(can.use, object_order), things, 0),
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
    parts = jnp.stack([begin, by_row(names[0], which), words[which, 2], by_row(names[1], which)], axis=2)
    numbers = jnp.where(told[..., None], parts, 0).reshape(batch, -1).astype(jnp.int32)
    return spell(shared.pieces, game.names, numbers, width)


def commands(shared: Shared, game: Game, state: State, row: int) -> list[str]:
    """The admissible commands of one row, sorted, on the host."""
    game, state = (jax.tree.map(lambda x: np.asarray(x)[row : row + 1], tree) for tree in (game, state))
    can = jax.tree.map(lambda x: np.asarray(x)[0], jax.jit(admissible)(game, state))
    place, thing = names_of(shared, game)
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


def names_of(shared: Shared, game: Game):
    """Of a batch of one row, the names by number, each with its space before it: of receptacles, and of objects."""
    receptacles = game.place.shape[1]
    name = lambda i: shared.spelling(jax.tree.map(lambda x: np.asarray(x)[0, i], game.names))  # noqa: E731
    return lambda r: name(receptacles + r), lambda o: name(2 * receptacles + o)
