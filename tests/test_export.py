"""A run's checkpoint as a released one: what transformers loads is the policy and the tokenizer of the training."""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from small import small_config
from small_inputs import write_model
from test_weights import our_logits
from vocabularies import DATE, END, sentences, write_bpe, write_gguf, write_sentencepiece

from agemem_jax import sharding
from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.hotpotqa.tasks import HotpotQA
from agemem_jax.benchmarks.vocabulary import worlds_pieces
from agemem_jax.config import difference, from_json
from agemem_jax.data.chat_template import chat_template
from agemem_jax.data.tokenizer import Tokenizer, write_hf
from agemem_jax.errors import InputError
from agemem_jax.models import qwen, weights
from agemem_jax.tools.grammar import literals
from agemem_jax.training import identity as identities
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.evaluate import METHODS, passes_of
from agemem_jax.training.setup import fresh_model
from agemem_jax.training.state import make_optimizer, new_state, param_shardings
from agemem_jax.training.summary import write_summary
from configs import base, hotpotqa, tiny

ROOT = Path(__file__).parent.parent
ASSET = ROOT / "agemem_jax" / "assets" / "tiny"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def texts(tokenizer: Tokenizer, words: list[str], count: int = 400) -> list[str]:
    """Sentences, pieces in any order (chat marks and tool literals among them), and pieces between loose characters."""
    rng = random.Random(0)
    pieces = [p.decode() for p in tokenizer.token_bytes() if p and p.isascii()]
    symbols = [piece for piece in pieces if len(piece) > 1 and any(mark in piece for mark in '"<}')] + [
        *tokenizer.markers
    ]
    pieces = rng.choices(pieces, k=100) + rng.choices(symbols, k=100)
    loose = [*' abcXYZ019"<|:}{[].'] + rng.choices(pieces, k=20)
    return [
        "".join(rng.choices(pieces, k=12)) if i % 3 == 0
        else "".join(rng.choices(loose, k=20)) if i % 3 == 1
        else "".join(f" {word}" for word in rng.choices(words, k=9))
        for i in range(count)
    ]  # fmt: skip


def assert_same_ids(tokenizer: Tokenizer, folder: Path, words: list[str]):
    """AutoTokenizer in `folder` gives every text the ids of `tokenizer`; returns it."""
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    compared = 0
    for text in texts(tokenizer, words):
        try:
            ids = tokenizer.encode_markup(text)
        except InputError:
            assert loaded.unk_token_id in loaded(text)["input_ids"]
            continue
        assert loaded(text)["input_ids"] == ids, text
        assert loaded.decode(ids) == text
        compared += 1
    assert compared > 150
    assert loaded.eos_token_id == tokenizer.eos_id and loaded.pad_token_id == tokenizer.pad_id
    return loaded


def test_the_tiny_vocabulary(tmp_path):
    path = str(ASSET / "tokenizer.model")
    tokenizer = Tokenizer.load(path)
    write_hf(path, tmp_path, TEMPLATE)
    loaded = assert_same_ids(tokenizer, tmp_path, questions.vocabulary())
    assert len(loaded) == tokenizer.vocab_size
    again = Tokenizer.load(str(tmp_path / "tokenizer.model"))
    assert again.pieces == tokenizer.pieces
    assert not list(tmp_path.glob("*partial*"))


def test_the_vocabulary_of_all_benchmarks(tmp_path):
    path = str(ASSET.parent / "worlds" / "tokenizer.model")
    write_hf(path, tmp_path, TEMPLATE)
    assert_same_ids(Tokenizer.load(path), tmp_path, [piece.strip() for piece in worlds_pieces()])


def test_another_sentencepiece_model(tmp_path):
    """With letters outside ASCII and literals that hold the end of a turn."""
    path = write_sentencepiece(tmp_path / "some.model", literals(base.get_config().tools, END))
    write_hf(path, tmp_path / "out", TEMPLATE)
    tokenizer = Tokenizer.load(path)
    assert_same_ids(tokenizer, tmp_path / "out", [text.split()[0] for text in sentences(100)])


