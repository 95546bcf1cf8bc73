"""The stage programs: no host in them, one compilation each, buffers donated, both schedules, every kind of credit."""

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import build_small, chained, play, settings, small_config

from agemem_jax.benchmarks.hotpotqa.questions import KINDS
from agemem_jax.data.batches import pad_texts
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.rl import rewards
from agemem_jax.rollout import stage as stage_lib
from agemem_jax.rollout.rows import close_segment, new_rows
from agemem_jax.training import programs as programs_lib
from agemem_jax.training.evaluate import METHODS, Pass, evaluate, method_tools, passes_of
from agemem_jax.training.loop import put_batch, stages_of, train_update
from agemem_jax.training.programs import ALL_TOOLS, judge_answers, stage_program
from agemem_jax.training.setup import Run, host_judge, roomy_config
from agemem_jax.training.state import new_state
from agemem_jax.types import TURN_TERMS, Op

CALLBACKS = ("callback", "debug_print", "outside_call", "infeed", "outfeed")


def primitives(jaxpr) -> list[str]:
    """Names of all primitives of a jaxpr and of those inside it."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                names += primitives(inner)
    return names


def host_calls(jaxpr) -> list[str]:
    """Primitives of a jaxpr that leave the device."""
    return [name for name in primitives(jaxpr) if any(part in name for part in CALLBACKS)]


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), tree)


@lru_cache
def stage_jaxprs(judged: bool) -> dict:
    """The jaxprs of the three stages of the chained run, with or without a judge on the host."""
    run = chained()
    reward, judge = run.config.reward.copy_and_resolve_references(), None
    if judged:
        reward.task_metric, judge = "judge", lambda index, tokens, length: np.zeros(len(index), np.float32)
    state = abstract(new_state(run.start(), run.optimizer))
    rest = abstract((run.source.batch(0), run.world, settings(run)))
    rows, made = None, {}
    for stage in (1, 2, 3):
        program = stage_program(stage, run.spec, run.model, run.optimizer, run.config.rl, reward, judge)
        made[stage], (_, rows, _) = jax.make_jaxpr(program, return_shape=True)(state, state.params, rows, *rest)
    return made


def test_no_stage_calls_the_host():
    for jaxpr in stage_jaxprs(False).values():
        names = primitives(jaxpr.jaxpr)
        assert len(names) > 1000 and "while" in names and "dot_general" in names
        assert host_calls(jaxpr.jaxpr) == []


def test_a_judge_is_the_only_call_of_the_host_and_in_the_last_stage():
    calls = {stage: host_calls(jaxpr.jaxpr) for stage, jaxpr in stage_jaxprs(True).items()}
    assert calls == {1: [], 2: [], 3: ["io_callback"]}


def test_the_walk_finds_calls_that_are_nested_deep():
    def inner(x):
        jax.debug.print("{}", x)
        return jax.pure_callback(np.sin, x, x)

    outer = lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.cond(x > 0, jax.jit(inner), jnp.cos, x), x)  # noqa: E731
    found = host_calls(jax.make_jaxpr(outer)(1.0).jaxpr)
    assert len(found) == 2 and "pure_callback" in found


def test_judged_scores_reach_the_reward(monkeypatch):
    """The callback gets the answers that were given, and its scores come back row by row."""
    run = chained()
    rows, task = fake_answers(run, ["Ada Keller", "", "Silver River"])

    class FakeJudge:
        def __init__(self, url, model):
            assert (url, model) == (run.config.reward.judge, run.config.reward.judge_model)
            self.checked = False

        def check(self):
            self.checked = True

        def score(self, questions, golds, answers):
            assert self.checked  # before the first answer
            expected = [run.source.records[i] for i in (3, 1, 2)]
            assert (questions, golds) == ([r["question"] for r in expected], [r["answer"] for r in expected])
            return np.array([len(answer.split()) / 10 for answer in answers], np.float32)

    monkeypatch.setattr("agemem_jax.training.setup.Judge", FakeJudge)
    judge = host_judge(run.config, run.source, run.tokenizer)
    judged = jax.jit(lambda rows, task: judge_answers(judge, task, rows))(rows, task)
    np.testing.assert_allclose(judged, [0.2, 0.0, 0.2])


def fake_answers(run, answers: list[str]):
    """Rows and tasks of which judge_answers reads the answers, turns and indices only."""
    spec = dataclasses.replace(run.spec.rollout, batch=len(answers))
    text = pad_texts([run.source.encode(a) if a else [] for a in answers], len(answers), spec.width)
    return new_rows(spec).replace(action=text), run.source.rows([(i, 0) for i in (3, 1, 2)])


def test_a_run_compiles_each_stage_once_and_moves_nothing_unasked():
    """Updates under a guard that forbids implicit transfers, evaluations of every method, greedy and sampled, and with
    a tool masked, and updates again: one compilation a stage."""
    run = chained()
    state = new_state(run.start(), run.optimizer)
    task = put_batch(run, 0)
    for update in range(3):
        with jax.transfer_guard("disallow"):
            state, outcome = train_update(run, state, run.frozen, update, task)
            task = put_batch(run, update + 1)
            metrics = jax.device_get(outcome["metrics"])
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["logp_gap_max"] < 1e-3 and metrics["trained_tokens"] > 100
    methods = [name for name, method in METHODS.items() if not method.roomy and not method.system]
    passes = [one for method in methods for one in passes_of(run.config, method)]
    by_rule = ["no_memory", "store_recent", "no_memory_rl", "store_recent_rl"]
    assert methods == [*by_rule, "agemem_norl", "agemem"] and len(passes) == 12 + 12
    for one in passes[:13]:
        state, numbers, *_ = evaluate(run, state, run.frozen, one, 8)
        assert {len(values) for values in numbers.values()} == {8}
        if not METHODS[one.method].tools:  # an answer, and nothing else
            assert (numbers["turns"] == 1).all() and (numbers["calls_act"] == 1).all()
            assert (numbers["peak_context_tokens"] <= run.config.context.limit).all()
        assert one.without in ("", "Add_memory") and (not one.without or (numbers["calls_add"] == 0).all())
    state, outcome = train_update(run, state, run.frozen, 3, task, "no_memory_rl")
    assert 0 < jax.device_get(outcome["metrics"]["trained_tokens"]) <= 8 * run.spec.rollout.action_tokens
    state, _ = train_update(run, state, run.frozen, 4, task)
    assert int(state.step) == 5
    assert {stage: program._cache_size() for stage, program in run.programs.items()} == {1: 1, 2: 1, 3: 1}


def test_rows_with_room_for_all_that_is_told():
    """The full context and the store of all messages take larger rows, and programs of their own that learn nothing."""
    # Fewer entries are shown by rule than facts are told.
    run = build_small(
        policy__num_layers=1, rollout__history_widths=1, tools__max_calls=1, tools__max_top_k=1, tools__default_top_k=1
    )  # fmt: skip
    state = new_state(run.start(), run.optimizer)
    before = jax.device_get(state)
    task, _ = run.source.split_batch("test", 0, 8)
    told = task.facts.length.sum(1) + task.distractors.length.sum(1) + task.query.length
    found = {}
    for method in ("full_context", "store_all"):
        state, found[method], *_ = evaluate(run, state, run.frozen, Pass(method, "greedy"), 8)
        assert (found[method]["turns"] == 1).all()
    assert (found["full_context"]["context_tokens"] > told).all()
    assert (found["store_all"]["context_tokens"] < found["full_context"]["context_tokens"]).all()
    assert (found["store_all"]["memory_coverage"] == 1).all() and (found["full_context"]["memory_coverage"] == 0).all()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    assert {stage: program._cache_size() for stage, program in run.roomy.items()} == {1: 1, 2: 1, 3: 1}
    assert not any(program._cache_size() for program in run.programs.values())


def test_rows_are_as_roomy_as_need_be_and_as_the_model_can_read():
    config = small_config()
    pieces = build_pieces(Tokenizer.load(config.policy.tokenizer), config)
    room = roomy_config(config, pieces, None)
    told = config.task.facts + config.task.distractors
    assert room.store.entries == told > config.store.entries and room.context.messages == config.context.messages
    config.task.distractors = 40
    assert roomy_config(config, pieces, None).context.capacity > 44 * config.task.message_tokens
    with pytest.warns(UserWarning, match="a context ends at 1.., since the model was made for 200 positions"):
        assert roomy_config(config, pieces, 200).context.capacity == 200 - int(pieces.prefix.length.sum())
    config.store.entries = config.context.messages = 50
    config.context.capacity = 10_000
    assert roomy_config(config, pieces, None).to_dict() == config.to_dict()  # and the programs are the run's own


def test_the_guard_would_notice():
    """What the test above relies on: an implicit transfer raises."""
    add = jax.jit(lambda x: x + 1)
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="[Dd]isallowed"):
        add(np.ones(3))


def test_buffers_are_donated(recwarn):
    run = chained()
    task, asked = put_batch(run, 0), settings(run, update=True)
    state, rows = new_state(run.start(), run.optimizer), None
    for stage in (1, 2, 3):
        given = state, rows
        state, rows, _ = run.programs[stage](state, run.frozen, rows, task, run.world, asked)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[0]))
        # What a stage sets anew before it reads it, a few counters of one number a row, is no input to the program.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[1]) if leaf.size > run.spec.rollout.batch)
    kept = run.frozen, task, run.world, state, rows
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
    assert not [w for w in recwarn if "donated" in str(w.message)]


def test_an_update_is_a_function_of_seed_update_and_state():
    run = chained()
    task = put_batch(run, 0)
    ends = []
    for _ in range(2):
        state, _ = train_update(run, new_state(run.start(), run.optimizer), run.frozen, 7, task)
        ends.append(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (run.frozen, ends[0])), strict=True))


def test_an_evaluation_leaves_the_state_alone_and_masks_repeated_rows():
    run = chained()
    state = new_state(run.start(), run.optimizer)
    before = jax.device_get(state)
    state, numbers, ((traces, rows), task), timed = evaluate(run, state, run.frozen, Pass("agemem", "sampled"), 11)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    assert {len(values) for values in numbers.values()} == {11}
    assert [tasks for tasks, _ in timed] == [8, 3] and timed[1][1] > 0
    assert set(traces) == {1, 2, 3} and len(rows["progress"]) == 8
    assert (task.index >= run.source.num_train).all()
    assert numbers["kind"][:8].tolist() == task.kind.tolist() and set(numbers["kind"]) <= set(range(len(KINDS)))
    _, again, *_ = evaluate(run, state, run.frozen, Pass("agemem", "sampled"), 11)
    for name, values in numbers.items():
        np.testing.assert_array_equal(values, again[name])
    assert method_tools(run.config, "store_all") == 0 and method_tools(run.config, "agemem") == ALL_TOOLS


def test_disabled_tools_are_not_in_a_methods_mask():
    config = chained().config.copy_and_resolve_references()
    config.tools.enabled = ("Add_memory", "Retrieve_memory")
    assert method_tools(config, "agemem") == 1 << Op.ADD | 1 << Op.RETRIEVE
    assert method_tools(config, "agemem", "Retrieve_memory") == 1 << Op.ADD
    assert [one.without for one in passes_of(config, "agemem")] == ["", "", *config.tools.enabled * 2]


def capture(monkeypatch, stages, rl: dict, reward: dict | None = None) -> Run:
    """The chained run with other settings, whose programs of `stages` do everything but the optimizer step: their
    metrics hold the learner's batch instead."""

    def keep(state, frozen, optimizer, model, grammar, prefix, batch, spec, rl, on):
        return state, {"batch": batch}

    monkeypatch.setattr(programs_lib, "update", keep)
    run = chained()
    config = run.config.copy_and_resolve_references()
    config.rl.update(rl)
    config.reward.update(reward or {})
    rollout = dataclasses.replace(run.spec.rollout, columns=(), by_turn=config.rl.credit == "turn_to_go")
    spec = dataclasses.replace(run.spec, rollout=rollout)  # one column width compiles faster
    made = {
        stage: jax.jit(stage_program(stage, spec, run.model, run.optimizer, config.rl, config.reward), donate_argnums=2)
        for stage in stages
    }
    return dataclasses.replace(run, config=config, programs=run.programs | made)


