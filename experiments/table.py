"""All methods on all benchmarks, with what each score costs: the table of the paper, as far as it was played.

    python -m experiments.table --workdir=runs/table --set=alfworld.task.path=json_2.1.1/train \\
        --set=alfworld.task.test_path=json_2.1.1/valid_seen

A cell is a method on a benchmark with one seed: trained if the method is, then played on the test tasks, greedy and
sampled. Methods that act with the same weights whatever the seed are played once. It first says what is to be done and
what that costs. The same command goes on where it was stopped; a finished cell never runs again, a folder with cells of
another config or other inputs is refused, and every benchmark's programs compile once. After each cell WORKDIR has the
table as table.json, table.csv, table.md and table.html; --only_show makes them, and prints, of what is there.

WORKDIR/BENCHMARK is the folder of a run: experiments.trace and experiments.judge_agreement open it.
"""

import ast
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from agemem_jax.config import check_fields, check_override, flatten, make_absolute, nearest_of, refuse, validate
from agemem_jax.errors import InputError
from agemem_jax.metrics import duration, plain, replace_text, write_json
from agemem_jax.report import table as shown
from agemem_jax.training.comparison import ABOUT, Cell, Plan, about, cells_of, figures, full_tokens
from agemem_jax.training.distributed import Notice, agree, is_leader, say
from agemem_jax.training.evaluate import METHODS, WAYS, Pass
from agemem_jax.training.loop import evaluate_ways, fresh_state, read_json, train
from agemem_jax.training.setup import Run, build
from agemem_jax.training.summary import aligned
from configs import base
from experiments import cli, out, paths, shared_flags
from experiments import train as train_command

BENCHMARKS = ("hotpotqa", "alfworld", "pddl", "babyai", "scienceworld")
COMPARED = (
    "no_memory", "full_context", "store_all", "bm25", "no_memory_rl", "store_all_rl", "bm25_rl", "memagent",
    "mem0_classic", "mem0_additive", "amem", "agemem_norl_rag", "agemem_rag", "agemem_norl", "agemem",
)  # fmt: skip
WORKDIR = shared_flags.workdir()
flags.adopt_module_key_flags(train_command)  # several processes play a table as they train
CONFIGS = flags.DEFINE_list(
    "configs",
    [f"{Path(base.__file__).parent / name}.py:tiny" for name in BENCHMARKS],
    "a config for each benchmark, as --config takes it",
)
SET = flags.DEFINE_multi_string(
    "set", [], "FIELD=VALUE in all configs, or BENCHMARK.FIELD=VALUE in that of one, such as alfworld.task.path=FOLDER"
)
CHOSEN = flags.DEFINE_list("methods", list(COMPARED), "rows of the table")
SEEDS = flags.DEFINE_integer("seeds", 3, "seeds, from each config's on", lower_bound=1)
ONLY_SHOW = flags.DEFINE_bool("only_show", False, "run nothing: make the table of what the folder holds")

PLAN = "plan.json"  # what the folder's table compares
MEASURED = "cells.json"  # {cell: seconds that it has taken, in all its starts}


def main() -> None:
    workdir = paths.folder_to_write("workdir", WORKDIR.value)
    if ONLY_SHOW.value:
        for flag in (CONFIGS, SET, CHOSEN, SEEDS):
            if flag.present:
                raise InputError(f"--only_show makes the table that was begun; leave --{flag.name} out")
        kept = known_plan(workdir)
        show(workdir, Plan.from_json(kept), kept["command"])
        return
    columns = configs(CONFIGS.value, SET.value, SEEDS.value)
    plan = Plan(columns, methods(CHOSEN.value), SEEDS.value)
    check(plan)
    train_command.supervised(workdir, lambda notice: make(plan, workdir, notice))


def known_plan(workdir: Path) -> dict:
    """What a table of this folder compares. Raises InputError if nothing was begun there."""
    path = workdir / PLAN
    if not path.exists():
        raise InputError(f"--workdir={workdir}: there is no {PLAN} in it, which the command writes as it begins; give "
                         "the folder of a table, or leave --only_show out to begin one")  # fmt: skip
    return read_json(path)


def configs(files: list[str], settings: list[str], seeds: int) -> dict[str, ConfigDict]:
    """By benchmark the config of each column. Raises InputError that says what is wrong with a file or a setting."""
    found: dict[str, ConfigDict] = {}
    for file in files:
        try:
            config = cli.load_config(file)
            check_fields(config, base.get_config())
        except InputError as error:
            raise InputError(f"--configs: {str(error).removeprefix('--config=')}") from error
        benchmark = config.task.benchmark
        if benchmark in found:
            raise InputError(f"--configs: {file} is of {benchmark}, as one before it; give one config of each")
        found[benchmark] = config
    if not found:
        raise InputError("--configs is empty; give a file for each benchmark")
    for setting in settings:
        name, mark, text = setting.partition("=")
        benchmark, _, field = name.partition(".")
        if not mark:
            raise InputError(f"--set={setting}: give FIELD=VALUE or BENCHMARK.FIELD=VALUE; benchmarks are "
                             f"{', '.join(found)}")  # fmt: skip
        of_one = benchmark in found and field
        if (field if of_one else name) == "num_seeds":
            raise InputError(f"--set={setting}: --seeds says how many")
        for config in [found[benchmark]] if of_one else found.values():
            set_field(config, field if of_one else name, text, setting)
    for benchmark, config in found.items():
        if config.task.benchmark != benchmark:
            raise InputError(f"--set: task.benchmark of {benchmark} stays; give another file to --configs")
        try:
            check_fields(config, base.get_config())
            config.num_seeds = seeds
            validate(config)
        except InputError as error:
            raise InputError(f"{benchmark}: {error}") from error
        make_absolute(config)
    return found


