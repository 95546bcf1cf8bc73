"""A task as an agent meets it, in text: what every benchmark tells and asks."""

from dataclasses import dataclass
from typing import Any

SPLITS = ("train", "validation", "test")
REVISIONS = 2  # most revisions that are told


@dataclass(frozen=True)
class StagedRecord:
    """A record as an agent meets it: stage-1 messages, stage-2 messages, and the question or goal of stage 3."""

    facts: list[str]  # stage 1, in the order they are told
    is_gold: list[bool]  # of each of these: it tells a supporting fact
    gold: list[str]  # the supporting facts told, in the record's order, without a conversational opening
    distractors: list[str]  # stage 2
    query: str
    answer: str  # the gold answer; "" where a goal is to be reached
    key_words: list[str]  # the query's names, titles, places and dates, word by word
    keep: list[str]  # what holds and is open when stage 1 ends, without a conversational opening
    view: list[str]  # what stage 2 tells that should still be in view when the question comes
    revisions: list[tuple[str, str]]  # (what no longer holds, what holds instead or "") as stage 1 tells it
    fact_speakers: list[int]  # who tells each message of stage 1
    distractor_speakers: list[int]
    asker: int = 0  # whose question it is
    kind: str = ""  # of the benchmark's kinds; "" where it has none
    fact_sessions: list[int] | None = None  # of the messages of stage 1; None: all are of the record's own
    play: Any = None  # what the environment plays, in a form of the benchmark's own
