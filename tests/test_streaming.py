"""Weights read straight into sharded arrays: values, shardings, what is read from disk, and the memory it takes."""

import json
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from agemem_jax.models import qwen, weights
from agemem_jax.models.qwen import ModelConfig

SMALL = ModelConfig(
    vocab_size=48, hidden_size=32, intermediate_size=64, num_layers=3, num_heads=8, num_kv_heads=8, head_dim=4,
    max_positions=64, qkv_bias=True, tie_word_embeddings=False,
)  # fmt: skip
# Many tensors of which none is large: 432 MiB, the largest 16 MiB, a parameter of all layers up to 104 MiB.
LARGE = ModelConfig(
    vocab_size=8192, hidden_size=1024, intermediate_size=4096, num_layers=13, num_heads=16, num_kv_heads=16,
    head_dim=64, max_positions=64, qk_norm=True, tie_word_embeddings=True, dtype="bfloat16", param_dtype="bfloat16",
)  # fmt: skip
LARGEST = 8192 * 1024 * 2
SLACK = 32 << 20  # bytes that compiling and the allocator may take
MESHES = ((8, 1), (2, 4), (4, 2))
CUT = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "embed": "fsdp"}


def sharded(config: ModelConfig, fsdp: int, tensor: int) -> dict:
    """Shardings of the parameters: width over fsdp, the rest over tensor, norms whole."""
    mesh = Mesh(np.array(jax.devices()[: fsdp * tensor]).reshape(fsdp, tensor), ("fsdp", "tensor"))
    spec = lambda names: NamedSharding(mesh, PartitionSpec(*map(CUT.get, names)))  # noqa: E731
    return jax.tree.map(spec, qwen.logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))


def values(name: str, shape: tuple) -> np.ndarray:
    """A tensor that anyone can make again from its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.integers(-128, 128, shape, np.int8).astype(np.float32)


def write_checkpoint(folder: Path, config: ModelConfig, dtype, shards: int) -> None:
    """A Hugging Face folder with an index, one shard in memory at a time."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(weights.hf_config(config)))
    shapes = hf_shapes(config)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: values(name, shapes[name]).astype(dtype) for name in sorted(shapes)[i::shards]}
        safetensors.numpy.save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def hf_shapes(config: ModelConfig) -> dict[str, tuple]:
    abstract = jax.eval_shape(lambda: qwen.init_params(config, jax.random.key(0)))
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = "/".join(entry.key for entry in path)
        name, shape = weights.HF_NAMES[path], leaf.shape
        if "{}" in name:
            shape = shape[1:]
        shape = shape[::-1] if path.endswith("kernel") else shape
        shapes |= {name.format(i): shape for i in range(config.num_layers if "{}" in name else 1)}
    return shapes


def assert_params(params: dict, config: ModelConfig, shardings: dict | None, step: int = 1) -> None:
    """Every shard of every parameter holds what the checkpoint does, where it was asked for, in the config's dtype.

    step: of the layers that are compared.
    """
    shapes = hf_shapes(config)
    wanted = {} if shardings is None else dict(jax.tree_util.tree_leaves_with_path(shardings))
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        name = weights.HF_NAMES["/".join(entry.key for entry in path)]
        assert array.dtype == config.param_dtype and array.committed == (shardings is not None)
        if wanted:
            assert array.sharding == wanted[path]
        for layer in range(0, config.num_layers, step) if "{}" in name else (None,):
            expected = values(name.format(layer), shapes[name.format(layer)])
            expected = expected.T if path[-1].key == "kernel" else expected
            for shard in array.addressable_shards:
                index = shard.index if layer is None else shard.index[1:]
                found = np.asarray(shard.data if layer is None else shard.data[layer])
                np.testing.assert_array_equal(found.astype(np.float32), expected[index], err_msg=name)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder, SMALL, np.float32, shards=3)
    return folder


@pytest.mark.parametrize("shape", MESHES)
def test_shards_hold_the_checkpoint(small, shape):
    seen = []

    def ask(config):
        seen.append(config)
        return sharded(config, *shape)

    config, params = weights.load(small, shardings=ask)
    assert seen == [config] and config == SMALL
    assert_params(params, config, sharded(config, *shape))


