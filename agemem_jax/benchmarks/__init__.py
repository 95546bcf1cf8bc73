"""One folder a benchmark (envs/base.py says what is in it); nothing outside knows their names.

Its module `tasks` has `load(config, tokenizer)`, which gives a Benchmark and raises InputError or ConfigError for what
cannot be used. READS_LABELS is True there if it does with `task.labels_path`.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from agemem_jax.config import refuse
from agemem_jax.data.batches import Tasks, TaskSource
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.base import Environment
from agemem_jax.tools.layout import Language


@dataclass(frozen=True)
class Benchmark:
    """What a run takes from a benchmark."""

    tasks: Tasks  # what is told and asked
    env: Environment  # what task actions go to
    shared: Any  # its tables
    language: Language = ()  # of its task actions, if it has one: all that is ever understood


def load(config, tokenizer: Tokenizer) -> Benchmark:
    """The benchmark `task.benchmark`. Raises ConfigError if there is none of that name, else as its `load`."""
    name, known = config.task.benchmark, sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)
    if name not in known:
        refuse("task.benchmark", name, f"must be one of {', '.join(known)}")
    tasks = importlib.import_module(f"{__name__}.{name}.tasks")
    if not hasattr(tasks, "load"):
        refuse("task.benchmark", name, "has an engine and no tasks to train and evaluate on yet; hotpotqa has")
    if config.task.labels_path and not getattr(tasks, "READS_LABELS", False):
        refuse("task.labels_path", config.task.labels_path, f"{name} reads no label file; set it to ''")
    return tasks.load(config, tokenizer)


def task_source(config, tokenizer: Tokenizer) -> TaskSource:
    """The batches of a run. Raises as `load` and TaskSource."""
    return TaskSource(config, tokenizer, load(config, tokenizer).tasks)
