"""Text environments that run on the host, behind the protocol of envs/base.py: one callback a turn for a device's rows.

A program calls the host with what NumPy holds and gets NumPy back; nothing of JAX is computed there, and nothing is
raised: whatever a game does wrong ends its episode as truncated, with a text that says so, and is counted.

Order follows from data: each call takes the number of the turn and gives the next one, so that XLA can neither drop
calls nor change places between them, on a mesh too (where ordered callbacks do not go). An episode is known by its row
and a number that the host gives at the start: a program that is run again begins new ones, and what the row played
before is closed. On a mesh each process plays its own rows; of devices that share rows the first one asks.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.experimental import io_callback

from agemem_jax import sharding
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.base import Outcome
from agemem_jax.envs.text import BLANKS
from agemem_jax.sharding import LOCAL, ROWS, Layout
from agemem_jax.types import PAD_ID, Text

LOST = "The world does not answer any more; the episode is cut off."
FAILURES = Exception, SystemExit  # of a game
PIECE = 1 << 16  # bytes of an argument of a callback
SUCCESS, TERMINATED, TRUNCATED, UNDERSTOOD = 1, 2, 4, 8  # bits of what a callback tells


class Reply(NamedTuple):
    """What a step has led to."""

    text: str
    progress: float  # 0..1; the best so far is kept by the bridge
    success: bool
    terminated: bool
    truncated: bool
    understood: bool


GONE = Reply(LOST, 0.0, False, False, True, False)  # of an episode that there is not


class Game(Protocol):
    """One episode. What it raises ends it.

    A game that runs elsewhere may give a Future of its answer: all rows are asked before the first is waited for.
    """

    def start(self, index: int) -> str | Future:
        """Begins game number `index`; returns what is seen at first."""
        ...

    def step(self, action: str) -> Reply | Future:
        """Takes an action, without blanks at its ends."""
        ...

    def close(self) -> None:
        """The episode is over, or has been left."""
        ...


@struct.dataclass
class HostGame:
    """Which game a row plays."""

    index: jax.Array  # [B] int32 its number
    fresh: jax.Array  # [B] bool: the world has to be the same as in any other fresh start, whatever that costs


@struct.dataclass
class HostState:
    """What the device knows of a row's episode; all else is on the host."""

    row: jax.Array  # [B] int32 over all devices
    episode: jax.Array  # [B] int32 number that the host has given it
    turn: jax.Array  # [B] int32 actions taken; it orders the calls
    progress: jax.Array  # [B] float32 the best so far
    success: jax.Array  # [B] bool
    terminated: jax.Array  # [B] bool
    truncated: jax.Array  # [B] bool


