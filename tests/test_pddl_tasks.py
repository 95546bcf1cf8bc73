"""PDDL's tasks: what is told of a problem, from where it is played, which problems are in which split."""

import dataclasses
import os
import random
import re
import warnings
from collections import Counter
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vocabularies
from test_action_language import says

from agemem_jax.benchmarks import load
from agemem_jax.benchmarks.pddl import expert, generators, puzzles, telling, wording
from agemem_jax.benchmarks.pddl.tasks import shared
from agemem_jax.config import ConfigError, check_fields, validate
from agemem_jax.data.batches import TaskSource, pad_texts, stack
from agemem_jax.data.pddl import Problem
from agemem_jax.data.staged import REVISIONS, SPLITS
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import scoring
from agemem_jax.envs.names import is_name, name_table
from agemem_jax.errors import InputError
from agemem_jax.types import TOOL_NAMES, Text
from configs import base
from configs import pddl as config_file

DATA = Path(os.environ.get("AGEMEM_DATA", "/nowhere")) / "pddl"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="AGEMEM_DATA names no folder that holds pddl")
RECORDS = 24


def config(**changes):
    c = config_file.get_config("tiny")
    c.task.train_size, c.task.validation_size, c.task.test_size, c.train.eval_tasks = RECORDS, 4, 8, 4
    c.task.revised = 0.5
    c.task.seen_tokens, c.task.message_tokens, c.store.entry_tokens = 1200, 96, 64  # of BPE's tokens
    c.rollout.action_tokens = 64
    c.rollout.stage3_turns = 20
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = tuple(form.format(*"abcdefg") for form in wording.FORMATS.values())
    return Tokenizer.load(vocabularies.write_bpe(tmp_path_factory.mktemp("bpe") / "t", texts=texts))


@pytest.fixture(scope="module")
def source(tokenizer) -> TaskSource:
    c = config()
    return TaskSource(c, tokenizer, load(c, tokenizer).tasks)


@pytest.fixture(scope="module")
def staged(source) -> list:
    """Every training record, as it is told in three epochs."""
    return [source.staged(index, epoch) for index in range(RECORDS) for epoch in range(3)]


def named(text: str) -> Counter:
    """The names in a text, as envs/names.py compares them."""
    return Counter(word.casefold() for word in re.findall(r"[^\W_]+", text) if is_name(word))


# --- What is told --------------------------------------------------------------------------------------------------


def test_wishes_are_worded_as_the_facts_are():
    assert telling.wish(("at", "ball1", "roomb")) == "Ball1 should be at Roomb."
    assert telling.wish(("on", "b1", "b2")) == "B1 should be on b2."
    assert telling.wish(("contains", "shot1", "cocktail2")) == "Shot1 should contain cocktail2."
    assert telling.wish(("in", "wrench", "boot"), "need not") == "Wrench need not be in Boot."
    assert telling.wish(("tight", "nuts1", "the-hub1")) == "The nut nuts1 on the hub the-hub1 should be tight."
    assert telling.wish(("have", "jack")) == "You should have Jack."
    assert telling.wish(("handempty", "left")) == "It should be that handempty Left."


def test_goal_and_recipes_are_told_one_a_message_and_not_asked(source, staged):
    for one in staged:
        problem = one.play.puzzle.problem
        told = [text for text, is_gold in zip(one.facts, one.is_gold, strict=True) if is_gold]
        assert sorted(told) == sorted(one.gold) and one.keep == one.gold and len(told) <= source.max_gold
        goal = {telling.wish(atom) for atom in problem.goal}
        changed = {present for _, present in one.revisions if present}
        assert len(goal - {*told}) == len(changed) and changed <= {*told}
        wanted = {atom[-1] for atom in problem.goal if atom[-1].startswith("cocktail")}
        recipes = [text for text in told if " part" in text]
        assert len(recipes) == 2 * len(wanted) and all(text.split()[0].lower() in wanted for text in recipes)
        assert not named(one.query) and one.answer == "" and problem.domain == generators.domain(one.kind).name
        assert {*one.key_words} == {term for atom in problem.goal for term in atom[1:]}
        task = source.config.task
        assert len(one.facts) == task.facts and len(one.distractors) == task.distractors
        assert sum(text.split()[0] in ("we", "they", "you", "my", "the") for text in one.facts) <= task.chatter


