"""The vocabulary of all benchmarks: one word is one piece, all is spelled, and play has the tokens of its texts."""

import json
import os
import random
import re
import string
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from alfworld_games import write_all
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alfworld import ALL, FIXTURE, Played, walked
from test_babyai import MACROS, records, reset, stacked, step, tokens
from test_pddl import Table, fresh

from agemem_jax.benchmarks import vocabulary
from agemem_jax.benchmarks.alfworld import games as alfworld
from agemem_jax.benchmarks.babyai import wording as babyai
from agemem_jax.benchmarks.hotpotqa import questions
from agemem_jax.benchmarks.pddl import generators
from agemem_jax.benchmarks.pddl import tasks as pddl
from agemem_jax.benchmarks.pddl.wording import goal_text
from agemem_jax.benchmarks.scienceworld import variations as scienceworld
from agemem_jax.benchmarks.scienceworld.expert import solutions
from agemem_jax.benchmarks.scienceworld.pool import Pool
from agemem_jax.data.batches import encoded
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.data.words import cut
from agemem_jax.tools.grammar import build_grammar, literals
from agemem_jax.types import Text
from configs.tiny import get_config

ASSET = Path(__file__).parent.parent / "agemem_jax" / "assets" / "worlds" / "tokenizer.model"
DATA = Path(os.environ.get("AGEMEM_DATA", "/nowhere"))
QWEN = Path(os.environ.get("AGEMEM_WEIGHTS_DIR", "/nowhere")) / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
END = vocabulary.END_OF_TURN
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " \t\n"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="AGEMEM_DATA names no folder with alfworld and pddl")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(ASSET))


# ------------------------------------------------------------------------------------------------------ the vocabulary


def test_the_shipped_vocabulary_is_the_one_that_the_words_make(tmp_path):
    vocabulary.build_worlds(str(tmp_path / "again.model"), get_config().tools)
    assert (tmp_path / "again.model").read_bytes() == ASSET.read_bytes()


def test_words_numbers_and_phrases_are_single_pieces(tokenizer):
    listed = vocabulary.worlds_pieces()
    assert all(len(tokenizer.encode(piece)) == 1 for piece in listed)
    assert {f" {word}" for word in questions.vocabulary()} < {*listed}
    assert tokenizer.vocab_size <= vocabulary.MOST_PIECES
    for text in (" ball1", "Ball12", " the-hub3", " clean-shot", " drawer", " 99", " desklamp", "You"):
        assert len(tokenizer.encode(text)) == 1, text
    assert len(tokenizer.encode("17")) == 2  # ids of memory are spelled


def test_no_piece_splits_a_known_word_whatever_stands_around_it(tokenizer):
    """Words behind each other, and words that end or begin as a phrase does, which goes on or comes before."""
    listed, rng = vocabulary.worlds_pieces(), random.Random(0)
    number = {piece: i for i, piece in enumerate(tokenizer.token_bytes())}
    words = [piece for piece in listed if cut([piece]) == [piece]]
    spaced = [word for word in words if word[0] == " "]
    for _ in range(300):
        some = rng.choices(spaced, k=20)
        assert tokenizer.encode("".join(some)) == [number[word.encode()] for word in some]
    tried = 0
    for phrase in (piece for piece in listed if piece.count(" ") > 1):
        first, last = cut([phrase])[0], cut([phrase])[-1]
        longer = [word for word in words if word not in (first, last)]
        for word in longer:
            if word.startswith(last) and phrase.endswith(last):  # " There is a", and "way"
                assert tokenizer.encode(phrase.removesuffix(last) + word)[-1] == number[word.encode()], (phrase, word)
                tried += 1
            if word.endswith(first) and phrase.startswith(first) and word != f" {first}":
                assert tokenizer.encode(word + phrase.removeprefix(first))[0] == number[word.encode()], (phrase, word)
    assert tried > 100


def test_literals_and_chat_marks_are_single_pieces_next_to_text(tokenizer):
    tools = get_config().tools
    texts = literals(tools, END)
    tools.max_calls = 2
    texts += literals(tools, END)
    texts += [text.replace("answer>", "action>") for text in texts]
    assert f"</action>{END}" in texts
    for text in [*texts, *vocabulary.CHAT_MARKS]:
        assert len(tokenizer.encode_markup(text)) == 1, text
        assert len(tokenizer.encode_markup(f"{text} go to drawer 1{END}")) == 6
        ids = tokenizer.encode(text)  # in data a mark is text like any other
        assert tokenizer.decode(ids) == text and not {*ids} & {*tokenizer.end_ids(), tokenizer.eos_id}
    build_grammar(get_config().tools, tokenizer)