def credited(batch, seg, advantage: np.ndarray, trainable: np.ndarray) -> None:
    """The batch trains exactly the tokens `trainable` [B, S, C], each with its row's advantage [B, 3] of its stage, or
    with one of its own [B, S, C]."""
    if advantage.ndim == 2:
        advantage = advantage[np.arange(len(advantage))[:, None, None], np.clip(seg.stage - 1, 0, 2)]
    wanted = {}
    for b, s in zip(*np.nonzero(seg.length), strict=True):
        wanted[b, s] = seg.tokens[b, s].tobytes(), seg.length[b, s]
    assert batch.trainable.sum() == trainable.sum()
    for b, s in wanted:
        if not trainable[b, s].any():
            continue
        same = [i for i in range(len(batch.length)) if batch.tokens[i].tobytes() == wanted[b, s][0]]
        assert len(same) == 1 and batch.length[same[0]] == wanted[b, s][1]
        np.testing.assert_array_equal(batch.trainable[same[0]], trainable[b, s])
        expected = advantage[b, s]
        np.testing.assert_allclose(
            batch.advantage[same[0]][trainable[b, s]], expected[trainable[b, s]], rtol=1e-3, atol=1e-4
        )


def in_groups(values: np.ndarray, size: int = 4) -> np.ndarray:
    """Group-normalised values [B, ...]."""
    groups = values.reshape(-1, size, *values.shape[1:]).astype(np.float64)
    spread = groups.std(1, ddof=1, keepdims=True)
    return ((groups - groups.mean(1, keepdims=True)) / (spread + 1e-6)).reshape(values.shape)


