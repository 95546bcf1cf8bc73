"""BabyAI against minigrid and AgentBoard: recorded walks of both, and minigrid itself where it is installed."""

import importlib
import json
import os
import zlib
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agemem_jax.benchmarks.babyai import environment as engine
from agemem_jax.benchmarks.babyai import expert, levels, search, subgoals, wording
from agemem_jax.benchmarks.babyai.levels import FIRST, Game, Sizes
from agemem_jax.benchmarks.babyai.macros import Macros
from agemem_jax.benchmarks.babyai.subgoals import Labelled
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.types import Text
from tests import babyai_record
from tests.babyai_record import BEGUN, LEVELS, Walker, digest
from tests.vocabularies import write_bpe

has_minigrid = pytest.mark.skipif(
    importlib.util.find_spec("minigrid") is None, reason="minigrid is not installed (pip install 'agemem_jax[babyai]')"
)
FIXTURES = Path(__file__).parent / "fixtures"
DTYPES = dict.fromkeys(("cells", "kind", "colour", "doors", "contains", "atom", "order"), np.int8)
DTYPES |= dict.fromkeys(("position", "direction", "carrying", "max_steps"), np.int32)
DTYPES |= {"known": np.int16, "named": np.uint32} | dict.fromkeys(("strict", "order_strict"), bool)

start, act, see = jax.jit(engine.start), jax.jit(engine.act), jax.jit(engine.see)
first_view, look, image = jax.jit(engine.first_view), jax.jit(engine.look), jax.jit(engine.image)
reset, step = (jax.jit(function, static_argnums=0) for function in (Macros.reset, Macros.step))
labelled_reset, labelled_step = (jax.jit(f, static_argnums=0) for f in (Labelled.reset, Labelled.step))
MACROS = Macros(seen_tokens=320, action_tokens=48)


def stacked(games: list[dict]) -> Game:
    """Games from a fixture, one a row."""
    told = {f: np.stack([np.array(game[f], dtype) for game in games]) for f, dtype in DTYPES.items()}
    return Game(**told, **{f: np.stack([value] * len(games)) for f, value in BEGUN.items()})


def records(kind: str) -> list[dict]:
    return json.loads((FIXTURES / f"babyai_{kind}.json").read_text())


def pictures(game: Game, state: engine.State) -> tuple[np.ndarray, np.ndarray]:
    """minigrid's image [B, 7, 7, 3], and its encoding of the whole grid [B, S, S, 3] (down, across)."""
    table = np.asarray(image(jnp.arange(engine.FIRST_LOOK + engine.LOOKS, dtype=jnp.int8)[:, None, None]))[:, 0, 0]
    codes = np.asarray(look(game, state)) + engine.FIRST_LOOK
    codes = np.concatenate([np.tile([engine.SEEN_EMPTY, engine.SEEN_WALL], (len(codes), 1)), codes], 1)
    grid = table[np.take_along_axis(codes, np.asarray(state.cells, np.int64), 1)]
    return np.asarray(image(see(game, state))), grid.reshape(*game.cells.shape, 3)


def extent(cells: np.ndarray) -> tuple[slice, slice]:
    """The part of the cells [S, S] that is the level; beyond it are walls alone."""
    open_rows, open_columns = ((cells != levels.WALL).any(axis).nonzero()[0].max() + 2 for axis in (1, 0))
    return slice(open_rows), slice(open_columns)


# ---------------------------------------------------------------------------------------------------- primitives


def test_recorded_walks_are_minigrids():
    walks = records("minigrid")
    game = stacked([walk["game"] for walk in walks])
    state, on = start(game), jnp.ones(len(walks), bool)
    for i in range(len(walks[0]["actions"])):
        state, verdict = act(game, state, jnp.array([walk["actions"][i] for walk in walks]), on)
        view, grid = pictures(game, state)
        got = jax.tree.map(np.asarray, (state, verdict))
        for row, walk in enumerate(walks):
            across, down, direction, seen, reward, terminated, truncated = walk["expected"][i]
            assert [*got[0].position[row], got[0].direction[row]] == [across, down, direction]
            assert digest(view[row], grid[row][extent(game.cells[row])]) == seen, (walk["name"], i)
            won = 1 - 0.9 * (i + 1) / game.max_steps[row] if got[1].success[row] else 0
            assert round(float(won), 6) == reward, (walk["name"], i)
            assert (got[1].terminated[row], got[1].truncated[row]) == (terminated, truncated)


