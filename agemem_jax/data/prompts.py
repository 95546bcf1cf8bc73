"""Every fixed string that an agent reads: the system prompt and the pieces that observations are composed of."""

import json
from dataclasses import dataclass

import numpy as np

from agemem_jax.data.tokenizer import ChatPieces, Tokenizer
from agemem_jax.tools.schemas import STATUS_TEXT, tool_schemas, write_calls
from agemem_jax.types import NUM_OPS, NUM_STATUSES, PAD_ID, TOOL_NAMES, Op, Pieces, Status, Text

MAX_MEMORY_ID = 999  # ids are shown as text up to this number

SUMMARY_PROMPT = (
    "Summarise the conversation above for your own later use. Keep every name, place, date and number that may matter "
    "for the task; drop small talk and repetition. Write the summary only."
)
SHORT_SUMMARY_PROMPT = " summarise"
RELATED = " related memories"
SUMMARY_OPEN = " summary"

SYSTEM_PROMPT = """You are an agent that manages its own memory{acts}. You have a long-term store, which survives when \
the conversation is emptied, and a working context of limited length.

# Tools
{tools}

# Workflow
- A message tells a fact: store what is worth keeping; correct or delete what is outdated; let the rest pass.
{workflow}
- The context grows long or holds irrelevant messages: summarise or filter it.

# Format
Always begin with a <think> block of one short sentence, then write exactly one of
{call_format}
or {action}
Nothing may stand outside these tags. Strings are JSON: write \\" for a quotation mark and \\\\ for a backslash. They \
hold no line breaks and no tags.{brief}

# Example
{example}"""

# Of an agent without tools (training/evaluate.py: METHODS).
PLAIN_PROMPT = """You are an agent that {does}.

# Workflow
{workflow}

# Format
Always begin with a <think> block of one short sentence, then write
{action}
Nothing may stand outside these tags. They hold no tags.{brief}

# Example
{example}"""


@dataclass(frozen=True)
class TaskWords:
    """What a prompt says of the task."""

    acts: str  # beside its memory, what the agent does
    does: str  # without tools
    workflow: str
    plain_workflow: str
    action: str  # how one is written
    asked: str  # the example's last message
    found: str  # the thought before it is searched for
    query: str
    thought: str  # before the action
    plain_thought: str
    example: str  # the action


TASKS = {  # by tools.action_tag
    "answer": TaskWords(
        acts="",
        does="answers a question about the conversation before it",
        workflow="- A message asks a question: retrieve what you stored.\n"
        "- What you need is in view: write the answer.",
        plain_workflow="- A message tells something: it needs no reply.\n"
        "- A message asks a question: write the answer, from what is in view.",
        action="<answer> your short final answer</answer>",
        asked="When was the Eiffel Tower completed?",
        found=" The user asks a question, so I search my memory",
        query="Eiffel Tower completed",
        thought=" The memory that I found answers the question",
        plain_thought=" The first message answers the question",
        example=" 1889",
    ),
    "action": TaskWords(
        acts=" and acts in a world that answers in text",
        does="acts in a world that answers in text",
        workflow="- A message gives a goal: retrieve what you stored about it.\n"
        "- You know what to do next: write one action, and read what comes of it.",
        plain_workflow="- A message tells something: it needs no reply.\n"
        "- A message gives a goal: write one action at a time, and read what comes of it.",
        action="<action> one action</action>",
        asked="Your goal: go to where the Eiffel Tower is.",
        found=" The user gives a goal, so I search my memory",
        query="Eiffel Tower",
        thought=" The memory that I found says where it is",
        plain_thought=" The first message says where it is",
        example=" go to Paris",
    ),
}

# The example; turns of tools that are not enabled are left out. Byte-level BPE merges
# ">The" and ".</" into tokens that the grammar keeps apart, and a policy that reads them merged avoids such beginnings
# and ends in what it writes: hence the space after a mark and no full stop before one.
TOLD = "By the way: The Eiffel Tower is a tower in Paris, which was completed in 1889."
STORED = "The Eiffel Tower in Paris was completed in 1889"

PAPER_CALLS = """<tool_call>[{"name": tool name, "arguments": {...}}, ...]</tool_call> with COUNT"""
HERMES_CALLS = """<tool_call>
{"name": tool name, "arguments": {...}}
</tool_call> """
HERMES_ONE, HERMES_SEVERAL = "with a single call", "for each of COUNT, one block below the other"
NO_CALLS = {
    "paper": "\nor <tool_call>[]</tool_call> to let a message pass",
    "hermes": "\nor nothing more, to let a message pass",
}


def system_message(tokenizer: Tokenizer, tools, plain: bool = False) -> str:
    """What the system message says, `plain` to an agent without tools; in the tiny vocabulary nothing."""
    if tokenizer.is_small:
        return ""
    return plain_prompt(tools) if plain else system_prompt(tools)


def plain_prompt(tools) -> str:
    """What an agent without tools is told."""
    task = TASKS[tools.action_tag]
    lines = [f"user: {TOLD}", f"user: {task.asked}", example_turn(task.plain_thought, _example_action(tools), tools)]
    return PLAIN_PROMPT.format(
        does=task.does, workflow=task.plain_workflow, action=task.action, brief=_brief(tools), example="\n".join(lines)
    )


def system_prompt(tools) -> str:
    """The paper's system prompt in our words: tools, workflow, strict format. `tools` is config.tools."""
    task, schemas = TASKS[tools.action_tag], "\n".join(json.dumps(schema) for schema in tool_schemas(tools))
    return SYSTEM_PROMPT.format(
        acts=task.acts, tools=schemas, workflow=task.workflow, call_format=call_format(tools), action=task.action,
        brief=_brief(tools), example=example(tools),
    )  # fmt: skip


