"""One writer a folder: a lock file that names its holder, who touches it as long as he lives.

The file is created exclusively, which shares such as NFS and Lustre do for all hosts. A lock of the kernel's (flock)
would not do: on many shares it holds on one host alone, and it tells nobody who has it. filelock's leases come near,
but take a dead holder's file over by exchanging two names, which NFS cannot.

Whether a holder is gone: on the same machine its process is looked up, by pid and beginning, since pids are used again.
Of another machine or container that cannot be seen; there it counts as gone once the file was not touched for SILENT
seconds, by the file server's clock. So a job that lost its machine starts again without a hand on another one.
"""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from agemem_jax.errors import InputError, storage_problem
from agemem_jax.training.distributed import EXIT_LOST, agree, is_leader

NAME = "in_use.lock"
SILENT = 120.0  # seconds
BEAT = 10.0  # seconds between two touches


@contextlib.contextmanager
def hold(folder: Path, flag: str) -> Iterator[None]:
    """Keeps others from writing to a folder (made if need be) for the length of the block.

    With several processes all of them call, and process 0 takes it for all. What a holder that is gone left behind is
    taken over with a word on stderr.

    Args:
      flag: what named the folder, for messages: "--workdir".

    Raises InputError, in all processes, if another one holds it: names its pid, host, since when, and what to do.
    """
    lock, is_new = Lock(folder, flag), not folder.exists()
    agree(lock.take)
    try:
        yield
    finally:
        if is_leader():
            lock.release()
            if is_new:
                with contextlib.suppress(OSError):  # stays, unless nothing was written to it
                    folder.rmdir()


class Lock:
    """The lock file of a folder; `flag` as of `hold`."""

    def __init__(self, folder: Path, flag: str):
        self.folder, self.file, self.flag = folder, folder / NAME, flag
        self.text = json.dumps({
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "began": began(os.getpid()),
            "place": place(),
            "token": secrets.token_hex(8),
        })  # fmt: skip
        self.released = threading.Event()
        self.beating = threading.Thread(target=self._beat, name="lock", daemon=True)

    def take(self) -> None:
        """Returns once the lock is this process's. Raises InputError if another one has it, or the folder cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{self.flag}={self.folder} is no folder, or lies in none; give another") from error
        except OSError as error:
            if (problem := storage_problem(error)) is None:
                raise
            raise InputError(f"{self.flag}={self.folder} cannot be written to: {problem}; mend that") from error
        self.beating.start()

    def release(self) -> None:
        """Gives the folder free."""
        self.released.set()
        self.beating.join()
        with contextlib.suppress(OSError):
            if self.file.read_text() == self.text:
                self.file.unlink()

    def _take(self) -> None:
        seen = None  # the holder's last touch when it was first looked at
        while not self._create():
            try:
                with self.file.open() as file:  # opened anew: a share then asks its server, not its cache
                    text, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
            except FileNotFoundError:
                continue
            holder = parse(text)
            if holder.get("place") == place():
                is_gone, is_there = not lives(holder), lives(holder)
            else:
                is_gone, is_there = self._age(touched) > SILENT, seen not in (None, touched)
            if is_there:
                raise InputError(
                    f"{self.flag}={self.folder} is in use by {in_words(holder)}; wait until it has ended, stop it, or "
                    f"give another folder. If it is gone for certain, delete {self.file}"
                )
            if is_gone and self._replace(text):
                return self._say(f"taken over from {in_words(holder)}, which is gone")
            if seen is None and not is_gone:
                self._say(f"waiting up to {SILENT:g} s for a sign of life of {in_words(holder)}")
            seen = touched if seen is None else seen
            time.sleep(min(1.0, BEAT / 4))

    def _create(self) -> bool:
        """Makes the file with this process's name in it; False if there is one."""
        try:
            handle = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with open(handle, "w") as file:
                file.write(self.text)
        except OSError:
            self.file.unlink()
            raise
        return True

    def _replace(self, former: str) -> bool:
        """Puts this process's name in place of `former`; False if another one did so before."""
        with contextlib.suppress(FileNotFoundError), self.file.open("r+") as file:
            # Several may find the same holder gone. Where a share knows no such locks, the last one wins, and the
            # others notice it at their next touch.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if file.read() == former and os.path.samestat(os.fstat(file.fileno()), self.file.stat()):
                mine = self.file.with_name(f"{NAME}.{secrets.token_hex(8)}")
                try:
                    mine.write_text(self.text)
                    mine.replace(self.file)
                finally:
                    mine.unlink(missing_ok=True)
                return True
        return False

    def _age(self, touched: int) -> float:
        """Seconds since a touch, by the clock that gave its time: another file of the folder is touched for it."""
        probe = self.file.with_name(f"{NAME}.{secrets.token_hex(8)}")
        try:
            probe.touch()
            os.utime(probe)
            return (probe.stat().st_mtime_ns - touched) / 1e9
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        """The thread: touches the file; ends this process if the file is no longer its own, as others may write now."""
        while not self.released.wait(BEAT):
            try:
                text = self.file.read_text()
                if text == self.text:
                    os.utime(self.file)
            except FileNotFoundError:
                text = ""
            except OSError:  # the share may come back; if it takes too long, another name is in the file by then
                continue
            if text != self.text and not self.released.is_set():
                taker = in_words(parse(text)) if text else "whoever deleted it"
                lost = f"error: {self.flag}={self.folder}: the lock {self.file} was lost to {taker}; this process ends"
                os.write(2, f"{lost}, and the same command goes on once the folder is free\n".encode())
                os._exit(EXIT_LOST)

    def _say(self, text: str) -> None:
        print(f"{self.flag}={self.folder}: {text}", file=sys.stderr, flush=True)


def parse(text: str) -> dict:
    """What a lock file says of its holder; nothing if it was not written to its end."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    whole = isinstance(holder, dict) and {"pid", "host", "since", "began", "place"} <= holder.keys()
    return holder if whole and isinstance(holder["pid"], int) else {}


def in_words(holder: dict) -> str:
    """A holder for people."""
    if not holder:
        return "a process that did not leave its name"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def lives(holder: dict) -> bool:
    """Whether the process of a holder on this machine is still there, and no other one with its pid."""
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return began(holder["pid"]) in (None, holder["began"])


def began(pid: int) -> str | None:
    """When a process of this machine began; "" if it has ended and nobody asked how, None if that cannot be seen."""
    if not Path("/proc/self/stat").exists():
        return subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def place() -> str:
    """Among whose pids this process has its own: this start of the machine, this container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return platform.node()
