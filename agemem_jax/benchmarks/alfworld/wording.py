"""What ALFWorld's game files say about play and texts, checked against what the engine plays (host).

RULES are TextWorld's rules as (condition, text) pairs, of which the first that applies is used, and the templates of
commands. The two published wordings differ in those of MOVES alone.
"""

import functools
import json
import re

from agemem_jax.benchmarks.alfworld.texts import HELP
from agemem_jax.errors import InputError

AROUND = "atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)"
FLOOR = (
    "atlocation(a:agent, l:location) & objectatlocation(o:object, l:location) & "
    "receptacleatlocation(r:receptacle, l:location) & not_inreceptacle(o:object, r:receptacle)"
)
INSIDE = "[{o.indefinite + ' ' + o.name | inreceptacle(o:object, r:receptacle)}]"
RULES = {
    "intro": [("", "-= Welcome to TextWorld, ALFRED! =-\n\n#look.feedback#\n\n#task#")],
    "GotoLocation.feedback": [("", "You arrive at {lend.name}. #examineReceptacle.feedback#")],
    "OpenObject.feedback": [("", "You open the {r.name}. #examineReceptacle.feedback#")],
    "CloseObject.feedback": [("", "You close the {r.name}.")],
    "PickupObject.feedback": [("", "You pick up the {o.name} from the {r.name}.")],
    "PutObject.feedback": [("", "You put the {o.name} in/on the {r.name}.")],
    "heatObject.feedback": [("", "You heat the {o.name} using the {r.name}.")],
    "cleanObject.feedback": [("", "You clean the {o.name} using the {r.name}.")],
    "coolObject.feedback": [("", "You cool the {o.name} using the {r.name}.")],
    "sliceObject.feedback": [("", "You sliced the {co.name} with the {ko.name}.")],
    "toggleObject.feedback": [
        ("toggleable(o:object) & istoggled(o:object)", "You turn on the {o.name}."),
        ("toggleable(o:object)", "You turn off the {o.name}."),
        ("", "You don't see any switch on the {o.name}."),
    ],
    "inventory.feedback": [
        ("holdsany(a:agent)", "You are carrying: [{o.indefinite + ' ' + o.name | holds(a:agent, o:object)}]."),
        ("", "You are not carrying anything."),
    ],
    "examineReceptacle.feedback": [
        ("openable(r:receptacle) & opened(r:receptacle)", f"The {{r.name}} is open. In it, you see {INSIDE}."),
        ("openable(r:receptacle)", "The {r.name} is closed."),
        ("", f"On the {{r.name}}, you see {INSIDE}."),
    ],
    "examineObject.feedback": [
        (
            "isreceptacleobject(o:object)",
            "This is a normal {o.name}. In it, you see "
            "[{o2.indefinite + ' ' + o2.name | inreceptacleobject(o2:object, o:object)}].",
        ),
        ("isclean(o:object) & ishot(o:object) & issliced(o:object)", "This is a hot and clean sliced {o.name}."),
        ("isclean(o:object) & iscool(o:object) & issliced(o:object)", "This is a cool and clean sliced {o.name}."),
        ("isclean(o:object) & issliced(o:object)", "This is a clean sliced {o.name}."),
        ("ishot(o:object) & issliced(o:object)", "This is a hot sliced {o.name}."),
        ("iscool(o:object) & issliced(o:object)", "This is a cool sliced {o.name}."),
        ("isclean(o:object) & ishot(o:object)", "This is a hot and clean {o.name}."),
        ("isclean(o:object) & iscool(o:object)", "This is a cool and clean {o.name}."),
        ("ishot(o:object)", "This is a hot {o.name}."),
        ("isclean(o:object)", "This is a clean {o.name}."),
        ("iscool(o:object)", "This is a cold {o.name}."),
        ("toggleable(o:object) & istoggled(o:object)", "This {o.name} is on."),
        ("toggleable(o:object) & not_istoggled(o:object)", "This {o.name} is off."),
        ("sliceable(o:object) & issliced(o:object)", "This is a sliced {o.name}."),
        ("", "There's nothing special about {o.name}."),
    ],
    "look.feedback": [
        (AROUND, "#look-variations#. Next to it, you see #list_objects_on_the_floor#."),
        ("", "You are in the middle of a room. Looking quickly around you, you see #list_appliances#."),
    ],
    "look-variations": [("", f"You are facing the [{{r.name | {AROUND}}}]")],
    "list_objects_on_the_floor": [(FLOOR, f"[{{#overview(o)# | {FLOOR}}}]"), ("", "nothing")],
    "list_appliances": [
        (
            "receptacleatlocation(r:receptacle, l:location)",
            "[{#overview(r)# | receptacleatlocation(r:receptacle, l:location)}]",
        ),
        ("", "nothing"),
    ],
    "overview(o)": [("", "{o.indefinite} {o.name}")],
    "overview(r)": [("", "{r.indefinite} {r.name or r.id}")],
    "list_empty": [("", "nothing")],
    "list_separator": [("", ", ")],
    "list_last_separator": [("", ", and ")],
    "GotoLocation": [("", "go to [{r.name | receptacleatlocation(r:receptacle, lend:location)}]")],
    "OpenObject": [("", "open {r}")],
    "CloseObject": [("", "close {r}")],
    "PickupObject": [("", "take {o} from {r}")],
    "PutObject": [("", "put {o} in/on {r}")],
    "inventory": [("", "inventory")],
    "examineReceptacle": [("", "examine {r}")],
    "examineObject": [("", "examine {o}")],
    "ToggleObject": [("", "use {o}")],
    "HeatObject": [("", "heat {o} with {r}")],
    "CleanObject": [("", "clean {o} with {r}")],
    "CoolObject": [("", "cool {o} with {r}")],
    "SliceObject": [("", "slice {co} with {ko}")],
    "look": [("", "look")],
}
# Of json_2.1.3 (since late 2024), in place of those of 2.1.1.
MOVES = {
    "GotoLocation.feedback": [("", "You arrive at {r.name}. #examineReceptacle.feedback#")],
    "PutObject.feedback": [("", "You move the {o.name} to the {r.name}.")],
    "PutObject": [("", "move {o} to {r}")],
    "help": [("", "help")],
    "help.feedback": [("", f"\n{HELP}")],  # the line break at its begin is never told
}
# The domain's actions; "help" besides in json_2.1.3.
ACTIONS = {
    "gotolocation", "openobject", "closeobject", "pickupobject", "putobject", "inventory", "examinereceptacle",
    "examineobject", "toggleobject", "heatobject", "cleanobject", "coolobject", "sliceobject", "look",
}  # fmt: skip


