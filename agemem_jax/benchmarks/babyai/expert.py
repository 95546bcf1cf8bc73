"""Plays BabyAI to win, on the host: minigrid's own bot, and its way in AgentBoard's actions; and plays without knowing.

The bot plans in primitive actions. A sentence that ends in a state of the bot's way, the farthest one, takes its place;
single steps are sentences too, so most ways can be told. What cannot: AgentBoard has no words for opening a box, and
"toggle" is only for doors that are not open.
"""

import random
from collections.abc import Sequence
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.benchmarks.babyai import environment, levels, walks
from agemem_jax.benchmarks.babyai.macros import Macros
from agemem_jax.benchmarks.babyai.wording import Shared
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.types import PAD_ID, Text

_ASK = "check available actions"
_TRIED = ("pickup", "go to", "toggle and go through", "go through")
_WAYS = 3  # to things that an instruction names, that are tried
_ROWS = 64  # sentences that are tried at once
_act = jax.jit(environment.act)
_reset, _step = (jax.jit(function, static_argnums=0) for function in (Macros.reset, Macros.step))


def primitives(name: str, seed: int, walked: Sequence[int] = ()) -> list[int] | None:
    """The primitive actions by which minigrid's bot wins a level after those `walked`, or None if it does not.

    Raises InputError as `levels.make`.
    """
    game = levels.make(name, seed)
    for move in walked:
        _, reward, terminated, *_ = game.step(int(move))
        if terminated:
            return [] if reward > 0 else None
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


def knowing(level: levels.Level, walked: Sequence[int]) -> list[int] | None:
    """The primitive actions that win a level after those `walked`, for one who knows where everything is, or None.

    The bot has to look for what it does not see, so it is led to what the instruction names; the shortest way counts.

    Args:
      level: whose game begins after those `walked`.
    """
    found = []
    for way in [[], *walks.ways(level.game, _WAYS)]:
        moves = primitives(level.name, level.seed, [*walked, *way])
        if moves is not None:
            found.append(way + moves)
    return min(found, key=len, default=None)


def sentences(
    level: levels.Level, moves: Sequence[int], engine: Macros, shared: Shared, tokenizer: Tokenizer
) -> list[str] | None:
    """The actions of AgentBoard's that follow primitive ones to success, or None if it has none that do.

    Args:
      moves: primitive actions that win from where the level's game begins, as of `primitives`.
    """
    one = levels.stack([level])
    game = levels.stack([level] * _ROWS)
    way = [_reset(engine, shared, one)[0].play]
    for move in moves:
        way.append(_act(one, way[-1], jnp.array([move]), jnp.array([True]))[0])
    place = {_mark(play, 0): i for i, play in enumerate(way)}  # of equal states the last
    state, _ = _reset(engine, shared, game)
    on, said, reached = jnp.ones(_ROWS, bool), [], 0
    while len(said) < engine.turns:
        tried = listed(engine, shared, one, jax.tree.map(lambda x: x[:1], state), tokenizer)[:_ROWS]
        after, outcome = _step(engine, shared, game, state, _texts(tried, _ROWS, engine, tokenizer), on)
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


def search(
    level: levels.Level, rng: random.Random, most: int, engine: Macros, shared: Shared, tokenizer: Tokenizer
) -> list[str] | None:
    """`most` actions at most that win without knowing the instruction, or None if they do not.

    Whatever is in view is tried, each thing once: picked up (which is going to it as well), opened, gone to or through;
    what has been picked up is dropped next. Where nothing is left to try, the agent turns or walks on.
    """
    game, on = levels.stack([level]), jnp.ones(1, bool)
    state, _ = _reset(engine, shared, game)
    said: list[str] = []
    while len(said) < most:
        offers = listed(engine, shared, game, state, tokenizer)
        fresh = [text for text in offers if text not in said]
        by_verb = {verb: [text for text in fresh if text.startswith(verb)] for verb in _TRIED}
        things = by_verb["pickup"] or by_verb["go to"]
        picks = [*things, *by_verb["toggle and go through"], *by_verb["go through"]]
        if said and said[-1].startswith("go to") and "closed door" in said[-1] and "toggle" in offers:
            picks = ["toggle"]
        elif "drop" in offers and rng.random() < 0.5:
            picks = ["drop"]
        elif not picks:
            picks = [text for text in ("turn left", "turn right", "move forward", "move forward") if text in offers]
        said.append(rng.choice(picks))
        state, outcome = _step(engine, shared, game, state, _texts(said[-1:], 1, engine, tokenizer), on)
        if outcome.success[0]:
            return said
    return None


def first_sight(level: levels.Level, engine: Macros, shared: Shared) -> Text:
    """What is seen where a level's game begins, [1, W]."""
    return _reset(engine, shared, levels.stack([level]))[1]


def listed(engine: Macros, shared: Shared, game: levels.Game, state, tokenizer: Tokenizer) -> list[str]:
    """The actions that AgentBoard lists in a state [1], but for the one that lists them."""
    seen = _step(engine, shared, game, state, _texts([_ASK], 1, engine, tokenizer), jnp.ones(1, bool))[1].seen
    told = tokenizer.decode(np.asarray(seen.tokens[0, : int(seen.length[0])])).split(": ", 1)[1].split(", ")
    return [text for text in told if text != _ASK]


def _texts(texts: Sequence[str], rows: int, engine: Macros, tokenizer: Tokenizer) -> Text:
    """Actions as tokens [rows, A]; the rows after the last are empty."""
    tokens, length = np.full((rows, engine.action_tokens), PAD_ID, np.int32), np.zeros(rows, np.int32)
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text)[: engine.action_tokens]
        tokens[i, : len(ids)], length[i] = ids, len(ids)
    return Text(tokens, length)


def _mark(play: environment.State, row: int) -> bytes:
    """All that a state is, but how many steps have led there."""
    parts = (getattr(play, field.name) for field in fields(play) if field.name != "steps")
    return b"|".join(np.asarray(x)[row].tobytes() for x in parts)
