"""PDDL: a lenient reader of domains and problems, and a grounder for STRIPS.

What is read: typing (with `either`), constants, equality and negative preconditions. Published files are not always in
good order, so sections may come in any order, :typing need not be required, `object` may be declared as a type, a type
need not be declared, an object may be declared again as what it is, a comma is white space, and a variable needs no
space before it ("?l - level?l1"). Names are folded to lower case. All else (disjunction, quantifiers, conditional
effects, numbers, derived predicates, negative goals, ...) is refused by name.

An atom is a tuple: its predicate, then its terms; a term that begins with "?" is a variable.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from agemem_jax.errors import InputError

Atom = tuple[str, ...]
ROOT = "object"  # the type of everything

_COMMENT = re.compile(r";[^\n]*")
_SYMBOL = re.compile(r"[()]|\?[^\s()?,]*|[^\s()?,]+")
_FEATURES = {
    "or": "a disjunction", "imply": "an implication", "forall": "a quantifier", "when": "a conditional effect",
    "exists": "a quantifier", "preference": "a preference", "increase": "a numeric effect",
    "decrease": "a numeric effect", "assign": "a numeric effect", "scale-up": "a numeric effect",
    "scale-down": "a numeric effect", "probabilistic": "a probabilistic effect", "oneof": "a probabilistic effect",
    ">": "a numeric condition", "<": "a numeric condition", ">=": "a numeric condition", "<=": "a numeric condition",
    "at start": "a durative condition",
}  # fmt: skip
_SECTIONS = {
    ":derived": "derived predicates", ":axiom": "derived predicates", ":functions": "numeric functions",
    ":durative-action": "durative actions", ":constraints": "trajectory constraints", ":metric": "a metric",
    ":process": "processes", ":event": "events",
}  # fmt: skip


@dataclass(frozen=True)
class Schema:
    """An action with variables."""

    name: str
    parameters: tuple[tuple[str, tuple[str, ...]], ...]  # variable, and the types of which it may be any
    positive: tuple[Atom, ...]
    negative: tuple[Atom, ...]
    equal: tuple[tuple[str, str, bool], ...]  # two terms, and whether they must be the same
    add: tuple[Atom, ...]
    delete: tuple[Atom, ...]


@dataclass(frozen=True)
class Domain:
    """What all problems of a kind share."""

    name: str
    parents: dict[str, tuple[str, ...]]  # of each declared type
    constants: dict[str, tuple[str, ...]]  # their types
    arity: dict[str, int]  # of each predicate that is declared or used
    schemas: tuple[Schema, ...]


@dataclass(frozen=True)
class Problem:
    """One task. Equal in what it asks if `init` and `goal` are."""

    name: str
    domain: str
    objects: dict[str, tuple[str, ...]]  # constants included, in order
    init: frozenset[Atom]
    goal: tuple[Atom, ...]  # without repetitions


@dataclass(frozen=True)
class Operator:
    """An action of objects. Numbers are those of facts; `delete` and `add` have none in common."""

    name: str
    arguments: tuple[str, ...]
    positive: frozenset[int]
    negative: frozenset[int]
    add: frozenset[int]
    delete: frozenset[int]


@dataclass(frozen=True)
class Grounded:
    """A problem without variables, as far as it can be reached if nothing were ever deleted.

    Facts that are true at the start are there even if nothing changes them; where the predicate is one that no action
    changes, no operator asks for it.
    """

    objects: tuple[str, ...]  # sorted
    facts: tuple[Atom, ...]  # sorted
    operators: tuple[Operator, ...]  # sorted by name and arguments; none without an effect
    init: frozenset[int]
    goal: frozenset[int]
    goals: int  # conditions of the goal, those that cannot be reached included


def read_domain(text: str, where: str) -> Domain:
    """The domain of a text; `where` is what errors call it (the file's path).

    Raises:
      InputError: the text is no PDDL domain, or needs something that is not supported.
    """
    name, sections = _definition(text, where, "domain")
    parents: dict[str, tuple[str, ...]] = {}
    constants: dict[str, tuple[str, ...]] = {}
    arity: dict[str, int] = {}
    schemas: list[Schema] = []
    for head, *body in sections:
        if head == ":types":
            parents |= _typed(body, where)
        elif head == ":constants":
            _declare(constants, _typed(body, where), where)
        elif head == ":predicates":
            for predicate in body:
                if not isinstance(predicate, list) or not predicate:
                    _refuse(where, f"declares {_show(predicate)} as a predicate; write (name ?a ?b)")
                arity[predicate[0]] = sum(not isinstance(x, list) and x.startswith("?") for x in predicate)
        elif head == ":action":
            schemas.append(_schema(body, where))
        elif head != ":requirements":
            _refuse_section(head, where)
    names = [schema.name for schema in schemas]
    if len({*names}) < len(names):
        _refuse(where, f"defines the action {max(names, key=names.count)!r} twice; remove one")
    for schema in schemas:
        known = {*constants, *(variable for variable, _ in schema.parameters)}
        for atom in (*schema.positive, *schema.negative, *schema.add, *schema.delete):
            _check_atom(atom, known, arity, f"action {schema.name!r}", where)
    return Domain(name, parents, constants, arity, tuple(schemas))


def read_problem(text: str, domain: Domain, where: str) -> Problem:
    """The problem of a text; `where` is what errors call it (the file's path).

    Raises:
      InputError: the text is no PDDL problem, is of another domain, or needs something that is not supported.
    """
    name, sections = _definition(text, where, "problem")
    objects, init, goal, arity = dict(domain.constants), [], None, dict(domain.arity)
    for head, *body in sections:
        if head == ":domain" and body != [domain.name]:
            _refuse(where, f"is of the domain {_show(body)}, not {domain.name!r}; give the domain that belongs to it")
        elif head == ":objects":
            _declare(objects, _typed(body, where), where)
        elif head == ":init":
            init += body
        elif head == ":goal":
            goal = [atom for part in body for atom in _literals(part, where)]
        elif head not in (":domain", ":requirements"):
            _refuse_section(head, where)
    if goal is None:
        _refuse(where, "has no :goal; the file looks cut off")
    for atom, is_true in goal:
        if not is_true or atom[0] == "=":
            _refuse(where, f"has the goal (not {_show(atom)}) or an equality, which is not supported; state facts")
    start = []
    for atom in init:
        if isinstance(atom, list) and atom and atom[0] == "=":
            _refuse(where, "sets a number in :init, which is not supported; remove numeric functions")
        start += _literals(atom, where)
    start = [atom for atom, is_true in start if is_true]
    for atom in (*start, *(atom for atom, _ in goal)):
        _check_atom(atom, objects, arity, "the problem", where)
    return Problem(name, domain.name, objects, frozenset(start), tuple(dict.fromkeys(atom for atom, _ in goal)))


def ground(domain: Domain, problem: Problem) -> Grounded:
    """The facts and operators that can be reached from the problem's start if nothing were ever deleted."""
    changed = {atom[0] for schema in domain.schemas for atom in (*schema.add, *schema.delete)}
    by_type = _objects_by_type(domain, problem)
    candidates = [
        instance
        for schema in domain.schemas
        for instance in _instances(schema, by_type, problem.init, changed)
    ]  # fmt: skip
    reached, possible = _reachable(candidates, problem.init)
    facts = sorted({atom for atom, is_true in reached if is_true} | problem.init)
    number = {atom: i for i, atom in enumerate(facts)}
    operators = []
    for name, arguments, positive, negative, add, delete in possible:
        # What can never be true need not be asked, nor deleted.
        op = Operator(
            name,
            arguments,
            frozenset(number[atom] for atom in positive),
            frozenset(number[atom] for atom in negative if atom in number),
            frozenset(number[atom] for atom in add),
            frozenset(number[atom] for atom in delete - add if atom in number),
        )
        if op.delete - op.negative or op.add - op.positive:
            operators.append(op)
    operators.sort(key=lambda op: (op.name, op.arguments))
    return Grounded(
        objects=tuple(sorted(problem.objects)),
        facts=tuple(facts),
        operators=tuple(operators),
        init=frozenset(number[atom] for atom in problem.init),
        goal=frozenset(number[atom] for atom in problem.goal if atom in number),
        goals=len(problem.goal),
    )


def _definition(text: str, where: str, kind: str) -> tuple[str, list]:
    """Name and sections of (define (kind NAME) section ...)."""
    tree = _tree(text, where)
    ok = len(tree) > 1 and tree[0] == "define" and isinstance(tree[1], list) and len(tree[1]) == 2
    if not ok or tree[1][0] != kind:
        _refuse(where, f"is no PDDL {kind}: it does not begin with (define ({kind} NAME)")
    for section in tree[2:]:
        if not (isinstance(section, list) and section and isinstance(section[0], str)):
            _refuse(where, f"has {_show(section)} where a section such as (:init ...) should be")
    return tree[1][1], tree[2:]


def _tree(text: str, where: str) -> list:
    """The first expression of a text, as nested lists."""
    stack: list[list] = [[]]
    for symbol in _SYMBOL.findall(_COMMENT.sub("", text).lower()):
        if symbol == "(":
            stack.append([])
        elif symbol != ")":
            stack[-1].append(symbol)
        elif len(stack) == 1:
            break  # a bracket too many at the end is harmless
        else:
            done = stack.pop()
            stack[-1].append(done)
    if len(stack) > 1:
        _refuse(where, f"lacks {len(stack) - 1} closing brackets; the file looks cut off")
    if not stack[0] or not isinstance(stack[0][0], list):
        _refuse(where, "holds no expression in brackets")
    return stack[0][0]


def _typed(symbols: list, where: str) -> dict[str, tuple[str, ...]]:
    """Names and their types: "a b - t c" or "a - (either t u)"; ROOT where none is said."""
    found, waiting, symbols = {}, [], iter(symbols)
    for symbol in symbols:
        if symbol != "-":
            if not isinstance(symbol, str):
                _refuse(where, f"has {_show(symbol)} in a list of names and types")
            waiting.append(symbol)
            continue
        kind = next(symbols, None)
        if kind is None:
            _refuse(where, f"has no type after the '-' behind {' '.join(waiting)!r}")
        found |= dict.fromkeys(waiting, tuple(kind[1:]) if isinstance(kind, list) else (kind,))
        waiting = []
    return found | dict.fromkeys(waiting, (ROOT,))


def _declare(known: dict, new: dict, where: str) -> None:
    """Adds objects to those known; one may come again as what it is."""
    for name, kinds in new.items():
        if known.setdefault(name, kinds) != kinds:
            _refuse(where, f"declares {name!r} as {' '.join(kinds)} and as {' '.join(known[name])}; keep one of them")


def _schema(body: list, where: str) -> Schema:
    name, parts = body[0] if body else "", dict(zip(body[1::2], body[2::2], strict=False)) if _paired(body) else None
    if parts is None or not isinstance(name, str) or not parts.keys() <= {":parameters", ":precondition", ":effect"}:
        _refuse(where, f"has an action {_show(name)} whose parts are not :parameters, :precondition and :effect")
    where = f"{where}, action {name!r},"
    conditions = list(_literals(parts.get(":precondition", []), where))
    effects = list(_literals(parts.get(":effect", []), where))
    if any(atom[0] == "=" for atom, _ in effects):
        _refuse(where, "has an equality as an effect")
    pick = lambda literals, sign: tuple(a for a, is_true in literals if is_true == sign and a[0] != "=")  # noqa: E731
    return Schema(
        name=name,
        parameters=tuple(_typed(parts.get(":parameters", []), where).items()),
        positive=pick(conditions, True),
        negative=pick(conditions, False),
        equal=tuple((*atom[1:], is_true) for atom, is_true in conditions if atom[0] == "="),
        add=pick(effects, True),
        delete=pick(effects, False),
    )


def _paired(body: list) -> bool:
    return len(body) % 2 == 1 and all(isinstance(key, str) for key in body[1::2])


def _literals(tree: list, where: str) -> Iterator[tuple[Atom, bool]]:
    """The atoms of a conjunction, and whether each is true."""
    head = tree[0] if isinstance(tree, list) and tree else None
    if tree == []:
        return
    if not isinstance(head, str):
        _refuse(where, f"has {_show(tree)} where an atom should be")
    if head == "and":
        for part in tree[1:]:
            yield from _literals(part, where)
    elif head == "not":
        inner = list(_literals(tree[1], where)) if len(tree) == 2 else []
        if len(inner) != 1:
            _refuse(where, f"negates something else than one atom: {_show(tree)}; this is not supported")
        yield inner[0][0], not inner[0][1]
    elif head in _FEATURES:
        _refuse(where, f"has {_FEATURES[head]} ({head}), which is not supported; only STRIPS with negation is")
    elif not all(isinstance(term, str) for term in tree) or (head == "=" and len(tree) != 3):
        _refuse(where, f"has {_show(tree)} where an atom should be")
    else:
        yield tuple(tree), True


def _check_atom(atom: Atom, known, arity: dict[str, int], owner: str, where: str) -> None:
    """That the terms of an atom are known, and as many as elsewhere."""
    for term in atom[1:]:
        if term not in known:
            _refuse(where, f"names {term!r} in {_show(atom)} of {owner}, which is declared nowhere; declare it")
    if arity.setdefault(atom[0], len(atom) - 1) != len(atom) - 1:
        _refuse(where, f"has {_show(atom)} in {owner}, but {atom[0]!r} has {arity[atom[0]]} terms elsewhere")


def _refuse_section(head: str, where: str) -> NoReturn:
    _refuse(where, f"has {_SECTIONS.get(head, 'a section')} ({head}), which is not supported; only plain STRIPS is")


def _refuse(where: str, what: str) -> NoReturn:
    raise InputError(f"{where} {what}")


def _show(tree) -> str:
    if isinstance(tree, str):
        return tree
    text = f"({' '.join(_show(part) for part in tree)})"
    return text if len(text) < 80 else f"{text[:76]}...)"


def _objects_by_type(domain: Domain, problem: Problem) -> dict[str, tuple[str, ...]]:
    """The objects of each type, those of its subtypes included."""
    found = defaultdict(list)
    for name, kinds in problem.objects.items():
        above, waiting = {ROOT: None}, list(kinds)
        while waiting:
            kind = waiting.pop()
            if kind not in above:
                above[kind] = None
                waiting += domain.parents.get(kind, ())
        for kind in above:
            found[kind].append(name)
    return {kind: tuple(names) for kind, names in found.items()}


def _instances(schema: Schema, by_type, init: frozenset[Atom], changed: set[str]) -> Iterator[tuple]:
    """Ground actions whose unchanging conditions hold: (name, arguments, positive, negative, add, delete)."""
    variables = [variable for variable, _ in schema.parameters]
    place = {variable: i for i, variable in enumerate(variables)}
    last = lambda terms: max((place.get(term, -1) for term in terms), default=-1)  # noqa: E731
    checks = defaultdict(list)  # by the parameter after which they can be decided
    for atoms, sign in ((schema.positive, True), (schema.negative, False)):
        for atom in atoms:
            if atom[0] not in changed:
                checks[last(atom[1:])].append((atom, sign))
    for first, second, sign in schema.equal:
        checks[last((first, second))].append((("=", first, second), sign))

    def holds(binding: dict[str, str], depth: int) -> bool:
        for atom, sign in checks[depth]:
            one = _bind(atom, binding)
            if (one[1] == one[2] if one[0] == "=" else one in init) != sign:
                return False
        return True

    def extend(binding: dict[str, str], depth: int) -> Iterator[dict[str, str]]:
        if depth == len(variables):
            yield binding
            return
        for name in dict.fromkeys(n for kind in schema.parameters[depth][1] for n in by_type.get(kind, ())):
            longer = binding | {variables[depth]: name}
            if holds(longer, depth):
                yield from extend(longer, depth + 1)

    if not holds({}, -1):
        return
    for binding in extend({}, 0):
        bound = lambda atoms: frozenset(_bind(atom, binding) for atom in atoms)  # noqa: B023, E731
        asked = lambda atoms: bound(atom for atom in atoms if atom[0] in changed)  # noqa: B023, E731
        arguments = tuple(binding[variable] for variable in variables)
        positive, negative = asked(schema.positive), asked(schema.negative)
        yield schema.name, arguments, positive, negative, bound(schema.add), bound(schema.delete)


def _bind(atom: Atom, binding: dict[str, str]) -> Atom:
    return (atom[0], *(binding.get(term, term) for term in atom[1:]))


def _reachable(candidates: list[tuple], init: frozenset[Atom]) -> tuple[set[tuple[Atom, bool]], list[tuple]]:
    """What can become true or false if nothing is lost, and the actions that are then possible."""
    waiting_for = defaultdict(list)
    missing = []
    for i, (_, _, positive, negative, *_) in enumerate(candidates):
        conditions = [*((atom, True) for atom in positive), *((atom, False) for atom in negative)]
        missing.append(len(conditions))
        for condition in conditions:
            waiting_for[condition].append(i)
    start = {(atom, True) for atom in init} | {(atom, False) for atom, _ in waiting_for if atom not in init}
    reached, possible = set(start), []
    ready, queue = [i for i, count in enumerate(missing) if not count], list(start)
    while queue or ready:
        while ready:
            possible.append(candidates[ready.pop()])
            *_, add, delete = possible[-1]
            new = ({(atom, True) for atom in add} | {(atom, False) for atom in delete - add}) - reached
            reached |= new
            queue += new
        if queue:
            for i in waiting_for[queue.pop()]:
                missing[i] -= 1
                if not missing[i]:
                    ready.append(i)
    return reached, possible
