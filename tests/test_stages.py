"""The three stages as an agent meets them, by scripts: each row of a batch is one agent with a script of its own."""

import dataclasses
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from rendered import assert_rendered, contexts
from small import small_config
from vocabularies import DATE, write_bpe

from agemem_jax.benchmarks.hotpotqa.environment import question_of
from agemem_jax.data.batches import pad_text, pad_texts, stack
from agemem_jax.data.chat_template import chat_template
from agemem_jax.data.scripts import write_turn
from agemem_jax.data.tokenizer import write_hf
from agemem_jax.memory import context
from agemem_jax.rl import rewards
from agemem_jax.rollout import turn as turn_lib
from agemem_jax.rollout.rows import RolloutSpec, new_rows
from agemem_jax.rollout.stage import Trace, run_stage, scripted_writer
from agemem_jax.rollout.turn import NO_CALL, call_number, mark_edit, track_length
from agemem_jax.training.evaluate import METHODS
from agemem_jax.training.programs import ALL_TOOLS
from agemem_jax.training.setup import Run, build
from agemem_jax.types import Mode, Op, Role, Status, StopReason, Task, Text
from configs import tiny

ADA_HALDEN = "Ada Keller was born in Halden"
ADA_YEAR = "Ada Keller was born in 1984"
RIVER = "Silver River was written by Hugo Novak"
FACTS = [ADA_HALDEN, RIVER, ADA_YEAR]
NEW_YEAR = "Ada Keller was born in 1990"
DISTRACTOR = "Ada Novak was born in Marnby"
QUERY = "Where was Ada Keller born"
END = "<|im_end|>"
TURNS = 6
LIMIT = 85


@dataclass
class Script:
    """What one agent writes; where a stage's list ends, it says nothing more (an empty array of calls)."""

    one: list = field(default_factory=list)
    two: list = field(default_factory=list)
    three: list = field(default_factory=list)
    summary: str = "Ada Keller Halden"
    facts: list = field(default_factory=lambda: list(FACTS))
    without: tuple | None = None  # the call that is not run: stage, turn, place in the turn
    distractors: list = field(default_factory=lambda: [DISTRACTOR])


class Played(NamedTuple):
    """One agent's episode, on the host, with tokens as text."""

    run: Run
    rows: list  # Rows after each stage, one row
    traces: list[Trace]  # by stage, leaves [T, ...]

    def slots(self, stage: int) -> np.ndarray:
        return np.flatnonzero(self.traces[stage - 1].ran)

    def text(self, stage: int, name: str, slot: int) -> str:
        """`seen`, `said` or `shown` of a slot."""
        padded = getattr(self.traces[stage - 1], name)
        return self.run.tokenizer.decode(padded.tokens[slot][: padded.length[slot]].tolist())

    def status(self, stage: int, slot: int) -> list[Status]:
        """What became of the calls of a slot's turn."""
        trace = self.traces[stage - 1]
        return [Status(s) for s, op in zip(trace.status[slot], trace.op[slot], strict=True) if op != Op.NONE]

    def store(self, stage: int, slot: int) -> dict[int, str]:
        """The store after a slot: {id: text}."""
        trace, decode = self.traces[stage - 1], self.run.tokenizer.decode
        rows = zip(trace.store_id[slot], trace.store_tokens.tokens[slot], trace.store_tokens.length[slot], strict=True)
        return {int(i): decode(tokens[:n].tolist()).strip() for i, tokens, n in rows if i >= 0}

    def context(self, stage: int, slot: int) -> dict[int, tuple[Role, bool, str]]:
        """The messages after a slot: {number: (role, pinned, text)}, in the order of the window."""
        trace = self.traces[stage - 1]
        length = trace.context_length[slot]
        message, tokens = trace.message[slot][:length], trace.context[slot][:length]
        return {
            int(trace.born[slot][m]): (
                Role(int(trace.role[slot][m])), bool(trace.pinned[slot][m]),
                self.run.tokenizer.decode(tokens[message == m].tolist()),
            )
            for m in dict.fromkeys(message.tolist())
        }  # fmt: skip


def calls(*made) -> list:
    """A turn of calls as (Op, arguments)."""
    return list(made)


def add(text: str, **more) -> tuple:
    return Op.ADD, {"content": f" {text}"} | more


def delete(number: str) -> tuple:
    return Op.DELETE, {"memory_id": number, "confirmation": True}


def retrieve(text: str, **more) -> tuple:
    return Op.RETRIEVE, {"query": f" {text}"} | more


def criteria(text: str) -> tuple:
    return Op.FILTER, {"criteria": f" {text}"}


def answer(text: str) -> str:
    return write_turn(tiny.get_config().tools, [], text) + END


@lru_cache
def stage(name: str) -> tuple[Run, object]:
    """The run of a variant, and its jitted episode: (rows after each stage, traces of each)."""
    config = small_config(**VARIANTS[name])
    if name == "bpe":
        config.policy.tokenizer = write_bpe(Path(os.environ["AGEMEM_TEST_FOLDER"]) / "stages")
        config.context.limit, config.context.capacity = 4000, 2000
    run = build(config)
    spec: RolloutSpec = run.spec.rollout

    @jax.jit
    def episode(task: Task, scripts: list[Text], summary: Text, world, tools, suppress):
        rows, after, traces = new_rows(spec), [], []
        for k in (1, 2, 3):
            write = scripted_writer(world, spec, scripts[k - 1], summary)
            rows, trace = run_stage(rows, task, world, spec, k, write, tools, suppress)
            after.append(rows)
            traces.append(trace)
        return after, traces

    return run, episode


COMMON = dict(
    rl__tasks_per_update=2, rl__group_size=6, train__traces=12, policy__num_layers=1, task__facts=3,
    tools__max_calls=3, context__filter_threshold=0.6, context__max_segments=4, context__limit=LIMIT,
    context__capacity=160, rollout__action_tokens=40, rollout__summary_tokens=8, rollout__stage3_turns=TURNS,
    store__entry_tokens=9, store__min_score=0.1, store__embedding_size=256, task__chatter=0,
)  # fmt: skip
VARIANTS = {
    "paper": COMMON | dict(rl__credit="turn_to_go"),
    "bpe": COMMON | dict(
        rollout__action_tokens=160, store__entry_tokens=64, task__message_tokens=64, task__answer_tokens=16,
        task__distractors=4,
    ),
    "long": COMMON | dict(
        rollout__stage3_turns=50, context__messages=32, context__capacity=124, context__limit=124,
        context__low_water=0.5, context__max_segments=20,
    ),
    "free": COMMON | dict(
        tools__constrained=False, tools__optional_arguments=True, store__tag_tokens=4,
        tools__summary_by="call", rollout__stage1_answer_ends=True,
    ),
}  # fmt: skip


