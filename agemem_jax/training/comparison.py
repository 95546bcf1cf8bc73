"""Methods x benchmarks x seeds: where the evaluations of a table lie, and what they say, with what each score costs.

    WORKDIR/BENCHMARK/seed_S[/METHOD]/evaluation_METHOD-WAY.json

where METHOD has a folder of its own if it is trained and is not agemem, as experiments/train.py lays out its baselines.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from agemem_jax.config import PATH_FIELDS, ConfigError, difference, flatten, from_json
from agemem_jax.methods.tables import system_of
from agemem_jax.training import identity as identities
from agemem_jax.training.checkpoint import of_another_config
from agemem_jax.training.evaluate import METHODS, WAYS, Pass, shares_weights
from agemem_jax.training.identity import Identity
from agemem_jax.training.loop import free_of_evaluation, is_evaluated, read_json, result_path
from agemem_jax.training.summary import TASK_METRICS, interval
from agemem_jax.types import Op

ABOUT = "about.json"  # in the folder of a benchmark: what only its inputs tell
EXTENT = ("train.eval_tasks", "train.traces")  # of an evaluation: a larger one may take its place
TRACED = "greedy"  # the way of the evaluations that keep traces
BASE = "no_memory"  # what gains are stated over
MILLION = 1e6
EPISODES = 1000  # that a price is stated for
# Costs of an episode: name here, number of the evaluation.
MEANS = {
    "policy_calls": "turns",
    "prompt_tokens": "prompt_tokens",
    "generated_tokens": "generated_tokens",
    "context_tokens": "context_tokens",
    "peak_context_tokens": "peak_context_tokens",
    "peak_entries": "peak_entries",
    "peak_store_tokens": "peak_store_tokens",
    "memory_quality": "memory_quality",
    "memory_coverage": "memory_coverage",
    "memory_precision": "memory_precision",
}


@dataclass(frozen=True)
class Plan:
    """What a table compares."""

    columns: dict[str, ConfigDict]  # by benchmark, the config of the first seed
    methods: tuple[str, ...]
    seeds: int

    def config(self, benchmark: str, seed: int) -> ConfigDict:
        """The config of the `seed`-th seed, counted from 0."""
        one = self.columns[benchmark].copy_and_resolve_references()
        one.seed += seed
        return one

    def seeds_of(self, benchmark: str, method: str) -> int:
        """Seeds in which a method is played: one where all seeds would play the same."""
        return 1 if shares_weights(self.columns[benchmark], method) else self.seeds

    def to_json(self) -> dict:
        columns = {name: config.to_dict() for name, config in self.columns.items()}
        return {"methods": self.methods, "seeds": self.seeds, "columns": columns}

    @staticmethod
    def from_json(kept: dict) -> "Plan":
        columns = {name: from_json(json.dumps(config)) for name, config in kept["columns"].items()}
        return Plan(columns, tuple(kept["methods"]), kept["seeds"])


@dataclass(frozen=True)
class Cell:
    """A method on a benchmark with one seed, counted from 0."""

    benchmark: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.benchmark}, {self.method}, seed {self.seed}"

    def folder(self, workdir: Path, config: ConfigDict) -> Path:
        """Where its evaluations lie; `config` is the seed's own."""
        folder = workdir / self.benchmark / f"seed_{config.seed}"
        return folder / self.method if METHODS[self.method].trained and self.method != "agemem" else folder

    def paths(self, workdir: Path, config: ConfigDict) -> dict[str, Path]:
        """By way, where its evaluations are kept; `config` is the seed's own."""
        return {way: result_path(self.folder(workdir, config), Pass(self.method, way)) for way in WAYS}

    def evaluations(self, workdir: Path, plan: Plan) -> dict[str, dict]:
        """By way, what was kept of those that are there and hold for the plan's config and what it reads."""
        config = plan.config(self.benchmark, self.seed)
        updates = config.rl.updates if METHODS[self.method].trained else 0
        holds = lambda path: is_evaluated(path, config, identity, updates, self.method)  # noqa: E731
        identity = known_identity(workdir / self.benchmark / ABOUT, config)
        return {way: read_json(path) for way, path in self.paths(workdir, config).items() if holds(path)}

    def check(self, workdir: Path, plan: Plan, identity: Identity) -> None:
        """Raises InputError if there is an evaluation of another config, or of other inputs than those of `identity`:
        to play the cell would overwrite it."""
        config = plan.config(self.benchmark, self.seed)
        for path in filter(Path.exists, self.paths(workdir, config).values()):
            kept = read_json(path)
            was = from_json(json.dumps(kept["config"]))
            names = [name for name in difference(config, was) if name not in EXTENT]
            names = [name for name in names if not free_of_evaluation(name, config, True, self.method)]
            if names:
                raise ConfigError(of_another_config(str(path), names, was, config))
            if kept.get("identity"):
                identities.check(str(path), kept["identity"], identity, config, was, "or start in a new --workdir")

    def is_finished(self, workdir: Path, plan: Plan) -> bool:
        return len(self.evaluations(workdir, plan)) == len(WAYS)