def walk_beside_minigrid(names: list[str], steps: int, seeds: int = 2) -> int:
    """Walks of minigrid and the engine from the same grids; returns how many states were the same, which all must be.

    Compared: image, grid, agent, what it carries, steps, and success, terminated and truncated of each action.
    """
    cases = [(name, seed) for name in names for seed in range(seeds)]
    real = [levels.make(*case) for case in cases]
    game = levels.stack([levels.from_minigrid(one, *case) for one, case in zip(real, cases, strict=True)])
    walkers = [Walker(one, i, bot=i % 2 == 0) for i, one in enumerate(real)]
    state, on, same = start(game), jnp.ones(len(cases), bool), 0
    for _ in range(steps):
        actions = [walker() for walker in walkers]
        state, verdict = act(game, state, jnp.array(actions), on)
        view, grid = pictures(game, state)
        codes = np.asarray(look(game, state)) + engine.FIRST_LOOK
        got, said = jax.tree.map(np.asarray, (state, verdict))
        for row, (one, case) in enumerate(zip(real, cases, strict=True)):
            seen, reward, terminated, truncated, _ = one.step(actions[row])
            np.testing.assert_array_equal(view[row], seen["image"], str(case))
            whole = one.grid.encode().swapaxes(0, 1)
            np.testing.assert_array_equal(grid[row][: one.height, : one.width], whole, str(case))
            assert (*got.position[row], got.direction[row]) == (*one.agent_pos, one.agent_dir), case
            held = codes[row, got.carrying[row]] if got.carrying[row] >= 0 else engine.SEEN_EMPTY
            carried = (1, 0, 0) if one.carrying is None else one.carrying.encode()
            assert tuple(np.asarray(image(jnp.full((1, 1, 1), held)))[0, 0, 0]) == carried, case
            won = 1 - 0.9 * one.step_count / one.max_steps if said.success[row] else 0
            assert reward == pytest.approx(won, abs=1e-12), case
            assert (said.terminated[row], said.truncated[row]) == (terminated, truncated), case
            same += 1
    return same


@has_minigrid
def test_walks_are_minigrids():
    assert walk_beside_minigrid(list(LEVELS), steps=40) == 24 * 40


@pytest.mark.heavy
@has_minigrid
def test_walks_of_all_levels_are_minigrids():
    names = levels.names()
    assert len(names) == 96
    print("identical states:", walk_beside_minigrid(names, steps=250, seeds=3))


@has_minigrid
def test_levels_are_what_was_recorded():
    for walk in records("minigrid"):
        level = levels.read(walk["name"], walk["seed"])
        for field, value in walk["game"].items():
            np.testing.assert_array_equal(getattr(level.game, field), value)
            assert getattr(level.game, field).dtype == DTYPES[field]


@has_minigrid
def test_the_first_view_is_of_before_something_was_taken_in_hand():
    for seed in range(6):
        real = levels.make("BabyAI-PutNextS5N2Carrying-v0", seed)
        fresh, _ = real.reset(seed=seed)
        game = levels.stack([levels.from_minigrid(real, "BabyAI-PutNextS5N2Carrying-v0", seed)])
        np.testing.assert_array_equal(image(first_view(game, start(game)))[0], fresh["image"])


# --------------------------------------------------------------------------------------------- what is odd, by name


