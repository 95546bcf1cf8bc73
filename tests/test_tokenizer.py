"""Tokenizers of all three kinds: the text of a token, round trips, markers, chat pieces, errors that name the fault."""

import os

import pytest
from vocabularies import DATE, END, sentences, write_bpe, write_sentencepiece

from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.tools.grammar import literals
from configs.base import get_config

QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
SMOLLM = "smollm2-135m-instruct-q4_1.gguf"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.model"
    return Tokenizer.load(write_sentencepiece(path, literals(get_config().tools, END)))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return Tokenizer.load(write_bpe(tmp_path_factory.mktemp("bpe")))


@pytest.mark.parametrize("kind", ["tiny", "bpe"])
def test_text_survives_and_token_bytes_spell_it(kind, request):
    tokenizer = request.getfixturevalue(kind)
    pieces = tokenizer.token_bytes()
    assert len(pieces) == tokenizer.vocab_size
    for text in sentences(50):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(pieces[i] for i in ids).decode() == text


@pytest.mark.parametrize("kind", ["tiny", "bpe"])
def test_markers_are_recognised_inside_text_and_have_no_bytes(kind, request):
    tokenizer = request.getfixturevalue(kind)
    chat = tokenizer.chat_pieces(DATE)
    text = chat.user_open + " Ada" + chat.message_close
    ids = tokenizer.encode_markup(text)
    assert tokenizer.eos_id in ids and tokenizer.eos_id == tokenizer.special(END)
    assert tokenizer.token_bytes()[tokenizer.eos_id] is None
    assert tokenizer.decode(ids) == text
    assert tokenizer.pad_id != tokenizer.eos_id
    with pytest.raises(ValueError, match="no control token '<|nothing|>'"):
        tokenizer.special("<|nothing|>")


def test_tiny_literals_and_chat_marks_are_single_pieces(tiny):
    assert tiny.is_small and tiny.chat_template is None
    chat = tiny.chat_pieces(DATE)
    texts = literals(get_config().tools, END)
    for text in [*texts, chat.system_open, chat.user_open, chat.assistant_open, chat.tool_open, chat.tool_close]:
        assert len(tiny.encode_markup(text)) == 1, text
    assert chat.end_of_turn == chat.message_close == END


def test_added_tokens_that_are_not_special_have_bytes(bpe):
    (token,) = bpe.encode_markup("<tool_call>")
    assert bpe.token_bytes()[token] == b"<tool_call>"
    assert not bpe.is_small


def test_chat_pieces_compose_to_what_the_template_renders(bpe):
    chat = bpe.chat_pieces(DATE)
    assert chat.user_open == "<|im_start|>user\n" and chat.message_close == "<|im_end|>\n"
    assert chat.tool_open == "<|im_start|>user\n<tool_response>\n"
    messages = [("system", "be brief"), ("user", "hello"), ("assistant", "yes"), ("tool", "found"), ("assistant", "so")]
    opens = {
        "system": chat.system_open,
        "user": chat.user_open,
        "assistant": chat.assistant_open,
        "tool": chat.tool_open,
    }
    composed = "".join(
        opens[role] + text + (chat.tool_close if role == "tool" else chat.message_close) for role, text in messages
    )
    assert composed == bpe.render([{"role": role, "content": text} for role, text in messages], DATE)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "not with the end of turn"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "exactly once"),
        (
            "{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}",
            "opens user messages in two ways",
        ),
    ],
)
def test_chat_templates_that_are_not_fixed_strings_are_refused(tmp_path, template, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(write_bpe(tmp_path, template)).chat_pieces(DATE)


def test_a_bare_tokenizer_json_loads_its_folder(tmp_path):
    folder = write_bpe(tmp_path)
    loaded = Tokenizer.load(os.path.join(folder, "tokenizer.json"))
    assert loaded.chat_pieces(DATE) == Tokenizer.load(folder).chat_pieces(DATE)


def test_paths_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Tokenizer.load(str(tmp_path / "missing.model"))
    for name in ("broken.model", "broken.gguf", "broken.json"):
        (tmp_path / name).write_bytes(b"not a vocabulary")
        with pytest.raises(ValueError, match=name):
            Tokenizer.load(str(tmp_path / name))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="must be a sentencepiece"):
        Tokenizer.load(str(tmp_path / "notes.txt"))
    path = tmp_path / "bare.model"
    write_sentencepiece(path, [])
    data = path.read_bytes().replace(END.encode(), b"<|im_foo|>")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="lacks the piece"):
        Tokenizer.load(str(path))


@pytest.mark.weights
@pytest.mark.parametrize("name", [QWEN, SMOLLM])
def test_gguf_vocabularies(name):
    tokenizer = Tokenizer.load(os.path.join(os.environ["AGEMEM_WEIGHTS_DIR"], name))
    chat = tokenizer.chat_pieces(DATE)
    assert chat.assistant_open == "<|im_start|>assistant\n" and chat.message_close == "<|im_end|>\n"
    text = chat.user_open + "Où est né Жук? 東京, 1984 😀 \u0301\n\n  x" + chat.message_close
    ids = tokenizer.encode_markup(text)
    assert tokenizer.decode(ids) == text
    assert ids[-2] == tokenizer.eos_id
    assert not any(piece and piece.startswith(b"[PAD1") for piece in tokenizer.token_bytes())
    if name == QWEN:  # ids as in Qwen's published vocabulary
        assert tokenizer.vocab_size == 151936 and tokenizer.eos_id == 151645
        assert tokenizer.encode_markup("<|im_start|>user\nHello 1984") == [151644, 872, 198, 9707, 220, 16, 24, 23, 19]
