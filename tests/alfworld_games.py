"""Small ALFWorld game files made by us, in the published file format and both wordings, and a vocabulary for them.

A household is described by ids and facts; domain, grammar and problem are written around it. TextWorld plays these
files as it plays the published ones.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from agemem_jax.benchmarks.alfworld.wording import MOVES, RULES
from agemem_jax.data.tokenizer import Tokenizer

# Qwen's first step: a word with its space, digits one by one, punctuation with the line breaks behind it.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PREDICATES = """
    (atLocation ?a - agent ?l - location) (receptacleAtLocation ?r - receptacle ?l - location)
    (objectAtLocation ?o - object ?l - location) (openable ?r - receptacle) (opened ?r - receptacle)
    (inReceptacle ?o - object ?r - receptacle) (isReceptacleObject ?o - object)
    (inReceptacleObject ?inner - object ?outer - object) (checked ?r - receptacle)
    (receptacleType ?r - receptacle ?t - rtype) (canContain ?rt - rtype ?ot - otype) (objectType ?o - object ?t - otype)
    (holds ?a - agent ?o - object) (holdsAny ?a - agent) (isClean ?o - object) (cleanable ?o - object)
    (isHot ?o - object) (heatable ?o - object) (isCool ?o - object) (coolable ?o - object) (pickupable ?o - object)
    (toggleable ?o - object) (isOn ?o - object) (isToggled ?o - object) (sliceable ?o - object) (isSliced ?o - object)
