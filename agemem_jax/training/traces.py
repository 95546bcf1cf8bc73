"""Device traces as readable records: what the agent saw, said and called, and its store and context after each slot."""

import re

import numpy as np

from agemem_jax.methods.tables import SYSTEMS, system_of
from agemem_jax.tools.schemas import read_calls
from agemem_jax.training.evaluate import METHODS
from agemem_jax.types import NO_ID, NO_MESSAGE, TOOL_NAMES, Mode, Op, Pieces, Role, Status, StopReason

ACTION = re.compile(r"<(answer|action)>(.*)</\1>", re.DOTALL)


def render_traces(run, traced, method: str, when: str) -> list[dict]:
    """Trace records for the report.

    Args:
      run: the training run (its tokenizer, task source and pieces).
      traced: ((traces by stage, per-row numbers), task arrays) of one evaluated batch, on the host.
    """
    (traces, numbers), task = traced
    roles = roles_of(run.config, method)
    count = next(iter(traces.values())).ran.shape[1]
    about = {"method": method, "when": when}
    return [render_row(run, traces, numbers, task, row, roles) | about for row in range(count)]


def roles_of(config, method: str) -> tuple[str, ...]:
    """The names of the roles that the policy plays in a method's memory system."""
    system = METHODS[method].system
    return tuple(role.name for role in system_of(config, system).roles) if system in SYSTEMS else ()


def render_row(run, traces: dict, numbers: dict, task, row: int, roles: tuple[str, ...] = ()) -> dict:
    """One trajectory."""
    decode = lambda tokens, length: run.tokenizer.decode(np.asarray(tokens)[: int(length)].tolist())  # noqa: E731
    marks = Marks(run.tokenizer, run.world.pieces)
    index = int(task.index[row])
    staged = run.source.staged(index)
    turns, stops, action, gold = [], {}, None, task.gold
    for stage, trace in traces.items():
        stops[str(stage)] = why_ended(trace.stop[:, row])
        for slot in range(trace.ran.shape[0]):
            if not trace.ran[slot, row]:
                continue
            turn = render_slot(decode, marks, trace, slot, row, roles)
            turns.append({"stage": stage, **turn})
            actions = [call["arguments"].get("text") for call in turn["calls"] if call["op"] == "act"]
            action = actions[-1] if actions and stage == 3 else action
    return {
        "task": index,
        "kind": staged.kind,
        "question": staged.query,
        "answer": staged.answer,
        "gold": [decode(gold.tokens[row, i], gold.length[row, i]).strip() for i in range(int(task.num_gold[row]))],
        "action": action,
        "reward": float(numbers["reward"][row]),
        "terms": {n.removeprefix("term_"): float(v[row]) for n, v in numbers.items() if n.startswith("term_")},
        "success": float(numbers["success"][row]),
        "progress": float(numbers["progress"][row]),
        "stops": stops,
        "turns": turns,
    }


def why_ended(reasons: np.ndarray) -> str:
    """The name of the StopReason of a row's stage, from what it was after each slot `[T]`."""
    noted = [reason for reason in reasons.tolist() if reason != StopReason.NONE]
    return StopReason(noted[-1] if noted else StopReason.TURNS).name.lower()  # no slot at all: there were no turns


def readable(tokenizer, ids: list[int]) -> str:
    """The text of what was seen. The tiny vocabulary has no line ends in tool results: here they are put in."""
    if not tokenizer.is_small:
        return tokenizer.decode(ids)
    pieces, text = [tokenizer.decode([i]) for i in ids], ""
    for i, piece in enumerate(pieces):
        begins_number = piece.isdigit() and not (i and pieces[i - 1].isdigit())
        if begins_number and ":" in pieces[i : i + 4]:
            text += "\n"
        elif begins_number and i and pieces[i - 1].strip().isalpha():
            text += " "
        text += piece
    return text


class Marks:
    """The chat marks in tokens. Messages are told apart by them, never by text: what data says marks nothing."""

    def __init__(self, tokenizer, pieces: Pieces):
        self.tokenizer = tokenizer
        markers = set(tokenizer.markers.values())

        def marks(named: dict) -> list[tuple[str, list[int]]]:
            """Those that hold a marker, the longest first: one may be a part of another."""
            found = [(name, np.asarray(t.tokens)[: int(t.length)].tolist()) for name, t in named.items()]
            return sorted(((name, ids) for name, ids in found if markers & set(ids)), key=lambda item: -len(item[1]))

        self.opens = marks({"tool": pieces.tool_open, "user": pieces.user_open, "assistant": pieces.assistant_open})
        self.closes = [ids for _, ids in marks({"message": pieces.close, "tool": pieces.tool_close})]

    def split(self, ids: list[int]) -> list[tuple[str, list[int]]]:
        """(role, tokens between opening and close) of each message; role "" of what stands before the first opening."""
        parts, at = [("", [])], 0
        while at < len(ids):
            found = next(((role, mark) for role, mark in self.opens if ids[at : at + len(mark)] == mark), None)
            if found:
                parts.append((found[0], []))
                at += len(found[1])
            else:
                parts[-1][1].append(ids[at])
                at += 1
        return [(role, self.unclosed(tokens)) for role, tokens in parts]

    def unclosed(self, ids: list[int]) -> list[int]:
        """The tokens of a message without its close."""
        close = next((close for close in self.closes if ids[-len(close) :] == close), [])
        return ids[: len(ids) - len(close)]

    def text(self, ids: list[int], exact: bool = False) -> str:
        """Text, readable or exact, without the marker that ends a turn, which may be a part of the last token."""
        end = self.tokenizer.end_of_turn
        text = self.tokenizer.decode(ids) if exact else readable(self.tokenizer, ids)
        last = (self.tokenizer.pieces[ids[-1]] or end.encode()) if ids else b""
        return (text.removesuffix(end) if last.endswith(end.encode()) else text).strip()


