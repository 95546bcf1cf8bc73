"""The turn format as a token automaton: built on the host, run on the device.

A turn is a think block, then one JSON array of calls (format "paper") or one block for each call, joined by a line end
(format "hermes"), or a task action, of a question its answer:

    <think>...</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "..."}}, ...]</tool_call><|im_end|>
    <think>...</think><tool_call>\\n{"name": "Add_memory", "arguments": {"content": "..."}}\\n</tool_call><|im_end|>
    <think>...</think><answer>...</answer><|im_end|>
    <think>...</think><action>...</action><|im_end|>

A turn without a call is an empty array, or nothing at all after the think block ("hermes"). With `tools.turn` "both" a
task action may also follow the calls.

It is a chain of *literals* (everything up to where the policy writes next) and *fields* (what it writes). Each literal
has one canonical token sequence; where several may follow, their sequences form a trie. A field admits tokens whose
every byte stays inside the field, and the first tokens of the literals that may follow, never both in one token, so
that a field's span is exact in tokens. Calls are unrolled over their index.

What a field may hold is an automaton over bytes, whose state is part of the token automaton's. UTF-8 is whole at a
field's end. A `<` stands where it cannot begin a mark (behind it no letter, no `/`, `|` or `!`, nothing beyond ASCII):
nothing that the policy stores can look like a mark of the format when it is read again. JSON strings hold no control
characters, so that an entry stays one line where it is shown; they spell quotation marks and backslashes with a
backslash before them, and a lone one leads to a state of its own. What is stored is the text without these escapes,
token for token: a token that holds some is in the language only if the vocabulary has its unescaped text as one token.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.tools import fields
from agemem_jax.tools.fields import FAR, NOTHING, NUM_SUBS, Spelling
from agemem_jax.tools.layout import END, START, SUMMARY, THINK, TYPE_KEY, Exit, Form, Language, Layout, Part, Place
from agemem_jax.tools.schemas import MAX_ID_DIGITS, Kind
from agemem_jax.types import NO_ID, NUM_OPS, PAD_ID, Op, Text, ToolCalls

ANY_OP = (1 << NUM_OPS) - 1
MAX_BUDGET = FAR - 1  # the largest `remaining` that is told apart from FAR
END_MARK = "\u0100"  # the end of a turn in a token's text; the other characters are bytes 0 .. 255


@struct.dataclass
class ToolGrammar:
    """Tables of the automaton. S states, Kc token classes; tokens of a class lead to the same states everywhere."""

    token_class: jax.Array  # [V] int32
    class_size: jax.Array  # [Kc] int32 tokens of the class
    class_token: jax.Array  # [Kc] int32 one token of the class
    class_digit: jax.Array  # [Kc] int32 value of a digit, -1 for other tokens
    class_ends: jax.Array  # [Kc] bool: the token ends a turn
    class_slash: jax.Array  # [Kc] bool: the token begins with "/"
    next_state: jax.Array  # [S, Kc] int16, -1 = not in the language
    need: jax.Array  # [S or 1, Kc] int16 tokens to the end of the turn, this one included; FAR = not allowed
    reach: jax.Array  # [S or 1, Kc] int16 bit mask of the operations that the token may begin; all ones if it need not
    part: jax.Array  # [S] int32 Part
    call: jax.Array  # [S] int32 index of the call, -1 outside calls
    op: jax.Array  # [S] int32 Op of the call that the state is in, Op.NONE outside fields
    value: jax.Array  # [S] int32 of a top_k, span or confirmation just written, else -1
    spelling: jax.Array  # [S] int32 Spelling
    stored: jax.Array  # [3, V] int32 by Spelling: the token that is stored for a written one, or NOTHING
    type_key: jax.Array  # [n] int32 tokens of the key "memory_type"
    shortest: tuple[int, ...] = struct.field(pytree_node=False)  # by Op: see max_distance
    start_act: int = struct.field(pytree_node=False)  # state before a turn
    start_summary: int = struct.field(pytree_node=False)  # state before a summary: plain text, then the end of the turn
    end: int = struct.field(pytree_node=False)  # state after a turn
    dead: int = struct.field(pytree_node=False)  # state outside the language (reached only by unconstrained turns)
    max_calls: int = struct.field(pytree_node=False)  # a task action counts as one
    tag_slots: int = struct.field(pytree_node=False)  # 1 + max_tags
    constrained: bool = struct.field(pytree_node=False)
    start_forms: tuple[int, ...] = struct.field(pytree_node=False, default=())  # state before each form


def build_grammar(
    config, tokenizer: Tokenizer, language: Language = (), forms: tuple[Form, ...] = ()
) -> ToolGrammar:
    """Builds the tables for a vocabulary.

    Args:
      config: the `tools` group of the run config. With `constrained` False every token but control tokens is allowed
        until the end of the turn, and the automaton follows literals in any tokenisation in which no token straddles
        a field's boundary; with True it follows canonical tokenisations only.
      language: of task actions, all that can be said in one; empty: free text.
      forms: of answers that are no turns, each with a start state of its own (`start_forms`). Their items are calls to
        `parse`.

    Raises:
      InputError: a field of `config` is out of range, or the vocabulary cannot spell a literal or a digit.
    """
    return _Builder(config, tokenizer, language, forms).build()


def calls_of_a_turn(config) -> int:
    """J, the calls that a turn of `config.tools` may hold, a task action beside them included."""
    return config.max_calls + (config.turn == "both")


def literals(config, end: str) -> list[str]:
    """Every literal of the grammar, for a vocabulary that holds each as one symbol (`end` is its end-of-turn marker).

    Bare values (" true", " 3") are not among them: as symbols they would cut words and numbers of ordinary text.
    """
    layout = Layout(config, end)
    texts = [exit.text for place in layout.places() for exit in layout.exits(place) if not exit.text[1:].isalnum()]
    return list(dict.fromkeys([*texts, *([TYPE_KEY] if config.optional_arguments else [])]))


def max_distance(grammar: ToolGrammar, op: Op) -> int:
    """Fewest tokens in which a turn that begins with `op` can be written, with empty fields; 0 if it cannot be.

    A turn's budget must be at least the largest of these over all enabled operations, also when fewer are allowed in
    that turn: a smaller one allows no token.
    """
    return grammar.shortest[op]


# Device functions.


def allowed_classes(grammar: ToolGrammar, state: jax.Array, remaining: jax.Array, ops: jax.Array) -> jax.Array:
    """Token classes that may be written next.

    Args:
      state: [...] int32 grammar state.
      remaining: [...] int32 tokens left, this one included (at most MAX_BUDGET): a token is allowed if the turn can
        still end within them.
      ops: [...] int32 bit mask of the operations that may be called; bit o is Op o.

    Returns:
      [..., Kc] bool; nothing is allowed after the end of a turn.
    """
    row = state if grammar.constrained else jnp.zeros_like(state)  # free sampling: the same tokens anywhere
    fits = grammar.need[row] <= remaining[..., None]
    permitted = (grammar.reach[row].astype(jnp.int32) & ops.astype(jnp.int32)[..., None]) != 0
    return fits & permitted & (state != grammar.end)[..., None]


def allowed_tokens(grammar: ToolGrammar, state: jax.Array, remaining: jax.Array, ops: jax.Array) -> jax.Array:
    """Tokens that may be written next, [..., V] bool; arguments as in `allowed_classes`."""
    return jnp.take(allowed_classes(grammar, state, remaining, ops), grammar.token_class, axis=-1)


def is_forced(
    grammar: ToolGrammar, state: jax.Array, remaining: jax.Array, ops: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether exactly one token is allowed, [...] bool, and that token, [...] int32 (else PAD_ID)."""
    classes = allowed_classes(grammar, state, remaining, ops)
    forced = jnp.sum(jnp.where(classes, grammar.class_size, 0), axis=-1) == 1
    token = grammar.class_token[jnp.argmax(classes & (grammar.class_size == 1), axis=-1)]
    return forced, jnp.where(forced, token, PAD_ID)


