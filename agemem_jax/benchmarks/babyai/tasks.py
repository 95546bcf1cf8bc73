"""BabyAI's tasks: minigrid's levels, what is told of them, and how they are solved."""

import random
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from ml_collections import ConfigDict

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks.babyai import expert, levels, subgoals, telling, walks, wording
from agemem_jax.benchmarks.babyai.levels import Game, Sizes
from agemem_jax.benchmarks.babyai.macros import Macros
from agemem_jax.benchmarks.worlds import Demonstrator
from agemem_jax.config import refuse
from agemem_jax.data.staged import SPLITS, StagedRecord
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.types import TOOL_NAMES

# AgentBoard's levels. Its "GoToObjS6-v0" makes what minigrid 3 calls GoToObjS4.
AGENTBOARD = tuple(
    f"BabyAI-{name}-v0"
    for name in """
    GoToRedBallGrey GoToRedBall GoToRedBallNoDists GoToObjS4 GoToLocalS8N7 GoToObjMazeS7 GoToImpUnlock GoToSeqS5R2
    GoToRedBlueBall GoToDoor GoToObjDoor Open OpenRedDoor OpenDoorLoc OpenRedBlueDoorsDebug OpenDoorsOrderN4Debug Pickup
    UnblockPickup PickupLoc PickupDistDebug PickupAbove Unlock UnlockLocalDist UnlockPickupDist BlockedUnlockPickup
    UnlockToUnlock FindObjS7 KeyCorridorS6R3
    """.split()
)
AGENTBOARD_SEEDS = range(1234, 1238)  # of each level
READS_LABELS = True
PROGRESS = ("progress (success alone)", "progress (AgentBoard's subgoals)")  # without its label file, and with it
FIRST_SEED = 9_999  # of levels that are made; modulo 3 seeds are their split's place
SEEDS = 3_000_000  # of a task.seed
KEPT = 8192  # levels that are not made again


class Record(NamedTuple):
    """A level by name and seed; it is made when it is told."""

    name: str
    seed: int


def load(config: ConfigDict, tokenizer: Tokenizer) -> Benchmark:
    """Levels, and the engine that plays them.

    Raises:
      InputError: minigrid is missing, a level of `task.parts` cannot be played, or `task.labels_path` is not
        AgentBoard's file.
      ConfigError: a field of `task` asks for what there is not.
    """
    check(config)
    tasks = BabyAI(config, tokenizer)
    engine = subgoals.Labelled(tasks.engine) if config.task.labels_path else tasks.engine
    return Benchmark(tasks, engine, tasks.shared, wording.language())


def check(config: ConfigDict) -> None:
    """Raises ConfigError for fields of `task` that mean nothing here, or must be set."""
    task = config.task
    for field in ("path", "validation_path", "test_path"):
        if task[field]:
            refuse(f"task.{field}", task[field], "minigrid makes BabyAI's levels from task.seed; leave it empty")
    if not task.seen_tokens:
        refuse("task.seen_tokens", 0, "what is seen after an action is told in up to 200 tokens; set it to 96 or more")
    others = [name for name in task.parts if name not in AGENTBOARD]
    if task.labels_path and (others or not task.official):
        why = f"has no subgoals of {others[0]}" if others else "is of the episodes of task.official"
        refuse("task.labels_path", task.labels_path, f"AgentBoard's file {why}; set it to ''")


