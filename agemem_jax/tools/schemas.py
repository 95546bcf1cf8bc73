"""The six memory tools as plain data: their arguments drive the system prompt, the grammar and the checks on the host.

Names and arguments are the paper's (AgeMem, arXiv 2601.01885, appendix). Arguments are written in the order given here.
"""

import enum
import json
import re
from dataclasses import dataclass, replace

from agemem_jax.config import refuse
from agemem_jax.types import TOOL_NAMES, Op, Status

MAX_ID_DIGITS = 4
_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
# What stands before, between and after the calls of a turn, by tools.format. Hermes is as chat templates print calls.
CALL_MARKS = {
    "paper": ("<tool_call>[", ", ", "]</tool_call>"),
    "hermes": ("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"),
}


class Kind(enum.Enum):
    """What may stand as the value of an argument."""

    TEXT = "text"  # a JSON string
    LABEL = "label"  # a JSON string that becomes the tag memory_type
    ID = "id"  # a JSON string of one to MAX_ID_DIGITS digits
    FLAG = "flag"  # true or false
    COUNT = "count"  # 1 .. max_top_k
    SPAN = "span"  # "all" or "1" .. "9"
    TAGS = "tags"  # an object of 1 .. max_tags pairs of strings


@dataclass(frozen=True)
class Argument:
    """One argument of a tool."""

    name: str
    kind: Kind
    required: bool
    description: str


@dataclass(frozen=True)
class Tool:
    """One memory tool; its first argument is always required."""

    op: Op
    description: str
    arguments: tuple[Argument, ...]

    @property
    def name(self) -> str:
        return TOOL_NAMES[self.op]


_METADATA = Argument("metadata", Kind.TAGS, False, "Tags of the entry, as pairs of strings.")
_MEMORY_ID = Argument("memory_id", Kind.ID, True, "Id of an entry, from an earlier retrieval.")
_SUMMARY = Argument("summary", Kind.TEXT, True, "The text that replaces the span.")

TOOLS = (
    Tool(
        Op.ADD,
        "Store a new entry in long-term memory.",
        (
            Argument("content", Kind.TEXT, True, "What to remember."),
            Argument("memory_type", Kind.LABEL, False, "The kind of memory, in a word."),
            _METADATA,
        ),
    ),
    Tool(
        Op.UPDATE,
        "Replace the content of a stored entry.",
        (_MEMORY_ID, Argument("content", Kind.TEXT, True, "The new content."), _METADATA),
    ),
    Tool(
        Op.DELETE,
        "Remove an entry from long-term memory.",
        (_MEMORY_ID, Argument("confirmation", Kind.FLAG, True, "Must be true for the entry to be removed.")),
    ),
    Tool(
        Op.RETRIEVE,
        "Search long-term memory; what is found is put into the context.",
        (
            Argument("query", Kind.TEXT, True, "What to look for."),
            Argument("top_k", Kind.COUNT, False, "Most entries to return."),
            Argument("metadata_filter", Kind.TAGS, False, "Only entries that carry these tags."),
        ),
    ),
    Tool(
        Op.SUMMARY,
        "Replace a part of the conversation by a summary.",
        (Argument("span", Kind.SPAN, True, "all, or the number of last rounds to summarise."),),
    ),
    Tool(
        Op.FILTER,
        "Remove messages from the conversation that match the criteria.",
        (Argument("criteria", Kind.TEXT, True, "What to remove."),),
    ),
)

# What an agent reads after a call, behind the tool's name. Plain words: a vocabulary can hold each as one piece.
STATUS_TEXT = {
    Status.OK: "done",
    Status.UNKNOWN_ID: "failed unknown memory_id",
    Status.STORE_FULL: "failed memory is full",
    Status.TEXT_TOO_LONG: "failed text is too long",
    Status.EMPTY_TEXT: "failed text is empty",
    Status.DUPLICATE: "failed already stored",
    Status.NOT_CONFIRMED: "failed not confirmed",
    Status.NOTHING_FOUND: "found nothing",
    Status.NOTHING_TO_EDIT: "found nothing to summarise",
    Status.NO_ROOM: "failed context is full",
    Status.EDIT_LIMIT: "failed no further context edits",
    Status.MALFORMED: "failed not in the tool format",
    Status.NOT_RUN: "not run",
    Status.UNCHANGED: "no change",
}


