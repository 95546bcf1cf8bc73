"""ALFWorld's tasks: what is told is true and the engine's own words, and stage 3 begins where the walk has ended."""

import dataclasses
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alfworld_games import HOUSEHOLDS, Made, goal, place, vocabulary, write, write_all
from test_alfworld import textworld, walked
from vocabularies import END

from agemem_jax import benchmarks
from agemem_jax.benchmarks.alfworld import arrays, cache, games, tasks, telling
from agemem_jax.benchmarks.alfworld.environment import AlfWorld
from agemem_jax.benchmarks.alfworld.expert import at_start
from agemem_jax.benchmarks.alfworld.play import NOWHERE
from agemem_jax.benchmarks.alfworld.texts import PIECES
from agemem_jax.benchmarks.alfworld.walk import wanted
from agemem_jax.config import ConfigError, check_fields, validate
from agemem_jax.data.batches import TaskSource, encoded, pad_text, pad_texts, stack
from agemem_jax.data.scripts import write_turn
from agemem_jax.data.staged import StagedRecord
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import run_stage, scripted_writer
from agemem_jax.rollout.turn import NO_CALL
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.setup import build
from configs import alfworld as configs
from configs import base

SIGHT = re.compile(r"(?:On the (.+?)|The (.+?) is open\. In it), you see (.+)\.$")
_reset = jax.jit(AlfWorld.reset, static_argnums=0)
_step = jax.jit(AlfWorld.step, static_argnums=0)


