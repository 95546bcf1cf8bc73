"""Fresh problems of the four domains, graded by size, none of them a given one in other names.

    gripper     `level` + 1 balls in rooms and arms; where some of them should be
    blockworld  `level` + 2 blocks in towers; part of other towers
    barman      up to three drinks; more shots, ingredients and cocktails with each level; some shots in use
    tyreworld   `level` hubs, work on them begun; some conditions of a car that is ready

A problem is a function of its domain, level and seed (and of those to avoid).
"""

import hashlib
import random
from collections.abc import Container
from functools import cache
from importlib.resources import files

from agemem_jax.data.pddl import Atom, Domain, Problem, read_domain
from agemem_jax.errors import InputError

DOMAINS = ("gripper", "blockworld", "barman", "tyreworld")
TRIES = 1000  # of problems that turn out to be known, or are solved at the start


@cache
def domain(name: str) -> Domain:
    """One of DOMAINS, written for this package: its actions are AgentBoard's."""
    file = files("agemem_jax.benchmarks.pddl").joinpath("domains", f"{name}.pddl")
    return read_domain(file.read_text(encoding="utf-8"), f"domains/{name}.pddl")


def generate(name: str, level: int, seed: int, avoid: Container[str] = ()) -> Problem:
    """A problem of one of DOMAINS, of level 1 or more.

    avoid: `canonical` forms of problems that it must not be.

    Raises:
      InputError: there is no such domain or level, or there are too few problems of it beside those to avoid.
    """
    if name not in DOMAINS or level < 1:
        raise InputError(f"there are no {name!r} problems of level {level}; choose of {DOMAINS}, and a level from 1")
    rng = random.Random(f"{name} {level} {seed}")
    for _ in range(TRIES):
        objects, init, goal = _MAKE[name](rng, level)
        problem = Problem(
            name=f"{name}-{level}-{seed}",
            domain=domain(name).name,
            objects=domain(name).constants | {one: (kind,) for kind, names in objects.items() for one in names},
            init=frozenset(init),
            goal=tuple(goal),
        )
        if not problem.init.issuperset(goal) and canonical(problem) not in avoid:
            return problem
    raise InputError(f"no new {name!r} problem of level {level} was found for seed {seed}; take a higher level")


def canonical(problem: Problem) -> str:
    """A digest that two problems share if one is the other with its objects renamed (and rarely otherwise)."""
    atoms = [(mark, atom) for mark, part in (("start", problem.init), ("goal", problem.goal)) for atom in part]
    colour = {one: " ".join(kinds) for one, kinds in problem.objects.items()}
    for _ in range(len(colour).bit_length() + 2):
        seen = {one: [] for one in colour}
        for mark, (predicate, *terms) in atoms:
            for place, term in enumerate(terms):
                seen[term].append(f"{mark} {predicate} {place} {[colour[other] for other in terms]}")
        colour = {one: _digest([colour[one], *sorted(seen[one])]) for one in colour}
    told = sorted(f"{mark} {predicate} {[colour[term] for term in terms]}" for mark, (predicate, *terms) in atoms)
    return _digest([problem.domain, *sorted(colour.values()), *told])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _named(stem: str, count: int) -> list[str]:
    return [f"{stem}{i}" for i in range(1, count + 1)]


def _some(rng: random.Random, items: list, least: int = 1) -> list:
    """At least `least` of the items, in a random order."""
    return rng.sample(items, rng.randint(min(least, len(items)), len(items)))


