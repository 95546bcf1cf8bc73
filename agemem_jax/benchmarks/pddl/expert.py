"""Plays to win: best-first search by the length of relaxed plans (Hoffmann and Nebel's FF heuristic), in numpy.

The conditions of a goal are looked for together, and one after the other: each is added to those that hold, so that
these hold again at the end. Both are done with the distance weighted little and much, plans lose the actions that they
do without, and the shortest is taken. It need not be the shortest there is.
"""

import heapq
import itertools
import random

import numpy as np

from agemem_jax.data.pddl import Grounded, Operator

WEIGHTS = (1, 2, 5)  # of the distance to the goal, against the actions so far
FAR = 1 << 20  # the cost of what cannot be reached
GUESSED = 200  # states whose distance is estimated on the way to a condition that is guessed


class Search:
    """A game as arrays. `plan` may be asked again and again, from any of its states."""

    def __init__(self, game: Grounded):
        facts, operators = len(game.facts), game.operators
        rows = lambda sets: _rows(sets, facts)  # noqa: E731
        self.pre, self.neg = rows([op.positive for op in operators]), rows([op.negative for op in operators])
        self.add, self.delete = rows([op.add for op in operators]), rows([op.delete for op in operators])
        self.asks_false = bool(self.neg.any())
        # Conditions as numbers of facts, filled up with one that always holds; those to be false are taken to be met.
        most = max((len(op.positive) for op in operators), default=0)
        self.needs = np.full((len(operators), max(most, 1)), facts)
        for row, op in zip(self.needs, operators, strict=True):
            row[: len(op.positive)] = sorted(op.positive)
        self.maker, self.made = np.nonzero(self.add)  # pairs (action, fact)
        self.facts = facts

    def plan(self, state: np.ndarray, goal: np.ndarray, budget: int) -> list[int] | None:
        """Numbers of actions that lead from a state [F] bool to the conditions goal [n], or None.

        budget: the most states of one search whose distance is estimated.
        """
        found = [self._search(state, goal, budget, weight) for weight in WEIGHTS]
        if len(goal) > 1:
            found += [self._one_by_one(state, goal, budget, weight) for weight in WEIGHTS]
        return min((self._shorten(state, goal, path) for path in found if path is not None), key=len, default=None)

    def applicable(self, state: np.ndarray) -> np.ndarray:
        """Which actions can be taken: [A] bool."""
        can = ~(self.pre & ~state).any(1)
        return can & ~(self.neg & state).any(1) if self.asks_false else can

    def after(self, state: np.ndarray, action: int) -> np.ndarray:
        return (state & ~self.delete[action]) | self.add[action]

    def distance(self, state: np.ndarray, goal: np.ndarray) -> tuple[int, np.ndarray]:
        """Length of a relaxed plan (FAR: there is none), and its actions that can be taken at once."""
        cost = np.full(self.facts + 1, FAR)
        cost[:-1][state] = 0
        cost[-1] = 0
        while True:
            price = 1 + cost[self.needs].sum(1)
            new = cost.copy()
            np.minimum.at(new, self.made, price[self.maker])
            if (new == cost).all():
                break
            cost = new
        if (cost[goal] >= FAR).any():
            return FAR, np.zeros(0, int)
        # The cheapest maker of each fact.
        best = np.full(self.facts, -1)
        order = np.argsort(-price[self.maker], kind="stable")
        best[self.made[order]] = self.maker[order]
        used, waiting, done = set(), [int(i) for i in goal if not state[i]], set()
        while waiting:
            fact = waiting.pop()
            if fact in done:
                continue
            done.add(fact)
            action = int(best[fact])
            if action not in used:
                used.add(action)
                waiting += [int(i) for i in self.needs[action] if i < self.facts and not state[i]]
        first = np.array([a for a in used if cost[self.needs[a]].sum() == 0], int)
        return len(used), first

    def _search(self, start: np.ndarray, goal: np.ndarray, budget: int, weight: int) -> list[int] | None:
        """The actions of a search, or None. Those that a relaxed plan would take first are tried first."""
        if start[goal].all():
            return []
        nearness, helpful = self.distance(start, goal)
        if nearness >= FAR:
            return None
        tie = itertools.count()
        parent = {start.tobytes(): (None, -1)}
        queue = [(nearness, 0, next(tie), start, helpful)]
        while queue:
            _, depth, _, state, helpful = heapq.heappop(queue)
            can = self.applicable(state)
            order = [*(a for a in helpful if can[a]), *np.setdiff1d(np.flatnonzero(can), helpful)]
            for action in order:
                new = self.after(state, action)
                key = new.tobytes()
                if key in parent:
                    continue
                parent[key] = (state.tobytes(), int(action))
                if new[goal].all():
                    return self._path(parent, key)
                budget -= 1
                if budget < 0:
                    return None
                nearness, its = self.distance(new, goal)
                if nearness < FAR:
                    heapq.heappush(queue, (weight * nearness + depth, depth + 1, next(tie), new, its))
        return None

    def _path(self, parent: dict, key: bytes) -> list[int]:
        path = []
        while parent[key][0] is not None:
            key, action = parent[key]
            path.append(action)
        return path[::-1]

    def _one_by_one(self, start: np.ndarray, goal: np.ndarray, budget: int, weight: int) -> list[int] | None:
        """Nearest condition first."""
        state, held, path = start, [i for i in goal if start[i]], []
        while len(held) < len(goal):
            left = [i for i in goal if i not in held]
            nearest = min(left, key=lambda i: self.distance(state, np.array([*held, i]))[0])  # noqa: B023
            held.append(nearest)
            part = self._search(state, np.array(held), budget, weight)
            if part is None:
                return None
            for action in part:
                state = self.after(state, action)
            path += part
            held += [i for i in goal if state[i] and i not in held]
        return path

    def _shorten(self, start: np.ndarray, goal: np.ndarray, path: list[int]) -> list[int]:
        """Without any action, and all those that need it, that the goal does without."""
        i = 0
        while i < len(path):
            state, kept = start, []
            for k, action in enumerate(path):
                if k != i and (k < i or self.applicable(state)[action]):
                    state = self.after(state, action)
                    kept.append(action)
            if state[goal].all():
                path = kept
            else:
                i += 1
        return path


