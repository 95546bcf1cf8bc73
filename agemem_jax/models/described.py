"""What a model's own files say of its architecture: Hugging Face's config.json, and the metadata of a GGUF file.

A field that this decoder has is read with transformers' default and checked; one that asks for what it lacks is refused
by name; one that is known to change nothing is passed over. Any other is named in a warning, not refused: transformers,
which the logits are compared with, passes over what its classes do not know, and files of tomorrow have new fields.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agemem_jax.errors import InputError
from agemem_jax.models.qwen import ModelConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Hugging Face's model_type and GGUF's general.architecture
MAX_SIZE = 2**31 - 1
UNQUANTISED = "give the model's unquantised weights (float32, bfloat16 or float16), or a GGUF file of it"

# Where transformers' configuration classes differ in what an absent field means.
HF_DEFAULTS = {
    "llama": {"max_position_embeddings": 2048},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}

# Fields of config.json that change the computation -> the values that do not.
HF_NEUTRAL = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "embedding_multiplier": (1.0,),
    "attention_multiplier": (),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "scale_emb": (1.0,),
    "scale_depth": (),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "alibi": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": ([],),
    "attn_temperature_tuning": (False,),
    "attention_chunk_size": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
}
# Of these, what the classes of a family do not read: Qwen2 always has biases on q, k and v, Qwen3 always its norms.
HF_UNREAD = {"llama": (), "qwen2": ("attention_bias", "mlp_bias"), "qwen3": ("mlp_bias", "use_qk_norm")}
HF_READ = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
    "original_max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "layer_types",
    "use_sliding_window", "sliding_window", "max_window_layers", "quantization_config",
}  # fmt: skip
# Names of things, ids of tokens, training, generation, and how transformers runs it.
HF_HARMLESS = {
    "architectures", "attention_dropout", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_name_or_path", "name_or_path", "auto_map", "base_model_name_or_path", "bos_token_id", "classifier_dropout",
    "chunk_size_feed_forward", "decoder_start_token_id", "do_sample", "dtype", "embd_pdrop", "eos_token_id",
    "early_stopping", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "hidden_dropout", "id2label",
    "initializer_range", "is_decoder", "label2id", "length_penalty", "max_length", "max_sequence_length", "min_length",
    "model_max_length", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads",
    "repetition_penalty", "resid_pdrop", "return_dict", "return_dict_in_generate", "rope_interleaved", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "tokenizer_model_max_length", "tokenizer_padding_side", "top_k", "top_p", "torch_dtype",
    "torchscript", "transformers_version", "transformers.js_config", "typical_p", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attn",
}  # fmt: skip

# Metadata of a GGUF file, after the architecture's name: that change the computation -> the values that do not.
GGUF_NEUTRAL = {
    "expert_count": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "full_attention_interval": (0, 1),
    "nextn_predict_layers": (0,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window_pattern": (),
    "rope.dimension_sections": (),
    "rope.scale_linear": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "swiglu_clamp_exp": (0,),
}
GGUF_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
GGUF_HARMLESS = {
    "vocab_size", "expert_used_count", "attention.layer_norm_epsilon", "rope.scaling.finetuned", "tensor_data_layout",
    "pooling_type", "classifier.output_labels", "decoder_start_token_id",
}  # fmt: skip


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError naming the file if it is damaged."""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); fetch it again") from error