def _gripper(rng: random.Random, level: int) -> tuple[dict, list[Atom], list[Atom]]:
    balls, rooms, arms = _named("ball", level + 1), ["rooma", "roomb"], ["left", "right"]
    here = rng.choice(rooms)
    init = [*(("ball", ball) for ball in balls), *(("room", room) for room in rooms)]
    init += [*(("gripper", arm) for arm in arms), ("at-robby", here)]
    held = dict(zip(rng.sample(arms, 2), rng.sample(balls, rng.choice((0, 0, 1, 2))), strict=False))
    init += [("carry", held[arm], arm) if arm in held else ("free", arm) for arm in arms]
    place = {ball: rng.choice(rooms) for ball in balls if ball not in held.values()}
    init += [("at", ball, room) for ball, room in place.items()]
    goal = [("at", ball, rng.choice([room for room in rooms if room != place.get(ball)])) for ball in balls]
    return {"object": [*rooms, *balls, *arms]}, init, sorted(_some(rng, goal, (level + 2) // 2))


def _blockworld(rng: random.Random, level: int) -> tuple[dict, list[Atom], list[Atom]]:
    blocks = _named("b", level + 2)
    init = [("arm-empty",)]
    for tower in _towers(rng, blocks):
        init += [("on-table", tower[0]), ("clear", tower[-1])]
        init += [("on", upper, lower) for lower, upper in zip(tower, tower[1:], strict=False)]
    goal = []
    while not goal:
        towers = _towers(rng, blocks)
        goal = [("on", upper, lower) for tower in towers for lower, upper in zip(tower, tower[1:], strict=False)]
    return {"object": blocks}, init, sorted(_some(rng, goal, 2))


def _towers(rng: random.Random, blocks: list[str]) -> list[list[str]]:
    """The blocks in towers, each from the table up."""
    towers: list[list[str]] = []
    for block in rng.sample(blocks, len(blocks)):
        below = rng.randint(0, len(towers))
        if below == len(towers):
            towers.append([block])
        else:
            towers[below].append(block)
    return towers


def _barman(rng: random.Random, level: int) -> tuple[dict, list[Atom], list[Atom]]:
    wanted = min(1 + (level - 1) // 2, 3)
    ingredients, cocktails = _named("ingredient", 2 + (level + 1) // 2), _named("cocktail", 1 + level // 2)
    shots, taps = _named("shot", wanted + 1 + rng.randint(0, level)), _named("dispenser", len(ingredients))
    hands, levels, shaker = ["left", "right"], ["l0", "l1", "l2"], "shaker1"
    held = dict(zip(rng.sample(hands, 2), rng.sample(shots, rng.choice((0, 0, 1))), strict=False))
    init = [("holding", hand, held[hand]) if hand in held else ("handempty", hand) for hand in hands]
    init += [("next", *levels[i : i + 2]) for i in range(2)]
    init += [("shaker-empty-level", shaker, "l0"), ("shaker-level", shaker, "l0"), ("clean", shaker), ("empty", shaker)]
    init += [("ontable", vessel) for vessel in (shaker, *shots) if vessel not in held.values()]
    for shot in shots:
        drink, state = rng.choice(ingredients), rng.choice(("clean", "clean", "clean", "used", "full"))
        init.append(("clean", shot) if state == "clean" else ("used", shot, drink))
        init.append(("contains", shot, drink) if state == "full" else ("empty", shot))
    init += [("dispenses", *pair) for pair in zip(taps, rng.sample(ingredients, len(taps)), strict=True)]
    for cocktail in cocktails:
        parts = rng.sample(ingredients, 2)
        init += [("cocktail-part1", cocktail, parts[0]), ("cocktail-part2", cocktail, parts[1])]
    drinks = [rng.choice(cocktails if rng.random() < 0.6 else ingredients) for _ in range(wanted)]
    goal = [("contains", *pair) for pair in zip(rng.sample(shots, wanted), drinks, strict=True)]
    kinds = {"shaker": [shaker], "hand": hands, "shot": shots, "ingredient": ingredients, "cocktail": cocktails,
             "dispenser": taps, "level": levels}  # fmt: skip
    return kinds, init, sorted(goal)


def _tyreworld(rng: random.Random, level: int) -> tuple[dict, list[Atom], list[Atom]]:
    hubs, nuts, boot = _named("the-hub", level), _named("nuts", level), "boot"
    old, new, tools = _named("w", level), _named("r", level), ["wrench", "jack", "pump"]
    is_open = rng.random() < 0.3
    init = [("isopen" if is_open else "closed", boot), ("unlocked", boot)]
    init += [("have", tool) if is_open and rng.random() < 0.5 else ("in", tool, boot) for tool in tools]
    for hub, nut, worn, spare in zip(hubs, nuts, old, new, strict=True):
        init += [("on", worn, hub), ("on-ground", hub), ("fastened", hub), ("intact", spare)]
        init.append(("loose" if rng.random() < 0.3 else "tight", nut, hub))
        init.append(("have", spare) if is_open and rng.random() < 0.3 else ("in", spare, boot))
        init.append(("inflated" if rng.random() < 0.3 else "not-inflated", spare))
    goal = []
    for hub, nut, worn, spare in _some(rng, list(zip(hubs, nuts, old, new, strict=True))):
        goal += _some(rng, [("on", spare, hub), ("inflated", spare), ("in", worn, boot)])
        goal += [("tight", nut, hub)] if rng.random() < 0.3 else []
    if rng.random() < 0.3:
        goal += [*(("in", tool, boot) for tool in tools), ("closed", boot)]
    kinds = {"hub": hubs, "nut": nuts, "container": [boot], "wheel": old + new, "tool": tools}
    return kinds, init, sorted(goal)


_MAKE = {"gripper": _gripper, "blockworld": _blockworld, "barman": _barman, "tyreworld": _tyreworld}
