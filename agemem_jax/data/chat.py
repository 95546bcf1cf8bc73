"""Chat templates: rendered from the config alone, and read as fixed strings around each message."""

import json
from dataclasses import dataclass

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agemem_jax.errors import InputError

NAMED_TEMPLATE = "default"  # of several: the one that transformers takes when it is given no list of tools
SPECIAL_VARIABLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class ChatPieces:
    """The literal strings of a chat template. A message is its opening, its text and its close."""

    system_open: str
    user_open: str
    assistant_open: str
    tool_open: str
    tool_close: str
    message_close: str  # begins with `end_of_turn`
    end_of_turn: str  # the marker that ends an assistant message


class _Generation(Extension):
    """{% generation %} marks what a trainer learns from; it prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refusal(jinja2.TemplateError):
    """The template itself says that it does not take the messages."""


class _Undefined(jinja2.Undefined):
    """May be tested, as in `{% if tools %}`, but not printed."""

    __str__ = jinja2.Undefined._fail_with_undefined_error


def _refuse(message: str) -> None:
    raise _Refusal(message)


def _no_clock(*_) -> None:
    raise jinja2.TemplateError("it asks for the time (strftime_now), so prompts would change from day to day")


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives a template, without clock and chance."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], undefined=_Undefined
    )
    environment.filters["tojson"] = _to_json
    environment.filters.pop("random")
    environment.globals.pop("lipsum")
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _no_clock}
    return environment


def named(templates, where: str) -> str | None:
    """The template itself, or of several, by name, the one called "default". Raises InputError if there is none."""
    if isinstance(templates, dict):
        if NAMED_TEMPLATE not in templates:
            raise InputError(
                f"{where} has the chat templates {sorted(map(str, templates))}, and none is called {NAMED_TEMPLATE!r}, "
                "which is the one that is used; name one so"
            )
        templates = templates[NAMED_TEMPLATE]
    if templates is not None and not isinstance(templates, str):
        raise InputError(f"{where}: its chat template is a {type(templates).__name__}; it must be text")
    return templates


def render(template: str, messages: list[dict], special: dict[str, str], date_string: str, where: str) -> str:
    """The messages as text, without an opening for the next.

    The template sees what transformers shows it, and `date_string`. It depends on nothing else: there is no clock and
    no chance.

    Args:
      messages: {"role", "content"} each.
      special: bos_token and the like, by name; those that are missing are printed as nothing.
      where: the file, for errors.

    Raises:
      InputError: the template has bad syntax, refuses the messages, fails, or asks for what is not in the config.
    """
    known = dict.fromkeys(SPECIAL_VARIABLES, "") | special | {"date_string": date_string}
    try:
        compiled = _environment().from_string(template)
        return compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=False, **known)
    except jinja2.TemplateSyntaxError as error:
        said = f"cannot be read, line {error.lineno}: {error.message}"
    except _Refusal as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        said = f"refuses messages of the roles {roles}, which the agent needs: {error}"
    except jinja2.UndefinedError as error:
        said = f"needs what neither the messages nor the config give: {error}"
    except Exception as error:  # it is a program from outside, and may fail in any way
        said = f"cannot be used: {error or type(error).__name__}"
    said = " ".join(said.split())
    raise InputError(f"{where}: its chat template {said}; mend the template (chat_template.jinja beside the tokenizer)")


def derive(messages_to_text, end_of_turn: str, where: str) -> ChatPieces:
    """Reads the fixed strings off two renderings: user and assistant messages in turn, then a tool's result.

    messages_to_text: `render` with everything but the messages.
    Raises InputError if the template is not made of fixed strings around each message.
    """
    system, user, answer, question, reply, result = (f"sentinel{name}sentinel" for name in "ABCDEF")
    talk = [("system", system), ("user", user), ("assistant", answer), ("user", question)]
    tool = [("system", system), ("user", user), ("assistant", reply), ("tool", result)]

    def refuse(what: str) -> None:
        raise InputError(f"{where}: the chat template {what}")

    def between(messages) -> list[str]:
        text = messages_to_text([{"role": role, "content": content} for role, content in messages])
        parts = []
        for role, content in messages:
            if text.count(content) != 1:
                refuse(f"does not print the text of a {role} message exactly once, after what came before it")
            part, text = text.split(content)
            parts.append(part)
        return [*parts, text]

    system_open, to_user, to_assistant, to_next, close = between(talk)
    _, _, _, to_tool, tool_close = between(tool)
    if not close.startswith(end_of_turn):
        refuse(f"closes a message with {close!r}, not with the end of turn {end_of_turn!r}")
    opens = {}
    for name, gap in (("user", to_user), ("assistant", to_assistant), ("next", to_next), ("tool", to_tool)):
        if not gap.startswith(close):
            refuse(f"puts {gap!r} before a {name} message; it should begin with {close!r}")
        opens[name] = gap[len(close) :]
    if opens["next"] != opens["user"]:
        refuse(f"opens user messages in two ways: {opens['user']!r} and {opens['next']!r}")
    return ChatPieces(system_open, opens["user"], opens["assistant"], opens["tool"], tool_close, close, end_of_turn)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """transformers' filter: Jinja's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
