"""Long HotpotQA, as papers on trained memory use it (MemAgent, Yu et al. 2025): 50 to 400 documents, then a question.

Made of a HotpotQA file in either published layout (hotpotqa/records.py): the documents of a record, then documents of
other records of its split until there are `task.documents`, in an order of the record's own, read in chunks of
`task.chunk_tokens`. The splits are cut from the file by its records' order.
"""

import random

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks import conversations as shared
from agemem_jax.benchmarks.conversations import Conversation, Turn, checked_path, question
from agemem_jax.benchmarks.hotpotqa import records as hotpotqa
from agemem_jax.benchmarks.hotpotqa.environment import question_of
from agemem_jax.config import refuse
from agemem_jax.data.tokenizer import Tokenizer


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Raises InputError as records.load, ConfigError if the file has too few documents, and as conversations.load."""
    found = hotpotqa.load(
        checked_path(config, "a HotpotQA JSON file"), lambda answer: question_of(answer).num_words > 0
    )
    return shared.load(config, tokenizer, *read(found, config.task))


def read(found: list[dict], task) -> tuple[list[Conversation], list[dict]]:
    """Each record with as many documents as are wanted, and its question."""
    tested = round(len(found) * task.test_fraction)
    validated = round(len(found) * task.validation_fraction)
    starts = sorted({0, len(found) - tested - validated, len(found) - tested, len(found)})
    conversations, asked = [], []
    for begin, end in zip(starts, starts[1:], strict=False):
        documents: dict[str, str] = {}  # of the records of one split
        for record in found[begin:end]:
            documents |= {title: "".join(sentences) for title, sentences in record["context"]}
        for number in range(begin, end):
            record, rng = found[number], random.Random(f"{task.seed}/{number}")
            own = {title: "".join(sentences) for title, sentences in record["context"]}
            others = [title for title in documents if title not in own]
            if len(own) + len(others) < task.documents:
                refuse(
                    "task.documents", task.documents,
                    f"record {number} of {task.path!r} and the others of its split have {len(own) + len(others)}; set "
                    "<= that, or give a larger file",
                )  # fmt: skip
            told = own | {title: documents[title] for title in rng.sample(others, max(0, task.documents - len(own)))}
            order = rng.sample(sorted(told), len(told))
            turns = tuple(Turn(told[title].strip(), title, name=title) for title in order if told[title].strip())
            name = f"{number}/{record['_id']}"
            conversations.append(Conversation(name, turns))
            facts, sentences = record["supporting_facts"], dict(record["context"])
            gold = [hotpotqa.told_sentence(title, sentences[title][i]) for title, i in facts]
            evidence, kind = sorted({title for title, _ in facts}), record["type"] or "question"
            asked.append(question(name, name, record["question"], record["answer"], kind, evidence) | {"gold": gold})
    return conversations, asked
