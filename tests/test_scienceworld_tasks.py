"""ScienceWorld's tasks: walks, how they are told, and that an episode begins where its walk has ended.

Without Java by a worker that answers in the engine's place; the heavy tests need what tests/test_scienceworld.py needs.
"""

import itertools
import random

import jax
import jax.numpy as jnp
import pytest

from agemem_jax.benchmarks.scienceworld import expert, tasks, variations, walks
from agemem_jax.config import ConfigError
from agemem_jax.data.batches import TaskSource, stack
from agemem_jax.errors import InputError
from configs import scienceworld
from tests.scienceworld_worker import goal_of
from tests.test_host_env import BYTES, read, spelt
from tests.test_scienceworld import W, machines, of, stand_in  # noqa: F401

A = 80
ERRANDS = ("find-plant", "find-animal", "find-living-thing", "use-thermometer")
KITCHEN = """This room is called the kitchen. In it, you see:
	the agent
	a substance called air
	a bed. On the bed is: a mattress. On the mattress is: a white pillow..
	a counter. On the counter is: a bowl (containing a red apple, a banana, an orange), a drawer.
	a freezer. The freezer door is open. In the freezer is: nothing.
	a glass jar (containing a substance called sodium chloride)
	a red box (containing nothing)
	a sink, which is turned off. In the sink is: nothing.
	a stopwatch, which is deactivated.
	a table. On the table is: a battery, a switch, which is off, a yellow light bulb, which is off.
	a thermometer, currently reading a temperature of 10 degrees celsius
You also see:
	A door to the bathroom (that is open)"""


def config_of(folder, variant="tiny", **changes):
    c = scienceworld.get_config(variant)
    c.task.path = str(folder)
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


@pytest.fixture
def loaded(stand_in, tmp_path, monkeypatch):  # noqa: F811
    """Makes benchmarks of the stand-in, with changes in the config."""
    made = stand_in()
    monkeypatch.setattr(tasks, "machines", lambda *_: made)

    def load(**changes):
        wide = {"task__message_tokens": 400, "task__seen_tokens": W, "rollout__action_tokens": A}
        wide["task__parts"] = ERRANDS
        c = config_of(tmp_path / "kept", **wide | changes)
        return c, tasks.load(c, BYTES)

    return load


def test_a_room_is_read_thing_by_thing():
    room, things = walks.things_of(KITCHEN)
    assert room == "kitchen"
    told = [walks.message(room, thing) for thing in things]
    assert told == [
        "In the Kitchen, on the mattress, you see a white pillow.",
        "In the Kitchen, on the counter, you see a bowl (containing a red apple, a banana, an orange).",
        "In the Kitchen, on the counter, you see a drawer.",
        "In the Kitchen you see a glass jar (containing a substance called sodium chloride).",
        "In the Kitchen you see a red box.",
        "In the Kitchen you see a stopwatch.",
        "In the Kitchen, on the table, you see a battery.",
        "In the Kitchen, on the table, you see a switch.",
        "In the Kitchen, on the table, you see a yellow light bulb.",
        "In the Kitchen you see a thermometer.",
    ]
    pot = walks.Thing("", "a flower pot 2 (containing a pea plant in the adult stage with a tall height, soil)")
    text = "In the Living Room you see a flower pot 2 (containing a pea plant), a plant."
    assert walks.message("living room", pot, ", a plant") == text
    assert walks.content("Your task is to find a(n) plant. Then, move it to the red box.") == ["plant", "red", "box"]


def test_ways_are_shortest_and_doors_lead_both_ways():
    assert all(a in walks.HOUSE[b] for a in walks.HOUSE for b in walks.HOUSE[a])
    assert walks.going("bathroom", "workshop", "hallway") == [
        "go to kitchen", "go to hallway", "go to workshop", "go to hallway",
    ]  # fmt: skip
    assert walks.path("kitchen", "kitchen") == [] and walks.length("foundry", "bedroom") == 4