def play(variant: str, *scripts: Script, tools: int = ALL_TOOLS, method: str = "agemem") -> list[Played]:
    """Plays up to 12 scripts at once, by the rules of a method."""
    run, episode = stage(variant)
    spec, source = run.spec.rollout, run.source
    most = max(spec.turns(k) for k in (1, 2, 3))
    scripts = list(scripts) + [Script() for _ in range(spec.batch - len(scripts))]

    def turn(said) -> list[int]:
        said = said if isinstance(said, str) else write_turn(run.config.tools, said) + END
        return source.tokenizer.encode_markup(said)

    def turns(lines) -> Text:
        return pad_texts([turn(line) for line in lines] + [turn([])] * (most - len(lines)), most, spec.width)

    told = [turns(getattr(script, name)) for name in ("one", "two", "three") for script in scripts]
    told = [stack(told[i * spec.batch : (i + 1) * spec.batch]) for i in range(3)]
    summary = stack([pad_texts([source.tokenizer.encode_markup(f" {s.summary}{END}")], 1, spec.width) for s in scripts])
    task = jax.device_put(task_of(run, scripts))
    world = run.world.replace(rules=jax.device_put(METHODS[method].rules, run.world.rules.stores.sharding))
    left_out = [NO_CALL if s.without is None else call_number(spec, *s.without) for s in scripts]
    arguments = task, told, summary, world, jnp.int32(tools), jnp.array(left_out, jnp.int32)
    after, traces = jax.device_get(episode(*arguments))
    row = lambda tree, b: jax.tree.map(lambda x: x[b], tree)  # noqa: E731
    by_slot = lambda tree, b: jax.tree.map(lambda x: x[:, b], tree)  # noqa: E731
    return [Played(run, [row(r, b) for r in after], [by_slot(t, b) for t in traces]) for b in range(spec.batch)]


def task_of(run: Run, scripts: list[Script]) -> Task:
    """The same story for every row, but for the messages of stage 1."""
    spec, source, width = run.spec.rollout, run.source, run.config.task.message_tokens
    base, count = source.rows([(0, 0)] * spec.batch), len(scripts[0].distractors)
    messages = lambda texts, count: pad_texts([source.encode(t) for t in texts], count, width)  # noqa: E731
    same = lambda text: jax.tree.map(lambda x: np.stack([x] * spec.batch), text)  # noqa: E731
    facts = [messages(script.facts, spec.facts) for script in scripts]
    question = question_of("Halden", run.config.task.answer_tokens)
    keys = np.zeros_like(base.key_tokens[0])
    names = source.encode("Ada Keller")
    keys[: len(names)] = names[: len(keys)]
    return base.replace(
        facts=stack(facts),
        num_facts=np.array([len(script.facts) for script in scripts], np.int32),
        distractors=stack([messages(script.distractors, spec.distractors) for script in scripts]),
        num_distractors=np.full(spec.batch, count, np.int32),
        query=same(pad_text(source.encode(QUERY), width)),
        gold=same(messages([ADA_HALDEN], base.gold.length.shape[1])),
        num_gold=np.ones(spec.batch, np.int32),
        key_tokens=same(keys),
        keep=same(messages([ADA_HALDEN, NEW_YEAR], base.keep.length.shape[1])),
        num_keep=np.full(spec.batch, 2, np.int32),
        stale=same(messages([ADA_YEAR, RIVER], 2)),
        present=same(pad_texts([source.encode(NEW_YEAR), []], 2, width)),
        num_revisions=np.full(spec.batch, 2, np.int32),
        view=same(messages([DISTRACTOR], base.view.length.shape[1])),
        num_view=np.ones(spec.batch, np.int32),
        game=same(question),
    )


def terms_of(agent: Played, kind: str = "strict") -> dict:
    """The agent's reward terms, [1] each."""
    config = agent.run.config.reward.copy_and_resolve_references()
    config.terms = kind
    stats = jax.tree.map(lambda x: x[None], agent.rows[2].stats)
    return rewards.terms(rewards.earned(stats, config, rewards.factors(config), LIMIT))


def test_messages_come_one_a_turn_with_what_the_store_holds_of_them():
    (agent,) = play("paper", Script(one=[calls(add(ADA_HALDEN))]))[:1]
    seen = [agent.text(1, "seen", slot) for slot in agent.slots(1)]
    assert len(seen) == 3
    for text, fact in zip(seen, FACTS, strict=True):
        assert fact in text and all(other not in text.split("<|im_start|>user")[-1] for other in set(FACTS) - {fact})
        assert QUERY not in text and text.endswith("<|im_start|>assistant")
    assert "related memories" not in seen[0] + seen[1]
    assert f"related memories1: {ADA_HALDEN}" in seen[2]  # two names in common
    assert "done1" in seen[1] and "done" not in seen[2]  # what a call did is told once, in the next turn
    assert agent.traces[0].store_hits[2].sum() == 0  # a look that the agent did not ask for
    assert agent.store(1, 0) == {1: ADA_HALDEN}


READER = Script(one=[calls(add(ADA_HALDEN))], two=[calls(criteria(RIVER))], three=[answer("Halden")])
LONG_FACTS = [ADA_HALDEN, f"{RIVER} and Ada Keller", ADA_YEAR]  # with the question they are three tokens too many


def roles(agent: Played, stage: int) -> list[Role]:
    return [role for role, _, _ in agent.context(stage, agent.slots(stage)[-1]).values()]


def test_who_only_answers_reads_in_silence_what_stays_in_the_context():
    reader = dataclasses.replace(READER, facts=LONG_FACTS)
    whole, cut = (play("paper", reader, method=name)[0] for name in ("full_context", "no_memory"))
    for agent in (whole, cut):
        for stage, told in ((1, LONG_FACTS), (2, [DISTRACTOR])):
            assert [agent.text(stage, "seen", slot) for slot in agent.slots(stage)] == [
                f"<|im_start|>user {text}<|im_end|>" for text in told
            ]  # fmt: skip
            assert agent.traces[stage - 1].said.length.sum() == 0
        assert len(agent.slots(3)) == 1 and agent.rows[2].stats.success == 1
        assert agent.rows[2].stats.turns == 1 and agent.rows[2].stats.calls[: Op.ACT].sum() == 0
        assert not agent.store(3, 0) and agent.rows[2].stats.malformed.sum() == 0
        assert agent.rows[2].segments.count == 1
    told = [*LONG_FACTS, DISTRACTOR, QUERY]
    texts = [text for _, _, text in whole.context(3, 0).values()]
    assert roles(whole, 3) == [Role.USER] * 5 + [Role.ASSISTANT]
    assert all(text in seen for text, seen in zip(told, texts, strict=False))
    # Nothing is lost while it fits with the turn to come, and then no more than must.
    spec, prefix = cut.run.spec.rollout, int(cut.run.world.pieces.prefix.length.sum())
    assert roles(cut, 1) == [Role.USER] * 3 and roles(cut, 2) == [Role.USER] * 4
    kept = [text for _, _, text in cut.context(3, 0).values()]
    assert kept == texts[len(texts) - len(kept) :] and len(kept) < len(texts)
    tokens = [len(cut.run.tokenizer.encode_markup(text)) for text in texts[:-1]]
    reserve = prefix + 1 + spec.action_tokens + 1  # the assistant's opening, the turn and its close
    assert sum(tokens[-len(kept) + 1 :]) + reserve <= LIMIT < sum(tokens[-len(kept) :]) + reserve