@settings(max_examples=300)
@given(text=st.text(st.sampled_from(PRINTABLE) | st.sampled_from(" \n\t.aA1<"), max_size=60))
def test_all_printable_text_is_spelled(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode_markup(text)) == text


def test_a_message_has_the_word_tokens_of_an_answer(tokenizer):
    """But for its first word, which is told with a space."""
    for text in ("On the shelf 2, you see a vase 1.", "You pick up the vase 1 from the shelf 2.", "Ball1 is at rooma. ",
                 "You are not carrying anything.", "Nothing happens.", "go to drawer 1", "look around"):  # fmt: skip
        said, told = encoded(tokenizer, text), tokenizer.encode(text)
        assert said[1:] == told[1:]
        assert tokenizer.decode(said[:1]) == f" {tokenizer.decode(told[:1])}"
        behind = tokenizer.encode(f"You arrive at loc 2. {text}")
        assert behind[-len(said) :] == said


# ---------------------------------------------------------------------------------------------------------------- play


class Heard:
    """Counts of what was told in play."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.count, self.unknown, self.other = tokenizer, Counter(), Counter(), []

    def seen(self, ids: list[int], real: str) -> None:
        """An answer in its tokens, and what it should say."""
        assert self.tokenizer.decode(ids) == real
        if self.tokenizer.encode(real) != list(ids):
            self.other.append(real)
        self.count.update(seen=1, seen_tokens=len(ids))
        self.words(real)

    def said(self, action: str) -> None:
        ids = encoded(self.tokenizer, action)
        self.count.update(said=1, said_tokens=len(ids))
        self.words(f" {action}")

    def words(self, text: str) -> None:
        words = re.findall(r" ?[A-Za-z]+(?:[-'][A-Za-z]+)*[0-9]*", text)
        spelt = [word for word in words if len(self.tokenizer.encode(word)) > 1]
        self.count.update(words=len(words), spelt=len(spelt))
        self.unknown.update(spelt)

    def __str__(self) -> str:
        n = self.count
        return (
            f"{n['seen']} answers, {1 - len(self.other) / n['seen']:.2%} in the tokens of their text; tokens: "
            f"{n['seen_tokens'] / n['seen']:.1f} an answer, {n['said_tokens'] / max(n['said'], 1):.1f} an action; "
            f"{n['spelt'] / n['words']:.2%} of {n['words']} words in more than one piece "
            f"{self.unknown.most_common(10)}"
        )


def rows_of(text: Text) -> list[list[int]]:
    table, length = np.asarray(text.tokens), np.asarray(text.length)
    return [row[:n].tolist() for row, n in zip(table, length, strict=True)]


def heard_in_alfworld(tokenizer: Tokenizer, walks: list[tuple[Path, list[str], list[str]]]) -> Heard:
    """Of walks: the game's file, the commands, and what is seen at the start and after each."""
    heard, played = Heard(tokenizer), Played([path for path, *_ in walks], tokenizer, ALL)
    played.answers = rows_of
    told = played.reset()
    for turn in range(max(len(seen) for *_, seen in walks)):
        for row, (_, _, seen) in zip(told, walks, strict=True):
            if turn < len(seen):
                heard.seen(row, seen[turn])
        due = [said[turn] if turn < len(said) else None for _, said, _ in walks]
        for said in filter(None, due):
            heard.said(said)
        told = played.step(due)
    return heard


def heard_in_pddl(tokenizer: Tokenizer, puzzles: list[pddl.Puzzle], turns: int) -> Heard:
    heard, table, rng = Heard(tokenizer), Table(tokenizer, puzzles), random.Random(0)
    for one in puzzles:
        heard.words(goal_text(one.problem))
    for turn in range(turns):
        said = []
        for twin in table.twins:
            live = sorted(twin.applicable())
            name, *terms = rng.choice(live) if live else ("look", "around")
            said.append(rng.choice([pddl.wording.sentence((name, *terms)), " ".join([name, *terms])]))
        if turn % 5 == 3:
            said = [rng.choice(["check valid actions", "look around"]) for _ in said]
        for text in said:
            heard.said(text)
        action, on = table.write(said), jnp.ones(len(said), bool)
        table.state, out = table.step(table.shared, table.game, table.state, action, on)
        for row, twin, text in zip(rows_of(out.seen), table.twins, said, strict=True):
            heard.seen(row, twin.step(text)[0])
    return heard


