"""Tokenizers: a sentencepiece model (the tiny vocabulary), or byte-level BPE from a Hugging Face folder or a GGUF.

`write_hf` writes any of them as the files that transformers' AutoTokenizer loads.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agemem_jax.types import PAD_ID

END_OF_TURN = "<|im_end|>"
# What may make up a tokenizer in a Hugging Face folder.
HF_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
            "merges.txt", "chat_template.jinja", "chat_template.json", "tokenizer.model")  # fmt: skip
_UNUSED = re.compile(r"\[PAD\d+\]")  # GGUF fills the vocabulary up with these


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


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its encoder, made by `Tokenizer.load`.

    `encode` adds no tokens of its own; markers such as <|im_start|> inside the text are recognised.
    """

    encode: Callable[[str], list[int]]
    pieces: tuple[bytes | None, ...]  # text of each token; None for control tokens
    markers: dict[str, int]  # control tokens that have a name
    pad_id: int
    end_of_turn: str
    chat_template: str | None
    render: Callable[[list[dict]], str] | None  # messages -> chat text; None for the tiny vocabulary
    is_small: bool  # the tiny vocabulary

    @staticmethod
    def load(path: str) -> "Tokenizer":
        """Reads a sentencepiece `.model`, a `tokenizer.json`, a Hugging Face folder, or a `.gguf` file.

        Raises:
          ValueError: the path does not exist or is none of these, or its vocabulary is no byte-level BPE.
        """
        if not os.path.exists(path):
            raise ValueError(f"policy.tokenizer: {path!r} does not exist")
        if path.endswith(".model"):
            return _load_sentencepiece(path)
        if path.endswith((".gguf", ".json")) or os.path.isdir(path):
            return _load_bpe(path)
        raise ValueError(
            f"policy.tokenizer: {path!r} must be a sentencepiece .model, a tokenizer.json, its folder or a .gguf"
        )

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def eos_id(self) -> int:
        """Token that ends an assistant message."""
        return self.special(self.end_of_turn)

    def special(self, name: str) -> int:
        """Id of a control token. Raises ValueError if there is none of that name."""
        if name not in self.markers:
            raise ValueError(f"the vocabulary has no control token {name!r}; it has {sorted(self.markers)[:20]}")
        return self.markers[name]

    def end_ids(self) -> list[int]:
        """Tokens that end an assistant message: the marker, and pieces that have it at their end."""
        mark = self.end_of_turn.encode()
        return [self.eos_id, *(i for i, piece in enumerate(self.pieces) if piece and piece.endswith(mark))]

    def token_bytes(self) -> list[bytes | None]:
        """Text of each token as it appears in a string, `[vocab_size]`; None for control tokens."""
        return list(self.pieces)

    def decode(self, ids) -> str:
        """Text of the tokens; markers by their names, bytes that are no UTF-8 as U+FFFD."""
        names = {i: name.encode() for name, i in self.markers.items()}
        return b"".join(self.pieces[i] or names.get(int(i), b"") for i in ids).decode("utf-8", "replace")

    def chat_pieces(self) -> ChatPieces:
        """The strings of the chat template, found by rendering it around known contents.

        Raises:
          ValueError: there is no template, or it is not made of fixed strings around each message.
        """
        if self.is_small:
            opens = (f"<|im_start|>{role}" for role in ("system", "user", "assistant", "tool"))
            return ChatPieces(*opens, END_OF_TURN, END_OF_TURN, END_OF_TURN)
        if not self.chat_template:
            raise ValueError("the tokenizer has no chat template; use the tokenizer of an instruct model")
        return _derive_pieces(self.render, self.end_of_turn)


def _derive_pieces(render: Callable[[list[dict]], str], end_of_turn: str) -> ChatPieces:
    """Reads the fixed strings off two renderings: user and assistant messages in turn, then a tool's result."""
    system, user, answer, question, reply, result = (f"sentinel{name}sentinel" for name in "ABCDEF")
    talk = [("system", system), ("user", user), ("assistant", answer), ("user", question)]
    tool = [("system", system), ("user", user), ("assistant", reply), ("tool", result)]

    def between(messages) -> list[str]:
        text = render([{"role": role, "content": content} for role, content in messages])
        parts = []
        for _, content in messages:
            if text.count(content) != 1:
                raise ValueError(f"the chat template does not print a message's text exactly once: {text!r}")
            part, text = text.split(content)
            parts.append(part)
        return [*parts, text]

    system_open, to_user, to_assistant, to_next, close = between(talk)
    _, _, _, to_tool, tool_close = between(tool)
    if not close.startswith(end_of_turn):
        raise ValueError(f"the chat template closes a message with {close!r}, not with the end of turn {end_of_turn!r}")
    opens = {}
    for name, gap in (("user", to_user), ("assistant", to_assistant), ("next", to_next), ("tool", to_tool)):
        if not gap.startswith(close):
            raise ValueError(f"the chat template puts {gap!r} before a {name} message; it should begin with {close!r}")
        opens[name] = gap[len(close) :]
    if opens["next"] != opens["user"]:
        raise ValueError(f"the chat template opens user messages in two ways: {opens['user']!r} and {opens['next']!r}")
    return ChatPieces(system_open, opens["user"], opens["assistant"], opens["tool"], tool_close, close, end_of_turn)