"""
HERE = "(atLocation ?a ?l) (receptacleAtLocation ?r ?l)"
REACHED = "(or (not (openable ?r)) (opened ?r))"
# Name, parameters, precondition, effect.
ACTIONS = (
    ("look", "?a - agent ?l - location", "(and (atLocation ?a ?l))", "(and (checked ?l))"),
    ("inventory", "?a - agent", "()", "(and (checked ?a))"),
    ("examineReceptacle", "?a - agent ?r - receptacle", f"(and (exists (?l - location) (and {HERE})))",
     "(and (checked ?r))"),
    # The type "location," is what the published domain says. Nothing is of that type.
    ("examineObject", "?a - agent ?o - object",
     f"(or (exists (?l - location, ?r - receptacle) (and {HERE} (inReceptacle ?o ?r) {REACHED})) (holds ?a ?o))",
     "(and (checked ?o))"),
    ("GotoLocation", "?a - agent ?lStart - location ?lEnd - location ?r - receptacle",
     "(and (atLocation ?a ?lStart) (receptacleAtLocation ?r ?lEnd))",
     "(and (not (atLocation ?a ?lStart)) (atLocation ?a ?lEnd) (increase (total-cost) 1))"),
    ("OpenObject", "?a - agent ?l - location ?r - receptacle", f"(and (openable ?r) {HERE} (not (opened ?r)))",
     "(and (opened ?r) (checked ?r) (increase (total-cost) 1))"),
    ("CloseObject", "?a - agent ?l - location ?r - receptacle", f"(and (openable ?r) {HERE} (opened ?r))",
     "(and (not (opened ?r)) (increase (total-cost) 1))"),
    ("PickupObject", "?a - agent ?l - location ?o - object ?r - receptacle",
     f"(and (pickupable ?o) {HERE} (inReceptacle ?o ?r) (not (holdsAny ?a)) {REACHED})",
     "(and (not (inReceptacle ?o ?r)) (holds ?a ?o) (holdsAny ?a) (not (objectAtLocation ?o ?l))"
     " (increase (total-cost) 1))"),
    ("PutObject", "?a - agent ?l - location ?o - object ?r - receptacle ?ot - otype ?rt - rtype",
     f"(and (holds ?a ?o) {HERE} {REACHED} (objectType ?o ?ot) (receptacleType ?r ?rt) (canContain ?rt ?ot))",
     "(and (inReceptacle ?o ?r) (objectAtLocation ?o ?l) (not (holds ?a ?o)) (not (holdsAny ?a))"
     " (increase (total-cost) 1))"),
    ("CleanObject", "?a - agent ?l - location ?r - receptacle ?o - object",
     f"(and (cleanable ?o) (or (receptacleType ?r SinkType) (receptacleType ?r SinkBasinType)) {HERE} (holds ?a ?o))",
     "(and (increase (total-cost) 5) (isClean ?o))"),
    ("HeatObject", "?a - agent ?l - location ?r - receptacle ?o - object",
     f"(and (heatable ?o) (or (receptacleType ?r MicrowaveType)) {HERE} (holds ?a ?o))",
     "(and (increase (total-cost) 5) (isHot ?o) (not (isCool ?o)))"),
    ("CoolObject", "?a - agent ?l - location ?r - receptacle ?o - object",
     f"(and (coolable ?o) (or (receptacleType ?r FridgeType)) {HERE} (holds ?a ?o))",
     "(and (increase (total-cost) 5) (isCool ?o) (not (isHot ?o)))"),
    ("ToggleObject", "?a - agent ?l - location ?o - object ?r - receptacle",
     f"(and (toggleable ?o) {HERE} (inReceptacle ?o ?r))",
     "(and (increase (total-cost) 5) (when (isOn ?o) (not (isOn ?o))) (when (not (isOn ?o)) (isOn ?o))"
     " (isToggled ?o))"),
    ("SliceObject", "?a - agent ?l - location ?co - object ?ko - object",
     "(and (sliceable ?co) (or (objectType ?ko KnifeType) (objectType ?ko ButterKnifeType)) (atLocation ?a ?l)"
     " (objectAtLocation ?co ?l) (holds ?a ?ko))",
     "(and (increase (total-cost) 5) (isSliced ?co))"),
)  # fmt: skip
ASKS_FOR_HELP = ("help", "?a - agent", "()", "(and (checked ?a))")

PLACED = "(exists (?r - receptacle) (exists (?o - object) (and {} (objectType ?o {}) (receptacleType ?r {}) {})))"
TWO = (
    "(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {0}) (receptacleType ?r {1})"
    " (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 {0}) (receptacleType ?r {1})"
    " (inReceptacle ?o2 ?r))))))"
)
IN_LIGHT = (
    "(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {1}) (toggleable ?ot)"
    " (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))"
    " (exists (?o - object ?a - agent) (and (objectType ?o {0}) (holds ?a ?o)))"
)


APPLIANCES = {"SinkType", "SinkBasinType", "MicrowaveType", "FridgeType"}  # named by the domain
KNIVES = {"KnifeType", "ButterKnifeType"}


def goal(kind: str, thing: str, where: str) -> str:
    """One of the six published goals: simple, two, clean, heat, cool, light."""
    thing, where = f"{thing}Type", f"{where}Type"
    if kind in ("two", "light"):
        return f"(and {(TWO if kind == 'two' else IN_LIGHT).format(thing, where)})"
    able, done = {"simple": ("", ""), "clean": ("(cleanable ?o)", "(isClean ?o)"),
                  "heat": ("(heatable ?o)", "(isHot ?o)"), "cool": ("(coolable ?o)", "(isCool ?o)")}[kind]  # fmt: skip
    return f"(and {PLACED.format(able, thing, where, f'{done} (inReceptacle ?o ?r)')})"


@dataclass
class Made:
    """A household to be written. An id is Kind_bar_..., and its type KindType unless `types` says otherwise."""

    receptacles: dict[str, str]  # id -> location id
    objects: dict[str, tuple[str, ...]]  # id -> where it lies: receptacles, in several at once
    goal: str
    task: str = "Your task is to: tidy up."
    openable: tuple[str, ...] = ()
    pickupable: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # further facts, without brackets
    types: dict[str, str] = field(default_factory=dict)
    start: str = "loc_bar_0_bar_0_bar_0_bar_30"
    can: tuple[tuple[str, str], ...] = ()  # kinds: this receptacle may hold that object


def _kind(made: Made, name: str) -> str:
    return made.types.get(name, name.split("_bar_")[0]) + "Type"


def problem(made: Made) -> str:
    """The pddl_problem of a household."""
    locations = sorted({made.start, *made.receptacles.values()})
    kinds_r = sorted({_kind(made, r) for r in made.receptacles} | {f"{r}Type" for r, _ in made.can} | APPLIANCES)
    kinds_o = sorted({_kind(made, o) for o in made.objects} | {f"{o}Type" for _, o in made.can} | KNIVES)
    typed = {
        "agent": ["agent1"], "location": locations, "receptacle": made.receptacles, "object": made.objects,
        "rtype": kinds_r, "otype": kinds_o,
    }  # fmt: skip
    facts = [f"receptacleType {r} {_kind(made, r)}" for r in made.receptacles]
    facts += [f"objectType {o} {_kind(made, o)}" for o in made.objects]
    facts += [f"canContain {r}Type {o}Type" for r, o in made.can]
    facts += [f"pickupable {o}" for o in made.pickupable] + [f"openable {r}" for r in made.openable]
    facts += [f"atLocation agent1 {made.start}"]
    facts += [f"inReceptacle {o} {r}" for o, rows in made.objects.items() for r in rows]
    facts += [f"receptacleAtLocation {r} {where}" for r, where in made.receptacles.items()]
    facts += [f"objectAtLocation {o} {made.receptacles[r]}" for o, rows in made.objects.items() for r in rows[:1]]
    facts += made.extra
    objects = "\n".join(f"    {name} - {kind}" for kind, names in typed.items() for name in names)
    init = "\n".join(f"    ({fact})" for fact in facts)
    return (
        f"(define (problem made) (:domain alfred)\n(:objects\n{objects})\n(:init\n    (= (total-cost) 0)\n{init})\n"
        f"(:goal {made.goal})\n(:metric minimize (total-cost)))\n"
    )


def domain(is_moves: bool, sink: bool = True, comma: bool = True) -> str:
    """The domain, as published; without what quirk 1 or the kitchen sink rests on, if told so."""
    actions = "\n".join(
        f"(:action {name} :parameters ({parameters}) :precondition {before} :effect {after})"
        for name, parameters, before, after in (*ACTIONS, *([ASKS_FOR_HELP] if is_moves else []))
    )
    if not sink:
        actions = actions.replace("(receptacleType ?r SinkType) ", "")
    if not comma:
        actions = actions.replace("location,", "location")
    return (
        "; an ALFWorld household\n(define (domain alfred)\n(:requirements :adl :action-costs :typing)\n"
        f"(:types agent location receptacle object rtype otype)\n(:predicates {PREDICATES})\n"
        f"(:functions (distance ?from ?to) (total-cost) - number)\n{actions})\n"
    )


def grammar(is_moves: bool, task: str, **changed: list[tuple[str, str]]) -> str:
    """TextWorld's grammar in one of the wordings; `changed` rules are put in place of the published ones."""
    rules = RULES | (MOVES if is_moves else {}) | {name.replace("__", "."): rule for name, rule in changed.items()}
    actions = [name for name, *_ in (*ACTIONS, *([ASKS_FOR_HELP] if is_moves else []))]
    texts = {"task": [{"rhs": task}]} | {
        name: [{"condition": condition, "rhs": text} if condition else {"rhs": text} for condition, text in pairs]
        for name, pairs in rules.items()
        if name not in actions
    }
    said = {name: name if f"{name}.feedback" in texts else name[0].lower() + name[1:] for name in actions}
    blocks = "\n".join(
        f'action {name} {{\n    template :: "{rules[name][0][1]}";\n    feedback :: "#{said[name]}.feedback#";\n}}'
        for name in actions
    )
    return f'grammar :: """\n{json.dumps(texts, indent=4)}\n""";\n\n{blocks}\n'


