"""The planner: what it reads from compiled programs, against XLA's own counts and against counts by hand."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from agemem_jax.planning import hlo, page, plan, roofline
from agemem_jax.planning.costs import _positions, axis_of, walk
from agemem_jax.planning.hardware import CHIPS, GIB, collective_seconds, coordinates, parse_slice, permute_seconds

D, F, B, LAYERS, STEPS = 64, 256, 32, 3, 5
PHASES = {"decode": ["rollout/decode"], "grad": ["update/grad"]}


def make_mesh(devices, **sizes):
    grid = np.asarray(devices, dtype=object).reshape(*sizes.values())
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def weights(mesh, layers=LAYERS, dtype=jnp.float32):
    put = lambda shape, *spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))  # noqa: E731
    w = {"up": put((layers, D, F), None, "fsdp", "tensor"), "down": put((layers, F, D), None, "tensor", "fsdp")}
    return w, put((B, D), "fsdp")


def through_layers(mesh, w, x):
    def layer(x, w):
        h = jax.lax.with_sharding_constraint(x @ w["up"], NamedSharding(mesh, P("fsdp", "tensor")))
        return jax.lax.with_sharding_constraint(x + jax.nn.relu(h) @ w["down"], NamedSharding(mesh, P("fsdp"))), None

    with jax.named_scope("layers"):
        return jax.lax.scan(layer, x, w)[0]


def stage(mesh, dtype=jnp.float32):
    """A gradient of scanned layers, then a loop whose end depends on data; compiled for the mesh."""

    def program(w, x):
        with jax.named_scope("update"), jax.named_scope("grad"):
            grad = jax.grad(lambda w: through_layers(mesh, w, x).sum())(w)
            new = jax.tree.map(lambda w, g: w - g, w, grad)

        def body(carry):
            i, x = carry
            return i + 1, through_layers(mesh, new, x)

        with jax.named_scope("rollout"), jax.named_scope("decode"):
            _, x = jax.lax.while_loop(lambda c: (c[0] < STEPS) & (c[1] > 0).any(), body, (0, x))
        return new, x

    return jax.jit(program, donate_argnums=0).lower(*weights(mesh, dtype=dtype)).compile()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), fsdp=4, tensor=2)


@pytest.fixture(scope="module")
def compiled(mesh):
    return stage(mesh)


# --- machines ---


@pytest.mark.parametrize(
    "text, topology, size",
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64),
        ("v5p-16", "v5p:2x2x2", 8),  # v5p counts TensorCores
        ("v5e-64", "v5e:8x8", 64),
        ("v6e-16", "v6e:4x4", 16),
        ("h100-4", "h100:4", 4),
    ],
)
def test_names_of_slices(text, topology, size):
    where = parse_slice(text)
    assert (where.topology, where.size) == (topology, size)


@pytest.mark.parametrize(
    "text, says", [("a100:8", "h100"), ("v5p:4x4", "3 dimensions"), ("v5e-7", "7 chips"), ("h100:16", "one node")]
)
def test_wrong_slices_say_what_is_right(text, says):
    with pytest.raises(ValueError, match=says):
        parse_slice(text)


def torus(where):
    return list(itertools.product(*(range(size) for size in where.shape)))


def test_time_of_collectives():
    payload, link, hop = 1e9, CHIPS["v5e"].link_rate, CHIPS["v5e"].step_seconds
    small, pod = parse_slice("v5e:4x4"), parse_slice("v5e:16x16")
    time = lambda kind, group, where: collective_seconds(kind, payload, group, where, torus(where))  # noqa: E731
    row, row16 = range(4), range(16)
    # A line passes everything over one link, a ring over two; two dimensions have twice the links.
    assert time("all-gather", row, small) == pytest.approx(3 * hop + 0.75 * payload / link)
    assert time("all-gather", row16, pod) == pytest.approx(8 * hop + 15 / 16 * payload / (2 * link))
    assert time("all-gather", range(16), small) == pytest.approx(6 * hop + 15 / 16 * payload / (2 * link))
    assert time("all-reduce", row, small) == pytest.approx(2 * time("reduce-scatter", row, small))
    # Every other chip of a line: two groups share each link.
    assert time("all-gather", [0, 2], small) == pytest.approx(hop + 0.5 * payload / (link / 2))
    assert time("all-to-all", row, small) == pytest.approx(3 * hop + payload / link)
    assert time("all-gather", [3], small) == 0
    node = parse_slice("h100:8")
    expected = node.chip.step_seconds + 7 / 8 * payload / 450e9
    assert collective_seconds("all-gather", payload, range(8), node, None) == pytest.approx(expected)


def test_time_of_permutes():
    payload, small, pod = 1e9, parse_slice("v5e:4x4"), parse_slice("v5e:16x16")
    time = lambda pairs, where: permute_seconds(payload, pairs, where, torus(where)) * 50e9 / payload  # noqa: E731
    shift = lambda n, by: [(i, (i + by) % n) for i in range(n)]  # noqa: E731
    # On a line the last one's data goes all the way back, in the direction that nothing else takes.
    assert time(shift(4, 1), small) == pytest.approx(1, rel=1e-3)
    assert time(shift(4, 2), small) == pytest.approx(2, rel=1e-3)  # two flows share the middle link
    assert time(shift(16, 4), pod) == pytest.approx(4, rel=1e-3)  # on a ring four do everywhere
    assert time([(0, 0)], small) == 0
    assert permute_seconds(payload, shift(8, 1), parse_slice("h100:8"), None) == pytest.approx(1e-5 + payload / 450e9)


def test_rings_close_where_the_torus_does():
    assert parse_slice("v5p:4x4x8").is_ring(0)
    assert not parse_slice("v5p:2x4x4").is_ring(1)  # smaller than a cube
    assert parse_slice("v5e:8x16").is_ring(1)
    assert not parse_slice("v5e:8x16").is_ring(0)


# --- HLO text ---


def test_four_spellings_of_replica_groups():
    columns = ((0, 2, 4, 6), (1, 3, 5, 7))
    for text in (
        "replica_groups={{0,2,4,6},{1,3,5,7}}",
        "replica_groups=[2,4]<=[4,2]T(1,0)",
        "replica_groups=mesh['x'=4,'y'=2] {'x'}",
        "replica_groups=mesh['x'=8] {'x':(1)4}",
    ):
        assert hlo.replica_groups(text, 8) == columns
    assert hlo.replica_groups("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}", 8) == (
        (0, 1, 2, 3),
        (4, 5, 6, 7),
    )
    assert hlo.replica_groups("source_target_pairs={{0,1},{1,0}}", 8) == ((0, 1), (1, 0))
    assert hlo.replica_groups("replica_groups={}", 4) == ((0, 1, 2, 3),)


@pytest.mark.parametrize(
    "groups, axis",
    [
        ([(0, 1), (2, 3), (4, 5), (6, 7)], "tensor"),
        ([(0, 2), (1, 3), (4, 6), (5, 7)], "fsdp"),
        ([(0, 1, 2, 3), (4, 5, 6, 7)], "fsdp+tensor"),
        ([tuple(range(8))], "data+fsdp+tensor"),
        ([(0, 2, 4, 6), (1, 3, 5, 7)], "data+fsdp"),
        ([(i,) for i in range(8)], "none"),
        ([(0, 3), (1, 2), (4, 7), (5, 6)], "part of fsdp+tensor"),
    ],
)
def test_mesh_axis_of_groups(groups, axis):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert axis_of(groups, mesh) == axis
    # The pairs of a permute lie within the axes' groups, and need not fill them.
    assert axis_of([g[:2] for g in groups], mesh, pairs=True) in axis


def test_scopes_are_read_through_transformations():
    name = "jit(step)/update/transpose(jvp(layers))/while/body/closed_call/checkpoint/mlp/jit(silu)/mul"
    assert hlo.plain(hlo.scope_of(name)) == "update/layers/mlp/mul"
    assert hlo.scope_of("jit(step)/update/jvp()/while") == ("update", "while")
    # What a compiler gives a collective that it made of several.
    several = "jit(step)/update/while/body/(jvp()/closed_call/add:jvp()/closed_call/add:transpose(jvp())/mul)"
    assert hlo.plain(hlo.scope_of(several)) == "update/add"


def test_padding_to_tiles_counts():
    text = "bf16[3,130]{1,0:T(8,128)(2,1)}"
    (shape,) = (hlo._shape(*found) for found in hlo.SHAPE.findall(text))
    assert shape.bytes == 8 * 256 * 2
    (shape,) = (hlo._shape(*found) for found in hlo.SHAPE.findall("f32[130,3]{0,1:T(8,128)S(1)}"))
    assert (shape.bytes, shape.hbm) == (8 * 256 * 4, 0)


def test_positions_of_a_window_match_counting():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, window, out, stride, dilate, spread = (int(x) for x in rng.integers(1, 7, 6))
        pad = int(rng.integers(-2, 7))
        reads = (o * stride + k * spread - pad for o in range(out) for k in range(window))
        count = sum(r % dilate == 0 and 0 <= r // dilate < size for r in reads)
        assert _positions(size, window, out, stride, pad, dilate, spread) == count


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="as_text"):
        hlo.parse("nothing")


# --- costs ---


def costs_of(compiled, mesh, trips=lambda scope: None):
    return walk(hlo.parse(compiled.as_text()), dict(mesh.shape), trips)


def test_counts_agree_with_xla_without_loops(mesh):
    """On a program without loops XLA counts everything once, as we do."""

    def program(w, x, table, at):
        h = jax.nn.relu(x @ w) @ w.T
        h = h.reshape(4, 8, D)
        scores = jnp.einsum("bqd,bkd->bqk", h, h)
        mixed = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), h)
        rows = jax.lax.dynamic_slice(table, (at, 0), (8, D))
        return mixed + rows[None], jax.lax.dynamic_update_slice(table, rows * 2, (at + 1, 0))

    shapes = [(D, F), (B, D), (4096, D)]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes] + [jax.ShapeDtypeStruct((), jnp.int32)]
    compiled = jax.jit(program, donate_argnums=2).lower(*args).compile()
    costs, loops = costs_of(compiled, mesh)
    xla = compiled.cost_analysis()
    assert not loops
    assert sum(c.flops + c.vector for c in costs) == pytest.approx(xla["flops"], rel=0.05)
    matmuls = 2 * 2 * B * D * F + 2 * 2 * 4 * 8 * 8 * D
    assert sum(c.flops for c in costs) == matmuls
    assert sum(c.hbm for c in costs) == pytest.approx(xla["bytes accessed"], rel=0.3)


def test_loops_multiply_and_scopes_sort(compiled, mesh):
    """FLOPs of scanned layers and of a loop with a given number of runs, counted by hand, exactly."""
    costs, loops = costs_of(compiled, mesh, plan.by_end({"decode": 4.5}))
    one_pass = 2 * 2 * B * D * F * LAYERS / 8  # two matmuls a layer, spread over 8 devices
    by_phase = {name: 0.0 for name in (*PHASES, roofline.OTHER)}
    for cost in costs:
        by_phase[roofline.phase_of(cost, PHASES)] += cost.times * cost.flops
    assert by_phase["decode"] == pytest.approx(4.5 * one_pass)
    # Forward, two matmuls for each one backward, none for the input's gradient of the first layer's activations.
    assert 2.5 * one_pass <= by_phase["grad"] <= 3 * one_pass
    assert by_phase[roofline.OTHER] == 0
    assert {(loop.scope, loop.trips, loop.source) for loop in loops} == {
        ("update/grad/layers", LAYERS, "program"),
        ("rollout/decode", 4.5, "caller"),
        ("rollout/decode/layers", LAYERS, "program"),
    }


def test_collectives_have_size_axis_and_number(compiled, mesh):
    costs, _ = costs_of(compiled, mesh, plan.by_end({"rollout/decode": 4}))
    where = parse_slice("h100:8")
    lines = roofline.collectives(costs, PHASES, where, None)
    decode = [line for line in lines if line["phase"] == "decode" and "layers" in line["scope"]]
    # Each layer gathers both matrices over fsdp and sums its result over tensor.
    gathers = [line for line in decode if line["kind"] == "all-gather"]
    assert sum(line["times"] for line in gathers) == 2 * LAYERS * 4
    assert {(line["axis"], line["bytes"], line["devices"]) for line in gathers} == {("fsdp", D * F // 2 * 4, 4)}
    (summed,) = (line for line in decode if line["kind"] == "all-reduce")
    assert (summed["axis"], summed["bytes"], summed["times"]) == ("tensor", B // 4 * D * 4, LAYERS * 4)
    assert all(line["seconds"] > 0 for line in lines)


def test_an_unknown_loop_is_said_to_be(compiled, mesh):
    _, loops = costs_of(compiled, mesh)
    assert [(loop.trips, loop.source) for loop in loops if loop.scope == "rollout/decode"] in (
        [(STEPS, "bound")],
        [(1.0, "unknown")],
    )


def test_a_switch_costs_its_most_expensive_branch(mesh):
    def program(i, x):
        branches = [lambda x: x + 1, lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y @ x, x), lambda x: x @ x]
        return jax.lax.switch(i, branches, x)

    args = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((D, D), jnp.float32)
    costs, loops = costs_of(jax.jit(program).lower(*args).compile(), mesh)
    assert sum(c.times * c.flops for c in costs) == 3 * 2 * D**3
    assert [loop.trips for loop in loops] == [3]


def test_a_scan_reads_its_stack_once(mesh):
    """A slice of a stack costs the slice, not the stack, in every run of the loop."""
    layers, width = 16, 512
    stack = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((1, width), jnp.float32)
    program = jax.jit(lambda x, stack: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0])
    costs, _ = costs_of(program.lower(x, stack).compile(), mesh)
    read = sum(c.times * c.hbm for c in costs)
    size = layers * width * width * 4
    assert size <= read < 4 * size


# --- the page ---


def test_a_stage_and_its_page(compiled, mesh):
    where = parse_slice("h100:8")
    one = plan.analyse(compiled, mesh, where, {"decode": 4}, PHASES, "stage 3", 1.5)
    stats = compiled.memory_analysis()
    assert one["fits"]
    assert one["hbm"]["arguments"] == stats.argument_size_in_bytes / GIB
    assert sum(one["arguments"].values()) == pytest.approx(one["hbm"]["arguments"], rel=1e-3)
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    assert one["hbm"]["donated"] > 0
    assert one["hbm"]["total"] * GIB == pytest.approx(
        total - stats.alias_size_in_bytes + stats.generated_code_size_in_bytes
    )
    for phase in one["phases"]:
        terms = [phase["compute_s"], phase["hbm_s"], phase["interconnect_s"]]
        assert max(terms) == phase["overlapped_s"] <= phase["predicted_s"] * (1 + 1e-9)
        assert phase["predicted_s"] <= phase["serial_s"] * (1 + 1e-9)
    assert one["seconds"] == pytest.approx(sum(p["predicted_s"] for p in one["phases"]))
    whole = plan.summary([one], 1000, utilisation=0.5, bandwidth_share=0.25)
    assert whole["generated_tokens_per_s"] == pytest.approx(1000 / one["seconds"])
    assert whole["updates_per_hour"] == pytest.approx(3600 / one["seconds"])
    document = {"title": "a plan", "stages": [one], "summary": whole}
    text = page.write(json.loads(json.dumps(document)))
    for words in ("stage 3: fits", "decode", "all-gather", "fsdp", "50%", "25%", "updates/hour", "rollout/decode x 4",
                  "Of its time: decode"):  # fmt: skip
        assert words in text


def test_a_stage_that_does_not_fit_says_what_to_change(compiled, mesh):
    where = parse_slice("h100:8")
    one = plan.analyse(compiled, mesh, where, {"decode": 4}, PHASES, "stage 1")
    one["hbm"] |= {"arguments": 90.0, "total": 95.0}
    one["fits"] = False
    text = page.write({"title": "", "stages": [one], "summary": plan.summary([one], 1)})
    assert "DOES NOT FIT" in text
    assert "mesh.fsdp" in text
    assert "No speeds" in text


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert plan.refused(ValueError("shapes differ"), "stage 1", parse_slice("v5e-16")) is None


def test_search_takes_the_fastest_that_fits():
    shapes = plan.mesh_shapes(16, tensor=(1, 4, 5))
    assert shapes == [{"data": 1, "fsdp": 16, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 4}]
    found = [{"fits": f, "seconds_per_update": s} for f, s in ((True, 3.0), (True, 2.0), (False, 1.0))]
    assert plan.best(found) is found[1]
    assert plan.best(found[2:]) is None


def test_model_flops_and_shares():
    # 6 a parameter, and four attention matmuls of 2 FLOPs a channel, twice again backward, over half the context.
    assert roofline.model_flops(10, 100, 2, 3, 4, 50) == 10 * (600 + 12 * 2 * 12 * 50)
    where = parse_slice("v5p-16")
    assert roofline.utilisation(8 * 459e12, 2.0, where) == pytest.approx(0.5)
    assert roofline.bandwidth_share(2765e9, 4.0, where) == pytest.approx(0.25)


# --- ahead of time for a TPU that is not here ---


def compilable(topology):
    where = parse_slice(topology)
    if not plan.has_compiler(where):
        pytest.skip(f"no compiler for {topology}")
    return where


def test_tpu_ahead_of_time():
    where = compilable("v5e:2x2")
    devices = plan.topology_devices(where)
    assert sorted(coordinates(devices)) == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    mesh = make_mesh(devices, fsdp=2, tensor=2)
    compiled = stage(mesh, jnp.bfloat16)
    one = plan.analyse(compiled, mesh, where, {"decode": 4}, PHASES, "stage 3")
    assert one["fits"]
    assert one["hbm"]["capacity"] == 15.75
    phases = {p["phase"]: p for p in one["phases"]}
    # The same sums as on the CPU, though dots have become convolutions and trip counts are not written down.
    assert phases["decode"]["flops"] == pytest.approx(4 * 2 * 2 * B * D * F * LAYERS / 4)
    assert phases["decode"]["compiler_s"] > 0
    assert {loop["scope"]: loop["trips"] for loop in one["loops"]} == {
        "update/grad/layers": LAYERS,
        "rollout/decode": 4.0,
        "rollout/decode/layers": LAYERS,
    }
    axes = {(c["phase"], c["axis"]) for c in one["collectives"]}
    assert {("decode", "fsdp"), ("decode", "tensor"), ("grad", "fsdp")} <= axes


def test_tpu_refuses_what_does_not_fit():
    where = compilable("v5e:2x2")
    sharding = jax.sharding.SingleDeviceSharding(plan.topology_devices(where)[0])
    x = jax.ShapeDtypeStruct((64, 1024, 1024, 256), jnp.bfloat16, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.jit(lambda x: jnp.sin(x) + jnp.roll(x, 1)).lower(x).compile()
    one = plan.refused(caught.value, "stage 2", where)
    assert not one["fits"]
    assert one["hbm_gib_per_chip"] > where.chip.hbm_bytes / GIB
    assert "stage 2: DOES NOT FIT" in page.write({"title": "", "stages": [one], "summary": plan.summary([one], 1)})


def test_gpu_ahead_of_time():
    where = compilable("h100:8")
    mesh = make_mesh(plan.topology_devices(where), fsdp=4, tensor=2)
    compiled = stage(mesh, jnp.bfloat16)
    one = plan.analyse(compiled, mesh, where, {"decode": 4}, PHASES, "stage 3")
    assert one["fits"]
    phases = {p["phase"]: p for p in one["phases"]}
    assert phases["decode"]["flops"] == pytest.approx(4 * 2 * 2 * B * D * F * LAYERS / 8)
    axes = {(c["phase"], c["axis"]) for c in one["collectives"]}
    assert {("decode", "fsdp"), ("decode", "tensor"), ("grad", "fsdp")} <= axes


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(plan, "has_compiler", lambda where: False)
    monkeypatch.setattr(
        "jax.experimental.topologies.get_topology_desc", lambda **_: (_ for _ in ()).throw(RuntimeError)
    )
    with pytest.raises(RuntimeError, match=r"v5e:2x2.*agemem_jax\[tpu\]"):
        plan.topology_devices(parse_slice("v5e:2x2"))


HIDDEN = """
HloModule m, is_scheduled=true, num_partitions=4

