"""HotpotQA as a tfds data set, from the published files that the user has: train, and the distractor setting's dev."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from agemem_jax.benchmarks.hotpotqa.records import normalise
from agemem_jax.data import files
from agemem_jax.data.builders import NO_CODE_PATH, progress
from agemem_jax.errors import InputError

# Split: the published file, and how many records it has.
PUBLISHED = {
    "train": ("hotpot_train_v1.1.json", 90_447),
    "validation": ("hotpot_dev_distractor_v1.json", 7_405),
}
TEXTS = ("_id", "question", "answer", "type", "level")
NESTED = ("supporting_facts", "context")
# Share of records. Those of the distractor setting have the paragraphs of all their supporting facts, those of the
# fullwiki setting only what a search found.
MOST_LACKING = 0.1
HOME = "https://hotpotqa.github.io"


class HotpotQa(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """HotpotQA (Yang et al. 2018), records in the order and the words of the file.

    Built from {split: path} with the splits of PUBLISHED; either layout of a record will do, a file may be a part of
    the published one. A row is a record that records.load takes.

    Raises InputError, which names the file, for one that cannot be read, for a record that is not as
    records.normalise wants it or has further fields, and for the file of another split or setting.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = NO_CODE_PATH

    def __init__(self, paths: Mapping[str, str], **of_tfds):
        super().__init__(**of_tfds)
        self.paths = paths

    def _info(self) -> tfds.core.DatasetInfo:
        names = (*TEXTS, *(f"{name}_json" for name in NESTED))
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions over two paragraphs of Wikipedia among ten, with their supporting sentences.",
            homepage=HOME,
            license="CC BY-SA 4.0",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            disable_shuffling=True,
        )

    def _split_generators(self, _) -> dict[str, Iterator]:
        for split, path in self.paths.items():
            if not Path(path).is_file():
                raise InputError(f"{split}: there is no file {path!r}; download {PUBLISHED[split][0]} from {HOME}")
        return {split: self._generate_examples(split, path) for split, path in self.paths.items()}

    def _generate_examples(self, split: str, path: str) -> Iterator[tuple[int, dict]]:
        try:
            yield from enumerate(checked(split, path))
        except InputError as error:
            raise InputError(f"{error}; the file is {PUBLISHED[split][0]} of {HOME}, or a part of it") from error


def checked(split: str, path: str) -> Iterator[dict]:
    """The features of each record of a file. Raises InputError as HotpotQa does."""
    number, lacking = 0, 0
    for row in progress(files.read(path, split), split):
        where = f"{split}: {path!r}, record {number}"
        record = normalise(row, where, Counter())
        if further := sorted(set(row) - {*TEXTS, *NESTED, "id"}):
            raise InputError(f"{where} has the field {further[0]!r:.40}, which HotpotQA has not")
        titles = {title for title, _ in record["context"]}
        lacking += any(title not in titles for title, _ in record["supporting_facts"])
        number += 1
        labels = {name: record[name] for name in TEXTS}
        texts = {name: row[name] for name in ("question", "answer")}
        yield labels | texts | {f"{name}_json": json.dumps(row[name]) for name in NESTED}
    size = PUBLISHED[split][1]
    if not number:
        raise InputError(f"{split}: {path!r} has no records")
    if number > size:
        raise InputError(f"{split}: {path!r} has {number:,} records, more than the {size:,} of that split")
    if number in (known for name, (_, known) in PUBLISHED.items() if name != split):
        raise InputError(f"{split}: {path!r} has {number:,} records, just as many as another split")
    if lacking > MOST_LACKING * number:
        raise InputError(
            f"{split}: {lacking:,} of {number:,} records in {path!r} lack the paragraph of a supporting fact, as those "
            "of the fullwiki setting do"
        )
