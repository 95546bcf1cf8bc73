"""SIGTERM and Ctrl-C: the running update is finished and saved; the same command ends with the bits of one run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl.flags import FlagHolder
from small import ROOMY, small_config

from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.distributed import EXIT_INTERRUPTED, EXIT_PREEMPTED, Notice, Preempted
from agemem_jax.training.evaluate import UNTRAINED, WAYS, passes_of
from agemem_jax.training.loop import train
from agemem_jax.training.setup import build
from agemem_jax.training.state import state_shapes
from experiments import train as command

UPDATES, STOP_AT = 5, 2
BEFORE = len(UNTRAINED) * len(WAYS)  # evaluations before the first update
FREE_OF_TIME = ("time", "seconds", "tokens_per_s", "trained_tokens_per_s")


@pytest.fixture(scope="module")
def run():
    """One layer, two tasks; an evaluation after every second update, checkpoints at the end alone."""
    return build(
        small_config(
            policy__num_layers=1, rollout__history_widths=1, rl__updates=UPDATES, rl__group_size=2, rl__micro_batch=4,
            train__checkpoint_every=100, train__traces=2, train__eval_tasks=6, train__eval_every=2,
            **ROOMY,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An undisturbed run: (workdir, evaluations)."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(run, workdir)


def records(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in FREE_OF_TIME} for line in lines]


def saved(run, workdir: Path):
    """Update and state of the newest checkpoint."""
    with Checkpointer(workdir / "checkpoints", run.config, 2) as checkpoints:
        update, state, _ = checkpoints.restore_latest(state_shapes(run.model, run.optimizer, run.mesh))
    return update, jax.device_get(state)


def test_stopped_by_a_signal_and_started_again_ends_with_the_same_bits(run, whole, tmp_path):
    asked = 0

    with Notice() as notice:

        def stop() -> bool:  # asked before each evaluation, and after each update
            nonlocal asked
            asked += 1
            if asked == BEFORE + STOP_AT:
                os.kill(os.getpid(), signal.SIGTERM)
            return notice()

        with pytest.raises(Preempted, match=f"seed 0: stopped after update {STOP_AT} of {UPDATES}, which is saved"):
            train(run, tmp_path, stop)
    assert saved(run, tmp_path)[0] == STOP_AT
    # The evaluation that is due after this update is left to the next start.
    assert [line["step"] for line in records(tmp_path)] == [1, 2]
    assert not list(tmp_path.glob("evaluation_agemem-*"))

    assert train(run, tmp_path) == whole[1]
    (update, state), (updates, expected) = saved(run, tmp_path), saved(run, whole[0])
    assert update == updates == UPDATES
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert records(tmp_path) == records(whole[0])
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 2, 3, 4, 4, 5]
    for method in UNTRAINED + ("agemem",):
        name = f"traces_{method}.json"
        assert (tmp_path / name).read_text() == (whole[0] / name).read_text()


def test_stopped_before_an_evaluation(run, whole, tmp_path):
    with pytest.raises(Preempted, match="stopped before the first update"):
        train(run, tmp_path / "begin", lambda: True)
    assert saved_nothing(tmp_path / "begin")
    workdir = tmp_path / "end"
    asked = iter(range(BEFORE + UPDATES + 3))
    with pytest.raises(Preempted, match="stopped before the last evaluations; all updates are saved"):
        train(run, workdir, lambda: next(asked, None) is None)
    made = {file.stem.removeprefix("evaluation_") for file in workdir.glob("evaluation_agemem-*")}
    assert saved(run, workdir)[0] == UPDATES and made == {one.name for one in passes_of(run.config, "agemem")[:3]}
    assert train(run, workdir) == whole[1]


def saved_nothing(workdir: Path) -> bool:
    return not list((workdir / "checkpoints").glob("0*"))


def test_the_loop_counts_what_saving_costs_it(whole):
    seconds = json.loads((whole[0] / "seconds.json").read_text())
    assert 0 < seconds["checkpoint"]


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")], ids=str
)
def test_a_notice_catches_the_signal_inside_its_block_alone(number, code, told, capfd):
    before = signal.getsignal(number)
    with Notice() as notice:
        assert not notice() and not notice()
        os.kill(os.getpid(), number)
        assert notice() and notice()
    assert signal.getsignal(number) is before and notice.exit_code == code
    assert capfd.readouterr().err.startswith(f"{told}: the run stops after the running update or evaluation")


TWICE = """
import hashlib
from agemem_jax.training.distributed import Notice
with Notice(lambda: ": it goes on from seed_0, update 3"):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # one step of Python, as compiling is: handlers wait for its end
"""


def test_a_second_interrupt_ends_the_process_at_once():
    child = subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline().endswith("once more stops it at once\n") and child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == EXIT_INTERRUPTED
    told = "Ctrl-C: stopped at once. Start the same command again: it goes on from seed_0, update 3\n"
    assert child.stderr.read() == told


def test_the_command_says_so_and_exits_with_143(monkeypatch, tmp_path, capsys):
    def stopped(config, workdir, stop, first):
        raise Preempted("seed 0: stopped after update 3 of 9, which is saved")

    monkeypatch.setattr(command, "train", stopped)
    monkeypatch.setattr(command, "build", lambda config, like: config)
    for name, flag in list(vars(command).items()):  # not parsed: other commands of this process have required flags too
        if isinstance(flag, FlagHolder):
            monkeypatch.setattr(command, name, SimpleNamespace(value=flag.default))
    monkeypatch.setattr(command, "WORKDIR", SimpleNamespace(value=str(tmp_path)))
    with pytest.raises(SystemExit) as exit:
        command.main(small_config())
    assert exit.value.code == EXIT_PREEMPTED == 143
    told = "seed 0: stopped after update 3 of 9, which is saved. The same command goes on from there.\n"
    assert capsys.readouterr().err == told
