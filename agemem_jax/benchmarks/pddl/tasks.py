"""Reads problems, and makes of them what the engine plays: its sizes (`fit`), and arrays (`shared`, `games`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jax
import numpy as np

from agemem_jax.benchmarks.pddl import wording
from agemem_jax.benchmarks.pddl.environment import MOST_TERMS, NO_OBJECT, Game, Pddl, Piece, Shared, code_of
from agemem_jax.data.pddl import Domain, Grounded, Problem, ground, read_domain, read_problem
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import strips
from agemem_jax.envs.text import WORD, key_of, phrase_table, pool, word_table
from agemem_jax.errors import InputError


def fit(
    puzzles: Sequence[Puzzle], tokenizer: Tokenizer, seen_tokens: int, action_tokens: int, listed: int = 96
) -> Pddl:
    """The engine whose sizes hold all these games."""
    spelt = Spelling(tokenizer)
    games_, token_bytes = [one.grounded for one in puzzles], tokenizer.token_bytes()
    texts = [[token for text in spelt.of(one) for token in text] for one in puzzles]
    return Pddl(
        sizes=strips.sizes_for(games_),
        objects=max(len(game.objects) for game in games_),
        verbs=max(len(_verbs(one)) for one in puzzles),
        text_tokens=max(map(len, texts)),
        alphabet=max(len({*tokens}) for tokens in texts),
        letters=max(len(token_bytes[token] or b"") for tokens in texts for token in {*tokens}),
        listed=listed,
        seen_tokens=seen_tokens,
        action_tokens=action_tokens,
    )


def shared(tokenizer: Tokenizer) -> Shared:
    """The tables of a vocabulary, on the host."""
    token_bytes = tokenizer.token_bytes()
    return Shared(word_table(token_bytes), *(phrase_table(token_bytes, said) for said in ("check", "look around")))


def games(engine: Pddl, puzzles: Sequence[Puzzle], tokenizer: Tokenizer) -> Game:
    """The arrays of games [B, ...], on the host.

    Raises:
      InputError: a game exceeds the engine's sizes.
    """
    spelt = Spelling(tokenizer)
    return jax.tree.map(lambda *x: np.stack(x), *(_game(engine, one, spelt) for one in puzzles))


class Spelling:
    """Texts as tokens, each made once."""

    def __init__(self, tokenizer: Tokenizer):
        self.encode = cache(tokenizer.encode)
        self.token_bytes = tokenizer.token_bytes()

    def of(self, one: Puzzle, facts: int | None = None) -> list[list[int]]:
        """All texts of a game, in the order of `Game.texts`; its facts are filled up with empty ones."""
        told = [capital(atom) for atom in one.grounded.facts]
        more = [""] * (0 if facts is None else facts - len(told))
        pieces = {Piece.VALID: wording.VALID, Piece.CHECK: wording.CHECK, Piece.UNKNOWN: wording.UNKNOWN,
                  Piece.CHECK_OR_LOOK: wording.CHECK + wording.LOOK, Piece.NO_EFFECT: wording.NO_EFFECT,
                  Piece.SATISFIED: wording.SATISFIED}  # fmt: skip
        actions = [wording.sentence((op.name, *op.arguments)) for op in one.grounded.operators]
        texts = [*(pieces.get(piece, "") for piece in Piece), *(f" {text}" for text in told), *more, *told, *more]
        return [self.encode(text) if text else [] for text in [*texts, *(f" {text}," for text in actions)]]


def _game(engine: Pddl, one: Puzzle, spelt: Spelling) -> Game:
    grounded, verbs = one.grounded, _verbs(one)
    facts, actions = engine.sizes.words * strips.BITS, engine.sizes.operators
    table = strips.tables(grounded, engine.sizes, one.name)
    texts = spelt.of(one, facts)
    tokens = [token for text in texts for token in text]
    letters = [spelt.token_bytes[token] or b"" for token in sorted({*tokens})]
    for what, has, most in (
        ("objects", len(grounded.objects), engine.objects),
        ("kinds of action", len(verbs), engine.verbs),
        ("objects of an action", max((number for _, number in verbs), default=0), MOST_TERMS),
        ("tokens of text", len(tokens), engine.text_tokens),
        ("different tokens", len(letters), engine.alphabet),
        ("bytes of a token", max(map(len, letters)), engine.letters),
    ):
        if has > most:
            raise InputError(f"{one.name} has {has} {what}, more than the {most} there is room for; enlarge the sizes")
    place = {name: i for i, name in enumerate(grounded.objects)}
    verb = np.array([verbs.index((op.name, len(op.arguments))) for op in grounded.operators], np.int64)
    objects = np.full((len(verb), MOST_TERMS), NO_OBJECT)
    for row, op in zip(objects, grounded.operators, strict=True):
        row[: len(op.arguments)] = [place[name] for name in op.arguments]
    fill = lambda values, size, dtype: np.pad(  # noqa: E731
        np.array(values, dtype), [(0, size - len(values))] + [(0, 0)] * (np.ndim(values) - 1)
    )
    return Game(
        strips=table,
        texts=pool(texts, len(Piece) + 2 * facts + actions, engine.text_tokens, engine.alphabet),
        letters=fill([list(text.ljust(engine.letters, b"\0")) for text in letters], engine.alphabet, np.uint8),
        code=fill(code_of(verb, objects), actions, np.uint32),
        verb_key=fill([key_of(name) for name, _ in verbs], engine.verbs, np.uint32),
        verb_terms=fill([number for _, number in verbs], engine.verbs, np.int32),
        verb_actions=strips.rows_of(
            [frozenset(np.flatnonzero(verb == i).tolist()) for i in range(len(verbs))],
            engine.verbs,
            -(-actions // strips.BITS),
        ),
        name_key=fill([key_of(name) for name in grounded.objects], engine.objects, np.uint32),
        tells_new=np.bool_(one.tells_new),
    )


def _verbs(one: Puzzle) -> list[tuple[str, int]]:
    """Kinds of action, as (name, number of objects)."""
    return sorted((schema.name, len(schema.parameters)) for schema in one.domain.schemas)
