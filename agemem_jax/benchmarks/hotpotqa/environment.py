"""Question answering as an environment: the action is the answer, and it ends the episode."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.envs import scoring
from agemem_jax.envs.base import Outcome
from agemem_jax.types import PAD_ID, Text

WIDTHS = 4  # answers are scored up to this many times the longest gold answer: a longer one is wrong anyway


@struct.dataclass
class Question:
    """What counts as its answer."""

    words: jax.Array  # [B, Wa, 2] uint32 hashes of the gold answer's normalised words (envs/scoring.py)
    num_words: jax.Array  # [B] int32
    is_closed: jax.Array  # [B] bool: the normalised answer is yes, no or noanswer


def question_of(answer: str, most: int | None = None) -> Question:
    """The question with a gold answer, on the host, without the rows' axis.

    most: words that count, and to which they are padded; None: all.
    """
    hashes, closed = scoring.hash_words(answer)
    hashes = hashes[:most]
    padded = np.pad(hashes, ((0, (most or len(hashes)) - len(hashes)), (0, 0)))
    return Question(words=padded, num_words=np.int32(len(hashes)), is_closed=np.bool_(closed))


@dataclass(frozen=True)
class QuestionAnswering:
    """Success is exact match, progress token F1, by the official script; `shared` is `scoring.answer_table`."""

    action_tokens: int
    seen_tokens: int = 0

    def reset(self, shared: jax.Array, game: Question) -> tuple[tuple, Text]:
        """There is nothing to be seen but the question."""
        return (), nothing(game.num_words.shape[0])

    def step(
        self, shared: jax.Array, game: Question, state: tuple, action: Text, on: jax.Array
    ) -> tuple[tuple, Outcome]:
        """Scores the answers of rows `on` [B]."""
        exact, f1 = scoring.score(shared, action, game.words, game.num_words, game.is_closed)
        return state, Outcome(
            seen=nothing(len(on)),
            progress=jnp.where(on, f1, 0.0),
            success=on & (exact > 0),
            terminated=on,
            truncated=jnp.zeros_like(on),
            understood=on,
        )

    def render(self, shared: jax.Array, game: Question, state: tuple, row: int) -> str:
        """Nothing: a question has no state."""
        return ""


def nothing(batch: int) -> Text:
    """No text, in every row."""
    return Text(jnp.full((batch, 0), PAD_ID, jnp.int32), jnp.zeros((batch,), jnp.int32))
