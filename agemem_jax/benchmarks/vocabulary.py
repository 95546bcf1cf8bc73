"""The built-in vocabularies: sentencepiece models of the words that tasks are made of.

`build` makes the tiny one, of generated questions. One word is one piece, and the piece begins with the word's space:
"▁Keller". There is no second piece for a word without the space before it, so that a name is the same token wherever it
stands; texts are therefore encoded with a space before their first word, also after a chat mark or an opening quotation
mark. The strings that the program itself writes (chat marks, the literals of the tool grammar, status texts) are single
pieces too. Single letters and digits make the rest spellable; memory ids are written with them.

`build_worlds` makes the one of all benchmarks. Environments tell the exact bytes of their texts, so there a word that a
text or a line begins with, or that stands behind a mark, has a second piece without the space. All of printable ASCII,
tabs and line breaks can be spelled. How a text is cut follows from SCORES, whatever stands around it:

    a known word is one piece, for it is cheaper than any two; an unknown one has as few letters as can be
    no piece but a fixed phrase reaches beyond a word, a number or a mark, so the pieces of texts that are put one
    behind the other, cut before a space or between two marks, are the pieces of the whole
    a blank that no word follows is a piece of its own, or that of ". "
"""

import io
import random
import string

import sentencepiece

from agemem_jax.benchmarks.alfworld import words as alfworld
from agemem_jax.benchmarks.babyai import wording as babyai
from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.pddl import words as pddl
from agemem_jax.benchmarks.scienceworld import words as scienceworld
from agemem_jax.data.prompts import symbols
from agemem_jax.tools.grammar import literals
from agemem_jax.types import PAD_ID

FILE_NAME = "tokenizer.model"
END_OF_TURN = "<|im_end|>"
CHAT_MARKS = ("<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_start|>tool", END_OF_TURN)
JSON_WORDS = ("true", "false")
LINES, WORDS_PER_LINE = 20_000, 8
# Of a text the pieces are those whose scores have the largest sum: whole numbers, so that sums are exact. Symbols have
# the score of the best piece, less 0.1.
BREAK, PIECE, STOP, LETTER = 0.0, -2.0, -3.0, -100.0
OPENING = "\"#$%&'(*+-/<=>@[\\^_`{|~"  # marks that a space may stand before; the others close what is before them
NUMBERS = 100  # those below are single pieces where a space is before them
MOST_PIECES = 4096


def build(path: str, tools_config, seed: int = 0) -> None:
    """Trains the tiny model and writes it to `path`; the same arguments give the same bytes.

    tools_config: config.tools, whose grammar's literals become pieces.
    Raises ValueError if a generated word does not come out as exactly one piece (a literal inside it would split it).
    """
    words = [*questions.vocabulary(), *JSON_WORDS]
    single = _single(_literals(tools_config))
    letters = sorted(set("".join(words) + string.digits))
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
    _write(path, model.getvalue(), [*(f" {word}" for word in words), *single])


def build_worlds(path: str, tools_config) -> None:
    """Writes the model of all benchmarks to `path`; the same arguments give the same bytes.

    tools_config: config.tools, whose grammar's literals become pieces, with <answer> and with <action>.
    Raises ValueError if a piece does not come out as itself, or there are more than MOST_PIECES.
    """
    from sentencepiece import sentencepiece_model_pb2

    answers = _literals(tools_config)
    single = _single([*answers, *(text.replace("answer>", "action>") for text in answers)])
    listed = worlds_pieces()
    scores = {" ": PIECE, "\t": PIECE, "\n": BREAK, ". ": STOP} | dict.fromkeys(listed, PIECE)
    scores |= dict.fromkeys([*string.punctuation, *(f" {mark}" for mark in OPENING)], PIECE)
    for letter in string.ascii_letters + string.digits:
        scores = {letter: LETTER, f" {letter}": LETTER} | scores
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    proto.pieces.add(piece="<pad>", score=0.0, type=kinds.CONTROL)
    proto.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for text in single:
        proto.pieces.add(piece=text.replace(" ", "▁"), score=0.0, type=kinds.USER_DEFINED)
    for text, score in scores.items():
        if text not in single:
            proto.pieces.add(piece=text.replace(" ", "▁"), score=score, type=kinds.NORMAL)
    if len(proto.pieces) > MOST_PIECES:
        raise ValueError(f"the vocabulary of all benchmarks has {len(proto.pieces)} pieces, more than {MOST_PIECES}")
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.pad_id, proto.trainer_spec.unk_id = PAD_ID, PAD_ID + 1
    proto.trainer_spec.bos_id = proto.trainer_spec.eos_id = -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    _write(path, proto.SerializeToString(deterministic=True), [*scores, *single])


def worlds_pieces() -> list[str]:
    """The words, numbers and phrases of all benchmarks, with their spaces, each once; each word with the space too."""
    said = [f" {word}" for word in [*questions.vocabulary(), *JSON_WORDS, *range(NUMBERS)]]
    for benchmark in (alfworld, pddl, babyai, scienceworld):
        said += benchmark.vocabulary()
    # Messages are told with a space before their first word, and a policy writes its actions so.
    return list(dict.fromkeys([*said, *(f" {text}" for text in said if text[0].isalnum())]))


def _literals(tools_config) -> list[str]:
    """The literals of the config's grammar, and of one in which turns have several calls, one or none."""
    # All of these can be told with the same vocabulary, whatever the config asks for.
    tools = tools_config.copy_and_resolve_references()
    tools.max_calls, tools.min_calls = max(2, tools.max_calls), 0
    return [*literals(tools_config, END_OF_TURN), *literals(tools, END_OF_TURN)]


def _single(written: list[str]) -> list[str]:
    """What the program itself writes: chat marks, these literals, and the fixed strings of prompts."""
    return list(dict.fromkeys([*CHAT_MARKS, *written, *symbols()]))


def _write(path: str, model: bytes, whole: list[str]) -> None:
    """Writes a model. Raises ValueError if it splits one of the texts that must be single pieces."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    split = [text for text in whole if processor.decode(ids := processor.encode(text)) != text or len(ids) != 1]
    if split:
        raise ValueError(f"the vocabulary splits {split[:10]}; reword these, or the literals that they contain")
    with open(path, "wb") as file:
        file.write(model)
