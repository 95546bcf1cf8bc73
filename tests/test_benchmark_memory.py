"""The store's benchmark at tiny sizes: it does what it counts; its table. No timings."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.memory.encoder import TokenTable
from agemem_jax.memory.equality import equality_table
from agemem_jax.types import NO_ID, Status, Text
from experiments import benchmark_memory
from experiments.benchmark import memory
from experiments.benchmark.peers import memory as peers


def test_operations_do_what_is_counted():
    store = memory.filled(32, 16)
    equality = equality_table([b"word%d " % i for i in range(memory.VOCABULARY)])
    table = TokenTable(jax.random.normal(jax.random.key(0), (memory.VOCABULARY, 16)))
    made = memory.operations(table, jax.tree.map(jnp.asarray, equality))
    assert store.valid.sum(1).tolist() == [32] * peers.AGENTS
    tokens = jnp.arange(peers.AGENTS * memory.ENTRY_TOKENS).reshape(peers.AGENTS, -1) + 1
    texts = Text(tokens, jnp.full((peers.AGENTS,), memory.ENTRY_TOKENS, jnp.int32))
    for name in ("add", "add_unless_known"):
        after, status = made[name](store, texts, 0)
        assert (status == Status.OK).all() and (after.tokens[:, 32] == tokens).all()
        _, status = made[name](after, texts, 0)
        assert (status == (Status.OK if name == "add" else Status.DUPLICATE)).all()
    after, status = made["update"](store, texts, 4)
    assert (status == Status.OK).all() and (after.tokens[:, 4] == tokens).all()
    _, found = made["search"](after, texts, 0)
    assert found.found.all() and (found.id[:, 0] == 5).all() and found.id.shape == (peers.AGENTS, peers.TOP_K)
    after, status = made["delete"](store, texts, 4)
    assert (status == Status.OK).all() and (after.id[:, 4] == NO_ID).all() and not after.valid[:, 4].any()


def test_every_acknowledged_addition_of_64_writers_is_readable():
    assert memory.writers(width=64) == {"writes": 640, "acknowledged": 640, "readable": 640}


def test_texts_and_vectors_of_the_peers():
    texts = [peers.text(agent, number) for agent in range(4) for number in range(4)]
    assert len(set(texts)) == 16 and peers.text(1, 2) == texts[6]
    vector = peers.vector(texts[0])
    assert vector.shape == (peers.WIDTH,) and (vector >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)
    calls = []
    assert peers.clock(lambda agent, number: calls.append((agent, number)), 7) > 0
    assert calls == [(agent, number) for number in range(4) for agent in range(peers.AGENTS)]


def test_a_peer_is_run_in_an_empty_folder_with_paths_that_mean_the_same_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark_memory, "AMEM", SimpleNamespace(value="A-mem"))
    monkeypatch.setattr(benchmark_memory, "run", lambda title, command, folder: {"command": command, "folder": folder})
    ran = benchmark_memory.run_peer("amem", {"amem": Path("/env/bin/python")}, "100")
    assert ran["command"][2:] == [tmp_path.resolve() / "A-mem", "100"] and ran["folder"] != tmp_path


def figures(**peers_) -> dict:
    ours = dict(search=6000.0, add=9000.0, add_unless_known=8000.0, update=7000.0, delete=5000.0)
    sizes = {"100": {"ours": {"store_only": ours, "with_embedding": ours}} | peers_}
    writers = {"ours": dict(writes=640, acknowledged=640, readable=640)}
    return benchmark_memory.summarise(sizes, writers, {}, {"amem": "no --amem=CHECKOUT"})


def test_summary_and_table():
    mem0 = dict(search=3.0, add=2.0, update=1.0, delete=5.0)
    alone = figures()
    assert alone["ratio_store_only"] == {}
    made = figures(mem0=mem0, amem=dict(search=60.0, add=90.0))
    assert made["ratio_store_only"]["mem0"] == {"100": dict(search=2000.0, add=4500.0, update=7000.0, delete=1000.0)}
    assert made["ratio_store_only"]["amem"] == {"100": dict(search=100.0, add=100.0)}
    made["writers"]["mem0"] = dict(writes=640, acknowledged=570, readable=0, errors={"IndexError": 570})
    made["minilm_ms"] = dict(alone_ms=10.0, batch_ms=320.0)
    told = benchmark_memory.table(made)
    assert (
        "times as fast as mem0                  100     2,000.0     4,500.0     7,000.0     1,000.0  (goal 1,000)"
        in told
    )
    assert "of 640 additions 570 acknowledged, of these 0 readable (570 reads raise IndexError)" in told
    assert "amem: not measured (no --amem=CHECKOUT)" in told
    assert "searches/s with MiniLM before them, 100 entries: agemem_jax 193.5, mem0 2.9, amem 37.5" in told
