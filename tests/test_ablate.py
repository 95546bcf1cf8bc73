"""Arms of a study: each is the run of its own config, all in one program; what may differ, and what is refused."""

from functools import lru_cache

import jax
import numpy as np
import pytest
from small import build_small, small_config

from agemem_jax.config import ConfigError
from agemem_jax.training import arms as arms_lib
from agemem_jax.training.arms import arms_of, build_study, inputs, starting_states, update_arms
from agemem_jax.training.loop import put_batch, train_update
from agemem_jax.training.state import new_state

SIZES = dict(
    policy__num_layers=1, rollout__history_widths=1, rl__widths=1, rl__updates=3, rl__tasks_per_update=2,
    rl__group_size=2, rl__micro_batch=4, train__eval_tasks=4, reward__maintenance=1.0,
    rl__credit="turn_to_go", rl__stage1_updates=1, rl__stage2_updates=1,
)  # fmt: skip
ALONE = {"rl.schedule": "sequential", "rl.credit": "broadcast", "rl.stage1_updates": 0, "rl.stage2_updates": 0}
TABLE = {
    "all": {},
    "alone": ALONE,
    "short": {
        "rl.updates": 1, "rl.credit": "hindsight", "rl.stage1_updates": 0, "rl.stage2_updates": 0,
        "reward.terms": "paper", "masked": ("Add_memory",),
    },
}  # fmt: skip


@lru_cache
def study():
    base = small_config(**SIZES)
    return build_study(base, arms_of(base, TABLE), jax.devices()[:2])


def separate(changes: dict):
    run = build_small(**SIZES | {name.replace(".", "__"): value for name, value in changes.items()})
    return run


def test_x():
    import time
    t = time.time()
    s = study()
    print("built", time.time() - t)
    states = starting_states(s)
    outs = []
    for u in range(3):
        t = time.time()
        with jax.transfer_guard("disallow"):
            states, outcome = update_arms(s, states, inputs(s, u))
        outs.append(jax.device_get(outcome["metrics"]))
        print("update", u, time.time() - t)
    print(s.program._cache_size())
    for i, name in enumerate(("all", "alone")):
        from agemem_jax.training.setup import build
        t = time.time()
        conf = s.arms[i].config
        run = build(conf)
        state = new_state(run.start(), run.optimizer)
        for u in range(3):
            state, outcome = train_update(run, state, run.frozen, u, put_batch(run, u))
            m = jax.device_get(outcome["metrics"])
            print(name, u, time.time() - t)
            for k in m:
                a, b = m[k], outs[u][k][i]
                if a != b:
                    print("   ", k, a, b)
            print(sorted(set(m) ^ set(arms_lib.metrics_of(s.arms[i], outs[u], arms_lib.last_stage(s.arms[i], u)))))
        d = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)[i]).max()), state.params, states.params)
        print(max(jax.tree.leaves(d)))
