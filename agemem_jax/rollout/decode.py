"""One generation slot: prefill what is new in each row's context, then decode until every row has ended its turn.

With a decode width above 1 each step runs several tokens of each row: its last one, and what it will probably write
next (drafts.py). Every column is drawn as it would be alone: from its own masked distribution, with the noise of its
own column. So what is written does not depend on the width, and a wrong proposal costs a column that is run again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from agemem_jax.models import kv_cache, qwen
from agemem_jax.rollout import drafts
from agemem_jax.rollout.sampling import sample
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.grammar import ToolGrammar
from agemem_jax.types import PAD_ID


class Policy(NamedTuple):
    """What generates: the architecture (static) with its parameters and the cached shared prefix."""

    config: qwen.ModelConfig
    params: dict
    prefix: kv_cache.PrefixCache


class Turns(NamedTuple):
    """What is to be written in a slot."""

    on: jax.Array  # [B] bool rows that write
    grammar: ToolGrammar | None  # None allows every token, and a turn ends with its budget
    start: jax.Array  # [B] int32 grammar state to begin in
    ops: jax.Array  # [B] int32 bit mask of the operations allowed
    budget: jax.Array  # [B] int32 tokens a row may write, at most `width`
    width: int
    temperature: jax.Array  # [] float32; 0 = greedy
    key: jax.Array  # the noise is a function of (key, column, noise row)
    noise_row: jax.Array | None = None  # [B] int32 rows whose numbers these rows draw; None: each its own
    # Ascending numbers of history columns. The loop is compiled for each of them and for the whole history, and runs on
    # the fewest that hold every row: attending to unused columns is most of a step's memory traffic.
    columns: tuple[int, ...] = ()


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
    turns: Turns,
    chunk: int,
    few: int = 0,
    decode_width: int = 1,
):
    """Every row that is on writes one turn.

    Args:
      history, cached, tokens, length, chunk, few: see `prefill`; the context must end where the policy is to write.
      decode_width: tokens of a row that a step may run; see `decode_ahead`.

    Returns:
      (history, cached [B], Generation). All tokens but a row's last are in the cache.
    """
    with jax.named_scope("prefill"):
        history, cached, hidden = prefill(policy, history, cached, tokens, length, turns.on, chunk, few)
    with jax.named_scope("decode"):
        if decode_width == 1:
            slot, generation = decode(policy, history, cached, hidden, turns)
        else:
            slot, generation = decode_ahead(policy, history, cached, hidden, turns, tokens, decode_width)
        history = kv_cache.merge_slot(history, slot, cached)
    return history, cached + jnp.maximum(generation.count - 1, 0), generation


def decode(policy: Policy, history, cached: jax.Array, hidden: jax.Array, turns: Turns):
    """Token after token of every row that is on, from the state of its last context token on.

    Args:
      history, cached: keys and values of the contexts, only read here.
      hidden: [B, D] the last layer's output at each row's last context token.

    Returns:
      (slot, Generation). The slot holds keys and values of all tokens but a row's last: that one is cached with what
      comes next, so that the loop ends before a forward pass that nobody reads.
    """
    batch, width, grammar = cached.shape[0], turns.width, turns.grammar

    def write(record, i, new):
        return jax.lax.dynamic_update_slice(record, new.astype(record.dtype)[:, None], (0, i))

    def choose(i, hidden, state, live, out):
        """Draws token i of every live row, records it and advances the grammar."""
        left = turns.budget - i
        uniform = jax.random.uniform(jax.random.fold_in(turns.key, i), (batch,))
        if turns.noise_row is not None:  # every device draws for all rows, so that none has to ask another
            uniform = policy.config.layout.constrain(uniform, None)[turns.noise_row]
        token, logp, choice = draw(policy, hidden, turns, state, left, turns.ops, uniform)
        after, more = state, live
        if grammar is not None:
            after = jnp.where(live, grammar_lib.advance(grammar, state, token), state)
            more = live & (after != grammar.end)
        new = (
            jnp.where(live, token, PAD_ID),
            jnp.where(live, logp, 0.0),
            jnp.where(live, state, 0),
            jnp.where(live, left, 0),
            live & choice,
        )
        out = tuple(write(o, i, n) for o, n in zip(out[:5], new, strict=True)) + (out[5] + live,)
        return new[0], after, more & (i + 1 < turns.budget), out

    out = (*empty_records(batch, width), jnp.zeros_like(cached))
    token, state, live, out = choose(0, hidden, turns.start, turns.on, out)
    carry = (jnp.int32(1), token, state, live, kv_cache.init_slot(policy.config, batch, width), out)

    def step(history, carry):
        i, token, state, live, slot, out = carry
        hidden, slot = kv_cache.decode_step(
            policy.params, policy.config, policy.prefix, history, cached, slot, i - 1, token
        )
        token, state, live, out = choose(i, hidden, state, live, out)
        return i + 1, token, state, live, slot, out

    going = lambda c: c[3].any() & (c[0] < width)  # noqa: E731
    carry = run_steps(step, going, carry, history, jnp.where(turns.on, cached, 0).max(), turns.columns)
    _, _, _, _, slot, (written, logp, state, left, choice, count) = carry
    return slot, Generation(written, count, logp, state, left, choice)


def decode_ahead(
    policy: Policy,
    history,
    cached: jax.Array,
    hidden: jax.Array,
    turns: Turns,
    tokens: jax.Array,
    decode_width: int,
    propose: Callable = drafts.propose,
):
    """`decode` with up to `decode_width` tokens of a row in each step: its last one and a proposal that holds or not.

    The step is compiled for powers of two, and runs on the fewest tokens that hold every live row's proposal; the
    head runs on columns where there is a choice, also in as few as hold every row's.

    Args:
      tokens: [B, C] int32 contexts, cached up to each row's `cached`; the other arguments are those of `decode`.
      propose: see drafts.propose.
    """
    batch, layout = cached.shape[0], policy.config.layout
    width, grammar, ops, budget = turns.width, turns.grammar, turns.ops, turns.budget
    places = jnp.arange(decode_width)
    sizes = (*(1 << i for i in range((decode_width - 1).bit_length())), decode_width)
    noise_row = jnp.arange(batch) if turns.noise_row is None else turns.noise_row
    uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(turns.key, i), (batch,)))(jnp.arange(width))
    uniform = layout.constrain(uniform, None, None)[:, noise_row].T  # [B, width]
    cut = lambda x, n: x[:, :n]  # noqa: E731
    widen = lambda x: jnp.pad(x, ((0, 0), (0, decode_width - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))  # noqa: E731

    def fewest(most, run: Callable):
        """`run(n)` of the first of `sizes` that is at least `most []`."""
        return jax.lax.switch((most > jnp.array(sizes[:-1])).sum(), [lambda n=n: run(n) for n in sizes])

    def verify(count, hidden, draft: drafts.Draft, live, text, out):
        """Draws the columns from `count [B]` on as far as the proposals hold, and one more; records what is written.

        hidden: [B, W or 1, D] the last layer's output at the tokens before these columns.
        """
        runs = live[:, None] & (places <= draft.count[:, None])
        asked = runs & ~draft.forced
        rank = asked.cumsum(1) - 1  # the columns with a choice are moved to the front
        place = jnp.argsort(~asked, axis=1, stable=True)
        column = jnp.minimum(count[:, None] + places, width - 1)
        left = budget[:, None] - count[:, None] - places
        of_choices = [jnp.take_along_axis(x, place, 1) for x in (draft.state, left)]
        noise = jnp.take_along_axis(uniform, jnp.take_along_axis(column, place, 1), 1)

        def some(n: int):
            flat = lambda x: cut(x, n).reshape(batch * n, *x.shape[2:])  # noqa: E731
            state, left = map(flat, of_choices)
            chosen = jnp.take_along_axis(widen(hidden), cut(place, n)[..., None], 1)
            drawn = draw(policy, flat(chosen), turns, state, left, jnp.repeat(ops, n), flat(noise))
            return tuple(widen(x.reshape(batch, n)) for x in drawn)

        drawn = some(1) if hidden.shape[1] == 1 else fewest(asked.sum(1).max(), some)
        token, logp, choice = (jnp.take_along_axis(x, jnp.maximum(rank, 0), 1) for x in drawn)
        token = jnp.where(draft.forced, draft.tokens, token)
        holds = (token == draft.tokens) & (places < draft.count[:, None])
        accepted = holds.astype(jnp.int32).cumprod(1).sum(1)
        new = runs & (places <= accepted[:, None])
        last = lambda x: jnp.take_along_axis(x, accepted[:, None], 1)[:, 0]  # noqa: E731
        records = token, jnp.where(draft.forced, 0.0, logp), draft.state, left, choice & asked
        kept = [jnp.where(new, x, 0) for x in records]
        out = tuple(put_behind(x, y, count) for x, y in zip(out, kept, strict=True))
        text = put_behind(text, kept[0], first + count)
        after, more = last(draft.state), live
        if grammar is not None:
            after = jnp.where(live, grammar_lib.advance(grammar, after, last(token)), after)
            more = live & (after != grammar.end)
        count = count + new.sum(1)
        return count, last(token), after, more & (count < budget), text, out

    def step(history, carry):
        count, token, state, live, slot, text, out = carry
        draft = propose(grammar, text, first + count, state, budget - count, ops, decode_width)
        fed = jnp.concatenate([token[:, None], draft.tokens[:, :-1]], 1)

        def some(n: int):
            hidden, new = kv_cache.decode_steps(
                policy.params, policy.config, policy.prefix, history, cached, slot, jnp.maximum(count - 1, 0),
                cut(fed, n),
            )  # fmt: skip
            return widen(hidden), new

        hidden, slot = fewest(jnp.where(live, draft.count + 1, 0).max(), some)
        count, token, state, live, text, out = verify(count, hidden, draft, live, text, out)
        return count, token, state, live, slot, text, out

    # What a row has read and written: its prompt, its context, its turn. Proposals are written whole: behind the last
    # column is room for them.
    prompt = jnp.repeat(policy.prefix.tokens, batch // policy.prefix.tokens.shape[0], 0)
    text = jnp.concatenate([prompt, jnp.pad(tokens, ((0, 0), (0, width + decode_width)))], 1)
    first = prompt.shape[1] + cached  # place of a row's first written token in it
    slot = kv_cache.init_slot(policy.config, batch, width + decode_width)
    out, none = empty_records(batch, width + decode_width), jnp.zeros_like(cached)
    alone = drafts.only_next(grammar, turns.start, budget, ops, decode_width)
    carry = verify(none, hidden[:, None], alone, turns.on, text, out)
    carry = (*carry[:4], slot, *carry[4:])
    carry = run_steps(step, lambda c: c[3].any(), carry, history, jnp.where(turns.on, cached, 0).max(), turns.columns)
    count, _, _, _, slot, _, out = carry
    written, logp, state, left, choice = (cut(x, width) for x in out)
    return kv_cache.first_columns(slot, width), Generation(written, count, logp, state, left, choice)


def draw(policy: Policy, hidden, turns: Turns, state, left, ops, uniform):
    """One token for each of the last layer's outputs `hidden [n, D]`: (token, its log-probability, whether it is a
    choice), all `[n]`. So are the grammar state, the tokens that may be written, this one included, the operations
    allowed, and the noise.
    """
    layout, grammar, temperature = policy.config.layout, turns.grammar, turns.temperature
    tokens_axis = "rows" if hidden.shape[0] % layout.ways("tokens") else "tokens"
    # The head is cut over its vocabulary; then each row's logits come to one device, and all devices are at work.
    logits = layout.constrain(qwen.logits(policy.params, policy.config, hidden), "rows", "vocab")
    logits = layout.constrain(logits, tokens_axis, None)
    if grammar is None:
        return *sample(logits, None, uniform, temperature), jnp.ones_like(state, bool)
    allowed = grammar_lib.allowed_tokens(grammar, state, left, ops)
    # The table may be padded.
    return *sample(logits[:, : allowed.shape[1]], allowed, uniform, temperature), allowed.sum(-1) > 1


def empty_records(batch: int, width: int) -> tuple[jax.Array, ...]:
    """What is recorded of each token, [B, width] each: token, log-probability, state, tokens left, whether a choice."""
    kinds = (jnp.int32, jnp.float32, jnp.int32, jnp.int32, bool)
    return tuple(jnp.zeros((batch, width), kind) for kind in kinds)


def put_behind(record: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """`record [B, S]` with `new [B, W]` written from each row's own column `start [B]` on."""
    return jax.vmap(lambda x, y, at: jax.lax.dynamic_update_slice(x, y.astype(x.dtype), (at,)))(record, new, start)


def run_steps(
    step: Callable, going: Callable, carry: tuple, history, most: jax.Array, columns: tuple[int, ...]
) -> tuple:
    """`carry = step(history, carry)` while `going(carry)`, with the fewest of the numbers of `columns` (see `Turns`)
    that hold `most []` of the history's."""
    loop = lambda history, carry: jax.lax.while_loop(going, lambda carry: step(history, carry), carry)  # noqa: E731
    whole = kv_cache.columns(history)
    columns = (*(n for n in columns if n < whole), whole)
    if len(columns) == 1:
        return loop(history, carry)
    at_width = lambda n: lambda carry: loop(kv_cache.first_columns(history, n), carry)  # noqa: E731
    return jax.lax.switch((most > jnp.array(columns[:-1])).sum(), [at_width(n) for n in columns], carry)
