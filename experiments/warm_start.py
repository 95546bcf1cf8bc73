"""Makes a warm-started policy: of the tiny default from nothing (vocabulary, lessons, demonstrations), or from weights.

    python -m experiments.warm_start --config=configs/tiny.py --export=agemem_jax/assets/tiny
    python -m experiments.warm_start --config=configs/smollm2.py --config.policy.weights=FILE --config.task.path=FILE \\
        --export=runs/smollm2_warm

With `warm.weights` it begins from these, in the vocabulary of `policy.tokenizer`: embeddings of pieces that both
vocabularies have are taken over. With `policy.lora_rank` it trains adapters beside `policy.weights`, a model of one's
own with its vocabulary and chat template. The demonstrations of several benchmarks take turns with --also.

The export is a Hugging Face folder (config.json, model.safetensors) with the sentencepiece model beside it; with
adapters, which are merged, in float32, with the model's tokenizer. Until it is made, the folder holds checkpoints: the
same command goes on from the newest.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from agemem_jax import sharding
from agemem_jax.benchmarks import vocabulary
from agemem_jax.config import check_fields, check_precision, refuse, to_json, validate
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.errors import InputError
from agemem_jax.methods.tables import SYSTEMS
from agemem_jax.methods.teaching import Teacher
from agemem_jax.models import lora, weights
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.lock import hold
from agemem_jax.training.release import write_policy
from agemem_jax.training.setup import Run, build, named_pieces, tokenizer_path
from agemem_jax.training.state import new_state
from agemem_jax.training.warm import embeddings_for, lesson_step, recorded, role_step, warm_optimizer, watch_step
from agemem_jax.types import TrainState
from configs import base
from experiments import cli, out, paths

EXPORT = paths.define_path("export", None, "folder for the warm-started policy", required=True)
ALSO = flags.DEFINE_list("also", [], "more configs, whose demonstrations take turns with those of --config")
LESSONS = ("lessons", "dealings", "lesson_every")  # what asks for pages to read
PROGRESS = "progress"  # the checkpoints' place in the export's folder


def main(config) -> None:
    folder = paths.folder_to_write("export", EXPORT.value)
    others = [cli.load_config(name) for name in ALSO.value]
    for other in others:
        check_fields(other, base.get_config())
        validate(other)
    with hold(folder, "--export"):
        make([config, *others], folder)


def make(configs: list, folder: Path) -> None:
    """Trains the policy on the demonstrations of all configs, and writes it with its vocabulary.

    All but the task is as the first config says.
    """
    config = configs[0]
    warm, begun = config.warm, beginning(config, folder)
    for one in configs:
        one.policy = config.policy.copy_and_resolve_references()
        one.policy.weights, one.policy.tokenizer = begun
        one.task.distractors = warm.distractors or one.task.distractors
        one.rl.tasks_per_update = -(-warm.batch // one.rl.group_size)
        check_precision(one.policy)
    runs = [build(one) for one in configs]
    run, size = runs[0], runs[0].spec.rollout.batch
    # It reads what lessons and rows reach, whichever is longest, if it is not made for more.
    learnt = int(run.world.pieces.prefix.length[0]) + (warm.lesson_tokens if warm.lessons or warm.dealings else 0)
    reach = [learnt, *(one.model.max_positions for one in runs)]
    for system in SYSTEMS if warm.roles else ():
        readings = [one.readings(system) for one in runs]
        reach += [int(r.tables.pieces.prefix.length[0]) + r.spec.rollout.capacity for r in readings]
    model = dataclasses.replace(run.model, max_positions=max(reach))
    params, tasks = run.start(), run.source.tasks
    for name in LESSONS:
        if warm[name] and not tasks.lessons:
            refuse(f"warm.{name}", warm[name], f"{config.task.benchmark} has no lessons; set it to 0")
    lessons = any(warm[name] for name in LESSONS) and tasks.lessons(config, run.tokenizer, run.world.pieces)
    pages = lambda i: (lessons.batch(i, warm.lesson_batch), {})  # noqa: E731
    read = Kind(functools.partial(lesson_step, run.spec.learn), run, pages)
    watch = [Kind(functools.partial(watch_step, one.spec.learn), one, demonstrations(one, size)) for one in runs]
    play = [role_kind(one, name) for one in runs for name in SYSTEMS] if warm.roles else []
    acts = [acting_kind(one, size) for one in configs] if warm.acting else []
    every, after = warm.lesson_every, warm.lessons + warm.dealings
    phases = {
        "lessons": (warm.lesson_rate, [(read, i) for i in range(warm.lessons)]),
        "dealings": (warm.lesson_rate, [(read, warm.lessons + i) for i in range(warm.dealings)]),
        "acting": (warm.learning_rate, [demonstrated(i, 0.0, acts, []) for i in range(warm.acting)]),
        # What it has learnt to read is kept up while it watches.
        "demonstrations": (
            warm.learning_rate,
            [
                (read, after + i) if every and i % every == every - 1 else demonstrated(i, warm.roles, watch, play)
                for i in range(warm.steps)
            ],
        ),
    }
    kinds = [read, *watch, *play, *acts]
    with Checkpointer(folder / PROGRESS, config, config.train.keep_checkpoints) as checkpoints:
        params, curves = learn(model, params, phases, kinds, checkpoints, [to_json(one) for one in configs[1:]])
    if model.lora:  # merged into anything narrower, what was learnt would round away
        merged = lora.merge(params, run.frozen, model.lora, "float32")
        write_policy(folder, config, dataclasses.replace(model, lora=None), merged, "float32")
    else:
        weights.save_hf(folder, model, params)
    shutil.rmtree(folder / PROGRESS)
    out.write({"config": json.loads(config.to_json_best_effort()), "curves": curves})


def beginning(config, folder: Path) -> tuple[str, str]:
    """The weights and the tokenizer that it begins with, as policy.weights and policy.tokenizer.

    Makes in `folder` what there is not yet. Raises ConfigError for weights that do not go with what is asked for.
    """
    p, warm, file = config.policy, config.warm, folder / vocabulary.FILE_NAME
    if p.lora_rank:
        if not p.weights:
            refuse("policy.lora_rank", p.lora_rank, "adapters are trained beside policy.weights: name these, or set 0")
        if warm.weights:
            refuse("warm.weights", warm.weights, "adapters are trained beside policy.weights: leave this one empty")
        return p.weights, p.tokenizer
    if warm.weights:
        shutil.copyfile(tokenizer_path(p), file)
        transplant(config, file)
        return str(folder), str(file)
    if p.weights and not p.tokenizer:
        refuse(
            "policy.lora_rank", 0,
            f"policy.weights = {p.weights!r} has a vocabulary of its own, in which adapters alone are trained: set 16",
        )  # fmt: skip
    vocabulary.build(str(file), config.tools)
    return "", str(file)


def learn(model, params: dict, phases: dict, kinds: list["Kind"], checkpoints: Checkpointer, also: list[str]) -> tuple:
    """Goes through the phases, from the newest checkpoint on if there is one: (parameters, curves).

    Args:
      phases: {name: (learning rate, [(kind of step, its number)])}.
      also: the other configs, which have to be the same when it goes on.
    """
    config = kinds[0].run.config
    every, mesh = config.train.checkpoint_every, kinds[0].run.mesh
    curves, seconds, done, before = {}, 0.0, 0, 0
    for name, (rate, steps) in phases.items():
        if not steps:
            continue
        optimizer = warm_optimizer(config.warm, rate, len(steps), config.optim.max_grad_norm)
        state = placed(new_state(params, optimizer), mesh)
        if not done and (saved := checkpoints.restore_latest(state)):
            done, found, host = saved
            if host["also"] != also:
                raise InputError(f"{checkpoints.directory} is of other configs in --also: name those, or delete it")
            curves, seconds = host["curves"], host["seconds"]
        if done >= before + len(steps):  # a phase that is over; the last one holds what was saved
            params, before = (found.params if done == before + len(steps) else params), before + len(steps)
            continue
        state = found if done > before else state
        began = time.time() - seconds
        curve = curves.setdefault(name, [])
        # It stays where it is, so that each kind of step compiles once.
        where = jax.tree.map(lambda x: x.sharding, state), None
        jitted = {
            kind: jax.jit(kind.step(model, optimizer, config.rl.logit_chunk), donate_argnums=0, out_shardings=where)
            for kind in kinds
        }
        first = max(done - before, 0)
        bar = tqdm(steps[first:], desc=name, initial=first, total=len(steps))
        for step, (kind, i) in enumerate(bar, first):
            material, seen = kind.material(i)
            state, metrics = jitted[kind](state, kinds[0].run.frozen, material, kind.run.world)
            if step % 20 < len(kinds) or step + 1 == len(steps):
                metrics = {key: float(value) for key, value in (metrics | seen).items()}
                of = {"benchmark": kind.run.config.task.benchmark, "step": step, "seconds": time.time() - began}
                of |= {"system": kind.system} if kind.system else {}
                curve.append(of | metrics)
                bar.set_postfix(loss=f"{metrics['loss']:.4f}")
            if (step + 1) % every == 0 or step + 1 == len(steps):
                host = {"curves": curves, "seconds": time.time() - began, "also": also}
                checkpoints.save(before + step + 1, state, host)
        seconds = time.time() - began
        params, before = state.params, before + len(steps)
    return params, curves


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A kind of step, and what it learns from."""

    step: Callable  # (model, optimizer, logit_chunk) -> a step
    run: Run
    material: Callable  # of a number: (what is learnt from, metrics)
    system: str = ""  # whose roles are played


