"""Plays BabyAI to win, on the host: minigrid's own bot, and its way in AgentBoard's actions.

The bot plans in primitive actions. A sentence that ends in a state of the bot's way, the farthest one, takes its place;
single steps are sentences too, so most ways can be told. What cannot: AgentBoard has no words for opening a box, and
"toggle" is only for doors that are not open.
"""

from collections.abc import Sequence
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.benchmarks.babyai import environment, tasks
from agemem_jax.benchmarks.babyai.macros import Macros
from agemem_jax.benchmarks.babyai.wording import Shared
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.types import PAD_ID, Text

_ASK = "check available actions"
_ROWS = 64  # sentences that are tried at once
_act = jax.jit(environment.act)
_reset, _step = (jax.jit(function, static_argnums=0) for function in (Macros.reset, Macros.step))


def primitives(name: str, seed: int) -> list[int] | None:
    """The primitive actions by which minigrid's bot wins a level, or None if it does not.

    Raises InputError as `tasks.make`.
    """
    game = tasks.make(name, seed)
    from minigrid.utils.baby_ai_bot import BabyAIBot

    actions, last = [], None
    try:
        bot = BabyAIBot(game)
        while game.step_count < game.max_steps:
            last = int(bot.replan(last))
            actions.append(last)
            _, reward, terminated, _, _ = game.step(last)
            if terminated:
                return actions if reward > 0 else None
    except Exception:  # the bot gives up in many ways: assertions, lookups in empty lists, errors of its own
        return None
    return None


def sentences(
    level: tasks.Level, moves: Sequence[int], engine: Macros, shared: Shared, tokenizer: Tokenizer
) -> list[str] | None:
    """The actions of AgentBoard's that follow primitive ones to success, or None if it has none that do.

    Args:
      moves: primitive actions that win the level, as of `primitives`.
    """
    one = tasks.stack([level])
    game = tasks.stack([level] * _ROWS)
    way = [_reset(engine, shared, one)[0].play]
    for move in moves:
        way.append(_act(one, way[-1], jnp.array([move]), jnp.array([True]))[0])
    place = {_mark(play, 0): i for i, play in enumerate(way)}  # of equal states the last
    state, _ = _reset(engine, shared, game)
    on, said, reached = jnp.ones(_ROWS, bool), [], 0
    while len(said) < engine.turns:
        seen = _step(engine, shared, game, state, _texts([_ASK] * _ROWS, engine, tokenizer), on)[1].seen
        listed = tokenizer.decode(np.asarray(seen.tokens[0, : int(seen.length[0])])).split(": ", 1)[1].split(", ")
        tried = [text for text in listed if text != _ASK][:_ROWS]
        after, outcome = _step(engine, shared, game, state, _texts(tried, engine, tokenizer), on)
        after = jax.tree.map(np.asarray, after)
        wins = np.asarray(outcome.success)[: len(tried)]
        ends = [len(way) if won else place.get(_mark(after.play, i), 0) for i, won in enumerate(wins)]
        best = int(np.argmax(ends))
        if ends[best] <= reached:
            return None
        said.append(tried[best])
        if wins[best]:
            return said
        reached = ends[best]
        state = jax.tree.map(lambda x, best=best: jnp.asarray(np.repeat(x[best : best + 1], _ROWS, 0)), after)
    return None


def _texts(texts: Sequence[str], engine: Macros, tokenizer: Tokenizer) -> Text:
    """Actions as tokens [_ROWS, A]; the rows after the last are empty."""
    tokens, length = np.full((_ROWS, engine.action_tokens), PAD_ID, np.int32), np.zeros(_ROWS, np.int32)
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text)[: engine.action_tokens]
        tokens[i, : len(ids)], length[i] = ids, len(ids)
    return Text(tokens, length)


def _mark(play: environment.State, row: int) -> bytes:
    """All that a state is, but how many steps have led there."""
    parts = (getattr(play, field.name) for field in fields(play) if field.name != "steps")
    return b"|".join(np.asarray(x)[row].tobytes() for x in parts)