def ends_turn(grammar: ToolGrammar, token: jax.Array) -> jax.Array:
    """Whether a token ends a turn, [...] bool. A symbol that holds a literal and the end marker does."""
    return grammar.class_ends[grammar.token_class[token]]


def advance(grammar: ToolGrammar, state: jax.Array, token: jax.Array) -> jax.Array:
    """State after a token, [...] int32. One outside the language leads to `dead`, left only by the end of a turn."""
    after, _ = _step(grammar, state, token)
    return after


def _step(grammar: ToolGrammar, state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The state after a token, and whether the token was in the language."""
    kind = grammar.token_class[token]
    after = grammar.next_state[state, kind].astype(jnp.int32)
    astray = jnp.where(grammar.class_ends[kind], grammar.end, grammar.dead)
    return jnp.where(state == grammar.end, grammar.end, jnp.where(after >= 0, after, astray)), after >= 0


def parse(
    grammar: ToolGrammar, tokens: jax.Array, count: jax.Array, start_state: jax.Array, tag_width: int
) -> ToolCalls:
    """Reads the calls out of written turns.

    Args:
      tokens: [B, A] int32; count: [B] int32 how many of them were written.
      start_state: [B] int32 `start_act`, `start_summary` or one of `start_forms`.
      tag_width: Lt, tokens of a tag's key or value. A longer one is cut, and its `length` is what was written: an
        operation tells by `length > Lt` that a tag does not fit.

    Returns:
      ToolCalls [B, J = max_calls], their texts without escapes. No calls are one call PASS, a task action is
      one call ACT, a summary one call WRITE_SUMMARY. A turn that is not in the language, or not at its end, is
      malformed and has no calls.
    """
    batch, width = tokens.shape
    columns = jnp.arange(width)
    live = columns < count[:, None]

    def step(carry, inputs):
        state, good = carry
        token, on = inputs
        after, known = _step(grammar, state, token)
        after = jnp.where(on, after, state)
        return (after, good & (known | ~on)), (state, after)

    begin = (jnp.asarray(start_state, jnp.int32), jnp.ones((batch,), bool))
    (last, good), (before, after) = jax.lax.scan(step, begin, (tokens.T, live.T))
    before, after = before.T, after.T
    good = good & (last == grammar.end)

    # A token is written into a field if the automaton is in that field before and after it; but for a "<" that turns
    # out to begin the closing mark, told by the "/" behind it.
    part, call, op = grammar.part[before], grammar.call[before], grammar.op[before]
    stays = (part == grammar.part[after]) & (call == grammar.call[after])
    in_field = live & (part != Part.NONE) & good[:, None]
    closes = in_field & ~stays & grammar.class_slash[grammar.token_class[tokens]]
    inside = in_field & stays & ~jnp.pad(closes[:, 1:], ((0, 0), (0, 1)))

    # What a turn says: its texts; of one outside the language all but its end.
    text = (part == Part.THINK) | (part == Part.CONTENT) | (part >= Part.TAGS)
    ends = grammar.class_ends[grammar.token_class[tokens]]
    said = jnp.where(good[:, None], inside & text, live & ~ends)

    # What is stored of the fields, moved to the front of each row, without what only escapes.
    stored = grammar.stored[grammar.spelling[before], tokens]
    kept = inside & (part >= Part.CONTENT) & (stored != NOTHING)
    place = jnp.cumsum(kept, axis=1) - 1
    target = jnp.where(kept, place, width + columns)  # what is dropped lies outside, and the indices stay unique
    put = lambda row, i: jnp.full_like(row, PAD_ID).at[i].set(row, mode="drop", unique_indices=True)  # noqa: E731
    packed = jax.vmap(put)(stored, target)

    calls = jnp.arange(grammar.max_calls)
    in_call = (call[:, None] == calls[:, None]) & live[:, None] & good[:, None, None]  # [B, J, A]
    ops = jnp.where(in_call, op[:, None], Op.NONE).max(-1)
    passed = good & (ops == Op.NONE).all(-1)
    ops = jnp.where(passed[:, None] & (calls == 0), Op.PASS, ops)

    def register(which: Part) -> jax.Array:
        """[B, J] the value chosen for an argument, -1 if it was not written."""
        return jnp.where(in_call & (part == which)[:, None], grammar.value[before][:, None], -1).max(-1)

    def spans(which: jax.Array, size: int) -> Text:
        """What is stored of field `which` [...] of each call, moved to the front: [B, J, ..., size]."""
        flat = jnp.ravel(which)
        mask = kept[:, None, None] & (call[:, None, None] == calls[:, None, None])
        mask = mask & (part[:, None, None] == flat[:, None])  # [B, J, fields, A]
        length = mask.sum(-1)
        rows = jnp.arange(batch)[:, None, None, None]
        source = place[rows, jnp.argmax(mask, axis=-1)[..., None]] + jnp.arange(size)
        moved = jnp.where(jnp.arange(size) < length[..., None], packed[rows, jnp.minimum(source, width - 1)], PAD_ID)
        shape = (batch, grammar.max_calls, *which.shape)
        return Text(moved.reshape(*shape, size), length.reshape(shape))

    slots = jnp.arange(grammar.tag_slots)[:, None] * 2 + jnp.arange(2) + Part.TAGS
    tags = _with_type_key(grammar, spans(slots, tag_width), tag_width)
    digits = spans(jnp.asarray(Part.MEMORY_ID), MAX_ID_DIGITS)
    digit = jnp.where(
        jnp.arange(MAX_ID_DIGITS) < digits.length[..., None], grammar.class_digit[grammar.token_class[digits.tokens]], 0
    )
    power = 10 ** jnp.maximum(digits.length[..., None] - 1 - jnp.arange(MAX_ID_DIGITS), 0)
    return ToolCalls(
        op=ops,
        content=spans(jnp.asarray(Part.CONTENT), width),
        tags=tags,
        memory_id=jnp.where(digits.length > 0, (digit * power).sum(-1), NO_ID),
        top_k=jnp.maximum(register(Part.TOP_K), 0),
        span=jnp.maximum(register(Part.SPAN), 0),
        confirmed=register(Part.CONFIRMED) == 1,
        said=said,
        malformed=~good,
        think_tokens=(inside & (part == Part.THINK)).sum(-1),
    )


def _with_type_key(grammar: ToolGrammar, tags: Text, width: int) -> Text:
    """Gives slot 0 its key where it has a value: memory_type is an argument of its own, so its key is not written."""
    key = jnp.zeros((width,), jnp.int32).at[: grammar.type_key.shape[0]].set(grammar.type_key[:width])
    given = tags.length[:, :, 0, 1] > 0
    return Text(
        tags.tokens.at[:, :, 0, 0].set(jnp.where(given[..., None], key, PAD_ID)),
        tags.length.at[:, :, 0, 0].set(jnp.where(given, min(grammar.type_key.shape[0], width), 0)),
    )


# Host: literals as tokens, and the automaton.


class Rest(NamedTuple):
    """What remains of one literal, somewhere inside it."""

    text: str  # one character a byte, END_MARK for the end of the turn
    tokens: tuple[tuple[int, int], ...]  # canonical tokens that begin in `text`: (offset, token)
    target: Place
    op: Op | None


class State(NamedTuple):
    """A state of the automaton: at a place (`sub` counts digits, or is the field's state), or inside literals.

    At a place it has rests where the token just written, a "<", may be the beginning of a closing mark as well as text.
    """

    place: Place | None
    sub: int
    rests: frozenset[Rest]


class Step(NamedTuple):
    """What a token of a literal does."""

    target: State
    ops: int  # bit mask of the operations that the literals going on this way begin; ANY_OP if one begins none


def _ops_of(rests: Iterable[Rest]) -> int:
    ops = 0
    for rest in rests:
        ops |= ANY_OP if rest.op is None else 1 << rest.op
    return ops


def _is_spoken(rest: Rest) -> bool:
    """Whether a literal is a part of a task action, in its language."""
    return rest.target.name == "action" and rest.op is None


def _place_of(state: State) -> Place:
    """The place whose field a state is in; END of none."""
    if state.place is None and all(map(_is_spoken, state.rests)):
        return next(iter(state.rests)).target  # as good as any other: they differ in what follows
    return state.place or END


def _entry(place: Place) -> State:
    """The state in which a place is entered: nothing written."""
    return State(place, 0, frozenset())


class _Builder:
    """Builds a ToolGrammar. One use."""

    def __init__(self, config, tokenizer: Tokenizer, language: Language, forms: tuple[Form, ...]):
        self.config, self.tokenizer = config, tokenizer
        self.layout = Layout(config, tokenizer.end_of_turn, language, forms)
        self.pieces = tokenizer.token_bytes()
        string = fields.token_paths(fields.field_table(json_string=True), self.pieces)
        self.stored, string = fields.stored_tokens(self.pieces, string)
        self.paths = {"text": fields.token_paths(fields.field_table(json_string=False), self.pieces), "string": string}
        self.subs = {kind: fields.reachable(paths) for kind, paths in self.paths.items()}
        self.whole = {kind: fields.tokens_to_whole(paths) for kind, paths in self.paths.items()}
        self.by_text: dict[str, list[int]] = {}
        for token, text in enumerate(map(self._text_of, range(len(self.pieces)))):
            if text:
                self.by_text.setdefault(text, []).append(token)
        self.digits = {token: value for value in range(10) for token in self.by_text.get(str(value), [])}
        if set(self.digits.values()) != set(range(10)):
            have = sorted(set(self.digits.values()))
            raise InputError(f"policy.tokenizer: memory ids need a token for each digit; the vocabulary has {have}")
        self.longest = max(map(len, self.by_text))
        self.rests_of_place: dict[Place, frozenset[Rest]] = {}
        self.tokens_from: dict[Place, int] = {}

    def _text_of(self, token: int) -> str:
        """A token's text, one character a byte; the end-of-turn marker, alone or inside a symbol, is one END_MARK."""
        if token == self.tokenizer.eos_id:
            return END_MARK
        return (self.pieces[token] or b"").decode("latin-1").replace(self.layout.end, END_MARK)

    def _rest(self, exit: Exit) -> Rest:
        """A literal in its canonical tokens."""
        text = exit.text.encode().decode("latin-1").replace(self.layout.end, END_MARK)
        tokens, offset, ids = [], 0, self.tokenizer.encode_markup(exit.text)
        for token in ids:
            tokens.append((offset, token))
            offset += len(self._text_of(token))
        if "".join(map(self._text_of, ids)) != text:
            raise InputError(
                f"policy.tokenizer: the vocabulary cannot spell {exit.text!r} of the tool format "
                f"(it gives {self.tokenizer.decode(ids)!r}); build it with tools.grammar.literals as symbols"
            )
        return Rest(text, tuple(tokens), exit.target, exit.op)

    def _rests(self, state: State) -> frozenset[Rest]:
        """The literals that may go on from a state."""
        if state.place is None:
            return state.rests
        if state.place not in self.rests_of_place:
            self.rests_of_place[state.place] = frozenset(map(self._rest, self.layout.exits(state.place)))
        may_end = state.sub > 0 if self._kind(state.place) == "digits" else state.sub in fields.WHOLE
        return (self.rests_of_place[state.place] if may_end else frozenset()) | state.rests

    def _kind(self, place: Place) -> str:
        """What is written at a place: "text", "string", "digits", or nothing ("choice")."""
        if place.name == "form":
            field = self.layout.forms[place.side].fields[place.argument]
            return field.kind if field else "choice"
        if place.name in ("think", "summary") or (place.name == "action" and not self.layout.language):
            return "text"
        if place.name != "argument":
            return "choice"
        kind = self.layout.argument(place).kind
        return {Kind.TEXT: "string", Kind.LABEL: "string", Kind.TAGS: "string", Kind.ID: "digits"}.get(kind, "choice")

    def _steps(self, state: State) -> dict[int, Step]:
        """Where the tokens of literals lead from a state."""
        groups: dict[int, list[Rest]] = {}
        for rest in self._rests(state):
            if self.config.constrained:
                options = [rest.tokens[0][1]]
            else:
                sizes = range(1, min(self.longest, len(rest.text)) + 1)
                options = [token for n in sizes for token in self.by_text.get(rest.text[:n], [])]
            for token in options:
                groups.setdefault(token, []).append(rest)
        # In order of the tokens: sets have another order in every process, and all must number the states alike.
        steps = {
            token: Step(self._inside(self._text_of(token), rests), _ops_of(rests))
            for token, rests in sorted(groups.items())
        }
        paths = self.paths.get(self._kind(state.place)) if state.place else None
        for token, step in steps.items():
            if paths is not None and paths[token, state.sub] >= 0:  # it may be text as well
                steps[token] = Step(State(state.place, int(paths[token, state.sub]), step.target.rests), ANY_OP)
        return steps

    def _inside(self, text: str, rests: list[Rest]) -> State:
        """The state after `text`, which all the rests begin with."""
        n = len(text)
        left = [
            Rest(r.text[n:], tuple((offset - n, token) for offset, token in r.tokens if offset >= n), r.target, r.op)
            for r in rests
        ]
        done = [rest for rest in left if not rest.text]
        others = frozenset(rest for rest in left if rest.text)
        spoken = all(map(_is_spoken, left))
        # A number may come where another literal goes on: no literal does with a digit.
        number = bool(done) and self._kind(done[0].target) == "digits" and not any(r.text[0].isdigit() for r in others)
        assert not done or len(left) == 1 or ((spoken or number) and len(done) == 1), (
            f"{text!r} is a beginning of another literal"
        )
        return State(done[0].target, 0, others) if done else State(None, 0, others)

    def _field_states(self, place: Place) -> list[State]:
        """The states of a place: one for each state of the field or number of digits."""
        subs = {"digits": range(MAX_ID_DIGITS + 1), "choice": [0]} | self.subs
        return [State(place, sub, frozenset()) for sub in subs[self._kind(place)]]

    def _explore(self) -> tuple[dict[State, int], dict[State, dict[int, Step]]]:
        """All states (numbered) and the steps of literals between them."""
        index: dict[State, int] = {}
        steps: dict[State, dict[int, Step]] = {}
        queue = [_entry(START), *self._field_states(SUMMARY), *map(_entry, self.layout.starts), _entry(END)]
        while queue:
            state = queue.pop()
            if state in index:
                continue
            index[state] = len(index)
            steps[state] = self._steps(state)
            for target, _ in steps[state].values():
                queue += [target] if target.rests else self._field_states(target.place)
                if target.rests and target.place and self._kind(target.place) == "digits":
                    queue += self._field_states(target.place)
        return index, steps

    def _distance(self, state: State) -> int:
        """Fewest tokens from a state to the end of the turn; from a think block at least tools.body_tokens.

        Where an operation is still to be chosen it is the largest over the operations, so that any of them, whichever
        are allowed, can be completed; an end that needs no further operation goes before.
        """
        if state.place is None:
            return self._distance_of(state.rests)
        if state.place not in self.tokens_from:
            at_place = State(state.place, 1 if self._kind(state.place) == "digits" else 0, frozenset())
            self.tokens_from[state.place] = 0 if state.place == END else self._distance_of(self._rests(at_place))
        kind = self._kind(state.place)
        unfinished = int(state.sub == 0) if kind == "digits" else self.whole.get(kind, (0,))[state.sub]
        left = self.tokens_from[state.place]
        if state.place == THINK:  # thinking ends while the turn still has room for strings that are not empty
            left = max(left, self.config.body_tokens)
        closing = self._distance_of(state.rests) if state.rests else FAR
        return min(closing, unfinished + left)

    def _distance_of(self, rests: frozenset[Rest]) -> int:
        far = {rest: len(rest.tokens) + self._distance(_entry(rest.target)) for rest in rests}
        free = [tokens for rest, tokens in far.items() if rest.op is None]
        return min(free) if free else max(far.values())

    def _shortest(self) -> tuple[int, ...]:
        """By Op, the fewest tokens of a turn that begins with it; 0 if none can."""
        fewest = [0] * NUM_OPS
        think = self._rests(_entry(START)) if self.config.think else frozenset()
        opening = sum(len(rest.tokens) for rest in think)
        for rest in self._rests(_entry(THINK if self.config.think else START)):
            fewest[rest.op] = opening + len(rest.tokens) + self._distance(_entry(rest.target))
        fewest[Op.WRITE_SUMMARY] = self._distance(_entry(SUMMARY))
        return tuple(fewest)

    def _classes(self, own: Iterable[int]) -> tuple[np.ndarray, list[int]]:
        """Token classes [V] and one token of each: `own` tokens alone, the others with those that act alike."""
        numbers: dict = {}
        token_class = np.zeros(len(self.pieces), np.int32)
        own = set(own)
        acts = np.concatenate([paths[:, self.subs[kind]] for kind, paths in self.paths.items()], axis=1)
        for token, act in enumerate(acts):
            key = token if token in own else (act.tobytes(), self.pieces[token] is None)
            token_class[token] = numbers.setdefault(key, len(numbers))
        _, first = np.unique(token_class, return_index=True)
        return token_class, first.tolist()

    def _transitions(self, index, steps, token_class: np.ndarray, members: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Next states (-1 = none) and operations begun, both [S + 1, Kc] int16; the last row is the dead state."""
        number_of = {(state.place, state.sub): i for state, i in index.items() if state.place and not state.rests}
        table = np.full((len(index) + 1, len(members)), -1, np.int16)
        ops = np.full_like(table, ANY_OP)
        for state, i in index.items():
            kind = self._kind(state.place) if state.place else "choice"
            if kind == "digits" and state.sub < MAX_ID_DIGITS:
                table[i, token_class[list(self.digits)]] = number_of[state.place, state.sub + 1]
            elif kind in self.paths:
                after = self.paths[kind][members, state.sub]
                targets = np.array([number_of.get((state.place, sub), -1) for sub in range(NUM_SUBS)])
                table[i] = np.where(after >= 0, targets[after], -1)
            for token, step in steps[state].items():
                table[i, token_class[token]] = index[step.target]
                ops[i, token_class[token]] = step.ops
        return table, ops

    def _spelling(self, state: State) -> Spelling:
        if state.place is None or self._kind(state.place) != "string":
            return Spelling.PLAIN
        return Spelling.ESCAPED if state.sub == fields.ESCAPE else Spelling.JSON

    def build(self) -> ToolGrammar:
        index, steps = self._explore()
        if len(index) >= FAR:
            raise InputError(f"the tool grammar has {len(index)} states, over {FAR}; lower tools.max_calls or max_tags")
        eos = self.tokenizer.eos_id
        own = {token for targets in steps.values() for token in targets} | set(self.digits) | {eos}
        token_class, members = self._classes(own)
        next_state, reach = self._transitions(index, steps, token_class, members)
        if self.config.constrained:
            need = np.array([self._distance(state) for state in index] + [FAR])[next_state] + 1
            need = np.where(next_state >= 0, np.minimum(need, FAR), FAR)
        else:
            usable = np.array([self.pieces[token] is not None or token == eos for token in members])
            need, reach = np.where(usable, 1, FAR)[None], np.full((1, len(members)), ANY_OP, np.int16)
        places = [*map(_place_of, index), END]
        digit = np.array([self.digits.get(token, -1) for token in members], np.int32)
        type_key = self.tokenizer.encode_markup(TYPE_KEY) if self.config.optional_arguments else []
        return ToolGrammar(
            token_class=jnp.asarray(token_class),
            class_size=jnp.asarray(np.bincount(token_class).astype(np.int32)),
            class_token=jnp.asarray(np.array(members, np.int32)),
            class_digit=jnp.asarray(digit),
            class_ends=jnp.asarray([self._text_of(token).endswith(END_MARK) for token in members]),
            class_slash=jnp.asarray([self._text_of(token).startswith("/") for token in members]),
            next_state=jnp.asarray(next_state),
            need=jnp.asarray(need.astype(np.int16)),
            reach=jnp.asarray(reach),
            part=jnp.asarray(np.array([self.layout.part(place) for place in places], np.int32)),
            call=jnp.asarray(np.array([place.call for place in places], np.int32)),
            op=jnp.asarray(np.array([place.op for place in places], np.int32)),
            value=jnp.asarray(np.array([place.value for place in places], np.int32)),
            spelling=jnp.asarray(np.array([*map(self._spelling, index), Spelling.PLAIN], np.int32)),
            stored=jnp.asarray(self.stored),
            type_key=jnp.asarray(np.array(type_key, np.int32)),
            shortest=self._shortest(),
            start_act=index[_entry(START)],
            start_summary=index[_entry(SUMMARY)],
            end=index[_entry(END)],
            dead=len(index),
            max_calls=max([calls_of_a_turn(self.config), *(form.items for form in self.layout.forms)]),
            tag_slots=1 + self.config.max_tags,
            constrained=self.config.constrained,
            start_forms=tuple(index[_entry(place)] for place in self.layout.starts),
        )
