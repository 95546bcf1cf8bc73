"""One evaluation path: the training programs with other settings, on tasks of their own, padding rows masked."""

import functools
import time
from dataclasses import dataclass

import jax
import numpy as np

from agemem_jax import sharding
from agemem_jax.envs.judge import SILENCE
from agemem_jax.errors import InputError
from agemem_jax.rl import rewards
from agemem_jax.rollout.rows import Rules, rules
from agemem_jax.rollout.turn import NO_CALL
from agemem_jax.training.programs import ALL_TOOLS, Control, trajectory
from agemem_jax.training.setup import Run
from agemem_jax.types import TOOL_NAMES, Op, TrainState


@dataclass(frozen=True)
class Method:
    """How the test tasks are played."""

    rules: Rules = rules()
    tools: bool = False  # it has those that are enabled
    by_rule: bool = False  # of these the store's alone: what is like it is shown with every message
    trained: bool = False  # with its own rules; else it acts with the starting weights
    roomy: bool = False  # its rows hold all that is told (setup.Run.roomy)
    system: str = ""  # what it has programs of its own for (setup.system_programs); experiments/evaluate.py plays it


CUT = rules(answers_only=True, keeps_context=True, keeps_limit=True)
WHOLE = rules(answers_only=True, keeps_context=True)
BY_RULE = rules(answers_only=True, keeps_limit=True, stores=True)
METHODS = {
    "no_memory": Method(CUT),  # what is told stays in the context as long as it fits
    "full_context": Method(WHOLE, roomy=True),  # and all of it does: the upper bound
    "store_all": Method(BY_RULE, roomy=True),  # all is stored by rule, and what is like the question is shown with it
    "store_recent": Method(BY_RULE),  # the same with the agent's store: of the messages, it holds the newest
    "no_memory_rl": Method(CUT, trained=True),
    "store_all_rl": Method(BY_RULE, trained=True, roomy=True),
    "store_recent_rl": Method(BY_RULE, trained=True),
    "agemem_norl": Method(tools=True),
    "agemem": Method(tools=True, trained=True),
    # The policy plays the system's roles in stages 1 and 2; what it stored is shown with the question, by rule.
    "mem0_classic": Method(BY_RULE, roomy=True, system="mem0_classic"),
    "mem0_additive": Method(BY_RULE, roomy=True, system="mem0_additive"),
    "memagent": Method(BY_RULE, roomy=True, system="memagent"),
    "amem": Method(CUT, roomy=True, system="amem"),  # it searches by keywords of its own, before the question comes
    "bm25": Method(BY_RULE, roomy=True, system="bm25"),  # as store_all, ranked by words
    "bm25_rl": Method(BY_RULE, trained=True, roomy=True, system="bm25"),
    # The paper's "-RAG": the context's tools and Retrieve_memory are replaced by retrieval with every message.
    "agemem_norl_rag": Method(tools=True, by_rule=True, system="rag"),
    "agemem_rag": Method(tools=True, by_rule=True, trained=True, system="rag"),
}
UNTRAINED = tuple(name for name, method in METHODS.items() if not method.trained and not method.system)
BASELINES = tuple(
    name for name, method in METHODS.items() if method.trained and not method.system and name != "agemem"
)
WAYS = ("greedy", "sampled")  # how turns are decoded; sampled: at the temperature of training
STORE_TOOLS = 1 << Op.ADD | 1 << Op.UPDATE | 1 << Op.DELETE
EVALUATION_SEED = 1_000_003  # noise of evaluations, the same for every method


@dataclass(frozen=True)
class Pass:
    """One evaluation: who plays the tasks, how, and which tool is taken from it."""

    method: str  # one of METHODS
    way: str  # one of WAYS
    without: str = ""  # a name in TOOL_NAMES; "" = it has all its tools

    @property
    def name(self) -> str:
        """Such as agemem-greedy, agemem-sampled-Add_memory: the evaluation's place among a run's files."""
        return "-".join(filter(None, (self.method, self.way, self.without)))

    def temperature(self, config) -> float:
        """0 is greedy."""
        return 0.0 if self.way == "greedy" else config.rollout.temperature


def passes_of(config, method: str) -> list[Pass]:
    """The evaluations of a method: each way, and for the trained agent with each tool masked in turn."""
    passes = [Pass(method, way) for way in WAYS]
    if method == "agemem":
        masked = [name for name in TOOL_NAMES if name in config.tools.enabled]
        passes += [Pass(method, way, tool) for way in WAYS for tool in masked]
    return passes