@dataclass(frozen=True)
class HostEnvironment:
    """A text environment on the host as an Environment. `shared` is not used, `game` is a HostGame.

    Works for whole arrays on a mesh, and inside `sharding.by_rows` too.
    """

    seen_tokens: int  # W
    action_tokens: int  # A
    bridge: "Bridge"
    layout: Layout = LOCAL

    def reset(self, shared: Any, game: HostGame) -> tuple[HostState, Text]:
        """Starts an episode a row: (state, what is seen at first [B, W])."""

        def start(index, fresh):
            rows = jnp.arange(len(index), dtype=jnp.int32)
            if self.layout.is_spread:
                rows = rows + lax.axis_index(ROWS) * len(index)
            tokens, length, _, flags, episode = self._call(self.bridge.start, rows >= 0, rows, index, fresh)
            none = jnp.zeros(rows.shape, bool)
            state = HostState(
                rows, episode, jnp.zeros_like(rows), jnp.zeros(rows.shape), none, none, flags & TRUNCATED > 0
            )
            return state, Text(tokens, length)

        return self._by_rows(start, game.index, game.fresh)

    def step(self, shared: Any, game: HostGame, state: HostState, action: Text, on: jax.Array):
        """Takes the actions [B, A] of rows `on` [B]; the state of the others stays bit for bit."""

        def ask(state, action, on):
            given = state.row, state.episode, state.turn, on, action.tokens, action.length
            tokens, length, progress, flags, turn = self._call(self.bridge.step, on, *given)
            pick = lambda new, old: jnp.where(on, new, old)  # noqa: E731
            new = state.replace(
                turn=pick(turn, state.turn),
                progress=pick(progress, state.progress),
                success=pick(flags & SUCCESS > 0, state.success),
                terminated=pick(flags & TERMINATED > 0, state.terminated),
                truncated=pick(flags & TRUNCATED > 0, state.truncated),
            )
            seen = Text(jnp.where(on[:, None], tokens, PAD_ID), pick(length, 0))
            understood = on & (flags & UNDERSTOOD > 0)
            return new, Outcome(seen, new.progress, new.success, new.terminated, new.truncated, understood)

        return self._by_rows(ask, state, action, on)

    def render(self, shared: Any, game: HostGame, state: HostState, row: int) -> str:
        """What has been said and seen in the row's episode; on the host."""
        return self.bridge.transcript(int(state.row[row]), int(state.episode[row]))

    def _by_rows(self, function: Callable, *sliced):
        inside = set(ROWS) <= set(jax.sharding.get_abstract_mesh().manual_axes)
        return function(*sliced) if inside else sharding.by_rows(self.layout, function, sliced)

    def _call(self, function: Callable, on, *arrays):
        """What the host answers, where a row is on: tokens [B, W], length, progress, flags and a number, each [B]."""
        like = lambda dtype, *more: jax.ShapeDtypeStruct((len(on), *more), dtype)  # noqa: E731
        i, f = jnp.int32, jnp.float32
        shapes = like(i, self.seen_tokens), like(i), like(f), like(i), like(i)
        host = lambda given: self.bridge.answer(function, self.seen_tokens, *map(whole, given))  # noqa: E731
        call = lambda *given: tuple(io_callback(host, shapes, list(map(in_pieces, given))))  # noqa: E731
        silent = lambda *_: tuple(jnp.zeros(x.shape, x.dtype) for x in shapes)  # noqa: E731
        if not self.layout.is_spread:
            return lax.cond(on.any(), call, silent, *arrays)
        asks = on.any() & (lax.axis_index("tensor") == 0)
        return lax.psum(lax.cond(asks, call, silent, *arrays), "tensor")


