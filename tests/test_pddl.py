"""PDDL: reader, grounder, environment against a plain twin, generators and planner; and against others' programs."""

import json
import os
import random
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pddl_twin
import pytest
import vocabularies

from agemem_jax.benchmarks.pddl import expert, generators, tasks, wording
from agemem_jax.data.pddl import ground, read_domain, read_problem
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.types import Text

ACTION_TOKENS = 96
DATA = Path(os.environ.get("AGEMEM_DATA", "/nowhere")) / "pddl"
ENGINES = os.environ.get("AGEMEM_ENGINES_PYTHON")  # a Python that has pyperplan, gym 0.26, nltk and numpy 1
AGENTBOARD = os.environ.get("AGEMEM_AGENTBOARD")  # a checkout of AgentBoard
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="AGEMEM_DATA names no folder that holds pddl")
needs_engines = pytest.mark.skipif(not ENGINES, reason="AGEMEM_ENGINES_PYTHON names no Python")
needs_agentboard = pytest.mark.skipif(not AGENTBOARD, reason="AGEMEM_AGENTBOARD names no checkout of AgentBoard")


# --- Reader and grounder -------------------------------------------------------------------------------------------

CRANES = """; sections in an odd order, types undeclared or called object, no :requirements
(DEFINE (Domain Cranes)
  (:predicates (at ?x - object, ?y) (link ?a ?b - place) (busy ?c))
  (:types object place thing - object crate crane - thing)
  (:constants Home - place) ; comes late
  (:action go
     :effect (and (at ?c ?to) (not (at ?c ?from)))
     :parameters (?c - crane?from ?to - place)
     :precondition (and (at ?c ?from) (link ?from ?to) (not (= ?from ?to))))
  (:action lift
     :parameters (?c - crane ?x - (either crate drum) ?p - place)
     :precondition (and (at ?c ?p) (at ?x ?p) (not (busy ?c)))
     :effect (and (not (at ?x ?p)) (at ?x ?c) (busy ?c)))
  (:action wave :parameters () :effect (at home home))
)"""
CRANES_PROBLEM = """(define (problem one) (:domain cranes)
  (:objects c1 - crane, k1 - crate d1 - drum away far - place home - place)
  (:goal (at k1 c1))
  (:init (at c1 home) (at k1 away) (at d1 far) (link home away) (link away away) (link far home)))"""


def cranes(domain=CRANES, problem=CRANES_PROBLEM):
    read = read_domain(domain, "cranes.pddl")
    return ground(read, read_problem(problem, read, "one.pddl"))


def test_odd_files_are_read():
    game = cranes()
    said = {" ".join((op.name, *op.arguments)) for op in game.operators}
    # Not from `far`, which is never reached; not from away to away; nothing lifts what is far.
    assert said == {"go c1 home away", "lift c1 k1 away", "wave"}
    names = [" ".join(atom) for atom in game.facts]
    assert "at c1 far" not in names and "link far home" in names and "at k1 c1" in names
    by_name = {op.name: op for op in game.operators}
    told = lambda numbers: {names[i] for i in numbers}  # noqa: E731
    assert told(by_name["go"].positive) == {"at c1 home"}  # the link never changes, so it is not asked
    assert told(by_name["lift"].negative) == {"busy c1"}
    assert told(by_name["lift"].delete) == {"at k1 away"}
    assert (game.goals, told(game.goal)) == (1, {"at k1 c1"})


def test_an_object_may_be_declared_again_but_as_the_same():
    with pytest.raises(InputError, match="one.pddl declares 'home' as crane and as place"):
        cranes(problem=CRANES_PROBLEM.replace("home - place", "home - crane"))


