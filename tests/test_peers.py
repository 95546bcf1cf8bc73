"""The twins of published memory systems against what those systems did with the same scripted answers."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from peers import mem0_classic_twin
from peers.embedding import embed

FIXTURES = Path(__file__).parent / "fixtures" / "peers"
SCORE = 2e-6  # of float32 sums in another order, and of scores kept with six places
GAP = 4e-5  # between scores that differ: the device rounds them to a grid of 2**-16


def histories(system):
    return json.loads((FIXTURES / f"{system}.json").read_text())["histories"]


def each(system):
    return [pytest.param(history["steps"], id=f"{system}-{history['name']}") for history in histories(system)]


def scope_of(step):
    return {key: step[key] for key in ("user", "session", "agent") if key in step}


def close(hits, expected):
    assert [n for n, _ in hits] == [n for n, _ in expected]
    assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=SCORE)


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


@pytest.mark.parametrize("steps", each("mem0_classic"))
def test_mem0_classic(steps):
    answers = {}
    twin = mem0_classic_twin.Mem0Classic(lambda role, shown: answers[role], embed)
    for step in steps:
        scope = scope_of(step)
        if "query" in step:
            hits = twin.search(step["query"], scope, step["limit"], step.get("threshold"))
            close(hits, [(hit["memory"], hit["score"]) for hit in step["hits"]])
            assert [twin.memories[n]["text"] for n, _ in hits] == [hit["text"] for hit in step["hits"]]
            assert gaps(hit["score"] for hit in step["hits"]) > GAP
            continue
        answers = {role: (step[role] or {}).get("answer") for role in ("extract", "decide")}
        record = twin.add(step["messages"], scope)
        for key in ("extract", "decide", "writes", "returned"):
            assert record[key] == step[key], key
        for found, expected in zip(record["searches"], step["searches"], strict=True):
            assert (found["fact"], found["limit"]) == (expected["fact"], expected["limit"])
            close(found["hits"], expected["hits"])
            assert gaps(score for _, score in expected["hits"]) > GAP
        assert twin.store() == step["store"]


@pytest.mark.heavy
@pytest.mark.parametrize("system", ["mem0_classic"])
def test_published_code_still_does_what_is_recorded(system, tmp_path):
    """AGEMEM_PEERS names a folder with an environment for each system, made as its recorder says."""
    if "AGEMEM_PEERS" not in os.environ:
        pytest.skip("AGEMEM_PEERS names no folder of environments")
    python = Path(os.environ["AGEMEM_PEERS"]) / system / "bin" / "python"
    command = [python, "-m", f"peers.record_{system}", tmp_path / "fixture.json"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(json.loads((tmp_path / "fixture.json").read_text())["histories"], histories(system))
