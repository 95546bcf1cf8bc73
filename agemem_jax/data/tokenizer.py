"""Tokenizers: a sentencepiece model (the tiny vocabulary), or byte-level BPE from a Hugging Face folder or a GGUF.

There are two encoders. `encode` is for data: whatever people, files and retrieved entries say. Marks of conversations
and tools (<|im_end|>, <tool_call>) inside it are text like any other, so that nobody forges a turn by writing one.
`encode_markup` is for the strings of the program itself: there they are the tokens that the policy knows.

`write_hf` writes any of them as the files that transformers' AutoTokenizer loads.
"""

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agemem_jax.data import chat
from agemem_jax.data.chat import ChatPieces
from agemem_jax.errors import InputError
from agemem_jax.types import PAD_ID

END_OF_TURN = "<|im_end|>"
# What may make up a tokenizer in a Hugging Face folder.
HF_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
            "merges.txt", "chat_template.jinja", "chat_template.json", "tokenizer.model")  # fmt: skip
_UNUSED = re.compile(r"\[PAD\d+\]")  # GGUF fills the vocabulary up with these
_MARKUP = re.compile(r'[<>{}\[\]"|_]')  # what tells symbols of chat and tools from the words of a sentencepiece model
DATA_REMEDY = "give the policy another tokenizer (policy.weights, policy.tokenizer), or leave task.path empty"
MARKUP_REMEDY = "make symbols of tools.grammar.literals and data.prompts.symbols, as benchmarks/vocabulary.py does"
_IN_NO_TEXT = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that UTF-8 never holds


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and its encoders, made by `Tokenizer.load`. They add no tokens of their own."""

    encode: Callable[[str], list[int]]  # of data: no marker is recognised; raises InputError for `unspelt` characters
    encode_markup: Callable[[str], list[int]]  # of the program's own strings: markers become their tokens
    unspelt: Callable[[str], str] | None  # the characters of a text that `encode` has no tokens for; None: it has all
    pieces: tuple[bytes | None, ...]  # text of each token; None for control tokens
    markers: dict[str, int]  # control tokens that have a name
    pad_id: int
    end_of_turn: str
    chat_template: str | None
    render: Callable[[list[dict], str], str] | None  # messages, date_string -> chat text; None for the tiny vocabulary
    is_small: bool  # the tiny vocabulary
    path: str  # where it was read, for errors
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # tokens its model wants before and after a text alone

    @staticmethod
    def load(path: str) -> "Tokenizer":
        """Reads a sentencepiece `.model`, a `tokenizer.json`, a Hugging Face folder, or a `.gguf` file.

        For a `.safetensors` file or index it reads the folder, and for a folder without a tokenizer its `.gguf` file.

        Raises:
          InputError: the path does not exist or is none of these, or its vocabulary is no byte-level BPE.
        """
        path = _source(path)
        return _load_sentencepiece(path) if path.endswith(".model") else _load_bpe(path)

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

    def chat_pieces(self, date_string: str) -> ChatPieces:
        """The strings of the chat template, found by rendering it around known contents.

        date_string: what a template prints as today's date (config.policy.date_string).

        Raises:
          InputError: there is no template, it fails, or it is not made of fixed strings around each message.
        """
        if self.is_small:
            opens = (f"<|im_start|>{role}" for role in ("system", "user", "assistant", "tool"))
            return ChatPieces(*opens, END_OF_TURN, END_OF_TURN, END_OF_TURN)
        if self.chat_template is None:
            _refuse(self.path, "has no chat template; use the tokenizer of an instruct model")
        return chat.derive(lambda messages: self.render(messages, date_string), self.end_of_turn, self.path)


def _refuse(path: str, what: str) -> None:
    raise InputError(f"policy.tokenizer: {path!r} {what}")


def _source(path: str) -> str:
    """The file or folder that holds the tokenizer of `path`: a .model, a .json, a .gguf, or a Hugging Face folder."""
    if not os.path.exists(path):
        _refuse(path, "does not exist")
    if path.endswith((".safetensors", ".safetensors.index.json")):
        path = os.path.dirname(path) or "."
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "tokenizer.json")):
            return path
        files = sorted(str(file) for file in Path(path).glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        others = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if (Path(path) / name).is_file()]
        others += [file.name for file in Path(path).glob("*.tiktoken")]
        found = f"of other kinds there are {', '.join(others)}; " if others else ""
        _refuse(
            path,
            f"holds no tokenizer.json; {found}save the tokenizer with transformers' save_pretrained as a fast one, "
            "or name the file in policy.tokenizer",
        )
    if not path.endswith((".model", ".json", ".gguf")):
        _refuse(path, "must be a sentencepiece .model, a tokenizer.json, its folder or a .gguf")
    return path


def _refuse_text(path: str, missing: str, text: str, remedy: str) -> None:
    _refuse(path, f"has a vocabulary that cannot spell {missing!r} in {text[:80]!r}; {remedy}")


def check_spelling(tokenizer: Tokenizer, texts: list[str], path: str, field: str = "task.path") -> None:
    """Raises InputError if the vocabulary cannot spell all texts of a file, `path` of the config's `field`."""
    if tokenizer.unspelt is None:
        return
    strange = {character for character in set().union(*texts) if tokenizer.unspelt(character)}
    lost = [text for text in texts if not strange.isdisjoint(text) and tokenizer.unspelt(text)]
    if lost:
        raise InputError(
            f"{field}: {path or 'generated questions'}: {len(lost):,} of {len(texts):,} texts "
            f"({len(lost) / len(texts):.0%}) hold characters that the vocabulary {tokenizer.path!r} cannot spell, as "
            f"{tokenizer.unspelt(lost[0])!r} in {lost[0][:80]!r}; {DATA_REMEDY}"
        )