def test_the_newest_is_stored_by_rule_and_shown_with_the_question():
    reader = dataclasses.replace(READER, facts=[RIVER, ADA_HALDEN, ADA_YEAR])
    (agent,) = play("paper", reader, method="store_recent")[:1]
    assert agent.store(1, agent.slots(1)[-1]) == {1: RIVER, 2: ADA_HALDEN, 3: ADA_YEAR}
    assert agent.store(2, agent.slots(2)[-1]) == {2: ADA_HALDEN, 3: ADA_YEAR, 4: DISTRACTOR}  # of three places
    assert agent.rows[1].stats.calls.sum() == 0 and roles(agent, 2) == [Role.USER]  # stage 1 is gone from the context
    seen = agent.text(3, "seen", 0)
    assert "related memories" in seen and f"2: {ADA_HALDEN}" in seen and RIVER not in seen
    assert QUERY in seen and seen.endswith("<|im_start|>assistant")
    assert agent.rows[2].stats.success == 1 and agent.traces[2].store_hits.sum() == 0


def test_what_is_stored_by_rule_has_the_turn_of_its_message():
    """Counted over the trajectory, as what an agent stores: stage 2 begins with turn 3, whatever came before."""
    (agent,) = play("paper", Script(facts=[RIVER]), method="store_recent")[:1]
    store = agent.rows[2].store
    assert store.created[store.valid].tolist() == store.updated[store.valid].tolist() == [0, 3]


def test_who_only_answers_may_do_nothing_else():
    (agent,) = play("free", Script(three=[calls(add(ADA_HALDEN)), answer("Halden")]), method="no_memory")[:1]
    assert agent.rows[2].stats.malformed.sum() == 1 and not agent.store(3, 0)
    assert agent.rows[2].stats.success == 1


def test_the_exported_template_gives_the_recorded_tokens(tmp_path):
    turn = calls(add(ADA_YEAR), (Op.SUMMARY, {"span": "all"}), retrieve("Ada Keller"))
    script = Script(
        one=[calls(add(ADA_HALDEN)), turn],
        two=[calls(retrieve("Ada"))],
        three=[calls(criteria("Novak")), answer("Halden")],
    )
    (agent,) = play("paper", script)[:1]
    tokenizer, tools = agent.run.tokenizer, agent.run.config.tools
    chat = tokenizer.chat_pieces(DATE)
    write_hf(agent.run.config.policy.tokenizer, tmp_path, chat_template(chat, "", tools, spaced=True))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    one = jax.tree.map(lambda x: x[None], agent.rows[2].segments)
    assert one.count[0] > 2
    for _, ids in contexts(agent.run, one):
        assert_rendered(loaded, ids, tokenizer.decode(ids), chat)


def test_store_survives_and_context_is_emptied_then_runs_on():
    (agent,) = play("paper", Script(one=[calls(add(ADA_HALDEN))], two=[calls(add(DISTRACTOR))]))[:1]
    one, two, three = agent.rows
    assert one.context.length == 0 and not one.context.alive.any() and one.cached == 0
    assert one.store.valid.sum() == 1 and one.segments.count == 1
    first = agent.text(2, "seen", 0)
    assert first == f"<|im_start|>user {DISTRACTOR}{END}<|im_start|>assistant"
    assert agent.store(2, 0) == {1: ADA_HALDEN, 2: DISTRACTOR} == agent.store(3, 0)
    n = two.context.length
    assert n > 0 and two.context.alive.sum() == 2
    np.testing.assert_array_equal(agent.traces[2].context[0][:n], two.context.tokens[:n])
    assert QUERY in agent.text(3, "seen", 0) and QUERY not in agent.text(3, "seen", 1)
    assert three.segments.count == 2  # stages 2 and 3 are one append-only piece
    assert set(np.unique(three.segments.stage[1][three.segments.trainable[1]])) == {2, 3}


def test_answers_end_the_last_stage_and_are_scored_in_their_context():
    right, wrong, none, half = play(
        "paper",
        Script(three=[calls(retrieve("Ada")), answer("Halden")]),
        Script(three=[answer("Marnby"), answer("Halden")]),
        Script(one=[answer("Halden")]),
        Script(three=[answer("the Halden Marnby")]),
    )[:4]
    assert [len(a.slots(3)) for a in (right, wrong, none, half)] == [2, 1, TURNS, 1]
    stats = [a.rows[2].stats for a in (right, wrong, none, half)]
    assert [(float(s.success), round(float(s.progress), 4)) for s in stats] == [(1, 1), (0, 0), (0, 0), (0, 0.6667)]
    assert [int(s.actions) for s in stats] == [1, 1, 0, 1]
    assert [bool(s.over_turns) for s in stats] == [False, False, True, False]
    # Answers are not allowed in stage 1 here: the grammar writes none, and a turn that has one counts as malformed.
    assert len(none.slots(1)) == 3 and stats[2].calls[Op.ACT] == 0 and stats[2].malformed.sum() == 1
    ends = right.traces[2].context_length[1] + right.run.spec.rollout.prefix_tokens
    assert stats[0].context_tokens == ends and stats[0].preservation == 1
    assert right.rows[2].mode == Mode.DONE


def test_an_answer_ends_the_first_stage_by_config_and_only_for_its_row():
    early, late = play(
        "free",
        Script(one=[calls(add(ADA_HALDEN)), answer("Halden"), calls(add(RIVER))]),
        Script(one=[calls(add(ADA_HALDEN)), [], calls(add(RIVER))]),
    )[:2]
    assert [len(a.slots(1)) for a in (early, late)] == [2, 3]
    assert early.store(2, 0) == {1: ADA_HALDEN} and late.store(2, 0) == {1: ADA_HALDEN, 2: RIVER}
    assert not early.rows[0].stats.actions and early.rows[0].stats.progress == 0  # it is no answer to the question
    assert early.rows[0].stats.calls[Op.ACT] == 1
    assert len(early.slots(2)) == 1 and len(early.slots(3)) == TURNS


