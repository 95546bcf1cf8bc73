"""Small vocabularies for tests: sentencepiece with the grammar's literals, byte-level BPE with a chat template."""

import io
import json
import random

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|im_end|>"
WORDS = """Ada Keller wrote Silver River in 1984 and was born in Halden small all true false one two three café naïve
東京 Жук you remember what the old friend said about music Ballard number 7 ☃ 😀""".split()
CHAT_MARKS = ["<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant", "<|im_start|>tool", END]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def sentences(count: int = 400) -> list[str]:
    rng = random.Random(0)
    return [" " + " ".join(rng.choices(WORDS, k=8)) for _ in range(count)]


def write_sentencepiece(path: str, literals: list[str]) -> str:
    """Trains a word-piece vocabulary in which each literal is one symbol."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=[text.replace(" ", "▁") for text in [*CHAT_MARKS, *literals, *"0123456789"] if text != END]
        + [END],
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    with open(path, "wb") as file:
        file.write(model.getvalue())
    return str(path)


# How tokenizers cut text into words, before merges: GPT-2's way (SmolLM) is ByteLevel's own.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def write_bpe(folder, template: str | None = CHAT_TEMPLATE, words: str = "") -> str:
    """Trains a byte-level BPE of about 700 tokens and writes it as a Hugging Face folder.

    words: the regular expression by which text is cut into words; "" is GPT-2's.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words)
    if words:
        split = pre_tokenizers.Split(Regex(words), behavior="isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bpe.pre_tokenizer])
    bpe.decoder = decoders.ByteLevel()
    json_text = [
        '{"name": "Add_memory", "arguments": {"content": "x"}}, {"query": "y"}}]</tool_call>',
        "<think></think>",
        'Add_memory: done, memory_id=7\nRetrieve_memory: done\n"Silver River" (1984). | memory_id=12\n</tool_response>',
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(sentences() + json_text * 20, trainer)
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", END])
    bpe.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": "<|endoftext|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)
