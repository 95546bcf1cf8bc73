"""Long-term memory from one session to the next: a MemoryStore on disk, in the form of checkpoints (checkpoint.py).

    <folder>/00000003/      the third save; earlier ones are deleted when it is whole
        state/              the arrays (orbax)
        arrays.json         their names, dtypes and shapes
        store.json          sizes, the vocabulary's fingerprint, and what the encoder makes of PROBES texts
        MANIFEST            its own sha256, then sha256, size and name of every other file

What a store holds means something with its vocabulary and its encoder alone: entries are tokens, and vectors of two
encoders cannot be compared. The vocabulary is known by its tokens' bytes, the encoder by its vectors of drawn texts,
which are compared up to rounding, so that a store may move to another machine.

A save is of one process. What was deleted from the store is in no file after the next save.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from agemem_jax.errors import InputError, storage_problem
from agemem_jax.memory import store as memory
from agemem_jax.memory.encoder import Encoder
from agemem_jax.memory.store import MemoryStore
from agemem_jax.training.checkpoint import MANIFEST, abstract, check_layout, checkpoints, damage, layout, write_manifest
from agemem_jax.training.identity import of_texts
from agemem_jax.types import Text

FILE = "store.json"
PROBES, PROBE_TOKENS = 64, 8  # texts that tell one encoder from another
ALIKE = 0.999  # cosine of two vectors of one text from which on they are the same encoder's


def save(folder: str | Path, store: MemoryStore, token_bytes: Sequence[bytes | None], encode: Encoder) -> Path:
    """Saves a store so that `reopen` finds it; returns the folder of this save. The one before goes when it is whole.

    Args:
        folder: made if need be; of this store alone.
        token_bytes: the text of each token of the vocabulary (Tokenizer.token_bytes).
        encode: the encoder of all texts of this store.

    Raises InputError, in words of the system, if the disk refuses; the save before is then as it was.
    """
    folder = Path(folder).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = checkpoints(folder)
        number = 1 + max((int(path.name.split(".")[0]) for path in before), default=0)
        final = folder / f"{number:08d}"
        partial = final.with_name(final.name + ".partial")
        partial.mkdir()
        (partial / FILE).write_text(json.dumps(_described(store, token_bytes, encode)))
        (partial / "arrays.json").write_text(json.dumps(layout(store), indent=1))
        with ocp.StandardCheckpointer() as writer, jax.transfer_guard("allow"):
            writer.save(partial / "state", store)
        write_manifest(partial)
        partial.rename(final)
        for path in before:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that a half-deleted save does not look whole
            shutil.rmtree(path)
    except Exception as error:
        if problem := storage_problem(error):
            raise InputError(
                f"the store could not be saved to {folder}: {problem}; mend that, and save again"
            ) from error
        raise
    return final


def reopen(folder: str | Path, token_bytes: Sequence[bytes | None], encode: Encoder) -> MemoryStore:
    """The store that was saved last, bit for bit. Arguments are those of `save`.

    Raises InputError if there is no save or it is damaged, and if its vocabulary or its encoder is another than those
    given.
    """
    found = (
        [path for path in checkpoints(Path(folder).resolve()) if path.suffix != ".partial"]
        if Path(folder).is_dir()
        else []
    )
    if not found:
        raise InputError(f"{folder}: no store was saved there; give the folder that a store was saved to")
    path = found[0]
    if problem := damage(path):
        raise InputError(f"{path}: {problem}; put back a copy of this folder that is whole")
    saved = json.loads((path / FILE).read_text())
    if saved["vocabulary"] != _vocabulary(token_bytes):
        raise InputError(
            f"{path}: the entries are tokens of another vocabulary; give the tokenizer that it was saved with"
        )
    _check_encoder(path, saved, token_bytes, encode)
    like = abstract(jax.device_put(memory.empty(**saved["sizes"]), jax.devices()[0]))
    check_layout(path, like)
    with ocp.StandardCheckpointer() as reader, jax.transfer_guard("allow"):
        return reader.restore(path / "state", like)


def _described(store: MemoryStore, token_bytes: Sequence[bytes | None], encode: Encoder) -> dict:
    """What store.json holds."""
    batch, entries, tag_slots, _, tag_tokens = store.tags.tokens.shape
    sizes = dict(
        batch=batch, entries=entries, entry_tokens=store.tokens.shape[2], embedding_size=store.embedding.shape[2],
        tag_slots=tag_slots, tag_tokens=tag_tokens,
    )  # fmt: skip
    return {
        "sizes": sizes,
        "vocabulary": _vocabulary(token_bytes),
        "probes": _probes(len(token_bytes), encode).tolist(),
    }


def _vocabulary(token_bytes: Sequence[bytes | None]) -> str:
    return of_texts(repr(piece) for piece in token_bytes)


def _probes(vocab_size: int, encode: Encoder) -> np.ndarray:
    """Vectors [PROBES, E] of texts drawn from the whole vocabulary."""
    tokens = np.random.default_rng(0).integers(vocab_size, size=(PROBES, PROBE_TOKENS), dtype=np.int32)
    return np.asarray(encode(Text(jax.numpy.asarray(tokens), jax.numpy.full(PROBES, PROBE_TOKENS)), False))


def _check_encoder(path: Path, saved: dict, token_bytes: Sequence[bytes | None], encode: Encoder) -> None:
    """Raises InputError if the encoder is not the one of the saved store."""
    remedy = "give the one that it was saved with (store.encoder and its settings, weights, training records)"
    was, now = np.array(saved["probes"], np.float32), _probes(len(token_bytes), encode)
    if was.shape != now.shape:
        sizes = f"its vectors have {was.shape[1]} numbers, the encoder's {now.shape[1]}"
        raise InputError(f"{path}: the store is of another encoder: {sizes}; {remedy}")
    same = (np.sum(was * now, axis=1) >= ALIKE) | ~(was.any(axis=1) | now.any(axis=1))
    if not same.all():
        what = f"{np.sum(~same)} of {PROBES} texts have other vectors"
        raise InputError(f"{path}: the store is of another encoder: {what}; {remedy}")
