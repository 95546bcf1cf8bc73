"""ScienceWorld's tasks: what is told of a walk in stages 1 and 2, and what is asked for in stage 3.

What differs from the published protocol. The splits are the official variations (validation is "dev"), and an episode
is won at the engine's full score and lost at a negative one, as published. With `task.official` nothing is told, the
episode begins at the variation's first state, and the query is the engine's goal; AgentBoard's 90 games have goals and
subgoals of its own, in a file that is not read here, its actions are 30 (`rollout.stage3_turns`), and its progress is
by these subgoals, where here it is the engine's score, the best so far. The engine's simplifications are AgentBoard's
(variations.py). No list of valid actions is shown, and there is no command for one.

Without `task.official` an episode begins where a walk has ended (walks.py). Progress counts what the walk has come by:
the engine gives some of its score for rooms that were visited.

Needs Java 17 and the package `scienceworld` (setup.py's extra of that name), in this Python or in the one that the
environment variable AGEMEM_SCIENCEWORLD names. What the engine says is kept in a folder, `task.path` or
~/.cache/agemem_jax/scienceworld: a walk is recorded once, which takes a machine about a second.
"""

import dataclasses
import functools
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from agemem_jax import sharding
from agemem_jax.benchmarks import Benchmark, worlds
from agemem_jax.benchmarks.scienceworld import expert, variations, walks
from agemem_jax.benchmarks.scienceworld.environment import environment
from agemem_jax.benchmarks.scienceworld.pool import Pool
from agemem_jax.benchmarks.scienceworld.variations import PLACES, TASKS, kept
from agemem_jax.config import derive, refuse
from agemem_jax.data.batches import encoded
from agemem_jax.data.scripts import Demonstration
from agemem_jax.data.staged import REVISIONS, SPLITS, StagedRecord
from agemem_jax.data.tokenizer import Tokenizer, check_spelling
from agemem_jax.envs.host import HostGame
from agemem_jax.errors import InputError
from agemem_jax.sharding import LOCAL, Layout
from agemem_jax.types import TOOL_NAMES, Task

FOLDER = "~/.cache/agemem_jax/scienceworld"
PYTHON = "AGEMEM_SCIENCEWORLD"  # environment variable
EDITION = 2  # of the walks and their words, in the name of the file that keeps them
EPOCHS = 2  # after which the same demonstrations come again
MACHINES = 4  # at most; each takes a core
WORLD_MIB = 24  # of a machine's memory, for an episode
SPARE_MIB = 384
OFFICIAL = {"train": "train", "validation": "dev", "test": "test"}
CHATTER = (
    "You take a short look around.", "You can take your time.", "There is nothing to do in the hallway now.",
    "The drawing is a landscape.", "The light is on.", "You wait for some time.",
)  # fmt: skip


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """The tasks, and the machines that play them; those of a process are started once.

    Raises ConfigError and InputError as `check` and `ScienceWorld`, and as Pool where Java or the package is missing.
    """
    check(config)
    rows = derive(config).rows
    count = min(MACHINES, os.cpu_count() or 1, rows)
    pool = machines(count, os.environ.get(PYTHON) or None, SPARE_MIB + WORLD_MIB * math.ceil(rows / count))
    mesh = config.mesh
    layout = Layout(sharding.make_mesh(mesh.data, mesh.fsdp, mesh.tensor))
    layout = layout if layout.is_spread else LOCAL
    tasks = ScienceWorld(config, tokenizer, pool)
    env = environment(pool, tokenizer, config.task.seen_tokens, config.rollout.action_tokens, tasks.walks, layout)
    return Benchmark(tasks, env, None)


@functools.cache
def machines(count: int, python: str | None, heap: int) -> Pool:
    """The machines of this process; `heap` in MiB, of each."""
    return Pool(count, python, f"{heap}m")


def check(config) -> None:
    """Raises ConfigError for what these tasks cannot have."""
    task = config.task
    if unknown := [part for part in task.parts if part not in TASKS]:
        refuse("task.parts", tuple(task.parts), f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASKS)}")
    for field in ("validation_path", "test_path"):
        if task[field]:
            refuse(f"task.{field}", task[field], "ScienceWorld's splits are its own; leave it empty")
    if not task.seen_tokens:
        refuse("task.seen_tokens", 0, "the engine's answers would not be seen; 96 or more")


class Demonstrator(worlds.Demonstrator):
    """Its demonstrations come again: the machines take longer to play a batch than it takes to learn from it."""

    def batch(self, step: int, size: int) -> tuple[Task, Demonstration]:
        return self.writer.demonstrations(self.tell, step, size, EPOCHS)

    def period(self, size: int) -> int:
        return math.lcm(self.source.num_train * EPOCHS, size) // size


