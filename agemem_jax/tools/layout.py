"""The layout of a turn, as places where the policy writes or chooses and the literals between them."""

import enum
import re
from typing import NamedTuple

from agemem_jax.config import refuse
from agemem_jax.tools.schemas import CALL_MARKS, Argument, Kind, Tool, active_tools, write_calls
from agemem_jax.types import Op

TYPE_KEY = "memory_type"


class Part(enum.IntEnum):
    """Which field of a turn a state is in. TAGS + 2 * slot + side is the key (side 0) or value (1) of a tag slot."""

    NONE = 0  # inside a literal
    THINK = 1
    CONTENT = 2
    MEMORY_ID = 3
    TOP_K = 4
    SPAN = 5
    CONFIRMED = 6
    TAGS = 7


class Place(NamedTuple):
    """Where the policy writes or chooses next."""

    name: str  # "start", "think", "action", "summary", "argument", "form" or "end"
    call: int = -1
    op: Op = Op.NONE
    argument: int = 0  # index among the tool's arguments; of an action the node of its language; of a form its node
    side: int = 0  # of an argument of tags: 2 * pair, + 1 for its value; of a form which one it is
    value: int = -1  # of an argument with listed values, once chosen


class Exit(NamedTuple):
    """A literal that may follow a place."""

    text: str
    target: Place
    op: Op | None  # the operation that it begins


START, THINK = Place("start"), Place("think")
SUMMARY, END = Place("summary", 0, Op.WRITE_SUMMARY), Place("end")
_LISTED = (Kind.FLAG, Kind.COUNT, Kind.SPAN)
_STRING = re.compile(r'(?:[^"\\]|\\.)*')  # what stands between the quotation marks of a JSON string


class Field(NamedTuple):
    """A place of a form at which something is written, or that marks which way was taken."""

    kind: str  # "text", "string" (of JSON), "digits", or "choice": nothing is written here
    part: Part
    call: int  # its number among the items of the form
    op: Op  # what the item asks for
    value: int = -1  # of a choice


class Any(NamedTuple):
    """One of several ways on, each a sequence of parts; no way's text is a beginning of another's."""

    ways: tuple["Parts", ...]


# What an answer is made of besides turns: literals, fields, and choices between such sequences.
Parts = tuple["str | Field | Any", ...]


def listed(items: list[Parts], between: str = ", ", first: int = 0) -> Parts:
    """Nothing, or one to all of the items in their order, from the first on."""
    if first == len(items):
        return ()
    before = (between,) if first else ()
    return (Any(((), (*before, *items[first], *listed(items, between, first + 1)))),)


def either(*ways: Parts) -> Parts:
    """One of the ways."""
    return (Any(tuple(ways)),)


class Form:
    """The layout of an answer that is no turn: its fields as nodes, the first of which is its beginning."""

    def __init__(self, parts: Parts, end: str):
        self.fields: list[Field | None] = [None]
        self.exits: list[list[tuple[str, int]]] = [[]]  # by node: (literal, node; -1 = the end)
        self._nodes: dict[tuple, int] = {}
        self.exits[0] = self._ways((*parts, end))

    @property
    def items(self) -> int:
        """One more than the highest number of an item."""
        return 1 + max((field.call for field in self.fields if field), default=-1)

    def _ways(self, parts: Parts) -> list[tuple[str, int]]:
        """The literals up to the next field, and the nodes that they lead to."""
        if not parts:
            return [("", -1)]
        first, rest = parts[0], parts[1:]
        if isinstance(first, str):
            return [(first + text, node) for text, node in self._ways(rest)]
        if isinstance(first, Any):
            return [found for way in first.ways for found in self._ways((*way, *rest))]
        if (first, rest) not in self._nodes:
            node = self._nodes[first, rest] = len(self.fields)
            self.fields.append(first)
            self.exits.append([])
            self.exits[node] = self._ways(rest)
        return [("", self._nodes[first, rest])]

    def place(self, number: int, node: int) -> Place:
        """A node of this form, as the place of a layout in which it has a number."""
        if node < 0:
            return END
        field = self.fields[node]
        more = {"call": field.call, "op": field.op, "value": field.value} if field else {}
        return Place("form", argument=node, side=number, **more)