def test_the_tiny_chat_template_lays_messages_out_as_training_does(tmp_path):
    path = str(ASSET / "tokenizer.model")
    tokenizer, chat = Tokenizer.load(path), Tokenizer.load(path).chat_pieces(DATE)
    write_hf(path, tmp_path, chat_template(chat, "", tiny.get_config().tools, spaced=True))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    call = '<think></think><tool_call>[{"name": "Retrieve_memory", "arguments": {"query": " Ada"}}]</tool_call>'
    messages = [("user", "Ada Keller wrote"), ("assistant", call), ("tool", " done"), ("assistant", call + END)]
    expected = (
        chat.system_open + chat.message_close + chat.user_open + " Ada Keller wrote" + chat.message_close
        + chat.assistant_open + call + END + chat.tool_open + " done" + chat.tool_close
        + chat.assistant_open + call + END + chat.assistant_open
    )  # fmt: skip
    dicts = [{"role": role, "content": text} for role, text in messages]
    ids = loaded.apply_chat_template(dicts, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == tokenizer.encode_markup(expected)
    assert loaded.apply_chat_template([{"role": "system", "content": ""}, dicts[0]], tokenize=False) == (
        chat.system_open + chat.message_close + chat.user_open + " Ada Keller wrote" + chat.message_close
    )


def test_the_tokenizer_of_a_hugging_face_folder(tmp_path):
    source = write_bpe(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text("{}")
    for i, path in enumerate((source, os.path.join(source, "tokenizer.json"))):
        write_hf(path, tmp_path / f"out{i}", TEMPLATE)
        loaded = assert_same_ids(Tokenizer.load(source), tmp_path / f"out{i}", ["Ada", "Keller", "café", "東京", "😀"])
        assert loaded.chat_template == TEMPLATE
        assert not (tmp_path / f"out{i}" / "config.json").exists()


def test_the_tokenizer_of_a_gguf(tmp_path):
    folder = write_bpe(tmp_path / "source")
    path = write_gguf(tmp_path / "some.gguf", folder, "qwen2")
    write_hf(path, tmp_path / "out", TEMPLATE)
    loaded = assert_same_ids(Tokenizer.load(path), tmp_path / "out", ["Ada", "Keller", "café", "東京", "😀"])
    assert loaded.chat_template == TEMPLATE


def test_models_that_a_tokenizer_json_cannot_hold_are_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, vocab_size=120, model_type="bpe",
        hard_vocab_limit=False, user_defined_symbols=[END], minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "bpe.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(ValueError, match="bpe.model.*must be a unigram model without normalisation"):
        write_hf(str(path), tmp_path / "out", TEMPLATE)


def save_run(folder: Path, config, params: dict, update: int = 7) -> dict:
    """What a run leaves in its folder: a checkpoint, and the summary of its seeds. Returns the parameters."""
    state = new_state(params, make_optimizer(config.optim))
    with Checkpointer(folder / "seed_0" / "checkpoints", config, 2) as saver:
        saver.save(update - 1, jax.tree.map(jnp.zeros_like, state), {}, wait=True)
        saver.save(update, state, {}, wait=True)
    for name in ("seconds.json", "cut_texts.json"):
        (folder / "seed_0" / name).write_text("{}")
    identity = dict.fromkeys(identities.PARTS, identities.FRESH)
    (folder / "seed_0" / identities.FILE).write_text(identities.to_json(identity, {}))
    numbers = {"progress": [0.25, 0.75], "reward": [1.0, 2.0], "kind": [0.0, 1.0]}
    passes = [one for method in METHODS for one in passes_of(config, method)]
    run = SimpleNamespace(source=SimpleNamespace(tasks=HotpotQA))
    write_summary(folder, config, run, {0: dict.fromkeys(passes, numbers)}, "a command")
    return jax.device_get(params)


def command(*args) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.export", *map(str, args)], capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The trained tiny policy, saved on a mesh of 2 x 4 devices (a command on 8 reads it as 1 x 8) and exported."""
    folder = tmp_path_factory.mktemp("released")
    config = tiny.get_config()
    config.policy.weights, config.policy.tokenizer = str(ASSET), str(ASSET / "tokenizer.model")
    mesh = sharding.make_mesh(2, 4, 1)
    model, params = weights.load(ASSET, shardings=lambda model: param_shardings(model, mesh))
    params = save_run(folder / "run", config, jax.tree.map(lambda x: x * 1.01, params))
    ran = command(f"--run={folder}/run/seed_0", f"--folder={folder}/out", f"--out={folder}/figures.json")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder, config, model, params


def test_transformers_gives_the_logits_of_the_trained_policy(released):
    folder, _, model, params = released
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32).eval()
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    messages = [{"role": "user", "content": "Ada Keller wrote Silver River"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    tokens = prompt["input_ids"][0].tolist()
    assert tokens == Tokenizer.load(str(folder / "out" / "tokenizer.model")).encode_markup(
        "<|im_start|>system<|im_end|><|im_start|>user Ada Keller wrote Silver River<|im_end|><|im_start|>assistant"
    )
    with torch.no_grad():
        theirs = loaded(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(our_logits(model, params, tokens), theirs, atol=1e-4)

    reply = loaded.generate(**prompt, max_new_tokens=24, do_sample=False)[0].tolist()
    ours, ends = list(tokens), Tokenizer.load(str(ASSET / "tokenizer.model")).end_ids()
    while len(ours) < len(tokens) + 24 and ours[-1] not in ends:
        ours.append(int(our_logits(model, params, [*ours, *[0] * (64 - len(ours))])[len(ours) - 1].argmax()))
    assert reply == ours and reply[-1] in ends
    assert tokenizer.decode(reply).endswith(END)


def test_what_the_folder_holds(released):
    folder, config, model, params = released
    figures = json.loads((folder / "figures.json").read_text())
    files = {file.name for file in (folder / "out").iterdir()}
    assert files == set(figures["files"]) >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "tokenizer.model",
    }  # fmt: skip
    assert figures["checkpoint"].endswith("00000007") and figures["dtype"] == "float32"
    assert figures["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    loaded_model, loaded = weights.load(folder / "out")
    assert loaded_model == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    card = (folder / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert "7 updates, seed 0" in card and "| hidden_size | 128 |" in card and "Qwen3ForCausalLM" in card
    assert "agemem_norl" in card and "0.500 ±" in card  # the summary's table
    shown = from_json(card.split("```json\n")[1].split("\n```")[0])
    assert difference(shown, from_json(json.dumps(config.to_dict()))) == ["policy.tokenizer", "policy.weights"]
    assert (shown.policy.weights, shown.policy.tokenizer) == ("tiny", "tokenizer.model")
    assert "started from\n`tiny`" in card and str(ASSET.parent) not in card
    snippet = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder / "out"))
    printed = []
    exec(snippet, {"print": printed.append})  # the card's own way to load it
    assert END in printed[0]
    sampling = transformers.GenerationConfig.from_pretrained(folder / "out")
    assert (sampling.do_sample, sampling.temperature, sampling.top_k, sampling.top_p) == (True, 1.0, 0, 1.0)
    ends = Tokenizer.load(str(ASSET / "tokenizer.model")).end_ids()
    assert len(ends) > 1 and sampling.eos_token_id == ends and sampling.pad_token_id == 0


def test_another_dtype_in_shards_over_a_former_export(released):
    folder, _, _, params = released
    target = folder / "again"
    assert command(f"--run={folder}/run/seed_0", f"--folder={target}").returncode == 0
    ran = command(f"--run={folder}/run/seed_0", f"--folder={target}", "--dtype=bfloat16", "--shard_bytes=400000")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "bfloat16" in ran.stdout
    assert not (target / "model.safetensors").exists() and len(list(target.glob("model-*.safetensors"))) > 3
    loaded = weights.load(target)[1]
    rounded = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16).astype(np.float32)), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)
    assert transformers.AutoModelForCausalLM.from_pretrained(target).dtype == torch.bfloat16