def test_revisions_come_later_and_leave_the_goal(staged):
    kinds = Counter()
    for one in staged:
        assert len(one.revisions) <= min(1, REVISIONS)
        for stale, present in one.revisions:
            later = present or stale.replace("should", "need not")
            assert one.facts.index(stale) < one.facts.index(later)
            assert stale not in one.gold and stale not in {telling.wish(a) for a in one.play.puzzle.problem.goal}
            assert (present in one.gold) == bool(present)
            kinds["changed" if present else "taken back"] += 1
    assert min(kinds["changed"], kinds["taken back"]) > 5 and 0.25 < sum(kinds.values()) / len(staged) < 0.75


def test_no_other_message_can_be_taken_for_what_is_worth_keeping(source, staged):
    """As rewards compare texts: an entry holds a text if words overlap and names are the same."""
    table = jax.tree.map(jnp.asarray, name_table(source.tokenizer.token_bytes()))
    weight = jnp.array([float(any(chr(b).isalnum() for b in piece or b"")) for piece in source.tokenizer.token_bytes()])
    holds = jax.jit(lambda entry, fact: scoring.holds(entry, fact, weight, table, 0.6))
    told, gold = [], []
    for one in staged:
        texts = one.facts + one.distractors
        told.append(pad_texts([source.encode(text) for text in texts], len(texts), 96))
        gold.append(pad_texts([source.encode(text) for text in one.gold], source.max_gold, 96))
    found = np.asarray(holds(*(Text(*map(jnp.asarray, (x.tokens, x.length))) for x in map(stack, (told, gold)))))
    for one, held in zip(staged, found, strict=True):
        for i, text in enumerate(one.facts + one.distractors):
            assert held[i].nonzero()[0].tolist() == ([one.gold.index(text)] if text in one.gold else []), text


def test_telling_is_a_function_of_its_arguments(source, staged):
    again = [source.staged(index, epoch) for index in range(RECORDS) for epoch in range(3)]
    assert [one.facts + one.distractors for one in again] == [one.facts + one.distractors for one in staged]
    assert [one.play.start for one in again] == [one.play.start for one in staged]
    assert staged[0].facts != staged[1].facts


# --- What is played ------------------------------------------------------------------------------------------------


class Table:
    """Staged records in the engine, a batch."""

    def __init__(self, tasks, tokenizer, told):
        self.tokenizer, self.told, engine = tokenizer, told, tasks.engine
        self.engine, self.shared = engine, shared(tokenizer)
        self.game = stack([tasks.game(one) for one in told])
        self.reset, self.step = jax.jit(engine.reset), jax.jit(engine.step)

    def seen(self, text: Text) -> list[str]:
        rows = zip(np.asarray(text.tokens), np.asarray(text.length), strict=True)
        return [self.tokenizer.decode(row[:length]) for row, length in rows]

    def play(self, state, lines: list[list[str]], whole: bool = True):
        """The state and the last outcome of each row after its lines."""
        width, last = self.engine.action_tokens, [None] * len(lines)
        for turn in range(max(map(len, lines))):
            texts = [line[turn] if turn < len(line) else "" for line in lines]
            action = stack([Text(*pad(self.tokenizer.encode(text), width)) for text in texts])
            on = jnp.array([turn < len(line) for line in lines])
            state, out = self.step(self.shared, self.game, state, jax.tree.map(jnp.asarray, action), on)
            for row in np.flatnonzero(on):
                last[row] = jax.tree.map(lambda x, row=row: np.asarray(x)[row], out)
                assert last[row].understood or not whole, texts[row]
        return state, last


def pad(ids: list[int], width: int) -> tuple[np.ndarray, np.int32]:
    return np.pad(np.array(ids, np.int32), (0, width - len(ids))), np.int32(len(ids))


@pytest.fixture(scope="module")
def table(source, tokenizer, staged) -> Table:
    return Table(source.tasks, tokenizer, staged[::3])