def test_calls_of_a_turn_run_in_order_around_a_summary_by_the_policy():
    turn = calls(add(ADA_YEAR), (Op.SUMMARY, {"span": "all"}), retrieve("Ada Keller"))
    (agent,) = play("paper", Script(one=[calls(add(ADA_HALDEN)), turn], summary="Ada Keller Marnby"))[:1]
    trace = agent.traces[0]
    assert trace.mode[:4].tolist() == [Mode.ACT, Mode.ACT, Mode.SUMMARIZE, Mode.ACT]
    assert trace.turn[:4].tolist() == [0, 1, 1, 2]
    assert agent.text(1, "said", 2) == f" Ada Keller Marnby{END}"
    assert agent.text(1, "seen", 2) == f"<|im_start|>user summarise{END}<|im_start|>assistant"
    # The first call has run when the summary is asked for, the third one only after it.
    assert agent.store(1, 1) == {1: ADA_HALDEN, 2: ADA_YEAR}
    assert trace.store_hits[1].sum() == 0 and trace.store_hits[2].sum() == 2
    seen = agent.text(1, "seen", 3)
    # The new message's own retrieval finds the second entry once more.
    assert [seen.count(part) for part in (f"1: {ADA_HALDEN}", f"2: {ADA_YEAR}")] == [1, 2]
    assert seen.count("done2") - seen.count("done2:") == 1  # the new id, and not the first entry found
    assert seen.index("done2") < seen.index(f"1: {ADA_HALDEN}")
    assert agent.status(1, 0) == [Status.OK] and agent.status(1, 1) == [Status.OK, Status.OK, Status.NOT_RUN]
    assert trace.status[2].tolist() == [Status.OK] * 3
    context = agent.context(1, 2)
    assert list(context.values()) == [(Role.USER, False, f"<|im_start|>user summary Ada Keller Marnby{END}")]
    stats = agent.rows[0].stats
    assert stats.calls[Op.SUMMARY] == stats.calls_ok[Op.SUMMARY] == 1
    assert stats.reduced_in_time.tolist() == [True, False, False]
    seg = agent.rows[2].segments
    assert seg.trainable[0].sum() > 0  # the first segment ends with the summary itself
    decode = agent.run.tokenizer.decode
    assert decode(seg.tokens[0][: seg.length[0]].tolist()).endswith(f"summarise{END}<|im_start|>assistant Ada Keller "
                                                                    f"Marnby{END}")  # fmt: skip
    assert decode(seg.tokens[1][: seg.length[1]].tolist()).startswith("<|im_start|>user summary Ada Keller Marnby")


def test_the_span_of_a_summary_counts_rounds_before_the_asking_one():
    (agent,) = play("paper", Script(one=[[], [], calls((Op.SUMMARY, {"span": "1"}))], summary="Hugo Novak"))[:1]
    texts = [text for _, _, text in agent.context(1, 3).values()]
    assert texts[0] == f"<|im_start|>user {ADA_HALDEN}{END}" and "[]" in texts[1]
    assert texts[2:] == [f"<|im_start|>user summary Hugo Novak{END}"]


def test_summary_by_the_text_of_the_call():
    turn = calls(add(RIVER), (Op.SUMMARY, {"span": "all", "summary": " Ada Keller Halden"}), retrieve("Silver River"))
    (agent,) = play("free", Script(two=[turn]))[:1]
    assert agent.traces[1].mode[:1].tolist() == [Mode.ACT] and len(agent.slots(2)) == 1
    assert agent.status(2, 0) == [Status.OK] * 3
    context = agent.context(2, 0)
    assert list(context.values()) == [(Role.USER, False, f"<|im_start|>user summary Ada Keller Halden{END}")]
    shown = agent.text(2, "shown", 0)
    assert shown.count("done") == 3 and shown.endswith(f"1: {RIVER}")
    assert agent.text(3, "seen", 0).startswith("<|im_start|>tool") and QUERY in agent.text(3, "seen", 0)


def test_filter_spares_the_query_and_the_turn_that_asks():
    (agent,) = play("paper", Script(three=[[], calls(criteria("Ada Keller was born Marnby")), answer("Halden")]))[:1]
    before, after = agent.context(3, 0), agent.context(3, 1)
    is_query = lambda message: QUERY in message[2]  # noqa: E731
    assert any(DISTRACTOR in text for _, _, text in before.values())
    assert not any(DISTRACTOR in text for _, _, text in after.values())
    assert [pinned for _, pinned, text in after.values() if QUERY in text] == [True]
    assert "Filter_context" in list(after.values())[-1][2]
    assert set(before) - set(after) == {i for i, m in before.items() if DISTRACTOR in m[2] and not is_query(m)}
    assert agent.status(3, 1) == [Status.OK] and "done" in agent.text(3, "seen", 2)
    stats = agent.rows[2].stats
    assert stats.calls_ok[Op.FILTER] == 1 and stats.reduced_in_time.tolist() == [False, False, True]
    assert stats.progress == 1


@pytest.mark.parametrize("variant", ["paper", "bpe"])
def test_filter_takes_an_exact_copy_of_what_any_message_says(variant):
    """Messages of every kind, each asked for by its own words: what is around these neither hides nor names it."""
    run = stage(variant)[0]
    told = [run.source.staged(i) for i in range(12)]
    scripts = [
        Script(
            one=[calls(add(fact)) for fact in record.facts[:3]],
            facts=list(record.facts[:3]),
            distractors=list(record.distractors[: run.spec.rollout.distractors]),
            three=[calls(retrieve(text)) for text in record.facts[:3]]
            + [calls(retrieve(record.query), add(record.distractors[0])), calls(add(record.facts[0]))],
        )
        for record in told
    ]
    kinds, windows, copies, format = [], [], [], []
    for ctx in (rows.context for agent in play(variant, *scripts) for rows in agent.rows[1:]):
        for slot in np.flatnonzero(ctx.alive & ~ctx.pinned):
            mine = ctx.message == slot
            said = np.flatnonzero(mine & ctx.said)
            if len(said):
                runs = np.split(ctx.tokens[said], np.flatnonzero(np.diff(said) > 1) + 1)
                words = " ".join(run.tokenizer.decode(ids.tolist()).strip() for ids in runs)
                kinds.append(Role(int(ctx.role[slot])).name)
                windows.append((ctx, slot))
                copies.append(run.source.encode(words))
                format.append(ctx.tokens[mine & ~ctx.said].tolist())
    ctx, slots = stack([ctx for ctx, _ in windows]), np.array([slot for _, slot in windows])
    width = max(map(len, copies + format))
    theta = run.spec.rollout.filter_threshold
    take = jax.jit(lambda texts: context.filter_drop(ctx, texts, run.world.encoder, theta)[0])
    taken = np.asarray(take(stack([pad_text(ids, width) for ids in copies])))
    kinds = np.array(kinds)
    for kind, least in (("USER", 10), ("ASSISTANT", 20), ("TOOL", 10)):
        of_kind = kinds == kind
        assert of_kind.sum() >= least
        assert taken[of_kind, slots[of_kind]].mean() >= 0.95, kind
    assert taken.sum(1).mean() < 0.6 * ctx.alive.sum(1).mean()  # it is a choice
    # Asked for by what is around the words of a message, no message answers.
    assert np.asarray(take(stack([pad_text(ids, width) for ids in format]))).sum() == 0


def test_filter_that_matches_nothing_and_the_limit_of_edits():
    nothing, many, slots = play(
        "paper",
        Script(one=[calls(criteria("Silver River")), calls(criteria("Gentle Wolf"))]),
        Script(one=[calls(criteria(ADA_HALDEN)), calls(criteria(RIVER)), calls(criteria(ADA_YEAR))]),
        Script(one=[calls((Op.SUMMARY, {"span": "all"})), calls((Op.SUMMARY, {"span": "all"}))]),
    )[:3]
    assert [nothing.status(1, slot) for slot in range(2)] == [[Status.NOTHING_FOUND]] * 2
    assert "found nothing" in nothing.text(1, "seen", 1) and nothing.rows[0].segments.count == 1
    # Half of the four segments are stage 1's: one edit.
    assert [many.status(1, slot)[0] for slot in range(3)] == [Status.OK, Status.EDIT_LIMIT, Status.EDIT_LIMIT]
    assert "failed no further context edits" in many.text(1, "seen", 2)
    assert any(RIVER in text for _, _, text in many.context(1, 2).values())
    assert many.rows[0].segments.count == 2 and many.rows[2].segments.count <= 4
    assert slots.traces[0].mode[:4].tolist() == [Mode.ACT, Mode.SUMMARIZE, Mode.ACT, Mode.ACT]
    assert slots.status(1, 2) == [Status.EDIT_LIMIT] and slots.rows[0].stats.calls_ok[Op.SUMMARY] == 1


