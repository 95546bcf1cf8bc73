"""What a run has read, as fingerprints. Content decides whether a run goes on and an evaluation still holds, not paths.

An identity is {part: sha256 in hex} over PARTS. Integers and texts alone are hashed, so that it is the same on every
machine; the encoder's table is floats, which follow from weights, tokenizer and the counts that are in "tasks".
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from agemem_jax.config import PATH_FIELDS, flatten
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.models import weights
from agemem_jax.types import Pieces

FILE = "identity.json"
FRESH = "fresh parameters"  # in place of the weights' fingerprint; seed and sizes are in the config
TOLD = 16  # records of each split whose arrays stand for how records are told
SHORT = 12  # characters of a fingerprint where people read it
Identity = dict[str, str]
UNKNOWN = (
    "warning: {where} was written by an older version, which did not note what it had read; whether weights, tokenizer "
    "and records are the same is not known"
)

ENCODER = "encoder weights"  # a part of its own where store.encoder is "model"
RECORDS = {"training": "train", "validation": "validation", "test": "test"}  # how a split is called
# Part -> the parts from which it follows: it says nothing of its own where one of these differs.
PARTS = {
    "weights": (),
    "tokenizer": (),
    "training records": (),
    "validation records": (),
    "test records": (),
    "prompt": ("tokenizer",),  # with all other fixed strings, in the chat template's marks
    "grammar": ("tokenizer",),
    "tasks": ("tokenizer", "training records", "validation records", "test records"),
}


def identity_of(
    config: ConfigDict, tokenizer: Tokenizer, source: TaskSource, pieces: Pieces, grammar: Any, counts: np.ndarray
) -> Identity:
    """The identity of a run, but for its weights.

    Args:
      grammar: the tables, a pytree of arrays.
      counts: [V] integers, in how many training messages each token occurs (setup.document_counts).
    """
    told = source.rows([(index, 0) for places in source.places.values() for index in places[:TOLD]])
    records = {f"{name} records": source.records_of(split) for name, split in RECORDS.items()}
    return {
        "tokenizer": of_tokenizer(tokenizer),
        **{part: of_texts(map(json.dumps, found)) for part, found in records.items()},
        "prompt": of_arrays(pieces),
        "grammar": of_arrays(grammar),
        "tasks": of_arrays((told, counts)),
    }


def of_weights(path: str, most: int | None = None) -> str:
    """The fingerprint of `policy.weights` (models.weights.fingerprint)."""
    return weights.fingerprint(path, most) if path else FRESH


def of_tokenizer(tokenizer: Tokenizer) -> str:
    """Of the vocabulary, and of what the encoder makes of the text of all its pieces."""
    texts = [(piece or b"").decode(errors="replace") for piece in tokenizer.pieces]
    probe = "\n".join(texts)
    if tokenizer.unspelt is not None:  # it refuses what it cannot spell
        probe = "".join(text for text in texts if not tokenizer.unspelt(text))
    known = [tokenizer.pad_id, tokenizer.end_of_turn, sorted(tokenizer.markers.items())]
    encoded = np.asarray(tokenizer.encode(probe), np.int64)
    return of_texts([json.dumps(known), repr(tokenizer.pieces), encoded.tobytes().hex()])


def of_texts(texts: Iterable[str]) -> str:
    """Of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}\n".encode())
    return digest.hexdigest()


def of_arrays(tree: Any) -> str:
    """Of the arrays of a tree, with their shapes and dtypes."""
    digest = hashlib.sha256()
    for x in map(np.asarray, jax.tree.leaves(tree)):
        digest.update(f"{x.dtype}{list(x.shape)}".encode())
        digest.update(np.ascontiguousarray(x))
    return digest.hexdigest()


def differing(was: Identity, now: Identity) -> list[str]:
    """The parts of `now` that differ, without those that follow from another one that does."""
    parts = [part for part in now if was.get(part) != now[part]]
    return [part for part in parts if not set(PARTS.get(part, ())) & set(parts)]


def check(where: str, was: Identity, now: Identity, config: ConfigDict, then: ConfigDict, remedy: str) -> None:
    """Raises InputError if what was read is not what it was, with what differs in words.

    Args:
      where: what `was` belongs to, for the message.
      now: may be some of the parts.
      then: the config of that time; its paths are part of the remedy.
    """
    parts = differing(was, now)
    if parts:
        words = "; ".join(in_words(part, was, now, config) for part in parts)
        paths = ", ".join(f"{name} = {value!r}" for name, value in flatten(then).items() if name in PATH_FIELDS)
        raise InputError(f"{where}: {words}. Give it what it began with ({paths} at that time), {remedy}")


def in_words(part: str, was: Identity, now: Identity, config: ConfigDict) -> str:
    """What differs, with the field that names its source."""
    p, path = config.policy, config.task.path
    questions = f"task.path = {path!r} holds" if path else "the generated questions (task.path is empty) are"
    code = "another version of agemem_jax made them"
    if part == "weights":
        if FRESH in (was.get(part), now[part]):
            other = "the weights of a file" if now[part] == FRESH else FRESH
            return f"the run began with {other}, and policy.weights is {p.weights!r}"
        return f"the weights that policy.weights = {p.weights!r} names are others than those the run began with"
    if part == ENCODER:
        named = f"store.encoder_weights = {config.store.encoder_weights!r}"
        return f"the weights that {named} names are others than those the run began with"
    if part == "tokenizer":
        name = "tokenizer" if p.tokenizer else "weights"
        return f"the vocabulary or encoder of policy.{name} = {p[name]!r} is another than the run began with"
    if part.endswith(" records"):
        split, where = RECORDS[part.removesuffix(" records")], ""
        if split != "train" and config.task[f"{split}_path"]:
            questions = f"task.{split}_path = {config.task[f'{split}_path']!r} holds"
        elif path:
            where = f", by task.test_fraction = {config.task.test_fraction}, task.validation_fraction = "
            where += f"{config.task.validation_fraction} of the file"
        return f"{questions} other {part} than the run began with, or in another order{where}"
    if part == "prompt":
        name = p.tokenizer or p.weights
        return f"the system prompt or the marks around messages are others: {name!r} has another template, or {code}"
    what = {"grammar": "the grammar's tables", "tasks": "the messages that records are told in"}[part]
    return f"{what} are others: {code}"


def read(path: Path) -> Identity | None:
    """The identity kept in a file; None if there is none, as in what older versions wrote."""
    return json.loads(path.read_text())["parts"] if path.is_file() else None


def to_json(identity: Identity, made_by: dict) -> str:
    """What `read` reads; `made_by` (training.summary.environment) is for people and is not compared."""
    return json.dumps({"parts": identity, "made_by": made_by}, indent=1) + "\n"


def short(identity: Identity) -> Identity:
    """The first characters of each fingerprint."""
    return {part: value if value == FRESH else value[:SHORT] for part, value in identity.items()}