def test_play_begins_where_the_walk_has_led(source, table):
    walks = [[" ".join((op.name, *op.arguments)) for op in one.play.walk] for one in table.told]
    assert 0.5 < np.mean([len(walk) > 0 for walk in walks]) < 1
    first = strips_start(table, source)
    walked, _ = table.play(first, walks)
    begun, _ = table.reset(table.shared, table.game)
    np.testing.assert_array_equal(walked.facts, begun.facts)
    assert not np.asarray(begun.best).any() and not np.asarray(begun.steps).any()
    for one, walk in zip(table.told, walks, strict=True):
        did = [text for text in one.facts if any(text.startswith(sentence(op)) for op in one.play.walk)]
        assert len(did) == len(walk)
        assert not telling.solves(one.play.puzzle.grounded, one.play.start)


def strips_start(table: Table, source):
    """The state before the walk."""
    published = [telling.official(one.play.puzzle, one.kind) for one in table.told]
    game = stack([source.tasks.game(one) for one in published])
    return table.reset(table.shared, game)[0]


def sentence(op) -> str:
    said = wording.sentence((op.name, *op.arguments)).strip().removesuffix(".")
    return f"{said[0].upper()}{said[1:]}. "


def test_the_expert_wins_from_where_play_begins(source, table):
    plans = [source.tasks.solve(one, random.Random(0), True) for one in table.told]
    assert np.mean([plan is not None for plan in plans]) > 0.9
    state, seen = table.reset(table.shared, table.game)
    for one, text in zip(table.told, table.seen(seen), strict=True):
        assert " part1 " not in text and ("Shaker1 is" in text) == (one.kind == "barman")
    _, last = table.play(state, [plan or [] for plan in plans])
    for plan, out in zip(plans, last, strict=True):
        if plan:
            assert out.success and out.terminated and out.progress == 1 and len(plan) <= 20


def test_a_slip_changes_nothing(source, table):
    plans = [source.tasks.solve(one, random.Random(0), True) or [] for one in table.told]
    slips = [
        [source.tasks.slip(one, plan, step) for step in range(len(plan))]
        for one, plan in zip(table.told, plans, strict=True)
    ]
    assert sum(slip is not None for row in slips for slip in row) > 0.6 * sum(map(len, plans))
    tried = [
        [action for pair in zip(row, plan, strict=True) for action in pair if action]
        for row, plan in zip(slips, plans, strict=True)
    ]
    _, last = table.play(table.reset(table.shared, table.game)[0], tried, whole=False)
    assert all(out.success for plan, out in zip(plans, last, strict=True) if plan)


def test_a_guess_wins_less_often(source, table):
    guesses = [source.tasks.solve(one, random.Random(i), False) for i, one in enumerate(table.told)]
    won = np.mean([guess is not None for guess in guesses])
    assert 0.1 < won < 0.8
    state, _ = table.reset(table.shared, table.game)
    _, last = table.play(state, [guess or [] for guess in guesses])
    assert all(out.success for guess, out in zip(guesses, last, strict=True) if guess)


@pytest.mark.parametrize(("turns", "limit"), [(2, 30), (50, 2)])
def test_nobody_solves_in_more_turns_than_there_are(tokenizer, turns, limit):
    """Neither in more than stage 3 has, nor in more actions than an episode."""
    tasks = load(config(rollout__stage3_turns=turns), tokenizer).tasks
    tasks.engine = dataclasses.replace(tasks.engine, limit=limit)
    told = [tasks.tell(record, random.Random(0), random.Random(0)) for record in tasks.splits["train"]]
    for knows in (True, False):
        found = [tasks.solve(one, random.Random(0), knows) for one in told]
        assert max(len(plan) for plan in found if plan is not None) <= 2 and found.count(None) > RECORDS / 2


def test_official_is_the_published_protocol(tokenizer):
    c = config(task__official=True)
    source = TaskSource(c, tokenizer, load(c, tokenizer).tasks)
    told = [source.staged(index) for index in range(RECORDS)]
    for one in told:
        assert one.facts == one.distractors == one.gold == one.revisions == []
        assert one.query == wording.goal_text(one.play.puzzle.problem)
        assert one.play.start == one.play.puzzle.grounded.init
    table = Table(source.tasks, tokenizer, told[:8])
    _, seen = table.reset(table.shared, table.game)
    for one, text in zip(table.told, table.seen(seen), strict=True):
        assert text == "".join(f" {puzzles.capital(a)}" for a in sorted(
            one.play.puzzle.problem.init, key=puzzles.capital))[1:]  # fmt: skip
    assert source.batch(0).num_facts.tolist() == [0] * c.rl.tasks_per_update * c.rl.group_size