def flat(seed: int, kind: str = "simple") -> Made:
    """A household with many places, of which some are closed, and several of each thing."""
    rng = random.Random(seed)
    drawers = [f"Drawer_bar_{i}" for i in range(4)]
    open_ones = [*(f"Shelf_bar_{i}" for i in range(4)), "Desk_bar_1", "Bed_bar_1", "Sink_bar_1", "Microwave_bar_1"]
    safe, lamp = "Safe_bar_1", "DeskLamp_bar_1"
    receptacles = {r: place(1 + i // 2) for i, r in enumerate(rng.sample([*drawers, *open_ones], 12))}
    things = [f"{kind}_bar_{i}" for kind, n in (("Vase", 3), ("Book", 3), ("Pen", 2)) for i in range(n)]
    objects = {o: (rng.choice([*receptacles]),) for o in things} | {lamp: ("Desk_bar_1",)}
    wanted = goal("light", "Book", "DeskLamp") if kind == "light" else goal(kind, "Vase", "Safe")
    return Made(
        receptacles=receptacles | {safe: place(20)}, objects=objects, goal=wanted,
        task="Your task is to: examine the book with the desklamp." if kind == "light"
        else f"Your task is to: {dict(two='find two vase', clean='clean some vase')[kind]} and put it in safe."
        if kind != "simple" else "Your task is to: put a vase in safe.",
        openable=(safe, *drawers), pickupable=tuple(things),
        extra=(f"toggleable {lamp}", *(f"{able} {o}" for able in ("cleanable", "heatable") for o in things)),
        start=place(0),
        can=tuple((r, o) for r in ("Safe", "Shelf", "Desk", "Drawer", "Bed") for o in ("Vase", "Book", "Pen")),
    )  # fmt: skip


KINDS = ("simple", "two", "clean", "light")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Games of ours in train/ and test/, and a cache of the test's own."""
    folder = tmp_path_factory.mktemp("alfworld_tasks")
    write_all(folder / "train")
    for seed, kind in enumerate(KINDS * 3):
        write(folder / "train", f"flat{seed}", flat(seed, kind), is_moves=seed % 2 == 1)
        write(folder / "test", f"flat{seed}", flat(100 + seed, kind), is_moves=seed % 3 == 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    said = [text for game in map(games.read, games.files(str(folder))) for text in tasks._texts(game)]
    return vocabulary(folder, [*said * 3, *PIECES, telling.ELSEWHERE, telling.FORMERLY])


def config_of(folder: Path, **changes):
    c = base.get_config()
    c.task.benchmark = "alfworld"
    c.task.path, c.task.test_path, c.task.validation_fraction = str(folder / "train"), str(folder / "test"), 0.2
    c.task.revised, c.task.chatter, c.task.seen_tokens = 0.5, 1, 200
    c.rollout.action_tokens, c.rollout.stage3_turns = 48, 30
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def source_of(folder: Path, tokenizer, **changes) -> tuple[benchmarks.Benchmark, TaskSource]:
    config = config_of(folder, **changes)
    made = benchmarks.load(config, tokenizer)
    return made, TaskSource(config, tokenizer, made.tasks)


@pytest.fixture(scope="module")
def made(folder, tokenizer):
    """(benchmark, source), with messages long enough for whole sights."""
    return source_of(folder, tokenizer, task__message_tokens=120)


def all_staged(source: TaskSource, epochs: int = 2) -> list[StagedRecord]:
    return [source.staged(index, epoch) for index in range(len(source.records)) for epoch in range(epochs)]


@pytest.fixture(scope="module")
def told(made) -> list[StagedRecord]:
    return all_staged(made[1])


def played(made: benchmarks.Benchmark, tokenizer, rows: list, said: list[list[str]], whole: bool = True):
    """(first texts, texts after each command, state in the end, outcome in the end) of games that get commands.

    With `whole` every command has to be understood, but for those after a game is won.
    """
    env, game = made.env, jax.tree.map(jnp.asarray, stack(rows))
    state, seen = _reset(env, made.shared, game)
    spelt = lambda text, row: made.shared.spelling(jax.tree.map(lambda x: np.asarray(x)[row], text))  # noqa: E731
    first, texts, outcome = [spelt(seen, row) for row in range(len(rows))], [[] for _ in rows], None
    for step in range(max(map(len, said))):
        ids = [tokenizer.encode(row[step]) if step < len(row) else [] for row in said]
        on = np.array([step < len(row) for row in said])
        due = on & ~np.asarray(state.won)
        action = stack([pad_text(row, env.action_tokens) for row in ids])
        state, outcome = _step(env, made.shared, game, state, action, on)
        assert not whole or (np.asarray(outcome.understood) == due).all(), [
            said[row][step] for row in np.flatnonzero(due & ~np.asarray(outcome.understood))
        ]
        for row in np.flatnonzero(due):
            texts[row].append(spelt(outcome.seen, row))
    return first, texts, state, outcome


def seen_in(text: str) -> tuple[str, list[str]] | None:
    """(receptacle, what is seen there) of a sight."""
    if not (match := SIGHT.search(text)):
        return None
    listed = re.sub(r"^a ", "", match[3].replace(", and a ", ", a ")).split(", a ")
    return match[1] or match[2], [] if listed == ["nothing"] else listed


def holds(staged: StagedRecord, text: str) -> bool:
    """Whether what a message says is so when stage 3 begins."""
    game, now = staged.play.game, staged.play.now
    if put := re.search(r"You (?:put|move) the (.+?) (?:in/on|to) the (.+)\.$", text):
        return bool(now.inside[game.receptacles.index(put[2]), game.objects.index(put[1])])
    if shut := re.search(r"^The (.+) is closed\.$", text):
        return not now.opened[game.receptacles.index(shut[1])]
    if (sight := seen_in(text)) is None:
        return text == telling.EMPTY_HANDS
    r = game.receptacles.index(sight[0])
    told = np.isin(game.objects, sight[1])
    is_so = told.any() == now.inside[r].any() and not (told & ~now.inside[r]).any()
    return bool(is_so and told.sum() == len(sight[1]) and (now.opened[r] or not game.openable[r]))


def test_stage_3_begins_where_the_walk_has_ended(made, told, tokenizer):
    """The engine, given the walk's commands from a game's first state, comes to the state of the staged game."""
    bench, _ = made
    whole = [arrays.arrays(staged.play.game, tokenizer, bench.env.sizes) for staged in told]
    _, texts, walked, _ = played(bench, tokenizer, whole, [list(staged.play.walk) for staged in told])
    start, _ = _reset(bench.env, bench.shared, jax.tree.map(jnp.asarray, stack([bench.tasks.game(s) for s in told])))
    for name in start.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(start, name), getattr(walked, name), err_msg=name)
    assert (np.asarray(start.held) == NOWHERE).all() and not np.asarray(start.won).any()
    assert np.asarray(start.left).any() and (np.asarray(start.location) != NOWHERE).all()
    # Messages are what the engine answers, in the order of the walk.
    for staged, answers in zip(told, texts, strict=True):
        rest = iter(answers)
        assert all(any(fact in answer for answer in rest) for fact in staged.facts), (staged.facts, answers)


def test_what_is_told_is_so_but_what_is_said_to_have_changed(told):
    changed = Counter()
    for staged in told:
        stale = [text for text, _ in staged.revisions]
        for text in staged.facts:
            assert holds(staged, text) == (text not in stale), (text, staged.play.walk)
        for old, new in staged.revisions:
            assert staged.facts.index(old) < staged.facts.index(new) and new in staged.gold and old not in staged.gold
            assert sorted(re.findall(r"\d+", old)) != sorted(re.findall(r"\d+", new))
        changed[bool(stale)] += 1
        assert staged.is_gold == [text in staged.gold for text in staged.facts] and staged.keep == staged.gold
        assert set(staged.gold) <= set(staged.facts) and len(staged.gold) <= telling.MOST_GOLD
        assert not any(text.startswith((telling.ELSEWHERE, telling.FORMERLY)) for text in staged.facts)
    assert 0.25 <= changed[True] / changed.total() <= 0.55


def test_what_the_goal_is_about_is_only_where_it_was_told(told):
    """Nowhere else could it be found, but for what lies in several places or cannot be carried."""
    elsewhere = 0
    for staged in told:
        game, now, known = staged.play.game, staged.play.now, staged.play.known
        places = known.any(1)
        assert 1 <= places.sum() <= telling.MOST_GOLD and not (known & ~now.inside).any()
        others = now.inside & wanted(game) & ~places[:, None]
        elsewhere += int(others.any())
        movable = (now.inside.sum(0) == 1) & game.able[0]
        if "flat" in game.path:
            assert not (others & movable).any(), staged.play.walk
    assert elsewhere < 0.2 * len(told)


def test_where_stage_3_begins_says_nothing_of_where_things_are(made):
    """As often as of any other place, what is needed is where the agent stands."""
    here, chance = [], []
    for staged in all_staged(made[1], epochs=12):
        game, now = staged.play.game, staged.play.now
        places = set(game.place[(now.inside & wanted(game)).any(1) & game.reachable].tolist())
        here.append(now.location in places)
        chance.append(len(places) / len(set(game.place[game.reachable].tolist())))
    assert abs(np.mean(here) - np.mean(chance)) < 0.05, (np.mean(here), np.mean(chance))


def test_both_solvers_win_and_the_one_who_knows_sooner(made, told, tokenizer):
    bench, _ = made
    rows, length = [bench.tasks.game(staged) for staged in told], {}
    for knows in (True, False):
        plans = [bench.tasks.solve(staged, random.Random(i), knows) for i, staged in enumerate(told)]
        found = [i for i, plan in enumerate(plans) if plan]
        assert len(found) == len(told) if knows else len(found) > 0.9 * len(told)
        _, _, state, _ = played(bench, tokenizer, [rows[i] for i in found], [plans[i] for i in found])
        assert np.asarray(state.won).all()
        length[knows] = np.mean([len(plans[i]) for i in found])
        assert max(map(len, filter(None, plans))) <= 30
    assert length[True] + 2 < length[False]


def test_a_slip_changes_nothing(made, told, tokenizer):
    bench, _ = made
    rows, plans, slips = [bench.tasks.game(staged) for staged in told], [], []
    for staged in told:
        plan, said, slipped = bench.tasks.solve(staged, random.Random(0), True), [], []
        for step, command in enumerate(plan):
            if slip := bench.tasks.slip(staged, plan, step):
                slipped.append(len(said))
                said.append(slip)
            said.append(command)
        plans.append(said)
        slips.append(slipped)
    assert sum(map(len, slips)) > 0.4 * sum(map(len, plans))
    _, texts, state, _ = played(bench, tokenizer, rows, plans, whole=False)
    assert np.asarray(state.won).all()
    for said, row, slipped in zip(plans, texts, slips, strict=True):
        for step in slipped:
            assert row[step] == "Nothing happens." or said[step].startswith(("clean", "heat", "cool")), said[step]


def test_a_plan_that_takes_more_turns_than_there_are_is_none(folder, tokenizer):
    bench, source = source_of(folder, tokenizer, rollout__stage3_turns=4)
    plans = [bench.tasks.solve(staged, random.Random(0), True) for staged in all_staged(source, 1)]
    assert any(plan is None for plan in plans) and max(len(plan) for plan in plans if plan) <= 4


def test_the_first_observation_of_stage_3_has_all_receptacles_and_the_query_the_goal(made, told, tokenizer):
    bench, _ = made
    some = told
    first, *_ = played(bench, tokenizer, [bench.tasks.game(s) for s in some], [["look"]] * len(some))
    for staged, text in zip(some, first, strict=True):
        game = staged.play.game
        here = re.match(r"You are facing the (.+?)\. Looking quickly around you, you see (a .+)\.$", text)
        assert game.place[game.receptacles.index(here[1])] == staged.play.now.location
        listed = re.sub("^a ", "", here[2].replace(", and a ", ", a ")).split(", a ")
        assert listed == [name for name, p in zip(game.receptacles, game.place, strict=True) if p != NOWHERE]
        assert staged.query == game.task and "task" not in text
    words = {kind: next(s.key_words for s in told if s.kind == kind and "vase" in s.query) for kind in KINDS[:3]}
    assert words == {"simple": ["vase", "safe"], "two": ["vase", "safe"], "clean": ["clean", "vase", "safe"]}


def whole(text: str, before: str) -> str:
    """A message of stage 2 without what is put before it."""
    assert text.startswith(before)
    return text[len(before)].upper() + text[len(before) + 1 :]


def test_stage_2_is_of_other_places_and_times(told):
    for staged in told:
        assert 0 < len(staged.distractors) == len(staged.distractor_speakers) <= 4
        for text in staged.distractors:
            if text.startswith(telling.FORMERLY):
                assert not holds(staged, whole(text, telling.FORMERLY))
            else:
                idle = (telling.EMPTY_HANDS, telling.NOTHING_HAPPENS)
                assert text in idle or seen_in(whole(text, telling.ELSEWHERE))
    said = {text for staged in told for text in staged.distractors}
    assert any(text.startswith(telling.ELSEWHERE) for text in said)
    assert any(text.startswith(telling.FORMERLY) and "you see" in text for text in said)


def test_a_record_is_told_alike_each_time_and_otherwise_in_another_epoch(made, told):
    bench, source = made
    again = all_staged(source)
    assert [s.facts + s.distractors for s in again] == [s.facts + s.distractors for s in told]
    assert [s.play.walk for s in again] == [s.play.walk for s in told]
    pairs = list(zip(told[::2], told[1::2], strict=True))
    assert sum(one.facts != other.facts for one, other in pairs) > 0.9 * len(pairs)
    # Whether something changes belongs to the record; in small households there may be no way.
    assert np.mean([bool(one.revisions) == bool(other.revisions) for one, other in pairs]) > 0.8
    assert json.dumps(source.records) and {s.kind for s in told} <= set(bench.tasks.kinds)


@pytest.mark.parametrize(
    ("facts", "chatter", "most", "later"), [(2, 0, 40, 1), (4, 2, 24, 2), (7, 1, 30, 5), (12, 4, 60, 7)]
)
def test_messages_keep_their_limits(folder, tokenizer, facts, chatter, most, later):
    changes = dict(task__facts=facts, task__chatter=chatter, task__message_tokens=most, task__distractors=later)
    _, source = source_of(folder, tokenizer, **changes)
    size, counts = lambda text: len(encoded(tokenizer, text)), []
    for staged in all_staged(source, 1):
        assert len(staged.facts) <= facts and len(staged.distractors) <= later
        # What the goal is about is told whatever it takes; here it fits.
        assert max(map(size, [*staged.facts, *staged.distractors, *staged.gold])) <= most
        counts.append(len(staged.facts))
        idle = [text for text in staged.facts if text == telling.EMPTY_HANDS or text.endswith("is closed.")]
        assert len(idle) <= chatter
    assert max(counts) == facts
    task = source.batch(0, tasks=4, group_size=2)
    assert task.game.inside.shape[0] == 8 and task.facts.tokens.shape[1:] == (facts, most)


def test_official_games_are_as_published(folder, tokenizer):
    bench, source = source_of(folder, tokenizer, task__official=True)
    told = all_staged(source)
    assert not any(s.facts or s.distractors or s.gold or s.keep or s.revisions for s in told)
    for staged in told:
        game, start = bench.tasks.game(staged), at_start(staged.play.game)
        whole = arrays.arrays(staged.play.game, tokenizer, bench.env.sizes)
        jax.tree.map(np.testing.assert_array_equal, game, whole)
        assert staged.play.now.location == start.location and staged.query == staged.play.game.task
    plans = [bench.tasks.solve(staged, random.Random(0), True) for staged in told]
    first, _, state, _ = played(bench, tokenizer, [bench.tasks.game(s) for s in told], plans)
    assert np.asarray(state.won).all()
    assert all(text.startswith("-= Welcome") and text.endswith(s.query) for text, s in zip(first, told, strict=True))
    assert source.batch(0, tasks=2, group_size=1).num_facts.tolist() == [0, 0]


def test_a_whole_stage_3_is_won_by_who_knows(folder, tokenizer):
    """Through the program of stage 3, in the vocabulary of all benchmarks and the shipped small config."""
    c = configs.get_config("tiny")
    c.task.path, c.task.test_path = str(folder / "train"), str(folder / "test")
    c.update_from_flattened_dict({
        "policy.weights": "", "policy.hidden_size": 32, "policy.intermediate_size": 48, "policy.num_layers": 1,
        "policy.num_heads": 2, "policy.num_kv_heads": 1, "policy.head_dim": 16, "rl.tasks_per_update": 2,
        "rl.group_size": 2, "rl.kl_coef": 0.0, "mesh.fsdp": 1, "rollout.history_widths": 1, "rollout.prefill_rows": 0,
        "task.seen_tokens": 96, "context.limit": 400, "context.capacity": 400,
    })  # fmt: skip
    run = build(c)
    spec, source = run.spec.rollout, run.source
    picks = [(index, 0) for index in source.places["test"]][: spec.batch]
    told = [source.staged(*pick) for pick in picks]
    plans = [source.tasks.solve(staged, random.Random(0), True) for staged in told]
    end, encode = run.tokenizer.end_of_turn, run.tokenizer.encode_markup
    assert end == END
    turns = [[write_turn(c.tools, [], action) + end for action in plan] for plan in plans]
    idle = write_turn(c.tools, []) + end
    script = stack([
        pad_texts([encode(text) for text in row + [idle] * (c.rollout.stage3_turns - len(row))], 10, spec.width)
        for row in turns
    ])  # fmt: skip
    summaries = stack([pad_texts([encode(f" a{end}")] * c.rollout.summary_slots, 2, spec.width)] * spec.batch)

    @jax.jit
    def stage3(task, script, summaries, world):
        rows, write = new_rows(spec), scripted_writer(world, spec, script, summaries)
        return run_stage(rows, task, world, spec, 3, write, jnp.int32(ALL_TOOLS), jnp.full(spec.batch, NO_CALL))

    rows, trace = jax.device_get(stage3(source.rows(picks), script, summaries, run.world))
    assert rows.stats.success.all() and (rows.stats.progress == 1).all() and rows.finished.all()
    assert rows.stats.actions.tolist() == [len(plan) for plan in plans] == rows.stats.understood.tolist()
    shown = run.tokenizer.decode(trace.seen.tokens[0, 0][: trace.seen.length[0, 0]].tolist())
    assert told[0].query in shown and "Looking quickly around you" in shown


def in_language(language, command: str) -> bool:
    return any(
        re.fullmatch("".join(f"({'|'.join(map(re.escape, texts))})" for texts in template), f" {command}")
        for template in language
    )


def test_every_command_is_in_the_language(made, folder):
    """Whatever is admissible in random walks, but for what cannot be typed: names that end in a blank."""
    bench, _ = made
    listed = {
        command
        for walk in walked(games.files(str(folder)), seed=2, steps=15)
        for _, admissible, _ in walk["states"]
        for command in re.split(", (?=[a-z])", admissible)
    }
    typed = {command for command in listed if not re.search("(cloth|rack) ", command)}
    assert len(typed) > 250 and len({command.split()[0] for command in typed}) > 9
    assert [command for command in sorted(typed) if not in_language(bench.language, command)] == []
    for other in ("go to vase 1", "take shelf 1 from vase 1", "look 1", "go to shelf", "open shelf 1"):
        assert not in_language(bench.language, other)


def test_splits_of_one_folder_share_no_game_and_parts_pick_kinds(folder, tokenizer):
    changes = dict(task__test_path="", task__test_fraction=0.3)
    bench, _ = source_of(folder, tokenizer, **changes)
    splits = {split: {record["game"] for record in found} for split, found in bench.tasks.splits.items()}
    assert {split: len(found) for split, found in splits.items()} == {"train": 12, "validation": 5, "test": 7}
    assert len(set().union(*splits.values())) == 24
    other, _ = source_of(folder, tokenizer, task__seed=1, **changes)
    assert other.tasks.splits != bench.tasks.splits
    part, _ = source_of(folder, tokenizer, task__parts=("two", "light"))
    assert {record["kind"] for found in part.tasks.splits.values() for record in found} == {"two", "light"}


def test_a_game_of_a_later_split_is_left_out_of_an_earlier_one(folder, tokenizer, tmp_path):
    write(tmp_path / "test", "hall", HOUSEHOLDS["hall"])
    with pytest.warns(UserWarning, match=r"left out 1 of \d+ train games"):
        bench, _ = source_of(folder, tokenizer, task__test_path=str(tmp_path / "test"), task__seed=3)
    (test,) = bench.tasks.splits["test"]
    assert test not in bench.tasks.splits["train"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task__path": ""}, ConfigError, r"task.path = '': .*give a folder such as json_2.1.1/train"),
        ({"task__path": "nowhere"}, InputError, r"task.path: nowhere: there is no game.tw-pddl in it"),
        ({"task__test_path": "nowhere"}, InputError, r"task.test_path: nowhere: there is no game.tw-pddl"),
        ({"task__parts": ("sweep",)}, ConfigError, r"task.parts = \('sweep',\): there is no kind 'sweep'.*simple"),
        ({"task__seen_tokens": 20}, ConfigError, r"task.seen_tokens = 20: .*game.tw-pddl needs \d+ tokens"),
        ({"rollout__action_tokens": 4}, ConfigError, r"rollout.action_tokens = 4: .*needs \d+ tokens"),
        ({"task__test_path": "", "task__test_fraction": 0.0}, InputError, r"games give .* 0 test tasks"),
        ({"task__parts": ("heat",), "task__test_path": ""}, InputError, r"need at least one each.*\('heat',\)"),
    ],
)
def test_what_cannot_be_used_is_named(folder, tokenizer, changes, error, message):
    with pytest.raises(error, match=message):
        source_of(folder, tokenizer, **changes)


def test_shipped_configs(folder):
    for variant in ("", "tiny"):
        config = configs.get_config(variant)
        check_fields(config, base.get_config())
        config.task.path = "some/folder"
        validate(config)


def same(one, other) -> bool:
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other and type(one) is type(other)


def test_games_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths, read, count = list(write_all(tmp_path / "games").values()), games.read, []
    monkeypatch.setattr(games, "read", lambda path: count.append(path) or read(path))
    first = cache.read_all(paths)
    assert len(count) == len(paths) and all(map(same, first, cache.read_all(paths))) and len(count) == len(paths)
    (kept,) = cache.folder().iterdir()
    # A damaged file is written anew, a changed game is read anew.
    kept.write_bytes(kept.read_bytes()[:2000])
    assert all(map(same, first, cache.read_all(paths))) and len(count) == 2 * len(paths)
    assert all(map(same, first, cache.read_all(paths))) and len(count) == 2 * len(paths)
    changed = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps(changed | {"solvable": False, "note": "x"}))
    assert cache.read_all(paths)[0].digest != first[0].digest and len(count) == 3 * len(paths)
    # Where nothing can be kept, games are read each time.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert all(map(same, first[1:], cache.read_all(paths)[1:])) and len(count) == 4 * len(paths)


