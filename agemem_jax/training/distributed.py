"""Several processes as one run: joining, agreeing, noticing that one is gone, stopping and leaving together.

The processes talk through JAX's coordination service, which lives in process 0. Every call of `agree` and of a
`Notice` is made by all of them, in the same order.
"""

import contextlib
import ctypes
import functools
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # the service's key-value store has no public name yet
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from agemem_jax import sharding
from agemem_jax.config import ConfigError
from agemem_jax.errors import InputError

EXIT_INPUT = 2
EXIT_LOST = 75  # EX_TEMPFAIL: another process is gone; start again
EXIT_PREEMPTED = 143  # as after SIGTERM
EXIT_INTERRUPTED = 130  # as after Ctrl-C
BEAT_SECONDS = 2.0
DAY_MS = 24 * 3600 * 1000
SHARED_SECONDS = 30.0  # for a file of process 0 to appear on the other machines
ALIVE, FAILED, AGREED, LEAVE = (f"agemem/{name}" for name in ("alive", "failed", "agreed", "leave"))
TALK = ("Gloo", "NCCL", "coordination service", "Connection closed by peer", "Connection reset by peer")

_agreements = itertools.count()


class Preempted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C), and has; the message says how far it came."""


@contextlib.contextmanager
def session(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    automatic: bool = False,
    lost_after: float = 60.0,
    hint: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Joins the other processes for the length of the block; without `coordinator` and `automatic` it does nothing.

    To be entered before any device is used. If a process is gone (killed, cut off, or frozen for `lost_after` seconds)
    the others end within lost_after + 2 * BEAT_SECONDS, with one line that names it and exit code EXIT_LOST. If one
    fails with an exception, the others end with its message.

    Args:
      coordinator: address and port of process 0, the same for all.
      num_processes, process_id: how many there are, and which one this is.
      automatic: take all three from the environment: TPU slices, GKE, SLURM, Open MPI.
      lost_after: seconds without a sign of life.
      hint: words after "start the same command again on all processes", e.g. ": it goes on from update 3".

    Raises ConfigError if only some of the three are given, or do not fit.
    """
    if not coordinator and not automatic:
        if num_processes > 1 or process_id > 0:
            raise ConfigError("--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0")
        yield
        return
    if coordinator:
        check_address(coordinator, num_processes, process_id)
    if lost_after < 1:
        raise ConfigError(f"--lost_after={lost_after}: must be at least 1 second")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = dict(
        coordinator_address=coordinator, num_processes=num_processes, process_id=process_id,
        cluster_detection_method="deactivate",
    )  # fmt: skip
    try:
        jax.distributed.initialize(
            **(given if coordinator else {}),
            heartbeat_timeout_seconds=round(2 * lost_after) + 1,  # only if the watch below should fail
            shutdown_timeout_seconds=round(lost_after) + 1,
        )
    except ValueError as error:
        raise ConfigError(f"--distributed: no cluster was found ({error}); give --coordinator=HOST:PORT") from error
    watch = Watch(lost_after, hint)
    watch.start()
    with on_abort(watch.explain_abort):
        try:
            yield
        except Preempted:  # all of them leave this way, at the same update
            watch.leave()
            raise
        except BaseException as error:
            watch.fail(error)
        watch.leave()
    jax.distributed.shutdown()


