"""How a problem is told in three stages: its goal, and which cocktail consists of what, in stage 1 alone.

A world is in full view when play begins, so nothing of it is worth keeping; its goal is. Stage 1 tells the goal's
conditions one a message, and what the cocktails among them consist of, between what a walk does with the world (play
goes on from there), what other tasks ask for and small talk. A condition may change, or be taken back:

    Ball1 should be at Rooma.  ...  Ball1 should be at Roomb, not Rooma.
    Wheel r2 should be inflated.  ...  Wheel r2 need not be inflated.

Names without a digit have a capital in conditions, so that they count as names where texts are compared
(envs/names.py).
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agemem_jax.benchmarks.pddl import wording
from agemem_jax.benchmarks.pddl.puzzles import Puzzle, capital
from agemem_jax.data.pddl import Atom, Grounded, Operator, Problem
from agemem_jax.data.staged import StagedRecord

WALK = 3  # most actions of the walk
QUERY = "Do as you remember that it should be."
CHATTER = (
    ("we", "they", "you", "my friend", "the kids"),
    ("enjoyed", "wanted", "missed", "liked"),
    ("warm soup", "fresh bread", "loud music", "long walks", "good coffee"),
    ("today", "yesterday", "last night", "again"),
)
VERBS = (" is ", "be"), (" are ", "be"), (" contains ", "contain"), (" have ", "have")  # and how they are wished for
Shape = tuple[str, ...]


@dataclass(frozen=True)
class Room:
    """How many messages there may be."""

    facts: int  # of stage 1
    chatter: int  # of these, small talk
    distractors: int  # of stage 2


@dataclass(frozen=True)
class Play:
    """What is played."""

    puzzle: Puzzle
    walk: tuple[Operator, ...]  # what stage 1 does, from the problem's start
    start: frozenset[int]  # the facts that hold then: play begins with them


@dataclass(frozen=True)
class _Change:
    """A condition that is told and then revised."""

    stale: Atom
    present: Atom | None  # the goal's condition in its place; None: the stale one is taken back

    @property
    def text(self) -> str:
        if self.present is None:
            return wish(self.stale, "need not")
        return f"{wish(self.present).removesuffix('.')}, not {_marked(self.stale[-1])}."


def wish(atom: Atom, verb: str = "should") -> str:
    """A condition as it is asked for, or with "need not" taken back."""
    text = wording.sentence((atom[0], *map(_marked, atom[1:]))).strip().removesuffix(".")
    for said, wished in VERBS:
        if said in text:
            text = text.replace(said, f" {verb} {wished} ", 1)
            break
    else:
        text = f"it {verb} be that {text}"
    return f"{text[0].upper()}{text[1:]}."


def needed(problem: Problem) -> list[Atom]:
    """What stage 1 has to tell: the goal's conditions, and what the cocktails among them consist of."""
    wanted = {term for atom in problem.goal for term in atom[1:]}
    hidden = sorted(atom for atom in problem.init if atom[0] in wording.HIDDEN and atom[1] in wanted)
    return [*problem.goal, *hidden]


