"""Right answers to the roles of memory systems, and how they become lessons."""

import dataclasses
import json
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from agemem_jax.data.staged import StagedRecord
from agemem_jax.methods.tables import SYSTEMS
from agemem_jax.methods.teaching import Answers, Teacher, decide, fact_in, right_store, texts_of
from agemem_jax.training.setup import Run, build
from agemem_jax.training.state import new_state
from agemem_jax.training.warm import role_segments, warm_optimizer
from agemem_jax.types import Op
from configs import base, tiny
from experiments.warm_start import Kind, demonstrated, role_kind

OLD, NEW = "Ada Keller lives in Halden", "Ada Keller moved from Halden to Marnby"
GONE, CLOSING = "Hugo Novak works for Ada Keller", "forget Hugo Novak"
FRESH, TALK = "Silver River was written by Hugo Novak", "we enjoyed long walks today"
STAGED = StagedRecord(
    facts=[OLD, GONE, TALK, NEW, CLOSING], is_gold=[False] * 5, gold=[NEW],
    distractors=[FRESH, "Ada Novak sang in Halden"],
    query="Where does Ada Keller live", answer="Marnby", key_words=["Ada", "Keller"], keep=[NEW], view=[FRESH],
    revisions=[(OLD, NEW), (GONE, "")], fact_speakers=[0] * 5, distractor_speakers=[0, 0],
)  # fmt: skip
SIZES = dict(context__capacity=300, methods__facts=2, methods__neighbours=2, methods__answer_tokens=48)


@lru_cache
def run() -> Run:
    config = small_config(**SIZES, rl__tasks_per_update=2, rl__group_size=8)
    for kind in ("changed", "closed"):
        config.task[f"share_{kind}"] = 2.0
    config.task.facts = 7
    return build(config)


def teacher(name: str) -> Teacher:
    reading = run().readings(name)
    spec = reading.spec.rollout
    return Teacher(reading.system, run().source, run().config, spec.entries, spec.entry_tokens)


def test_what_is_worth_remembering():
    assert [fact_in(STAGED, text, False) for text in STAGED.facts] == [OLD, GONE, "", NEW, CLOSING]
    assert fact_in(STAGED, f"By the way: {NEW}.", False) == NEW
    assert [fact_in(STAGED, text, True) for text in STAGED.distractors] == [FRESH, ""]


def test_what_becomes_of_a_memory():
    assert decide(STAGED, OLD, []) == [(Op.ADD, -1, OLD)] and decide(STAGED, OLD, [OLD]) == []
    assert decide(STAGED, NEW, [GONE, OLD]) == [(Op.UPDATE, 1, NEW)] and decide(STAGED, NEW, []) == [(Op.ADD, -1, NEW)]
    assert decide(STAGED, CLOSING, [OLD, GONE]) == [(Op.DELETE, 1, "")] and decide(STAGED, CLOSING, [OLD]) == []
    assert right_store(STAGED, [OLD, GONE, NEW, CLOSING, FRESH], []) == [NEW, FRESH]


