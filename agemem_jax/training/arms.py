"""Arms of a study: configs that differ in data alone, trained and evaluated by one compiled program.

A mesh axis `arm` of all devices; the arms of a device run in turn inside the program (`lax.map` in `shard_map`). Every
arm has its state, its tasks and its Control, with an arm axis; parameters that nothing trains, and the device tables,
are shared. An arm's numbers are those of the run of its config on one device (loop.train): the parts of the program are
those of the stage programs, and the noise is the same function of seed, update, stage, slot, column and row.

What may differ (FIELDS, a tool mask, the seed) enters as data: one compilation serves all arms and all evaluations. A
judge or an environment on the host is refused: an arm that waits for the host would hold up the others.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from agemem_jax import sharding
from agemem_jax.config import ConfigError, fits, flatten, nearest_of, refuse, validate
from agemem_jax.data.batches import TaskSource
from agemem_jax.envs.host import HostEnvironment
from agemem_jax.errors import InputError
from agemem_jax.metrics import Clock, MetricWriter, Progress, read_metrics, write_json
from agemem_jax.rl.rewards import CONTEXT_TERMS, MEMORY_TERMS, PENALTY_TERMS, STAGE_TERMS
from agemem_jax.rl.switches import switches_of
from agemem_jax.training.checkpoint import Checkpointer
from agemem_jax.training.distributed import Preempted, say
from agemem_jax.training.evaluate import EVALUATION_SEED, WAYS, Pass, compilations, control
from agemem_jax.training.loop import check_finite, read_json, stages_of, tidy
from agemem_jax.training.programs import ALL_TOOLS, ProgramSpec, arm_program
from agemem_jax.training.setup import Run, build, with_rollout
from agemem_jax.training.state import new_state, state_shapes
from agemem_jax.types import TOOL_NAMES, TrainState

METHOD = "agemem"
MASKED = "masked"  # an arm's tools that it may not call; the prompt names them all the same
WEIGHTS = ("task", "no_answer", "context", "memory", *CONTEXT_TERMS, *MEMORY_TERMS, *PENALTY_TERMS)
FIELDS = (  # in which arms may differ
    "rl.updates", "rl.stage1_updates", "rl.stage2_updates", "rl.whole_every", "rl.schedule", "rl.credit",
    "reward.terms", *(f"reward.{name}" for name in WEIGHTS),
)  # fmt: skip
NAME = re.compile(r"\w[\w '+()=-]*")  # names are folders too


@dataclass(frozen=True)
class Arm:
    """One config and seed of a study."""

    name: str
    changes: dict[str, Any]  # of the base config, by dotted name; and MASKED
    config: ConfigDict

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def masked(self) -> tuple[str, ...]:
        """Tools that it may not call."""
        return tuple(self.changes.get(MASKED, ()))

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.seed}"

    def folder(self, workdir: Path) -> Path:
        """Where its metrics are."""
        return workdir / "arms" / self.name / f"seed_{self.seed}"


@dataclass(frozen=True)
class Study:
    """Arms, and what they share."""

    arms: list[Arm]
    run: Run  # of the base config, on one device
    sources: dict[int, TaskSource]  # training tasks by seed; test tasks are the same for all
    starts: dict[int, Callable[[], dict]]  # by seed, as Run.start
    mesh: Mesh  # one axis, "arm"
    world: Any  # Run.world and Run.frozen, on every device of the mesh
    frozen: dict
    program: Callable  # of compile_arms

    @property
    def updates(self) -> int:
        """Of the arm that has most."""
        return max(arm.config.rl.updates for arm in self.arms)

    def put(self, trees: list) -> Any:
        """One tree of each arm on the arms' devices, [places, ...]; places that no arm has hold zeros."""
        places = -(-len(self.arms) // self.mesh.size) * self.mesh.size
        trees = trees + [jax.tree.map(np.zeros_like, trees[0])] * (places - len(trees))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
        return sharding.put(stacked, NamedSharding(self.mesh, PartitionSpec("arm")))


def arms_of(base: ConfigDict, table: dict[str, dict[str, Any]]) -> list[Arm]:
    """The arms of a study, all with the first seed, then all with the next one (`num_seeds`).

    Args:
      base: a checked config.
      table: by name of an arm, what it changes: {dotted field: value}, and MASKED: names of tools.

    Raises ConfigError naming arm and field for a change that an arm cannot have, and for a base that no study can have.
    """
    check_base(base)
    if not table:
        raise ConfigError("there is no arm; name one")
    configs = {}
    for name, changes in table.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            refuse("arms", name, "an arm's name is made of letters, digits, spaces and _ ' + - ( ) =, a letter first")
        try:
            configs[name] = changed(base, changes)
        except ConfigError as error:
            raise ConfigError(f"arm {name!r}: {error}") from error
    arms = []
    for seed in range(base.seed, base.seed + base.num_seeds):
        for name, config in configs.items():
            one = config.copy_and_resolve_references()
            one.seed, one.num_seeds = seed, 1
            arms.append(Arm(name, dict(table[name]), one))
    return arms


def changed(base: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """The config of an arm, checked. Raises ConfigError for a change that is not data, or cannot run."""
    known = flatten(base)
    if not isinstance(changes, dict):
        raise ConfigError(f"changes = {changes!r}: a dict of dotted fields and values is needed")
    for name, value in changes.items():
        if name == MASKED:
            if not isinstance(value, tuple | list):
                refuse(MASKED, value, f"a tuple of tools is needed, of {', '.join(base.tools.enabled)}")
            for tool in value:
                if tool not in base.tools.enabled:
                    refuse(MASKED, value, f"there is no tool {tool!r}; a tuple of {', '.join(base.tools.enabled)}")
        elif name not in known:
            refuse(name, value, f"there is no such field{nearest_of(name, (*FIELDS, MASKED))}")
        elif name not in FIELDS:
            why = "the seeds of every arm are num_seeds from seed on" if name in ("seed", "num_seeds") else (
                "changes what is compiled or told: give such runs configs of their own"
            )  # fmt: skip
            refuse(name, value, f"{why}; arms may differ in {', '.join((*FIELDS, MASKED))}")
        elif not fits(value, known[name]):
            refuse(name, value, f"a value like {known[name]!r} is needed")
    config = base.copy_and_resolve_references()
    config.update_from_flattened_dict({name: value for name, value in changes.items() if name != MASKED})
    validate(config)
    return config


def check_base(config: ConfigDict) -> None:
    """Raises ConfigError for what no study can have."""
    if config.reward.task_metric == "judge":
        refuse("reward.task_metric", "judge", "arms share a program that never waits for the host; set 'progress'")
    for name in ("data", "fsdp", "tensor"):
        if config.mesh[name] > 1:
            refuse(f"mesh.{name}", config.mesh[name], "an arm lies whole on one device, and the devices share the arms")
    if config.train.eval_every:
        refuse("train.eval_every", config.train.eval_every, "arms are evaluated after their last update only; set 0")
    if config.train.baselines:
        refuse("train.baselines", True, "a study has no baselines; train them with experiments.train")


def on_one_device(config: ConfigDict) -> ConfigDict:
    """A copy of a config that runs on one device, as an arm does."""
    alone = config.copy_and_resolve_references()
    alone.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
    return alone


def build_study(base: ConfigDict, arms: list[Arm], devices: list) -> Study:
    """Reads what the arms share, and each seed's tasks; nothing compiles.

    Raises ConfigError for an environment on the host, and where each seed would have frozen parameters of its own.
    """
    runs: dict[int, Run] = {}
    first = None
    for seed in dict.fromkeys(arm.seed for arm in arms):
        config = on_one_device(base)
        config.seed = seed
        runs[seed] = first = build(config, like=first)
    run = runs[arms[0].seed]
    if isinstance(run.spec.rollout.env, HostEnvironment):
        refuse(
            "task.benchmark", base.task.benchmark,
            "its games are played on the host, and arms share a program that never waits for it; train each arm by "
            "experiments.train",
        )  # fmt: skip
    if len(runs) > 1 and not base.policy.weights and (run.frozen or base.store.encoder.startswith("policy")):
        refuse(
            "policy.weights", "",
            "every seed would have a reference or an encoder of its own; give weights, or set num_seeds = 1",
        )  # fmt: skip
    mesh = Mesh(np.asarray(devices[: len(arms)], dtype=object), ("arm",))
    shared = NamedSharding(mesh, PartitionSpec())
    by_turn = any(arm.config.rl.credit == "turn_to_go" for arm in arms)
    return Study(
        arms,
        run,
        sources={seed: one.source for seed, one in runs.items()},
        starts={seed: one.start for seed, one in runs.items()},
        mesh=mesh,
        world=sharding.put(run.world, shared),
        frozen=sharding.put(run.frozen, shared),
        program=compile_arms(
            with_rollout(run.spec, by_turn=by_turn, trace_rows=0), run.model, run.optimizer, base.rl, base.reward, mesh
        ),
    )


def compile_arms(spec: ProgramSpec, model, optimizer, rl, reward, mesh: Mesh) -> Callable:
    """The jitted program of all arms, which compiles on first use, once.

    (states, frozen, tasks, world, controls, last [A] int32) -> (states, outcome), as `arm_program` for each arm; arms
    with a `last` of 0 are left out: their state stays, their outcome is zeros.
    """
    played = jax.jit(arm_program(spec, model, optimizer, rl, reward))

    def on_device(states, frozen, tasks, world, controls, last):
        def one(arm):
            state, task, asked, until = arm
            run = lambda state: played(state, frozen, task, world, asked, until)  # noqa: E731
            shapes = jax.eval_shape(run, state)[1]
            skip = lambda state: (state, jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes))  # noqa: E731
            return jax.lax.cond(until > 0, run, skip, state)

        return jax.lax.map(one, (states, tasks, controls, last))

    of_arm, shared = PartitionSpec("arm"), PartitionSpec()
    specs = (of_arm, shared, of_arm, shared, of_arm, of_arm)
    return jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=of_arm, check_vma=False), donate_argnums=0
    )