def test_a_tree_of_shardings_a_single_device_and_none(small):
    on_second = jax.tree.map(
        lambda _: SingleDeviceSharding(jax.devices()[1]),
        qwen.logical_axes(SMALL), is_leaf=lambda x: isinstance(x, tuple),
    )  # fmt: skip
    assert_params(weights.load(small, shardings=on_second)[1], SMALL, on_second)
    tree = sharded(SMALL, 1, 4)  # four of the eight devices
    assert_params(weights.load(small, shardings=tree)[1], SMALL, tree)
    assert_params(weights.load(small)[1], SMALL, None)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_dtypes_are_converted(tmp_path, stored, param_dtype):
    write_checkpoint(tmp_path, SMALL, ml_dtypes.bfloat16 if stored == "bfloat16" else stored, shards=2)
    config, params = weights.load(
        tmp_path, param_dtype=param_dtype, shardings=lambda config: sharded(config, 2, 4)
    )  # the values are whole numbers below 256, which all three hold
    assert config.param_dtype == param_dtype
    assert_params(params, config, sharded(config, 2, 4))


def test_read_config_reads_no_tensor(small, monkeypatch):
    monkeypatch.setattr(weights.Stored, "__getitem__", lambda *_: pytest.fail("a tensor was read"))
    config = weights.read_config(small, dtype="bfloat16", param_dtype="float16")
    assert (config.dtype, config.param_dtype) == ("bfloat16", "float16")
    assert config.num_layers == SMALL.num_layers and config.qkv_bias


def test_each_value_is_read_once(small, monkeypatch):
    """However many devices want it, and however it is cut."""
    read = {}
    plain = weights.Stored.__getitem__

    def counted(stored, index):
        read.setdefault((stored.file.name, stored.offset), []).append((stored.shape, index))
        return plain(stored, index)

    monkeypatch.setattr(weights.Stored, "__getitem__", counted)
    weights.load(small, shardings=lambda config: sharded(config, 2, 4))
    assert len(read) == len(hf_shapes(SMALL))
    assert all(len(times) == 1 for times in read.values())


def test_columns_are_cut_in_passes(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, SMALL, np.float32, shards=1)
    monkeypatch.setattr(weights, "READ_BYTES", 1000)  # a few rows
    stored = weights._safetensors_header(tmp_path / "model-00001-of-00001.safetensors")["lm_head.weight"]
    expected = values("lm_head.weight", (48, 32))
    for index in ((slice(5, 41), slice(3, 9)), (slice(0, 48), slice(0, 32)), (slice(7, 8), slice(31, 32))):
        np.testing.assert_array_equal(stored[index], expected[index])


def test_shardings_that_cannot_be_had_name_the_parameter(small):
    mesh = Mesh(np.array(jax.devices()[:3]), ("fsdp",))
    tree = sharded(SMALL, 1, 1)
    tree["norm"]["weight"] = NamedSharding(mesh, PartitionSpec("fsdp"))
    with pytest.raises(ValueError, match="parameter norm/weight: .*partitioned 3 times.*size is 32"):
        weights.load(small, shardings=tree)
    tree = sharded(SMALL, 1, 1)
    tree["layers"]["mlp"]["up_proj"]["kernel"] = NamedSharding(mesh, PartitionSpec("fsdp"))
    with pytest.raises(ValueError, match="layers/mlp/up_proj/kernel.*cuts the layer axis; leave axis 0 whole"):
        weights.load(small, shardings=tree)
    tree["layers"]["mlp"]["up_proj"]["kernel"] = PartitionSpec("fsdp")
    with pytest.raises(ValueError, match="layers/mlp/up_proj/kernel.*use a NamedSharding"):
        weights.load(small, shardings=tree)


def test_a_file_that_is_cut_off_is_refused(small, tmp_path):
    write_checkpoint(tmp_path, SMALL, np.float32, shards=1)
    file = tmp_path / "model-00001-of-00001.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, 1000, 5):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="model-00001-of-00001.safetensors is not a readable safetensors file"):
            weights.load(tmp_path)
    safetensors.numpy.save_file({"model.norm.weight": np.zeros(32, np.float64)}, file)
    with pytest.raises(ValueError, match="model.norm.weight is F64; only F32, BF16, F16 are read"):
        weights.load(tmp_path)


