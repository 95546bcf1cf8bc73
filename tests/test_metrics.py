"""Metrics survive restarts without a step lost or doubled, and are JSON whatever their values; progress and clock."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from agemem_jax import metrics
from agemem_jax.config import flatten, from_json
from agemem_jax.metrics import Clock, MetricWriter, Progress, read_metrics
from configs import tiny

ROOT = Path(__file__).parent.parent


def open_writer(workdir, resume_from: int = 0) -> MetricWriter:
    return MetricWriter(workdir, tiny.get_config(), resume_from)


def test_lines_and_config(tmp_path):
    writer = open_writer(tmp_path / "new" / "run")
    before = time.time()
    writer.write(1, {"stage": 3, "reward": np.float32(0.5), "calls": np.arange(2), "name": "x"})
    writer.write(2, {"stage": 3, "reward": float("nan"), "nested": {"a": [math.inf, 1]}})
    writer.close()
    first, second = read_metrics(tmp_path / "new" / "run" / "metrics.jsonl")
    assert before - 1 < first.pop("time") < time.time() + 1
    assert first == {"step": 1, "stage": 3, "reward": 0.5, "calls": [0, 1], "name": "x"}
    assert second["reward"] is None and second["nested"] == {"a": [None, 1]}
    saved = from_json((tmp_path / "new" / "run" / "config.json").read_text())
    assert flatten(saved) == flatten(tiny.get_config())


def test_lines_are_on_disk_at_once(tmp_path):
    writer = open_writer(tmp_path)
    writer.write(1, {"reward": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    writer.close()


@pytest.mark.parametrize("tail", ["", '{"step": 6, "rew', '{"step": 6, "reward": 0.'])
def test_resume_drops_later_steps_and_a_half_written_line(tmp_path, tail):
    writer = open_writer(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"reward": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write(tail)
    writer = open_writer(tmp_path, resume_from=3)
    for step in (4, 5):
        writer.write(step, {"reward": -float(step)})
    writer.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["reward"]) for r in records] == [(1, 1), (2, 2), (3, 3), (4, -4), (5, -5)]


def test_a_fresh_start_drops_everything(tmp_path):
    for _ in range(2):
        writer = open_writer(tmp_path)
        writer.write(1, {"reward": 1.0})
        writer.close()
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        read_metrics(path)


def test_no_file_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def scalars(folder: Path) -> dict:
    """{(tag, step): value} of all event files: 8 bytes length, 4 of its checksum, the event, 4 of its checksum."""
    found = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += size + 16
    return found


def test_tensorboard_files(tmp_path):
    writer = open_writer(tmp_path)
    writer.write(1, {"reward": 0.5, "term/task": np.float32(2), "loss": float("nan"), "name": "x"})
    writer.close()
    assert scalars(tmp_path / "tensorboard") == {("reward", 1): 0.5, ("term/task", 1): 2.0}


def test_progress_without_a_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    progress = Progress(10, 2, name="seed 0")
    for update in range(3, 11):
        now[0] += 4
        progress.step(update, {"stage": 3, "reward": 0.25, "tokens_per_s": 1234.5})
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed 0: update 2/10"
    assert lines[1] == "seed 0: update 5/10, stage 3, reward 0.250, tokens/s 1,234, 20s left"
    assert lines[-1].startswith("seed 0: update 10/10") and lines[-1].endswith("0s left")
    assert len(lines) == 4


def test_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = Progress(3, 1, name="seed 0")
    progress.step(2, {"stage": 1, "reward": -0.5, "tokens_per_s": 10.0})
    progress.step(3, {})
    progress.close()
    shown = capsys.readouterr().out
    assert "seed 0" in shown and "3/3" in shown


def test_clock_goes_on_after_a_restart():
    clock = Clock()
    clock.add("train", 2.0)
    clock.add("train", 1.0)
    with clock.measure("eval"):
        pass
    saved = json.loads(json.dumps(clock.state()))
    assert saved["train"] == 3.0 and 0 <= saved["eval"] < 1
    resumed = Clock()
    resumed.load(saved)
    resumed.add("train", 1.0)
    assert resumed.state()["train"] == 4.0 and clock.state()["train"] == 3.0


def test_clock_follows_what_is_counted_elsewhere():
    elsewhere, clock = [5.0], Clock()
    clock.load({"compile": 2.0})
    clock.follow("compile", elsewhere)
    assert clock.state() == {"compile": 2.0}
    elsewhere += [1.0, 0.5]
    assert clock.state() == {"compile": 3.5}


def test_json_files_are_replaced_whole(tmp_path):
    metrics.write_json(tmp_path / "a.json", {"x": np.float64(1.5), "y": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5, "y": None}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_durations():
    assert [metrics.duration(s) for s in (0.2, 59.4, 60, 185, 7380)] == ["0s", "59s", "1m00s", "3m05s", "2h03m"]


def test_host_only():
    """Metrics can be read and written where no JAX is."""
    code = "import sys, agemem_jax.metrics; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