def test_adding_wins_over_deleting_and_actions_without_effect_are_dropped():
    text = """(define (domain d) (:predicates (p ?x) (q ?x))
      (:action both :parameters (?x) :precondition (p ?x) :effect (and (not (p ?x)) (p ?x) (q ?x)))
      (:action none :parameters (?x) :precondition (p ?x) :effect (and (p ?x) (not (q z)))))"""
    text = text.replace("(:predicates", "(:constants z) (:predicates").replace("(not (q z))", "(p ?x)")
    domain = read_domain(text, "d")
    problem = "(define (problem x) (:domain d) (:objects a) (:init (p a)) (:goal (q a)))"
    (op,) = ground(domain, read_problem(problem, domain, "x")).operators
    assert (op.name, op.arguments, len(op.delete), len(op.add)) == ("both", ("a",), 0, 2)


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("(at ?x ?p)", "(or (at ?x ?p))", "a disjunction"),
        ("(not (busy ?c))", "(forall (?z) (busy ?z))", "a quantifier"),
        ("(at ?x ?c) (busy ?c)", "(when (busy ?c) (busy ?c))", "a conditional effect"),
        ("(at ?x ?c) (busy ?c)", "(increase (total-cost) 1)", "a numeric effect"),
        ("(:constants", "(:functions (total-cost)) (:constants", "numeric functions"),
        ("(:constants", "(:derived (p) (q)) (:constants", "derived predicates"),
        ("(at ?x ?c) (busy ?c)", "(busy ?nobody)", "'\\?nobody'"),
        ("(at ?x ?c) (busy ?c)", "(busy ?c ?p)", "'busy' has 1 terms elsewhere"),
        (":effect (at home home)", ":gives (at home home)", ":gives|wave"),
        ("(:action wave", "(:action lift", "'lift' twice"),
        ("(at home home))\n)", "(at home home", "closing brackets"),
        ("(DEFINE", "(DEFINED", "no PDDL domain"),
    ],
)
def test_what_is_not_supported_is_named(old, new, what):
    assert old in CRANES
    with pytest.raises(InputError, match=f"cranes.pddl.*{what}"):
        cranes(CRANES.replace(old, new))


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("(:goal (at k1 c1))", "(:goal (not (at k1 c1)))", "goal"),
        ("(:goal (at k1 c1))", "(:goal (exists (?x) (at k1 ?x)))", "a quantifier"),
        ("(:goal (at k1 c1))", "", "no :goal"),
        ("(:goal", "(:metric minimize (total-cost)) (:goal", "a metric"),
        ("(at k1 away)", "(at k9 away)", "'k9'"),
        ("(at k1 away)", "(= (total-cost) 0)", "sets a number"),
        ("(:domain cranes)", "(:domain barman)", "of the domain \\(barman\\), not 'cranes'"),
    ],
)
def test_what_a_problem_may_not_have_is_named(old, new, what):
    with pytest.raises(InputError, match=f"one.pddl.*{what}"):
        cranes(problem=CRANES_PROBLEM.replace(old, new))


def test_what_is_reached_in_play_was_grounded():
    for name in generators.DOMAINS:
        game = tasks.puzzle(generators.domain(name), generators.generate(name, 1, 3), name).grounded
        twin = pddl_twin.Game(generators.domain(name), generators.generate(name, 1, 3), False)
        rng = random.Random(1)
        facts, actions = set(game.facts), {(op.name, *op.arguments) for op in game.operators}
        for _ in range(200):
            assert twin.state <= facts
            live = twin.applicable()
            assert set(live) <= actions
            _, _, comes, goes = twin.actions[rng.choice(sorted(live))]
            twin.state = (twin.state - goes) | comes


# --- The environment against its twin ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = tuple(form.format(*"abcdefg") for form in wording.FORMATS.values())
    return Tokenizer.load(vocabularies.write_bpe(tmp_path_factory.mktemp("bpe") / "t", texts=texts))


