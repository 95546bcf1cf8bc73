"""The training loop on the host: batches in, three programs, one metrics fetch an update, checkpoints, evaluations.

With several processes all run this loop alike; process 0 alone writes what is not a checkpoint, and prints.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax import sharding
from agemem_jax.config import difference, from_json, to_json
from agemem_jax.envs.judge import SILENCE
from agemem_jax.errors import InputError
from agemem_jax.methods.tables import SYSTEMS
from agemem_jax.methods.teaching import Teacher
from agemem_jax.metrics import Clock, MetricWriter, Progress, replace_text, write_json
from agemem_jax.models.weights import HF_NAMES
from agemem_jax.training import identity as identities
from agemem_jax.training.checkpoint import Checkpointer, intact_in_words, may_differ
from agemem_jax.training.distributed import (
    Preempted,
    agree,
    agree_on,
    is_leader,
    open_channels,
    say,
    share_folder,
)
from agemem_jax.training.evaluate import (
    METHODS,
    UNTRAINED,
    WAYS,
    Pass,
    compilations,
    control,
    count_unheard,
    evaluate,
    passes_of,
    programs_of,
    refuse_silence,
    shares_weights,
)
from agemem_jax.training.programs import trajectory
from agemem_jax.training.setup import Run
from agemem_jax.training.state import new_state, state_shapes
from agemem_jax.training.summary import environment
from agemem_jax.training.traces import render_traces
from agemem_jax.types import TrainState

REMEDY = "fetch the file again, or set a wider policy.param_dtype"  # of weights that are not finite
GLANCE = 4096  # bytes of each tensor by which a process checks that its weights are those of process 0


def stages_of(config, update: int, method: str = "agemem") -> int:
    """The last stage that runs, and trains, in an update: 3, in the first `rl.stage1_updates` 1 and in the next
    `rl.stage2_updates` 2 but for each `rl.whole_every`-th, or in the sequential schedule each stage for a third.

    A method that only answers has nothing to learn before stage 3.
    """
    if METHODS[method].rules.answers_only:
        return 3
    if config.rl.schedule == "chained":
        first, second, every = config.rl.stage1_updates, config.rl.stage2_updates, config.rl.whole_every
        if every and update % every == every - 1:
            return 3
        return 1 if update < first else 2 if update < first + second else 3
    return min(3, 1 + update * 3 // config.rl.updates)


def train_update(run: Run, state: TrainState, frozen: dict, update: int, task, method: str = "agemem"):
    """One update of a method: (state, outcome). A function of (config.seed, update) and the state alone."""
    settings = control(run, run.config.seed, update, method, run.config.rollout.temperature, update=True)
    state, outcome, _ = trajectory(
        programs_of(run, method), state, frozen, task, run.world, settings, stages_of(run.config, update, method)
    )
    return state, outcome


def train(
    run: Run,
    workdir: Path,
    stop: Callable[[], bool] = lambda: False,
    first: bool = True,
    method: str = "agemem",
    only: tuple[Pass, ...] = (),
) -> dict[Pass, dict[str, list[float]]]:
    """Trains one seed in `workdir`, or goes on where an earlier call was stopped; returns its evaluations.

    Args:
      workdir: the same folder for all processes.
      stop: asked before each evaluation and after each update; once it says True, the state is saved and Preempted
        raised (training.distributed.Notice).
      first: of the seeds. A later one leaves out the methods whose weights are the same for all of them.
      method: which one learns. Those that do not are evaluated beside "agemem", not beside a baseline.
      only: the only evaluations to make, after the last update; (): all.

    Returns:
      The numbers of each evaluation, {number: [tasks]}; {} in other processes than 0.
    """
    config = run.config
    untrained = [name for name in UNTRAINED if first or not shares_weights(config, name)] if method == "agemem" else []
    before = [one for name in untrained for one in passes_of(config, name)]
    after = passes_of(config, method)
    if only:
        before, after = [], list(only)
    meet(run)
    keep = config.train.keep_checkpoints
    with Checkpointer(workdir / "checkpoints", config, keep, run.identity) as checkpoints:
        train_seed(run, workdir, checkpoints, stop, method, before, after)
    return {one: read_json(result_path(workdir, one))["numbers"] for one in before + after if is_leader()}


def meet(run: Run) -> None:
    """Several processes make sure that they have read the same, and connect their devices."""
    if jax.process_count() > 1:
        agree_on(read_here(run))
    open_channels(run.mesh)


def train_seed(
    run: Run,
    workdir: Path,
    checkpoints: Checkpointer,
    stop: Callable[[], bool],
    method: str,
    before: list[Pass],
    after: list[Pass],
) -> None:
    """The loop itself: evaluations before, updates, evaluations after."""
    config, clock, name = run.config, Clock(), name_of(run.config, method)
    frozen = run.frozen
    done, owed = 0, False
    restored = checkpoints.restore_latest(state_shapes(run.model, run.optimizer, run.mesh))
    if is_leader():
        replace_text(workdir / identities.FILE, identities.to_json(run.identity, environment()))
    check_params(frozen, begun_with(run), REMEDY)
    if restored is None:
        state = fresh_state(run)
    else:
        done, state, host = restored
        remedy = "it was saved after the run diverged; delete its folder to go on from the one before it"
        check_params(state.params, f"checkpoint {checkpoints.directory / f'{done:08d}'}", remedy)
        clock.load(host["clock"])
        owed = host.get("evaluation_owed", False)
        say(f"{name}: going on from update {done}")
    clock.follow("compile", compilations())  # which are part of "train" or "eval" as well
    for one in before:
        if done == 0:
            if stop():
                raise Preempted(f"{name}: stopped before the first update")
            state = evaluate_once(run, state, frozen, one, 0, workdir, clock)
    writer = Writer(workdir, config, done, name) if is_leader() else None
    task = put_batch(run, done) if done < config.rl.updates else None
    if owed:
        state = evaluate_between(run, state, frozen, done, clock, writer, method)
    unheard, rows = 0, run.spec.rollout.batch
    for update in range(done, config.rl.updates):
        began = time.perf_counter()
        with jax.transfer_guard("disallow" if config.train.transfer_guard else "allow"):
            state, outcome = train_update(run, state, frozen, update, task, method)
            if update + 1 < config.rl.updates:  # made while the device works
                task = put_batch(run, update + 1)
            metrics = jax.device_get(outcome["metrics"])
        seconds = time.perf_counter() - began
        clock.add("train", seconds)
        record = tidy(metrics, update, stages_of(config, update, method), seconds, run)
        if "judge_failed" in record:
            unheard = count_unheard(record["judge_asked"] * rows, record["judge_failed"] * rows, unheard)
        if unheard >= SILENCE:  # the program has not updated on the last of them
            checkpoints.save(update, state, {"clock": clock.state(), "evaluation_owed": False}, wait=True)
            refuse_silence(run, f"update {update + 1} (the state before it is saved)")
        check_finite(record, checkpoints)
        if writer:
            writer.update(update + 1, record)
        last, stopping = update + 1 == config.rl.updates, stop()
        owed = bool(config.train.eval_every) and (update + 1) % config.train.eval_every == 0 and not last
        if owed and not stopping:
            state = evaluate_between(run, state, frozen, update + 1, clock, writer, method)
            owed = False
        if last or stopping or (update + 1) % config.train.checkpoint_every == 0:
            with clock.measure("checkpoint"):  # what the loop waits for; the rest is written beside it
                kept = {"clock": clock.state(), "evaluation_owed": owed}
                checkpoints.save(update + 1, state, kept, wait=stopping)
        if stopping:
            if writer:
                writer.close()
            raise Preempted(f"{name}: stopped after update {update + 1} of {config.rl.updates}, which is saved")
    checkpoints.wait()
    if writer:
        writer.close()
    for one in after:
        if stop():
            raise Preempted(f"{name}: stopped before the last evaluations; all updates are saved")
        state = evaluate_once(run, state, frozen, one, config.rl.updates, workdir, clock)
    if is_leader():
        write_json(workdir / "seconds.json", clock.state())
        write_json(workdir / "cut_texts.json", run.source.cut_texts)


def name_of(config, method: str) -> str:
    """What is trained, as messages name it."""
    return f"seed {config.seed}" + ("" if method == "agemem" else f", {method}")


class Writer:
    """The metrics of a run and its progress, in process 0; `done` updates were made before."""

    def __init__(self, workdir: Path, config, done: int, name: str):
        self.metrics = MetricWriter(workdir, config, resume_from=done)
        self.progress = Progress(config.rl.updates, done, name=name)

    def update(self, update: int, record: dict) -> None:
        """Adds the metrics of an update."""
        self.metrics.write(update, record)
        self.progress.step(update, record)

    def close(self) -> None:
        """Ends the bar's line and closes the files."""
        self.progress.close()
        self.metrics.close()