def write(folder: Path, name: str, made: Made, is_moves: bool = False, **files: str) -> Path:
    """Writes FOLDER/NAME/game.tw-pddl; `files` are fields to put in place of what is written."""
    path = folder / name / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    data = {"pddl_domain": domain(is_moves), "grammar": grammar(is_moves, made.task), "pddl_problem": problem(made)}
    path.write_text(json.dumps(data | {"solvable": True} | files))
    return path


def place(x: int, y: int = 0) -> str:
    return f"loc_bar_{'_minus_' * (x < 0)}{abs(x)}_bar_{y}_bar_0_bar_30"


def _kitchen() -> Made:
    """Everything that can be done to food; an egg in two receptacles, a lettuce in none, a plate with a fork in it."""
    counter, table, fridge = "CounterTop_bar__plus_01", "DiningTable_bar__plus_02", "Fridge_bar__plus_03"
    oven, basin = "Microwave_bar__plus_04", "Sink_bar__plus_05_bar_SinkBasin"
    cabinets = [f"Cabinet_bar__plus_0{i}" for i in (6, 7)]
    apples = ["Apple_bar__plus_01", "Apple_bar__minus_01"]
    egg, knife, butter_knife = "Egg_bar_1", "Knife_bar_1", "ButterKnife_bar_1"
    plate, fork, mug, lettuce, bread = "Plate_bar_1", "Fork_bar_1", "Mug_bar_1", "Lettuce_bar_1", "Bread_bar_1"
    food = [*apples, egg, lettuce, bread]
    kinds = ("Apple", "Egg", "Knife", "ButterKnife", "Plate", "Fork", "Mug", "Bread")
    return Made(
        receptacles={
            counter: place(1), table: place(2), fridge: place(3), oven: place(1), basin: place(-4),
            cabinets[0]: place(3), cabinets[1]: place(3),
        },  # fmt: skip
        objects={
            apples[0]: (table,), apples[1]: (fridge,), egg: (counter, cabinets[0], fridge), knife: (counter,),
            butter_knife: (cabinets[1],), plate: (table,), fork: (), mug: (cabinets[0],), lettuce: (),
            bread: (counter,),
        },  # fmt: skip
        goal=goal("heat", "Apple", "DiningTable"),
        task="Your task is to: put a hot apple in diningtable.",
        openable=(fridge, oven, *cabinets),
        pickupable=(*apples, egg, knife, butter_knife, plate, mug, bread),
        extra=(
            f"isReceptacleObject {plate}", f"isReceptacleObject {mug}", f"inReceptacleObject {fork} {plate}",
            f"objectAtLocation {lettuce} {place(2)}", f"isCool {mug}",
            *(f"{able} {o}" for able in ("heatable", "coolable", "cleanable") for o in food),
            *(f"sliceable {o}" for o in (*apples, lettuce, bread)), f"cleanable {knife}", f"cleanable {mug}",
        ),  # fmt: skip
        start=place(0),
        can=tuple((r, o) for r in ("CounterTop", "DiningTable", "Fridge", "Cabinet", "Microwave", "SinkBasin")
                  for o in kinds if (r, o) != ("Microwave", "Knife")),
        types={basin: "SinkBasin"},
    )  # fmt: skip