def test_a_batch_has_what_the_loop_needs(source):
    task = source.batch(0)
    rows = source.config.rl.tasks_per_update * source.config.rl.group_size
    assert all(len(leaf) == rows for leaf in jax.tree.leaves(task))
    assert {*source.tasks.made_for} == {*TOOL_NAMES} and not any(source.tasks.made_for.values())
    assert source.tasks.kinds == generators.DOMAINS and {*task.kind.tolist()} == {0, 1, 2, 3}
    assert source.cut_texts["first observations"]["share"] == 0


# --- Splits --------------------------------------------------------------------------------------------------------


def forms(tasks, split: str) -> set[str]:
    return {generators.canonical(problem_of(record)) for record in tasks.splits[split]}


def problem_of(record: dict) -> Problem:
    objects = {name: tuple(kinds) for name, kinds in record["objects"].items()}
    init, goal = (tuple(tuple(atom) for atom in record[part]) for part in ("init", "goal"))
    return Problem(record["name"], generators.domain(record["kind"]).name, objects, frozenset(init), goal)


def test_generated_splits_share_no_problem(source, tokenizer):
    found = {split: forms(source.tasks, split) for split in SPLITS}
    assert [len(source.tasks.splits[split]) for split in SPLITS] == [RECORDS, 4, 8]
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    again, other = (load(config(task__seed=seed), tokenizer).tasks for seed in (0, 1))
    assert again.splits == source.tasks.splits and other.splits["train"] != source.tasks.splits["train"]


@pytest.mark.parametrize("name", generators.DOMAINS)
def test_every_level_has_problems_for_every_split(name, tokenizer):
    for level in (1, 2):
        c = config(
            task__lowest_level=level, task__highest_level=level, task__parts=(name,), task__train_size=1,
            task__validation_size=1, task__test_size=1,
        )  # fmt: skip
        tasks = load(c, tokenizer).tasks
        assert tasks.kinds == (name,) and all(len(tasks.splits[split]) == 1 for split in SPLITS)


