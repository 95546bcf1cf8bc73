"""The STRIPS engine on bit words against sets, for games of different size in one batch."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax.benchmarks.pddl import generators, tasks
from agemem_jax.data.pddl import ground, read_domain, read_problem
from agemem_jax.envs import strips
from agemem_jax.errors import InputError

LAMPS = """
(define (domain lamps)
  (:predicates (lit ?x) (broken ?x) (beside ?x ?y) (dark))
  (:action toggle-on :parameters (?x) :precondition (and (not (lit ?x)) (not (broken ?x))) :effect (lit ?x))
  (:action pass-on :parameters (?x ?y)
    :precondition (and (lit ?x) (not (lit ?y)) (beside ?x ?y) (not (= ?x ?y)))
    :effect (and (not (lit ?x)) (lit ?y) (not (dark)))))
"""
LAMPS_PROBLEM = """
(define (problem three) (:domain lamps) (:objects a b c)
  (:init (dark) (broken c) (beside a b) (beside b c) (beside c c)) (:goal (and (lit c) (lit a))))
"""


def lamps():
    domain = read_domain(LAMPS, "lamps")
    return ground(domain, read_problem(LAMPS_PROBLEM, domain, "three"))


def games():
    made = [
        tasks.puzzle(generators.domain(name), generators.generate(name, level, 0), name).grounded
        for name in generators.DOMAINS
        for level in (1, 4)
    ]
    return [*made, lamps()]


def test_states_are_those_of_sets():
    several = games()
    sizes = strips.sizes_for(several)
    assert sizes.negative
    batch = jax.tree.map(
        lambda *x: np.stack(x), *(strips.tables(game, sizes, f"game {i}") for i, game in enumerate(several))
    )
    rng = random.Random(0)
    sets = [set(game.init) for game in several]
    facts = jnp.asarray(batch.init)
    act, after = jax.jit(strips.apply), jax.jit(strips.lacking_after, static_argnums=4)
    lacks = strips.lacking(batch, facts, sizes.planes)
    for _ in range(25):
        live = np.asarray(strips.unpack(strips.can_be_taken(lacks)))[:, : sizes.operators]
        np.testing.assert_array_equal(lacks, strips.lacking(batch, facts, sizes.planes))
        held = np.asarray(strips.unpack(facts))
        met = np.asarray(strips.met(batch, facts))
        chosen, on = np.zeros(len(several), np.int32), np.array([rng.random() < 0.8 for _ in several])
        for row, (game, state) in enumerate(zip(several, sets, strict=True)):
            assert set(np.flatnonzero(held[row])) == state
            wanted = [op.positive <= state and not op.negative & state for op in game.operators]
            assert live[row].tolist() == wanted + [False] * (sizes.operators - len(wanted))
            assert met[row] == len(game.goal & state)
            choices = [i for i, ok in enumerate(wanted) if ok]
            if not choices:
                on[row] = False
                continue
            chosen[row] = rng.choice(choices)
            if on[row]:
                op = game.operators[chosen[row]]
                sets[row] = (state - op.delete) | op.add
        before, facts = facts, act(batch, facts, jnp.asarray(chosen), jnp.asarray(on))
        lacks = after(batch, lacks, before, facts, sizes.changes)


def test_the_first_ones_of_bits():
    rng = np.random.default_rng(0)
    on = rng.random((40, 70)) < rng.random((40, 1))
    bits = strips.pack(jnp.asarray(on))
    np.testing.assert_array_equal(np.asarray(strips.unpack(bits))[:, :70], on)
    number, there = (np.asarray(x) for x in strips.first(bits, 30))
    for row, wanted in enumerate(on):
        assert number[row][there[row]].tolist() == np.flatnonzero(wanted)[:30].tolist()


def test_without_negative_conditions_there_is_no_mask_for_them():
    game = tasks.puzzle(generators.domain("gripper"), generators.generate("gripper", 2, 0), "gripper").grounded
    sizes = strips.sizes_for([game])
    assert strips.tables(game, sizes, "gripper").neg.shape == (0, sizes.words)


def test_a_game_that_is_too_large_is_refused_by_name():
    game = lamps()
    sizes = strips.sizes_for([game])
    for smaller, what in (
        (strips.Sizes(0, sizes.operators, True), "facts"),
        (strips.Sizes(sizes.words, sizes.operators - 1, True), "actions"),
        (strips.Sizes(sizes.words, sizes.operators, False), "be false"),
    ):
        with pytest.raises(InputError, match=f"three lamps has .*{what}"):
            strips.tables(game, smaller, "three lamps")