@dataclass(frozen=True)
class Fields:
    """The fields of a file; what is not as it must be is refused with the file's, the field's name and the value.

    A field that is null counts as absent.
    """

    origin: str
    values: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def refuse(self, name: str, why: str) -> NoReturn:
        shown = repr(self.values.get(name))
        raise InputError(f"{self.origin}: {name} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {why}")

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number that counts something; without a default it must be there."""
        value = self.get(name, default)
        if value is None:
            raise InputError(f"{self.origin} lacks {name}; fetch the file again, or add what the model was made with")
        if isinstance(value, list):
            self.refuse(name, "sizes that differ from layer to layer are not supported")
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            self.refuse(name, f"must be a whole number between 1 and {MAX_SIZE}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number above 0."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            self.refuse(name, "must be a number greater than 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            self.refuse(name, "must be true or false")
        return value

    def table(self, name: str) -> dict:
        value = self.get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, "must be an object of fields, or null")
        return {key: item for key, item in value.items() if item is not None}

    def check_neutral(self, neutral: Mapping[str, tuple], prefix: str = "") -> None:
        """Refuses a field that changes the computation in a way that this decoder lacks."""
        for name, values in neutral.items():
            value = self.get(prefix + name)
            if value is not None and value not in values:
                only = f"; only {' or '.join(map(repr, values))} is" if values else ""
                self.refuse(prefix + name, f"is not supported{only}: this decoder would compute something else")


def config_from_hf(
    config: dict, dtype: str = "float32", param_dtype: str = "float32", origin: str = "config.json"
) -> ModelConfig:
    """The architecture of a Hugging Face config.json (as a dict) of a Qwen2, Qwen3 or Llama model.

    Absent fields have transformers' defaults. Raises InputError naming `origin`, the field and its value if the model
    is of another kind or uses a variant that this decoder lacks.
    """
    if not isinstance(config, dict):
        raise InputError(f"{origin} must hold a JSON object, not a {type(config).__name__}; fetch it again")
    fields = Fields(origin, config)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        fields.refuse("model_type", f"is not supported; supported: {', '.join(ARCHITECTURES)}")
    if quantised := fields.get("quantization_config"):
        method = quantised.get("quant_method", "an unknown one") if isinstance(quantised, dict) else quantised
        raise InputError(
            f"{origin}: quantization_config: quantised weights (method {method!r}) are not read; {UNQUANTISED}"
        )
    fields.check_neutral({name: values for name, values in HF_NEUTRAL.items() if name not in HF_UNREAD[kind]})
    _warn_of(origin, config.keys() - HF_NEUTRAL.keys() - HF_READ - HF_HARMLESS)
    default = HF_DEFAULTS[kind]
    layers, hidden, heads = (
        fields.size(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )  # fmt: skip
    _check_windows(fields, kind, layers)
    max_positions = fields.size("max_position_embeddings", default["max_position_embeddings"])
    theta, scaling = _hf_rope(fields, max_positions)
    kv_heads = default.get("num_key_value_heads", heads) if "num_key_value_heads" not in config else heads
    return _made(
        origin,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", kv_heads),
        head_dim=fields.size("head_dim", default.get("head_dim", max(1, hidden // heads))),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def _made(origin: str, **sizes) -> ModelConfig:
    """The ModelConfig, or its word on sizes that do not go together with the file's name before it."""
    try:
        return ModelConfig(**sizes)
    except ValueError as error:
        raise InputError(f"{origin}: {error}") from error


def _warn_of(origin: str, unknown: set[str]) -> None:
    if unknown:
        warnings.warn(f"{origin}: passed over, since not known here: {', '.join(sorted(unknown))}", stacklevel=4)


def _check_windows(fields: Fields, kind: str, layers: int) -> None:
    """Refuses layers that see a window of their past; Qwen's classes count them from `max_window_layers` on."""
    kinds = fields.get("layer_types", [])
    if not isinstance(kinds, list) or any(name != "full_attention" for name in kinds):
        fields.refuse("layer_types", "is not supported; only 'full_attention' is")
    windows = kind != "llama" and fields.flag("use_sliding_window", False)
    if windows and not kinds and fields.values.get("sliding_window", 4096) is not None:
        first = fields.get("max_window_layers", 28)
        if type(first) is not int or first < layers:
            fields.refuse(
                "use_sliding_window", f"is not supported: of {layers} layers those from {first} on have windows"
            )


def _hf_rope(fields: Fields, max_positions: int) -> tuple[float, tuple | None]:
    """rope_theta, and the scaling of positions as ModelConfig holds it.

    Transformers 5 keeps all in rope_parameters; before, rope_theta stood beside rope_scaling.
    """
    found = []
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.table(name)
        if any(isinstance(value, dict) for value in rope.values()):
            fields.refuse(name, "positions that differ by kind of layer are not supported")
        if rope.pop("partial_rotary_factor", 1.0) != 1.0:
            fields.refuse(name, "partial_rotary_factor is not supported; only 1.0 is")
        theta = rope.pop("rope_theta", None)
        old_name = rope.pop("type", "default")
        rope.setdefault("rope_type", old_name)
        rope.pop("finetuned", None)  # says who made the scaling, not what it is
        found.append((theta, rope, bool(fields.table(name).keys() - {"rope_theta"})))
    (old_theta, old, has_old), (new_theta, new, has_new) = found
    if has_old and has_new and old != new:
        fields.refuse("rope_scaling", f"rope_parameters says another thing ({new}); keep one of them")
    rope = dict(old if has_old else new)
    named = Fields(fields.origin, {"rope_theta": new_theta or old_theta or fields.get("rope_theta")})
    theta = named.number("rope_theta", 10000.0)
    if rope["rope_type"] in ("yarn", "llama3"):
        if "original_max_position_embeddings" in fields.values:
            rope["original_max_position_embeddings"] = fields.size("original_max_position_embeddings", max_positions)
        trained = rope.setdefault("original_max_position_embeddings", max_positions)
        if rope["rope_type"] == "yarn" and "factor" not in rope and type(trained) is int and trained > 0:
            rope["factor"] = max_positions / trained
    return theta, _scaling(rope)