def write_problem(folder: Path, kind: str, name: str, problem: Problem) -> None:
    """A problem as a PDDL file, beside its domain."""
    show = lambda atoms: " ".join(f"({' '.join(atom)})" for atom in sorted(atoms))  # noqa: E731
    constants, folder = generators.domain(kind).constants, folder / kind
    objects = " ".join(f"{one} - {kinds[0]}" for one, kinds in problem.objects.items() if one not in constants)
    folder.mkdir(exist_ok=True)
    domain = files("agemem_jax.benchmarks.pddl").joinpath("domains", f"{kind}.pddl")
    (folder / "domain.pddl").write_text(domain.read_text(encoding="utf-8"))
    (folder / f"{name}.pddl").write_text(
        f"(define (problem {name}) (:domain {problem.domain}) (:objects {objects}) (:init {show(problem.init)}) "
        f"(:goal (and {show(problem.goal)})))"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten different problems of two domains each."""
    folder = tmp_path_factory.mktemp("pddl")
    for name in ("gripper", "barman"):
        known: set[str] = set()
        for i in range(10):
            problem = generators.generate(name, 2, i, known)
            known.add(generators.canonical(problem))
            write_problem(folder, name, f"p{i}", problem)
    return folder


def test_published_problems_are_tested_and_not_trained_on(folder, tokenizer):
    c = config(task__test_path=str(folder), task__parts=("gripper", "barman"), task__train_size=40)
    tasks = load(c, tokenizer).tasks
    assert len(tasks.splits["test"]) == 20 and len(tasks.splits["train"]) == 40
    assert forms(tasks, "test").isdisjoint(forms(tasks, "train") | forms(tasks, "validation"))
    assert tasks.splits["test"][0]["name"].endswith("gripper/p0.pddl")
    one = tasks.tell(tasks.splits["test"][0], random.Random(0), random.Random(0))
    assert one.kind == "gripper" and one.gold


def test_read_problems_are_split_domain_by_domain(folder, tokenizer):
    c = config(task__path=str(folder), task__test_fraction=0.2, task__validation_fraction=0.1)
    tasks = load(c, tokenizer).tasks
    kinds = {split: Counter(record["kind"] for record in tasks.splits[split]) for split in SPLITS}
    assert kinds == {
        "train": {"gripper": 7, "barman": 7}, "validation": {"gripper": 1, "barman": 1},
        "test": {"gripper": 2, "barman": 2},
    }  # fmt: skip
    c = config(task__path=str(folder), task__test_path=str(folder), task__validation_path=str(folder))
    with warnings.catch_warnings(), pytest.raises(InputError, match="0 train, 0 validation, 20 test"):
        warnings.simplefilter("ignore")
        load(c, tokenizer)


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"task.parts": ("hanoi",)}, ConfigError, "task.parts = .'hanoi',.: no 'hanoi' problems are generated"),
        ({"task.lowest_level": 3}, ConfigError, "task.lowest_level = 3: above task.highest_level = 2"),
        ({"task.test_path": "/nowhere"}, InputError, "task.test_path: '/nowhere' has no folder with a domain.pddl"),
        (
            {"store.entries": 1, "task.parts": ("barman",), "task.lowest_level": 3, "task.highest_level": 3},
            InputError, "no barman problem for the train split was found that tells at most 1 conditions",
        ),
    ],
)
def test_what_cannot_be_used_is_named(changes, error, what, tokenizer, monkeypatch):
    monkeypatch.setattr(generators, "TRIES", 20)
    c = config()
    c.update_from_flattened_dict(changes)
    with pytest.raises(error, match=what):
        load(c, tokenizer)


def test_parts_and_room_of_files_are_checked(folder, tokenizer):
    with pytest.raises(ConfigError, match="task.parts = .'tyreworld',.: task.path = .* has no 'tyreworld'"):
        load(config(task__path=str(folder), task__parts=("tyreworld",)), tokenizer)
    c = config(task__path=str(folder), task__facts=2, task__chatter=0)
    with pytest.raises(ConfigError, match="task.facts = 2: .*barman/p.*pddl has 3 conditions to tell.*set >= 3"):
        load(c, tokenizer)
    c.task.official = True
    load(c, tokenizer)


# --- Solvers and configs -------------------------------------------------------------------------------------------


def test_a_guess_brings_about_what_is_commonly_asked():
    problem = generators.generate("gripper", 1, 0)
    one = puzzles.puzzle(generators.domain("gripper"), problem, "gripper")
    game = one.grounded
    path = expert.guess(game, game.init, sorted(game.goal), 30, random.Random(0))
    state = game.init
    for op in path:
        assert op in telling.applicable(game, state)
        state = telling.after(op, state)
    assert telling.solves(game, state)
    assert expert.guess(game, game.init, sorted(game.goal), len(path) - 1, random.Random(0)) is None
    assert expert.guess(game, game.init, [], 30, random.Random(0)) is None


def test_configs():
    for variant in ("", "tiny"):
        c = config_file.get_config(variant)
        check_fields(c, base.get_config())
        validate(c)
        assert 0.25 <= c.task.revised <= 0.5
    with pytest.raises(ConfigError, match="pddl.py:large"):
        config_file.get_config("large")


@pytest.mark.heavy
@needs_data
def test_published_files(tokenizer):
    """All published problems can be told, and played by their own protocol."""
    for official in (False, True):
        c = config(
            task__test_path=str(DATA), task__facts=16, task__official=official, store__entries=16,
            task__message_tokens=400, task__seen_tokens=2400,
        )  # fmt: skip
        tasks = load(c, tokenizer).tasks
        assert forms(tasks, "test").isdisjoint(forms(tasks, "train") | forms(tasks, "validation"))
        told = [tasks.tell(record, random.Random(0), random.Random(0)) for record in tasks.splits["test"]]
        assert {one.kind for one in told} == {*generators.DOMAINS}
        table = Table(tasks, tokenizer, told)
        _, seen = table.reset(table.shared, table.game)
        assert all(seen.length < 2400)


def test_every_action_of_every_problem_is_in_the_language(source, tokenizer):
    spoken = load(config(), tokenizer).language
    for one in source.tasks.puzzles:
        for op in one.grounded.operators:
            assert says(spoken, "".join(f" {word}" for word in (op.name, *op.arguments)))
    assert says(spoken, " look around") and not says(spoken, " look") and not says(spoken, " pick ball1")
