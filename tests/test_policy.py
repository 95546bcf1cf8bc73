"""The decoder against transformers on the same random weights, and its cache against its own full forward."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from agemem_jax.models import kv_cache, qwen, weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.sharding import Layout
from agemem_jax.training.setup import reference_params
from configs import tiny

SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, attn_implementation="eager")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)

encode_prefix = jax.jit(kv_cache.encode_prefix, static_argnums=1)
extend = jax.jit(kv_cache.extend, static_argnums=1)
decode_step = jax.jit(kv_cache.decode_step, static_argnums=1)

FAMILIES = {
    "qwen2_tied": (transformers.Qwen2Config, dict(tie_word_embeddings=True, rope_theta=1e6)),
    "qwen2_untied_yarn": (transformers.Qwen2Config, dict(tie_word_embeddings=False, rope_scaling=YARN)),
    "qwen3_tied": (transformers.Qwen3Config, dict(tie_word_embeddings=True, head_dim=12)),
    "qwen3_untied": (transformers.Qwen3Config, dict(tie_word_embeddings=False, head_dim=20)),
    "llama3_tied": (transformers.LlamaConfig, dict(tie_word_embeddings=True, rope_scaling=LLAMA3, rope_theta=5e5)),
    "llama_untied": (transformers.LlamaConfig, dict(tie_word_embeddings=False)),
    "llama_linear": (transformers.LlamaConfig, dict(rope_scaling=dict(rope_type="linear", factor=2.5))),
}


def hf_model(family: str) -> transformers.PreTrainedModel:
    """A random model whose norms and biases are not at their neutral values and whose logits are of order one."""
    make, fields = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(make(**SIZES, **fields)).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model


def converted(model: transformers.PreTrainedModel) -> tuple[ModelConfig, dict]:
    config = weights.config_from_hf(model.config.to_dict())
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = weights.Tensors("test", {name: value.shape for name, value in state.items()}, state.__getitem__)
    return config, weights.assemble(config, tensors)


@functools.cache
def small_policy() -> tuple[ModelConfig, dict]:
    """A policy with every variant at once, far enough from its initial values that mistakes show."""
    config = ModelConfig(61, 32, 48, 3, 4, 2, 12, qkv_bias=True, qk_norm=True, tie_word_embeddings=False)
    params = qwen.init_params(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return config, jax.tree.unflatten(tree, noisy)


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, prefix_tokens, prefix_length, tokens):
    prefix, rows = qwen.rows_forward(params, config, prefix_tokens, prefix_length, tokens)
    return qwen.logits(params, config, prefix), qwen.logits(params, config, rows)


def full_logits(params, config, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Logits of whole sequences, each its own row without a prefix, padded to the longest."""
    width = max(map(len, sequences))
    tokens = np.zeros((len(sequences), 1, width), np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, 0, : len(sequence)] = sequence
    n = len(sequences)
    _, out = forward(params, config, jnp.zeros((n, 0), jnp.int32), jnp.zeros(n, jnp.int32), tokens)
    return [np.asarray(out[row, 0, : len(sequence)]) for row, sequence in enumerate(sequences)]