def earned_by(run, stats) -> tuple[dict, dict]:
    """What the stages earned of each term, and the weights."""
    factors = rewards.factors(run.config.reward)
    return rewards.earned(stats, run.config.reward, factors, run.config.context.limit), factors


@pytest.mark.parametrize("credit", ["per_stage", "return_to_go"])
def test_chained_credit_reaches_the_tokens_of_each_stage(monkeypatch, credit):
    run = capture(monkeypatch, (3,), {"credit": credit, "zero_variance": "drop" if credit == "per_stage" else "keep"})
    _, after, outcomes = play(run, run.source.batch(0), settings(run, update=True))
    stats, seg = after[-1].stats, after[-1].segments
    parts = np.asarray(rewards.stage_rewards(*earned_by(run, stats)))
    np.testing.assert_allclose(parts.sum(1), outcomes[-1]["rows"]["reward"], atol=1e-5)
    returns = parts if credit == "per_stage" else np.cumsum(parts[:, ::-1], 1)[:, ::-1]
    advantage = in_groups(returns)
    trainable = seg.trainable
    if credit == "per_stage":  # groups of equal stage rewards teach nothing, and are not in the mean
        groups = returns.reshape(-1, 4, 3)
        varied = np.repeat(groups.max(1) > groups.min(1), 4, axis=0)
        assert not varied.all() and varied.any()
        trainable = trainable & varied[np.arange(8)[:, None, None], np.clip(seg.stage - 1, 0, 2)]
        advantage = np.where(varied, advantage, 0)
        np.testing.assert_allclose(outcomes[-1]["metrics"]["zero_variance_groups"], 1 - varied.mean(), atol=1e-6)
    batch = outcomes[-1]["metrics"]["batch"]
    credited(batch, seg, advantage, trainable)
    np.testing.assert_allclose(batch.weight.sum(), 1, rtol=1e-5)
    assert outcomes[-1]["metrics"]["trained_tokens"] == trainable.sum()
    assert all("trained_tokens" not in outcome["metrics"] for outcome in outcomes[:2])


