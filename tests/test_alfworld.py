"""ALFWorld on the device against TextWorld's recorded play, and against a plain Python twin."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alfworld_games import HOUSEHOLDS, domain, grammar, problem, vocabulary, walks, write, write_all
from alfworld_textworld import chosen
from alfworld_twin import Twin

from agemem_jax.benchmarks.alfworld import arrays, expert, games
from agemem_jax.benchmarks.alfworld.environment import AlfWorld
from agemem_jax.benchmarks.alfworld.play import Sizes
from agemem_jax.benchmarks.alfworld.texts import PIECES, admissible_text, commands
from agemem_jax.envs.text import compose, spell
from agemem_jax.errors import InputError
from agemem_jax.types import Text

FIXTURE = Path(__file__).parent / "fixtures" / "alfworld.json"
SIZES = Sizes(
    objects=40, receptacles=16, together=5, name_tokens=16, task_tokens=32, seen_tokens=256, action_tokens=40
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("alfworld")


@pytest.fixture(scope="module")
def paths(folder) -> dict[str, Path]:
    return write_all(folder / "games")


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    """Walks of TextWorld: {"game", "commands", "states": [[seen, admissible joined by ", ", won], ...]}."""
    return json.loads(FIXTURE.read_text())


@pytest.fixture(scope="module")
def tokenizer(folder, recorded):
    said = [text for walk in recorded for state in walk["states"] for text in state[:2]]
    return vocabulary(folder, [*said, *PIECES])


class Played:
    """The engine with a batch of games, in strings."""

    def __init__(self, paths: list[Path], tokenizer, sizes: Sizes = SIZES, listed_tokens: int = 900):
        self.households = [games.read(path) for path in paths]
        self.engine, self.encode, self.listed_tokens = AlfWorld(sizes), tokenizer.encode, listed_tokens
        rows = [arrays.arrays(game, tokenizer, sizes) for game in self.households]
        self.game = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
        self.shared = arrays.shared(tokenizer, sizes)
        self.said, self.other_tokens = 0, []  # answers so far, and those with other tokens than their whole text

    def told(self, text: Text) -> list[str]:
        rows = [jax.tree.map(lambda x, i=i: np.asarray(x)[i], text) for i in range(len(self.households))]
        return [self.shared.spelling(row) for row in rows]

    def answers(self, seen: Text) -> list[str]:
        texts = self.told(seen)
        for text, tokens, length in zip(texts, np.asarray(seen.tokens), np.asarray(seen.length), strict=True):
            self.said += int(length > 0)
            if self.encode(text) != tokens[:length].tolist():
                self.other_tokens.append(text)
        return texts

    def reset(self) -> list[str]:
        self.state, seen = _reset(self.engine, self.shared, self.game)
        return self.answers(seen)

    def step(self, said: list[str | None]) -> list[str]:
        """One command a row; None: the row does not step."""
        ids = [self.encode(text or "") for text in said]
        tokens = np.zeros((len(said), self.engine.action_tokens), np.int32)
        for row, new in zip(tokens, ids, strict=True):
            row[: len(new)] = new
        action = Text(jnp.asarray(tokens), jnp.array([len(new) for new in ids], jnp.int32))
        on = jnp.array([text is not None for text in said])
        self.state, self.outcome = _step(self.engine, self.shared, self.game, self.state, action, on)
        return self.answers(self.outcome.seen)

    def admissible(self) -> list[str]:
        return self.told(_admissible_text(self.shared, self.game, self.state, self.listed_tokens))

    def won(self) -> list[bool]:
        return np.asarray(self.state.won).tolist()


_reset = jax.jit(AlfWorld.reset, static_argnums=0)
_step = jax.jit(AlfWorld.step, static_argnums=0)
_admissible_text = jax.jit(admissible_text, static_argnums=3)


def assert_same(played: Played, walks: list[dict]) -> int:
    """Plays one recorded walk a row, and returns how many states were compared."""
    seen, compared = played.reset(), 0
    for step in range(max(len(walk["states"]) for walk in walks)):
        admissible, won = played.admissible(), played.won()
        for row, walk in enumerate(walks):
            if step < len(walk["states"]):
                where = f"{walk['game']}, step {step}, after {walk['commands'][step - 1 : step]}"
                assert [seen[row], admissible[row], won[row]] == walk["states"][step], where
                compared += 1
        seen = played.step([walk["commands"][step] if step < len(walk["commands"]) else None for walk in walks])
    return compared


def walked(paths: list[Path], seed: int, steps: int) -> list[dict]:
    """Random walks of the twin, as they are recorded."""
    out = []
    for row, path in enumerate(paths):
        twin, rng = Twin(path), random.Random(f"{seed} {row}")
        walk = {"game": str(path), "commands": [], "states": [[twin.reset(), ", ".join(twin.commands()), twin.won()]]}
        while not twin.won() and len(walk["commands"]) < steps:
            walk["commands"].append(chosen(rng, twin.commands()))
            walk["states"].append([twin.step(walk["commands"][-1]), ", ".join(twin.commands()), twin.won()])
        out.append(walk)
    return out


def test_play_is_textworlds(paths, recorded, tokenizer):
    """Observation, admissible commands and won; games of different sizes and both wordings in one batch."""
    played = Played([paths[walk["game"]] for walk in recorded], tokenizer)
    assert assert_same(played, recorded) == sum(len(walk["states"]) for walk in recorded) > 500
    assert {walk["game"] for walk in recorded} == set(paths)
    assert sum(walk["states"][-1][2] for walk in recorded) >= 4
    # Pieces are cut where the vocabulary's own first step cuts, but behind a name that ends in a blank.
    assert played.said > 500
    assert all("cloth " in text or "rack " in text for text in played.other_tokens)


def test_play_is_the_twins_padded_or_not(paths, tokenizer):
    some = [*paths.values()]
    random_walks = walked(some, seed=3, steps=40)
    assert assert_same(Played(some, tokenizer), random_walks) > 250
    game = games.read(paths["bedroom-moves"])
    together = int(np.bincount(game.place).max())
    tight = Sizes(len(game.objects), len(game.receptacles), together, 12, 24, 160, 32)
    assert_same(Played([paths["bedroom-moves"]], tokenizer, tight), [random_walks[[*paths].index("bedroom-moves")]])


def test_rows_that_are_off_stay_as_they_are(paths, tokenizer):
    played = Played([*paths.values()], tokenizer)
    played.reset()
    plans = [expert.plan(game, expert.at_start(game)) for game in played.households]
    played.step([plan[0] for plan in plans])
    before = jax.tree.map(np.asarray, played.state)
    seen = played.step([None if row % 2 else plans[row][1] for row in range(len(plans))])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(played.state), strict=True):
        np.testing.assert_array_equal(old[1::2], np.asarray(new)[1::2])
    changed = jax.tree.map(lambda old, new: (old != np.asarray(new))[::2].any(), before, played.state)
    assert changed.held and changed.opened
    assert seen[1::2] == [""] * (len(plans) // 2) and all(seen[::2])
    assert not np.asarray(played.outcome.understood)[1::2].any() and np.asarray(played.outcome.understood)[::2].all()
    assert not np.asarray(played.outcome.truncated).any()


def test_the_expert_wins_every_game(paths, tokenizer):
    played = Played([*paths.values()], tokenizer)
    played.reset()
    plans = [expert.plan(game, expert.at_start(game)) for game in played.households]
    for step in range(max(map(len, plans))):
        due = [plan[step] if step < len(plan) else None for plan in plans]
        played.step(due)
        for plan, won, said in zip(plans, np.asarray(played.outcome.success), due, strict=True):
            assert won == (step >= len(plan) - 1), (plan, step)
            assert said is None or said in plan
    np.testing.assert_array_equal(played.outcome.progress, np.ones(len(plans), np.float32))
    assert np.asarray(played.outcome.terminated).all()
    after = [expert.situation(game, played.state, row) for row, game in enumerate(played.households)]
    assert [expert.plan(game, now) for game, now in zip(played.households, after, strict=True)] == [[]] * len(plans)
    # What is won stays as it is.
    before = jax.tree.map(np.asarray, played.state)
    played.step(["look"] * len(plans))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, played.state))


def test_the_expert_wins_from_where_others_have_left(paths, tokenizer):
    some = [path for name, path in paths.items() if not name.startswith(("hall", "scullery"))]
    played = Played(some, tokenizer)
    played.reset()
    others = walked(some, seed=5, steps=25)
    for step in range(25):
        played.step([walk["commands"][step] if step < len(walk["commands"]) else None for walk in others])
    now = [expert.situation(game, played.state, row) for row, game in enumerate(played.households)]
    plans = [expert.plan(game, here) for game, here in zip(played.households, now, strict=True)]
    assert any(here.held >= 0 for here in now) and sum(map(bool, plans)) > 3
    for step in range(max(map(len, plans))):
        played.step([plan[step] if step < len(plan) else None for plan in plans])
    assert all(played.won())


def walk(path: Path, tokenizer, *said: str) -> tuple[Played, list[str]]:
    """One row that has said all that, and the answers."""
    played = Played([path], tokenizer)
    played.reset()
    return played, [played.step([text])[0] for text in said]


def test_quirk_1_only_what_is_held_can_be_examined(paths, tokenizer):
    played, seen = walk(
        paths["kitchen"], tokenizer, "go to countertop 1", "examine knife 1", "take knife 1 from countertop 1",
        "examine knife 1", "examine bread 1",
    )  # fmt: skip
    assert seen[1] == seen[4] == "Nothing happens." and seen[3] == "There's nothing special about knife 1."
    listed = commands(played.shared, played.game, played.state, 0)
    assert [c for c in listed if "examine" in c] == [f"examine {x} 1" for x in ("countertop", "knife", "microwave")]


def test_quirk_2_nobody_goes_to_where_he_is(paths, tokenizer):
    played, seen = walk(paths["kitchen"], tokenizer, "go to fridge 1", "go to fridge 1", "go to cabinet 1")
    assert seen == ["You arrive at loc 2. The fridge 1 is closed.", *["Nothing happens."] * 2]
    assert not {"go to fridge 1", "go to cabinet 2"} & {*commands(played.shared, played.game, played.state, 0)}


def test_quirk_3_an_object_lies_in_several_receptacles(paths, tokenizer):
    _, seen = walk(
        paths["kitchen"], tokenizer, "go to countertop 1", "take egg 1 from countertop 1", "examine countertop 1",
        "go to fridge 1", "open fridge 1",
    )  # fmt: skip
    assert seen[2] == "On the countertop 1, you see a bread 1, and a knife 1."
    assert seen[4] == "You open the fridge 1. The fridge 1 is open. In it, you see a apple 2, and a egg 1."


def test_quirk_4_next_to_it_lies_what_was_taken_from_here(paths, tokenizer):
    """Once for each receptacle here that it was taken from."""
    _, seen = walk(
        paths["kitchen"], tokenizer, "go to fridge 1", "open fridge 1", "take egg 1 from fridge 1", "look",
        "open cabinet 1", "put egg 1 in/on cabinet 1", "look", "open cabinet 2", "take egg 1 from cabinet 2",
        "put egg 1 in/on cabinet 1", "look",
    )  # fmt: skip
    view = "You are facing the cabinet 2, cabinet 1, and fridge 1. Next to it, you see"
    assert [seen[i] for i in (3, 6, 10)] == [f"{view} nothing.", f"{view} a egg 1.", f"{view} a egg 1, and a egg 1."]


def test_quirk_5_what_is_used_is_turned_on_and_stays_on(paths, tokenizer):
    _, seen = walk(
        paths["bedroom"], tokenizer, "go to desk 1", "use laptop 1", "use laptop 1", "take laptop 1 from desk 1",
        "examine laptop 1", "take desklamp 1 from desk 1",
    )  # fmt: skip
    assert seen[1:3] == ["You turn on the laptop 1."] * 2
    assert seen[4:] == ["This laptop 1 is on.", "Nothing happens."]


def test_quirk_6_the_room_is_seen_at_the_start_alone(paths, tokenizer):
    played = Played([paths["hall"]], tokenizer)
    room = "You are in the middle of a room. Looking quickly around you, you see"
    assert f"{room} a garbagecan 1, and a sidetable 1.\n\nYour task" in played.reset()[0]
    assert played.step(["look"]) == [f"{room} nothing."]
    played.step(["go to sidetable 1"])
    assert played.step(["look"]) == ["You are facing the sidetable 1. Next to it, you see nothing."]


def test_quirk_7_names(paths, tokenizer):
    """Basins, numbers from the last id on, and names that end in a blank, which no command can."""
    bath = games.read(paths["bathroom"])
    assert bath.receptacles == ("bathtubbasin 1", "cabinet 1", "sinkbasin 1", "toilet 1")
    assert bath.objects == ("cloth ", "soapbar 2", "soapbar 1")
    _, seen = walk(paths["bathroom"], tokenizer, "take cloth  from toilet 1", "examine cloth ", "inventory")
    assert seen == ["You pick up the cloth  from the toilet 1.", "Nothing happens.", "You are carrying: a cloth ."]
    played, seen = walk(paths["scullery"], tokenizer, "go to rack ", "go to rack")
    assert seen == ["Nothing happens."] * 2
    assert "go to rack " in commands(played.shared, played.game, played.state, 0)


def test_commands_are_compared_exactly_but_for_blanks_around_them(paths, tokenizer):
    others = ("Look", "look.", "lo ok", "", " \n", "go  to sidetable 1")
    _, seen = walk(paths["hall"], tokenizer, *others, "\tgo to sidetable 1 \n")
    assert seen == [*["Nothing happens."] * 6, "You arrive at loc 2. On the sidetable 1, you see a keychain 1."]


def test_both_wordings(paths, tokenizer):
    said = ("go to sidetable 1", "take keychain 1 from sidetable 1", "help", "move keychain 1 to sidetable 1",
            "put keychain 1 in/on sidetable 1")  # fmt: skip
    (_, older), (_, newer) = (walk(paths[name], tokenizer, *said) for name in ("hall", "hall-moves"))
    assert older[0].startswith("You arrive at loc 2. ") and newer[0].startswith("You arrive at sidetable 1. ")
    assert older[2:] == [*["Nothing happens."] * 2, "You put the keychain 1 in/on the sidetable 1."]
    assert newer[2].startswith("Available commands:\n  look: ") and newer[2].endswith("sharp object\n")
    assert newer[3:] == ["You move the keychain 1 to the sidetable 1.", "Nothing happens."]


def test_the_domain_says_where_things_are_cleaned(folder, tokenizer):
    made = HOUSEHOLDS["scullery"]
    without = write(folder, "no_sink", made, pddl_domain=domain(False, sink=False))
    assert not games.read(without).appliance.any()
    _, seen = walk(without, tokenizer, "take pan 1 from sink 1", "clean pan 1 with sink 1")
    assert seen[1] == "Nothing happens."


def test_one_row_for_people(paths, tokenizer):
    played, _ = walk(paths["larder"], tokenizer, "go to fridge 1", "take tomato 1 from fridge 1")
    assert played.engine.render(played.shared, played.game, played.state, 0).split("\n") == [
        "Your task is to: put a cool tomato in shelf.",
        "at: fridge 1",
        "holding: tomato 1",
        "fridge 2 (closed): nothing",
        "fridge 1 (open): nothing",
        "shelf 1: tomato 2",
    ]


def test_pieces_are_spelt_as_they_are_composed():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(1, 100, shape).astype(np.int32)  # noqa: E731
    pieces = Text(draw(5, 3), np.array([0, 3, 1, 2, 0], np.int32))
    own = Text(draw(4, 6, 4), rng.integers(0, 5, (4, 6)).astype(np.int32))
    numbers = rng.integers(0, 11, (4, 7)).astype(np.int32)
    table = np.concatenate([np.broadcast_to(np.pad(pieces.tokens, ((0, 0), (0, 1))), (4, 5, 4)), own.tokens], axis=1)
    lengths = np.concatenate([np.broadcast_to(pieces.length, (4, 5)), own.length], axis=1)
    take = lambda x: np.stack([row[number] for row, number in zip(x, numbers, strict=True)])  # noqa: E731
    for width in (30, 9):
        wanted = jax.jit(compose, static_argnums=2)(take(table), take(lengths), width)
        found = jax.jit(spell, static_argnums=3)(pieces, own, numbers, width)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("field", "least"),
    [("objects", 10), ("receptacles", 7), ("together", 3), ("name_tokens", 3), ("task_tokens", 9), ("seen_tokens", 60),
     ("action_tokens", 8)],
)  # fmt: skip
def test_a_game_that_is_too_large_is_refused_by_name(paths, tokenizer, field, least):
    game = games.read(paths["kitchen"])
    sizes = {name: getattr(SIZES, name) for name in SIZES.__dataclass_fields__}
    with pytest.raises(InputError, match=rf"kitchen.*needs \d+ {field}, and 1 are allowed; raise {field}"):
        arrays.arrays(game, tokenizer, Sizes(**{**sizes, field: 1}))
    needed = next(n for n in range(1, 300) if _fits(game, tokenizer, Sizes(**{**sizes, field: n})))
    assert needed >= least
    arrays.arrays(game, tokenizer, Sizes(**{**sizes, field: needed}))


def _fits(game, tokenizer, sizes: Sizes) -> bool:
    try:
        arrays.arrays(game, tokenizer, sizes)
    except InputError:
        return False
    return True


def _with_goal(formula: str) -> dict[str, str]:
    return {"pddl_problem": problem(HOUSEHOLDS["hall"]).replace(HOUSEHOLDS["hall"].goal, formula)}


def _with_fact(fact: str) -> dict[str, str]:
    return {"pddl_problem": problem(HOUSEHOLDS["hall"]).replace("(:init", f"(:init ({fact})")}


BAD_FILES = {
    "comma": ({"pddl_domain": domain(False, comma=False)}, "examineObject is for more than what is held"),
    "action": ({"pddl_domain": domain(False).replace("SliceObject", "ChopObject")}, "in the actions chopobject"),
    "domain": ({"pddl_domain": domain(False)[:-40]}, "pddl_domain of another form"),
    "wording": ({"grammar": grammar(False, "t", CloseObject__feedback=[("", "You shut the {r.name}.")])},
                "'CloseObject.feedback'.*You shut"),
    "grammar": ({"grammar": "grammar"}, "a grammar of another form"),
    "problem": ({"pddl_problem": problem(HOUSEHOLDS["hall"])[:300]}, "or a part of one"),
    "forall": (_with_goal("(forall (?o - object) (isClean ?o))"), "a goal of no published shape .forall [?]o - object"),
    "open": (_with_goal(HOUSEHOLDS["hall"].goal.replace("(and (exists", "(and (opened ?r) (exists")),
             "of no published shape .*opened [?]r"),
    "sliced": (_with_goal(HOUSEHOLDS["hall"].goal.replace("(inReceptacle", "(isSliced ?o) (inReceptacle")),
               "of no published shape .*issliced"),
    "hands": (_with_fact("holds agent1 KeyChain_bar_1"), "has holds among its first facts"),
    "twice": (_with_fact("receptacleAtLocation SideTable_bar_1 loc_bar_9"), "a receptacle at two locations"),
    "agents": (_with_fact("atLocation agent2 loc_bar_9"), "2 facts atLocation"),
    "field": ({"pddl_problem": 3}, "or a part of one"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_not_played_is_refused_by_name(folder, name):
    files, message = BAD_FILES[name]
    path = write(folder, f"bad_{name}", HOUSEHOLDS["hall"], **files)
    with pytest.raises(InputError, match=f"bad_{name}.*{message}.*take the games of json_2.1.1"):
        games.read(path)


def test_a_folder_without_games_and_a_cut_file_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: there is no game.tw-pddl in it"):
        games.files(str(tmp_path))
    (tmp_path / "game.tw-pddl").write_text('{"pddl_domain": "')
    (path,) = games.files(str(tmp_path))
    with pytest.raises(InputError, match="game.tw-pddl is no ALFWorld game"):
        games.read(path)


# What is compared with the published games and with TextWorld itself.


@pytest.fixture(scope="module")
def published() -> list[Path]:
    if "AGEMEM_DATA" not in os.environ:
        pytest.skip("AGEMEM_DATA, the folder with alfworld/, is not set")
    return games.files(str(Path(os.environ["AGEMEM_DATA"]) / "alfworld"))


def textworld(walks: list[dict]) -> list[dict]:
    """The walks as TextWorld plays them (alfworld_textworld.py)."""
    python = os.environ.get("AGEMEM_TEXTWORLD_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import alfworld, textworld"], capture_output=True).returncode:
        pytest.skip("TextWorld cannot be imported; set AGEMEM_TEXTWORLD_PYTHON to a Python with alfworld and textworld")
    script = Path(__file__).parent / "alfworld_textworld.py"
    done = subprocess.run([python, str(script)], input=json.dumps(walks), capture_output=True, text=True, check=True)
    out = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        {"game": walk["path"], "commands": played["commands"],
         "states": [[seen, ", ".join(admissible), won] for seen, admissible, won in played["states"]]}
        for walk, played in zip(walks, out, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def published_vocabulary(folder, published):
    twins = [Twin(path) for path in published[::20]]
    (other := folder / "published").mkdir()
    return vocabulary(other, [*PIECES, *(text for twin in twins for text in (twin.reset(), *twin.commands()))])


ALL = Sizes(name_tokens=24, task_tokens=64, seen_tokens=640, action_tokens=64)


def assert_all_same(paths: list[Path], tokenizer, walks: list[dict], rows: int = 64) -> None:
    compared = said = other = 0
    for i in range(0, len(walks), rows):
        played = Played(paths[i : i + rows], tokenizer, ALL, listed_tokens=2048)
        compared += assert_same(played, walks[i : i + rows])
        said, other = said + played.said, other + len(played.other_tokens)
    print(f"{len(walks)} walks, {compared} states identical; {said - other} of {said} answers in their text's tokens")
    assert compared == sum(len(walk["states"]) for walk in walks)


@pytest.mark.heavy
def test_published_games_are_the_twins(published, published_vocabulary):
    assert_all_same(published, published_vocabulary, walked(published, seed=1, steps=30))


@pytest.mark.heavy
def test_published_games_are_textworlds(published, published_vocabulary):
    """Random and winning walks of every game, or of every n-th with AGEMEM_ALFWORLD_STRIDE=n."""
    some = published[:: int(os.environ.get("AGEMEM_ALFWORLD_STRIDE", "1"))]
    households = [games.read(path) for path in some]
    plans = [expert.plan(game, expert.at_start(game)) for game in households]
    walks = [{"path": str(path), "seed": seed, "steps": 30} for seed, path in enumerate(some)]
    walks += [{"path": str(path), "commands": plan} for path, plan in zip(some, plans, strict=True)]
    out = textworld(walks)
    assert all(walk["states"][-1][2] for walk in out[len(some) :])
    assert_all_same(some * 2, published_vocabulary, out)


@pytest.mark.heavy
def test_the_expert_wins_every_published_game(published):
    households = [games.read(path) for path in published]
    plans = [expert.plan(game, expert.at_start(game)) for game in households]
    for path, plan in zip(published, plans, strict=True):
        twin = Twin(path)
        twin.reset()
        for said in plan:
            assert twin.step(said) != "Nothing happens."
        assert twin.won(), path
    assert np.mean([len(plan) for plan in plans]) < 6.5


@pytest.mark.heavy
def test_the_recorded_walks_are_textworlds(paths, recorded):
    again = textworld([{"path": str(paths[walk["game"]]), "commands": walk["commands"]} for walk in recorded])
    assert [walk["states"] for walk in again] == [walk["states"] for walk in recorded]
    told = {tuple(walk["commands"]) for walk in recorded}
    for name in HOUSEHOLDS:
        for is_moves in (False, True):
            for wanted in walks(name, is_moves):
                assert tuple(wanted) in told
