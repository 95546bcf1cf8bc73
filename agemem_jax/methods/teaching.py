"""How the roles of memory systems are played rightly, on the host: demonstrations for the warm start, and how far a
policy agrees with them.

A message is worth remembering if it names something and is told in stage 1, or in stage 2 should be kept in view
(data/staged.py); a message that takes something back is worth a deletion. Which moment of a task is shown, and what the
memory then holds, is drawn: mostly what a right play would have left.
"""

import json
import random
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from agemem_jax.data.batches import TaskSource, pad_text, pad_texts, stack
from agemem_jax.data.scripts import names, write_turn
from agemem_jax.data.staged import StagedRecord
from agemem_jax.methods.amem import AMem, AMemNotes, Note
from agemem_jax.methods.base import System
from agemem_jax.methods.mem0 import Classic, ClassicNotes
from agemem_jax.tools.schemas import read_calls
from agemem_jax.types import NO_ID, Op, Task, Text

KEPT = 0.85  # chance that the memory of a moment holds what a right play would have left there
ASKED = 0.1  # share of moments at which the question is searched for, in a system that does
CHANGES = 3.0  # how much more often a message is shown that changes what was told


@struct.dataclass
class Moments:
    """B calls of roles with their right answers, numpy arrays."""

    task: Task
    role: np.ndarray  # [B] int32
    turn: np.ndarray  # [B] int32 message of stage 1 that is read, or those that were read, in stage 2 all
    body: Text  # [B, W] the message
    owner: np.ndarray  # [B] int32
    entries: Text  # [B, N, L] what the store holds
    owners: np.ndarray  # [B, N] int32
    notes: Any  # of the system
    answer: Text  # [B, A]


class Moment(NamedTuple):
    """A message of a task, and what its speaker's memory holds when it is told."""

    staged: StagedRecord
    text: str
    speaker: int
    turn: int
    held: list[tuple[int, str]]  # (speaker, text)

    @property
    def own(self) -> list[str]:
        return [text for speaker, text in self.held if speaker == self.speaker]


Event = tuple[Op, int, str]  # what is to be done, to which of the listed texts, and the new text


def fact_in(staged: StagedRecord, text: str, later: bool) -> str:
    """What a message tells that is worth remembering, without a conversational opening; "" of small talk."""
    known = [*staged.keep, *staged.gold, *staged.view, *(part for revision in staged.revisions for part in revision)]
    told = max((one for one in known if one and one in text), key=len, default="")
    return told if told or later or len(names(text)) < 2 else text


def decide(staged: StagedRecord, fact: str, listed: list[str]) -> list[Event]:
    """What becomes of the listed texts when a fact is told."""
    for stale, present in staged.revisions:
        about = names(stale) & names(fact)
        if present and fact == present and stale in listed:
            return [(Op.UPDATE, listed.index(stale), fact)]
        if not present and fact != stale and len(about) >= 2 and names(fact) <= names(stale):
            return [(Op.DELETE, listed.index(stale), "")] if stale in listed else []
    return [] if fact in listed else [(Op.ADD, -1, fact)]


def carried_out(events: list[Event], listed: list[str]) -> list[str]:
    """The texts after events."""
    texts: list[str | None] = list(listed)
    for op, place, text in events:
        if op == Op.ADD:
            texts.append(text)
        else:
            texts[place] = text or None
    return [text for text in texts if text is not None]


def right_store(staged: StagedRecord, facts: list[str], listed: list[str]) -> list[str]:
    """What a memory that held `listed` should hold after facts."""
    for fact in facts:
        listed = carried_out(decide(staged, fact, listed), listed)
    return listed


