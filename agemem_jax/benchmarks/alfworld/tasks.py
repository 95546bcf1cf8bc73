"""ALFWorld's tasks: households of game files, told in three stages."""

import functools
import random
import warnings
from collections import Counter

import numpy as np

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks.alfworld import arrays, cache, games, telling
from agemem_jax.benchmarks.alfworld.environment import AlfWorld
from agemem_jax.benchmarks.alfworld.expert import plan
from agemem_jax.benchmarks.alfworld.games import SHAPES, Household
from agemem_jax.benchmarks.alfworld.language import language
from agemem_jax.benchmarks.alfworld.play import Game, Sizes, Verb
from agemem_jax.benchmarks.alfworld.texts import COMMANDS
from agemem_jax.benchmarks.alfworld.walk import kind_of, search, with_known
from agemem_jax.benchmarks.worlds import Demonstrator
from agemem_jax.config import refuse
from agemem_jax.data.batches import encoded
from agemem_jax.data.staged import SPLITS, StagedRecord
from agemem_jax.data.tokenizer import Tokenizer, check_spelling
from agemem_jax.errors import InputError
from agemem_jax.types import TOOL_NAMES

MEASURED = ("objects", "receptacles", "together", "name_tokens", "task_tokens")  # of Sizes: what the games need
LIMITED = {"seen_tokens": "task.seen_tokens", "action_tokens": "rollout.action_tokens"}  # what the config allows
CACHED_TEXTS = 1 << 16


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Households, and the engine that plays them, as large as the largest of them needs.

    Raises InputError and ConfigError as AlfWorldTasks.
    """
    tasks = AlfWorldTasks(config, tokenizer)
    return Benchmark(
        tasks=tasks,
        env=AlfWorld(tasks.engine_sizes),
        shared=arrays.shared(tokenizer, tasks.engine_sizes),
        language=language(list(tasks.games.values())),
    )


class AlfWorldTasks:
    """The games of each split, and how they are told (data/batches.py: Tasks).

    Games come from folders (games.files), and have an order of `task.seed`. Where a split has no folder of its own
    (`task.validation_path`, `task.test_path`), it is a fraction of the games of `task.path`. `task.parts` picks kinds
    of tasks. A game that a later split has too is left out of the earlier one, with a warning.

    A record is {"game": the digest of its file, "kind": its kind}; `games` has the households by their digests.

    Raises:
      InputError: a folder or a game cannot be read (games.files, games.read), a split would be empty, or the vocabulary
        cannot spell what a game says.
      ConfigError: there is no path, no such kind, or a game needs more tokens than the config allows.
    """

    kinds = tuple(SHAPES)
    made_for = dict.fromkeys(TOOL_NAMES, ())
    demonstrator, lessons = Demonstrator, None
    most_gold = telling.MOST_GOLD
    scores = {"success": "success", "progress": "progress"}
    limits: dict[str, tuple[str, bool]] = {}

    def __init__(self, config, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        households = self._leave_out_later_ones(self._read())
        self.games = {game.digest: game for split in SPLITS for game in households[split]}
        self.splits = {
            split: [{"game": game.digest, "kind": game.kind} for game in households[split]] for split in SPLITS
        }
        self._check_counts()
        self.engine_sizes = self._sizes()
        self.elsewhere = telling.Elsewhere(households["train"])
        self.likely = _found_where(households["train"]) if config.task.official else _fits_where(households["train"])
        self._size = functools.lru_cache(CACHED_TEXTS)(lambda text: len(encoded(tokenizer, text)))
        self._arrays = functools.cache(lambda digest: arrays.arrays(self.games[digest], tokenizer, self.engine_sizes))

    def tell(self, record: dict, rng: random.Random, always: random.Random) -> StagedRecord:
        """A household as it is told in an epoch; what the goal is about is where it is in every epoch."""
        game, task = self.games[record["game"]], self.config.task
        if task.official:
            return telling.official(game)
        return telling.stages(game, task, rng, always, self._size, self.elsewhere)

    def game(self, staged: StagedRecord) -> Game:
        """The household as it is when stage 3 begins."""
        whole = self._arrays(staged.play.game.digest)
        return whole if self.config.task.official else arrays.resumed(whole, staged.play.now)

    def sizes(self, record: dict, staged: StagedRecord) -> dict[str, int]:
        """What `limits` are about: nothing."""
        return {}

    def solve(self, staged: StagedRecord, rng: random.Random, knows: bool) -> list[str] | None:
        """Commands that win from where stage 3 begins, or None if that takes more turns than it has.

        Args:
          knows: where things are is known, as far as it was told, and a shortest plan is followed. Without it they are
            looked for, first where such things are likely by the training games.
        """
        play = staged.play
        if knows:
            found = plan(play.game, with_known(play.game, play.now, play.known))
        else:
            found = search(play.game, play.now, rng, lambda o, r: self.likely[o, r])
        return found if found is not None and len(found) <= self.config.rollout.stage3_turns else None

    def slip(self, staged: StagedRecord, plan: list[str], step: int) -> str | None:
        """What is done at the place that one has to go to first; or the last command, which is done already."""
        goes = COMMANDS[Verb.GO][0]
        if plan[step].startswith(goes):
            return next((command for command in plan[step + 1 : step + 2] if not command.startswith(goes)), None)
        again = plan[step - 1] if step else ""
        return None if not again or again.startswith(COMMANDS[Verb.USE][0]) else again

    def _read(self) -> dict[str, list[Household]]:
        """The households of each split."""
        task = self.config.task
        if not task.path:
            refuse("task.path", "", "ALFWorld's games are read from files; give a folder such as json_2.1.1/train")
        for part in task.parts:
            if part not in self.kinds:
                refuse("task.parts", tuple(task.parts), f"there is no kind {part!r}; the kinds are {self.kinds}")

        def read(path: str, field: str) -> list[Household]:
            try:
                found = cache.read_all(games.files(path))
            except InputError as error:
                raise InputError(f"{field}: {error}") from error
            check_spelling(self.tokenizer, sorted({text for game in found for text in _texts(game)}), path, field)
            found = [game for game in found if not task.parts or game.kind in task.parts]
            random.Random(task.seed).shuffle(found)  # they come sorted by kinds, and few may be taken
            return found

        splits = {"train": read(task.path, "task.path")}
        whole = len(splits["train"])
        for split in ("test", "validation"):
            if path := task[f"{split}_path"]:
                splits[split] = read(path, f"task.{split}_path")
            else:
                cut = max(0, len(splits["train"]) - round(whole * task[f"{split}_fraction"]))
                splits["train"], splits[split] = splits["train"][:cut], splits["train"][cut:]
        return splits

    def _leave_out_later_ones(self, splits: dict[str, list[Household]]) -> dict[str, list[Household]]:
        later, kept = set(), {}
        for split in reversed(SPLITS):
            kept[split] = [game for game in splits[split] if game.digest not in later]
            later |= {game.digest for game in splits[split]}
            if out := len(splits[split]) - len(kept[split]):
                warnings.warn(
                    f"left out {out} of {len(splits[split])} {split} games that are in a later split too (train, "
                    "validation, test)",
                    stacklevel=5,
                )
        return kept

    def _check_counts(self) -> None:
        task = self.config.task
        needed = ("train", "test", *(["validation"] if self.config.train.eval_every else []))
        if not all(self.splits[split] for split in needed):
            counts = ", ".join(f"{len(self.splits[split])} {split}" for split in SPLITS)
            raise InputError(
                f"task: {len(self.games)} games give {counts} tasks; training and test need at least one each, and so "
                f"does validation with train.eval_every (task.test_fraction = {task.test_fraction}, "
                f"task.validation_fraction = {task.validation_fraction} of task.path = {task.path!r}, where a split "
                f"has no folder of its own; task.parts = {tuple(task.parts)})"
            )

    def _sizes(self) -> Sizes:
        """Sizes that hold every game. Raises ConfigError for a game that needs more than the config allows."""
        count = functools.cache(lambda text: len(self.tokenizer.encode(text)))
        needs = {game.path: arrays.needs(game, count) for game in self.games.values()}
        allowed = {"seen_tokens": self.config.task.seen_tokens, "action_tokens": self.config.rollout.action_tokens}
        for name, field in LIMITED.items():
            path = max(needs, key=lambda path: needs[path][name])
            if needs[path][name] > allowed[name]:
                refuse(field, allowed[name], f"{path} needs {needs[path][name]} tokens; set at least as many")
        return Sizes(**{name: max(1, *(need[name] for need in needs.values())) for name in MEASURED}, **allowed)


def _texts(game: Household) -> list[str]:
    return [game.task, *game.receptacles, *game.arrivals, *game.objects]


def _found_where(households: list[Household]) -> Counter:
    """(kind of an object, kind of a receptacle): how many such objects are in one such receptacle, on average."""
    found, count = Counter(), Counter()
    for game in households:
        kinds = [kind_of(name) for name in game.receptacles]
        count.update(kinds)
        found.update((kind_of(game.objects[o]), kinds[r]) for r, o in zip(*np.nonzero(game.inside), strict=True))
    return Counter({(o, r): n / count[r] for (o, r), n in found.items()})


def _fits_where(households: list[Household]) -> Counter:
    """(kind of an object, kind of a receptacle): whether it fits there, half as much where one has to open it first."""
    found = Counter()
    for game in households:
        for r, o in zip(*np.nonzero(game.fits), strict=True):
            found[kind_of(game.objects[o]), kind_of(game.receptacles[r])] = 0.5 if game.openable[r] else 1.0
    return found
