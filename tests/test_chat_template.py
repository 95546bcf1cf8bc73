"""What an exported folder renders is the layout of training: pieces that compose, and messages of every kind."""

import json
import os
import random
import shutil

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import DATE, END, write_bpe

from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.data.chat_template import chat_template
from agemem_jax.data.gguf_vocabulary import PRE_TOKENIZERS
from agemem_jax.data.prompts import build_pieces, system_message
from agemem_jax.data.scripts import write_turn
from agemem_jax.data.tokenizer import Tokenizer, write_hf
from agemem_jax.tools.schemas import tool_schemas
from agemem_jax.types import Op, Status
from configs import base

WORDS = ("gpt-2", "smollm", "qwen2", "llama-bpe")  # how a text is cut before merging
SHOWN = 'Add_memory: done, memory_id=7\nRetrieve_memory: done\n"Silver River" (1984). | memory_id=12\n</tool_response>'
LLAMA_TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for m in messages %}<|im_start|>"
    "{{ 'ipython' if m.role == 'tool' else m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A byte-level BPE for each way to cut text into words."""
    root = tmp_path_factory.mktemp("bpe")
    return {name: write_bpe(root / name, pre_tokenizer=PRE_TOKENIZERS[name][0], texts=(SHOWN,)) for name in WORDS}


def exported(source: str, target, tools, chat=None):
    """(our tokenizer, transformers' one of the folder that `write_hf` makes of it)."""
    ours = Tokenizer.load(source)
    chat = chat or ours.chat_pieces(DATE)
    write_hf(source, target, chat_template(chat, system_message(ours, tools), tools, ours.is_small))
    return ours, transformers.AutoTokenizer.from_pretrained(target)


COMMON = st.sampled_from("aZé东 .,:;!?\"'()[]<|>#=-_/\\&1290")
ANY = st.characters(codec="utf-8", exclude_categories=["C"])
# A mark in what somebody says is text to us (tests/test_tokenizer.py), and a token to those who cut the whole text.
MARKS = ("<|endoftext|>", "<|im_start|>", END, "<tool_call>", "</tool_call>")
ENTRIES = st.text(COMMON | ANY, min_size=1).filter(
    lambda text: not text[0].isspace() and not any(mark in text for mark in MARKS)
)


CACHE: dict = {}


def pieces_of(path: str):
    if path not in CACHE:
        tokenizer = Tokenizer.load(path)
        CACHE[path] = tokenizer, build_pieces(tokenizer, base.get_config())
    return CACHE[path]


def observed(pieces, entry: list[int], number: int) -> dict[str, list[list[int]]]:
    """Messages by kind as an agent is shown them, with an entry's (a message's, a summary's) tokens."""

    def row(text, *index) -> list[int]:
        return np.asarray(text.tokens)[index][: int(np.asarray(text.length)[index])].tolist()

    status = lambda op, s: row(pieces.statuses, op, s)  # noqa: E731
    shown, line_break = row(pieces.numbers, number), row(pieces.line_break)
    line = line_break + entry + row(pieces.id_mark) + shown
    related = row(pieces.related) + line + line
    results = [
        *status(Op.ADD, Status.OK), *shown, *line_break, *status(Op.RETRIEVE, Status.OK), *line, *line, *line_break,
        *status(Op.DELETE, Status.UNKNOWN_ID), *line_break, *related,
    ]  # fmt: skip
    tool = lambda text: row(pieces.tool_open) + text + row(pieces.tool_close)  # noqa: E731
    user = lambda text: row(pieces.user_open) + text + row(pieces.close)  # noqa: E731
    return {
        "prompt": [row(pieces.prefix, 0), row(pieces.assistant_open)],
        "tool": [tool(results), tool(related)],
        "user": [user(entry), user(row(pieces.summary_prompt))],
        "summary": [user(row(pieces.summary_open) + entry)],
    }


@pytest.mark.parametrize("words", WORDS)
@given(entry=ENTRIES, number=st.integers(0, 999))
@example("Ada Keller was born in Halden.", 1)
@example('"Silver River" (1984)', 12)
@settings(max_examples=60)
def test_observations_have_the_tokens_of_their_whole_text(folders, words, entry, number):
    """Whatever an entry, a summary or a message holds: other programs tokenise the whole text at once."""
    tokenizer, pieces = pieces_of(folders[words])
    messages = sum(observed(pieces, tokenizer.encode(entry), number).values(), [])
    for message in [*messages, sum(messages, [])]:
        assert tokenizer.encode_markup(tokenizer.decode(message)) == message


@pytest.mark.weights
@pytest.mark.skipif("AGEMEM_HOTPOTQA" not in os.environ, reason="set AGEMEM_HOTPOTQA to a published HotpotQA file")
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "smollm2-135m-instruct-q4_1.gguf"])
def test_share_of_real_messages_with_the_tokens_of_their_text(name, capsys):
    """Facts of HotpotQA as messages, as entries that a policy stored and is shown, and in the turns that store them."""
    tokenizer, pieces = pieces_of(os.path.join(os.environ["AGEMEM_WEIGHTS_DIR"], name))
    same: dict[str, list[bool]] = {}

    def check(kind: str, ids: list[int]) -> None:
        same.setdefault(kind, []).append(tokenizer.encode_markup(tokenizer.decode(ids)) == ids)

    call = '</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "'
    literals = ("<think>", call, '"}}]</tool_call>' + END)
    thought = tokenizer.encode(" The user tells me a fact, so I store it")
    for record in hotpotqa.load(os.environ["AGEMEM_HOTPOTQA"])[:40]:
        staged = hotpotqa.stages(record, random.Random(0), facts=8, distractors=3, casual=True)
        for number, text in enumerate(staged.gold + staged.facts + staged.distractors + [staged.query]):
            for kind, messages in observed(pieces, tokenizer.encode(text), number).items():
                for ids in messages:
                    check(kind, ids)
            for kind, content in (("turn", text), ("turn without the full stop", text.rstrip(".?!"))):
                parts = zip(literals, (thought, tokenizer.encode(content), []), strict=True)
                check(kind, sum((tokenizer.encode_markup(literal) + field for literal, field in parts), []))
    with capsys.disabled():
        print(f"\n{name}: " + ", ".join(f"{kind} {np.mean(x):.4f} of {len(x)}" for kind, x in same.items()))
    assert all(all(same[kind]) for kind in ("prompt", "tool", "user", "summary"))
    assert np.mean(same["turn without the full stop"]) > 0.8