def about(scores: dict[str, str], identity: Identity, config: ConfigDict) -> dict:
    """What is kept in ABOUT: how scores are called, and what was read from which paths."""
    return {"scores": scores, "identity": identity, "paths": paths_of(config)}


def paths_of(config: ConfigDict) -> dict[str, str]:
    return {name: value for name, value in flatten(config).items() if name in PATH_FIELDS}


def known_identity(path: Path, config: ConfigDict) -> Identity | None:
    """What a benchmark's runs have read, if the file `path` (ABOUT) tells it of the config's own paths."""
    kept = read_json(path) if path.exists() else {}
    return kept.get("identity") if kept.get("paths") == paths_of(config) else None


def cells_of(plan: Plan) -> list[Cell]:
    """All cells, benchmark by benchmark and in each seed by seed, in which the first has those that need no other."""
    return [
        Cell(benchmark, method, seed)
        for benchmark in plan.columns
        for seed in range(plan.seeds)
        for method in plan.methods
        if seed < plan.seeds_of(benchmark, method)
    ]


def full_tokens(config: ConfigDict, method: str) -> dict[str, int]:
    """Tokens that a cell would read and write if every context were full: {"evaluation", "training"}.

    An estimate by the sizes of the config, before tokenizer and prompts are known: a call reads `context.limit`, and
    where all that is told is kept in view, that as well; every call is made, and written to its end.
    """
    m, task, rollout = METHODS[method], config.task, config.rollout
    messages = task.facts + task.distractors
    told = messages * task.message_tokens if m.roomy and m.rules.keeps_context else 0
    acting = rollout.stage3_turns if task.seen_tokens or m.tools else 1
    budget, calls = rollout.action_tokens, acting
    if m.tools:
        calls += messages + rollout.stage1_extra_turns + rollout.stage2_extra_turns + 3 * rollout.summary_slots
    tokens = calls * (config.context.limit + told + budget)
    if m.system and m.system not in ("bm25", "rag"):
        system = system_of(config, m.system)
        calls = messages * (len(system.roles) - system.asks) + system.asks
        tokens += calls * (config.context.limit + config.methods.answer_tokens)
    updates = config.rl.updates if m.trained else 0
    rows = config.rl.tasks_per_update * config.rl.group_size
    return {"evaluation": len(WAYS) * config.train.eval_tasks * tokens, "training": updates * rows * tokens}


def figures(workdir: Path, plan: Plan) -> dict:
    """Everything that a table shows; what was not played yet is left out, and counted.

    Returns:
      methods, seeds; benchmarks: of each its config's name, what its score is called, tasks, prices.
      average: {method: interval over the benchmarks}, of methods that have all of them.
      cells: {benchmark: {method: interval of the task score, with "evaluations" and "wanted" (seeds), "costs",
        "operations", "roles" and, where trajectories are traced, "context_by_turn"}}.
      costs: {method: mean over the benchmarks}, of methods that have all of them.
      sampled: average, cells and costs of the sampled evaluations; those above are greedy.
      one_policy: methods that are played once, since all seeds share their weights.
    """
    kept: dict[tuple[str, str], list[tuple[Path, dict]]] = {}
    for cell in cells_of(plan):
        folder = cell.folder(workdir, plan.config(cell.benchmark, cell.seed))
        kept.setdefault((cell.benchmark, cell.method), []).append((folder, cell.evaluations(workdir, plan)))
    ways = {way: figures_of_way(plan, kept, way) for way in WAYS}
    columns = {name: column(workdir, name, config, ways["greedy"]["cells"]) for name, config in plan.columns.items()}
    return {
        "methods": plan.methods,
        "seeds": plan.seeds,
        "benchmarks": columns,
        **ways["greedy"],
        **{way: found for way, found in ways.items() if way != "greedy"},
        "one_policy": [m for m in plan.methods if all(shares_weights(c, m) for c in plan.columns.values())],
    }


