"""Finds recorded trajectories of a run and opens them as a page:

    python -m experiments.trace --run=runs/tiny --failed --op=Delete_memory --status=UNKNOWN_ID --open

All flags given must hold; one with several names, parted by commas, holds if any of them does. An operation and a
status are of the same call. The page is RUN/traces.html, self-contained.
"""

import webbrowser
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from agemem_jax.errors import InputError
from agemem_jax.report import traces
from agemem_jax.report.diagnosis import KINDS, MEMORY_TOOLS, STOPS
from agemem_jax.report.page import METHODS
from experiments import cli, out, paths, shared_flags

RUN, PAGE = shared_flags.run(), shared_flags.page()
FAILED = flags.DEFINE_bool("failed", None, "only tasks that failed; --nofailed: only those that were solved")
MOST = flags.DEFINE_integer("most", 20, "most tasks shown", lower_bound=1)
OPEN = flags.DEFINE_bool("open", False, "open the page in a browser")
KIND = flags.DEFINE_list("kind", [], "only tasks of these kinds, such as recall; the table names them")
STATUS = flags.DEFINE_list("status", [], "only with a call that met one of these, such as STORE_FULL")
NAMES = {"method": (shared_flags.methods(), tuple(name for name, *_ in METHODS))} | {
    flag: (flags.DEFINE_list(flag, [], f"only with {what}: of {', '.join(known)}"), known)
    for flag, what, known in (
        ("op", "a call of these operations", (*MEMORY_TOOLS, "act", "pass")),
        ("stop", "a stage that ended for one of these", tuple(STOPS)),
        ("ending", "one of these endings", tuple(KINDS)),
    )
}


def main() -> None:
    folder = Path(RUN.value)
    path = Path(PAGE.value) if PAGE.value else folder / "traces.html"
    asked = {flag: known_names(flag, given.value, known) for flag, (given, known) in NAMES.items()}
    found, config = traces.read(folder)
    wanted = traces.Wanted(
        correct=None if FAILED.value is None else not FAILED.value,
        methods=asked["method"],
        ops=asked["op"],
        statuses=known_names("status", STATUS.value, traces.statuses(found)),
        stops=asked["stop"],
        endings=asked["ending"],
        kinds=known_names("kind", KIND.value, traces.kinds(found)),
    )
    paths.file_to_write("page", str(path))
    found = traces.chosen(found, wanted)
    count = sum(map(len, found.values()))
    if count:
        print(traces.table(found, MOST.value))
    shown = traces.write(found, config, wanted, MOST.value, path)
    print(f"{count} trajectories; {shown} tasks in {path}")
    out.write({"trajectories": count, "tasks": shown, "page": str(path)})
    if OPEN.value:
        webbrowser.open(path.resolve().as_uri())


def known_names(flag: str, given: list[str], known: Iterable[str]) -> tuple[str, ...]:
    """The names of a flag, as they are written in traces. Raises InputError for one that is not among the known."""
    by_lower = {name.lower(): name for name in known}
    for name in given:
        if name.lower() not in by_lower:
            raise InputError(f"--{flag}={name}: is none of {', '.join(by_lower.values())}")
    return tuple(by_lower[name.lower()] for name in given)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
