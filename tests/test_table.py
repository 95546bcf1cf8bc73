"""The table of methods and benchmarks from evaluations made by hand, what it refuses, and what it plays again."""

import contextlib
import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from agemem_jax.errors import InputError
from agemem_jax.report import table as shown
from agemem_jax.training import comparison
from agemem_jax.training.comparison import Cell, Plan, cells_of, figures, full_tokens
from agemem_jax.training.distributed import Preempted
from agemem_jax.training.evaluate import METHODS, Pass
from agemem_jax.training.loop import result_path
from configs import babyai, hotpotqa
from experiments import table as command

METHODS_HERE = ("no_memory", "full_context", "mem0_classic", "agemem")
# One seed, four tasks: mean 0.5, half width 1.96 * 0.57735 / 2.
HALF, HALF_WIDTH = [0.0, 1.0, 1.0, 0.0], 0.565803
QUARTER = [0.25] * 4
THREE = [1.0, 0.5, 0.5, 1.0]  # mean 0.75


def columns() -> dict:
    one, other = hotpotqa.get_config("tiny"), babyai.get_config("tiny")
    one.name = "<b>tiny</b>"
    one.prices.prompt, one.prices.generated = 2.0, 8.0
    return {"hotpotqa": one, "babyai": other}


def plan(seeds: int = 2, methods: tuple = METHODS_HERE) -> Plan:
    return Plan(columns(), methods, seeds)


def numbers(scores: list[float], metric: str, **more: float) -> dict:
    """What an evaluation keeps: the score, costs that are the same for every task."""
    counted = {"turns": 5, "prompt_tokens": 1000, "generated_tokens": 250, "context_tokens": 90, "peak_entries": 3}
    counted |= {"prompt_tokens_act": 1000, "generated_tokens_act": 250, "calls_act": 1, "generated_tokens_add": 0}
    counted |= {"prompt_tokens_add": 0, "calls_add": 0} | more
    return {metric: scores} | {name: [value] * len(scores) for name, value in counted.items()}


def keep(
    workdir: Path, plan: Plan, cell: Cell, way: str, kept: dict, seconds: float | None = None, roles: dict | None = None
) -> None:
    """Writes an evaluation as training.loop does."""
    config = plan.config(cell.benchmark, cell.seed)
    folder = cell.folder(workdir, config)
    folder.mkdir(parents=True, exist_ok=True)
    file = {
        "updates": config.rl.updates if METHODS[cell.method].trained else 0,
        "config": config.to_dict(), "identity": {"weights": "0"}, "numbers": kept,
        "batches": [{"tasks": 4, "seconds": None}, {"tasks": 4, "seconds": seconds}],
    }  # fmt: skip
    file |= {"roles": roles} if roles else {}
    result_path(folder, Pass(cell.method, way)).write_text(json.dumps(file))


def filled(workdir: Path, of: Plan) -> dict:
    """The figures of a folder in which all is played but agemem's second seed on babyai, and full_context there."""
    scores = {"no_memory": HALF, "full_context": [1.0] * 4, "mem0_classic": THREE, "agemem": THREE}
    for cell in cells_of(of):
        metric = {"hotpotqa": "progress", "babyai": "success"}[cell.benchmark]
        if cell == Cell("babyai", "agemem", 1) or (cell.benchmark, cell.method) == ("babyai", "full_context"):
            continue
        roles = {}
        if cell.method == "mem0_classic":
            roles = {"role_extract_calls": 4, "role_extract_valid": 3, "role_extract_prompt_tokens": 400}
            roles |= {"role_extract_generated_tokens": 50, "generated_tokens": 500, "generated_tokens_act": 450}
        for way in ("greedy", "sampled"):
            got = QUARTER if way == "sampled" else scores[cell.method]
            played = {"extract": {"compared": 8, "agreed": 2}} if roles and way == "greedy" else None
            keep(workdir, of, cell, way, numbers(got, metric, **roles), 2.0, played)
    for seed, seconds in (("seed_0", 50.0), ("seed_1", 70.0)):
        (workdir / "hotpotqa" / seed / "seconds.json").write_text(json.dumps({"train": seconds, "eval": 9.0}))
    (workdir / "hotpotqa" / "about.json").write_text('{"scores": {"progress": "token F1", "success": "exact match"}}')
    return figures(workdir, of)


