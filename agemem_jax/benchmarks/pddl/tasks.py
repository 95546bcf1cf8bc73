"""PDDL's tasks: problems that are generated or read, how they are told, and what the engine plays.

What the engine plays: its sizes (`fit`), and arrays (`shared`, `games`).
"""

import random
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import jax
import numpy as np

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks.pddl import expert, generators, telling, wording
from agemem_jax.benchmarks.pddl.environment import MOST_TERMS, NO_OBJECT, Game, Pddl, Piece, Shared, code_of
from agemem_jax.benchmarks.pddl.puzzles import Puzzle, capital, puzzle, read
from agemem_jax.benchmarks.worlds import Demonstrator
from agemem_jax.config import refuse
from agemem_jax.data.pddl import Operator, Problem
from agemem_jax.data.staged import SPLITS, StagedRecord
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import strips
from agemem_jax.envs.text import key_of, phrase_table, pool, word_table
from agemem_jax.errors import InputError
from agemem_jax.tools.layout import Language
from agemem_jax.types import TOOL_NAMES

CACHED = 4096  # games whose arrays are kept
SHARES = 10  # so many parts of all generated problems: two are the test split's, one is the validation split's


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Problems and their engine. Raises InputError and ConfigError as `PddlTasks`."""
    tasks = PddlTasks(config, tokenizer)
    return Benchmark(tasks, tasks.engine, shared(tokenizer), language(tasks.puzzles))


def language(puzzles: Iterable[Puzzle]) -> Language:
    """Every action of the problems, as its name and its objects, and both questions."""
    slots: dict[tuple[str, int], list[dict[str, None]]] = {}
    for op in (op for one in puzzles for op in one.grounded.operators):
        names = slots.setdefault((op.name, len(op.arguments)), [{} for _ in op.arguments])
        for seen, argument in zip(names, op.arguments, strict=True):
            seen[f" {argument}"] = None
    actions = [((f" {name}",), *map(tuple, seen)) for (name, _), seen in sorted(slots.items())]
    return *actions, ((" check valid actions", " look around"),)


class PddlTasks:
    """The problems of each split, and how they are told and played (data/batches.py: Tasks).

    A split with a folder of its own (`task.path` for training, `task.validation_path`, `task.test_path`) is read from
    it: folders of `task.parts` (all, if none is named) with domain.pddl and problems. Without one, validation and test
    problems are the last of each part of `task.path`, as their fractions say. Without that either they are generated,
    of all domains of generators.DOMAINS or those of `task.parts` in turn, of levels `task.lowest_level` to
    `task.highest_level`; none tells more than the store and stage 1 have room for.

    No problem of a split is one of a later split in other names (generators.canonical). Among those that are read the
    earlier one is left out, and a warning counts them.

    Raises InputError if a file cannot be used or a split would be empty; ConfigError if a part is unknown, levels are
    the wrong way round, or a problem has to tell more than `task.facts` messages hold.
    """

    made_for = dict.fromkeys(TOOL_NAMES, ())
    scores = {"success": "success", "progress": "progress"}
    demonstrator, lessons = Demonstrator, None
    limits = {"first observations": ("task.seen_tokens", True)}

    def __init__(self, config, tokenizer: Tokenizer):
        self.config, task = config, config.task
        self.room = telling.Room(task.facts, task.chatter, task.distractors)
        found = self._read()
        self.kinds = tuple(dict.fromkeys(kind for split in SPLITS for kind, _ in found[split]))
        self._check(found)
        self.splits = {split: [_record(*pair) for pair in found[split]] for split in SPLITS}
        self._puzzles = {one.name: one for split in SPLITS for _, one in found[split]}
        every = self.puzzles = [*self._puzzles.values()]
        self.most_gold = max(len(telling.needed(one.problem)) for one in every)
        self.asked = {
            kind: frozenset(
                telling.shape(one, atom) for its, one in found["train"] if its == kind for atom in one.problem.goal
            )
            for kind in self.kinds
        }
        self.engine = fit(every, tokenizer, task.seen_tokens, config.rollout.action_tokens)
        self._spelt = Spelling(tokenizer)
        self._hidden = () if task.official else wording.HIDDEN
        self._arrays = lru_cache(CACHED)(
            lambda name: _game(self.engine, self._puzzles[name], self._spelt, self._hidden)
        )

    def tell(self, record: dict, rng: random.Random, always: random.Random) -> StagedRecord:
        """A problem as it is told in an epoch; its goal is the same in every epoch."""
        one, kind = self._puzzles[record["name"]], record["kind"]
        if self.config.task.official:
            return telling.official(one, kind)
        revised = always.random() < self.config.task.revised
        return telling.tell(one, self.room, rng, revised, self.asked[kind], kind)

    def game(self, staged: StagedRecord) -> Game:
        """The game from where the walk has left it."""
        game = self._arrays(staged.play.puzzle.name)
        init = strips.rows_of([staged.play.start], 1, self.engine.sizes.words)[0]
        return game.replace(strips=game.strips.replace(init=init))

    def sizes(self, record: dict, staged: StagedRecord) -> dict[str, int]:
        """What `limits` are about."""
        facts = staged.play.puzzle.grounded.facts
        told = [capital(facts[i]) for i in sorted(staged.play.start) if facts[i][0] not in self._hidden]
        return {"first observations": sum(len(self._spelt.encode(f" {text}")) for text in told)}

    def solve(self, staged: StagedRecord, rng: random.Random, knows: bool) -> list[str] | None:
        """Actions that win from where play begins, no more than stage 3 and an episode have, or None.

        knows: as the expert does. Without, as one who brings about one after the other of what is commonly asked, and
        has luck; the recipes are known to both.
        """
        play, turns = staged.play, min(self.config.rollout.stage3_turns, self.engine.limit)
        game = play.puzzle.grounded
        if knows:
            path = expert.plan(game, play.start)
        else:
            atoms = {*telling.conditions(play.puzzle, self.asked[staged.kind])}
            path = expert.guess(game, play.start, [i for i, a in enumerate(game.facts) if a in atoms], turns, rng)
        if path is None or len(path) > turns:
            return None
        return [said(op) for op in path]

    def slip(self, staged: StagedRecord, plan: list[str], step: int) -> str | None:
        """The next action but one, or the last one, if it cannot be taken."""
        game, state = staged.play.puzzle.grounded, staged.play.start
        planned = {said(op): op for op in game.operators if said(op) in plan}
        for action in plan[:step]:
            state = telling.after(planned[action], state)
        live = telling.applicable(game, state)
        near = plan[step + 1 : step + 2] + plan[max(0, step - 1) : step]
        return next((action for action in near if planned[action] not in live), None)

    def _read(self) -> dict[str, list[tuple[str, Puzzle]]]:
        """(kind, problem) of each split."""
        task, found = self.config.task, {}
        if task.path:
            found = {split: [] for split in SPLITS}
            own = {"test": task.test_path, "validation": task.validation_path}
            for kind, problems in _folders(task.path, "task.path", task.parts).items():
                for split, path in own.items():
                    cut = len(problems) - round(len(problems) * (0 if path else task[f"{split}_fraction"]))
                    problems, its = problems[:cut], problems[cut:]
                    found[split] += [(kind, one) for one in its]
                found["train"] += [(kind, one) for one in problems]
        for split in ("validation", "test"):
            if path := task[f"{split}_path"]:
                folders = _folders(path, f"task.{split}_path", task.parts)
                found[split] = [(kind, one) for kind, problems in folders.items() for one in problems]
        later: set[str] = set()
        for split in reversed(SPLITS):
            if split not in found:
                continue
            forms = [generators.canonical(one.problem) for _, one in found[split]]
            kept = [pair for pair, form in zip(found[split], forms, strict=True) if form not in later]
            if out := len(forms) - len(kept):
                warnings.warn(f"left out {out} of {len(forms)} {split} problems that a later split has too (train, "
                              "validation, test)", stacklevel=5)  # fmt: skip
            later, found[split] = later | {*forms}, kept
        for split in SPLITS:
            if split not in found:
                found[split] = self._generate(split, later)
        return found

    def _generate(self, split: str, avoid: Collection[str]) -> list[tuple[str, Puzzle]]:
        task, made = self.config.task, []
        for part in task.parts:
            if part not in generators.DOMAINS:
                refuse("task.parts", tuple(task.parts), f"no {part!r} problems are generated; "
                       f"there are {', '.join(generators.DOMAINS)}")  # fmt: skip
        if task.lowest_level > task.highest_level:
            refuse("task.lowest_level", task.lowest_level, f"above task.highest_level = {task.highest_level}; lower it")
        parts, forms = task.parts or generators.DOMAINS, _Reserved(split, avoid)
        most = min(self.config.store.entries, task.facts)
        for i in range(task[f"{split}_size"]):
            kind, rng = parts[i % len(parts)], random.Random(f"{task.seed}/{split}/{i}")
            problem = _fitting(kind, rng, range(task.lowest_level, task.highest_level + 1), most, forms)
            made.append((kind, puzzle(generators.domain(kind), problem, f"generated {split} problem {i}")))
        return made

    def _check(self, found: dict[str, list[tuple[str, Puzzle]]]) -> None:
        """That each split has a problem, and stage 1 room for what it has to tell."""
        task = self.config.task
        needed = ("train", "test", "validation") if self.config.train.eval_every else ("train", "test")
        if not all(found[split] for split in needed):
            counts = ", ".join(f"{len(found[split])} {split}" for split in SPLITS)
            raise InputError(
                f"task: {counts} problems; training and test need at least one each, and so does validation with "
                f"train.eval_every (task.test_fraction = {task.test_fraction}, task.validation_fraction = "
                f"{task.validation_fraction} of each domain of task.path = {task.path!r}, where a split has no folder "
                "of its own)"
            )
        for _, one in (pair for split in SPLITS for pair in found[split]):
            need = len(telling.needed(one.problem))
            if need > task.facts and not task.official:
                refuse("task.facts", task.facts, f"{one.name} has {need} conditions to tell, one a message; set >= "
                       f"{need}, or task.official")  # fmt: skip


class _Reserved:
    """Forms of problems that a split must not have: of other splits, and given ones."""

    def __init__(self, split: str, given: Collection[str]):
        self.split, self.given = split, given

    def __contains__(self, form: str) -> bool:
        share = int(form[:8], 16) % SHARES
        return form in self.given or ("test", "test", "validation", *["train"] * SHARES)[share] != self.split


def _fitting(kind: str, rng: random.Random, levels: Sequence[int], most: int, avoid: _Reserved) -> Problem:
    """A fresh problem of one of the levels, with at most so many things to tell.

    Raises InputError if there is none.
    """
    levels = [*levels]
    for _ in range(generators.TRIES):
        level = rng.choice(levels)
        try:
            problem = generators.generate(kind, level, rng.getrandbits(32), avoid)
        except InputError:  # a low level may have too few problems for all splits
            levels.remove(level)
            if not levels:
                break
        else:
            if len(telling.needed(problem)) <= most:
                return problem
    raise InputError(
        f"task: no {kind} problem for the {avoid.split} split was found that tells at most {most} conditions (the "
        "smaller of task.facts and store.entries); raise these or task.highest_level"
    )


def said(action: Operator) -> str:
    """An action, as it is written."""
    return " ".join((action.name, *action.arguments))


def _folders(path: str, field: str, parts: Sequence[str]) -> dict[str, list[Puzzle]]:
    """The problems of each folder in a folder. Raises InputError and ConfigError as PddlTasks."""
    there = sorted(file.parent.name for file in Path(path).glob("*/domain.pddl"))
    if not there:
        raise InputError(f"{field}: {path!r} has no folder with a domain.pddl in it; give AgentBoard's pddl folder")
    for part in parts:
        if part not in there:
            refuse("task.parts", tuple(parts), f"{field} = {path!r} has no {part!r}; it has {', '.join(there)}")
    return {part: read(Path(path) / part) for part in parts or there}


def _record(kind: str, one: Puzzle) -> dict:
    """What a problem is, for a run's identity."""
    problem = one.problem
    return {
        "name": one.name, "kind": kind, "objects": {name: list(kinds) for name, kinds in problem.objects.items()},
        "init": sorted(map(list, problem.init)), "goal": [list(atom) for atom in problem.goal],
    }  # fmt: skip


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
    """The arrays of games [B, ...] as they were published, on the host.

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


def _game(engine: Pddl, one: Puzzle, spelt: Spelling, hidden: Collection[str] = ()) -> Game:
    """The arrays of a game without the rows axis; facts of predicates `hidden` are not told in it."""
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
    codes = np.full((actions, 2), 0xFFFFFFFF, np.uint32)  # no action's: its verb would be the last of 256
    codes[: len(verb)] = code_of(verb, objects)
    order = np.lexsort((codes[:, 1], codes[:, 0])).astype(np.int32)
    fill = lambda values, size, dtype: np.pad(  # noqa: E731
        np.array(values, dtype), [(0, size - len(values))] + [(0, 0)] * (np.ndim(values) - 1)
    )
    return Game(
        strips=table,
        texts=pool(texts, len(Piece) + 2 * facts + actions, engine.text_tokens, engine.alphabet),
        letters=fill([list(text.ljust(engine.letters, b"\0")) for text in letters], engine.alphabet, np.uint8),
        code=codes[order],
        coded=order,
        verb_key=fill([key_of(name) for name, _ in verbs], engine.verbs, np.uint32),
        verb_terms=fill([number for _, number in verbs], engine.verbs, np.int32),
        verb_actions=strips.rows_of(
            [frozenset(np.flatnonzero(verb == i).tolist()) for i in range(len(verbs))],
            engine.verbs,
            -(-actions // strips.BITS),
        ),
        name_key=fill([key_of(name) for name in grounded.objects], engine.objects, np.uint32),
        tells_new=np.bool_(one.tells_new),
        told=strips.rows_of(
            [frozenset(i for i, atom in enumerate(grounded.facts) if atom[0] not in hidden)], 1, engine.sizes.words
        )[0],
    )


def _verbs(one: Puzzle) -> list[tuple[str, int]]:
    """Kinds of action, as (name, number of objects)."""
    return sorted((schema.name, len(schema.parameters)) for schema in one.domain.schemas)
