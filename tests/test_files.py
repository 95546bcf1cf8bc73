"""Data files: what is read, and what is refused in one line that names file, place and remedy."""

import gzip
import json
import os
import tracemalloc

import numpy as np
import pytest
from test_hotpotqa import OFFICIAL, columns

from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.data import files
from agemem_jax.errors import InputError

ROWS = [{"n": i, "text": f"é {i} \n " + "x" * i} for i in range(5)]
LIST, LINES = json.dumps(ROWS), "\n".join(map(json.dumps, ROWS))


def write(tmp_path, content: str | bytes, name: str = "rows.json") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refused(path: str) -> str:
    with pytest.raises(InputError) as error:
        list(files.read(path))
    assert "\n" not in str(error.value) and str(error.value).startswith("task.path: ")
    return str(error.value)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        LIST,
        LINES,
        LINES + "\n\n",
        LINES.replace("\n", "\r\n"),
        f" \n{json.dumps(ROWS, indent=2, ensure_ascii=False)}\n",
        b"\xef\xbb\xbf" + LIST.encode(),
        LIST.encode("utf-16"),
        LINES.encode("utf-16-le"),
        gzip.compress(LIST.encode(), mtime=0),
        gzip.compress(b"\xef\xbb\xbf" + LINES.encode(), mtime=0),
        json.dumps({"data": ROWS, "version": 2}),
        json.dumps({"features": [], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)]}),
    ],
)
def test_layouts_of_files(tmp_path, monkeypatch, content, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    assert list(files.read(write(tmp_path, content))) == ROWS
    assert list(files.read(write(tmp_path, content, "a name without meaning.gz"))) == ROWS


def test_lists_of_one_and_none(tmp_path):
    assert list(files.read(write(tmp_path, "[{}]"))) == list(files.read(write(tmp_path, "{}"))) == [{}]
    for content in ("", " \n", "[]", "[ ]\n", b"\xef\xbb\xbf", gzip.compress(b"")):
        assert list(files.read(write(tmp_path, content))) == []
        with pytest.raises(InputError, match="rows.json' has no record that can be used: 0 were read"):
            hotpotqa.load(write(tmp_path, content))


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_cut_file_says_so_wherever_it_is_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    for end in range(1, len(LIST)):
        message = refused(write(tmp_path, LIST[:end]))
        assert "the file looks cut off" in message and "line 1, character " in message, (end, message)
    last = LINES.rindex("{")
    for end in range(last + 1, len(LINES)):
        message = refused(write(tmp_path, LINES[:end]))
        assert "in record 4 (line 5, character " in message and "cut off" in message
    packed = gzip.compress(LIST.encode())
    for end in (5, 20, len(packed) - 9):
        assert "is damaged or cut off" in refused(write(tmp_path, packed[:end]))


@pytest.mark.parametrize("chunk", [5, 1 << 20])
@pytest.mark.parametrize(
    "content, message",
    [
        ("{not json", r"record 0 \(line 1, character 2 of the file\): Expecting property name"),
        ('[{"n": 1},\n {"n": }, {"n": 3}]', r"record 1 \(line 2, character 19 .*Expecting value$"),
        ('[{"n": 1},\n]', r"record 1 \(line 2, .*a comma before the closing bracket; remove it"),
        ('[{"n": 1} {"n": 2}]', r"record 1 .*a comma or the closing bracket is missing$"),
        ('[{"n": 1}]\n[{"n": 2}]', r"record 1 \(line 2, .*goes on after the list"),
        ('{"n": 1},\n{"n": 2}', r"record 1 \(line 1, character 9 .*Expecting value"),
        ('{"n": 1}\n{"n": "a\nb"}' + " " * 30, r"record 1 \(line 2, .*Invalid control character"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('[{"n": ' + "9" * 5000 + "}]", r"record 0 .*Exceeds the limit \(4300"),
    ],
)
def test_bad_json_is_told_with_record_line_and_character(tmp_path, monkeypatch, content, message, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    with pytest.raises(InputError, match=message):
        list(files.read(write(tmp_path, content)))


def test_other_kinds_of_files_are_named(tmp_path, monkeypatch):
    for content, told in (
        (b"PAR1\x15\x04", "is a parquet file; write it as JSON: python -c "),
        (b"PK\x03\x04....", "is a zip archive; unpack it"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstandard"),
        (gzip.compress(b"PAR1", mtime=0), "is a parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html>", "is a web page"),
        ('[{"n": "é"}]'.encode("latin-1"), "is not UTF-8 text (byte 0xe9); save it as UTF-8"),
    ):
        assert told in refused(write(tmp_path, content)), content
    assert "is a folder; give a file in it" in refused(str(tmp_path))
    assert "there is no file" in refused(str(tmp_path / "missing.json"))
    assert "there is no file" in refused("a\0b")
    assert "File name too long" in refused("a" * 5000)
    for url in ("https://example.org/hotpot.json", "hf://datasets/hotpot_qa", "gs://bucket/x"):
        assert "is a URL; download the file" in refused(url)
    path = write(tmp_path, LIST)
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open", denied, raising=False)
    assert f"cannot read '{path}' (Permission denied)" in refused(path)


def test_the_remedy_for_parquet_works(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([columns(OFFICIAL)] * 2), tmp_path / "IN")
    code = files._PARQUET_REMEDY.partition('"')[2].rstrip('"')
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(code)
    finally:
        os.chdir(here)
    assert hotpotqa.load(str(tmp_path / "OUT.json")) == [OFFICIAL, OFFICIAL]


def test_reading_holds_neither_the_text_nor_all_rows(tmp_path):
    row = {"text": "y" * 5000}
    path = write(tmp_path, json.dumps([row] * 4000))  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in files.read(path)) == 4000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * files._CHUNK


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders of a data set of two records, as tfds prepares them, by the names of their file formats.

    tfds itself writes a list of lists only with TensorFlow, so the examples are put together here; their reading is
    tfds's own.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core import naming, splits
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    text = tfds.features.Text()
    labels = ("id", "question", "answer", "type", "level")
    layout = tfds.features.FeaturesDict(
        {name: text for name in labels}
        | {
            "supporting_facts": tfds.features.Sequence({"title": text, "sent_id": np.int32}),
            "context": tfds.features.Sequence({"title": text, "sentences": tfds.features.Sequence(text)}),
        }
    )
    other = tfds.features.FeaturesDict({"text": text})

    def builder(name: str, features, kind: str):
        def info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        made = {"VERSION": tfds.core.Version("1.0.0"), "_info": info, "_split_generators": None, "__module__": __name__}
        made["_generate_examples"] = None
        return type(name, (tfds.core.GeneratorBasedBuilder,), made)(data_dir=root / kind, file_format=kind)

    def example(row: dict) -> bytes:
        values = {name: [row[name]] for name in row if isinstance(row[name], str)}
        if "context" in row:
            values["supporting_facts/title"] = row["supporting_facts"]["title"]
            values["supporting_facts/sent_id"] = row["supporting_facts"]["sent_id"]
            values["context/title"] = row["context"]["title"]
            values["context/sentences/ragged_flat_values"] = sum(row["context"]["sentences"], [])
            values["context/sentences/ragged_row_lengths_0"] = [len(part) for part in row["context"]["sentences"]]
        made = {}
        for name, items in values.items():
            if isinstance(items[0], int):
                made[name] = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=items))
            else:
                encoded = [item.encode() for item in items]
                made[name] = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=encoded))
        return tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=made)).SerializeToString()

    root = tmp_path_factory.mktemp("tfds")
    for name, features, kind, rows in (
        ("HotpotQa", layout, "array_record", [columns(OFFICIAL), columns(OFFICIAL | {"_id": "a2"})]),
        ("OldTask", layout, "tfrecord", [columns(OFFICIAL)]),
        ("OtherTask", other, "array_record", [{"text": "nothing"}]),
    ):
        made = builder(name, features, kind)
        os.makedirs(made.data_dir)
        template = naming.ShardedFileTemplate(
            data_dir=made.data_dir, dataset_name=made.name, filetype_suffix=kind, split="validation"
        )
        split = splits.SplitInfo(name="validation", shard_lengths=[len(rows)], num_bytes=0, filename_template=template)
        made.info.set_splits(splits.SplitDict([split]))
        writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
        for row in rows:
            writer.write(example(row))
        writer.close()
        made.info.write_to_directory(made.data_dir)
    return root


