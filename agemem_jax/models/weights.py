"""Real weights: Hugging Face safetensors (one file or sharded) and GGUF are read, Hugging Face safetensors written.

Host code. Reading is bounded: beside the parameters themselves, one of them (stacked over layers) and one tensor of the
file are in memory at a time.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from agemem_jax.models import qwen
from agemem_jax.models.qwen import ModelConfig

# Our parameter -> the tensor's Hugging Face name, {} the layer. A kernel is stored [out, in] there, [in, out] here.
HF_NAMES = {
    "embed_tokens/embedding": "model.embed_tokens.weight",
    "layers/input_layernorm/weight": "model.layers.{}.input_layernorm.weight",
    "layers/self_attn/q_proj/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/self_attn/q_proj/bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/self_attn/k_proj/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/self_attn/k_proj/bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/self_attn/v_proj/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/self_attn/v_proj/bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/self_attn/o_proj/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/self_attn/q_norm/weight": "model.layers.{}.self_attn.q_norm.weight",
    "layers/self_attn/k_norm/weight": "model.layers.{}.self_attn.k_norm.weight",
    "layers/post_attention_layernorm/weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate_proj/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up_proj/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down_proj/kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm/weight": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}

# GGUF's name of a module -> Hugging Face's; both end in .weight or .bias.
GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Hugging Face's model_type and GGUF's general.architecture
SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Tensors(NamedTuple):
    """What a weight file offers, under Hugging Face names and in Hugging Face's layouts."""

    origin: str  # for messages
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def config_from_hf(config: dict, dtype: str = "float32", param_dtype: str = "float32") -> ModelConfig:
    """The architecture of a Hugging Face config.json (as a dict) of a Qwen2, Qwen3 or Llama model.

    Raises ValueError naming the field if the model is of another kind or uses a variant that this decoder lacks.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"config.json: model_type={kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    lacking = {
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "use_sliding_window": (False, None),
        "partial_rotary_factor": (1.0, None),
    }
    for field, supported in lacking.items():
        if config.get(field, supported[0]) not in supported:
            raise ValueError(f"config.json: {field}={config[field]!r} is not supported; only {supported[0]!r} is")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [field for field in sizes if field not in config]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    # Transformers 5 keeps everything in rope_parameters; before, rope_theta stood beside rope_scaling.
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
    return ModelConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        rope_theta=float(theta),
        rope_scaling=_rope_scaling(rope, config.get("max_position_embeddings")),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def _rope_scaling(rope: dict, max_positions: int | None) -> tuple | None:
    """Hugging Face's rope fields as ModelConfig holds them; None if positions are not scaled."""
    rope = {key: value for key, value in rope.items() if value is not None}
    old_name = rope.pop("type", "default")
    kind = rope.setdefault("rope_type", old_name)
    if kind == "default":
        return None
    if kind == "yarn" and max_positions:
        rope.setdefault("original_max_position_embeddings", max_positions)
    return tuple(sorted(rope.items()))


