"""Memory systems: the forms of their answers, and whole episodes by scripts and by a small policy."""

import json
import os
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import build_small, small_config
from vocabularies import write_bpe

from agemem_jax.benchmarks.hotpotqa.environment import question_of
from agemem_jax.config import ConfigError
from agemem_jax.data.batches import pad_text, pad_texts, stack
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.scripts import write_turn
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.methods.base import RoleTables
from agemem_jax.methods.reading import read_stage, scripted_roles
from agemem_jax.methods.tables import SYSTEMS, build_tables, call_tokens, check_sizes, system_of
from agemem_jax.rollout.rows import new_rows
from agemem_jax.rollout.stage import run_stage, scripted_writer
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.training.evaluate import (
    BASELINES,
    METHODS,
    UNTRAINED,
    Pass,
    control,
    evaluate,
    method_tools,
    programs_of,
)
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import new_state
from agemem_jax.types import NO_ID, Mode, Op, Status
from configs import base

END = "<|im_end|>"
ADA = "Ada Keller was born in Halden"
CHATTER_TEXT = "we enjoyed long walks today"


@lru_cache
def json_tables(name: str) -> tuple[Tokenizer, RoleTables]:
    """The tables of a system in a byte-level vocabulary, whose answers are JSON."""
    config = base.get_config()
    config.policy.tokenizer = write_bpe(Path(os.environ["AGEMEM_TEST_FOLDER"]) / "systems")
    tokenizer = Tokenizer.load(config.policy.tokenizer)
    pieces = build_pieces(tokenizer, config)
    return tokenizer, jax.tree.map(jnp.asarray, build_tables(system_of(config, name), config, tokenizer, pieces))


def items(name: str, role: int, *answers: str):
    """The answers of a role, parsed: (malformed, [(op, id, text), ...]) of each."""
    tokenizer, tables = json_tables(name)
    told = [tokenizer.encode_markup(answer + END) for answer in answers]
    text = stack([pad_text(ids, max(map(len, told))) for ids in told])
    start = jnp.full(len(told), tables.grammar.start_forms[role])
    calls = jax.device_get(grammar_lib.parse(tables.grammar, text.tokens, text.length, start, tag_width=4))
    decode = lambda b, j: tokenizer.decode(calls.content.tokens[b, j][: calls.content.length[b, j]].tolist())  # noqa: E731
    return [
        (
            bool(calls.malformed[b]),
            [
                (Op(int(op)), int(calls.memory_id[b, j]), decode(b, j))
                for j, op in enumerate(calls.op[b])
                if op not in (Op.NONE,)
            ],
        )
        for b in range(len(told))
    ]


def test_the_answers_of_mem0_are_json():
    facts = json.dumps({"facts": ["Ada wrote Silver River", 'It is "one"']})
    none, broken = '{"facts": []}', '{"facts": ["Ada"'
    assert items("mem0_classic", 0, facts, none, broken) == [
        (False, [(Op.ADD, NO_ID, "Ada wrote Silver River"), (Op.ADD, NO_ID, 'It is "one"')]),
        (False, [(Op.PASS, NO_ID, "")]),
        (True, []),
    ]
    events = [
        {"event": "NONE", "id": "0"},
        {"event": "UPDATE", "id": "12", "text": "Ada was born in 1984"},
        {"event": "DELETE", "id": "3"},
        {"event": "ADD", "text": "small"},
    ]
    (found,) = items("mem0_classic", 1, json.dumps({"memory": events}))
    assert found == (False, [
        (Op.PASS, 0, ""), (Op.UPDATE, 12, "Ada was born in 1984"), (Op.DELETE, 3, ""), (Op.ADD, NO_ID, "small")
    ])  # fmt: skip
    assert items("mem0_additive", 0, json.dumps({"memory": [{"text": "Ada"}, {"text": "Silver"}]})) == [
        (False, [(Op.ADD, NO_ID, "Ada"), (Op.ADD, NO_ID, "Silver")])
    ]


