"""Chat templates: released models' in miniature, rendered as transformers does; what depends on more is refused."""

import json
import re

import jinja2
import pytest
import transformers
from vocabularies import DATE, END, write_bpe

from agemem_jax.data import chat
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError

TALK = [("system", "be brief"), ("user", "hello"), ("assistant", "yes"), ("user", "so"), ("assistant", "it is")]
TOOLS = [("system", "be brief"), ("user", "hello"), ("assistant", "look"), ("tool", "found"), ("assistant", "so")]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n"
    "    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n'
    "    {%- else %}\n"
    '        {%- set date_string = "26 Jul 2024" %}\n'
    "    {%- endif %}\n"
    "{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n"
    '    {%- set system_message = "" %}\n'
    "{%- endif %}\n"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    "{%- if tools is not none %}\n"
    '    {{- "Environment: ipython\\n" }}\n'
    "{%- endif %}\n"
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n'
    "{{- system_message }}\n"
    '{{- "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n"
    "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n"
    "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim "
    "+ '<|eot_id|>' }}\n"
    "    {%- elif message.role == \"tool\" or message.role == \"ipython\" %}\n"
    '        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}\n'
    "        {%- if message.content is mapping or message.content is iterable %}\n"
    "            {{- message.content | tojson }}\n"
    "        {%- else %}\n"
    "            {{- message.content }}\n"
    "        {%- endif %}\n"
    '        {{- "<|eot_id|>" }}\n'
    "    {%- endif %}\n"
    "{%- endfor %}\n"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    '(message.role == "assistant" and not message.tool_calls) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    '    {%- elif message.role == "tool" %}\n'
    '        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}\n'
    "            {{- '<|im_start|>user' }}\n"
    "        {%- endif %}\n"
    "        {{- '\\n<tool_response>\\n' }}\n"
    "        {{- message.content }}\n"
    "        {{- '\\n</tool_response>' }}\n"
    '        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}\n'
    "            {{- '<|im_end|>\\n' }}\n"
    "        {%- endif %}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
)
QWEN3 = (
    "{%- set ns = namespace(last=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n"
    "    {%- if message.role == 'user' and message.content is string and ns.last == messages|length - 1 %}\n"
    "        {%- set ns.last = messages|length - 1 - loop.index0 %}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- for message in messages %}\n"
    "    {%- set content = message.content %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {%- set reasoning_content = '' %}\n"
    "        {%- if message.reasoning_content is string %}\n"
    "            {%- set reasoning_content = message.reasoning_content %}\n"
    "        {%- elif '</think>' in content %}\n"
    "            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- endif %}\n"
    "        {%- if loop.index0 > ns.last and reasoning_content %}\n"
    "            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content }}\n"
    "        {%- else %}\n"
    "            {{- '<|im_start|>assistant\\n' + content }}\n"
    "        {%- endif %}\n"
    "        {{- '<|im_end|>\\n' }}\n"
    "    {%- elif message.role == 'tool' %}\n"
    "        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}\n"
    "    {%- else %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}{%- endif %}\n"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)
MARKED = (  # transformers' own tag for what is learned from
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
TEMPLATES = {"llama": LLAMA, "qwen25": QWEN25, "qwen3": QWEN3, "smollm2": SMOLLM2, "marked": MARKED}
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('Only user and assistant roles are "
    "supported!\nReally.') }}{% endif %}[INST]{{ m.content }}{{ eos_token }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
)
NO_TOOLS = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + m.role) }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
)


def loaded(folder, template) -> Tokenizer:
    """A vocabulary with this template; Llama's ends turns as its own does."""
    write_bpe(folder, template)
    if isinstance(template, str) and "<|eot_id|>" in template:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (folder / name).read_text().replace(f'"{END}"', '"<|eot_id|>"')
            (folder / name).write_text(text)
    return Tokenizer.load(str(folder))


@pytest.mark.parametrize("name", TEMPLATES)
def test_pieces_compose_to_what_transformers_renders(tmp_path, name):
    tokenizer = loaded(tmp_path, TEMPLATES[name])
    pieces = tokenizer.chat_pieces(DATE)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for talk in (TALK, TOOLS):
        messages = [{"role": role, "content": content} for role, content in talk]
        expected = theirs.apply_chat_template(messages, tokenize=False, date_string=DATE)
        assert tokenizer.render(messages, DATE) == expected
        composed = "".join(
            getattr(pieces, f"{role}_open") + text + (pieces.tool_close if role == "tool" else pieces.message_close)
            for role, text in talk
        )
        assert composed == expected


