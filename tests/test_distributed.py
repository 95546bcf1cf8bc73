"""Two processes on one machine: they agree, share checkpoints, notice that one is gone, and stop together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import ROOMY, small_config
from toy_train import toy_state

from agemem_jax.config import ConfigError, to_json
from agemem_jax.training import distributed
from agemem_jax.training.checkpoint import Checkpointer, last_saved
from agemem_jax.training.evaluate import UNTRAINED
from configs import tiny

ROOT = Path(__file__).parent.parent
LOST_AFTER = 6.0  # seconds
SLACK = 60.0  # seconds that a busy machine may add to it
PATIENCE = 240.0  # seconds for anything else


class Pair:
    """Processes of one run, started at once, their outputs in files; killed at the end of the `with` block."""

    def __init__(self, workdir: Path, program: list[str], processes: int = 2, devices: int = 2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        self.logs = [workdir.with_name(f"{workdir.name}-{port}-{i}.log") for i in range(processes)]
        self.children = []
        for i, log in enumerate(self.logs):
            command = [sys.executable, *program, f"--workdir={workdir}", f"--lost_after={LOST_AFTER}"]
            if processes > 1:
                command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={i}"]
            with log.open("w") as out:
                self.children.append(
                    subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
                )

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_) -> None:
        for child in self.children:
            child.kill()  # also ends one that is stopped
            child.wait()

    def said(self, process: int) -> str:
        return self.logs[process].read_text(errors="replace")

    def await_update(self, update: int) -> None:
        """Returns when every process has said that it did this update."""
        deadline = time.monotonic() + PATIENCE
        for process, child in enumerate(self.children):
            while f"process {process} did update {update}\n" not in self.said(process):
                assert child.poll() is None and time.monotonic() < deadline, self.said(process)[-3000:]
                time.sleep(0.05)

    def codes(self, seconds: float = PATIENCE) -> list[int]:
        """Exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        return [child.wait(max(0.1, deadline - time.monotonic())) for child in self.children]

    def last_line(self, process: int) -> str:
        return self.said(process).rstrip().rpartition("\n")[2]


def toy(workdir: Path, updates: int, what: str = "nothing", **sizes) -> Pair:
    """Processes of toy_train.py."""
    program = [str(ROOT / "tests" / "toy_train.py"), str(updates), what, "--config=configs/tiny.py"]
    return Pair(workdir, program, **sizes)


def restored(workdir: Path) -> tuple[int, dict]:
    """Update and state of the newest checkpoint, restored over this process's eight devices."""
    config = ConfigDict(tiny.get_config())
    with Checkpointer(workdir / "seed_0" / "checkpoints", config, 2) as checkpoints:
        update, state, _ = checkpoints.restore_latest(toy_state(jax.devices()))
    return update, jax.device_get(state)


def assert_whole(workdir: Path, update: int) -> None:
    """The newest checkpoint is that of `update`, with the numbers of so many updates."""
    done, state = restored(workdir)
    assert done == update
    np.testing.assert_array_equal(state["w"], np.full(8, update, np.float32))
    assert state["total"] == 8 * update * (update + 1) / 2


def test_any_number_of_processes_goes_on_from_the_last_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    for before, updates, processes, devices in ((0, 3, 2, 2), (3, 5, 1, 2), (5, 7, 2, 1)):
        with toy(workdir, updates, processes=processes, devices=devices) as pair:
            assert pair.codes() == [0] * processes, pair.said(0)[-3000:]
            assert f"begins after update {before}, agreed" in pair.said(0)
            assert "table" in pair.said(0) and all("table" not in pair.said(i) for i in range(1, processes))
        assert_whole(workdir, updates)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_one_clear_line(tmp_path, victim):
    workdir, other = tmp_path / "run", 1 - victim
    with toy(workdir, 100_000) as pair:
        pair.await_update(4)
        pair.children[victim].send_signal(signal.SIGKILL)
        assert pair.codes(LOST_AFTER + SLACK)[other] == distributed.EXIT_LOST, pair.said(other)[-3000:]
        line = pair.last_line(other)
    assert re.match(f"error: process {victim} of 2 (gave no sign of life for 6 s|is gone)", line), line
    assert "Start the same command again on all processes: it goes on from seed_0, update " in line
    saved = last_saved(workdir / "seed_0" / "checkpoints")
    assert saved >= 3 and line.endswith(f"update {saved}")
    assert_whole(workdir, saved)


def test_a_process_that_is_lost_while_the_others_compute_by_themselves(tmp_path):
    """Frozen, so that even its connections stay open; and nobody is waiting for it in a collective."""
    with toy(tmp_path / "run", 100_000, "idle") as pair:
        pair.await_update(3)
        pair.children[1].send_signal(signal.SIGSTOP)
        assert pair.children[0].wait(LOST_AFTER + SLACK) == distributed.EXIT_LOST
        assert "error: process 1 of 2 gave no sign of life for 6 s" in pair.last_line(0)


def test_an_exception_in_one_process_is_told_to_the_others(tmp_path):
    with toy(tmp_path / "run", 100_000, "fail") as pair:
        assert pair.codes() == [distributed.EXIT_LOST, 1]
        assert "error: process 1 of 2 failed: no such gradient. Start" in pair.last_line(0)
        assert "Traceback" in pair.said(1) and pair.last_line(1) == "error: no such gradient"