@pytest.mark.parametrize("name", SYSTEMS)
def test_whatever_is_drawn_is_in_the_form(name):
    """Random tokens among those that are allowed end within the budget, in an answer that parses."""
    tokenizer, tables = json_tables(name)
    grammar, rows, width = tables.grammar, 16, 128
    for role, start in enumerate(grammar.start_forms):
        key = jax.random.key(role)

        def step(carry, i, key=key):
            state = carry
            allowed = grammar_lib.allowed_tokens(grammar, state, width - i, jnp.full(rows, grammar_lib.ANY_OP))
            noise = jax.random.gumbel(jax.random.fold_in(key, i), allowed.shape)
            # Long fields would hide what comes after them: marks are preferred.
            token = jnp.argmax(jnp.where(allowed, noise, -jnp.inf), -1)
            live = state != grammar.end
            return jnp.where(live, grammar_lib.advance(grammar, state, token), state), (token, live)

        _, (tokens, live) = jax.lax.scan(step, jnp.full(rows, start), jnp.arange(width))
        count = live.sum(0)
        calls = grammar_lib.parse(grammar, tokens.T, count, jnp.full(rows, start), tag_width=4)
        assert not calls.malformed.any(), name
        for b in range(rows):
            json.loads(tokenizer.decode(np.asarray(tokens.T[b])[: int(count[b])].tolist()).removesuffix(END))


SIZES = dict(
    rl__tasks_per_update=1, rl__group_size=4, train__traces=4, policy__num_layers=1, task__facts=3, task__chatter=0,
    task__distractors=1, store__entry_tokens=9, store__embedding_size=256, tools__max_calls=1, methods__facts=2,
    context__capacity=200, methods__events=3, methods__neighbours=2, methods__answer_tokens=40, rollout__stage3_turns=2,
)  # fmt: skip


def turn(run: Run, *calls: tuple[Op, dict]) -> list[int]:
    """An answer in the tiny vocabulary: tool calls."""
    return run.tokenizer.encode_markup(write_turn(run.config.tools, list(calls)) + END)


def add(text: str) -> tuple:
    return Op.ADD, {"content": f" {text}"}


def update(number: int, text: str) -> tuple:
    return Op.UPDATE, {"memory_id": str(number), "content": f" {text}"}


def delete(number: int) -> tuple:
    return Op.DELETE, {"memory_id": str(number), "confirmation": True}