# The language of task actions: templates, each of slots, each of the texts that may stand there, with their spaces.
Language = tuple[tuple[tuple[str, ...], ...], ...]


class Layout:
    """The turn format: which literals may follow a place, and where they lead.

    language: of task actions; empty: free text.
    forms: of answers that are no turns (methods/); each begins at a place of its own.
    """

    def __init__(self, config, end: str, language: Language = (), forms: tuple[Form, ...] = ()):
        if config.format not in ("paper", "hermes"):
            refuse("tools.format", config.format, "must be 'paper' or 'hermes'")
        if config.max_calls < 1:
            refuse("tools.max_calls", config.max_calls, "must be at least 1")
        if not 0 <= config.min_calls <= config.max_calls:
            refuse("tools.min_calls", config.min_calls, f"must be between 0 and tools.max_calls = {config.max_calls}")
        if config.max_tags < 0:
            refuse("tools.max_tags", config.max_tags, "must not be negative")
        self.config, self.end = config, end
        self.tools: dict[Op, Tool] = {tool.op: tool for tool in active_tools(config)}
        self.open, self.between, self.close = CALL_MARKS[config.format]
        self.no_calls = write_calls([], config)
        self.language = language
        self.forms = forms
        self.starts = tuple(form.place(number, 0) for number, form in enumerate(forms))
        # Nodes of the language: the places (template, slot) in it that what was written so far may have led to.
        self.nodes = [frozenset((t, 0) for t in range(len(language)))]

    def places(self) -> list[Place]:
        """Every place of the format, breadth first from the starts of a turn, of a summary and of each form."""
        found = dict.fromkeys([START, SUMMARY, *self.starts])
        queue = list(found)
        for place in queue:
            new = [exit.target for exit in self.exits(place) if exit.target not in found]
            queue += dict.fromkeys(new)
            found |= dict.fromkeys(new)
        return queue

    def pieces(self, text: str, place: Place = START) -> list[tuple[str, bool]]:
        """A turn (from SUMMARY a summary) with its end mark, cut into literals (False) and what is written (True).

        Each by itself has the tokens that the grammar has it in: a vocabulary may spell a text that goes over a
        field's bounds in one token. Raises ValueError if it is not in the format.
        """
        found, at = [], 0
        while place != END:
            exits, end = self.exits(place), at
            if place.name in ("think", "summary") or (place.name == "action" and not self.language):
                end = min((i for exit in exits if (i := text.find(exit.text, at)) >= 0), default=at)
            elif place.name == "argument" and self.argument(place).kind not in _LISTED:
                end = _STRING.match(text, at).end()
            exit = next((exit for exit in exits if text.startswith(exit.text, end)), None)
            if exit is None:
                raise ValueError(f"{text[at : at + 80]!r} does not go on in the tool format")
            found += [(text[at:end], True), (exit.text, False)]
            at, place = end + len(exit.text), exit.target
        if at < len(text):
            raise ValueError(f"{text[at : at + 80]!r} stands behind the end of a turn")
        return [piece for piece in found if piece[0]]

    def argument(self, place: Place) -> Argument:
        return self.tools[place.op].arguments[place.argument]

    def exits(self, place: Place) -> list[Exit]:
        """The literals that may follow a place. No text is a beginning of another."""
        if place == START:
            return [Exit("<think>", THINK, None)] if self.config.think else self._bodies("<think></think>")
        if place == THINK:
            return self._bodies("</think>")
        if place.name == "action":
            return self._spoken(place)
        if place == SUMMARY:
            return [Exit(self.end, END, None)]
        if place == END:
            return []
        if place.name == "form":
            form = self.forms[place.side]
            return [Exit(text, form.place(place.side, node), None) for text, node in form.exits[place.argument]]
        kind = self.argument(place).kind
        if kind in _LISTED and place.value < 0:
            return [Exit(text, place._replace(value=value), None) for text, value in self._values(kind)]
        if kind is Kind.TAGS:
            if place.side % 2 == 0:
                return [Exit('": "', place._replace(side=place.side + 1), None)]
            more = [Exit('", "', place._replace(side=place.side + 1), None)]
            return more[: place.side + 1 < 2 * self.config.max_tags] + self._after(place, '"}')
        return self._after(place, "" if kind in (Kind.FLAG, Kind.COUNT) else '"')

    def _bodies(self, before: str) -> list[Exit]:
        """What a turn does after its think block."""
        exits = [self._call(before + self.open, tool, 0) for tool in self.tools.values()]
        if self.config.min_calls == 0:
            exits.append(Exit(before + self.no_calls + self.end, END, Op.PASS))
        return [*exits, self._action(before, 0)]

    def _action(self, before: str, place: int) -> Exit:
        return Exit(f"{before}<{self.config.action_tag}>", Place("action", place, Op.ACT), Op.ACT)

    def _spoken(self, place: Place) -> list[Exit]:
        """What may follow in an action: words of its language, or its end."""
        ending = Exit(f"</{self.config.action_tag}>{self.end}", END, None)
        if not self.language:
            return [ending]
        after: dict[str, set] = {}
        for t, slot in sorted(self.nodes[place.argument]):
            for text in self.language[t][slot] if slot < len(self.language[t]) else ():
                after.setdefault(text, set()).add((t, slot + 1))
        exits = [Exit(text, place._replace(argument=self._node(frozenset(to))), None) for text, to in after.items()]
        is_whole = any(slot == len(self.language[t]) for t, slot in self.nodes[place.argument])
        return exits + [ending] * is_whole

    def _node(self, places: frozenset) -> int:
        if places not in self.nodes:
            self.nodes.append(places)
        return self.nodes.index(places)

    def _call(self, before: str, tool: Tool, call: int) -> Exit:
        opening = before + f'{{"name": "{tool.name}", "arguments": {{' + self._key(tool.arguments[0])
        return Exit(opening, Place("argument", call, tool.op), tool.op)

    def _after(self, place: Place, close: str) -> list[Exit]:
        """What follows a finished argument: a later argument of the call, another call, or the end of the turn."""
        exits, arguments = [], self.tools[place.op].arguments
        for i in range(place.argument + 1, len(arguments)):
            exits.append(Exit(f"{close}, {self._key(arguments[i])}", Place("argument", place.call, place.op, i), None))
            if arguments[i].required:
                return exits
        following = place.call + 1
        if following < self.config.max_calls:
            exits += [self._call(close + "}}" + self.between, tool, following) for tool in self.tools.values()]
        if following >= self.config.min_calls:
            exits.append(Exit(f"{close}}}}}{self.close}{self.end}", END, None))
            if self.config.turn == "both":
                exits.append(self._action(f"{close}}}}}{self.close}", following))
        return exits

    def _key(self, argument: Argument) -> str:
        """An argument's name up to its value; listed values bring their own space and quotation mark."""
        return f'"{argument.name}":' + {Kind.TAGS: ' {"'}.get(argument.kind, "" if argument.kind in _LISTED else ' "')

    def _values(self, kind: Kind) -> list[tuple[str, int]]:
        if kind is Kind.FLAG:
            return [(" true", 1), (" false", 0)]
        if kind is Kind.COUNT:
            return [(f" {k}", k) for k in range(1, self.config.max_top_k + 1)]
        return [(' "all', 0), *((f' "{n}', n) for n in range(1, 10))]

    def part(self, place: Place) -> int:
        """The Part that a place belongs to; a choice that is still to be made belongs to none."""
        if place.name == "form":
            field = self.forms[place.side].fields[place.argument]
            return field.part if field else Part.NONE
        if place.name in ("think", "action", "summary"):
            return Part.THINK if place == THINK else Part.CONTENT
        if place.name != "argument":
            return Part.NONE
        kind = self.argument(place).kind
        if kind in _LISTED:
            of = {Kind.FLAG: Part.CONFIRMED, Kind.COUNT: Part.TOP_K, Kind.SPAN: Part.SPAN}
            return of[kind] if place.value >= 0 else Part.NONE
        if kind is Kind.TAGS:
            return Part.TAGS + 2 + place.side
        return {Kind.TEXT: Part.CONTENT, Kind.ID: Part.MEMORY_ID, Kind.LABEL: Part.TAGS + 1}[kind]