def starting_states(study: Study) -> TrainState:
    """The states of all arms at update 0."""
    fresh = {seed: jax.device_get(new_state(start(), study.run.optimizer)) for seed, start in study.starts.items()}
    return study.put([fresh[arm.seed] for arm in study.arms])


def last_stage(arm: Arm, update: int) -> int:
    """The last stage that an arm plays, and trains, in an update; 0 once it has made all of its own."""
    return stages_of(arm.config, update) if update < arm.config.rl.updates else 0


def arm_control(study: Study, arm: Arm, step: int, way: str = ""):
    """Control of an arm, on the host: of update number `step`, or of a batch of the evaluation that is decoded so."""
    run, config = replace(study.run, config=arm.config), arm.config
    seed, temperature = arm.seed, config.rollout.temperature
    if way:
        seed, temperature = EVALUATION_SEED, Pass(METHOD, way).temperature(config)
    asked = control(run, seed, step, METHOD, temperature, update=not way)
    masked = sum(1 << i for i, name in enumerate(TOOL_NAMES) if name in arm.masked)
    switches = jax.tree.map(np.bool_, switches_of(config.rl, config.reward))
    return asked.replace(tools=np.int32(asked.tools & (ALL_TOOLS ^ masked)), switches=switches)


def inputs(study: Study, update: int) -> tuple:
    """(tasks, controls, last stages) of an update, on the devices."""
    tasks = {seed: source.batch(update) for seed, source in study.sources.items()}
    return tuple(map(study.put, (
        [tasks[arm.seed] for arm in study.arms],
        [arm_control(study, arm, update) for arm in study.arms],
        [np.int32(last_stage(arm, update)) for arm in study.arms],
    )))  # fmt: skip