class Reader:
    """A system that reads by scripts: rows of one task with answers of their own."""

    def __init__(self, name: str, **changes):
        self.run = run = build(small_config(**SIZES | changes))
        self.system = system = system_of(run.config, name)
        self.spec = spec = run.spec.rollout
        self.tables = jax.tree.map(
            jnp.asarray, build_tables(system, run.config, run.tokenizer, build_pieces(run.tokenizer, run.config))
        )
        width = self.width = run.config.methods.answer_tokens

        @jax.jit
        def read(task, scripts, world):
            rows, notes, traces, counts = new_rows(spec), system.new_notes(spec), [], []
            own = world.replace(grammar=self.tables.grammar, pieces=self.tables.pieces)
            for stage in (1, 2):
                write = scripted_roles(own, width, scripts[stage - 1], len(system.roles))
                rows, notes, count, trace = read_stage(
                    rows, notes, task, own, self.tables, system, spec, stage, write, width
                )
                traces.append(trace)
                counts.append(count)
            return rows, notes, traces, counts

        @jax.jit
        def answer(rows, task, script, world):
            return run_stage(rows, task, world, spec, 3, scripted_writer(world, spec, script, script), jnp.int32(0))

        self.read, self.answer = read, answer

    def play(self, facts: list[str], distractors: list[str], one: list, two: list, question: str, answer: str):
        """Plays a story: `one` and `two` have for each row the answers to the messages of a stage, role by role."""
        run, spec, source = self.run, self.spec, self.run.source
        width = run.config.task.message_tokens
        told = lambda texts, count: stack([pad_texts([source.encode(t) for t in texts], count, width)] * spec.batch)  # noqa: E731
        base_task = source.rows([(0, 0)] * spec.batch)
        game = question_of(answer, run.config.task.answer_tokens)
        task = base_task.replace(
            facts=told(facts, spec.facts), num_facts=np.full(spec.batch, len(facts), np.int32),
            distractors=told(distractors, spec.distractors),
            num_distractors=np.full(spec.batch, len(distractors), np.int32),
            query=stack([pad_text(source.encode(question), width)] * spec.batch),
            game=jax.tree.map(lambda x: np.stack([x] * spec.batch), game),
            fact_owner=base_task.fact_owner * 0, distractor_owner=base_task.distractor_owner * 0,
            owner=base_task.owner * 0,
        )  # fmt: skip
        roles = len(self.system.roles)
        script = lambda rows, most: stack([pad_texts(r, most * roles, self.width) for r in rows])  # noqa: E731
        scripts = script(one, spec.facts), script(two, spec.distractors)
        rules = jax.tree.map(jnp.asarray, METHODS["mem0_classic"].rules)
        world = run.world.replace(rules=rules)
        rows, _, traces, counts = jax.device_get(self.read(task, scripts, world))
        line = run.tokenizer.encode_markup(write_turn(run.config.tools, [], answer) + END)
        last = stack([pad_texts([line], 2, spec.width)] * spec.batch)
        rows, trace = jax.device_get(self.answer(rows, task, last, world))
        return rows, [*traces, trace], counts

    def seen(self, trace, row: int) -> list[str]:
        """What a row was shown, slot by slot."""
        texts, decode = trace.seen, self.run.tokenizer.decode
        slots = np.flatnonzero(trace.ran[:, row])
        return [decode(texts.tokens[s, row][: texts.length[s, row]].tolist()) for s in slots]

    def stored(self, trace, row: int) -> list[dict[int, str]]:
        """The store of a row, slot by slot."""
        texts, decode = trace.store_tokens, self.run.tokenizer.decode
        return [
            {
                int(i): decode(texts.tokens[s, row, n][: texts.length[s, row, n]].tolist()).strip()
                for n, i in enumerate(trace.store_id[s, row])
                if i >= 0
            }
            for s in np.flatnonzero(trace.ran[:, row])
        ]


def test_mem0_reads_decides_and_is_shown_what_it_stored():
    reader = Reader("mem0_classic")
    run, moved = reader.run, "Ada Keller was born in Marnby"
    say = lambda *calls: turn(run, *calls)  # noqa: E731
    facts = [ADA, CHATTER_TEXT, moved]
    quiet = [say()] * 6
    one = [
        [say(add(ADA)), say(add(ADA)), say(), [], say(add(moved)), say(update(0, moved))],
        [say(add(ADA)), say(add(ADA)), say(), [], say(add(moved)), say(delete(0), delete(0), add(moved))],
        [say(add(ADA)), say(add(ADA)), [], [], [], []],
        quiet,
    ]
    rows, traces, counts = reader.play(facts, [CHATTER_TEXT], one, [[say()]] * 4, "Where was Ada Keller born", "Marnby")
    first = reader.seen(traces[0], 0)
    assert len(first) == 5 and [mode - Mode.ROLE for mode in traces[0].mode[:5, 0]] == [0, 1, 0, 0, 1]
    assert first[0] == f"<|im_start|>user extract: {ADA}{END}<|im_start|>assistant"
    assert first[1] == f"<|im_start|>user decide: facts: {ADA}{END}<|im_start|>assistant"
    assert first[4] == f"<|im_start|>user decide::0: {ADA} facts: {moved}{END}<|im_start|>assistant"
    assert reader.stored(traces[0], 0) == [{}, {1: ADA}, {1: ADA}, {1: ADA}, {1: moved}]
    assert reader.stored(traces[0], 1)[-1] == {2: moved}
    last = traces[0].status[4, 1]
    assert last[:3].tolist() == [Status.OK, Status.UNKNOWN_ID, Status.OK]
    assert reader.stored(traces[0], 2)[-1] == {1: ADA}  # no answer at all is no fact
    assert len(reader.seen(traces[0], 3)) == 3 and rows.stats.turns.tolist() == [7, 7, 6, 5]
    assert counts[0].calls.tolist() == [[3, 2], [3, 2], [3, 1], [3, 0]]
    assert counts[0].valid.tolist() == [[3, 2], [3, 2], [1, 1], [3, 0]]
    (shown,) = reader.seen(traces[2], 0)
    assert f"related memories1: {moved}" in shown and shown.endswith(
        f"<|im_start|>user Where was Ada Keller born{END}<|im_start|>assistant"
    )
    assert rows.stats.success.tolist() == [1, 1, 1, 1]
    assert rows.stats.calls[0, : Op.ACT].tolist() == [1, 1, 0, 0, 0, 0] and rows.stats.malformed[2, 0] == 2
    assert (counts[0].prompt_tokens > 0).tolist() == (counts[0].calls > 0).tolist()
    by_role = sum(count.prompt_tokens.sum(1) for count in counts)  # the rest is read to answer
    assert (rows.stats.prompt_tokens - by_role == rows.stats.op_prompt_tokens[:, Op.ACT]).all()
    assert (rows.stats.op_prompt_tokens[:, Op.ACT] > 0).all() and rows.stats.peak_entries.tolist() == [1, 1, 1, 0]