class Answers:
    """Right answers as text: JSON, or in the tiny vocabulary tool calls."""

    def __init__(self, tools, short: bool):
        self.tools, self.short = tools, short

    def calls(self, made: list[tuple[Op, dict]]) -> str:
        """Tool calls, whose texts begin with a space."""
        spaced = [
            (op, {key: f" {text}" if key in ("content", "query", "criteria") else text for key, text in given.items()})
            for op, given in made
        ]
        return write_turn(self.tools, spaced)

    def facts(self, texts: list[str]) -> str:
        return self.adds(texts) if self.short else json.dumps({"facts": texts}, ensure_ascii=False)

    def memories(self, texts: list[str]) -> str:
        made = {"memory": [{"text": text} for text in texts]}
        return self.adds(texts) if self.short else json.dumps(made, ensure_ascii=False)

    def adds(self, texts: list[str]) -> str:
        return self.calls([(Op.ADD, {"content": text}) for text in texts])

    def events(self, events: list[Event]) -> str:
        made, said = [], []
        for op, place, text in events:
            given = {} if op == Op.ADD else {"memory_id": str(place)}
            given |= {"confirmation": True} if op == Op.DELETE else {"content": text}
            made.append((op, given))
            at, told = {"id": str(place)} if op != Op.ADD else {}, {"text": text} if op != Op.DELETE else {}
            said.append({"event": op.name, **at, **told})
        return self.calls(made) if self.short else json.dumps({"memory": said}, ensure_ascii=False)

    def memory(self, text: str) -> str:
        if self.short:
            return self.adds([text] if text else [])
        return json.dumps({"memory": text}, ensure_ascii=False)

    def note(self, keywords: list[str], context: str, tags: list[str]) -> str:
        if not self.short:
            return json.dumps({"keywords": keywords, "context": context, "tags": tags}, ensure_ascii=False)
        made = [(Op.ADD, {"content": text}) for text in keywords] + [(Op.RETRIEVE, {"query": context})]
        return self.calls(made + [(Op.FILTER, {"criteria": text}) for text in tags])

    def evolution(self, links: list[int], tags: list[str]) -> str:
        if not self.short:
            made: dict = {"should_evolve": bool(links)}
            if links:
                made |= {"actions": ["strengthen"], "suggested_connections": links, "tags_to_update": tags}
            return json.dumps(made, ensure_ascii=False)
        # A connection's number is no text.
        named = [(Op.RETRIEVE, {"query": str(link)}) for link in links]
        return write_turn(self.tools, named + [(Op.ADD, {"content": f" {text}"}) for text in tags if links])

    def query(self, keywords: str) -> str:
        if self.short:
            return self.calls([(Op.RETRIEVE, {"query": keywords})])
        return json.dumps({"keywords": keywords}, ensure_ascii=False)


