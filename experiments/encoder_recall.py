"""How well each retrieval encoder finds a question's supporting sentences among all sentences of its paragraphs.

    python -m experiments.encoder_recall [--path=FILE --weights=FILE] [--embedder=FILE] [--out=FILE]

Each record gets a store of its own, filled with its sentences as stage 1 tells them, and is asked its question.
Recall@k is the share of the supporting sentences among the first k retrieved, the mean over records. As in training,
words are weighted by their rarity in the messages of the training records. Beside the store's encoders: BM25, as the
method of that name ranks.
A decoder's time is that of a batch of texts, printed with that of a decoding step of as many rows: a turn is a message
or two, a call or two, and some hundred such steps.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from agemem_jax.benchmarks import task_source
from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.config import CHOICES
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.memory import bm25, encoder, store
from agemem_jax.memory.equality import equality_table
from agemem_jax.models import kv_cache, qwen, weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rollout.reader import Reader, read
from agemem_jax.training.setup import (
    ENCODER_SEED,
    check_vocabulary,
    document_counts,
    make_reader,
    reader_params,
    run_mesh,
    tokenizer_path,
)
from agemem_jax.types import PAD_ID, Text
from configs import base, tiny
from experiments import cli, out, paths, shared_flags

WEIGHTS, PATH = shared_flags.weights(), shared_flags.path()
EMBEDDER = paths.define_path("embedder", None, "an embedding model with the vocabulary of --weights")
RECORDS = flags.DEFINE_integer("records", 0, "the first so many records of --path; 0 = all", lower_bound=0)
LAYERS = flags.DEFINE_list("layers", None, "of policy_hidden; without it the middle one and the last")
TOP = (1, 3, 5)
LEXICAL_SIZES = (128, 256, 512)
BATCH = 32  # texts that a decoder reads at once, and rows of the decoding step
WIDTH = 32  # they are padded to multiples of
CACHED = 256  # tokens behind which the decoding step comes


def main() -> None:
    try:
        layers = tuple(map(int, LAYERS.value or ()))
    except ValueError:
        raise InputError(f"--layers={','.join(LAYERS.value)}: give whole numbers, such as --layers=6,12") from None
    results = measure(PATH.value or "", WEIGHTS.value or "", EMBEDDER.value or "", RECORDS.value, layers)
    print(f"{results['records']} records, {results['sentences_per_record']:.1f} sentences each")
    print(f"{'encoder':<24}{'size':>6}" + "".join(f"{f'recall@{k}':>11}" for k in TOP) + f"{'ms a batch':>12}")
    for row in results["encoders"]:
        took = f"{1000 * row['batch_s']:>12.1f}" if "batch_s" in row else ""
        print(f"{row['encoder']:<24}{row['size']:>6}" + "".join(f"{row[f'recall@{k}']:>11.3f}" for k in TOP) + took)
    print(f"batches of {BATCH} texts; a decoding step of {BATCH} rows takes {1000 * results['decode_step_s']:.1f} ms")
    out.write(results)


def measure(
    path: str, weight_file: str, embedder: str = "", most: int = 0, layers: tuple[int, ...] = (), generated: int = 200
) -> dict:
    """Recall of every encoder on the records of a file (the first `most`, if given), or on `generated` test questions.

    layers: of "policy_hidden"; () = the middle and the last.
    """
    if path and not weight_file:
        raise InputError("--path needs --weights: the tiny vocabulary has no pieces for English text")
    config = base.get_config() if weight_file else tiny.get_config()
    config.task.path, config.task.test_size = path, generated
    config.policy.weights = weight_file or config.policy.weights
    tokenizer = Tokenizer.load(tokenizer_path(config.policy))
    source = task_source(config, tokenizer)
    records = source.records[: most or None] if path else source.records_of("test")
    sentences, queries, gold = texts(records, source)
    pieces = tokenizer.token_bytes()
    counts = document_counts(source, len(pieces))
    embedding = weights.load_token_embeddings(config.policy.weights)
    check_vocabulary(config.policy, len(pieces), len(embedding))
    tables = [("lexical", encoder.lexical_table(pieces, counts, size, ENCODER_SEED)) for size in LEXICAL_SIZES]
    tables.append(("policy", encoder.policy_table(embedding[: len(pieces)], counts)))
    by_words = ranked_by_words(bm25.word_table(pieces), sentences, queries)
    rows = [{"encoder": "bm25", "size": 0} | found_of(np.asarray(by_words), gold)]
    rows += [{"encoder": name, "size": t.shape[1]} | recall(t, sentences, queries, gold) for name, t in tables]
    model, params = weights.load(config.policy.weights)
    mesh = run_mesh(config)
    for layer in layers or (model.num_layers // 2, model.num_layers):
        for pooling in CHOICES["store.encoder_pooling"]:
            config.store.encoder, config.store.encoder_layer, config.store.encoder_pooling = (
                "policy_hidden",
                layer,
                pooling,
            )
            reader = make_reader(config, model, tokenizer, mesh)
            row = {"encoder": f"policy_hidden {pooling} {layer}", "size": reader.size}
            rows.append(row | recall_of_reader(params, reader, sentences, queries, gold))
    step_s = decode_step_s(params, model)
    if embedder:
        config.store.encoder, config.store.encoder_weights = "model", embedder
        reader = make_reader(config, model, tokenizer, mesh)
        params = reader_params(config, reader, model, mesh, {})
        row = {"encoder": "model", "size": reader.size}
        rows.append(row | recall_of_reader(params, reader, sentences, queries, gold))
    per_record = float((sentences.length > 0).sum(1).mean())
    found = {"records": len(records), "sentences_per_record": per_record}
    return found | {"encoders": rows, "batch": BATCH, "decode_step_s": step_s}


def recall_of_reader(params: dict, reader: Reader, sentences: Text, queries: Text, gold: np.ndarray) -> dict:
    """Mean recall@k of a decoder, and the seconds that it takes to read a batch of texts (the median batch)."""
    flat = Text(sentences.tokens.reshape(-1, sentences.tokens.shape[-1]), sentences.length.reshape(-1))
    entries, seconds = vectors_of(params, reader, flat, False)
    asked, _ = vectors_of(params, reader, queries, True)
    made = entries.reshape(*sentences.length.shape, reader.size), asked
    no_table = np.zeros((1, reader.size), np.float32)
    return recall(no_table, sentences, queries, gold, made) | {"batch_s": float(np.median(seconds))}


@functools.partial(jax.jit, static_argnames=("reader", "is_query"))
def read_batch(params: dict, reader: Reader, text: Text, is_query: bool) -> jax.Array:
    """`read`, compiled for each width of texts."""
    return read(params, reader, text, is_query)


def vectors_of(params: dict, reader: Reader, texts: Text, is_query: bool) -> tuple[np.ndarray, list[float]]:
    """Vectors of texts [n, W], short ones read with short ones, and the seconds of each batch, compiling left out."""
    order = np.argsort(texts.length, kind="stable")
    order = order[texts.length[order] > 0]
    vectors, seconds, seen = np.zeros((len(texts.length), reader.size), np.float32), [], set()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        padded = np.pad(chosen, (0, BATCH - len(chosen)), mode="edge")
        width = -(-int(texts.length[chosen].max()) // WIDTH) * WIDTH
        tokens = texts.tokens[padded, :width]
        tokens = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])), constant_values=PAD_ID)
        batch = jax.device_put(Text(tokens, texts.length[padded]))
        if width not in seen:
            read_batch(params, reader, batch, is_query).block_until_ready()
            seen.add(width)
        began = time.perf_counter()
        vectors[chosen] = np.asarray(read_batch(params, reader, batch, is_query))[: len(chosen)]
        seconds.append(time.perf_counter() - began)
    return vectors, seconds


def decode_step_s(params: dict, model: ModelConfig, tries: int = 5) -> float:
    """Seconds of a decoding step of BATCH rows behind CACHED tokens each (the median)."""
    none = jnp.zeros((1, 0), jnp.int32)
    prefix, _ = kv_cache.encode_prefix(params, model, none, jnp.zeros((1,), jnp.int32))
    history, slot = (kv_cache.init_history(model, BATCH, CACHED), kv_cache.init_slot(model, BATCH, 1))
    cached, token = jnp.full((BATCH,), CACHED, jnp.int32), jnp.zeros((BATCH,), jnp.int32)

    @jax.jit
    def step(params, token):
        hidden, _ = kv_cache.decode_step(params, model, prefix, history, cached, slot, jnp.int32(0), token)
        return qwen.logits(params, model, hidden)

    step(params, token).block_until_ready()
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        step(params, token).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


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
def ranked(
    table: jax.Array, sentences: Text, queries: Text, made: tuple[jax.Array, jax.Array] | None = None
) -> jax.Array:
    """Numbers of the sentences retrieved for each question, best first: [R, max(TOP)] int32, -1 where none.

    made: vectors of sentences [R, N, E] and questions [R, E], in place of the table's.
    """
    rows = len(queries.length)
    zeros, no_tags = jnp.zeros((rows,), jnp.int32), tags_of(rows)
    vectors, asked = made or (None, None)
    memory = filled(table, sentences, vectors)
    encode = encoder.TokenTable(table) if made is None else encoder.Known(asked)
    _, found, _ = store.retrieve(memory, zeros == 0, queries, zeros + max(TOP), no_tags, zeros, encode, max(TOP))
    return numbers(found)


@jax.jit
def ranked_by_words(words: jax.Array, sentences: Text, queries: Text) -> jax.Array:
    """As `ranked`, by BM25 (memory/bm25.py); words [V] of its `word_table`. Equal scores: the earlier sentence."""
    memory, zeros = filled(jnp.zeros((1, 1)), sentences), jnp.zeros((len(queries.length),), jnp.int32)
    score = bm25.scores(memory, queries, zeros, words)
    return numbers(store.best(memory, score, memory.valid, zeros + max(TOP), max(TOP)))


def filled(table: jax.Array, sentences: Text, vectors: jax.Array | None = None) -> store.MemoryStore:
    """A store for each record with its sentences [R, N, L], in their order."""
    rows, places, width = sentences.tokens.shape
    zeros, no_tags = jnp.zeros((rows,), jnp.int32), tags_of(rows)
    equality = equality_table([b""])  # no duplicate is refused: it does not matter what is equal

    def add(memory, told: tuple[Text, jax.Array | None]):
        text, vector = told
        encode = encoder.TokenTable(table) if vector is None else encoder.Known(vector)
        return store.add(memory, text.length > 0, text, no_tags, zeros, zeros, zeros, encode, equality, "add")[0], None

    by_place = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (sentences, vectors))
    return jax.lax.scan(add, store.empty(rows, places, width, table.shape[1], 1, 1), by_place)[0]


def tags_of(rows: int) -> Text:
    """No tags, for so many rows."""
    return Text(jnp.zeros((rows, 1, 2, 1), jnp.int32), jnp.zeros((rows, 1, 2), jnp.int32))


def numbers(found: store.Retrieved) -> jax.Array:
    """Numbers of the sentences found, -1 where none: ids count from 1 in the order of adding."""
    return jnp.where(found.found, found.id - 1, -1)


def recall(
    table: np.ndarray, sentences: Text, queries: Text, gold: np.ndarray, made: tuple | None = None
) -> dict[str, float]:
    """Mean recall@k over records; arguments as of `ranked`."""
    return found_of(np.asarray(ranked(table, sentences, queries, made)), gold)


def found_of(best: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Mean recall@k of what was retrieved [R, max(TOP)]."""
    hit = (best >= 0) & np.take_along_axis(gold, np.maximum(best, 0), 1)
    return {f"recall@{k}": float((hit[:, :k].sum(1) / gold.sum(1)).mean()) for k in TOP}


if __name__ == "__main__":
    cli.run(main, takes_config=False)
