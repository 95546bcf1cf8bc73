"""Trains the arms of a study side by side in one compiled program, and draws the comparison.

    python -m experiments.ablate --config=configs/ablations.py --workdir=runs/ablate

The config file has ARMS beside get_config: {name: {dotted field: value}}, what each arm changes; the first is the one
that the others are compared with. Every arm is trained with seeds seed, seed + 1, ... (num_seeds). Metrics and
checkpoints are in WORKDIR/arms; WORKDIR/ablate.json and --out have the comparison, ablate.html shows it. The same
command goes on where it was stopped, as `python -m experiments.train` does, with the same or another number of devices.

With --measure_separate the first arm that is trained is trained again by itself, and what the arms cost together is
compared with what they would by themselves.
"""

import os
import runpy
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from agemem_jax.config import ConfigError, nearest_of
from agemem_jax.errors import InputError
from agemem_jax.metrics import write_json
from agemem_jax.report import ablation
from agemem_jax.report.charts import smooth
from agemem_jax.training import identity as identities
from agemem_jax.training.arms import METHOD, Arm, Study, arms_of, build_study, learning_curve, on_one_device, train_arms
from agemem_jax.training.distributed import Notice, say
from agemem_jax.training.evaluate import WAYS, Pass
from agemem_jax.training.loop import read_json, train
from agemem_jax.training.setup import build
from agemem_jax.training.summary import TASK_METRICS, aligned, cell, environment, interval, over_seeds
from experiments import cli, out, paths, shared_flags
from experiments.train import supervised

WORKDIR = shared_flags.workdir()
NAMES = flags.DEFINE_list("arms", [], "arms of the config's ARMS to run, separated by commas; all if none is named")
DEVICES = flags.DEFINE_integer(
    "devices", 0, "devices to lay the arms over; 0 = all. Of a CPU: one a core, unless XLA_FLAGS say", lower_bound=0
)
SEPARATE = flags.DEFINE_bool("measure_separate", False, "also train one arm by itself, and compare what it costs")

SHARE = 0.7  # of the best arm's final training score, the same bar for all
CURVES = ("progress", "success", "memory/quality", "generated_tokens")  # kept in ablate.json and drawn
SHOWN = ("memory_quality", "context_tokens", "generated_tokens", "calls_add", "calls_update", "calls_delete",
         "calls_retrieve", "calls_summary", "calls_filter")  # fmt: skip
HOST_DEVICES = "xla_force_host_platform_device_count"


def main(config) -> None:
    workdir = paths.folder_to_write("workdir", WORKDIR.value)
    arms = arms_of(config, asked_for(arm_table(cli.config_path(sys.argv)), NAMES.value))
    separate = separate_arm(arms) if SEPARATE.value else None
    if DEVICES.value or HOST_DEVICES not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", DEVICES.value or len(os.sched_getaffinity(0)))
    supervised(workdir, lambda notice: ablate(config, arms, separate, workdir, notice))


def arm_table(path: str) -> dict[str, dict]:
    """ARMS of a config file. Raises InputError if it has none."""
    table = runpy.run_path(path.partition(":")[0]).get("ARMS")
    if not isinstance(table, dict):
        raise InputError(
            f"--config={path}: it has no ARMS, a dict of what each arm changes; start from configs/ablations.py"
        )
    return table


def asked_for(table: dict[str, dict], names: list[str]) -> dict[str, dict]:
    """The arms named, or all, in the order of the table. Raises InputError for one that is not there."""
    for name in names:
        if name not in table:
            raise InputError(f"--arms={name}: there is no such arm{nearest_of(name, table)}")
    return {name: changes for name, changes in table.items() if not names or name in names}


def separate_arm(arms: list[Arm]) -> Arm:
    """The arm that is trained by itself too. Raises ConfigError if there is none that could be."""
    for arm in arms:
        if arm.config.rl.updates and not arm.masked:
            return arm
    raise ConfigError("--measure_separate: no arm is trained with all its tools; give one")