def plan(game: Grounded, start: frozenset[int] | None = None, budget: int = 2000) -> list[Operator] | None:
    """Actions that solve a game from its start, or from other facts, or None if none were found within the budget.

    budget: the most states of one search whose distance is estimated; there are two for each of WEIGHTS.
    """
    if len(game.goal) < game.goals:
        return None  # a condition can never be met
    state = _rows([game.init if start is None else start], len(game.facts))[0]
    path = Search(game).plan(state, np.array(sorted(game.goal)), budget)
    return None if path is None else [game.operators[i] for i in path]


def guess(
    game: Grounded, start: frozenset[int], conditions: list[int], most: int, rng: random.Random
) -> list[Operator] | None:
    """Actions, at most `most`, of one who does not know the goal, if they happen to reach it.

    What may be asked, the facts `conditions`, is brought about one after the other, in a random order.
    """
    if len(game.goal) < game.goals:
        return None
    search, state = Search(game), _rows([start], len(game.facts))[0]
    goal, path = sorted(game.goal), []
    for wanted in rng.sample(conditions, len(conditions)):
        for action in search.plan(state, np.array([wanted]), GUESSED) or ():
            state = search.after(state, action)
            path.append(game.operators[action])
            if len(path) > most:
                return None
            if state[goal].all():
                return path
    return None


def _rows(sets: list[frozenset[int]], width: int) -> np.ndarray:
    out = np.zeros((len(sets), width), bool)
    for row, numbers in zip(out, sets, strict=True):
        row[list(numbers)] = True
    return out