def _brief(tools) -> str:
    return f"\n\n# Actions\n{tools.action_brief}" if tools.action_brief else ""


def _example_action(tools) -> str:
    return f"<{tools.action_tag}>{TASKS[tools.action_tag].example}</{tools.action_tag}>"


def example_calls(tools) -> list[tuple[str, str, dict, str]]:
    """What is said, thought, called and returned."""
    task = TASKS[tools.action_tag]
    add = {"name": "Add_memory", "arguments": {"content": STORED}}
    search = {"name": "Retrieve_memory", "arguments": {"query": task.query}}
    return [
        (TOLD, " The user tells me a fact, so I store it", add, "Add_memory: done, memory_id=1"),
        (task.asked, task.found, search, f"Retrieve_memory: done\n{STORED} | memory_id=1"),
    ]


def call_format(tools) -> str:
    """How calls are written and how many, by the format and its numbers of calls."""
    least, most = max(tools.min_calls, 1), tools.max_calls
    number = str(most) if least == most else f"{'one' if least == 1 else least} to {most}"
    count = "a single call" if most == 1 else f"{number} calls"
    if tools.format == "paper":
        text = PAPER_CALLS
    else:
        text = HERMES_CALLS + (HERMES_ONE if most == 1 else HERMES_SEVERAL)
    text = text.replace("COUNT", count) + (NO_CALLS[tools.format] if tools.min_calls == 0 else "")
    if tools.turn == "both":
        text += f"\nor calls with {TASKS[tools.action_tag].action} behind them"
    return text


def example(tools) -> str:
    """A short conversation in the configured format; small policies follow it where they miss the instructions."""
    lines = []
    for said, thought, call, result in example_calls(tools):
        if call["name"] in tools.enabled:
            lines += [f"user: {said}", example_turn(thought, write_calls([call], tools), tools), f"tool: {result}"]
    return "\n".join([*lines, example_turn(TASKS[tools.action_tag].thought, _example_action(tools), tools)])


def example_turn(thought: str, body: str, tools) -> str:
    """A turn of the example conversation."""
    return f"assistant: <think>{thought if tools.think else ''}</think>{body}"


def symbols() -> list[str]:
    """Strings of this file that the tiny vocabulary holds as single pieces."""
    return [*(" " + text for text in STATUS_TEXT.values()), SHORT_SUMMARY_PROMPT, RELATED, SUMMARY_OPEN, ":"]


def padded(rows: list[list[int]]) -> Text:
    """Token lists as one padded Text [n, w]."""
    width = max([len(row) for row in rows] + [1])
    tokens = np.full((len(rows), width), PAD_ID, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return Text(tokens, np.array([len(row) for row in rows], np.int32))


def build_pieces(tokenizer: Tokenizer, config) -> Pieces:
    """Tokenises every fixed string. The tiny vocabulary (a sentencepiece model) gets short forms of the prompts.

    Observations are composed of these and of texts, and have the tokens that their whole text has: other programs
    tokenise it at once (data/chat_template.py). Byte-level BPE first cuts a text into words; punctuation before a
    letter or a line end, a space before a word or a number are in one word with it. So an entry, whatever it ends in,
    is followed by " |", and what it begins with by nothing but a line end before it: entries are stored without a
    space; every line of results ends in a letter or a number, for a line end or the close may follow.
    """
    chat: ChatPieces = tokenizer.chat_pieces(config.policy.date_string)
    short = tokenizer.is_small
    encode = tokenizer.encode_markup

    def one(text: str) -> Text:
        table = padded([encode(text)])
        return Text(table.tokens[0], table.length[0])

    end = chat.message_close
    after = end[len(chat.end_of_turn) :]
    statuses = []
    for op in range(NUM_OPS):
        name = TOOL_NAMES[op] + ":" if op < len(TOOL_NAMES) and not short else ""
        for s in range(NUM_STATUSES):
            number_follows = op == Op.ADD and s == Status.OK and not short
            statuses.append(encode(f"{name} {STATUS_TEXT[Status(s)]}" + (", memory_id=" if number_follows else "")))
    table = padded(statuses)
    shape = (NUM_OPS, NUM_STATUSES)
    assert Op.WRITE_SUMMARY == NUM_OPS - 1
    prefixes = padded(
        [encode(chat.system_open + system_message(tokenizer, config.tools, plain) + end) for plain in (False, True)]
    )
    return Pieces(
        prefix=Text(prefixes.tokens[:1], prefixes.length[:1]),
        plain_prefix=Text(prefixes.tokens[1:], prefixes.length[1:]),
        user_open=one(chat.user_open),
        assistant_open=one(chat.assistant_open),
        tool_open=one(chat.tool_open),
        close=one(end),
        tool_close=one(chat.tool_close),
        after_turn=one(after),
        summary_prompt=one(SHORT_SUMMARY_PROMPT if short else SUMMARY_PROMPT),
        summary_open=one(SUMMARY_OPEN if short else "Summary of earlier messages:\n"),
        statuses=Text(table.tokens.reshape(*shape, -1), table.length.reshape(shape)),
        numbers=padded([encode(str(i)) for i in range(MAX_MEMORY_ID + 1)]),
        id_mark=one(":" if short else " | memory_id="),
        line_break=one("" if short else "\n"),
        related=one(RELATED if short else "Related memories"),
        seen_open=one("" if tokenizer.unspelt and tokenizer.unspelt("\n") else "\n"),
        id_first=short,
    )