def room(things: dict, atoms: list, order: int = levels.ALONE, order_strict: bool = False, at=(1, 1)) -> Game:
    """A room of 5 x 5 cells, the agent looking right.

    things: (across, down) -> (kind, colour) or (kind, colour, bits of a door).
    atoms: (slot, kind, strict, places of the first description, of the second).
    """
    sizes = Sizes(side=7, objects=4)
    cells = np.full((sizes.side, sizes.side), levels.WALL, np.int8)
    cells[1:6, 1:6] = levels.EMPTY
    kind, colour, doors = (np.zeros(sizes.objects, np.int8) for _ in range(3))
    known = np.full(sizes.objects, levels.NOTHING, np.int16)
    number = {place: i for i, place in enumerate(things)}
    for (across, down), thing in things.items():
        i = number[across, down]
        cells[down, across], known[i] = FIRST + i, down * sizes.side + across
        kind[i], colour[i], doors[i] = (*thing, 0)[:3]
    atom, strict = np.zeros(4, np.int8), np.zeros(4, bool)
    named = np.zeros((4, 2, 1), np.uint32)
    for slot, what, is_strict, *places in atoms:
        atom[slot], strict[slot] = what, is_strict
        for j, some in enumerate(places):
            named[slot, j] = sum(1 << number[place] for place in some)
    game = Game(
        cells=cells, kind=kind, colour=colour, doors=doors, contains=np.full(sizes.objects, -1, np.int8), known=known,
        position=np.array(at, np.int32), direction=np.int32(0), carrying=np.int32(-1), max_steps=np.int32(50),
        atom=atom, strict=strict, named=named, order=np.int8(order), order_strict=np.bool_(order_strict),
        **BEGUN,
    )  # fmt: skip
    return jax.tree.map(lambda x: x[None], game)


def verdicts(game: Game, *actions: int) -> str:
    """What is said of each action: "." to go on, "s" success, "f" failure."""
    state, said = start(game), ""
    for action in actions:
        state, verdict = act(game, state, jnp.array([action]), jnp.array([True]))
        said += "s" if verdict.success[0] else "f" if verdict.terminated[0] else "."
    return said


LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
BALL, KEY, DOOR, BOX = (levels.BALL, 0), (levels.KEY, 1), (levels.DOOR, 2), (levels.BOX, 3)


def test_what_was_picked_up_is_still_gone_to_where_it_lay():
    game = room({(2, 1): BALL}, [(0, levels.GO_TO, False, [(2, 1)])])
    assert verdicts(game, DONE, PICKUP, LEFT, RIGHT, RIGHT, DROP, LEFT) == "ss.s.s."
    # Only a drop tells that it is no longer there.
    game = room({(2, 1): BALL, (1, 2): KEY}, [(0, levels.GO_TO, False, [(2, 1)])])
    assert verdicts(game, PICKUP, RIGHT, LEFT, DONE) == "s.ss"
    assert verdicts(game, PICKUP, RIGHT, DROP, LEFT) == "s..."  # also one that fails, for the key lies there


def test_an_atom_that_has_not_begun_knows_nothing_of_the_hand():
    things = {(2, 1): BALL, (1, 3): KEY, (4, 1): DOOR}
    put = (2, levels.PUT_NEXT, False, [(2, 1)], [(1, 3)])
    game = room(things, [(0, levels.PICK_UP, False, [(2, 1)]), put], levels.BEFORE)
    assert verdicts(game, PICKUP, RIGHT, DROP) == "..s"
    # The first side is done by the very drop at which the second one begins.
    game = room(things, [(0, levels.GO_TO, False, [(2, 1)]), put], levels.BEFORE, at=(1, 2))
    state, on = start(game), jnp.array([True])
    assert not act(game, state.replace(carrying=jnp.array([0])), jnp.array([DROP]), on)[1].success[0]


def test_strict_levels_fail_by_the_wrong_object_and_an_and_forgets_it():
    things = {(2, 1): BALL, (1, 2): KEY}
    pick = levels.PICK_UP
    assert verdicts(room(things, [(0, pick, True, [(1, 2)])]), PICKUP) == "f"
    assert verdicts(room(things, [(0, pick, False, [(1, 2)])]), PICKUP) == "."
    both = [(0, pick, True, [(1, 2)]), (1, levels.GO_TO, False, [(1, 2)])]
    assert verdicts(room(things, both), PICKUP, RIGHT, DROP) == "..."
    put = [(0, levels.PUT_NEXT, True, [(2, 1)], [(1, 2)])]
    assert verdicts(room(things, put), PICKUP) == "f"  # also by the right one: it is in hand


