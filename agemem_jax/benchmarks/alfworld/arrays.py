"""Households as the arrays of the engine (host)."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from agemem_jax.benchmarks.alfworld.expert import Situation
from agemem_jax.benchmarks.alfworld.games import Household
from agemem_jax.benchmarks.alfworld.play import NOWHERE, Able, Flag, Game, Sizes
from agemem_jax.benchmarks.alfworld.texts import COMMANDS, IN_ROOM, MOVE, PIECES, WELCOME, Shared, Spelling
from agemem_jax.data.batches import pad_text, pad_texts
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.text import byte_table, key_of, piece_of
from agemem_jax.errors import InputError
from agemem_jax.memory.equality import PRIME


def shared(tokenizer: Tokenizer, sizes: Sizes) -> Shared:
    """What all games share. Raises InputError if the vocabulary cannot spell the texts."""
    del sizes  # that of the pieces follows from the vocabulary
    encoded = [tokenizer.encode(text) for text in PIECES]
    return Shared(
        pieces=pad_texts(encoded, len(encoded), max(len(ids) for ids in encoded)),
        bytes=byte_table(tokenizer.token_bytes()),
        spelling=Spelling(tokenizer.path, tuple(tokenizer.token_bytes())),
    )


@functools.lru_cache(maxsize=4096)
def _key(begin: str, name: str, behind: str = "") -> np.ndarray:
    """Key of a command, or of its begin. A blank at the end of a name counts: no command that is typed has it."""
    parts = zip(key_of(begin).tolist(), *piece_of(name + behind).tolist(), strict=True)
    return np.array([(key * power + value) % PRIME for key, value, power in parts], np.uint32)


@functools.lru_cache(maxsize=4096)
def _cut(name: str) -> np.ndarray:
    """The piece [2, 2] that takes a name from the end of a key when it is joined to it."""
    values, powers = piece_of(name).tolist()
    inverse = [pow(power, -1, PRIME) for power in powers]
    return np.array([[-value * i % PRIME for value, i in zip(values, inverse, strict=True)], inverse], np.uint32)


def needs(game: Household, count: Callable[[str], int]) -> dict[str, int]:
    """The least Sizes that hold a game, by their names; `count` gives a text's tokens."""
    together = np.bincount(game.place[game.place != NOWHERE], minlength=1).max()
    lengths = [[count(f" {name}") for name in names] for names in (game.arrivals, game.receptacles, game.objects)]
    longest = [max(row, default=0) for row in lengths]
    listed = count(", a") * len(game.receptacles) + count(", and a") + sum(lengths[1])
    return {
        "objects": len(game.objects), "receptacles": len(game.receptacles), "together": int(together),
        "name_tokens": max(longest), "task_tokens": count(game.task),
        "seen_tokens": count(WELCOME + IN_ROOM) + listed + count(".\n\n") + count(game.task),
        "action_tokens": max(sum(map(count, parts)) for parts in (*COMMANDS.values(), MOVE))
        + longest[2] + max(longest[1:]),
    }  # fmt: skip


def arrays(game: Household, tokenizer: Tokenizer, sizes: Sizes) -> Game:
    """The arrays of one game, without the axis B, as NumPy.

    Raises:
      InputError: the game exceeds `sizes`, or the vocabulary cannot spell it.
    """
    for name, needed in needs(game, lambda text: len(tokenizer.encode(text))).items():
        if needed > (limit := getattr(sizes, name)):
            raise InputError(f"{game.path} needs {needed} {name}, and {limit} are allowed; raise {name}")
    spaced = [[f" {name}" for name in names] for names in (game.arrivals, game.receptacles, game.objects)]
    encoded = [[tokenizer.encode(name) for name in names] for names in spaced]
    task = tokenizer.encode(game.task)

    r, o, w = sizes.receptacles, sizes.objects, sizes.words
    rows = [ids for row, n in zip(encoded, (r, r, o), strict=True) for ids in row + [[]] * (n - len(row))]

    def table(rows: Sequence[np.ndarray], n: int, *shape: int) -> np.ndarray:
        out = np.zeros((n, *shape), np.uint32)
        for i, row in enumerate(rows):
            out[i] = row
        return out

    packed = functools.partial(_packed, w)
    groups = np.full((r, sizes.together), NOWHERE, np.int32)
    for place in np.unique(game.place[game.place != NOWHERE]):
        here = np.flatnonzero(game.place == place)
        groups[place, : len(here)] = here
    rank = np.full(r + o, r + o, np.int32)
    where = [*range(len(game.receptacles)), *range(r, r + len(game.objects))]
    rank[where] = np.argsort(np.argsort(np.array([*game.receptacles, *game.objects]), kind="stable"))
    _, places, things = spaced
    goal = game.goal
    return Game(
        names=pad_texts(rows, len(rows), sizes.name_tokens),
        task=pad_text(task, sizes.task_tokens),
        is_moves=np.bool_(game.is_moves),
        place=_padded(game.place, r, fill=NOWHERE),
        together=groups,
        openable=_padded(game.openable, r),
        appliance=_padded(game.appliance, 3, r),
        fits=packed(game.fits, r),
        able=packed(game.able, len(Able)),
        contents=packed(game.contents, o),
        order=rank,
        go_key=table([_key("go to", name) for name in places], r, 2),
        take_key=table([_key("take", name, " from") for name in things], o, 2),
        slice_key=table([_key("slice", name, " with") for name in things], o, 2),
        use_key=table([_key("use", name) for name in things], o, 2),
        object_piece=table([piece_of(name) for name in things], o, 2, 2),
        object_cut=table([_cut(name) for name in things], o, 2, 2),
        receptacle_cut=table([_cut(name) for name in places], r, 2, 2),
        goal_objects=packed(goal.objects),
        goal_flags=goal.flags,
        goal_receptacles=_padded(goal.receptacles, r),
        goal_count=np.int32(goal.count),
        goal_is_here=np.bool_(goal.is_here),
        goal_is_held=np.bool_(goal.held is not None),
        goal_held=packed(np.zeros(len(game.objects), bool) if goal.held is None else goal.held),
        inside=packed(game.inside, r),
        left=np.zeros((r, w), np.uint32),
        at=packed(game.at, r),
        opened=_padded(game.opened, r),
        flags=packed(game.flags, len(Flag)),
        location=np.int32(game.location),
        is_resumed=np.bool_(False),
    )


def resumed(game: Game, now: Situation) -> Game:
    """A game's arrays, without the axis B, as it goes on from a situation with empty hands; the task is not told."""
    r, w = game.inside.shape
    return game.replace(
        task=jax.tree.map(np.zeros_like, game.task),
        inside=_packed(w, now.inside, r),
        left=_packed(w, now.left, r),
        at=_packed(w, now.at, r),
        opened=_padded(now.opened, r),
        flags=_packed(w, now.flags, len(Flag)),
        location=np.int32(now.location),
        is_resumed=np.bool_(True),
    )


def _padded(x: np.ndarray, *shape: int, fill: int = 0) -> np.ndarray:
    return np.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)], constant_values=fill)


def _packed(words: int, sets: np.ndarray, *shape: int) -> np.ndarray:
    """Sets of objects [..., O] bool as [..., words] uint32."""
    bits = np.packbits(_padded(sets, *shape, 32 * words), axis=-1, bitorder="little")
    return np.ascontiguousarray(bits).view("<u4").astype(np.uint32)