def assert_close(ours, theirs, tolerance: float = 1e-4):
    """Maximal difference below `tolerance` of the logits' scale."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


def random_tokens(rng, *shape) -> np.ndarray:
    return rng.integers(1, 61, shape).astype(np.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family):
    model = hf_model(family)
    config, params = converted(model)
    rng = np.random.default_rng(0)
    sequences = [random_tokens(rng, length) for length in (50, 33, 1)]
    ours = full_logits(params, config, sequences)
    for sequence, logits in zip(sequences, ours, strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor(sequence[None], dtype=torch.long)).logits[0].numpy()
        assert np.abs(theirs).max() > 1.0
        assert_close(logits, theirs)


@pytest.mark.parametrize("family", ["qwen2_tied", "qwen3_untied", "llama3_tied"])
def test_prefix_and_cache_equal_transformers(family):
    """Decoding through prefix, history and slot gives the logits that transformers gives for the whole sequence."""
    model = hf_model(family)
    config, params = converted(model)
    tokens = random_tokens(np.random.default_rng(1), 20)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens[None], dtype=torch.long)).logits[0].numpy()
    prefix, last = encode_prefix(params, config, tokens[None, :8], jnp.array([8]))
    cached = jnp.zeros(1, jnp.int32)
    history = kv_cache.init_history(config, 1, 16)
    hidden, history = extend(params, config, prefix, history, cached, tokens[None, 8:13], jnp.array([5]))
    slot, states = kv_cache.init_slot(config, 1, 7), [last, *hidden[0][:, None]]
    for column in range(7):
        token = jnp.array(tokens[13 + column : 14 + column])
        state, slot = decode_step(params, config, prefix, history, cached + 5, slot, column, token)
        states.append(state)
    assert_close(qwen.logits(params, config, jnp.concatenate(states)), theirs[7:])


def test_prefix_and_rows_equal_whole_sequences():
    config, params = small_policy()
    rng = np.random.default_rng(2)
    prefix_tokens, prefix_length = random_tokens(rng, 2, 9), np.array([9, 4])
    tokens, lengths = random_tokens(rng, 2, 3, 11), np.array([[11, 5, 1], [2, 8, 11]])
    prefix_out, out = forward(params, config, prefix_tokens, prefix_length, tokens)
    for n in range(2):
        prefix = prefix_tokens[n, : prefix_length[n]]
        assert_close(prefix_out[n, : len(prefix)], full_logits(params, config, [prefix])[0])
        whole = full_logits(params, config, [np.concatenate([prefix, tokens[n, r, : lengths[n, r]]]) for r in range(3)])
        for r in range(3):
            assert_close(out[n, r, : lengths[n, r]], whole[r][len(prefix) :])


def test_padding_changes_nothing():
    """More padding, other padding tokens and other rows beside it leave a row's logits as they were."""
    config, params = small_policy()
    rng = np.random.default_rng(3)
    prefix, row = random_tokens(rng, 1, 6), random_tokens(rng, 1, 1, 7)
    _, expected = forward(params, config, prefix, np.array([6]), row)
    tokens = random_tokens(rng, 2, 4, 19)
    tokens[1, 2, :7] = row[0, 0]
    wide_prefix = random_tokens(rng, 2, 13)
    wide_prefix[1, :6] = prefix[0]
    _, out = forward(params, config, wide_prefix, np.array([13, 6]), tokens)
    assert_close(out[1, 2, :7], expected[0, 0], 1e-5)
    assert np.isfinite(np.asarray(out)).all()


def test_gradients_equal_those_of_whole_sequences_and_remat_changes_nothing():
    config, params = small_policy()
    rng = np.random.default_rng(4)
    prefix, rows = random_tokens(rng, 1, 5), random_tokens(rng, 1, 3, 6)
    target = jax.random.normal(jax.random.key(5), (3, 6, config.vocab_size))

    def split(params, config):
        return (forward(params, config, prefix, jnp.array([5]), rows)[1][0] * target).sum()

    def whole(params):
        tokens = jnp.concatenate([jnp.broadcast_to(prefix, (3, 5)), rows[0]], 1)[:, None]
        nothing = jnp.zeros((3, 0), jnp.int32), jnp.zeros(3, jnp.int32)
        return (forward(params, config, *nothing, tokens)[1][:, 0, 5:] * target).sum()

    expected = jax.jit(jax.grad(whole))(params)
    for remat in ("none", "minimal", "full"):
        got = jax.jit(jax.grad(split), static_argnums=1)(params, dataclasses.replace(config, remat=remat))
        jax.tree.map(lambda g, e: assert_close(g, e, 1e-4), got, expected)


