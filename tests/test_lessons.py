"""Reading lessons: every answer follows from what was told before it, by a reader that knows the sentences only."""

import re

import numpy as np
import pytest

from agemem_jax.benchmarks.hotpotqa.lessons import Lessons
from agemem_jax.benchmarks.hotpotqa.questions import UNKNOWN, split_of
from agemem_jax.benchmarks.hotpotqa.words import NUMBERS
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from configs import tiny

NAME = r"(\w+ \w+)"
# What is told, and the questions that it answers.
FACTS = (
    (rf"(?:no )?{NAME} was born in (\d+)", "When was {} born"),
    (rf"{NAME} was born in (\D+)", "Where was {} born"),
    (rf"(?:no )?{NAME} was published in (\d+)", "When was {} published"),
    (rf"{NAME} was written by (.+)", "Who was {} written by"),
    (rf"{NAME} lives in (.+)", "Where does {} live"),
    (rf"{NAME} works for (.+)", "Who does {} work for"),
)
CHANGES = (
    (rf"{NAME} moved from (.+) to (.+)", "Where does {} live", "Where did {} live before"),
    (rf"{NAME} left (.+) for (.+)", "Who does {} work for", "Who did {} work for before"),
)


class Listener:
    """What was told so far, as answers to questions."""

    def __init__(self):
        self.answers, self.bids = {}, {}

    def hear(self, text: str) -> None:
        if match := re.fullmatch(rf"(?:forget|never mind) {NAME}", text):
            self.answers = {question: a for question, a in self.answers.items() if match[1] not in question}
        elif match := re.fullmatch(rf"{NAME} bid (\w+) coins for {NAME}", text):
            self.bids[NUMBERS.index(match[2])] = match[1]
        for pattern, now, before in CHANGES:
            if match := re.fullmatch(pattern, text):
                subject, old, new = match.groups()
                assert self.answers[now.format(subject)] == old
                self.answers |= {now.format(subject): new, before.format(subject): old}
                return
        for pattern, question in FACTS:
            if match := re.fullmatch(pattern, text):
                self.answers[question.format(match[1])] = match[2]
                return

    def answer(self, question: str) -> str:
        of = lambda text: self.answers.get(text, UNKNOWN)  # noqa: E731
        if question.startswith("Who bid most"):
            return self.bids[max(self.bids)]
        if match := re.fullmatch(rf"(\w+) was the author of {NAME} born", question):
            return of(f"{match[1]} was {of(f'Who was {match[2]} written by')} born")
        if match := re.fullmatch(rf"Who was born first {NAME} or {NAME}", question):
            return min(match.groups(), key=lambda name: of(f"When was {name} born"))
        if match := re.fullmatch(rf"Do {NAME} and {NAME} share a birthplace", question):
            one, other = (of(f"Where was {name} born") for name in match.groups())
            return "yes" if one == other else "no"
        return of(question)


@pytest.fixture(scope="module")
def lessons():
    config = tiny.get_config()
    tokenizer = Tokenizer.load(config.policy.tokenizer)
    return Lessons(config, tokenizer, build_pieces(tokenizer, config))


def turns_of(lessons: Lessons, row) -> list[tuple[str, str, list[bool]]]:
    """Role, text and learnt marks of the messages of a page."""
    messages = []
    for token, learnt in zip(*row, strict=True):
        piece = lessons.tokenizer.decode([int(token)])
        if piece.startswith("<|im_start|>"):
            messages.append([piece.removeprefix("<|im_start|>"), "", []])
        messages[-1][1] += piece if not piece.startswith("<|im_start|>") else ""
        messages[-1][2].append(bool(learnt))
    return [(role, text.removesuffix("<|im_end|>"), learnt) for role, text, learnt in messages]


def test_answers_follow_from_what_was_told(lessons):
    batch = lessons.batch(lessons.config.warm.lessons - 1, 64)
    kinds = {"unknown": 0, "author": 0, "first": 0, "share": 0, "bid most": 0, "before": 0, "": 0}
    for row in range(64):
        length = batch.length[row, 0]
        listener, question = Listener(), ""
        for role, text, learnt in turns_of(lessons, (batch.tokens[row, 0, :length], batch.trainable[row, 0, :length])):
            said = text.strip()
            if role == "user":
                question = said if re.match("(Who|Where|When|Do) ", said) else ""
                listener.hear(said)
            if role == "assistant" and "<answer>" in text:
                answer = re.search("<answer> (.*)</answer>", text)[1]
                assert answer == listener.answer(question), (question, answer)
                assert sum(learnt) == len(answer.split()) + 1  # and its end
                kind = next(k for k in kinds if k in (UNKNOWN if answer == UNKNOWN else question))
                kinds[kind] += 1
            elif role == "user" or (role == "assistant" and "query" not in text):
                assert not any(learnt)
    assert min(kinds.values()) >= 8 and sum(kinds.values()) > 64 * 5, kinds


def test_a_recital_tells_the_same_facts_again(lessons):
    """Alone in the first quarter of the lessons; all but the number and the first two words of a line is learnt."""
    batch = lessons.batch(0, 32)
    moved = 0
    for row in range(32):
        length = batch.length[row, 0]
        told, (result, learnt) = [], ("", [])
        for role, text, marks in turns_of(lessons, (batch.tokens[row, 0, :length], batch.trainable[row, 0, :length])):
            if role == "tool":
                result, learnt = text, marks
                break
            assert role == "user" and not any(marks)
            told.append(text.strip())
        again = re.split(r"\d: ", result)[1:]
        assert result.startswith(" done") and sorted(again) == sorted(told)
        assert sum(learnt) == sum(len(text.split()) - 2 for text in told)
        assert len(told) >= 2 and length > batch.tokens.shape[-1] - 40
        moved += again != told
    assert moved > 16