def read_here(run: Run) -> dict[str, str]:
    """What every process must have read alike: the identity, with a look at this machine's weights, and the config."""
    versions = {name: value for name, value in environment().items() if name in ("agemem_jax", "jax", "numpy")}
    weights = {"weights": identities.of_weights(run.config.policy.weights, most=GLANCE)}
    return run.identity | weights | {"config": to_json(run.config), "versions of libraries": json.dumps(versions)}


def put_batch(run: Run, update: int):
    """The tasks of an update on the devices. Every process makes the whole batch and places its own rows."""
    return sharding.put(run.source.batch(update), sharding.rows(run.mesh))


def evaluate_between(
    run: Run, state: TrainState, frozen: dict, update: int, clock: Clock, writer: Writer | None, method: str
) -> TrainState:
    """The evaluation after every `train.eval_every` updates, greedy, on validation tasks: eval/... in the metrics."""
    with clock.measure("eval"):
        one, tasks = Pass(method, "greedy"), run.config.train.eval_tasks
        state, numbers, *_ = evaluate(run, state, frozen, one, tasks, split="validation")
        kinds = numbers.pop("kind")
        record = {f"eval/{name}": float(v.mean()) for name, v in numbers.items()}
        for kind, name in enumerate(run.source.tasks.kinds):
            if (kinds == kind).any():
                record[f"eval/progress/{name}"] = float(numbers["progress"][kinds == kind].mean())
        if writer:
            writer.metrics.write(update, record)
    return state