def test_the_wrong_order_is_a_failure_where_it_is_strict():
    atoms = [(0, levels.GO_TO, False, [(1, 2)]), (2, levels.GO_TO, False, [(2, 1)])]
    things = {(2, 1): BALL, (1, 2): KEY}
    assert verdicts(room(things, atoms, levels.BEFORE, True), DONE) == "f"
    assert verdicts(room(things, atoms, levels.BEFORE), DONE, RIGHT, LEFT) == "..s"
    assert verdicts(room(things, atoms, levels.AFTER, True), DONE, RIGHT) == ".s"


def test_identity_counts_and_not_looks():
    game = room({(2, 1): BALL, (1, 2): BALL}, [(0, levels.PICK_UP, False, [(1, 2)])])
    assert verdicts(game, PICKUP, DROP, RIGHT, PICKUP) == "...s"


def test_a_box_gives_place_to_what_is_in_it():
    game = room({(2, 1): BOX, (3, 3): KEY}, [(0, levels.PICK_UP, False, [(3, 3)])])
    inside = game.replace(
        cells=np.where(game.cells == FIRST + 1, levels.EMPTY, game.cells).astype(np.int8),
        contains=np.array([[1, -1, -1, -1]], np.int8),
        known=np.where(np.arange(4) == 1, -1, game.known).astype(np.int16),
    )
    assert verdicts(inside, TOGGLE, PICKUP) == ".s"
    state = act(inside, start(inside), jnp.array([TOGGLE]), jnp.array([True]))[0]
    assert state.place[0].tolist()[:2] == [-1, 9]
    assert verdicts(game, TOGGLE, FORWARD, FORWARD) == "..."  # an empty box is gone


def test_locked_doors_open_by_their_key_alone():
    door = (levels.DOOR, 1, levels.LOCKED)
    for colour, said in ((1, "...s"), (2, "....")):
        game = room({(1, 2): (levels.KEY, colour), (2, 1): door}, [(0, levels.OPEN_IT, False, [(2, 1)])])
        assert verdicts(game, RIGHT, PICKUP, LEFT, TOGGLE) == said


def test_rows_that_are_off_stay():
    walks = records("agentboard")
    game, batch = stacked([walk["game"] for walk in walks]), len(walks)
    state, on = start(game), jnp.arange(batch) % 2 == 0
    after, verdict = act(game, state, jnp.full(batch, FORWARD), on)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1::2], new[1::2])
    assert not np.asarray(verdict.terminated)[1::2].any()


# ----------------------------------------------------------------------------------------------------------- search


def queue_path(goal: int, free: np.ndarray, arrive: bool) -> list[int] | None:
    """AgentBoard's search with its queue, on a board of 8 x 8."""

    def after(cell, direction, step):
        if step:
            return cell, (direction + (3 if step == search.LEFT else 1)) % 4
        row, column = np.array(divmod(cell, 8)) + [(1, 0), (0, 1), (-1, 0), (0, -1)][direction]
        return (int(row * 8 + column) if 0 <= row < 8 and 0 <= column < 8 else None), direction

    begin = (search.START, 0)
    queue, popped, parent = deque([begin]), set(), {}
    while queue:
        state = queue.popleft()
        popped.add(state)
        if goal == (state[0] if arrive else after(*state, 0)[0]):
            path = []
            while state != begin:
                state, taken = parent[state]
                path.append(taken)
            return path[::-1]
        for taken in range(3):
            new = after(*state, taken)
            if new[0] is not None and free[new[0]] and new not in popped:
                queue.append(new)
                parent[new] = state, taken
    return None


def test_paths_are_those_of_agentboards_queue():
    rng, batch = np.random.default_rng(0), 192
    free = rng.random((batch, 64)) < rng.uniform(0.5, 1, (batch, 1))
    free[::2, :8], free[::3, 7::8] = False, False  # as for three of the four directions
    free[:, search.START] = True
    goal, arrive = rng.choice([i for i in range(64) if i != search.START], batch), rng.random(batch) < 0.3
    board = search.board(jnp.asarray(free))
    inside = (search.one(jnp.asarray(goal)) & board)[:, None]
    goals = jnp.where(arrive[:, None, None], inside, search.facing(jnp.asarray(goal), board))
    has_path = ((goals & search.reached(board)[:, None]) > 0).any((1, 2))
    chosen = jax.jit(search.goal_of)(goals, board, has_path)
    way, walk = jax.jit(search.distances)(chosen, board, has_path), jax.jit(search.next_step, static_argnums=3)
    cell, direction, paths = jnp.full(batch, search.START), jnp.zeros(batch, jnp.int32), [[] for _ in goal]
    while (moving := has_path & ~search.at_goal(chosen, cell, direction)).any():
        taken, new_cell, new_direction = walk(way, cell, direction, True)
        for row in np.flatnonzero(moving):
            paths[row].append(int(taken[row]))
        cell, direction = jnp.where(moving, new_cell, cell), jnp.where(moving, new_direction, direction)
    for row in range(batch):
        assert (paths[row] if has_path[row] else None) == queue_path(int(goal[row]), free[row], bool(arrive[row]))
    assert max(map(len, paths)) > 12 and not has_path.all()


