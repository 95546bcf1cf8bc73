"""Device traces as readable records: what the agent saw, said and called, and its store and context after each slot."""

from functools import partial

import numpy as np

from agemem_jax.tools.schemas import read_calls
from agemem_jax.types import NO_ID, NO_MESSAGE, TOOL_NAMES, Mode, Op, Role, Status


def render_traces(run, traced, method: str, when: str) -> list[dict]:
    """Trace records for the report.

    Args:
      run: the training run (its tokenizer, task source and pieces).
      traced: ((traces by stage, per-row numbers), task arrays) of one evaluated batch, on the host.
    """
    (traces, numbers), task = traced
    count = next(iter(traces.values())).ran.shape[1]
    return [render_row(run, traces, numbers, task, row) | {"method": method, "when": when} for row in range(count)]


def render_row(run, traces: dict, numbers: dict, task, row: int) -> dict:
    """One trajectory."""
    index = int(task.index[row])
    record = run.source.records[index]
    turns, said_answer, gold = [], None, task.gold
    for stage, trace in traces.items():
        for slot in range(trace.ran.shape[0]):
            if not trace.ran[slot, row]:
                continue
            turn = render_slot(run.tokenizer, trace, slot, row)
            turns.append({"stage": stage, **turn})
            answers = [call["arguments"].get("answer") for call in turn["calls"] if call["op"] == "answer"]
            said_answer = answers[-1] if answers and stage == 3 else said_answer
    return {
        "task": index,
        "question": record["question"],
        "answer": record["answer"],
        "gold": [
            exact(run.tokenizer, gold.tokens[row, i], gold.length[row, i]).strip()
            for i in range(int(task.num_gold[row]))
        ],
        "said_answer": said_answer,
        "reward": float(numbers["reward"][row]),
        "terms": {n.removeprefix("term_"): float(v[row]) for n, v in numbers.items() if n.startswith("term_")},
        "exact_match": float(numbers["exact_match"][row]),
        "f1": float(numbers["f1"][row]),
        "turns": turns,
    }


def exact(tokenizer, tokens, length) -> str:
    """The text of padded tokens, as it was written or stored."""
    return tokenizer.decode(np.asarray(tokens)[: int(length)].tolist())


def readable(tokenizer, tokens, length) -> str:
    """The text of an observation. The tiny vocabulary has no line ends in tool results: they are put in for people."""
    if not tokenizer.is_small:
        return exact(tokenizer, tokens, length)
    ids = np.asarray(tokens)[: int(length)].tolist()
    pieces, text = [tokenizer.decode([i]) for i in ids], ""
    for i, piece in enumerate(pieces):
        begins_number = piece.isdigit() and not (i and pieces[i - 1].isdigit())
        if begins_number and ":" in pieces[i : i + 4]:
            text += "\n"
        elif begins_number and i and pieces[i - 1].strip().isalpha():
            text += " "
        text += piece
    return text


def render_slot(tokenizer, trace, slot: int, row: int) -> dict:
    """One generation slot of one row."""
    decode, at = partial(exact, tokenizer), lambda x: np.asarray(x)[slot, row]
    said = decode(at(trace.said.tokens), at(trace.said.length))
    return {
        "turn": int(at(trace.turn)),
        "mode": "summarize" if int(at(trace.mode)) == Mode.SUMMARIZE else "act",
        "saw": [{"role": "user", "text": readable(tokenizer, at(trace.seen.tokens), at(trace.seen.length))}],
        "said": said,
        "calls": render_calls(said, at(trace.op), at(trace.status)),
        "results": readable(tokenizer, at(trace.shown.tokens), at(trace.shown.length)).strip(),
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
        "context": render_context(partial(readable, tokenizer), trace, slot, row),
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
    if any(op == Op.ANSWER for op, _ in live):
        arguments = [{"answer": said.split("<answer>")[1].split("</answer>")[0].strip()}]
    else:
        arguments = [call["arguments"] for call in read_calls(said)] if live else []
    calls = []
    for i, (op, status) in enumerate(live):
        name = TOOL_NAMES[op] if op < len(TOOL_NAMES) else op.name.lower()
        given = arguments[i] if i < len(arguments) else {}
        calls.append({"op": name, "arguments": given, "status": status.name})
    return calls


def render_context(decode, trace, slot: int, row: int) -> list[dict]:
    """The context after a slot, message by message."""
    at = lambda x: np.asarray(x)[slot, row]  # noqa: E731
    tokens, message, length = at(trace.context), at(trace.message), int(at(trace.context_length))
    out = []
    for index in dict.fromkeys(int(m) for m in message[:length] if m != NO_MESSAGE):
        ids = tokens[:length][message[:length] == index]
        role = Role(int(at(trace.role)[index])).name.lower()
        out.append({"role": role, "text": decode(ids, len(ids)), "pinned": bool(at(trace.pinned)[index])})
    return out