def _bedroom() -> Made:
    """A lamp that lies in two receptacles of one location, a laptop to be switched on and taken, eleven drawers."""
    desk, shelf, bed = "Desk_bar_1", "Shelf_bar_1", "Bed_bar_1"
    drawers = [f"Drawer_bar_{i:02}" for i in range(11)]
    lamp, laptop, book, cds = "DeskLamp_bar_1", "Laptop_bar_1", "Book_bar_1", ["CD_bar_1", "CD_bar_2"]
    return Made(
        receptacles={desk: place(1), shelf: place(1), bed: place(2)}
        | {drawer: place(1 if i < 2 else 3 + i % 3) for i, drawer in enumerate(drawers)},
        objects={
            lamp: (desk, shelf), laptop: (bed, desk), book: (drawers[4],), cds[0]: (drawers[0],), cds[1]: (shelf,),
        },  # fmt: skip
        goal=goal("light", "Book", "DeskLamp"),
        task="Your task is to: examine the book with the desklamp.",
        openable=tuple(drawers),
        pickupable=(laptop, book, *cds),
        extra=(f"toggleable {lamp}", f"toggleable {laptop}"),
        start=place(0),
        can=tuple((r, o) for r in ("Desk", "Shelf", "Bed", "Drawer") for o in ("Laptop", "Book", "CD")
                  if (r, o) != ("Drawer", "Laptop")),
    )  # fmt: skip


