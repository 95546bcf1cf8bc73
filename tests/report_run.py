"""A made-up finished run on disk, for the report's tests: every file of a workdir, small, with every kind of ending."""

import functools
import json
import math
import random
from pathlib import Path

GOLD = ("Silver River was written by Ada Keller", "Ada Keller was born in Halden")
OTHERS = ("Golden River was written by Ada Novak", "Hugo Keller was born in Old Brindle", "we liked warm soup again")
QUESTION = "Where was the author of Silver River born"
ANSWER = "Halden"
TOOLS = ("add", "update", "delete", "retrieve", "summary", "filter", "act", "pass")
TERMS = (
    "task", "compression", "preventive", "preservation", "storage", "maintenance", "relevance", "over_turns",
    "over_context", "malformed",
)  # fmt: skip


def call(op: str, status: str = "OK", **arguments) -> dict:
    return {"op": op, "arguments": arguments, "status": status, "status_text": status.lower().replace("_", " ")}


def add(text: str, status: str = "OK") -> dict:
    return call("Add_memory", status, content=text)


def retrieve(query: str) -> dict:
    return call("Retrieve_memory", query=query, top_k=2)


class TraceWriter:
    """Plays scripted calls on a toy store and context, and notes them as a trace."""

    def __init__(self, method: str = "agemem", task: int = 0, size: int = 4):
        self.method, self.task, self.size = method, task, size
        self.stage, self.turn, self.next_id = 1, 0, 1
        self.store, self.context, self.turns, self.pending = [], [], [], []
        self.action, self.malformed, self.stop = None, 0, "turns"

    def to_stage(self, stage: int) -> None:
        self.stage, self.turn, self.pending = stage, 0, []
        if stage == 2:
            self.context = []

    def step(self, user: str | None, *calls: dict, said: str | None = None) -> None:
        saw, self.pending = self.pending, []
        if user is not None:
            saw = saw + [{"role": "user", "text": user}]
        self.context += [{**message, "pinned": user == QUESTION} for message in saw]
        made = [{"name": c["op"], "arguments": c["arguments"]} for c in calls]
        said = said or f"<think>keep?</think><tool_call>{json.dumps(made)}</tool_call>"
        self.context.append({"role": "assistant", "text": said, "pinned": False})
        for one in calls:
            self.run(one)
        self.turns.append({
            "stage": self.stage, "turn": self.turn, "mode": "act", "saw": saw, "said": said, "calls": list(calls),
            "store": [dict(entry) for entry in self.store], "context": [dict(m) for m in self.context],
            "context_tokens": sum(len(m["text"].split()) for m in self.context),
        })  # fmt: skip
        self.turn += 1

    def run(self, one: dict) -> None:
        arguments = one["arguments"]
        if one["status"] != "OK":
            return
        if one["op"] == "Add_memory":
            if len(self.store) >= self.size:
                one |= {"status": "STORE_FULL", "status_text": "store full"}
                return
            entry = {"id": self.next_id, "text": arguments["content"], "tags": {"memory_type": "fact"}, "hits": 0}
            self.store, self.next_id = self.store + [entry], self.next_id + 1
        elif one["op"] == "Update_memory":
            entry = next(e for e in self.store if e["id"] == int(arguments["memory_id"]))
            entry["text"] = arguments["content"]
        elif one["op"] == "Delete_memory":
            self.store = [e for e in self.store if e["id"] != int(arguments["memory_id"])]
        elif one["op"] == "Retrieve_memory":
            words = set(arguments["query"].split())
            found = sorted(self.store, key=lambda e: -len(words & set(e["text"].split())))[: arguments["top_k"]]
            for entry in found:
                entry["hits"] += 1
            self.pending = [{"role": "tool", "text": " ".join(f"{e['id']}: {e['text']}" for e in found)}]
        elif one["op"] == "Filter_context":
            self.context = [m for m in self.context if m["pinned"]]
            self.pending = []

    def answer(self, text: str, user: str | None = None) -> None:
        self.step(user, said=f"<think></think><answer> {text}</answer>")
        self.action, self.stop = text, "finished"

    def trace(self) -> dict:
        exact = float(self.action == ANSWER)
        return {
            "method": self.method, "when": "after" if self.method == "agemem" else "before", "task": self.task,
            "kind": "recall", "question": QUESTION, "answer": ANSWER, "gold": list(GOLD), "action": self.action,
            "reward": exact + 0.4, "terms": dict.fromkeys(TERMS, 0.0) | {"task": exact, "malformed": self.malformed},
            "success": exact, "progress": exact, "turns": self.turns, "diagnosis": "",
            "stops": {"1": "turns", "2": "turns", "3": self.stop},
        }  # fmt: skip