class Table:
    """A batch of games and their twins."""

    def __init__(self, tokenizer: Tokenizer, puzzles: list[tasks.Puzzle]):
        self.tokenizer, self.puzzles = tokenizer, puzzles
        self.engine = tasks.fit(puzzles, tokenizer, seen_tokens=1800, action_tokens=ACTION_TOKENS)
        self.shared = tasks.shared(tokenizer)
        self.game = tasks.games(self.engine, puzzles, tokenizer)
        self.step = jax.jit(self.engine.step)
        self.reset()

    def reset(self):
        self.twins = [pddl_twin.Game(one.domain, one.problem, one.tells_new) for one in self.puzzles]
        self.state, seen = jax.jit(self.engine.reset)(self.shared, self.game)
        assert self.read(seen) == [twin.seen for twin in self.twins]

    def read(self, text: Text) -> list[str]:
        rows = zip(np.asarray(text.tokens), np.asarray(text.length), strict=True)
        return [self.tokenizer.decode(row[:length]) for row, length in rows]

    def write(self, texts: list[str]) -> Text:
        tokens = np.zeros((len(texts), ACTION_TOKENS), np.int32)
        ids = [self.tokenizer.encode(text) for text in texts]
        for row, one in zip(tokens, ids, strict=True):
            row[: len(one)] = one
        return Text(jnp.asarray(tokens), jnp.array([len(one) for one in ids], jnp.int32))

    def play(self, texts: list[str], on: list[bool]) -> int:
        """Steps both and compares them; the number of states compared."""
        before = self.state
        self.state, out = self.step(self.shared, self.game, self.state, self.write(texts), jnp.array(on))
        seen = self.read(out.seen)
        for row, (twin, text) in enumerate(zip(self.twins, texts, strict=True)):
            told, understood = twin.step(text) if on[row] else ("", False)
            where = self.puzzles[row].name, text
            assert seen[row] == told, where
            assert bool(out.understood[row]) == understood, where
            np.testing.assert_allclose(out.progress[row], twin.progress(), rtol=1e-6)
            assert bool(out.success[row]) == bool(out.terminated[row]) == twin.won(), where
            assert bool(out.truncated[row]) == (twin.steps >= pddl_twin.LIMIT and not twin.won()), where
            if not on[row]:
                for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(self.state), strict=True):
                    np.testing.assert_array_equal(old[row], new[row])
        return sum(on)


@pytest.fixture(scope="module")
def table(tokenizer) -> Table:
    made = [(name, level) for name in generators.DOMAINS for level in (1, 3)]
    return Table(tokenizer, [fresh(name, level, 0) for name, level in made])


def fresh(name: str, level: int, seed: int) -> tasks.Puzzle:
    problem = generators.generate(name, level, seed)
    return tasks.puzzle(generators.domain(name), problem, problem.name)


def utterance(rng: random.Random, twin: pddl_twin.Game) -> str:
    """Something that an agent may say."""
    everything, live = sorted(twin.actions), sorted(twin.applicable())
    name, *objects = rng.choice(live if live and rng.random() < 0.7 else everything)
    kind = rng.choice(["sentence", "list", "brackets", "loud", "short", "long", "shuffled", "check", "look", "odd"])
    if kind == "sentence":
        return f"{name} {pddl_twin.sentence(name, objects)}" if rng.random() < 0.5 else " ".join([name, *objects])
    return {
        "list": f"{name} {' '.join(objects)}",
        "brackets": f"  ({name}: {', '.join(objects)}).\n",
        "loud": f"{name} {' '.join(objects)}!".upper(),
        "short": f"{name} {' '.join(objects[1:])}",
        "long": f"I will now {name} {' '.join(objects)} and not {objects[0] if objects else name}.",
        "shuffled": f"{' '.join(objects)} {name}",
        "check": rng.choice(["check valid actions", "Check.", "let me CHECKmate"]),
        "look": rng.choice(["look around", "Look Around!", "please look around, then check"]),
        "odd": rng.choice(["", "   ", "look  around", "dance", f"{name}{''.join(objects)}", f"{name}-{name} x", "京"]),
    }[kind]


def test_random_walks_are_the_twins(table):
    table.reset()
    rng = random.Random(0)
    compared = 0
    for _ in range(pddl_twin.LIMIT + 2):
        texts = [utterance(rng, twin) for twin in table.twins]
        compared += table.play(texts, [rng.random() < 0.9 for _ in texts])
    assert compared > 200


