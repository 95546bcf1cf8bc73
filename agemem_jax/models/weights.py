"""Real weights: Hugging Face safetensors (one file or sharded) and GGUF are read, Hugging Face safetensors written.

Host code. Both ways are bounded: beside the parameters themselves, one tensor of the file (one layer's) is in memory at
a time. A process reads the rows that its own devices hold; they are transposed, converted and put into their layer's
place on the devices.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from agemem_jax.errors import InputError
from agemem_jax.models import qwen
from agemem_jax.models.described import UNQUANTISED, config_from_gguf, config_from_hf, hf_config, read_json
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

SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
READABLE = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
BARE_EMBEDDING = "embed_tokens.weight"  # the name that tells a model without head: all lack "model." in front
READ_BYTES = 16 << 20  # of rows that are read to be cut into columns
MAX_HEADER = 100_000_000  # the safetensors library's own limit
SHARD_BYTES = 5_000_000_000  # as transformers cuts large models
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
SPLIT_NAME = re.compile(r".*-\d{5}-of-(\d{5})\.gguf")
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx")
ADAPTERS = ("adapter_model.safetensors", "adapters.safetensors")  # of peft and mlx
ADAPTERS_ALONE = (
    "these are adapters, not a model; merge them into their base model (peft: merge_and_unload, then save_pretrained) "
    "and give that"
)
QUANTISED = re.compile(r".*\.(qweight|qzeros|scales|g_idx|absmax|quant_map|SCB|weight_scale(_inv)?|weight_packed)")
POINTER = b"version https://git-lfs"  # what stands in for a file that git-lfs has not fetched

Index = tuple[slice, ...]  # one slice with bounds and step 1 for every axis
Shardings = Any  # a tree like the parameters of jax.sharding.Sharding


class Tensors(NamedTuple):
    """What a weight file offers, under Hugging Face names and in Hugging Face's layouts."""

    origin: str  # for messages
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], "np.ndarray | Stored"]  # to be indexed with an Index
    stored: Callable[[str], "tuple[str, Stored]"] | None = None  # kind of number and bytes, as they lie in the file


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
    """Raises InputError naming every tensor that is missing, unknown or of another shape."""
    found = dict(tensors.shapes)
    if config.num_layers > len(found):
        raise InputError(
            f"{tensors.origin} does not fit its config: {len(found)} tensors are too few for {config.num_layers} "
            "layers; take both from the same model"
        )
    want = {}
    for path, (name, leaf) in _expected(config).items():
        layers = range(config.num_layers) if "{}" in name else range(1)
        want |= {name.format(i): _hf_shape(path, leaf.shape) for i in layers}
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)  # see _check_head
    problems = [f"missing {name} {list(want[name])}" for name in want if name not in found]
    problems += [f"unknown {name} {list(found[name])}" for name in found if name not in want]
    problems += [
        f"{name}: expected {list(want[name])}, found {list(found[name])}"
        for name in want
        if name in found and found[name] != want[name]
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        quantised = any(QUANTISED.fullmatch(name) for name in found)
        remedy = f"quantised weights are not read: {UNQUANTISED}" if quantised else "take both from the same model"
        raise InputError(f"{tensors.origin} does not fit its config: {'; '.join(problems[:8])}{more}; {remedy}")


def _check_head(config: ModelConfig, tensors: Tensors) -> None:
    """Raises InputError if a tied model holds another head than its embedding, which some write twice.

    Both are read for it, a few rows at a time.
    """
    embedding, head = HF_NAMES["embed_tokens/embedding"], HF_NAMES["lm_head/kernel"]
    if not config.tie_word_embeddings or head not in tensors.shapes:
        return
    same = tensors.shapes[head] == tensors.shapes[embedding]
    if same:
        (rows, width), (a, b) = tensors.shapes[head], (tensors.read(name) for name in (embedding, head))
        step = max(1, READ_BYTES // (4 * width))
        blocks = ((slice(i, min(i + step, rows)), slice(0, width)) for i in range(0, rows, step))
        same = all(np.array_equal(a[i].astype(np.float32), b[i].astype(np.float32)) for i in blocks)
    if not same:
        raise InputError(
            f"{tensors.origin}: {head} is another matrix than {embedding}, and the config says tie_word_embeddings = "
            "true; say false there if the model has a head of its own, or take the head out of the file"
        )


def assemble(config: ModelConfig, tensors: Tensors, shardings: Shardings | None = None) -> dict:
    """The parameters, read tensor by tensor into place.

    Args:
      shardings: tree like the parameters, on a mesh of Auto axes or a single device; each process reads the part that
        its devices hold. A layer axis stays whole. None: uncommitted arrays on the default device.

    Raises InputError naming every tensor that does not fit `config`, ValueError naming a parameter whose sharding
    cannot be had.
    """
    _check(config, tensors)
    params: dict = {}
    for path, (name, leaf) in _expected(config).items():
        *parents, last = path.split("/")
        node, wanted = params, shardings
        for key in parents:
            node = node.setdefault(key, {})
        if shardings is not None:
            for key in path.split("/"):
                wanted = wanted[key]
        value = _read_param(config, tensors, path, name, leaf, wanted)
        if wanted is not None:  # programs give an equivalent sharding back, which would not compare as equal
            parts = [shard.data for shard in value.addressable_shards]
            value = jax.make_array_from_single_device_arrays(value.shape, wanted, parts)
        node[last] = value
    return params


def _read_param(
    config: ModelConfig, tensors: Tensors, path: str, name: str, leaf: jax.ShapeDtypeStruct, sharding: Sharding | None
) -> jax.Array:
    """One parameter, in its dtype and sharding."""
    stacked, transpose = "{}" in name, path.endswith("/kernel")
    piece_sharding = None if sharding is None else _of_tensor(path, leaf.shape, sharding, stacked, transpose)
    how = dict(transpose=transpose, sharding=sharding)
    if not stacked:
        return _converted(_read_tensor(tensors, name, piece_sharding), dtype=leaf.dtype, **how)
    value = _zeros(shape=leaf.shape, dtype=leaf.dtype, sharding=sharding)
    for layer in range(config.num_layers):
        tensor = _read_tensor(tensors, name.format(layer), piece_sharding)
        # Waited for, or tensors that were read but not yet used would pile up.
        value = jax.block_until_ready(_with_layer(value, tensor, layer, **how))
    return value


def _of_tensor(path: str, shape: tuple[int, ...], sharding: Sharding, stacked: bool, transpose: bool) -> Sharding:
    """The sharding of a file's tensor from which that of our parameter follows without communication."""
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    if not isinstance(sharding, NamedSharding):
        raise ValueError(f"parameter {path}: cannot be read into a {type(sharding).__name__}; use a NamedSharding")
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(f"parameter {path}: {error}") from error
    axes = [*sharding.spec]
    if stacked:
        if axes and axes[0] not in (None, ()):
            raise ValueError(f"parameter {path}: {sharding.spec} cuts the layer axis; leave axis 0 whole")
        axes = axes[1:]
    if transpose:
        axes = [*axes, None, None][:2][::-1]
    return NamedSharding(sharding.mesh, PartitionSpec(*axes), memory_kind=sharding.memory_kind)


def _read_tensor(tensors: Tensors, name: str, sharding: Sharding | None) -> jax.Array:
    """A tensor of the file, in its own layout and dtype; every value is read at most once, whoever needs it."""
    shape = tensors.shapes[name]
    if sharding is None:
        return jnp.asarray(tensors.read(name)[tuple(slice(0, n) for n in shape)])
    indices = [
        [slice(*part.indices(n)[:2]) for part, n in zip(index, shape, strict=True)]
        for index in sharding.addressable_devices_indices_map(shape).values()
    ]
    box = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*indices, strict=True))
    values = tensors.read(name)[box]

    def part(index: Index) -> np.ndarray:
        bounds = (s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        return values[tuple(slice(a - b.start, z - b.start) for (a, z), b in zip(bounds, box, strict=True))]

    return jax.make_array_from_callback(shape, sharding, part)


def _pin(x: jax.Array, sharding: Sharding | None) -> jax.Array:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "sharding"))
def _zeros(*, shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
    """A place for a parameter of all layers."""
    return _pin(jnp.zeros(shape, dtype), sharding)


@functools.partial(jax.jit, static_argnames=("transpose", "dtype", "sharding"))
def _converted(tensor: jax.Array, *, dtype: np.dtype, transpose: bool, sharding: Sharding | None) -> jax.Array:
    """A file's tensor as our parameter."""
    return _pin((tensor.T if transpose else tensor).astype(dtype), sharding)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("transpose", "sharding"))
