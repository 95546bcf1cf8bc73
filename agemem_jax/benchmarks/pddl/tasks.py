"""Reads problems, and makes of them what the engine plays: its sizes (`fit`), and arrays (`wording_of`, `games`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from agemem_jax.benchmarks.pddl import wording
from agemem_jax.benchmarks.pddl.environment import MOST_TERMS, NO_OBJECT, Form, Game, Pddl, Piece, Shared, code_of
from agemem_jax.data.pddl import Domain, Grounded, Problem, ground, read_domain, read_problem
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import strips
from agemem_jax.envs.text import WORD, key_of, phrase_table, word_table
from agemem_jax.errors import InputError
from agemem_jax.types import PAD_ID, Text


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
    order = sorted(range(len(grounded.facts)), key=lambda i: (_capital(grounded.facts[i]), grounded.facts[i]))
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


def fit(
    puzzles: Sequence[Puzzle], tokenizer: Tokenizer, seen_tokens: int, action_tokens: int, listed: int = 96
) -> Pddl:
    """The engine whose sizes hold all these games."""
    names = [name for one in puzzles for name in one.grounded.objects]
    return Pddl(
        sizes=strips.sizes_for([one.grounded for one in puzzles]),
        objects=max(len(one.grounded.objects) for one in puzzles),
        verbs=max(len(_verbs(one)) for one in puzzles),
        terms=max(len(terms) for one in puzzles for _, terms in _atoms(one)),
        name_tokens=max(len(ids) for name in {*names} for ids in _name_pieces(name, tokenizer)),
        name_bytes=max(len(name.encode()) for name in names),
        listed=listed,
        seen_tokens=seen_tokens,
        action_tokens=action_tokens,
    )


def wording_of(engine: Pddl, puzzles: Sequence[Puzzle], tokenizer: Tokenizer) -> Shared:
    """The tables of a vocabulary and of all sentences of these games, on the host."""
    token_bytes = tokenizer.token_bytes()
    kinds = _sentences(puzzles)
    pool = {"": Piece.NOTHING, wording.VALID: Piece.VALID, wording.CHECK: Piece.CHECK,
            wording.CHECK + wording.LOOK: Piece.CHECK_OR_LOOK, wording.NO_EFFECT: Piece.NO_EFFECT,
            wording.UNKNOWN: Piece.UNKNOWN, wording.SATISFIED: Piece.SATISFIED}  # fmt: skip
    piece = lambda text: pool.setdefault(text, len(pool))  # noqa: E731
    size = len(kinds)
    between = np.zeros((size, engine.terms + 1), np.int16)
    opening, names, begins = np.zeros(size, np.int16), np.zeros(size, np.int8), np.zeros(size, bool)
    verb, terms = np.zeros((size, 2), np.uint32), np.zeros(size, np.int8)
    for i, (is_action, name, number) in enumerate(kinds):
        *before, last = wording.format_of(name, number).split("{}")
        parts = [part.removesuffix(" ") for part in before] + [last]  # the space is the name's
        if is_action:
            parts[-1] += ","
            verb[i], terms[i] = key_of(name), number
        else:
            parts = [parts[0].capitalize(), *(part.lower() for part in parts[1:])]
            begins[i] = not parts[0]
        opening[i] = piece(parts[0])
        parts[0] = parts[0] and " " + parts[0]
        ids = [piece(part) for part in parts]
        between[i, : len(ids) - 1], between[i, -1] = ids[:-1], ids[-1]
        names[i] = len(before)
    return Shared(
        words=word_table(token_bytes),
        check=phrase_table(token_bytes, "check"),
        look=phrase_table(token_bytes, "look around"),
        pool=_padded([tokenizer.encode(text) if text else [] for text in pool]),
        between=between,
        opening=opening,
        names=names,
        begins=begins,
        verb=verb,
        terms=terms,
        says=tuple((name, wording.format_of(name, number)) for _, name, number in kinds),
    )


def games(
    engine: Pddl, everything: Sequence[Puzzle], chosen: Sequence[Puzzle], tokenizer: Tokenizer
) -> Game:
    """The arrays of the chosen games [B, ...], on the host; `everything` is what `wording_of` was given.

    Raises:
      InputError: a game exceeds the engine's sizes.
    """
    number = {kind: i for i, kind in enumerate(_sentences(everything))}
    rows = [_game(engine, number, one, tokenizer) for one in chosen]
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def _game(engine: Pddl, number: dict, one: Puzzle, tokenizer: Tokenizer) -> Game:
    grounded, verbs = one.grounded, _verbs(one)
    room = {
        "objects": (len(grounded.objects), engine.objects),
        "kinds of action": (len(verbs), engine.verbs),
        "objects of a fact or an action": (max(len(terms) for _, terms in _atoms(one)), engine.terms),
    }
    for what, (has, most) in room.items():
        if has > most:
            raise InputError(f"{one.name} has {has} {what}, more than the {most} there is room for; enlarge the sizes")
    facts, actions = engine.sizes.words * strips.BITS, engine.sizes.operators
    place = {name: i for i, name in enumerate(grounded.objects)}
    sentence = np.zeros(facts + actions, np.int16)
    objects = np.full((facts + actions, engine.terms), NO_OBJECT, np.uint8)
    atoms = [(i, False, atom) for i, atom in enumerate(grounded.facts)]
    atoms += [(facts + i, True, (op.name, *op.arguments)) for i, op in enumerate(grounded.operators)]
    for i, is_action, (name, *terms) in atoms:
        sentence[i] = number[is_action, name, len(terms)]
        objects[i, : len(terms)] = [place[term] for term in terms]
    verb = np.array([verbs.index((op.name, len(op.arguments))) for op in grounded.operators], np.int64)
    of_actions = np.full((len(verb), MOST_TERMS), NO_OBJECT)
    of_actions[:, : engine.terms] = objects[facts : facts + len(verb)]
    code = np.zeros((actions, 2), np.uint32)
    code[: len(verb)] = code_of(verb, of_actions)
    spelling = np.zeros((engine.objects, engine.name_bytes), np.uint8)
    name_key = np.zeros((engine.objects, 2), np.uint32)
    pieces: list[list[int]] = []
    for i, name in enumerate(grounded.objects):
        data = name.encode()
        spelling[i, : len(data)], name_key[i] = list(data), key_of(name)
        pieces += _name_pieces(name, tokenizer)
    pieces += [[]] * (engine.objects * len(Form) - len(pieces))
    verb_sentences = [number[True, *kind] for kind in verbs]
    return Game(
        strips=strips.tables(grounded, engine.sizes, one.name),
        sentence=sentence,
        objects=objects,
        code=code,
        verbs=np.array(verb_sentences + verb_sentences[-1:] * (engine.verbs - len(verbs)), np.int16),
        names=_padded(pieces, engine.name_tokens),
        name_key=name_key,
        spelling=spelling,
        tells_new=np.bool_(one.tells_new),
    )


def _atoms(one: Puzzle) -> list[tuple[str, tuple[str, ...]]]:
    """Facts and actions."""
    return [(atom[0], atom[1:]) for atom in one.grounded.facts] + [
        (op.name, op.arguments) for op in one.grounded.operators
    ]


def _verbs(one: Puzzle) -> list[tuple[str, int]]:
    """Kinds of action, as (name, number of objects)."""
    return sorted((schema.name, len(schema.parameters)) for schema in one.domain.schemas)


def _sentences(puzzles: Sequence[Puzzle]) -> list[tuple[bool, str, int]]:
    """What has a sentence: (whether it is an action, name, number of objects), of all domains."""
    kinds = set()
    for one in puzzles:
        kinds |= {(True, *verb) for verb in _verbs(one)}
        kinds |= {(False, atom[0], len(atom) - 1) for atom in one.grounded.facts}
    return sorted(kinds)


def _name_pieces(name: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of an object's name in each Form."""
    return [tokenizer.encode(text) for text in (f" {name}", f" {name.capitalize()}", name.capitalize())]


def _padded(rows: list[list[int]], width: int | None = None) -> Text:
    width = max(map(len, rows)) if width is None else width
    tokens = np.full((len(rows), width), PAD_ID, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Text(tokens, np.array([len(ids) for ids in rows], np.int32))


def _capital(atom) -> str:
    return wording.sentence(atom).capitalize()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); give AgentBoard's pddl folder") from error
