"""ALFWorld on the device, played in text as TextWorld plays the game files (play.py, texts.py)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.benchmarks.alfworld.play import NOWHERE, Game, Sizes, State, Verb, act, admissible, reached, unpack
from agemem_jax.benchmarks.alfworld.texts import Shared, answer, names_of, understand
from agemem_jax.envs.base import Outcome
from agemem_jax.envs.text import compose
from agemem_jax.types import Text


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
        """(state, the welcome with what is around and the task [B, W]); of a game resumed, what is around alone."""
        batch = len(game.location)
        state = State(
            inside=game.inside,
            left=game.left,
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
        around = answer(shared, game, state, look, none, none, on, width, is_start=True)
        task = jnp.pad(game.task.tokens, ((0, 0), (0, width - game.task.tokens.shape[1])))
        lengths = jnp.stack([around.length, game.task.length], axis=1)
        return state, compose(jnp.stack([around.tokens, task], axis=1), lengths, width)

    def step(self, shared: Shared, game: Game, state: State, action: Text, on: jax.Array) -> tuple[State, Outcome]:
        """Takes the commands [B, A] of rows `on` [B] that have not won."""
        on = on & ~state.won
        verb, receptacle, thing = understand(shared, game, state, admissible(game, state), action)
        verb = jnp.where(on, verb, Verb.NOTHING)
        state = act(game, state, verb, receptacle, thing)
        state = state.replace(won=state.won | (on & reached(game, state)))
        seen = answer(shared, game, state, verb, receptacle, thing, on, self.seen_tokens)
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
        place, thing = names_of(shared, game)
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
