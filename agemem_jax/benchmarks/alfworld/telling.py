"""How a household is told: a walk through it in stage 1, what is of no use in stage 2, the goal in stage 3 (host).

First the agent carries what the goal is about to places that nobody can guess, all that would do in place of it too,
and tells nothing of that. Then it looks into receptacles, and its sights are the messages. Where something told is to
change, it carries what the goal is about from where it was seen to another place, and tells that it has put it there.
In the end it goes to any place, and tells nothing of that.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agemem_jax.benchmarks.alfworld.expert import Situation, at_start
from agemem_jax.benchmarks.alfworld.games import Household
from agemem_jax.benchmarks.alfworld.play import NOWHERE, Verb
from agemem_jax.benchmarks.alfworld.texts import ANSWERS
from agemem_jax.benchmarks.alfworld.walk import Move, Walk, has_put, is_closed, kind_of, sight, wanted
from agemem_jax.data.staged import StagedRecord

TRIES = 8  # to find something that is short enough
MOST_GOLD = 2  # things that a goal is about: two of a kind, or one and a lamp
ELSEWHERE, FORMERLY = "In another room, ", "At first, "  # before what is no help, in stage 2
EMPTY_HANDS, NOTHING_HAPPENS = ANSWERS[Verb.INVENTORY][0], ANSWERS[Verb.NOTHING][0]
_NO_KEY_WORDS = {*"a an and at find in it look of on put some the them to two under with".split()}


@dataclass(frozen=True)
class Play:
    """What is played in stage 3."""

    game: Household
    now: Situation  # when it begins
    known: np.ndarray  # [R, O] bool: of what the goal is about, what stage 1 has told to be where
    walk: tuple[str, ...]  # the commands from the game's first situation to it


class Elsewhere:
    """Where things of a kind are in some households: what is told of other places."""

    def __init__(self, households: Sequence[Household]):
        self.households, self.places = households, defaultdict(list)  # kind: [(household, receptacle, object), ...]
        for i, game in enumerate(households):
            for r, o in zip(*np.nonzero(game.inside & game.reachable[:, None]), strict=True):
                self.places[kind_of(game.objects[o])].append((i, int(r), int(o)))

    def sight(self, kind: str, game: Household, rng: random.Random, size: Callable[[str], int], most: int) -> str:
        """A sight of a thing of a kind in another household, of at most `most` tokens; "" if none is found."""
        places = self.places.get(kind, [])
        for i, r, o in rng.sample(places, min(len(places), TRIES)):
            there = self.households[i]
            text, _ = told(there, r, [o], there.inside[r], size, most)
            if there.digest != game.digest and size(text) <= most:
                return text
        return ""


def told(
    game: Household, r: int, needed: Sequence[int], inside: np.ndarray, size: Callable[[str], int], most: int
) -> tuple[str, list[int]]:
    """A sight of the needed objects in a receptacle, and of as many others there as make at most `most` tokens.

    Where nothing is needed, of one of them at least: only what is empty is told to be.

    Returns (the sight, the objects in it).
    """
    things = sorted(needed) or np.flatnonzero(inside)[:1].tolist()
    for o in np.flatnonzero(inside).tolist():
        more = sorted({*things, o})
        if size(sight(game, r, more)) > most:
            break
        things = more
    return sight(game, r, things), things


def stages(
    game: Household, task, rng: random.Random, always: random.Random, size: Callable[[str], int], others: Elsewhere
) -> StagedRecord:
    """A household as it is told; `task` is config.task, `size` a text's tokens.

    Whether something told changes comes from `always`: it is the same whenever it is told.
    """
    most, walk = task.message_tokens, Walk(game, at_start(game))
    revise = always.random() < task.revised
    things = _needed(walk, rng)
    for o in things:
        _carry_away(walk, o, rng)
    where = _where(walk, things, rng)
    move = _move(walk, where, size, most, rng) if revise and len(where) < task.facts else None
    _gather(walk, things, move.target if move else rng.choice(list(where)))
    shown = {r: told(game, r, there, walk.inside[r], size, most) for r, there in where.items()}
    sights, known = {r: text for r, (text, _) in shown.items()}, np.zeros_like(game.inside)
    for r, (_, there) in shown.items():
        known[r, there] = wanted(game)[there]

    # Beside what matters the agent looks into other places, passes some by that are closed, and looks at its hands.
    room = task.facts - len(where) - (move is not None)
    free = game.reachable & ~(walk.inside & wanted(game)).any(1)
    if move:
        free[move.target] = False
    rest = np.flatnonzero(free).tolist()
    rng.shuffle(rest)
    chatter = min(task.chatter, room)
    idle = [r for r in rest if game.openable[r] and not walk.opened[r]][: max(0, chatter - 1)]
    visits = [r for r in rest if r not in idle][: max(0, room - chatter)]
    steps = [*((walk.look_into, r) for r in [*where, *visits]), *((walk.pass_by, r) for r in idle)]
    steps += [(walk.look_at_hands, NOWHERE)] * min(1, chatter)
    rng.shuffle(steps)
    if move:
        steps.insert(rng.randint(steps.index((walk.look_into, move.origin)) + 1, len(steps)), (walk.carry, move))

    facts = []
    for do, what in steps:
        do(what)
        if do == walk.carry:
            facts.append(has_put(game, move.thing, move.target))
            known[move.origin, move.thing], known[move.target, move.thing] = False, True
        elif do == walk.look_at_hands:
            facts.append(EMPTY_HANDS)
        elif do == walk.pass_by:
            facts.append(is_closed(game, what))
        else:
            facts.append(sights.get(what) or told(game, what, [], walk.inside[what], size, most)[0])
    walk.go(rng.choice(np.flatnonzero(game.reachable).tolist()))  # where it ends says nothing of where things are
    gold = [text for r, text in sights.items() if not move or r != move.origin]
    gold += [has_put(game, move.thing, move.target)] if move else []
    later = _later(walk, [sights[move.origin]] if move else [], task, rng, size, others)
    return StagedRecord(
        facts=facts,
        is_gold=[text in gold for text in facts],
        gold=gold,
        distractors=later,
        query=game.task,
        answer="",
        key_words=key_words(game.task),
        keep=gold,
        view=[],
        revisions=[(sights[move.origin], gold[-1])] if move else [],
        fact_speakers=[0] * len(facts),
        distractor_speakers=[0] * len(later),
        kind=game.kind,
        play=Play(game, walk.now, known, tuple(walk.commands)),
    )


def official(game: Household) -> StagedRecord:
    """A household as the benchmark plays it: from its first situation, with nothing told before."""
    nothing = dict(facts=[], is_gold=[], gold=[], distractors=[], keep=[], view=[], revisions=[], fact_speakers=[])
    play = Play(game, at_start(game), game.inside, ())
    return StagedRecord(
        **nothing, query=game.task, answer="", key_words=key_words(game.task), distractor_speakers=[], kind=game.kind,
        play=play,
    )  # fmt: skip


def key_words(task: str) -> list[str]:
    """The words of "Your task is to: ..." that name something."""
    words = re.findall(r"\w+", task.split(":", 1)[-1])
    return list(dict.fromkeys(word for word in words if word.lower() not in _NO_KEY_WORDS))


def _needed(walk: Walk, rng: random.Random) -> list[int]:
    """Objects that the goal can be reached with: as many as count and, where something has to be held, one to hold."""
    game, goal = walk.game, walk.game.goal
    there = walk.inside[game.reachable].any(0)

    def some(objects: np.ndarray, count: int) -> list[int]:
        found = np.flatnonzero(objects & there).tolist()
        rng.shuffle(found)
        # What lies in several places at once may be where the goal wants it before it is brought there.
        return sorted(found, key=lambda o: _origin(walk, o) == NOWHERE)[:count]

    return some(goal.objects, goal.count) + (some(goal.held, 1) if goal.held is not None else [])


def _origin(walk: Walk, o: int) -> int:
    """The one receptacle from which an object can be taken; NOWHERE if it is in none or in several."""
    places = np.flatnonzero(walk.inside[:, o])
    can = walk.game.portable[o] and len(places) == 1 and walk.game.reachable[places[0]]
    return int(places[0]) if can else NOWHERE


def _apart(walk: Walk, o: int) -> np.ndarray:
    """[R] bool where an object fits and nothing is that the goal is about, in places that the goal does not name."""
    game = walk.game
    free = game.reachable & ~(walk.inside & wanted(game)).any(1) & game.fits[:, o]
    return free if game.goal.is_here else free & ~game.goal.receptacles


def _carry_away(walk: Walk, o: int, rng: random.Random) -> None:
    """Carries an object to a place drawn by chance, if it can be."""
    origin, targets = _origin(walk, o), np.flatnonzero(_apart(walk, o)).tolist()
    if origin != NOWHERE and targets:
        walk.carry(Move(o, origin, rng.choice(targets)))


def _gather(walk: Walk, things: list[int], target: int) -> None:
    """Carries all that would do in place of `things` to where one of them is, or will be: nowhere else is any found."""
    game = walk.game
    for o in np.flatnonzero(wanted(game)).tolist():
        origin = _origin(walk, o)
        if o not in things and origin not in (NOWHERE, target) and game.fits[target, o]:
            walk.carry(Move(o, origin, target))


def _where(walk: Walk, things: list[int], rng: random.Random) -> dict[int, list[int]]:
    """{receptacle that can be reached: those of the objects that are there}, one place for each of them."""
    where, inside = defaultdict(list), walk.inside & walk.game.reachable[:, None]
    for o in things:
        where[rng.choice(np.flatnonzero(inside[:, o]).tolist())].append(o)
    return dict(where)


def _move(
    walk: Walk, where: dict[int, list[int]], size: Callable[[str], int], most: int, rng: random.Random
) -> Move | None:
    """What is carried from one of the places told to one that is not; None if nothing can be.

    It is all that its place has to do with the goal; the other one has another number, so that nobody takes what is
    told of the one for what is told of the other.
    """
    game, found = walk.game, []
    for r, (o, *more) in where.items():
        if not more and _origin(walk, o) == r and (walk.inside[r] & wanted(game)).sum() == 1:
            before = _numbers(told(game, r, [o], walk.inside[r], size, most)[0])
            targets = np.flatnonzero(_apart(walk, o)).tolist()
            found += [Move(o, r, t) for t in targets if _numbers(has_put(game, o, t)) != before]
    return rng.choice(found) if found else None


def _numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


def _later(
    walk: Walk, stale: list[str], task, rng: random.Random, size: Callable[[str], int], others: Elsewhere
) -> list[str]:
    """What stage 2 tells: of such things in other households, of what was so formerly, and talk of no use."""
    game = walk.game
    opened = np.flatnonzero(walk.opened & ~game.opened).tolist()
    former = [FORMERLY + _lower(text) for text in stale]
    former += [FORMERLY + _lower(is_closed(game, r)) for r in rng.sample(opened, len(opened))]
    former = [text for text in former if size(text) <= task.message_tokens]
    kinds = sorted({kind_of(game.objects[o]) for o in np.flatnonzero(wanted(game))})
    room, messages = task.message_tokens - size(ELSEWHERE.strip()), []
    for i in range(task.distractors):
        if i % 3 == 1:
            messages.append(rng.choice((EMPTY_HANDS, NOTHING_HAPPENS)))
        elif i % 3 == 2 and former:
            messages.append(former.pop(0))
        else:
            seen = others.sight(rng.choice(kinds), game, rng, size, room)
            messages.append(ELSEWHERE + _lower(seen) if seen else NOTHING_HAPPENS)
    return messages


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