def _with_layer(
    value: jax.Array, tensor: jax.Array, layer: int, *, transpose: bool, sharding: Sharding | None
) -> jax.Array:
    """A parameter of all layers with one of them filled in."""
    tensor = (tensor.T if transpose else tensor).astype(value.dtype)
    return _pin(jax.lax.dynamic_update_index_in_dim(value, tensor, layer, 0), sharding)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; indexing reads.

    Plain reads, since pages of a mapped file would count as this process's memory. Rows that are not asked for are not
    read. Where columns are cut, whole rows pass through a small buffer: pieces of rows are too short to be read one by
    one.
    """

    file: Path
    offset: int  # bytes from the file's beginning
    dtype: np.dtype
    shape: tuple[int, ...]

    def __getitem__(self, index: Index) -> np.ndarray:
        first, *others = index
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        out = np.empty([s.stop - s.start for s in index], self.dtype)
        whole = all(s == slice(0, n) for s, n in zip(others, self.shape[1:], strict=True))
        rows_at_once = len(out) if whole else max(1, READ_BYTES // row_bytes)
        with self.file.open("rb", buffering=0) as file:
            for start in range(0, len(out), rows_at_once):
                rows = out[start : start + rows_at_once]
                buffer = rows if whole else np.empty((len(rows), *self.shape[1:]), self.dtype)
                file.seek(self.offset + (first.start + start) * row_bytes)
                view = memoryview(buffer.reshape(-1).view(np.uint8))
                while view:
                    got = file.readinto(view)
                    if not got:
                        raise InputError(f"{self.file} ends too early; fetch it again")
                    view = view[got:]
                if not whole:
                    rows[...] = buffer[(slice(None), *others)]
        return out

    def blocks(self, most: int | None = None) -> Iterator[np.ndarray]:
        """Its bytes (the first `most`), READ_BYTES at a time."""
        size = math.prod(self.shape) * self.dtype.itemsize
        flat = dataclasses.replace(self, dtype=np.dtype(np.uint8), shape=(size,))
        stop = size if most is None else min(size, most)
        for start in range(0, stop, READ_BYTES):
            yield flat[(slice(start, min(start + READ_BYTES, stop)),)]


def _safetensors_header(path: Path) -> dict[str, Stored]:
    """What a .safetensors file holds: the header's length (8 bytes, little endian), the header (JSON), the tensors.

    Raises InputError naming the file if it is none, is cut off, or holds a dtype that is not read here.
    """
    found, other = {}, ""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ValueError(f"its header would have {length} bytes")
            for name, entry in json.loads(file.read(length)).items():
                if name == "__metadata__":
                    continue
                shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
                if any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
                    raise ValueError(f"{name} has the shape {shape} and lies at {start} to {stop}")
                if entry["dtype"] not in READABLE:
                    other = other or f"{name} is {entry['dtype']}"
                    continue
                dtype = READABLE[entry["dtype"]]
                if stop - start != math.prod(shape) * dtype.itemsize or 8 + length + stop > size:
                    raise ValueError(f"{name} does not lie where its header says; the file is cut off or damaged")
                found[name] = Stored(path, 8 + length + start, dtype, shape)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}); {_fetch(path)}") from error
    if other:
        raise InputError(f"{path}: {other}; only {', '.join(READABLE)} are read: {UNQUANTISED}")
    return found


def _fetch(path: Path) -> str:
    """What to do about a file that cannot be read."""
    with path.open("rb") as file:
        is_pointer = file.read(len(POINTER)) == POINTER
    return "it is a pointer of git-lfs: run git lfs pull" if is_pointer else "fetch it again"


def _open_safetensors(path: Path) -> tuple[Path, Tensors]:
    """(config.json, tensors) of a .safetensors file or of a model.safetensors.index.json with its shards beside it."""
    config_path = path.parent / "config.json"
    if not config_path.is_file():
        raise InputError(f"{path}: no config.json beside it; copy the model's config.json into {path.parent}")
    where = _weight_map(path) if path.suffix == ".json" else {}
    stored: dict[str, Stored] = {}
    for shard in sorted(set(where.values())) or [path.name]:
        held = _safetensors_header(path.parent / shard)
        if absent := {name for name in where if where[name] == shard} - held.keys():
            raise InputError(
                f"{path}: {shard} does not hold {min(absent)}, as the index says; fetch the index and its shards again"
            )
        stored |= {name: tensor for name, tensor in held.items() if where.get(name, shard) == shard}
    # A buffer that older checkpoints keep; it follows from rope_theta.
    shapes = {name: s.shape for name, s in stored.items() if not name.endswith("rotary_emb.inv_freq")}
    if BARE_EMBEDDING in shapes:  # a model without its head, as embedding models are published
        stored = {f"model.{name}": tensor for name, tensor in stored.items()}
        shapes = {f"model.{name}": shape for name, shape in shapes.items()}
    kind = lambda name: (stored[name].dtype.name, stored[name])  # noqa: E731
    return config_path, Tensors(str(path), shapes, stored.__getitem__, kind)


def _weight_map(path: Path) -> dict[str, str]:
    """{tensor: file} of an index. Raises InputError if it is damaged, or a file is missing."""
    index = read_json(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise InputError(f"{path}: no weight_map in it that names a file for each tensor; fetch it again")
    absent = sorted(name for name in set(where.values()) if not (path.parent / name).is_file())
    if absent:
        raise InputError(f"{path}: its shards {absent} are missing; fetch them into {path.parent}")
    return where


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the reordering of Llama's query and key rows in GGUF, which rotates neighbours instead of halves."""
    shape = weight.shape
    return weight.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _open_gguf(path: Path, dtype: str, param_dtype: str) -> tuple[ModelConfig, Tensors]:
    stat = path.stat()
    config, tensors = _parsed_gguf(path, (stat.st_mtime_ns, stat.st_size))
    return dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype), tensors


