"""The device tables of memory systems, built on the host: the grammar of their answers, their prompts."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from agemem_jax.config import refuse
from agemem_jax.data.prompts import padded
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.methods.amem import AMem
from agemem_jax.methods.base import Role, RoleTables, System
from agemem_jax.methods.mem0 import Additive, Classic
from agemem_jax.methods.memagent import MemAgent
from agemem_jax.rollout.rows import RolloutSpec
from agemem_jax.tools.grammar import MAX_BUDGET, build_grammar
from agemem_jax.tools.layout import Form, Parts
from agemem_jax.tools.schemas import CALL_MARKS, write_calls
from agemem_jax.types import Pieces

PROMPT = """You keep the memory of an agent that is told messages. Each request names a role and gives its inputs; \
write the JSON that the role answers with, and nothing else. Strings hold no line breaks and no tags.

{roles}"""


SYSTEMS: dict[str, Callable[[ConfigDict], System]] = {  # each in the sizes of config.methods
    "mem0_classic": lambda m: Classic(m.facts, m.events, m.neighbours, m.contradiction_adds),
    "mem0_additive": lambda m: Additive(m.facts, 2 * m.neighbours, m.recent),
    "memagent": lambda m: MemAgent(),
    "amem": lambda m: AMem(m.keywords, m.tags, m.neighbours, m.context_tokens, m.word_tokens),
}


def system_of(config: ConfigDict, name: str) -> System:
    """The system of a name in SYSTEMS."""
    return SYSTEMS[name](config.methods)


def build_tables(system: System, config, tokenizer: Tokenizer, pieces: Pieces) -> RoleTables:
    """The tables of a system. Raises InputError as `tools.grammar.build_grammar`."""
    short, end = tokenizer.is_small, tokenizer.end_of_turn
    chat = tokenizer.chat_pieces(config.policy.date_string)
    roles, encode = system.roles, tokenizer.encode_markup
    openings = [f" {role.name}:" if short else role.opening for role in roles]
    fixed = [small if short else text for text, small in system.fixed]
    told = "" if short else PROMPT.format(roles="\n\n".join(role.instruction for role in roles))
    prefix = padded([encode(chat.system_open + told + chat.message_close)])
    forms = tuple(Form(answer_of(role, config.tools, short), end) for role in roles)
    tools = config.tools.copy_and_resolve_references()  # roles have none
    tools.enabled, tools.min_calls, tools.max_calls, tools.optional_arguments = (), 0, 1, False
    tables = RoleTables(
        grammar=build_grammar(tools, tokenizer, (), forms),
        pieces=pieces.replace(prefix=prefix, plain_prefix=prefix),
        fixed=padded([encode(text) for text in openings + fixed]),
    )
    return jax.tree.map(np.asarray, tables)


def answer_of(role: Role, tools, short: bool) -> Parts:
    """The layout of a role's answer."""
    if not short:
        return role.parts
    think, (first, between, last) = "<think></think>", CALL_MARKS[tools.format]
    return role.calls(think + write_calls([], tools), think + first, between, last)


def call_tokens(system: System, config: ConfigDict, tables: RoleTables, spec: RolloutSpec) -> int:
    """Most tokens of a role's prompt and answer, which a row's context holds."""
    p = tables.pieces
    marks = sum(int(text.length) for text in (p.user_open, p.close, p.assistant_open, p.after_turn))
    prompt = system.prompt_tokens(tables, spec.entry_tokens, config.task.message_tokens)
    return prompt + marks + config.methods.answer_tokens


def check_sizes(config: ConfigDict, tables: RoleTables, tokens: int, reach: int | None) -> None:
    """Raises ConfigError if a call is longer than the model can read, or an answer too short or long to be one.

    Args:
      tokens: of `call_tokens`.
      reach: positions that the model was made for.
    """
    answer, grammar = config.methods.answer_tokens, tables.grammar
    need = max(int(grammar.need[start].min()) for start in grammar.start_forms) if grammar.constrained else 1
    if not need <= answer <= MAX_BUDGET:
        refuse("methods.answer_tokens", answer, f"must lie between {need}, the shortest answer, and {MAX_BUDGET}")
    prefix = int(tables.pieces.prefix.length[0])
    if reach is not None and prefix + tokens > reach:
        refuse(
            "methods.answer_tokens", answer,
            f"a role's call can take {prefix + tokens} tokens with its prompt, and the model was made for {reach} "
            "positions; lower it, methods.facts, methods.neighbours or methods.recent",
        )  # fmt: skip
