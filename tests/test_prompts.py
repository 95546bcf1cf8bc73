"""The system prompt: its example is in the configured format, and shows enabled tools alone."""

import json
import re

import numpy as np
import pytest
from vocabularies import write_bpe

from agemem_jax.data.prompts import EXAMPLE_CALLS, build_pieces, example, system_prompt
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.tools.schemas import STATUS_TEXT, validate_call
from agemem_jax.types import Op, Status
from configs import base

BODY = re.compile(r"assistant: <think>([^<]*)</think>(?:<tool_call>([^<]*)</tool_call>|<answer>([^<]*)</answer>)")


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
        calls = json.loads(body) if format == "paper" else [json.loads(body)]
        for call in calls:
            validate_call(call, tools)
            shown.append(call["name"])
    assert shown == [name for name in enabled if name in ("Add_memory", "Retrieve_memory")]
    assert turns[-1][2].strip() == "1889"
    assert example(tools) in system_prompt(tools)


def test_without_thinking_the_example_does_not_think():
    tools = base.get_config().tools
    tools.think = False
    assert all(not thought for thought, _, _ in BODY.findall(example(tools)))


def test_the_example_shows_results_as_the_agent_will_see_them(tmp_path):
    tokenizer = Tokenizer.load(write_bpe(tmp_path))
    pieces = build_pieces(tokenizer, base.get_config())

    def text(piece, *index) -> str:
        return tokenizer.decode(np.asarray(piece.tokens)[index][: int(np.asarray(piece.length)[index])].tolist())

    number, entry = text(pieces.numbers, 1), EXAMPLE_CALLS[0][2]["arguments"]["content"]
    added = text(pieces.statuses, Op.ADD, Status.OK) + number
    found = text(pieces.statuses, Op.RETRIEVE, Status.OK)
    found += text(pieces.line_break) + entry + text(pieces.id_mark) + number
    assert not pieces.id_first and [shown for *_, shown in EXAMPLE_CALLS] == [added, found]
    refused = text(pieces.statuses, Op.ADD, Status.STORE_FULL)
    assert refused == f"Add_memory: {STATUS_TEXT[Status.STORE_FULL]}"