# The published games.


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    if "AGEMEM_DATA" not in os.environ:
        pytest.skip("AGEMEM_DATA, the folder with alfworld/, is not set")
    config = configs.get_config("tiny")
    folder = Path(os.environ["AGEMEM_DATA"]) / "alfworld" / "json_2.1.1"
    config.task.path, config.task.test_path = str(folder / "valid_train"), str(folder / "valid_seen")
    tokenizer = Tokenizer.load(config.policy.tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        begin = time.monotonic()
        cold = cache.read_all(games.files(str(folder)))
        middle = time.monotonic()
        warm = cache.read_all(games.files(str(folder)))
        end = time.monotonic()
        bench = benchmarks.load(config, tokenizer)
    print(f"{len(cold)} games read in {middle - begin:.1f} s, again in {end - middle:.2f} s")
    assert all(map(same, cold, warm)) and middle - begin < 60 and end - middle < 5
    return bench, TaskSource(config, tokenizer, bench.tasks), tokenizer


@pytest.mark.heavy
def test_published_games_are_told_and_won(published):
    """Walks as the engine plays them, and both solvers, within the turns that the small config has."""
    bench, source, tokenizer = published
    told = all_staged(source, 1)
    assert len(told) == 340 and not any(cut["share"] for cut in source.cut_texts.values())
    won = Counter()
    for i in range(0, len(told), 68):
        some = told[i : i + 68]
        whole = [arrays.arrays(staged.play.game, tokenizer, bench.env.sizes) for staged in some]
        _, _, walked, _ = played(bench, tokenizer, whole, [list(staged.play.walk) for staged in some])
        rows = [bench.tasks.game(staged) for staged in some]
        start, _ = _reset(bench.env, bench.shared, jax.tree.map(jnp.asarray, stack(rows)))
        jax.tree.map(np.testing.assert_array_equal, start, walked)
        for knows in (True, False):
            plans = [bench.tasks.solve(staged, random.Random(j), knows) for j, staged in enumerate(some)]
            found = [j for j, plan in enumerate(plans) if plan]
            *_, state, _ = played(bench, tokenizer, [rows[j] for j in found], [plans[j] for j in found])
            assert np.asarray(state.won).all()
            won[knows] += len(found)
        for staged in some:
            stale = [text for text, _ in staged.revisions]
            assert all(holds(staged, text) == (text not in stale) for text in staged.facts)
    print({"told": won[True] / 340, "searching": won[False] / 340})
    assert won[True] == 340 and won[False] < 0.65 * 340
    assert 0.25 <= np.mean([bool(staged.revisions) for staged in told]) <= 0.5


@pytest.mark.heavy
def test_textworld_plays_the_walks_too(published):
    """Of every n-th game with AGEMEM_ALFWORLD_STRIDE=n: each command of walk and plan is understood, and wins."""
    bench, source, _ = published
    told = all_staged(source, 1)[:: int(os.environ.get("AGEMEM_ALFWORLD_STRIDE", "1"))]
    plans = [bench.tasks.solve(staged, random.Random(0), True) for staged in told]
    walks = [{"path": s.play.game.path, "commands": [*s.play.walk, *p]} for s, p in zip(told, plans, strict=True)]
    for walk in textworld(walks):
        assert walk["states"][-1][2] and "Nothing happens." not in [seen for seen, *_ in walk["states"]]
        commands = {c for _, listed, _ in walk["states"] for c in re.split(", (?=[a-z])", listed)}
        assert all(in_language(bench.language, command) for command in commands if not command.endswith(" "))