def test_experts_win_in_both(table):
    table.reset()
    plans = [expert.plan(one.grounded) for one in table.puzzles]
    for k in range(max(map(len, plans))):
        texts = [" ".join((p[k].name, *p[k].arguments)) if k < len(p) else "check" for p in plans]
        table.play(texts, [k < len(p) for p in plans])
    assert all(twin.won() for twin in table.twins)


def test_the_first_word_that_can_be_done_now_counts(table):
    table.reset()
    row = next(i for i, one in enumerate(table.puzzles) if one.name.startswith("tyreworld-1-"))
    box_shut = "open" in {name for name, *_ in table.twins[row].applicable()}
    texts = ["check"] * len(table.puzzles)
    # "close" and "fetch" cannot be done while the boot is shut, so "open" is meant, and its object stands before it.
    texts[row] = "the boot: close, fetch or Open?" if box_shut else "the boot: open or Close?"
    table.play(texts, [True] * len(texts))
    assert ("isopen", "boot") in table.twins[row].state if box_shut else ("closed", "boot") in table.twins[row].state


def test_too_little_room_cuts_the_answer_at_its_end(tokenizer):
    one = fresh("gripper", 3, 0)
    engine = tasks.fit([one], tokenizer, seen_tokens=40, action_tokens=ACTION_TOKENS)
    shared, game = tasks.shared(tokenizer), tasks.games(engine, [one], tokenizer)
    _, seen = jax.jit(engine.reset)(shared, game)
    text = tokenizer.decode(np.asarray(seen.tokens)[0])
    assert int(seen.length[0]) == 40
    assert pddl_twin.Game(one.domain, one.problem, False).seen.startswith(text)


def test_other_domains_are_played_in_their_own_names(tokenizer):
    read = read_domain(CRANES, "cranes.pddl")
    one = tasks.puzzle(read, read_problem(CRANES_PROBLEM, read, "one.pddl"), "one.pddl")
    small = Table(tokenizer, [one])
    assert small.twins[0].seen.startswith("Away is at") or "C1 is at home." in small.twins[0].seen
    for text in ("wave", "go c1 home away", "check", "lift c1 k1 away", "look around"):
        small.play([text], [True])
    assert small.twins[0].won()


def test_render_tells_goal_and_state(table):
    table.reset()
    for row, one in enumerate(table.puzzles):
        told = table.engine.render(table.shared, table.game, table.state, row)
        assert told.startswith("step 0 of 30\n[")
        for atom in one.problem.goal:
            assert wording.sentence(atom).strip().capitalize() in told


def test_the_goal_is_told_sorted():
    one = fresh("blockworld", 3, 0)
    assert one.goal == wording.GOAL + "b1 is on b4., b3 is on b5., b5 is on b2."


def test_a_game_beyond_the_sizes_and_odd_folders_are_named(tokenizer, tmp_path):
    small, large = fresh("gripper", 1, 0), fresh("gripper", 5, 0)
    engine = tasks.fit([small], tokenizer, seen_tokens=64, action_tokens=8)
    with pytest.raises(InputError, match="gripper-5-0 has .* more than"):
        tasks.games(engine, [large], tokenizer)
    with pytest.raises(InputError, match="domain.pddl' cannot be read"):
        tasks.read(tmp_path)
    (tmp_path / "domain.pddl").write_text(CRANES)
    with pytest.raises(InputError, match="holds no problem"):
        tasks.read(tmp_path)
    (tmp_path / "p2.pddl").write_text(CRANES_PROBLEM)
    (tmp_path / "p10.pddl").write_text(CRANES_PROBLEM)
    assert [Path(one.name).name for one in tasks.read(tmp_path)] == ["p10.pddl", "p2.pddl"]  # as their names sort


# --- What is odd, by name ------------------------------------------------------------------------------------------


