"""Checkpoints: exact round trips, nothing lost by damage, kills or failed saves, other configs refused."""

import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from agemem_jax.config import ConfigError
from agemem_jax.errors import InputError
from agemem_jax.sharding import Layout, make_mesh
from agemem_jax.training import checkpoint
from agemem_jax.training.checkpoint import Checkpointer, last_saved
from agemem_jax.types import TrainState
from configs import base

ROOT = Path(__file__).parent.parent


def make_state(value: float) -> TrainState:
    """A small state with every kind of leaf that a run has."""
    params = {"w": jnp.arange(12.0).reshape(3, 4) + value, "half": jnp.full((5,), value, jnp.bfloat16)}
    return TrainState(jnp.int32(value), params, optax.adamw(1e-3).init(params))


def assert_equal(a, b) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def open_at(tmp_path):
    """Opens checkpointers in one folder, as processes one after another would."""
    opened = []

    def open_one(keep: int = 3, **changes) -> Checkpointer:
        config = base.get_config()
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        opened.append(Checkpointer(tmp_path, config, keep))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_round_trip_of_every_dtype_and_sharding(open_at):
    devices = np.array(jax.devices()).reshape(4, 2)
    sharding = NamedSharding(jax.sharding.Mesh(devices, ("data", "tensor")), PartitionSpec("data", "tensor"))
    state = {
        "train": make_state(2.0),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(3), 4),
        "int8": jnp.arange(5, dtype=jnp.int8),
        "int16": jnp.arange(6, dtype=jnp.int16),
        "bool": jnp.array([True, False]),
        "sharded": jax.device_put(jnp.arange(64.0).reshape(8, 8), sharding),
    }
    open_at().save(4, state, {"clock": {"train": 1.5}, "names": ["a"]}, wait=True)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    update, restored, host = open_at().restore_latest(like)
    assert (update, host) == (4, {"clock": {"train": 1.5}, "names": ["a"]})
    assert_equal(restored, state)
    assert restored["sharded"].sharding == sharding
    assert isinstance(restored["train"], TrainState)
    # The shardings asked for decide, not those at the time of saving.
    other = sharding.update(spec=PartitionSpec(None, "data"))
    like["sharded"] = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=other)
    _, moved, _ = open_at().restore_latest(like)
    assert moved["sharded"].sharding == other
    np.testing.assert_array_equal(np.asarray(moved["sharded"]), np.arange(64.0).reshape(8, 8))


MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 1))


def spread(state: dict, sizes: tuple[int, int, int]) -> dict:
    """The state stored over the first devices: matrices over fsdp and tensor, rows over data and fsdp."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    stored = Layout(mesh, "stored")
    names = {"matrix": ("embed", "mlp"), "rows": ("rows", None), "count": ()}
    return {name: jax.device_put(x, stored.sharding(*names[name])) for name, x in state.items()}


@pytest.mark.parametrize("before", MESHES)
def test_restored_on_another_mesh(open_at, before):
    state = {"matrix": jnp.arange(128.0).reshape(8, 16), "rows": jnp.arange(16).reshape(8, 2), "count": jnp.int32(5)}
    mesh = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), before, strict=True))
    open_at(**mesh).save(5, spread(state, before), {}, wait=True)
    for after in MESHES:
        mesh = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), after, strict=True))
        like = spread(jax.tree.map(jnp.zeros_like, state), after)
        update, restored, _ = open_at(**mesh).restore_latest(like)
        assert update == 5
        assert_equal(restored, state)
        for name, x in restored.items():
            assert x.sharding == like[name].sharding
            assert len(x.addressable_shards) == np.prod(after)


def test_nothing_saved(open_at):
    assert open_at().restore_latest(make_state(0)) is None


def test_newest_is_restored_and_old_ones_are_dropped(open_at, tmp_path):
    saver = open_at(keep=2)
    for update in (1, 2, 3):
        saver.save(update, make_state(update), {"update": update})
    saver.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000003"]
    update, state, host = open_at().restore_latest(make_state(0))
    assert update == 3 and host == {"update": 3}
    assert_equal(state, make_state(3))


def test_donated_after_save(open_at):
    """What is saved is the state at the time of the call, although its buffers are donated right after."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = step({"a": jnp.zeros((2_000_000,)), "b": jnp.zeros((300, 300))})
    saver = open_at()
    saver.save(1, state, {})
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    _, restored, _ = saver.restore_latest(state)
    assert all((np.asarray(x) == 1).all() for x in jax.tree.leaves(restored))
    assert float(state["a"][0]) == 6


def test_saving_and_restoring_pass_the_transfer_guard(open_at):
    saver, state = open_at(), make_state(1)
    with jax.transfer_guard("disallow"):
        saver.save(1, state, {}, wait=True)
        assert_equal(saver.restore_latest(state)[1], state)


