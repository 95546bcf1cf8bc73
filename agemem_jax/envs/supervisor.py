"""Runs the worker programs of envs/workers.py and hands on what is asked of them. A script of its own, on the standard
library alone: python -I supervisor.py PARENT SETTINGS, where PARENT is the process that must be alive, and SETTINGS
are {"command", "workers", "boot", "timeout"}.

All talk is in lines of JSON. From the parent: requests {"id", "do", ...}. Each is answered, with the worker's answer or
{"id", "failed": why}. To a worker: the same requests, some ahead, so that it need not wait for the next; it answers
them in their order with {"id", ...}, and says {"ready": ...} first, or {"refused": why it cannot run}.

A request with an "episode" goes to the worker that plays it, a "start" to one that plays few. With "fresh" it gets a
worker that has done nothing before, to itself, and that is replaced after it. A worker that is silent for too long,
dies, or says what is no answer is killed with all that it has started, and replaced; its episodes are lost.

When the parent is gone, whoever else holds its end of the pipe, so are the workers; when this process is killed, the
kernel kills them (Linux).
"""

import collections
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time

PATIENCE = 0.5  # seconds between looks at whether the parent lives
STILLBORN = 3  # workers in a row that do not come up, after which none is started
LONGEST = 1 << 20  # bytes of a line
AHEAD = 1 << 14  # bytes sent to a worker before it has answered; a pipe takes more
SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Worker:
    """A process, and what has been asked of it."""

    def __init__(self, command: list[str], boot: float):
        self.supervisor = os.getpid()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
            preexec_fn=self._die_with_parent,  # nothing here has threads
        )  # fmt: skip
        self.buffer, self.is_ready, self.is_used, self.is_taken = b"", False, False, False
        self.asked, self.waiting = collections.deque(), collections.deque()  # requests sent, with their bytes; and not
        self.episodes = set()
        self.deadline = time.monotonic() + boot

    def open_requests(self) -> list[dict]:
        return [*(request for request, _ in self.asked), *self.waiting]

    def is_idle(self) -> bool:
        """Nothing is lost if it goes."""
        return not self.episodes and all(request["do"] == "close" for request in self.open_requests())

    def _die_with_parent(self):
        if hasattr(LIBC, "prctl"):
            LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.supervisor:
            os._exit(1)

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Supervisor:
    """The loop. `run` returns when the parent is gone or has said so."""

    def __init__(self, parent: int, settings: dict):
        self.parent, self.settings, self.pending = parent, settings, b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ, None)
        self.workers: list[Worker] = []
        self.player: dict[int, Worker] = {}  # by episode
        self.replaced, self.stillborn, self.heard, self.why = 0, 0, False, ""
        for _ in range(self.settings["workers"]):
            self.add()

    def run(self) -> None:
        while os.getppid() == self.parent:
            for key, _ in self.selector.select(PATIENCE):
                if key.data is None:
                    if not self.read_parent():
                        return
                elif key.data in self.workers:  # it may have gone since
                    self.read_worker(key.data)
            now = time.monotonic()
            for worker in [w for w in self.workers if w.deadline is not None and w.deadline < now]:
                self.lose(worker, "it was silent for too long")

    def tell(self, **message) -> None:
        self.hand_on(json.dumps(message).encode())

    def hand_on(self, line: bytes) -> None:
        line += b"\n"
        while line:
            line = line[os.write(1, line) :]

    def add(self) -> None:
        try:
            worker = Worker(self.settings["command"], self.settings["boot"])
        except OSError as error:
            self.stillborn, self.why = STILLBORN, str(error)
            self.say_refused()
            return
        self.workers.append(worker)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, worker)

    def remove(self, worker: Worker) -> None:
        self.selector.unregister(worker.process.stdout)
        self.workers.remove(worker)
        worker.kill()
        for episode in worker.episodes:
            self.player.pop(episode, None)

    def renew(self, worker: Worker) -> None:
        """Another one in place of a worker that has done its work."""
        self.remove(worker)
        for request in worker.open_requests():  # episodes that it had to close
            self.tell(id=request["id"])
        self.add()

    def lose(self, worker: Worker, why: str) -> None:
        """Another one in place of a worker that failed; what it was asked has failed, and what waits is placed anew."""
        self.replaced += 1
        self.remove(worker)
        self.why = why
        if worker.is_ready:
            self.stillborn = 0
        else:
            self.stillborn += 1
        if self.stillborn < STILLBORN:
            self.add()
        elif not self.heard:
            self.say_refused()
        failed = 1 if worker.asked else 0
        for i, request in enumerate(worker.open_requests()):
            if i < failed:
                self.fail(request["id"], why)
            else:
                self.place(request)  # a step finds its episode lost

    def say_refused(self) -> None:
        self.tell(refused=f"no worker comes up: {self.why}")

    def fail(self, request: int, why: str) -> None:
        self.tell(id=request, failed=why, replaced=self.replaced)

    def read_parent(self) -> bool:
        """Takes in requests; False when there will be no more."""
        data = os.read(0, 1 << 16)
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if request["do"] == "quit":
                return False
            self.place(request)
        return bool(data)

    def place(self, request: dict) -> None:
        episode = request.get("episode")
        if request["do"] == "close":
            self.close(request)
            return
        if episode is None or request["do"] == "start":
            worker = self.choose(request.get("fresh", False))
            if worker is None:
                self.fail(request["id"], self.no_worker(request.get("fresh", False)))
                return
            worker.is_used, worker.is_taken = True, request.get("fresh", False)
            if episode is not None:
                worker.episodes.add(episode)
                self.player[episode] = worker
        else:
            worker = self.player.get(episode)
            if worker is None:
                self.fail(request["id"], f"its worker was lost: {self.why}")
                return
        worker.waiting.append(request)
        self.send_next(worker)

    def choose(self, fresh: bool) -> Worker | None:
        """The worker for a new episode."""
        if not fresh:
            free = [worker for worker in self.workers if not worker.is_taken]
            return min(free, key=lambda w: (len(w.episodes), len(w.open_requests())), default=None)
        idle = [worker for worker in self.workers if worker.is_idle()]
        unused = [w for w in idle if not w.is_used]
        if not unused and idle and self.stillborn < STILLBORN:
            self.renew(idle[0])
            unused = self.workers[-1:]
        return min(unused, key=lambda w: not w.is_ready, default=None)

    def no_worker(self, fresh: bool) -> str:
        if not self.workers:
            return f"no worker comes up: {self.why}"
        need = "a fresh episode needs one to itself" if fresh else "fresh episodes have them to themselves"
        return f"all {len(self.workers)} workers are taken; {need}, so give as many workers as rows"

    def close(self, request: dict) -> None:
        worker = self.player.pop(request["episode"], None)
        if worker is not None:
            worker.episodes.discard(request["episode"])
            if worker.is_taken:
                self.renew(worker)
            else:
                worker.waiting.append(request)
                self.send_next(worker)
                return
        self.tell(id=request["id"])

    def send_next(self, worker: Worker) -> None:
        while worker.is_ready and worker.waiting:
            data = json.dumps(worker.waiting[0]).encode() + b"\n"
            if worker.asked and len(data) + sum(size for _, size in worker.asked) > AHEAD:
                return
            if not worker.asked:
                self.set_deadline(worker, worker.waiting[0])
            worker.asked.append((worker.waiting.popleft(), len(data)))
            try:
                os.write(worker.process.stdin.fileno(), data)
            except OSError:
                self.lose(worker, "it died")
                return

    def set_deadline(self, worker: Worker, request: dict) -> None:
        worker.deadline = time.monotonic() + request.get("timeout", self.settings["timeout"])

    def read_worker(self, worker: Worker) -> None:
        data = os.read(worker.process.stdout.fileno(), 1 << 16)
        worker.buffer += data
        while worker in self.workers and b"\n" in worker.buffer:
            line, worker.buffer = worker.buffer.split(b"\n", 1)
            self.hear(worker, line)
        if worker in self.workers and (not data or len(worker.buffer) > LONGEST):
            self.lose(worker, "its answer has no end" if data else "it died")

    def hear(self, worker: Worker, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self.lose(worker, "it said what is no answer")
        elif not worker.is_ready and "ready" in message:
            worker.is_ready, worker.deadline, self.stillborn = True, None, 0
            if not self.heard:
                self.heard = True
                self.tell(ready=message["ready"])
            self.send_next(worker)
        elif not worker.is_ready and "refused" in message:
            self.stillborn = STILLBORN  # another one would refuse too
            self.lose(worker, str(message["refused"]))
        elif not worker.asked or message.get("id") != worker.asked[0][0]["id"]:
            self.lose(worker, "it answered what was not asked")
        else:
            worker.asked.popleft()
            worker.deadline = None
            if worker.asked:
                self.set_deadline(worker, worker.asked[0][0])
            self.hand_on(line)
            if worker.is_taken and not worker.episodes:  # it was for this alone
                self.renew(worker)
            else:
                self.send_next(worker)


def main() -> None:
    supervisor = Supervisor(int(sys.argv[1]), json.loads(sys.argv[2]))
    try:
        supervisor.run()
    except BrokenPipeError:  # the parent is gone
        pass
    finally:
        for worker in supervisor.workers:
            worker.kill()


if __name__ == "__main__":
    main()