def active_tools(config) -> tuple[Tool, ...]:
    """The enabled tools with the arguments that may be written, in the order of Op.

    Args:
      config: the `tools` group of the run config.

    Raises:
      ConfigError: an enabled name is no tool, or a number is out of range.
    """
    unknown = sorted(set(config.enabled) - set(TOOL_NAMES))
    if unknown:
        refuse("tools.enabled", tuple(config.enabled), f"{unknown} are no tools; these are {list(TOOL_NAMES)}")
    if config.summary_by not in ("policy", "call"):
        refuse("tools.summary_by", config.summary_by, "must be 'policy' or 'call'")
    if not 1 <= config.max_top_k <= 9:
        refuse("tools.max_top_k", config.max_top_k, "is written as one digit, 1 to 9")
    tools = []
    for tool in TOOLS:
        if tool.name not in config.enabled:
            continue
        arguments = [a for a in tool.arguments if a.required or _may_be_written(a, config)]
        if tool.op == Op.SUMMARY and config.summary_by == "call":
            arguments.append(_SUMMARY)
        tools.append(replace(tool, arguments=tuple(arguments)))
    return tuple(tools)


def _may_be_written(argument: Argument, config) -> bool:
    return config.optional_arguments and (argument.kind is not Kind.TAGS or config.max_tags > 0)


def tool_schemas(config) -> list[dict]:
    """The enabled tools as JSON schemas in the layout of chat templates: `{"type": "function", "function": {...}}`."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": {a.name: _schema(a, config) for a in tool.arguments},
                    "required": [a.name for a in tool.arguments if a.required],
                },
            },
        }
        for tool in active_tools(config)
    ]


def _schema(argument: Argument, config) -> dict:
    string = {"type": "string"}
    value = {
        Kind.TEXT: string,
        Kind.LABEL: string,
        Kind.ID: {"type": "string", "pattern": f"^[0-9]{{1,{MAX_ID_DIGITS}}}$"},
        Kind.FLAG: {"type": "boolean"},
        Kind.COUNT: {"type": "integer", "minimum": 1, "maximum": config.max_top_k},
        Kind.SPAN: {"type": "string", "pattern": "^(all|[1-9])$"},
        Kind.TAGS: {"type": "object", "additionalProperties": string, "maxProperties": config.max_tags},
    }[argument.kind]
    return value | {"description": argument.description}


def write_calls(calls: list[dict], config) -> str:
    """Calls `{"name": ..., "arguments": {...}}` as a turn writes them in the configured format.

    None are an empty array; in hermes nothing, as in the models' chat templates.
    """
    if not calls and config.format == "hermes":
        return ""
    first, between, last = CALL_MARKS[config.format]
    return first + between.join(json.dumps(call, ensure_ascii=False) for call in calls) + last


def read_calls(turn: str) -> list:
    """What the blocks of a turn hold, in either format; calls if the turn is well formed.

    Raises:
      ValueError: a block is no JSON.
    """
    calls = []
    for block in _BLOCK.findall(turn):
        read = json.loads(block)
        calls += read if isinstance(read, list) else [read]
    return calls


def validate_call(call: dict, config) -> None:
    """Checks one parsed call `{"name": ..., "arguments": {...}}` against the enabled tools.

    Raises:
      ValueError: names the tool, the argument and the value that is wrong.
    """
    tools = {tool.name: tool for tool in active_tools(config)}
    if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        raise ValueError(f"a call must be an object with name and arguments, got {call!r}")
    if call["name"] not in tools:
        raise ValueError(f"{call['name']!r} is not an enabled tool; these are {list(tools)}")
    tool, given = tools[call["name"]], call["arguments"]
    known = {a.name: a for a in tool.arguments}
    for name in given:
        if name not in known:
            raise ValueError(f"{tool.name} has no argument {name!r}; it takes {list(known)}")
    for argument in tool.arguments:
        if argument.name not in given:
            if argument.required:
                raise ValueError(f"{tool.name} lacks the argument {argument.name!r}")
        elif not _valid(given[argument.name], argument, config):
            expected = _schema(argument, config)
            raise ValueError(f"{tool.name}.{argument.name} is {given[argument.name]!r}; expected {expected}")


def _valid(value, argument: Argument, config) -> bool:
    if argument.kind is Kind.FLAG:
        return isinstance(value, bool)
    if argument.kind is Kind.COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= config.max_top_k
    if argument.kind is Kind.TAGS:
        return isinstance(value, dict) and len(value) <= config.max_tags and all(type(v) is str for v in value.values())
    if not isinstance(value, str):
        return False
    if argument.kind is Kind.ID:
        return value.isascii() and value.isdigit() and len(value) <= MAX_ID_DIGITS
    return argument.kind is not Kind.SPAN or value in ("all", *"123456789")