@functools.lru_cache(maxsize=1)  # the metadata holds the vocabulary: seconds, each time
def _parsed_gguf(path: Path, stamp: tuple[int, int]) -> tuple[ModelConfig, Tensors]:
    """What a GGUF file offers; no tensor is read, and the file is not kept open. `stamp` tells its versions apart."""
    import gguf  # only GGUF files need the package

    try:
        reader = gguf.GGUFReader(path)
        own = {name: field for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        metadata = {name: field.contents() for name, field in own.items()}
    except Exception as error:  # of a damaged file the reader raises whatever comes
        if "GGMLQuantizationType" in str(error):
            raise InputError(f"{path}: {error}, for this version of gguf; give another quantisation") from error
        raise InputError(f"{path} is not a readable GGUF file ({error}); {_fetch(path)}") from error
    if metadata.get("split.count", 0) > 1 or SPLIT_NAME.fullmatch(path.name):
        raise _split(path)
    layers = metadata.get(f"{metadata.get('general.architecture')}.block_count")
    layers = layers if type(layers) is int else 0  # config_from_gguf says what is wrong
    hf_names = {
        theirs.format(i): ours.format(i)
        for theirs, ours in GGUF_NAMES.items()
        for i in range(min(layers, len(reader.tensors)) if "{}" in theirs else 1)
    }
    found, shapes = {}, {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise InputError(
                f"{path}: rope_freqs.weight (Llama 3.1's positions) is not read from GGUF; use safetensors"
            )
        module, _, part = tensor.name.rpartition(".")
        name = f"{hf_names.get(module, module)}.{part}"
        shapes[name] = tuple(int(n) for n in reversed(tensor.shape))
        data = Stored(path, int(tensor.data_offset), np.dtype(np.uint8), (int(tensor.n_bytes),))
        found[name] = tensor.tensor_type, data
    for tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.values():  # one of each type is tried
        try:
            gguf.quants.dequantize(tensor.data[:1], tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{path}: {tensor.name} is {tensor.tensor_type.name}, which gguf cannot dequantise; give another "
                "quantisation, such as Q8_0 or Q4_K_M"
            ) from error
    embedding = shapes.get(HF_NAMES["embed_tokens/embedding"], ())
    tied = HF_NAMES["lm_head/kernel"] not in shapes
    config = config_from_gguf(metadata, embedding[0] if embedding else 1, tied, "float32", "float32", str(path))
    if not embedding:
        raise InputError(f"{path}: missing token_embd.weight; fetch it again")

    def read(name: str) -> np.ndarray:
        kind, data = found[name]
        rows = data[(slice(0, data.shape[0]),)].reshape(*shapes[name][:-1], -1)
        value = gguf.quants.dequantize(rows, kind).reshape(shapes[name])
        if metadata["general.architecture"] == "llama" and name.endswith("q_proj.weight"):
            return _unpermute(value, config.num_heads)
        if metadata["general.architecture"] == "llama" and name.endswith("k_proj.weight"):
            return _unpermute(value, config.num_kv_heads)
        return value

    stored = {name: (kind.name, data) for name, (kind, data) in found.items()}
    return config, Tensors(str(path), shapes, read, stored.__getitem__)


def _split(path: Path) -> InputError:
    """The error of a GGUF model in several files."""
    return InputError(
        f"{path} is one part of a GGUF model in several files, which are not read; make one file of them with "
        "llama.cpp's: llama-gguf-split --merge FIRST_PART OUT.gguf"
    )


def find(path: str | os.PathLike) -> Path:
    """The weight file that `path` means: itself, or in a folder its index or its one .safetensors or .gguf file.

    Raises InputError if there is none, more than one, or one of a kind that is not read here.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        # A shard without its index is no model.
        choices = [file for file in files if not SHARD_NAME.fullmatch(file.name) and file.name not in ADAPTERS]
        if (path / INDEX).is_file():
            choices = [path / INDEX]
        if choices and all(SPLIT_NAME.fullmatch(file.name) for file in choices):
            raise _split(min(choices))
        if len(choices) > 1:
            names = ", ".join(sorted(file.name for file in choices))
            raise InputError(f"{path}: found {len(choices)} weight files ({names}); name the file itself")
        if not choices:
            raise InputError(f"{path}: {_instead(path, files)}")
        return choices[0]
    if not path.is_file():
        local = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise InputError(
            f"weights {str(path)!r} do not exist{local}; give a .safetensors or .gguf file, an index or a folder (of a "
            "model hub's repository, what was downloaded)"
        )
    if path.suffix not in (".safetensors", ".gguf") and not path.name.endswith(".safetensors.index.json"):
        raise InputError(
            f"weights {str(path)!r}: need a .safetensors, .gguf or .safetensors.index.json file or a folder"
        )
    if path.name in ADAPTERS:
        raise InputError(f"{path}: {ADAPTERS_ALONE}")
    if (match := SPLIT_NAME.fullmatch(path.name)) and int(match[1]) > 1:
        raise _split(path)
    if SHARD_NAME.fullmatch(path.name) and (path.parent / INDEX).is_file():
        raise InputError(f"{path} is one shard of a model in several files; give its folder or {INDEX}")
    return path


def _instead(folder: Path, files: list[Path]) -> str:
    """What a folder without a readable weight file holds, and what to do about it."""
    if any(file.name in ADAPTERS for file in files):
        return ADAPTERS_ALONE
    if files:
        return f"found shards without their {INDEX}; fetch it too"
    others = sorted(file.name for pattern in OTHER_FORMATS for file in folder.glob(pattern))
    if others:
        return (
            f"found no .safetensors or .gguf file but {others[0]}, which is not read; write the model as safetensors "
            "(transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW))"
        )
    return "need one index, .safetensors or .gguf file, found none; fetch the model's weights into it"


def load(
    path: str | os.PathLike,
    dtype: str = "float32",
    param_dtype: str = "float32",
    shardings: Shardings | Callable[[ModelConfig], Shardings] | None = None,
) -> tuple[ModelConfig, dict]:
    """Reads a model's architecture and parameters.

    Args:
      path: a .safetensors file or .safetensors.index.json with config.json beside it, a .gguf file, or a folder.
      dtype: as in the config returned.
      param_dtype: of the parameters returned; other precisions are converted, quantised tensors are dequantised.
      shardings: of the parameters returned, as a tree or a function of the config; see `assemble`. With several
        processes each of them calls, and reads its own part.

    Raises InputError naming the file and every missing, unknown or mis-shaped tensor with both shapes.
    """
    config, tensors = _open(find(path), dtype, param_dtype)
    return config, assemble(config, tensors, shardings(config) if callable(shardings) else shardings)


def read_config(path: str | os.PathLike, dtype: str = "float32", param_dtype: str = "float32") -> ModelConfig:
    """The architecture alone, as `load` returns it, with the errors of `load`.

    No tensor is read, but to compare the head that a tied model should not have.
    """
    return _open(find(path), dtype, param_dtype)[0]


def fingerprint(path: str | os.PathLike, most: int | None = None) -> str:
    """sha256, in hex, of a model: its architecture, and of each tensor name, shape, kind of number and stored bytes.

    The same for one file and for shards of it, wherever they lie and in whatever order. Every byte is read once, or of
    each tensor the first `most`; host memory stays below some READ_BYTES. `path` and errors as of `load`.
    """
    config, tensors = _open(find(path), "float32", "float32")
    digest = hashlib.sha256(json.dumps(hf_config(config), sort_keys=True).encode())
    for name in sorted(tensors.shapes):
        kind, stored = tensors.stored(name)
        digest.update(f"\n{name} {kind} {list(tensors.shapes[name])}\n".encode())
        for block in stored.blocks(most):
            digest.update(block)
    return digest.hexdigest()


def load_token_embeddings(path: str | os.PathLike) -> np.ndarray:
    """The token embeddings alone, `[V, D]` float32; `path` and errors as of `load`."""
    _, tensors = _open(find(path), "float32", "float32")
    name = HF_NAMES["embed_tokens/embedding"]
    return np.asarray(tensors.read(name)[tuple(slice(0, n) for n in tensors.shapes[name])], np.float32)


def _open(path: Path, dtype: str, param_dtype: str) -> tuple[ModelConfig, Tensors]:
    """The architecture and the tensors that a weight file offers, which fit each other."""
    if path.suffix == ".gguf":
        config, tensors = _open_gguf(path, dtype, param_dtype)
    else:
        config_path, tensors = _open_safetensors(path)
        config = config_from_hf(read_json(config_path), dtype, param_dtype, str(config_path))
    _check(config, tensors)
    _check_head(config, tensors)
    return config, tensors


def save_hf(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: dict,
    dtype: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    token_ids: dict[str, int | list[int]] | None = None,
    sampling: dict | None = None,
) -> None:
    """Writes weights and config.json, which transformers and vLLM load, into `folder` (made if need be).

    One tensor at a time goes through host memory, whatever the shardings. Killed at any moment, the folder holds the
    former weights or the new ones, whole. With several processes all of them call; the first one writes.

    Args:
      params: arrays of any sharding, or numpy arrays.
      dtype: of the file; the parameters' own if None.
      max_shard_bytes: beyond it, the weights are cut into files with a model.safetensors.index.json.
      token_ids: eos_token_id and pad_token_id, for config.json and a generation_config.json.
      sampling: further fields of generation_config.json, for example temperature.

    The tokenizer's files are the caller's.
    """
    folder = Path(folder)
    token_ids = token_ids or {}
    described = hf_config(config) | {"torch_dtype": dtype or config.param_dtype} | token_ids
    if dtype is not None and dtype not in SAFETENSORS_DTYPES:
        raise ValueError(f"dtype={dtype!r} cannot be exported; one of {', '.join(SAFETENSORS_DTYPES)} can")
    shards = _into_shards(_parts(config, params, dtype), max_shard_bytes)
    writes = jax.process_index() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    former = [file for file in folder.glob("*.safetensors") if SHARD_NAME.fullmatch(file.name)]
    # New shards get names that no former one has: until the index is replaced, the former files are the model.
    stems = itertools.chain(["model"], (f"model-{i}" for i in itertools.count(2)))
    stem = next(s for s in stems if not any(re.match(rf"{s}-\d{{5}}-", file.name) for file in former))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, parts in zip(names, shards, strict=True):
        if writes:
            _write_shard(folder / f"{name}.partial", parts)
        else:
            for part in parts:
                _on_host(part)
    if not writes:
        return
    write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
    if generation := token_ids | (sampling or {}):
        write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    for name in names:
        (folder / f"{name}.partial").replace(folder / name)
    if len(shards) > 1:
        total = sum(part.nbytes for parts in shards for part in parts)
        where = {part.name: name for name, parts in zip(names, shards, strict=True) for part in parts}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
        (folder / "model.safetensors").unlink(missing_ok=True)
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for file in [*former, *folder.glob("*.safetensors.partial")]:  # the latter of a writer that was killed
        file.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there whole or, as before, not."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


class _Part(NamedTuple):
    """A tensor to be written: a parameter, or one layer of it."""

    name: str
    value: jax.Array | np.ndarray
    layer: int | None
    transpose: bool
    shape: tuple[int, ...]  # in the file
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _parts(config: ModelConfig, params: dict, dtype: str | None) -> Iterator[_Part]:
    """What a model's file holds, in its order. Raises ValueError for a parameter that does not fit `config`."""
    for path, (name, leaf) in _expected(config).items():
        value = params
        for key in path.split("/"):
            value = value[key]
        if value.shape != leaf.shape:
            raise ValueError(f"parameter {path}: expected {list(leaf.shape)}, found {list(value.shape)}")
        shape = _hf_shape(path, leaf.shape)
        for i in range(config.num_layers) if "{}" in name else (None,):
            kind = jnp.dtype(dtype or value.dtype)
            yield _Part(name.format(i), value, i, path.endswith("/kernel"), shape, kind)


def _into_shards(parts: Iterator[_Part], max_bytes: int) -> list[list[_Part]]:
    """Consecutive tensors of up to `max_bytes` together; a larger tensor has a file to itself."""
    shards: list[list[_Part]] = [[]]
    size = 0
    for part in parts:
        if shards[-1] and size + part.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part.nbytes
    return shards


def _write_shard(path: Path, parts: list[_Part]) -> None:
    """Writes a .safetensors file."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        start, end = end, end + part.nbytes
        kind = SAFETENSORS_DTYPES[part.dtype.name]
        header[part.name] = {"dtype": kind, "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            tensor = _on_host(part).astype(part.dtype, copy=False)
            tensor = np.ascontiguousarray(tensor.T if part.transpose else tensor)
            file.write(memoryview(tensor.reshape(-1).view(np.uint8)))
        file.flush()
        os.fsync(file.fileno())


def _on_host(part: _Part) -> np.ndarray:
    """The values of one tensor, in our layout; all processes together if none holds all of it."""
    value, layer = part.value, part.layer
    if isinstance(value, np.ndarray):
        return value if layer is None else value[layer]
    value = value if layer is None else _one_layer(value, layer)
    if not value.is_fully_addressable:
        return multihost_utils.process_allgather(value, tiled=True)
    out = np.empty(value.shape, value.dtype)  # np.asarray(value) would stay in memory as long as the parameter
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            out[shard.index] = shard.data
    return out


@jax.jit
def _one_layer(value: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(value, layer, 0, keepdims=False)