ENTRY %main (x: f32[64,64], y: f32[64,64]) -> (f32[256,64], f32[64,64]) {
  %x = f32[64,64]{1,0} parameter(0)
  %y = f32[64,64]{1,0} parameter(1)
  %start = (f32[64,64]{1,0}, f32[256,64]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  WORK
  %done = f32[256,64]{1,0} all-gather-done(%start)
  AFTER
  ROOT %t = (f32[256,64]{1,0}, f32[64,64]{1,0}) tuple(%done, %dot)
}
"""
DOT = "%dot = f32[64,64]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}"


@pytest.mark.parametrize("early", [True, False])
def test_what_starts_early_hides_behind_work(early):
    text = HIDDEN.replace("WORK", DOT if early else "").replace("AFTER", "" if early else DOT)
    costs, _ = walk(hlo.parse(text), {"fsdp": 4}, lambda scope: None)
    (gather,) = (c for c in costs if c.collective)
    assert gather.collective.overlaps == early
    assert gather.collective.payload == 4 * 64 * 64 * 4
    where = parse_slice("h100:4")
    (phase,) = roofline.phase_times(costs, {}, where, None)
    alone, work = phase["interconnect_s"], phase["compute_s"]
    assert work < alone
    assert phase["predicted_s"] == pytest.approx(alone if early else alone + sum(c.hbm for c in costs) / 3350e9)


def test_kernels_that_are_calls_have_their_flops():
    """What compilers call instead of compiling it: Pallas kernels with their estimate, cuBLAS, cuDNN's attention."""
    calls = {
        'custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"7","bytes_accessed":"5"}}': 7,
        'custom_call_target="__cublas$gemm", backend_config={"lhs_contracting_dimensions":["3"]}': 2 * 2**4 * 2,
        'custom_call_target="__cudnn$fmhaSoftmax", backend_config={"mask_type": "CAUSAL"}': 2 * 2**4 * 2,
        'custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"mask_type":"NO_MASK"}': 5 * 2 * 2**4 * 2,
        'custom_call_target="Sharding"': 0,
    }
    array = "f32[2,2,2,2]{3,2,1,0}"
    for attributes, flops in calls.items():
        text = f"""
ENTRY %main (q: f32[2,2,2,2]) -> f32[2,2,2,2] {{
  %q = {array} parameter(0)
  ROOT %c = {array} custom-call(%q, %q, %q), {attributes}
}}
"""
        costs, _ = walk(hlo.parse(text), {"fsdp": 1}, lambda scope: None)
        assert sum(c.flops for c in costs) == flops
        if "bytes_accessed" in attributes:
            assert sum(c.hbm for c in costs) == 5


GPU = """
HloModule jit_program, is_scheduled=true, num_partitions=1

%fused_slice (stack: bf16[28,512,256], layer: s32[]) -> bf16[1,512,256] {
  %stack = bf16[28,512,256]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %zero = s32[] constant(0)
  %piece = bf16[1,512,256]{2,1,0} dynamic-slice(%stack, %layer, %zero, %zero), dynamic_slice_sizes={1,512,256}
  ROOT %copy = bf16[1,512,256]{2,1,0} copy(%piece)
}

%gemm_fusion_dot_computation (x: bf16[32,4,128], w: bf16[512,256]) -> f32[4,32,256] {
  %w = bf16[512,256]{1,0} parameter(1)
  %split = bf16[4,128,256]{2,1,0} reshape(%w)
  %x = bf16[32,4,128]{2,1,0} parameter(0)
  %dot = f32[4,256,32]{1,2,0} dot(%split, %x), lhs_batch_dims={0}, lhs_contracting_dims={1}, rhs_batch_dims={1}, rhs_contracting_dims={2}, backend_config={"sizes":["16"]}
  ROOT %bitcast = f32[4,32,256]{2,1,0} bitcast(%dot)
}

ENTRY %main (stack: bf16[28,512,256], layer: s32[], x: bf16[32,4,128], q: bf16[1,4096,8,128], k: bf16[1,4096,2,128], n: s32[1]) -> (f32[4,32,256], bf16[1,8,4096,128]) {
  %stack = bf16[28,512,256]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %x = bf16[32,4,128]{2,1,0} parameter(2)
  %q = bf16[1,4096,8,128]{3,2,1,0} parameter(3)
  %k = bf16[1,4096,2,128]{3,2,1,0} parameter(4)
  %n = s32[1]{0} parameter(5)
  %slice_fusion = bf16[1,512,256]{2,1,0} fusion(%stack, %layer), kind=kCustom, calls=%fused_slice, metadata={op_name="jit(program)/decode/while/body/jit(dynamic_index_in_dim)/dynamic_slice"}, backend_config={"fusion_backend_config":{"kind":"__custom_fusion","custom_fusion_config":{"name":"dynamic_slice_fusion","kernel_index":0}}}
  %w = bf16[512,256]{1,0} bitcast(%slice_fusion)
  %gemm_fusion_dot = f32[4,32,256]{2,1,0} fusion(%x, %w), kind=kCustom, calls=%gemm_fusion_dot_computation, metadata={op_name="jit(program)/decode/dot_general"}, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion","block_level_fusion_config":{"num_warps":"2"}}}
  %attended = (bf16[1,8,4096,128]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k, %n, %n), custom_call_target="__cudnn$fmhaSoftmax", operand_layout_constraints={bf16[1,4096,8,128]{3,2,1,0}, bf16[1,4096,2,128]{3,2,1,0}, bf16[1,4096,2,128]{3,2,1,0}, s32[1]{0}, s32[1]{0}}, metadata={op_name="jit(program)/grad/self_attn/shard_map/dot_product_attention_fwd"}, backend_config={"cudnn_fmha_backend_config": {"fmha_scale": 0.088, "mask_type": "PADDING_CAUSAL", "bmm1_dot_dimension_numbers": {"lhs_contracting_dimensions": ["3"]}}}
  %out = bf16[1,8,4096,128]{3,1,2,0} get-tuple-element(%attended), index=0
  ROOT %t = (f32[4,32,256]{2,1,0}, bf16[1,8,4096,128]{3,1,2,0}) tuple(%gemm_fusion_dot, %out)
}
"""  # noqa: E501


def test_a_gpu_program_is_read():
    """As XLA writes it for an H100: a layer cut from its stack by a copy, a matmul in Triton, attention in cuDNN."""
    costs, _ = walk(hlo.parse(GPU), {"fsdp": 1}, lambda scope: None)
    cut, matmul, attended = costs
    layer, q = 512 * 256 * 2, 4096 * 8 * 128 * 2
    assert cut.hbm == 2 * layer + 4  # and its number
    assert (matmul.flops, matmul.hbm) == (2 * 32 * 512 * 256, 32 * 512 * 2 + layer + 4 * 32 * 256 * 4)
    half_of_the_pairs = 4096**2 / 2
    assert attended.flops == 2 * 2 * half_of_the_pairs * 8 * 128
    assert attended.hbm == pytest.approx(2 * q + 2 * q / 4, abs=16)
    decode, grad = roofline.phase_times(costs, {"decode": ["decode"], "grad": ["grad"]}, parse_slice("h100:1"), None)
    assert decode["predicted_s"] == pytest.approx(decode["hbm_s"])
    assert grad["predicted_s"] == pytest.approx(attended.flops / 989e12 / roofline.KERNEL_SHARE)


CUBLAS = """
HloModule jit_program, is_scheduled=true, num_partitions=1

%fused_concatenate (gate: f32[28,64,96], up: f32[28,64,96]) -> bf16[64,192] {
  %gate = f32[28,64,96]{2,1,0} parameter(0)
  %gate_narrow = bf16[28,64,96]{2,1,0} convert(%gate)
  %gate_cut = bf16[1,64,96]{2,1,0} slice(%gate_narrow), slice={[0:1], [0:64], [0:96]}
  %gate_layer = bf16[64,96]{1,0} bitcast(%gate_cut)
  %up = f32[28,64,96]{2,1,0} parameter(1)
  %up_narrow = bf16[28,64,96]{2,1,0} convert(%up)
  %up_cut = bf16[1,64,96]{2,1,0} slice(%up_narrow), slice={[0:1], [0:64], [0:96]}
  %up_layer = bf16[64,96]{1,0} bitcast(%up_cut)
  ROOT %both = bf16[64,192]{1,0} concatenate(%gate_layer, %up_layer), dimensions={1}
}

ENTRY %main (gate: f32[28,64,96], up: f32[28,64,96], x: bf16[32,64]) -> f32[32,192] {
  %gate = f32[28,64,96]{2,1,0} parameter(0)
  %up = f32[28,64,96]{2,1,0} parameter(1)
  %x = bf16[32,64]{1,0} parameter(2)
  %weights = bf16[64,192]{1,0} fusion(%gate, %up), kind=kInput, calls=%fused_concatenate
  %call = (f32[32,192]{1,0}, s8[33554432]{0}) custom-call(%x, %weights), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %y = f32[32,192]{1,0} get-tuple-element(%call), index=0
}
"""  # noqa: E501


def test_of_stacked_weights_a_layer_is_read_and_of_a_workspace_nothing():
    """As XLA writes a decoding layer for an H100 without Triton's matmuls: two weights of a stack are cut, narrowed and
    joined in one fusion, and cuBLAS gets 32 MiB that it does not fill."""
    joined, matmul = walk(hlo.parse(CUBLAS), {"fsdp": 1}, lambda scope: None)[0]
    layer = 64 * 96
    assert joined.hbm == 2 * layer * 4 + 2 * layer * 2
    assert matmul.hbm == 32 * 64 * 2 + 2 * layer * 2 + 32 * 192 * 4
    assert matmul.flops == 2 * 32 * 64 * 192
