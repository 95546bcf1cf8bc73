"""The report: one page made from a run's files, self-contained, escaped, right about where a trajectory went wrong."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_run import CONFIG, GOLD, TraceWriter, add, ending, make_run, summary

from agemem_jax.errors import InputError
from agemem_jax.report import charts, page
from agemem_jax.report.diagnosis import KINDS, diagnose, examine, holds
from agemem_jax.report.trace_view import choose, context_changes, said_pieces, store_changes

ROOT = Path(__file__).parent.parent
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Collects ids, text, what a page would load, and whether its tags are balanced."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.ids, self.loads, self.tags, self.errors, self.text = [], set(), [], set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids.add(attrs.get("id"))
        self.loads += [attrs[name] for name in ("src", "href", "srcset", "data", "poster") if attrs.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def html(run) -> str:
    path = page.write(run)
    assert path == run / "report.html"
    return path.read_text()


def test_the_page_is_self_contained(html):
    reader = Reader(html)
    assert not re.search(r"https?:|//www|@import|url\(", html)
    assert all(link.startswith("#") for link in reader.loads)
    assert not {"link", "iframe", "img", "object", "embed", "base"} & reader.tags
    assert reader.errors == [] and reader.open == []


def test_every_section_is_there(html):
    reader = Reader(html)
    assert {"results", "before-after", "tools", "curves", "traces", "setup"} <= reader.ids
    for text in (
        "no_memory", "agemem_norl", "AgeMem after RL", "48.7", "±", "Memory quality", "Context tokens",
        "Total reward", "Storage", "stage 1 · weight 0.333", "switched off", "KL to the reference", "Entropy",
        "Clip fraction", "Generated tokens/s", "Segments per trajectory", "Zero-variance groups", "an_extra_key",
        "Retrieve_memory", "Silver River was written by Ada Keller", "Context after: ", "--config=configs/tiny.py",
        "0.10.2", "group_size", "Texts cut to their limits: 3.4 % of messages.",
        "changed (212)", "sampled as in training", "changed: 212 tasks", "21.2", "misled: 0 tasks",
        "evaluated once, and its interval is over the tasks alone",
        "Stage 1 ended: all turns made.", "Stage 3 ended: the task was over.",
    ):  # fmt: skip
        assert text in reader.text, text
    for outcome in ("Learned", "Still wrong", "Unlearned"):
        assert f'data-outcome="{outcome}"' in html
    for mark in ("added", "updated", "hit"):
        assert f'class="entry {mark}"' in html


def test_the_page_has_a_chart_for_every_metric_and_none_for_missing_ones(html):
    assert "over updates" in html and 'aria-label="Total reward over updates"' in html
    assert "Gradient norm over updates" not in html  # null throughout
    assert html.count("<svg ") == html.count("</svg>") > 20


def test_texts_are_escaped(tmp_path):
    make_run(tmp_path, seeds=1, updates=3)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    trace = ending("wrong_answer")
    trace |= {"question": evil, "answer": evil, "action": evil, "gold": [evil]}
    trace["turns"][0] |= {"said": f"<think>{evil}</think><tool_call>", "saw": [{"role": "user", "text": evil}]}
    trace["turns"][0]["calls"] = [add(evil)]
    trace["turns"][0]["store"] = [{"id": 1, "text": evil, "tags": {evil: evil}, "hits": 0}]
    trace["terms"] = {evil: 1.0}
    (tmp_path / "seed_0/traces.json").write_text(json.dumps([trace]))
    (tmp_path / "seed_0/metrics.jsonl").write_text(json.dumps({"update": 1, f"term/{evil}": 0.5, evil: 1.0}))
    (tmp_path / "summary.json").write_text(json.dumps(summary(seeds=1) | {"name": evil, "command": evil}))
    html = page.write(tmp_path).read_text()
    reader = Reader(html)
    assert "alert(1)</script>" not in html and "<img" not in html and "<think>" not in html
    assert html.count("<script>") == 2 and reader.errors == []
    assert "<think>" in reader.text and evil in reader.text


@pytest.mark.parametrize(
    "odd",
    ["half \ud800 pair", "\0\x1b\x9f", "\u202e right to left", " " * 200_000 + ".", "<|" * 50_000],
    ids=["surrogate", "control", "direction", "spaces", "marks"],
)
def test_odd_and_long_texts_make_a_page(tmp_path, odd):
    make_run(tmp_path, seeds=1, updates=3)
    trace = ending("wrong_answer")
    trace |= {"question": odd, "answer": odd, "action": odd, "gold": [odd]}
    message = {"role": "user", "text": odd, "pinned": False}
    trace["turns"][0] |= {"said": odd, "saw": [message], "context": [message], "calls": [add(odd)]}
    (tmp_path / "seed_0/traces.json").write_text(json.dumps([trace]))
    reader = Reader(page.write(tmp_path).read_text(encoding="utf-8"))
    assert reader.errors == [] and odd.replace("\ud800", "?").strip() in reader.text


@pytest.mark.parametrize(
    ("scores", "bearing", "part"),
    [
        (((0.08, 0.01), (0.12, 0.02), (0.48, 0.03)), "apart", "36.0 points above the warm start (intervals apart)"),
        (((0.08, 0.01), (0.40, 0.05), (0.44, 0.05)), "", "4.0 points above the warm start (intervals overlap)"),
        (((0.08, 0.01), (0.40, 0.02), (0.30, 0.02)), "below", "10.0 points below the warm start (intervals apart)"),
        (((0.08, 0.01), (0.40, float("nan")), (0.60, 0.02)), "", "20.0 points above the warm start (no interval)"),
    ],
)
def test_the_gain_is_stated_as_it_is(scores, bearing, part):
    run = summary(scores)
    assert part in page.verdict(run)
    assert page.bearing(page.gains(run)) == bearing
    assert ("does not establish" in page.verdict(run)) == ("overlap" in part)


def test_one_seed_says_what_its_interval_is_worth():
    assert "nothing about the spread between seeds" in page.interval_note(summary(seeds=1))
    assert "over 3 seeds" in page.interval_note(summary(seeds=3))


def test_a_bare_summary_makes_a_page_that_says_what_is_missing(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"methods": {}}))
    text = Reader(page.write(tmp_path).read_text()).text
    for sentence in ("no task score", "No method was evaluated", "no curves", "no traces", "no config.json",
                     "command was not recorded", "environment was not recorded", "No tool was masked"):  # fmt: skip
        assert sentence in text, sentence
    page.write_picture(tmp_path, tmp_path / "picture.png")


def test_a_tool_is_worth_what_its_absence_costs():
    update, filtering = page.tools_worth(summary())
    assert (update.tool, [str(v) for v in update.on_part + update.on_all]) == (
        "Update_memory", ["21.2", "21.2", "9.1", "9.1"]
    )  # fmt: skip
    assert update.on_part[0].half_width == "5.1"
    assert filtering.on_part == [None, None] and str(filtering.on_all[0]) == "9.1"  # no task was made for it
    assert page.tools_worth({"methods": {}}) == []


def test_the_task_score_is_named_and_not_shown_twice(run):
    named = summary() | {"task_metric": "progress"}
    assert page.score_metric(named) == "token F1" and page.score_metric(summary()) == ""
    headings = [
        label for label, _ in page.contents(dataclasses.replace(page.load(run), summary=named))["result_columns"]
    ]
    assert "Task score" in headings and "Token F1" not in headings


def test_traces_may_be_in_several_files(tmp_path):
    make_run(tmp_path, seeds=1, updates=1)
    folder = tmp_path / "seed_0"
    traces = json.loads((folder / "traces.json").read_text())
    (folder / "traces.json").unlink()
    for method in ("agemem", "agemem_norl"):
        (folder / f"traces_{method}.json").write_text(json.dumps([t for t in traces if t["method"] == method]))
    assert len(page.load(tmp_path).traces[0]) == 10


def test_sequential_schedule_shows_the_stages(tmp_path):
    make_run(tmp_path, seeds=1, updates=6)
    lines = [{"update": u, "stage": (u + 1) // 2, "reward": 0.1 * u} for u in range(1, 7)]
    (tmp_path / "seed_0/metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert page.stage_bands(page.load(tmp_path).metrics) == [(1, 2, 1), (3, 4, 2), (5, 6, 3)]
    assert page.write(tmp_path).read_text().count('class="band s2"') == 1


def test_records_of_the_same_update_are_put_together(tmp_path):
    make_run(tmp_path, seeds=1, updates=2)
    lines = [{"update": 2, "reward": 0.1}, {"update": 1, "reward": 0.0}, {"step": 2, "eval/progress": 0.5}]
    (tmp_path / "seed_0/metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    rows = page.load(tmp_path).metrics[0]
    assert rows == [{"update": 1, "reward": 0.0}, {"update": 2, "reward": 0.1, "step": 2, "eval/progress": 0.5}]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("summary.json", None, ("summary.json is missing", "experiments.train")),
        ("summary.json", "{", ("summary.json cannot be read", "Delete summary.json")),
        ("summary.json", "[]", ("summary.json holds a list",)),
        ("summary.json", "{}", ("summary.json has no `methods`",)),
        ("config.json", "{]", ("config.json cannot be read",)),
        ("seed_0/metrics.jsonl", '{"update": 1}\n{"upd', ("metrics.jsonl, line 2", "Delete that line")),
        ("seed_0/metrics.jsonl", '{"reward": 1}', ("metrics.jsonl, line 1", "update")),
        ("seed_0/traces.json", "[", ("traces.json cannot be read",)),
        ("seed_0/traces.json", "[1]", ("traces.json: trace 0",)),
    ],
)
def test_a_bad_file_is_named_with_the_remedy(tmp_path, name, text, words):
    make_run(tmp_path, seeds=1, updates=1)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        page.write(tmp_path)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "not_told"])
def test_the_diagnosis_names_the_first_broken_link(kind):
    trace = ending(kind, "no_memory" if kind == "no_memory" else "agemem")
    assert examine(trace).kind == kind
    assert diagnose(trace).startswith(KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("from_memory", ("both gold facts in view", "stage 3, turn 2")),
        ("unsupported", ("a guess",)),
        ("no_memory", ("had left the context when the question came", "“Old Brindle” could only be a guess")),
        ("malformed", ("1 turn did not parse",)),
        ("not_stored", ("“Ada Keller was born in Halden” (told in stage 1, turn 4) was never", "Retrieve_memory")),
        ("store_full", ("the store was full (2 entries, 1 of them no supporting fact)",)),
        ("lost", ("stored in stage 1, turn 4 as entry 3, but overwritten in stage 3, turn 1",)),
        ("not_retrieved", ("not retrieved in stage 3 (1 retrieval made)",)),
        ("dropped", ("back in view in stage 3, turn 1, but removed",)),
        ("no_answer", ("Both gold facts had come into view",)),
        ("no_room", ("ended without an answer", "no segment was left (context.max_segments)")),
        ("not_reached", ("progress 0.50", "The last action was “Old Brindle”.")),
        ("wrong_answer", ("both gold facts in view, but “Old Brindle” differs from “Halden”",)),
    ],
)
def test_the_diagnosis_says_what_happened(kind, words):
    text = diagnose(ending(kind, "no_memory" if kind == "no_memory" else "agemem"))
    assert all(word in text for word in words), text


def test_a_deleted_fact_that_is_stored_again_is_not_lost():
    writer = TraceWriter()
    writer.step(GOLD[0], add(GOLD[0]))
    writer.step(GOLD[1], {"op": "Delete_memory", "arguments": {"memory_id": 1}, "status": "OK", "status_text": ""})
    lost = examine(writer.trace() | {"gold": [GOLD[0]]}).facts[0]
    assert str(lost.lost) == "stage 1, turn 2" and lost.lost_by == "Delete_memory"
    writer.step(None, add(GOLD[0]))
    assert examine(writer.trace() | {"gold": [GOLD[0]]}).facts[0].lost is None


def test_a_fact_that_was_never_told_and_an_empty_trace():
    trace = ending("wrong_answer") | {"gold": ["Green Door was written by Milo Varga"]}
    assert examine(trace).kind == "not_told"
    assert examine({"turns": [], "action": None}).kind == "no_answer"
    assert examine({"turns": [], "success": 1}).kind == "unsupported"


def test_a_fact_is_held_by_one_entry_not_by_several():
    assert holds("I read this: Ada Keller was born in Halden.", GOLD[1])
    assert not holds("Ada Keller was born in 1950", GOLD[1])
    assert not holds("1: Ada Novak was born in Halden 2: Hugo Keller was born in Brindle", GOLD[1])
    assert not holds("Ada Novak was born in Halden\nHugo Keller was born in Brindle", GOLD[1])
    assert holds("12 : Hugo Keller was born in Brindle 3 : Ada Keller was born in Halden", GOLD[1])
    assert not holds("Hugo Keller was born in Brindle Ada Novak was born in Halden", GOLD[1])
    assert holds("We talked. Hugo Keller was born in Brindle. By the way: Ada Keller was born in Halden", GOLD[1])


def test_store_changes_mark_every_entry():
    def entry(i: int, text: str, hits: int = 0) -> dict:
        return {"id": i, "text": text, "tags": {}, "hits": hits}

    before = [entry(1, "kept"), entry(2, "old"), entry(3, "gone"), entry(4, "read")]
    after = [entry(1, "kept"), entry(2, "new"), entry(4, "read", 1), entry(5, "fresh")]
    views = {view.id: view for view in store_changes(before, after, gold=["fresh"])}
    assert {i: view.mark for i, view in views.items()} == {1: "", 2: "updated", 3: "deleted", 4: "hit", 5: "added"}
    assert views[2].old_text == "old" and views[5].gold and not views[1].gold


def test_context_changes_mark_new_and_removed_messages():
    a, b, c = ({"role": "user", "text": text, "pinned": False} for text in ("a" * 500, "b", "c"))
    changed = context_changes([a, b], [a, c])
    assert [message["mark"] for message in changed] == ["", "removed", "new"]
    assert len(changed[0]["text"]) <= 160  # it stayed: shown in full before


def test_a_fact_that_only_the_answering_turn_mentions_was_not_in_view():
    trace = ending("not_stored")
    said = f"<think>{GOLD[1]}</think><answer> Old Brindle</answer>"
    trace["turns"][-1]["said"] = said
    trace["turns"][-1]["context"][-1]["text"] = said
    assert examine(trace).kind == "not_stored"


def test_what_was_said_is_cut_at_its_tags_and_nothing_is_lost():
    said = "<think>so <b>?</think><answer> Halden</answer>"
    assert "".join(piece for _, piece in said_pieces(said)) == said
    assert ("think", "so <b>?") in said_pieces(said) and ("text", " Halden") in said_pieces(said)


def test_shown_tasks_hold_successes_and_failures(run):
    tasks = choose(page.load(run).traces, limit=6, weights=page.term_weights(CONFIG["reward"]))
    assert len(tasks) == 6 and {task.outcome for task in tasks} == {"Learned", "Still wrong", "Unlearned"}
    assert [variant.method for variant in tasks[0].variants] == ["no_memory", "agemem_norl", "agemem"]
    terms = {term.name: term for term in tasks[0].variants[-1].terms}
    assert terms["task"].part == terms["task"].value == 1.0 and terms["preventive"].weight == 0


def test_charts_skip_missing_values_and_span_the_data():
    assert charts.line_chart("x", [[], []]) is None
    chart = charts.line_chart("x", [[(1, -3.0)], [(1, 2.0), (9, 4.0)]])
    assert (chart.begin, chart.end) == ("−0.5", "4")
    assert charts.nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert len(charts.nice_ticks(5, 5)) >= 2
    assert charts.smooth([(u, 1.0) for u in range(50)]) == [(u, 1.0) for u in range(50)]
    assert [charts.number(v) for v in (None, float("nan"), -0.0, 1234.5, 4e-5, -0.25)] == [
        "–", "–", "0", "1,234", "4.0e−5", "−0.25",
    ]  # fmt: skip


def test_the_picture_is_a_png(run, tmp_path):
    path = page.write_picture(run, tmp_path / "docs" / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_command_needs_no_jax_and_names_what_is_missing(run, tmp_path):
    code = (
        "import sys; from agemem_jax.report import page; page.write(sys.argv[1], sys.argv[2]);"
        "assert not {'jax', 'flax', 'matplotlib'} & set(sys.modules)"
    )
    out = tmp_path / "page.html"
    subprocess.run([sys.executable, "-c", code, str(run), str(out)], cwd=ROOT, check=True)
    assert out.exists()
    command = [sys.executable, "-m", "experiments.report", f"--workdir={tmp_path / 'nowhere'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "summary.json is missing" in done.stderr and "Traceback" not in done.stderr


def test_a_retrieval_that_finds_a_fact_counts_even_where_the_context_is_not_recorded():
    trace = ending("from_memory")
    for turn in trace["turns"]:
        turn["context"] = []
    assert all(str(fact.retrieved).startswith("stage 3") for fact in examine(trace).facts)


def attribution(traces: list[dict], effects: dict[str, float]) -> dict:
    """What experiments/attribute.py writes, of the trained agent's calls: each tool's calls were worth the same."""
    calls = [
        {"task": trace["task"], "stage": turn["stage"], "turn": turn["turn"], "call": place, "effect": effects[c["op"]],
         "op": c["op"], "arguments": c["arguments"]}
        for trace in traces if trace["method"] == "agemem"
        for turn in trace["turns"] for place, c in enumerate(turn["calls"]) if c["op"] in effects
    ]  # fmt: skip
    row = lambda effect, calls: {"calls": calls, "effect": effect, "helped": 0.5, "hurt": 0.25, "nothing": 0.25}  # noqa: E731
    tools = {op: row(effect, 10) for op, effect in effects.items()}
    return {"method": "agemem", "calls": calls, "tools": tools | {"all": row(0.2, 20)}}


def test_what_calls_were_worth_stands_beside_them(tmp_path):
    workdir = make_run(tmp_path / "tiny", seeds=2)
    assert "What each call was worth" not in page.write(workdir).read_text()
    traces = json.loads((workdir / "seed_0" / "traces.json").read_text())
    found = attribution(traces, {"Add_memory": 0.8, "Filter_context": 0.0, "Retrieve_memory": -0.3})
    (workdir / "seed_0" / "attribution.json").write_text(json.dumps(found))
    other = attribution([], {"Add_memory": 0.2})
    (workdir / "seed_1" / "attribution.json").write_text(json.dumps(other))
    text = " ".join(Reader(page.write(workdir).read_text()).text.split())
    assert "This Add was worth +0.80: without it the same trajectory scores so much less." in text
    assert "This Retrieve was worth -0.30: without it the same trajectory scores so much more." in text
    assert "Without this Filter the same trajectory scores the same." in text
    assert "What each call was worth" in text and "Add_memory20+0.50050.0 %25.0 %25.0 %" in text
    assert "All40+0.200" in text
    # Only the trained agent's calls were looked at, and only of that seed; a call with other words is another call.
    run = page.load(workdir)
    noted = lambda seed, method: {  # noqa: E731
        call.get("worth") for t in run.traces[seed] if t["method"] == method for turn in t["turns"]
        for call in turn["calls"]
    }  # fmt: skip
    assert noted(0, "agemem") >= {0.8, 0.0, -0.3}
    assert noted(0, "agemem_norl") == noted(1, "agemem") == {None}
    changed = [call | {"arguments": {}} for call in found["calls"]]
    (workdir / "seed_0" / "attribution.json").write_text(json.dumps(found | {"calls": changed}))
    assert not any(c.get("worth") for t in page.load(workdir).traces[0] for turn in t["turns"] for c in turn["calls"])
    (workdir / "seed_0" / "attribution.json").write_text('{"calls": []}')
    with pytest.raises(InputError, match="attribution.json lacks"):
        page.load(workdir)