def result_path(workdir: Path, one: Pass) -> Path:
    """Where an evaluation is kept."""
    return workdir / f"evaluation_{one.name}.json"


def evaluate_once(
    run: Run, state: TrainState, frozen: dict, one: Pass, updates: int, workdir: Path, clock: Clock
) -> TrainState:
    """One evaluation after `updates` updates; skipped where that was done before. Keeps numbers, and a method's greedy
    traces. Its seconds are added to the clock, also those of before: no checkpoint has them."""
    path, began = result_path(workdir, one), time.perf_counter()
    if agree(lambda: is_evaluated(path, run.config, run.identity, updates, one.method)):
        if is_leader():  # whose clock is the one that is kept
            clock.add("eval", read_json(path).get("seconds", 0.0))
        return state
    name = f"seed {run.config.seed}"
    say(f"{name}: evaluating {one.name} on {run.config.train.eval_tasks} test tasks")
    state, numbers, traced, timed = evaluate(run, state, frozen, one, run.config.train.eval_tasks)
    seconds = time.perf_counter() - began
    clock.add("eval", seconds)
    if is_leader():
        played = {}
        if one == Pass(one.method, "greedy"):
            records = render_traces(run, traced, one.method, "after" if updates else "before")
            write_json(workdir / f"traces_{one.method}.json", records)
            played = roles_played(run, one.method, records)
        kept = {"updates": updates, "config": run.config.to_dict(), "identity": run.identity, "numbers": numbers}
        kept |= {"seconds": seconds, "batches": [{"tasks": tasks, "seconds": took} for tasks, took in timed]}
        kept |= {"roles": played} if played else {}
        write_json(path, kept)
    shown = ", ".join(f"{key} {np.mean(numbers[key]):.3f}" for key in ("progress", "memory_quality", "reward"))
    say(f"{name}: {one.name}: {shown}")
    return state


def roles_played(run: Run, method: str, records: list[dict]) -> dict:
    """How far the roles of a method's memory system were played rightly in traces (Teacher.agreement)."""
    name = METHODS[method].system
    if name not in SYSTEMS:
        return {}
    system, _, spec = run.readings(name)
    rollout = spec.rollout
    teacher = Teacher(system, run.source, run.config, rollout.entries, rollout.entry_tokens)
    return teacher.agreement(records)


