"""Tokenizers of GGUF files, read without torch: equal to transformers' reader, or to the model's own tokenizer."""

import os

import pytest
import tokenizers
import transformers
from tokenizers import pre_tokenizers
from vocabularies import END, write_bpe, write_gguf

from agemem_jax.data.gguf_vocabulary import PRE_TOKENIZERS
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError

TEXTS = (
    "In 1984, 12345 people paid 3.50 € for 7 of 007's films",
    "Où est né Жук? café naïve, cafe\u0301 Ångström",
    "東京 と 京都。 你好，世界! 한국어",
    "😀 and 👩‍👩‍👧 said ☃",
    "a\n\n  b\t c \r\n    x\n \n",
    "don't WE'LL I'm THEY'RE  1984   what's\n\n\n",
)
MARKED = f"<|im_start|>user\nHi there{END}\n<tool_call> x</tool_call><|endoftext|>"
# The pre-tokenizers of the models' own tokenizer.json files.
SMOLLM = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
)
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
REAL = (QWEN, "smollm2-135m-instruct-q4_1.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Merges that cross what most pre-tokenizers part: they show where text was cut."""
    crossing = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return write_bpe(tmp_path_factory.mktemp("bpe"), pre_tokenizer=crossing, texts=(*TEXTS, "  1984 don't\n\n"))


def by_transformers(path: str):
    return transformers.AutoTokenizer.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path))


def assert_equal(ours: Tokenizer, theirs, texts=TEXTS) -> None:
    for text in texts:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("pre", "architecture"),
    [("qwen2", "qwen2"), ("qwen2", "qwen3"), ("llama-bpe", "llama"), ("gpt-2", "llama"), ("deepseek-r1-qwen", "qwen2")],
)
def test_equal_to_transformers(folder, tmp_path, pre, architecture):
    path = write_gguf(tmp_path / "some.gguf", folder, pre, architecture, bos_token_id=3, unknown_token_id=4)
    ours, theirs = Tokenizer.load(path), by_transformers(path)
    assert_equal(ours, theirs)
    assert ours.encode_markup(MARKED) == theirs(MARKED, add_special_tokens=False)["input_ids"]
    assert ours.eos_id == theirs.eos_token_id and ours.pad_id == theirs.pad_token_id
    assert ours.chat_template == theirs.chat_template
    loaded = Tokenizer.load(folder)
    assert ours.vocab_size == loaded.vocab_size and ours.pieces[5:] == loaded.pieces[5:]


def test_pre_tokenizers_differ(folder, tmp_path):
    """The texts tell them apart, so that equality above says something."""
    found = {
        pre: [Tokenizer.load(write_gguf(tmp_path / f"{pre}.gguf", folder, pre)).encode(text) for text in TEXTS]
        for pre in ("qwen2", "llama-bpe", "smollm", "gpt-2")
    }
    assert len({str(ids) for ids in found.values()}) == 4


def test_smollm_cuts_digits_as_its_own_tokenizer_does(folder, tmp_path):
    """transformers' reader lacks this pre-tokenizer and takes GPT-2's: with it "  1984" has its two spaces apart."""
    path = write_gguf(tmp_path / "some.gguf", folder, "smollm", "llama")
    reference = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    reference.pre_tokenizer = SMOLLM
    for text in TEXTS:
        assert Tokenizer.load(path).encode(text) == reference.encode(text).ids
    theirs = by_transformers(path)
    assert Tokenizer.load(path).encode("a  1984") != theirs("a  1984")["input_ids"]


def test_llama_takes_whole_words_that_no_merge_makes(folder, tmp_path):
    """As Llama 3's tokenizer.json (ignore_merges) and llama.cpp do; transformers' reader does not."""
    plain = Tokenizer.load(folder)
    names = sorted(tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).get_vocab().items())
    names = [name for name, _ in sorted(names, key=lambda item: item[1])] + ["Ġxylophone"]
    types = [3 if name.startswith("<|") else 4 if "tool_call" in name else 1 for name in names]
    path = write_gguf(tmp_path / "some.gguf", folder, "llama-bpe", "llama", tokens=names, token_type=types)
    ours = Tokenizer.load(path)
    assert ours.encode(" xylophone") == [plain.vocab_size] and len(by_transformers(path)(" xylophone").input_ids) > 1


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_markers_that_lie_in_the_vocabulary_are_text_in_data(folder, tmp_path, pre):
    """A GGUF lists all tokens in one vocabulary; with `ignore_merges` a whole word is looked up in it."""
    names = [n for n, _ in sorted(Tokenizer.load(folder).markers.items())]
    ours = Tokenizer.load(write_gguf(tmp_path / "some.gguf", folder, pre, eos_token_id=300, padding_token_id=301))
    special = [ours.pieces.index(None), *ours.markers.values()]
    for name in [*ours.markers, *names, "<tool_call>"]:
        ids = ours.encode(name + " and " + name)
        assert ours.decode(ids) == name + " and " + name and not set(ids) & set(special)