def test_turns_of_the_first_stages_are_credited_with_what_is_gained_from_them_on(monkeypatch):
    """Of what stands after each turn any numbers will do (test_stages.py: what they are)."""
    run = capture(monkeypatch, (3,), {"credit": "turn_to_go"}, {"preservation": 0.5})
    turns, rng = [run.spec.rollout.turns(k) for k in (1, 2)], np.random.default_rng(0)
    stands = rng.random((8, sum(turns), 3)).astype(np.float32)
    program = run.programs[3]

    def measured(state, frozen, rows, *more):
        stats = rows.stats.replace(in_view=stands[:, -1, 2])
        return program(state, frozen, rows.replace(standing=stands, stats=stats), *more)

    run = dataclasses.replace(run, programs=run.programs | {3: measured})
    _, after, outcomes = play(run, run.source.batch(0), settings(run, update=True))
    seg = after[-1].segments
    earned, factors = earned_by(run, after[-1].stats)
    parts = np.asarray(rewards.stage_rewards(earned, factors))
    later = in_groups(np.cumsum(parts[:, ::-1], 1)[:, ::-1])
    row = np.arange(8)[:, None, None]
    advantage = later[row, np.clip(seg.stage - 1, 0, 2)]
    standing = stands @ np.array([factors[name] for name in TURN_TERMS])
    for stage, of_stage in enumerate(np.split(standing, turns[:1], axis=1), 1):
        gained = gained_from(np.asarray(rewards.stage_objective(stage, earned, factors)), of_stage)
        by_turn = gained[row, np.clip(seg.turn, 0, turns[stage - 1] - 1)]
        advantage = np.where(seg.stage == stage, by_turn, advantage)
        assert (seg.trainable & (seg.stage == stage)).any()
    credited(outcomes[-1]["metrics"]["batch"], seg, advantage, seg.trainable)