def _load_sentencepiece(path: str) -> Tokenizer:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(Path(path).read_bytes())
        model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:  # protobuf's DecodeError, sentencepiece's RuntimeError
        _refuse(path, f"is not a sentencepiece model ({_one_line(error)}); of a released model give the folder")
    pieces, markers, kinds = [], {}, sentencepiece_model_pb2.ModelProto.SentencePiece
    for i, piece in enumerate(proto.pieces):
        text = piece.piece.replace("▁", " ")
        is_marker = text.startswith("<|")
        if is_marker:
            markers[text] = i
        if is_marker or piece.type in (kinds.CONTROL, kinds.UNKNOWN, kinds.UNUSED):
            pieces.append(None)
        elif piece.type == kinds.BYTE:
            pieces.append(bytes([int(text[3:-1], 16)]))
        else:
            pieces.append(text.encode())
        if is_marker or (piece.type == kinds.USER_DEFINED and _MARKUP.search(text)):
            piece.type = kinds.UNUSED  # in data it is no token
    if END_OF_TURN not in markers:
        _refuse(
            path,
            f"lacks the piece {END_OF_TURN!r}: it is not of the tiny vocabulary's kind (benchmarks/vocabulary.py); of "
            "a released model give the folder with its tokenizer.json, or its .gguf",
        )
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    plain = not (normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap)
    if trainer.model_type != trainer.UNIGRAM or not plain:
        _refuse(
            path,
            "must be a unigram model without normalisation, dummy prefix and removal of spaces; train it as "
            "benchmarks/vocabulary.py does",
        )
    data = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encoder(processor, remedy: str):
        """Its encoder, and what that has no tokens for."""
        unknown = processor.unk_id()

        def lost(text: str, ids: list[int]) -> bool:
            return unknown in ids or "▁" in text  # that is how the model writes a space

        def unspelt(text: str) -> str:
            if not lost(text, processor.encode(text)):
                return ""
            return "".join(dict.fromkeys(one for one in text if lost(one, processor.encode(one))))

        def encode(text: str) -> list[int]:
            ids = processor.encode(text)
            if lost(text, ids):
                _refuse_text(path, unspelt(text), text, remedy)
            return ids

        return encode, unspelt

    encode, unspelt = encoder(data, DATA_REMEDY)
    return Tokenizer(
        encode=encode,
        encode_markup=encoder(model, MARKUP_REMEDY)[0],
        unspelt=unspelt,
        pieces=tuple(pieces),
        markers=markers,
        pad_id=model.pad_id() if model.pad_id() >= 0 else PAD_ID,
        end_of_turn=END_OF_TURN,
        chat_template=None,
        render=None,
        is_small=True,
        path=path,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_json(path: str) -> dict:
    """An object from a JSON file. Raises InputError if it holds something else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(path, f"cannot be read ({_one_line(error)}); fetch it again")
    if not isinstance(value, dict):
        _refuse(path, f"holds a {type(value).__name__}, not an object; fetch it again")
    return value


def _check_files(path: str) -> None:
    """Raises InputError if a tokenizer.json, or what lies beside it, is damaged or of another kind."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    model = _read_json(file).get("model")
    if not isinstance(model, dict):
        _refuse(file, "is no tokenizer.json: it has no field 'model'; give the file of that name, or its folder")
    # Old files do not name the model's type.
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        other = os.path.join(folder, "tokenizer.model")
        hint = f"; give {other!r} itself, if it is of the tiny vocabulary's kind" if os.path.isfile(other) else ""
        _refuse(file, f"holds a {model.get('type')} model, not byte-level BPE{hint}")
    if os.path.isfile(beside := os.path.join(folder, "tokenizer_config.json")):
        _read_json(beside)


def _load_fast(path: str):
    """transformers' tokenizer of a folder, a tokenizer.json or a GGUF file."""
    if path.endswith(".gguf"):
        from agemem_jax.data import gguf_vocabulary

        return gguf_vocabulary.read(path)
    from transformers import PreTrainedTokenizerFast

    _check_files(path)
    folder, name = os.path.split(path)
    try:
        if name == "tokenizer.json":  # the files beside it hold the chat template
            return PreTrainedTokenizerFast.from_pretrained(folder or ".")
        if path.endswith(".json"):
            return PreTrainedTokenizerFast(tokenizer_file=path)
        return PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions on files that they cannot read
        _refuse(path, f"holds a tokenizer that cannot be read ({_one_line(error)}); fetch its files again")


def _load_bpe(path: str) -> Tokenizer:
    loaded = _load_fast(path)
    backend = loaded.backend_tokenizer
    if "ByteLevel" not in str(backend.decoder):
        _refuse(path, f"is not byte-level BPE (its decoder is {_one_line(backend.decoder)})")
    backend.no_truncation()  # a tokenizer.json may ask for either
    backend.no_padding()
    byte_of, base = _byte_of_character(), backend.get_vocab(with_added_tokens=False)
    added = {
        i: token
        for i, token in backend.get_added_tokens_decoder().items()
        # A byte stays text where it is named as a special token too (`pad_token="!"`).
        if not (token.content in byte_of and base.get(token.content) == i)
    }
    pieces: list[bytes | None] = [None] * (max(backend.get_vocab(with_added_tokens=True).values()) + 1)
    markers = {}
    for text, i in backend.get_vocab(with_added_tokens=True).items():
        if i in added and added[i].special:
            markers[text] = i
        elif i in added or not byte_of.keys() >= set(text):
            pieces[i] = text.encode()
        elif not _UNUSED.fullmatch(text):
            pieces[i] = bytes(byte_of[character] for character in text)
    ends = (END_OF_TURN, getattr(loaded, "eot_token", None), loaded.eos_token)
    end = next((end for end in ends if end in markers), None)
    if end is None:
        _refuse(
            path,
            f"has no end-of-turn token: neither {END_OF_TURN} nor its eos_token ({loaded.eos_token!r}) is a special "
            "token; name one as eos_token in tokenizer_config.json",
        )
    data = _without_added(backend, set(added))
    missing = set(range(256)) - _IN_NO_TEXT - {byte_of[text] for text in base if text in byte_of}
    template = chat.named(loaded.chat_template, path)
    special = {name: str(token) for name, token in loaded.special_tokens_map.items()}

    def encode(text: str, encoder=data) -> list[int]:
        if missing and unspelt(text):
            _refuse_text(path, unspelt(text), text, DATA_REMEDY)
        return encoder.encode(text, add_special_tokens=False).ids

    def render(messages: list[dict], date_string: str) -> str:
        return chat.render(template, messages, special, date_string, path)

    def unspelt(text: str) -> str:
        return "".join(dict.fromkeys(character for character in text if not missing.isdisjoint(character.encode())))

    return Tokenizer(
        encode=encode,
        encode_markup=functools.partial(encode, encoder=backend),
        unspelt=unspelt if missing else None,
        pieces=tuple(pieces),
        markers=markers,
        pad_id=loaded.pad_token_id if loaded.pad_token_id is not None else markers[end],
        end_of_turn=end,
        chat_template=template,
        render=render,
        is_small=False,
        path=path,
        around=_around(backend),
    )


def _around(backend) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer itself puts before and after a text: those of an embedding model, for example."""
    plain, whole = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def _without_added(backend, added: set[int]):
    """The backend with none of its added tokens, nor those of their ids that are in the model's own vocabulary.

    There a merge could make them, or a model that takes whole words (`ignore_merges`, Llama 3's) could find them.
    """
    import tokenizers

    model = backend.model
    hidden = {text for text, i in backend.get_vocab(with_added_tokens=False).items() if i in added}
    if hidden:
        state = json.loads(backend.to_str())["model"]
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in state["merges"]]
        model = tokenizers.models.BPE(
            # Byte-level text has no spaces, so these are never met; without them ids would have holes.
            vocab={f" {text}" if text in hidden else text: i for text, i in state["vocab"].items()},
            merges=[(a, b) for a, b in merges if hidden.isdisjoint((a, b, a + b))],
            unk_token=state["unk_token"],
            ignore_merges=state["ignore_merges"],
        )
    data = tokenizers.Tokenizer(model)
    if backend.normalizer is not None:
        data.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        data.pre_tokenizer = backend.pre_tokenizer
    return data


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character (GPT-2's table): character -> byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


def write_hf(path: str, folder: str | os.PathLike, chat_template: str) -> None:
    """Writes the tokenizer of `path`, as `Tokenizer.load` takes it, for transformers' AutoTokenizer.

    A text has the ids that `encode_markup` gives it: no token is put before or behind it, whatever the source's own
    settings say, for the chat template holds all there is. A sentencepiece model is written as a tokenizer.json, and
    itself beside it. The folder is made if need be; each file appears whole, and those of another tokenizer go.

    Raises InputError as `Tokenizer.load`.
    """
    loaded, path = Tokenizer.load(path), _source(path)
    unknown = {}
    if path.endswith(".model"):
        backend, unknown["unk_token"] = _convert_sentencepiece(path)
    else:
        backend = _load_fast(path).backend_tokenizer
    backend.post_processor = None
    backend.no_padding()
    backend.no_truncation()
    names = {i: text for text, i in backend.get_vocab(with_added_tokens=True).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is
        "eos_token": loaded.end_of_turn,
        "pad_token": names[loaded.pad_id],
        **unknown,
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
    """A sentencepiece unigram model as a `tokenizers.Tokenizer`, and its unknown token; spaces stay in its pieces.

    Both look for the most likely pieces. sentencepiece takes its user-defined symbols wherever they stand; here they
    are added tokens, of which the first and then the longest is taken. Markers are special ones.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    pieces, added = [], []
    for piece in model.pieces:
        text = piece.piece.replace("▁", " ")
        pieces.append((text, piece.score))
        if piece.type == kinds.USER_DEFINED:  # markers are told as in `Tokenizer.load`
            added.append(tokenizers.AddedToken(text, special=text.startswith("<|"), normalized=False))
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == kinds.UNKNOWN)
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unknown, model.trainer_spec.byte_fallback))
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    backend.add_tokens(added)
    return backend, model.pieces[unknown].piece
