"""experiments.evaluate: whose policy plays decides whether an evaluation still holds."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from agemem_jax.training.checkpoint import MANIFEST
from agemem_jax.training.loop import is_evaluated
from configs import tiny
from experiments import evaluate as command


@dataclass
class Run:
    identity: dict
    model: None = None
    mesh: None = None
    optimizer: None = None


@pytest.fixture
def policies(tmp_path, monkeypatch):
    """Two seeds of a run, each with a checkpoint of 40 updates."""
    for seed in (0, 1):
        folder = tmp_path / f"seed_{seed}" / "checkpoints" / "00000040"
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(f"digest of seed {seed}\nfiles\n")
    monkeypatch.setattr(command.saved, "newest", lambda run, flag: run / "checkpoints" / "00000040")
    monkeypatch.setattr(command.saved, "restore_params", lambda checkpoint, model, mesh: checkpoint)
    monkeypatch.setattr(command, "check_params", lambda *_: None)
    monkeypatch.setattr(command, "new_state", lambda params, optimizer: params)
    monkeypatch.setattr(command, "fresh_state", lambda run: "fresh")
    return tmp_path


def test_an_evaluation_of_one_policy_is_not_taken_for_that_of_another(policies, monkeypatch, tmp_path):
    def started(weights_of: str):
        monkeypatch.setattr(command, "WEIGHTS_OF", SimpleNamespace(value=weights_of))
        return command.started(Run({"weights": "those of the file"}))

    plain, state, updates = started("")
    assert (plain.identity, state, updates) == ({"weights": "those of the file"}, "fresh", 0)
    first, state, updates = started(str(policies / "seed_0"))
    assert state == policies / "seed_0" / "checkpoints" / "00000040" and updates == 40
    second, _, _ = started(str(policies / "seed_1"))
    path, config = tmp_path / "evaluation_agemem-greedy.json", tiny.get_config()
    path.write_text(json.dumps({"updates": 40, "config": config.to_dict(), "identity": first.identity, "numbers": {}}))
    assert is_evaluated(path, config, first.identity, 40)
    assert not is_evaluated(path, config, second.identity, 40)
    assert not is_evaluated(path, config, plain.identity, 40)
