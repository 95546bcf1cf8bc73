"""Java virtual machines that play ScienceWorld, under the supervisor of envs/workers.py.

A machine starts in some seconds and holds 0.2 GB, and 11 MB for each episode that it plays at the same time. As the
engine comes, the same variation is another world the second time (cups hold other things), and worlds in one machine
disturb each other. Here they do not (worker.py): a game is the same world on every machine, with any others beside it.
"""

import functools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType

from agemem_jax.benchmarks.scienceworld.variations import SIMPLIFICATIONS, TASKS, game_of
from agemem_jax.envs.workers import TEXT, WorkerGame, Workers
from agemem_jax.errors import InputError

WORKER = Path(__file__).parent / "worker.py"
# Many machines share the cores, so that each collects by itself; one whose memory is full is replaced. With hash codes
# that are all the same the engine's sets keep an order that does not change from run to run.
OPTIONS = (
    "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2",
)  # fmt: skip


NO_WALKS: Mapping[int, Sequence[str]] = MappingProxyType({})


class Pool(Workers):
    """Machines that play.

    Args:
      count: of machines; about one a core.
      python: that has the package `scienceworld`; this one if None.
      heap: the most memory of a machine's objects, as Java writes it.
      simplifications: of the engine, for every game but those that they would make impossible.
      timeout: seconds for an answer; a machine that takes longer is replaced.

    Raises:
      InputError: Java or the package is missing, or is of another kind; it says what to install.
    """

    def __init__(
        self, count: int, python: str | None = None, heap: str = "1g",
        simplifications: Sequence[str] = SIMPLIFICATIONS, timeout: float = 60.0,
    ):  # fmt: skip
        command = [python or sys.executable, str(WORKER), find_java(), f"-Xmx{heap}", *OPTIONS]
        games = functools.partial(game_of, simplifications=tuple(simplifications))
        super().__init__(command, games, count, timeout, name="scienceworld")
        self.version: str = self.info["version"]
        if set(self.info["tasks"]) != set(TASKS):
            self.close()
            raise InputError(f"scienceworld: version {self.version} has other tasks; pip install scienceworld==1.2.3")

    def game(self, fresh: bool = False, walks: Mapping[int, Sequence[str]] = NO_WALKS) -> "WalkedGame":
        """A game for the bridge. `walks`: commands that are taken before an episode begins, by the game's number."""
        return WalkedGame(self, next(self._numbers), fresh, walks)


class WalkedGame(WorkerGame):
    """An episode that begins where a walk has ended."""

    def __init__(self, workers: Workers, episode: int, fresh: bool, walks: Mapping[int, Sequence[str]]):
        super().__init__(workers, episode, fresh)
        self.walks = walks

    def start(self, index: int) -> Future:
        told = {"game": self.workers.games(index), "commands": list(self.walks.get(index, ()))}
        return self.workers.send("start", TEXT, episode=self.episode, fresh=self.fresh, **told)


def find_java() -> str:
    """The program `java`: of JAVA_HOME, or on the PATH. Raises InputError if there is none."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=os.path.join(home, "bin") if home else None)
    if java is None:
        where = f"JAVA_HOME = {home!r} has none" if home else "none is on the PATH"
        raise InputError(
            f"scienceworld: Java is missing ({where}); install a Java 17 runtime, as Debian's openjdk-17-jre-headless"
        )
    return java