def listen(writer: TraceWriter, keep=(*GOLD, OTHERS[0])) -> None:
    """Stages 1 and 2: every message told, those in `keep` stored."""
    for text in (OTHERS[2], GOLD[0], OTHERS[0], GOLD[1], OTHERS[1]):
        writer.step(text, *([add(text)] if text in keep else [retrieve("soup")]))
    writer.to_stage(2)
    writer.step("Golden Garden was written by Hugo Novak", call("Filter_context", criteria="novak"))
    writer.to_stage(3)


def ending(kind: str, method: str = "agemem", task: int = 0) -> dict:
    """A trace that ends in the given way (a key of diagnosis.KINDS)."""
    writer = TraceWriter(method, task, size=2 if kind == "store_full" else 4)
    keep = {
        "not_stored": GOLD[:1],
        "store_full": (*OTHERS[2:], GOLD[0], GOLD[1]),
        "no_memory": (),
        "unsupported": (),
    }.get(kind, (*GOLD, OTHERS[0]))
    listen(writer, keep)
    if kind == "lost":
        writer.step(QUESTION, call("Update_memory", memory_id="3", content="Ada Keller likes good coffee"))
        writer.step(None, retrieve("Silver River"))
        writer.answer("Old Brindle")
    elif kind == "not_retrieved":
        writer.step(QUESTION, call("Retrieve_memory", query="Silver River", top_k=1))
        writer.answer("Old Brindle")
    elif kind == "dropped":
        writer.step(QUESTION, retrieve("Silver River Ada Keller born"))
        writer.step(None, retrieve("Ada Keller born"))
        writer.step(None, call("Filter_context", criteria="keller"))
        writer.answer("Old Brindle")
    elif kind in ("no_answer", "malformed", "no_room"):
        writer.stop = "segments" if kind == "no_room" else "turns"
        writer.step(QUESTION, retrieve("Silver River was Ada Keller born"))
        writer.step(None, retrieve("Ada Keller was born in"))
        if kind == "malformed":
            writer.malformed = 1
            writer.step(None, call("", "MALFORMED"), said="<think>I would say</think> Halden <tool_call>")
    elif kind in ("from_memory", "wrong_answer", "not_reached"):
        writer.step(QUESTION, retrieve("Silver River was written by"))
        writer.step(None, retrieve("Ada Keller was born in"))
        writer.answer(ANSWER if kind == "from_memory" else "Old Brindle")
    else:
        writer.step(QUESTION, retrieve("Silver River"))
        writer.answer(ANSWER if kind == "unsupported" else "Old Brindle")
    trace = writer.trace()
    return trace | {"answer": "", "progress": 0.5} if kind == "not_reached" else trace  # a goal has no answer


def metrics(rng: random.Random, updates: int) -> list[dict]:
    """Curves of a run that learns."""
    rows = []
    for update in range(1, updates + 1):
        learned = 1 / (1 + math.exp(-10 * (update / updates - 0.45)))
        noise = functools.partial(rng.gauss, 0)
        row = {"update": update, "stage": 3, "seconds": 3.4, "kl": 0.08 * learned + abs(noise(0.004))}
        row["loss"] = noise(0.02)
        row |= {"entropy": 0.9 - 0.5 * learned + noise(0.03), "clip_fraction": abs(noise(0.01)), "grad_norm": None}
        row |= {"tokens_per_s": 400 if update == 1 else 3100 + noise(120), "segments": 3.1 - 0.4 * learned + noise(0.1)}
        f1 = min(1.0, max(0.0, 0.09 + 0.42 * learned + noise(0.05)))
        row |= {"task/progress": f1, "task/success": 0.9 * f1, "memory/quality": 0.3 + 0.35 * learned + noise(0.03)}
        for term in TERMS:
            row[f"term/{term}"] = min(1.0, abs(0.15 + 0.5 * learned * rng.random() + noise(0.04)))
        row |= {"reward/task": f1, "reward/context": 0.2, "reward/memory": 0.2 * learned}
        row["reward/penalty"] = 0.1 * learned - 0.1
        row["reward"] = sum(row[f"reward/{group}"] for group in ("task", "context", "memory", "penalty"))
        row |= {f"calls/{tool}": 1 + learned + noise(0.1) for tool in TOOLS} | {"an_extra_key": 1.0}
        row["zero_variance_groups"] = 0.3 - 0.2 * learned
        rows.append(row)
    return rows