class BabyAI:
    """Levels of minigrid (data/batches.py: Tasks), those of `config.task.parts` in turn, or AgentBoard's.

    Training, validation and test levels have seeds of their own, and none has AgentBoard's, which are the test split
    with `config.task.official`. Progress is success, or with AgentBoard's label file the subgoals of these levels.
    Raises InputError and ConfigError as `load`.
    """

    kinds = telling.KINDS
    made_for = dict.fromkeys(TOOL_NAMES, ())
    demonstrator, lessons = Demonstrator, None
    limits = {"sights": ("task.seen_tokens", True)}
    most_gold = 1 + telling.PLACES

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer):
        self.config, self.tokenizer, task = config, tokenizer, config.task
        names = tuple(task.parts) or AGENTBOARD
        first = [levels.read(name, FIRST_SEED) for name in names]
        self.level_sizes = Sizes(side=max(_side(level.game) for level in first))
        counts = zip(SPLITS, (task.train_size, task.validation_size, task.test_size), strict=True)
        self.splits = {split: _records(names, task.seed, split, count) for split, count in counts}
        if task.official:
            self.splits["test"] = [Record(name, seed) for name in names for seed in AGENTBOARD_SEEDS]
        self.engine = Macros(seen_tokens=task.seen_tokens, action_tokens=config.rollout.action_tokens)
        self.shared = wording.shared(tokenizer)
        self._subgoals, self._without = {}, None
        if task.labels_path:
            every = [Record(name, seed) for name in AGENTBOARD for seed in AGENTBOARD_SEEDS]
            each, self._without = subgoals.tables(subgoals.read(task.labels_path, len(every)))
            self._subgoals = dict(zip(every, each, strict=True))
        self.scores = {"success": "success", "progress": PROGRESS[bool(self._subgoals)]}
        # Of what is played here: as long as any list of actions, and room for any of them.
        self._host = replace(self.engine, seen_tokens=1024, action_tokens=64)
        self._read = lru_cache(KEPT)(lambda record: levels.read(record.name, record.seed, self.level_sizes))
        self._solved: dict[tuple, list[str] | None] = {}

    def tell(self, record: Record, rng: random.Random, always: random.Random) -> StagedRecord:
        """A level as it is told in an epoch; the walk and the instructions are the same in every epoch."""
        level, task = self._read(record), self.config.task
        if task.official:
            return telling.official(level)
        walk = walks.walk(level, always) if telling.may_walk(level) else walks.follow(level, ())
        counts = telling.Counts(task.facts, task.distractors)
        return telling.tell(level, walk, counts, task.revised, rng, always)

    def game(self, staged: StagedRecord) -> Game | tuple[Game, subgoals.Subgoals]:
        """The level as the walk has left it, and with a label file its subgoals."""
        level = staged.play.level
        if not self._subgoals:
            return level.game
        return level.game, self._subgoals.get(Record(level.name, level.seed), self._without)

    def sizes(self, record: Record, staged: StagedRecord) -> dict[str, int]:
        """What `limits` are about."""
        seen = expert.first_sight(staged.play.level, self._host, self.shared)
        return {"sights": int(seen.length[0])}

    def solve(self, staged: StagedRecord, rng: random.Random, knows: bool) -> list[str] | None:
        """Actions that win from where stage 3 begins, no more than it and an episode have, or None.

        knows: the instruction and the whole level. Without that, things in view are tried.
        """
        walk, most = staged.play, min(self.config.rollout.stage3_turns, self.engine.turns)
        tables = self._host, self.shared, self.tokenizer
        if not knows:
            return expert.search(walk.level, rng, most, *tables)
        key = walk.level.name, walk.level.seed, walk.moves
        if key not in self._solved:
            moves = expert.knowing(walk.level, walk.moves)
            self._solved[key] = moves and expert.sentences(walk.level, moves, *tables)
        said = self._solved[key]
        return list(said) if said and len(said) <= most else None

    def slip(self, staged: StagedRecord, plan: list[str], step: int) -> str | None:
        """Picking up once more what is held already."""
        return plan[step - 1] if step and plan[step - 1].startswith("pickup ") else None


def _side(game: Game) -> int:
    """Cells across or down, whichever are more, walls with them."""
    return int(max((game.cells != levels.WALL).any(axis).nonzero()[0].max() for axis in (0, 1))) + 2


def _records(names: tuple[str, ...], seed: int, split: str, count: int) -> list[Record]:
    first = FIRST_SEED + seed * SEEDS + SPLITS.index(split)
    return [Record(names[i % len(names)], first + 3 * i) for i in range(count)]
