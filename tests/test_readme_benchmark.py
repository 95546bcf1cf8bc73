"""The README's benchmark, as it stands there, put into a folder and played."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import agemem_jax
from agemem_jax import benchmarks
from agemem_jax.training.setup import build
from agemem_jax.training.warm import demonstrate
from configs import tiny

ROOT = Path(__file__).parent.parent
WORLDS = Path(agemem_jax.__file__).parent / "assets/worlds/tokenizer.model"


@pytest.fixture
def safe(tmp_path, monkeypatch):
    """The config of a run on it."""
    blocks = re.findall(r"```python\n(.*?)```", ROOT.joinpath("README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "\ndef load(" in block)
    folder = tmp_path / "safe"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "tasks.py").write_text(code)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    config = tiny.get_config()
    config.policy.weights, config.policy.tokenizer, config.policy.num_layers = "", str(WORLDS), 1
    config.task.benchmark, config.task.seen_tokens, config.tools.action_tag = "safe", 8, "action"
    config.task.train_size, config.task.validation_size, config.task.test_size = 16, 4, 8
    config.task.facts, config.task.distractors, config.train.eval_tasks = 3, 1, 8
    config.rl.stage1_updates = config.rl.stage2_updates = 0
    config.rl.tasks_per_update, config.rl.group_size = 4, 2
    return config


def test_the_benchmark_of_the_readme_is_played(safe):
    """Scripts look the code up and open the safe, as the engine says in tokens."""
    run = build(safe)
    demos = run.source.tasks.demonstrator(run.source, safe, run.tokenizer.end_of_turn)
    task, told = demos.batch(0, run.spec.rollout.batch)
    segments, rows = jax.jit(lambda task, told, world: demonstrate(run.spec.rollout, world, task, told))(
        task, told, run.world
    )
    stats = jax.tree.map(np.asarray, rows.stats)
    assert (stats.malformed == 0).all() and (stats.actions <= 1).all() and stats.success.mean() > 0.8
    assert (stats.success == (stats.actions > 0)).all()
    row = int(np.argmax(stats.success))
    last = int(segments.count[row]) - 1
    shown = run.tokenizer.decode(np.asarray(segments.tokens[row, last])[: int(segments.length[row, last])].tolist())
    assert "safe.\nA safe is before you." in shown and "<action>" in shown


def test_what_the_player_cannot_know_is_played_and_not_imitated(safe):
    """A code that was not looked up, is not kept, or is one of more than a retrieval shows, is no action to learn."""
    safe.task.train_size, safe.tools.default_top_k = 200, 1
    run = build(safe)
    demos = run.source.tasks.demonstrator(run.source, safe, run.tokenizer.end_of_turn)
    imitated, blind = 0, 0
    for index in range(200):
        (lines, held), staged = demos.tell(index, 0), run.source.staged(index)
        turns = lines.stages[2]
        acts = [turn for turn, said in enumerate(turns) if f"<action> {staged.play}" in said]
        assert len(acts) == 1
        looked_up = any("Retrieve_memory" in said for said in turns[: acts[0]])
        kept = staged.gold[0] in [text for _, text in held]
        if acts[0] not in lines.slips:
            assert looked_up and kept, turns
            imitated += 1
        blind += not kept
    assert imitated > 100 and blind > 10
