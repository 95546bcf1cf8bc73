"""Checkpoints of a run: orbax writes the arrays in the background, a manifest written last tells whether all is there.

    <directory>/00000040/
        state/       the arrays (orbax)
        arrays.json  their names, dtypes and shapes
        host.json    what the host needs to go on
        config.json  the config of the run
        identity.json  fingerprints of what the run has read (identity.py), and who wrote the checkpoint
        MANIFEST     its own sha256, then sha256, size and name of every other file

A checkpoint is written under `00000040.partial` and renamed when it is whole, so a kill at any moment leaves the
earlier ones as they were. What was found damaged or half-written stays on disk; where its name is needed again it is
renamed to `00000040.broken-1`, and so on.

With several processes each writes and reads its own part of the arrays; process 0 alone does the rest, and decides for
all which checkpoint there is. Mesh and number of processes may be others at every start.
"""

import hashlib
import json
import re
import shutil
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from agemem_jax.config import PATH_FIELDS, ConfigError, difference, flatten, from_json, to_json
from agemem_jax.errors import InputError, storage_problem
from agemem_jax.training import identity as identities
from agemem_jax.training.distributed import agree, is_leader, share_folder
from agemem_jax.training.identity import Identity
from agemem_jax.training.summary import environment

MANIFEST = "MANIFEST"
NAME = re.compile(r"(\d{8,})(\.partial)?")

# What may differ between a checkpoint and the run that goes on from it: how long, how often, on which devices, what
# decides the cost of an update and its rounding alone, the memory systems of others, and prices.
FREE_FIELDS = (
    "name", "num_seeds", "rl.updates", "rl.micro_batch", "rl.logit_chunk", "policy.remat", "rollout.prefill_chunk",
    "rollout.prefill_rows", "rollout.history_widths", "rollout.decode_width", "policy.scan_layers", "rl.widths",
    "policy.attention", "policy.query_block",
)  # fmt: skip
FREE_GROUPS = ("train", "mesh", "methods", "prices")


class Checkpointer:
    """Saves and restores the state of one run.

    directory: a local or shared folder, the same for all processes.
    config: of the run; a checkpoint of another config is refused.
    keep: how many of the newest checkpoints are kept.
    identity: of what the run has read; a checkpoint of a run that read something else is refused. None: what was read
      is neither known nor compared.
    """

    def __init__(self, directory: str | Path, config: ConfigDict, keep: int, identity: Identity | None = None):
        if keep < 1:
            raise ValueError(f"train.keep_checkpoints = {keep}: at least 1 must be kept")
        self.directory = Path(directory).resolve()
        share_folder(self.directory)
        self._config, self._keep, self._identity = config, keep, identity
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._begun = 0  # update of the last save
        self._broken: set[Path] = set()

    def save(self, update: int, state: Any, host: dict, wait: bool = False) -> None:
        """Saves a checkpoint; returns as soon as the arrays are copied, so that `state` may be donated right after.

        An update that is already saved whole is left as it is.

        Args:
          update: updates done.
          state: pytree of jax.Arrays of any sharding, typed PRNG keys included.
          host: what JSON can hold, to be returned by `restore_latest`.
          wait: return only when the checkpoint is on disk.

        Raises as `wait`, of the save before this one or of this one.
        """
        self.wait()
        self._begun = update
        final = self.directory / f"{update:08d}"
        if agree(lambda: final.exists() and damage(final) is None):
            return
        partial = final.with_name(final.name + ".partial")
        try:
            if is_leader():
                set_aside(final)
                set_aside(partial)
                partial.mkdir()
                self._write_texts(partial, state, host)
            synchronise("checkpoint folder")
            with jax.transfer_guard("allow"):
                self._orbax.save(partial / "state", args=ocp.args.StandardSave(state))
        except Exception as error:
            raise self._explained(error) from error
        self._writer = threading.Thread(target=self._finish, args=(partial, final), name="checkpoint")
        self._writer.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises if it failed, and names the checkpoint that is whole: InputError if disk or share refused, RuntimeError
        otherwise.
        """
        if self._writer is None:
            return
        self._writer.join()
        self._writer = None
        synchronise("checkpoint written")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._explained(failure) from failure

    def restore_latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """The newest whole checkpoint as (update, state, host), or None if there is none.

        A damaged or half-written checkpoint is skipped with a warning that names it.

        Args:
          like: pytree of the state's structure whose leaves are arrays or jax.ShapeDtypeStructs; the restored arrays
            take their shardings.

        Raises:
          ConfigError: the checkpoint is of another config; lists the fields that differ.
          InputError: its run has read other files, or its arrays are not those of `like`; says which.
        """
        self.wait()
        found = agree(lambda: self._newest(like))
        if found is None:
            return None
        name, host = found
        with jax.transfer_guard("allow"):
            state = self._orbax.restore(self.directory / name / "state", args=ocp.args.StandardRestore(abstract(like)))
        return int(name), state, host

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        self.wait()
        self._orbax.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        # After an error of this process alone the others would never come to the end of the save.
        if kind is None or self._writer is None or jax.process_count() == 1:
            self.close()

    def _newest(self, like: Any) -> tuple[str, dict] | None:
        """Name and host part of the newest whole checkpoint; raises as `restore_latest`."""
        for path in checkpoints(self.directory):
            problem = damage(path)
            if problem is not None:
                warnings.warn(f"skipping checkpoint {path}: {problem}", stacklevel=5)
                self._broken.add(path)
                continue
            self._check_run(path)
            check_layout(path, like)
            return path.name, json.loads((path / "host.json").read_text())
        return None

    def _finish(self, partial: Path, final: Path) -> None:
        """Runs beside the training: waits for orbax, then makes the checkpoint count and drops old ones."""
        try:
            self._orbax.wait_until_finished()
            if is_leader():
                write_manifest(partial)
                partial.rename(final)
                self._broken.discard(final)
                self._drop_old()
        except Exception as error:  # raised again by `wait`, in the thread that trains
            self._failure = error

    def _drop_old(self) -> None:
        """Deletes whole checkpoints beyond the newest `keep`."""
        whole = [p for p in checkpoints(self.directory) if p not in self._broken and (p / MANIFEST).exists()]
        for path in whole[self._keep :]:
            (path / MANIFEST).unlink()  # first, so that a half-deleted checkpoint does not look whole
            shutil.rmtree(path)

    def _write_texts(self, partial: Path, state: Any, host: dict) -> None:
        """Writes what a checkpoint holds beside its arrays and the manifest."""
        (partial / "host.json").write_text(json.dumps(host))
        (partial / "config.json").write_text(to_json(self._config))
        (partial / "arrays.json").write_text(json.dumps(layout(state), indent=1))
        if self._identity is not None:
            (partial / identities.FILE).write_text(identities.to_json(self._identity, environment()))

    def _explained(self, error: Exception) -> Exception:
        """The error of a failed save."""
        what = f"the checkpoint of update {self._begun} could not be written to {self.directory}"
        intact = intact_in_words(self.directory)
        if problem := storage_problem(error):
            return InputError(f"{what}: {problem}; {intact}. Mend that, then start the same command again")
        return RuntimeError(f"{what}: {error}; {intact}")

    def _check_run(self, path: Path) -> None:
        """Raises ConfigError if a checkpoint's config differs in a field that matters, InputError if its files do."""
        was = None if self._identity is None else identities.read(path / identities.FILE)
        saved, now = from_json((path / "config.json").read_text()), from_json(to_json(self._config))
        names = [name for name in difference(saved, now) if not may_differ(name, now, was is not None)]
        if names:
            raise ConfigError(of_another_config(f"checkpoint {path}", names, saved, now))
        if was is not None:
            identities.check(f"checkpoint {path}", was, self._identity, now, saved, "or start in a new --workdir")
        elif self._identity is not None:
            print(identities.UNKNOWN.format(where=f"checkpoint {path}"), file=sys.stderr, flush=True)


