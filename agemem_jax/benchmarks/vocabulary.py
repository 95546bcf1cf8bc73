"""The built-in vocabularies: sentencepiece models of the words that tasks are made of.

`build` makes the tiny one, of generated questions. One word is one piece, and the piece begins with the word's space:
"▁Keller". There is no second piece for a word without the space before it, so that a name is the same token wherever it
stands; texts are therefore encoded with a space before their first word, also after a chat mark or an opening quotation
mark. The strings that the program itself writes (chat marks, the literals of the tool grammar, status texts) are single
pieces too. Single letters and digits make the rest spellable; memory ids are written with them.

`build_worlds` makes the one of all benchmarks. Environments tell the exact bytes of their texts, so there a word that a
text or a line begins with, or that stands behind a mark, has a second piece without the space. All of printable ASCII,
tabs and line breaks can be spelled. How a text is cut follows from the scores of pieces, whatever stands around it:

    a known word is one piece, for that is better than any two; an unknown one has as few letters as can be
    no piece but a fixed phrase reaches beyond a word, a number or a mark, so texts that are put one behind the other,
    cut before a space or between two marks, have the pieces of the whole
    no phrase splits a known word
    a blank that nothing follows is a piece of its own, or that of ". "
"""

import io
import itertools
import random
import string

import sentencepiece

from agemem_jax.benchmarks.alfworld import words as alfworld
from agemem_jax.benchmarks.babyai import wording as babyai
from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.pddl import words as pddl
from agemem_jax.benchmarks.scienceworld import words as scienceworld
from agemem_jax.data.prompts import symbols
from agemem_jax.data.words import cut
from agemem_jax.tools.grammar import literals
from agemem_jax.types import PAD_ID

FILE_NAME = "tokenizer.model"
END_OF_TURN = "<|im_end|>"
CHAT_MARKS = ("<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_start|>tool", END_OF_TURN)
JSON_WORDS = ("true", "false")
LINES, WORDS_PER_LINE = 20_000, 8
# A text is cut into the pieces whose scores have the largest sum: whole numbers, so that sums are exact. sentencepiece
# gives symbols a score of their own: with a best piece of 0 it is -0.1, better than any other way to write them.
BREAK, PIECE, STOP, LETTER = 0.0, -64.0, -96.0, -1024.0
OPENING = "\"#$%&'(*+-/<=>@[\\^_`{|~"  # marks that a space may stand before; the others close what is before them
NUMBERS = 100  # those below are single pieces where a space is before them
MOST_PIECES = 4096


def build(path: str, tools_config, seed: int = 0) -> None:
    """Trains the tiny model and writes it to `path`; the same arguments give the same bytes.

    tools_config: config.tools, whose grammar's literals become pieces.
    Raises ValueError if a generated word does not come out as exactly one piece (a literal inside it would split it).
    """
    words = [*questions.vocabulary(), *JSON_WORDS]
    single = list(dict.fromkeys([*CHAT_MARKS, *_literals(tools_config), *symbols()]))
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

    tools_config: config.tools, whose grammar's literals become pieces, with <answer> and with <action>, alone or behind
      calls.
    Raises ValueError if a piece does not come out as itself, or there are more than MOST_PIECES.
    """
    marks, listed = [*CHAT_MARKS], worlds_pieces()
    for tag, turn in itertools.product(("answer", "action"), ("either", "both")):
        tools = tools_config.copy_and_resolve_references()
        tools.action_tag, tools.turn = tag, turn
        marks += _literals(tools)
    marks = list(dict.fromkeys(marks))
    scores = {letter: LETTER for one in string.ascii_letters + string.digits for letter in (one, f" {one}")}
    scores |= {" ": PIECE, "\t": PIECE, "\n": BREAK, ". ": STOP}
    scores |= dict.fromkeys([*string.punctuation, *(f" {mark}" for mark in OPENING)], PIECE)
    phrases = [text for text in listed if cut([text]) != [text] and not text.strip().isdigit()]
    scores |= {text: PIECE for text in listed if text not in phrases}
    words = sentencepiece.SentencePieceProcessor(model_proto=_composed(scores, []))
    # A phrase is better than its words by their number. That is less than a piece costs: a phrase and the rest of a
    # word that begins as its last one does are worse than its words with the whole one.
    for text in phrases:
        ids = words.encode(text)
        assert len(ids) < -PIECE, text
        scores[text] = len(ids) + sum(map(words.get_score, ids))
    if len(scores) + len(marks) + 2 > MOST_PIECES:
        raise ValueError(f"all benchmarks' words are {len(scores) + len(marks) + 2} pieces, more than {MOST_PIECES}")
    _write(path, _composed(scores, marks), [*scores, *marks])


def _composed(scores: dict[str, float], marks: list[str]) -> bytes:
    """A sentencepiece model of pieces and, before them, symbols."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    rows = [("<pad>", 0.0, kinds.CONTROL), ("<unk>", 0.0, kinds.UNKNOWN)]
    rows += [(text, 0.0, kinds.USER_DEFINED) for text in marks]
    rows += [(text, score, kinds.NORMAL) for text, score in scores.items()]
    for text, score, kind in rows:
        proto.pieces.add(piece=text.replace(" ", "▁"), score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = trainer.UNIGRAM, len(rows)
    trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = PAD_ID, PAD_ID + 1, -1, -1
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    return proto.SerializeToString(deterministic=True)


def worlds_pieces() -> list[str]:
    """The words, numbers and phrases of prompts and all benchmarks, each once; what begins a text with a space too."""
    said = [text for text in symbols() if text[0] == " "]
    said += [f" {word}" for word in [*questions.vocabulary(), *JSON_WORDS, *range(NUMBERS)]]
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


def _write(path: str, model: bytes, whole: list[str]) -> None:
    """Writes a model. Raises ValueError if it splits one of the texts that must be single pieces."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    split = [text for text in whole if processor.decode(ids := processor.encode(text)) != text or len(ids) != 1]
    if split:
        raise ValueError(f"the vocabulary splits {split[:10]}; reword these, or the literals that they contain")
    with open(path, "wb") as file:
        file.write(model)