def guessed(end: str, box: str, rooms: set[str], turns: int) -> float:
    """The share of rooms in which a thing is found and brought to its box by one who knows where things may be: goes
    from room to room and looks around, in the best order."""
    best = 0
    for order in itertools.permutations(rooms, min(3, len(rooms))):
        spent = itertools.accumulate(walks.length(*way) + 1 for way in itertools.pairwise((end, *order)))
        found = [n + 2 + walks.length(room, box) + 1 <= turns for room, n in zip(order, spent, strict=True)]
        best = max(best, sum(found))
    return best / len(rooms)


def test_things_are_carried_to_where_one_has_to_know():
    """The box is told, and where the walk ends is seen: neither gives the room away."""
    turns = config_of("").rollout.stage3_turns
    for task, home in (("find-plant", "greenhouse"), ("find-animal", "outside")):
        for box in ("bathroom", "bedroom", "kitchen", "living room", "workshop"):
            goal = goal_of(task, 0)
            errand = walks.errand_of(goal.replace(walks.FIND.search(goal)[3], box), random.Random(0))
            drawn = [walks.places(errand, random.Random(seed)) for seed in range(300)]
            for end in {end for _, end in drawn}:
                rooms = {room for (room,), at in drawn if at == end}
                assert home not in rooms and end not in rooms and guessed(end, box, {home}, turns) == 0
                assert max(walks.length(end, room, box) for room in rooms) + 4 <= turns  # and a look into the store
                is_open = (task, box) == ("find-animal", "kitchen")  # the kitchen is on all ways there
                assert (guessed(end, box, rooms, turns) < 0.34) != is_open, (task, box, end, rooms)
    goal = goal_of("use-thermometer", 0)
    for seed in range(6):
        errand = walks.errand_of(goal, random.Random(seed))
        rooms, end = walks.places(errand, random.Random(seed))
        assert walks.length(end, *rooms, errand.room) < walks.NEAR + 2 and end != rooms[0]
        assert all(room != stop.home for room, stop in zip(rooms, errand.stops, strict=True))
    assert walks.errand_of("Your task is to boil water.", random.Random(0)) is None
    inside = "bathroom", "bedroom", "kitchen", "living room"
    for home, box in itertools.product(inside, repeat=2):  # where the engine puts what is measured, and the boxes
        goal = goal_of("use-thermometer", 0).replace("around the kitchen", f"around the {box}")
        goal = goal.replace("around the living room", f"around the {home}", 1)
        errand = walks.errand_of(goal, random.Random(0))
        assert errand.room == box and errand.stops[1].home == home
        walks.places(errand, random.Random(0))


def test_a_walk_is_a_function_of_its_game_and_what_it_plans_wins(stand_in):  # noqa: F811
    one, two = stand_in(1), stand_in()
    for task in ERRANDS:
        for variation in range(3):
            number, goal = of(task, variation), goal_of(task, variation)
            walk = walks.record(one, number, goal, True)
            assert walk == walks.record(two, number, goal, True)
            assert walks.wins(two, number, walk.commands, walk.plan)
            assert walks.wins(two, number, walk.commands, walk.search)
            assert not walks.wins(two, number, walk.commands, walk.plan[:-1])
            assert len(walk.plan) < len(walk.search) and len(walk.plan) <= walks.NEAR + 5
            assert walks.record(one, number, goal, False).search == []
            told = dict((text, time) for time, text in walk.facts)
            assert all(now in told and time < told[now] for time, _, now in walk.former)
            with walks.Visit(two, number, walk.commands) as visit:
                for room in walks.HOUSE:
                    visit.go(room)
                kind = walks.errand_of(goal, random.Random(0)).kind
                seen = [(room, thing) for _, room, things in visit.seen for thing in things]
                holds = {walks.message(*each, called) for each in seen for called in ("", kind)}
                assert all(text in holds or "temperature" in text for text in told)
                assert all(text not in holds for _, text, _ in walk.former)
                assert any(text.endswith(f"{kind}.") for text in told)
                assert all(text in holds for _, text in walk.sights)


