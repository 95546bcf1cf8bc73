"""The chat template that an exported policy ships with: it renders the layout that the policy was trained in.

Token for token: the observations of training are composed of pieces whose tokens stay the same when the whole text is
tokenised at once (data/prompts.py). Three things cannot be so. A policy may write tokens that no tokenizer would give
its text (a full stop, then the quotation mark that ends an argument, where byte-level BPE has one token for both);
contents that begin with a line end, or that were cut inside a character, are tokenised otherwise beside their marks;
and contents that spell a mark of the template are that mark for other libraries, while training keeps them text.
"""

from string import Template

from agemem_jax.data.chat import ChatPieces
from agemem_jax.tools.schemas import CALL_MARKS

TEMPLATE = Template("""\
{#- Lays messages out as in the training of this policy; texts stand as they are.
    Without a system message the one of training is put in; it lists the tools, so that `tools` adds nothing to it.
    Calls are text of the assistant, or given as tool_calls. Results of one turn are the lines of one tool message. -#}
{%- set opens = {
    'system': $system_open,
    'user': $user_open,
    'assistant': $assistant_open,
    'tool': $tool_open,
} %}
{%- if not messages or messages[0].role != 'system' %}
    {%- for tool in tools or [] if (tool.function or tool).name not in [$names] %}
        {{- raise_exception('This policy was not trained with the tool ' ~ (tool.function or tool).name) }}
    {%- endfor %}
    {{- opens.system ~ $system_prompt ~ $close }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in opens or (message.role == 'system' and not loop.first) %}
        {{- raise_exception('A ' ~ message.role ~ ' message cannot stand here: there are one system message, which '
                            'comes first, and user, assistant and tool messages') }}
    {%- endif %}
    {%- set text = message.content or '' %}
    {{- opens[message.role] }}$space
    {{- text }}
    {%- for call in message.tool_calls or [] %}
        {{- ($calls_open if loop.first else $calls_between) ~ '{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
        {{- '}' ~ ($calls_close if loop.last else '') }}
    {%- endfor %}
    {%- if message.role == 'tool' %}
        {{- $tool_close }}
    {%- else %}
        {{- $after if text.endswith($end) else $close }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- opens.assistant }}
{%- endif %}
""")
# In the tiny vocabulary a word's piece begins with its space, also at the beginning of what is said to the policy.
SPACE = """
    {{- ' ' if message.role != 'assistant' and text and text[0] != ' ' else '' }}"""


def chat_template(chat: ChatPieces, prompt: str, tools, spaced: bool) -> str:
    """The Jinja text, for `transformers` and what uses it.

    Args:
      chat: the fixed strings around each message in training.
      prompt: the text of training's system message.
      tools: config.tools; calls in structured form are rendered in its format.
      spaced: what is said to the policy begins with a space (the tiny vocabulary).
    """
    first, between, last = CALL_MARKS[tools.format]
    return TEMPLATE.substitute(
        system_open=literal(chat.system_open),
        user_open=literal(chat.user_open),
        assistant_open=literal(chat.assistant_open),
        tool_open=literal(chat.tool_open),
        tool_close=literal(chat.tool_close),
        close=literal(chat.message_close),
        end=literal(chat.end_of_turn),
        after=literal(chat.message_close.removeprefix(chat.end_of_turn)),
        calls_open=literal(first),
        calls_between=literal(between),
        calls_close=literal(last),
        names=", ".join(map(literal, tools.enabled)),
        system_prompt=literal(prompt, line_end="\n"),  # to be read
        space=SPACE if spaced else "",
    )


def literal(text: str, line_end: str = r"\n") -> str:
    """A Jinja string. A carriage return that is not escaped would become a line end."""
    for character, escape in (("\\", r"\\"), ("'", r"\'"), ("\n", line_end), ("\r", r"\r")):
        text = text.replace(character, escape)
    return f"'{text}'"