def test_a_full_disk_of_one_process_ends_all_with_one_line(tmp_path):
    with toy(tmp_path / "run", 100_000, "full") as pair:
        assert pair.codes() == [2, 2], pair.said(0)[-3000:]
        line = f"error: --workdir={tmp_path}/run: No space left on device. What was saved before is whole; mend that"
        assert pair.last_line(0).startswith(line) and pair.last_line(0).endswith("(process 1 of 2)")
        assert pair.last_line(1).startswith(line) and "it goes on from seed_0, update" in pair.last_line(1)
        assert not any("Traceback" in pair.said(process) for process in (0, 1))


@pytest.mark.parametrize(("asked", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)], ids=str)
def test_a_signal_to_one_process_stops_all_after_the_same_update(tmp_path, asked, number):
    workdir = tmp_path / "run"
    expected = [distributed.EXIT_PREEMPTED] * 2
    if number == signal.SIGINT:
        expected[asked] = distributed.EXIT_INTERRUPTED
    with toy(workdir, 100_000) as pair:
        pair.await_update(2)
        pair.children[asked].send_signal(number)
        assert pair.codes() == expected, pair.said(0)[-3000:]
        (update,) = {int(re.search(r"stopped after update (\d+)\. The same", pair.said(i))[1]) for i in (0, 1)}
        assert "did update" in pair.said(0) and f"did update {update + 1}" not in pair.said(0) + pair.said(1)
    assert_whole(workdir, update)


def test_a_workdir_has_one_run_at_a_time(tmp_path):
    """A second one of two processes ends with exit code 2 and does no harm; what the first leaves behind when it is
    killed is taken over."""
    workdir = tmp_path / "run"
    with toy(workdir, 100_000, processes=1) as first:
        first.await_update(2)
        with toy(workdir, 5) as second:
            assert second.codes() == [2, 2], second.said(0)[-3000:]
            for process in (0, 1):
                line = f"error: --workdir={workdir} is in use by process {first.children[0].pid} on "
                assert second.last_line(process).startswith(line), second.said(process)[-3000:]
                assert f"delete {workdir}/in_use.lock" in second.last_line(process)
                assert "Traceback" not in second.said(process)
        assert first.children[0].poll() is None
        first.children[0].kill()
        first.codes()
    saved = last_saved(workdir / "seed_0" / "checkpoints")
    with toy(workdir, saved + 1, processes=1) as third:
        assert third.codes() == [0], third.said(0)[-3000:]
        assert f"taken over from process {first.children[0].pid} on " in third.said(0)
    assert not (workdir / "in_use.lock").exists()


@pytest.mark.heavy
def test_processes_may_come_to_their_first_program_at_different_times(tmp_path):
    with toy(tmp_path / "run", 2, "late") as pair:
        assert pair.codes() == [0, 0], pair.said(0)[-3000:]


@pytest.mark.heavy
def test_two_processes_train_as_one_does(tmp_path):
    """Real training: the same rewards, sampled tokens and evaluations as one process with as many devices."""
    config = small_config(
        policy__num_layers=1, rollout__history_widths=1, rl__widths=2, rl__updates=3, rl__group_size=2,
        rl__micro_batch=4, train__checkpoint_every=2, train__traces=4, train__eval_tasks=6, mesh__fsdp=-1, **ROOMY,
    )  # fmt: skip
    text = f"from agemem_jax.config import from_json\ndef get_config():\n    return from_json({to_json(config)!r})\n"
    (tmp_path / "run_config.py").write_text(text)
    program = ["-m", "experiments.train", f"--config={tmp_path}/run_config.py"]
    for processes in (1, 2):
        with Pair(tmp_path / str(processes), program, processes=processes, devices=2 // processes) as pair:
            assert pair.codes(2 * PATIENCE) == [0] * processes, pair.said(0)[-3000:]
    one, two = (tmp_path / name / "seed_0" for name in ("1", "2"))
    lines, expected = ([json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (two, one))
    assert len(lines) == len(expected) == 3
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"time", "seconds", "tokens_per_s", "trained_tokens_per_s"}:
            np.testing.assert_allclose(line[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for method in UNTRAINED + ("agemem",):
        ours, theirs = (json.loads((f / f"traces_{method}.json").read_text()) for f in (two, one))
        assert [[turn["said"] for turn in row["turns"]] for row in ours] == [
            [turn["said"] for turn in row["turns"]] for row in theirs
        ]


def test_flags_that_do_not_fit_are_refused():
    for given, hint in (
        (("", 2, -1), "--num_processes and --process_id need --coordinator=HOST:PORT"),
        (("somewhere", 2, 0), "--coordinator=somewhere: must be HOST:PORT"),
        (("here:1234", 0, 0), "--num_processes=0: must be given"),
        (("here:1234", 2, 2), "--process_id=2: must lie between 0 and 1"),
        (("here:1234", 2, -1), "--process_id=-1: must lie between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(hint)), distributed.session(*given):
            pass
    with pytest.raises(ConfigError, match="--lost_after=0"), distributed.session("here:1234", 2, 0, lost_after=0):
        pass


def test_one_process_needs_no_session(tmp_path):
    with distributed.session():
        assert distributed.is_leader() and distributed.agree(lambda: (1, "a")) == (1, "a")
        distributed.share_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(ValueError, match="as it is"), distributed.session():
        raise ValueError("as it is")