def test_a_policy_that_began_from_nothing(tmp_path):
    """Its architecture comes from the fields of its config."""
    config = small_config(policy__qk_norm=False, policy__qkv_bias=True)
    tokenizer = Tokenizer.load(config.policy.tokenizer)
    model = fresh_model(config.policy, tokenizer.vocab_size)
    params = save_run(tmp_path / "run", config, qwen.init_params(model, jax.random.key(5)))
    ran = command(f"--run={tmp_path}/run/seed_0", f"--folder={tmp_path}/out")
    assert ran.returncode == 0, ran.stderr[-3000:]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = list(range(2, 40))
    with torch.no_grad():
        theirs = loaded(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(our_logits(model, params, tokens), theirs, atol=1e-4)
    # AutoTokenizer has rules of its own for this architecture's vocabulary: the card says how to go past them.
    assert "makes a Qwen2Tokenizer of this tokenizer" in ran.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoTokenizer" not in card
    snippet = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out"))
    known: dict = {"print": lambda _: None}
    exec(snippet, known)
    chat = tokenizer.chat_pieces(DATE)
    expected = f"{chat.system_open}{END}{chat.user_open} Ada Keller wrote Silver River{END}{chat.assistant_open}"
    assert known["prompt"]["input_ids"][0].tolist() == tokenizer.encode_markup(expected)

    config.policy.num_layers = 3  # the weights that it began from are not what they were
    save_run(tmp_path / "changed", config, qwen.init_params(model, jax.random.key(5)))
    ran = command(f"--run={tmp_path}/changed/seed_0", f"--folder={tmp_path}/changed-out")
    assert ran.returncode == 2 and "policy.weights" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "changed-out").exists()


