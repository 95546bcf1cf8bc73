"""AgentBoard's progress in BabyAI: the subgoals of its own label file, found on the device in what is said.

The file, data/babyai/test.jsonl of AgentBoard's data, has a line for each of its 112 episodes, level by level. A
subgoal is a text that what an action leads to must say: its parts, between "*" or "**", in one sentence. A line has
one list of them (`subgoals`), or several of one length (`subgoals_1`, `subgoals_2`, ...), in which those of one place
are one subgoal and any of them will do.

What AgentBoard does with them that one would not expect:

- An action earns one subgoal at most, the first in the list of those that are said and not yet earned.
- What is seen first earns none, nor does a refusal or a list of actions.
- An episode is over with all its subgoals, whatever the instruction.
- An instruction that is carried out, or failed, ends it with more than half of them, and then it counts as a success in
  both cases. With half or fewer it goes on, though it is said to be completed.
- Of lists of several lengths the first one counts: what others have beyond it is never asked for.
"""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from agemem_jax.benchmarks.babyai import wording as say
from agemem_jax.benchmarks.babyai.levels import Game
from agemem_jax.benchmarks.babyai.macros import Macros, State
from agemem_jax.benchmarks.babyai.wording import LETTERS, Shared
from agemem_jax.data import files
from agemem_jax.envs.base import Outcome
from agemem_jax.errors import InputError
from agemem_jax.types import Text

FIELD = "task.labels_path"
LETTERS_OF_WORD = 4
_DOT = ord(".")
_NO_LETTER = 255  # of no text in UTF-8
Lists = list[list[str]]  # the subgoals of an episode: [alternatives][subgoals]


@struct.dataclass
class Subgoals:
    """What games ask for: G subgoals of A alternatives of P parts of M words; all 0 of a game without."""

    real: Any  # [B, G, A] bool
    parts: Any  # [B, G, A, P, M] uint32, four letters of UTF-8 each, 0 behind their ends; nothing is in every sentence

    @property
    def count(self) -> Any:
        """[B] int subgoals."""
        return self.real.any(-1).sum(-1)


@struct.dataclass
class Progress:
    """What play has made of games, and the subgoals that are left."""

    play: State
    left: jax.Array  # [B, G] bool
    over: jax.Array  # [B] bool: the episode has been a success


def read(path: str, episodes: int) -> list[Lists]:
    """The subgoals of each episode, in the file's order.

    Raises InputError if the file is not AgentBoard's: names the line and what it lacks.
    """
    found = []
    for number, row in enumerate(files.read(path, FIELD), 1):
        where = f"{FIELD}: {path!r}, line {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where} is not an object; give AgentBoard's data/babyai/test.jsonl")
        alone = "subgoals" in row and "subgoals_1" not in row
        lists = [row["subgoals"]] if alone else [row[key] for key in row if "subgoals" in key]
        if alone and isinstance(lists[0], list) and lists[0] and isinstance(lists[0][0], list):  # lists in one field
            lists = lists[0]
        if not lists or not all(isinstance(one, list) and one for one in lists):
            raise InputError(f"{where} has no `subgoals`, a list of texts; give AgentBoard's data/babyai/test.jsonl")
        if not all(isinstance(text, str) for one in lists for text in one):
            raise InputError(f"{where}: `subgoals` has {json.dumps(lists)[:80]}, which are not all texts")
        found.append(lists)
    if len(found) != episodes:
        raise InputError(f"{FIELD}: {path!r} has {len(found)} lines, and AgentBoard has {episodes} episodes of BabyAI")
    return found