class ScienceWorld:
    """The games of each split, and how they are told (data/batches.py: Tasks).

    Of the official variations of the tasks `task.parts` at most `task.train_size`, `task.validation_size` and
    `task.test_size` are used, drawn by `task.seed`. A record is a dict of a game's number, task and goal, and of its
    walk's fields. `walks` are the commands after which each begins, by number.

    Raises InputError if the vocabulary cannot spell what is told, or a machine does not answer.
    """

    scores = {"success": "success", "progress": "progress"}
    demonstrator, lessons = Demonstrator, None
    limits: dict[str, tuple[str, bool]] = {}
    made_for: dict[str, tuple[str, ...]] = dict.fromkeys(TOOL_NAMES, ())

    def __init__(self, config, tokenizer: Tokenizer, pool: Pool):
        self.config, self.tokenizer, self.pool = config, tokenizer, pool
        task = config.task
        self.folder = Path(task.path or FOLDER).expanduser()
        self.kinds = tuple(task.parts) or TASKS
        sizes = zip(SPLITS, (task.train_size, task.validation_size, task.test_size), strict=True)
        self.splits = {split: self._records(split, size) for split, size in sizes}
        every = [record for split in SPLITS for record in self.splits[split]]
        self.most_gold = max(len(record["facts"]) for record in every)
        told = [text for record in every for _, text, *_ in record["facts"] + record["former"] + record["sights"]]
        check_spelling(tokenizer, [*told, *CHATTER, *(record["goal"] for record in every)], str(self.folder))
        self.elsewhere = [text for record in self.splits["train"] for _, text in record["facts"] + record["sights"]]
        self.by_number = {record["game"]: record for record in self.splits["train"]}
        self.walks = {record["game"]: record["commands"] for record in every}

    def tell(self, record: dict, rng: random.Random, always: random.Random) -> StagedRecord:
        """A record as it is told, in the order of the walk; sights and chatter fill up what facts leave.

        In a share `task.revised` it is also told where things were at first, before the walk has carried them away.
        """
        task, official = self.config.task, self.config.task.official
        facts = [] if official else record["facts"][: task.facts]
        revised = always.random() < task.revised and not official
        told = [text for _, text in facts]
        former = [row for row in record["former"][:REVISIONS] if revised and row[2] in told][: task.facts - len(facts)]
        free = 0 if official else task.facts - len(facts) - len(former)
        sights = _some(rng, record["sights"], free - task.chatter)
        time = len(record["commands"])
        chatter = [(rng.randint(0, time), text) for text in _some(rng, CHATTER, free - len(sights))]
        rows = [(row[0], row[1], False) for row in [*former, *sights, *chatter]]
        rows = sorted([*rows, *((time, text, True) for time, text in facts)], key=lambda row: row[0])
        distractors = [] if official else self._distractors(record, rng)
        return StagedRecord(
            facts=[text for _, text, _ in rows],
            is_gold=[gold for *_, gold in rows],
            gold=told,
            distractors=distractors,
            query=record["goal"],
            answer="",
            key_words=walks.content(record["goal"]),
            keep=told,
            view=[],
            revisions=[(text, now) for _, text, now in former],
            fact_speakers=[0] * len(rows),
            distractor_speakers=[0] * len(distractors),
            kind=record["task"],
            play=record["game"],
        )

    def game(self, staged: StagedRecord) -> HostGame:
        """The game's number; where it begins is told to the machines."""
        return HostGame(np.int32(staged.play), np.bool_(False))

    def sizes(self, record: dict, staged: StagedRecord) -> dict[str, int]:
        return {}

    def solve(self, staged: StagedRecord, rng: random.Random, knows: bool) -> list[str] | None:
        """Actions that win a training game from stage 3's start, within `rollout.stage3_turns`; None if there are none.

        All of them have been played. Of an errand (walks.py): with `knows` the shortest way, else what a search does.
        Of other tasks the engine's own solution, which also finds out what it needs: the same with `knows` and without.
        Raises InputError for a game that is not of the training split.
        """
        if staged.play not in self.by_number:
            raise InputError(f"scienceworld: {self.pool.games(staged.play)[:2]} is no training game; it is not solved")
        record = self.by_number[staged.play]
        if record["plan"]:
            actions = record["plan"] if knows else record["search"]
        else:
            actions = expert.after_walk(self.pool, self.folder, staged.play, record["commands"])
        return list(actions) if 0 < len(actions) <= self.config.rollout.stage3_turns else None

    def slip(self, staged: StagedRecord, plan: list[str], step: int) -> str | None:
        """Going once more to where one has just gone."""
        return plan[step - 1] if step and plan[step - 1].startswith("go to ") else None

    def _records(self, split: str, size: int) -> list[dict[str, Any]]:
        """The games of a split, told."""
        task = self.config.task
        numbers = variations.variations(self.pool, self.folder, OFFICIAL[split], self.kinds)
        numbers = sorted(random.Random(f"{task.seed}/{split}").sample(numbers, min(size, len(numbers))))
        goals = dict(zip(numbers, variations.goals(self.pool, self.folder, numbers), strict=True))
        found = {number: dataclasses.asdict(walks.Walk()) for number in numbers}
        if not task.official:

            def ask(key: str) -> dict:
                number = int(key)
                return dataclasses.asdict(walks.record(self.pool, number, goals[number], split == "train"))

            path = self.folder / f"walks-{self.pool.version}-{EDITION}.json"
            known = kept(path, map(str, numbers), ask, self.pool.count)
            found = {number: known[str(number)] for number in numbers}
        fits = lambda text: len(encoded(self.tokenizer, text)) <= task.message_tokens  # noqa: E731
        return [
            {"game": number, "task": TASKS[number // PLACES], "goal": goals[number]}
            | found[number] | {"sights": [sight for sight in found[number]["sights"] if fits(sight[1])]}
            for number in numbers
        ]  # fmt: skip

    def _distractors(self, record: dict, rng: random.Random) -> list[str]:
        """Where things were, what is in other houses, and chatter."""
        was = [text.replace(" you see ", " you saw ") for _, text, _ in record["former"]]
        earlier = [f"Earlier {text[0].lower()}{text[1:]}" for text in was]
        count = self.config.task.distractors
        texts = _some(rng, earlier, min(1, count))
        texts += _some(rng, CHATTER, min((count - len(texts)) // 3, len(CHATTER)))
        others = _some(rng, self.elsewhere, count - len(texts))
        texts += [f"In another house: {text}" for text in others]
        rng.shuffle(texts)
        return texts


def _some(rng: random.Random, texts, count: int) -> list:
    """So many of the texts, or all that there are, in an order of chance."""
    return rng.sample(texts, min(max(count, 0), len(texts)))