def status(field: str) -> int:
    """Bytes of a memory figure of this process, e.g. VmHWM (peak of resident memory)."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":")]
    return int(line.split()[1]) << 10


def run_child(*args, devices: int = 8) -> subprocess.Popen:
    """Starts this file as a program; what it prints last is JSON."""
    root = str(Path(__file__).parent.parent)
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed blocks back, so that they count no longer
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        env=os.environ | at_once
        | {"PYTHONPATH": root, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
    )  # fmt: skip


def result(process: subprocess.Popen) -> dict:
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


def report_memory(small: str, large: str, target: str, fsdp: str, tensor: str) -> dict:
    """Loads the large checkpoint, saves it again, tells what memory both took beside the arrays, checks the values."""
    ask = lambda config: sharded(config, int(fsdp), int(tensor))  # noqa: E731
    weights.load(small, shardings=ask)  # the compiler is in memory from here
    before = status("VmRSS")
    _, params = weights.load(large, dtype="bfloat16", param_dtype="bfloat16", shardings=ask)
    jax.block_until_ready(params)
    arrays = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
    loading = status("VmHWM") - before - arrays
    weights.save_hf(target, LARGE, params, max_shard_bytes=100_000_000)
    saving = status("VmHWM") - before - arrays  # of both: the peak is not reset between them
    assert_params(params, LARGE, ask(LARGE), step=LARGE.num_layers - 1)
    return {"arrays": arrays, "loading": loading, "saving": saving}


def join_two_processes(port: str, process: str, folder: str, target: str) -> dict:
    """One of two processes: loads its half of every matrix, tells what it read, takes part in a save."""
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    read, plain = {}, weights.Stored.__getitem__

    def counted(stored, index):
        read[f"{stored.file.name} {stored.offset}"] = [[s.start, s.stop] for s in index]
        return plain(stored, index)

    weights.Stored.__getitem__ = counted
    ask = lambda config: sharded(config, 4, 2)  # noqa: E731
    config, params = weights.load(folder, shardings=ask)
    assert_params(params, config, ask(config))
    assert not params["layers"]["mlp"]["up_proj"]["kernel"].is_fully_addressable
    weights.save_hf(target, config, params, max_shard_bytes=20_000)
    jax.distributed.shutdown()
    return read


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_checkpoint(folder, LARGE, ml_dtypes.bfloat16, shards=5)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_memory_is_bounded_by_the_largest_tensor(small, large, tmp_path, shape):
    """A peak of three times the largest tensor beside the arrays: less than one parameter of all layers takes."""
    took = result(run_child("report_memory", small, large, tmp_path / "saved", *shape))
    assert took["arrays"] > 400 << 20
    assert took["loading"] < 3 * LARGEST + SLACK, took
    assert took["saving"] < 3 * LARGEST + SLACK, took
    for file in (tmp_path / "saved").glob("*.safetensors"):  # the test folders of several runs are kept
        file.unlink()


def test_two_processes_read_their_halves_and_write_one_checkpoint(small, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [run_child("join_two_processes", port, i, small, tmp_path / "out", devices=4) for i in range(2)]
    try:
        first, second = map(result, pair)
    finally:
        for process in pair:
            process.kill()
    assert first.keys() == second.keys() and len(first) == len(hf_shapes(SMALL))
    stored = weights._open(weights.find(small), "float32", "float32")[1]
    for name, shape in stored.shapes.items():
        where = stored.read(name)
        indices = [half[f"{where.file.name} {where.offset}"] for half in (first, second)]
        size = [np.prod([stop - start for start, stop in index]) for index in indices]
        whole = name.endswith(("norm.weight", "bias"))  # held by all devices, or cut over `tensor` alone
        assert size == ([np.prod(shape)] * 2 if whole else [np.prod(shape) // 2] * 2), name
    config, params = weights.load(tmp_path / "out")
    assert config == SMALL
    assert_params(params, SMALL, None)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