def test_a_prepared_data_set_is_read_without_tensorflow(prepared, monkeypatch):
    folder = prepared / "array_record"
    both = [OFFICIAL, OFFICIAL | {"_id": "a2"}]
    assert hotpotqa.load(f"tfds:hotpot_qa:validation@{folder}") == both
    assert hotpotqa.load(f"tfds:hotpot_qa:1.0.0:validation[:50%]@{folder}") == both[:1]
    assert hotpotqa.load(f"tfds:hotpot_qa:validation[50%:]+validation[:50%]@{folder}") == both[::-1]


def test_a_data_set_that_cannot_be_read_is_refused(prepared):
    folder = prepared / "array_record"
    assert "no data set 'hotpot' is prepared in " in refused(f"tfds:hotpot:validation@{folder}")
    assert "file_format='array_record'" in refused(f"tfds:hotpot_qa:validation@{prepared}")
    assert "no data set 'huggingface:hotpot_qa/distractor'" in refused(
        f"tfds:huggingface:hotpot_qa/distractor:validation@{folder}"
    )
    assert "Unknown split 'train'" in refused(f"tfds:hotpot_qa:train@{folder}")
    assert "only TensorFlow reads; prepare it" in refused(f"tfds:old_task:validation@{prepared / 'tfrecord'}")
    for wrong in ("tfds:", "tfds:hotpot_qa", "tfds:hotpot_qa:", "tfds::train", "tfds:hotpot_qa:1.0.0"):
        assert "must be tfds:NAME:SPLIT or tfds:NAME:SPLIT@FOLDER" in refused(wrong)
    assert "cannot be read: " in refused(f"tfds:no name!:validation@{folder}")
    with pytest.raises(InputError, match="record 0 lacks the field 'question'.*it has: 'text'"):
        hotpotqa.load(f"tfds:other_task:validation@{folder}")
    lost = next((folder / "other_task").glob("*/*.array_record-*"))
    lost.unlink()
    assert "cannot be read: " in refused(f"tfds:other_task:validation@{folder}")


def test_arrays_and_bytes_become_plain():
    row = {"a": np.array([1, 2], np.int32), "b": [np.array([b"x", b"\xff"], object)], "c": np.int32(3), "d": True}
    assert files._plain(row) == {"a": [1, 2], "b": [["x", "\udcff"]], "c": 3, "d": True}
