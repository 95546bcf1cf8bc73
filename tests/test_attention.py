"""Every implementation of attention against a slow softmax in numpy over explicit masks, and against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from agemem_jax.models import attention as module
from agemem_jax.models.attention import Keys, attention
from agemem_jax.models.qwen import recomputed
from agemem_jax.sharding import LOCAL, Layout, make_mesh


def arrays(rng, *shapes, dtype=np.float32):
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def make(b, w, h, kv, hd, parts, seed=0):
    """Queries and Keys; `parts` are (n, S, length, offset)."""
    rng = np.random.default_rng(seed)
    (q,) = arrays(rng, (b, w, h, hd))
    return q, [Keys(*arrays(rng, (n, kv, hd, s), (n, kv, s, hd)), *bounds) for n, s, *bounds in parts]


def i32(*values):
    return np.array(values, np.int32)


# What the learner, the prompt's forward, prefill and decoding ask for, and odd ones.
CASES = {
    "learner": make(4, 13, 6, 2, 8, [(2, 7, i32(7, 3), None), (4, 13, i32(13, 6, 1, 9), 0)]),
    "learner_empty_rows": make(2, 5, 2, 2, 8, [(1, 4, i32(3), None), (2, 5, i32(0, 5), 0)]),
    "learner_one_prompt": make(3, 10, 4, 1, 16, [(1, 5, i32(4), None), (3, 10, i32(10, 2, 7), 0)]),
    "no_prompt": make(2, 9, 4, 4, 8, [(1, 0, i32(0), None), (2, 9, i32(9, 4), 0)]),
    "prompt": make(3, 11, 4, 2, 8, [(3, 11, None, 0)]),
    "uncausal": make(2, 6, 4, 2, 8, [(2, 9, i32(9, 2), None), (1, 3, None, None)]),
    "prefill": make(4, 6, 4, 2, 8, [(2, 5, i32(5, 2), None), (4, 20, None, i32(0, 3, 14, 9))]),
    "decode": make(
        4, 1, 4, 2, 8, [(2, 5, i32(5, 1), None), (4, 12, i32(0, 12, 5, 1), None), (4, 6, np.int32(3), None)]
    ),
    "number_as_offset": make(2, 6, 2, 1, 8, [(2, 10, i32(7, 10), 4)]),
}
KERNELS_SERVE = ("learner", "learner_empty_rows", "learner_one_prompt", "no_prompt", "prompt", "uncausal")


def slow(q, parts):
    """One query and one head at a time, float64; zeros for queries that see nothing."""
    b, w, h, hd = q.shape
    out = np.zeros((b, w, h, hd))
    for row, i, head in np.ndindex(b, w, h):
        keys, values = [], []
        for part in parts:
            n, kv, _, s = part.k.shape
            at, group = row // (b // n), head // (h // kv)
            length = s if part.length is None else np.broadcast_to(part.length, n)[at]
            last = s - 1 if part.offset is None else i + np.broadcast_to(part.offset, n)[at]
            seen = [j for j in range(s) if j < length and j <= last]
            keys.append(part.k[at, group, :, seen])
            values.append(part.v[at, group, seen])
        keys, values = np.concatenate(keys).astype(np.float64), np.concatenate(values)
        if len(keys):
            score = keys @ q[row, i, head] / np.sqrt(hd)
            weight = np.exp(score - score.max())
            out[row, i, head] = weight @ values / weight.sum()
    return out.reshape(b, w, h * hd)


def real(q, parts):
    """Queries `[B, W, 1]` whose result means something: not past their row's length, and with a key to see."""
    b, w = q.shape[:2]
    own = parts[-1]
    keep = np.ones((b, w), bool)
    if own.length is not None and own.offset is not None and isinstance(own.offset, int):
        keep = np.arange(w) < (np.asarray(own.length)[:, None] - own.offset)
    return keep[..., None]


def cudnn_in_xla(q, parts, layout=LOCAL):
    """The way of "cudnn" with JAX's own form of jax.nn.dot_product_attention at its end."""
    parts = [part for part in parts if part.k.shape[-1]]
    assert module._serves(parts)
    kernel = functools.partial(module._cudnn, implementation="xla")
    return module._by_device(kernel, q, parts, layout, "cudnn").reshape(*q.shape[:2], -1)


