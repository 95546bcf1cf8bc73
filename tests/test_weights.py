"""Weight files in and out: safetensors (single, sharded), GGUF, export to transformers, and what is refused."""

import json
import os
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from agemem_jax.models import qwen, weights
from agemem_jax.models.qwen import ModelConfig

LLAMA3 = (("factor", 8.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0))
LLAMA3 += (("original_max_position_embeddings", 32), ("rope_type", "llama3"))
SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
FAMILIES = {
    "qwen2": ModelConfig(**SIZES, qkv_bias=True, rope_theta=1e6, tie_word_embeddings=True),
    "qwen3": ModelConfig(**(SIZES | dict(head_dim=12)), qk_norm=True, tie_word_embeddings=False),
    "llama": ModelConfig(**SIZES, rms_norm_eps=1e-5, rope_scaling=LLAMA3, tie_word_embeddings=False),
}


def random_params(config: ModelConfig) -> dict:
    leaves, tree = jax.tree.flatten(qwen.init_params(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + (0.2 * jax.random.normal(k, x.shape)).astype(x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def our_logits(config: ModelConfig, params: dict, tokens: list[int]) -> np.ndarray:
    rows = jnp.array(tokens)[None, None]
    nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros(1, jnp.int32)
    forward = jax.jit(qwen.rows_forward, static_argnums=1)
    hidden = forward(params, config, *nothing, rows)[1]
    return np.asarray(qwen.logits(params, config, hidden[0, 0]))


def hf_logits(model, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].float().numpy()


def assert_same_params(a: dict, b: dict):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def shard(folder: Path, count: int = 3) -> Path:
    """Splits folder's model.safetensors into `count` shards with an index, as Hugging Face does."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::count]}
        safetensors.numpy.save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def rewrite(folder: Path, change) -> None:
    """Changes the tensors of folder's model.safetensors in place."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def saved(tmp_path):
    config = FAMILIES["qwen2"]
    params = random_params(config)
    weights.save_hf(tmp_path, config, params)
    return tmp_path, config, params


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_save_hf_writes(family, tmp_path):
    config = FAMILIES[family]
    params = random_params(config)
    weights.save_hf(tmp_path, config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.model_type == family
    tokens = list(np.random.default_rng(0).integers(0, 61, 50))
    theirs = hf_logits(model, tokens)
    assert np.abs(our_logits(config, params, tokens) - theirs).max() < 1e-4 * np.abs(theirs).max()

    loaded_config, loaded = weights.load(tmp_path)
    assert loaded_config == config
    assert_same_params(loaded, params)


@pytest.mark.parametrize("family", FAMILIES)
def test_load_reads_what_transformers_writes(family, tmp_path):
    config = FAMILIES[family]
    weights.save_hf(tmp_path / "ours", config, random_params(config))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    loaded_config, loaded = weights.load(tmp_path / "theirs")
    assert loaded_config == config
    assert_same_params(loaded, weights.load(tmp_path / "ours")[1])


def test_folder_file_and_index_are_the_same_model(saved):
    folder, config, params = saved
    for path in (folder, folder / "model.safetensors"):
        assert_same_params(weights.load(path)[1], params)
    index = shard(folder)
    for path in (folder, str(index)):
        loaded_config, loaded = weights.load(path)
        assert loaded_config == config
        assert_same_params(loaded, params)


def test_dtypes(tmp_path):
    config = ModelConfig(**SIZES, dtype="bfloat16", param_dtype="bfloat16")
    params = random_params(config)
    weights.save_hf(tmp_path, config, params)
    _, same = weights.load(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert_same_params(same, params)
    loaded_config, wide = weights.load(tmp_path)
    assert (loaded_config.dtype, loaded_config.param_dtype) == ("float32", "float32")
    assert_same_params(wide, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_missing_unknown_and_misshaped_tensors_name_themselves(saved):
    folder, _, _ = saved

    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.mlp.experts.weight"] = np.zeros((3, 5), np.float32)
        tensors["model.norm.weight"] = np.zeros(31, np.float32)

    rewrite(folder, change)
    with pytest.raises(ValueError) as error:
        weights.load(folder)
    message = str(error.value)
    assert "missing model.layers.1.mlp.up_proj.weight [64, 32]" in message
    assert "unknown model.layers.0.mlp.experts.weight [3, 5]" in message
    assert "model.norm.weight: expected [32], found [31]" in message
    assert str(folder) in message


def test_harmless_extras_are_ignored(saved):
    folder, _, params = saved

    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()  # tied, written twice

    rewrite(folder, change)
    assert_same_params(weights.load(folder)[1], params)


def test_files_that_cannot_be_read_are_refused_by_name(saved, tmp_path):
    folder, _, _ = saved
    with pytest.raises(ValueError, match="nowhere"):
        weights.load(folder / "nowhere.safetensors")
    (folder / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="weights.bin"):
        weights.load(folder / "weights.bin")
    (folder / "second.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match="2 weight files"):
        weights.load(folder)
    with pytest.raises(ValueError, match="second.safetensors"):
        weights.load(folder / "second.safetensors")
    (folder / "broken.gguf").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match="broken.gguf"):
        weights.load(folder / "broken.gguf")
    (folder / "second.safetensors").unlink()
    index = shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00003"):
        weights.load(index)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json"):
        weights.load(index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="gemma"), "gemma"),
        (dict(use_sliding_window=True), "use_sliding_window"),
        (dict(hidden_act="gelu"), "hidden_act"),
        (dict(attention_bias=True), "attention_bias"),
        (dict(rope_scaling=dict(type="dynamic", factor=2.0)), "dynamic"),
    ],
)
def test_variants_that_the_decoder_lacks_are_refused(change, message):
    config = weights.hf_config(FAMILIES["qwen2"]) | change
    with pytest.raises(ValueError, match=message):
        weights.config_from_hf(config)


def test_an_incomplete_config_names_its_missing_fields():
    config = weights.hf_config(FAMILIES["llama"])
    del config["hidden_size"]
    with pytest.raises(ValueError, match="hidden_size"):
        weights.config_from_hf(config)


def test_both_spellings_of_rope_are_read():
    old = weights.hf_config(FAMILIES["llama"])
    new = {key: value for key, value in old.items() if not key.startswith("rope")}
    new["rope_parameters"] = dict(old["rope_scaling"], rope_theta=old["rope_theta"])
    assert weights.config_from_hf(old) == weights.config_from_hf(new) == FAMILIES["llama"]
    assert weights.config_from_hf(new | dict(rope_parameters=dict(rope_type="default"))).rope_scaling is None


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's reordering of Llama's query and key rows (convert_hf_to_gguf.py, LlamaModel.permute)."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(path: Path, family: str, config: ModelConfig, hf_folder: Path, quantised: bool = False) -> None:
    """A GGUF file of the model in `hf_folder`, laid out as llama.cpp's converter does."""
    hf_to_gguf = {hf: name for name, hf in weights.GGUF_NAMES.items()}
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.head_dim * config.num_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
    for name, value in safetensors.numpy.load_file(hf_folder / "model.safetensors").items():
        if family == "llama" and name.endswith("q_proj.weight"):
            value = permute(value, config.num_heads)
        if family == "llama" and name.endswith("k_proj.weight"):
            value = permute(value, config.num_kv_heads)
        module, _, part = name.rpartition(".")
        layer = next((piece for piece in module.split(".") if piece.isdigit()), "")
        gguf_name = hf_to_gguf[module.replace(f".{layer}.", ".{}.") if layer else module].format(layer)
        if quantised and value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{gguf_name}.{part}", gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{gguf_name}.{part}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf(family, tmp_path):
    fields = {**vars(FAMILIES[family]), "rope_scaling": None}
    config = ModelConfig(**fields)
    params = random_params(config)
    weights.save_hf(tmp_path / "hf", config, params)
    path = tmp_path / "model.gguf"
    write_gguf(path, family, config, tmp_path / "hf")
    for source in (path, tmp_path):
        loaded_config, loaded = weights.load(source)
        assert {**vars(loaded_config), "rms_norm_eps": 0} == {**vars(config), "rms_norm_eps": 0}
        assert loaded_config.rms_norm_eps == pytest.approx(config.rms_norm_eps)  # stored in float32
        assert_same_params(loaded, params)


def test_quantised_gguf_is_dequantised(tmp_path):
    config = FAMILIES["qwen2"]
    params = random_params(config)
    weights.save_hf(tmp_path / "hf", config, params)
    write_gguf(tmp_path / "model.gguf", "qwen2", config, tmp_path / "hf", quantised=True)
    _, loaded = weights.load(tmp_path / "model.gguf")
    worst = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(a).max()), params, loaded)
    assert 0 < max(jax.tree.leaves(worst)) < 0.005  # half a step of 127 of each block's largest
    assert_same_params(loaded["norm"], params["norm"])


def test_gguf_of_another_kind_or_incomplete_is_refused(tmp_path):
    config = FAMILIES["qwen2"]
    weights.save_hf(tmp_path / "hf", config, random_params(config))
    write_gguf(tmp_path / "gemma.gguf", "gemma", config, tmp_path / "hf")
    with pytest.raises(ValueError, match="gemma"):
        weights.load(tmp_path / "gemma.gguf")
    write_gguf(tmp_path / "llama.gguf", "llama", config, tmp_path / "hf")  # biases do not belong to Llama
    with pytest.raises(ValueError, match="unknown model.layers.0.self_attn.q_proj.bias"):
        weights.load(tmp_path / "llama.gguf")


def test_a_model_that_no_family_has_cannot_be_exported(tmp_path):
    config = ModelConfig(**SIZES, qkv_bias=True, qk_norm=True)
    with pytest.raises(ValueError, match="qkv_bias"):
        weights.save_hf(tmp_path, config, random_params(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_export_in_shards_from_sharded_arrays(family, tmp_path):
    """What transformers loads from several files equals the parameters, wherever these lived."""
    config = FAMILIES[family]
    params = random_params(config)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))

    def spread(x):
        spec = [None] * (x.ndim - 2) + [
            a if n % 4 == 0 else None for n, a in zip(x.shape[-2:], "ab"[-x.ndim :], strict=True)
        ]
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))

    ids = {"eos_token_id": 5}
    weights.save_hf(tmp_path, config, jax.tree.map(spread, params), max_shard_bytes=20_000, token_ids=ids)
    files = sorted(file.name for file in tmp_path.iterdir())
    count = len(files) - 3
    assert count > 2
    shards = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert files == ["config.json", "generation_config.json", *shards, "model.safetensors.index.json"]
    assert all((tmp_path / shard).stat().st_size < 20_000 + 4_000 for shard in shards)  # header included
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert_same_params(weights.load(tmp_path)[1], params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 5
    tokens = list(np.random.default_rng(0).integers(0, 61, 50))
    theirs = hf_logits(model, tokens)
    assert np.abs(our_logits(config, params, tokens) - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_export_in_another_dtype(saved):
    folder, config, params = saved
    weights.save_hf(folder, config, params, dtype="bfloat16")
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {str(x.dtype) for x in stored.values()} == {"bfloat16"}
    assert transformers.AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_same_params(weights.load(folder)[1], rounded)
    with pytest.raises(ValueError, match="dtype='int8' cannot be exported"):
        weights.save_hf(folder, config, params, dtype="int8")


class Killed(Exception):
    pass


@pytest.mark.parametrize("before", [10**9, 40_000], ids=["from one file", "from shards"])
@pytest.mark.parametrize("after", [10**9, 40_000], ids=["to one file", "to shards"])
def test_an_export_killed_at_any_moment_leaves_the_former_or_the_new_weights(before, after, tmp_path, monkeypatch):
    config = FAMILIES["qwen2"]
    old = random_params(config)
    new = jax.tree.map(lambda x: x + 1, old)

    def state(load) -> str:
        (same,) = [name for name, params in (("old", old), ("new", new)) if all_equal(load(tmp_path), params)]
        return same

    def transformers_params(folder):  # as our own reader sees what transformers loaded
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        return weights.assemble(config, weights.Tensors("", shapes, lambda n: model.state_dict()[n].numpy()))

    def all_equal(a, b):
        return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))

    def save_until(step: int) -> bool:
        """Whether the save ended before that many files were opened, replaced or deleted."""
        left = iter(range(step))

        def dying(plain):
            def call(*args, **kwargs):
                if next(left, None) is None:
                    raise Killed
                return plain(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("open", "replace", "unlink"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            try:
                weights.save_hf(tmp_path, config, new, max_shard_bytes=after)
            except Killed:
                return False
        return True

    states: list[str] = []
    weights.save_hf(tmp_path, config, old, max_shard_bytes=before)
    while not save_until(len(states)):
        states.append(state(lambda folder: weights.load(folder)[1]))
        if len(states) % 3 == 0:
            assert state(transformers_params) in ("old", "new")
        for file in tmp_path.iterdir():
            file.unlink()
        weights.save_hf(tmp_path, config, old, max_shard_bytes=before)
    assert state(lambda folder: weights.load(folder)[1]) == "new"
    assert states == sorted(states, reverse=True) and states[0] == "old"  # old, then new, never back
    assert not list(tmp_path.glob("*.partial"))
    weights.save_hf(tmp_path, config, old, max_shard_bytes=before)
    assert state(lambda folder: weights.load(folder)[1]) == "old"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "smollm2-135m-instruct-q4_1.gguf"])
def test_real_weights_give_transformers_logits(name):
    """Real GGUF files from the folder AGEMEM_WEIGHTS_DIR against transformers' own reading of the same file."""
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it")
    folder = Path(os.environ.get("AGEMEM_WEIGHTS_DIR", "~/.cache/agemem_jax/weights")).expanduser()
    if not (folder / name).is_file():
        pytest.skip(f"{folder / name} is not there")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    tokens = tokenizer("The capital of France is Paris, and the capital of Japan is")["input_ids"]
    theirs = hf_logits(model, tokens)
    del model
    config, params = weights.load(folder / name)
    ours = our_logits(config, params, tokens)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert tokenizer.decode(int(ours[-1].argmax())).strip() == "Tokyo"