def in_pieces(x: jax.Array) -> list[jax.Array]:
    """An argument of a callback, cut into pieces of a few rows.

    The CPU client copies what is larger than 100 KiB by its pool of threads. These may all be waiting for the callback
    that waits for the copy.
    """
    rows = max(1, PIECE // (x.dtype.itemsize * math.prod(x.shape[1:])))
    return [x[i : i + rows] for i in range(0, len(x), rows)]


def whole(pieces: list) -> np.ndarray:
    """What `in_pieces` has cut, on the host."""
    return np.concatenate([np.asarray(piece) for piece in pieces])


@dataclass
class _Episode:
    """One row's episode on the host."""

    number: int
    game: Game | None  # None when it is over
    index: int
    told: list[str]  # what was said and seen, for people
    turn: int = 0
    last: Reply = Reply("", 0.0, False, False, False, False)


@dataclass(eq=False)
class Bridge:
    """Plays the episodes of a process, and counts. Programs on several devices may call it at once.

    Args:
      new_game: makes the game of an episode; told whether it has to be fresh (HostGame).
      tokenizer: in which texts come and go. Characters that it cannot spell are left out, and counted.
    """

    new_game: Callable[[bool], Game]
    tokenizer: Tokenizer
    started: int = field(default=0, init=False)  # episodes
    steps: int = field(default=0, init=False)
    lost: int = field(default=0, init=False)  # episodes cut off because their game failed
    cut: int = field(default=0, init=False)  # texts longer than an answer can be
    unspelt: int = field(default=0, init=False)  # texts with characters that the vocabulary lacks
    grouped: int = field(default=0, init=False)  # rows that began the game of the row before them, in the same call
    alike: int = field(default=0, init=False)  # of these, rows that saw at first what the first of them saw
    reasons: list[str] = field(default_factory=list, init=False)  # why episodes were lost, the latest last

    def __post_init__(self):
        self._lock = threading.Lock()
        self._episodes: dict[int, _Episode] = {}  # by row

    def report(self) -> dict[str, float]:
        """Counts since the beginning. `groups_alike`: share of the rows of groups whose world began as the first's."""
        names = "started", "steps", "lost", "cut", "unspelt"
        counts = {name: float(getattr(self, name)) for name in names}
        return counts | {"groups_alike": self.alike / self.grouped if self.grouped else 1.0}

    def transcript(self, row: int, number: int) -> str:
        """What was said and seen in an episode; a line that says so, if the row has begun another since."""
        with self._lock:
            episode = self._episodes.get(row)
            return "\n".join(episode.told) if episode and episode.number == number else "(this episode is gone)"

    def close(self) -> None:
        """Leaves all episodes."""
        with self._lock:
            episodes, self._episodes = list(self._episodes.values()), {}
        for episode in episodes:
            self._leave(episode)

    def answer(self, function: Callable, width: int, *given: np.ndarray):
        """What `start` or `step` gives; rows that are cut off, if it cannot: a callback never raises."""
        try:
            return function(width, *given)
        except Exception as error:
            self._count_lost(f"the bridge: {error or type(error).__name__}")
            blank = np.zeros(len(given[0]), np.int32)
            tokens = np.full((len(blank), width), PAD_ID, np.int32)
            return tokens, blank, blank.astype(np.float32), blank + TRUNCATED, blank

    def start(self, width: int, row: np.ndarray, index: np.ndarray, fresh: np.ndarray):
        """The callback of `reset`: rows, games and whether they are fresh, [B] -> what _call says; the number is the
        episode's."""
        row, index, fresh = (x.tolist() for x in (row, index, fresh))
        with self._lock:
            old = [self._episodes.pop(r) for r in row if r in self._episodes]
            first, self.started = self.started, self.started + len(row)
        for episode in old:
            self._leave(episode)
        episodes = [_Episode(first + i, None, number, []) for i, number in enumerate(index)]
        asked = [self._begin(*given) for given in zip(episodes, fresh, strict=True)]
        texts, out = self._gather(width, episodes, asked, [True] * len(row), [e.number for e in episodes])
        with self._lock:
            self._episodes |= dict(zip(row, episodes, strict=True))
            first_row = 0
            for i in range(1, len(row)):
                if index[i] != index[i - 1]:
                    first_row = i
                else:
                    self.grouped += 1
                    self.alike += texts[i] == texts[first_row]
        return out

    def step(self, width: int, row, episode, turn, on, tokens, length):
        """The callback of `step`: rows, episodes, turns and whether they take an action [B], actions [B, A] and their
        lengths [B] -> what _call says; the number is the next turn's."""
        row, number, turn, on, length = (x.tolist() for x in (row, episode, turn, on, length))
        with self._lock:
            known = [self._episodes.get(r) for r in row]
            self.steps += sum(on)
        episodes = [e if e and e.number == n else None for e, n in zip(known, number, strict=True)]
        actions = [self._read(tokens[i, : length[i]]) if on[i] else "" for i in range(len(row))]
        asked = [self._act(*given) if given[-1] else "" for given in zip(episodes, turn, actions, on, strict=True)]
        return self._gather(width, episodes, asked, on, [t + o for t, o in zip(turn, on, strict=True)])[1]

    def _begin(self, episode: _Episode, fresh: bool) -> str | Future:
        """What the start of an episode gives."""
        try:
            episode.game = self.new_game(fresh)
            return episode.game.start(episode.index)
        except FAILURES as error:
            return self._lose(episode, error)

    def _act(self, episode: _Episode | None, turn: int, action: str, _: bool) -> str | Reply | Future:
        """What an action gives: a text alone, if it was not taken."""
        if episode is None:  # the state is of an episode that the row has left
            self._count_lost("an action for an episode that is gone")
            return LOST
        if episode.game is None:  # over: all stays as it was
            episode.last = episode.last._replace(understood=False)
            return ""
        episode.told.append(f"> {action}")
        try:
            if turn != episode.turn:
                raise RuntimeError(f"action {turn} comes in place of action {episode.turn}")
            episode.turn += 1
            return episode.game.step(action)
        except FAILURES as error:
            return self._lose(episode, error)

    def _hear(self, episode: _Episode | None, answer: str | Reply | Future) -> str:
        """Waits for an answer; returns what is seen, and leaves the rest in `episode.last`."""
        if episode is None or answer == "":
            return answer
        try:
            answer = answer.result() if isinstance(answer, Future) else answer
            if isinstance(answer, str):
                text = answer
            else:
                text, progress = str(answer.text), float(answer.progress)
                if not progress >= episode.last.progress:  # NaN too
                    progress = episode.last.progress
                episode.last = Reply("", min(progress, 1.0), *(bool(x) for x in answer[2:]))
                if episode.last.terminated or episode.last.truncated:
                    self._leave(episode)
        except FAILURES as error:
            text = self._lose(episode, error)
        episode.told.append(text)
        return text

    def _lose(self, episode: _Episode, error: BaseException) -> str:
        self._count_lost(f"game {episode.index}: {error or type(error).__name__}")
        episode.last = episode.last._replace(truncated=True, understood=False)
        self._leave(episode)
        return LOST

    def _count_lost(self, why: str) -> None:
        with self._lock:
            self.lost += 1
            self.reasons = [*self.reasons[-15:], why]

    def _leave(self, episode: _Episode) -> None:
        game, episode.game = episode.game, None
        try:
            if game is not None:
                game.close()
        except FAILURES as error:
            with self._lock:
                self.reasons = [*self.reasons[-15:], f"game {episode.index}, when closed: {error}"]

    def _read(self, tokens: np.ndarray) -> str:
        """The text of an action; tokens that no vocabulary has, and control tokens, say nothing."""
        pieces = self.tokenizer.pieces
        data = b"".join(pieces[i] or b"" for i in tokens.tolist() if 0 <= i < len(pieces))
        return data.strip(BLANKS).decode("utf-8", "replace")

    def _write(self, text: str) -> list[int]:
        """The tokens of a text, without the characters that the vocabulary cannot spell."""
        text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
        strange = self.tokenizer.unspelt(text) if self.tokenizer.unspelt else ""
        if strange:
            with self._lock:
                self.unspelt += 1
            text = text.translate(dict.fromkeys(map(ord, strange)))
        return self.tokenizer.encode(text)

    def _gather(
        self, width: int, episodes: list[_Episode | None], asked: list, on: list[bool], number: list[int]
    ) -> tuple[list[str], tuple[np.ndarray, ...]]:
        """Waits for each row's answer, and writes it while others are on their way: (texts, arrays for the device)."""
        rows, texts = len(on), [""] * len(on)
        tokens, length = np.full((rows, width), PAD_ID, np.int32), np.zeros(rows, np.int32)
        progress, flags = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
        for i in range(rows):
            if not on[i]:
                continue
            texts[i] = self._hear(episodes[i], asked[i])
            ids = self._write(texts[i])
            if len(ids) > width:
                with self._lock:
                    self.cut += 1
            length[i] = min(len(ids), width)
            tokens[i, : length[i]] = ids[:width]
            last = episodes[i].last if episodes[i] else GONE
            progress[i] = last.progress
            flags[i] = (
                SUCCESS * last.success + TERMINATED * last.terminated + TRUNCATED * last.truncated
                + UNDERSTOOD * last.understood
            )  # fmt: skip
        return texts, (tokens, length, progress, flags, np.asarray(number, np.int32))
