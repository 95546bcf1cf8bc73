"""The system prompt: its example is in the configured format, and shows enabled tools alone."""

import re

import numpy as np
import pytest
from vocabularies import write_bpe

from agemem_jax.data.prompts import build_pieces, example, example_calls, system_message, system_prompt
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.tools.schemas import STATUS_TEXT, read_calls, validate_call
from agemem_jax.types import TOOL_NAMES, Op, Status
from configs import base

BODY = re.compile(r"assistant: <think>([^<]*)</think>(?:(<tool_call>[^<]*</tool_call>)|<answer>([^<]*)</answer>)")


@pytest.mark.parametrize("format", ["paper", "hermes"])
@pytest.mark.parametrize("enabled", [("Add_memory", "Retrieve_memory"), ("Retrieve_memory", "Filter_context"), ()])
def test_the_example_is_in_the_format(format, enabled):
    tools = base.get_config().tools
    tools.format, tools.enabled = format, enabled
    turns = BODY.findall(example(tools))
    shown = []
    for thought, body, answer in turns:
        assert thought
        if answer:
            continue
        assert body.startswith("<tool_call>[{" if format == "paper" else "<tool_call>\n{")
        for call in read_calls(body):
            validate_call(call, tools)
            shown.append(call["name"])
    assert shown == [name for name in enabled if name in ("Add_memory", "Retrieve_memory")]
    assert turns[-1][2].strip() == "1889"
    assert example(tools) in system_prompt(tools)


@pytest.mark.parametrize(
    ("format", "least", "most", "told"),
    [
        ("paper", 1, 3, "...]</tool_call> with one to 3 calls\nor <answer>"),
        ("paper", 1, 1, "...]</tool_call> with a single call\nor <answer>"),
        ("paper", 2, 2, "...]</tool_call> with 2 calls\nor <answer>"),
        ("paper", 0, 2, "with one to 2 calls\nor <tool_call>[]</tool_call> to let a message pass\nor <answer>"),
        ("hermes", 1, 1, "{...}}\n</tool_call> with a single call\nor <answer>"),
        ("hermes", 1, 3, "{...}}\n</tool_call> for each of one to 3 calls, one block below the other\nor <answer>"),
        ("hermes", 0, 1, "with a single call\nor nothing more, to let a message pass\nor <answer>"),
    ],
)
def test_the_prompt_tells_how_many_calls_a_turn_holds(format, least, most, told):
    tools = base.get_config().tools
    tools.format, tools.min_calls, tools.max_calls = format, least, most
    assert told in system_prompt(tools)


def test_the_prompt_tells_how_strings_are_escaped():
    assert r'write \" for a quotation mark and \\ for a backslash' in system_prompt(base.get_config().tools)


def test_without_thinking_the_example_does_not_think():
    tools = base.get_config().tools
    tools.think = False
    assert all(not thought for thought, _, _ in BODY.findall(example(tools)))


def test_who_only_answers_has_a_prompt_without_tools(tmp_path):
    config = base.get_config()
    tokenizer = Tokenizer.load(write_bpe(tmp_path))
    text = system_message(tokenizer, config.tools, plain=True)
    assert not [name for name in TOOL_NAMES if name in text] and "tool_call" not in text and "memory" not in text
    ((thought, call, answer),) = BODY.findall(text)
    assert thought and not call and answer.strip() == "1889"
    pieces = build_pieces(tokenizer, config)
    assert pieces.plain_prefix.tokens.shape == pieces.prefix.tokens.shape
    assert pieces.plain_prefix.length[0] < pieces.prefix.length[0] / 2
    assert text in tokenizer.decode(pieces.plain_prefix.tokens[0][: pieces.plain_prefix.length[0]].tolist())


def test_the_example_shows_results_as_the_agent_will_see_them(tmp_path):
    tokenizer = Tokenizer.load(write_bpe(tmp_path))
    pieces = build_pieces(tokenizer, base.get_config())

    def text(piece, *index) -> str:
        return tokenizer.decode(np.asarray(piece.tokens)[index][: int(np.asarray(piece.length)[index])].tolist())

    calls = example_calls(base.get_config().tools)
    number, entry = text(pieces.numbers, 1), calls[0][2]["arguments"]["content"]
    added = text(pieces.statuses, Op.ADD, Status.OK) + number
    found = text(pieces.statuses, Op.RETRIEVE, Status.OK)
    found += text(pieces.line_break) + entry + text(pieces.id_mark) + number
    assert not pieces.id_first and [shown for *_, shown in calls] == [added, found]
    refused = text(pieces.statuses, Op.ADD, Status.STORE_FULL)
    assert refused == f"Add_memory: {STATUS_TEXT[Status.STORE_FULL]}"
