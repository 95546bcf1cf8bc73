"""MemoryAgentBench (Hu et al. 2026): a long text is read in chunks, then many questions are asked about it.

Layout of ai-hyz/MemoryAgentBench, one file for each of its four competences (published as parquet; who gives that is
told how to make JSON of it), rows of

    {"context": text, "questions": [...], "answers": [[acceptable answer, ...], ...],
     "metadata": {"source", "qa_pair_ids", "question_types", "question_dates", ...}}

The kind of a question is its row's metadata.source (ruler_qa1_197K, eventqa_full, factconsolidation_mh_6k, ...). The
first acceptable answer is the gold one: the benchmark takes the best of several, and measures some of its parts by
substring, recall or a judge. Nothing says which part of the text answers a question.
"""

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks import conversations as shared
from agemem_jax.benchmarks.conversations import Conversation, Turn, checked_path, field, question
from agemem_jax.data import files
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Raises InputError for a file of another layout, and as conversations.load."""
    return shared.load(config, tokenizer, *read(checked_path(config, "a file of MemoryAgentBench, as JSON")))


def read(path: str) -> tuple[list[Conversation], list[dict]]:
    """The texts of a file and the questions about them. Raises InputError that names a field."""
    conversations, asked = [], []
    for number, row in enumerate(files.read(path)):
        where, name = f"task.path: {path!r}, row {number}", str(number)
        text, source = (
            field(row, "context", str, where),
            field(field(row, "metadata", dict, where), "source", str, where),
        )
        questions, answers = field(row, "questions", list, where), field(row, "answers", list, where)
        if len(questions) != len(answers):
            raise InputError(f"{where}: {len(questions)} questions have {len(answers)} answers")
        conversations.append(Conversation(name, (Turn(text, name="text"),)))
        for i, (one, accepted) in enumerate(zip(questions, answers, strict=True)):
            accepted = accepted if isinstance(accepted, list) else [accepted]
            asked.append(question(f"{name}/{i}", name, str(one), str(accepted[0]) if accepted else "", source, []))
    return conversations, asked