def test_special_tokens_come_from_their_ids(folder, tmp_path):
    named = Tokenizer.load(folder)
    start, end, text = (named.special(n) for n in ("<|im_start|>", END, "<|endoftext|>"))
    path = write_gguf(
        tmp_path / "some.gguf", folder, "qwen2", bos_token_id=start, eos_token_id=text, padding_token_id=None,
        add_bos_token=True,
    )  # fmt: skip
    tokenizer = Tokenizer.load(path)
    assert tokenizer.eos_id == end  # <|im_end|> ends turns wherever there is one
    assert tokenizer.pad_id == end  # the file names none

    plain = write_bpe(tmp_path / "plain", template=None)
    renamed = (tmp_path / "plain" / "tokenizer.json").read_text().replace(END, "<|eot_id|>")
    (tmp_path / "plain" / "tokenizer.json").write_text(renamed)
    settings = (tmp_path / "plain" / "tokenizer_config.json").read_text().replace(END, "<|eot_id|>")
    (tmp_path / "plain" / "tokenizer_config.json").write_text(settings)
    text, end = (Tokenizer.load(plain).special(n) for n in ("<|endoftext|>", "<|eot_id|>"))
    path = write_gguf(tmp_path / "eot.gguf", plain, "llama-bpe", eos_token_id=text, eot_token_id=end)
    assert Tokenizer.load(path).end_of_turn == "<|eot_id|>"  # eos ends the text, eot the turn
    path = write_gguf(tmp_path / "eos.gguf", plain, "llama-bpe", eos_token_id=end)
    assert Tokenizer.load(path).end_of_turn == "<|eot_id|>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "tekken"}, f"pre-tokenizer .*'tekken'; known are {', '.join(PRE_TOKENIZERS)}"),
        ({"pre": None}, "pre-tokenizer .*None; known are"),
        ({"model": "llama"}, "'llama' vocabulary; only byte-level BPE"),
        ({"tokens": None, "token_type": None}, "holds no vocabulary"),
        ({"tokens": "abc"}, "no list of texts as tokenizer.ggml.tokens"),
        ({"merges": [1, 2]}, "no list of texts as tokenizer.ggml.merges"),
        ({"token_type": [1, 2]}, "not as many token types"),
        ({"eos_token_id": "<|im_end|>"}, "gives <.im_end.> as eos_token_id"),
        ({"eos_token_id": 5000}, "gives 5000 as eos_token_id"),
        ({"merges": ["a", "b c"]}, "merges that are no pairs"),
        ({"merges": ["zz qq"]}, "merges that do not fit"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(folder, tmp_path, changes, message):
    path = write_gguf(tmp_path / "bad.gguf", folder, **({"pre": "qwen2"} | changes))
    with pytest.raises(InputError, match=f"bad.gguf.*{message}") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_is_refused(folder, tmp_path):
    data = (tmp_path / "whole.gguf", tmp_path / "cut.gguf")
    write_gguf(data[0], folder, "qwen2")
    whole = data[0].read_bytes()
    for size in (0, 3, 30, len(whole) // 3, 2 * len(whole) // 3):
        data[1].write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut.gguf"):
            Tokenizer.load(str(data[1]))


@pytest.mark.weights
@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    path = os.path.join(os.environ["AGEMEM_WEIGHTS_DIR"], name)
    ours, theirs = Tokenizer.load(path), by_transformers(path)
    texts = TEXTS if name == QWEN else TEXTS[:4]  # smollm: see above
    assert_equal(ours, theirs, texts)
    assert ours.encode_markup(MARKED) == theirs(MARKED)["input_ids"]
    assert ours.decode(ours.encode(MARKED)) == MARKED
    assert not set(ours.encode(MARKED)) & set(ours.markers.values())
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.chat_template == theirs.chat_template