class Teacher:
    """Right answers to the roles of a system in the moments of a source's training tasks."""

    def __init__(self, system: System, source: TaskSource, config, entries: int, entry_tokens: int):
        self.system, self.source, self.config = system, source, config
        self.entries, self.entry_tokens = entries, entry_tokens
        self.answers = Answers(config.tools, source.tokenizer.is_small)
        self.roles = [role.name for role in system.roles]

    def batch(self, step: int, size: int) -> tuple[Moments]:
        """The moments of one step, as a lesson's or a demonstration's batch."""
        source, width = self.source, self.config.methods.answer_tokens
        picks = [divmod(place, source.num_train)[::-1] for place in range(step * size, (step + 1) * size)]
        told, made = [], []
        for index, epoch in picks:
            rng = random.Random(f"{self.config.seed}/{type(self.system).__name__}/{index}/{epoch}/{step}")
            moment = self.moment(rng, source.staged(index, epoch))
            told.append(moment)
            made.append(self.shown(rng, moment))
        held = [self.held(moment, role) for moment, (role, _, _) in zip(told, made, strict=True)]
        bodies = [
            moment.staged.query if self.roles[role] == "query" else moment.text
            for moment, (role, _, _) in zip(told, made, strict=True)
        ]
        owners = np.zeros((size, self.entries), np.int32)
        for row, (index, _), entries in zip(owners, picks, held, strict=True):
            row[: len(entries)] = [source.owner(index, speaker) for speaker, _ in entries]
        owner = [source.owner(index, moment.speaker) for (index, _), moment in zip(picks, told, strict=True)]
        end, encode = source.tokenizer.end_of_turn, source.tokenizer.encode_markup
        moments = Moments(
            task=source.rows(picks),
            role=np.array([role for role, _, _ in made], np.int32),
            turn=np.array([moment.turn for moment in told], np.int32),
            body=stack([self.text(body, self.config.task.message_tokens) for body in bodies]),
            owner=np.array(owner, np.int32),
            entries=stack([self.texts([text for _, text in entries], self.entries) for entries in held]),
            owners=owners,
            notes=stack([notes for _, notes, _ in made]),
            answer=stack([pad_text(encode(answer + end)[:width], width) for _, _, answer in made]),
        )
        return (moments,)

    def moment(self, rng: random.Random, staged: StagedRecord) -> Moment:
        """A message, and a memory: mostly what a right play of the messages before would have left."""
        told = [(text, who, False) for text, who in zip(staged.facts, staged.fact_speakers, strict=True)]
        told += [(text, who, True) for text, who in zip(staged.distractors, staged.distractor_speakers, strict=True)]
        last = len(staged.facts) - len(staged.revisions)
        weight = [CHANGES if last <= i < len(staged.facts) else 1.0 for i in range(len(told))]
        at = rng.choices(range(len(told)), weight)[0]
        by_speaker: dict[int, list[str]] = {}
        for text, who, later in told[:at]:
            if fact := fact_in(staged, text, later):
                by_speaker[who] = right_store(staged, [fact], by_speaker.get(who, []))
        held = [(who, text) for who, texts in by_speaker.items() for text in texts if rng.random() < KEPT]
        rng.shuffle(held)
        text, who, _ = told[at]
        return Moment(staged, text, who, min(at, len(staged.facts)), held[: self.entries])

    def shown(self, rng: random.Random, moment: Moment) -> tuple[int, Any, str]:
        """What is asked at a moment: (role, the system's notes, the right answer)."""
        later = moment.text in moment.staged.distractors
        fact = fact_in(moment.staged, moment.text, later)
        match self.system:
            case Classic():
                if not fact or rng.random() < 0.5:
                    return 0, self.classic_notes([], []), self.right(moment, "extract")
                listed = self.near(moment, fact)
                events = decide(moment.staged, fact, [moment.held[i][1] for i in listed])
                return 1, self.classic_notes([fact], listed), self.answers.events(events)
            case AMem():
                return self.amem_shown(rng, moment)
            case _:
                return 0, (), self.right(moment, self.roles[0])

    def right(self, moment: Moment, role: str) -> str:
        """The right answer of a role that sees the message, the question, or the whole memory of the speaker."""
        fact = fact_in(moment.staged, moment.text, moment.text in moment.staged.distractors)
        facts = [fact] if fact else []
        match role:
            case "extract":
                return self.answers.facts(facts)
            case "remember":
                return self.answers.memories([text for text in facts if text not in moment.own])
            case "rewrite":
                texts = moment.own
                new = right_store(moment.staged, facts, texts)
                while new and len(self.source.encode(" ".join(new))) > self.config.methods.memory_tokens:
                    new.pop(0)
                return self.answers.memory(" ".join(new) if new != texts else "")
            case "construct":
                return self.answers.note(*self.note_of(moment.text))
            case "query":
                words = [word for word in moment.staged.query.split() if word in names(moment.staged.query)]
                return self.answers.query(" ".join(words) or moment.staged.query)
        raise ValueError(f"{role} is no role that is answered from the message alone")

    def held(self, moment: Moment, role: int) -> list[tuple[int, str]]:
        """The entries of the store: of MemAgent the speaker's texts as one."""
        if self.roles[role] != "rewrite":
            return moment.held
        return [(moment.speaker, " ".join(moment.own))] if moment.own else []

    def near(self, moment: Moment, text: str) -> list[int]:
        """Places of the speaker's texts that are nearest, as far as common words tell."""
        words = set(text.split())
        own = [i for i, (who, _) in enumerate(moment.held) if who == moment.speaker]
        return sorted(own, key=lambda i: -len(words & set(moment.held[i][1].split())))[: self.system.neighbours]

    def classic_notes(self, facts: list[str], listed: list[int]) -> ClassicNotes:
        ids = np.full(self.system.facts * self.system.neighbours, NO_ID, np.int32)
        ids[: len(listed)] = np.array(listed, np.int32) + 1
        return ClassicNotes(self.texts(facts, self.system.facts), ids)

    def note_of(self, text: str) -> tuple[list[str], str, list[str]]:
        """Keywords, context and tags of a message: its names, its words up to the limit, the longest other words."""
        words = list(dict.fromkeys(text.split()))
        named = [word for word in words if word in names(text)]
        others = sorted((word for word in words if word not in named), key=lambda word: -len(word))
        context, most = text.split(), self.system.context_tokens
        while context and len(self.source.encode(" ".join(context))) > most:
            context.pop()
        fits = lambda word: len(self.source.encode(word)) <= self.system.word_tokens  # noqa: E731
        keywords = list(filter(fits, named or others))[: self.system.keywords]
        return keywords, " ".join(context), list(filter(fits, others))[: self.system.tags]

    def amem_shown(self, rng: random.Random, moment: Moment) -> tuple[int, Any, str]:
        """What A-Mem asks: an analysis, how a note evolves, or the question's keywords."""
        chance = rng.random()
        listed = self.near(moment, moment.text)
        held = [text for _, text in moment.held] + [""] * (self.entries - len(moment.held))
        stored = stack([self.as_note(text) for text in held])
        none = np.full(self.system.neighbours, NO_ID, np.int32)
        notes = AMemNotes(stored, self.as_note(""), none, np.int32(0))
        if chance < ASKED:
            return 2, notes, self.right(moment, "query")
        if chance < 0.5:
            return 0, notes, self.right(moment, "construct")
        ids = none.copy()
        ids[: len(listed)] = np.array(listed, np.int32) + 1
        links = [i for i in listed if len(names(moment.text) & names(moment.held[i][1])) >= 2]
        answer = self.answers.evolution(links, self.note_of(moment.text)[2])
        return 1, notes.replace(made=self.as_note(moment.text), listed=ids), answer

    def as_note(self, text: str) -> Note:
        """The note of a text, as arrays; of no text an empty one."""
        keywords, context, tags = self.note_of(text) if text else ([], "", [])
        s = self.system
        return Note(
            context=self.text(context, s.context_tokens),
            keywords=self.texts(keywords, s.keywords, s.word_tokens),
            tags=self.texts(tags, s.tags, s.word_tokens),
            links=np.full(s.neighbours, NO_ID, np.int32),
        )

    def text(self, text: str, width: int) -> Text:
        return pad_text(self.source.encode(text)[:width] if text else [], width)

    def texts(self, texts: list[str], count: int, width: int | None = None) -> Text:
        width = width or self.entry_tokens
        return pad_texts([self.source.encode(text)[:width] if text else [] for text in texts], count, width)

    def agreement(self, records: list[dict]) -> dict[str, dict[str, int]]:
        """How many calls of each role in traces (training/traces.py) did what is right: {role: {compared, agreed}}.

        A decision, and a memory that is written anew, are judged by the store that they leave; other answers by their
        words. What a note is linked to is not judged.
        """
        found = {name: {"compared": 0, "agreed": 0} for name in self.roles if name != "evolve"}
        for record in records:
            staged, before, facts = self.source.staged(record["task"]), [], []
            for turn in record["turns"]:
                after = [entry["text"] for entry in turn["store"]]
                if turn["mode"] in found:
                    one = found[turn["mode"]]
                    one["compared"] += 1
                    one["agreed"] += self._agrees(staged, turn, before, after, facts)
                facts, before = texts_of(turn["said"]), after
        return found

    def _agrees(self, staged: StagedRecord, turn: dict, before: list[str], after: list[str], facts: list[str]) -> bool:
        told = staged.facts if turn["stage"] == 1 else staged.distractors
        text = told[turn["turn"]] if turn["turn"] < len(told) else staged.query
        moment = Moment(staged, text, 0, turn["turn"], [(0, entry) for entry in before])
        if turn["mode"] == "decide":
            return sorted(after) == sorted(right_store(staged, facts, before))
        if turn["mode"] == "rewrite":
            fact = fact_in(staged, text, turn["stage"] == 2)
            return any(fact in entry for entry in after) if fact else after == before
        return texts_of(turn["said"]) == texts_of(self.right(moment, turn["mode"]))


def texts_of(said: str) -> list[str]:
    """All that an answer says, JSON or tool calls; nothing of what is neither."""

    def texts(node) -> list[str]:
        if isinstance(node, str):
            return [node.strip()]
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return [text for one in inner for text in texts(one)]

    try:
        if "<tool_call>" in said:
            return [text for call in read_calls(said) for text in texts(call["arguments"])]
        return texts(json.loads(said))
    except ValueError:
        return []
