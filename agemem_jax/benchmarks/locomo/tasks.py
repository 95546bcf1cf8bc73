"""LoCoMo (Maharana et al. 2024): ten conversations of two people over months, 1,986 questions.

Layout of locomo10.json of snap-research/locomo, a list of

    {"sample_id", "conversation": {"speaker_a", "speaker_b", "session_1_date_time", "session_1": [{"speaker", "dia_id",
     "text", "blip_caption" of a picture}, ...], "session_2_date_time", ...},
     "qa": [{"question", "answer", "evidence": [dia_id, ...], "category": 1 to 5, "adversarial_answer" of 5}, ...]}

Two opposite labellings of the categories are in use. This is the file's authors', by whose code category 1 is answered
of several turns: 1 multi-hop (282 questions), 2 temporal (321), 3 open-domain (96), 4 single-hop (841), 5 adversarial
(446), whose answer is `unknown`. Mem0's code calls 1 single-hop, 3 multi-hop and 4 open-domain.

By the fractions of configs/locomo.py the first conversation is trained on, the second validates and eight are tested:
152, 81 and 1,307 questions without the adversarial ones, the split of trained systems. With task.parts = () the
adversarial ones are there too, and with rl.updates = 0, test_fraction = 1 and validation_fraction = 0 all 1,986 are
tested.

LoCoMo's own script stems words, scores lists of category 1 item by item, and takes a category-5 answer that says
"not mentioned" for right; here F1 is HotpotQA's.
"""

import itertools

from agemem_jax.benchmarks import Benchmark
from agemem_jax.benchmarks import conversations as shared
from agemem_jax.benchmarks.conversations import Conversation, Turn, checked_path, day, field, question
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN
from agemem_jax.data import files
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """Raises InputError for a file of another layout, and as conversations.load."""
    return shared.load(config, tokenizer, *read(checked_path(config, "LoCoMo's locomo10.json")))


def read(path: str) -> tuple[list[Conversation], list[dict]]:
    """The conversations of a file and the questions about them. Raises InputError that names a field."""
    conversations, asked = [], []
    for number, row in enumerate(files.read(path)):
        where = f"task.path: {path!r}, conversation {number}"
        name, said = field(row, "sample_id", str, where), field(row, "conversation", dict, where)
        turns = []
        for session in itertools.count(1):
            if f"session_{session}" not in said:
                break
            when = day(field(said, f"session_{session}_date_time", str, where), where)
            for turn in field(said, f"session_{session}", list, where):
                text = field(turn, "text", str, f"{where}, session_{session}")
                if caption := turn.get("blip_caption"):
                    text = f"{text} (shares a picture: {caption})"
                speaker, reference = (
                    field(turn, key, str, f"{where}, session_{session}") for key in ("speaker", "dia_id")
                )
                turns.append(Turn(text, speaker, session, when, reference))
        if not turns:
            raise InputError(f"{where} lacks the field 'session_1' of the published layout")
        conversations.append(Conversation(name, tuple(turns)))
        for i, one in enumerate(field(row, "qa", list, where)):
            of = f"{where}, question {i}"
            category = field(one, "category", int, of)
            if category not in CATEGORIES:
                raise InputError(f"{of}: 'category' is {category}; 1 to 5 are known")
            answer = UNKNOWN if category == 5 else str(field(one, "answer", (str, int), of))
            text, evidence = field(one, "question", str, of), field(one, "evidence", list, of)
            asked.append(question(f"{name}/{i}", name, text, answer, CATEGORIES[category], evidence))
    return conversations, asked