def test_of_two_sentences_for_one_name_the_last_one_counts():
    said = {
        ("clear", "b1"): "The b1 is clear.",
        ("holding", "right", "shot1"): "You are holding right. ",
        ("used", "shot1", "ingredient3"): "Pour shot1 from a shot glass to a used shaker ingredient3",
        ("handempty", "right"): "handempty right",  # it has none
        ("shake", "hand"): "shake hand",  # of another domain: the format of that name says six
    }
    assert {atom: wording.sentence(atom) for atom in said} == said


ODD = """(define (domain barman) (:predicates (up ?x) (free ?x) (shaked ?x))
  (:action lower :parameters (?x) :precondition (up ?x) :effect (not (up ?x)))
  (:action raise :parameters (?x) :precondition (free ?x) :effect (up ?x))
  (:action shake :parameters (?x) :precondition (free ?x) :effect (shaked ?x)))"""
ODD_PROBLEM = """(define (problem one) (:domain barman) (:objects a1 a2) (:init (up a1) (free a1))
  (:goal (and (up a1) (shaked a1))))"""


def test_what_is_new_is_told_alone_and_progress_is_the_best_after_an_action_that_does_something(tokenizer):
    read = read_domain(ODD, "odd.pddl")
    game = Table(tokenizer, [tasks.puzzle(read, read_problem(ODD_PROBLEM, read, "one.pddl"), "one.pddl")])

    def answer(text: str) -> tuple[str, float]:
        game.state, out = game.step(game.shared, game.game, game.state, game.write([text]))
        return game.read(out.seen)[0], float(out.progress[0])

    game.step = jax.jit(lambda *given: game.engine.step(*given, jnp.array([True])))
    unknown = "The action is not valid and therefore takes no effect. Please check valid actions."
    no_effect = (
        "The action is not valid and therefore takes no effect. Please remember to satisfy the restriction of actions. "
        "You can also check valid actions."
    )
    assert game.read(jax.jit(game.engine.reset)(game.shared, game.game)[1]) == ["A1 is free.  Up a1"]
    assert answer("fly a1") == (unknown, 0.0)  # a condition that holds at the start is no progress yet
    assert answer("lower a2") == (no_effect, 0.0)  # it could be done with another
    assert answer("raise a1") == (no_effect, 0.0)  # nothing changes by it
    assert answer("lower a1") == ("", 0.0)  # only taken away: nothing is told
    assert answer("lower a1") == (unknown, 0.0)  # now it can be done with none
    assert answer("raise a1") == ("Up a1", 0.5)
    assert answer("lower a1") == ("", 0.5)  # the best so far
    listed = "Valid actions are: raise a1, shake a1, check valid actions, look around"
    assert answer("check valid actions") == (listed, 0.5)
    assert answer("look around") == ("A1 is free. ", 0.5)


def test_nothing_moves_to_where_it_is(tokenizer):
    game = Table(tokenizer, [fresh("gripper", 1, 0)])
    here = next(atom[1] for atom in game.twins[0].state if atom[0] == "at-robby")
    for text in (f"move {here} {here}", "check valid actions"):
        game.state, out = game.step(game.shared, game.game, game.state, game.write([text]), jnp.array([True]))
        assert (game.read(out.seen)[0] == wording.NO_EFFECT) == text.startswith("move")
    listed = game.read(out.seen)[0]
    assert f"Move from {here} to " in listed and f"Move from {here} to {here}" not in listed


# --- Generators and planner ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", generators.DOMAINS)
def test_problems_are_functions_of_their_seeds_and_none_is_known(name):
    problems = [generators.generate(name, 2, seed) for seed in range(20)]
    assert problems == [generators.generate(name, 2, seed) for seed in range(20)]
    forms = {generators.canonical(problem) for problem in problems}
    assert len(forms) > 5
    again = [generators.generate(name, 2, seed, avoid=forms) for seed in range(5)]
    assert forms.isdisjoint(generators.canonical(problem) for problem in again)
    with pytest.raises(InputError, match="level"):
        generators.generate(name, 0, 0)