# ------------------------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = tuple(text for group in wording.PIECES.values() for text in group)
    return Tokenizer.load(write_bpe(tmp_path_factory.mktemp("bpe"), texts=texts))


@pytest.fixture(scope="module")
def shared(tokenizer):
    return wording.shared(tokenizer)


def tokens(tokenizer: Tokenizer, texts: list[str], width: int = MACROS.action_tokens) -> Text:
    table, length = np.zeros((len(texts), width), np.int32), np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text)[:width] if text else []
        table[i, : len(ids)], length[i] = ids, len(ids)
    return Text(jnp.asarray(table), jnp.asarray(length))


def strings(tokenizer: Tokenizer, texts: Text) -> list[str]:
    rows = zip(np.asarray(texts.tokens), np.asarray(texts.length), strict=True)
    return [tokenizer.decode(row[:length]) for row, length in rows]


def test_recorded_transcripts_are_agentboards(tokenizer, shared):
    plays = records("agentboard")
    game, on = stacked([play["game"] for play in plays]), jnp.ones(len(plays), bool)
    state, seen = reset(MACROS, shared, game)
    assert strings(tokenizer, seen) == [play["seen"][0] for play in plays]
    for i in range(len(plays[0]["actions"])):
        said = [play["actions"][i] for play in plays]
        state, outcome = step(MACROS, shared, game, state, tokens(tokenizer, said), on)
        for play, text in zip(plays, strings(tokenizer, outcome.seen), strict=True):
            assert text == play["seen"][i + 1], (play["name"], i, play["actions"][i])
        np.testing.assert_array_equal(state.play.steps, [play["steps"][i] for play in plays])
        np.testing.assert_array_equal(outcome.understood, [play["understood"][i] for play in plays])
    np.testing.assert_array_equal(outcome.success, np.asarray(outcome.progress) == 1)
    assert not outcome.truncated.any()
    assert 0 < np.asarray(outcome.success).sum() < len(plays)


def test_recorded_progress_is_agentboards(tokenizer, shared):
    """With labels: what each action earns, when the episode is over, and what is said then."""
    plays, labelled = records("agentboard"), records("subgoals")
    lists = [r["subgoals"] if isinstance(r["subgoals"][0], list) else [r["subgoals"]] for r in labelled]
    each, _ = subgoals.tables(lists)
    board = Labelled(MACROS)
    game = stacked([plays[r["play"]]["game"] for r in labelled]), jax.tree.map(lambda *x: np.stack(x), *each)
    state, _ = labelled_reset(board, shared, game)
    ends, taken_back = [len(r["seen"]) for r in labelled], 0
    for i in range(max(ends)):
        on = jnp.array([i < end for end in ends])
        said = tokens(tokenizer, [plays[r["play"]]["actions"][i] for r in labelled])
        state, outcome = labelled_step(board, shared, game, state, said, on)
        texts = strings(tokenizer, outcome.seen)
        progress, over = np.asarray(outcome.progress), np.asarray(outcome.terminated)
        for row, r in enumerate(labelled):
            if i < ends[row]:
                where = r["subgoals"], i, texts[row]
                assert zlib.crc32(texts[row].encode()) == r["seen"][i], where
                assert progress[row] == pytest.approx(r["progress"][i], abs=1e-6), where
                assert over[row] == (r["done"] and i + 1 == ends[row]), where
                taken_back += bool(state.play.won[row] and not over[row])
    np.testing.assert_array_equal(over, np.asarray(outcome.success))
    final = np.array([r["progress"][-1] for r in labelled])
    assert (final == 1).any() and ((final > 0) & (final < 1)).any() and taken_back
    assert any(r["done"] and r["progress"][-1] < 1 for r in labelled)


