"""Records what BabyAI's real engines do, for tests/test_babyai.py: python tests/babyai_record.py AGENTBOARD

AGENTBOARD is a checkout of github.com/hkust-nlp/AgentBoard, whose class BabyAI is run as it is on minigrid 3.2.0.
Writes tests/fixtures/babyai_minigrid.json, babyai_agentboard.json and babyai_subgoals.json.
"""

import contextlib
import copy
import dataclasses
import importlib
import io
import json
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from agemem_jax.benchmarks.babyai import levels, wording

FOLDER = Path(__file__).parent / "fixtures"
# Every kind of instruction, strict ones, both orders, a start with something in hand, a key in a box.
LEVELS = (
    "BabyAI-GoToObjS4-v0",
    "BabyAI-GoToSeqS5R2-v0",
    "BabyAI-OpenDoorLoc-v0",
    "BabyAI-OpenRedBlueDoorsDebug-v0",
    "BabyAI-OpenDoorsOrderN4Debug-v0",
    "BabyAI-PickupDistDebug-v0",
    "BabyAI-UnlockPickup-v0",
    "BabyAI-KeyInBox-v0",
    "BabyAI-PutNextS5N2Carrying-v0",
    "BabyAI-MoveTwoAcrossS5N2-v0",
    "BabyAI-SynthSeq-v0",
    "BabyAI-BossLevel-v0",
)
STEPS = {"minigrid": 60, "agentboard": 24}
TIMES = 4  # plays with labels, of each without
# Of a level as it begins: not recorded.
BEGUN = {"steps": np.int32(0), "fulfilled": np.zeros(4, bool), "first_done": np.bool_(False)}
BEGUN |= {"carried": np.full(4, -1, np.int8)}


def digest(*arrays: Any) -> int:
    """One number for the bytes of arrays."""
    return zlib.crc32(b"".join(np.ascontiguousarray(x).tobytes() for x in arrays))


class Walker:
    """Picks primitive actions: minigrid's bot mostly, as long as it has an answer, else any."""

    def __init__(self, game: Any, seed: int, bot: bool):
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self.rng, self.bot, self.last = np.random.default_rng(seed), None, None
        if bot:
            with contextlib.suppress(Exception):
                self.bot = BabyAIBot(game)

    def __call__(self) -> int:
        action = int(self.rng.choice(7, p=[0.1, 0.1, 0.3, 0.15, 0.15, 0.15, 0.05]))
        if self.bot is not None and self.rng.random() < 0.9:
            try:
                action = int(self.bot.replan(self.last))
            except Exception:  # it gives up in many ways
                self.bot = None
        self.last = action
        return action


def agentboard(folder: str, name: str, seed: int, subgoals: list | None = None) -> Any:
    """AgentBoard's environment of a level, with its labels if there are any; what it imports and does not use here is
    left out."""
    for module, content in {
        "gym": {"Env": object},
        "matplotlib": {},
        "matplotlib.pyplot": {},
        "common": {},
        "common.registry": {"registry": types.SimpleNamespace(register_environment=lambda _: lambda cls: cls)},
    }.items():
        sys.modules[module] = types.ModuleType(module)
        vars(sys.modules[module]).update(content)
    sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"]
    package = types.ModuleType("environment")
    package.__path__ = [f"{folder}/agentboard/environment"]
    sys.modules["environment"] = package
    module = importlib.import_module("environment.babyai_env")
    # As it was with gymnasium below 1 and NumPy below 2.
    module.gymnasium = types.SimpleNamespace(make=lambda level: levels.make(level, seed))
    module.np = types.SimpleNamespace(**{**vars(np), "cross": lambda a, b: a[0] * b[1] - a[1] * b[0]})
    with contextlib.redirect_stdout(io.StringIO()):
        return module.BabyAI(game_name=name, seed=seed, obs_to_reward=copy.deepcopy(subgoals))


def sentence(board: Any, rng: np.random.Generator) -> str:
    """An action for AgentBoard: mostly one that it lists, else one that it has words about, or any."""
    listed, refused = board._get_action_space(), list(board.error_message)
    draw, pick = rng.random(), lambda texts: texts[rng.integers(len(texts))]
    if draw < 0.62:
        return pick(listed)
    if draw < 0.75 and refused:
        return pick(refused)
    if draw < 0.80:
        return f" {pick(listed).upper()} \n"
    if draw < 0.84:
        return pick(["", " ", "please Check it", "turn  left", "go to red ball", "dance"])
    seen = [text[len("go to ") :].rsplit(" ", 1)[0] for text in listed if text.startswith("go to ")]
    verb = pick(["pickup", "go to", "go through", "toggle and go through"])
    return f"{verb} {pick(seen or wording.NAMES)} {rng.integers(1, 4)}"