def heard_in_babyai(tokenizer: Tokenizer) -> Heard:
    """AgentBoard's recorded transcripts."""
    heard, plays, shared = Heard(tokenizer), records("agentboard"), babyai.shared(tokenizer)
    game, on = stacked([play["game"] for play in plays]), jnp.ones(len(plays), bool)
    state, seen = reset(MACROS, shared, game)
    for turn in range(len(plays[0]["actions"]) + 1):
        for row, play in zip(rows_of(seen), plays, strict=True):
            heard.seen(row, play["seen"][turn])
        said = [play["actions"][turn : turn + 1] for play in plays]
        if all(said):
            for (text,) in said:
                heard.said(text)
            state, outcome = step(MACROS, shared, game, state, tokens(tokenizer, [text for (text,) in said]), on)
            seen = outcome.seen
    for play in plays:
        heard.words(play["goal"])
    return heard


def recorded_walks(folder: Path) -> list[tuple[Path, list[str], list[str]]]:
    paths = write_all(folder)
    recorded = json.loads(FIXTURE.read_text())
    return [(paths[walk["game"]], walk["commands"], [seen for seen, *_ in walk["states"]]) for walk in recorded]


def made() -> list[pddl.Puzzle]:
    return [fresh(name, level, 3) for name in generators.DOMAINS for level in (1, 3, 5)]


def test_play_of_alfworld(tokenizer, tmp_path):
    heard = heard_in_alfworld(tokenizer, recorded_walks(tmp_path))
    print(heard)
    assert not heard.other and heard.count["spelt"] < 0.002 * heard.count["words"] and heard.count["seen"] > 500


def test_play_of_pddl(tokenizer):
    heard = heard_in_pddl(tokenizer, made(), 20)
    print(heard)
    assert not heard.other and heard.count["spelt"] < 0.002 * heard.count["words"] and heard.count["seen"] >= 200


def test_play_of_babyai(tokenizer):
    heard = heard_in_babyai(tokenizer)
    print(heard)
    assert not heard.other and heard.count["spelt"] < 0.01 * heard.count["words"]


@pytest.mark.heavy
@needs_data
def test_published_games(tokenizer):
    """Random walks of ALFWorld's games, and PDDL's problems."""
    paths = sorted((DATA / "alfworld").rglob(alfworld.FILE_NAME))[:: int(os.environ.get("AGEMEM_ALFWORLD_STRIDE", "1"))]
    walks = [(Path(walk["game"]), walk["commands"], [s[0] for s in walk["states"]]) for walk in walked(paths, 7, 30)]
    for i in range(0, len(walks), 64):
        heard = heard_in_alfworld(tokenizer, walks[i : i + 64])
        print(heard)
        assert not heard.other and heard.count["spelt"] < 0.01 * heard.count["words"]
    for name in generators.DOMAINS:
        heard = heard_in_pddl(tokenizer, pddl.read(DATA / "pddl" / name), 20)
        print(name, heard)
        assert not heard.other and heard.count["spelt"] < 0.01 * heard.count["words"]


@pytest.mark.heavy
@pytest.mark.skipif("AGEMEM_SCIENCEWORLD" not in os.environ, reason="AGEMEM_SCIENCEWORLD names no Python with it")
def test_play_of_scienceworld(tokenizer, tmp_path):
    """The engine's own solutions of some development variations; its texts are whole, and may be any."""
    pool, heard = Pool(1, python=os.environ["AGEMEM_SCIENCEWORLD"]), Heard(tokenizer)
    try:
        numbers = [scienceworld.variations(pool, tmp_path, "dev", [task])[0] for task in scienceworld.TASKS[::6]]
        for goal in scienceworld.goals(pool, tmp_path, numbers):
            heard.words(goal)
        for number, actions in zip(numbers, solutions(pool, tmp_path, numbers), strict=True):
            game = pool.game()
            text = game.start(number).result()
            heard.seen(tokenizer.encode(text), text)
            for action in actions:
                text = game.step(action).result().text
                heard.said(action)
                heard.seen(tokenizer.encode(text), text)
            game.close()
    finally:
        pool.close()
    print(heard)
    assert heard.count["spelt"] < 0.02 * heard.count["words"] and heard.count["seen"] > 50


@pytest.mark.weights
@pytest.mark.skipif(not QWEN.exists(), reason="AGEMEM_WEIGHTS_DIR holds no Qwen2.5-Coder")
def test_play_in_qwens_tokens(tmp_path):
    """The texts are right in any vocabulary; how many have the tokens of their whole text."""
    qwen = Tokenizer.load(str(QWEN))
    for heard in (
        heard_in_alfworld(qwen, recorded_walks(tmp_path)), heard_in_pddl(qwen, made(), 20), heard_in_babyai(qwen)
    ):  # fmt: skip
        print(heard, set(heard.other[:3]))
        assert len(heard.other) < 0.05 * heard.count["seen"]
