"""One generation slot: prefill what is new in each row's context, then decode until every row has ended its turn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.models import kv_cache, qwen
from agemem_jax.rollout.sampling import sample
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.grammar import ToolGrammar
from agemem_jax.types import PAD_ID


class Policy(NamedTuple):
    """What generates: the architecture (static) with its parameters and the cached shared prefix."""

    config: qwen.ModelConfig
    params: dict
    prefix: kv_cache.PrefixCache


@struct.dataclass
class Generation:
    """What the rows wrote in one slot. Positions at or after `count` hold PAD_ID and zeros."""

    tokens: jax.Array  # [B, A] int32
    count: jax.Array  # [B] int32
    logp: jax.Array  # [B, A] float32 under the masked sampling distribution
    state: jax.Array  # [B, A] int32 grammar state before the token
    remaining: jax.Array  # [B, A] int32 budget before the token, itself included
    sampled: jax.Array  # [B, A] bool: a real choice, not the only token allowed


def prefill(policy, history, cached, tokens, length, on, chunk: int, few: int = 0):
    """Brings the KV history up to each row's length: a chunk of every row, then chunks of the rows that need most.

    Most rows have a short observation to read; a row whose context was edited reads much of it again, and the others
    should not wait for it with a chunk of nothing.

    Args:
      history: per-layer caches with room for capacity + chunk columns.
      cached: [B] int32 tokens whose keys and values are valid.
      tokens: [B, C] int32 contexts; length: [B] int32; on: [B] bool rows that generate now.
      chunk: tokens of a row at a time.
      few: rows in the chunks after the first; 0 = all. Needs a prefix that all rows share.

    Returns:
      (history, cached [B], hidden [B, D] of each row's last token; zeros where not `on`).
    """
    batch, capacity = tokens.shape
    end = jnp.where(on, length, cached)
    hidden = jnp.zeros((batch, policy.config.hidden_size), policy.config.dtype)
    padded = jnp.pad(tokens, ((0, 0), (0, chunk)))
    columns = jnp.arange(chunk)

    def more(carry):
        return (carry[1] < end).any()

    def read(history, cached, hidden, tokens, end):
        """One chunk of the given rows."""
        count = jnp.clip(end - cached, 0, chunk)
        piece = jnp.take_along_axis(tokens, jnp.minimum(cached, capacity)[:, None] + columns, 1)
        new, history = kv_cache.extend(policy.params, policy.config, policy.prefix, history, cached, piece, count)
        hidden = jnp.where((count > 0)[:, None], kv_cache.last_of(new, count), hidden)
        return history, cached + count, hidden

    def read_all(carry):
        return read(*carry, padded, end)

    def read_few(carry):
        history, *rest = carry
        _, rows = jax.lax.top_k(end - carry[1], few)
        part, *new = read(kv_cache.take_rows(history, rows), *(x[rows] for x in rest), padded[rows], end[rows])
        put = lambda x, new: x.at[rows].set(new, unique_indices=True)  # noqa: E731
        return kv_cache.put_rows(history, rows, part), *map(put, rest, new)

    carry = (history, cached, hidden)
    if not 0 < few < batch:
        return jax.lax.while_loop(more, read_all, carry)
    return jax.lax.while_loop(more, read_few, read_all(carry))


def generate(
    policy: Policy,
    history,
    cached: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
    on: jax.Array,
    grammar: ToolGrammar | None,
    start: jax.Array,
    ops: jax.Array,
    budget: jax.Array,
    width: int,
    chunk: int,
    temperature: jax.Array,
    key: jax.Array,
    columns: tuple[int, ...] = (),
    few: int = 0,
    noise_row: jax.Array | None = None,
):
    """Every row that is `on` writes one turn.

    Args:
      history, cached, tokens, length, on, chunk, few: see `prefill`; the context must end where the policy is to write.
      grammar, start, ops, budget, width, temperature, key, columns, noise_row: see `decode`.

    Returns:
      (history, cached [B], Generation). All tokens but a row's last are in the cache.
    """
    with jax.named_scope("prefill"):
        history, cached, hidden = prefill(policy, history, cached, tokens, length, on, chunk, few)
    with jax.named_scope("decode"):
        slot, generation = decode(
            policy, history, cached, hidden, on, grammar, start, ops, budget, width, temperature, key, columns,
            noise_row,
        )  # fmt: skip
        history = kv_cache.merge_slot(history, slot, cached)
    return history, cached + jnp.maximum(generation.count - 1, 0), generation


def decode(
    policy: Policy,
    history,
    cached: jax.Array,
    hidden: jax.Array,
    on: jax.Array,
    grammar: ToolGrammar | None,
    start: jax.Array,
    ops: jax.Array,
    budget: jax.Array,
    width: int,
    temperature: jax.Array,
    key: jax.Array,
    columns: tuple[int, ...] = (),
    noise_row: jax.Array | None = None,
):
    """Token after token of every row that is `on`, from the state of its last context token on.

    Args:
      history, cached: keys and values of the contexts, only read here.
      hidden: [B, D] the last layer's output at each row's last context token.
      grammar: None allows every token, and a turn ends with its budget.
      start: [B] int32 grammar state to begin in.
      ops: [B] int32 bit mask of the operations allowed in this turn.
      budget: [B] int32 tokens a row may write, at most `width`.
      temperature: [] float32; 0 = greedy.
      key: consumed; the noise is a function of (key, column, noise row).
      columns: ascending numbers of history columns. The loop is compiled for each of them and for the whole history,
        and runs on the fewest that hold every row: attending to unused columns is most of a step's memory traffic.
      noise_row: [B] int32 rows whose numbers these rows draw; None: each its own.

    Returns:
      (slot, Generation). The slot holds keys and values of all tokens but a row's last: that one is cached with what
      comes next, so that the loop ends before a forward pass that nobody reads.
    """
    batch = cached.shape[0]
    layout = policy.config.layout
    tokens_axis = "rows" if batch % layout.ways("tokens") else "tokens"

    def write(record, i, new):
        return jax.lax.dynamic_update_slice(record, new.astype(record.dtype)[:, None], (0, i))

    def choose(i, hidden, state, live, out):
        """Draws token i of every live row, records it and advances the grammar."""
        left = budget - i
        # The head is cut over its vocabulary; then each row's logits come to one device, and all devices are at work.
        logits = layout.constrain(qwen.logits(policy.params, policy.config, hidden), "rows", "vocab")
        logits = layout.constrain(logits, tokens_axis, None)
        uniform = jax.random.uniform(jax.random.fold_in(key, i), (batch,))
        if noise_row is not None:  # every device draws for all rows, so that none has to ask another
            uniform = layout.constrain(uniform, None)[noise_row]
        if grammar is None:
            token, logp = sample(logits, None, uniform, temperature)
            after, choice, more = state, live, live
        else:
            allowed = grammar_lib.allowed_tokens(grammar, state, left, ops)
            # The table may be padded.
            token, logp = sample(logits[:, : allowed.shape[1]], allowed, uniform, temperature)
            after = jnp.where(live, grammar_lib.advance(grammar, state, token), state)
            choice, more = live & (allowed.sum(-1) > 1), live & (after != grammar.end)
        new = (
            jnp.where(live, token, PAD_ID),
            jnp.where(live, logp, 0.0),
            jnp.where(live, state, 0),
            jnp.where(live, left, 0),
            choice,
        )
        out = tuple(write(o, i, n) for o, n in zip(out[:5], new, strict=True)) + (out[5] + live,)
        return new[0], after, more & (i + 1 < budget), out

    zeros = lambda dtype: jnp.zeros((batch, width), dtype)  # noqa: E731
    kinds = (jnp.int32, jnp.float32, jnp.int32, jnp.int32, bool)
    out = (*(zeros(dtype) for dtype in kinds), jnp.zeros_like(cached))
    token, state, live, out = choose(0, hidden, start, on, out)
    carry = (jnp.int32(1), token, state, live, kv_cache.init_slot(policy.config, batch, width), out)

    def loop(history, carry):
        def body(carry):
            i, token, state, live, slot, out = carry
            hidden, slot = kv_cache.decode_step(
                policy.params, policy.config, policy.prefix, history, cached, slot, i - 1, token
            )
            token, state, live, out = choose(i, hidden, state, live, out)
            return i + 1, token, state, live, slot, out

        return jax.lax.while_loop(lambda c: c[3].any() & (c[0] < width), body, carry)

    whole = kv_cache.columns(history)
    columns = (*(n for n in columns if n < whole), whole)
    if len(columns) == 1:
        carry = loop(history, carry)
    else:
        smallest = (jnp.where(on, cached, 0).max() > jnp.array(columns[:-1])).sum()
        at_width = lambda n: lambda carry: loop(kv_cache.first_columns(history, n), carry)  # noqa: E731
        carry = jax.lax.switch(smallest, [at_width(n) for n in columns], carry)
    _, _, _, _, slot, (written, logp, state, left, choice, count) = carry
    return slot, Generation(written, count, logp, state, left, choice)
