"""Games played by worker programs, in processes of their own: for engines that are slow, leak, crash, do not stand
threads or forks, or have another licence or interpreter. envs/supervisor.py says what a worker has to answer.
"""

import contextlib
import itertools
import json
import operator
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from agemem_jax.envs.host import Reply
from agemem_jax.errors import InputError

SUPERVISOR = Path(__file__).parent / "supervisor.py"
TEXT = operator.itemgetter("text")
FIELDS = operator.itemgetter(*Reply._fields)


class WorkerError(RuntimeError):
    """Why a request was not answered, in one line."""


class Workers:
    """Worker processes under a supervisor, which is started at once, before this process has reasons to fork.

    Args:
      command: starts a worker; what it writes to stderr goes to this process's.
      games: what "start" tells a worker about game number i, as JSON.
      count: workers; they play several episodes each, but for fresh ones.
      timeout: seconds for an answer.
      boot: seconds until a worker is ready.
      name: of the environment, for errors.

    Raises:
      InputError: no worker comes up; the message is what a worker says is missing.
    """

    def __init__(
        self, command: list[str], games: Callable[[int], Any], count: int, timeout: float = 60.0, boot: float = 180.0,
        name: str = "workers",
    ):  # fmt: skip
        self.games, self.count, self.replaced = games, count, 0
        self.info: Any = None  # what a worker says when it is ready
        self._owner = os.getpid()
        self._numbers, self._waiting = itertools.count(), {}
        # Two locks: who waits until there is room in the pipe must not keep answers from being read.
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._gone: str | None = None
        self._up: Future = Future()
        settings = {"command": command, "workers": count, "timeout": timeout, "boot": boot}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(SUPERVISOR), str(self._owner), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what the terminal sends is for the parent
        )
        threading.Thread(target=self._listen, name="workers", daemon=True).start()
        try:
            self.info = self._up.result()
        except WorkerError as error:
            self.close()
            raise InputError(f"{name}: {error}") from None

    def game(self, fresh: bool = False) -> "WorkerGame":
        """A game for the bridge (envs/host.py)."""
        return WorkerGame(self, next(self._numbers), fresh)

    def ask(self, do: str, **request) -> dict:
        """The answer to a request. `timeout` among its fields is the seconds that this one may take.

        Raises:
          WorkerError: the worker died, was silent or said what is no answer; or there is none.
        """
        return self.send(do, **request).result()

    def send(self, do: str, read: Callable[[dict], Any] = dict, **request) -> Future:
        """As `ask`, without waiting; the Future is of what `read` makes of the answer."""
        number, answer = next(self._numbers), Future()
        with self._lock:
            if self._gone is None:
                self._waiting[number] = answer, read
            else:
                answer.set_exception(WorkerError(self._gone))
                return answer
        self._send({"id": number, "do": do, **request})
        return answer

    def close(self) -> None:
        """Ends all processes."""
        if os.getpid() != self._owner:  # a forked child's copy
            return
        self._send({"do": "quit"})
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()  # and the kernel the workers
            self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _send(self, message: dict) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._write_lock, contextlib.suppress(OSError, ValueError):  # it is gone: _listen tells all who wait
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        """Hands answers to those who wait, until the supervisor is gone."""
        for line in self._process.stdout:
            message = json.loads(line)
            if "id" in message:
                self.replaced = message.pop("replaced", self.replaced)
                with self._lock:
                    answer, read = self._waiting.pop(message["id"])
                if "failed" in message:
                    answer.set_exception(WorkerError(message["failed"]))
                    continue
                try:
                    answer.set_result(read(message))
                except (LookupError, TypeError) as error:
                    answer.set_exception(WorkerError(f"a worker's answer lacks something ({error!r})"))
            elif not self._up.done():
                if "ready" in message:
                    self._up.set_result(message["ready"])
                else:
                    self._up.set_exception(WorkerError(message["refused"]))
        with self._lock:
            self._gone = "the workers' supervisor is gone"
            waiting, self._waiting = [answer for answer, _ in self._waiting.values()], {}
        for answer in [*waiting, *([] if self._up.done() else [self._up])]:
            answer.set_exception(WorkerError(self._gone))


def _reply(answer: dict) -> Reply:
    return Reply(*FIELDS(answer))


class WorkerGame:
    """One episode, played by a worker."""

    def __init__(self, workers: Workers, episode: int, fresh: bool):
        self.workers, self.episode, self.fresh = workers, episode, fresh

    def start(self, index: int) -> Future:
        game = self.workers.games(index)
        return self.workers.send("start", TEXT, episode=self.episode, fresh=self.fresh, game=game)

    def step(self, action: str) -> Future:
        return self.workers.send("step", _reply, episode=self.episode, text=action)

    def close(self) -> None:
        self.workers.send("close", episode=self.episode)
