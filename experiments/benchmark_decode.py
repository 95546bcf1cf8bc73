"""Measures decoding with several tokens a step beside one token a step, on this machine, in one sitting:

    python -m experiments.benchmark_decode [--weights=FILE --path=FILE] [--whole_updates=0] [--out=FILE]

A batch of training tasks is played once, one token a step: configs/tiny.py, or with --weights (as policy.weights, e.g.
Qwen2.5-Coder-0.5B-Instruct) configs/hotpotqa.py on those of --path. Then, of the very turns that were written:

    steps     that they take at each width, where the grammar's forced tokens are proposed alone, and with copies of
              what the row has read, and how many of the proposed copies held, by what the turn did
    seconds   of decoding them again one token a step, with as many as --width, and with that program while nothing is
              proposed. Decoding alone: what the contexts hold is cached before
    updates   whole ones, at the width that decoded fastest and at 1 (--whole_updates, 0 leaves them out: they need the
              memory of training)

Leave the machine alone meanwhile. Decoding draws the same tokens at every width, up to rounding of logits; the share of
the turns for which it did is among the figures.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from agemem_jax import sharding
from agemem_jax.config import validate
from agemem_jax.errors import InputError
from agemem_jax.models import kv_cache
from agemem_jax.rollout import drafts
from agemem_jax.rollout.decode import Generation, Policy, Turns, decode, decode_ahead, prefill
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import policy_writer, run_stage
from agemem_jax.tools.grammar import ToolGrammar
from agemem_jax.training.evaluate import control
from agemem_jax.training.loop import train_update
from agemem_jax.training.programs import STAGES, compile_programs
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import new_state
from agemem_jax.types import Mode, Op
from configs import hotpotqa, tiny
from experiments import cli, out, shared_flags
from experiments.benchmark.parts import timed

WEIGHTS, PATH = shared_flags.weights(), shared_flags.path()
WIDTH = flags.DEFINE_integer("width", 8, "tokens of a row in a step", lower_bound=2, upper_bound=64)
UPDATES = flags.DEFINE_integer("whole_updates", 1, "updates that are timed, after the one that compiles", lower_bound=0)


def main() -> None:
    figures = measure(configured(WEIGHTS.value or "", PATH.value or ""), WIDTH.value, UPDATES.value)
    out.write(figures)


def configured(weight_file: str, path: str) -> ConfigDict:
    """The config that is measured."""
    if path and not weight_file:
        raise InputError("--path needs --weights: the tiny vocabulary has no pieces for English text")
    config = hotpotqa.real() if weight_file else tiny.get_config()
    config.rl.stage1_updates = config.rl.stage2_updates = 0  # an update is of a whole trajectory
    if weight_file:
        config.policy.weights, config.task.path = weight_file, path
        config.rl.tasks_per_update, config.rl.group_size = 2, 2
    config.rollout.decode_width = 1
    validate(config)
    return config


@dataclass(frozen=True)
class Slot:
    """One generation slot of all rows, on the host."""

    key: np.ndarray  # data of the slot's noise
    tokens: np.ndarray  # [B, C] contexts before it
    length: np.ndarray  # [B]
    on: np.ndarray  # [B] bool
    start: np.ndarray  # [B]
    ops: np.ndarray  # [B]
    budget: np.ndarray  # [B]
    made: Generation
    op: np.ndarray  # [B, J] calls that it was
    summary: np.ndarray  # [B] bool


def measure(config: ConfigDict, width: int, updates: int) -> dict:
    """All figures of a config."""
    run = build(config)
    params = run.start()
    slots = play(run, params)
    figures = {"config": config.name, "rows": run.spec.rollout.batch, "width": width, "cpus": os.cpu_count()}
    figures |= {"turns": sum(int(slot.on.sum()) for slot in slots), "slots": len(slots)}
    figures["tokens"] = sum(int(slot.made.count.sum()) for slot in slots)
    figures["forced_share"] = 1 - sum(int(slot.made.sampled.sum()) for slot in slots) / figures["tokens"]
    prompt = np.asarray(run.world.pieces.prefix.tokens[0])
    figures["steps"] = steps(run.world.grammar, prompt, slots, widths_up_to(width))
    print(steps_table(figures), flush=True)
    figures["decoding"] = seconds(run, params, slots, width)
    print(seconds_table(figures), flush=True)
    del params
    if updates:
        fastest = min(map(str, widths_up_to(width)), key=lambda w: figures["decoding"][w]["seconds"])
        figures["updates"] = {w: update_figures(run, int(w), updates) for w in (fastest, "1")}
        print(updates_table(figures), flush=True)
    return figures


# --- what is written ---


def play(run: Run, params: dict) -> list[Slot]:
    """A batch of training tasks, one token a step: every slot of its three stages."""
    model, slots = run.model, []
    spec = replace(run.spec.rollout, trace_rows=run.spec.rollout.batch)
    asked = control(run, run.config.seed, 0, "agemem", run.config.rollout.temperature, update=False)
    task = sharding.put(run.source.batch(0), sharding.rows(run.mesh))

    def keep(*arrays) -> None:
        slots.append(jax.tree.map(np.asarray, arrays))

    @functools.partial(jax.jit, static_argnums=0)
    def stage_of(stage: int, params, rows, task, world, asked):
        rows = new_rows(spec, model) if stage == 1 else rows
        world = world.for_method(asked.rules)
        noise = jax.random.fold_in(jax.random.fold_in(jax.random.key(asked.seed), asked.step), stage)
        write = policy_writer(policy_of(run, params, world), world, spec, asked.temperature, noise)

        def write_and_keep(rows, slot, on, start, ops, budget):
            after, made = write(rows, slot, on, start, ops, budget)
            key = jax.random.key_data(jax.random.fold_in(noise, slot))
            seen = key, rows.context.tokens, rows.context.length, on, start, ops, budget, made
            jax.debug.callback(keep, *seen, ordered=True)
            return after, made

        return run_stage(rows, task, world, spec, stage, write_and_keep, asked.tools)

    rows, traces = None, []
    for stage in STAGES:
        before = len(slots)
        rows, trace = stage_of(stage, params, rows, task, run.world, asked)
        jax.effects_barrier()
        trace = jax.device_get(trace)
        traces += list(zip(trace.op, trace.mode, strict=True))[: len(slots) - before]
    return [
        Slot(*arrays, op=op, summary=mode == Mode.SUMMARIZE)
        for arrays, (op, mode) in zip(slots, traces, strict=True)
        if arrays[3].any()
    ]


def policy_of(run: Run, params: dict, world) -> Policy:
    """The policy with its shared prompt, as in the programs of training."""
    actor = replace(run.model, layout=run.spec.rollout.layout)
    text, params = world.pieces.prefix, kv_cache.for_decoding(params, actor)
    prefix, _ = kv_cache.encode_prefix(params, run.model, text.tokens, text.length)
    return Policy(run.model, params, prefix)


# --- steps ---


@functools.partial(jax.jit, static_argnames=("width", "copies"))
def replay(grammar: ToolGrammar, text, begin, made: Generation, ops, width: int, copies: bool):
    """How turns are written at a width: (steps [T], copies proposed [T], copies that held [T]).

    Args:
      text: [T, S] what each row had read (its first `begin [T]` tokens), and behind it its turn.
      made: the turns; the first token needs no step, since reading the context gives its distribution.
      copies: False proposes forced tokens alone.
    """
    at = lambda x, i: jnp.take_along_axis(x, i[:, None], 1)[:, 0]  # noqa: E731
    places = jnp.arange(width)

    def body(carry):
        n, steps, proposed, held = carry
        live, now = n < made.count, jnp.minimum(n, made.count - 1)
        known = (text, begin + now) if copies else (text[:, :1], 0 * now + 1)
        draft = drafts.propose(grammar, *known, at(made.state, now), at(made.remaining, now), ops, width)
        true = jnp.take_along_axis(text, (begin + now)[:, None] + places, 1)
        inside = (places < draft.count[:, None]) & live[:, None]
        holds = ((draft.tokens == true) & inside).astype(jnp.int32).cumprod(1) > 0
        copied = inside & ~draft.forced
        n = n + live * (1 + holds.sum(1))
        return n, steps + live, proposed + copied.sum(1), held + (copied & holds).sum(1)

    zeros = jnp.zeros_like(begin)
    return jax.lax.while_loop(lambda c: (c[0] < made.count).any(), body, (zeros + 1, zeros, zeros, zeros))[1:]


def widths_up_to(width: int) -> list[int]:
    """Powers of two below a width, and itself."""
    return [w for w in (2, 4, 8, 16, 32) if w < width] + [width]


def steps(grammar: ToolGrammar, prompt: np.ndarray, slots: list[Slot], widths: list[int]) -> dict:
    """Steps of the turns behind `prompt [P]` at each width, by kind of proposal, and how copies held at the last."""
    number = np.concatenate([np.full(slot.on.sum(), i) for i, slot in enumerate(slots)])
    stack = lambda get: np.concatenate([get(slot)[slot.on] for slot in slots])  # noqa: E731
    begin, ops = len(prompt) + stack(lambda slot: slot.length), stack(lambda slot: slot.ops)
    made = jax.tree.map(lambda *x: np.concatenate(x), *[jax.tree.map(lambda x: x[s.on], s.made) for s in slots])  # noqa: B023
    text = np.pad(stack(lambda slot: slot.tokens), ((0, 0), (len(prompt), made.tokens.shape[1] + max(widths))))
    text[:, : len(prompt)] = prompt
    for row, n, turn, count in zip(text, begin, made.tokens, made.count, strict=True):
        row[n : n + count] = turn[:count]
    names = np.array([name for slot in slots for name in names_of(slot)])
    by_slot = lambda x: np.array([x[number == i].max() for i in range(len(slots))])  # noqa: E731
    figures = {"1": {"a_turn": float((made.count - 1).mean()), "a_slot": float(by_slot(made.count - 1).mean())}}
    for width in widths:
        one = figures[str(width)] = {}
        for kind, copies in (("forced", False), ("forced_and_copied", True)):
            took, proposed, held = map(np.asarray, replay(grammar, text, begin, made, ops, width, copies))
            one[kind] = {"a_turn": float(took.mean()), "a_slot": float(by_slot(took).mean())}
        one["copies"] = {
            name: {
                "turns": int((names == name).sum()),
                "tokens": float(made.count[names == name].mean()),
                "steps": float(took[names == name].mean()),
                "proposed": int(proposed[names == name].sum()),
                "held": int(held[names == name].sum()),
            }
            for name in sorted(set(names))
        }
    return figures


def names_of(slot: Slot) -> list[str]:
    """What each row's turn was, of those that were on: its first call."""
    first = [next((Op(op).name for op in row if op >= 0), "MALFORMED") for row in slot.op[slot.on]]
    summaries = slot.summary[slot.on]
    return [Op.WRITE_SUMMARY.name if summary else name for name, summary in zip(first, summaries, strict=True)]


