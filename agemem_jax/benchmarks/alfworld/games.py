"""ALFWorld's game files (game.tw-pddl) on the host: read and checked.

A file is JSON: `pddl_domain`, `grammar` (TextWorld's, with the wording and the task) and `pddl_problem`. The engine
plays one domain in two published wordings, json_2.1.1 ("put X in/on Y") and json_2.1.3 ("move X to Y", "help"); which
of them, and which appliances clean, heat and cool, is read from each file. A file that says anything else is refused.

A household as read (`Household`) is in terms of names and bool arrays; arrays.py packs it and tokenises the names.
"""

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from agemem_jax.benchmarks.alfworld.play import NOWHERE, Able, Flag
from agemem_jax.benchmarks.alfworld.wording import appliances, sexpr, wording
from agemem_jax.errors import InputError

FILE_NAME = "game.tw-pddl"
REMEDY = "take the games of json_2.1.1 or json_2.1.3 as alfworld-download fetches them"
FLAG_FACTS = {
    "ishot": Flag.HOT, "iscool": Flag.COOL, "isclean": Flag.CLEAN, "istoggled": Flag.TOGGLED, "issliced": Flag.SLICED,
}  # fmt: skip
ABLE_FACTS = {
    "pickupable": Able.PICKUPABLE, "cleanable": Able.CLEANABLE, "heatable": Able.HEATABLE, "coolable": Able.COOLABLE,
    "sliceable": Able.SLICEABLE, "toggleable": Able.TOGGLEABLE, "isreceptacleobject": Able.HOLDER,
}  # fmt: skip
# The shapes of goals, as sets of literals; the place of "light" is the lamp.
_PLACED = ("objecttype ?o {thing}", "receptacletype ?r {place}", "inreceptacle ?o ?r")
SHAPES = {
    "simple": _PLACED,
    "clean": (*_PLACED, "cleanable ?o", "isclean ?o"),
    "heat": (*_PLACED, "heatable ?o", "ishot ?o"),
    "cool": (*_PLACED, "coolable ?o", "iscool ?o"),
    "two": (
        "objecttype ?o1 {thing}", "objecttype ?o2 {thing}", "receptacletype ?r {place}", "inreceptacle ?o1 ?r",
        "inreceptacle ?o2 ?r", "not = ?o1 ?o2",
    ),
    "light": (
        "objecttype ?ot {place}", "toggleable ?ot", "istoggled ?ot", "inreceptacle ?ot ?r",
        "receptacleatlocation ?r ?l", "atlocation ?a ?l", "objecttype ?o {thing}", "holds ?a ?o",
    ),
}  # fmt: skip
GOAL_FLAGS = {
    "clean": (Able.CLEANABLE, Flag.CLEAN), "heat": (Able.HEATABLE, Flag.HOT), "cool": (Able.COOLABLE, Flag.COOL),
    "light": (Able.TOGGLEABLE, Flag.TOGGLED),
}  # fmt: skip
NOT_AT_START = ("holds", "holdsany")  # the agent's hands are empty then


@dataclass(frozen=True)
class Goal:
    """What has to be reached: so many of these objects, with these flags, in one of these receptacles."""

    objects: np.ndarray  # [O] bool
    flags: np.ndarray  # [len(Flag)] bool
    receptacles: np.ndarray  # [R] bool
    count: int
    is_here: bool  # at such a receptacle the agent is
    held: np.ndarray | None  # [O] bool: one of these is in its hand; None: nothing is asked


@dataclass(frozen=True)
class Household:
    """One game as its file tells it. Receptacles and objects are in the order of their sorted ids.

    Only objects that can be met in play are kept: others lie in no receptacle, and are neither to be sliced nor in a
    thing that can be looked into.
    """

    path: str
    digest: str  # of the file's content, in hex
    kind: str  # one of SHAPES
    task: str  # "Your task is to: ..."
    is_moves: bool  # the wording is that of json_2.1.3
    receptacles: tuple[str, ...]  # R names; some end in a blank
    arrivals: tuple[str, ...]  # R names of where one arrives
    objects: tuple[str, ...]  # O names
    place: np.ndarray  # [R] int32 the first receptacle at the same location, or NOWHERE
    openable: np.ndarray  # [R] bool
    appliance: np.ndarray  # [3, R] bool
    fits: np.ndarray  # [R, O] bool
    able: np.ndarray  # [len(Able), O] bool
    contents: np.ndarray  # [O, O] bool: the second lies in the first
    inside: np.ndarray  # [R, O] bool
    at: np.ndarray  # [R, O] bool: it lies at the location of which this receptacle is the first
    opened: np.ndarray  # [R] bool
    flags: np.ndarray  # [len(Flag), O] bool
    location: int
    goal: Goal

    @functools.cached_property
    def reachable(self) -> np.ndarray:
        """[R] bool receptacles that can be gone to; of one whose name ends in a blank no command can tell."""
        return (self.place != NOWHERE) & np.array([not name.endswith(" ") for name in self.receptacles], bool)

    @functools.cached_property
    def portable(self) -> np.ndarray:
        """[O] bool objects that can be taken."""
        return self.able[Able.PICKUPABLE] & np.array([not name.endswith(" ") for name in self.objects], bool)