def test_without_labels_an_episode_with_them_is_as_before(tokenizer, shared):
    plays = records("agentboard")
    games = stacked([play["game"] for play in plays])
    none = jax.tree.map(lambda x: np.stack([x] * len(plays)), subgoals.tables([[["never said"]]])[1])
    board, on = Labelled(MACROS), jnp.ones(len(plays), bool)
    alone, state = reset(MACROS, shared, games)[0], labelled_reset(board, shared, (games, none))[0]
    for i in range(len(plays[0]["actions"])):
        said = tokens(tokenizer, [play["actions"][i] for play in plays])
        alone, wanted = step(MACROS, shared, games, alone, said, on)
        state, outcome = labelled_step(board, shared, (games, none), state, said, on)
        for one, other in zip(jax.tree.leaves((alone, wanted)), jax.tree.leaves((state.play, outcome)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_few_rows_of_many_go_on_by_themselves(tokenizer, shared):
    """From 8 * FEW rows on: rows are what they are in a smaller batch."""
    plays, times = records("agentboard"), 6
    assert len(plays) * times >= 8 * search.FEW and times <= len(plays) * times // search.FEW
    game, many = stacked([play["game"] for play in plays]), stacked([play["game"] for play in plays] * times)
    alone, _ = reset(MACROS, shared, game)
    state, _ = reset(MACROS, shared, many)
    for i in range(len(plays[0]["actions"])):
        said = tokens(tokenizer, [play["actions"][i] for play in plays])
        alone, wanted = step(MACROS, shared, game, alone, said, jnp.ones(len(plays), bool))
        said = jax.tree.map(lambda x: jnp.concatenate([x] * times), said)
        state, outcome = step(MACROS, shared, many, state, said, jnp.ones(len(plays) * times, bool))
        for one, other in zip(jax.tree.leaves((alone, wanted)), jax.tree.leaves((state, outcome)), strict=True):
            np.testing.assert_array_equal(np.concatenate([one] * times), other)


def play_beside_agentboard(folder: str, names: list[str], steps: int, tokenizer: Tokenizer, shared) -> int:
    """Plays AgentBoard's own class and the engine; returns how many answers were the same, which all must be."""
    engine_ = Macros(seen_tokens=512, action_tokens=96)
    boards = [babyai_record.agentboard(folder, name, seed) for seed, name in enumerate(names)]
    played = [levels.read(name, seed) for seed, name in enumerate(names)]
    assert [board.goal for board in boards] == [level.goal for level in played]
    game, on, rng = levels.stack(played), jnp.ones(len(names), bool), np.random.default_rng(0)
    state, seen = reset(engine_, shared, game)
    assert strings(tokenizer, seen) == [board.init_obs for board in boards]
    for _ in range(steps):
        said = [babyai_record.sentence(board, rng) for board in boards]
        state, outcome = step(engine_, shared, game, state, tokens(tokenizer, said, 96), on)
        answers = [board.step(text)[0] for board, text in zip(boards, said, strict=True)]
        for name, text, wanted, got in zip(names, said, answers, strings(tokenizer, outcome.seen), strict=True):
            assert got == wanted, (name, text)
        np.testing.assert_array_equal(state.play.steps, [board.env.step_count for board in boards])
    return len(names) * (steps + 1)


@pytest.mark.heavy
@has_minigrid
@pytest.mark.skipif("AGENTBOARD" not in os.environ, reason="AGENTBOARD does not name a checkout of AgentBoard")
def test_all_levels_are_agentboards(tokenizer, shared):
    print("answers:", play_beside_agentboard(os.environ["AGENTBOARD"], levels.names() * 2, 60, tokenizer, shared))


def test_actions_are_read_in_any_tokens_and_case(tokenizer, shared):
    plays = records("agentboard")
    game, on = stacked([play["game"] for play in plays]), jnp.ones(len(plays), bool)
    state, _ = reset(MACROS, shared, game)
    byte = {piece: i for i, piece in reversed(list(enumerate(tokenizer.token_bytes())))}

    def answer(text: str, one_by_one: bool) -> str:
        said = tokens(tokenizer, [text] * len(plays))
        if one_by_one:
            ids = [byte[bytes([b])] for b in text.encode()]
            said = Text(said.tokens.at[:, : len(ids)].set(jnp.array(ids)), jnp.full(len(plays), len(ids)))
        return strings(tokenizer, step(MACROS, shared, game, state, said, on)[1].seen)[0]

    assert answer("turn left", True) == answer("  TURN Left\n", False) != answer("turn right", True)
    listed = answer("check available actions", True)
    assert listed == answer("recHECKed", True) == answer("chechecheck", False)
    assert listed.startswith("You can take the following actions: turn left, turn right, ")
    unknown = "The action is not recognized. Please check valid actions."
    assert answer("turn  left", True) == answer("chec k", False) == answer("pickup wall 1", False) == unknown
    assert answer(" \n", True) == answer("", False) == "No change in state."


def test_rows_of_text_that_are_off_stay_and_answers_are_cut(tokenizer, shared):
    plays = records("agentboard")
    game, on = stacked([play["game"] for play in plays]), jnp.arange(len(plays)) % 2 == 0
    state, _ = reset(MACROS, shared, game)
    said = tokens(tokenizer, ["turn left"] * len(plays))
    after, outcome = step(MACROS, shared, game, state, said, on)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1::2], new[1::2])
    assert (np.asarray(outcome.seen.length) > 0).tolist() == on.tolist()
    assert not np.asarray(outcome.understood)[1::2].any() and np.asarray(after.turns).tolist() == on.tolist()
    short = Macros(seen_tokens=9, action_tokens=48, turns=1)
    cut = step(short, shared, game, state, said, on)[1]
    np.testing.assert_array_equal(cut.seen.tokens, np.asarray(outcome.seen.tokens)[:, :9])
    np.testing.assert_array_equal(cut.truncated, on)