def test_answers_are_json_or_calls_and_say_the_same():
    tools = tiny.get_config().tools
    short, long = Answers(tools, True), Answers(tools, False)
    events = [(Op.UPDATE, 1, NEW), (Op.DELETE, 0, ""), (Op.ADD, -1, FRESH)]
    assert json.loads(long.events(events)) == {
        "memory": [
            {"event": "UPDATE", "id": "1", "text": NEW}, {"event": "DELETE", "id": "0"}, {"event": "ADD", "text": FRESH}
        ]
    }  # fmt: skip
    assert texts_of(short.events(events)) == ["1", NEW, "0", FRESH]
    assert texts_of(short.facts([OLD])) == texts_of(long.facts([OLD])) == [OLD]
    assert texts_of(short.note(["Ada"], NEW, ["lives"])) == texts_of(long.note(["Ada"], NEW, ["lives"]))
    assert json.loads(long.evolution([], ["lives"])) == {"should_evolve": False}
    assert texts_of(long.memory("")) == [""] and texts_of("no JSON") == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_right_answer_is_in_its_form_and_is_all_that_is_learnt(name):
    """The prompts are those of the device; what is trained is the answer, token for token."""
    system, tables, spec = run().readings(name)
    rollout = spec.rollout
    (told,) = teacher(name).batch(0, rollout.batch)
    (again,) = teacher(name).batch(0, rollout.batch)
    jax.tree.map(np.testing.assert_array_equal, told, again)
    tables = jax.tree.map(jnp.asarray, tables)
    world = run().world.replace(grammar=tables.grammar, pieces=tables.pieces)
    made = jax.jit(lambda told, world: role_segments(system, tables, rollout, world, told))
    segments, valid = jax.device_get(made(jax.tree.map(jnp.asarray, told), world))
    decode = run().tokenizer.decode
    assert valid.all() and set(told.role.tolist()) == set(range(len(system.roles)))
    for b in range(rollout.batch):
        text = decode(segments.tokens[b, 0][: segments.length[b, 0]].tolist())
        answer = decode(told.answer.tokens[b][: told.answer.length[b]].tolist())
        assert text.startswith(f"<|im_start|>user {system.roles[told.role[b]].name}:")
        assert text.endswith(f"<|im_start|>assistant{answer}") and segments.trainable[b].any()
        assert not segments.trainable[b, 0, : segments.length[b, 0] - told.answer.length[b]].any()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_on_roles_is_made_of_what_its_kind_gives(name):
    """Traced, not compiled: as experiments.warm_start jits it."""
    kind, optimizer = role_kind(run(), name), warm_optimizer(base.get_config().warm, 0.1, 100, 1.0)
    learn = jax.jit(kind.step(run().model, optimizer, run().config.rl.logit_chunk))
    state = new_state(run().start(), optimizer)
    material, seen = kind.material(0)
    after, metrics = learn.eval_shape(state, {}, material, run().world)
    jax.tree.map(lambda x, y: np.testing.assert_equal((x.shape, x.dtype), (y.shape, y.dtype)), state, after)
    assert set(metrics) == {"loss", "malformed", "segments"} and not seen


def test_agreement_is_counted_by_role():
    one = teacher("mem0_classic")
    said = Answers(run().config.tools, True)
    store = lambda *texts: [{"id": i, "text": text} for i, text in enumerate(texts, 1)]  # noqa: E731
    turns = [
        {"stage": 1, "turn": 0, "mode": "extract", "said": said.facts([OLD]), "store": []},
        {"stage": 1, "turn": 0, "mode": "decide", "said": "", "store": store(OLD)},
        {"stage": 1, "turn": 2, "mode": "extract", "said": said.facts([TALK]), "store": store(OLD)},
        {"stage": 1, "turn": 3, "mode": "extract", "said": said.facts([NEW]), "store": store(OLD)},
        {"stage": 1, "turn": 3, "mode": "decide", "said": "", "store": store(OLD, NEW)},
        {"stage": 3, "turn": 0, "mode": "act", "said": "", "store": store(OLD, NEW)},
    ]
    one.source = dataclasses.make_dataclass("Source", [("staged", object)])(lambda index: STAGED)
    assert one.agreement([{"task": 0, "turns": turns}]) == {
        "extract": {"compared": 3, "agreed": 2}, "decide": {"compared": 2, "agreed": 1}
    }  # fmt: skip
    assert "evolve" not in teacher("amem").agreement([])


def test_a_share_of_the_steps_shows_roles_and_all_take_turns():
    kinds = lambda name, n: [Kind(None, None, None, f"{name}{i}") for i in range(n)]  # noqa: E731
    watch, play = kinds("w", 2), kinds("p", 3)
    shown = [demonstrated(i, 0.5, watch, play) for i in range(12)]
    names = [kind.system for kind, _ in shown]
    assert names.count("w0") == names.count("w1") == 3 and [names.count(f"p{i}") for i in range(3)] == [2, 2, 2]
    assert len({(kind.system, number) for kind, number in shown}) == 12
    assert [demonstrated(i, 0.0, watch, [])[0].system for i in range(4)] == ["w0", "w1", "w0", "w1"]
    assert [demonstrated(i, 0.0, watch, [])[1] for i in range(4)] == [0, 0, 1, 1]
