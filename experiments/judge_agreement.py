"""How often a judge's verdict on an answer is what the rule on the device says of it.

    python -m experiments.judge_agreement --run=runs/tiny --judge=http://localhost:8000/v1 --judge_model=NAME

Asks any OpenAI-compatible endpoint (OPENAI_API_KEY of the environment is sent along) about the answers in the kept
traces of a run: train.traces of each method and seed. The rules are exact match, and token F1 of at least --bar; a
verdict of at least --bar calls an answer right. Printed are the share of the verdicts that each rule reproduces,
Cohen's kappa, which leaves out what agrees by chance, and the answers on which judge and rule differ. Answers that
were never given are wrong to both, and not counted.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from agemem_jax.config import check_judge
from agemem_jax.envs.judge import Judge
from agemem_jax.errors import InputError
from agemem_jax.report.files import seed_folders, traces_of
from agemem_jax.training.summary import aligned
from experiments import cli, out, shared_flags

RUN = shared_flags.run()
JUDGE = flags.DEFINE_string("judge", None, "base URL of the endpoint, mostly ending in /v1", required=True)
MODEL = flags.DEFINE_string("judge_model", None, "a model that it serves", required=True)
BAR = flags.DEFINE_float("bar", 0.5, "verdict and F1 from which an answer is right", lower_bound=0.0, upper_bound=1.0)
SHOWN = flags.DEFINE_integer("differing", 20, "most disagreements printed; --out has all", lower_bound=0)
RULES = {"exact match": "success", "token F1": "progress"}  # by their numbers in a trace


def main() -> None:
    answers = answers_in(Path(RUN.value))
    judge = judge_of(JUDGE.value, MODEL.value)
    questions = ([one[name] for one in answers] for name in ("question", "answer", "action"))
    verdicts = judge.score(*questions)
    figures = {"run": RUN.value, "judge_model": MODEL.value, "bar": BAR.value} | compared(answers, verdicts, BAR.value)
    print(table(figures, SHOWN.value))
    out.write(figures)


def answers_in(run: Path) -> list[dict]:
    """The traces of a run, or of one of its seeds, that answered a question; each answer to a question once.

    Raises InputError if there is none: tasks in a world have a goal and no answer.
    """
    found = [trace for seed in seed_folders(run).values() or [run] for trace in traces_of(seed, {})]
    given = [trace for trace in found if trace["answer"] and (trace["action"] or "").strip()]
    if not given:
        raise InputError(
            f"--run={run}: none of its {len(found)} traces (seed_*/traces*.json) has an answer to judge; give a run on "
            "questions"
        )
    return list({(one["question"], one["answer"], one["action"]): one for one in given}.values())


def judge_of(url: str, model: str) -> Judge:
    """The judge, which has been asked once. Raises InputError if it has no usable address, or gives no verdict."""
    try:
        check_judge(ConfigDict({"task_metric": "judge", "judge": url, "judge_model": model}))
        judge = Judge(url, model)
        judge.check()
    except InputError as error:  # which names the fields of a config
        said = str(error).replace("reward.judge_model", "--judge_model").replace("reward.judge", "--judge")
        raise InputError(said) from error
    return judge


def compared(answers: list[dict], verdicts: np.ndarray, bar: float) -> dict:
    """What rules and verdicts have in common.

    Args:
      answers: traces, one for each verdict.
      verdicts: [n] 0 to 1, NaN where there is none.

    Returns:
      {answers, without_verdict, judged_right: share, rules: {rule: {agreement, kappa, right, disagreements: [...]}}};
      shares are of the answers with a verdict, None if there is none.
    """
    known = np.isfinite(verdicts)
    told = [(one, float(v)) for one, v, there in zip(answers, verdicts, known, strict=True) if there]
    judged = [verdict >= bar for _, verdict in told]
    rules = {}
    for rule, name in RULES.items():
        right = [one[name] >= (bar if name == "progress" else 1.0) for one, _ in told]
        different = [
            {field: one.get(field) for field in ("method", "question", "answer", "action", name)} | {"verdict": verdict}
            for (one, verdict), says, judge in zip(told, right, judged, strict=True)
            if says != judge
        ]
        rules[rule] = {
            "agreement": 1 - len(different) / len(told) if told else None,
            "kappa": kappa(right, judged),
            "right": sum(right) / len(told) if told else None,
            "disagreements": different,
        }
    share = sum(judged) / len(told) if told else None
    return {"answers": len(answers), "without_verdict": int((~known).sum()), "judged_right": share, "rules": rules}


def kappa(ours: Sequence[bool], theirs: Sequence[bool]) -> float | None:
    """Cohen's kappa of two raters (1960): agreement above that of chance, as a share of what is above it at most.

    None where chance alone agrees always (both say the same of everything), or nothing was rated.
    """
    if not ours:
        return None
    a, b = np.mean(ours), np.mean(theirs)
    chance = a * b + (1 - a) * (1 - b)
    agreed = np.mean(np.asarray(ours) == np.asarray(theirs))
    return float((agreed - chance) / (1 - chance)) if chance < 1 else None


def table(figures: dict, most: int) -> str:
    """The comparison as text."""
    shown = lambda value: "-" if value is None else f"{value:.3f}"  # noqa: E731
    rows = [["rule", "agreement", "kappa", "right by rule", "right by judge"]]
    for rule, one in figures["rules"].items():
        values = (one["agreement"], one["kappa"], one["right"], figures["judged_right"])
        rows.append([rule, *map(shown, values)])
    parts = [f"{figures['answers']} answers, {figures['without_verdict']} of them without a verdict", aligned(rows)]
    for rule, one in figures["rules"].items():
        metric = RULES[rule]
        lines = [
            f"{rule} {d[metric]:.3f}, judge {d['verdict']:.3f}: {d['action']!r} for {d['answer']!r}; {d['question']}"
            for d in one["disagreements"][:most]
        ]
        more = len(one["disagreements"]) - len(lines)
        parts += ["\n".join(lines + [f"and {more} more"] * (more > 0))] if one["disagreements"] else []
    return "\n\n".join(parts)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
