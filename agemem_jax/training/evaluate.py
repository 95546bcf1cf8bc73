"""One evaluation path: the training programs with other settings, on tasks of their own, padding rows masked."""

import jax
import numpy as np

from agemem_jax import sharding
from agemem_jax.envs.judge import SILENCE
from agemem_jax.errors import InputError
from agemem_jax.rl import rewards
from agemem_jax.training.programs import ALL_TOOLS, Control, trajectory
from agemem_jax.training.setup import Run
from agemem_jax.types import TOOL_NAMES, TrainState

METHODS = ("no_memory", "agemem_norl", "agemem")  # agemem and agemem_norl differ in their weights only
EVALUATION_SEED = 1_000_003  # noise of evaluations, the same for every method


def method_tools(config, method: str) -> int:
    """Bit mask over Op of the memory tools that a method may use."""
    if method == "no_memory":
        return 0
    return sum(1 << i for i, name in enumerate(TOOL_NAMES) if name in config.tools.enabled) & ALL_TOOLS


def control(run: Run, seed: int, step: int, method: str, temperature: float, update: bool) -> Control:
    """Control of one pass through the stage programs, on the host."""
    return Control(
        seed=np.uint32(seed),
        step=np.int32(step),
        temperature=np.float32(temperature),
        tools=np.int32(method_tools(run.config, method)),
        update=np.bool_(update),
        reward=rewards.factors(run.config.reward),
    )


def evaluate(run: Run, state: TrainState, frozen: dict, method: str, tasks: int):
    """Plays `tasks` test tasks, one rollout each.

    Returns:
      (state, the programs donate and return it; numbers {name: [tasks] float}; device traces of the first batch by
      stage; task indices of the traced rows). Numbers and traces are the same in every process.

    Raises InputError if a judge was asked about SILENCE answers or more and gave no verdict at all.
    """
    rows = run.spec.rollout.batch
    tasks = min(tasks, run.source.num_test)
    numbers: dict[str, list[np.ndarray]] = {}
    first = None
    for index in range(-(-tasks // rows)):
        task, valid = run.source.test_batch(index, rows)
        valid = valid & (index * rows + np.arange(rows) < tasks)
        settings = control(run, EVALUATION_SEED, index, method, run.config.train.eval_temperature, update=False)
        state, outcome, traces = trajectory(
            run.programs, state, frozen, sharding.put(task, sharding.rows(run.mesh)), run.world, settings
        )
        for name, value in jax.device_get(outcome["rows"]).items():
            numbers.setdefault(name, []).append(np.asarray(value, np.float64)[valid])
        if first is None:
            first = jax.device_get((traces, outcome["rows"])), task
    joined = {name: np.concatenate(parts) for name, parts in numbers.items()}
    if "judge_failed" in joined and count_unheard(joined["judge_asked"].sum(), joined["judge_failed"].sum()) >= SILENCE:
        refuse_silence(run, f"an evaluation of {method}")
    return state, joined, first


def count_unheard(asked: float, failed: float, before: int = 0) -> int:
    """Answers in a row on which the judge gave no verdict: `before`, and those of a batch; 0 if it gave one."""
    return before + round(failed) if round(asked) == round(failed) else 0


def refuse_silence(run: Run, when: str) -> None:
    """Ends a run whose judge is silent: its rewards would be nobody's opinion."""
    raise InputError(
        f"reward.judge = {run.config.reward.judge!r} gave no verdict on any answer of {when}; the warning before this "
        "says why; mend it and start the same command again"
    )