def test_runs_without_a_whole_checkpoint_are_refused(released, tmp_path):
    folder, *_ = released
    ran = command(f"--run={folder}/run", f"--folder={tmp_path}/out")
    assert ran.returncode == 2 and "give one of its seeds" in ran.stderr and "run/seed_0" in ran.stderr
    ran = command(f"--run={tmp_path}/nowhere", f"--folder={tmp_path}/out")
    assert ran.returncode == 2 and "no whole checkpoint" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_needs_torch(tmp_path):
    """The test extra alone installs it: tokenizers of every kind, a GGUF's weights and an export do without."""
    write_model(tmp_path / "small.gguf")
    config = hotpotqa.get_config()
    config.policy.weights = str(tmp_path / "small.gguf")
    save_run(tmp_path / "run", config, weights.load(config.policy.weights)[1])
    bpe = write_bpe(tmp_path / "bpe")
    paths = [str(ASSET / "tokenizer.model"), bpe, f"{bpe}/tokenizer.json", config.policy.weights]
    code = f"""
import runpy, sys
sys.modules["torch"] = None  # importing it fails
from agemem_jax.data.tokenizer import Tokenizer, write_hf
from agemem_jax.models import weights
for i, path in enumerate({paths}):
    tokenizer = Tokenizer.load(path)
    assert tokenizer.chat_pieces("26 Jul 2024").end_of_turn == "{END}"
    write_hf(path, f"{tmp_path}/out{{i}}", {TEMPLATE!r})
weights.load({config.policy.weights!r})
sys.argv[1:] = ["--run={tmp_path}/run/seed_0", "--folder={tmp_path}/released"]
runpy.run_module("experiments.export", run_name="__main__")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "released" / "chat_template.jinja").is_file()
    for i, path in enumerate(paths):
        assert (tmp_path / f"out{i}" / "tokenizer.json").is_file(), path
    assert_same_ids(Tokenizer.load(config.policy.weights), tmp_path / "released", ["Ada", "Keller", "café"])


@pytest.mark.weights
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "smollm2-135m-instruct-q4_1.gguf"])
def test_tokenizers_of_real_gguf_files(name, tmp_path):
    path = str(Path(os.environ["AGEMEM_WEIGHTS_DIR"]) / name)
    write_hf(path, tmp_path, TEMPLATE)
    loaded = assert_same_ids(Tokenizer.load(path), tmp_path, ["Où", "est", "né", "Жук?", "東京,", "1984", "😀", "\n\n"])
    assert loaded.chat_template == TEMPLATE
