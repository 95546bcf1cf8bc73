"""The training command with a toy in place of the policy: real flags, processes, checkpoints and exits, no compiling.

    python tests/toy_train.py UPDATES WHAT --config=configs/tiny.py --workdir=DIR ...

WHAT happens in update 3: "nothing"; "fail": process 1 has a defect; "full": its disk is full; "idle": all are busy on
the host for minutes. "late" is another beginning: process 1 compiles for longer than gloo waits for a first collective.
The state after u updates: every w is u, total is the sum of all w's so far.
"""

import errno
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agemem_jax import sharding
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.distributed import Preempted, agree, open_channels, say

SIZE = 8


def toy_state(devices: list) -> dict:
    """A sharded and a replicated array."""
    mesh = Mesh(np.array(devices), ("all",))
    cut, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    return {
        "w": sharding.put(np.zeros(SIZE, np.float32), cut),
        "total": sharding.put(np.zeros((), np.float32), whole),
    }


def toy_train(config, workdir: Path, stop, first: bool = True) -> dict:
    updates, what = int(sys.argv[1]), sys.argv[2]
    state = toy_state(jax.devices())
    if what == "late":
        open_channels(state["w"].sharding.mesh)
        time.sleep(40 * jax.process_index())
    step = jax.jit(lambda s: {"w": s["w"] + 1, "total": s["total"] + (s["w"] + 1).sum()}, donate_argnums=0)
    with Checkpointer(workdir / "checkpoints", config, 2) as checkpoints:
        done, state, _ = checkpoints.restore_latest(state) or (0, state, {})
        say(f"begins after update {done}, {agree(lambda: 'agreed')}")
        for update in range(done + 1, updates + 1):
            state = step(state)
            total = float(state["total"])
            assert total == SIZE * update * (update + 1) / 2, (update, total)
            if update == 3 and what == "fail" and jax.process_index() == 1:
                raise RuntimeError("no such gradient")
            if update == 3 and what == "full" and jax.process_index() == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            stopping = stop()
            checkpoints.save(update, state, {}, wait=stopping)
            print(f"process {jax.process_index()} did update {update}", flush=True)
            if update == 3 and what == "idle":
                time.sleep(600)
            if stopping:
                raise Preempted(f"stopped after update {update}")
            time.sleep(0.02)
    return {}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from experiments import cli
    from experiments import train as command

    command.build = lambda config, like=None: config
    command.train = toy_train
    command.write_summary = lambda *_: {}
    command.table = lambda _: "table"
    command.page.write = lambda _: "page"
    flags = sys.argv[3:]
    sys.argv[3:] = []
    command_line = [sys.argv[0], *flags]
    run = cli.app.run
    cli.app.run = lambda main, flags_parser: run(main, command_line, flags_parser)
    cli.run(command.main)
