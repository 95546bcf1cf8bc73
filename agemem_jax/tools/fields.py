"""What a field of a turn may hold, as an automaton over bytes, and how the tokens of a vocabulary act in it."""

import enum
import re
import string

import numpy as np

FAR = np.iinfo(np.int16).max  # more tokens than any budget
NOTHING = -1  # in place of a token: none is stored
MARK, ESCAPE = 8, 9  # states of a field beside those of UTF-8: after a "<", after a lone backslash
NUM_SUBS = 10
WHOLE = (0, MARK)  # states in which a field may end
_BEGINS_MARK = b"/|!" + string.ascii_letters.encode() + bytes(range(0x80, 0x100))  # behind a "<"


class Spelling(enum.IntEnum):
    """How the field that a state is in spells its text."""

    PLAIN = 0
    JSON = 1  # as a JSON string
    ESCAPED = 2  # the same, right after a lone backslash


def _utf8_table() -> np.ndarray:
    """[8, 256] int8 UTF-8 automaton (RFC 3629): 0 = between characters, 1..3 = so many continuation bytes to come,
    4..7 = the next byte is restricted (after E0, ED, F0, F4); -1 = not UTF-8."""
    table = np.full((8, 256), -1, np.int8)
    table[0, :0x80] = 0
    table[0, 0xC2:0xE0] = 1
    table[0, 0xE0:0xF0] = 2
    table[0, 0xF0:0xF5] = 3
    table[0, [0xE0, 0xED, 0xF0, 0xF4]] = [4, 5, 6, 7]
    for state in (1, 2, 3):
        table[state, 0x80:0xC0] = state - 1
    table[4, 0xA0:0xC0] = 1
    table[5, 0x80:0xA0] = 1
    table[6, 0x90:0xC0] = 2
    table[7, 0x80:0x90] = 2
    return table


def field_table(json_string: bool) -> np.ndarray:
    """[NUM_SUBS + 1, 256] int8 automaton of a field's bytes, -1 = not allowed; the last row is that of -1."""
    table = np.full((NUM_SUBS + 1, 256), -1, np.int8)
    table[:8] = _utf8_table()
    table[0, ord("<")] = MARK
    if json_string:
        table[0, [*range(0x20), ord('"')]] = -1
        table[0, ord("\\")] = ESCAPE
        table[ESCAPE, [*b'"\\']] = 0
    table[MARK] = table[0]
    table[MARK, list(_BEGINS_MARK)] = -1
    return table


def token_paths(table: np.ndarray, pieces: list[bytes | None]) -> np.ndarray:
    """[V, NUM_SUBS] state of a field after each token, by the state before it; -1 = not allowed there.

    Control tokens and empty ones are allowed nowhere.
    """
    text = np.frombuffer(b"".join(piece or b"" for piece in pieces), np.uint8)
    size = np.array([len(piece or b"") for piece in pieces])
    start = np.cumsum(size) - size
    after = np.where(size[:, None] > 0, np.arange(NUM_SUBS, dtype=np.int8), np.int8(-1))
    for i in range(size.max()):
        on = np.flatnonzero(size > i)
        after[on] = table[after[on], text[start[on] + i, None]]
    return after


def _unescape(written: bytes) -> bytes:
    """What a piece of a JSON string says; a lone backslash at its end says nothing yet."""
    return re.sub(rb'\\(["\\]|\Z)', rb"\1", written)


def stored_tokens(pieces: list[bytes | None], paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table `ToolGrammar.stored`, and the paths in JSON strings of the tokens for which it has an entry."""
    token_of = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece} | {b"": NOTHING}
    stored, paths = np.tile(np.arange(len(pieces), dtype=np.int32), (len(Spelling), 1)), paths.copy()
    behind = np.arange(NUM_SUBS) == ESCAPE
    for spelling, subs, before in ((Spelling.JSON, ~behind, b""), (Spelling.ESCAPED, behind, b"\\")):
        for token in np.flatnonzero((paths[:, subs] >= 0).any(1)):
            said = _unescape(before + pieces[token])
            if said not in token_of:
                paths[token, subs] = -1
            elif said != pieces[token]:
                stored[spelling, token] = token_of[said]
    return stored, paths


def reachable(paths: np.ndarray) -> list[int]:
    """The states that a field can come to in this vocabulary (only 0 without byte tokens, "<" and backslashes)."""
    found, size = {0}, 0
    while size < len(found):
        size = len(found)
        found |= set(np.unique(paths[:, sorted(found)]).tolist()) - {-1}
    return sorted(found)


def tokens_to_whole(paths: np.ndarray) -> list[int]:
    """[NUM_SUBS] fewest tokens from each state to one in which a field may end, FAR if the vocabulary has none."""
    fewest, kinds = [0 if sub in WHOLE else FAR for sub in range(NUM_SUBS)], set(map(tuple, paths.tolist()))
    for _ in range(NUM_SUBS):
        for path in kinds:
            for sub, after in enumerate(path):
                if after >= 0:
                    fewest[sub] = min(fewest[sub], fewest[after] + 1)
    return fewest