def test_overflow_drops_the_oldest_messages_that_are_not_pinned():
    asking = calls(retrieve("Ada Keller"), retrieve("Ada"), retrieve("Ada Keller Halden"))
    (agent,) = play(
        "paper", Script(one=[calls(add(ADA_HALDEN)), calls(add(RIVER)), calls(add(ADA_YEAR))], three=[asking] * TURNS)
    )[:1]
    lost = 0
    assert not agent.rows[1].spilled and agent.rows[2].spilled
    for slot in agent.slots(3)[1:]:
        before, after = agent.context(3, slot - 1), agent.context(3, slot)
        gone = set(before) - set(after)
        kept = [i for i in before if i in after and not before[i][1]]
        assert all(not before[i][1] for i in gone)
        assert not gone or not kept or max(gone) < min(kept)
        assert any(QUERY in text and pinned for _, pinned, text in after.values())
        assert agent.traces[2].context_length[slot] <= agent.run.spec.rollout.capacity
        lost += len(gone)
    stats = agent.rows[2].stats
    assert lost > 2 and agent.rows[2].segments.count > 2
    assert stats.over_context.any() and stats.peak_context_tokens > LIMIT
    assert not stats.reduced_in_time.any() and not stats.prevented.any()  # nobody asked for it


def test_fifty_turns_fit_a_table_of_32_messages():
    looks = [calls(retrieve("Ada")) if i % 10 == 0 else [] for i in range(49)]
    answers, never = play(
        "long", Script(one=[calls(add(ADA_HALDEN))], three=[*looks, answer("Halden")]), Script(three=[[]] * 50)
    )[:2]
    for agent, turns, end in ((answers, 50, StopReason.FINISHED), (never, 50, StopReason.TURNS)):
        assert len(agent.slots(3)) == turns
        stats = agent.rows[2].stats
        assert stats.stop.tolist() == [StopReason.TURNS, StopReason.TURNS, end] == [
            agent.traces[k].stop[agent.slots(k + 1)[-1]] for k in range(3)
        ]
        assert bool(stats.over_turns) == (end == StopReason.TURNS)
        context = agent.rows[2].context
        assert context.count > 52 > 32 == len(context.alive)
        shown = agent.context(3, 49)
        assert [pinned for _, pinned, text in shown.values() if QUERY in text] == [True]
        numbers = [number for number, (_, pinned, _) in shown.items() if not pinned]
        assert numbers == sorted(numbers) and numbers[-1] == context.count - 1
        # Down to the low-water mark at a time, so that a few segments hold all turns.
        assert 2 < agent.rows[2].segments.count < 14
    assert answers.rows[2].stats.progress == 1


def test_a_row_that_a_size_ends_says_which():
    looks = calls(retrieve("Ada Keller"))
    flood = calls(retrieve("Ada Keller"), retrieve("Ada Halden"), retrieve("Keller Halden"))
    told = [calls(add(f"{ADA_HALDEN} Ada Ada Ada")), calls(add(f"{ADA_HALDEN} Ada Ada Keller"))]
    many, much = play("long", Script(one=told, three=[looks] * 50), Script(one=told, three=[[], flood]))[:2]
    # Each look brings so much that the oldest messages go every other turn, until no segment is left to go on in.
    stats = many.rows[2].stats
    assert stats.stop[2] == StopReason.SEGMENTS and 15 < len(many.slots(3)) < 50
    assert many.rows[2].segments.count == many.run.spec.rollout.segments
    assert not stats.over_turns and not stats.actions
    # Six entries at once are more than the context holds beside the query, whatever goes.
    stats = much.rows[2].stats
    assert stats.stop[2] == StopReason.CONTEXT and len(much.slots(3)) == 2
    assert stats.over_context.tolist() == [False, False, True] and not stats.over_turns
    assert much.traces[2].stop[:3].tolist() == [StopReason.NONE, StopReason.NONE, StopReason.CONTEXT]


def test_a_summary_at_the_brim_sees_what_it_summarises():
    """However full the context is, and however much the turn that asks writes, nothing goes before the summary."""
    asking = lambda words: calls(retrieve("Ada " * words), (Op.SUMMARY, {"span": "all"}))  # noqa: E731
    scripts = [Script(three=[calls(retrieve("Ada " * n))] * 3 + [asking(35)]) for n in range(1, 13)]
    room, fullest = 5 + stage("long")[0].spec.rollout.summary_tokens, 0
    for agent in play("long", *scripts):
        trace = agent.traces[2]
        (slot,) = np.flatnonzero(trace.mode == Mode.SUMMARIZE)
        before, seen = agent.context(3, slot - 1), trace.context_length[slot - 1]
        assert agent.text(3, "seen", slot).endswith(f"summarise{END}<|im_start|>assistant")
        segments = agent.rows[2].segments
        decode = agent.run.tokenizer.decode
        recorded = [decode(t[:n].tolist()) for t, n in zip(segments.tokens, segments.length, strict=True)]
        view = "".join(text for _, _, text in before.values())
        assert any(text.startswith(view) and f"summarise{END}" in text[len(view) :] for text in recorded)
        assert agent.status(3, slot - 1) == [Status.NOTHING_FOUND, Status.OK]
        assert agent.rows[2].stats.calls_ok[Op.SUMMARY] == 1
        fullest = max(fullest, seen + room)
    capacity = stage("long")[0].spec.rollout.capacity
    assert capacity - 4 <= fullest <= capacity