def tell(
    one: Puzzle, room: Room, rng: random.Random, revised: bool, asked: Collection[Shape], kind: str
) -> StagedRecord:
    """A problem as it is told; all choices come from `rng`.

    Args:
      room: has place for what is `needed`.
      revised: whether a condition changes, where there is place for it and another one to be told.
      asked: of the conditions that problems of its domain have.
    """
    gold = needed(one.problem)
    free = _unlike(gold, conditions(one, asked))
    change = _change(one, free, room.facts - len(gold), rng) if revised else None
    texts = {atom: _told(atom) for atom in gold}
    told = [(text, True) for text in rng.sample([*texts.values()], len(texts))]
    if change:
        stale = wish(change.stale)
        if change.present is None:
            first, second = sorted(rng.randint(0, len(told)) for _ in range(2))
            told[second:second] = [(change.text, False)]
            told[first:first] = [(stale, False)]
        else:
            at = told.index((texts[change.present], True))
            texts[change.present], told[at] = change.text, (change.text, True)
            told.insert(rng.randint(0, at), (stale, False))

    left = room.facts - len(told)
    path = walk(one.grounded, rng.randint(0, min(WALK, left)), rng)
    did, start = _seen(one.grounded, path)
    chatter = min(room.chatter, left - len(path))
    talk = _Talk(one, asked, gold + ([change.stale] if change else []), rng)
    others = [talk.other() for _ in range(left - len(path) - chatter)] + [_chatter(rng) for _ in range(chatter)]
    mixed = _mixed([told, [(text, False) for text in did], [(text, False) for text in others]], rng)
    later = [talk.later() for _ in range(room.distractors)]
    gold_texts = [texts[atom] for atom in gold]
    return StagedRecord(
        facts=[text for text, _ in mixed],
        is_gold=[is_gold for _, is_gold in mixed],
        gold=gold_texts,
        distractors=later,
        query=QUERY,
        answer="",
        key_words=key_words(one),
        keep=gold_texts,
        view=[],
        revisions=[(stale, change.text if change.present else "")] if change else [],
        fact_speakers=[0] * len(mixed),
        distractor_speakers=[0] * len(later),
        kind=kind,
        play=Play(one, path, start),
    )


def official(one: Puzzle, kind: str) -> StagedRecord:
    """A problem as it was published: nothing is told before its goal."""
    return StagedRecord(
        facts=[], is_gold=[], gold=[], distractors=[], query=one.goal, answer="", key_words=key_words(one), keep=[],
        view=[], revisions=[], fact_speakers=[], distractor_speakers=[], kind=kind,
        play=Play(one, (), one.grounded.init),
    )  # fmt: skip


def key_words(one: Puzzle) -> list[str]:
    """The objects that the goal is about."""
    return list(dict.fromkeys(term for atom in one.problem.goal for term in atom[1:]))


def walk(game: Grounded, steps: int, rng: random.Random) -> tuple[Operator, ...]:
    """At most `steps` actions from the start that can be taken. No state comes twice, and the goal is not reached."""
    state, path, visited = game.init, [], {game.init}
    for _ in range(steps):
        live = applicable(game, state)
        fresh = (op for op in rng.sample(live, len(live)) if after(op, state) not in visited)
        op = next((op for op in fresh if not solves(game, after(op, state))), None)
        if op is None:
            break
        state = after(op, state)
        path.append(op)
        visited.add(state)
    return tuple(path)


def applicable(game: Grounded, state: frozenset[int]) -> list[Operator]:
    """The actions that can be taken."""
    return [op for op in game.operators if op.positive <= state and op.negative.isdisjoint(state)]


def after(op: Operator, state: frozenset[int]) -> frozenset[int]:
    """The facts after an action."""
    return (state - op.delete) | op.add


def solves(game: Grounded, state: frozenset[int]) -> bool:
    """Whether the goal is reached."""
    return len(game.goal) == game.goals and game.goal <= state


def _seen(game: Grounded, path: Sequence[Operator]) -> tuple[list[str], frozenset[int]]:
    """Each action of a walk as it is told, with something that it makes true; and the facts that hold then."""
    told, state = [], game.init
    for op in path:
        new = after(op, state)
        did = wording.sentence((op.name, *op.arguments)).strip().removesuffix(".")
        seen = min((capital(game.facts[i]).strip() for i in new - state or new), key=lambda text: (len(text), text))
        told.append(f"{did[0].upper()}{did[1:]}. {seen}")
        state = new
    return told, state