def as_lists(game: levels.Game) -> dict[str, Any]:
    """The arrays of a game but those that are alike in all that begin."""
    names = [f.name for f in dataclasses.fields(game) if f.name not in BEGUN]
    return {name: np.asarray(getattr(game, name)).tolist() for name in names}


def record_minigrid() -> list[dict[str, Any]]:
    records = []
    for seed, name in enumerate(LEVELS):
        game = levels.make(name, seed)
        level, walker = levels.from_minigrid(game, name, seed), Walker(game, seed, bot=seed % 2 == 0)
        record = {"name": name, "seed": seed, "game": as_lists(level.game), "actions": [], "expected": []}
        for _ in range(STEPS["minigrid"]):
            action = walker()
            view, reward, terminated, truncated, _ = game.step(action)
            where = [*map(int, game.agent_pos), int(game.agent_dir)]
            seen = digest(view["image"], game.grid.encode().swapaxes(0, 1))
            record["actions"].append(action)
            record["expected"].append([*where, seen, round(float(reward), 6), int(terminated), int(truncated)])
        records.append(record)
    return records


def record_agentboard(folder: str) -> list[dict[str, Any]]:
    records = []
    for seed, name in enumerate(LEVELS):
        board, level, rng = agentboard(folder, name, seed), levels.read(name, seed), np.random.default_rng(seed)
        record = {"name": name, "seed": seed, "goal": board.goal, "game": as_lists(level.game)}
        record |= {"actions": [], "seen": [board.init_obs], "understood": [], "steps": []}
        for _ in range(STEPS["agentboard"]):
            action = sentence(board, rng)
            record["actions"].append(action)
            record["understood"].append(board.check_action_is_valid(action.lower().strip())[0])
            record["seen"].append(board.step(action)[0])
            record["steps"].append(board.env.step_count)
        records.append(record)
    return records


def pattern(text: str, rng: np.random.Generator) -> str:
    """A subgoal that a text says: a sentence of it, some words of which are left out or not."""
    said = [part.strip() for part in text.split(".") if len(part.split()) > 3]
    words = said[rng.integers(len(said))].split(" ")
    mark = ["*", " * ", "**"][rng.integers(3)]
    begin, end = sorted(rng.integers(1, len(words), 2))
    return f" {' '.join(words[:begin])}{mark}{' '.join(words[end:])}." if begin < end else " ".join(words)


def subgoals(seen: list[str], rng: np.random.Generator) -> list:
    """Labels of a play: what it says at some time, and what it never does."""
    count, never = int(rng.integers(1, 5)), ["You see a dragon * ahead", "blue * sky. Yes", "The task is * completed"]

    def one() -> str:
        return never[rng.integers(3)] if rng.random() < 0.25 else pattern(seen[rng.integers(len(seen))], rng)

    lists = [[one() for _ in range(count)] for _ in range(1 + int(rng.integers(3)))]
    return lists[0] if len(lists) == 1 else lists


def record_subgoals(folder: str, plays: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same plays with labels, several times, each until AgentBoard says that it is done."""
    records, rng = [], np.random.default_rng(0)
    for number, play in [*enumerate(plays)] * TIMES:
        labels = subgoals(play["seen"][1:], rng)
        board = agentboard(folder, play["name"], play["seed"], labels)
        record = {"play": number, "subgoals": labels, "progress": [], "seen": []}
        for action in play["actions"]:
            seen, progress, done, _ = board.step(action)
            record["progress"].append(round(progress, 6))
            record["seen"].append(zlib.crc32(seen.encode()))
            if done:
                break
        records.append(record | {"done": done})
    return records


if __name__ == "__main__":
    board = record_agentboard(sys.argv[1])
    every = {"minigrid": record_minigrid(), "agentboard": board, "subgoals": record_subgoals(sys.argv[1], board)}
    for kind, found in every.items():
        lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in found)
        (FOLDER / f"babyai_{kind}.json").write_text(f"[\n{lines}\n]\n")