def gained_from(own: np.ndarray, standing: np.ndarray) -> np.ndarray:
    """Advantages [B, turns] of a stage's turns: its objective less what stood before."""
    gained = own[:, None] - np.concatenate([np.zeros((8, 1)), standing[:, :-1]], 1)
    centred = gained - gained.reshape(2, 4, -1).mean(1).repeat(4, 0)
    return centred / centred.std()


@pytest.mark.parametrize("until", [1, 2])
def test_the_chained_schedule_may_begin_with_trajectories_that_end_earlier(monkeypatch, until):
    """A policy that knows nothing stores and keeps nothing of worth: any entries, any lengths count here."""
    any_entry = lambda rows, *_: (rows.store.valid.mean(1), rows.store.length.sum(1) % 5 / 5)  # noqa: E731
    monkeypatch.setattr(stage_lib, "store_worth", any_entry)
    monkeypatch.setattr(stage_lib, "in_view", lambda rows, *_: rows.context.length % 7 / 7)
    stages, rl = (1, 2)[:until], {"credit": "turn_to_go", f"stage{until}_updates": 2}
    run = capture(monkeypatch, stages, rl, {"storage": 1.0, "preservation": 0.5})
    _, after, outcomes = play(run, run.source.batch(0), settings(run, update=True), stages=stages)
    rows, metrics, spec = after[-1], outcomes[-1]["metrics"], run.spec.rollout
    earned, factors = earned_by(run, rows.stats)
    own, seg = [np.asarray(rewards.stage_objective(k, earned, factors)) for k in stages], rows.segments
    np.testing.assert_allclose(metrics["reward"], sum(own).mean(), rtol=1e-5)
    judged = [(1, "storage"), (1, "maintenance"), (2, "preservation")][: 2 * until]
    for stage, term in judged:
        np.testing.assert_allclose(metrics[f"term_{term}"], earned[term][:, stage - 1].mean(), rtol=1e-5)
    if until == 2:  # the open segment is learnt from although the context runs on
        seg = close_segment(rows, np.ones(8, bool)).segments
        seg = jax.tree.map(np.asarray, seg)
    assert {1, until} == set(seg.stage[seg.trainable].tolist())
    assert not any("trained_tokens" in outcome["metrics"] for outcome in outcomes[:-1])
    weighed = rows.standing @ np.array([factors[name] for name in TURN_TERMS])
    row, advantage = np.arange(8)[:, None, None], np.zeros(seg.tokens.shape)
    for stage in stages:
        assert own[stage - 1].std() > 0
        standing = weighed[:, spec.turns_before(stage) : spec.turns_before(stage + 1)]
        by_turn = gained_from(own[stage - 1], standing)[row, np.clip(seg.turn, 0, spec.turns(stage) - 1)]
        advantage = np.where(seg.stage == stage, by_turn, advantage)
    credited(metrics["batch"], seg, advantage, seg.trainable)


