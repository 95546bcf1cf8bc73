"""What is measured of our own programs. Each part runs in a process of its own and gives a dict of figures."""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax

from agemem_jax.benchmarks import vocabulary
from agemem_jax.models import qwen
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.training.evaluate import control
from agemem_jax.training.loop import train_update
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import make_optimizer, new_state
from configs import tiny
from experiments.benchmark import token_env
from experiments.benchmark.host_loop import HostLoop, agreement
from experiments.benchmark.token_env import MODEL, MULTI_TURN, SINGLE_TURN, Sizes

MATMUL = 2048
UPDATES = 5  # timed, after the one that compiles

# Overrides that double one thing each. Twice the turns need twice the context.
DOUBLED = {
    "entries": ["store.entries"],
    "turns": ["task.facts", "task.distractors", "rollout.stage3_turns", "context.capacity", "context.limit",
              "context.messages"],
    "rollouts": ["rl.group_size"],
}  # fmt: skip


def peak_gb() -> float:
    """Most resident memory of this process so far, GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def timed(function: Callable, *args):
    """(seconds, result), when the result is there."""
    began = time.perf_counter()
    out = jax.block_until_ready(function(*args))
    return time.perf_counter() - began, out


def matmul() -> dict:
    """The machine's float32 matmul rate."""
    a = jax.random.normal(jax.random.key(0), (MATMUL, MATMUL))
    multiply = jax.jit(lambda a: a @ a)
    timed(multiply, a)
    seconds = statistics.median(timed(multiply, a)[0] for _ in range(9))
    return {"matmul_gflops": round(2 * MATMUL**3 / seconds / 1e9, 1)}


def token_grpo(model: ModelConfig, sizes: Sizes, updates: int = UPDATES) -> dict:
    """GRPO on plain tokens as one donated program; its rollout and its update also by themselves."""
    config = token_env.settings(sizes.group)
    optimizer = make_optimizer(config.optim)
    state = new_state(qwen.init_params(model, jax.random.key(0)), optimizer)
    shape = (sizes.tasks, sizes.prompt)
    draw = lambda i: jax.random.randint(jax.random.key(i), shape, token_env.FIRST_WORD, model.vocab_size)  # noqa: E731
    prompts, key = draw(0), jax.random.key(1)

    step = jax.jit(token_env.make_step(model, sizes, optimizer, config.rl), donate_argnums=0)
    compile_s, program = timed(lambda: step.lower(state, prompts, key).compile())
    seconds = []
    for i in range(updates + 1):
        spent, (state, metrics) = timed(program, state, draw(i), jax.random.key(i))
        seconds.append(spent)
    peak = peak_gb()

    play = jax.jit(lambda params, prompts, key: token_env.rollout(params, model, sizes, prompts, key))
    learn = jax.jit(token_env.make_update(model, sizes, optimizer, config.rl))
    tokens, logp = play(state.params, prompts, key)
    jax.block_until_ready(learn(state, prompts, tokens, logp))
    rollout_s = statistics.median(timed(play, state.params, prompts, key)[0] for _ in range(updates))
    update_s = statistics.median(timed(learn, state, prompts, tokens, logp)[0] for _ in range(updates))
    step_s = statistics.median(seconds[1:])
    return {
        "tokens_per_s": round(sizes.new_tokens / step_s, 1),
        "step_s": round(step_s, 4),
        "rollout_s": round(rollout_s, 4),
        "update_s": round(update_s, 4),
        "compile_s": round(compile_s, 2),
        "steps": [round(spent, 3) for spent in seconds],
        "logp_gap_max": float(metrics["logp_gap_max"]),
        "update_gflop": round(token_env.update_flops(model, sizes) / 1e9, 1),
        "update_gflops": round(token_env.update_flops(model, sizes) / update_s / 1e9, 1),
        "peak_rss_gb": peak,
    }


def agent(folder: Path, doubled: str = "") -> Run:
    """The run of configs/tiny.py with the warm-started policy (random weights where that is not shipped), whose updates
    are of whole trajectories, with one credit for all turns of each: the host-driven agent keeps no more."""
    config = tiny.get_config()
    config.rl.credit = "broadcast"
    config.rl.stage1_updates = config.rl.stage2_updates = 0
    if not Path(config.policy.weights).exists():
        config.policy.weights, config.policy.tokenizer = "", str(folder / "tokenizer.model")
        vocabulary.build(config.policy.tokenizer, config.tools)
    flat = config.copy_and_resolve_references()
    for name in DOUBLED.get(doubled, []):
        group, field = name.split(".")
        flat[group][field] *= 2
    return build(flat)


def fused_agent(run: Run, updates: int = UPDATES) -> dict:
    """AgeMem training as it is: three fused programs an update."""
    state = new_state(run.start(), run.optimizer)
    seconds, made, trained = [], [], []
    for i in range(updates + 1):
        task = jax.device_put(run.source.batch(i))
        spent, (state, outcome) = timed(train_update, run, state, run.frozen, i, task)
        seconds.append(spent)
        made.append(int(outcome["rows"]["generated_tokens"].sum()))
        trained.append(int(outcome["metrics"]["trained_tokens"]))
    return agent_figures(seconds, made, trained)


def host_agent(run: Run, updates: int = UPDATES) -> dict:
    """The same agent, tasks and noise, driven turn by turn from the host."""
    loop = HostLoop(run)
    state = new_state(run.start(), run.optimizer)
    seconds, made, trained = [], [], []
    for i in range(updates + 1):
        settings = control(run, run.config.seed, i, "agemem", run.config.rollout.temperature, update=True)
        spent, (state, metrics, rows) = timed(loop.update, state, run.source.batch(i), settings)
        seconds.append(spent)
        made.append(int(sum(row.stats["generated_tokens"] for row in rows)))
        trained.append(int(sum(tape[:, 0].sum() for row in rows for _, tape in row.segments)))
    figures = agent_figures(seconds, made, trained)
    figures["same_trajectories"], _ = agreement(run, loop, state, run.source.batch(0))
    return figures


def agent_figures(seconds: list[float], made: list[int], trained: list[int]) -> dict:
    """Rates over all updates but the first, whose extra time is compilation."""
    spent, typical = sum(seconds[1:]), statistics.median(seconds[1:])
    return {
        "tokens_per_s": round(sum(made[1:]) / spent, 1),
        "trained_tokens_per_s": round(sum(trained[1:]) / spent, 1),
        "step_s": round(typical, 4),
        "steps": [round(s, 3) for s in seconds],
        "generated_tokens": made,
        "trained_tokens": trained,
        "compile_s": round(max(seconds[0] - typical, 0.0), 2),
        "peak_rss_gb": peak_gb(),
    }


def measure(part: str, folder: Path) -> dict:
    """The figures of one part (see PARTS)."""
    if part == "matmul":
        return matmul()
    if part in ("single_turn", "multi_turn"):
        return token_grpo(MODEL, SINGLE_TURN if part == "single_turn" else MULTI_TURN)
    if part == "host_driven":
        return host_agent(agent(folder))
    return fused_agent(agent(folder, part.removeprefix("double_")), UPDATES if part == "fused" else 2)


PARTS = ("matmul", "single_turn", "multi_turn", "fused", "host_driven", *(f"double_{name}" for name in DOUBLED))
