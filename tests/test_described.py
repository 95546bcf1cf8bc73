"""What config.json and GGUF metadata say of a model: read as transformers does, refused by name where it cannot be."""

import json
import warnings
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agemem_jax.config import ConfigError
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.models import described, qwen, weights
from agemem_jax.models.described import config_from_gguf, config_from_hf, hf_config
from agemem_jax.models.lora import Lora
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.training.setup import fitted, roomy_config, tokenizer_path
from configs import base, tiny

CLASSES = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
SIZES = dict(vocab_size=61, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2)
LINEAR = (("factor", 2.0), ("rope_type", "linear"))
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)


def hf(kind: str, **changes) -> dict:
    """A config.json with some fields set, or left out where ... stands."""
    model = ModelConfig(**SIZES, head_dim=16, max_positions=256, qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3")
    fields = hf_config(model) | changes
    return {name: value for name, value in fields.items() if value is not ...}


def read(kind: str, **changes) -> ModelConfig:
    """`config_from_hf`, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return config_from_hf(hf(kind, **changes))


def theirs(kind: str, **changes) -> transformers.PretrainedConfig:
    """The same config.json as transformers reads it."""
    return CLASSES[kind].from_dict(json.loads(json.dumps(hf(kind, **changes))))


ABSENT = ["num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings"]
ABSENT += ["max_position_embeddings", "hidden_act", "attention_bias"]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("absent", ABSENT)
def test_absent_fields_have_transformers_defaults(kind, absent):
    changes = {absent: ...} | (dict(num_attention_heads=32) if absent == "num_key_value_heads" else {})
    ours, model = read(kind, **changes), theirs(kind, **changes)
    assert ours.num_kv_heads == model.num_key_value_heads
    assert ours.head_dim == (getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads)
    assert ours.rms_norm_eps == model.rms_norm_eps and ours.rope_theta == model.rope_parameters["rope_theta"]
    assert ours.tie_word_embeddings == model.tie_word_embeddings
    assert ours.max_positions == model.max_position_embeddings


@pytest.mark.parametrize("kind", CLASSES)
def test_what_transformers_writes_is_known(kind):
    """All fields of its classes, and those that save_pretrained keeps."""
    model = CLASSES[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = config_from_hf(model.to_dict())
        assert config_from_hf(json.loads(model.to_json_string(use_diff=True))) == full
    assert (full.num_heads, full.max_positions) == (model.num_attention_heads, model.max_position_embeddings)


ROPES = {
    "default": dict(rope_type="default"),
    "linear": dict(rope_type="linear", factor=2.5),
    "llama3": LLAMA3 | dict(original_max_position_embeddings=64),
    "llama3, trained positions left out": LLAMA3,
    "yarn": YARN,
    "yarn, trained positions left out": dict(rope_type="yarn", factor=4.0),
    "yarn, its ramp": YARN | dict(beta_fast=16, beta_slow=2),
    "yarn, ramp not cut to whole pairs": YARN | dict(truncate=False),
    "yarn, given attention factor": YARN | dict(attention_factor=1.3),
    "yarn, mscale": YARN | dict(mscale=0.7, mscale_all_dim=1.2),
    "yarn, half of mscale": YARN | dict(mscale=0.7),
    "yarn, attention factor before mscale": YARN | dict(attention_factor=0.9, mscale=0.7, mscale_all_dim=1.2),
    "yarn, factor from positions": dict(rope_type="yarn", factor=None, original_max_position_embeddings=64),
}


@pytest.mark.parametrize("case", ROPES)
def test_scaled_positions_are_transformers(case):
    rope = ROPES[case]
    model = theirs("llama", rope_scaling=rope)
    if rope["rope_type"] == "default":
        frequency, factor = 10000.0 ** -(np.arange(8) / 8), 1.0
    else:
        frequency, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model)
    for written in (
        dict(rope_scaling=rope),
        dict(rope_scaling=..., rope_theta=..., rope_parameters=rope | dict(rope_theta=10000.0)),
        dict(rope_scaling={("type" if name == "rope_type" else name): value for name, value in rope.items()}),
        dict(rope_scaling=rope, rope_parameters=rope | dict(rope_theta=10000.0)),
    ):
        ours = read("llama", **written)
        mine, my_factor = qwen.rope_frequencies(ours)
        np.testing.assert_allclose(mine, np.asarray(frequency), rtol=2e-6)
        assert my_factor == pytest.approx(factor, rel=1e-6)
        assert config_from_hf(hf_config(ours)) == ours


def test_trained_positions_outside_the_rope_fields_count_first():
    changes = dict(rope_scaling=YARN, original_max_position_embeddings=32)
    frequency, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs("llama", **changes))
    np.testing.assert_allclose(qwen.rope_frequencies(read("llama", **changes))[0], np.asarray(frequency), rtol=2e-6)


def test_how_far_positions_reach():
    assert read("llama").longest_context == 256
    assert read("llama", rope_scaling=LLAMA3).longest_context == 256  # says already how far the scaled model goes
    assert read("llama", rope_scaling=dict(rope_type="linear", factor=2.5)).longest_context == 640
    assert read("llama", rope_scaling=YARN | dict(factor=8.0)).longest_context == 512
    assert read("llama", rope_scaling=YARN).longest_context == 256
    assert ModelConfig(**SIZES, head_dim=8).longest_context is None


REFUSED = {
    # name: (kind, changes, what the message must hold)
    "another model": ("llama", dict(model_type="gemma3"), "model_type = 'gemma3': is not supported; supported: llama"),
    "no kind": ("llama", dict(model_type=...), "model_type = None"),
    "activation": ("qwen2", dict(hidden_act="gelu"), "hidden_act = 'gelu': is not supported; only 'silu' is"),
    "biases": ("llama", dict(attention_bias=True), "attention_bias = True"),
    "biases of Qwen3": ("qwen3", dict(attention_bias=True), "attention_bias = True"),
    "biases of the MLP": ("llama", dict(mlp_bias=True), "mlp_bias = True"),
    "windows": ("qwen2", dict(use_sliding_window=True, max_window_layers=1), "use_sliding_window = True"),
    "windows by layer": ("qwen3", dict(layer_types=["full_attention", "sliding_attention"]), "layer_types = "),
    "both ways": ("qwen2", dict(is_causal=False), "is_causal = False"),
    "partial rotary": ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
    "partial rotary inside": (
        "llama", dict(rope_scaling=..., rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5)),
        "rope_parameters = {'rope_type': 'default', 'partial_rotary_factor': 0.5}: partial_rotary_factor is not",
    ),
    "rope by layer": (
        "qwen3", dict(rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=1e6))),
        "positions that differ by kind of layer are not supported",
    ),
    "dynamic": ("qwen2", dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_type='dynamic'; known: ['linear'"),
    "longrope": ("llama", dict(rope_scaling=dict(type="su", long_factor=[1.0], short_factor=[1.0])), "rope_type='su'"),
    "rope's unknown": ("llama", dict(rope_scaling=YARN | dict(mrope_section=[1, 2])), "['mrope_section'], which this"),
    "rope lacks": ("llama", dict(rope_scaling=dict(rope_type="linear")), "of type 'linear' lacks ['factor']"),
    "rope's factor": ("llama", dict(rope_scaling=YARN | dict(factor="4")), "factor='4'; a number greater than 0"),
    "rope's flag": ("llama", dict(rope_scaling=YARN | dict(truncate=1)), "truncate=1; true or false"),
    "rope's ramp": ("llama", dict(rope_scaling=LLAMA3 | dict(high_freq_factor=1.0)), "not greater than its low_freq"),
    "rope no object": ("llama", dict(rope_scaling="yarn"), "rope_scaling = 'yarn': must be an object"),
    "two ropes": (
        "llama", dict(rope_scaling=YARN, rope_parameters=dict(rope_type="linear", factor=2.0)), "keep one of them",
    ),
    "logit scale": ("llama", dict(logit_scale=0.5), "logit_scale = 0.5"),
    "granite's": ("llama", dict(attention_multiplier=0.01), "attention_multiplier = 0.01"),
    "gemma's": ("llama", dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
    "experts": ("llama", dict(num_local_experts=8), "num_local_experts = 8"),
    "layers without positions": ("llama", dict(no_rope_layers=[0, 1]), "no_rope_layers = [0, 1]"),
    "quantised": ("llama", dict(quantization_config=dict(quant_method="gptq", bits=4)), "method 'gptq') are not read"),
    "missing": ("llama", dict(hidden_size=...), "lacks hidden_size"),
    "null": ("llama", dict(num_hidden_layers=None), "lacks num_hidden_layers"),
    "text": ("llama", dict(num_hidden_layers="28"), "num_hidden_layers = '28': must be a whole number between 1"),
    "negative": ("llama", dict(hidden_size=-64), "hidden_size = -64"),
    "zero": ("llama", dict(num_attention_heads=0), "num_attention_heads = 0"),
    "fraction": ("llama", dict(vocab_size=61.0), "vocab_size = 61.0"),
    "true": ("llama", dict(num_hidden_layers=True), "num_hidden_layers = True"),
    "list": ("llama", dict(intermediate_size=[96, 64]), "sizes that differ from layer to layer are not supported"),
    "huge": ("llama", dict(hidden_size=10**12), "hidden_size = 1000000000000: must be a whole number between 1 and"),
    "heads": ("llama", dict(num_attention_heads=3), "num_heads=3 must be a multiple of num_kv_heads=2"),
    "odd head": ("llama", dict(head_dim=7), "head_dim=7 must be even"),
    "eps": ("llama", dict(rms_norm_eps=0), "rms_norm_eps = 0: must be a number greater than 0"),
    "theta": ("llama", dict(rope_theta="1e6"), "rope_theta = '1e6'"),
    "infinite": ("llama", dict(rope_theta=float("inf")), "rope_theta = inf"),
    "tied": ("llama", dict(tie_word_embeddings="true"), "tie_word_embeddings = 'true': must be true or false"),
    "positions": ("llama", dict(max_position_embeddings=-1), "max_position_embeddings = -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    kind, changes, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        config_from_hf(hf(kind, **changes), origin="somewhere/config.json")
    assert str(refused.value).startswith("somewhere/config.json") and message in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_no_object():
    for value in ([], "x", 3, None):
        with pytest.raises(InputError, match="must hold a JSON object"):
            config_from_hf(value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", dict(attention_bias=True)),  # its class has its biases whatever this says
        ("qwen2", dict(use_sliding_window=True, max_window_layers=2)),  # of two layers
        ("qwen2", dict(use_sliding_window=True, sliding_window=None, max_window_layers=0)),
        ("qwen3", dict(sliding_window=4096, use_sliding_window=False, layer_types=["full_attention"] * 2)),
        ("llama", dict(logit_scale=1.0, no_rope_layers=[], num_experts=0, partial_rotary_factor=1.0)),
        ("llama", dict(architectures=["LlamaForCausalLM"], pretraining_tp=2, attention_dropout=0.1)),
        ("llama", dict(rope_scaling=YARN | dict(finetuned=True))),
    ],
)
def test_what_changes_nothing_is_passed_over(kind, changes):
    rope = {name: value for name, value in changes.items() if name == "rope_scaling"}
    expected = read(kind, **({"rope_scaling": YARN} if rope else {}))
    assert read(kind, **changes) == expected


def test_what_nobody_knows_is_named():
    with pytest.warns(UserWarning, match="config.json: passed over, since not known here: frobnicate, wobble"):
        config_from_hf(hf("llama", wobble=3, frobnicate=True))


GGUF = {
    "block_count": 2, "context_length": 256, "embedding_length": 64, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def from_gguf(kind: str, **changes) -> ModelConfig:
    """`config_from_gguf` of metadata with changes named like `rope__freq_base`."""
    values = GGUF | {name.replace("__", "."): value for name, value in changes.items()}
    metadata = {f"{kind}.{name}": value for name, value in values.items() if value is not ...}
    return config_from_gguf(metadata | {"general.architecture": kind}, 61, True, "float32", "float32", "m.gguf")


def test_gguf_metadata():
    plain = from_gguf("llama")
    assert (plain.head_dim, plain.rope_theta, plain.max_positions, plain.rope_scaling) == (16, 10000.0, 256, None)
    assert from_gguf("qwen3", attention__head_count_kv=...).num_kv_heads == 4
    assert from_gguf("llama", context_length=...).longest_context is None
    for harmless in (
        dict(rope__dimension_count=16, attention__value_length=16, attention__key_length=16, expert_count=0),
        dict(rope__scaling__type="none", rope__scaling__attn_factor=1.0, attention__sliding_window=256),
        dict(vocab_size=61, pooling_type=3, tensor_data_layout="Meta AI original pth", attention__causal=True),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert from_gguf("llama", **harmless) == plain
    scaled = dict(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=64)
    yarn = from_gguf("qwen2", **scaled, rope__scaling__yarn_beta_fast=16.0, rope__scaling__yarn_ext_factor=1.0)
    assert dict(yarn.rope_scaling) == YARN | dict(beta_fast=16.0) and yarn.longest_context == 256
    linear = from_gguf("qwen2", rope__scaling__type="linear", rope__scaling__factor=2.0)
    assert dict(linear.rope_scaling) == dict(rope_type="linear", factor=2.0) and linear.longest_context == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(block_count=...), "lacks llama.block_count"),
        (dict(attention__head_count=[4, 2]), "llama.attention.head_count = [4, 2]: sizes that differ from layer"),
        (dict(attention__value_length=32), "llama.attention.value_length = 32: is not supported; only the head size"),
        (dict(rope__dimension_count=8), "llama.rope.dimension_count = 8"),
        (dict(attention__sliding_window=128), "llama.attention.sliding_window = 128"),
        (dict(attention__scale=0.01), "llama.attention.scale = 0.01"),
        (dict(attention__clamp_kqv=8.0), "llama.attention.clamp_kqv = 8.0"),
        (dict(attention__causal=False), "llama.attention.causal = False"),
        (dict(logit_scale=0.25), "llama.logit_scale = 0.25"),
        (dict(expert_count=8), "llama.expert_count = 8"),
        (dict(rope__scaling__attn_factor=1.2), "llama.rope.scaling.attn_factor = 1.2"),
        (dict(rope__scaling__yarn_log_multiplier=0.1), "llama.rope.scaling.yarn_log_multiplier = 0.1"),
        (dict(rope__scaling__type="longrope"), "rope_type='longrope'"),
        (dict(rope__scaling__type="linear"), "of type 'linear' lacks ['factor']"),
    ],
)
def test_gguf_metadata_that_this_decoder_lacks(changes, message):
    with pytest.raises(InputError) as refused:
        from_gguf("llama", **changes)
    assert str(refused.value).startswith("m.gguf") and message in str(refused.value)


def test_gguf_architectures_and_unknown_metadata():
    with pytest.raises(InputError, match="m.gguf: general.architecture = 'gemma3': is not supported"):
        from_gguf("gemma3")
    with pytest.warns(UserWarning, match="m.gguf: passed over, since not known here: wobble"):
        from_gguf("llama", wobble=1)
    read_here = described.GGUF_READ | described.GGUF_NEUTRAL.keys() | described.GGUF_HARMLESS
    groups = [getattr(gguf.Keys, name) for name in ("LLM", "Attention", "Rope")]
    theirs = {value for group in groups for value in vars(group).values() if str(value).startswith("{arch}.")}
    assert {f"{{arch}}.{name}" for name in ("rope.scaling.yarn_beta_fast", "attention.scale", "logit_scale")} <= theirs
    assert {name for name in read_here if f"{{arch}}.{name}" not in theirs} <= {
        "rope.scale_linear", "classifier.output_labels",
    }  # fmt: skip


def stub(prompt_tokens: int):
    """Pieces with a prompt of that many tokens."""
    return SimpleNamespace(prefix=SimpleNamespace(length=np.array([prompt_tokens])))


def run_config(**changes):
    """A config whose rows have 3600 tokens beside the prompt."""
    config = base.get_config()
    config.context.limit, config.context.capacity = 3000, 3600
    config.update_from_flattened_dict(changes)
    return config


def test_a_tokenizer_may_be_smaller_than_the_embedding_not_larger():
    model = ModelConfig(**SIZES, head_dim=8, max_positions=4000)
    for size in (50, 61):
        assert fitted(run_config(), model, size, stub(100)) == model
    config = run_config(**{"policy.weights": "some/model"})
    with pytest.raises(ConfigError) as refused:
        fitted(config, model, 62, stub(100))
    message = str(refused.value)
    assert message.startswith("policy.tokenizer = 'some/model': has 62 tokens") and "embeddings of 61" in message


def test_a_context_beyond_the_models_positions():
    model = ModelConfig(**SIZES, head_dim=8, max_positions=3700)
    config = run_config(**{"policy.weights": "some/model"})
    assert fitted(config, model, 61, stub(100)) == model
    with pytest.raises(ConfigError) as refused:
        fitted(config, model, 61, stub(101))
    message = str(refused.value)
    assert message.startswith("context.capacity = 3600: ") and "reaches 3701 positions" in message
    assert "'some/model' was made for 3700" in message and "(to 3599 at most)" in message and "rope_scaling" in message
    scaled = ModelConfig(**SIZES, head_dim=8, max_positions=2000, rope_scaling=LINEAR)
    assert fitted(config, scaled, 61, stub(101)) == scaled
    unknown = ModelConfig(**SIZES, head_dim=8)
    made = fitted(config, unknown, 61, stub(101))  # a policy that is made here was made for its rows
    assert made.longest_context == hf_config(made)["max_position_embeddings"] == 3701


@pytest.mark.parametrize(("target", "smaller"), [("k_proj", 16), ("q_proj", 32), ("down_proj", 64)])
def test_adapters_wider_than_their_projection(target, smaller):
    def model(rank: int) -> ModelConfig:
        return ModelConfig(**SIZES, head_dim=8, lora=Lora(rank, 1.0, (target,)))

    assert fitted(run_config(), model(smaller), 61, stub(100)).lora.rank == smaller
    with pytest.raises(ConfigError, match=f"policy.lora_rank = {smaller + 1}: above {target}'s smaller side"):
        fitted(run_config(), model(smaller + 1), 61, stub(100))


def test_where_the_tokenizer_lies(tmp_path):
    """Beside the weights, whichever of their files is named."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("{}")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert tokenizer_path(run_config(**{"policy.weights": str(path)}).policy) == str(tmp_path)
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "m.gguf").write_text("")
    assert tokenizer_path(run_config(**{"policy.weights": str(tmp_path / "gguf")}).policy).endswith("gguf/m.gguf")
    given = {"policy.weights": str(tmp_path), "policy.tokenizer": "elsewhere"}
    assert tokenizer_path(run_config(**given).policy) == "elsewhere"
    with pytest.raises(ConfigError, match="policy.tokenizer = ''"):
        tokenizer_path(run_config().policy)


def test_the_shipped_policy_reads_all_that_a_task_tells():
    """Then full_context is an upper bound: roomy_config would warn that the context ends before."""
    config = tiny.get_config()
    tokenizer = Tokenizer.load(config.policy.tokenizer)
    reach = weights.read_config("agemem_jax/assets/tiny").longest_context
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        roomy = roomy_config(config, build_pieces(tokenizer, config), reach)
    assert reach == 290 and roomy.context.capacity > config.context.capacity
