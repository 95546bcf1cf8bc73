"""The twins of published memory systems against what those systems did with the same scripted answers."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from peers import amem_twin, mem0_additive_twin, mem0_classic_twin
from peers.embedding import embed

FIXTURES = Path(__file__).parent / "fixtures" / "peers"
SCORE = 2e-6  # of float32 sums in another order, and of scores kept with six places
GAP = 4e-5  # between scores that differ: the device rounds them to a grid of 2**-16


def histories(system):
    return json.loads((FIXTURES / f"{system}.json").read_text())["histories"]


def each(system):
    return [pytest.param(history, id=history["name"]) for history in histories(system)]


def scope_of(step):
    return {key: step[key] for key in ("user", "session", "agent") if key in step}


def close(hits, expected):
    assert [n for n, _ in hits] == [n for n, _ in expected]
    assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=SCORE)


def searched(found, expected):
    """The same searches found the same, and their scores are far enough apart."""
    for one, other in zip(found, expected, strict=True):
        assert {**one, "hits": None} == {**other, "hits": None}
        close(one["hits"], other["hits"])
        assert gaps(score for _, score in other["hits"]) > GAP


def queried(found, expected):
    pairs = [(hit["memory"], hit["score"]) for hit in expected]
    close(found, pairs)
    assert gaps(score for _, score in pairs) > GAP


def same(found, expected):
    """Equal, scores nearly so: they were rounded."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == pytest.approx(expected, abs=SCORE) if isinstance(expected, float) else found == expected


def gaps(scores):
    """Least difference between scores that differ."""
    ordered = sorted(scores)
    return min((b - a for a, b in zip(ordered, ordered[1:], strict=False) if b > a), default=1.0)


@pytest.mark.parametrize("history", each("mem0_classic"))
def test_mem0_classic(history):
    answers = {}
    twin = mem0_classic_twin.Mem0Classic(lambda role, shown: answers[role], embed)
    for step in history["steps"]:
        scope = scope_of(step)
        if "query" in step:
            queried(twin.search(step["query"], scope, step["limit"], step.get("threshold")), step["hits"])
            continue
        answers = {role: (step[role] or {}).get("answer") for role in ("extract", "decide")}
        record = twin.add(step["messages"], scope)
        for key in ("extract", "decide", "writes", "returned"):
            assert record[key] == step[key], key
        searched(record["searches"], step["searches"])
        assert twin.store() == step["store"]


@pytest.mark.parametrize("history", each("mem0_additive"))
def test_mem0_additive(history):
    answers = {}
    twin = mem0_additive_twin.Mem0Additive(lambda role, shown: answers[role], embed)
    for step in history["steps"]:
        scope = scope_of(step)
        if "query" in step:
            given = {"threshold": step["threshold"]} if "threshold" in step else {}
            queried(twin.search(step["query"], scope, step["limit"], **given), step["hits"])
            continue
        answers = {"extract": step["extract"]["answer"]}
        record = twin.add(step["messages"], scope)
        for key in ("extract", "error", "returned"):
            assert record[key] == step[key], key
        searched(record["searches"], step["searches"])
        assert twin.memories == step["store"]


@pytest.mark.parametrize("history", each("amem"))
def test_amem(history):
    answers = {}
    twin = amem_twin.AMem(lambda role, shown: answers[role], embed, history["rebuild_every"])
    for step in history["steps"]:
        answers = {role: (step.get(role) or {}).get("answer") for role in ("analyze", "evolve", "query")}
        if "question" in step:
            record = twin.ask(step["question"], step["k"])
            assert [record[key] for key in ("query", "shown", "error")] == [step["query"], step["shown"], step["error"]]
        else:
            record = twin.add(step["text"], step["time"])
            assert all(record[key] == step[key] for key in ("analyze", "evolve", "error"))
            assert twin.evolutions == step["evolutions"]
            assert twin.notes == step["store"]
            assert twin.embedded == step["embedded"]
        searched(record["searches"], step["searches"])


@pytest.mark.heavy
@pytest.mark.parametrize("system", ["mem0_classic", "mem0_additive", "amem"])
def test_published_code_still_does_what_is_recorded(system, tmp_path):
    """AGEMEM_PEERS names a folder with an environment for each system, made as its recorder says."""
    if "AGEMEM_PEERS" not in os.environ:
        pytest.skip("AGEMEM_PEERS names no folder of environments")
    python = Path(os.environ["AGEMEM_PEERS"]) / system / "bin" / "python"
    command = [python, "-m", f"peers.record_{system}", tmp_path / "fixture.json"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(json.loads((tmp_path / "fixture.json").read_text())["histories"], histories(system))
