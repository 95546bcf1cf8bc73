"""Plays the test tasks by one method, greedy and sampled, without training.

    python -m experiments.evaluate --config=configs/tiny.py --method=mem0_classic --workdir=runs/tiny_mem0

Without --method it is agemem_norl. The policy is that of `policy.weights`, or with --weights_of=runs/tiny/seed_0 that
of a run's newest checkpoint. Writes what training writes of an evaluation: evaluation_METHOD-WAY.json and the greedy
traces. The same command goes on where it was stopped; what was evaluated is not played again.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from agemem_jax.config import nearest_of
from agemem_jax.errors import InputError
from agemem_jax.training.checkpoint import MANIFEST
from agemem_jax.training.comparison import is_calls_of_a_role
from agemem_jax.training.evaluate import METHODS
from agemem_jax.training.lock import hold
from agemem_jax.training.loop import check_params, evaluate_ways, fresh_state
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import new_state
from agemem_jax.training.summary import TASK_METRICS, aligned, cell, interval
from agemem_jax.types import TrainState
from experiments import cli, out, paths, saved, shared_flags

METHOD, WORKDIR = shared_flags.methods(), shared_flags.workdir()
WEIGHTS_OF = paths.define_path("weights_of", None, "folder of one seed of a run, whose policy plays")
SHOWN = ("success", "memory_quality", "context_tokens", "prompt_tokens", "generated_tokens", "turns", "malformed_turns")


def main(config) -> None:
    method, workdir = method_of(METHOD.value), paths.folder_to_write("workdir", WORKDIR.value)
    with hold(workdir, "--workdir"):
        run, state, updates = started(build(config, learns=False))
        kept = evaluate_ways(run, workdir, method, updates, lambda: state)
    found, roles = {way: one["numbers"] for way, one in kept.items()}, kept["greedy"].get("roles", {})
    figures = {way: {name: interval([values]) for name, values in numbers.items()} for way, numbers in found.items()}
    print(table(figures, TASK_METRICS[config.reward.task_metric]))
    for name, one in roles.items():
        print(f"{name}: {one['agreed']} of {one['compared']} traced greedy answers are the right ones")
    out.write({"method": method, "updates": updates, "roles": roles, **figures})


def method_of(names: list[str]) -> str:
    """Who plays. Raises InputError if it is not one method that there is."""
    names = names or ["agemem_norl"]
    if len(names) > 1 or names[0] not in METHODS:
        known = f"{', '.join(METHODS)}{nearest_of(names[0], METHODS)}"
        raise InputError(f"--method={','.join(names)}: give one of {known}")
    return names[0]


def started(run: Run) -> tuple[Run, TrainState, int]:
    """The run, the policy that plays, and the updates that made it. A policy of a checkpoint is part of the run's
    identity: its evaluations are nobody else's. Raises InputError if there is none, or it is not finite."""
    if not WEIGHTS_OF.value:
        return run, fresh_state(run), 0
    checkpoint = saved.newest(Path(WEIGHTS_OF.value), "weights_of")
    params = saved.restore_params(checkpoint, run.model, run.mesh)
    check_params(params, f"checkpoint {checkpoint}", "give other weights")
    run = replace(run, identity=run.identity | {"policy": (checkpoint / MANIFEST).read_text().partition("\n")[0]})
    return run, new_state(params, run.optimizer), int(checkpoint.name)


def table(figures: dict, metric: str) -> str:
    """The numbers of each way as aligned text; of a memory system, how each role was played."""
    rows = [["decoding", "task_score", *SHOWN]]
    rows += [[way, cell(found[metric]), *(cell(found.get(name)) for name in SHOWN)] for way, found in figures.items()]
    names = [name.removesuffix("_calls") for name in next(iter(figures.values())) if is_calls_of_a_role(name)]
    if not names:
        return aligned(rows)
    played = [["role", "decoding", "calls", "valid", "prompt tokens", "generated tokens"]]
    for name in names:
        for way, found in figures.items():
            of = lambda field, name=name, found=found: found[f"{name}_{field}"]["mean"]  # noqa: E731
            share = of("valid") / of("calls") if of("calls") else np.nan
            tokens = [f"{of(field):.1f}" for field in ("prompt_tokens", "generated_tokens")]
            played.append([name.removeprefix("role_"), way, f"{of('calls'):.2f}", f"{share:.3f}", *tokens])
    return f"{aligned(rows)}\n\n{aligned(played)}"


if __name__ == "__main__":
    cli.run(main)