@pytest.fixture
def found(tmp_path) -> dict:
    return filled(tmp_path, plan())


def test_scores_averages_and_what_is_missing(found):
    cells = found["cells"]
    assert cells["hotpotqa"]["no_memory"]["mean"] == 0.5
    assert cells["hotpotqa"]["no_memory"]["ci95"] == pytest.approx(HALF_WIDTH, rel=1e-5)
    counts = {m: (c["evaluations"], c["wanted"]) for m, c in cells["babyai"].items()}
    assert counts == {"no_memory": (1, 1), "mem0_classic": (1, 1), "agemem": (1, 2)}
    assert cells["hotpotqa"]["agemem"]["seeds"] == [0.75, 0.75] and found["one_policy"] == [*METHODS_HERE[:3]]
    average = found["average"]
    assert set(average) == {"no_memory", "mem0_classic", "agemem"}  # full_context lacks a benchmark
    assert average["mem0_classic"]["mean"] == 0.75 and average["no_memory"]["mean"] == 0.5
    assert average["no_memory"]["ci95"] == pytest.approx(math.sqrt(2) * HALF_WIDTH / 2, rel=1e-5)
    assert found["sampled"]["average"]["agemem"]["mean"] == 0.25
    about = found["benchmarks"]
    assert about["hotpotqa"]["score"] == "token F1" and about["babyai"]["score"] == "success"
    assert about["hotpotqa"]["tasks"] == 4


def test_costs_stand_beside_each_score(found):
    cells = found["cells"]["hotpotqa"]
    costs = cells["agemem"]["costs"]
    assert (costs["policy_calls"], costs["prompt_tokens"], costs["generated_tokens"]) == (5, 1000, 250)
    assert costs["seconds"] == 0.5  # 2 s for 4 tasks; what compiled does not count
    assert costs["training_seconds"] == 60 and cells["no_memory"]["costs"]["training_seconds"] is None
    assert costs["points_per_million"] == pytest.approx(100 * 0.25 / (1250 / 1e6))
    assert costs["dollars"] == pytest.approx(1000 * (1000 * 2 + 250 * 8) / 1e6)
    assert cells["no_memory"]["costs"]["points_per_million"] == 0
    assert costs["peak_store_tokens"] is None  # an older evaluation has not counted it
    assert cells["agemem"]["operations"] == {
        "act": {"calls": 1, "prompt_tokens": 1000, "generated_tokens": 250, "share": 1}
    }
    assert cells["mem0_classic"]["roles"] == {
        "extract": {
            "calls": 4, "prompt_tokens": 400, "generated_tokens": 50, "valid": 0.75, "right": 0.25, "share": 0.1
        }
    }  # fmt: skip
    sampled = found["sampled"]["cells"]["hotpotqa"]  # traces, which are read for the rest, are greedy
    assert sampled["mem0_classic"]["roles"]["extract"]["right"] is None
    assert "context_by_turn" in cells["agemem"] and "context_by_turn" not in sampled["agemem"]
    average = found["costs"]
    assert average["mem0_classic"]["generated_tokens"] == 500 and average["agemem"]["seconds"] == 0.5
    assert average["agemem"]["dollars"] is None  # one of the benchmarks has no prices
    assert average["agemem"]["points_per_million"] == pytest.approx(100 * 0.25 / (1250 / 1e6))
    assert "full_context" not in average


def test_rows_of_text_mark_the_best_and_show_what_is_missing(found):
    rows = shown.score_rows(found, "greedy", lambda text: f"{text}*", str)
    assert rows[0] == ["greedy", "hotpotqa", "babyai", "average"]
    by_method = {row[0]: row[1:] for row in rows[1:]}
    assert by_method["no_memory†"] == ["50.0 ± 56.6", "50.0 ± 56.6", "50.0 ± 40.0"]
    assert by_method["full_context†"] == ["100.0 ± 0.0", "–", "–"]
    assert by_method["mem0_classic†"] == ["75.0 ± 28.3*", "75.0 ± 28.3*", "75.0 ± 20.0*"]
    # As high, but for a seed that is missing.
    assert by_method["agemem"] == [
        "75.0 ± 28.3*", "75.0 ± 28.3 (1 of 2 seeds)", "75.0 ± 20.0 (3 of 4 seeds)"
    ]  # fmt: skip
    costs = shown.cost_rows(found, "greedy")
    assert costs[0][:4] == ["an episode, greedy", "policy calls", "tokens read", "tokens written"]
    assert "dollars for 1,000 episodes" not in costs[0] and [row[0] for row in costs[1:]] == list(found["costs"])
    assert costs[1][:4] == ["no_memory", "5.0", "1,000", "250"]