WAYS = {
    "xla": attention,
    "blocks": functools.partial(attention, query_block=4),
    "splash": functools.partial(attention, implementation="splash"),
    "cudnn": cudnn_in_xla,
}


def call(way, q, parts, **more):
    """The result, under jit with lengths and per-row offsets as arguments."""
    arrays = [(x.k, x.v, x.length, None if isinstance(x.offset, int) else x.offset) for x in parts]
    numbers = [x.offset if isinstance(x.offset, int) else None for x in parts]

    def run(q, arrays):
        keys = [Keys(*a)._replace(offset=a[3] if n is None else n) for a, n in zip(arrays, numbers, strict=True)]
        return way(q, keys, **more)

    return jax.jit(run)(q, arrays)


def gradients(way, q, parts, **more):
    """Of a weighted sum of the meaningful results, by queries, keys and values."""
    weight = np.random.default_rng(5).normal(size=(*q.shape[:2], q.shape[2] * q.shape[3])) * real(q, parts)

    def loss(q, kv):
        out = way(q, [x._replace(k=k, v=v) for x, (k, v) in zip(parts, kv, strict=True)], **more)
        return (out.astype(jnp.float32) * weight).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(q, [(x.k, x.v) for x in parts])


def assert_trees_close(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.isfinite(a).all()
        assert np.abs(a - b).max(initial=0) < tolerance * max(1.0, np.abs(b).max(initial=0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [0, 1, 4, 6, 100])
def test_xla_equals_numpy(case, block):
    q, parts = CASES[case]
    ours = call(attention, q, parts, query_block=block)
    assert ours.shape == (*q.shape[:2], q.shape[2] * q.shape[3])
    assert_trees_close(np.where(real(q, parts), ours, 0), np.where(real(q, parts), slow(q, parts), 0), 1e-5)


@pytest.mark.parametrize("case", KERNELS_SERVE)
@pytest.mark.parametrize("way", ["splash", "cudnn"])
def test_kernels_equal_numpy(case, way):
    q, parts = CASES[case]
    ours = call(WAYS[way], q, parts)
    assert_trees_close(np.where(real(q, parts), ours, 0), np.where(real(q, parts), slow(q, parts), 0), 1e-5)


@pytest.mark.parametrize("case", ["learner", "learner_empty_rows", "prompt", "uncausal"])
@pytest.mark.parametrize("way", ["blocks", "splash", "cudnn"])
def test_gradients_equal(case, way):
    q, parts = CASES[case]
    assert_trees_close(gradients(WAYS[way], q, parts), gradients(attention, q, parts), 1e-5)


def test_a_row_without_keys_stays_finite():
    q, parts = make(2, 5, 2, 2, 8, [(2, 5, i32(0, 5), 0)])
    for way in WAYS.values():
        assert np.isfinite(call(way, q, parts)).all()
        assert_trees_close(gradients(way, q, parts), gradients(attention, q, parts), 1e-5)


def test_several_blocks_of_splash(monkeypatch):
    """More than one block of queries and of keys, ends inside a block, and blocks that nobody sees."""
    monkeypatch.setattr(module, "SPLASH_BLOCK", (512, 256))
    q, parts = make(2, 600, 2, 1, 8, [(1, 150, i32(77), None), (2, 600, i32(600, 333), 0)])
    assert module._block_of(600, 512) == 384
    ours = call(WAYS["splash"], q, parts)
    assert_trees_close(np.where(real(q, parts), ours, 0), np.where(real(q, parts), call(attention, q, parts), 0), 1e-5)
    assert_trees_close(gradients(WAYS["splash"], q, parts), gradients(attention, q, parts), 1e-5)


@pytest.mark.parametrize("case", ["decode", "prefill", "number_as_offset"])
@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_what_the_kernels_do_not_serve_runs_as_xla(case, implementation):
    q, parts = CASES[case]
    for block in (0, 4):
        ours = call(attention, q, parts, implementation=implementation, query_block=block)
        np.testing.assert_array_equal(ours, call(attention, q, parts, query_block=block))


@pytest.mark.parametrize("rules", ["update_tensor", "update_fsdp"])
@pytest.mark.parametrize("way", ["splash", "cudnn", "blocks"])
def test_over_several_devices(rules, way):
    """Rows and heads over 8 devices give what one device gives, the gradient of a shared prompt included."""
    layout = Layout(make_mesh(2, 2, 2), rules)
    q, parts = make(8, 12, 4, 2, 8, [(2, 6, i32(6, 2), None), (8, 12, i32(12, 3, 5, 0, 7, 1, 9, 12), 0)])
    rows, heads = layout.axes("rows"), layout.axes("kv_heads")
    q = jax.device_put(q, NamedSharding(layout.mesh, PartitionSpec(rows, None, heads)))
    ours = gradients(WAYS[way], q, parts, layout=layout)
    assert_trees_close(ours, gradients(attention, q, parts), 1e-5)


def test_rows_that_do_not_divide_are_computed_everywhere():
    layout = Layout(make_mesh(2, 2, 2), "update_tensor")
    q, parts = CASES["learner_one_prompt"]
    q, parts = make(1, 10, 4, 2, 8, [(1, 10, i32(7), 0)])
    assert_trees_close(gradients(WAYS["splash"], q, parts, layout=layout), gradients(attention, q, parts), 1e-5)


def test_heads_that_do_not_divide_are_refused():
    layout = Layout(make_mesh(1, 2, 4), "update_tensor")
    q, parts = CASES["prompt"]
    with pytest.raises(ValueError, match=r"policy.num_kv_heads = 2 into 4 \(mesh.tensor\)"):
        attention(q, parts, "splash", layout=layout)


def test_unknown_implementation_is_refused():
    q, parts = CASES["prompt"]
    with pytest.raises(ValueError, match="policy.attention is 'flash'; choices are xla, splash, cudnn"):
        attention(q, parts, "flash")


def test_blocks_add_gradients_in_float32():
    """In bfloat16, gradients of the keys are as good in many blocks as all at once."""
    exact, parts = make(1, 512, 2, 1, 8, [(1, 16, None, None), (1, 512, None, 0)])
    half = [x._replace(k=jnp.bfloat16(x.k), v=jnp.bfloat16(x.v)) for x in parts]
    whole = [x._replace(k=jnp.float32(x.k), v=jnp.float32(x.v)) for x in half]
    reference = gradients(attention, jnp.float32(jnp.bfloat16(exact)), whole)

    def error(block):
        ours = gradients(attention, jnp.bfloat16(exact), half, query_block=block)
        pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True)
        return np.array([np.linalg.norm(np.float32(a) - b) / np.linalg.norm(b) for a, b in pairs])

    assert (error(4) < 1.2 * error(0)).all()


def test_blocks_bound_the_memory():
    """Forward and backward of 2,048 queries never hold a quarter of all scores."""
    w, block = 2048, 64
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, w, 2, 8), (1, 1, 8, w), (1, 1, w, 8))]

    def temporaries(query_block):
        run = lambda q, k, v: attention(q, [Keys(k, v, None, 0)], query_block=query_block).sum()  # noqa: E731
        return jax.jit(jax.grad(run, (0, 1, 2))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    all_scores = 2 * w * w * 4
    assert temporaries(0) >= all_scores
    assert temporaries(block) < all_scores / 4


def test_blocks_leave_out_keys_that_none_of_them_sees():
    """What is never read can be anything: values that are not numbers spoil a sum even with weight 0."""
    q, (own,) = make(1, 32, 2, 1, 8, [(1, 32, None, 0)])
    own.v[:, :, 24:] = np.nan
    out = call(attention, q, [own], query_block=4)
    assert np.isfinite(out[:, :24]).all() and np.isnan(out[:, 24:]).any()


@pytest.mark.parametrize("case", CASES)
def test_splash_is_the_kernel_where_it_serves(case):
    q, parts = CASES[case]
    program = str(jax.make_jaxpr(lambda q: attention(q, parts, "splash"))(q))
    assert ("pallas_call" in program) == (case in KERNELS_SERVE)


def learner_gradient(implementation, layout, b, w, p, heads, kv, hd, query_block=0, layers=1, remat="none"):
    """The gradient of the learner's attention in bfloat16, and its abstract arguments, laid out on the mesh."""
    rows, cut = layout.axes("rows") if b > 1 else None, layout.axes("kv_heads")

    def shape(size, *axes, dtype=jnp.bfloat16):
        # What is lowered for GPUs in a process of CPUs is given shapes alone.
        on = layout.mesh is not None and layout.mesh.devices.flat[0].platform == "tpu"
        return jax.ShapeDtypeStruct(
            size, dtype, sharding=NamedSharding(layout.mesh, PartitionSpec(*axes)) if on else None
        )

    q = shape((b, w, heads, hd), rows, None, cut)
    prefix = shape((1, kv, hd, p), None, cut), shape((1, kv, p, hd), None, cut)
    own = shape((b, kv, hd, w), rows, cut), shape((b, kv, w, hd), rows, cut)
    lengths = shape((1,), dtype=jnp.int32), shape((b,), rows, dtype=jnp.int32)

    def loss(q, prefix, own, lengths):
        parts = [Keys(*prefix, lengths[0]), Keys(*own, lengths[1], 0)]

        def layer(q, _):
            return attention(q, parts, implementation, query_block, layout).reshape(q.shape), None

        out, _ = jax.lax.scan(recomputed(layer, remat), q, length=layers)
        return jnp.square(out.astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))), (q, prefix, own, lengths)


