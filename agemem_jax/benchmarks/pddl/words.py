"""The words of the texts of PDDL's games, for a vocabulary (benchmarks/vocabulary.py)."""

from agemem_jax.benchmarks.pddl import wording
from agemem_jax.benchmarks.pddl.generators import DOMAINS, domain
from agemem_jax.data.words import cut

# Names of objects: those with numbers, and up to which.
NUMBERED = {
    "ball": 16, "b": 12, "ingredient": 6, "cocktail": 9, "dispenser": 6, "shot": 16, "shaker": 2, "the-hub": 8,
    "nuts": 8, "r": 8, "w": 8,
}  # fmt: skip
WISHED = " should be contain have need not another task"  # how conditions are asked for (telling.py)
OTHERS = ("rooma", "roomb", "left", "right", "l0", "l1", "l2", "boot", "wrench", "jack", "pump")
# What is one piece though it is of several words: it is told in no other way.
PHRASES = (wording.GOAL, wording.VALID, wording.CHECK, wording.NO_EFFECT, wording.UNKNOWN, wording.SATISFIED)


def vocabulary() -> list[str]:
    """The pieces that the texts are made of."""
    known = set().union(*({*domain(name).arity, *(one.name for one in domain(name).schemas)} for name in DOMAINS))
    said = [part for name in [*wording.FORMATS, *sorted(known)] for part in [name, *_parts(name)]]
    names = [*(f"{name}{i}" for name, most in NUMBERED.items() for i in range(1, most + 1)), *OTHERS]
    # A fact is told with a capital, an action as it is; either may begin a text.
    begins = [*said, *names, *map(str.capitalize, [*said, *names]), "check valid actions", "look around"]
    return list(dict.fromkeys([*PHRASES, *cut([*begins, *PHRASES, WISHED])]))


def _parts(name: str) -> list[str]:
    """What the format of a predicate or an action says around its terms; its name alone, if it has none."""
    return [part for part in wording.FORMATS.get(name, name).split("{}") if part]