def ablate(config, arms: list[Arm], separate: Arm | None, workdir: Path, notice: Notice) -> None:
    """Trains and evaluates all arms, and the one that is trained by itself too; writes the comparison."""
    if jax.process_count() > 1:
        raise InputError(f"--num_processes={jax.process_count()}: a study runs in one process, on its devices")
    devices = jax.local_devices()
    if DEVICES.value > len(devices):
        raise InputError(f"--devices={DEVICES.value}: there are {len(devices)}")
    with notice as stop:
        study = build_study(config, arms, devices[: DEVICES.value or len(devices)])
        numbers, seconds = train_arms(study, workdir, stop)
        figures = compared(study, workdir, numbers) | {"cost": cost_of(study, seconds)}
        if separate:
            write(figures, workdir)
            figures["cost"] |= beside_separate(study, separate, figures["cost"], workdir, stop)
    page = write(figures, workdir)
    print(table(figures))
    print(f"page: {page}")
    out.write(figures)


def write(figures: dict, workdir: Path) -> Path:
    """Writes the comparison; returns the path of its page."""
    write_json(workdir / "ablate.json", figures)
    return ablation.write(figures, workdir / "ablate.html")


def compared(study: Study, workdir: Path, numbers: dict[str, list[dict]]) -> dict:
    """The figures of a study: what `ablate.json` holds, but for the cost.

    numbers: by way of decoding, those of each arm {number: [tasks]}.
    """
    config, first = study.run.config, study.arms[0]
    metric, tasks = TASK_METRICS[config.reward.task_metric], study.run.source.tasks
    names = list(dict.fromkeys(arm.name for arm in study.arms))
    places = {name: [i for i, arm in enumerate(study.arms) if arm.name == name] for name in names}
    scores = {way: np.array([one[metric] for one in found], float) for way, found in numbers.items()}  # [arms, tasks]
    arms, curves = {}, {}
    for name in names:
        at, arm = places[name], study.arms[places[name][0]]
        curves[name] = {
            one: [learning_curve(study.arms[i], workdir, one) for i in at] for one in dict.fromkeys((metric, *CURVES))
        }
        arms[name] = {"changes": arm.changes, "updates": arm.config.rl.updates, "command": command_of(arm)}
        for way, found in numbers.items():
            kinds = np.asarray(found[0]["kind"])
            arms[name][way] = {
                "task_score": interval(scores[way][at]),
                "by_kind": {
                    kind: interval(scores[way][at][:, kinds == k])
                    for k, kind in enumerate(tasks.kinds)
                    if (kinds == k).any()
                },
                **{one: interval([found[i][one] for i in at]) for one in SHOWN},
            }
            if name != first.name:  # seed by seed and task by task: the same tasks, and the same noise
                arms[name][way]["gain"] = interval(scores[way][at] - scores[way][places[first.name]])
        arms[name]["curves"] = curves[name]
    speed = learning_speed({name: [smooth(curve) for curve in curves[name][metric]] for name in names})
    for name, found in speed.pop("arms").items():
        arms[name] |= found
    return {
        "name": config.name,
        "command": "python -m experiments.ablate " + shlex.join(sys.argv[1:]),
        "base": first.name,
        "seeds": sorted(study.sources),
        "updates": study.updates,
        "test_tasks": scores[WAYS[0]].shape[1],
        "task_metric": metric,
        "scores": tasks.scores,
        **speed,
        "arms": arms,
        "environment": environment(),
        "identity": identities.short(study.run.identity),
    }


def command_of(arm: Arm) -> str:
    """What runs an arm by itself. A masked tool is no field of a config: such an arm is a study of its own."""
    base = cli.config_arguments(sys.argv)
    if arm.masked:
        return shlex.join(["python", "-m", "experiments.ablate", *base, f"--arms={arm.name}", "--workdir=DIR"])
    fields = [f"--config.{name}={value}" for name, value in arm.changes.items()]
    return shlex.join(["python", "-m", "experiments.train", *base, *fields, "--workdir=DIR"])


def learning_speed(curves: dict[str, list]) -> dict:
    """{"bar", "arms": {arm: {"to_bar", "reached", "training_score"}}}, of the arms that have curves.

    to_bar: updates to the bar, which is SHARE of the highest mean that any arm's smoothed training score ends with; a
      seed that never gets there counts with all its updates, and `reached` tells how many got there.
    training_score: the last of the smoothed ones.

    curves: of each arm, one a seed.
    """
    curves = {name: found for name, found in curves.items() if all(found)}
    ends = {name: [curve[-1][1] for curve in found] for name, found in curves.items()}
    bar = SHARE * max((float(np.mean(values)) for values in ends.values()), default=0.0)
    arms = {}
    for name, found in curves.items():
        first = [next((update for update, score in curve if score >= bar), None) for curve in found]
        counted = [curve[-1][0] if update is None else update for update, curve in zip(first, found, strict=True)]
        arms[name] = {
            "to_bar": over_seeds(counted),
            "reached": sum(update is not None for update in first),
            "training_score": over_seeds(ends[name]),
        }
    return {"bar": bar, "arms": arms}