def column(workdir: Path, name: str, config: ConfigDict, cells: dict) -> dict:
    """What a benchmark's column shows."""
    path = workdir / name / ABOUT
    scores = read_json(path)["scores"] if path.exists() else {}
    tasks = {found["tasks"] for found in cells.get(name, {}).values()}
    return {
        "config": config.name,
        "metric": config.reward.task_metric,
        "score": scores.get(config.reward.task_metric, config.reward.task_metric),
        "tasks": max(tasks, default=None),
        "updates": config.rl.updates,
        "prices": config.prices.to_dict(),
    }


def figures_of_way(plan: Plan, kept: dict, way: str) -> dict:
    """average, cells and costs of the evaluations decoded in a way."""
    cells: dict[str, dict] = {}
    for (benchmark, method), evaluations in kept.items():
        there = [(folder, found[way]) for folder, found in evaluations if way in found]
        if there:
            cell = cell_figures(plan.columns[benchmark], [one for _, one in there])
            folders = [folder for folder, _ in there]
            cell["wanted"] = len(evaluations)
            cell |= {"context_by_turn": context_by_turn(method, folders)} if way == TRACED else {}
            cell["costs"]["training_seconds"] = training_seconds(method, folders)
            cells.setdefault(benchmark, {})[method] = cell
    for benchmark, found in cells.items():
        for method in found:
            worth(found[method], found.get(BASE), plan.columns[benchmark].prices)
    average, costs = {}, {}
    for method in plan.methods:
        row = [cells.get(benchmark, {}).get(method) for benchmark in plan.columns]
        if all(row):
            average[method] = average_of(row)
            costs[method] = mean_costs([one["costs"] for one in row])
    for method in average:  # of the averages, not an average of ratios
        tokens = tokens_of(costs[method])
        costs[method]["points_per_million"] = gained(average[method]["mean"], average.get(BASE), tokens)
    return {"average": average, "cells": cells, "costs": costs}


def cell_figures(config: ConfigDict, evaluations: list[dict]) -> dict:
    """The score of a cell over its seeds, and what it costs: means over seeds and tasks."""
    numbers = [one["numbers"] for one in evaluations]
    metric = TASK_METRICS[config.reward.task_metric]
    mean = lambda name: mean_of([one.get(name) for one in numbers])  # noqa: E731
    costs = {name: mean(of) for name, of in MEANS.items()} | {"seconds": seconds_of(evaluations)}
    return interval([one[metric] for one in numbers]) | {
        "evaluations": len(evaluations),
        "tasks": len(numbers[0][metric]),
        "costs": costs,
        "operations": operations(mean),
        "roles": roles(mean, numbers[0], [one.get("roles", {}) for one in evaluations]),
    }


def mean_of(values: list) -> float | None:
    """Mean over seeds and tasks of a number that every seed has; else None."""
    return None if any(one is None for one in values) else float(np.mean([np.mean(one) for one in values]))


def seconds_of(evaluations: list[dict]) -> float | None:
    """Wall time of an episode, as one of its batch, in batches in which nothing compiled; None if there is none."""
    timed = [b for one in evaluations for b in one.get("batches", ()) if b["seconds"] is not None and b["tasks"]]
    return sum(b["seconds"] for b in timed) / sum(b["tasks"] for b in timed) if timed else None


def training_seconds(method: str, folders: list[Path]) -> float | None:
    """Wall time of the updates of a seed, compilation included, mean over seeds; None of what is not trained."""
    files = [folder / "seconds.json" for folder in folders]
    if not METHODS[method].trained or not all(path.exists() for path in files):
        return None
    return float(np.mean([read_json(path).get("train", 0.0) for path in files]))