def sexpr(text: str) -> list:
    """The first s-expression of a text as nested lists of lower-case words; comments (;) are dropped.

    Raises ValueError if a bracket is missing.
    """
    stack: list[list] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text).lower()):
        if word == "(":
            stack.append([])
        elif word != ")":
            stack[-1].append(word)
        elif len(stack) < 2:
            raise ValueError("a bracket is closed that was not opened")
        else:
            done = stack.pop()
            stack[-1].append(done)
    if len(stack) != 1 or not stack[0] or isinstance(stack[0][0], str):
        raise ValueError("a bracket is missing")
    return stack[0][0]


def wording(grammar: str) -> tuple[str, bool]:
    """(the task, whether the wording is that of json_2.1.3) of a file's grammar.

    Raises InputError, without the file's name, if it has other rules than either.
    """
    try:
        rules = _rules(grammar)
        task = rules["task"][0][1]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"has a grammar of another form ({type(error).__name__}: {error})") from error
    is_moves = rules.get("PutObject") == MOVES["PutObject"]
    for name, wanted in (RULES | MOVES if is_moves else RULES).items():
        if (found := rules.get(name)) != wanted:
            raise InputError(f"has a grammar in which {name!r} is {str(found)[:200]}, not {str(wanted)[:200]}")
    return task, is_moves


def _rules(grammar: str) -> dict[str, list[tuple[str, str]]]:
    """(condition, text) pairs of each rule, and of each action its template, by their names."""
    rules = {}
    for block in re.findall(r'grammar\s*::\s*"""(.*?)"""', grammar, re.DOTALL):
        lines = (line for line in block.split("\n") if not line.lstrip().startswith("#"))
        for name, pairs in json.loads("\n".join(lines)).items():
            rules[name] = [(pair.get("condition", ""), pair["rhs"]) for pair in pairs]
    templates = re.findall(r'action\s+(\w+)\s*\{\s*template\s*::\s*"(.*?)"', grammar)
    return rules | {name: [("", template)] for name, template in templates}


@functools.lru_cache(maxsize=8)
def appliances(domain: str) -> tuple[tuple[frozenset[str], ...], frozenset[str]]:
    """Types of receptacles that clean, heat and cool, and types of objects that slice, as a domain names them.

    Raises InputError, without the file's name, if it is not the domain that the engine plays.
    """
    try:
        actions = {
            part[1]: dict(zip(part[2::2], part[3::2], strict=True)) for part in sexpr(domain) if part[0] == ":action"
        }
        before = {name: _nested(action[":precondition"]) for name, action in actions.items()}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"has a pddl_domain of another form ({type(error).__name__}: {error})") from error
    if other := (set(actions) - {"help"}) ^ ACTIONS:
        raise InputError(f"has a pddl_domain that differs in the actions {', '.join(sorted(other))}")
    # With this type, which no location has, an object that lies about cannot be examined; without it, it could.
    if any(part[0] == "exists" and "location," not in part[1] for part in before["examineobject"]):
        raise InputError("has a pddl_domain in which examineObject is for more than what is held")
    named = lambda action, fact: frozenset(part[2] for part in before[action] if part[0] == fact)  # noqa: E731
    treatments = ("cleanobject", "heatobject", "coolobject")
    return tuple(named(action, "receptacletype") for action in treatments), named("sliceobject", "objecttype")


def _nested(tree: list) -> list[list]:
    """All lists in nested lists that are not empty, the outer first."""
    return [tree, *(inner for part in tree if isinstance(part, list) for inner in _nested(part))] if tree else []