def every_file(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_any_damaged_file_is_detected(open_at, tmp_path):
    open_at().save(1, make_state(1), {"a": 1}, wait=True)
    path = tmp_path / "00000001"
    files = every_file(path)
    assert {"MANIFEST", "host.json", "config.json"} <= {f.name for f in files} and len(files) > 8
    for file in files:
        good = file.read_bytes()
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        for bad in (flipped, good[:-1], good[:middle], b"", good + b"\0"):
            file.write_bytes(bad)
            assert checkpoint.damage(path) is not None, (file, len(bad), len(good))
        file.unlink()
        assert checkpoint.damage(path) is not None, file
        file.write_bytes(good)
    assert checkpoint.damage(path) is None


def test_damaged_one_is_skipped_named_kept_and_its_name_is_free(open_at, tmp_path):
    saver = open_at()
    saver.save(1, make_state(1), {"n": 1})
    saver.save(2, make_state(2), {"n": 2}, wait=True)
    victim = max(every_file(tmp_path / "00000002" / "state"), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-3])
    resumed = open_at(keep=2)
    with pytest.warns(UserWarning, match=f"{tmp_path}/00000002") as caught:
        update, state, host = resumed.restore_latest(make_state(0))
    assert "bytes instead of" in str(caught[0].message)
    assert (update, host) == (1, {"n": 1})
    assert_equal(state, make_state(1))
    assert victim.exists()
    resumed.save(2, make_state(2), {"n": "again"}, wait=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002", "00000002.broken-1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update, state, host = open_at().restore_latest(make_state(0))
    assert (update, host) == (2, {"n": "again"})
    assert_equal(state, make_state(2))


def test_damaged_one_does_not_push_out_a_whole_one(open_at, tmp_path):
    saver = open_at()
    for update in (1, 2):
        saver.save(update, make_state(update), {}, wait=True)
    (tmp_path / "00000002" / "host.json").write_text("{")
    resumed = open_at(keep=2)
    with pytest.warns(UserWarning, match="00000002"):
        assert resumed.restore_latest(make_state(0))[0] == 1
    resumed.save(3, make_state(3), {}, wait=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002", "00000003"]


def test_failed_save_leaves_the_previous_one(open_at, tmp_path, monkeypatch):
    saver = open_at(keep=1)
    saver.save(1, make_state(1), {}, wait=True)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_manifest", full)
        saver.save(2, make_state(2), {})
        told = "update 2 could not be written to .*: No space left on device; checkpoint 00000001 is whole"
        with pytest.raises(InputError, match=told):
            saver.wait()
    resumed = open_at(keep=1)
    with pytest.warns(UserWarning, match="00000002.partial: it is half-written"):
        assert resumed.restore_latest(make_state(0))[0] == 1
    resumed.save(2, make_state(2), {}, wait=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000002.broken-1"]


KILLED = """
import sys, jax.numpy as jnp
from agemem_jax.training.checkpoint import Checkpointer
from configs import base
saver = Checkpointer(sys.argv[1], base.get_config(), 2)
for update in range(1, 1000):
    saver.save(update, {"w": jnp.full((200_000,), float(update))}, {"update": update})
    print(update, flush=True)
"""


def test_killed_while_saving(open_at, tmp_path):
    """After kill -9 there is a whole checkpoint of one of the last two updates that were begun."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    begun = 0
    for line in child.stdout:
        begun = int(line)
        if begun == 6:
            child.send_signal(signal.SIGKILL)
            break
    begun = max([begun, *(int(line) for line in child.stdout)])
    child.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update, state, host = open_at().restore_latest({"w": jnp.zeros((200_000,))})
    assert begun - 1 <= update <= begun + 1 and host == {"update": update}
    assert (np.asarray(state["w"]) == update).all()


def test_other_config_is_refused_with_the_fields(open_at):
    open_at().save(1, make_state(1), {}, wait=True)
    with pytest.raises(ConfigError) as refused:
        open_at(rl__group_size=4, store__entries=16).restore_latest(make_state(0))
    assert "rl.group_size is 4, was 8" in str(refused.value)
    assert "store.entries is 16, was 64" in str(refused.value)
    assert "tools" not in str(refused.value)


def test_fields_that_may_differ(open_at):
    open_at().save(1, make_state(1), {}, wait=True)
    longer = open_at(
        rl__updates=500, num_seeds=3, train__eval_every=5, train__keep_checkpoints=9, mesh__tensor=4, rl__micro_batch=8,
        policy__remat="full", rollout__prefill_chunk=64,
    )  # fmt: skip
    assert longer.restore_latest(make_state(0))[0] == 1


def test_sequential_schedule_fixes_the_number_of_updates(open_at):
    open_at(rl__schedule="sequential").save(1, make_state(1), {}, wait=True)
    with pytest.raises(ConfigError, match="rl.updates is 300, was 100"):
        open_at(rl__schedule="sequential", rl__updates=300).restore_latest(make_state(0))


def test_other_arrays_are_refused_by_name(open_at):
    open_at().save(1, {"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, {}, wait=True)
    with pytest.raises(ValueError, match=r"\['b'\] is absent, was float32\[2\]; \['w'\] is float32\[2, 4\], was"):
        open_at().restore_latest({"w": jnp.zeros((2, 4))})


def test_saved_update_is_left_alone(open_at, tmp_path):
    saver = open_at()
    saver.save(1, make_state(1), {}, wait=True)
    before = (tmp_path / "00000001" / "MANIFEST").stat().st_mtime_ns
    saver.save(1, make_state(1), {}, wait=True)
    assert (tmp_path / "00000001" / "MANIFEST").stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def test_the_last_saved_update_is_that_of_a_whole_checkpoint(open_at, tmp_path):
    assert last_saved(tmp_path / "nowhere") is None and last_saved(tmp_path) is None
    saver = open_at()
    for update in (2, 10):
        saver.save(update, make_state(update), {}, wait=True)
    assert last_saved(tmp_path) == 10
    (tmp_path / "00000010" / "MANIFEST").unlink()
    (tmp_path / "00000012.partial").mkdir()
    (tmp_path / "00000012.partial" / "MANIFEST").write_text("")
    assert last_saved(tmp_path) == 2


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="train.keep_checkpoints = 0"):
        Checkpointer(tmp_path, base.get_config(), 0)
