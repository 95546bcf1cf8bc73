"""Java virtual machines that play ScienceWorld, under the supervisor of envs/workers.py.

A machine starts in some seconds, holds 0.3 to 0.6 GB and plays several episodes in turn. Its random numbers go on from
episode to episode, so that the same variation is another world the second time (cups hold other things). Episodes
that must be comparable are fresh ones: each gets a machine to itself, which has played nothing before.
"""

import functools
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from agemem_jax.benchmarks.scienceworld.tasks import SIMPLIFICATIONS, TASKS, game_of
from agemem_jax.envs.workers import Workers
from agemem_jax.errors import InputError

WORKER = Path(__file__).parent / "worker.py"
# Many machines share the cores, so that each collects by itself; one whose memory is full is replaced.
OPTIONS = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError")


class Pool(Workers):
    """Machines that play.

    Args:
      count: of machines; with fresh episodes, at least as many as rows.
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
