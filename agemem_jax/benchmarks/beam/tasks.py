"""BEAM (Tavakoli et al. 2026): long chats of a user with an assistant, 20 probing questions each over ten abilities.

`task.path` is a folder of chats of one size, such as chats/100K of mohammadtavakoli78/BEAM:

    <number>/chat.json            [{"turns": [[{"role", "id", "content", "time_anchor"}, ...], ...]}, ...]
    <number>/probing_questions/probing_questions.json
                                  {ability: [{"question", the ideal answer, "source_chat_ids", "rubric"}, ...], ...}

Chats of ten million tokens are laid out otherwise, and are not read. Where chat_trunecated.json (so spelt) is there it
is read: the chat cut to the folder's size. The field of the ideal answer depends on the ability (IDEAL); that of an
abstention is `unknown`. The benchmark's own score is a judge's, by the rubric; F1 with a whole paragraph is low.
"""

from pathlib import Path
from typing import Any

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks import conversations as shared
from agemem_jax.benchmarks.conversations import Conversation, Turn, checked_path, day, field, question
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN
from agemem_jax.data import files
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError

ABSTENTION = "abstention"
IDEAL = {
    "contradiction_resolution": "ideal_answer",
    "instruction_following": "expected_compliance",
    "preference_following": "expected_compliance",
    "summarization": "ideal_summary",
}  # of all others "answer"


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Raises InputError for a folder of another layout, and as conversations.load."""
    return shared.load(config, tokenizer, *read(checked_path(config, "a folder of BEAM's chats, such as chats/100K")))


def read(path: str) -> tuple[list[Conversation], list[dict]]:
    """The chats of a folder and the questions about them. Raises InputError that names a file and its field."""
    chats = sorted(Path(path).glob("*/chat.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    if not chats:
        raise InputError(
            f"task.path: {path!r} has no <number>/chat.json in it; give a folder such as BEAM's chats/100K"
        )
    conversations, asked = [], []
    for file in chats:
        name, cut = file.parent.name, file.with_name("chat_trunecated.json")
        file = cut if cut.exists() else file
        conversations.append(Conversation(name, tuple(_turns(file))))
        probing = file.parent / "probing_questions" / "probing_questions.json"
        (by_ability,) = files.read(str(probing))
        for ability, found in by_ability.items():
            for i, one in enumerate(found):
                where = f"task.path: {str(probing)!r}, {ability} {i}"
                text = field(one, "question", str, where)
                answer = UNKNOWN if ability == ABSTENTION else field(one, IDEAL.get(ability, "answer"), str, where)
                evidence = sorted(map(str, _numbers(one.get("source_chat_ids", []))))
                asked.append(question(f"{name}/{ability}/{i}", name, text, answer, ability, evidence))
    return conversations, asked


def _turns(file: Path) -> list[Turn]:
    """The turns of a chat; a day holds until another is named."""
    turns, when = [], None
    for session, batch in enumerate(files.read(str(file)), 1):
        where = f"task.path: {str(file)!r}, batch {session}"
        for group in field(batch, "turns", list, where):
            for turn in group:
                if anchor := turn.get("time_anchor"):
                    when = day(anchor, where)
                role, text = field(turn, "role", str, where), field(turn, "content", str, where)
                turns.append(Turn(text, role.capitalize(), session, when, str(field(turn, "id", int, where))))
    return turns


def _numbers(value: Any) -> set[int]:
    """All whole numbers in nested lists and objects: some abilities tell their sources by role."""
    if isinstance(value, int):
        return {value}
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_numbers, values))