def set_field(config: ConfigDict, name: str, text: str, setting: str) -> None:
    """Sets a field to what a text says. Raises InputError if there is no such field, or the text is of another type."""
    try:
        check_override(config, name, text)
        config.update_from_flattened_dict({name: value_of(text, flatten(config)[name])})
    except (InputError, ValueError, SyntaxError) as error:
        raise InputError(f"--set={setting}: {error}") from error


def value_of(text: str, like: Any) -> Any:
    """A text as a value of the type of another."""
    if isinstance(like, bool):
        return text.lower() in ("true", "t", "1", "")
    if isinstance(like, tuple):
        value = ast.literal_eval(text) if text.startswith("(") else tuple(filter(None, text.split(",")))
        if not isinstance(value, tuple):
            raise ValueError(f"a tuple is needed, such as ({value!r},)")
        return value
    return type(like)(text)


def methods(names: list[str]) -> tuple[str, ...]:
    """The rows. Raises InputError for one that there is not, or that is named twice."""
    for name in names:
        if name not in METHODS:
            raise InputError(f"--methods={name}: is none of {', '.join(METHODS)}{nearest_of(name, METHODS)}")
    if len(set(names)) < len(names) or not names:
        raise InputError(f"--methods={','.join(names)}: name some, and each once")
    return tuple(names)


def check(plan: Plan) -> None:
    """What methods want of the configs. Raises InputError where a method that is trained would not be."""
    trained = [name for name in plan.methods if METHODS[name].trained]
    learns = any(METHODS[name].roomy and not METHODS[name].system for name in trained)
    for benchmark, config in plan.columns.items():
        if trained and not config.rl.updates:
            refuse("rl.updates", 0, f"{benchmark}: {trained[0]} would learn nothing; set it, or leave out of --methods "
                   f"{', '.join(trained)}")  # fmt: skip
        config.train.baselines = learns  # programs of rows that hold all that is told learn only where one is trained


def make(plan: Plan, workdir: Path, notice: Notice) -> None:
    """Plays every cell that is not finished yet, then shows the table."""
    command = "python -m experiments.table " + shlex.join(sys.argv[1:])
    cells = cells_of(plan)
    left = unfinished(cells, plan, workdir)
    if is_leader():
        say(announced(plan, workdir, cells, left))
    with notice as stop:
        runs = checked(cells, left, plan, workdir)
        if is_leader():
            begin(plan, workdir, command, runs)
        left = unfinished(left, plan, workdir)  # it is known now whether files that have moved are the same
        run: Run | None = None
        for number, cell in enumerate(left, len(cells) - len(left) + 1):
            config = plan.config(cell.benchmark, cell.seed)
            if cell.benchmark in runs:
                run = runs.pop(cell.benchmark)
            if run.config.seed != config.seed:
                run = build(config, like=run)  # compiled once for all seeds
            say(f"cell {number} of {len(cells)}: {cell} ({expected(plan, workdir, cell)})")
            seconds = timed(workdir, cell, lambda run=run, cell=cell: play(run, workdir, plan, cell, stop))
            say(f"cell {number} of {len(cells)}: {cell}: done in {duration(seconds)}")
            if is_leader():
                write(workdir, figures(workdir, plan), command)
    if is_leader():
        show(workdir, plan, command)


def unfinished(cells: list[Cell], plan: Plan, workdir: Path) -> list[Cell]:
    """Those of the cells that are to be played, in every process the same."""
    done = agree(lambda: [cell.is_finished(workdir, plan) for cell in cells])
    return [cell for cell, finished in zip(cells, done, strict=True) if not finished]


