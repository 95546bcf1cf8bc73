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

from agemem_jax.errors import InputError
from agemem_jax.models import qwen, weights
from agemem_jax.models.qwen import ModelConfig

LLAMA3 = (("factor", 8.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0))
LLAMA3 += (("original_max_position_embeddings", 32), ("rope_type", "llama3"))
SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
SIZES |= dict(max_positions=256)
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


@pytest.fixture
def stored(tmp_path):
    """A folder with config.json and model.safetensors of zeros, and a way to write it with other tensors or fields."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = ModelConfig(**SIZES, qkv_bias=True)

    def write(tensors: dict | None = None, without: str = "", **fields) -> Path:
        leaves = weights._expected(config).items()
        shapes = {
            name.format(i): weights._hf_shape(path, leaf.shape) for path, (name, leaf) in leaves for i in range(2)
        }
        values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name != without}
        safetensors.numpy.save_file(values | (tensors or {}), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(weights.hf_config(config) | fields))
        return folder

    return write


def refusal(path: Path | str) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(InputError) as refused:
        weights.read_config(path)
    message = str(refused.value)
    assert "\n" not in message and str(path) in message, message
    return message


def test_the_embedding_written_twice_and_old_buffers_are_passed_over(stored):
    table = np.random.default_rng(0).standard_normal((61, 32)).astype(np.float32)
    extras = {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table.copy(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
    }
    folder = stored(extras)
    assert weights.read_config(folder).tie_word_embeddings
    assert_same_params(weights.load_token_embeddings(folder), table)


@pytest.mark.parametrize("where", [(0, 0), (60, 31)], ids=["first value", "last value"])
def test_another_head_in_a_tied_model_is_refused(stored, where, monkeypatch):
    monkeypatch.setattr(weights, "READ_BYTES", 1000)  # several blocks
    table = np.random.default_rng(0).standard_normal((61, 32)).astype(np.float32)
    head = table.copy()
    head[where] += 1e-3
    folder = stored({"model.embed_tokens.weight": table, "lm_head.weight": head})
    message = refusal(folder)
    assert "lm_head.weight is another matrix" in message and "tie_word_embeddings = true" in message
    stored({"lm_head.weight": head[:60]})
    assert "lm_head.weight is another matrix" in refusal(folder)
    stored({"lm_head.weight": head}, tie_word_embeddings=False)
    assert not weights.read_config(folder).tie_word_embeddings


def test_a_config_and_weights_of_different_models(stored):
    assert "26 tensors are too few for 1000000000 layers" in refusal(stored(num_hidden_layers=10**9))
    message = refusal(stored(hidden_size=40, head_dim=8))
    assert "model.embed_tokens.weight: expected [61, 40], found [61, 32]" in message and "same model" in message
    assert "missing lm_head.weight [61, 32]" in refusal(stored(tie_word_embeddings=False))
    assert "num_hidden_layers = '2'" in refusal(stored(num_hidden_layers="2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold a JSON object, not a list"),
        ('{"model_type": ', "is not readable JSON"),
        ("[" * 100_000, "is not readable JSON"),
        ("", "is not readable JSON"),
        ("\xff\xfe", "config.json"),
    ],
)
def test_a_damaged_config(stored, text, message):
    folder = stored()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="config.json") as refused:
        weights.read_config(folder)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_byte_order_mark_is_no_damage(stored):
    folder = stored()
    plain = weights.read_config(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-8-sig")
    assert weights.read_config(folder) == plain


def test_quantised_weights(stored):
    name = "model.layers.0.self_attn.q_proj.weight"
    packed = {name.replace("weight", part): np.zeros((4, 4), np.int32) for part in ("qweight", "qzeros")}
    message = refusal(stored(packed, without=name))
    assert "qweight is I32; only F32, BF16, F16 are read" in message and "GGUF" in message and "fetch" not in message
    scales = {name.replace("weight", "weight_scale"): np.zeros((32, 1), np.float32)}
    message = refusal(stored(scales))
    assert "unknown model.layers.0.self_attn.q_proj.weight_scale" in message and "quantised weights are not" in message
    with pytest.raises(InputError, match="config.json: quantization_config: .*method 'fp8'.*GGUF file of it"):
        weights.read_config(stored(quantization_config={"quant_method": "fp8"}))
    message = refusal(stored({"model.norm.weight": np.zeros(32, np.float64)}))
    assert "model.norm.weight is F64" in message


def test_damaged_safetensors(stored):
    folder = stored()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for bad, message in (
        (whole[:-1], "does not lie where its header says; the file is cut off or damaged); fetch it again"),
        (whole[:20], "its header would have"),
        (b"", "its header would have 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of git-lfs: run git lfs pull"),
        (whole[:8] + b"[" + whole[9:], "is not a readable safetensors file"),
        (whole.replace(b'"shape":[32]', b'"shape":[-1]', 1), "has the shape (-1,)"),
        (whole.replace(b'"shape":[32]', b'"shape":"32"', 1), "is not a readable safetensors file"),
    ):
        assert bad != whole
        file.write_bytes(bad)
        assert message in refusal(folder)


def test_damaged_indices(stored):
    folder = stored()
    index = shard(folder)
    right = json.loads(index.read_text())["weight_map"]
    for text, message in (
        ("{", "is not readable JSON"),
        ("[]", "no weight_map in it"),
        ("{}", "no weight_map in it"),
        ('{"weight_map": {"a": 3}}', "no weight_map in it"),
        (json.dumps({"weight_map": right | {"model.norm.weight": "b.safetensors"}}), "['b.safetensors']"),
        (
            json.dumps({"weight_map": right | {"model.phantom.weight": "model-00002-of-00003.safetensors"}}),
            "model-00002-of-00003.safetensors does not hold model.phantom.weight",
        ),
    ):
        index.write_text(text)
        assert message in refusal(folder)
    index.unlink()
    assert "found shards without their model.safetensors.index.json; fetch it too" in refusal(folder)


def test_a_tensor_in_two_shards_is_read_where_the_index_says(stored):
    folder = stored()
    index = shard(folder)
    where = json.loads(index.read_text())["weight_map"]["model.norm.weight"]
    other = folder / next(f"model-0000{i}-of-00003.safetensors" for i in (1, 2) if f"0000{i}-of" not in where)
    tensors = safetensors.numpy.load_file(other)
    safetensors.numpy.save_file(tensors | {"model.norm.weight": np.ones(32, np.float32)}, other)
    _, tensors = weights._open(index, "float32", "float32")
    assert not tensors.read("model.norm.weight")[(slice(0, 32),)].any()


def test_folders_that_hold_no_model_of_this_kind(stored, tmp_path):
    folder = stored()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "adapters, not a model; merge them" in refusal(folder)
    assert "adapters, not a model; merge them" in refusal(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    assert "found none; fetch the model's weights" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "but pytorch_model.bin, which is not read; write the model as safetensors" in refusal(folder)
    assert "need a .safetensors, .gguf or .safetensors.index.json" in refusal(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="'Qwen/Qwen3-0.6B' do not exist in .*what was downloaded"):
        weights.read_config("Qwen/Qwen3-0.6B")
    shards = stored()
    shard(shards)
    assert "one shard of a model" in refusal(shards / "model-00001-of-00003.safetensors")


def write_small_gguf(path: Path, raw_dtype: gguf.GGMLQuantizationType | None = None, **metadata) -> Path:
    """A GGUF file with some metadata and one tensor of zeros."""
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, value in metadata.items():
        (writer.add_uint16 if name == "split__count" else writer.add_uint32)(name.replace("__", "."), value)
    width = 32 if raw_dtype is None else gguf.GGML_QUANT_SIZES[raw_dtype][1]
    kind = np.float32 if raw_dtype is None else np.uint8
    writer.add_tensor("token_embd.weight", np.zeros((61, width), kind), raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_parts_of_a_gguf_are_never_read_as_the_whole(tmp_path):
    part = write_small_gguf(tmp_path / "half.gguf", split__count=2, split__no=0)
    assert "one part of a GGUF model in several files" in refusal(part)
    assert "llama-gguf-split --merge" in refusal(part)
    for i in (1, 2):
        write_small_gguf(tmp_path / f"m-0000{i}-of-00002.gguf")
    part.unlink()
    assert "m-00001-of-00002.gguf is one part" in refusal(tmp_path)  # not: name the file itself
    assert "is one part" in refusal(tmp_path / "m-00002-of-00002.gguf")


def test_gguf_files_that_cannot_be_read(tmp_path):
    path = write_small_gguf(tmp_path / "m.gguf", **{"qwen2__block_count": 1})
    assert "lacks qwen2.attention.head_count" in refusal(path)
    whole = path.read_bytes()
    for bad, message in (
        (whole[: len(whole) // 2], "is not a readable GGUF file"),
        (b"", "is not a readable GGUF file"),
        (b"GGUF", "is not a readable GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 9, "run git lfs pull"),
    ):
        path.write_bytes(bad)
        assert message in refusal(path)
    path.unlink()
    write_small_gguf(path, gguf.GGMLQuantizationType.Q8_1)
    message = refusal(path)
    assert "token_embd.weight is Q8_1, which gguf cannot dequantise" in message and "Q4_K_M" in message


def test_files_that_cannot_be_read_are_refused_by_name(stored):
    folder = stored()
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