def render_slot(decode, marks: Marks, trace, slot: int, row: int, roles: tuple[str, ...] = ()) -> dict:
    """One generation slot of one row. Its mode is "act", "summarize", or the name of a role."""
    at = lambda x: np.asarray(x)[slot, row]  # noqa: E731
    seen = at(trace.seen.tokens)[: int(at(trace.seen.length))].tolist()
    saw = [{"role": role or "user", "text": marks.text(ids)} for role, ids in marks.split(seen)]
    said = marks.text(at(trace.said.tokens)[: int(at(trace.said.length))].tolist(), exact=True)  # its calls are JSON
    mode = int(at(trace.mode))
    shown = marks.text(at(trace.shown.tokens)[: int(at(trace.shown.length))].tolist())
    return {
        "turn": int(at(trace.turn)),
        "mode": ("act", "summarize", "done", *roles)[mode],
        "saw": [message for message in saw if message["text"]],
        "said": said,
        "calls": (render_items if mode >= Mode.ROLE else render_calls)(said, at(trace.op), at(trace.status)),
        "results": shown,
        "store": [
            {
                "id": int(memory_id),
                "text": decode(at(trace.store_tokens.tokens)[i], at(trace.store_tokens.length)[i]).strip(),
                "tags": render_tags(decode, at(trace.store_tags.tokens)[i], at(trace.store_tags.length)[i]),
                "hits": int(at(trace.store_hits)[i]),
            }
            for i, memory_id in enumerate(at(trace.store_id))
            if memory_id != NO_ID
        ],
        "context": render_context(marks, trace, slot, row),
        "context_tokens": int(at(trace.context_length)),
    }


def render_tags(decode, tokens, length) -> dict[str, str]:
    """Tag pairs [G, 2, Lt] as a dict; slot 0 is memory_type."""
    pairs = {}
    for (key, value), (key_length, value_length) in zip(tokens, length, strict=True):
        if key_length or value_length:
            pairs[decode(key, key_length).strip()] = decode(value, value_length).strip()
    return pairs


def render_calls(said: str, ops, statuses) -> list[dict]:
    """The calls of a turn with their arguments, read back from the text that the policy wrote; none if malformed."""
    live = [(Op(int(op)), Status(int(status))) for op, status in zip(ops, statuses, strict=True) if op != Op.NONE]
    arguments = [call["arguments"] for call in read_calls(said)] if live else []
    if action := ACTION.search(said) if live else None:
        arguments.append({"text": action[2].strip()})
    calls = []
    for i, (op, status) in enumerate(live):
        name = TOOL_NAMES[op] if op < len(TOOL_NAMES) else op.name.lower()
        given = arguments[i] if i < len(arguments) else {}
        calls.append({"op": name, "arguments": given, "status": status.name})
    return calls


def render_items(said: str, ops, statuses) -> list[dict]:
    """What a role's answer asked for; its arguments stand in the answer itself."""
    return [
        {"op": TOOL_NAMES[op] if op < len(TOOL_NAMES) else Op(op).name.lower(), "arguments": {}, "status": status.name}
        for op, status in ((int(op), Status(int(status))) for op, status in zip(ops, statuses, strict=True))
        if op != Op.NONE
    ]


def render_context(marks: Marks, trace, slot: int, row: int) -> list[dict]:
    """The context after a slot, message by message."""
    at = lambda x: np.asarray(x)[slot, row]  # noqa: E731
    tokens, message, length = at(trace.context), at(trace.message), int(at(trace.context_length))
    out = []
    for index in dict.fromkeys(int(m) for m in message[:length] if m != NO_MESSAGE):
        parts = marks.split(tokens[:length][message[:length] == index].tolist())
        role = Role(int(at(trace.role)[index])).name.lower()
        text = "\n".join(filter(None, (marks.text(ids) for _, ids in parts)))
        out.append({"role": role, "text": text, "pinned": bool(at(trace.pinned)[index])})
    return out