@pytest.fixture
def tpus(monkeypatch):
    """Four TPU v5e to compile for; none needs to be there."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # other processes may compile at the same time
    return list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)


def test_splash_compiles_for_tpus(tpus):
    layout = Layout(make_mesh(1, 2, 2, tpus), "update_tensor")
    run, args = learner_gradient("splash", layout, b=4, w=300, p=100, heads=4, kv=2, hd=128)
    program = run.trace(*args).lower().compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 2  # forward, gradients


@pytest.mark.parametrize(("remat", "kernels"), [("none", 2), ("minimal", 2), ("full", 3)])
def test_minimal_remat_runs_no_kernel_again(tpus, remat, kernels):
    layout = Layout(make_mesh(1, 2, 2, tpus), "update_tensor")
    run, args = learner_gradient("splash", layout, b=4, w=300, p=100, heads=4, kv=2, hd=128, layers=3, remat=remat)
    program = run.trace(*args).lower().compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == kernels


@pytest.mark.parametrize("implementation", ["splash", pytest.param("xla", marks=pytest.mark.heavy)])
def test_a_layer_of_7b_compiles_for_tpus(tpus, implementation):
    """28 heads, 4 key-value heads, 8,192 tokens behind a prompt of 1,024, heads over 4 chips."""
    layout = Layout(make_mesh(1, 1, 4, tpus), "update_tensor")
    run, args = learner_gradient(implementation, layout, 1, 8192, 1024, 28, 4, 128, query_block=256)
    memory = run.trace(*args).lower().compile().memory_analysis()
    held = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - memory.output_size_in_bytes
    assert held < 200 * 2**20 < 7 * 8192 * 9216 * 4  # a chip's scores at once are 2 GB


@pytest.mark.parametrize("mesh", [None, (1, 2, 4)])
def test_cudnn_lowers_for_gpus(monkeypatch, mesh):
    """As far as it goes without a GPU: to cuDNN's calls, forward and backward, with lengths and the causal mask.

    JAX asks for the version of cuDNN when it traces; here one is claimed. Compiling needs the device.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    layout = Layout(make_mesh(*mesh), "update_tensor") if mesh else LOCAL
    run, args = learner_gradient("cudnn", layout, b=2, w=300, p=100, heads=8, kv=4, hd=64)
    program = run.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in program
    assert program.count("PADDING_CAUSAL") == 2


def test_cudnn_refuses_float32():
    q, parts = CASES["learner"]
    with pytest.raises(ValueError, match="policy.dtype = float32"):
        attention(jnp.asarray(q), parts, "cudnn")
