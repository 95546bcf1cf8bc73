"""How AgentBoard says facts, actions and answers (its pddl_env.py, commit bb7255e).

AgentBoard has one table for all domains in which some names come twice; the last entry counts, so some sentences are
another domain's ("You are holding right."). What has no entry is told by its name ("Handempty right"). Sentences end
in ". ", in "." or in nothing.
"""

from agemem_jax.data.pddl import Atom, Problem

FORMATS = {
    # facts
    "arm-empty": "Your arm is empty.",
    "at": "{} is at {}. ",
    "at-robby": "Robby is at {}. ",
    "ball": "{} is a ball. ",
    "carry": "{} is carrying {}. ",
    "clean": "{} is clean. ",
    "clear": "The {} is clear.",
    "closed": "{} is closed.",
    "cocktail-part1": "{} part1 ingredient is {}. ",
    "cocktail-part2": "{} part2 ingredient is {}. ",
    "contains": "{} contains {}. ",
    "dispenses": "{} dispenses {}. ",
    "empty": "{} is empty. ",
    "fastened": "Hub {} is fastened.",
    "free": "{} is free. ",
    "gripper": "{} is a gripper. ",
    "have": "You have {}.",
    "holding": "You are holding {}. ",
    "in": "{} is in {}.",
    "inflated": "Wheel {} is inflated.",
    "intact": "Wheel {} is intact.",
    "isopen": "{} is open.",
    "loose": "The nut {} on the hub {} is loose.",
    "next": "level {} is next to level {}. ",
    "not-inflated": "Wheel {} is not inflated.",
    "not-on-ground": "Hub {} is not on the ground.",
    "on": "{} is on {}.",
    "on-ground": "Hub {} is on the ground.",
    "on-table": "{} is on the table.",
    "ontable": "{} is on the table. ",
    "shaked": "{} is shaked. ",
    "shaker-empty-level": "{} is at empty level {}. ",
    "shaker-level": "{} is at level {}. ",
    "tight": "The nut {} on the hub {} is tight.",
    "unfastened": "Hub {} is unfastened.",
    "unlocked": "{} is unlocked.",
    "unshaked": "{} is unshaked. ",
    "used": "Pour {} from a shot glass to a used shaker {}",
    # actions
    "clean-shaker": "use hand {} and hand {} to clean-shaker {}",
    "clean-shot": "clean-shot glass {} with {} with hand {} holding shot glass and {}. ",
    "close": "Close {}.",
    "do-up": "Do-up the nut {} on the hub {}.",
    "empty-shaker": "use hand {} to empty-shaker {} with ingredient {} from level {} to level {}.",
    "empty-shot": "use hand {} to empty-shot glass {} with beverage {}. ",
    "fetch": "Fetch {} from {}.",
    "fill-shot": "fill-shot glass {} with {} with {} and {} holding {}. ",
    "grasp": "{} grasp {}. ",
    "inflate": "Inflate the wheel {}.",
    "jack-down": "Jack-down the hub {}.",
    "jack-up": "jack-up the hub {}.",
    "leave": "{} leave {}. ",
    "loosen": "Loosen the nut {} on the hub {}.",
    "move": "Move from {} to {}. ",
    "open": "Open {}.",
    "pick": "Pick up {} at {} with arm {}. ",
    "pickup": "Pickup {}.",
    "pour-shaker-to-shot": "pour-shaker-to-shot to a shot glass {} the ingredient {} with hand {} from shaker {} "
    "from level {} to level {}",
    "pour-shot-to-clean-shaker": "pour-shot-to-clean-shaker from a shot glass {} with {} to a clean shaker {} "
    "with hand {} from level {} to level {}",
    "pour-shot-to-used-shaker": "pour-shot-to-used-shaker from a shot glass {} with {} to a used shaker {} "
    "with hand {} from level {} to level {}",
    "put-away": "Put-away {} in {}.",
    "put-on-wheel": "put-on-wheel {} on the hub {}.",
    "putdown": "Putdown {}.",
    "refill-shot": "refill-shot {} with {} with {} and {} holding {}. ",
    "remove-wheel": "Remove-wheel {} from the hub {}.",
    "shake": "shake a cocktail {} with ingredient {} and ingredient {} in a shaker {} with hand {} and hand {}",
    "stack": "Stack {} on {}.",
    "tighten": "Tighten the nut {} on the hub {}.",
    "undo": "Undo the fastening of the nut {} on the hub {}.",
    "unstack": "Unstack {} from {}.",
}
GOAL = "The goal is to satisfy the following conditions: "
VALID = "Valid actions are:"
CHECK = " check valid actions"
LOOK = ", look around"
NO_EFFECT = (
    "The action is not valid and therefore takes no effect. Please remember to satisfy the restriction of actions. "
    "You can also check valid actions."
)
UNKNOWN = "The action is not valid and therefore takes no effect. Please check valid actions."
SATISFIED = " The goal is satisfied."
# Domains (the names within their files) in which only what is new is told after an action.
TELLS_NEW = ("barman", "tyreworld")
# Facts that are told in stage 1 where the goal is: which cocktail consists of what.
HIDDEN = ("cocktail-part1", "cocktail-part2")


def format_of(name: str, terms: int) -> str:
    """The format of a predicate or an action of `terms` terms; surplus terms are not said.

    Another domain may have one of the names with fewer terms than its format says: it is told by its name too.
    """
    plain = " ".join([name, *["{}"] * terms]) if terms else f"{name} "
    known = FORMATS.get(name, plain)
    return known if known.count("{}") <= terms else plain


def sentence(atom: Atom) -> str:
    """A fact, or an action and its objects, as listed."""
    return format_of(atom[0], len(atom) - 1).format(*atom[1:])


def goal_text(problem: Problem) -> str:
    """The goal as AgentBoard states it."""
    return GOAL + ", ".join(sorted(sentence(atom) for atom in problem.goal))