# --- seconds ---


def seconds(run: Run, params: dict, slots: list[Slot], width: int) -> dict:
    """Seconds of decoding the slots again, from contexts that are cached."""
    spec = run.spec.rollout
    temperature = np.float32(run.config.rollout.temperature)

    params, prefix = jax.jit(lambda params, world: policy_of(run, params, world)[1:])(params, run.world)

    @jax.jit
    def read(params, prefix, tokens, length, on):
        policy = Policy(run.model, params, prefix)
        history = kv_cache.init_history(run.model, spec.batch, spec.capacity + max(spec.chunk, spec.width))
        return prefill(policy, history, jnp.zeros_like(length), tokens, length, on, spec.chunk)

    def at(decode_width: int) -> Callable:
        @jax.jit
        def write(params, grammar, prefix, cache, tokens, on, start, ops, budget, key, most):
            policy, key = Policy(run.model, params, prefix), jax.random.wrap_key_data(key)
            turns = Turns(on, grammar, start, ops, budget, spec.width, temperature, key, columns=spec.columns)
            if decode_width == 1:
                return decode(policy, *cache, turns)

            def at_most(*args):
                draft = drafts.propose(*args)
                return draft._replace(count=jnp.minimum(draft.count, most))

            return decode_ahead(policy, *cache, turns, tokens, decode_width, at_most)

        return write

    ways = {"1": (at(1), 0)}
    ahead = at(width)
    ways |= {str(w): (ahead, w - 1) for w in widths_up_to(width)}
    ways["nothing proposed"] = (ahead, 0)
    spent, same, compile_s = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), {}
    for slot in slots:
        cache = jax.block_until_ready(read(params, prefix, slot.tokens, slot.length, slot.on))
        for way, (write, most) in ways.items():
            args = (params, run.world.grammar, prefix, cache, slot.tokens, slot.on, slot.start, slot.ops, slot.budget)
            call = lambda write=write, most=most, args=args: write(*args, slot.key, np.int32(most))  # noqa: B023, E731
            if write not in compile_s:
                compile_s[write] = timed(call)[0]
            took, (_, made) = timed(call)
            spent[way] += took
            same[way] += int((np.asarray(made.tokens) == slot.made.tokens)[slot.on].all(1).sum())
    tokens, turns = (sum(int(x(slot)) for slot in slots) for x in (lambda s: s.made.count.sum(), lambda s: s.on.sum()))
    return {
        way: {
            "seconds": round(spent[way], 3),
            "tokens_per_s": round(tokens / spent[way], 1),
            "times_width_1": round(spent["1"] / spent[way], 2),
            "same_turns": same[way] / turns,
            "compile_s": round(compile_s[ways[way][0]], 1),
        }
        for way in ways
    }