def test_a_renamed_problem_has_the_same_form():
    problem = generators.generate("barman", 3, 1)
    names = dict(zip(problem.objects, reversed(list(problem.objects)), strict=True))
    put = lambda atoms: [(a[0], *(names[t] for t in a[1:])) for a in atoms]  # noqa: E731
    objects = {names[one]: kinds for one, kinds in problem.objects.items()}
    other = type(problem)("other", problem.domain, objects, frozenset(put(problem.init)), tuple(put(problem.goal)))
    assert generators.canonical(other) == generators.canonical(problem)
    less = type(problem)("less", problem.domain, objects, other.init, other.goal[1:])
    assert generators.canonical(less) != generators.canonical(problem)


@pytest.mark.parametrize("name", generators.DOMAINS)
def test_generated_problems_are_solved(name):
    for level in (1, 2, 3):
        game = fresh(name, level, 5).grounded
        state = set(game.init)
        for op in expert.plan(game):
            assert op.positive <= state
            state = (state - op.delete) | op.add
        assert game.goal <= state


def test_a_goal_out_of_reach_has_no_plan():
    read = read_domain(CRANES, "cranes.pddl")
    asks = CRANES_PROBLEM.replace("(:goal (at k1 c1))", "(:goal (and (at k1 c1) (at d1 c1)))")
    assert expert.plan(ground(read, read_problem(asks, read, "one.pddl"))) is None


# --- Against the published problems and others' programs -----------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, list[tasks.Puzzle]]:
    return {name: tasks.read(DATA / name) for name in generators.DOMAINS}


def run(script: str, *arguments: str, given: str = ""):
    command = [ENGINES, str(Path(__file__).parent / script), *arguments]
    return json.loads(subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout)


@pytest.mark.heavy
@needs_data
def test_our_domains_ground_as_the_published_ones(published):
    for name, puzzles in published.items():
        for one in puzzles:
            problem = read_problem(Path(one.name).read_text(), generators.domain(name), one.name)
            own, theirs = ground(generators.domain(name), problem), ground(one.domain, one.problem)
            assert own == theirs, one.name


@pytest.mark.heavy
@needs_data
@needs_engines
def test_grounding_is_pyperplans(published):
    """Facts, goals and operators: name and objects, what they ask, add (beside what they ask) and delete.

    Of pyperplan's operators those are left that can be reached if nothing were deleted and that change something; it
    keeps others. Conditions that nothing changes are compared nowhere: neither has them.
    """
    puzzles = [one for several in published.values() for one in several]
    files = [str(path) for one in puzzles for path in (Path(one.name).parent / "domain.pddl", one.name)]
    for one, theirs in zip(puzzles, run("pyperplan_ground.py", *files), strict=True):
        ours = ground(one.domain, one.problem)
        said = lambda atom: f"({' '.join(atom)})"  # noqa: E731
        fact = lambda numbers: frozenset(said(ours.facts[i]) for i in numbers)  # noqa: B023, E731
        reached, waiting, kept = {said(atom) for atom in one.problem.init}, theirs["operators"], set()
        while ready := [op for op in waiting if set(op[1]) <= reached]:
            waiting = [op for op in waiting if op not in ready]
            for name, needs, adds, deletes in ready:
                if adds or deletes:
                    kept.add((name, frozenset(needs), frozenset(adds), frozenset(deletes)))
                reached |= set(adds)
        assert {
            (said((op.name, *op.arguments)), fact(op.positive), fact(op.add - op.positive), fact(op.delete))
            for op in ours.operators
        } == kept, one.name
        assert {said(atom) for atom in ours.facts} == reached, one.name
        assert fact(ours.goal) == set(theirs["goal"]) & reached, one.name