def check_address(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raises ConfigError if the three flags of a process do not fit together."""
    if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
        raise ConfigError(f"--coordinator={coordinator}: must be HOST:PORT, the address of process 0")
    if num_processes < 1:
        raise ConfigError(f"--num_processes={num_processes}: must be given with --coordinator, the same for all")
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id}: must lie between 0 and {num_processes - 1}, another for each")


class Watch(threading.Thread):
    """Says every BEAT_SECONDS that this process is alive, and ends it when another one no longer does."""

    def __init__(self, lost_after: float, hint: Callable[[], str]):
        super().__init__(name="watch", daemon=True)
        self.state = jax_distributed.global_state
        self.client, self.me, self.count = self.state.client, self.state.process_id, self.state.num_processes
        self.lost_after, self.hint = lost_after, hint
        self.every = min(BEAT_SECONDS, lost_after / 5)
        self.leaving = threading.Event()
        self.ending = threading.Lock()  # held for ever by the first thread that ends the process

    def run(self) -> None:
        """The thread's loop."""
        last = {process: ("", time.monotonic()) for process in range(self.count)}  # the last sign of each, and when
        for beat in itertools.count():
            heard = self.listen(str(beat))
            if self.leaving.wait(self.every):
                return
            now = time.monotonic()
            for process, (sign, since) in last.items():
                if heard is None and process != 0:  # process 0 does not answer: of the others nothing is known
                    last[process] = (sign, now)
                elif heard is not None and heard.get(process, "") != sign:
                    last[process] = (heard[process], now)
                elif process != self.me and now - since > self.lost_after:
                    self.end(f"process {process} of {self.count} gave no sign of life for {self.lost_after:g} s")

    def listen(self, beat: str) -> dict[int, str] | None:
        """Gives a sign of life; returns the latest sign of each process, None if the service does not answer."""
        try:
            self.client.key_value_set(f"{ALIVE}/{self.me}", beat, allow_overwrite=True)
            heard, failed = by_process(self.client, ALIVE), by_process(self.client, FAILED)
        except Exception:
            return None
        for process, told in failed.items():
            code, _, text = told.partition(" ")
            if process != self.me and int(code) == EXIT_INPUT:  # starting again would not help
                self.end(f"{text} (process {process} of {self.count})", EXIT_INPUT)
            elif process != self.me:
                self.end(f"process {process} of {self.count} failed: {text}")
        return heard

    def end(self, what: str, code: int = EXIT_LOST) -> None:
        """Prints why, and what to do, as the last line; ends the process without waiting for anything."""
        self.ending.acquire()
        text = f"error: {what}"
        if code == EXIT_LOST:
            text += ". Start the same command again on all processes"
            with contextlib.suppress(Exception):  # it reads files, and their server may be what is gone
                text += self.hint()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(2, f"{text}\n".encode())
        os._exit(code)

    def fail(self, error: BaseException) -> None:
        """Ends this process because of an exception, and the others with its message."""
        text = " ".join(str(error).split()) or type(error).__name__
        if any(word in text for word in TALK):  # another one is gone: the watch will say which
            time.sleep(self.lost_after + 3 * self.every)
            self.end(f"process {self.me} of {self.count} lost touch with the others: {text}")
        code = EXIT_INPUT if isinstance(error, InputError) else 1
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"{FAILED}/{self.me}", f"{code} {text[:2000]}", allow_overwrite=True)
        if not isinstance(error, InputError):
            traceback.print_exception(error)
        if self.me == 0:  # the service ends with this process: let the others read first
            time.sleep(2 * self.every)
        self.end(text, code)

    def leave(self) -> None:
        """Waits until all have come to their end."""
        self.client.wait_at_barrier(LEAVE, DAY_MS)
        self.leaving.set()
        self.join()

    def explain_abort(self) -> None:
        """Last words when JAX's runtime aborts: it does so at once when the service in process 0 is gone."""
        host, _, port = self.state.coordinator_address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            self.end(f"process 0 of {self.count} is gone (nothing answers at {host}:{port})")
        self.end(f"process {self.me} of {self.count} was ended by JAX's runtime, for the reason above")


def by_process(client: Any, folder: str) -> dict[int, str]:
    """{process: value} of the keys `folder`/process."""
    return {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(folder)}


