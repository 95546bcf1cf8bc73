"""Contexts as messages, and back through an exported chat template."""

import numpy as np


def messages_of(text: str, chat) -> list[dict]:
    """The messages of a context's text, by the fixed strings around them (ChatPieces)."""
    kinds = [(role, getattr(chat, f"{role}_open")) for role in ("system", "user", "assistant", "tool")]
    kinds.sort(key=lambda kind: -len(kind[1]))  # a tool message may begin like a user's
    messages, at = [], 0
    while at < len(text):
        role, opening = next(kind for kind in kinds if text.startswith(kind[1], at))
        close = chat.tool_close if role == "tool" else chat.message_close
        end = text.index(close, at + len(opening))
        messages.append({"role": role, "content": text[at + len(opening) : end]})
        at = end + len(close)
    return messages


def contexts(run, segments) -> list[tuple[tuple[int, int], list[int]]]:
    """((row, segment), token ids with the prompt) of every recorded segment [B, S]."""
    prompt = np.asarray(run.world.pieces.prefix.tokens[0]).tolist()
    return [
        ((row, s), prompt + segments.tokens[row, s][: segments.length[row, s]].tolist())
        for row, count in enumerate(segments.count)
        for s in range(int(count))
    ]


def assert_rendered(loaded, ids: list[int], text: str, chat) -> None:
    """transformers' tokenizer gives the messages of a context its ids, as a whole and before each turn."""
    ids_of = lambda messages, **more: loaded.apply_chat_template(messages, return_dict=True, **more)["input_ids"]  # noqa: E731
    messages = messages_of(text, chat)
    assert messages[0]["role"] == "system" and len(messages) > 1
    assert ids_of(messages) == ids
    assert ids_of(messages[1:]) == ids  # the system message of training is put in
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = ids_of(messages[:i], add_generation_prompt=True)
            assert before == ids[: len(before)]