def shares_weights(config, method: str) -> bool:
    """Whether a method acts with the same weights, and so the same, for every seed."""
    return not METHODS[method].trained and bool(config.policy.weights)


def programs_of(run: Run, method: str) -> dict:
    """The stage programs that a method plays in."""
    if system := METHODS[method].system:
        return run.systems(system, METHODS[method].trained)
    return run.roomy if METHODS[method].roomy else run.programs


def method_tools(config, method: str, without: str = "") -> int:
    """Bit mask over Op of the memory tools that a method may use; the tool `without` is masked."""
    if not METHODS[method].tools:
        return 0
    enabled = [name for name in config.tools.enabled if name != without]
    of = STORE_TOOLS if METHODS[method].by_rule else ALL_TOOLS
    return sum(1 << i for i, name in enumerate(TOOL_NAMES) if name in enabled) & of


def control(
    run: Run, seed: int, step: int, method: str, temperature: float, update: bool, without: str = ""
) -> Control:
    """Control of one pass through the stage programs, on the host."""
    return Control(
        seed=np.uint32(seed),
        step=np.int32(step),
        temperature=np.float32(temperature),
        tools=np.int32(method_tools(run.config, method, without)),
        rules=METHODS[method].rules,
        update=np.bool_(update),
        reward=rewards.factors(run.config.reward),
        noise_row=np.arange(run.spec.rollout.batch, dtype=np.int32),
        suppress=np.full(run.spec.rollout.batch, NO_CALL, np.int32),
    )


def evaluate(run: Run, state: TrainState, frozen: dict, one: Pass, tasks: int, split: str = "test"):
    """Plays `tasks` tasks of a split (as many as it has), one rollout each.

    Returns:
      (state, the programs donate and return it; numbers {name: [tasks] float}, "kind" (Task.kind) among them; device
      traces of the first batch by stage, and task indices of the traced rows; of each batch the rows that count, and
      the seconds it took, None where something compiled). Numbers and traces are the same in every process, and row i
      of the numbers is the same task in every pass.

    Raises InputError if a judge was asked about SILENCE answers or more and gave no verdict at all.
    """
    rows = run.spec.rollout.batch
    tasks = min(tasks, len(run.source.places[split]))
    numbers: dict[str, list[np.ndarray]] = {}
    first, timed = None, []
    for index in range(-(-tasks // rows)):
        began, compiled = time.perf_counter(), len(compilations())
        task, valid = run.source.split_batch(split, index, rows)
        valid = valid & (index * rows + np.arange(rows) < tasks)
        temperature = one.temperature(run.config)
        settings = control(run, EVALUATION_SEED, index, one.method, temperature, update=False, without=one.without)
        placed = sharding.put(task, sharding.rows(run.mesh))
        state, outcome, traces = trajectory(
            programs_of(run, one.method), state, frozen, placed, run.world, settings
        )
        by_row = summed(jax.device_get([outcome["rows"], *outcome["read"]]))
        for name, value in (by_row | {"kind": task.kind}).items():
            numbers.setdefault(name, []).append(np.asarray(value, np.float64)[valid])
        seconds = time.perf_counter() - began
        timed.append((int(valid.sum()), seconds if len(compilations()) == compiled else None))
        if first is None:
            first = (jax.device_get(traces), by_row), task
    joined = {name: np.concatenate(parts) for name, parts in numbers.items()}
    if "judge_failed" in joined and count_unheard(joined["judge_asked"].sum(), joined["judge_failed"].sum()) >= SILENCE:
        refuse_silence(run, f"the evaluation {one.name}")
    return state, joined, first, timed


@functools.cache
def compilations() -> list[float]:
    """The seconds of every compilation of this process since the first call; the list grows."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def summed(parts: list[dict]) -> dict:
    """Numbers of rows, those of several stages added."""
    total: dict = {}
    for part in parts:
        total |= {name: total[name] + value if name in total else value for name, value in part.items()}
    return total


def count_unheard(asked: float, failed: float, before: int = 0) -> int:
    """Answers in a row on which the judge gave no verdict: `before`, and those of a batch; 0 if it gave one."""
    return before + round(failed) if round(asked) == round(failed) else 0


def refuse_silence(run: Run, when: str) -> None:
    """Ends a run whose judge is silent: its rewards would be nobody's opinion."""
    raise InputError(
        f"reward.judge = {run.config.reward.judge!r} gave no verdict on any answer of {when}; the warning before this "
        "says why; mend it and start the same command again"
    )