def test_in_text_neither_a_failure_nor_the_limit_of_primitive_actions_ends_an_episode(tokenizer, shared):
    """AgentBoard takes back that an episode is over, having said so, and never asks for minigrid's limit."""
    game = room({(2, 1): BALL, (1, 2): KEY}, [(0, levels.PICK_UP, True, [(1, 2)])])
    game = game.replace(max_steps=np.array([3], np.int32))
    state, on = reset(MACROS, shared, game)[0], jnp.array([True])
    said = ("pickup red ball 1", "drop", "turn right")
    for turn, text in enumerate([*said, "pickup green key 1"]):
        state, outcome = step(MACROS, shared, game, state, tokens(tokenizer, [text]), on)
        told, is_last = strings(tokenizer, outcome.seen)[0], turn == len(said)
        assert told.endswith("\n The task is completed.") == (turn == 0 or is_last), (text, told)
        assert outcome.success.tolist() == outcome.terminated.tolist() == [is_last] and not outcome.truncated[0]


def test_objects_are_announced_where_there_is_none_and_numbered_from_the_nearest(tokenizer, shared):
    empty = "In front of you in this room, you can see several objects: The room has walls around you."
    assert strings(tokenizer, reset(MACROS, shared, room({}, []))[1])[0].startswith(empty)
    # Of two as near the one that comes first in the view, row by row from its far end and there from the left.
    seen = strings(tokenizer, reset(MACROS, shared, room({(2, 4): BALL, (3, 3): BALL, (2, 3): BALL}, [], at=(1, 3)))[1])
    assert seen[0].split("objects:")[1].startswith(
        " There is a red ball 1 right in front of you 1 steps away. "
        " There is a red ball 2 right in front of you 2 steps away. "
        " There is a red ball 3 1 steps in front of you and 1 steps to your right. "
    )


@has_minigrid
def test_the_goal_does_not_tell_the_order():
    goals = {seed: levels.read("BabyAI-GoToSeqS5R2-v0", seed).goal for seed in (5, 9)}
    assert goals == {  # "go to the red door after you go to the green door", and "..., then go to the red door"
        5: "go to the red door and go to the green door",
        9: "go to the green ball and go to a door, and go to the red door",
    }


