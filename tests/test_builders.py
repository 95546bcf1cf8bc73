"""Data sets of our own: prepared without TensorFlow, read back as they were; wrong and cut files name themselves."""

import gzip
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from report_run import ending
from tensorflow_datasets.core import shuffle
from test_hotpotqa import OFFICIAL, columns, published

from agemem_jax.benchmarks.hotpotqa import builder as hotpotqa
from agemem_jax.benchmarks.hotpotqa import questions, records
from agemem_jax.benchmarks.hotpotqa.builder import HotpotQa
from agemem_jax.data import files
from agemem_jax.data.builders import Trajectories, prepare
from agemem_jax.errors import InputError

ROOT = Path(__file__).parent.parent
RECORDS = [
    *published(30),
    # What the published files have here and there is kept as it is: whoever reads it says what is left out.
    OFFICIAL | {"supporting_facts": [*OFFICIAL["supporting_facts"], ["Nowhere", 0], ["Silver River", 9]]},
    OFFICIAL | {"_id": "b", "question": "Dvořák\u2028 or \0東京 \U0001f600?"},
    OFFICIAL | {"_id": "c", "context": [["  T ", []], *OFFICIAL["context"]]},
]
TRACES = [ending("right"), ending("no_memory", task=3), ending("right", "no_memory")]


def write(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("pack", [lambda text: text, gzip.compress])
def test_hotpotqa_is_read_back_as_it_was(tmp_path, pack):
    train = write(tmp_path / "train.json", pack(json.dumps(RECORDS).encode()))
    dev = write(tmp_path / "dev.json", pack(json.dumps(RECORDS[:7]).encode()))
    folder = tmp_path / "data sets"
    assert prepare(HotpotQa, {"train": train, "validation": dev}, folder) == {"train": 33, "validation": 7}
    assert list(files.read(f"tfds:hotpot_qa:train@{folder}")) == RECORDS
    assert list(files.read(f"tfds:hotpot_qa:validation@{folder}")) == RECORDS[:7]
    assert list(files.read(f"tfds:hotpot_qa:1.0.0:train[10:12]@{folder}")) == RECORDS[10:12]
    with pytest.warns(UserWarning) as warned:
        assert records.load(f"tfds:hotpot_qa:train@{folder}") == records.load(train)
    ours, theirs = (str(warning.message).partition(": ")[2] for warning in warned[-2:])
    assert ours == theirs and "left out 1 control characters; left out 2 supporting facts" in ours
    assert {path.name for path in folder.iterdir()} == {"hotpot_qa"}


def test_the_other_layout_has_columns(tmp_path):
    path = write(tmp_path / "train.json", [columns(record) for record in RECORDS[:5]])
    prepare(HotpotQa, {"train": path}, tmp_path)
    assert records.load(f"tfds:hotpot_qa:train@{tmp_path}") == RECORDS[:5]


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.writer.shard_utils.ShardConfig, "get_number_shards", lambda *_: 5)
    prepare(HotpotQa, {"train": write(tmp_path / "train.json", RECORDS)}, tmp_path)
    assert len(list(tmp_path.glob("hotpot_qa/1.0.0/*-of-00005"))) == 5
    assert list(files.read(f"tfds:hotpot_qa:train@{tmp_path}")) == RECORDS


def test_trajectories_are_the_traces(tmp_path):
    one, two = tmp_path / "tiny" / "seed_0", tmp_path / "tiny" / "seed_10"
    odd = TRACES[1] | {"said_answer": None, "more": [{"a": 1e-9, "b": "\ud800", "c": []}]}
    write(one / "traces_agemem.json", TRACES[:2])
    write(one / "traces_no_memory.json", TRACES[2:])
    write(two / "traces.json", [TRACES[2], odd])
    write(two / "bm25_rl" / "traces_bm25_rl.json", [TRACES[0] | {"method": "bm25_rl"}])
    folder = tmp_path / "data"
    assert prepare(Trajectories, [tmp_path / "tiny"], folder) == {"agemem": 3, "bm25_rl": 1, "no_memory": 2}
    rows = list(files.read(f"tfds:trajectories:agemem@{folder}"))
    assert rows == [
        *({"run": "tiny/seed_0", "trace": trace} for trace in TRACES[:2]), {"run": "tiny/seed_10", "trace": odd}
    ]  # fmt: skip
    rows = files.read(f"tfds:trajectories:no_memory@{folder}")
    assert [row["run"] for row in rows] == ["tiny/seed_0", "tiny/seed_10"]
    (row,) = files.read(f"tfds:trajectories:bm25_rl@{folder}")
    assert row["run"] == "tiny/seed_10"
    assert prepare(Trajectories, [two], tmp_path / "other") == {"agemem": 1, "bm25_rl": 1, "no_memory": 1}


