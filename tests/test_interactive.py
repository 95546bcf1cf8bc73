"""An environment of many steps inside a rollout, played by scripts: what the agent sees, and when it is over."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from small import build_small

from agemem_jax.benchmarks.hotpotqa.environment import QuestionAnswering, question_of
from agemem_jax.data.batches import pad_text, pad_texts, stack
from agemem_jax.data.scripts import write_turn
from agemem_jax.envs import scoring
from agemem_jax.envs.base import Outcome
from agemem_jax.envs.text import byte_table, compose, key_of, text_key
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import run_stage, scripted_writer
from agemem_jax.rollout.turn import NO_CALL
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.traces import render_calls
from agemem_jax.types import Op, StopReason, Text

END = "<|im_end|>"
TURNS = 6
QUERY = "Where was Ada Keller born"
FACT = "Ada Keller was born in Halden"
WELCOME, DONE, WRONG = " you remember", " Halden", " Marnby"


@struct.dataclass
class Shared:
    """The toy's tables: how tokens spell, the one command, what is answered."""

    spelling: object
    command: jax.Array
    said: Text  # [3, w] welcome, after a right action, after a wrong one


@struct.dataclass
class Progress:
    done: jax.Array  # [B] int32 right actions
    steps: jax.Array  # [B] int32 actions


@dataclass(frozen=True)
class Toy:
    """To say "Halden" as often as the game wants; three actions are too many."""

    seen_tokens: int = 16
    action_tokens: int = 3

    def reset(self, shared, game):
        zeros = jnp.zeros_like(game)
        return Progress(zeros, zeros), self.say(shared, zeros)

    def step(self, shared, game, state, action, on):
        right = on & (text_key(shared.spelling, action) == shared.command).all(-1)
        state = Progress(state.done + right, state.steps + on)
        success = state.done >= game
        return state, Outcome(
            seen=self.say(shared, jnp.where(right, 1, 2)), progress=state.done / game, success=success,
            terminated=success, truncated=state.steps >= 3, understood=right,
        )  # fmt: skip

    def say(self, shared, which):
        return compose(shared.said.tokens[which][:, None], shared.said.length[which][:, None], self.seen_tokens)

    def render(self, shared, game, state, row):
        return f"{state.done[row]} of {game[row]}"


def act(text: str) -> tuple:
    return [], text


ADD = ([(Op.ADD, {"content": f" {FACT}"})],)
SCRIPTS = {  # what is said in stage 3, and how often "Halden" has to be said
    "wins at once": ([act("Halden")], 1),
    "wins in two": ([act("Halden"), act("Halden"), act("Halden")], 2),
    "thinks between": ([act("Marnby"), ADD, act("Halden")], 1),
    "runs out of steps": ([act("Marnby")] * 4, 1),
    "never acts": ([ADD], 1),
    "says more": ([act("Halden Halden Halden"), act("Halden")], 1),
}


@pytest.fixture(scope="module")
def played():
    """(run, rows after stage 3, trace of stage 3, {name of script: row})."""
    return play(SCRIPTS)


def play(scripts: dict, **changes):
    """Stage 3 of the toy by scripts, each of which has a row."""
    run = build_small(
        rl__tasks_per_update=2, rl__group_size=4, train__traces=8, policy__num_layers=1, rollout__stage3_turns=TURNS,
        rollout__action_tokens=40, context__capacity=160, context__limit=160, store__entry_tokens=9, task__chatter=0,
        tools__min_calls=0, **changes,
    )  # fmt: skip
    tools = run.config.tools
    spec = dataclasses.replace(run.spec.rollout, env=Toy())
    tokenizer, encode = run.tokenizer, run.source.encode
    said = pad_texts([tokenizer.encode(text) for text in (WELCOME, DONE, WRONG)], 3, 16)
    shared = Shared(byte_table(tokenizer.token_bytes()), jnp.asarray(key_of("Halden")), said)
    world = run.world.replace(env=shared)
    names = {name: row for row, name in enumerate(scripts)}
    lines, wanted = zip(*(*scripts.values(), *[([], 1)] * (spec.batch - len(scripts))), strict=True)

    def turns(told) -> Text:
        """Turns of calls, then an action or none."""
        texts = [write_turn(tools, *turn) + END for turn in [*told, *[([],)] * (TURNS - len(told))]]
        return pad_texts([tokenizer.encode_markup(text) for text in texts], TURNS, spec.width)

    summary = tokenizer.encode_markup(f" Ada Keller{END}")

    def same(text):
        return jax.tree.map(lambda x: np.stack([x] * spec.batch), text)

    task = run.source.rows([(0, 0)] * spec.batch).replace(
        query=same(pad_text(encode(QUERY), run.config.task.message_tokens)), game=np.array(wanted, np.int32)
    )
    script, summaries = stack([turns(told) for told in lines]), same(pad_texts([summary], 1, spec.width))

    @jax.jit
    def stage3(task, script, summaries, world):
        rows, write = new_rows(spec), scripted_writer(world, spec, script, summaries)
        return run_stage(rows, task, world, spec, 3, write, jnp.int32(ALL_TOOLS), jnp.full(spec.batch, NO_CALL))

    rows, trace = jax.device_get(stage3(task, script, summaries, world))
    return run, rows, trace, names


