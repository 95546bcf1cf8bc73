"""The command that makes a warm-started policy goes on from where it was stopped, to the same weights."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from agemem_jax.config import ConfigError
from agemem_jax.errors import InputError
from agemem_jax.training.checkpoint import Checkpointer
from configs import pddl, tiny
from experiments import warm_start

LESSONS, DEALINGS, STEPS = 5, 3, 2


def config():
    """Three phases of reading, which compile fast."""
    c = tiny.get_config()
    c.policy.hidden_size, c.policy.intermediate_size, c.policy.num_layers = 32, 32, 1
    c.policy.num_heads, c.policy.num_kv_heads, c.policy.head_dim = 2, 1, 16
    c.policy.weights = ""
    c.task.train_size, c.task.test_size, c.train.eval_tasks = 32, 4, 4
    c.warm.lessons, c.warm.dealings, c.warm.steps, c.warm.lesson_every = LESSONS, DEALINGS, STEPS, 1
    c.warm.lesson_batch, c.warm.warmup_steps = 4, 1
    c.train.checkpoint_every = 2
    return c


def made(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_start.out, "write", lambda figures: (folder / "curves.json").write_text(json.dumps(figures)))
        warm_start.make([config()], folder)
    return folder


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [2, LESSONS, LESSONS + DEALINGS + STEPS])
def test_a_stopped_warm_start_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch, after):
    save = Checkpointer.save

    def stop(self, update, state, host):
        save(self, update, state, host, wait=True)
        if update == after:
            raise Stopped

    curves = {}
    monkeypatch.setattr(warm_start.out, "write", curves.update)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpointer, "save", stop)
        warm_start.make([config()], tmp_path)
    assert [path.name for path in (tmp_path / "progress").iterdir() if int(path.name) == after] == [f"{after:08d}"]

    updates = []

    def note(self, update, state, host):
        updates.append(update)
        save(self, update, state, host)

    monkeypatch.setattr(Checkpointer, "save", note)
    warm_start.make([config()], tmp_path)
    assert updates == [update for update in (2, 4, 5, 7, 8, 10) if update > after]  # nothing is made twice
    again, first = made(tmp_path), made(whole)
    assert again.keys() == first.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    steps = lambda figures: {name: [at["step"] for at in curve] for name, curve in figures["curves"].items()}  # noqa: E731
    assert steps(curves) == steps(json.loads((whole / "curves.json").read_text()))
    assert not (tmp_path / "progress").exists()


def test_progress_of_other_demonstrations_is_refused(tmp_path, monkeypatch):
    save = Checkpointer.save

    def stop(self, update, state, host):
        save(self, update, state, host | {"also": ["another"]}, wait=True)
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpointer, "save", stop)
        warm_start.make([config()], tmp_path)
    with pytest.raises(InputError, match="progress is of other configs in --also: name those, or delete it"):
        warm_start.make([config()], tmp_path)


def test_demonstrations_of_every_config_have_as_many_distractors_as_the_first_asks_for(tmp_path, monkeypatch):
    built = []

    def build(config):
        built.append(config.task.distractors)
        if len(built) == 2:
            raise Stopped

    monkeypatch.setattr(warm_start, "build", build)
    for asked, expected in ((4, [4, 4]), (0, [10, 7])):
        first, second = config(), config()
        first.warm.distractors, second.task.distractors = asked, 7
        with pytest.raises(Stopped):
            warm_start.make([first, second], tmp_path)
        assert built == expected
        built.clear()


def test_acting_is_shown_with_nothing_told_before():
    c = pddl.get_config("tiny")
    c.task.train_size, c.task.test_size, c.train.eval_tasks = 8, 4, 4
    kind = warm_start.acting_kind(c, 4)
    told = [kind.run.source.staged(i) for i in range(8)]
    assert not any(one.facts or one.distractors for one in told) and not c.task.official
    assert all("goal is to satisfy" in one.query for one in told)


def test_questions_have_no_acting():
    c = config()
    c.warm.acting = 3
    with pytest.raises(ConfigError, match="warm.acting = 3: hotpotqa always tells something before the task; set it"):
        warm_start.acting_kind(c, 4)