def test_the_date_is_the_configs(tmp_path):
    tokenizer = loaded(tmp_path, LLAMA)
    assert "Today Date: 26 Jul 2024\n\n" in tokenizer.chat_pieces(DATE).system_open
    assert "Today Date: 1 Jan 1970\n\n" in tokenizer.chat_pieces("1 Jan 1970").system_open
    assert tokenizer.end_of_turn == "<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (MISTRAL, "refuses messages of the roles system, user, assistant, .*: Only user and assistant .* Really"),
        (GEMMA, "refuses messages of the roles .*: System role not supported"),
        (NO_TOOLS, "refuses messages of the roles system, user, assistant, tool, .*: Unknown role: tool"),
        ("{% for m in messages %}{{ m.content }}", "cannot be read, line 1: Unexpected end of template"),
        ("{{ messages[0].content | shuffle }}", "cannot be read, line 1: No filter named 'shuffle'"),
        ("{{ ['a', 'b'] | random }}" + CHATML, "No filter named 'random'"),
        ("{{ lipsum() }}" + CHATML, "needs what neither .*'lipsum' is undefined"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, "asks for the time"),
        ("{{ now() }}" + CHATML, "needs what neither the messages nor the config give: 'now' is undefined"),
        ("{{ user_name }}" + CHATML, "'user_name' is undefined"),
        ("{{ messages[0].name }}" + CHATML, "has no attribute 'name'"),
        ("{{ messages[0].__class__.__mro__ }}" + CHATML, "unsafe"),
        ("{{ 1 / 0 }}" + CHATML, "division by zero"),
        ("{{ messages[0].content + 1 }}" + CHATML, "cannot be used: can only concatenate str"),
        ("{% include 'other' %}" + CHATML, "cannot be used"),
    ],
)
def test_templates_that_need_or_refuse_something_are_named_in_one_line(tmp_path, template, message):
    tokenizer = loaded(tmp_path, template)
    with pytest.raises(InputError, match=message) as caught:
        tokenizer.chat_pieces(DATE)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_absent_may_be_tested_and_special_tokens_may_be_missing(tmp_path):
    template = "{{ bos_token }}{% if tools or custom_tools or messages[0].name %}no{% endif %}" + CHATML
    assert loaded(tmp_path, template).chat_pieces(DATE).system_open == "<|im_start|>system\n"


def test_of_several_templates_the_default_is_taken(tmp_path):
    other = "{{ raise_exception('the other') }}"
    several = [{"name": "tool_use", "template": other}, {"name": "default", "template": CHATML}]
    assert loaded(tmp_path / "list", several).chat_template == CHATML
    (tmp_path / "list" / "chat_template.jinja").write_text(CHATML + "{# this file goes before #}")
    assert Tokenizer.load(str(tmp_path / "list")).chat_template.endswith("before #}")
    with pytest.raises(InputError, match="chat templates .'tool_use'., and none is called 'default'"):
        loaded(tmp_path / "none", several[:1])
    with pytest.raises(InputError, match="chat template is a int"):
        loaded(tmp_path / "number", 3)
    with pytest.raises(InputError, match="no chat template; use the tokenizer of an instruct model"):
        loaded(tmp_path / "absent", None).chat_pieces(DATE)


def test_special_tokens_are_printed_by_their_names():
    text = chat.render("{{ bos_token }}|{{ pad_token }}|{{ date_string }}", [], {"bos_token": "<s>"}, DATE, "file")
    assert text == f"<s>||{DATE}"
    assert json.loads(chat.render("{{ m | tojson }}".replace("m", "[1, '<é>']"), [], {}, DATE, "file")) == [1, "<é>"]


def test_nothing_else_of_the_environment_differs_by_day_or_run():
    """Globals and filters are Jinja's and transformers'; those that look outside are gone or refuse."""
    environment = chat._environment()
    known = set(jinja2.defaults.DEFAULT_NAMESPACE) | {"raise_exception", "strftime_now"}
    assert set(environment.globals) == known - {"lipsum"}
    assert "random" not in environment.filters
    assert not [name for name in environment.filters if re.search("rand|time|date|shuffle", name)]