def demonstrations(run: Run, size: int) -> Callable:
    """`material` of the demonstrations of a run. Those that come again are played once: a world outside takes long."""
    demos = run.source.tasks.demonstrator(run.source, run.config, run.tokenizer.end_of_turn)
    play, period, kept = jax.jit(recorded(run.spec.rollout)), demos.period(size), {}

    def material(i: int):
        if not period:
            return play(*demos.batch(i, size), run.world)
        if i % period not in kept:
            kept[i % period] = jax.device_get(play(*demos.batch(i, size), run.world))
        return kept[i % period]

    return material


def acting_kind(config: ConfigDict, size: int) -> Kind:
    """Steps on demonstrations of a config's tasks with nothing told before: the goal comes with the task.

    In those of all stages most turns are about what is told, and what a task asks for is not always known.
    """
    told_at_once = config.copy_and_resolve_references()
    told_at_once.task.official = True
    run = build(told_at_once)
    if run.source.staged(0).facts:
        why = f"{config.task.benchmark} always tells something before the task; set it to 0"
        refuse("warm.acting", config.warm.acting, why)
    return Kind(functools.partial(watch_step, run.spec.learn), run, demonstrations(run, size))


def role_kind(run: Run, name: str) -> Kind:
    """Steps on the roles of a memory system in a run's tasks."""
    reading = run.readings(name)
    spec = reading.spec.rollout
    teacher = Teacher(reading.system, run.source, run.config, spec.entries, spec.entry_tokens)
    step = functools.partial(role_step, reading, reading.spec.learn)
    tables = sharding.put(reading.tables, sharding.replicated(run.mesh))
    return Kind(step, run, lambda i: ((*teacher.batch(i, size=spec.batch), tables), {}), name)


