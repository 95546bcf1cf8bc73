"""A policy as a folder that transformers, vLLM and `policy.weights` load: weights, tokenizer, chat template."""

from pathlib import Path

from ml_collections import ConfigDict

from agemem_jax.data.chat_template import chat_template
from agemem_jax.data.prompts import system_message
from agemem_jax.data.tokenizer import Tokenizer, write_hf
from agemem_jax.models import weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.training.setup import tokenizer_path


def write_policy(
    folder: Path,
    config: ConfigDict,
    model: ModelConfig,
    params: dict,
    dtype: str,
    shard_bytes: int = weights.SHARD_BYTES,
) -> None:
    """Writes the policy `params` of a run's config, adapters merged, with its tokenizer beside it.

    The chat template lays messages out as in training. Arguments are those of `weights.save_hf`.
    """
    source = tokenizer_path(config.policy)
    tokenizer = Tokenizer.load(source)
    ends = tokenizer.end_ids()
    token_ids = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": tokenizer.pad_id}
    # The distribution that was trained, where a program samples and is not told otherwise.
    sampling = {"do_sample": True, "temperature": config.rollout.temperature, "top_k": 0, "top_p": 1.0}
    chat, prompt = tokenizer.chat_pieces(config.policy.date_string), system_message(tokenizer, config.tools)
    write_hf(source, folder, chat_template(chat, prompt, config.tools, tokenizer.is_small))
    weights.save_hf(folder, model, params, dtype, shard_bytes, token_ids, sampling)
