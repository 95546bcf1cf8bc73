"""Flags that several commands have, each defined once, so that commands can be imported side by side.

A command has those that it asks for by one of these functions, and its --help shows them. What a flag is without a
value differs between commands: the head of each says it.
"""

from collections.abc import Callable
from typing import Any

from absl import flags

from agemem_jax.report.page import METHODS
from experiments.paths import define_path

flags.disclaim_key_flags()  # they are those of the commands

_DEFINED: dict[str, flags.FlagHolder] = {}


def once(define: Callable[..., flags.FlagHolder], name: str, *settings: Any, **more: Any) -> flags.FlagHolder:
    """The flag of a name, which is defined if no command has it yet."""
    if name in _DEFINED:
        flags.declare_key_flag(name)
    else:
        _DEFINED[name] = define(name, *settings, **more)
    return _DEFINED[name]


def run() -> flags.FlagHolder[str]:
    told = "folder of a run, or of one of its seeds (runs/tiny/seed_0), where a single policy is meant"
    return once(define_path, "run", None, told, required=True)


def workdir() -> flags.FlagHolder[str]:
    return once(define_path, "workdir", None, "folder of the run", required=True)


def folder() -> flags.FlagHolder[str]:
    return once(define_path, "folder", None, "where what is made goes", required=True)


def page() -> flags.FlagHolder[str]:
    return once(define_path, "page", None, "where the page goes; in the folder of the run if not given")


def methods() -> flags.FlagHolder[list[str]]:
    told = f"of {', '.join(name for name, *_ in METHODS)}"
    return once(flags.DEFINE_list, "method", [], told)


def tasks() -> flags.FlagHolder[int]:
    return once(flags.DEFINE_integer, "tasks", None, "tasks that are played, of each kind if they are told by kinds",
                lower_bound=1)  # fmt: skip


def weights() -> flags.FlagHolder[str]:
    told = "real weights, as policy.weights; without it those of the tiny default"
    return once(define_path, "weights", None, told)


def path() -> flags.FlagHolder[str]:
    told = "HotpotQA records, as task.path; without it generated questions"
    return once(define_path, "path", None, told)
