"""What rows will probably write next: tokens that the grammar forces, and copies of what a row has read.

A proposal needs no distribution of its own. Each of its tokens is drawn anew from the policy, with the noise of its own
column, and the proposal holds as far as it says what was drawn (see decode.py): what is written is what one token at a
time would have written, and a proposal only decides how many tokens a step writes. For a proposal that is one token
this accepts with that token's probability, as the rejection sampling of speculative decoding does (arXiv 2211.17192).

Copies are prompt lookup (github.com/apoorvumang/prompt-lookup-decoding): what followed where the row's last tokens have
stood before. It differs in that it is looked up anew for each proposed token, so that a copy goes on behind what is
forced.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.grammar import ToolGrammar

# Tokens in which the place that is copied must agree with what was written last. Of a 0.5B model's turns on HotpotQA,
# in slots of 8 rows and 8 columns, one takes 0.40 of the steps and runs 1.9 columns a token; two take 0.45 and 1.6.
LONGEST, SHORTEST = 4, 1


class Draft(NamedTuple):
    """Proposals for up to W - 1 tokens of each row, and what is known of W columns on the way that they take."""

    tokens: jax.Array  # [B, W] int32; means nothing from `count` on
    count: jax.Array  # [B] int32 tokens proposed, at most W - 1; none of them ends a turn or is the budget's last
    state: jax.Array  # [B, W] int32 grammar state before each column; means nothing after column `count`
    forced: jax.Array  # [B, W] bool: a column up to `count` where only one token is allowed, which `tokens` holds


def propose(
    grammar: ToolGrammar | None,
    text: jax.Array,
    end: jax.Array,
    state: jax.Array,
    left: jax.Array,
    ops: jax.Array,
    width: int,
) -> Draft:
    """What each row will probably write next.

    Args:
      grammar: None forces nothing and allows everything.
      text: [B, S] int32, of which the first `end [B]` tokens (at least one) are what the row has read and written.
      state: [B] int32 grammar state before the next token.
      left: [B] int32 tokens that the row may still write.
      ops: [B] int32 bit mask of the operations allowed.
      width: W.
    """

    def step(carry, _):
        recent, state, left, going = carry
        token, found = look_up(text, end, recent)
        forced = jnp.zeros_like(found)
        after = state
        if grammar is not None:
            classes = grammar_lib.allowed_classes(grammar, state, left, ops)
            forced, only = grammar_lib.is_forced(grammar, state, left, ops)
            found &= jnp.take_along_axis(classes, grammar.token_class[token][:, None], 1)[:, 0]
            token = jnp.where(forced, only, token)
            after = grammar_lib.advance(grammar, state, token)
        more = going & (forced | found) & (left > 1)
        if grammar is not None:
            more &= after != grammar.end
        recent = jnp.concatenate([recent[:, 1:], token[:, None]], 1)
        return (recent, after, left - 1, more), (token, state, forced, more)

    # The first token stands in for what a shorter text lacks: no place in it has as many tokens before it.
    at = jnp.maximum(end[:, None] - LONGEST + jnp.arange(LONGEST), 0)
    recent = jnp.take_along_axis(text, at, 1)
    carry = (recent, state, left, jnp.ones_like(state, bool))
    _, found = jax.lax.scan(step, carry, None, length=width)
    token, states, forced, more = (x.swapaxes(0, 1) for x in found)
    return Draft(token, more[:, : width - 1].sum(1), states, forced)


def only_next(
    grammar: ToolGrammar | None, state: jax.Array, left: jax.Array, ops: jax.Array, width: int
) -> Draft:
    """No proposal: one column of each row is drawn. Arguments as in `propose`."""
    columns = jnp.zeros((state.shape[0], width), jnp.int32)
    only, forced = columns[:, 0], columns[:, 0] > 0
    if grammar is not None:
        forced, only = grammar_lib.is_forced(grammar, state, left, ops)
    first = columns == 0
    return Draft(columns.at[:, 0].set(only), only * 0, columns + state[:, None], first & forced[:, None])


def look_up(text: jax.Array, end: jax.Array, recent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The token that followed where the longest end of `recent [B, n]` last stood in the text, and whether it did."""
    place = jnp.arange(text.shape[1])
    same, length = place + 1 < end[:, None], 0
    for back in range(recent.shape[1]):
        before = jnp.pad(text, ((0, 0), (back, 0)), constant_values=-1)[:, : text.shape[1]]
        same &= before == recent[:, recent.shape[1] - 1 - back, None]
        length += same
    # The longest, and of these the last.
    best = jnp.where(length >= SHORTEST, length * text.shape[1] + place, -1).max(1)
    after = jnp.maximum(best, 0) % text.shape[1] + 1
    return jnp.take_along_axis(text, jnp.minimum(after, text.shape[1] - 1)[:, None], 1)[:, 0], best >= 0