def test_a_changed_weight_compiles_nothing():
    run = chained()
    task, asked = run.source.batch(0), settings(run)
    first = play(run, task, asked)[2][-1]["rows"]
    compiled = {stage: program._cache_size() for stage, program in run.programs.items()}
    heavier = asked.replace(reward=asked.reward | {"task": jnp.float32(3.0), "no_answer": jnp.float32(-2.0)})
    second = play(run, task, heavier)[2][-1]["rows"]
    assert {stage: program._cache_size() for stage, program in run.programs.items()} == compiled
    task_term = np.where(first["acted"], first["term_task"], -2.0)
    np.testing.assert_allclose(second["term_task"], task_term, rtol=1e-6)
    expected = first["reward"] - run.config.reward.task * first["term_task"] + 3.0 * task_term
    np.testing.assert_allclose(second["reward"], expected, rtol=1e-4, atol=1e-5)


def test_hindsight_credits_the_turns_that_were_of_use(monkeypatch):
    """Both in one program: the token's advantage, and a mean over turns."""
    run = capture(monkeypatch, (3,), {"credit": "hindsight", "hindsight": 2.0, "loss_average": "turn"})
    _, after, outcomes = play(run, run.source.batch(0), settings(run, update=True))
    rows, spec = after[-1], run.spec.rollout
    seg, effective = rows.segments, rows.effective
    assert 0 < effective.sum() < effective.size
    np.testing.assert_array_equal(outcomes[-1]["rows"]["effective_turns"], effective.sum(1))
    task = in_groups(np.asarray(outcomes[-1]["rows"]["term_task"]))
    turn = np.array([0, 4, 5])[np.clip(seg.stage - 1, 0, 2)] + seg.turn  # stages of four, one and three turns
    assert spec.all_turns == 8 and turn[seg.trainable].max() < 8
    of_use = effective[np.arange(8)[:, None, None], turn]
    advantage = in_groups(np.asarray(outcomes[-1]["rows"]["reward"]))[:, None, None] + 2 * task[:, None, None] * of_use
    batch = outcomes[-1]["metrics"]["batch"]
    place = {seg.tokens[b, s].tobytes(): (b, s) for b, s in zip(*np.nonzero(seg.length), strict=True)}
    found = {(b, t) for b, t in zip(np.nonzero(seg.trainable)[0], turn[seg.trainable], strict=True)}
    assert any(of_use[seg.trainable]) and not all(of_use[seg.trainable])
    for i in np.flatnonzero(batch.length):
        b, s = place[batch.tokens[i].tobytes()]
        on = seg.trainable[b, s]
        np.testing.assert_allclose(batch.advantage[i][on], advantage[b, s][on], rtol=1e-3, atol=1e-4)
        same = [((seg.trainable[b] & (turn[b] == t)).sum()) for t in turn[b, s][on]]
        np.testing.assert_allclose(batch.weight[i][on], 1 / (np.array(same) * len(found)), rtol=1e-5)