def parts_of(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of a run by part, and in total; reading files before it is in neither."""
    made = {name: seconds.get(name, 0.0) for name in ("compile", "train", "eval", "checkpoint")}
    total = made["train"] + made["eval"] + made["checkpoint"]
    # All of a study's compiling, and nearly all of a run's, is done in updates.
    return {
        "compile": made["compile"],
        "updates": max(0.0, made["train"] - made["compile"]),
        "evaluations": made["eval"],
        "total": total,
    }


def cost_of(study: Study, seconds: dict[str, float]) -> dict:
    """What a study took, in seconds, over all calls of the command."""
    return {"arms": len(study.arms), "devices": study.mesh.size, "seconds": parts_of(seconds)}


def beside_separate(study: Study, arm: Arm, cost: dict, workdir: Path, stop) -> dict:
    """What the arms would have taken by themselves, from one that is trained so: its seconds, their sum, the ratio."""
    say(f"{arm.label} by itself")
    config = on_one_device(arm.config)
    config.train.traces = 0
    folder = workdir / "separate"
    found = train(build(config), folder, stop, only=tuple(Pass(METHOD, way) for way in WAYS))
    one = parts_of(read_json(folder / "seconds.json"))
    alone = seconds_alone(study.arms, arm, one)
    metric = TASK_METRICS[config.reward.task_metric]
    separate = {"arm": arm.label, "seconds": one} | {
        one.way: float(np.mean(numbers[metric])) for one, numbers in found.items()
    }
    return {"separate": separate, "separate_seconds": alone, "ratio": cost["seconds"]["total"] / alone}


def seconds_alone(arms: list[Arm], arm: Arm, one: dict[str, float]) -> float:
    """Seconds that all arms would take, each by a command of its own, if `one` are those of `arm` (`parts_of`).

    Such a command compiles once for all its seeds, and an update takes in every arm what it takes in this one.
    """
    each, compiled = one["updates"] / arm.config.rl.updates, one["compile"]
    commands = len({other.name for other in arms})
    more = sum(other.config.rl.updates - arm.config.rl.updates for other in arms)
    return commands * compiled + len(arms) * (one["total"] - compiled) + each * more


def table(figures: dict) -> str:
    """The comparison and what it cost as aligned text."""
    rows = [["arm", *WAYS, *(f"{way}, gain over {figures['base']}" for way in WAYS), f"updates to {figures['bar']:.3f}",
             "reached"]]  # fmt: skip
    for name, one in figures["arms"].items():
        reached = f"{one['reached']}/{len(one['to_bar']['seeds'])}" if "to_bar" in one else "-"
        gains = [cell(one[way].get("gain")) for way in WAYS]
        rows.append([name, *(cell(one[way]["task_score"]) for way in WAYS), *gains, cell(one.get("to_bar")), reached])
    return f"{aligned(rows)}\n\n{cost_in_words(figures['cost'])}"


def cost_in_words(cost: dict) -> str:
    """What a study took, in a sentence or two."""

    def told(seconds: dict) -> str:
        parts = ", ".join(f"{name} {seconds[name]:.0f} s" for name in ("compile", "updates", "evaluations"))
        return f"{seconds['total']:.0f} s ({parts})"

    devices = f"{cost['devices']} device{'s' * (cost['devices'] != 1)}"
    text = f"{cost['arms']} arms on {devices}: {told(cost['seconds'])}."
    if "separate" in cost:
        one = cost["separate"]
        text += (
            f" {one['arm']} by itself: {told(one['seconds'])}; all arms by themselves would take "
            f"{cost['separate_seconds']:.0f} s: together they cost {cost['ratio']:.2f} of that."
        )
    return text


if __name__ == "__main__":
    cli.run(main)