def begin(plan: Plan, workdir: Path, command: str, runs: dict[str, Run]) -> None:
    """Writes what is compared, and the config of each benchmark in its folder, where pages look for it, with what its
    run has read if there is one."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / PLAN, {"command": command} | plan.to_json())
    for benchmark, config in plan.columns.items():
        (workdir / benchmark).mkdir(exist_ok=True)
        write_json(workdir / benchmark / "config.json", config.to_dict())
        if run := runs.get(benchmark):
            write_json(workdir / benchmark / ABOUT, about(run.source.tasks.scores, run.identity, run.config))


def checked(cells: list[Cell], left: list[Cell], plan: Plan, workdir: Path) -> dict[str, Run]:
    """The runs of benchmarks that have cells left, with the first seed that has some. All are built before anything
    compiles: what is wrong with the last one's data would else be told hours later.

    Raises InputError as `build`, if a memory system does not fit the policy, and if a cell of these benchmarks was
    played with another config or other inputs.
    """
    runs: dict[str, Run] = {}
    for cell in left:
        benchmark = cell.benchmark
        if benchmark in runs:
            continue
        say(f"{benchmark}: reading what it takes")
        try:
            learns = any(METHODS[one.method].trained for one in left if one.benchmark == benchmark)
            run = runs[benchmark] = build(plan.config(benchmark, cell.seed), learns=learns)
            for name in {METHODS[method].system for method in plan.methods} - {"", "bm25", "rag"}:
                run.readings(name)
            for one in cells:
                if one.benchmark == benchmark:
                    one.check(workdir, plan, run.identity)
        except InputError as error:
            raise InputError(f"{benchmark}: {error}") from error
    return runs


def play(run: Run, workdir: Path, plan: Plan, cell: Cell, stop: Callable[[], bool]) -> None:
    """Trains a cell's method, if it is trained, and evaluates it."""
    folder = cell.folder(workdir, run.config)
    if METHODS[cell.method].trained:
        train(run, folder, stop, method=cell.method, only=tuple(Pass(cell.method, way) for way in WAYS))
    else:
        evaluate_ways(run, folder, cell.method, 0, lambda: fresh_state(run), stop)


def timed(workdir: Path, cell: Cell, work: Callable[[], None]) -> float:
    """Does the work of a cell; returns the seconds of all its starts, which are kept, also if it is stopped."""
    path, began = workdir / MEASURED, time.perf_counter()
    try:
        work()
    finally:
        kept = measured(workdir)
        kept[str(cell)] = kept.get(str(cell), 0.0) + time.perf_counter() - began
        if is_leader():
            write_json(path, kept)
    return kept[str(cell)]


def measured(workdir: Path) -> dict[str, float]:
    """Seconds of the cells that were begun in a folder."""
    path = workdir / MEASURED
    return read_json(path) if path.exists() else {}


def seconds_of_others(plan: Plan, workdir: Path, cell: Cell) -> float | None:
    """Seconds of a finished cell of the same benchmark and method, the mean of all; None if there is none."""
    known = measured(workdir)
    others = [one for seed in range(plan.seeds) if (one := Cell(cell.benchmark, cell.method, seed)) != cell]
    found = [known[str(one)] for one in others if str(one) in known and one.is_finished(workdir, plan)]
    return sum(found) / len(found) if found else None


def expected(plan: Plan, workdir: Path, cell: Cell) -> str:
    """What a cell will cost, in words."""
    seconds = seconds_of_others(plan, workdir, cell)
    if seconds is not None:
        return f"about {duration(seconds)}, as another seed took"
    tokens = full_tokens(plan.columns[cell.benchmark], cell.method)
    return f"{millions(sum(tokens.values()))} tokens, were its contexts full"


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.1f}M" if tokens >= 1e5 else f"{tokens:,.0f}"


def announced(plan: Plan, workdir: Path, cells: list[Cell], left: list[Cell]) -> str:
    """What is going to be done, and what it will cost, as text."""
    rows = [["benchmark", "method", "cells left", "each"]]
    for benchmark in plan.columns:
        for method in plan.methods:
            of = [cell for cell in cells if (cell.benchmark, cell.method) == (benchmark, method)]
            todo = [cell for cell in of if cell in left]
            told = expected(plan, workdir, todo[0]) if todo else ""
            rows.append([benchmark, method, f"{len(todo)} of {len(of)}", told])
    seconds = [seconds_of_others(plan, workdir, cell) for cell in left]
    open_ = [cell for cell, known in zip(left, seconds, strict=True) if known is None]
    tokens = [sum(full_tokens(plan.columns[cell.benchmark], cell.method).values()) for cell in open_]
    told = [f"{len(left)} of {len(cells)} cells are left"]
    if len(open_) < len(left):
        told.append(f"about {duration(sum(filter(None, seconds)))} for those of which another seed was measured")
    if open_:
        told.append(f"{millions(sum(tokens))} tokens, read and written, for the others, were all contexts full")
    return f"{aligned(rows)}\n\n{'; '.join(told)}"


def write(workdir: Path, found: dict, command: str) -> None:
    """Writes the table in every form."""
    found = json.loads(json.dumps(plain({"command": command} | found)))  # as it is read again: no NaN
    write_json(workdir / "table.json", found)
    replace_text(workdir / "table.csv", shown.as_csv(found))
    replace_text(workdir / "table.md", shown.markdown(found))
    shown.write(found, workdir / "table.html")


def show(workdir: Path, plan: Plan, command: str) -> None:
    """Prints the table and writes it."""
    write(workdir, figures(workdir, plan), command)
    found = read_json(workdir / "table.json")
    for way in WAYS:
        print(aligned(shown.score_rows(found, way, lambda text: f"{text} *", str)), end="\n\n")
        rows = shown.cost_rows(found, way)
        if len(rows) > 1:
            print(aligned(rows), end="\n\n")
    print("\n".join([*shown.column_notes(found), "* the best of a column", *shown.notes(found)]))
    print(f"table: {workdir / 'table.html'}")
    out.write(found)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