def files(folder: str) -> list[Path]:
    """All game files in a folder, at any depth, sorted.

    Raises:
      InputError: there is no such folder, or no game in it.
    """
    found = sorted(Path(folder).rglob(FILE_NAME))
    if not found:
        raise InputError(f"{folder}: there is no {FILE_NAME} in it; give a folder such as json_2.1.1/train")
    return found


def read(path: str | Path) -> Household:
    """The household of a game file.

    Raises:
      InputError: the file cannot be read, or is of another domain, wording or goal than the engine plays.
    """
    try:
        content = Path(path).read_bytes()
        data = json.loads(content)
        domain, grammar, problem = (data[field] for field in ("pddl_domain", "grammar", "pddl_problem"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        refuse(path, f"is no ALFWorld game ({type(error).__name__}: {error})")
    try:
        treating, knives = appliances(domain)
        task, is_moves = wording(grammar)
    except InputError as error:
        refuse(path, str(error))
    try:
        sections = {part[0]: part[1:] for part in sexpr(problem)[1:]}
        types, goal = _typed(sections[":objects"]), sections[":goal"][0]
        facts = defaultdict(set)
        for name, *arguments in sections[":init"]:
            if name != "=":
                facts[name].add(tuple(arguments))
    except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        refuse(path, f"has a pddl_problem of another form, or a part of one ({type(error).__name__}: {error})")
    for name in NOT_AT_START:
        if facts[name]:
            refuse(path, f"has {name} among its first facts; the engine begins with empty hands")

    ids = sorted({argument for rows in facts.values() for row in rows for argument in row})
    names = demangled(ids)
    known = lambda kind: [i for i in ids if types.get(i) == kind]  # noqa: E731
    receptacles = known("receptacle")
    met = {row[0] for row in facts["inreceptacle"]} | {thing for pair in facts["inreceptacleobject"] for thing in pair}
    met |= {thing for thing, _ in facts["objectatlocation"] if (thing,) in facts["sliceable"]}
    objects = [i for i in known("object") if i in met]
    where = dict(facts["receptacleatlocation"])
    if len(where) != len(facts["receptacleatlocation"]):
        refuse(path, "has a receptacle at two locations")
    if len(facts["atlocation"]) != 1:
        refuse(path, f"has {len(facts['atlocation'])} facts atLocation; the engine plays one agent at one location")

    number_r, number_o = ({name: i for i, name in enumerate(row)} for row in (receptacles, objects))
    first = {}  # of each location, its first receptacle
    for r in receptacles:
        first.setdefault(where.get(r), number_r[r])
    first.pop(None, None)

    def table(name: str, rows: dict, columns: dict) -> np.ndarray:
        out = np.zeros((len(rows), len(columns)), bool)
        for one, other in facts[name]:
            if one in rows and other in columns:
                out[rows[one], columns[other]] = True
        return out

    of = lambda name, numbers: np.array([(i,) in facts[name] for i in numbers], bool)  # noqa: E731
    kinds = lambda name, i: {kind for one, kind in facts[name] if one == i}  # noqa: E731
    kind_r = [kinds("receptacletype", r) for r in receptacles]
    kind_o = [kinds("objecttype", o) for o in objects]
    able = np.zeros((len(Able), len(objects)), bool)
    for name, which in ABLE_FACTS.items():
        able[which] = of(name, objects)
    able[Able.KNIFE] = [not kind.isdisjoint(knives) for kind in kind_o]
    flags = np.zeros((len(Flag), len(objects)), bool)
    for name, which in FLAG_FACTS.items():
        flags[which] = of(name, objects)
    place = np.array([first.get(where.get(r), NOWHERE) for r in receptacles], np.int32)
    at = np.zeros((len(receptacles), len(objects)), bool)
    for thing, location in facts["objectatlocation"]:
        if thing in number_o and location in first:
            at[first[location], number_o[thing]] = True
    can = facts["cancontain"]
    shape, wanted = _goal(path, goal, kind_o, kind_r, able)
    return Household(
        path=str(path),
        digest=hashlib.sha256(content).hexdigest(),
        kind=shape,
        task=task,
        is_moves=is_moves,
        receptacles=tuple(names[r] for r in receptacles),
        arrivals=tuple(names[r if is_moves else where.get(r, r)] for r in receptacles),
        objects=tuple(names[o] for o in objects),
        place=place,
        openable=of("openable", receptacles),
        appliance=np.array([[not kind.isdisjoint(those) for kind in kind_r] for those in treating], bool),
        fits=np.array([[any((r, o) in can for r in rs for o in os) for os in kind_o] for rs in kind_r], bool),
        able=able,
        contents=table("inreceptacleobject", number_o, number_o).T,
        inside=table("inreceptacle", number_o, number_r).T,
        at=at,
        opened=of("opened", receptacles),
        flags=flags,
        location=first.get(next(iter(facts["atlocation"]))[1], NOWHERE),
        goal=wanted,
    )


def refuse(path: str | Path, what: str) -> NoReturn:
    raise InputError(f"{path} {what}; {REMEDY}")


def _typed(words: Sequence[str]) -> dict[str, str]:
    """Type of each name in a typed list of PDDL: a b - kind c - other."""
    types, waiting, rest = {}, [], iter(words)
    for word in rest:
        if word == "-":
            types.update(dict.fromkeys(waiting, next(rest)))
            waiting = []
        else:
            waiting.append(word)
    return types


def demangled(ids: Sequence[str]) -> dict[str, str]:
    """Names of sorted ids, as ALFWorld gives them: drawer_bar_... is "drawer 3", and the last id of a kind is number 1.

    A kind ends before the first _bar_, and "basin" is put behind it if that is in the id. An id without _bar_ has no
    number, and its name ends in a blank.
    """
    kind = lambda i: i.split("_bar_", 1)[0] + ("basin" if "basin" in i else "")  # noqa: E731
    left = Counter(kind(i) for i in ids if "_bar_" in i)
    names = {}
    for i in ids:
        if "_bar_" in i:
            names[i] = f"{kind(i)} {left[kind(i)]}"
            left[kind(i)] -= 1
        else:
            for mark, sign in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
                i, whole = i.replace(mark, sign), i
            names[whole] = f"{i} "
    return names


def _goal(path: str | Path, goal: list, kind_o: list[set], kind_r: list[set], able: np.ndarray) -> tuple[str, Goal]:
    """A :goal's shape, if it is a published one, and what it asks for; `kind_o` and `kind_r` are types by number."""
    literals = set(_literals(goal))
    split = [literal.split() for literal in literals]
    kinds = {words[1]: words[2] for words in split if words[0] in ("objecttype", "receptacletype") and len(words) == 3}
    thing, place = (next((kinds[v] for v in names if v in kinds), None) for names in (("?o", "?o1"), ("?ot", "?r")))
    filled = lambda wanted: {literal.format(thing=thing, place=place) for literal in wanted}  # noqa: E731
    shape = next((name for name, wanted in SHAPES.items() if filled(wanted) == literals), None)
    if shape is None:
        refuse(path, f"has a goal of no published shape ({', '.join(sorted(literals))})")
    of_kind = lambda kind, kinds: np.array([kind in those for those in kinds], bool)  # noqa: E731
    is_light, flag = shape == "light", GOAL_FLAGS.get(shape)
    objects = of_kind(place if is_light else thing, kind_o)
    return shape, Goal(
        objects=objects if flag is None else objects & able[flag[0]],
        flags=np.array([flag is not None and which == flag[1] for which in Flag], bool),
        receptacles=np.ones(len(kind_r), bool) if is_light else of_kind(place, kind_r),
        count=2 if shape == "two" else 1,
        is_here=is_light,
        held=of_kind(thing, kind_o) if is_light else None,
    )


def _literals(tree: list) -> list[str]:
    """What is in conjunctions and `exists`, in each other: each literal, or another formula, as its words."""
    if tree and tree[0] in ("and", "exists"):
        return [literal for part in tree[2 if tree[0] == "exists" else 1 :] for literal in _literals(part)]
    words = lambda part: part if isinstance(part, str) else " ".join(map(words, part))  # noqa: E731
    return [words(tree)]