def test_the_store_answers_in_words():
    (agent,) = play(
        "paper",
        Script(
            one=[
                calls(add(ADA_HALDEN), add(f"{ADA_HALDEN} "), (Op.UPDATE, {"memory_id": "7", "content": " Ada"})),
                calls((Op.UPDATE, {"memory_id": "1", "content": f" {ADA_YEAR}"}),
                      (Op.DELETE, {"memory_id": "1", "confirmation": False}), add("Ada " * 10)),
                calls(add(RIVER), (Op.DELETE, {"memory_id": "1", "confirmation": True}), retrieve("Hugo Novak")),
            ],
            two=[calls(add(ADA_HALDEN), add(ADA_YEAR), add(DISTRACTOR))],
            three=[calls(retrieve("was"), retrieve("Ada"))],
        ),
    )[:1]  # fmt: skip
    assert agent.status(1, 0) == [Status.OK, Status.DUPLICATE, Status.UNKNOWN_ID]
    assert agent.text(1, "shown", 0).strip() == "done1 failed already stored failed unknown memory_id"
    assert agent.status(1, 1) == [Status.OK, Status.NOT_CONFIRMED, Status.TEXT_TOO_LONG]
    assert agent.store(1, 1) == {1: ADA_YEAR}
    assert agent.status(1, 2) == [Status.OK] * 3 and agent.store(1, 2) == {2: RIVER}
    assert agent.status(2, 0) == [Status.OK, Status.OK, Status.STORE_FULL]
    assert agent.store(2, 0) == {2: RIVER, 3: ADA_HALDEN, 4: ADA_YEAR}
    # A word of every message tells nothing: all cosines are 0, and none is shown (store.min_score).
    assert agent.status(3, 0) == [Status.NOTHING_FOUND, Status.OK]
    shown = agent.text(3, "shown", 0)
    assert shown.strip().startswith("found nothing done") and [f"{i}:" in shown for i in (2, 3, 4)] == [0, 1, 1]
    stats = agent.rows[2].stats
    assert (stats.calls[Op.ADD], stats.calls_ok[Op.ADD], stats.calls_ok[Op.DELETE]) == (7, 4, 1)
    assert (stats.added, stats.added_good) == (2, 1)  # of stage 1; one held the gold fact
    terms = terms_of(agent, "paper")
    assert float(terms["storage"][0]) == 0.5 and float(terms["maintenance"][0]) == 1


def test_strict_terms_pay_for_what_is_in_the_store_when_the_first_stage_ends():
    """The year is revised, the river's author taken back; the birthplace and the new year are worth keeping."""
    store_all = calls(add(ADA_HALDEN), add(RIVER), add(ADA_YEAR))
    honest, idle, late, skipped, scrambled, again = play(
        "paper",
        Script(one=[store_all, calls(update("3", NEW_YEAR), delete("2"))]),
        Script(),
        Script(one=[store_all], three=[calls(update("3", NEW_YEAR), delete("2"))]),
        Script(one=[calls(add(ADA_HALDEN), add(NEW_YEAR))]),
        Script(one=[store_all, calls(update("3", "Ada Keller was born in 1990 1984"), delete("2"))]),
        Script(one=[calls(add(ADA_HALDEN), add(RIVER), delete("1")), calls(add(ADA_HALDEN), delete("3")),
                    calls(add(ADA_HALDEN))]),
    )[:6]  # fmt: skip
    shares = {
        "maintenance": [1, 0, 0, 0.5, 0.5, 0],  # never stored is not taken back; two years are not the new one
        "storage": [1, 0, 2 * 1 / (2 + 3), 1, 2 * 1 / (2 + 2), 2 * 1 / (2 + 2)],
    }
    for name, expected in shares.items():
        got = [float(terms_of(agent)[name][0]) for agent in (honest, idle, late, skipped, scrambled, again)]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    # The published terms pay for the calls: for one in stage 3, and for adding what was deleted.
    assert [float(terms_of(agent, "paper")["maintenance"][0]) for agent in (honest, late, again)] == [1, 1, 1]
    assert late.rows[2].stats.maintained.tolist() == [False, False, True]
    assert float(terms_of(again, "paper")["storage"][0]) == 0.75


def test_what_the_store_is_worth_is_measured_after_each_turn_of_the_first_stage():
    """Storage and maintenance as if the stage ended there: what is added, revised, spoilt; an idle turn leaves it."""
    honest, spoilt = play(
        "paper",
        Script(one=[calls(add(ADA_HALDEN), add(RIVER), add(ADA_YEAR)), calls(update("3", NEW_YEAR), delete("2"))]),
        Script(one=[calls(add(ADA_HALDEN)), calls(), calls(add(RIVER))], three=[calls(delete("1"))]),
    )[:2]
    stands = lambda agent: agent.rows[2].standing[: agent.run.spec.rollout.turns(1), :2]  # noqa: E731
    np.testing.assert_allclose(stands(honest), [[2 * 1 / (2 + 3), 0], [1, 1], [1, 1]], rtol=1e-6)
    alone, both = 2 * 1 / (2 + 1), 2 * 1 / (2 + 2)
    np.testing.assert_allclose(stands(spoilt), [[alone, 0], [alone, 0], [both, 0]], rtol=1e-6)
    for agent in (honest, spoilt):
        stats = agent.rows[2].stats
        np.testing.assert_allclose(stands(agent)[-1], [stats.kept, stats.revised], rtol=1e-6)


def test_what_should_be_in_view_is_measured_after_each_turn_of_the_second_stage():
    """The distractor is what should be; a filter leaves what its own call says, a summary some."""
    kept, filtered, stored, some = play(
        "paper",
        Script(),
        Script(two=[calls(criteria("Ada Novak"))]),
        Script(two=[calls(add(DISTRACTOR))]),
        Script(two=[calls((Op.SUMMARY, {"span": "all"}))], summary="Ada Novak"),
    )[:4]
    weight = np.asarray(kept.run.world.token_weight)
    tokens = kept.run.source.encode(DISTRACTOR)
    two_names = weight[kept.run.source.encode("Ada Novak")].sum() / weight[tokens].sum()
    for agent, share in ((kept, 1.0), (stored, 1.0), (filtered, two_names), (some, two_names)):
        np.testing.assert_allclose(agent.rows[2].standing[-1, 2], share, rtol=1e-5)
        np.testing.assert_allclose(agent.rows[2].stats.in_view, share, rtol=1e-5)
    assert 0.3 < two_names < 0.9
    assert float(terms_of(some)["preservation"][0]) == pytest.approx(two_names, rel=1e-5)


def test_what_was_told_is_counted_by_context_and_what_the_agent_brings_in_is_not():
    """A message and the query, each with the shortest turn; the context of stage 1 is forgotten."""
    quiet, busy = play(
        "paper",
        Script(),
        Script(one=[calls(add(ADA_HALDEN))], two=[calls(retrieve("Ada"), criteria(DISTRACTOR))],
               three=[calls(retrieve("Ada Keller"), retrieve("Ada")), calls(criteria(ADA_HALDEN))]),
    )[:2]  # fmt: skip
    one, two, three = quiet.rows
    assert int(one.told) == 0
    assert int(two.told) == int(two.context.length)  # one message, and the shortest turn there is
    size = lambda text: len(quiet.run.source.encode(text))  # noqa: E731
    assert int(three.told) == 2 * int(two.told) + size(QUERY) - size(DISTRACTOR)
    assert [int(rows.told) for rows in busy.rows] == [int(rows.told) for rows in quiet.rows]
    assert busy.status(2, 0) == [Status.OK] * 2 and busy.status(3, 1) == [Status.OK]
    assert busy.rows[2].stats.reduced_in_time.tolist() == [False, True, True]
    assert not busy.rows[2].crowded and not busy.rows[2].stats.prevented.any()