@contextlib.contextmanager
def on_abort(say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` when the C++ runtime aborts this process. Python's own signal handlers come too late for that."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: say())
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


class Notice:
    """Whether SIGTERM (the machine will be taken away) or Ctrl-C has come. A context: both are caught inside it.

    With several processes a signal to one of them counts for all, and all learn of it at the same call. A second Ctrl-C
    ends the process at once, whatever it is doing: compiling, or evaluating for minutes.

    hint: words for that end, as in `session`.
    """

    def __init__(self, hint: Callable[[], str] = lambda: "") -> None:
        self._come, self._calls, self._hint = False, 0, hint
        self.exit_code = EXIT_PREEMPTED  # of the process, once it has stopped

    def __enter__(self) -> "Notice":
        # With several processes the coordination service catches SIGTERM, and tells the others.
        self._alone = jax_distributed.global_state.client is None
        caught = (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,)
        self._before = {number: signal.signal(number, self._note) for number in caught}
        # Python runs handlers between two steps of its own; the thread hears of signals while XLA compiles.
        heard, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._pipe_before = signal.set_wakeup_fd(self._pipe)
        self._listener = threading.Thread(target=self._listen, args=(heard,), name="notice", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._pipe_before)
        os.close(self._pipe)
        self._listener.join()

    def __call__(self) -> bool:
        """True once the run should stop; asked by all processes after each update."""
        self._calls += 1
        self._come = self._come or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._come

    def _note(self, number: int, _) -> None:
        self._come = self._come or self._alone
        if number == signal.SIGINT:
            self.exit_code = EXIT_INTERRUPTED

    def _listen(self, heard: int) -> None:
        """The thread: says at once that a signal was heard, and ends the process on a second Ctrl-C."""
        tell = lambda text: os.write(2, f"{text}\n".encode())  # noqa: E731
        interrupts = 0
        with open(heard, "rb", buffering=0) as signals:
            for (number,) in iter(lambda: signals.read(1), b""):
                interrupts += number == signal.SIGINT
                if number == signal.SIGTERM:
                    tell("SIGTERM: the run stops after the running update or evaluation")
                elif number == signal.SIGINT and interrupts == 1:
                    tell("Ctrl-C: the run stops after the running update or evaluation; once more stops it at once")
                    if not self._alone:
                        os.kill(os.getpid(), signal.SIGTERM)
                elif number == signal.SIGINT:
                    hint = ""
                    with contextlib.suppress(Exception):  # it reads files
                        hint = self._hint()
                    tell(f"Ctrl-C: stopped at once. Start the same command again{hint}")
                    os._exit(EXIT_INTERRUPTED)


def open_channels(mesh: Mesh) -> None:
    """Connects the devices of every group of mesh axes while all processes are at the same point.

    Otherwise the first collective of a program does it, and on CPUs gloo gives up if some processes come to it more
    than 30 s after others. They may: each compiles its programs at its own speed.
    """
    if jax.process_count() == 1:
        return
    one = sharding.put(np.ones((), np.float32), sharding.replicated(mesh))
    for count in range(1, len(mesh.axis_names) + 1):
        for axes in itertools.combinations(mesh.axis_names, count):
            total = jax.shard_map(
                functools.partial(jax.lax.psum, axis_name=axes), mesh=mesh, in_specs=PartitionSpec(),
                out_specs=PartitionSpec(), check_vma=False,
            )  # fmt: skip
            jax.block_until_ready(jax.jit(total)(one))


def is_leader() -> bool:
    """Whether this process writes the run's files and talks to the user."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_leader():
        print(text, flush=True)


def agree(decide: Callable[[], Any]) -> Any:
    """What `decide`, called in process 0 alone, returns; the same in every process. It must fit JSON.

    Raises in all processes what `decide` raises: InputError as such, everything else as RuntimeError.
    """
    if jax.process_count() == 1:
        return decide()
    client, key = jax_distributed.global_state.client, f"{AGREED}/{next(_agreements)}"
    if is_leader():
        try:
            told = {"value": decide()}
        except Exception as error:
            kind = "input" if isinstance(error, InputError) else "error"
            client.key_value_set(key, json.dumps({kind: str(error)}))
            raise
        client.key_value_set(key, json.dumps(told))
        return json.loads(json.dumps(told))["value"]
    told = json.loads(client.blocking_key_value_get(key, DAY_MS))
    if "input" in told:
        raise InputError(told["input"])
    if "error" in told:
        raise RuntimeError(f"process 0 failed: {told['error']}")
    return told["value"]


def agree_on(values: dict[str, str]) -> None:
    """Raises ConfigError in a process one of whose `values` is not that of process 0; names it."""
    first = agree(lambda: values)
    others = sorted(name for name in values.keys() | first.keys() if values.get(name) != first.get(name))
    if others:
        raise ConfigError(
            f"process {jax.process_index()} has other {', '.join(others)} than process 0; give all processes the same "
            "flags, files and version of the code"
        )


def share_folder(path: Path) -> None:
    """Makes a folder. Raises ConfigError if a process does not see what process 0 writes there."""
    if jax.process_count() == 1:
        path.mkdir(parents=True, exist_ok=True)
        return
    mark = path / ".shared"

    def write() -> str:
        path.mkdir(parents=True, exist_ok=True)
        mark.write_text(word := os.urandom(8).hex())
        return word

    word, deadline = agree(write), time.monotonic() + SHARED_SECONDS
    while not (mark.exists() and mark.read_text() == word):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--workdir: process {jax.process_index()} does not see what process 0 writes to {path}; give a folder "
                "on storage that all machines share"
            )
        time.sleep(0.2)