@pytest.mark.parametrize("format", ["paper", "hermes"])
def test_messages_stand_as_they_are_and_calls_as_the_policy_writes_them(folders, tmp_path, format):
    tools = base.get_config().tools
    tools.format = format
    ours, loaded = exported(folders["qwen2"], tmp_path, tools)
    chat, prompt = ours.chat_pieces(DATE), system_message(ours, tools)
    said = "  It's \\n 'so' {{ messages }} é \n"
    calls = [
        (Op.ADD, {"content": 'the "Silver" \\ River, café', "metadata": {"kind": "东"}}),
        (Op.RETRIEVE, {"query": "Ada", "top_k": 2}),
    ][: 1 if format == "hermes" else 2]  # fmt: skip
    turn = write_turn(tools, calls).removeprefix("<think></think>")
    made = [
        {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in (("Add_memory", calls[0][1]), ("Retrieve_memory", json.dumps(calls[-1][1])))
    ][: len(calls)]  # fmt: skip
    messages = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "<think> so</think>", "tool_calls": made},
        {"role": "tool", "content": f"Add_memory: done{said}", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "tool_calls": made},
        {"role": "assistant", "content": f"<think> earlier</think><answer>{said}</answer>{END}"},
        {"role": "tool", "content": ""},
    ]
    body = (
        chat.user_open + said + chat.message_close + chat.assistant_open + "<think> so</think>" + turn
        + chat.message_close + chat.tool_open + f"Add_memory: done{said}" + chat.tool_close + chat.assistant_open + turn
        + chat.message_close + chat.assistant_open + f"<think> earlier</think><answer>{said}</answer>"
        + chat.message_close + chat.tool_open + chat.tool_close
    )  # fmt: skip
    render = lambda messages, **more: loaded.apply_chat_template(messages, tokenize=False, **more)  # noqa: E731
    expected = chat.system_open + prompt + chat.message_close + body
    assert render(messages) == expected
    assert render(messages, tools=tool_schemas(tools), add_generation_prompt=True) == expected + chat.assistant_open
    assert render([{"role": "system", "content": prompt}, *messages]) == expected
    other = chat.system_open + said + chat.message_close
    assert render([{"role": "system", "content": said}, *messages]) == other + body
    with pytest.raises(Exception, match="not trained with the tool Search"):
        render(messages, tools=[{"type": "function", "function": {"name": "Search"}}])
    with pytest.raises(Exception, match="system message cannot stand here"):
        render([messages[0], {"role": "system", "content": said}])
    with pytest.raises(Exception, match="A critic message cannot stand here"):
        render([{"role": "critic", "content": said}])
    assert Tokenizer.load(str(tmp_path)).chat_pieces(DATE) == chat  # trained further, it keeps its layout


def test_nothing_of_the_source_comes_before_the_layout_of_training(tmp_path):
    """Its templates by other names, a token that its tokenizer puts first, texts that it would trim or clean up."""
    source = write_bpe(tmp_path / "source", LLAMA_TEMPLATE, PRE_TOKENIZERS["llama-bpe"][0])
    stored = json.loads((tmp_path / "source" / "tokenizer.json").read_text())
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    whole = {"Sequence": {"id": "A", "type_id": 0}}
    number = next(token["id"] for token in stored["added_tokens"] if token["content"] == "<|endoftext|>")
    known = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [number], "tokens": ["<|endoftext|>"]}}
    stored["post_processor"] = {
        "type": "TemplateProcessing", "single": [first, whole], "pair": [first, whole], "special_tokens": known,
    }  # fmt: skip
    stored["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "source" / "tokenizer.json").write_text(json.dumps(stored))
    settings = json.loads((tmp_path / "source" / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<|endoftext|>", "add_bos_token": True, "clean_up_tokenization_spaces": True}
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    shutil.copytree(source, out)
    (out / "chat_template.json").write_text(json.dumps({"chat_template": "another"}))
    (out / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "tool_use.jinja").write_text("another")
    (out / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tools = base.get_config().tools
    ours, loaded = exported(source, out, tools)
    chat = ours.chat_pieces(DATE)
    assert chat.system_open.startswith("<|endoftext|>") and chat.tool_open == "<|im_start|>ipython\n\n"
    text = " Ada 's . \n"
    expected = chat.system_open + system_message(ours, tools) + END + chat.user_open + text + END
    messages = [{"role": "user", "content": text}]
    for offered in (None, tool_schemas(tools)):
        assert loaded.apply_chat_template(messages, tools=offered, tokenize=False) == expected
        ids = loaded.apply_chat_template(messages, tools=offered, return_dict=True)["input_ids"]
        assert ids == ours.encode_markup(expected) == loaded(expected)["input_ids"] and ids.count(number) == 1
    assert loaded.decode(ids) == expected
    assert sorted(os.listdir(out)) == ["chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"]
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
