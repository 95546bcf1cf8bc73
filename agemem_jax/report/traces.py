"""Traces of one's own choice: those that failed, called something, met a status, ended for a reason; and their page."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from agemem_jax.errors import InputError
from agemem_jax.report.charts import number
from agemem_jax.report.diagnosis import KINDS, STOPS, examine, is_correct
from agemem_jax.report.files import config_of, seed_folders, traces_of, worth_of
from agemem_jax.report.page import METHODS, render, term_weights
from agemem_jax.report.trace_view import choose


@dataclass(frozen=True)
class Wanted:
    """Which traces: all that is given must hold, and of several names in one any; () and None leave it open."""

    correct: bool | None = None
    methods: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()  # of one and the same call, if statuses are given too
    statuses: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()  # why a stage ended (diagnosis.STOPS)
    endings: tuple[str, ...] = ()  # what became of the task (diagnosis.KINDS)
    kinds: tuple[str, ...] = ()  # of task, as the benchmark names them

    def holds(self, trace: dict) -> bool:
        calls = [call for turn in trace["turns"] for call in turn.get("calls") or ()]
        met = any(
            (not self.ops or call.get("op") in self.ops) and (not self.statuses or call.get("status") in self.statuses)
            for call in calls
        )
        return (
            self.correct in (None, is_correct(trace))
            and (not self.methods or trace.get("method") in self.methods)
            and (met or not (self.ops or self.statuses))
            and (not self.stops or not {*self.stops}.isdisjoint((trace.get("stops") or {}).values()))
            and (not self.endings or examine(trace).kind in self.endings)
            and (not self.kinds or trace.get("kind") in self.kinds)
        )

    def __str__(self) -> str:
        """In words: "failed; calls Delete_memory; status NOT_FOUND"."""
        outcome = {None: [], True: ["solved"], False: ["failed"]}[self.correct]
        named = {"kind": self.kinds, "method": self.methods, "calls": self.ops, "status": self.statuses}
        words = [f"{what} {' or '.join(names)}" for what, names in named.items() if names]
        words += [f"a stage ended because {STOPS.get(name, name)}" for name in self.stops]
        words += [KINDS.get(name, name) for name in self.endings]
        return "; ".join(outcome + words)


def read(folder: Path) -> tuple[dict[int, list[dict]], dict]:
    """The traces of a run by seed, or of one of its seeds, and its config ({} if neither has it).

    Raises InputError if there are none, or if a file is not what it should be; names the file and what to do.
    """
    seeds = seed_folders(folder)
    if not seeds and folder.name.removeprefix("seed_").isdigit():
        seeds = {int(folder.name.removeprefix("seed_")): folder}
    traces = {seed: traces_of(path, worth_of(path)) for seed, path in seeds.items()}
    if not any(traces.values()):
        raise InputError(
            f"{folder} has no traces (seed_*/traces*.json), of which an evaluation leaves train.traces behind; give "
            "the folder of a run, as in --run=runs/tiny, or of one of its seeds"
        )
    return traces, config_of(folder) or config_of(next(iter(seeds.values())))


def kinds(traces: dict[int, list[dict]]) -> list[str]:
    """Of which kinds the tasks of the traces are."""
    return sorted({trace["kind"] for rows in traces.values() for trace in rows if trace.get("kind")})


def statuses(traces: dict[int, list[dict]]) -> list[str]:
    """What calls have met in any of the traces."""
    turns = (turn for rows in traces.values() for trace in rows for turn in trace["turns"])
    return sorted({call["status"] for turn in turns for call in turn.get("calls") or () if call.get("status")})


def chosen(traces: dict[int, list[dict]], wanted: Wanted) -> dict[int, list[dict]]:
    """Those that are wanted, in their order."""
    return {seed: [trace for trace in rows if wanted.holds(trace)] for seed, rows in traces.items()}


def table(traces: dict[int, list[dict]], most: int) -> str:
    """A line a trace, at most `most`, as aligned text."""
    lines = [f"{'seed':>4}{'task':>7}  {'kind':10}{'method':13}{'ok':3}{'calls':34}{'ended':9}what became of it"]
    rows = [(seed, trace) for seed, found in traces.items() for trace in found]
    for seed, trace in rows[:most]:
        calls = Counter(call.get("op", "") for turn in trace["turns"] for call in turn.get("calls") or ())
        listed = " ".join(f"{name.split('_')[0]}:{count}" for name, count in calls.items() if name)
        last = list((trace.get("stops") or {"": ""}).values())[-1]
        head = f"{seed:>4}{trace.get('task', 0):>7}  {trace.get('kind') or '-':10}{trace.get('method', ''):13}"
        lines.append(f"{head}{'+' if is_correct(trace) else '-':3}{listed:34}{last:9}{KINDS[examine(trace).kind]}")
    return "\n".join(lines)


def write(traces: dict[int, list[dict]], config: dict, wanted: Wanted, most: int, path: Path) -> int:
    """Makes a page of at most `most` tasks with all their chosen trajectories; returns how many tasks it shows."""
    tasks = choose(traces, most, term_weights(config.get("reward") or {}))
    shown = {
        "name": config.get("name") or path.parent.name,
        "wanted": str(wanted),
        "tasks": tasks,
        "total": sum(map(len, traces.values())),
        "methods": METHODS,
        "number": number,
        "progress_name": "progress",
    }
    render("traces.html", shown, path)
    return len(tasks)