def _expected(config: ModelConfig) -> dict[str, tuple[str, jax.ShapeDtypeStruct]]:
    """Our parameter -> (Hugging Face name, shape and dtype) for every parameter of this architecture, in tree order."""
    tree = jax.eval_shape(lambda key: qwen.init_params(config, key), jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = ["/".join(entry.key for entry in path) for path, _ in leaves]
    return {path: (HF_NAMES[path], leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)}


def _hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The Hugging Face shape of one tensor of our parameter (of one layer, if it is stacked)."""
    shape = shape[1:] if path.startswith("layers/") else shape
    return shape[::-1] if path.endswith("/kernel") else shape


def _check(config: ModelConfig, tensors: Tensors) -> None:
    """Raises ValueError naming every tensor that is missing, unknown or of another shape."""
    want = {}
    for path, (name, leaf) in _expected(config).items():
        layers = range(config.num_layers) if "{}" in name else range(1)
        want |= {name.format(i): _hf_shape(path, leaf.shape) for i in layers}
    found = dict(tensors.shapes)
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)  # some tied checkpoints write the embedding twice
    problems = [f"missing {name} {list(want[name])}" for name in want if name not in found]
    problems += [f"unknown {name} {list(found[name])}" for name in found if name not in want]
    problems += [
        f"{name}: expected {list(want[name])}, found {list(found[name])}"
        for name in want
        if name in found and found[name] != want[name]
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{tensors.origin} does not fit its config: {'; '.join(problems[:8])}{more}")


def assemble(config: ModelConfig, tensors: Tensors) -> dict:
    """The parameters, read one by one; raises ValueError naming every tensor that does not fit `config`."""
    _check(config, tensors)
    params: dict = {}
    for path, (name, leaf) in _expected(config).items():
        value = np.empty(leaf.shape, leaf.dtype)
        transpose = path.endswith("/kernel")
        for i in range(config.num_layers if "{}" in name else 1):
            tensor = tensors.read(name.format(i))
            target = value[i] if "{}" in name else value
            target[...] = tensor.T if transpose else tensor
        *parents, last = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value)
    return params


def _open_safetensors(path: Path) -> tuple[dict, Tensors]:
    """(config.json, tensors) of a .safetensors file or of a model.safetensors.index.json with its shards beside it."""
    config_path = path.parent / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{path}: no config.json beside it; copy the model's config.json into {path.parent}")
    shards = [path]
    if path.suffix == ".json":
        index = json.loads(path.read_text())
        shards = [path.parent / shard for shard in sorted(set(index.get("weight_map", {}).values()))]
        absent = [shard.name for shard in shards if not shard.is_file()]
        if absent or not shards:
            raise ValueError(f"{path}: its shards {absent} are missing" if shards else f"{path}: no weight_map in it")
    shapes, where = {}, {}
    for shard in shards:
        try:
            file = safe_open(shard, framework="numpy")
        except SafetensorError as error:
            raise ValueError(f"{shard} is not a readable safetensors file ({error}); fetch it again") from error
        for name in file.keys():
            if name.endswith("rotary_emb.inv_freq"):  # a buffer that older checkpoints keep; follows from rope_theta
                continue
            shapes[name] = tuple(file.get_slice(name).get_shape())
            where[name] = file
    return json.loads(config_path.read_text()), Tensors(str(path), shapes, lambda name: where[name].get_tensor(name))


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the reordering of Llama's query and key rows in GGUF, which rotates neighbours instead of halves."""
    shape = weight.shape
    return weight.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _open_gguf(path: Path, dtype: str, param_dtype: str) -> tuple[ModelConfig, Tensors]:
    import gguf  # only GGUF files need the package

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a readable GGUF file ({error}); fetch it again") from error
    field = lambda name: reader.fields[name].contents() if name in reader.fields else None  # noqa: E731
    kind = field("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture {kind!r} is not supported; supported: {', '.join(ARCHITECTURES)}")

    def size(name: str) -> int:
        value = field(f"{kind}.{name}")
        if value is None:
            raise ValueError(f"{path}: the metadata lacks {kind}.{name}")
        return int(value)

    hf_names = {}
    for i in range(size("block_count")):
        hf_names |= {theirs.format(i): ours.format(i) for theirs, ours in GGUF_NAMES.items()}
    found = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise ValueError(
                f"{path}: rope_freqs.weight (Llama 3.1's positions) is not read from GGUF; use safetensors"
            )
        module, _, part = tensor.name.rpartition(".")
        found[f"{hf_names.get(module, module)}.{part}"] = tensor
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in found.items()}
    if "model.embed_tokens.weight" not in shapes:
        raise ValueError(f"{path}: missing token_embd.weight")

    scaling = field(f"{kind}.rope.scaling.type")
    rope = {"rope_type": "default"}
    if scaling not in (None, "none"):
        rope = {"rope_type": scaling, "factor": field(f"{kind}.rope.scaling.factor")}
        rope["original_max_position_embeddings"] = field(f"{kind}.rope.scaling.original_context_length")
    heads, hidden = size("attention.head_count"), size("embedding_length")
    config = ModelConfig(
        vocab_size=shapes["model.embed_tokens.weight"][0],
        hidden_size=hidden,
        intermediate_size=size("feed_forward_length"),
        num_layers=size("block_count"),
        num_heads=heads,
        num_kv_heads=int(field(f"{kind}.attention.head_count_kv") or heads),
        head_dim=int(field(f"{kind}.attention.key_length") or hidden // heads),
        rope_theta=float(field(f"{kind}.rope.freq_base") or 10000.0),
        rope_scaling=_rope_scaling(rope, field(f"{kind}.context_length")),
        rms_norm_eps=float(field(f"{kind}.attention.layer_norm_rms_epsilon") or 1e-6),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tie_word_embeddings="lm_head.weight" not in shapes,
        dtype=dtype,
        param_dtype=param_dtype,
    )

    def read(name: str) -> np.ndarray:
        tensor = found[name]
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shapes[name])
        if kind == "llama" and name.endswith("q_proj.weight"):
            return _unpermute(value, config.num_heads)
        if kind == "llama" and name.endswith("k_proj.weight"):
            return _unpermute(value, config.num_kv_heads)
        return value

    return config, Tensors(str(path), shapes, read)