def operations(mean) -> dict[str, dict]:
    """What the operations of an episode take, of those that were asked for; {} of evaluations that did not count it.

    `share` is the part of all generated tokens, `mean` gives the mean of a number by its name.
    """
    found, total = {}, mean("generated_tokens")
    for name in (op.name.lower() for op in Op if op >= 0):
        read, written = mean(f"prompt_tokens_{name}"), mean(f"generated_tokens_{name}")
        if written:
            share = written / total if total else None
            calls = {"calls": mean(f"calls_{name}"), "prompt_tokens": read, "generated_tokens": written}
            found[name] = calls | {"share": share}
    return found


def roles(mean, numbers: dict, played: list[dict]) -> dict[str, dict]:
    """What the roles of a memory system take; {} of other methods.

    `valid` is the share of answers in their form, `right` that of the traced ones which did what is right, by `played`:
    of each seed {role: {compared, agreed}} (Teacher.agreement); None where none were compared.
    """
    found, total = {}, mean("generated_tokens")
    for name in (n.removeprefix("role_").removesuffix("_calls") for n in numbers if is_calls_of_a_role(n)):
        of = lambda field, name=name: mean(f"role_{name}_{field}")  # noqa: E731
        one = {field: of(field) for field in ("calls", "prompt_tokens", "generated_tokens")}
        one["valid"] = of("valid") / one["calls"] if one["calls"] else None
        compared, agreed = (sum(seed.get(name, {}).get(what, 0) for seed in played) for what in ("compared", "agreed"))
        one["right"] = agreed / compared if compared else None
        found[name] = one | {"share": one["generated_tokens"] / total if total else None}
    return found


def is_calls_of_a_role(name: str) -> bool:
    """Whether a number of an evaluation is the calls of a role of a memory system (training/systems.py)."""
    return name.startswith("role_") and name.endswith("_calls")


def context_by_turn(method: str, folders: list[Path]) -> list[float]:
    """Context tokens after each generation slot, mean over the traced greedy trajectories that come so far."""
    lengths: list[list[int]] = []
    for path in (folder / f"traces_{method}.json" for folder in folders):
        for trace in read_json(path) if path.exists() else ():
            for place, turn in enumerate(trace["turns"]):
                lengths += [[]] * (place == len(lengths))
                lengths[place].append(turn["context_tokens"])
    return [float(np.mean(values)) for values in lengths]


def worth(cell: dict, base: dict | None, prices: ConfigDict) -> None:
    """Adds to the costs of a cell what it costs in dollars, and what it gains over no memory for its tokens."""
    costs = cell["costs"]
    costs["points_per_million"] = gained(cell["mean"], base, tokens_of(costs))
    paid = None
    if (prices.prompt or prices.generated) and tokens_of(costs) is not None:
        paid = costs["prompt_tokens"] * prices.prompt + costs["generated_tokens"] * prices.generated
    costs["dollars"] = None if paid is None else EPISODES * paid / MILLION


def tokens_of(costs: dict) -> float | None:
    """Tokens that an episode reads and writes."""
    both = costs["prompt_tokens"], costs["generated_tokens"]
    return None if None in both else sum(both)


def gained(mean: float, base: dict | None, tokens: float | None) -> float | None:
    """Points (of 100, an episode) over no memory by each million tokens (of an episode)."""
    if base is None or not tokens:
        return None
    return 100 * (mean - base["mean"]) / (tokens / MILLION)


def average_of(row: list[dict]) -> dict:
    """Mean over benchmarks and the half width of its 95 % interval.

    The benchmarks' tasks, and what was trained for them, have nothing in common: their errors are independent, and the
    variance of the mean of n is the sum of theirs over n squared.
    """
    n = len(row)
    return {
        "mean": float(np.mean([one["mean"] for one in row])),
        "ci95": math.sqrt(sum(one["ci95"] ** 2 for one in row)) / n,  # NaN if one of them is unknown
        **{name: sum(one[name] for one in row) for name in ("evaluations", "wanted")},
    }


def mean_costs(row: list[dict]) -> dict:
    """Means over benchmarks of what all of them have."""
    whole = {name for name in row[0] if all(one[name] is not None for one in row)}
    return {name: float(np.mean([one[name] for one in row])) if name in whole else None for name in row[0]}