def _bathroom() -> Made:
    """Two bars of soap for a cabinet, of which one is in it. A tub has a basin; one thing's name has no number."""
    cabinet, toilet = "Cabinet_bar_1", "Toilet_bar_1"
    tub, basin = "Bathtub_bar_1_bar_BathtubBasin", "Sink_bar_1_bar_SinkBasin"
    soap, cloth = ["SoapBar_bar_1", "SoapBar_bar_2"], "Cloth"
    return Made(
        receptacles={cabinet: place(1), toilet: place(2), tub: place(3), basin: place(1, 1)},
        objects={soap[0]: (cabinet,), soap[1]: (tub,), cloth: (toilet,)},
        goal=goal("two", "SoapBar", "Cabinet"),
        task="Your task is to: put two soapbar in cabinet.",
        openable=(cabinet,),
        pickupable=(*soap, cloth),
        extra=(f"cleanable {cloth}", f"cleanable {soap[0]}"),
        types={tub: "BathtubBasin", basin: "SinkBasin"},
        start=place(2),
        can=tuple((r, o) for r in ("Cabinet", "Toilet", "BathtubBasin", "SinkBasin") for o in ("SoapBar", "Cloth")),
    )


def _scullery() -> Made:
    """A sink without a basin, and a receptacle without a number in its name."""
    sink, rack = "Sink_bar_1", "Rack"
    return Made(
        receptacles={sink: place(1), rack: place(2)},
        objects={"Pan_bar_1": (rack,), "Pan_bar_2": (sink,)},
        goal=goal("clean", "Pan", "Sink"),
        task="Your task is to: put a clean pan in sink.",
        pickupable=("Pan_bar_1", "Pan_bar_2"),
        extra=("cleanable Pan_bar_1", "cleanable Pan_bar_2"),
        start=place(1),
        can=(("Sink", "Pan"), ("Rack", "Pan")),
    )


def _larder() -> Made:
    """Two ways to the cold."""
    fridges = ["Fridge_bar_1", "Fridge_bar_2"]
    return Made(
        receptacles={fridges[0]: place(1), fridges[1]: place(2), "Shelf_bar_1": place(3)},
        objects={"Tomato_bar_1": ("Shelf_bar_1",), "Tomato_bar_2": (fridges[1],)},
        goal=goal("cool", "Tomato", "Shelf"),
        task="Your task is to: put a cool tomato in shelf.",
        openable=tuple(fridges),
        pickupable=("Tomato_bar_1", "Tomato_bar_2"),
        extra=("coolable Tomato_bar_1", "coolable Tomato_bar_2", f"opened {fridges[1]}"),
        start=place(0),
        can=(("Fridge", "Tomato"), ("Shelf", "Tomato")),
    )


def _hall() -> Made:
    """As little as a game can have."""
    return Made(
        receptacles={"SideTable_bar_1": place(1), "GarbageCan_bar_1": place(2)},
        objects={"KeyChain_bar_1": ("SideTable_bar_1",)},
        goal=goal("simple", "KeyChain", "GarbageCan"),
        task="Your task is to: put a keychain in garbagecan.",
        pickupable=("KeyChain_bar_1",),
        start=place(0),
        can=(("GarbageCan", "KeyChain"), ("SideTable", "KeyChain")),
    )


HOUSEHOLDS = {
    "kitchen": _kitchen(), "bedroom": _bedroom(), "bathroom": _bathroom(), "scullery": _scullery(),
    "larder": _larder(), "hall": _hall(),
}  # fmt: skip


