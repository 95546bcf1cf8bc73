"""Traces of one's own choice: what each condition keeps, the page, and what the command refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from report_run import GOLD, make_run

from agemem_jax.errors import InputError
from agemem_jax.report import traces
from agemem_jax.report.traces import Wanted

ROOT = Path(__file__).parent.parent
WORTH = 0.5


def call(op: str, status: str = "OK") -> dict:
    return {"op": op, "status": status, "arguments": {}}


def trace(
    *turns: list[dict], success: float = 0.0, method: str = "agemem", stop: str = "turns", kind: str = ""
) -> dict:
    made = [{"stage": 1, "turn": i, "saw": [], "said": "", "calls": calls} for i, calls in enumerate(turns)]
    about = {"method": method, "kind": kind, "success": success, "gold": [GOLD[0]]}
    return about | {"stops": {"1": "turns", "3": stop}, "turns": made}


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        (Wanted(), True),
        (Wanted(correct=False), True),
        (Wanted(correct=True), False),
        (Wanted(methods=("no_memory", "agemem")), True),
        (Wanted(methods=("no_memory",)), False),
        (Wanted(ops=("Delete_memory",)), True),
        (Wanted(ops=("Filter_context",)), False),
        (Wanted(statuses=("DUPLICATE",)), True),
        (Wanted(ops=("Add_memory",), statuses=("DUPLICATE",)), True),
        (Wanted(ops=("Delete_memory",), statuses=("DUPLICATE",)), False),  # not of the same call
        (Wanted(stops=("segments", "context")), True),
        (Wanted(stops=("segments",)), False),
        (Wanted(endings=("no_room",)), True),
        (Wanted(endings=("from_memory",)), False),
        (Wanted(kinds=("split", "recall")), True),
        (Wanted(kinds=("bids",)), False),
        (Wanted(correct=False, ops=("Add_memory",), stops=("finished",)), False),
    ],
    ids=str,
)
def test_all_that_is_asked_for_must_hold(wanted, held):
    calls = [call("Add_memory"), call("Add_memory", "DUPLICATE")], [call("Delete_memory", "UNKNOWN_ID")]
    one = trace(*calls, stop="context", kind="recall")
    assert wanted.holds(one) == held


def test_the_choice_in_words():
    wanted = Wanted(False, ("agemem",), ("Delete_memory", "pass"), ("UNKNOWN_ID",), ("turns",), ("no_answer",))
    assert str(wanted) == (
        "failed; method agemem; calls Delete_memory or pass; status UNKNOWN_ID; a stage ended because all turns made; "
        "Ran out of turns without an answer"
    )
    assert str(Wanted(kinds=("recall", "split"))) == "kind recall or split"
    assert str(Wanted()) == ""


def test_the_table_has_a_line_a_trace_and_no_more_than_asked_for():
    one = trace([call("Add_memory"), call("Add_memory"), call("act")], success=1.0, kind="bids")
    found = {3: [one, trace(), trace()]}
    lines = traces.table(found, most=2).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:7] == ["3", "0", "bids", "agemem", "+", "Add:2", "act:1"]
    assert lines[2].split()[:5] == ["3", "0", "-", "agemem", "-"]
    assert traces.kinds(found) == ["bids"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


def test_a_run_and_each_of_its_seeds_can_be_read(run):
    whole, config = traces.read(run)
    assert len(whole) > 1 and config["name"] == "tiny"
    for seed, rows in whole.items():
        assert traces.read(run / f"seed_{seed}")[0] == {seed: rows}


def test_baselines_that_are_trained_have_traces_in_folders_of_their_own(run, tmp_path):
    seed = tmp_path / "seed_0"
    (seed / "bm25_rl").mkdir(parents=True)
    (seed / "bm25_rl" / "traces_bm25_rl.json").write_text(json.dumps([trace(method="bm25_rl")]))
    for folder in (tmp_path, seed):
        assert [one["method"] for one in traces.read(folder)[0][0]] == ["bm25_rl"]
    (seed / "traces_agemem.json").write_text(json.dumps([trace()]))
    assert [one["method"] for one in traces.read(seed)[0][0]] == ["agemem", "bm25_rl"]


def test_a_folder_without_traces_is_refused(tmp_path):
    (tmp_path / "seed_0").mkdir()
    with pytest.raises(InputError, match="has no traces .*; give the folder of a run, as in --run=runs/tiny"):
        traces.read(tmp_path)


def test_the_command_makes_a_page_of_what_was_chosen(run, tmp_path):
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    flags = ["--failed", "--method=AGEMEM", "--kind=recall"]
    command = [sys.executable, "-m", "experiments.trace", f"--run={run}", *flags]
    done = subprocess.run(
        [*command, f"--page={page}", f"--out={figures}", "--most=1"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    whole, _ = traces.read(run)
    failed = [t for rows in whole.values() for t in rows if t["method"] == "agemem" and not t["success"]]
    assert failed and json.loads(figures.read_text()) == {"trajectories": len(failed), "tasks": 1, "page": str(page)}
    assert done.stdout.splitlines()[-1] == f"{len(failed)} trajectories; 1 tasks in {page}"
    html = page.read_text()
    assert html.count('class="task"') == 1 and "· recall, task " in html
    assert "Chosen: failed; kind recall; method agemem." in html
    assert "src=" not in html and "href=" not in html  # it loads nothing

    wrong = subprocess.run([*command, "--status=LOST"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --status=LOST: is none of ")
    wrong = subprocess.run([*command[:-1], "--kind=split"], cwd=ROOT, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "error: --kind=split: is none of recall\n")