def test_rows_hold_a_roles_call_and_models_too():
    run = build(small_config(**SIZES | dict(context__capacity=112)))
    system, tables, spec = run.readings("mem0_classic")
    tokens = call_tokens(system, run.config, tables, spec.rollout)
    assert spec.rollout.capacity == tokens > 112
    check_sizes(run.config, tables, tokens, tokens + int(tables.pieces.prefix.length[0]))
    with pytest.raises(ConfigError, match="the model was made for 100 positions"):
        check_sizes(run.config, tables, tokens, 100)
    run.config.methods.answer_tokens = 0
    with pytest.raises(ConfigError, match="the shortest answer"):
        check_sizes(run.config, tables, tokens, None)


@lru_cache
def small_run() -> Run:
    return build_small(**SIZES, rollout__history_widths=1)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.system])
def test_the_programs_of_a_method_fit_together(method):
    """Traced, not compiled: what one stage leaves the next can take, and a system's roles are reported."""
    run = small_run()
    programs = programs_of(run, method)
    state = new_state(run.start(), run.optimizer)
    task, asked = run.source.batch(0), control(run, 0, 0, method, 1.0, update=False)
    rows, named = None, set()
    for stage in (1, 2, 3):
        state, rows, outcome = jax.eval_shape(programs[stage], state, run.frozen, rows, task, run.world, asked)
        named |= set(outcome["rows"])
    roles = system_of(run.config, METHODS[method].system).roles if METHODS[method].system in SYSTEMS else ()
    assert {name for name in named if name.endswith("_valid")} == {f"role_{role.name}_valid" for role in roles}
    assert "progress" in named


def test_retrieval_by_rule_leaves_the_tools_of_the_store():
    config = small_config()
    store = 1 << Op.ADD | 1 << Op.UPDATE | 1 << Op.DELETE
    assert method_tools(config, "agemem_rag") == method_tools(config, "agemem_norl_rag") == store
    assert method_tools(config, "bm25") == 0 and not set(UNTRAINED + BASELINES) & set(SYSTEMS)


@pytest.mark.heavy
def test_a_policy_plays_a_system_through_the_usual_evaluation():
    run = small_run()
    state = new_state(run.start(), run.optimizer)
    for way in ("greedy", "sampled"):
        state, numbers, *_ = evaluate(run, state, run.frozen, Pass("mem0_classic", way), 8)
        assert {len(values) for values in numbers.values()} == {8}
        assert (numbers["role_extract_calls"] == 4).all() and (numbers["calls_act"] == 1).all()
        assert (numbers["role_extract_valid"] == 4).all() and (numbers["malformed_turns"] == 0).all()
        total = numbers["role_extract_generated_tokens"] + numbers["role_decide_generated_tokens"]
        assert (numbers["generated_tokens"] > total).all()