def test_csv_and_markdown(found):
    lines = list(csv.DictReader(io.StringIO(shown.as_csv(found))))
    by = {(one["decoding"], one["method"], one["benchmark"]): one for one in lines}
    assert len(by) == len(lines) == 2 * (4 + 3 + 3)
    one = by["greedy", "agemem", "babyai"]
    assert (one["points"], one["evaluations"], one["prompt_tokens"], one["dollars"]) == ("75", "1", "1000", "")
    assert by["greedy", "no_memory", "average"]["ci95"] == "40.0083"
    text = shown.markdown(found)
    assert "| Mem0 1.x† | **75.0 ± 28.3** | **75.0 ± 28.3** | **75.0 ± 20.0** |" in text
    assert "| Full context† | 100.0 ± 0.0 | – | – |" in text
    assert "- babyai: success in points of 100, 4 unseen tasks (babyai-tiny)" in text
    assert "(&lt;b&gt;tiny&lt;/b&gt;)" in text


def test_the_page_holds_the_numbers_and_escapes_names(found, tmp_path):
    shown.write(found | {"command": "python -m experiments.table --x=<i>"}, tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    assert "<b>tiny</b>" not in page and "&lt;b&gt;tiny&lt;/b&gt;" in page and "--x=&lt;i&gt;" in page
    assert '<td class="best"><b>75.0</b>' in page and "20,000" in page and "4.000" in page and "1 of 2 seeds" in page
    assert "role: extract" in page and "<td>75.0 %</td><td>25.0 %</td>" in page
    assert "https://" not in page and "<script" not in page
    assert "intervals overlap" in page and page.count("<section") == 4
    assert shown.best(found, "greedy", "hotpotqa") == {"mem0_classic", "agemem"}


def test_a_table_of_nothing_says_so(tmp_path):
    nothing = figures(tmp_path, plan())
    assert nothing["cells"] == nothing["average"] == {} and nothing["benchmarks"]["babyai"]["tasks"] is None
    shown.write(nothing, tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    assert "Nothing was played yet" in page and "no average can be compared" in page
    assert all(set(row[1:]) == {"–"} for row in shown.score_rows(nothing, "sampled", str, str)[1:])


def test_evaluations_of_another_config_are_not_counted(tmp_path):
    of = plan(1, ("agemem",))
    cell = Cell("hotpotqa", "agemem", 0)
    keep(tmp_path, of, cell, "greedy", numbers(HALF, "progress"))
    assert cell.evaluations(tmp_path, of).keys() == {"greedy"} and not cell.is_finished(tmp_path, of)
    for name, value in (("rl.updates", 7), ("store.entries", 9), ("task.path", "elsewhere"), ("train.eval_tasks", 8)):
        other = plan(1, ("agemem",))
        other.columns["hotpotqa"].update_from_flattened_dict({name: value})
        assert not cell.evaluations(tmp_path, other), name
    priced = plan(1, ("agemem",))
    priced.columns["hotpotqa"].prices.prompt = 99.0
    assert cell.evaluations(tmp_path, priced)


def test_contexts_are_averaged_turn_by_turn(tmp_path):
    for folder, lengths in (("a", [[10, 30], [20]]), ("b", [[60, 70]])):
        traces = [{"turns": [{"context_tokens": n} for n in one]} for one in lengths]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "traces_agemem.json").write_text(json.dumps(traces))
    assert comparison.context_by_turn("agemem", [tmp_path / "a", tmp_path / "b", tmp_path / "c"]) == [30, 50]


def test_tokens_of_full_contexts_follow_from_the_sizes():
    config = babyai.get_config("tiny")  # 8 + 13 messages, 6 actions, contexts of 216, turns of 34
    config.train.eval_tasks, config.rl.updates = 10, 3
    config.rl.tasks_per_update, config.rl.group_size = 2, 4
    acting = 6 * (216 + 34)
    assert full_tokens(config, "no_memory") == {"evaluation": 20 * acting, "training": 0}
    assert full_tokens(config, "no_memory_rl") == {"evaluation": 20 * acting, "training": 24 * acting}
    told = 6 * (216 + 21 * 20 + 34)
    assert full_tokens(config, "full_context") == {"evaluation": 20 * told, "training": 0}
    whole = (6 + 21 + 3 * 2) * (216 + 34)
    assert full_tokens(config, "agemem") == {"evaluation": 20 * whole, "training": 24 * whole}
    reading = 21 * 2 * (216 + config.methods.answer_tokens)
    assert full_tokens(config, "mem0_classic") == {"evaluation": 20 * (acting + reading), "training": 0}


def test_a_plan_survives_its_file():
    of = plan()
    again = Plan.from_json(json.loads(json.dumps(of.to_json())))
    assert again.methods == of.methods and again.columns["babyai"].task.parts == of.columns["babyai"].task.parts
    assert [str(c) for c in cells_of(again)] == [str(c) for c in cells_of(of)]
    assert [str(c) for c in cells_of(plan(2, ("no_memory", "agemem")))][:3] == [
        "hotpotqa, no_memory, seed 0", "hotpotqa, agemem, seed 0", "hotpotqa, agemem, seed 1"
    ]  # fmt: skip


TINY = "configs/tiny.py"
NOTICE = contextlib.nullcontext(lambda: False)


@pytest.mark.parametrize(
    ("files", "settings", "told"),
    [
        ([], [], "--configs is empty"),
        (["configs/none.py"], [], "--configs: configs/none.py: there is no such file"),
        (["configs/babyai.py:large"], [], "there is one variant, 'tiny'"),
        ([TINY, "configs/hotpotqa.py:tiny"], [], "hotpotqa.py:tiny is of hotpotqa, as one before it"),
        (
            [TINY],
            ["rl.updates"],
            "--set=rl.updates: give FIELD=VALUE or BENCHMARK.FIELD=VALUE; benchmarks are hotpotqa",
        ),
        (
            [TINY],
            ["rl.update=3"],
            "--set=rl.update=3: rl.update = '3': there is no such field; did you mean rl.updates",
        ),
        ([TINY], ["rl.updates=many"], "--set=rl.updates=many: rl.updates = 'many': a whole number is needed"),
        ([TINY], ["hotpotqa.rl.group_size=1"], "hotpotqa: rl.group_size = 1: a group needs at least 2"),
        ([TINY], ["babyai.rl.updates=2"], "there is no such field"),
        ([TINY], ["task.benchmark=pddl"], "task.benchmark of hotpotqa stays"),
        ([TINY], ["task.parts=(1,"], "--set=task.parts=(1,: "),
        ([TINY], ["task.parts=('a')"], "--set=task.parts=('a'): a tuple is needed, such as ('a',)"),
        ([TINY], ["hotpotqa=1"], "--set=hotpotqa=1: hotpotqa = '1': there is no such field"),
        ([TINY], ["num_seeds=5"], "--set=num_seeds=5: --seeds says how many"),
        ([TINY], ["task.parts=(1,)"], "hotpotqa: task.parts = (1,): a tuple of texts is needed"),
        ([TINY], ["prices.prompt=-1"], "hotpotqa: prices.prompt = -1.0: must be at least 0"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_built(files, settings, told, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(InputError) as refused:
        command.configs(files, settings, 2)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_settings_reach_one_config_or_all(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parent.parent)
    files = [TINY, "configs/babyai.py:tiny"]
    settings = ["rl.updates=9", "seed=7", "babyai.task.parts=a,b", "hotpotqa.task.path=x=1.json"]
    settings += ["train.baselines=false"]
    found = command.configs(files, settings, 5)
    assert {(c.rl.updates, c.seed, c.num_seeds) for c in found.values()} == {(9, 7, 5)}
    assert found["babyai"].task.parts == ("a", "b") and found["hotpotqa"].task.parts == ()
    assert found["hotpotqa"].task.path == str(Path.cwd() / "x=1.json") and found["babyai"].task.path == ""


def test_methods_are_known_and_trained_ones_learn():
    assert command.methods(["amem", "agemem"]) == ("amem", "agemem") and set(command.COMPARED) < set(METHODS)
    for names, told in ((["agemm"], "--methods=agemm: is none of"), (["amem", "amem"], "each once"), ([], "name some")):
        with pytest.raises(InputError, match=told):
            command.methods(names)
    of = plan(1, ("no_memory", "agemem"))
    of.columns["babyai"].rl.updates = 0
    with pytest.raises(InputError, match="rl.updates = 0: babyai: agemem would learn nothing"):
        command.check(of)
    of = plan(1, ("bm25_rl", "store_all_rl"))
    command.check(of)
    assert of.columns["babyai"].train.baselines
    of = plan(1, ("bm25_rl", "agemem"))
    command.check(of)
    assert not of.columns["babyai"].train.baselines


class Runs:
    """In place of what builds, trains and plays: evaluations come at once, and what was asked for is noted."""

    def __init__(self, monkeypatch, workdir: Path, of: Plan, stop_after: int = 99):
        self.workdir, self.plan, self.stop_after = workdir, of, stop_after
        self.identity = {"weights": "0"}
        self.built, self.played, self.learns = [], [], []
        monkeypatch.setattr(command, "build", self.build)
        monkeypatch.setattr(command, "train", self.train)
        monkeypatch.setattr(command, "evaluate_ways", self.evaluate_ways)

    def build(self, config, like=None, learns=True):
        self.built.append((config.task.benchmark, config.seed, like is not None))
        self.learns.append(learns)
        scores = type("Tasks", (), {"scores": {"success": "success", "progress": "progress"}})
        source = type("Source", (), {"tasks": scores})
        parts = {"config": config, "source": source, "identity": self.identity, "readings": lambda _, name: None}
        return type("Run", (), parts)()

    def train(self, run, folder, stop, method, only):
        assert [one.name for one in only] == [f"{method}-greedy", f"{method}-sampled"]
        self.note(run, folder, method)

    def evaluate_ways(self, run, folder, method, updates, start, stop):
        assert updates == 0 and not METHODS[method].trained
        self.note(run, folder, method)

    def note(self, run, folder, method):
        if len(self.played) == self.stop_after:
            raise Preempted("stopped")
        benchmark = run.config.task.benchmark
        cell = Cell(benchmark, method, run.config.seed - self.plan.columns[benchmark].seed)
        assert folder == cell.folder(self.workdir, run.config)
        self.played.append(str(cell))
        metric = {"hotpotqa": "progress", "babyai": "success"}[benchmark]
        for way in ("greedy", "sampled"):
            keep(self.workdir, self.plan, cell, way, numbers(HALF, metric))


def test_a_finished_cell_never_runs_again_and_its_benchmark_is_not_built(monkeypatch, tmp_path, capsys):
    of = plan(2, ("no_memory", "bm25_rl", "agemem"))
    first = Runs(monkeypatch, tmp_path, of, stop_after=5)
    with pytest.raises(Preempted):
        command.make(of, tmp_path, NOTICE)
    assert first.built == [("hotpotqa", 0, False), ("babyai", 0, False), ("hotpotqa", 1, True)]
    assert first.played == [
        "hotpotqa, no_memory, seed 0", "hotpotqa, bm25_rl, seed 0", "hotpotqa, agemem, seed 0",
        "hotpotqa, bm25_rl, seed 1", "hotpotqa, agemem, seed 1",
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert re.search(r"10 of 10 cells are left; [\d,.]+M tokens, read and written, for the others, were all", told)
    assert re.search(r"cell 1 of 10: hotpotqa, no_memory, seed 0 \([\d,.]+M? tokens, were its contexts full\)", told)
    assert "cell 4 of 10: hotpotqa, bm25_rl, seed 1 (about 0s, as another seed took)" in told
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["cells"]["hotpotqa"]["agemem"]["seeds"] == [0.5, 0.5] and "babyai" not in found["cells"]
    assert (tmp_path / "hotpotqa" / "seed_1" / "bm25_rl" / "evaluation_bm25_rl-greedy.json").exists()

    second = Runs(monkeypatch, tmp_path, of)
    monkeypatch.setattr(command.out, "write", lambda figures: None)
    command.make(of, tmp_path, NOTICE)
    assert second.built == [("babyai", 0, False), ("babyai", 1, True)] and len(second.played) == 5
    assert all(cell.startswith("babyai") for cell in second.played)

    third = Runs(monkeypatch, tmp_path, of)
    command.make(of, tmp_path, NOTICE)
    assert third.built == third.played == [] and "0 of 10 cells are left" in capsys.readouterr().out
    assert all((tmp_path / f"table.{kind}").stat().st_size > 100 for kind in ("json", "csv", "md", "html"))
    kept = command.known_plan(tmp_path)
    command.show(tmp_path, Plan.from_json(kept), kept["command"])
    printed = capsys.readouterr().out
    assert "50.0 ± 56.6" in printed and "no_memory†" in printed and str(tmp_path / "table.html") in printed
    assert json.loads((tmp_path / "table.json").read_text())["average"]["agemem"]["mean"] == 0.5


def test_where_nothing_is_left_to_train_no_program_learns(monkeypatch, tmp_path):
    monkeypatch.setattr(command.out, "write", lambda figures: None)
    trained = plan(1, ("no_memory", "agemem"))
    runs = Runs(monkeypatch, tmp_path, trained)
    command.make(trained, tmp_path, NOTICE)
    assert runs.learns == [True, True]
    untrained = plan(1, ("no_memory", "agemem", "agemem_norl"))
    runs = Runs(monkeypatch, tmp_path, untrained)
    command.make(untrained, tmp_path, NOTICE)
    assert runs.learns == [False, False] and len(runs.played) == 2


@pytest.fixture
def half_played(monkeypatch, tmp_path):
    """A table of which one benchmark was played, and who goes on with it."""
    monkeypatch.setattr(command.out, "write", lambda figures: None)
    of = plan(1, ("no_memory", "agemem"))
    Runs(monkeypatch, tmp_path, of, stop_after=2)
    with pytest.raises(Preempted):
        command.make(of, tmp_path, NOTICE)
    return lambda of: Runs(monkeypatch, tmp_path, of)


def files_of(workdir: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in workdir.rglob("*") if path.is_file()}


def test_a_finished_cell_is_not_played_over_with_another_config_or_other_inputs(half_played, tmp_path):
    before = files_of(tmp_path)
    other = plan(1, ("no_memory", "agemem"))
    other.columns["hotpotqa"].store.entries = 9
    runs = half_played(other)
    told = r"hotpotqa: .*evaluation_no_memory-greedy.json is of another config: store.entries is 9, was 3. Set these"
    with pytest.raises(InputError, match=told):
        command.make(other, tmp_path, NOTICE)
    same = plan(2, ("no_memory", "agemem"))  # of the first benchmark, a seed is left
    again = half_played(same)
    again.identity = {"weights": "1"}
    with pytest.raises(InputError, match="evaluation_no_memory-greedy.json: the weights that .* are others"):
        command.make(same, tmp_path, NOTICE)
    assert runs.played == again.played == [] and files_of(tmp_path) == before
    longer = plan(1, ("no_memory", "agemem"))  # what an evaluation is of, and how long is trained, may change
    longer.columns["hotpotqa"].update_from_flattened_dict({"train.eval_tasks": 5, "rl.updates": 999})
    runs = half_played(longer)
    command.make(longer, tmp_path, NOTICE)
    assert len(runs.played) == 4


def test_a_table_goes_on_where_its_files_have_moved(half_played, tmp_path):
    moved = plan(1, ("no_memory", "agemem"))
    moved.columns["hotpotqa"].policy.weights = "elsewhere"
    runs = half_played(moved)
    command.make(moved, tmp_path, NOTICE)
    assert runs.played == ["babyai, no_memory, seed 0", "babyai, agemem, seed 0"]
    found = figures(tmp_path, moved)
    assert set(found["cells"]["hotpotqa"]) == set(found["average"]) == {"no_memory", "agemem"}


def test_a_folder_without_a_table_is_told(tmp_path):
    with pytest.raises(InputError, match="there is no plan.json in it"):
        command.known_plan(tmp_path)


def test_seconds_of_a_cell_are_those_of_all_its_starts(tmp_path):
    cell = Cell("babyai", "agemem", 0)

    def stopped():
        raise Preempted("")

    with pytest.raises(Preempted):
        command.timed(tmp_path, cell, stopped)
    first = command.measured(tmp_path)[str(cell)]
    assert command.timed(tmp_path, cell, lambda: np.linalg.inv(np.eye(50))) > first > 0
