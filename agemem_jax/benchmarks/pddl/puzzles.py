"""Problems as they are played: read and grounded, facts and actions in the order of their sentences."""

from dataclasses import dataclass, replace
from pathlib import Path

from agemem_jax.benchmarks.pddl import wording
from agemem_jax.data.pddl import Atom, Domain, Grounded, Problem, ground, read_domain, read_problem
from agemem_jax.envs.text import WORD
from agemem_jax.errors import InputError


@dataclass(frozen=True)
class Puzzle:
    """A problem, grounded; facts and actions in the order of their sentences."""

    name: str  # where it comes from, for errors
    domain: Domain
    problem: Problem
    grounded: Grounded

    @property
    def tells_new(self) -> bool:
        return self.domain.name in wording.TELLS_NEW

    @property
    def goal(self) -> str:
        """The goal in words."""
        return wording.goal_text(self.problem)


def puzzle(domain: Domain, problem: Problem, name: str) -> Puzzle:
    """Grounds a problem.

    An action that names an object twice is left out, for AgentBoard never lists one; in its four domains none changes
    anything.

    Raises:
      InputError: it cannot be played, as the text says.
    """
    grounded = ground(domain, problem)
    if not problem.goal:
        raise InputError(f"{name} has no condition in its goal; give it one")
    for one in grounded.objects:
        if WORD.fullmatch(one) is None:
            raise InputError(f"{name} has an object {one!r}, which is not one word to say; rename it")
    operators = [op for op in grounded.operators if len({*op.arguments}) == len(op.arguments)]
    order = sorted(range(len(grounded.facts)), key=lambda i: (capital(grounded.facts[i]), grounded.facts[i]))
    number = {old: new for new, old in enumerate(order)}
    moved = lambda facts: frozenset(number[i] for i in facts)  # noqa: E731
    operators = [
        replace(
            op, positive=moved(op.positive), negative=moved(op.negative), add=moved(op.add), delete=moved(op.delete)
        )
        for op in sorted(operators, key=lambda op: (wording.sentence((op.name, *op.arguments)), op.name, op.arguments))
    ]
    facts = tuple(grounded.facts[i] for i in order)
    grounded = replace(
        grounded, facts=facts, operators=tuple(operators), init=moved(grounded.init), goal=moved(grounded.goal)
    )
    return Puzzle(name, domain, problem, grounded)


def read(folder: str | Path) -> list[Puzzle]:
    """All problems of a folder that holds domain.pddl, and *.pddl, in the order of their file names.

    Raises:
      InputError: a file is missing or cannot be used.
    """
    folder = Path(folder)
    domain = read_domain(_text(folder / "domain.pddl"), str(folder / "domain.pddl"))
    paths = sorted(path for path in folder.glob("*.pddl") if path.name != "domain.pddl")
    if not paths:
        raise InputError(f"{str(folder)!r} holds no problem, a file *.pddl beside domain.pddl; give another folder")
    return [puzzle(domain, read_problem(_text(path), domain, str(path)), str(path)) for path in paths]


def capital(atom: Atom) -> str:
    """A fact as it is told."""
    return wording.sentence(atom).capitalize()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); give AgentBoard's pddl folder") from error