def tables(labels: list[Lists]) -> tuple[list[Subgoals], Subgoals]:
    """Arrays of each episode, without the axis B, and those of a game without subgoals."""
    parts = [[[_parts(text) for text in one] for one in lists] for lists in labels]
    sizes = (
        max(len(lists[0]) for lists in parts),
        max(map(len, parts)),
        max(len(p) for lists in parts for one in lists for p in one),
        max(-(-len(letters) // LETTERS_OF_WORD) for lists in parts for one in lists for p in one for letters in p) or 1,
    )
    return [_table(lists, sizes) for lists in parts], _table([[]], sizes)


def _parts(pattern: str) -> list[bytes]:
    """What must be in one sentence."""
    pattern = pattern.strip()
    parts = [part.strip(".").encode() for part in pattern.split("**" if "**" in pattern else "*")]
    return [bytes([_NO_LETTER]) if _DOT in part else part for part in parts]  # no sentence holds a full stop


def _table(lists: list[list[list[bytes]]], sizes: tuple[int, ...]) -> Subgoals:
    count = len(lists[0])
    real, letters = np.zeros(sizes[:2], bool), np.zeros((*sizes, LETTERS_OF_WORD), np.uint8)
    for a, one in enumerate(lists):
        for g, parts in enumerate(one[:count]):
            real[g, a] = True
            for p, part in enumerate(parts):
                letters[g, a, p].reshape(-1)[: len(part)] = list(part)
    return Subgoals(real, np.asarray(_words(*np.moveaxis(letters.astype(np.uint32), -1, 0))))


def _words(*letters):
    """Numbers of LETTERS_OF_WORD letters each."""
    return sum(letter << np.uint32(8 * i) for i, letter in enumerate(letters))


@dataclass(frozen=True)
class Labelled:
    """`Macros` whose progress is AgentBoard's; `game` is (levels.Game, Subgoals). Games without are as in `Macros`."""

    macros: Macros

    @property
    def seen_tokens(self) -> int:
        return self.macros.seen_tokens

    @property
    def action_tokens(self) -> int:
        return self.macros.action_tokens

    def reset(self, shared: Shared, game: tuple[Game, Subgoals]) -> tuple[Progress, Text]:
        """As `Macros.reset`."""
        level, subgoals = game
        play, seen = self.macros.reset(shared, level)
        return Progress(play, jnp.asarray(subgoals.real).any(2), play.won), seen

    def step(
        self, shared: Shared, game: tuple[Game, Subgoals], state: Progress, action: Text, on: jax.Array
    ) -> tuple[Progress, Outcome]:
        """One action a row, of any number of primitive ones."""
        level, subgoals = game
        play, turn = self.macros.turn(shared, level, state.play, action, on)
        earned = state.left & turn.acts[:, None] & said(subgoals, turn.pieces, self.macros.objects)
        left = state.left & ~(earned & (jnp.cumsum(earned, 1) == 1))
        has, met = subgoals.count > 0, subgoals.count - left.sum(1)
        is_last = has & turn.acts & (met == subgoals.count)
        success = state.over | jnp.where(has, is_last | (turn.finished & (2 * met > subgoals.count)), play.won)
        pieces = jnp.where(is_last[:, None], say.completed(turn.pieces), turn.pieces)
        return Progress(play, left, success), Outcome(
            seen=say.write(shared.pieces, pieces, self.seen_tokens),
            progress=jnp.where(has, met / jnp.maximum(subgoals.count, 1), play.won).astype(jnp.float32),
            success=success,
            terminated=success,
            truncated=(play.turns >= self.macros.turns) & ~success,
            understood=turn.understood,
        )

    def render(self, shared: Shared, game: tuple[Game, Subgoals], state: Progress, row: int) -> str:
        """As `Macros.render`, and how many subgoals are left."""
        left = int(np.asarray(state.left)[row].sum())
        return f"{self.macros.render(shared, game[0], state.play, row)}\nsubgoals left: {left}"


def said(subgoals: Subgoals, pieces: jax.Array, objects: int) -> jax.Array:
    """Which subgoals [B, G] what is seen says: pieces [B, P], of `objects` at most."""
    text = say.write(LETTERS, pieces, say.most_letters(objects))
    parts = jnp.asarray(subgoals.parts)
    rows, goals, ways, each, size = parts.shape
    wanted = parts.reshape(rows, -1, size)
    # Where it has letters: they are not 0.
    asked = _words(*(0xFF * ((wanted >> 8 * i) & 0xFF > 0).astype(jnp.uint32) for i in range(LETTERS_OF_WORD)))
    width = text.tokens.shape[1] + 1  # nothing is also behind the last letter
    last = width + LETTERS_OF_WORD * size
    letters = jnp.pad(text.tokens, [(0, 0), (0, last + LETTERS_OF_WORD - width)]).astype(jnp.uint32)
    words = _words(*(letters[:, i : i + last] for i in range(LETTERS_OF_WORD)))

    def one(m, begins):
        seen = lax.dynamic_slice_in_dim(words, LETTERS_OF_WORD * m, width, 1)[:, None]
        word, mask = (lax.dynamic_index_in_dim(x, m, 2) for x in (wanted, asked))
        return begins & ((seen ^ word) & mask == 0)

    inside = jnp.arange(width) <= text.length[:, None]
    begins = jnp.broadcast_to(inside[:, None], (rows, wanted.shape[1], width))
    begins = lax.fori_loop(0, size, one, begins)
    ends = letters[:, :width] == _DOT
    number = jnp.cumsum(ends, 1) - ends  # of the sentence in which a letter is
    sentences = jax.nn.one_hot(number, say.most_sentences(objects), axis=1)
    holds = jnp.einsum("bkl,bsl->bks", begins.astype(jnp.float32), sentences) > 0
    holds = holds.reshape(rows, goals, ways, each, -1).all(3) & jnp.asarray(subgoals.real)[..., None]
    return holds.any((2, 3))
