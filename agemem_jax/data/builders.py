"""Data sets that tfds prepares without TensorFlow, from files at hand; data/files.py reads them back.

tfds writes lists of lists only where TensorFlow is installed. So what is nested is kept as JSON text, in a feature
whose name ends in `_json`, which is read back as it was.
"""

import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from agemem_jax.data import files
from agemem_jax.errors import InputError

# Beside its code a builder's list of downloads is looked for, with a package that tfds does not install.
NO_CODE_PATH = None
SPLIT_NAME = re.compile(r"(?!all$)[a-z]\w*", re.ASCII)


def prepare(builder: type[tfds.core.GeneratorBasedBuilder], sources: Any, folder: Path) -> dict[str, int]:
    """Writes a data set into FOLDER/NAME/VERSION, whole or not at all; nothing is downloaded.

    Args:
      builder: called with `sources`, and tfds's own arguments.

    Returns:
      {split: its number of records}

    Raises InputError if the data set is there already, and as the builder does.
    """
    place = folder / builder.name / str(builder.VERSION)
    if place.exists():
        raise InputError(f"{place} is prepared already; remove it to prepare it anew, or give another folder")
    tfds.disable_progress_bar()
    try:
        made = builder(sources, data_dir=folder, file_format="array_record")
        # tfds makes a folder for downloads, and prints that it downloads.
        with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
            made.download_and_prepare(download_dir=unused)
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        # It sorts what is longer in TensorFlow's files.
        raise InputError(
            f"{place}: a split has more than the 1000 MiB that tfds prepares without TensorFlow; split its files up, "
            "and prepare each part in a folder of its own"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # stays, unless nothing was written to it
            place.parent.rmdir()
    return {name: split.num_examples for name, split in made.info.splits.items()}


def progress(rows: Iterator, split: str) -> Iterator:
    """The rows, counted on a terminal."""
    return tqdm(rows, desc=split, unit=" records", leave=False, disable=None)


class Trajectories(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Trajectories that runs recorded (training/traces.py): a split a method, in the order of the folders.

    A row is {"run": the last two names of the folder it lies in, "trace": the trace}.

    Raises InputError, which names the file, for a folder without traces and for a file that holds anything else.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = NO_CODE_PATH

    def __init__(self, folders: Sequence[Path], **of_tfds):
        super().__init__(**of_tfds)
        self.folders = folders

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="What agents saw, said and called on test tasks, their store and context after each turn.",
            features=tfds.features.FeaturesDict({"run": text, "trace_json": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, _) -> dict[str, Iterator]:
        by_method: dict[str, list[dict]] = {}
        for path in (path for folder in self.folders for path in trace_files(folder)):
            for method, trace in read_traces(path):
                by_method.setdefault(method, []).append({"run": run_name(path), "trace_json": json.dumps(trace)})
        if not by_method:
            raise InputError(f"no trace is in the files of {', '.join(map(str, self.folders))}; give other runs")
        return {method: self._generate_examples(rows, method) for method, rows in sorted(by_method.items())}

    def _generate_examples(self, rows: list[dict], method: str) -> Iterator[tuple[int, dict]]:
        yield from enumerate(progress(rows, method))


def trace_files(folder: Path) -> list[Path]:
    """The files of traces of one seed's folder, or of all seeds of a run; a trained baseline has a folder of its own in
    that of the seed. Raises InputError if there are none."""
    seeds = sorted(folder.glob("seed_*"), key=lambda seed: (len(seed.name), seed.name)) or [folder]
    parts = ("traces*.json", "*/traces*.json")
    found = [path for seed in seeds for part in parts for path in sorted(seed.glob(part))]
    if not found:
        raise InputError(
            f"{folder} has no traces*.json, nor do folders seed_* in it; give the --workdir of a run that was evaluated"
        )
    return found


def read_traces(path: Path) -> Iterator[tuple[str, dict]]:
    """(method, trace) of each trace in a file. Raises InputError, which names the file, for anything else."""
    remedy = "leave the run out, or let it evaluate anew: remove the file and evaluation_METHOD-greedy.json beside it"
    try:
        for number, trace in enumerate(files.read(str(path), "traces")):
            if not isinstance(trace, dict) or not isinstance(trace.get("turns"), list):
                raise InputError(f"traces: {str(path)!r}, record {number} is not an object with a list of turns")
            method = trace.get("method")
            if not isinstance(method, str) or not SPLIT_NAME.fullmatch(method):
                raise InputError(f"traces: {str(path)!r}, record {number} has the method {method!r:.40}, which is none")
            yield method, trace
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error


def run_name(path: Path) -> bytes:
    """The last two names of the seed's folder that a file is in, such as tiny/seed_0."""
    folder = path.resolve().parent
    folder = folder.parent if folder.parent.name.startswith("seed_") else folder
    return os.fsencode("/".join(folder.parts[-2:]))