class _Talk:
    """Messages that matter nothing. None can be taken for what was `told` to be done."""

    def __init__(self, one: Puzzle, asked: Collection[Shape], told: list[Atom], rng: random.Random):
        self.rng = rng
        start = [one.grounded.facts[i] for i in sorted(one.grounded.init)]
        recipes = [atom for atom in start if atom[0] in wording.HIDDEN]
        swapped = [(*a[:-1], b[-1]) for a in recipes for b in recipes if a[-1] != b[-1]]
        pools = [[_told(atom) for atom in _unlike(told, atoms)] for atoms in (conditions(one, asked), swapped)]
        self.elsewhere = [_Deck([f"In another task, {text[0].lower()}{text[1:]}" for text in pool], rng)
                          for pool in pools if pool]  # fmt: skip
        seen = [capital(atom).strip() for atom in _unlike(told, start) if atom[0] not in wording.HIDDEN]
        self.seen = _Deck(seen, rng)
        self.before = _Deck([f"{text.removesuffix('.').replace(' is ', ' was ', 1)} yesterday." for text in seen], rng)

    def other(self) -> str:
        """A message of stage 1: what another task asks for, or what there was to see at the start."""
        if self.elsewhere and self.rng.random() < 0.7:
            return self.rng.choice(self.elsewhere).draw()
        return self.seen.draw() if self.seen.texts else _chatter(self.rng)

    def later(self) -> str:
        """A message of stage 2: what another task asks for, what there was to see, small talk."""
        draw = self.rng.random()
        if draw < 0.5 and self.elsewhere:
            return self.rng.choice(self.elsewhere).draw()
        return self.before.draw() if draw < 0.75 and self.before.texts else _chatter(self.rng)


class _Deck:
    """Texts in a random order, each again only after all others."""

    def __init__(self, texts: list[str], rng: random.Random):
        self.texts, self.rng, self.left = sorted({*texts}), rng, []

    def draw(self) -> str:
        self.left = self.left or self.rng.sample(self.texts, len(self.texts))
        return self.left.pop()


def shape(one: Puzzle, atom: Atom) -> Shape:
    """What kind of condition it is: its predicate, and the types of its terms."""
    return (atom[0], *(" ".join(one.problem.objects[term]) for term in atom[1:]))


def conditions(one: Puzzle, asked: Collection[Shape]) -> list[Atom]:
    """What problems like this one may ask for."""
    return [f for f in one.grounded.facts if len({*f}) == len(f) and shape(one, f) in asked]


def _unlike(told: list[Atom], atoms: list[Atom]) -> list[Atom]:
    """Those that cannot be taken for what is told."""
    taken = {_names(atom) for atom in told}
    return [atom for atom in atoms if _names(atom) not in taken]


def _change(one: Puzzle, free: list[Atom], left: int, rng: random.Random) -> _Change | None:
    """A revision for which `left` messages more are enough, if there is one; free: conditions unlike the goal's."""
    ways = []
    if left >= 1:
        ways.append([_Change(f, g) for g in one.problem.goal for f in free if len(g) > 2 and f[:-1] == g[:-1]])
    if left >= 2:
        ways.append([_Change(atom, None) for atom in free])
    ways = [way for way in ways if way]
    return rng.choice(rng.choice(ways)) if ways else None


def _told(atom: Atom) -> str:
    """A condition, or a part of a recipe, as a message."""
    return capital(atom).strip() if atom[0] in wording.HIDDEN else wish(atom)


def _names(atom: Atom) -> tuple[str, ...]:
    """What makes its text differ from others: two with the same names may be taken for each other."""
    part = (atom[0],) if atom[0] in wording.HIDDEN else ()
    return (*part, *sorted(atom[1:]))


def _marked(term: str) -> str:
    """An object's name with a mark of a name in it: a digit, or a capital."""
    return term if any(c.isdigit() for c in term) else term.capitalize()


def _mixed(queues: list[list], rng: random.Random) -> list:
    """The items of all queues, those of each in their order."""
    order = [i for i, queue in enumerate(queues) for _ in queue]
    rng.shuffle(order)
    each = [iter(queue) for queue in queues]
    return [next(each[i]) for i in order]


def _chatter(rng: random.Random) -> str:
    return f"{' '.join(rng.choice(part) for part in CHATTER)}."