def update_figures(run: Run, width: int, updates: int) -> dict:
    """Whole updates at a decode width, the first of which compiles."""
    spec = replace(run.spec, rollout=replace(run.spec.rollout, decode_width=width))
    programs = compile_programs(spec, run.model, run.optimizer, run.config.rl, run.config.reward)
    run = replace(run, spec=spec, programs=programs)
    state, spent, made = new_state(run.start(), run.optimizer), [], []
    for i in range(updates + 1):
        task = sharding.put(run.source.batch(i), sharding.rows(run.mesh))
        took, (state, outcome) = timed(train_update, run, state, run.frozen, i, task)
        spent.append(took)
        made.append(int(outcome["rows"]["generated_tokens"].sum()))
    return {
        "tokens_per_s": round(sum(made[1:]) / sum(spent[1:]), 2),
        "seconds": [round(took, 2) for took in spent],
        "generated_tokens": made,
    }


# --- as text ---


def steps_table(figures: dict) -> str:
    """The steps, as lines to read."""
    steps, one = figures["steps"], figures["steps"]["1"]
    lines = [
        f"{figures['turns']} turns in {figures['slots']} slots of {figures['rows']} rows, {figures['tokens']} tokens, "
        f"{figures['forced_share']:.0%} of them forced",
        f"{'':20}{'steps a turn':>14}{'of today':>10}{'steps a slot':>14}{'of today':>10}",
        f"{'width 1':20}{one['a_turn']:>14.1f}{1:>10.0%}{one['a_slot']:>14.1f}{1:>10.0%}",
    ]
    for width, found in steps.items():
        for kind, name in (("forced", "forced"), ("forced_and_copied", "and copies")):
            if kind in found:
                f = found[kind]
                parts = "".join(f"{f[x]:>14.1f}{f[x] / one[x]:>10.0%}" for x in ("a_turn", "a_slot"))
                lines.append(f"{f'width {width}, {name}':20}{parts}")
    lines.append(f"of copies at width {width}:")
    for name, f in found["copies"].items():
        held = f"{f['held'] / f['proposed']:.0%} of {f['proposed']} held" if f["proposed"] else "none proposed"
        lines.append(f"  {name:16}{f['turns']:>4} turns of {f['tokens']:.1f} tokens in {f['steps']:.1f} steps, {held}")
    return "\n".join(lines)


