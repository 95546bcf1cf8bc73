"""What each tool is worth to one who knows how to use it: scripted oracles, with all tools and without each.

    python -m experiments.oracles --config=configs/tiny.py [--tasks=64] [--out=FILE]

Test questions of every kind (64 if --tasks is not given) are played in the real environment by scripts
(benchmarks/hotpotqa/oracles.py). The table has the score of the oracle with all tools, and for each tool that of the
best oracle without it, on the kinds made for that tool.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.benchmarks.hotpotqa.oracles import FULL, WITHOUT, Oracle, Strategy
from agemem_jax.benchmarks.hotpotqa.questions import KINDS, MADE_FOR
from agemem_jax.data.scripts import Lines, Writer
from agemem_jax.data.staged import StagedRecord
from agemem_jax.errors import InputError
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import run_stage
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.setup import Run, build
from agemem_jax.training.traces import Marks
from agemem_jax.training.warm import script_writer
from agemem_jax.types import NO_MESSAGE, TOOL_NAMES, Role
from experiments import cli, out, shared_flags

TASKS = shared_flags.tasks()


def main(config) -> None:
    if config.task.path:
        raise InputError("task.path: oracles know the generated questions alone; leave it empty")
    config.policy.weights = ""  # nothing is generated
    results = measure(Stage(build(config)), TASKS.value or 64)
    print(f"{'tool':<18}{'kinds':<16}{'full':>7}{'without':>9}{'loss':>7}  best without it")
    for tool, row in results["tools"].items():
        print(
            f"{tool:<18}{', '.join(row['kinds']):<16}{row['full']:>7.3f}{row['without']:>9.3f}"
            f"{row['full'] - row['without']:>7.3f}  {row['best']}"
        )
    print("all tools by kind: " + ", ".join(f"{kind} {score:.3f}" for kind, score in results["full"].items()))
    out.write(results)


def measure(stage: "Stage", tasks: int) -> dict:
    """Mean F1 of the full oracle by kind, and of the best oracle without each tool on the kinds made for it."""
    picks = stage.picks(tasks)
    full = dict(zip(picks, stage.scores(FULL, list(picks.values())), strict=True))
    tools = {}
    for op, strategies in WITHOUT.items():
        kinds = [kind for kind in MADE_FOR[TOOL_NAMES[op]] if kind in picks]
        if not kinds:
            continue
        scores = {s.name: float(np.mean(stage.scores(s, [picks[kind] for kind in kinds]))) for s in strategies}
        best = max(scores, key=scores.get)
        tools[TOOL_NAMES[op]] = {
            "kinds": kinds,
            "full": float(np.mean([full[kind] for kind in kinds])),
            "without": scores[best],
            "best": best,
            "strategies": scores,
        }
    return {"tasks_of_a_kind": tasks, "full": full, "tools": tools}


class Stage:
    """Plays scripts, a batch at a time, and looks at what came of them."""

    def __init__(self, run: Run):
        self.run, self.spec = run, run.spec.rollout
        self.writer = Writer(run.source, run.config, run.tokenizer.end_of_turn)
        self.oracle, self.marks = Oracle(run.config), Marks(run.tokenizer, run.world.pieces)
        spec = self.spec

        @jax.jit
        def episode(task, script, world):
            rows = new_rows(spec)
            for stage in (1, 2, 3):
                write = script_writer(world, spec, script, stage)
                rows, _ = run_stage(rows, task, world, spec, stage, write, jnp.int32(ALL_TOOLS))
            return rows

        self.episode = episode

    def picks(self, most: int) -> dict[str, list[int]]:
        """Up to so many test records of each kind that there is."""
        source = self.run.source
        of_kind = {kind: [i for i in source.places["test"] if source.records[i]["kind"] == kind] for kind in KINDS}
        return {kind: chosen[:most] for kind, chosen in of_kind.items() if chosen}

    def scores(self, strategy: Strategy, groups: list[list[int]]) -> list[float]:
        """Mean F1 of each group of records."""
        played = self.play(strategy, [index for group in groups for index in group])
        ends = np.cumsum([len(group) for group in groups])
        return [float(np.mean(part)) for part in np.split(played, ends[:-1])]

    def play(self, strategy: Strategy, indices: list[int]) -> np.ndarray:
        """F1 of each record."""
        return self.episodes(lambda record: self.oracle.play(record, strategy), indices).progress.astype(np.float64)

    def episodes(self, script: Callable[[StagedRecord], Lines], indices: list[int], answers: bool = True):
        """The statistics of each record's episode, on the host.

        Played twice if the script `answers`: the answer is read off the context that the first pass ends with.
        """
        parts = []
        for at in range(0, len(indices), self.spec.batch):
            chosen = indices[at : at + self.spec.batch]
            padded = chosen + [chosen[-1]] * (self.spec.batch - len(chosen))
            staged = [self.run.source.staged(index) for index in padded]
            lines = [script(record) for record in staged]
            rows = self.run_lines(padded, lines)
            if answers:
                told = [
                    self.oracle.answered(line, record, self.view(rows, b))
                    for b, (line, record) in enumerate(zip(lines, staged, strict=True))
                ]
                rows = self.run_lines(padded, told)
            parts.append(rows.stats)
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(indices)], *parts)

    def run_lines(self, indices: list[int], lines: list[Lines]):
        """The rows, on the host, after scripts have been played."""
        task = self.run.source.rows([(index, 0) for index in indices])
        return jax.device_get(self.episode(task, self.writer.script(lines), self.run.world))

    def view(self, rows, b: int) -> list[str]:
        """The texts in the context of row b: messages, entries shown, summaries."""
        context = rows.context
        tokens, message = context.tokens[b][: context.length[b]], context.message[b][: context.length[b]]
        texts = []
        for index in dict.fromkeys(message.tolist()):
            if index == NO_MESSAGE or context.role[b][index] == Role.ASSISTANT:
                continue
            for _, ids in self.marks.split(tokens[message == index].tolist()):
                texts += [line.split(": ", 1)[-1].removeprefix("summary ") for line in self.marks.text(ids).split("\n")]
        return texts


if __name__ == "__main__":
    cli.run(main)