def _load_sentencepiece(path: str) -> Tokenizer:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.Load(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"policy.tokenizer: {path!r} is not a sentencepiece model: {error}") from error
    pieces, markers = [], {}
    for i in range(model.vocab_size()):
        piece = model.id_to_piece(i)
        is_marker = piece.startswith("<|")
        if is_marker:
            markers[piece] = i
        if is_marker or model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
            pieces.append(None)
        elif model.is_byte(i):
            pieces.append(bytes([int(piece[3:-1], 16)]))
        else:
            pieces.append(piece.replace("▁", " ").encode())
    if END_OF_TURN not in markers:
        raise ValueError(f"policy.tokenizer: the vocabulary of {path!r} lacks the piece {END_OF_TURN!r}")
    pad_id = model.pad_id() if model.pad_id() >= 0 else PAD_ID

    def encode(text: str) -> list[int]:
        return list(model.encode(text))

    return Tokenizer(encode, tuple(pieces), markers, pad_id, END_OF_TURN, None, None, True)


def _load_fast(path: str):
    """transformers' tokenizer of a folder, a tokenizer.json or a GGUF file."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder, name = os.path.split(path)
    try:
        if path.endswith(".gguf"):
            return AutoTokenizer.from_pretrained(folder or ".", gguf_file=name)
        if name == "tokenizer.json":  # the files beside it hold the chat template
            return PreTrainedTokenizerFast.from_pretrained(folder or ".")
        if path.endswith(".json"):
            return PreTrainedTokenizerFast(tokenizer_file=path)
        return PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions on files that they cannot read
        raise ValueError(f"policy.tokenizer: cannot read a tokenizer from {path!r}: {error}") from error


def _load_bpe(path: str) -> Tokenizer:
    loaded = _load_fast(path)
    backend = loaded.backend_tokenizer
    if "ByteLevel" not in str(backend.decoder):
        raise ValueError(f"policy.tokenizer: {path!r} is not byte-level BPE (its decoder is {backend.decoder})")
    added = backend.get_added_tokens_decoder()
    byte_of = _byte_of_character()
    pieces: list[bytes | None] = [None] * backend.get_vocab_size(with_added_tokens=True)
    markers = {}
    for text, i in backend.get_vocab(with_added_tokens=True).items():
        if i in added and added[i].special:
            markers[text] = i
        elif i in added:
            pieces[i] = text.encode()
        elif not _UNUSED.fullmatch(text):
            pieces[i] = bytes(byte_of[character] for character in text)
    end = END_OF_TURN if END_OF_TURN in markers else loaded.eos_token
    if end not in markers:
        raise ValueError(f"policy.tokenizer: {path!r} has no end-of-turn token ({END_OF_TURN} or an eos_token)")
    pad_id = loaded.pad_token_id if loaded.pad_token_id is not None else markers[end]

    def encode(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    def render(messages: list[dict]) -> str:
        return loaded.apply_chat_template(messages, tokenize=False)

    return Tokenizer(encode, tuple(pieces), markers, pad_id, end, loaded.chat_template, render, False)


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character (GPT-2's table): character -> byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


def write_hf(path: str, folder: str | os.PathLike, chat_template: str) -> None:
    """Writes the tokenizer of `path`, as `Tokenizer.load` takes it, for transformers' AutoTokenizer.

    A text has the ids that `Tokenizer.encode` gives it: no token is put before or behind it, whatever the source's own
    settings say, for the chat template holds all there is. A sentencepiece model is written as a tokenizer.json, and
    itself beside it. The folder is made if need be; each file appears whole, and those of another tokenizer go.

    Raises ValueError as `Tokenizer.load`, or if the sentencepiece model is of a kind that a tokenizer.json cannot hold.
    """
    loaded = Tokenizer.load(path)
    backend = _convert_sentencepiece(path) if path.endswith(".model") else _load_fast(path).backend_tokenizer
    backend.post_processor = None
    backend.no_padding()
    backend.no_truncation()
    names = {i: text for text, i in backend.get_vocab(with_added_tokens=True).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is
        "eos_token": loaded.end_of_turn,
        "pad_token": names[loaded.pad_id],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    folder = Path(folder)
    partial = folder / "tokenizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    backend.save(str(partial / "tokenizer.json"))
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (partial / "chat_template.jinja").write_text(chat_template)
    if path.endswith(".model"):
        shutil.copyfile(path, partial / "tokenizer.model")
    for name in HF_FILES:
        if (partial / name).exists():
            (partial / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)  # would be taken where tools are given
    partial.rmdir()


def _convert_sentencepiece(path: str):
    """A sentencepiece unigram model without normalisation as a `tokenizers.Tokenizer`; spaces stay in its pieces.

    Both look for the most likely pieces. sentencepiece takes its user-defined symbols wherever they stand; here they
    are added tokens, of which the first and then the longest is taken. Markers are special ones.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    plain = not (normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap)
    if trainer.model_type != trainer.UNIGRAM or not plain:
        raise ValueError(
            f"{path}: only a unigram model without normalisation, dummy prefix and removal of spaces can be written "
            "for transformers; train it as data/vocabulary.py does"
        )
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    pieces, added = [], []
    for piece in model.pieces:
        text = piece.piece.replace("▁", " ")
        pieces.append((text, piece.score))
        if piece.type == kinds.USER_DEFINED:  # markers are told as in `Tokenizer.load`
            added.append(tokenizers.AddedToken(text, special=text.startswith("<|"), normalized=False))
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == kinds.UNKNOWN)
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unknown, trainer.byte_fallback))
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    backend.add_tokens(added)
    return backend
