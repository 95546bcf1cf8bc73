"""Runs many command lines of experiments/ in one process that has imported what they need, each in a fork of its own.

Read: {"NAME": {"command": "train", "flags": [...], "folder": "..."}}, written: {"NAME": [exit code, stdout, stderr]}.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback

SECONDS = 120  # for one command line


def fork(case: dict) -> list:
    """[exit code, stdout, stderr] of a command line, run as `python -m experiments.COMMAND FLAGS` in a folder."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            os.chdir(case["folder"])
            sys.argv = [f"{case['command']}.py", *case["flags"]]
            code = 0
            try:
                runpy.run_module(f"experiments.{case['command']}", run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
        return [os.waitstatus_to_exitcode(status), *texts]


if __name__ == "__main__":
    import gguf  # noqa: F401
    import transformers  # noqa: F401

    from agemem_jax.planning import page, plan  # noqa: F401
    from agemem_jax.training import loop, setup, summary, warm  # noqa: F401
    from experiments import cli, paths  # noqa: F401
    from experiments.benchmark import parts  # noqa: F401

    json.dump({name: fork(case) for name, case in json.load(sys.stdin).items()}, sys.stdout)