def demonstrated(i: int, share: float, watch: list[Kind], play: list[Kind]) -> tuple[Kind, int]:
    """What step i shows: of every so many steps a `share` are of `play`; either kinds take turns."""
    before, after = int(i * share), int((i + 1) * share)
    kinds, number = (play, before) if after > before else (watch, i - before)
    return kinds[number % len(kinds)], number // len(kinds)


def transplant(config, vocabulary_file: Path) -> None:
    """Writes the weights of `warm.weights` beside a vocabulary, with embeddings of its pieces.

    Those that the weights' own vocabulary has too keep theirs, so that what was learnt of these stays learnt.
    """
    own = Path(config.warm.weights) / vocabulary.FILE_NAME  # beside a small policy
    source = ConfigDict({"tokenizer": str(own) if own.is_file() else "", "weights": config.warm.weights})
    theirs, ours = (Tokenizer.load(path) for path in (tokenizer_path(source), str(vocabulary_file)))
    model, params = weights.load(source.weights)
    known, wanted = named_pieces(theirs), named_pieces(ours)
    # The marks of an action are to it what those of an answer are.
    wanted = [piece if piece in known or not piece else piece.replace(b"action>", b"answer>") for piece in wanted]
    table = params["embed_tokens"]["embedding"]
    params["embed_tokens"]["embedding"] = embeddings_for(table, known, wanted, config.seed)
    reach = max(model.longest_context or 0, config.context.limit + config.context.capacity)
    model = dataclasses.replace(model, vocab_size=ours.vocab_size, max_positions=reach)
    weights.save_hf(vocabulary_file.parent, model, params)


def placed(state: TrainState, mesh: Mesh) -> TrainState:
    """The state with what lies on no mesh (counters) on every device of this one."""
    everywhere = sharding.replicated(mesh)
    put = lambda x: x if isinstance(x.sharding, NamedSharding) else sharding.put(x, everywhere)  # noqa: E731
    return jax.tree.map(put, state)


if __name__ == "__main__":
    cli.run(main)
