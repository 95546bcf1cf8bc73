"""A decoder as the store's encoder: it reads a text alone, without the shared prompt, and its states become a vector.

Two kinds: "policy_hidden", a hidden state of the frozen policy that training begins with, and "model", an embedding
model with the policy's vocabulary. Both are the decoder of qwen.py, of which the first layers are run.
"""

import dataclasses

import jax
import jax.numpy as jnp

from agemem_jax.memory import context
from agemem_jax.memory.encoder import unit
from agemem_jax.models import qwen
from agemem_jax.models.attention import Keys
from agemem_jax.models.kv_cache import last_of
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.sharding import lay_out
from agemem_jax.types import Text

READ = ("embed_tokens", "layers", "norm")  # of a decoder's parameters


@dataclasses.dataclass(frozen=True)
class Reader:
    """How texts are read (static); the parameters are `World.reader`."""

    model: ModelConfig  # without adapters
    layers: int  # that are run; after all of them comes the norm that the head has
    pooling: str  # "mean" of the text's tokens, each at the same norm, or "last" token
    opening: tuple[int, ...] = ()  # tokens before every text
    instruction: tuple[int, ...] = ()  # tokens between these and a query
    ending: tuple[int, ...] = ()  # tokens after every text, the last of which an embedding model sums it up in
    shares_frozen: bool = False  # the parameters are the run's frozen ones, of which no copy is kept

    @property
    def size(self) -> int:
        """E, the width of a vector."""
        return self.model.hidden_size


def read(params: dict, reader: Reader, text: Text, is_query: jax.Array | bool) -> jax.Array:
    """Unit vectors of texts `[B, W]`, `is_query` `[B]` or for all: `[B, E]` float32, zero for an empty text.

    Pooled "mean", each token's state is divided by its norm first: in trained decoders the first token's is many times
    that of all others, whatever the text says.
    """
    with jax.named_scope("encode"):
        there = text.length > 0

        def fixed(ids: tuple[int, ...], on: jax.Array | bool) -> Text:
            return Text(jnp.asarray(ids, jnp.int32), jnp.where(there & on, len(ids), 0))

        opening, ending = fixed(reader.opening, True), fixed(reader.ending, True)
        instruction = fixed(reader.instruction, is_query)
        whole = context.pack([opening, instruction, text, ending])
        states = hidden_states(params, reader, whole.tokens)
        if reader.pooling == "last":
            pooled = last_of(states, whole.length)
        else:
            place, first = jnp.arange(whole.tokens.shape[1]), opening.length + instruction.length
            own = (place >= first[:, None]) & (place < (first + text.length)[:, None])
            pooled = jnp.sum(jnp.where(own[..., None], unit(states), 0), axis=1)
        return unit(jnp.where(there[:, None], pooled, 0))


def hidden_states(params: dict, reader: Reader, tokens: jax.Array) -> jax.Array:
    """What the last of the reader's layers puts out for tokens `[B, W]`, padded at their end: `[B, W, D]` float32."""
    model = reader.model
    rope = qwen.rope_table(model, jnp.arange(tokens.shape[1])[None])
    attend = lambda q, k, v: (qwen.attend_to(model, q, [Keys(k, v, offset=0)]), None)  # noqa: E731

    def layer(i: jax.Array, x: jax.Array) -> jax.Array:
        one = jax.tree.map(lambda p: jax.lax.dynamic_index_in_dim(p, i, 0, keepdims=False), params["layers"])
        return qwen.apply_layer(one, model, x, rope, attend)[0]

    # A loop: one layer's parameters at a time are copied, and none of those that are not run.
    x = jax.lax.fori_loop(0, reader.layers, layer, qwen.embed(params, model, tokens))
    if reader.layers == model.num_layers:
        x = qwen.RMSNorm(model).apply({"params": params["norm"]}, x)
    return x.astype(jnp.float32)


def needed(params: dict) -> dict:
    """The part of a decoder's parameters (or their shapes, axes, shardings) that a reader needs."""
    return {name: params[name] for name in READ}


def first_layers(params: dict, reader: Reader) -> dict:
    """A copy of the parameters that are read."""
    return needed(params) | {"layers": jax.tree.map(lambda x: x[: reader.layers], params["layers"])}


@jax.named_scope("layout")
def to_layout(params: dict, reader: Reader) -> dict:
    """As qwen.to_layout: once for all texts of a program."""
    axes = needed(qwen.logical_axes(reader.model))
    return lay_out(needed(params), axes, reader.model.layout, jnp.dtype(reader.model.dtype))