def dealings(lessons) -> list[tuple[list, list]]:
    """Of each page with dealings after the lessons: the conversation that it begins with and its summary, or [], and
    the turns that follow, as of `turns_of`."""
    batch, pages = lessons.batch(lessons.config.warm.lessons, 96), []
    for row in range(96):
        length = batch.length[row, 0]
        turns = turns_of(lessons, (batch.tokens[row, 0, :length], batch.trainable[row, 0, :length]))
        begin = next((i + 2 for i, turn in enumerate(turns) if turn[:2] == ("user", " summarise")), 0)
        if begin or "related" in turns[0][1] or "Filter_context" in turns[1][1]:
            pages.append((turns[:begin], turns[begin:]))
    return pages


def test_conversations_are_summed_up_by_what_demonstrations_keep_of_them(lessons):
    """The best bid, a summary's own among them, or the first two facts, as far as a summary goes."""
    begun = [turns for turns, _ in dealings(lessons) if turns]
    assert len(begun) > 15
    of_bids = 0
    for *told, (_, summary, learnt) in begun:
        texts = [text.removeprefix(" summary").strip() for role, text, _ in told[:-2] if role == "user"]
        assert told[-1][:2] == ("user", " summarise") and "Summary_context" in told[-2][1]
        assert not any(any(unlearnt) for *_, unlearnt in told)
        assert sum(learnt) == len(summary.split()) + 1 <= lessons.config.rollout.summary_tokens
        if " bid " in texts[-1]:
            of_bids += 1
            best = max((text.split() for text in texts), key=lambda bid: NUMBERS.index(bid[3]))
            assert summary.split() == best[:4]
            continue
        stated = [text for text in texts if any(re.fullmatch(pattern, text) for pattern, *_ in FACTS)]
        assert " ".join(stated[:2]).startswith(summary.strip()) and len(summary.split()) >= 5
    assert len(begun) / 2 < of_bids < len(begun)


def test_dealings_name_the_entry_shown_and_say_what_was_told(lessons):
    """After the lessons, in half of the pages; which call it is says nothing about the message."""
    seen, pages, filtered = {}, 0, 0
    for _, turns in dealings(lessons):
        pages += 1
        turns = iter(turns)
        for role, shown, unlearnt in turns:
            _, told, no = next(turns) if role == "tool" else (role, shown, unlearnt)
            _, call, learnt = next(turns)
            if role == "user":
                filtered += 1
                criteria = re.search(r'"criteria": "(.*?)"', call)[1]
                assert criteria.split() == [word for word in told.split() if word[0].isupper()] and not any(no)
                assert sum(learnt) == len(criteria.split()) + 1
                continue
            entry = re.fullmatch(rf"(?: done ?\d?)? related memories(\d): {NAME} .+", shown)
            name = re.match(rf" (?:no |forget |never mind )?{NAME}", told)[1]
            assert entry and entry[2] == name and not any(unlearnt) and not any(no)
            tool = re.search(r'"name": "(\w+)_memory"', call)[1]
            content, number = re.search(r'"content": "(.*?)"', call), re.search(r'"memory_id": "(\d)"', call)
            assert (content is None) == (tool == "Delete") and (number is None) == (tool == "Add")
            assert content is None or content[1] == told
            assert number is None or number[1] == entry[1]
            assert sum(learnt) == (content is not None) * (len(told.split()) + 1) + (number is not None) * 2
            seen.setdefault(tool, []).append(told.startswith((" forget", " never mind")))
    assert 30 < pages < 66 and set(seen) == {"Add", "Update", "Delete"}
    assert 0.1 < filtered / (filtered + sum(map(len, seen.values()))) < 0.3
    assert all(len(closed) > 50 and 0.15 < np.mean(closed) < 0.45 for closed in seen.values())


def test_a_lesson_is_a_function_of_its_number_and_fills_its_page(lessons):
    steps, most = lessons.config.warm.lessons, lessons.config.warm.lesson_tokens
    widths = ((0, 1), (steps // 2 - 1, 1), (steps // 2, 2), (3 * steps // 4, 3), (steps, 3))  # thirds
    for step, width in ((step, most * thirds // 3) for step, thirds in widths):
        batch, again = lessons.batch(step, 8), lessons.batch(step, 4)
        np.testing.assert_array_equal(batch.tokens[:4], again.tokens)
        np.testing.assert_array_equal(batch.trainable[:4], again.trainable)
        assert (batch.length > width - 60).all() and batch.tokens.shape == (8, 1, width)
        assert not np.array_equal(batch.tokens[0], batch.tokens[1])


def test_no_lesson_tells_of_the_tested_people(lessons):
    batch = lessons.batch(lessons.config.warm.lessons, 16)
    for row in range(16):
        text = lessons.tokenizer.decode(batch.tokens[row, 0, : batch.length[row, 0]].tolist())
        names = re.findall(r"(\w+ \w+) (?:was born|was written|was published|lives|works)", text)
        assert names and all(split_of(tuple(name.split())) == "train" for name in names)
