"""AgentBoard's wording of BabyAI, tokenised on the host: the pieces of its answers, and the language of its actions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.benchmarks.babyai.environment import LAST, MIDDLE, VIEW
from agemem_jax.benchmarks.babyai.levels import COLOURS
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.data.words import cut
from agemem_jax.envs.text import ByteTable, alone, byte_table, key_of, laid_out, phrase_table
from agemem_jax.tools.layout import Language
from agemem_jax.types import PAD_ID, Text

CARRIED_NAMES = [f"{colour} {thing}" for thing in ("key", "ball", "box") for colour in COLOURS]
DOOR_NAMES = [f"{colour} {state} door" for colour in COLOURS for state in ("open", "closed", "locked")]
NAMES = CARRIED_NAMES + DOOR_NAMES  # by what an object looks like (environment.look)

# The cells of the view but the agent's own, nearest first, as AgentBoard lists what is in them: [48] row, column.
_cells = [(row, column) for row in range(VIEW) for column in range(VIEW) if (row, column) != (LAST, MIDDLE)]
PLACES = np.array(sorted(_cells, key=lambda cell: LAST - cell[0] + abs(cell[1] - MIDDLE)))
NUMBERS = len(PLACES)  # no more objects of one name are ever in view

# What an action asks for.
UNKNOWN, TURN_LEFT, TURN_RIGHT, MOVE, DROP, TOGGLE = range(6)
PICK_UP, GO_TO, GO_THROUGH, TOGGLE_THROUGH, CHECK, SILENCE = range(6, 12)
_ALONE = {"": SILENCE, "turn left": TURN_LEFT, "turn right": TURN_RIGHT, "move forward": MOVE, "drop": DROP,
          "toggle": TOGGLE}  # fmt: skip
_OF_OBJECTS = {PICK_UP: "pickup", GO_TO: "go to", GO_THROUGH: "go through", TOGGLE_THROUGH: "toggle and go through"}
_CHECK = "check"  # whatever holds this word asks for the actions


def _place(row: int, column: int) -> str:
    ahead, aside = LAST - row, column - MIDDLE
    if aside == 0:
        return f" right in front of you {ahead} steps away. "
    side = "right" if aside > 0 else "left"
    return f" {ahead} steps in front of you and {abs(aside)} steps to your {side}. "


_COMPLETED = "\n The task is completed."
_numbers = range(NUMBERS + 1)
# Each group of pieces, in the order of the table. `AT` tells where a group begins.
PIECES = {
    "nothing": [""],
    "sees": ["In front of you in this room, you can see several objects:"],
    "there is": [f" There is a {name}" for name in NAMES],
    "number": [f" {n}" for n in _numbers],
    "place": [_place(*cell) for cell in PLACES],
    "room": [" The room has walls around you."],
    "blind": ["You cannot see any objects within sight.The room has walls around you."],
    "facing": [f" You are facing a {what} {n} steps away." for what in ("wall", "box") for n in range(1, VIEW)],
    "carrying": [f" You are carrying a {name}." for name in CARRIED_NAMES],
    "empty-handed": [" You are not carrying anything."],
    # The line break is in one piece with what is before it, as vocabularies have it in one token.
    "carrying, completed": [f" You are carrying a {name}.{_COMPLETED}" for name in CARRIED_NAMES],
    "empty-handed, completed": [f" You are not carrying anything.{_COMPLETED}"],
    "actions": ["You can take the following actions: turn left, turn right,"],
    "move": [" move forward,"],
    "drop": [" drop,"],
    "toggle": [" toggle,"],
    "check": [" check available actions"],
    "pickup": [f" pickup {name}" for name in NAMES],
    "go to": [f" go to {name}" for name in NAMES],
    "through": [f" go through {name}" for name in NAMES],
    "toggle and go through": [f" toggle and go through {name}" for name in NAMES],
    "number,": [f" {n}," for n in _numbers],
    "no change": ["No change in state."],
    "unknown": ["The action is not recognized. Please check valid actions."],
    "barrier": ["There is a barrier in front of you, you can't move forward."],
    "nothing to drop": ["You cannot drop the object, as you are not carrying anything."],
    "no room to drop": ["You cannot drop the object, as there is already an object in front of you."],
    "cannot": [f"You cannot {verb}" for verb in _OF_OBJECTS.values()],  # by verb, from PICK_UP on
    "name": [f" {name}" for name in NAMES],
    "no path": [", as there is no path leading to it."],
    "closed": [", as it is closed. You should toggle it first."],
    "no key": [", as you are not carrying a key."],
    "other key": [", as the color of the key you are carrying does not match the color of door."],
    "{door": [f" {{'{name}':" for name in NAMES],
    ", door": [f" '{name}':" for name in NAMES],
    "number}": [f" {n}}}" for n in _numbers],
}
AT = dict(zip(PIECES, np.cumsum([0, *(len(group) for group in PIECES.values())]).tolist(), strict=False))

# Instructions of minigrid, and AgentBoard's form of them.
_GOALS = "go to the a pick up open door put next to on your left right in front of behind you then after"
# What is one piece of a vocabulary though it is of several words: it is told in no other way. Objects, numbers and
# directions are words.
_PHRASES = (
    *(text for group in ("sees", "room", "blind", "empty-handed", "actions", "check", "no change", "unknown",
                         "barrier", "nothing to drop", "no room to drop", "no path", "closed", "no key", "other key")
      for text in PIECES[group]),
    _COMPLETED, " There is a", " You are facing a", " You are carrying a", " right in front of you", " steps away.",
    " steps in front of you and", " steps to your",
)  # fmt: skip


def vocabulary() -> list[str]:
    """The pieces that the texts are made of, for a vocabulary (benchmarks/vocabulary.py)."""
    said = [text for group in PIECES.values() for text in group]
    return list(dict.fromkeys([*_PHRASES, *cut([*said, *_ALONE, *_OF_OBJECTS.values(), _CHECK, _GOALS])]))


@struct.dataclass
class Spelling:
    """M pieces in tokens, or in letters."""

    tokens: Any  # [T] int32 all pieces, one behind the other
    begins: Any  # [M] int32 where a piece begins there
    length: Any  # [M] int32 its tokens


@struct.dataclass
class Shared:
    """Tables of a vocabulary of V tokens; nothing in them is of one game."""

    pieces: Spelling
    lower: ByteTable  # of the vocabulary in lower case
    keys: Any  # [C, 2] uint32 of the actions, in ascending order
    means: Any  # [C, 3] int32 verb, name and number
    check: Any  # [V, len("check") + 1] uint8 phrase_table of "check"


def spelling(pieces: list[Sequence[int]]) -> Spelling:
    """The table of pieces, on the host."""
    length = np.array([len(piece) for piece in pieces], np.int32)
    begins = (np.cumsum(length) - length).astype(np.int32)
    return Spelling(np.concatenate([np.array(piece, np.int32) for piece in pieces]), begins, length)


LETTERS = spelling([list(text.encode()) for group in PIECES.values() for text in group])


def _most(count: Callable[[str], int], objects: int) -> int:
    """The most of something that what is seen holds, of so many objects."""
    most = {group: max(map(count, texts)) for group, texts in PIECES.items()}
    ends = max(most["carrying, completed"], most["empty-handed, completed"])
    each = most["there is"] + most["number"] + most["place"]
    return max(most["sees"] + objects * each + most["room"], most["blind"]) + most["facing"] + ends


def most_letters(objects: int) -> int:
    """Letters of the longest text of what is seen."""
    return _most(len, objects)


def most_sentences(objects: int) -> int:
    """Its sentences, and what is behind the last full stop."""
    return _most(lambda text: text.count("."), objects) + 1


def completed(pieces: jax.Array) -> jax.Array:
    """What is seen, [B, P] pieces, with the words at its end that the task is completed."""
    is_end = (pieces >= AT["carrying"]) & (pieces < AT["carrying, completed"])
    return pieces + is_end * (AT["carrying, completed"] - AT["carrying"])


def shared(tokenizer: Tokenizer) -> Shared:
    """The tables of a tokenizer, on the host. Raises InputError if it cannot spell the texts."""
    small = [None if text is None else text.lower() for text in tokenizer.token_bytes()]
    said = commands()
    keys = np.stack([key_of(text) for text in said])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    return Shared(
        pieces=spelling([tokenizer.encode(text) if text else [] for group in PIECES.values() for text in group]),
        lower=byte_table(small),
        keys=keys[order],
        means=np.array(list(said.values()), np.int32)[order],
        check=phrase_table(tokenizer.token_bytes(), _CHECK),
    )


def commands() -> dict[str, tuple[int, int, int]]:
    """Every action that is ever understood, and what it means: verb, name and number."""
    said = {text: (verb, 0, 0) for text, verb in _ALONE.items()}
    for verb, word in _OF_OBJECTS.items():
        for i, name in enumerate(NAMES):
            if not (verb == PICK_UP and i >= len(CARRIED_NAMES)):
                said |= {f"{word} {name} {n}": (verb, i, n) for n in range(1, NUMBERS + 1)}
    return said


def language() -> Language:
    """All actions that can be understood, but for saying nothing."""
    each = lambda texts: tuple(f" {text}" for text in texts)  # noqa: E731
    numbers = each(range(1, NUMBERS + 1))
    alone = (*each(text for text in _ALONE if text), " check available actions")
    names = {verb: each(CARRIED_NAMES if verb == PICK_UP else NAMES) for verb in _OF_OBJECTS}
    return (alone,), *(((f" {word}",), names[verb], numbers) for verb, word in _OF_OBJECTS.items())


def meaning(tables: Shared, key: jax.Array) -> jax.Array:
    """Verb, name and number [B, 3] of actions with keys [B, 2]; UNKNOWN where there is none."""
    keys = jnp.asarray(tables.keys)
    place = jnp.minimum(jnp.searchsorted(keys[:, 0], key[:, 0]), len(keys) - 1)
    return jnp.where((keys[place] == key).all(1, keepdims=True), jnp.asarray(tables.means)[place], UNKNOWN)


def write(tables: Spelling, pieces: jax.Array, width: int) -> Text:
    """The text of pieces [B, P], by their numbers in the table; [B, width]. What is longer is cut at its end."""

    def text(pieces: jax.Array) -> Text:
        begin = jnp.asarray(tables.begins)[pieces]
        source, total = laid_out(begin, begin + jnp.asarray(tables.length)[pieces], width)
        return Text(jnp.where(jnp.arange(width) < total[:, None], jnp.asarray(tables.tokens)[source], PAD_ID), total)

    return alone(pieces > 0, text, pieces)
