"""A decoder as the store's encoder: its vectors against a direct forward pass, what it refuses, and a stage with it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import play, settings, small_config
from small_inputs import write_model
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from vocabularies import write_bpe

from agemem_jax.config import ConfigError, validate
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.models import qwen
from agemem_jax.rollout.reader import Reader, first_layers, read
from agemem_jax.training import setup
from agemem_jax.types import Text

MODEL = qwen.ModelConfig(40, 16, 24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, qk_norm=True)
TEXTS = ([5, 6, 7, 8], [9, 10], [])
QUERY = (True, False, True)
OPENING, INSTRUCTION, ENDING = (1,), (2, 3), (4,)


def padded(rows, width=6):
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Text(jnp.asarray(tokens), jnp.array([len(ids) for ids in rows], jnp.int32))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("layers", (1, 2))
@pytest.mark.parametrize("pooling", ("mean", "last"))
def test_vectors_are_those_of_a_direct_forward_pass(layers, pooling):
    params = jax.tree.map(lambda x: 5 * x, qwen.init_params(MODEL, jax.random.key(0)))
    reader = Reader(MODEL, layers, pooling, OPENING, INSTRUCTION, ENDING)
    got = read(first_layers(params, reader), reader, padded(TEXTS), jnp.array(QUERY))
    np.testing.assert_array_equal(got[2], 0)
    short = {**params, "layers": jax.tree.map(lambda x: x[:layers], params["layers"])}
    config = dataclasses.replace(MODEL, num_layers=layers)
    for vector, ids, asks in zip(got[:2], TEXTS, QUERY, strict=False):
        before = [*OPENING, *(INSTRUCTION if asks else ())]
        tokens = jnp.array([[[*before, *ids, *ENDING]]], jnp.int32)
        none = jnp.zeros((1, 0), jnp.int32)
        _, states = qwen.rows_forward(short, config, none, jnp.zeros((1,), jnp.int32), tokens)
        if layers == MODEL.num_layers:
            states = qwen.RMSNorm(config).apply({"params": params["norm"]}, states)
        states = np.asarray(states[0, 0], np.float64)
        own = slice(len(before), len(before) + len(ids))
        wanted = states[-1] if pooling == "last" else unit(states[own]).sum(0)
        np.testing.assert_allclose(vector, unit(wanted), atol=2e-6)


def test_a_stage_stores_the_vectors_of_the_frozen_policy():
    """With a reference its parameters are read and none are copied; the program compiles once for all settings."""
    config = small_config(store__encoder="policy_hidden", store__encoder_layer=1, rl__kl_coef=0.1, task__auto_top_k=1)
    run = setup.build(config)
    spec = run.spec.rollout
    assert spec.reader.shares_frozen and run.world.reader is run.frozen
    assert spec.embedding_size == config.policy.hidden_size
    task = run.source.batch(0)
    for step in (0, 1):
        _, (rows,), _ = play(run, task, settings(run, step), stages=(1,))
    assert run.programs[1]._cache_size() == 1
    store, reader = rows.store, dataclasses.replace(spec.reader, shares_frozen=False)
    assert store.valid.any() and (rows.stats.calls[:, 3] > 0).any()
    flat = Text(store.tokens.reshape(-1, spec.entry_tokens), store.length.reshape(-1))
    wanted = read(run.frozen, reader, flat, False).reshape(store.embedding.shape)
    np.testing.assert_allclose(store.embedding, np.where(store.valid[..., None], wanted, 0), atol=1e-5)


def test_without_a_reference_a_copy_of_the_first_layers_is_kept():
    config = small_config(store__encoder="policy_hidden", store__encoder_layer=1, rl__kl_coef=0.0)
    run = setup.build(config)
    assert not run.frozen and not run.spec.rollout.reader.shares_frozen
    policy, kept = run.start(), run.world.reader
    assert set(kept) == {"embed_tokens", "layers", "norm"}
    np.testing.assert_array_equal(kept["embed_tokens"]["embedding"], policy["embed_tokens"]["embedding"])
    one = jax.tree.map(lambda x: x[:1], policy["layers"])
    jax.tree.map(np.testing.assert_array_equal, kept["layers"], one)


def test_an_embedding_model_of_the_policys_vocabulary(tmp_path):
    """Its own tokenizer says what goes around a text; another vocabulary is refused by the first token that differs."""
    write_model(tmp_path / "embedder.gguf")
    policy = Tokenizer.load(str(tmp_path / "embedder.gguf"))
    config = small_config(store__encoder="model", store__encoder_weights=str(tmp_path / "embedder.gguf"))
    mesh = setup.run_mesh(config)
    reader = setup.make_reader(config, MODEL, policy, mesh)
    assert reader.pooling == "last" and reader.layers == reader.model.num_layers and not reader.shares_frozen
    assert policy.decode(reader.instruction) == config.store.encoder_instruction
    params = setup.reader_params(config, reader, MODEL, mesh, {})
    vectors = read(params, reader, padded(TEXTS), jnp.array([False, True, True]))
    assert vectors.shape == (3, reader.size)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), [1, 1, 0], atol=1e-5)

    other = Tokenizer.load(write_bpe(tmp_path / "other", vocab_size=300))
    with pytest.raises(ConfigError, match=r"store.encoder_weights = .*another vocabulary: token \d+ is b.*Qwen3-Embed"):
        setup.make_reader(config, MODEL, other, mesh)


def test_what_a_tokenizer_puts_around_a_text(tmp_path):
    folder = write_bpe(tmp_path / "plain")
    assert Tokenizer.load(folder).around == ((), ())
    backend = Backend.from_file(f"{folder}/tokenizer.json")
    end = backend.token_to_id("<|endoftext|>")
    template = TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)])
    backend.post_processor = template
    backend.save(f"{folder}/tokenizer.json")
    assert json.loads((tmp_path / "plain" / "tokenizer.json").read_text())["post_processor"]
    assert Tokenizer.load(folder).around == ((), (end,))


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"store__encoder": "model"}, "store.encoder_weights = '': .*needs the path"),
        ({"store__encoder_weights": "some"}, "store.encoder_weights = 'some': .*reads none"),
        (
            {"store__encoder": "policy_hidden", "store__encoder_layer": -1},
            "store.encoder_layer = -1: must be at least 0",
        ),
        ({"store__encoder_pooling": "max"}, "'mean' or 'last'"),
    ],
)
def test_settings_that_do_not_go_together(changes, hint):
    with pytest.raises(ConfigError, match=hint):
        validate(small_config(**changes))


def test_a_layer_that_the_policy_lacks():
    config = small_config(store__encoder="policy_hidden", store__encoder_layer=3)
    with pytest.raises(ConfigError, match="store.encoder_layer = 3: the policy has 2 layers"):
        setup.make_reader(config, MODEL, None, setup.run_mesh(config))