def refused(builder, sources, folder: Path) -> str:
    """The words of a refusal, which leaves everything as it was."""
    before = listing(folder)
    with pytest.raises(InputError) as error:
        prepare(builder, sources, folder)
    assert listing(folder) == before and not list(folder.glob("**/incomplete*"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_prepared_stays(tmp_path):
    path, folder = write(tmp_path / "train.json", RECORDS), tmp_path / "data"
    prepare(HotpotQa, {"train": path}, folder)
    again = refused(HotpotQa, {"train": path}, folder)
    assert f"{folder}/hotpot_qa/1.0.0 is prepared already; remove it to prepare it anew, or give another" in again
    assert "no_traces has no traces*.json" in refused(Trajectories, [tmp_path / "no_traces"], folder)
    # What a killed preparation leaves behind is in nobody's way.
    (folder / "hotpot_qa" / "incomplete.ABCDEF_1.0.0").mkdir()
    (folder / "trajectories" / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)
    assert list(files.read(f"tfds:hotpot_qa:train@{folder}")) == RECORDS
    prepare(Trajectories, [Path(write(tmp_path / "run" / "traces.json", TRACES)).parent], folder)
    assert len(list(files.read(f"tfds:trajectories:agemem@{folder}"))) == 2


def test_a_cut_file_names_itself(tmp_path):
    text = json.dumps(RECORDS).encode()
    packed = gzip.compress(text)
    whole = write(tmp_path / "train.json", text)
    for cut in (text[: len(text) // 2], text[:-1], packed[: len(packed) // 2], packed[:-4]):
        path = write(tmp_path / "dev.json", cut)
        told = refused(HotpotQa, {"train": whole, "validation": path}, tmp_path / "data")
        assert told.startswith(f"validation: {path!r} ") and "cut off" in told
        remedy = "the file is hotpot_dev_distractor_v1.json of https://hotpotqa.github.io, or a part of it"
        assert told.endswith(f"; {remedy}")
    text = json.dumps(TRACES).encode()
    path = write(tmp_path / "run" / "traces_agemem.json", text[:-9])
    told = refused(Trajectories, [tmp_path / "run"], tmp_path / "data")
    assert told.startswith(f"traces: {path!r} is not JSON in record 2") and "the file looks cut off; leave the" in told
    assert not (tmp_path / "data" / "hotpot_qa").exists() and not (tmp_path / "data" / "trajectories").exists()


@pytest.mark.parametrize(
    "content, told",
    [
        ([], "has no records"),
        ([{"question": "?", "_id": "1", "context": []}], "record 0 lacks the field 'answer'"),  # the test file
        (questions.generate(0, 1, "train"), "record 0 has the field 'asker', which HotpotQA has not"),
        ([OFFICIAL, OFFICIAL | {"context": "x"}], "record 1: context is in neither published layout"),
        ([OFFICIAL, TRACES[0]], "record 1 lacks the field"),
        ([OFFICIAL | {"supporting_facts": [["Nowhere", 0]]}, *RECORDS[:5]], "1 of 6 records in"),  # fullwiki
        (b"PAR1....", "is a parquet file"),
        (b"<html>", "is a web page or XML; download the JSON file itself"),
    ],
)
def test_a_wrong_file_names_itself(tmp_path, content, told):
    path = write(tmp_path / "a.json", content)
    message = refused(HotpotQa, {"train": path}, tmp_path / "data")
    assert message.startswith("train: ") and repr(path) in message and told in message


def test_sizes_tell_splits_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(hotpotqa, "PUBLISHED", {"train": ("t.json", 9), "validation": ("v.json", 4)})
    paths = {size: write(tmp_path / f"{size}.json", RECORDS[:size]) for size in (3, 4, 5, 9, 10)}
    assert "4 records, just as many as another split" in refused(HotpotQa, {"train": paths[4]}, tmp_path / "a")
    assert "10 records, more than the 9 of that" in refused(HotpotQa, {"train": paths[10]}, tmp_path / "a")
    assert "9 records, more than the 4 of that" in refused(HotpotQa, {"validation": paths[9]}, tmp_path / "a")
    both = {"train": paths[5], "validation": paths[3]}
    assert prepare(HotpotQa, both, tmp_path / "a") == {"train": 5, "validation": 3}


@pytest.mark.parametrize(
    "content, told",
    [
        ([], "no trace is in the files of"),
        ({"methods": {}}, "record 0 is not an object with a list of turns"),
        ([TRACES[0], {"turns": 3}], "record 1 is not an object with a list of turns"),
        ([{"turns": []}], "record 0 has the method None"),
        ([TRACES[0] | {"method": "all"}], "record 0 has the method 'all'"),
        ([TRACES[0] | {"method": "a method"}], "record 0 has the method 'a method'"),
    ],
)
def test_traces_that_are_none_name_their_file(tmp_path, content, told):
    write(tmp_path / "run" / "traces_x.json", content)
    message = refused(Trajectories, [tmp_path / "run"], tmp_path / "data")
    assert str(tmp_path / "run") in message and told in message


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="tfds sorts in TensorFlow's files")
def test_more_than_tfds_sorts_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 10_000)
    path = write(tmp_path / "train.json", RECORDS)
    assert "a split has more than the 1000 MiB that tfds" in refused(HotpotQa, {"train": path}, tmp_path / "data")


def test_json_text_that_is_none_is_refused():
    row = {"a_json": "[1, null]", "b": "[1", "c_json": 3}
    assert files._unpacked(row, "here") == {"a": [1, None], "b": "[1", "c_json": 3}
    with pytest.raises(InputError, match="^here: the text of 'a_json' is not JSON"):
        files._unpacked({"a_json": "[1, "}, "here")


def test_the_command(tmp_path):
    write(tmp_path / "dev.json", RECORDS)
    write(tmp_path / "runs" / "tiny" / "seed_0" / "traces.json", TRACES)

    def run(*flags: str) -> subprocess.CompletedProcess:
        settings = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "experiments.prepare_data", "--folder=data", *flags]
        return subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)

    made = run("--validation=dev.json", "--out=figures.json")
    name = f"tfds:hotpot_qa:validation@{tmp_path.resolve()}/data"
    assert (made.returncode, made.stdout, made.stderr) == (0, f"{name}  33 of 7,405 records\n", "")
    assert json.loads((tmp_path / "figures.json").read_text()) == {name: 33}
    assert list(files.read(name)) == RECORDS
    made = run("--runs=runs/tiny,runs/tiny/")
    assert [line.split(":")[2].split("@")[0] for line in made.stdout.splitlines()] == ["agemem", "no_memory"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["hotpot_qa", "trajectories"]