def test_other_tasks_are_told_on_a_tour_that_comes_back(stand_in):  # noqa: F811
    made = stand_in()
    walk = walks.record(made, of("boil", 1), "Your task is to boil water. It is around the outside.", True)
    with walks.Visit(made, of("boil", 1)) as before, walks.Visit(made, of("boil", 1), walk.commands) as after:
        assert before.room == after.room and before.things == after.things
    assert len(set(walk.commands)) >= walks.TOUR and walk.plan == walk.search == walk.former == []
    fountain = "In the Outside you see a fountain (containing a substance called water)."
    told = [text for _, text in walk.facts]
    assert told[0] == fountain and all("water" in text for text in told)


def test_an_episode_begins_where_its_walk_has_ended_and_who_knows_wins(loaded):
    c, benchmark = loaded(rollout__stage3_turns=40)
    env, source = benchmark.env, TaskSource(c, BYTES, benchmark.tasks)
    staged = [source.staged(i) for i in source.places["train"]]
    game = stack([benchmark.tasks.game(s) for s in staged])
    step = jax.jit(env.step)
    for knows, slips in ((True, False), (False, False), (True, True)):
        state, seen = env.reset(None, game)
        plans = [benchmark.tasks.solve(s, random.Random(0), knows) for s in staged]
        if slips:  # change nothing
            pairs = [
                [(benchmark.tasks.slip(s, plan, i), action) for i, action in enumerate(plan)]
                for s, plan in zip(staged, plans, strict=True)
            ]
            tried = [[action for pair in row for action in pair if action] for row in pairs]
            assert sum(map(len, tried)) > sum(map(len, plans))
            plans = tried
        for row, s in enumerate(staged):
            walked = benchmark.tasks.walks[s.play]
            with walks.Visit(benchmark.tasks.pool, s.play, walked) as visit:
                assert visit.room in read(seen, row).split("\n")[0]
        for turn in range(max(map(len, plans))):
            actions = [plan[turn] if turn < len(plan) else "" for plan in plans]
            on = jnp.array([turn < len(plan) for plan in plans])
            state, outcome = step(None, game, state, spelt(actions, A), on)
        assert outcome.success.all() and outcome.terminated.all() and (outcome.progress == 1).all()


def test_facts_are_told_in_time_and_some_twice(loaded):
    c, benchmark = loaded(task__revised=1.0)
    told = benchmark.tasks
    for record in told.splits["train"]:
        staged = told.tell(record, random.Random(1), random.Random(2))
        assert staged == told.tell(record, random.Random(1), random.Random(2))
        other = told.tell(record, random.Random(3), random.Random(2))
        assert staged.gold == other.gold and staged.distractors != other.distractors
        gold = [text for text, is_gold in zip(staged.facts, staged.is_gold, strict=True) if is_gold]
        assert len(staged.facts) == c.task.facts and len(staged.distractors) == c.task.distractors
        assert gold == staged.gold == staged.keep
        assert staged.revisions and staged.query == record["goal"] and staged.kind in told.kinds
        for stale, present in staged.revisions:
            assert staged.facts.index(stale) < staged.facts.index(present) and stale not in staged.gold
        assert any(text.startswith("Earlier in the") and "you saw" in text for text in staged.distractors)
        assert any(text.startswith("In another house: In the") for text in staged.distractors)
        never = loaded(task__revised=0.0)[1].tasks.tell(record, random.Random(1), random.Random(2))
        assert never.revisions == [] and never.gold == staged.gold
    assert told.most_gold == 3


def test_the_official_protocol_tells_nothing_and_begins_at_the_beginning(loaded):
    _, benchmark = loaded(task__official=True, rollout__stage3_turns=30, task__parts=("boil", "find-plant"))
    for record in benchmark.tasks.splits["train"]:
        staged = benchmark.tasks.tell(record, random.Random(0), random.Random(0))
        assert not (staged.facts or staged.distractors or staged.gold or staged.revisions)
        assert benchmark.tasks.walks[staged.play] == []
        assert benchmark.tasks.solve(staged, random.Random(0), True) == ["focus on water"]  # without the idle actions