def of_another_config(what: str, names: list[str], was: ConfigDict, now: ConfigDict) -> str:
    """The refusal of what was made by another config, whose fields `names` differ."""
    old, new = flatten(was), flatten(now)
    listed = "; ".join(f"{n} is {new.get(n, 'absent')!r}, was {old.get(n, 'absent')!r}" for n in names)
    return f"{what} is of another config: {listed}. Set these fields back, or start in a new --workdir"


def may_differ(name: str, config: ConfigDict, content_known: bool) -> bool:
    """Whether a run may go on from a checkpoint in spite of another value of this field.

    content_known: the identity tells whether the content behind a path is the same.
    """
    if name in PATH_FIELDS:
        return content_known
    if name == "rl.updates" and config.rl.schedule == "sequential":
        return False  # it decides which stage each update trains
    return name in FREE_FIELDS or name.split(".")[0] in FREE_GROUPS


def layout(state: Any) -> dict[str, str]:
    """{name: dtype and shape} of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def check_layout(path: Path, like: Any) -> None:
    """Raises InputError if a checkpoint's arrays are not those of `like`."""
    saved, wanted = json.loads((path / "arrays.json").read_text()), layout(like)
    names = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
    if names:
        listed = "; ".join(f"{n} is {wanted.get(n, 'absent')}, was {saved.get(n, 'absent')}" for n in names)
        raise InputError(f"checkpoint {path} does not hold the arrays of this run: {listed}. Start in a new --workdir")


def checkpoints(directory: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, newest first."""
    named = [(match, path) for path in directory.iterdir() if (match := NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(named, key=lambda pair: (int(pair[0][1]), not pair[0][2]), reverse=True)]


def last_saved(directory: Path) -> int | None:
    """Updates done at the newest whole checkpoint, judged without reading its files; None if there is none."""
    found = checkpoints(directory) if directory.is_dir() else []
    whole = [int(path.name) for path in found if path.suffix != ".partial" and (path / MANIFEST).exists()]
    return max(whole, default=None)


def intact_in_words(directory: Path) -> str:
    """Which checkpoint a run can go on from."""
    update = last_saved(directory)
    return "there is no whole checkpoint yet" if update is None else f"checkpoint {update:08d} is whole"


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    if path.suffix == ".partial" or not (path / MANIFEST).exists():
        return "it is half-written"
    head, _, body = (path / MANIFEST).read_bytes().partition(b"\n")
    if head.decode(errors="replace") != hashlib.sha256(body).hexdigest():
        return f"{MANIFEST} is damaged"
    for line in body.decode().splitlines():
        digest, size, name = line.split(" ", 2)
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != int(size):
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if sha256(file) != digest:
            return f"{name} is damaged"
    return None


def write_manifest(path: Path) -> None:
    """Lists every file of a checkpoint with its size and sha256."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    body = "".join(f"{sha256(f)} {f.stat().st_size} {f.relative_to(path).as_posix()}\n" for f in files)
    (path / MANIFEST).write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def set_aside(path: Path) -> None:
    """Renames a broken checkpoint, if there is one, so that its name is free and its content stays on disk."""
    if not path.exists():
        return
    stem, number = path.name.removesuffix(".partial"), 1
    while (target := path.with_name(f"{stem}.broken-{number}")).exists():
        number += 1
    path.rename(target)


def abstract(state: Any) -> Any:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def synchronise(name: str) -> None:
    """Waits for all processes of a run."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