def test_a_reference_in_the_activations_dtype_is_the_same():
    """Whatever uses parameters casts them first."""
    config, params = small_policy()
    model = dataclasses.replace(config, dtype="bfloat16")
    tokens = jnp.ones((1, 2, 8), jnp.int32)

    @jax.jit
    def logits(params):
        hidden = qwen.rows_forward(params, model, tokens[0, :1], jnp.array([8]), tokens)[1]
        return qwen.logits(params, model, hidden)

    setting = tiny.get_config()
    setting.policy.dtype = "bfloat16"
    reference = reference_params(setting, jax.tree.map(jnp.array, params))
    assert {x.dtype for x in jax.tree.leaves(reference)} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(logits(params), logits(reference))


def test_minimal_remat_runs_no_projection_again():
    """A layer has 7 of them, for prompt and rows each; the last is needed by nothing that runs again."""
    config, params = small_policy()
    tokens = jnp.ones((1, 2, 8), jnp.int32)

    def matmuls(remat):
        model = dataclasses.replace(config, remat=remat)
        loss = lambda params: qwen.rows_forward(params, model, tokens[0, :1], jnp.array([8]), tokens)[1].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")

    none, minimal, full = (matmuls(remat) for remat in ("none", "minimal", "full"))
    assert (minimal - none, full - minimal) == (6, 2 * 6)  # attention's: scores and mean, 1 + 2 sets of keys


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_prefill_in_chunks_decode_and_merge_equal_full_forward(scan_layers):
    """Rows at uneven lengths: chunked prefill, token by token decoding, merge, and on again; then an edit."""
    config, params = small_policy()
    config = dataclasses.replace(config, scan_layers=scan_layers)
    rng = np.random.default_rng(6)
    prompts, rows, capacity, width = 2, 6, 40, 5
    prefix_tokens, prefix_length = random_tokens(rng, prompts, 7), np.array([7, 3])
    context = random_tokens(rng, rows, 30)
    prefix, _ = encode_prefix(params, config, prefix_tokens, prefix_length)
    history = kv_cache.init_history(config, rows, capacity)
    cached = np.zeros(rows, np.int32)

    def expected(context):
        heads = [prefix_tokens[b // 3, : prefix_length[b // 3]] for b in range(rows)]
        whole = full_logits(params, config, [np.concatenate([h, c]) for h, c in zip(heads, context, strict=True)])
        return [out[len(h) :] for out, h in zip(whole, heads, strict=True)]

    def check(hidden, at, count, want):
        logits = np.asarray(qwen.logits(params, config, hidden))
        for b in range(rows):
            if count[b]:
                assert_close(logits[b, : count[b]], want[b][at[b] : at[b] + count[b]])

    def run_chunk(context, count):
        nonlocal history, cached
        pieces = random_tokens(rng, rows, width)  # what lies after `count` must not matter
        for b in range(rows):
            pieces[b, : count[b]] = context[b, cached[b] : cached[b] + count[b]]
        hidden, history = extend(params, config, prefix, history, cached, pieces, count)
        check(hidden, cached, count, expected(context))
        last = np.asarray(kv_cache.last_of(hidden, count))
        for b in range(rows):
            assert np.array_equal(last[b], np.asarray(hidden)[b, max(count[b] - 1, 0)])
        cached = cached + count

    run_chunk(context, np.array([5, 0, 3, 1, 4, 2]))
    run_chunk(context, np.array([2, 5, 0, 5, 1, 3]))

    slot, written = kv_cache.init_slot(config, rows, 6), np.array([6, 2, 0, 4, 1, 6])
    want = expected(context)
    for column in range(6):  # rows that have ended go on with tokens that mean nothing
        token = np.where(column < written, context[np.arange(rows), cached + column], random_tokens(rng, rows))
        hidden, slot = decode_step(params, config, prefix, history, cached, slot, column, token)
        check(hidden[:, None], cached + column, (column < written).astype(int), want)
    history = kv_cache.merge_slot(history, slot, jnp.asarray(cached))
    cached = cached + written
    run_chunk(context, np.array([1, 4, 5, 0, 2, 5]))

    # An edit: rows are cut back to different places and go on with other tokens.
    cached = np.array([3, 0, 1, 8, 2, 11])
    context = np.where(np.arange(30) < cached[:, None], context, random_tokens(rng, rows, 30))
    run_chunk(context, np.array([5, 5, 2, 0, 5, 3]))
    run_chunk(context, np.array([0, 5, 5, 1, 2, 3]))


def test_split_layers_and_an_empty_prefix_give_the_same_decoding():
    config, params = small_policy()
    rng = np.random.default_rng(7)
    tokens = random_tokens(rng, 2, 6)
    want = full_logits(params, config, list(tokens))
    split = kv_cache.split_layers(params, config)
    prefix, last = encode_prefix(split, config, np.zeros((1, 0), np.int32), np.array([0]))
    assert last.shape == (1, config.hidden_size) and not last.any()
    zero = jnp.zeros(2, jnp.int32)
    history = kv_cache.init_history(config, 2, 8)
    hidden, history = extend(split, config, prefix, history, zero, tokens[:, :5], zero + 5)
    slot = kv_cache.init_slot(config, 2, 1)
    state, _ = decode_step(split, config, prefix, history, zero + 5, slot, 0, tokens[:, 5])
    ours = qwen.logits(params, config, jnp.concatenate([hidden, state[:, None]], 1))
    assert_close(ours, np.stack(want))


@pytest.mark.parametrize(("platform", "size", "split"), [("cpu", 1, True), ("gpu", 1, False), ("tpu", 4, True)])
def test_layers_are_split_for_decoding_but_on_an_accelerator_alone(platform, size, split):
    config, params = small_policy()
    mesh = SimpleNamespace(size=size, devices=np.array([SimpleNamespace(platform=platform)] * size))
    given = kv_cache.for_decoding(params, dataclasses.replace(config, layout=Layout(mesh)))["layers"]
    assert (len(given) == config.num_layers and given[0]["mlp"]["up_proj"]["kernel"].ndim == 2) == split
    assert (given is params["layers"]) != split


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_narrow_activations_stay_near_float32(dtype, tolerance):
    config, params = small_policy()
    half = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    tokens = random_tokens(np.random.default_rng(8), 1, 2, 9)
    args = (np.zeros((1, 0), np.int32), np.array([0]), tokens)
    _, full = forward(params, config, *args)
    _, low = forward(jax.tree.map(lambda x: x.astype(dtype), params), half, *args)
    assert low.dtype == jnp.float32
    assert np.abs(np.asarray(low) - np.asarray(full)).mean() < tolerance * np.abs(np.asarray(full)).mean()


@pytest.mark.parametrize("variant", [{}, dict(qkv_bias=True), dict(qk_norm=True, tie_word_embeddings=False)])
def test_logical_axes_name_every_axis_of_every_parameter(variant):
    config = ModelConfig(31, 16, 24, 2, 2, 1, 8, **variant)
    params = jax.eval_shape(lambda key: qwen.init_params(config, key), jax.random.key(0))
    axes = qwen.logical_axes(config)
    assert jax.tree.structure(params) == jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple))
    jax.tree.map(lambda p, a: pytest.fail(f"{p.shape} {a}") if len(a) != p.ndim else None, params, axes)


def test_initial_parameters():
    config = ModelConfig(500, 64, 96, 2, 4, 2, 16, qkv_bias=True)
    params = qwen.init_params(config, jax.random.key(0))
    kernel = params["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.shape == (2, 64, 96) and abs(kernel.std() - 0.02) < 0.001
    assert not np.allclose(kernel[0], kernel[1])
    assert abs(params["embed_tokens"]["embedding"].std() - 0.02) < 0.001
    assert (params["norm"]["weight"] == 1).all() and (params["layers"]["self_attn"]["q_proj"]["bias"] == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_heads=3), "num_heads=3"),
        (dict(head_dim=7), "head_dim=7"),
        (dict(rope_scaling=(("factor", 2.0), ("rope_type", "dynamic"))), "dynamic"),
        (dict(rope_scaling=(("rope_type", "linear"),)), "factor"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2,
                              num_kv_heads=2, head_dim=4), **fields})  # fmt: skip
