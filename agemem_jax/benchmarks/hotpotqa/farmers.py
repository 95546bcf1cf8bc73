"""Scripted agents that want the reward and not the answer: each is a plain player with one trick.

The plain player stores the first facts that fit, looks the question up once and answers from what is in view; it never
revises, filters or summarises. A farmer does the same, and its trick where the plain player would let a message pass
(or, for some tricks, in its place). What a farmer earns beyond the plain player it earns for the trick.
"""

import random
from dataclasses import dataclass

from agemem_jax.data.scripts import Lines, Shadow, names, write_turn
from agemem_jax.data.staged import StagedRecord
from agemem_jax.types import Op

PLAIN = "plain"
TRICKS = (
    "add, delete, add",  # an entry is taken out and stored again
    "rewrite",  # an entry is updated with its own text
    "near duplicates",  # the first fact is stored again and again, with another word behind it
    "scrambled words",  # facts are stored with their words in any order
    "summarise small talk",  # as soon as there is some, in stages 1 and 2
    "retrieve everything",  # every message that is told is looked up, and the question again and again
    "never answer",
    "answer at once",  # without a look into the store
    "fill and empty",  # entries are looked up to fill the context of stage 2, which is then summarised
)
ENDINGS = ("today", "again", "yesterday")  # words that a message may end in, of small talk

Call = tuple[Op, dict]


@dataclass
class Player:
    """Writes what a player with a trick plays, without the answer; PLAIN is the one without."""

    config: object
    trick: str = PLAIN

    @property
    def answers(self) -> bool:
        return self.trick != "never answer"

    def play(self, staged: StagedRecord) -> Lines:
        """The turns of all stages up to the answer."""
        rng, shadow = random.Random(staged.query), Shadow(self.config)
        lines, away = Lines(([], [], [])), ""  # away: what was deleted and is to be stored again
        for i, (text, who) in enumerate(zip(staged.facts, staged.fact_speakers, strict=True)):
            own = [(number, entry) for number, (owner, entry) in shadow.entries.items() if owner == who]
            fact, rest = len(names(text)) >= 3, staged.fact_speakers[i + 1 :]
            if away:
                call, away = self._add(shadow, who, away), ""
            elif fact and len(shadow.entries) < shadow.places:
                call = self._add(shadow, who, self._told(text, own, rng))
            elif self.trick == "add, delete, add" and own and rest[:1] == [who]:
                number, away = own[-1]
                shadow.delete(who, number)
                call = (Op.DELETE, {"memory_id": str(number), "confirmation": True})
            elif self.trick == "rewrite" and own:
                call = (Op.UPDATE, {"memory_id": str(own[-1][0]), "content": f" {own[-1][1]}"})
            else:
                call = self._listen(text)
            lines.stages[0].append(self._turn(call))
            self._summarised(call, text, lines.summaries[0])
        last = len(staged.distractors) - 1
        for i, text in enumerate(staged.distractors):
            call = self._listen(text)
            if self.trick == "fill and empty":
                empties = i == last or i == last // 2
                call = (Op.SUMMARY, {"span": "all"}) if empties else (Op.RETRIEVE, {"query": f" {text}"})
            lines.stages[1].append(self._turn(call))
            self._summarised(call, text, lines.summaries[1])
        looks = self.config.rollout.stage3_turns - 1 if self.trick == "retrieve everything" else 1
        if self.trick != "answer at once":
            lines.stages[2].extend([self._turn((Op.RETRIEVE, {"query": f" {staged.query}"}))] * looks)
        return lines

    def _told(self, text: str, own: list[tuple[int, str]], rng: random.Random) -> str:
        """A fact as it is stored."""
        if self.trick == "near duplicates" and own:
            return f"{own[0][1]} {ENDINGS[(len(own) - 1) % len(ENDINGS)]}"
        if self.trick == "scrambled words":
            words = text.split()
            rng.shuffle(words)
            return " ".join(words)
        return text

    def _add(self, shadow: Shadow, who: int, text: str) -> Call:
        shadow.add(who, text)
        return Op.ADD, {"content": f" {text}"}

    def _listen(self, text: str) -> Call | None:
        """A message that the plain player lets pass."""
        if self.trick == "retrieve everything":
            return Op.RETRIEVE, {"query": f" {text}"}
        if self.trick == "summarise small talk" and len(names(text)) < 3:
            return Op.SUMMARY, {"span": "1"}
        return None

    def _turn(self, call: Call | None) -> str:
        return write_turn(self.config.tools, [call] if call else [])

    def _summarised(self, call: Call | None, text: str, summaries: list[str]) -> None:
        if call and call[0] == Op.SUMMARY:
            summaries.append(text)