def update_arms(study: Study, states: TrainState, given: tuple) -> tuple[TrainState, dict]:
    """One update of every arm that has one left: (states, outcome); `given` is of `inputs`."""
    tasks, controls, last = given
    return study.program(states, study.frozen, tasks, study.world, controls, last)


def evaluate_arms(study: Study, states: TrainState, way: str) -> tuple[TrainState, list[dict[str, np.ndarray]]]:
    """Plays the test tasks with every arm, as evaluate.evaluate does with one: (states, the numbers of each)."""
    source, rows = study.run.source, study.run.spec.rollout.batch
    tasks = min(study.run.config.train.eval_tasks, len(source.places["test"]))
    parts: list[list[dict]] = [[] for _ in study.arms]
    for index in range(-(-tasks // rows)):
        task, valid = source.split_batch("test", index, rows)
        valid = valid & (index * rows + np.arange(rows) < tasks)
        controls = [arm_control(study, arm, index, way) for arm in study.arms]
        given = tuple(map(study.put, ([task] * len(parts), controls, [np.int32(3)] * len(parts))))
        states, outcome = update_arms(study, states, given)
        found = jax.device_get(outcome["rows"])
        for i, numbers in enumerate(parts):
            of_arm = {name: value[i] for name, value in found.items()} | {"kind": task.kind}
            numbers.append({name: np.asarray(value, np.float64)[valid] for name, value in of_arm.items()})
    joined = [{name: np.concatenate([part[name] for part in found]) for name in found[0]} for found in parts]
    return states, joined


def metrics_of(arm: Arm, metrics: dict, stage: int) -> dict:
    """The metrics of an update that mean something, of those of `arm_program`."""
    if stage == 3:  # the whole trajectory's
        return {name: value for name, value in metrics.items() if not name.startswith("term_")}
    stages = (stage,) if arm.config.rl.schedule == "sequential" else range(1, stage + 1)
    trained = {f"term_{name}" for k in stages for name in STAGE_TERMS[k]}
    told = lambda name: not name.startswith("rollout/") and (name in trained or not name.startswith("term_"))  # noqa: E731
    return {name: value for name, value in metrics.items() if told(name)}


def described(study: Study) -> ConfigDict:
    """The base config with what each arm is, in words: what a checkpoint has to be of."""
    config = study.run.config.copy_and_resolve_references()
    with config.unlocked():
        config.arms = tuple(
            f"{arm.label}: {json.dumps(arm.changes, sort_keys=True)}, {arm.config.rl.updates} updates"
            for arm in study.arms
        )
    return config


def train_arms(study: Study, workdir: Path, stop: Callable[[], bool]) -> tuple[dict[str, list[dict]], dict[str, float]]:
    """Trains all arms in `workdir`, or goes on where an earlier call was stopped, and evaluates them.

    Args:
      stop: asked before each evaluation and after each update; once it says True, the states are saved and Preempted
        raised.

    Returns:
      (by way of decoding, the numbers of each arm {number: [tasks]}; seconds by purpose, compiling being part of
      train, over all calls).

    Raises InputError if an arm diverges; the checkpoint before is whole.
    """
    config, clock, folder = study.run.config, Clock(), workdir / "arms"
    folder.mkdir(parents=True, exist_ok=True)
    clock.follow("compile", compilations())
    keep, identity = config.train.keep_checkpoints, study.run.identity
    with Checkpointer(folder / "checkpoints", described(study), keep, identity) as kept:
        done, states = restored(study, kept, clock)
        states = update_all(study, states, done, workdir, kept, clock, stop)
        found = {}
        for way in WAYS:
            if stop():
                raise Preempted("stopped before the last evaluations; all updates are saved")
            states, found[way] = evaluate_once(study, states, way, folder, clock)
    write_json(folder / "seconds.json", clock.state())
    return found, clock.state()


def restored(study: Study, kept: Checkpointer, clock: Clock) -> tuple[int, TrainState]:
    """(updates done, states): of the newest checkpoint, whatever devices it was made on, or from the beginning."""
    shapes = state_shapes(study.run.model, study.run.optimizer, study.run.mesh)
    count, home = len(study.arms), sharding.replicated(study.run.mesh)
    of_all = lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=home)  # noqa: E731
    found = kept.restore_latest(jax.tree.map(of_all, shapes))
    if found is None:
        return 0, starting_states(study)
    done, state, host = found
    clock.load(host["clock"])
    say(f"going on from update {done}")
    state = jax.device_get(state)
    return done, study.put([jax.tree.map(lambda x: x[i], state) for i in range(count)])  # noqa: B023


def update_all(
    study: Study, states: TrainState, done: int, workdir: Path, kept: Checkpointer, clock: Clock,
    stop: Callable[[], bool],
) -> TrainState:  # fmt: skip
    """The updates after the first `done`; as training.loop.train_seed."""
    config, total, count = study.run.config, study.updates, len(study.arms)
    writers = [MetricWriter(arm.folder(workdir), arm.config, resume_from=done) for arm in study.arms]
    progress = Progress(total, done, name=f"{count} arms on {study.mesh.size} devices")
    given = inputs(study, done) if done < total else None
    for update in range(done, total):
        began = time.perf_counter()
        with jax.transfer_guard("disallow" if config.train.transfer_guard else "allow"):
            states, outcome = update_arms(study, states, given)
            if update + 1 < total:  # made while the devices work
                given = inputs(study, update + 1)
            found = jax.device_get(outcome["metrics"])
        seconds = time.perf_counter() - began
        clock.add("train", seconds)
        stages = [last_stage(arm, update) for arm in study.arms]
        each = seconds / sum(stage > 0 for stage in stages)
        for i, (arm, stage, writer) in enumerate(zip(study.arms, stages, writers, strict=True)):
            if stage:
                of_arm = metrics_of(arm, {name: value[i] for name, value in found.items()}, stage)
                record = tidy(of_arm, update, stage, each, study.run)
                try:
                    check_finite(record, kept)
                except InputError as error:
                    raise InputError(f"arm {arm.label}: {error}") from error
                writer.write(update + 1, record)
        progress.step(update + 1, {"stage": " and ".join(str(stage) for stage in sorted({*stages} - {0}))})
        last, stopping = update + 1 == total, stop()
        if last or stopping or (update + 1) % config.train.checkpoint_every == 0:
            with clock.measure("checkpoint"):
                of_arms = jax.tree.map(lambda x: x[:count], states)
                kept.save(update + 1, of_arms, {"clock": clock.state()}, wait=stopping)
        if stopping:
            break
    progress.close()
    for writer in writers:
        writer.close()
    if done < total and stopping:
        raise Preempted(f"stopped after update {update + 1} of {total}, which is saved")
    kept.wait()
    return states


def evaluate_once(
    study: Study, states: TrainState, way: str, folder: Path, clock: Clock
) -> tuple[TrainState, list[dict]]:
    """The evaluation that is decoded in a way; read where it was made before, of the same arms. Its seconds are added
    to the clock, also those of before: no checkpoint has them."""
    began = time.perf_counter()
    path = folder / f"evaluation_{way}.json"
    asked = json.loads(json.dumps({"config": described(study).to_dict(), "identity": study.run.identity}))
    if path.exists() and (was := read_json(path)) and {name: was[name] for name in asked} == asked:
        clock.add("eval", was.get("seconds", 0.0))
        return states, [{name: np.array(values, float) for name, values in one.items()} for one in was["numbers"]]
    say(f"evaluating {len(study.arms)} arms, {way}, on {study.run.config.train.eval_tasks} test tasks")
    states, numbers = evaluate_arms(study, states, way)
    seconds = time.perf_counter() - began
    clock.add("eval", seconds)
    write_json(path, asked | {"numbers": numbers, "seconds": seconds})
    return states, numbers


def learning_curve(arm: Arm, workdir: Path, name: str) -> list[tuple[int, float]]:
    """(update, value) of a metric of an arm, where it was recorded."""
    rows = read_metrics(arm.folder(workdir) / "metrics.jsonl")
    return [(row["update"], row[name]) for row in rows if row.get(name) is not None]
