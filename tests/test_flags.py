"""All commands can be imported in one process, and --help of each shows its flags."""

import importlib
import pkgutil

import pytest
from absl import flags

import experiments
from agemem_jax.errors import InputError
from agemem_jax.report.page import METHODS as SHOWN
from agemem_jax.training.evaluate import METHODS
from experiments import evaluate

COMMANDS = [one.name for one in pkgutil.iter_modules(experiments.__path__) if not one.ispkg]


def test_commands_are_imported_side_by_side_and_show_their_flags():
    modules = {name: importlib.import_module(f"experiments.{name}") for name in COMMANDS}
    key = {name: {one.name for one in flags.FLAGS.get_key_flags_for_module(m)} for name, m in modules.items()}
    for name, own in {
        "train": {"workdir", "distributed"},
        "table": {"workdir", "set", "methods", "distributed"},
        "ablate": {"workdir", "arms"},
        "evaluate": {"workdir", "method", "weights_of"},
        "trace": {"run", "page", "method", "op", "most"},
        "report": {"workdir", "page"},
        "judge_agreement": {"run", "judge"},
        "attribute": {"run", "tasks"},
        "oracles": {"tasks"},
        "ceilings": {"tasks"},
        "export": {"run", "folder"},
        "prepare_data": {"folder", "train"},
        "encoder_recall": {"weights", "path", "embedder"},
        "benchmark_decode": {"weights", "path"},
        "benchmark_memory": {"amem", "entries"},
    }.items():
        assert own <= key[name], name
    assert key["paths"] == key["shared_flags"] == set()


def test_one_method_is_evaluated():
    assert {name for name, *_ in SHOWN} == set(METHODS)
    assert evaluate.method_of(["amem"]) == "amem" and evaluate.method_of([]) == "agemem_norl"
    for names, told in ((["agemm"], "--method=agemm: .* did you mean agemem"), (["amem", "agemem"], "=amem,agemem: ")):
        with pytest.raises(InputError, match=told):
            evaluate.method_of(names)
