"""What the recorders share: a model that answers by a script, small numbers for ids, and the fixture's file."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Answer = str | Callable[[dict[str, Any]], Any]
Reader = Callable[[list[dict[str, str]]], tuple[str, dict[str, Any]]]


class ScriptedModel:
    """Gives each prompt the answer that the script has for its role, and notes what the prompt showed.

    `read` turns a prompt into (role, what it showed). An answer may be made of what was shown. In it, "@TEXT" stands
    for the temporary id under which the prompt lists TEXT.
    """

    def __init__(self, read: Reader):
        self.read = read
        self.answers: Mapping[str, Answer] = {}
        self.calls: list[dict[str, Any]] = []

    def next(self, answers: Mapping[str, Answer]) -> None:
        """The answers of the next step, by role."""
        self.answers, self.calls = answers, []

    def __call__(self, messages: list[dict[str, str]]) -> str:
        role, shown = self.read(messages)
        answer = self.answers[role]
        answer = answer if isinstance(answer, str) else json.dumps(answer(shown))
        for text in re.findall(r'"@([^"]*)"', answer):
            found = [item["id"] for item in shown["listed"] if item["text"] == text]
            if len(found) != 1:
                raise ValueError(f"{text!r} is listed {len(found)} times in {shown['listed']}")
            answer = answer.replace(f'"@{text}"', json.dumps(found[0]))
        self.calls.append({"role": role, **shown, "answer": answer})
        return answer


class Numbers(dict):
    """1, 2, 3, ... for ids in the order in which they are first seen."""

    def __missing__(self, key: str) -> int:
        self[key] = len(self) + 1
        return self[key]


def said(answer: Any) -> str:
    """An answer as the model writes it: texts as they are, all else as JSON."""
    return answer if isinstance(answer, str) else json.dumps(answer)


def write(path: Path, source: str, histories: list[dict[str, Any]]) -> None:
    """One step a line, so that differences are readable."""
    parts = []
    for history in histories:
        steps = ",\n".join(json.dumps(step) for step in history["steps"])
        given = "".join(f"{json.dumps(key)}: {json.dumps(history[key])}, " for key in history if key != "steps")
        parts.append(f'{{{given}"steps": [\n{steps}\n]}}')
    path.write_text(f'{{"source": {json.dumps(source)}, "histories": [\n' + ",\n".join(parts) + "\n]}\n")