# Walks in the wording of json_2.1.1, each through what is odd about play.
WALKS = {
    "kitchen": (
        ["look", "inventory", "go to fridge 1", "go to cabinet 1", "open fridge 1", "take egg 1 from fridge 1", "look",
         "examine egg 1", "examine apple 2", "open cabinet 1", "put egg 1 in/on cabinet 1", "look", "open cabinet 2",
         "take egg 1 from cabinet 2", "put egg 1 in/on cabinet 1", "look", "close cabinet 1", "examine cabinet 1",
         "open cabinet 1", "take egg 1 from cabinet 1", "cool egg 1 with fridge 1", "examine egg 1",
         "go to sinkbasin 1", "clean egg 1 with sinkbasin 1", "examine egg 1", "go to microwave 1",
         "heat egg 1 with microwave 1", "examine egg 1", "open microwave 1", "put egg 1 in/on microwave 1",
         "examine microwave 1", "take egg 1 from countertop 1", "inventory", "examine microwave 1", "look"],
        ["go to countertop 1", "take knife 1 from countertop 1", "slice bread 1 with knife 1",
         "slice lettuce 1 with knife 1", "open microwave 1", "put knife 1 in/on microwave 1", "examine knife 1",
         "go to diningtable 1", "slice lettuce 1 with knife 1", "slice apple 1 with knife 1",
         "put knife 1 in/on diningtable 1", "take apple 1 from diningtable 1", "examine apple 1", "go to fridge 1",
         "cool apple 1 with fridge 1", "examine apple 1", "go to sinkbasin 1", "clean apple 1 with sinkbasin 1",
         "examine apple 1", "go to microwave 1", "heat apple 1 with microwave 1", "examine apple 1"],
        ["go to diningtable 1", "take plate 1 from diningtable 1", "examine plate 1", "take apple 1 from diningtable 1",
         "go to cabinet 2", "open cabinet 2", "put plate 1 in/on cabinet 2", "take mug 1 from cabinet 2",
         "examine mug 1", "go to sinkbasin 1", "put mug 1 in/on sinkbasin 1", "look", "examine sinkbasin 1",
         "go to countertop 1", "take bread 1 from countertop 1", "examine bread 1", "heat bread 1 with microwave 1",
         "examine bread 1", "go to fridge 1", "cool bread 1 with fridge 1", "examine bread 1", "help"],
    ),
    "bedroom": (
        ["go to shelf 1", "use desklamp 1", "use desklamp 1", "take desklamp 1 from shelf 1", "use laptop 1",
         "take laptop 1 from desk 1", "examine laptop 1", "look", "go to drawer 11", "go to bed 1",
         "put laptop 1 in/on bed 1", "examine bed 1", "look", "Examine bed 1", "  look \n", "take laptop 1  from bed 1",
         "take laptop 1 from bed 1", "take laptop 1 from bed 1", "go to drawer 1"],
    ),
    "bathroom": (
        ["examine toilet 1", "look", "take cloth from toilet 1", "take cloth  from toilet 1", "examine cloth",
         "examine cloth ", "inventory", "go to sinkbasin 1", "clean cloth  with sinkbasin 1",
         "put cloth  in/on sinkbasin 1", "look", "go to bathtubbasin 1", "examine bathtubbasin 1"],
    ),
    "scullery": (
        ["go to rack", "go to rack ", "look", "take pan 1 from sink 1", "examine rack ", "go to sink 1",
         "examine pan 1"],
    ),
    "larder": (
        ["go to fridge 2", "close fridge 2", "open fridge 2", "go to fridge 1", "take tomato 1 from fridge 1", "",
         "cool tomato 1 with fridge 1", "examine tomato 1", "close fridge 1", "put tomato 1 in/on fridge 1",
         "go to shelf 1", "put tomato 1 in/on shelf 1"],
    ),
    "hall": (["look", "go to garbagecan 1", "look", "go to garbagecan 1", "go to sidetable 1"],),
}  # fmt: skip


def walks(name: str, is_moves: bool) -> list[list[str]]:
    """WALKS of a household in either wording."""
    other = lambda said: re.sub("^put (.*) in/on ", r"move \1 to ", said)  # noqa: E731
    return [[other(said) if is_moves else said for said in walk] for walk in WALKS[name]]


def write_all(folder: Path) -> dict[str, Path]:
    """Every household in both wordings, the second as NAME-moves."""
    return {
        name + "-moves" * is_moves: write(folder, name + "-moves" * is_moves, made, is_moves)
        for name, made in HOUSEHOLDS.items()
        for is_moves in (False, True)
    }


def vocabulary(folder: Path, texts: list[str]) -> Tokenizer:
    """A byte-level BPE vocabulary with Qwen's first step, trained on texts."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|pad|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(texts, trainer)
    model.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(str(folder / "tokenizer.json"))