def evaluate_ways(
    run: Run, workdir: Path, method: str, updates: int, start: Callable[[], TrainState],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict]:  # fmt: skip
    """Evaluates a method in every way, without training; what was evaluated before is not played again.

    Args:
      workdir: the same folder for all processes.
      updates: that made the policy.
      start: makes the state that plays, if anything is left to play.
      stop: asked before each evaluation; once it says True, Preempted is raised.

    Returns:
      By way what was kept of it ("numbers" and, of a memory system, "roles" in the greedy one); {} in other processes
      than 0.
    """
    meet(run)
    share_folder(workdir)
    state = None
    for one in (Pass(method, way) for way in WAYS):
        if agree(lambda one=one: is_evaluated(result_path(workdir, one), run.config, run.identity, updates, method)):
            continue
        if stop():
            raise Preempted(f"{name_of(run.config, method)}: stopped before its {one.way} evaluation")
        state = evaluate_once(run, start() if state is None else state, run.frozen, one, updates, workdir, Clock())
    return {way: read_json(result_path(workdir, Pass(method, way))) for way in WAYS if is_leader()}


def fresh_state(run: Run) -> TrainState:
    """The state before any update. Raises InputError if the policy it begins with is not finite."""
    state = new_state(run.start(), run.optimizer)
    check_params(state.params, begun_with(run), REMEDY)
    return state


def begun_with(run: Run) -> str:
    """Where the policy comes from, in words."""
    return f"policy.weights = {run.config.policy.weights!r}"


def is_evaluated(
    path: Path, config, identity: identities.Identity | None, updates: int, method: str = "agemem"
) -> bool:
    """Whether a file holds this evaluation of a method: after as many updates, by config and inputs that give the same
    numbers. identity: None where it is not known yet; then the inputs must have the same paths."""
    if not path.exists():
        return False
    kept = read_json(path)
    was = kept.get("identity")  # older versions kept none: their paths must be the same
    changed = difference(config, from_json(json.dumps(kept["config"])))
    same = kept["updates"] == updates and (identity is None or was in (None, identity))
    known = was is not None and identity is not None
    return same and all(free_of_evaluation(name, config, known, method) for name in changed)


def free_of_evaluation(name: str, config, content_known: bool, method: str) -> bool:
    """Whether a method's evaluation stays valid with another value of this field (checkpoint.may_differ)."""
    of_systems = name.startswith("methods.") and METHODS[method].system
    decides = name in ("train.eval_tasks", "train.traces") or of_systems
    return may_differ(name, config, content_known) and not decides


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def tidy(metrics: dict, update: int, stage: int, seconds: float, run: Run) -> dict:
    """The metrics of an update as they are written: plain floats under the report's names."""
    out: dict = {"update": update + 1, "stage": stage, "seconds": seconds}
    for name, value in metrics.items():
        name = name.removeprefix("rollout/")
        for short, long in (("term_", "term/"), ("reward_", "reward/"), ("calls_", "calls/"), ("memory_", "memory/")):
            name = long + name.removeprefix(short) if name.startswith(short) else name
        out[name] = float(value)
    rows = run.spec.rollout.batch
    if "generated_tokens" in out:
        out["tokens_per_s"] = out["generated_tokens"] * rows / seconds
        out["trained_tokens_per_s"] = out["trained_tokens"] / seconds
    return out


def check_finite(record: dict, checkpoints: Checkpointer) -> None:
    """Raises InputError if a run has diverged, before anything of the update is saved or evaluated."""
    bad = [name for name in ("loss", "grad_norm", "reward") if not np.isfinite(record.get(name, 0.0))]
    bad += ["parameters"] if record.get("params_finite", 1.0) < 1 else []
    if bad:
        checkpoints.wait()
        raise InputError(
            f"update {record['update']}: {', '.join(bad)} not finite: the run has diverged. Nothing of this update was "
            f"saved; {intact_in_words(checkpoints.directory)}. Lower optim.learning_rate or optim.max_grad_norm and "
            "start again in a new --workdir"
        )


def check_params(params: dict, origin: str, remedy: str) -> None:
    """Raises InputError naming the first of the parameters that is not finite; looked for on the devices."""
    for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(finite_layers(params))):
        name = "/".join(entry.key for entry in path)
        if not finite.all():
            layer = f", layer {np.flatnonzero(~finite)[0]}," if finite.ndim else ""
            tensor = f" ({HF_NAMES[name].format(np.flatnonzero(~finite.ravel())[0])})" if name in HF_NAMES else ""
            raise InputError(f"{origin}: {name}{layer}{tensor} holds NaN or infinity; {remedy}")


@jax.jit
def finite_layers(params: dict) -> dict:
    """Whether each parameter is finite throughout; of those of the layers [L] bool, one for each layer."""

    def finite(path, x):
        return jnp.isfinite(x).all(axis=tuple(range(path[0].key == "layers", x.ndim)))

    return jax.tree_util.tree_map_with_path(finite, params)
