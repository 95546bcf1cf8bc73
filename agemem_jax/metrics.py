"""What a run writes down: metrics as JSON lines and TensorBoard files, a progress bar, a clock. Host only."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from agemem_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"
LINE_SECONDS = 10.0  # between progress lines where there is no terminal


class MetricWriter:
    """Writes `metrics.jsonl`, TensorBoard event files (`tensorboard/`) and `config.json` into a run's folder.

    A resumed run first drops what an earlier process wrote after step `resume_from`, so that every step is there once.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict, resume_from: int = 0):
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", config.to_dict())
        path = workdir / METRICS_FILE
        kept = [record for record in read_metrics(path) if record["step"] <= resume_from]
        replace_text(path, "".join(to_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")
        # Not a SummaryWriter: its thread dies of a full disk, and whoever writes then waits for it for ever.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / "tensorboard" / "events"))
        began = SessionLog(status=SessionLog.START)  # a board forgets what an earlier process wrote from here on
        self._board.write_event(Event(wall_time=time.time(), step=resume_from + 1, session_log=began))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds one line: step, wall time in seconds since 1970, and every metric; NaN and infinities as null."""
        record = {"step": step, "time": time.time()} | metrics
        self._file.write(to_line(record))
        self._file.flush()
        shown = {name: value for name, value in plain(metrics).items() if isinstance(value, int | float)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in shown.items()]
        self._board.write_event(Event(wall_time=record["time"], step=step, summary=Summary(value=values)))
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()


class Progress:
    """Stage, update, reward, tokens/s and time left: a tqdm bar on a terminal, elsewhere a line every ten seconds.

    total: updates of the run, of which `done` were made before.
    """

    def __init__(self, total: int, done: int = 0, name: str = ""):
        self._bar = None
        self._total, self._first, self._name = total, done, name
        self._began = self._last = time.monotonic()
        if sys.stdout.isatty():
            self._bar = tqdm(total=total, initial=done, desc=name, unit="update", file=sys.stdout, dynamic_ncols=True)
        else:
            print(f"{name}: update {done}/{total}", flush=True)

    def step(self, update: int, record: dict[str, Any]) -> None:
        """Shows that `update` updates are done; `record` may hold stage, reward and tokens_per_s."""
        shown = {}
        if "stage" in record:
            shown["stage"] = record["stage"]
        if "reward" in record:
            shown["reward"] = f"{record['reward']:.3f}"
        if "tokens_per_s" in record:
            shown["tokens/s"] = f"{record['tokens_per_s']:,.0f}"
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(update - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS or update >= self._total:
            left = (now - self._began) / max(1, update - self._first) * (self._total - update)
            facts = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"{self._name}: update {update}/{self._total}, {facts}, {duration(left)} left", flush=True)
            self._last = now

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


class Clock:
    """Seconds spent by purpose (compile, train, eval, ...), summed over restarts of the process."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._followed: list[tuple[str, list[float], int]] = []

    def follow(self, purpose: str, seconds: list[float]) -> None:
        """Counts what is appended to a list from now on."""
        self._followed.append((purpose, seconds, len(seconds)))

    def add(self, purpose: str, seconds: float) -> None:
        """Adds seconds to a purpose."""
        self._seconds[purpose] = self._seconds.get(purpose, 0.0) + seconds

    @contextmanager
    def measure(self, purpose: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(purpose, time.perf_counter() - began)

    def state(self) -> dict[str, float]:
        """{purpose: seconds}, to be kept in a checkpoint."""
        total = dict(self._seconds)
        for purpose, seconds, begun in self._followed:
            total[purpose] = total.get(purpose, 0.0) + sum(seconds[begun:])
        return total

    def load(self, state: dict[str, float]) -> None:
        """Goes on from what `state` returned in an earlier process."""
        self._seconds = dict(state)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order; none if there is no file. A half-written last line is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is not JSON ({error}); remove the line") from error
    return records


def plain(value: Any) -> Any:
    """A value as JSON knows it: numpy scalars and arrays as numbers and lists, NaN and infinities as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_line(record: dict[str, Any]) -> str:
    """A record as one line of JSON."""
    return json.dumps(plain(record), allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    replace_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def replace_text(path: str | Path, text: str) -> None:
    """Replaces a file's content whole or not at all, wherever the process is killed, and whoever else does so."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a disk that was full


def duration(seconds: float) -> str:
    """Seconds as 5s, 3m05s or 2h03m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