def test_an_edit_is_needed_where_the_messages_alone_are_too_much():
    """`crowded` to the token, and what of it was prevented."""
    run, _ = stage("paper")
    spec, world = run.spec.rollout, run.world
    spec = dataclasses.replace(spec, limit=1000)
    body = lambda size: Text(jnp.zeros((spec.batch, 40), jnp.int32), jnp.full((spec.batch,), size))  # noqa: E731
    blank = new_rows(spec)
    budget = jnp.full((spec.batch,), 25)
    room = spec.capacity - 25
    told = jnp.full((spec.batch,), room - 30).at[1].add(1)
    on = jnp.arange(spec.batch) < 3
    rows = turn_lib.track_crowd(blank.replace(told=told), on, body(20), body(10), budget, world, spec)
    assert rows.crowded.tolist() == [False, True] + [False] * (spec.batch - 2)
    taken = 30 + spec.shortest_turn + int(world.pieces.after_turn.length)
    assert (rows.told - told).tolist() == [taken] * 3 + [0] * (spec.batch - 3)
    tight = dataclasses.replace(spec, limit=spec.prefix_tokens + taken)
    assert not turn_lib.track_crowd(blank, on, body(20), body(10), budget, world, tight).crowded.any()
    tight = dataclasses.replace(tight, limit=tight.limit - 1)
    assert (turn_lib.track_crowd(blank, on, body(20), body(10), budget, world, tight).crowded == on).all()
    rows = rows.replace(crowded=jnp.arange(spec.batch) < 2, spilled=jnp.arange(spec.batch) % 2 == 0)
    for k in (1, 2, 3):
        expected = np.zeros((spec.batch, 3), bool)
        expected[1, k - 1] = k > 1
        np.testing.assert_array_equal(turn_lib.prevented(rows, k), expected)


def test_a_malformed_turn_is_an_observation_and_a_penalty():
    good = calls(add(ADA_HALDEN, memory_type=" Ada"))
    (agent,) = play("free", Script(one=[f" Ada was born{END}", good], two=[f"<think></think><answer> Ada{END}"]))[:1]
    assert agent.traces[0].op[0].tolist() == [Op.NONE] * 3
    assert agent.store(1, 0) == {} and agent.store(1, 1) == {1: ADA_HALDEN}
    assert "failed not in the tool format" in agent.text(1, "seen", 1)
    assert "failed not in the tool format" not in agent.text(1, "seen", 2)
    stats = agent.rows[2].stats
    assert stats.malformed.tolist() == [1, 1, 0] and stats.turns == 3 + 1 + TURNS
    written = sum(t.said.length[t.ran & (t.op != Op.NONE).any(1)].sum() for t in agent.traces)
    assert stats.op_generated_tokens.sum() == pytest.approx(written) and written < stats.generated_tokens
    factors = rewards.factors(agent.run.config.reward)
    terms = terms_of(agent)
    total, _ = rewards.combine(terms, factors)
    assert float(terms["malformed"][0]) == 2
    clean = rewards.combine(terms | {"malformed": jnp.zeros(1)}, factors)[0]
    np.testing.assert_allclose(total - clean, 2 * factors["malformed"], rtol=1e-5)


def test_free_turns_cannot_call_what_the_method_lacks():
    """Without the grammar's mask a policy may write any call; one that is not allowed in the stage does not run."""
    script = Script(one=[calls(add(ADA_HALDEN)), calls(retrieve("Ada"), add(RIVER)), calls(retrieve("Ada"))])
    (agent,) = play("free", script, tools=1 << Op.RETRIEVE)[:1]
    assert agent.store(1, 2) == {} and agent.rows[2].stats.malformed.sum() == 2
    assert agent.rows[2].stats.calls.sum() == agent.rows[2].stats.calls[[Op.PASS, Op.RETRIEVE]].sum() == 1 + 1 + TURNS
    assert [agent.traces[0].op[slot].tolist() for slot in range(2)] == [[Op.NONE] * 3] * 2
    assert "failed not in the tool format" in agent.text(1, "seen", 1)
    (other,) = play("free", script)[:1]
    assert other.store(1, 2) == {1: ADA_HALDEN, 2: RIVER} and other.rows[2].stats.malformed.sum() == 0


def test_retrieval_by_metadata_through_the_whole_path():
    tags = {"metadata": {" born": " Halden"}}
    script = Script(
        one=[
            calls(add(ADA_HALDEN, **tags)),
            calls(add(RIVER, memory_type=" Compass")),
            calls(add(ADA_YEAR, memory_type=" Compass", metadata={" born": " Marnby"})),
        ],
        three=[
            calls(retrieve("Ada Keller", metadata_filter={" born": " Halden"})),
            calls((Op.RETRIEVE, {"query": "", "metadata_filter": {"memory_type": " Compass"}})),
            calls(retrieve("Ada Keller", top_k=1, metadata_filter={" born": " Ulverby"})),
            calls((Op.UPDATE, {"memory_id": "1", "content": " Ada Keller", "metadata": {" born": " Ulverby"}}),
                  retrieve("Ada", top_k=1, metadata_filter={" born": " Ulverby"})),
        ],
    )  # fmt: skip
    (agent,) = play("free", script)[:1]
    assert agent.rows[2].stats.malformed.sum() == 0
    first, second, third, fourth = (agent.text(3, "shown", slot) for slot in range(4))
    assert first.count(":") == 1 and f"1: {ADA_HALDEN}" in first
    assert second.index(f"2: {RIVER}") < second.index(f"3: {ADA_YEAR}") and ADA_HALDEN not in second
    assert "found nothing" in third
    assert "1: Ada Keller" in fourth
    found = agent.traces[2].store_hits[3]
    assert found.tolist() == [2, 1, 1]


def test_a_retrieval_shows_as_many_as_asked_for():
    script = Script(
        one=[calls(add(ADA_HALDEN), add(RIVER), add(ADA_YEAR))],
        two=[calls(retrieve("Ada Keller"), retrieve("Ada Keller Halden", top_k=1), retrieve("Ada", top_k=2))],
    )
    (agent,) = play("free", script)[:1]
    lines = agent.text(2, "shown", 0)
    assert lines.count(ADA_HALDEN) == 3 and lines.count(ADA_YEAR) == 2 and RIVER not in lines


def update(memory_id: int, text: str) -> tuple:
    return Op.UPDATE, {"memory_id": str(memory_id), "content": f" {text}"}


