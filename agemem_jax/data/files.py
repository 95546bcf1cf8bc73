"""Rows of a data file, read one at a time: JSON, JSON lines, both also gzipped, or a prepared tfds data set."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from agemem_jax.errors import InputError

TFDS_MARK = "tfds:"
# tfds:NAME:SPLIT@FOLDER; names hold colons themselves (a namespace before them, a version after), and so do slices.
_TFDS = re.compile(r"tfds:(.+?):([A-Za-z]\w*(?:\[[^@]*\])?(?:\+[A-Za-z]\w*(?:\[[^@]*\])?)*)(?:@(.+))?")
_CHUNK = 1 << 20  # characters read at a time
_NESTED = "_json"  # ends the name of a data set's feature that holds JSON text
_TAIL = 16  # characters before the end where a JSON error may only mean that the text ends there
_SPACE = re.compile(r"[ \t\r\n]*")
_WRAPPERS = ("rows", "data")  # keys under which a file that is one object may hold its list
_GZIP = b"\x1f\x8b"
_PARQUET_REMEDY = (
    "write it as JSON: python -c \"import json, pyarrow.parquet as p; json.dump(p.read_table('IN').to_pylist(), "
    "open('OUT.json', 'w'))\""
)
# What other files begin with: what they are, and the remedy.
_OTHER_KINDS = {
    b"PAR1": ("a parquet file", _PARQUET_REMEDY),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"BZh": ("compressed with bzip2", "unpack it"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstandard", "unpack it"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself with git lfs pull"),
    b"<": ("a web page or XML", "download the JSON file itself"),
}


def read(path: str, field: str = "task.path") -> Iterator:
    """The rows of a file or data set as JSON values, in order; neither text nor rows are held together.

    A JSON file is a list of rows, rows one after another (JSON lines), or an object that has the list under "rows" or
    "data" (in the Hugging Face viewer's answers each is under "row" once more). It may be gzipped, and in any UTF. A
    data set, `tfds:NAME:SPLIT` or `tfds:NAME:SPLIT@FOLDER`, must be prepared, as array_record or parquet, in FOLDER
    (else in TFDS_DATA_DIR or ~/tensorflow_datasets); TensorFlow is not needed. A feature NAME_json holds JSON text, and
    is read as NAME (data/builders.py writes such).

    Raises InputError, in one line that begins with `field`, for whatever cannot be read.
    """
    return _tfds_rows(path, field) if path.startswith(TFDS_MARK) else _json_rows(path, field)


def _json_rows(path: str, field: str) -> Iterator:
    try:
        with _open(path, field) as file:
            yield from _values(_Text(file, f"{field}: {path!r}"))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{field}: {path!r} is not UTF-8 text (byte {byte:#04x}); save it as UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{field}: {path!r} is damaged or cut off ({error}); copy it anew") from error
    except OSError as error:
        raise InputError(f"{field}: cannot read {path!r} ({error.strerror or error})") from error


def _open(path: str, field: str) -> TextIO:
    """The file as text. Raises InputError for what is not there or is of another kind."""
    if "://" in path:
        raise InputError(f"{field}: {path!r} is a URL; download the file and give its path")
    if Path(path).is_dir():
        raise InputError(f"{field}: {path!r} is a folder; give a file in it")
    if not Path(path).exists():
        raise InputError(
            f"{field}: there is no file {path!r}; give a HotpotQA JSON file, tfds:NAME:SPLIT, or '' for generated "
            "questions"
        )
    file = open(path, "rb")
    if file.peek(2).startswith(_GZIP):
        file.close()
        file = gzip.open(path)
    head = file.peek(64)[:64]
    for magic, (kind, remedy) in _OTHER_KINDS.items():
        if head.startswith(magic):
            file.close()
            raise InputError(f"{field}: {path!r} is {kind}; {remedy}")
    return io.TextIOWrapper(file, encoding=json.detect_encoding(head))


class _Text:
    """JSON text that is read piece by piece, and a place in it."""

    def __init__(self, file: TextIO, where: str):
        self.file, self.where = file, where
        self.text, self.at = "", 0
        self.passed, self.lines, self.values = 0, 0, 0  # characters, line ends and values before `text`; values so far

    def next(self) -> str:
        """The next character that is not white space, and goes there; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def value(self):
        """The JSON value that begins here; goes behind it."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # A text that ends within a string is told where the string begins, all else where it ends.
                at_end = error.pos >= len(self.text) - _TAIL or error.msg.startswith("Unterminated string")
                offset = error.pos - self.at
                if not (at_end and self._more()):
                    cut = at_end and not set(self.text[self.at + offset + 1 :]) & set('{}[],:')
                    self.refuse(f"{error.msg}{'; the file looks cut off' if cut else ''}", self.at + offset)
            except RecursionError:
                self.refuse("lists or objects are nested too deeply", self.at)
            except ValueError as error:  # a whole number of thousands of digits
                self.refuse(str(error), self.at)
            else:
                self.values += 1
                return value

    def refuse(self, what: str, at: int) -> None:
        """Raises the InputError of what stands at a place in `text`."""
        line, character = self.lines + self.text.count("\n", 0, at) + 1, self.passed + at + 1
        raise InputError(
            f"{self.where} is not JSON in record {self.values} (line {line}, character {character} of the file): {what}"
        )

    def _more(self) -> bool:
        """Drops what was passed and reads at least as much again as is left: a long value stays linear work.

        False at the end of the file.
        """
        self.passed, self.lines = self.passed + self.at, self.lines + self.text.count("\n", 0, self.at)
        rest = self.text[self.at :]
        piece = self.file.read(max(_CHUNK, len(rest)))
        self.text, self.at = rest + piece, 0
        return bool(piece)


_DECODER = json.JSONDecoder()


def _values(text: _Text) -> Iterator:
    """The rows of a JSON text."""
    if text.next() != "[":
        if text.next():
            value = text.value()
            rows = None if text.next() else _wrapped(value)
            yield from [value] if rows is None else rows
        while text.next():
            yield text.value()
        return
    text.at += 1
    if text.next() != "]":
        yield text.value()
    while (mark := text.next()) == ",":
        text.at += 1
        if text.next() == "]":
            text.refuse("a comma before the closing bracket; remove it", text.at)
        yield text.value()
    if mark != "]":
        text.refuse(f"a comma or the closing bracket is missing{'' if mark else '; the file looks cut off'}", text.at)
    text.at += 1
    if text.next():
        text.refuse("the file goes on after the list of records", text.at)


def _wrapped(value) -> list | None:
    """The rows that an object holds under one of the usual keys."""
    for key in _WRAPPERS if isinstance(value, dict) else ():
        if isinstance(value.get(key), list):
            return [row["row"] if isinstance(row, dict) and "row" in row else row for row in value[key]]
    return None


def _tfds_rows(path: str, field: str) -> Iterator:
    match = _TFDS.fullmatch(path)
    if not match:
        raise InputError(
            f"{field}: {path!r} must be tfds:NAME:SPLIT or tfds:NAME:SPLIT@FOLDER, as in "
            "tfds:hotpot_qa/distractor:validation@/data/tfds"
        )
    name, split, folder = match.groups()
    remedy = "; prepare it with tfds and file_format='array_record', or give a HotpotQA JSON file"
    try:  # slow to import, and needed here alone
        from tensorflow_datasets.core.read_only_builder import builder_from_files
        from tensorflow_datasets.core.registered import DatasetNotFoundError
    except ImportError as error:
        raise InputError(f"{field}: {path!r} needs the package tensorflow-datasets ({error})") from error
    try:
        source = builder_from_files(name, data_dir=folder).as_data_source(split)
        for i in range(len(source)):
            yield _unpacked(_plain(source[i]), f"{field}: {path!r}, record {i}")
    except DatasetNotFoundError as error:
        where = folder or "TFDS_DATA_DIR or ~/tensorflow_datasets"
        raise InputError(f"{field}: {path!r}: no data set {name!r} is prepared in {where}{remedy}") from error
    except (NotImplementedError, ImportError) as error:
        raise InputError(f"{field}: {path!r} is in a format that only TensorFlow reads{remedy}") from error
    except (ValueError, LookupError, OSError, RuntimeError) as error:  # an unknown split; a lost or damaged file
        first = str(error).strip().split("\n")[0]
        raise InputError(f"{field}: {path!r} cannot be read: {first}") from error


def _unpacked(row: dict, where: str) -> dict:
    """The row with what it holds as JSON text."""
    values = {}
    for name, value in row.items():
        if name.endswith(_NESTED) and isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: the text of {name!r} is not JSON ({error}); prepare it anew") from error
            name = name.removesuffix(_NESTED)
        values[name] = value
    return values


def _plain(value):
    """Arrays as lists and bytes as text, all the way down; bytes that are no UTF-8 become lone surrogates."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if hasattr(value, "__iter__") else value
