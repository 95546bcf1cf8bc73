"""ScienceWorld's variations: the official splits of its 30 tasks, and what each variation asks for.

A game's number is PLACES times the task's place in TASKS plus the variation's number. What is known only to the engine
(which variations a split has, the goals' texts) is asked once and kept in files, one for each version of the package.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from agemem_jax.envs.host import HostGame
from agemem_jax.envs.workers import WorkerError
from agemem_jax.errors import InputError

if TYPE_CHECKING:
    from agemem_jax.benchmarks.scienceworld.pool import Pool

WRITTEN = 8  # times as many answers as are asked for at once are written together
SHOWN = 16  # questions from which a bar is shown
PLACES = 10_000  # more than a task has variations
SPLITS = ("train", "dev", "test")
TASKS = (
    "boil", "melt", "freeze", "change-the-state-of-matter-of", "use-thermometer",
    "measure-melting-point-known-substance", "measure-melting-point-unknown-substance", "power-component",
    "power-component-renewable-vs-nonrenewable-energy", "test-conductivity",
    "test-conductivity-of-unknown-substances", "find-living-thing", "find-non-living-thing", "find-plant",
    "find-animal", "grow-plant", "grow-fruit", "chemistry-mix", "chemistry-mix-paint-secondary-color",
    "chemistry-mix-paint-tertiary-color", "lifespan-longest-lived", "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived", "identify-life-stages-1", "identify-life-stages-2",
    "inclined-plane-determine-angle", "inclined-plane-friction-named-surfaces",
    "inclined-plane-friction-unnamed-surfaces", "mendelian-genetics-known-plant", "mendelian-genetics-unknown-plant",
)  # fmt: skip
# Those of AgentBoard. The last one takes away actions that tasks of electricity need: they are played with the others.
SIMPLIFICATIONS = ("selfWateringFlowerPots", "openContainers", "openDoors", "noElectricalAction")
ELECTRICAL = ("power-component", "conductivity")  # in the names of these tasks


def number_of(task: str, variation: int) -> int:
    """A game's number. Raises InputError for a task that there is not."""
    if task not in TASKS:
        raise InputError(f"scienceworld: there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    return PLACES * TASKS.index(task) + variation


def game_of(number: int, simplifications: Sequence[str] = SIMPLIFICATIONS) -> list:
    """What a worker is told of a game: [task, variation, simplifications with commas between]."""
    task = TASKS[number // PLACES]
    is_electrical = any(part in task for part in ELECTRICAL)
    kept = [name for name in simplifications if not (is_electrical and name == "noElectricalAction")]
    return [task, number % PLACES, ",".join(kept)]


def variations(pool: "Pool", folder: str | Path, split: str, tasks: Iterable[str] = TASKS) -> list[int]:
    """Numbers of the games of a split, task by task.

    folder: where the list is kept; made if need be.
    Raises InputError for a split or a task that there is not, or a file there that is none of ours.
    """
    if split not in SPLITS:
        raise InputError(f"scienceworld: there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    ask = lambda task: {name: pool.ask("splits", task=task, timeout=300)[name] for name in SPLITS}  # noqa: E731
    tasks = list(tasks)
    starts = [number_of(task, 0) for task in tasks]
    known = kept(Path(folder) / f"variations-{pool.version}.json", tasks, ask)
    return [start + v for task, start in zip(tasks, starts, strict=True) for v in known[task][split]]


def goals(pool: "Pool", folder: str | Path, numbers: Sequence[int]) -> list[str]:
    """What each game asks for, in the engine's words; kept as `variations` are. A new one takes about half a second."""
    ask = lambda key: pool.ask("goal", game=pool.games(int(key)), timeout=300)["text"]  # noqa: E731
    known = kept(Path(folder) / f"goals-{pool.version}.json", map(str, numbers), ask, pool.count)
    return [known[str(number)] for number in numbers]


def games(numbers: Sequence[int]) -> HostGame:
    """The games of B rows, on the host. None has to be fresh: they begin alike wherever they are played."""
    return HostGame(np.asarray(numbers, np.int32), np.zeros(len(numbers), bool))


def kept(path: Path, keys: Iterable[str], ask: Callable[[str], object], at_once: int = 1) -> dict:
    """A JSON object's values for at least these keys; those that it lacks are asked for, and written as they come.

    at_once: so many are asked for at the same time, and written together. A bar shows how far it is.
    Raises InputError if the file holds no object, or a machine does not answer.
    """
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        raise InputError(f"scienceworld: {str(path)!r} cannot be read; delete it, and it is made anew")
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    several = at_once * WRITTEN if at_once > 1 else 1
    with ThreadPoolExecutor(at_once) as threads, tqdm(missing, path.stem, disable=len(missing) < SHOWN) as bar:
        for first in range(0, len(missing), several):
            some = missing[first : first + several]
            try:
                found = dict(zip(some, threads.map(ask, some), strict=True))
            except WorkerError as error:
                raise InputError(f"scienceworld: {path.stem}: {error}; what is there already is kept") from None
            known |= json.loads(json.dumps(found))  # as they will be read
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(known))
            partial.replace(path)  # whole, whatever happens
            bar.update(len(some))
    return known