def test_turns_whose_writes_were_retrieved_later_are_marked():
    """Turns are numbered over the trajectory: 0 to 2, then 3, then from 4 on."""
    asks = [calls(retrieve("Ada Keller")), answer("Halden")]
    agents = play(
        "paper",
        Script(one=[calls(add(ADA_HALDEN)), calls(add(RIVER)), calls(update(1, ADA_YEAR))], three=asks),
        Script(one=[calls(add(RIVER)), calls(update(1, ADA_YEAR)), calls(update(1, ADA_HALDEN))], three=asks),
        Script(one=[calls(add(ADA_HALDEN), retrieve("Ada Keller"))], two=[calls(add(ADA_YEAR))]),
        Script(one=[calls(add(RIVER)), calls(add(ADA_YEAR)), calls(retrieve("Ada Keller"))], three=[answer("Halden")]),
        Script(one=[calls(add(ADA_HALDEN)), calls((Op.DELETE, {"memory_id": "1", "confirmation": True}))], three=asks),
        Script(one=[calls(add(ADA_HALDEN)), calls(update(2, ADA_YEAR))], two=[calls(add(ADA_YEAR))], three=asks),
    )
    expected = [
        {0, 2},  # the entry and its last text; the other entry was not returned
        {0, 2},  # the text of turn 1 was replaced before anyone saw it
        set(),  # returned in the turn that wrote it, and never again
        {1},
        set(),  # deleted before it could be
        {0, 3},  # the update failed
    ]
    found = [set(np.flatnonzero(agent.rows[2].effective)) for agent in agents]
    assert found[: len(expected)] == expected and not any(found[len(expected) :])
    assert agents[0].rows[2].store.created.tolist()[:2] == [0, 1] and agents[0].rows[2].store.updated[0] == 2
    assert agents[5].rows[2].store.created[1] == 3  # stage 2 counts on
    assert not agents[0].rows[1].effective.any()


def test_edits_that_kept_the_context_within_its_limit_are_marked():
    """The same turns with a summary and without, which pass the limit; and edits of contexts that stay short."""
    asks, sums = [calls(retrieve("Ada Keller"))] * 2, calls((Op.SUMMARY, {"span": "all"}))
    stored, filters = [calls(add(ADA_HALDEN), add(ADA_YEAR))], calls(criteria(DISTRACTOR))
    kept, passed, short, filtered, emptied = play(
        "paper",
        Script(one=stored, three=[*asks, sums, *asks, answer("Halden")]),
        Script(one=stored, three=[*asks, [], *asks, answer("Halden")]),
        Script(one=stored, three=[*asks, sums, answer("Halden")]),
        Script(one=stored, three=[[], filters, answer("Halden")]),
        Script(one=[*stored, sums], three=[*asks, [], *asks, answer("Halden")]),
    )[:5]
    over = [bool(agent.rows[2].stats.over_context.any()) for agent in (kept, passed, short, filtered, emptied)]
    assert over == [False, True, False, False, True]
    marks = lambda agent, name: set(np.flatnonzero(getattr(agent.rows[2], name)))  # noqa: E731
    # Turns 0 and 4 + 2: what was retrieved was added in the first, and the third of stage 3 made room.
    assert [marks(agent, "effective") for agent in (kept, passed, short)] == [{0, 6}, {0}, {0}]
    assert marks(filtered, "effective") == set() and marks(emptied, "effective") == {0}
    assert [marks(agent, "edits") for agent in (kept, passed, short, filtered)] == [{6}, set(), {6}, {5}]
    assert marks(emptied, "edits") == set() and emptied.rows[2].freed == 0  # that context is gone
    # The call, the prompt and the text of a summary are not counted as freed; what a filter drops is.
    trace = kept.traces[2]
    begun = trace.context_length[2] - trace.said.length[2] - kept.run.world.pieces.after_turn.length
    assert 20 < kept.rows[2].freed == begun - trace.context_length[3]
    trace = filtered.traces[2]
    (gone,) = set(filtered.context(3, 0)) - set(filtered.context(3, 1))
    assert 0 < filtered.rows[2].freed == (trace.message[0][: trace.context_length[0]] == gone).sum()


def test_edits_count_where_the_context_alone_would_not_have_kept_its_limit():
    """By hand: contexts of 50, 50, 50 and 70 tokens after edits that freed 40, 20, 40 and 40; the limit is 85."""
    run = stage("paper")[0]
    spec = dataclasses.replace(run.spec.rollout, batch=4, limit=85 + int(run.world.prefix_tokens))
    rows = new_rows(spec)
    rows = rows.replace(context=rows.context.replace(length=jnp.array([50, 50, 50, 70])))
    on = jnp.array([True, True, True, False])
    rows = mark_edit(rows, jnp.array([70, 60, 90, 90]), on, jnp.array([3, 3, 3, 3]))
    rows = mark_edit(rows, jnp.array([70, 60, 50, 110]), jnp.array([True, True, False, True]), jnp.array([5, 5, 5, 5]))
    np.testing.assert_array_equal(rows.freed, [40, 20, 40, 40])
    rows = rows.replace(spilled=jnp.array([False, False, True, False]))
    found = track_length(rows, run.world, spec, 2).effective
    assert [set(np.flatnonzero(row)) for row in np.asarray(found)] == [{3, 5}, set(), set(), {5}]
    longer = rows.replace(context=rows.context.replace(length=jnp.array([86, 66, 66, 66])))
    found = track_length(longer, run.world, spec, 2).effective  # the first passes the limit all the same
    assert [set(np.flatnonzero(row)) for row in np.asarray(found)] == [set(), {3, 5}, set(), {5}]


def test_a_suppressed_call_is_read_and_counted_and_changes_nothing():
    turn = calls(add(ADA_YEAR), (Op.SUMMARY, {"span": "all"}), retrieve("Ada Keller"))
    one = [calls(add(ADA_HALDEN)), turn]
    whole, first, second, summary, third, asked, edited = play(
        "paper",
        *(Script(one=one, without=without) for without in (None, (1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2))),
        Script(one=one, three=[calls(retrieve("Ada")), answer("Halden")], without=(3, 0, 0)),
        Script(one=one, three=[calls(criteria(DISTRACTOR)), calls(criteria(DISTRACTOR))], without=(3, 0, 0)),
    )[:7]
    assert whole.store(1, 1) == {1: ADA_HALDEN, 2: ADA_YEAR} and whole.status(1, 0) == [Status.OK]
    # ADD: the id goes to the next one.
    assert first.status(1, 0) == [Status.NOT_RUN] and first.store(1, 0) == {} and first.store(1, 1) == {1: ADA_YEAR}
    assert "not run" in first.text(1, "seen", 1) and "done1" not in first.text(1, "seen", 1)
    stats = first.rows[0].stats
    assert (stats.calls[Op.ADD], stats.calls_ok[Op.ADD]) == (2, 1)
    # One call of several: the others run.
    assert second.store(1, 1) == {1: ADA_HALDEN} and second.traces[0].status[2].tolist() == [12, 0, 0]
    assert summary.traces[0].mode[:3].tolist() == [Mode.ACT] * 3 and summary.rows[0].stats.calls_ok[Op.SUMMARY] == 0
    assert summary.status(1, 1) == [Status.OK, Status.NOT_RUN, Status.OK]
    assert any(RIVER in text for _, _, text in summary.context(1, 1).values())
    assert third.traces[0].store_hits[2].sum() == 0 < whole.traces[0].store_hits[2].sum()
    # A later stage: everything before is as it was.
    np.testing.assert_array_equal(asked.traces[0].context, whole.traces[0].context)
    assert asked.status(3, 0) == [Status.NOT_RUN] and "not run" in asked.text(3, "seen", 1)
    assert ADA_HALDEN not in asked.text(3, "seen", 1) and asked.rows[2].stats.progress == 1
    assert edited.status(3, 0) == [Status.NOT_RUN] and edited.status(3, 1) == [Status.OK]
