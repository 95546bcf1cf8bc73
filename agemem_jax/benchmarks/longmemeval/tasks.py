"""LongMemEval (Wu et al. 2025): 500 questions, each about some 40 chats of a user with an assistant (115k tokens in S).

Layout of longmemeval_s.json of xiaowu0162/LongMemEval (also the oracle's and the cleaned release's), a list of

    {"question_id", "question_type", "question", "answer", "question_date": "2023/05/30 (Tue) 23:40",
     "haystack_session_ids": [...], "haystack_dates": [...], "answer_session_ids": [...],
     "haystack_sessions": [[{"role", "content", "has_answer"}, ...], ...]}

A question whose id ends in "_abs" is not answered by the chats: its answer is `unknown`, its kind `abstention`. The
benchmark's own score is a judge's (reward.task_metric = "judge"); F1 is low for its long answers.
"""

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks import conversations as shared
from agemem_jax.benchmarks.conversations import Conversation, Turn, checked_path, day, field, question
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN
from agemem_jax.data import files
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError

ABSTENTION = "abstention"


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Raises InputError for a file of another layout, and as conversations.load."""
    return shared.load(config, tokenizer, *read(checked_path(config, "LongMemEval's longmemeval_s.json")))


def read(path: str) -> tuple[list[Conversation], list[dict]]:
    """The chats of a file and the questions about them. Raises InputError that names a field."""
    conversations, asked = [], []
    for number, row in enumerate(files.read(path)):
        where = f"task.path: {path!r}, question {number}"
        name, kind = field(row, "question_id", str, where), field(row, "question_type", str, where)
        sessions, dates = (field(row, key, list, where) for key in ("haystack_sessions", "haystack_dates"))
        if len(sessions) != len(dates):
            raise InputError(f"{where}: {len(sessions)} haystack_sessions have {len(dates)} haystack_dates")
        order = sorted(range(len(sessions)), key=lambda i: str(dates[i]))  # the oracle's are not in it
        turns, evidence = [], []
        for session, i in enumerate(order, 1):
            when = day(str(dates[i]), where)
            for place, turn in enumerate(sessions[i]):
                of = f"{where}, session {i}"
                role, text, reference = field(turn, "role", str, of), field(turn, "content", str, of), f"{i}/{place}"
                if text.strip():
                    turns.append(Turn(text, role.capitalize(), session, when, reference))
                    evidence += [reference] * bool(turn.get("has_answer"))
        abstains = name.endswith("_abs")
        answer = UNKNOWN if abstains else str(field(row, "answer", (str, int), where))
        when = day(field(row, "question_date", str, where), where)
        conversations.append(Conversation(name, tuple(turns)))
        text, kind = field(row, "question", str, where), ABSTENTION if abstains else kind
        asked.append(question(name, name, text, answer, kind, evidence, when))
    return conversations, asked
