"""What a run has read is known by its content: the same elsewhere goes on, another under the same path is refused."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config
from test_weights import FAMILIES, shard
from vocabularies import CHAT_TEMPLATE, write_bpe

from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.config import ConfigError, from_json, to_json
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.models import qwen, weights
from agemem_jax.training import distributed, loop
from agemem_jax.training import identity as identities
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.identity import FRESH, PARTS, differing
from agemem_jax.training.loop import check_finite, check_params, is_evaluated, train
from agemem_jax.training.setup import build
from configs import tiny
from experiments.export import card, newest, read_again

ASSET = Path(tiny.__file__).parent.parent / "agemem_jax" / "assets" / "tiny"
STATE = {"w": jnp.arange(3.0)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, vocabulary and records of a run."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(ASSET, folder / "model")
    records = questions.generate(0, 30, "train", {"recall": 1.0}, questions.Sizes(3, 4, 1))  # of small_config
    (folder / "records.json").write_text(json.dumps(records))
    return folder


def config_of(folder: Path, **changes):
    config = small_config(policy__weights=str(folder / "model"), task__path=str(folder / "records.json"), **changes)
    config.policy.tokenizer = str(folder / "model" / "tokenizer.model")
    return config


@pytest.fixture(scope="module")
def run(files):
    return build(config_of(files))


def changed(folder: Path, target: Path, name: str, change) -> Path:
    """A copy of the files with the JSON or bytes of one of them changed."""
    shutil.copytree(folder, target)
    file = target / name
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        file.write_text(json.dumps(change(value) or value))
    else:
        file.write_bytes(change(file.read_bytes()))
    return target


def last_byte(content: bytes) -> bytes:
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


CHANGES = {
    "weights": ("model/model.safetensors", last_byte),
    "training records": ("records.json", lambda records: records[0].update(question="Who wrote Silver River")),
    "validation records": ("records.json", lambda records: records[-8].update(answer="Halden")),  # 3 before the last 6
    "test records": ("records.json", lambda records: records[-1].update(answer="Halden")),
}


def test_the_same_elsewhere_has_the_same_identity(files, run, tmp_path):
    assert set(run.identity) == set(PARTS) and len(set(run.identity.values())) == len(PARTS)
    shutil.copytree(files, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "records.json").write_text(json.dumps(json.loads((files / "records.json").read_text())))
    there = build(config_of(tmp_path / "elsewhere", rl__updates=9, seed=3))
    assert there.identity == run.identity


@pytest.mark.parametrize("part", CHANGES)
def test_what_changed_is_told_apart(files, run, tmp_path, part):
    there = build(config_of(changed(files, tmp_path / "there", *CHANGES[part])))
    assert differing(run.identity, there.identity) == [part]
    where = "policy.weights" if part == "weights" else "task.path"
    with pytest.raises(InputError) as refused:
        identities.check("it", run.identity, there.identity, there.config, run.config, "or else")
    told = str(refused.value)
    assert "\n" not in told and part in told and f"{where} = '{tmp_path}" in told
    assert f"{where} = '{files}" in told and told.endswith("or else")


def test_the_order_of_records_and_the_split_count(files, run, tmp_path):
    def swap(records):
        return [records[1], records[0], *records[2:]]

    there = build(config_of(changed(files, tmp_path / "there", "records.json", swap)))
    assert differing(run.identity, there.identity) == ["training records"]
    less = build(config_of(files, task__test_fraction=0.1))
    assert differing(run.identity, less.identity) == ["training records", "validation records", "test records"]


def test_a_split_with_a_file_of_its_own_is_named_by_it(files, run):
    config = config_of(files, task__test_path=str(files / "records.json"), task__validation_fraction=0.0)
    now = run.identity | {"test records": "0"}
    with pytest.raises(InputError, match=f"task.test_path = '{files}/records.json' holds other test records"):
        identities.check("it", run.identity, now, config, config, "or else")


def test_template_and_merges_of_a_tokenizer(tmp_path):
    def parts(folder: str) -> dict:
        tokenizer = Tokenizer.load(folder)
        pieces = identities.of_arrays(build_pieces(tokenizer, small_config()))
        return {"tokenizer": identities.of_tokenizer(tokenizer), "prompt": pieces}

    one = parts(write_bpe(tmp_path / "one"))
    assert parts(str(shutil.copytree(tmp_path / "one", tmp_path / "two"))) == one
    other = parts(write_bpe(tmp_path / "other", CHAT_TEMPLATE.replace("<tool_response>", "<tool_result>")))
    assert differing(one, other) == ["prompt"]
    stored = json.loads((tmp_path / "two" / "tokenizer.json").read_text())
    merges = stored["model"]["merges"]
    stored["model"]["merges"] = [*merges[100:], *merges[:100]]  # the same pieces, made in another order
    (tmp_path / "two" / "tokenizer.json").write_text(json.dumps(stored))
    assert differing(one, parts(str(tmp_path / "two"))) == ["tokenizer"]


def test_weights_are_known_by_tensors_not_by_files(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "READ_BYTES", 1000)
    config = FAMILIES["llama"]
    shapes = jax.eval_shape(lambda key: qwen.init_params(config, key), jax.random.key(0))
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda x: noise.normal(size=x.shape).astype(np.float32), shapes)
    weights.save_hf(tmp_path / "one", config, params)
    one = weights.fingerprint(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "shards")
    shard(tmp_path / "shards")
    for path in ("shards", "shards/model.safetensors.index.json", "one/model.safetensors"):
        assert weights.fingerprint(tmp_path / path) == one
    monkeypatch.setattr(weights, "READ_BYTES", 1 << 20)
    assert weights.fingerprint(tmp_path / "one") == one
    weights.save_hf(tmp_path / "half", config, params, "bfloat16")
    shutil.copytree(tmp_path / "one", tmp_path / "config")
    described = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "config" / "config.json").write_text(json.dumps(described | {"rope_theta": 5e5}))
    shutil.copytree(tmp_path / "one", tmp_path / "bytes")
    file = tmp_path / "bytes" / "model.safetensors"
    file.write_bytes(last_byte(file.read_bytes()))
    prints = [weights.fingerprint(tmp_path / name) for name in ("one", "half", "config", "bytes")]
    assert len(set(prints)) == 4
    glances = [weights.fingerprint(tmp_path / name, most=16) for name in ("one", "half", "config", "bytes")]
    assert len(set(glances)) == 3 and glances[0] == glances[3]  # the last bytes of a tensor are not looked at


def saver(folder: Path, config, identity) -> Checkpointer:
    return Checkpointer(folder, config, 2, identity)


def test_a_run_goes_on_by_content(files, run, tmp_path, capsys):
    with saver(tmp_path / "checkpoints", run.config, run.identity) as checkpoints:
        checkpoints.save(1, STATE, {}, wait=True)
    kept = json.loads((tmp_path / "checkpoints" / "00000001" / "identity.json").read_text())
    assert kept["parts"] == run.identity and kept["made_by"]["jax"] == jax.__version__
    moved = from_json(to_json(run.config))
    moved.policy.weights, moved.policy.tokenizer, moved.task.path = "a", "b", "c"
    with saver(tmp_path / "checkpoints", moved, run.identity) as checkpoints:
        assert checkpoints.restore_latest(STATE)[0] == 1
    for part, words in (
        ("weights", f"the weights that policy.weights = '{files}/model' names are others than those the run began"),
        ("tokenizer", "the vocabulary or encoder of policy.tokenizer = "),
        ("training records", f"task.path = '{files}/records.json' holds other training records"),
        ("validation records", "other validation records than the run began with, or in another order, by task.test_f"),
        ("test records", "other test records than the run began with, or in another order"),
        ("prompt", "the system prompt or the marks around messages are others"),
        ("grammar", "the grammar's tables are others: another version of agemem_jax made them"),
        ("tasks", "the messages that records are told in are others"),
    ):
        with saver(tmp_path / "checkpoints", run.config, run.identity | {part: "0"}) as checkpoints:
            with pytest.raises(InputError) as refused:
                checkpoints.restore_latest(STATE)
        told = str(refused.value)
        assert told.startswith(f"checkpoint {tmp_path}/checkpoints/00000001: ") and words in told and "\n" not in told
        assert "or start in a new --workdir" in told and " at that time" in told
        assert f"task.path = '{files}/records.json'" in told and "task.validation_path = ''" in told
    with saver(tmp_path / "checkpoints", run.config, run.identity | {"weights": FRESH}) as checkpoints:
        with pytest.raises(InputError, match="the run began with the weights of a file, and policy.weights is "):
            checkpoints.restore_latest(STATE)
    assert capsys.readouterr().err == ""


def test_an_older_checkpoint_is_taken_with_a_word_and_by_its_paths(run, tmp_path, capsys):
    with saver(tmp_path / "checkpoints", run.config, None) as checkpoints:
        checkpoints.save(1, STATE, {}, wait=True)
    with saver(tmp_path / "checkpoints", run.config, run.identity) as checkpoints:
        assert checkpoints.restore_latest(STATE)[0] == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"warning: checkpoint {tmp_path}/checkpoints/00000001 was written")
    moved = from_json(to_json(run.config))
    moved.task.path = "elsewhere.json"
    with saver(tmp_path / "checkpoints", moved, run.identity) as checkpoints:
        with pytest.raises(ConfigError, match="task.path is 'elsewhere.json', was "):
            checkpoints.restore_latest(STATE)


def test_an_evaluation_holds_by_content(run, tmp_path):
    path, moved, longer = tmp_path / "evaluation.json", from_json(to_json(run.config)), from_json(to_json(run.config))
    kept = {"updates": 3, "config": run.config.to_dict(), "identity": run.identity, "numbers": {}}
    path.write_text(json.dumps(kept))
    moved.policy.weights, moved.task.path = "a", "b"
    longer.rl.updates = 99
    for config in (run.config, moved, longer):
        assert is_evaluated(path, config, run.identity, 3)
    assert not is_evaluated(path, run.config, run.identity, 4)
    for part in PARTS:
        assert not is_evaluated(path, run.config, run.identity | {part: "0"}, 3)
    assert is_evaluated(path, longer, None, 3) and not is_evaluated(path, moved, None, 3)  # before anything is read
    del kept["identity"]  # an older version's
    path.write_text(json.dumps(kept))
    assert is_evaluated(path, run.config, run.identity, 3) and not is_evaluated(path, moved, run.identity, 3)
    assert not is_evaluated(tmp_path / "none.json", run.config, run.identity, 3)


def test_processes_that_read_other_things_are_told_which(run, monkeypatch):
    mine = loop.read_here(run)
    assert set(mine) == {*PARTS, "config", "versions of libraries"} and mine["weights"] != run.identity["weights"]
    distributed.agree_on(mine)
    monkeypatch.setattr(distributed, "agree", lambda _: mine | {"test records": "0", "weights": "1"})
    with pytest.raises(ConfigError, match="process 0 has other test records, weights than process 0; give all"):
        distributed.agree_on(mine)


def test_an_export_reads_what_the_run_read(files, run, tmp_path, capsys):
    def again(folder: Path, config) -> dict:
        return read_again(newest(folder), config, Tokenizer.load(config.policy.tokenizer))

    shutil.copytree(files, tmp_path / "files")
    config = config_of(tmp_path / "files")
    with saver(tmp_path / "run" / "checkpoints", config, run.identity) as checkpoints:
        checkpoints.save(1, STATE, {}, wait=True)
    identity = again(tmp_path / "run", config)
    assert identity.items() <= run.identity.items() and "weights" in identity
    checkpoint, tokenizer = newest(tmp_path / "run"), Tokenizer.load(config.policy.tokenizer)
    text = card(config, run.model, tokenizer, checkpoint, tmp_path / "run", "float32", "AutoTokenizer", identity)
    assert f"`model` (fingerprint {run.identity['weights'][:12]})" in text

    file = tmp_path / "files" / "model" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(last_byte(content))
    with pytest.raises(InputError, match="the weights that policy.weights = .* names are others"):
        again(tmp_path / "run", config)
    file.write_bytes(content)
    shutil.copy(small_config(tools__summary_by="call").policy.tokenizer, config.policy.tokenizer)
    with pytest.raises(InputError, match="the vocabulary or encoder of policy.tokenizer = ") as refused:
        again(tmp_path / "run", config)
    assert "prompt" not in str(refused.value)  # which follows from it
    assert capsys.readouterr().err == ""
    with saver(tmp_path / "older" / "checkpoints", config, None) as checkpoints:
        checkpoints.save(1, STATE, {}, wait=True)
    again(tmp_path / "older", config)
    assert "was written by an older version" in capsys.readouterr().err


def test_starting_weights_that_are_not_finite_are_refused_before_anything_is_played(files, tmp_path):
    model, params = weights.load(files / "model")
    kernel = np.array(params["layers"]["mlp"]["up_proj"]["kernel"])
    kernel[2, 5, 7] = np.nan
    params["layers"]["mlp"]["up_proj"]["kernel"] = kernel
    shutil.copytree(files, tmp_path / "files")
    weights.save_hf(tmp_path / "files" / "model", model, params)
    for changes in ({}, {"rl__kl_coef": 0.1}):  # in what is trained, and in what is frozen
        run = build(config_of(tmp_path / "files", **changes))
        with pytest.raises(InputError) as refused:
            train(run, tmp_path / "run")
        told = "layers/mlp/up_proj/kernel, layer 2, (model.layers.2.mlp.up_proj.weight) holds NaN or infinity; fetch"
        assert str(refused.value).startswith(f"policy.weights = '{tmp_path}/files/model': {told}")
        assert not list((tmp_path / "run").glob("evaluation*"))
        assert not any(program._cache_size() for program in run.programs.values())
    check_params({"norm": {"weight": jnp.ones(2)}, "layers": {"lora_a": jnp.ones((2, 3))}}, "it", "")
    with pytest.raises(InputError, match=r"^it: norm/weight \(model.norm.weight\) holds NaN or infinity; do$"):
        check_params({"norm": {"weight": jnp.array([1.0, jnp.inf])}}, "it", "do")


def test_a_run_that_diverged_saves_nothing_and_names_the_last_good_checkpoint(run, tmp_path):
    good = {"update": 3, "loss": 0.1, "grad_norm": 2.0, "reward": -1.0, "params_finite": 1.0}
    with saver(tmp_path, run.config, run.identity) as checkpoints:
        check_finite(good, checkpoints)
        check_finite({"update": 3}, checkpoints)
        with pytest.raises(InputError, match="update 3: parameters not finite.*there is no whole checkpoint yet"):
            check_finite(good | {"params_finite": 0.0}, checkpoints)
        checkpoints.save(2, STATE, {})
        bad = good | {"loss": float("nan"), "grad_norm": float("inf"), "params_finite": 0.0}
        with pytest.raises(InputError, match="loss, grad_norm, parameters not finite.*checkpoint 00000002 is whole"):
            check_finite(bad, checkpoints)


def test_the_check_comes_before_the_checkpoint(run, tmp_path, monkeypatch):
    def update(run, state, frozen, number, task, method):
        return state, {"metrics": {"loss": 0.5, "reward": 1.0, "params_finite": float(number < 2)}}

    monkeypatch.setattr(loop, "evaluate_once", lambda run, state, *_: state)
    monkeypatch.setattr(loop, "train_update", update)
    monkeypatch.setattr(run.config.train, "checkpoint_every", 1)
    with pytest.raises(InputError, match="update 3: parameters not finite.*; checkpoint 00000002 is whole"):
        train(run, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("0*")) == ["00000001", "00000002"]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert json.loads((tmp_path / "identity.json").read_text())["parts"] == run.identity
