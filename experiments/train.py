"""Start here: trains, evaluates and reports.

    python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny

Every value can be overridden (--config.rl.group_size=4). The same command goes on where it was stopped: killed,
failed, or asked to stop by SIGTERM (exit code 143) or Ctrl-C (130), with the same or another number of devices and
processes. A second command in the same workdir is refused as long as the first one runs.

Several processes, one command each: --distributed where they find each other (TPU slices, GKE, SLURM, Open MPI), else
--coordinator=HOST:PORT --num_processes=N --process_id=I. Exit code 75: another process is gone; start all again.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from agemem_jax.errors import InputError, storage_problem
from agemem_jax.report import page
from agemem_jax.training.checkpoint import last_saved
from agemem_jax.training.distributed import Notice, Preempted, is_leader, session
from agemem_jax.training.evaluate import BASELINES
from agemem_jax.training.lock import hold
from agemem_jax.training.loop import train
from agemem_jax.training.setup import build
from agemem_jax.training.summary import table, write_summary
from experiments import cli, out, paths, shared_flags

WORKDIR = shared_flags.workdir()
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "join the other processes of a TPU slice, GKE or SLURM job")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where nothing else tells it")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "processes of the run, with --coordinator")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "which of them this is, from 0, with --coordinator")
LOST_AFTER = flags.DEFINE_float("lost_after", 60.0, "seconds without a sign of life after which a process is lost")


def main(config) -> None:
    workdir = paths.folder_to_write("workdir", WORKDIR.value)
    supervised(workdir, lambda notice: run_seeds(config, workdir, notice))


def supervised(workdir: Path, work: Callable[[Notice], None]) -> None:
    """`work` with the workdir to itself, among the processes of the run; asked to stop, it ends with its exit code."""
    hint = lambda: where_it_goes_on(workdir)  # noqa: E731
    notice = Notice(hint)
    try:
        with session(
            COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, DISTRIBUTED.value, LOST_AFTER.value, hint
        ), hold(workdir, "--workdir"), refusals_of_storage(workdir):  # fmt: skip
            work(notice)
    except Preempted as stopped:
        print(f"{stopped}. The same command goes on from there.", file=sys.stderr, flush=True)
        sys.exit(notice.exit_code)


def run_seeds(config, workdir: Path, notice: Notice) -> None:
    """Trains every seed; then process 0 writes table and report."""
    results: dict[int, dict] = {}
    run = None
    with notice as stop:
        for seed in range(config.seed, config.seed + config.num_seeds):
            one, folder = config.copy_and_resolve_references(), workdir / f"seed_{seed}"
            one.seed = seed
            run, first = build(one, like=run), seed == config.seed
            results[seed] = train(run, folder, stop, first)
            for method in BASELINES if config.train.baselines else ():
                results[seed] |= train(run, folder / method, stop, first, method)
    if not is_leader():
        return
    command = "python -m experiments.train " + " ".join(sys.argv[1:])
    summary = write_summary(workdir, config, run, results, command)
    print(table(summary))
    print(f"report: {page.write(workdir)}")
    out.write(summary)


@contextlib.contextmanager
def refusals_of_storage(workdir: Path) -> Iterator[None]:
    """Turns what disk or share refused to write into one line; a checkpoint that was not written says so itself."""
    try:
        yield
    except OSError as error:
        if (problem := storage_problem(error)) is None:
            raise
        raise InputError(
            f"--workdir={workdir}: {problem}. What was saved before is whole; mend that, then start the same command "
            f"again{where_it_goes_on(workdir)}"
        ) from error


def where_it_goes_on(workdir: Path) -> str:
    """The newest whole checkpoint of what was trained last, in words."""
    folders = sorted(workdir.glob("**/checkpoints"), key=lambda path: path.stat().st_mtime)
    update = last_saved(folders[-1]) if folders else None
    if update is None:
        return "; there is no checkpoint yet"
    return f": it goes on from {folders[-1].parent.relative_to(workdir)}, update {update}"


if __name__ == "__main__":
    cli.run(main)