@pytest.mark.heavy
@needs_data
def test_published_problems_are_solved_and_no_generated_one_is_among_them(published):
    for name, puzzles in published.items():
        assert all(expert.plan(one.grounded) for one in puzzles)
        known = {generators.canonical(one.problem) for one in puzzles}
        for level in range(1, 5):
            for seed in range(20):
                assert generators.canonical(generators.generate(name, level, seed, avoid=known)) not in known


def written(one: tasks.Puzzle) -> str:
    """A problem as PDDL."""
    put = lambda atoms: " ".join(f"({' '.join(atom)})" for atom in sorted(atoms))  # noqa: E731
    typed = one.domain.parents != {}
    objects = "\n".join(f"{name} - {kinds[0]}" if typed else name for name, kinds in one.problem.objects.items())
    head = f"(define (problem {one.problem.name}) (:domain {one.domain.name}) (:objects\n{objects}\n)"
    return f"{head} (:init {put(one.problem.init)}) (:goal (and {put(one.problem.goal)})))"


def in_order(text: str) -> list[str]:
    """Words of an answer whose order is a Python set's in AgentBoard."""
    if text.startswith(wording.VALID):
        return sorted(text.removeprefix(wording.VALID + " ").split(", "))
    return sorted(text.split(" "))


@pytest.mark.heavy
@needs_data
@needs_engines
@needs_agentboard
def test_agentboard_answers_the_same(published, tokenizer, tmp_path):
    """Per state: answer, progress, won, whether the action was valid, and the actions that are listed.

    Lists of valid actions and what is seen around are compared without their order, which is a Python set's.
    """
    puzzles = [one for several in published.values() for one in several]
    puzzles += [fresh(name, level, 7) for name in generators.DOMAINS for level in (1, 3)]
    table, rng, compared = Table(tokenizer, puzzles), random.Random(0), 0
    plans = [[f"{op.name} {' '.join(op.arguments)}" for op in expert.plan(one.grounded)] for one in puzzles]
    for walk in ("random", "expert"):
        table.reset()
        told, texts = [[] for _ in puzzles], [[] for _ in puzzles]
        for k in range(36):
            if walk == "random":
                said = [utterance(rng, twin) for twin in table.twins]
            else:
                said = [plan[k] if k < len(plan) else "check valid actions" for plan in plans]
            every = jnp.ones(len(said), bool)
            table.state, out = table.step(table.shared, table.game, table.state, table.write(said), every)
            for row, (twin, seen) in enumerate(zip(table.twins, table.read(out.seen), strict=True)):
                twin.step(said[row])
                texts[row].append(said[row])
                told[row].append((seen, float(out.progress[row]), bool(out.success[row]), bool(out.understood[row])))
        requests = []
        for row, one in enumerate(puzzles):
            kind = "barman" if "barman" in one.name else next(n for n in generators.DOMAINS if n in one.name)
            folder = tmp_path / f"{walk}{row}"
            folder.mkdir()
            (folder / "problem.pddl").write_text(written(one))
            domain = str(DATA / kind / "domain.pddl")
            requests.append(
                {"kind": kind, "domain": domain, "problems": str(folder), "index": 0, "texts": texts[row]}
            )
        theirs = run("agentboard_play.py", AGENTBOARD, given=json.dumps(requests))
        for row, (one, played) in enumerate(zip(puzzles, theirs, strict=True)):
            assert played[0]["goal"] == one.goal
            assert played[0]["seen"] == pddl_twin.Game(one.domain, one.problem, one.tells_new).seen
            for text, (seen, progress, won, understood), state in zip(texts[row], told[row], played[1:], strict=True):
                where = one.name, text
                if "check" in text.lower() or "look around" in text.lower():
                    assert in_order(seen) == in_order(state["seen"]), where
                else:
                    assert seen == state["seen"], where
                if "check" in text.lower():
                    assert in_order(seen) == state["listed"], where
                assert progress == pytest.approx(state["reward"]) and understood == state["valid"], where
                assert won == state["won"] or not understood, where
                compared += 1
    print(f"{compared} states of {len(puzzles)} games are AgentBoard's")
