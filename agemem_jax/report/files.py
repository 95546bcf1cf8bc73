"""What a run has left in its folder, for its pages: read, checked, put together by seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agemem_jax.errors import InputError

ATTRIBUTION = "attribution.json"  # in the folder of a seed: what calls were worth (experiments/attribute.py)


@dataclass(frozen=True)
class RunFiles:
    """What a workdir holds. `metrics`, `traces` and `worth` are by seed; a file that is not there is empty."""

    workdir: Path
    summary: dict
    config: dict
    metrics: dict[int, list[dict]]
    traces: dict[int, list[dict]]
    worth: dict[int, dict]


def load(workdir: Path) -> RunFiles:
    """Reads the files of a run.

    Raises:
      InputError: summary.json is missing, or a file is not what it should be; names the file and what to do.
    """
    path = workdir / "summary.json"
    if not path.exists():
        raise InputError(
            f"{path} is missing. It is written when training ends: run `python -m experiments.train "
            f"--config=configs/tiny.py --workdir={workdir}` to the end (it goes on where it was stopped), or give the "
            "--workdir of a finished run."
        )
    summary = _read(path, dict)
    methods = summary.get("methods")
    if not isinstance(methods, dict) or not all(isinstance(m, dict) for m in methods.values()):
        raise InputError(f"{path} has no `methods` object of the form {{method: {{metric: ...}}}}. {_remedy(path)}")
    seeds = seed_folders(workdir)
    metrics = {seed: _read_metrics(folder / "metrics.jsonl") for seed, folder in seeds.items()}
    worth = {seed: worth_of(folder) for seed, folder in seeds.items()}
    traces = {seed: traces_of(folder, worth[seed]) for seed, folder in seeds.items()}
    return RunFiles(workdir, summary, config_of(workdir), metrics, traces, worth)


def seed_folders(workdir: Path) -> dict[int, Path]:
    """The folders of a run's seeds, by seed."""
    found = [path for path in workdir.glob("seed_*") if path.is_dir() and path.name.removeprefix("seed_").isdigit()]
    return dict(sorted((int(path.name.removeprefix("seed_")), path) for path in found))


def traces_of(folder: Path, worth: dict) -> list[dict]:
    """The traces of a seed and of the baselines trained in it, which have folders of their own, with what their calls
    were worth where that is known. Raises InputError as `load`.

    worth: of `worth_of`.
    """
    files = [*sorted(folder.glob("traces*.json")), *sorted(folder.glob("*/traces*.json"))]
    traces = [trace for path in files for trace in _read_traces(path)]
    note_worth(traces, worth)
    return traces


def config_of(folder: Path) -> dict:
    """The config of a run or a seed; {} if it is not there. Raises InputError as `load`."""
    return _read(folder / "config.json", dict, needed=False)


def note_worth(traces: list[dict], worth: dict) -> None:
    """Adds to the calls of traces what they were worth, as far as the same calls were played again."""
    key = lambda *where: json.dumps(where, sort_keys=True)  # noqa: E731
    names = ("task", "stage", "turn", "call", "op", "arguments")
    effects = {key(*(call[name] for name in names)): call["effect"] for call in worth.get("calls", ())}
    for trace in traces if effects else ():
        if trace.get("method") != worth["method"]:
            continue
        for turn in trace["turns"]:
            for place, call in enumerate(turn.get("calls") or ()):
                here = key(trace.get("task"), turn.get("stage"), turn.get("turn"), place, call["op"], call["arguments"])
                call["worth"] = effects.get(here)


def _read(path: Path, kind: Callable, needed: bool = True):
    """A JSON file whose top level is `kind`; an empty one if it is missing and not needed."""
    if not needed and not path.exists():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}. {_remedy(path)}") from error
    if not isinstance(value, kind):
        raise InputError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}. {_remedy(path)}")
    return value


def worth_of(folder: Path) -> dict:
    """What the calls of a seed were worth; {} if nobody looked. Raises InputError as `load`."""
    path = folder / ATTRIBUTION
    worth = _read(path, dict, needed=False)
    if worth and not ({"method", "tools", "calls"} <= worth.keys()):
        raise InputError(f"{path} lacks one of method, tools and calls. Run `python -m experiments.attribute` again.")
    return worth


def _read_traces(path: Path) -> list[dict]:
    """The traces in one file of a seed."""
    traces = _read(path, list)
    for place, trace in enumerate(traces):
        if not isinstance(trace, dict) or not isinstance(trace.get("turns"), list):
            raise InputError(f"{path}: trace {place} is not an object with a list of `turns`. {_remedy(path)}")
    return traces


def _read_metrics(path: Path) -> list[dict]:
    """One record an update, ascending. Lines of the same update (or `step`: an evaluation's) are put together."""
    if not path.exists():
        return []
    by_update: dict[int, dict] = {}
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            update = int(row.get("update") or row["step"])
            by_update.setdefault(update, {}).update(row | {"update": update})
        except (json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {place} is not a JSON object with an `update`: {error!r}. Delete that line (a run that "
                "was killed may leave half a line at the end), then make the report again."
            ) from error
    return [by_update[update] for update in sorted(by_update)]


def _remedy(path: Path) -> str:
    return f"Delete {path.name} and run the training command of this workdir again; it writes the file anew at its end."
