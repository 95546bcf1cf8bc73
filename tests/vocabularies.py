"""Small vocabularies for tests: sentencepiece with the grammar's literals, byte-level BPE with a template, GGUF."""

import io
import json
import random
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|im_end|>"
DATE = "26 Jul 2024"  # of templates that print one
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


def write_bpe(
    folder, template: str | None = CHAT_TEMPLATE, pre_tokenizer=None, texts: tuple[str, ...] = (), vocab_size: int = 800
) -> str:
    """Trains a byte-level BPE (of 256 tokens: single bytes beside the marks), written as a Hugging Face folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    json_text = [
        '{"name": "Add_memory", "arguments": {"content": "x"}}, {"query": "y"}}]</tool_call>',
        "<think></think>",
        r'{"content": "\"Silver\" is \"one\", \\ two \\\\ three (\"1984\") \"\\\""}',
        '1 < 2 <= 3 << 4 <- 5 "<7" <> <!-- <b> </b> <|',
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(sentences() + json_text * 20 + list(texts) * 20, trainer)
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", END])
    bpe.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": "<|endoftext|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def write_gguf(path, folder: str, pre: str, architecture: str = "qwen2", **changes) -> str:
    """Writes the tokenizer of a folder made by `write_bpe` into a GGUF file without weights.

    changes: other values for fields of tokenizer.ggml, by the last part of their names; None leaves a field out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    add_vocabulary(writer, folder, pre, **changes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return str(path)


def add_vocabulary(writer: gguf.GGUFWriter, folder: str, pre: str, **changes) -> None:
    """What `write_gguf` writes, into a file that holds other things too."""
    stored = json.loads((Path(folder) / "tokenizer.json").read_text())
    settings = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    ids, kinds = dict(stored["model"]["vocab"]), {}
    for token in stored["added_tokens"]:
        ids[token["content"]] = token["id"]
        kinds[token["content"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    names = sorted(ids, key=ids.get)
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": names,
        "token_type": [int(kinds.get(name, gguf.TokenType.NORMAL)) for name in names],
        "merges": [" ".join(pair) for pair in stored["model"]["merges"]],
        "eos_token_id": ids[settings["eos_token"]],
        "padding_token_id": ids[settings["pad_token"]],
    }
    for name, value in (values | changes).items():
        if isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
        elif value is not None:
            writer.add_array(f"tokenizer.ggml.{name}", value)
    if "chat_template" in settings:
        writer.add_chat_template(settings["chat_template"])
