"""Reading lessons: what the warm start learns before it watches demonstrations.

A trajectory asks one question, and most of its tokens are calls. A lesson is a long conversation in which every other
message asks about what was told so far, so that looking up a fact among many is learnt from a dozen answers a page:
facts that hold, hold no more, or were never told; facts of facts, often told far apart; comparisons; the highest bid.
Talk of other people and places comes between. Some facts are told by a tool result, after the call that asks for them;
how that goes on is learnt too, since it takes the same look back.

What is hard to learn is to look for the subject: any value of the right kind is the answer half of the time where two
are in view, and a policy stays with that guess for thousands of steps (experiments/LOG.md). So pages begin with a
recital: facts, often all of one relation, and then a tool result that tells all of them again in another order. It is
as dense as a lesson can be, and nothing but the subject says how a line of it goes on. Pages are short at first.

After these lessons half of the pages are dealings: messages that come with the entry they are about, and a call to
each, or a call that filters by a message's names; at times after a conversation and its summary. Demonstrations show
all this too seldom: a policy that saw nothing else named any entry, and summed up bids by who bid first.

Lessons say nothing about when which tool is of use: the call of a dealing is drawn without a look at the message.
"""

import random

import numpy as np

from agemem_jax.benchmarks.demos import some_words
from agemem_jax.benchmarks.hotpotqa.demos import digest, named, subject
from agemem_jax.benchmarks.hotpotqa.questions import (
    BORN_WHERE,
    CLOSINGS,
    RELATIONS,
    REVISED,
    UNKNOWN,
    WRITTEN,
    Fact,
    World,
    chatter,
    doings,
    talk,
)
from agemem_jax.benchmarks.hotpotqa.words import CHATTER, NUMBERS
from agemem_jax.data.scripts import as_summary, write_turn
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.types import PAD_ID, Op, Pieces, Segments, Status

FIRST = 2  # facts that are told before any is asked for
RECITED = 0.5  # share of the pages that begin with a recital; in the first quarter of the lessons that is all they hold
ALIKE = 0.5  # share of the pages whose plain facts are all of one relation
ASKED = 0.65  # share of the messages that ask
LOST = 0.1  # share of these that ask for what was taken back, or for what nobody told
CLOSED = 0.3  # share of the dealings in which the entry is taken back
FILTERED = 0.2  # share of the dealings that are calls to filter
SUMMED_UP = 0.6  # share of the pages with dealings that begin with a conversation and its summary
OF_BIDS = 0.7  # share of the summaries that are of bids
LONGEST = 8  # messages that are summed up
TRIES = 8  # at a question that was not asked before
ANSWERED = 0.6  # chance that a message which tells something is followed by a turn
DEALT = 0.5  # share of the pages after warm.lessons that are dealings
TOOLS = 0.4  # chance that a question is answered after a retrieval
# What a message tells, by its share.
TELLS = {
    "fact": 0.1, "bridge": 0.16, "pair": 0.08, "revision": 0.22, "closing": 0.05, "bid": 0.18, "chatter": 0.06,
    "talk": 0.15,
}  # fmt: skip
TALK = 4  # most messages of talk about others at a time
AT_ONCE = 0.5  # chance that both hops of a question are told together, and not the second one later


