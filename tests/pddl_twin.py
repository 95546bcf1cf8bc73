"""A slow, obvious twin of the PDDL environment: sets of atoms, schemas tried with all objects, strings."""

import itertools
import re

from agemem_jax.benchmarks.pddl import wording
from agemem_jax.data.pddl import Domain, Problem

SEPARATORS = re.compile(r"""[\s.,:;?!()\[\]{}<>"#$%&@`«»“”‘’„]+""")
LIMIT = 30


def sentence(name: str, terms) -> str:
    if name in wording.FORMATS:
        return wording.FORMATS[name].format(*terms)
    return name + " " + " ".join(terms)


class Game:
    """One episode."""

    def __init__(self, domain: Domain, problem: Problem, tells_new: bool):
        self.domain, self.problem, self.tells_new = domain, problem, tells_new
        self.state, self.steps, self.best = set(problem.init), 0, 0
        self.actions = self._all_actions()
        self.seen = self.tell(self.state)

    def _is_a(self, one: str, kinds) -> bool:
        mine = set(self.problem.objects[one]) | {"object"}
        while True:
            wider = mine | {parent for kind in mine for parent in self.domain.parents.get(kind, ())}
            if wider == mine:
                return bool(mine & set(kinds))
            mine = wider

    def _all_actions(self) -> dict[tuple, tuple[set, set, set, set]]:
        """(name, objects): (what must hold, what must not, what comes, what goes). No object comes twice."""
        found = {}
        changing = {atom[0] for schema in self.domain.schemas for atom in (*schema.add, *schema.delete)}
        for schema in self.domain.schemas:
            choices = [[o for o in self.problem.objects if self._is_a(o, kinds)] for _, kinds in schema.parameters]
            for objects in itertools.product(*choices):
                if len(set(objects)) < len(objects):
                    continue
                named = dict(zip((variable for variable, _ in schema.parameters), objects, strict=True))
                put = lambda atoms: {(a[0], *(named.get(t, t) for t in a[1:])) for a in atoms}  # noqa: B023, E731
                needs = put(schema.positive)
                if any((named.get(a, a) == named.get(b, b)) != same for a, b, same in schema.equal):
                    continue
                if all(atom in self.problem.init for atom in needs if atom[0] not in changing):
                    found[schema.name, *objects] = needs, put(schema.negative), put(schema.add), put(schema.delete)
        return found

    def applicable(self) -> list[tuple]:
        return [a for a, (needs, bars, _, _) in self.actions.items() if needs <= self.state and not bars & self.state]

    def tell(self, facts) -> str:
        return " ".join(sorted(sentence(name, terms).capitalize() for name, *terms in facts))

    def met(self) -> int:
        return sum(atom in self.state for atom in self.problem.goal)

    def won(self) -> bool:
        return self.met() == len(self.problem.goal)

    def progress(self) -> float:
        return self.best / len(self.problem.goal)

    def step(self, text: str) -> tuple[str, bool]:
        """What is answered, and whether it was understood."""
        self.steps += 1
        text = text.lower()
        if "check" in text:
            listed = sorted(sentence(name, objects) for name, *objects in self.applicable())
            listed += ["check valid actions"] + ["look around"] * self.tells_new
            return "Valid actions are: " + ", ".join(listed), True
        if "look around" in text:
            return self.tell(self.state), True
        action = self.meaning(text)
        if action is None:
            return wording.UNKNOWN, False
        before = self.state
        if action in self.applicable():
            _, _, comes, goes = self.actions[action]
            self.state = (before - goes) | comes
        if self.state == before:
            return wording.NO_EFFECT, False
        self.best = max(self.best, self.met())
        seen = self.tell(self.state - before if self.tells_new else self.state)
        return seen + (" The goal is satisfied." if self.won() else ""), True

    def meaning(self, text: str) -> tuple | None:
        words = [word for word in SEPARATORS.split(text) if word]
        possible = {name for name, *_ in self.applicable()}
        named = next((word for word in words if word in possible), None)
        if named is None:
            return None
        (count,) = {len(s.parameters) for s in self.domain.schemas if s.name == named}
        objects = [word for word in words if word in self.problem.objects]
        return (named, *objects[:count]) if len(objects) >= count else None