def summary(scores=((0.081, 0.012), (0.124, 0.021), (0.487, 0.034)), seeds: int = 3) -> dict:
    """A summary with the given (mean, half width) of each method's task score."""
    methods = {}
    for place, (name, (mean, ci95)) in enumerate(zip(("no_memory", "agemem_norl", "agemem"), scores, strict=True)):

        def entry(mean: float, ci95: float = 0.03) -> dict:
            return {"mean": mean, "ci95": ci95, "seeds": [mean + 0.01 * (s - 1) for s in range(seeds)]}

        numbers = {
            "task_score": entry(mean, ci95), "success": entry(0.9 * mean), "progress": entry(mean, ci95),
            "memory_quality": entry(0.1 + 0.25 * place), "context_tokens": entry(212.0 - 31 * place, 4.2),
            "reward": entry(mean + 0.2), "turns": entry(12.5 - place, 0.3),
            "generated_tokens": entry(310.0 + 7 * place, 8.0),
        }  # fmt: skip
        calls = (0.0 if place == 0 else 0.5 + 0.8 * (place == 2), 0.13, 0.08, 2.3 - 0.2 * place, 0.2, 0.3 + 0.2 * place)
        numbers |= {f"calls_{t}": entry(c, 0.05) for t, c in zip(TOOLS, (*calls, 0.9, 4.0), strict=True)}
        methods[name] = numbers
    kinds = {"recall": entry(0.6) | {"tasks": 300}, "changed": entry(0.3, 0.04) | {"tasks": 212}}
    lost = {"kinds": ["changed"], "tasks": 212, "overall": entry(0.091, 0.022)}
    masked = {"Update_memory": entry(0.212, 0.051) | lost, "Filter_context": lost | {"kinds": ["misled"], "tasks": 0}}
    evaluated = {"methods": methods, "by_kind": dict.fromkeys(methods, kinds), "masked": masked}
    return {
        "name": "tiny", "command": "python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny",
        "scores": {"success": "exact match", "progress": "token F1"},
        "seeds": list(range(seeds)), "test_tasks": 512, **evaluated, "sampled": evaluated,
        "one_policy": ["no_memory", "agemem_norl"],
        "environment": {"python": "3.11.9", "jax": "0.10.2", "devices": ["cpu:0"], "cpu": "a processor", "cores": 2},
        "identity": {"weights": "fresh parameters", "tokenizer": "0123456789ab"},
        "cut_texts": {"messages": {"share": 0.034}, "queries": {"share": 0.0}},
        "seconds": {"compile": 71.2, "train": 431.0, "eval": 55.0},
    }  # fmt: skip


CONFIG = {
    "name": "tiny", "policy": {"num_layers": 4, "hidden_size": 128, "weights": ""}, "task": {"path": ""},
    "rl": {"schedule": "chained", "tasks_per_update": 16, "group_size": 8, "updates": 60},
    "reward": {
        "task": 1.0, "context": 1.0, "memory": 1.0, "compression": 1 / 3, "preventive": 0.0, "preservation": 1 / 3,
        "storage": 1 / 3, "maintenance": 1 / 3, "relevance": 1 / 3, "over_turns": -1.0, "over_context": -0.5,
        "malformed": -0.1, "judge": "",
    },
}  # fmt: skip


def make_run(workdir: Path, seeds: int = 3, updates: int = 60) -> Path:
    """Writes a whole finished run into `workdir` and returns it."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "summary.json").write_text(json.dumps(summary(seeds=seeds)))
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    before = ("not_stored", "no_answer", "not_retrieved", "wrong_answer", "unsupported")
    after = ("from_memory", "from_memory", "store_full", "dropped", "lost")
    for seed in range(seeds):
        folder = workdir / f"seed_{seed}"
        folder.mkdir(exist_ok=True)
        rows = metrics(random.Random(seed), updates)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        traces = [ending("no_memory", "no_memory", task) for task in range(2)]
        traces += [ending(kind, "agemem_norl", task) for task, kind in enumerate(before)]
        traces += [ending(kind, "agemem", task) for task, kind in enumerate(after)]
        (folder / "traces.json").write_text(json.dumps(traces))
    return workdir
