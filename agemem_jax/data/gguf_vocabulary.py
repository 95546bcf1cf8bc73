"""The tokenizer in a GGUF file's metadata, built without torch (transformers' own reader of it imports torch)."""

import gguf
import tokenizers
from gguf import TokenType
from tokenizers import Regex, pre_tokenizers

from agemem_jax.data import chat
from agemem_jax.errors import InputError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_SIGNS}"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}"


def _byte_level(use_regex: bool):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern: str):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _byte_level(False)])


# tokenizer.ggml.pre -> how text is cut before merging, and whether a cut piece that is a token is taken unmerged.
PRE_TOKENIZERS = {
    "qwen2": (_split(_QWEN2), False),  # Qwen2, 2.5 and 3
    "deepseek-r1-qwen": (_split(_QWEN2), False),
    "llama-bpe": (_split(_LLAMA3), True),
    "llama3": (_split(_LLAMA3), True),
    "llama-v3": (_split(_LLAMA3), True),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(True)]), False),
    "gpt-2": (_byte_level(True), False),
}
SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "eot_token": "eot_token_id",  # ends a turn, where eos ends a text
}
MARKERS = (TokenType.CONTROL, TokenType.UNKNOWN)


def read(path: str):
    """The tokenizer of a `.gguf` file as transformers' PreTrainedTokenizerFast, with chat template and special tokens.

    Text is not normalised: as in llama.cpp and transformers' reader, and unlike Qwen's own tokenizer.json (NFC).

    Raises:
      InputError: the file cannot be read, or holds no byte-level BPE with one of PRE_TOKENIZERS.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        fields = gguf.GGUFReader(path).fields
    except (OSError, ValueError, LookupError, OverflowError) as error:
        raise InputError(f"policy.tokenizer: {path!r} is not a readable GGUF file ({error}); fetch it again") from error

    def field(name: str, default=None):
        return fields[f"tokenizer.{name}"].contents() if f"tokenizer.{name}" in fields else default

    def refuse(what: str) -> None:
        raise InputError(f"policy.tokenizer: {path!r} {what}; give the model's Hugging Face folder as policy.tokenizer")

    def texts(name: str) -> list[str]:
        found = field(name, [])
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            refuse(f"holds no list of texts as tokenizer.{name}")
        return found

    kind, pre, names, merges = field("ggml.model"), field("ggml.pre"), texts("ggml.tokens"), texts("ggml.merges")
    if not names:
        refuse("holds no vocabulary (tokenizer.ggml.tokens; of a split file only the first part does)")
    if kind != "gpt2":
        refuse(f"holds a {kind!r} vocabulary; only byte-level BPE (tokenizer.ggml.model 'gpt2') can be read")
    if pre not in PRE_TOKENIZERS:
        refuse(f"names the pre-tokenizer (tokenizer.ggml.pre) {pre!r}; known are {', '.join(PRE_TOKENIZERS)}")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        refuse("has merges that are no pairs")
    types = field("ggml.token_type", [TokenType.NORMAL] * len(names))
    if not isinstance(types, list) or len(types) != len(names):
        refuse(f"has {len(names)} tokens, and not as many token types")
    special = {}
    for name, key in SPECIAL_IDS.items():
        number = field(f"ggml.{key}")
        if number is not None:
            if not isinstance(number, int) or not 0 <= number < len(names):
                refuse(f"gives {number} as {key}, beyond its {len(names)} tokens")
            special[name] = names[number]

    pre_tokenizer, ignore_merges = PRE_TOKENIZERS[pre]
    vocabulary = {name: i for i, name in enumerate(names)}
    try:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs, ignore_merges=ignore_merges))
    except Exception as error:  # tokenizers raises nothing narrower
        refuse(f"has merges that do not fit its tokens ({error})")
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = tokenizers.decoders.ByteLevel()

    def added(kinds, is_special: bool) -> list[tokenizers.AddedToken]:
        found = [name for name, type in zip(names, types, strict=True) if type in kinds]
        return [tokenizers.AddedToken(name, special=is_special, normalized=False) for name in found]

    backend.add_special_tokens(added(MARKERS, True))
    backend.add_tokens(added((TokenType.USER_DEFINED,), False))
    before, after = (
        special.get(f"{name}_token") if field(f"ggml.add_{name}_token", False) else None for name in ("bos", "eos")
    )
    if before or after:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=[name for name in (before, "$A", after) if name],
            special_tokens=[(name, names.index(name)) for name in {before, after} if name],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        add_bos_token=bool(field("ggml.add_bos_token", False)),
        chat_template=chat.named(field("chat_template"), path),
        **special,
    )
