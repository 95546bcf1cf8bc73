"""How well each retrieval encoder finds a question's supporting sentences among all sentences of its paragraphs.

    python -m experiments.encoder_recall [--path=FILE --weights=FILE] [--out=FILE]

Each record gets a store of its own, filled with its sentences as stage 1 tells them, and is asked its question.
Recall@k is the share of the supporting sentences among the first k retrieved, the mean over records. As in training,
words are weighted by their rarity in the messages of the training records.
"""

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.data import hotpotqa
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import scoring
from agemem_jax.errors import InputError
from agemem_jax.memory import encoder, store
from agemem_jax.memory.equality import equality_table
from agemem_jax.models import weights
from agemem_jax.training.setup import ENCODER_SEED, check_vocabulary, document_counts, tokenizer_path
from agemem_jax.types import PAD_ID, Text
from configs import base, tiny
from experiments import cli, out, paths

PATH = paths.define_path("path", None, "a HotpotQA JSON file; without it test questions of the tiny default")
WEIGHTS = paths.define_path("weights", None, "whose vocabulary and embeddings; without it those of the tiny default")
TOP = (1, 3, 5)
LEXICAL_SIZES = (128, 256, 512)


def main() -> None:
    results = measure(PATH.value or "", WEIGHTS.value or "")
    print(f"{results['records']} records, {results['sentences_per_record']:.1f} sentences each")
    print(f"{'encoder':<10}{'size':>6}" + "".join(f"{f'recall@{k}':>11}" for k in TOP))
    for row in results["encoders"]:
        print(f"{row['encoder']:<10}{row['size']:>6}" + "".join(f"{row[f'recall@{k}']:>11.3f}" for k in TOP))
    out.write(results)


def measure(path: str, weight_file: str, generated: int = 200) -> dict:
    """Recall of every encoder on all records of a file, or on `generated` test questions."""
    if path and not weight_file:
        raise InputError("--path needs --weights: the tiny vocabulary has no pieces for English text")
    config = base.get_config() if weight_file else tiny.get_config()
    config.task.path, config.task.test_size = path, generated
    config.policy.weights = weight_file or config.policy.weights
    tokenizer = Tokenizer.load(tokenizer_path(config.policy))
    source = TaskSource(config, tokenizer, scoring.hash_words)
    records = source.records if path else source.records_of("test")
    sentences, queries, gold = texts(records, source)
    pieces = tokenizer.token_bytes()
    counts = document_counts(source, len(pieces))
    embedding = weights.load_token_embeddings(config.policy.weights)
    check_vocabulary(config.policy, len(pieces), len(embedding))
    tables = [("lexical", encoder.lexical_table(pieces, counts, size, ENCODER_SEED)) for size in LEXICAL_SIZES]
    tables.append(("policy", encoder.policy_table(embedding[: len(pieces)], counts)))
    rows = [{"encoder": name, "size": t.shape[1]} | recall(t, sentences, queries, gold) for name, t in tables]
    per_record = float((sentences.length > 0).sum(1).mean())
    return {"records": len(records), "sentences_per_record": per_record, "encoders": rows}


def texts(records: list[dict], source: TaskSource) -> tuple[Text, Text, np.ndarray]:
    """Sentences [R, N, L], questions [R, W], and which sentences are supporting facts [R, N] bool."""
    told, gold = [], []
    for record in records:
        facts = {tuple(fact) for fact in record["supporting_facts"]}
        places = [(t, i, s) for t, paragraph in record["context"] for i, s in enumerate(paragraph) if s.strip()]
        told.append([source.encode(hotpotqa.told_sentence(title, text)) for title, _, text in places])
        gold.append([(title, i) in facts for title, i, _ in places])
    most = max(map(len, told))
    flat = padded([row for rows in told for row in [*rows, *[[]] * (most - len(rows))]])
    sentences = Text(flat.tokens.reshape(len(told), most, -1), flat.length.reshape(len(told), most))
    is_gold = np.array([row + [False] * (most - len(row)) for row in gold])
    return sentences, padded([source.encode(record["question"]) for record in records]), is_gold


def padded(rows: list[list[int]]) -> Text:
    """Token lists as one Text [n, W]."""
    tokens = np.full((len(rows), max(map(len, rows))), PAD_ID, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Text(tokens, np.array([len(ids) for ids in rows], np.int32))


@jax.jit
def ranked(table: jax.Array, sentences: Text, queries: Text) -> jax.Array:
    """Numbers of the sentences retrieved for each question, best first: [R, max(TOP)] int32, -1 where none."""
    rows, places, width = sentences.tokens.shape
    zeros = jnp.zeros((rows,), jnp.int32)
    no_tags = Text(jnp.zeros((rows, 1, 2, 1), jnp.int32), jnp.zeros((rows, 1, 2), jnp.int32))
    equality = equality_table([b""])  # no duplicate is refused: it does not matter what is equal

    def add(memory, text: Text):
        return store.add(memory, text.length > 0, text, no_tags, zeros, zeros, zeros, table, equality, "add")[0], None

    by_place = Text(jnp.swapaxes(sentences.tokens, 0, 1), sentences.length.T)
    memory, _ = jax.lax.scan(add, store.empty(rows, places, width, table.shape[1], 1, 1), by_place)
    _, found, _ = store.retrieve(memory, zeros == 0, queries, zeros + max(TOP), no_tags, zeros, table, max(TOP))
    return jnp.where(found.found, found.id - 1, -1)  # ids count from 1 in the order of adding


def recall(table: np.ndarray, sentences: Text, queries: Text, gold: np.ndarray) -> dict[str, float]:
    """Mean recall@k over records."""
    best = np.asarray(ranked(table, sentences, queries))
    hit = (best >= 0) & np.take_along_axis(gold, np.maximum(best, 0), 1)
    return {f"recall@{k}": float((hit[:, :k].sum(1) / gold.sum(1)).mean()) for k in TOP}


if __name__ == "__main__":
    cli.run(main, takes_config=False)