def test_sequential_stages_train_their_own_tokens_on_their_own_objective(monkeypatch):
    run = capture(monkeypatch, (1, 2, 3), {"schedule": "sequential"}, {"storage": 1.0, "maintenance": 0.7})
    _, after, outcomes = play(run, run.source.batch(0), settings(run, update=True))
    for stage, (rows, outcome) in enumerate(zip(after, outcomes, strict=True), 1):
        objective = np.asarray(rewards.stage_objective(stage, *earned_by(run, rows.stats)))
        np.testing.assert_allclose(outcome["metrics"]["reward"], objective.mean(), rtol=1e-5)
        batch = outcome["metrics"]["batch"]
        seg = rows.segments
        if stage > 1:  # a group begins with what the stage before gave to its first row
            for begun, given in ((rows.stats.kept, after[stage - 2].stats.kept),
                                 (rows.segments.tokens[:, 0], after[stage - 2].segments.tokens[:, 0]),
                                 (rows.stats.relevance_sum[:, 0], after[stage - 2].stats.relevance_sum[:, 0])):
                np.testing.assert_array_equal(begun, np.repeat(given[::4], 4, axis=0))
        if stage == 2:  # the open segment is learnt from although the context runs on
            before = np.repeat(after[0].stats.sampled_tokens[::4], 4)
            assert batch.trainable.sum() == (rows.stats.sampled_tokens - before).sum() > 0
            assert (rows.tape.trainable.sum(1) > 0).any()
            assert (rows.segments.count == np.repeat(after[0].segments.count[::4], 4)).any()
            continue
        trainable = seg.trainable & (seg.stage == stage)
        assert 0 < trainable.sum() == outcome["metrics"]["trained_tokens"]
        varied = np.repeat(np.ptp(objective.reshape(-1, 4), axis=1) > 0, 4)
        advantage = np.where(varied, in_groups(objective), 0)
        credited(batch, seg, np.stack([advantage] * 3, 1), trainable)


def test_updates_are_split_over_the_stages():
    config = chained().config.copy_and_resolve_references()
    assert {stages_of(config, update) for update in range(6)} == {3}
    config.rl.stage1_updates = 2
    assert [stages_of(config, update) for update in range(4)] == [1, 1, 3, 3]
    config.rl.stage2_updates = 1
    assert [stages_of(config, update) for update in range(5)] == [1, 1, 2, 3, 3]
    assert stages_of(config, 0, "no_memory_rl") == 3  # it has nothing to learn in stage 1
    config.rl.whole_every = 2
    assert [stages_of(config, update) for update in range(5)] == [1, 3, 2, 3, 3]
    config.rl.schedule, config.rl.updates, config.rl.whole_every = "sequential", 9, 0
    assert [stages_of(config, update) for update in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_sequential_training_runs_stage_by_stage():
    """The first two thirds of the schedule, compiled: each update is on the tokens of its stage alone."""
    run = build_small(
        policy__num_layers=1, rollout__history_widths=1, rl__schedule="sequential", rl__updates=3,
        rl__tasks_per_update=1, reward__maintenance=1.0,
    )  # fmt: skip
    state = new_state(run.start(), run.optimizer)
    for update in range(2):
        before = jax.device_get(state.params)
        task = put_batch(run, update)
        with jax.transfer_guard("disallow"):
            state, outcome = train_update(run, state, {}, update, task)
            metrics = jax.device_get(outcome["metrics"])
        assert int(state.step) == update + 1
        assert 0 < metrics["trained_tokens"] < 4 * 70
        assert np.isfinite(metrics["loss"]) and metrics["logp_gap_max"] < 1e-3
        change = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, before)
        moved = max(jax.tree.leaves(change)) > 0
        assert moved == (metrics["grad_norm"] > 0)
        assert "rollout/progress" not in metrics  # nothing is answered yet
    assert {stage: program._cache_size() for stage, program in run.programs.items()} == {1: 1, 2: 1, 3: 0}