def find(path: str | os.PathLike) -> Path:
    """The weight file that `path` means: itself, or in a folder its index or its one .safetensors or .gguf file."""
    path = Path(path).expanduser()
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        choices = [index] if index.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        if len(choices) != 1:
            found = f"{len(choices)} weight files ({', '.join(sorted(c.name for c in choices))})" if choices else "none"
            raise ValueError(f"{path}: need one index, .safetensors or .gguf file, found {found}; name the file itself")
        return choices[0]
    if not path.is_file():
        raise ValueError(f"weights {str(path)!r} do not exist; give a .safetensors or .gguf file, an index or a folder")
    if path.suffix not in (".safetensors", ".gguf") and not path.name.endswith(".safetensors.index.json"):
        raise ValueError(
            f"weights {str(path)!r}: need a .safetensors, .gguf or .safetensors.index.json file or a folder"
        )
    return path


def load(
    path: str | os.PathLike, dtype: str = "float32", param_dtype: str = "float32", remat: bool = False
) -> tuple[ModelConfig, dict]:
    """Reads a model's architecture and parameters.

    Args:
      path: a .safetensors file or .safetensors.index.json with config.json beside it, a .gguf file, or a folder.
      dtype, remat: as in the config returned.
      param_dtype: of the parameters returned; other precisions are converted, quantised tensors are dequantised.

    Raises ValueError naming the file and every missing, unknown or mis-shaped tensor with both shapes.
    """
    config, tensors = _open(find(path), dtype, param_dtype)
    config = dataclasses.replace(config, remat=remat)
    return config, assemble(config, tensors)


def load_token_embeddings(path: str | os.PathLike) -> np.ndarray:
    """The token embeddings alone, `[V, D]` float32; `path` and errors as of `load`."""
    _, tensors = _open(find(path), "float32", "float32")
    return np.asarray(tensors.read(HF_NAMES["embed_tokens/embedding"]), np.float32)


def _open(path: Path, dtype: str, param_dtype: str) -> tuple[ModelConfig, Tensors]:
    """The architecture and the tensors that a weight file offers."""
    if path.suffix == ".gguf":
        return _open_gguf(path, dtype, param_dtype)
    hf_config, tensors = _open_safetensors(path)
    return config_from_hf(hf_config, dtype, param_dtype), tensors


def hf_config(config: ModelConfig, max_position_embeddings: int = 32768) -> dict:
    """The config.json with which transformers and vLLM build this architecture; `config_from_hf` reads it back.

    Raises ValueError for a combination that none of the three families has.
    """
    if config.qkv_bias and config.qk_norm:
        raise ValueError("qkv_bias (Qwen2) and qk_norm (Qwen3) together: no Hugging Face family has both")
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    name = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[kind]
    return {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": dict(config.rope_scaling) if config.rope_scaling else None,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.param_dtype,
    }


def save_hf(folder: str | os.PathLike, config: ModelConfig, params: dict) -> None:
    """Writes model.safetensors and config.json, which transformers and vLLM load, into `folder` (made if need be).

    One tensor at a time goes through host memory. The tokenizer's files are the caller's.
    """
    folder = Path(folder)
    described = hf_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    header: dict = {"__metadata__": {"format": "pt"}}
    order, end = [], 0
    for path, (name, leaf) in _expected(config).items():
        value = params
        for key in path.split("/"):
            value = value[key]
        if value.shape != leaf.shape:
            raise ValueError(f"parameter {path}: expected {list(leaf.shape)}, found {list(value.shape)}")
        shape = _hf_shape(path, leaf.shape)
        for i in range(config.num_layers if "{}" in name else 1):
            start, end = end, end + int(np.prod(shape)) * value.dtype.itemsize
            kind = SAFETENSORS_DTYPES[value.dtype.name]
            header[name.format(i)] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
            order.append((value, i if "{}" in name else None, path.endswith("/kernel")))
    # The format: the header's length (8 bytes, little endian), the header (JSON), the tensors one after another.
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = folder / "model.safetensors.partial"
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value, layer, transpose in order:
            tensor = np.asarray(value if layer is None else value[layer])
            file.write(np.ascontiguousarray(tensor.T if transpose else tensor).tobytes())
    partial.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
