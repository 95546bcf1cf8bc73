"""The tiny vocabulary: a sentencepiece model of the words that generated questions are made of.

One word is one piece, and the piece begins with the word's space: "▁Keller". There is no second piece for a word
without the space before it, so that a name is the same token wherever it stands; texts are therefore encoded with a
space before their first word, also after a chat mark or an opening quotation mark. The strings that the program
itself writes (chat marks, the literals of the tool grammar, status texts) are single pieces too. Single letters and
digits make the rest spellable; memory ids are written with them.
"""

import io
import random

import sentencepiece

from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.data.prompts import symbols
from agemem_jax.tools.grammar import literals
from agemem_jax.types import PAD_ID

FILE_NAME = "tokenizer.model"
END_OF_TURN = "<|im_end|>"
CHAT_MARKS = ("<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_start|>tool", END_OF_TURN)
JSON_WORDS = ("true", "false")
LINES, WORDS_PER_LINE = 20_000, 8


def build(path: str, tools_config, seed: int = 0) -> None:
    """Trains the model and writes it to `path`; the same arguments give the same bytes.

    tools_config: config.tools, whose grammar's literals become pieces.
    Raises ValueError if a generated word does not come out as exactly one piece (a literal inside it would split it).
    """
    # Turns of several calls, of one and of none can be told with the same vocabulary, whatever the config asks for.
    tools = tools_config.copy_and_resolve_references()
    tools.max_calls, tools.min_calls = max(2, tools.max_calls), 0
    words = [*questions.vocabulary(), *JSON_WORDS]
    ours = [*literals(tools_config, END_OF_TURN), *literals(tools, END_OF_TURN), *symbols()]
    single = list(dict.fromkeys([*CHAT_MARKS, *ours]))
    letters = sorted(set("".join(words) + "0123456789"))
    # Random order: every word is followed by many others, and equally often, so the trainer keeps each as a piece.
    rng = random.Random(seed)
    lines = (" " + " ".join(rng.sample(words, WORDS_PER_LINE)) for _ in range(LINES))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="unigram",
        vocab_size=len(words) + len(single) + len(letters) + 3,  # <pad>, <unk> and the lone space
        user_defined_symbols=[symbol.replace(" ", "▁") for symbol in single],
        required_chars="".join(letters),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=False,
        pad_id=PAD_ID,
        unk_id=PAD_ID + 1,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    split = [word for word in words if len(processor.encode(f" {word}")) != 1]
    split += [symbol for symbol in single if len(processor.encode(symbol)) != 1]
    if split:
        raise ValueError(f"the tiny vocabulary splits {split[:10]}; reword these, or the literals that they contain")
    with open(path, "wb") as file:
        file.write(model.getvalue())