class Lessons:
    """Writes lessons of the training split; lesson i of a step is a function of (seed, step, i)."""

    def __init__(self, config, tokenizer: Tokenizer, pieces: Pieces):
        self.config, self.tokenizer = config, tokenizer
        chat, encode = tokenizer.chat_pieces(config.policy.date_string), tokenizer.encode_markup
        self.user, self.assistant, self.tool, self.close = (
            encode(text) for text in (chat.user_open, chat.assistant_open, chat.tool_open, chat.message_close)
        )
        self.end = tokenizer.end_of_turn
        self.quiet = self.assistant + encode(write_turn(config.tools, []) + self.end)  # a turn that lets a message pass
        done = pieces.statuses.tokens[Op.RETRIEVE, Status.OK]
        self.done = done[: pieces.statuses.length[Op.RETRIEVE, Status.OK]].tolist()
        self.summarise = pieces.summary_prompt.tokens[: pieces.summary_prompt.length].tolist()
        self.summary = pieces.summary_open.tokens[: pieces.summary_open.length].tolist()
        self.related = pieces.related.tokens[: pieces.related.length].tolist()
        self.mark = pieces.id_mark.tokens[: pieces.id_mark.length].tolist()

    def width(self, step: int) -> int:
        """Most tokens of a page: half of the lessons have a third of warm.lesson_tokens, a quarter two thirds."""
        done = step / max(1, self.config.warm.lessons)
        thirds = 1 if done < 0.5 else 2 if done < 0.75 else 3
        return self.config.warm.lesson_tokens * thirds // 3

    def batch(self, step: int, size: int) -> Segments:
        """The lessons of a step, one segment a row, numpy arrays; what can be known from the page is trainable."""
        width = self.width(step)
        pages = []
        for i in range(size):
            rng = random.Random(f"{self.config.seed}/lesson/{step}/{i}")
            only = 4 * step < self.config.warm.lessons
            if step >= self.config.warm.lessons and rng.random() < DEALT:
                pages.append(Page(self, width, rng, deals=True))
                continue
            recital = width if only else rng.randint(width // 3, width) if rng.random() < RECITED else 0
            pages.append(Page(self, width, rng, recital))
        tokens = np.full((size, 1, width), PAD_ID, np.int32)
        trainable = np.zeros((size, 1, width), bool)
        for row, page in enumerate(pages):
            tokens[row, 0, : len(page.tokens)] = page.tokens
            trainable[row, 0, : len(page.learnt)] = page.learnt
        length = np.array([[len(page.tokens)] for page in pages], np.int32)
        zeros = lambda dtype: np.zeros(tokens.shape, dtype)  # noqa: E731
        return Segments(
            tokens=tokens, length=length, trainable=trainable, logp=zeros(np.float32), state=zeros(np.int16),
            remaining=zeros(np.int16), ops=zeros(np.int16), turn=zeros(np.int16), stage=zeros(np.int8),
            count=np.ones(size, np.int32),
        )  # fmt: skip


class Page:
    """One lesson: `tokens`, and which of them are `learnt`; the first `recital` tokens are one, or it all `deals`."""

    def __init__(self, lessons: Lessons, width: int, rng: random.Random, recital: int = 0, deals: bool = False):
        self.lessons, self.width, self.rng, self.world = lessons, width, rng, World(rng, "train")
        self.tokens: list[int] = []
        self.learnt: list[bool] = []
        self.facts: list[tuple[Fact, str]] = []  # that hold, with the text that told them
        self.past: list[tuple[str, str]] = []  # questions about what held before, and their answers
        self.gone: list[Fact] = []  # taken back
        self.owed: list[Fact] = []  # the other hops of what was told
        self.bids: list[tuple[int, str]] = []
        self.work = self.world.draw("work")  # that is bid for
        self.relations = [rng.choice(RELATIONS)] if rng.random() < ALIKE else RELATIONS
        self.asked: set[str] = set()
        self._fits(self._recital(recital))
        if deals and rng.random() < SUMMED_UP:
            self._fits(self._digest())
        while self._fits(self._deal() if deals else self._round()):
            pass

    def _fits(self, parts: list[tuple[list[int], bool]]) -> bool:
        """Adds a round of (tokens, learnt); False if the page is full."""
        if len(self.tokens) + sum(len(part) for part, _ in parts) > self.width:
            return False
        for part, learnt in parts:
            self.tokens += part
            self.learnt += [learnt] * len(part)
        return True

    def _round(self) -> list[tuple[list[int], bool]]:
        rng = self.rng
        if len(self.facts) >= FIRST and rng.random() < ASKED:
            if rng.random() < LOST:
                lost = rng.choice(self.gone) if self.gone else self.world.fact(rng.choice(RELATIONS))
                return self._ask(lost.question, UNKNOWN, [])
            for _ in range(TRIES):  # an answer that stands in view already teaches little
                question, answer, texts = self._question()
                if question not in self.asked:
                    self.asked.add(question)
                    return self._ask(question, answer, texts)
        return [part for text in self._tell() for part in self._told(text)]

    def _recital(self, room: int) -> list[tuple[list[int], bool]]:
        """As many facts as `room` tokens hold twice: as messages, and in another order as a tool result."""
        told: list[tuple[list[int], bool]] = []
        room -= len(self.lessons.tool + self.lessons.done + self.lessons.close)
        while True:
            fact = self.world.fact(self.rng.choice(self.relations), sharing=self._shared())
            message = self.lessons.user + self._encode(fact.text) + self.lessons.close
            room -= len(message) + sum(len(part) for part, _ in self._entry(fact.text))
            if room < 0:
                break
            told.append((message, False))
            self.facts.append((fact, fact.text))
        if not told:
            return []
        texts = [text for _, text in self.facts]
        return told + self._result(self.rng.sample(texts, len(texts)))

    def _deal(self) -> list[tuple[list[int], bool]]:
        """A message that revises what the store holds, or takes it back, with the entry, and a call.

        What is learnt is the entry's number and the message's text, as a call's arguments.
        """
        lessons, rng = self.lessons, self.rng
        if rng.random() < FILTERED:
            text = self._doings()
            criteria = f" {named(text)}"
            turn = write_turn(lessons.config.tools, [(Op.FILTER, {"criteria": criteria})]) + lessons.end
            return [(lessons.user + self._encode(text) + lessons.close, False), *self._turn(turn, criteria)]
        fact = self.world.fact(rng.choice(REVISED), sharing=self._shared())
        self.facts = [(fact, fact.text)]
        text = rng.choice(CLOSINGS).format(s=fact.subject) if rng.random() < CLOSED else self._revise(self.facts[0])
        number = str(rng.randint(1, lessons.config.store.entries + 1))
        before = rng.choice(([], lessons.done, lessons.done + self._markup(str(rng.randint(1, 4)))))  # a call's result
        entry = lessons.related + self._markup(number) + lessons.mark + self._encode(fact.text)
        shown = lessons.tool + before + entry + lessons.close
        message = lessons.user + self._encode(text) + lessons.close
        content = f" {text}"
        op, arguments = rng.choice([
            (Op.ADD, {"content": content}),
            (Op.UPDATE, {"memory_id": number, "content": content}),
            (Op.DELETE, {"memory_id": number, "confirmation": True}),
        ])  # fmt: skip
        turn = write_turn(lessons.config.tools, [(op, arguments)]) + lessons.end
        learnt = [value for value in arguments.values() if value is not True]
        return [(shown + message, False), *self._turn(turn, *learnt)]

    def _doings(self) -> str:
        return doings(self.world, self.world.draw("person"), self.world.value("place"))

    def _digest(self) -> list[tuple[list[int], bool]]:
        """A conversation, at times after a summary of what was before it, and its summary, which is learnt."""
        lessons, rng, world = self.lessons, self.rng, self.world
        count = rng.randint(2, LONGEST)
        if rng.random() < OF_BIDS:
            amounts = [NUMBERS[i] for i in rng.sample(range(len(NUMBERS)), count)]
            bids = [f"{world.draw('person')} bid {amount}" for amount in amounts]
            told = kept = [f"{bid} coins for {self.work} {rng.choice(CHATTER[-1])}" for bid in bids]
            before = bids[0]
        else:
            kept = [world.fact(rng.choice(self.relations)).text for _ in range(count // 2 + 1)]
            told = kept + [self._doings() for _ in range(count - len(kept))]
            before = kept[0]
            rng.shuffle(told)
        parts = []
        if rng.random() < 0.5:
            told = [before] + [text for text in told if not text.startswith(before)]
            kept = [before, *kept]
            parts = [(lessons.user + lessons.summary + self._encode(before) + lessons.close, False)]
        for text in told[len(parts) :]:
            parts += self._told(text)
        text, most = digest([text for text in told if text in kept]), lessons.config.rollout.summary_tokens
        summary = as_summary(text, lessons.tokenizer, lessons.end, most)
        turn = write_turn(lessons.config.tools, [(Op.SUMMARY, {"span": "all"})]) + lessons.end
        asked = lessons.assistant + self._markup(turn) + lessons.user + lessons.summarise + lessons.close
        asked += lessons.assistant
        return [*parts, (asked, False), (self._markup(summary + lessons.end), True)]

    def _told(self, text: str) -> list[tuple[list[int], bool]]:
        lessons = self.lessons
        parts = [(lessons.user + self._encode(text) + lessons.close, False)]
        if self.rng.random() < ANSWERED:
            parts.append((lessons.quiet, False))
        return parts

    def _encode(self, text: str) -> list[int]:
        return self._markup(f" {text}")

    def _markup(self, text: str) -> list[int]:
        return self.lessons.tokenizer.encode_markup(text)

    def _tell(self) -> list[str]:
        """What is told next, one text a message."""
        rng, world = self.rng, self.world
        what = rng.choices(list(TELLS), list(TELLS.values()))[0]
        new = [world.fact(rng.choice(self.relations), sharing=self._shared())]
        if what == "bridge" and self.owed:
            new, self.owed = self.owed, []
        elif what == "bridge":
            new = [world.fact(WRITTEN) for _ in range(rng.randint(1, 3))]
            relation = rng.choice(RELATIONS[:2])
            hops = [new, [world.fact(relation, fact.object) for fact in new]]
            rng.shuffle(hops)
            if rng.random() < AT_ONCE:
                new = hops[0] + hops[1]
            else:
                new, self.owed = hops
        elif what == "pair":
            relation = rng.choice(RELATIONS[:2])
            new = [world.fact(relation), world.fact(relation)]
            if rng.random() < 0.5:
                new[1] = Fact(relation, new[1].subject, new[0].object)
        elif what == "revision" and (known := [pair for pair in self.facts if pair[0].relation.revised]):
            return [self._revise(rng.choice(known))]
        elif what == "closing" and self.facts:
            pair = rng.choice(self.facts)
            self.gone += [fact for fact, _ in self.facts if fact.subject == pair[0].subject]
            self.facts = [held for held in self.facts if held[0].subject != pair[0].subject]
            self.past = [(question, answer) for question, answer in self.past if pair[0].subject not in question]
            return [rng.choice(CLOSINGS).format(s=pair[0].subject)]
        elif what == "bid" and len(self.bids) < len(NUMBERS):
            amount = rng.choice([i for i in range(len(NUMBERS)) if i not in [told for told, _ in self.bids]])
            self.bids.append((amount, world.draw("person")))
            return [f"{self.bids[-1][1]} bid {NUMBERS[amount]} coins for {self.work}"]
        elif what == "chatter":
            return [chatter(rng)]
        elif what == "talk":  # of places, too: it is the subject that tells an answer from them
            return [talk(world) for _ in range(rng.randint(1, TALK))]
        rng.shuffle(new)
        self.facts += [(fact, fact.text) for fact in new]
        return [fact.text for fact in new]

    def _shared(self) -> str:
        """A name that a new entity shares with one that was told, at times."""
        return self.rng.choice(self.facts[-1][0].subject.split()) if self.facts and self.rng.random() < 0.3 else ""

    def _revise(self, pair: tuple[Fact, str]) -> str:
        fact, relation = pair[0], pair[0].relation
        new = Fact(relation, fact.subject, self.world.value(relation.object))
        text = relation.revised.format(s=fact.subject, o=new.object, b=fact.object)
        self.facts[self.facts.index(pair)] = (new, text)
        self.asked.clear()  # answers may be others now
        if relation.asked_before:
            asked = relation.asked_before.format(s=fact.subject)
            self.past = [(question, answer) for question, answer in self.past if question != asked]
            self.past.append((asked, fact.object))
        return text

    def _question(self) -> tuple[str, str, list[str]]:
        """A question, its answer, and the texts that it follows from."""
        rng = self.rng
        fact, text = rng.choice(self.facts)
        chance = rng.random()
        by_subject = {(held.subject, held.relation.object): (held, told) for held, told in self.facts}
        if chance < 0.3:
            bridges = [
                (held, told, by_subject[held.object, kind])
                for held, told in self.facts
                if held.relation is WRITTEN
                for kind in ("place", "year")
                if (held.object, kind) in by_subject and by_subject[held.object, kind][0].relation in RELATIONS[:2]
            ]
            if bridges:
                held, told, (born, more) = rng.choice(bridges)
                return f"{born.question.split()[0]} was the author of {held.subject} born", born.object, [told, more]
        elif chance < 0.42:
            for relation in rng.sample(RELATIONS[:2], 2):
                born = [(held, told) for held, told in self.facts if held.relation is relation]
                if len(born) > 1:
                    return self._compare(*rng.sample(born, 2))
        elif chance < 0.62 and self.past:
            return *rng.choice(self.past), []
        elif chance < 0.77 and len(self.bids) > 1:
            return f"Who bid most for {self.work}", max(self.bids)[1], []
        return fact.question, fact.object, [text]

    def _compare(self, one: tuple[Fact, str], other: tuple[Fact, str]) -> tuple[str, str, list[str]]:
        a, b, texts = one[0], other[0], [one[1], other[1]]
        if a.relation is BORN_WHERE:
            same = "yes" if a.object == b.object else "no"
            return f"Do {a.subject} and {b.subject} share a birthplace", same, texts
        if a.object == b.object:
            return a.question, a.object, texts[:1]
        return f"Who was born first {a.subject} or {b.subject}", min(a, b, key=lambda f: f.object).subject, texts

    def _ask(self, question: str, answer: str, texts: list[str]) -> list[tuple[list[int], bool]]:
        """The question, at times a retrieval of one text among others, and the answer."""
        lessons, rng = self.lessons, self.rng
        tools = lessons.config.tools
        parts = [(lessons.user + self._encode(question) + lessons.close, False)]
        if texts and rng.random() < TOOLS:
            for text in texts if rng.random() < 0.5 else texts[:1]:
                query = f" {subject(text) if rng.random() < 0.7 else some_words(rng, text)}"
                turn = write_turn(tools, [(Op.RETRIEVE, {"query": query})]) + lessons.end
                found = [text] + ([rng.choice(self.facts)[1]] if rng.random() < 0.5 else [])
                rng.shuffle(found)
                parts += self._turn(turn, query) + self._result(list(dict.fromkeys(found)))
        return parts + self._turn(write_turn(tools, [], answer) + lessons.end, f" {answer}")

    def _result(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        """What a retrieval shows that has found `texts`."""
        entries = [part for text in texts for part in self._entry(text)]
        return [(self.lessons.tool + self.lessons.done, False), *entries, (self.lessons.close, False)]

    def _entry(self, text: str) -> list[tuple[list[int], bool]]:
        """An entry with its number. Its first two words may be anything; what comes after them was told before."""
        number = self._markup(str(self.rng.randint(1, 9)))
        entry = self._encode(text)
        return [(number + self.lessons.mark + entry[:2], False), (entry[2:], True)]

    def _turn(self, turn: str, *texts: str) -> list[tuple[list[int], bool]]:
        """A turn, of which `texts` and the mark that ends each are learnt."""
        head, turn = turn.split(texts[0], 1)
        parts = [(self.lessons.assistant + self._markup(head), False)]
        for text, following in zip(texts, (*texts[1:], ""), strict=True):
            between, turn = turn.split(following, 1) if following else (turn, "")
            tail = self._markup(between)
            parts += [(self._markup(text) + tail[:1], True), (tail[1:], False)]
        return parts