def _scaling(rope: dict) -> tuple | None:
    """Hugging Face's rope fields as ModelConfig holds them; None if positions are not scaled."""
    return None if rope == {"rope_type": "default"} else tuple(sorted(rope.items()))


def hf_config(config: ModelConfig) -> dict:
    """The config.json with which transformers and vLLM build this architecture; `config_from_hf` reads it back.

    `max_position_embeddings` is left to transformers' default where `config` does not know it.

    Raises ValueError for a combination that none of the three families has.
    """
    if config.qkv_bias and config.qk_norm:
        raise ValueError("qkv_bias (Qwen2) and qk_norm (Qwen3) together: no Hugging Face family has both")
    kind = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    name = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[kind]
    described = {
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
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": dict(config.rope_scaling) if config.rope_scaling else None,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.param_dtype,
    }
    if config.max_positions is None:
        del described["max_position_embeddings"]
    return described


def config_from_gguf(
    metadata: Mapping[str, Any], vocab_size: int, tied: bool, dtype: str, param_dtype: str, origin: str
) -> ModelConfig:
    """The architecture that the metadata of a GGUF file describes; absent fields have llama.cpp's defaults.

    Args:
      vocab_size: rows of the token embeddings, which the metadata do not tell.
      tied: whether the file has no head of its own.

    Raises InputError as `config_from_hf`.
    """
    fields = Fields(origin, metadata)
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        fields.refuse("general.architecture", f"is not supported; supported: {', '.join(ARCHITECTURES)}")
    fields.check_neutral(GGUF_NEUTRAL, f"{kind}.")
    own = {name.removeprefix(f"{kind}.") for name in metadata if name.startswith(f"{kind}.")}
    _warn_of(origin, own - GGUF_NEUTRAL.keys() - GGUF_READ - GGUF_HARMLESS)
    size = lambda name, default=None: fields.size(f"{kind}.{name}", default)  # noqa: E731
    number = lambda name, default: fields.number(f"{kind}.{name}", default)  # noqa: E731
    heads, hidden = size("attention.head_count"), size("embedding_length")
    head_dim = size("attention.key_length", max(1, hidden // heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        if size(name, head_dim) != head_dim:
            fields.refuse(f"{kind}.{name}", f"is not supported; only the head size, {head_dim}, is")
    max_positions = size("context_length") if fields.get(f"{kind}.context_length") is not None else None
    window = fields.get(f"{kind}.attention.sliding_window", 0)
    if window != 0 and (type(window) is not int or window < (max_positions or MAX_SIZE)):
        fields.refuse(f"{kind}.attention.sliding_window", "layers that see a window of their past are not supported")
    rope = {"rope_type": fields.get(f"{kind}.rope.scaling.type", "none")}
    if rope["rope_type"] == "none":
        rope = {"rope_type": "default"}
    else:
        names = {"factor": "factor"}
        if rope["rope_type"] == "yarn":
            names |= {"original_max_position_embeddings": "original_context_length"}
            names |= {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
            rope |= {"original_max_position_embeddings": max_positions} if max_positions else {}
        values = {ours: fields.get(f"{kind}.rope.scaling.{theirs}") for ours, theirs in names.items()}
        rope |= {name: value for name, value in values.items() if value is not None}
    return _made(
        origin,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=size("feed_forward_length"),
        num_layers=size("block_count"),
        num_heads=heads,
        num_kv_heads=size("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=number("rope.freq_base", 10000.0),
        rope_scaling=_scaling(rope),
        max_positions=max_positions,
        rms_norm_eps=number("attention.layer_norm_rms_epsilon", 1e-6),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tie_word_embeddings=tied,
        dtype=dtype,
        param_dtype=param_dtype,
    )