def test_paths_go_behind_the_agent_where_it_looks_right_or_down(tokenizer, shared):
    found = []
    for direction, thing in enumerate([(5, 1), (5, 5), (1, 5), (1, 1)]):
        # Between three balls only the cell behind is free.
        beside = [(3 + a, 3 + b) for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        del beside[(direction + 2) % 4]
        game = room(dict.fromkeys(beside, BALL) | {thing: KEY}, [], at=(3, 3))
        game = game.replace(direction=np.array([direction], np.int32))
        state, seen = reset(MACROS, shared, game)
        assert "There is a green key 1" in strings(tokenizer, seen)[0]
        said = tokens(tokenizer, ["go to green key 1"])
        outcome = step(MACROS, shared, game, state, said, jnp.array([True]))[1]
        found += outcome.understood.tolist()
        assert ("as there is no path leading to it." in strings(tokenizer, outcome.seen)[0]) == (not found[-1])
    assert found == [True, True, False, False]


def test_commands_have_keys_of_their_own(shared):
    commands = wording.commands()
    assert len(commands) == 6 + wording.NUMBERS * (3 * len(wording.NAMES) + len(wording.CARRIED_NAMES))
    assert len(np.unique(shared.keys[:, 0])) == len(commands)  # `meaning` looks for the first half alone


def test_a_row_is_drawn_as_minigrid_prints_it(shared):
    things = {(2, 1): BALL, (3, 3): KEY, (4, 1): (levels.DOOR, 2, levels.LOCKED)}
    game = room(things, [(0, levels.GO_TO, False, [(2, 1)])])
    state, _ = reset(MACROS, shared, game)
    drawn = MACROS.render(shared, game, state, 0).split("\n")
    assert drawn[1] == "WG>>AR  LB  WG" and drawn[3] == "WG    KG    WG" and len(drawn) == 7
    held = state.replace(play=act(game, state.play, jnp.array([PICKUP]), jnp.array([True]))[0])
    assert MACROS.render(shared, game, held, 0).endswith("\ncarrying: red ball")


# ----------------------------------------------------------------------------------------------------------- expert


@has_minigrid
def test_the_expert_wins_in_both_languages(tokenizer, shared):
    for name, seed in (("BabyAI-UnlockPickup-v0", 1), ("BabyAI-PutNextS5N2-v0", 0), ("BabyAI-GoToSeqS5R2-v0", 2)):
        moves = expert.primitives(name, seed)
        level = levels.read(name, seed)
        game = levels.stack([level])
        assert verdicts(game, *moves) == "." * (len(moves) - 1) + "s"
        said = expert.sentences(level, moves, MACROS, shared, tokenizer)
        assert 0 < len(said) <= len(moves)
        (state, _), on = reset(MACROS, shared, game), jnp.array([True])
        for text in said:
            assert not state.won[0]
            state, outcome = step(MACROS, shared, game, state, tokens(tokenizer, [text]), on)
        assert outcome.success[0] and outcome.terminated[0]


@has_minigrid
def test_there_are_no_words_for_opening_a_box(tokenizer, shared):
    level = levels.read("BabyAI-KeyInBox-v0", 0)
    assert expert.sentences(level, [engine.TOGGLE] * 3, MACROS, shared, tokenizer) is None


# ------------------------------------------------------------------------------------------------------ what is wrong


@has_minigrid
def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(InputError, match="'BabyAI-GoToObjS6-v0'; it has BabyAI-GoToObjS6-v1"):
        levels.read("BabyAI-GoToObjS6-v0", 0)
    with pytest.raises(InputError, match=r"'BabyAI-BossLevel-v0' with seed 3 has 22 x 22 cells.*Sizes.side"):
        levels.read("BabyAI-BossLevel-v0", 3, Sizes(side=21))
    with pytest.raises(InputError, match=r"has \d+ objects, more than 5; raise Sizes.objects"):
        levels.read("BabyAI-BossLevel-v0", 3, Sizes(objects=5))


def test_a_missing_minigrid_names_the_remedy(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(levels.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"pip install 'agemem_jax\[babyai\]'"):
        levels.read("BabyAI-GoTo-v0", 0)
