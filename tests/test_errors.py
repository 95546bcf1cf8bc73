"""What the user did wrong ends every command with exit code 2 and one line: file or field, value, remedy."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy

from agemem_jax.errors import InputError
from configs import tiny
from experiments import cli, paths

ROOT = Path(__file__).parent.parent
ASSET = ROOT / "agemem_jax" / "assets" / "tiny"
TINY = f"--config={ROOT}/configs/tiny.py"
STUDY = f"--config={ROOT}/configs/ablations.py"
CHANGED = "from configs import tiny\ndef get_config():\n    c = tiny.get_config()\n    {} = {}\n    return c\n"
CONFIGS = {  # name -> what stands in the file
    "syntax.py": "from configs import tiny\ndef get_config(:\n    return 3\n",
    "raises.py": "from configs import tiny\n\ndef get_config():\n    return tiny.get_config().no_such_field\n",
    "imports.py": "import no_such_module\n",
    "exits.py": "raise SystemExit(3)\n",
    "nothing.py": "x = 3\n",
    "dict.py": "def get_config():\n    return {'rl': 3}\n",
    "nul.py": "x = 3\0\n",
    "picture.png": "\x89PNG\r\n\x1a\n\0\0\0",
    "needs.py": "from configs import tiny\ndef get_config(size):\n    return tiny.get_config()\n",
    "field.py": CHANGED.format("c.rl.gruop", 3),
    "enabled.py": CHANGED.format("c.tools.enabled", (5,)),
    "path.py": CHANGED.format("c.policy.weights", repr("a\0b")),
}


def model(folder: Path, tensors=None, **fields) -> Path:
    """The shipped policy in another folder, with some tensors and fields of config.json set (... : left out)."""
    shutil.copytree(ASSET, folder)
    if tensors is not None:
        held = safetensors.numpy.load_file(folder / "model.safetensors") | tensors
        held = {name: value for name, value in held.items() if value is not ...}
        safetensors.numpy.save_file(held, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


def make_models(folder: Path) -> None:
    """Every bad model that the table names, in `folder`."""
    embedding = safetensors.numpy.load_file(ASSET / "model.safetensors")["model.embed_tokens.weight"]
    model(folder / "sizes", num_hidden_layers="4")
    model(folder / "kind", model_type="mamba")
    model(folder / "partial", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    model(folder / "quantised", quantization_config={"quant_method": "awq"})
    model(folder / "int8", {"model.norm.weight": np.zeros(128, np.int8)})
    model(folder / "head", {"lm_head.weight": embedding + 1})
    model(folder / "rows", {"model.embed_tokens.weight": embedding[:400]}, vocab_size=400)
    model(folder / "short", max_position_embeddings=128)
    model(folder / "missing", {"model.norm.weight": ...})
    for name, text in (("list", "[]"), ("half", '{"model_type": "qwen3", '), ("empty", "")):
        (model(folder / name) / "config.json").write_text(text)
    (model(folder / "none") / "config.json").unlink()
    cut = model(folder / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    (model(folder / "pointer") / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    index = model(folder / "index") / "model.safetensors.index.json"
    index.write_text('{"weight_map": ')
    torch = model(folder / "torch")
    (torch / "model.safetensors").rename(torch / "pytorch_model.bin")
    adapter = model(folder / "adapter")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (folder / "split").mkdir()
    for i in (1, 2):
        writer = gguf.GGUFWriter(folder / f"split/m-{i:05d}-of-00002.gguf", "qwen2")
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (folder / "broken.gguf").write_bytes(b"GGUF and no more")
    (folder / "damaged.model").write_bytes(b"no vocabulary")


def weights(name: str, command: str = "train") -> tuple:
    return command, [TINY, "--workdir=w", f"--config.policy.weights={{}}/models/{name}"]


def train(*flags: str) -> tuple:
    return "train", [TINY, "--workdir=w", *flags]


def config(name: str) -> tuple:
    return "train", ["--workdir=w", f"--config={{}}/{name}"]


# What is wrong -> (command, flags; {} is the folder of the files above), what the line must hold.
CASES = {
    # The command line.
    "no config": (("train", ["--workdir=w"]), ["--config is missing", str(ROOT / "configs")]),
    "config elsewhere": (
        ("train", ["--workdir=w", "--config=configs/tiny.py"]),
        ["--config=configs/tiny.py: there is no such file", "tiny.py", f"in {ROOT}/configs"],
    ),
    "no argument": (("train", [f"{TINY}:foo", "--workdir=w"]), ["tiny.py:foo: get_config takes no argument; give"]),
    "an argument": (config("needs.py"), ["needs.py: get_config takes an argument; give", "needs.py:ARGUMENT"]),
    "no variant": (
        ("train", [f"--config={ROOT}/configs/qwen3.py:9b", "--workdir=w"]), ["qwen3.py:9b", "there are 0.6b-v5e-16"],
    ),
    "config with a wrong syntax": (config("syntax.py"), ["syntax.py, line 2: invalid syntax"]),
    "config that raises": (config("raises.py"), ["raises.py, line 4: AttributeError", "no_such_field"]),
    "config that imports": (config("imports.py"), ["imports.py, line 1: ModuleNotFoundError", "no_such_module"]),
    "config that exits": (config("exits.py"), ["exits.py, line 1: SystemExit: 3"]),
    "config without get_config": (config("nothing.py"), ["nothing.py defines no get_config()", "base.py"]),
    "config that is a dict": (config("dict.py"), ["get_config returns a dict; an ml_collections.ConfigDict is needed"]),
    "config with NUL": (config("nul.py"), ["nul.py", "null byte"]),
    "config that is a picture": (config("picture.png"), ["picture.png", "--config="]),
    "config that is a folder": (config(""), ["there is no such file"]),
    "field of a config file": (config("field.py"), ["rl.gruop = 3: there is no such field; did you mean"]),
    "tuple of a config file": (config("enabled.py"), ["tools.enabled = (5,): a tuple of texts is needed"]),
    "NUL in a config file": (config("path.py"), ["policy.weights = ", "NUL"]),
    "misspelt field": (train("--config.rl.gruop_size=4"), ["rl.gruop_size = '4'", "did you mean rl.group_size?"]),
    "wrong type": (train("--config.rl.group_size=4.5"), ["rl.group_size = '4.5': a whole number is needed"]),
    "tuple of numbers": (train("--config.tools.enabled=5"), ["tools.enabled = (5,): a tuple of texts is needed"]),
    "broken tuple": (train("--config.tools.enabled=(Add"), ["tools.enabled"]),
    "huge": (train("--config.rl.updates=1000000000000"), ["rl.updates = 1000000000000: must be at most 2147483647"]),
    "beyond int64": (train("--config.rl.updates=99999999999999999999"), ["rl.updates = 99999999999999999999"]),
    "no seeds": (train("--config.num_seeds=0"), ["num_seeds = 0: must be at least 1"]),
    "seed": (train("--config.seed=-1"), ["seed = -1: must be at least 0"]),
    "unknown flag": (train("--workdri=x"), ["workdri", "--help lists the flags"]),
    "positional": (train("rl.group_size=4"), ["'rl.group_size=4' is not a flag; fields are set as in"]),
    "no workdir": (("train", [TINY]), ["workdir"]),
    "empty workdir": (("train", [TINY, "--workdir="]), ["workdir", "is empty; give a path"]),
    "workdir is a file": (("train", [TINY, "--workdir={}/a_file"]), ["--workdir=", "a_file is a file; give a folder"]),
    "workdir in a file": (("train", [TINY, "--workdir={}/a_file/x"]), ["a_file is a file; give a folder"]),
    "out is a folder": (train("--out={}"), ["--out=", "is a folder; give a file"]),
    "out in a file": (train("--out={}/a_file/x/out.json"), ["--out=", "a_file is a file; give a folder"]),
    "half of a session": (train("--num_processes=2"), ["--num_processes and --process_id need --coordinator=HOST"]),
    "no cluster": (train("--distributed"), ["--distributed: no cluster", "--coordinator=HOST:PORT"]),
    "rank": (train("--config.policy.lora_rank=100000"), ["policy.lora_rank = 100000: above q_proj's smaller side"]),
    "export: unknown flag": (("export", ["--fodler=x", "--run=r", "--folder=f"]), ["fodler", "--help lists the flags"]),
    "export: config": (("export", [TINY, "--run=r", "--folder=f"]), ["--config is no flag of this command"]),
    "export: field": (("export", ["--config.seed=1", "--run=r", "--folder=f"]), ["--config is no flag of this"]),
    "export: no run": (("export", ["--run={}", "--folder=f"]), ["no whole checkpoint in"]),
    "export: empty run": (("export", ["--run=", "--folder=f"]), ["run", "is empty; give a path"]),
    "export: dtype": (("export", ["--run=r", "--folder=f", "--dtype=int8"]), ["int8"]),
    "export: folder": (("export", ["--run=r", "--folder={}/a_file"]), ["--folder=", "a_file is a file; give a folder"]),
    "warm start: folder": (("warm_start", [TINY, "--export={}/a_file"]), ["--export=", "is a file; give a folder"]),
    "warm start: empty": (("warm_start", [TINY, "--export="]), ["export", "is empty; give a path"]),
    "report: no run": (("report", ["--workdir={}"]), ["summary.json is missing"]),
    "report: no folder": (("report", ["--workdir={}/nowhere"]), ["summary.json is missing"]),
    "report: page": (("report", ["--workdir={}", "--page={}/a_file/x.html"]), ["--page=", "is a file; give a folder"]),
    "report: argument": (("report", ["runs/x", "--workdir=w"]), ["'runs/x' is not a flag; --help lists the flags"]),
    "report: damaged": (("report", ["--workdir={}/damaged"]), ["summary.json cannot be read as JSON"]),
    "plan: topology": (("plan", [TINY, "--topology=v9-3"]), ["--topology=v9-3", "give CHIP:SHAPE"]),
    "plan: stages": (("plan", [TINY, "--topology=v5e-4", "--stages=4"]), ["--stages=4: '4' is no stage"]),
    "plan: steps": (
        ("plan", [TINY, "--topology=v5e-4", "--step_tokens=2"]),
        ["--step_tokens=2: a step writes at most rollout.decode_width = 1", "set --config.rollout.decode_width"],
    ),
    "device: steps": (
        ("benchmark_device", [TINY, "--topology=h100:1", "--config.rollout.decode_width=8"]),
        ["rollout.decode_width = 8", "one token a step", "set 1"],
    ),
    "recall: vocabulary": (("encoder_recall", ["--path={}/a_file"]), ["--path needs --weights"]),
    "recall: weights": (("encoder_recall", ["--weights={}/nowhere"]), ["nowhere", "do not exist"]),
    "engines: data": (("benchmark_envs", ["--data={}"]), ["there is no folder alfworld in it"]),
    "engines: no python": (
        ("benchmark_envs", ["--data={}", "--engine=scienceworld"]),
        ["--engine=scienceworld: no --python=scienceworld=PYTHON"],
    ),
    "engines: python": (("benchmark_envs", ["--data={}", "--python=doom=p"]), ["--python=doom=p", "one of alfworld"]),
    "benchmark: peers": (("benchmark_loop", ["--peers=torch"]), ["--peers=torch: 'torch' is unknown"]),
    "memory: part": (("benchmark_memory", ["--of_ours=all"]), ["--of_ours=all: give a size, or writers"]),
    "ablate: no arms": (("ablate", [TINY, "--workdir=w"]), ["tiny.py: it has no ARMS", "configs/ablations.py"]),
    "ablate: arm": (("ablate", [STUDY, "--workdir=w", "--arms=chain"]), ["--arms=chain: there is no such arm"]),
    "ablate: no seeds": (("ablate", [STUDY, "--workdir=w", "--config.num_seeds=0"]), ["num_seeds = 0: must be at"]),
    "ablate: an arm of others": (
        ("ablate", [STUDY, "--workdir=w", "--config.rl.updates=200"]),
        ["arm 'sequential': rl.updates = 200", "set 198 or 201"],
    ),
    "ablate: nothing to train alone": (
        ("ablate", [STUDY, "--workdir=w", "--arms=all without RL", "--measure_separate"]),
        ["--measure_separate: no arm is trained"],
    ),
    "ablate: mesh": (("ablate", [STUDY, "--workdir=w", "--config.mesh.data=2"]), ["mesh.data = 2: an arm lies whole"]),
    "data: nothing": (("prepare_data", ["--folder=d"]), ["give either --train and --validation, or --runs"]),
    "data: both": (("prepare_data", ["--folder=d", "--train=t", "--runs=r"]), ["give either --train and"]),
    "data: folder": (("prepare_data", ["--folder={}/a_file", "--runs=r"]), ["a_file is a file; give a folder"]),
    "data: nowhere": (("prepare_data", ["--folder=d", "--train={}/no.json"]), ["train: there is no file", "no.json"]),
    "data: damaged": (("prepare_data", ["--folder=d", "--train={}/a_file"]), ["a_file", "hotpot_train_v1.1.json of"]),
    "data: no run": (("prepare_data", ["--folder=d", "--runs={}"]), ["has no traces*.json"]),
    "table: methods": (("table", ["--workdir=w", "--methods=agemm"]), ["--methods=agemm", "did you mean agemem?"]),
    "table: set": (("table", ["--workdir=w", "--set=pddl.rl.gruop=3"]), ["--set=pddl.rl.gruop=3", "no such field"]),
    "table: configs": (("table", ["--workdir=w", "--configs={}/needs.py"]), ["--configs: ", "needs.py:ARGUMENT"]),
    "table: nothing": (("table", ["--workdir={}", "--only_show"]), ["there is no plan.json in it"]),
    "table: show": (("table", ["--workdir={}", "--only_show", "--seeds=5"]), ["leave --seeds out"]),
    "table: config": (("table", ["--workdir=w", "--config.seed=1"]), ["--config is no flag of this command"]),
    "judge: traces": (
        ("judge_agreement", ["--run={}", "--judge=http://localhost:1/v1", "--judge_model=m"]), ["none of its 0 traces"],
    ),
    "judge: no flag": (("judge_agreement", ["--run={}"]), ["judge"]),
    # Files of a model.
    "weights: nowhere": (weights("nowhere"), ["models/nowhere' do not exist"]),
    "weights: sizes": (weights("sizes"), ["models/sizes/config.json: num_hidden_layers = '4': must be a whole number"]),
    "weights: kind": (weights("kind"), ["models/kind/config.json: model_type = 'mamba': is not supported"]),
    "weights: partial rotary": (weights("partial"), ["partial/config.json: rope_parameters", "partial_rotary_factor"]),
    "weights: quantised": (weights("quantised"), ["config.json: quantization_config", "'awq'", "GGUF file"]),
    "weights: int8": (weights("int8"), ["model.safetensors: model.norm.weight is I8", "GGUF file"]),
    "weights: two heads": (weights("head"), ["lm_head.weight is another matrix", "tie_word_embeddings = true"]),
    "weights: tokenizer": (weights("rows"), ["policy.tokenizer", "has 569 tokens", "embeddings of 400"]),
    "weights: positions": (weights("short"), ["context.capacity = 128", "was made for 128", "rope_scaling"]),
    "weights: a tensor": (weights("missing"), ["missing model.norm.weight [128]", "same model"]),
    "weights: list": (weights("list"), ["list/config.json must hold a JSON object"]),
    "weights: half": (weights("half"), ["half/config.json is not readable JSON", "fetch it again"]),
    "weights: empty": (weights("empty"), ["empty/config.json is not readable JSON"]),
    "weights: no config": (weights("none"), ["no config.json beside it; copy"]),
    "weights: cut": (weights("cut"), ["cut/model.safetensors is not a readable safetensors file", "fetch it again"]),
    "weights: pointer": (weights("pointer"), ["a pointer of git-lfs: run git lfs pull"]),
    "weights: index": (weights("index"), ["model.safetensors.index.json is not readable JSON"]),
    "weights: torch": (weights("torch"), ["but pytorch_model.bin, which is not read; write the model as safetensors"]),
    "weights: adapter": (weights("adapter"), ["adapters, not a model; merge them"]),
    "weights: split": (weights("split"), ["m-00001-of-00002.gguf is one part", "llama-gguf-split --merge"]),
    "weights: GGUF": (weights("broken.gguf"), ["broken.gguf is not a readable GGUF file", "fetch it again"]),
    "plan: weights": (
        ("plan", [TINY, "--topology=v5e-4", "--config.policy.weights={}/models/sizes"]), ["num_hidden_layers = '4'"],
    ),
    "recall: sizes": (("encoder_recall", ["--weights={}/models/split"]), ["llama-gguf-split --merge"]),
    "tokenizer: nowhere": (train("--config.policy.tokenizer={}/nowhere.model"), ["nowhere.model' does not exist"]),
    "tokenizer: damaged": (train("--config.policy.tokenizer={}/models/damaged.model"), ["policy.tokenizer", "damaged"]),
    "tokenizer: none": (train("--config.policy.tokenizer=", "--config.policy.weights="), ["policy.tokenizer = ''"]),
    "records: nowhere": (train("--config.task.path={}/nowhere.json"), ["task.path", "nowhere.json"]),
    "records: damaged": (train("--config.task.path={}/a_file"), ["task.path", "a_file"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list]:
    """{what is wrong: [exit code, stdout, stderr]} of every case, run in an empty folder."""
    folder = tmp_path_factory.mktemp("errors")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "a_file").write_text("no folder, no JSON")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "summary.json").write_text("{")
    make_models(folder / "models")
    empty = tmp_path_factory.mktemp("empty")
    cases = {}
    for name, ((command, flags), _) in CASES.items():
        cases[name] = {"command": command, "flags": [f.replace("{}", str(folder)) for f in flags], "folder": str(empty)}
    settings = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "tests/commands.py"], cwd=ROOT, env=settings, input=json.dumps(cases), capture_output=True,
        text=True, timeout=1200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert not list(empty.iterdir()), "a refused command leaves nothing behind"
    return json.loads(ran.stdout)


@pytest.mark.parametrize("case", CASES)
def test_one_line(results, case):
    code, printed, told = results[case]
    assert (code, printed) == (2, ""), told
    assert told.startswith("error: ") and told.count("\n") == 1 and told.endswith("\n"), told
    for words in CASES[case][1]:
        assert words in told, told


def test_the_whole_command_in_a_process_of_its_own(tmp_path):
    """No fork: what is imported on the way prints nothing either."""
    command = [sys.executable, "-m", "experiments.train", TINY, f"--workdir={tmp_path}/w"]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    ran = subprocess.run(
        [*command, "--config.policy.weights=nowhere"], cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (2, "") and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith("error: weights ") and str(tmp_path / "nowhere") in ran.stderr


def ended(monkeypatch, capsys, error: BaseException) -> tuple[int, str]:
    """Exit code and stderr of a command whose main raises `error`."""

    def run(main, flags_parser):
        raise error

    monkeypatch.setattr(cli.app, "run", run)
    with pytest.raises(SystemExit) as exit:
        cli.run(lambda: None, takes_config=False)
    return exit.value.code, capsys.readouterr().err


def test_ctrl_c(monkeypatch, capsys):
    assert ended(monkeypatch, capsys, KeyboardInterrupt()) == (130, "error: interrupted\n")


def os_error(number: int, path: str | None = "/data/runs/x") -> OSError:
    return OSError(number, os.strerror(number), path)


def wrapped(text: str, cause: BaseException | None = None) -> RuntimeError:
    error = RuntimeError(text)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("two\nlines"), ["two lines"]),
        (os_error(errno.EACCES), ["/data/runs/x: Permission denied; give one that this user may use"]),
        (os_error(errno.ENOTDIR), ["/data/runs/x: Not a directory"]),
        (os_error(errno.ENOSPC), ["/data/runs/x: No space left on device; free some space"]),
        (os_error(errno.ENOSPC, None), ["No space left on device; mend that"]),
        (wrapped("an export could not be written", os_error(errno.ENOSPC)), ["No space left on device (/data/runs/x)"]),
        (
            wrapped("RESOURCE_EXHAUSTED: Failed writing: \"/data/d/5b4\": No space left on device [code='28']"),
            ["No space left on device; mend that, or give another folder"],
        ),
        (wrapped("Unable to initialize backend 'tpu': no TPU"), ["backend 'tpu'", "set JAX_PLATFORMS"]),
    ],
)
def test_paths_and_disks(monkeypatch, capsys, error, words):
    code, told = ended(monkeypatch, capsys, error)
    assert code == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert all(word in told for word in words), told


@pytest.mark.parametrize("error", [ValueError("shapes"), KeyError("x"), OSError("no number"), ZeroDivisionError()])
def test_defects_keep_their_traceback(monkeypatch, error):
    def run(main, flags_parser):
        raise error

    monkeypatch.setattr(cli.app, "run", run)
    with pytest.raises(type(error)):
        cli.run(lambda: None, takes_config=False)


def test_where_a_command_may_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.folder_to_write("workdir", "a/b/c") == Path("a/b/c") and not Path("a").exists()
    assert paths.file_to_write("out", "d/e/f.json") == Path("d/e/f.json") and Path("d/e").is_dir()
    assert paths.file_to_write("out", "f.json") == Path("f.json")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="--workdir=a: this user cannot write to"):
        paths.folder_to_write("workdir", "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.PathParser().parse("~/runs") == f"{tmp_path}/runs"


def test_paths_of_a_config_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    from agemem_jax.config import make_absolute

    assert Path(tiny.get_config().policy.weights).samefile(ASSET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    config = tiny.get_config()
    assert Path(config.policy.weights).samefile(ASSET) and Path(config.policy.tokenizer).is_file()
    config.policy.weights, config.policy.tokenizer, config.task.path = "models/x", "~/y.model", "tfds:hotpot_qa:train"
    config.lock()
    make_absolute(config)
    assert config.policy.weights == f"{tmp_path}/models/x" and config.policy.tokenizer == "/home/ada/y.model"
    assert config.task.path == "tfds:hotpot_qa:train"
    config.policy.weights = ""
    make_absolute(config)
    assert config.policy.weights == ""