def seen(played, name: str) -> list[str]:
    """What an agent saw, turn by turn, without the marks of the chat."""
    run, _, trace, names = played
    row = names[name]
    slots = np.flatnonzero(trace.ran[:, row])
    return [run.tokenizer.decode(trace.seen.tokens[t, row][: trace.seen.length[t, row]].tolist()) for t in slots]


def test_the_first_message_is_the_query_with_what_is_seen_at_the_start(played):
    for name in SCRIPTS:
        first = seen(played, name)[0]
        assert QUERY + WELCOME in first and first.endswith("<|im_start|>assistant")


def test_what_the_environment_answers_comes_in_the_next_turn_and_once(played):
    assert [text.count("Halden") for text in seen(played, "wins in two")] == [0, 1]
    first, second, third = seen(played, "thinks between")
    assert "Marnby" in second and QUERY not in second
    assert "<|im_start|>user" not in third and "done" in third  # a memory call between: its result, and no message


def test_a_row_ends_with_its_episode_and_not_before(played):
    _, rows, trace, names = played
    stats, of = rows.stats, names.__getitem__
    turns = {name: int(trace.ran[:, of(name)].sum()) for name in SCRIPTS}
    assert turns == {
        "wins at once": 1, "wins in two": 2, "thinks between": 3, "runs out of steps": 3, "never acts": TURNS,
        "says more": 2,
    }  # fmt: skip
    for name in SCRIPTS:
        won = name not in ("runs out of steps", "never acts")
        assert stats.success[of(name)] == won and stats.progress[of(name)] == won
        assert (stats.actions[of(name)] > 0) == (name != "never acts")
        assert rows.finished[of(name)] == (name != "never acts")
        stop = StopReason.TURNS if name == "never acts" else StopReason.FINISHED
        assert stats.stop[of(name), 2] == stop and stats.over_turns[of(name)] == (name == "never acts")


def test_progress_is_kept_and_an_action_is_cut_to_what_is_understood(played):
    _, rows, _, names = played
    assert rows.env.done[names["wins in two"]] == 2 and rows.env.steps[names["wins in two"]] == 2
    # Three tokens are what a cut action has; "Halden" has fewer, so that a longer one is no "Halden".
    assert rows.env.steps[names["says more"]] == 2 and rows.env.done[names["says more"]] == 1
    assert (rows.env.steps[len(SCRIPTS) :] == 0).all()


def test_a_turn_may_hold_calls_and_then_an_action():
    """What the environment answers comes with the tools' results; after a summary the action is still to be taken."""
    summary = [(Op.SUMMARY, {"span": "1"})]
    scripts = {
        "both": ([(*ADD, "Marnby"), (*ADD, "Halden")], 1),
        "action alone": ([act("Halden")], 1),
        "calls alone": ([ADD, ADD], 1),
        "after a summary": ([(summary, "Halden")], 1),
    }
    found = play(scripts, tools__turn="both", tools__action_tag="action")
    run, rows, trace, names = found
    first, second = seen(found, "both")
    assert "done" in second and second.count("Marnby") == 1  # the first ADD, and the toy's answer
    turns = {name: [t for t in range(len(trace.ran)) if trace.ran[t, row]] for name, row in names.items()}
    assert list(map(len, turns.values())) == [2, 1, TURNS, 2]  # a summary has a slot of its own
    stats = rows.stats
    assert stats.actions[:4].tolist() == [2, 1, 0, 1] and stats.understood[:4].tolist() == [1, 1, 0, 1]
    assert stats.success[:4].tolist() == [True, True, False, True] and (stats.malformed == 0).all()
    assert stats.calls[:4, Op.ADD].tolist() == [2, 0, 2, 0] and stats.calls_ok[0, Op.ADD] == 1  # one says the same
    said = run.tokenizer.decode(trace.said.tokens[0, 0][: trace.said.length[0, 0]].tolist())
    shown = render_calls(said, trace.op[0, 0], trace.status[0, 0])
    assert [call["op"] for call in shown] == ["Add_memory", "act"] and shown[1]["arguments"] == {"text": "Marnby"}


def test_a_question_is_an_environment_of_one_step():
    vocabulary = [None, b" Halden", b" the", b" Marnby"]
    shared, env = scoring.answer_table(vocabulary), QuestionAnswering(action_tokens=4)
    game = stack([question_of(answer, 3) for answer in ("Halden", "the Halden Marnby", "yes", "Halden")])
    state, first = env.reset(shared, jax.tree.map(jnp.asarray, game))
    assert first.tokens.shape == (4, 0) and (first.length == 0).all()
    answers = pad_texts([[1], [1, 2], [1], [1]], 4, 4)
    on = jnp.array([True, True, True, False])
    _, out = env.step(shared, game, state, Text(*map(jnp.asarray, (answers.tokens, answers.length))), on)
    np.testing.assert_array_equal(out.success, [True, False, False, False])
    np.testing.assert_allclose(out.progress, [1, 2 / 3, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(out.terminated, on)
