"""The language of ALFWorld's commands, for turns that are bound to it (tools.actions)."""

from collections.abc import Callable

import numpy as np

from agemem_jax.benchmarks.alfworld.games import Household
from agemem_jax.benchmarks.alfworld.play import TREATMENTS, Able, Verb
from agemem_jax.benchmarks.alfworld.texts import COMMANDS, MOVE
from agemem_jax.tools.layout import Language


def language(households: list[Household]) -> Language:
    """The commands of all these games, as far as they can be typed: kinds of things with all their numbers."""

    def named(mask_of: Callable[[Household], np.ndarray], names: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Slots for the kinds of what has a property, and for their numbers."""
        found = [
            name.split(" ")
            for game in households
            for name, has in zip(getattr(game, names), mask_of(game), strict=True)
            if has and not name.endswith(" ")
        ]
        numbers = sorted({int(number) for _, number in found})
        return tuple(sorted({f" {kind}" for kind, _ in found})), tuple(f" {number}" for number in numbers)

    objects = lambda able: named(lambda game: game.able[able], "objects")  # noqa: E731
    places = named(lambda game: game.reachable, "receptacles")
    shut = named(lambda game: game.openable, "receptacles")
    carried, cut, tools = (objects(able) for able in (Able.PICKUPABLE, Able.SLICEABLE, Able.KNIFE))
    treated = {
        verb: (objects(able), named(lambda game, i=i: game.appliance[i], "receptacles"))
        for i, (verb, able) in enumerate(zip(TREATMENTS, (Able.CLEANABLE, Able.HEATABLE, Able.COOLABLE), strict=True))
    }
    moves = {game.is_moves for game in households}
    puts = [MOVE] * (True in moves) + [COMMANDS[Verb.PUT]] * (False in moves)
    said = [
        (COMMANDS[Verb.GO], places), (COMMANDS[Verb.OPEN], shut), (COMMANDS[Verb.CLOSE], shut),
        (COMMANDS[Verb.EXAMINE], places), (COMMANDS[Verb.EXAMINE], carried), (COMMANDS[Verb.TAKE], carried, places),
        *((put, carried, places) for put in puts), *((COMMANDS[verb], *pair) for verb, pair in treated.items()),
        (COMMANDS[Verb.SLICE], cut, tools), (COMMANDS[Verb.USE], objects(Able.TOGGLEABLE)),
        *((COMMANDS[verb],) for verb in (Verb.LOOK, Verb.INVENTORY, *([Verb.HELP] if True in moves else []))),
    ]  # fmt: skip
    templates = []
    for (first, between), *names in said:
        slots = [(f" {first}",), *(names[0] if names else ()), *(((between,), *names[1]) if names[1:] else ())]
        templates.append(tuple(slots))
    return tuple(template for template in templates if all(template))
