"""What each memory call of an evaluation was worth: its trajectory again, from the same noise, without that one call.

The suppressed call is written, parsed and counted as before, but it changes nothing, and the agent reads that it was
not run; everything after it is generated anew. As many trajectories run at once as a batch has rows: which call a row
leaves out, and whose noise it draws, are data (`Control.suppress`, `Control.noise_row`), so that nothing compiles.
"""

from dataclasses import asdict, dataclass

import jax
import numpy as np

from agemem_jax import sharding
from agemem_jax.rollout.turn import NO_CALL, call_number
from agemem_jax.training.evaluate import EVALUATION_SEED, Pass, control
from agemem_jax.training.programs import Control, trajectory
from agemem_jax.training.setup import Run
from agemem_jax.training.traces import render_traces
from agemem_jax.types import TOOL_NAMES, TrainState


@dataclass(frozen=True)
class Call:
    """A memory call of an evaluation and its effect."""

    task: int  # Task.index, as in the traces
    stage: int
    turn: int  # within the stage, from 0
    call: int  # within the turn, from 0
    op: str
    arguments: dict
    status: str
    score: float  # task score of the trajectory
    without: float  # of the same one without this call

    @property
    def effect(self) -> float:
        return self.score - self.without


def attribute(run: Run, state: TrainState, one: Pass, tasks: int, metric: str) -> tuple[list[Call], int]:
    """The effect of every memory call on `tasks` test tasks (as many as there are), played as `evaluate` plays them.

    Args:
      run: built with as many traces as rows (`train.traces`).
      state: its parameters act; its buffers are given away.
      one: whose evaluation, and how its turns are decoded.
      metric: number of a row that is its score, such as "progress".

    Returns:
      (calls; trajectories that came out otherwise although nothing was left out, which is 0 if the noise is the same).
    """
    rows = run.spec.rollout.batch
    tasks = min(tasks, len(run.source.places["test"]))
    found: list[Call] = []
    unlike = 0

    def play(task, asked: Control):
        nonlocal state
        task = sharding.put(task, sharding.rows(run.mesh))
        state, outcome, traces = trajectory(run.programs, state, run.frozen, task, run.world, asked)
        return jax.device_get((traces, outcome["rows"]))

    for batch in range(-(-tasks // rows)):
        task, valid = run.source.split_batch("test", batch, rows)
        valid = valid & (batch * rows + np.arange(rows) < tasks)
        temperature = one.temperature(run.config)
        asked = control(run, EVALUATION_SEED, batch, one.method, temperature, update=False, without=one.without)
        played = play(task, asked)
        score = played[1][metric]
        made = [call for call in memory_calls(run, played, task, one.method) if valid[call[0]]]
        # Each row as it is, then each of its calls left out.
        jobs = [(row, NO_CALL, None) for row in np.flatnonzero(valid)] + made
        for begin in range(0, len(jobs), rows):
            part = jobs[begin : begin + rows]
            row = np.array([job[0] for job in part] + [0] * (rows - len(part)), np.int32)
            left_out = np.array([job[1] for job in part] + [NO_CALL] * (rows - len(part)), np.int32)
            copies = jax.tree.map(lambda x, row=row: x[row], task)
            numbers = play(copies, asked.replace(noise_row=row, suppress=left_out))[1]
            for i, (source, _, call) in enumerate(part):
                if call is None:
                    unlike += any(value[i] != played[1][name][source] for name, value in numbers.items())
                else:
                    scores = {"score": float(score[source]), "without": float(numbers[metric][i])}
                    found.append(Call(**call, **scores))
    return found, unlike


def memory_calls(run: Run, played: tuple, task, method: str) -> list[tuple[int, int, dict]]:
    """(row, number as `call_number` numbers it, the first fields of a Call) of every memory call of a played batch."""
    out = []
    for row, trace in enumerate(render_traces(run, (played, task), method, "")):
        for turn in trace["turns"]:
            for place, call in enumerate(turn["calls"]):
                if call["op"] not in TOOL_NAMES:
                    continue
                number = call_number(run.spec.rollout, turn["stage"], turn["turn"], place)
                where = {"task": trace["task"], "stage": turn["stage"], "turn": turn["turn"], "call": place}
                out.append((row, number, where | call))
    return out


def by_tool(calls: list[Call]) -> dict[str, dict]:
    """{tool: calls, mean effect, share that helped (raised the score), hurt, did nothing}, and "all" of them."""
    groups = {name: [call for call in calls if call.op == name] for name in TOOL_NAMES} | {"all": calls}
    table = {}
    for name, group in groups.items():
        if group:
            effect = np.array([call.effect for call in group])
            shares = {"helped": effect > 0, "hurt": effect < 0, "nothing": effect == 0}
            table[name] = {"calls": len(group), "effect": float(effect.mean())}
            table[name] |= {share: float(which.mean()) for share, which in shares.items()}
    return table


def to_json(call: Call) -> dict:
    """A call as it is kept, its effect included."""
    return asdict(call) | {"effect": call.effect}