def test_only_training_games_are_solved_and_only_in_time(loaded):
    c, benchmark = loaded(rollout__stage3_turns=5)
    told = benchmark.tasks
    lengths = [len(record["plan"]) for record in told.splits["train"]]
    staged = [told.tell(record, random.Random(0), random.Random(0)) for record in told.splits["train"]]
    solved = [told.solve(each, random.Random(0), True) for each in staged]
    assert [plan is not None for plan in solved] == [length <= 5 for length in lengths]
    for split in ("validation", "test"):
        staged = told.tell(told.splits[split][0], random.Random(0), random.Random(0))
        with pytest.raises(InputError, match="is no training game"):
            told.solve(staged, random.Random(0), True)
        assert all(record["search"] == [] for record in told.splits[split])


def test_splits_are_the_official_ones_as_far_as_they_are_wanted(loaded):
    told = loaded()[1].tasks
    numbers = {split: [record["game"] % variations.PLACES for record in told.splits[split]] for split in told.splits}
    found = {split: sorted(set(n)) for split, n in numbers.items()}
    assert found == {"train": [0, 1], "validation": [2], "test": [3, 4]}
    few = loaded(task__train_size=3)[1].tasks.splits["train"]
    assert len(few) == 3 and all(record in told.splits["train"] for record in few)


def test_what_cannot_be_used_is_refused_before_a_machine_starts(tmp_path):
    for changes, message in (
        ({"task__parts": ("find-plant", "cook")}, "task.parts = .* there is no task 'cook'; the tasks are boil"),
        ({"task__test_path": "x"}, "task.test_path = 'x': ScienceWorld's splits are its own"),
        ({"task__seen_tokens": 0}, "task.seen_tokens = 0: .* would not be seen"),
    ):
        with pytest.raises(ConfigError, match=message):
            tasks.load(config_of(tmp_path, **changes), BYTES)
    with pytest.raises(ConfigError, match="scienceworld.py:big"):
        scienceworld.get_config("big")


# With the real engine


@pytest.mark.heavy
def test_the_real_house_is_walked_through_and_left_as_it_is_replayed(machines, tmp_path):  # noqa: F811
    """The commands one by one and all at once, on machines with another past, give the same house; plans win there."""
    made, other = machines(1), machines(1)
    numbers = [of(task, variation) for task in ERRANDS for variation in (0, 7)] + [of("chemistry-mix")]
    goals = variations.goals(made, tmp_path, numbers)
    for number, goal in zip(numbers, goals, strict=True):
        walk = walks.record(made, number, goal, True)
        assert walk == walks.record(other, number, goal, True)
        with walks.Visit(made, number) as steps, walks.Visit(other, number, walk.commands) as replayed:
            for command in walk.commands:
                steps.do(command)
            steps.look()
            assert steps.room == replayed.room and steps.things == replayed.things
            for room in walks.HOUSE:
                steps.go(room)
                replayed.go(room)
                assert steps.do("look around") == replayed.do("look around")
                assert steps.room == replayed.room and steps.things == replayed.things
        if walk.plan:
            assert walks.wins(other, number, walk.commands, walk.plan)
    assert walk.plan == []  # of chemistry


@pytest.mark.heavy
def test_engines_solutions_win_after_a_tour(machines, tmp_path):  # noqa: F811
    made = machines()
    number = of("chemistry-mix-paint-secondary-color", 1)
    walk = walks.record(made, number, variations.goals(made, tmp_path, [number])[0], True)
    actions = expert.after_walk(made, tmp_path, number, walk.commands)
    assert actions and expert.wins(made, number, actions, walk.commands)[0]
    assert "look around" not in actions
