"""Households as read, kept in the user's cache folder: to read many game files anew takes a minute, this a second.

A file holds the households of one list of game files, under a name made of their paths, sizes and times and of the
code that reads them. Strings and shapes are JSON in it, arrays of a type are one array.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agemem_jax.benchmarks.alfworld import games, wording
from agemem_jax.benchmarks.alfworld.games import Goal, Household


def folder() -> Path:
    """Where households are kept: in $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "agemem_jax" / "alfworld"


def read_all(paths: Sequence[Path]) -> list[Household]:
    """The households of game files, read anew only where a file has changed. Raises InputError as games.read.

    What cannot be kept, in a folder that cannot be written, is read each time; what was kept and is damaged too.
    """
    kept = folder() / f"{_key(paths)}.npz"
    try:
        with np.load(kept, allow_pickle=False) as stored:
            return _unpacked({name: stored[name] for name in stored.files})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = [games.read(path) for path in paths]
    try:
        _keep(kept, _packed(found))
    except OSError:
        pass
    return found


def _key(paths: Sequence[Path]) -> str:
    """Differs where the files do, by their names, sizes and times, or where the code that reads them does."""
    code = [Path(module.__file__).read_bytes() for module in (games, wording)]
    try:
        states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        games.refuse(error.filename, f"cannot be read ({error.strerror})")
    return hashlib.sha256(b"\0".join([*code, json.dumps(states).encode()])).hexdigest()


def _keep(path: Path, stored: dict[str, np.ndarray]) -> None:
    """Writes beside the place and moves it there, so that there is never a half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **stored)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def _packed(households: list[Household]) -> dict[str, np.ndarray]:
    flat: dict[str, list[np.ndarray]] = {}

    def told(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            flat.setdefault(value.dtype.name, []).append(value.ravel())
            return {"array": value.dtype.name, "shape": value.shape}
        if dataclasses.is_dataclass(value):
            return {field.name: told(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return value

    texts = json.dumps([told(game) for game in households]).encode()
    joined = {name: np.concatenate(rows) for name, rows in flat.items()}
    return {"texts": np.frombuffer(texts, np.uint8), **joined}


def _unpacked(stored: dict[str, np.ndarray]) -> list[Household]:
    """What `_packed` was made of. Raises ValueError or KeyError if something is missing."""
    place = dict.fromkeys(stored, 0)

    def value(told: Any) -> Any:
        if isinstance(told, dict) and "array" in told:
            name, shape = told["array"], told["shape"]
            begin = place[name]
            place[name] += int(np.prod(shape))
            return stored[name][begin : place[name]].reshape(shape)
        if isinstance(told, dict):
            return Goal(**dict(fields(told)))
        return tuple(told) if isinstance(told, list) else told

    def fields(told: dict) -> Iterator[tuple[str, Any]]:
        return ((name, value(inner)) for name, inner in told.items())

    return [Household(**dict(fields(told))) for told in json.loads(stored["texts"].tobytes())]
