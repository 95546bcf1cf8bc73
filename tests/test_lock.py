"""The lock of a folder: one holder at a time, whoever was killed is taken over, and what cannot be checked is not."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agemem_jax.errors import InputError
from agemem_jax.training import lock
from agemem_jax.training.distributed import EXIT_LOST
from agemem_jax.training.lock import NAME, Lock, hold

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0  # seconds
HOLDER = """
import sys, time
from pathlib import Path
from agemem_jax.errors import InputError
from agemem_jax.training import lock
lock.BEAT = 0.1
try:
    with lock.hold(Path(sys.argv[1]), "--workdir"):
        print("holds", flush=True)
        if sys.argv[2] == "fail":
            sys.exit(7)
        time.sleep(float(sys.argv[2]))
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def start(tmp_path):
    """Starts processes that hold the folder `run`, for so many seconds."""
    children = []

    def one(what: str = "300") -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), what]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children.append(subprocess.Popen(command, env=environment, **pipes))
        return children[-1]

    yield one
    for child in children:
        child.kill()
        child.communicate()


def write(folder: Path, **changes) -> dict:
    """A lock file of this process with changes, as another one would have left it."""
    folder.mkdir(exist_ok=True)
    holder = json.loads(Lock(folder, "--workdir").text) | changes
    (folder / NAME).write_text(json.dumps(holder))
    return holder


def test_a_second_one_is_refused_with_pid_host_time_and_remedy(start, tmp_path, capsys):
    folder = tmp_path / "run"
    first = start()
    assert first.stdout.readline() == "holds\n"
    holder = json.loads((folder / NAME).read_text())
    name = f"process {first.pid} on {os.uname()[1]} since {holder['since']}"
    with pytest.raises(InputError) as refused, hold(folder, "--workdir"):
        pass
    assert str(refused.value).startswith(f"--workdir={folder} is in use by {name}; wait until")
    assert str(refused.value).endswith(f"delete {folder / NAME}")
    assert capsys.readouterr().err == ""
    first.kill()
    first.wait(PATIENCE)
    with hold(folder, "--workdir"):
        assert capsys.readouterr().err == f"--workdir={folder}: taken over from {name}, which is gone\n"
    assert list(folder.iterdir()) == []


def test_the_end_frees_the_folder_also_after_an_error(start, tmp_path):
    child = start("fail")
    assert (child.wait(PATIENCE), child.stderr.read()) == (7, "")
    assert not (tmp_path / "run").exists()  # nothing was written, and it was not there before
    (tmp_path / "run").mkdir()
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "run", "--workdir"):
        1 / 0  # noqa: B018
    with hold(tmp_path / "run", "--workdir"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_of_many_at_once_one_wins(tmp_path):
    write(tmp_path / "run", began="long ago")  # gone: all of them will want to take it over
    won, refused = [], []

    def want() -> None:
        one = Lock(tmp_path / "run", "--workdir")
        try:
            one.take()
            won.append(one)
        except InputError:
            refused.append(one)

    threads = [threading.Thread(target=want) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 11
    assert (tmp_path / "run" / NAME).read_text() == won[0].text
    won[0].release()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_holder_and_a_pid_used_again_are_taken_over(tmp_path, capsys):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    unasked = subprocess.Popen([sys.executable, "-c", ""])  # a zombie: nobody has asked how it ended
    while lock.began(unasked.pid) != "":
        time.sleep(0.01)
    for changes in ({"pid": ended.pid}, {"pid": unasked.pid}, {"began": "at another time"}):
        holder = write(tmp_path / "run", **changes)
        with hold(tmp_path / "run", "--workdir"):
            assert json.loads((tmp_path / "run" / NAME).read_text())["token"] != holder["token"]
        told = capsys.readouterr().err
        assert told == (
            f"--workdir={tmp_path}/run: taken over from process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}, which is gone\n"
        )
    unasked.wait()


def test_a_holder_on_another_machine_is_refused_as_long_as_it_shows_signs_of_life(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.2)
    write(tmp_path / "run", host="elsewhere", place="another start", pid=1)
    file, done = tmp_path / "run" / NAME, threading.Event()
    beating = threading.Thread(target=lambda: [os.utime(file) for _ in iter(lambda: done.wait(0.1), True)])
    beating.start()
    with pytest.raises(InputError, match=r"in use by process 1 on elsewhere since .* delete .*in_use.lock"):
        Lock(tmp_path / "run", "--workdir").take()
    done.set()
    beating.join()
    assert "waiting up to 120 s for a sign of life of process 1 on elsewhere" in capsys.readouterr().err
    assert json.loads(file.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("text", [None, "", '{"pid": 1', "[]", '{"pid": "x", "host": 1}'])
def test_one_that_has_been_silent_for_long_is_taken_over(tmp_path, capsys, monkeypatch, text):
    """On another machine; likewise a file that its writer did not finish."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    write(tmp_path / "run", host="elsewhere", place="another start")
    if text is not None:
        (tmp_path / "run" / NAME).write_text(text)
    silent = time.time() - lock.SILENT + 1.0
    os.utime(tmp_path / "run" / NAME, (silent, silent))
    with hold(tmp_path / "run", "--workdir"):
        pass
    first, second = capsys.readouterr().err.splitlines()
    name = "process" if text is None else "a process that did not leave its name"
    assert f"for a sign of life of {name}" in first and f"taken over from {name}" in second


def test_a_process_that_loses_its_lock_ends(start, tmp_path):
    for change in (lambda file: file.unlink(), lambda file: write(file.parent, pid=4711, host="elsewhere")):
        child = start()
        assert child.stdout.readline() == "holds\n"
        change(tmp_path / "run" / NAME)
        _, err = child.communicate(timeout=PATIENCE)
        assert child.returncode == EXIT_LOST and err.count("\n") == 1, err
        assert "error: --workdir=" in err and ("whoever deleted it" in err or "process 4711 on elsewhere" in err)
        (tmp_path / "run" / NAME).unlink(missing_ok=True)


def test_folders_that_cannot_be_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="--workdir=.*file.* is no folder, or lies in none"):
            Lock(folder, "--workdir").take()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(InputError, match="cannot be written to: No space left on device"):
        Lock(tmp_path / "run", "--workdir").take()