def seconds_table(figures: dict) -> str:
    """The times of decoding, as lines to read."""
    lines = [f"{'decoding':20}{'s':>9}{'tokens/s':>10}{'times':>8}{'same turns':>12}{'compile s':>11}"]
    for way, f in figures["decoding"].items():
        name = f"width {way}" if way.isdigit() else way
        lines.append(
            f"{name:20}{f['seconds']:>9.2f}{f['tokens_per_s']:>10,.1f}{f['times_width_1']:>8.2f}"
            f"{f['same_turns']:>12.0%}{f['compile_s']:>11.1f}"
        )
    added = 1 / figures["decoding"]["nothing proposed"]["times_width_1"] - 1
    lines.append(f"a step with nothing proposed costs {added:+.0%} (at most 15 % is the goal)")
    return "\n".join(lines)


def updates_table(figures: dict) -> str:
    """The rates of whole updates, as a line to read."""
    rates = {width: f["tokens_per_s"] for width, f in figures["updates"].items()}
    width = next(iter(rates))
    return (
        f"whole updates: {rates['1']:,.1f} generated tokens/s at width 1, {rates[width]:,.1f} at width {width}: "
        f"{rates[width] / rates['1']:.2f} times (goal 1.4 with real weights)"
    )


if __name__ == "__main__":
    cli.run(main, takes_config=False)
