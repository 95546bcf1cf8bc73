"""The AgeMem agent driven turn by turn from the host, as agent frameworks do it, to compare the fused programs with.

In each turn one jitted call generates for the whole batch: it prefills every row's whole history and decodes until all
rows have ended their turn. Tokens come to the host, become text, are parsed with `json`; plain Python keeps store and
context; new messages are tokenised, and what the policy wrote keeps its own tokens, so that its log-probabilities stay
true. A second jitted call updates on the recorded segments. Policy, grammar, tasks, noise, rewards and learner are the
run's, and both ways play the same trajectories. The agent here knows what configs/tiny.py uses: no tags, no think text,
no top_k.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from agemem_jax.envs.names import is_name
from agemem_jax.envs.scoring import CLOSED_ANSWERS, normalize_answer
from agemem_jax.memory.equality import normal_form
from agemem_jax.models import kv_cache
from agemem_jax.rl import advantages, losses, rewards
from agemem_jax.rl.batch import learner_batch
from agemem_jax.rollout.decode import Policy, Turns, generate
from agemem_jax.rollout.rows import Tape
from agemem_jax.rollout.stage import allowed_ops
from agemem_jax.training.evaluate import control as control_of
from agemem_jax.training.learn import update
from agemem_jax.training.programs import STAGES, Control, trajectory
from agemem_jax.training.setup import Run
from agemem_jax.types import TOOL_NAMES, Mode, Op, Role, Segments, Status, StopReason, Task, empty_stats

ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
CALLS = re.compile(r"<tool_call>(.*)</tool_call>", re.DOTALL)
TAPE = tuple(Tape.__dataclass_fields__)  # what is recorded of each token
TEXTS = ("content", "query", "criteria", "summary")  # arguments that say something


@dataclass
class Message:
    ids: list[int]
    role: Role
    round: int
    born: int  # number in creation order
    pinned: bool = False
    said: list[int] = field(default_factory=list)  # what the message says, without the format around it
    tape: list[tuple] = field(default_factory=list)  # of the ids that the policy wrote, which come after `opening`
    opening: int = 0


@dataclass
class Entry:
    id: int
    text: str
    ids: list[int]
    vector: np.ndarray
    owner: int
    hits: int = 0


class Tables:
    """What the rows share: the tokenizer, the fixed strings, and the tables of encoder and scores on the host."""

    def __init__(self, run: Run):
        if run.config.tools.optional_arguments or run.config.tools.think or not run.spec.rollout.summary_by_policy:
            raise ValueError(
                "the host-driven agent needs tools.think and tools.optional_arguments False and tools.summary_by "
                "'policy', as in configs/tiny.py"
            )
        if run.config.rl.credit in ("turn_to_go", "hindsight") or run.config.rl.loss_average == "turn":
            raise ValueError("the host-driven agent knows no turns; give another rl.credit and rl.loss_average")
        if run.spec.rollout.reader:
            raise ValueError("the host-driven agent has no decoder as encoder; set store.encoder = 'lexical'")
        self.spec, self.encode, self.decode = run.spec.rollout, run.tokenizer.encode_markup, run.tokenizer.decode
        self.end = run.tokenizer.end_of_turn
        self.table, self.weight = np.asarray(run.world.encoder), np.asarray(run.world.token_weight)
        pieces = jax.device_get(run.world.pieces)
        text = lambda piece: self.text_of(piece.tokens, piece.length)  # noqa: E731
        names = ("user_open", "assistant_open", "tool_open", "close", "tool_close", "summary_prompt", "summary_open")
        for name in (*names, "id_mark", "line_break", "related"):
            setattr(self, name, text(getattr(pieces, name)))
        self.id_first = pieces.id_first
        self.after_turn = int(pieces.after_turn.length)
        shape = pieces.statuses.length.shape
        self.statuses = [
            [self.text_of(pieces.statuses.tokens[o, s], pieces.statuses.length[o, s]) for s in range(shape[1])]
            for o in range(shape[0])
        ]

    def text_of(self, tokens: np.ndarray, length: int) -> str:
        """Text of a padded row of tokens."""
        return self.decode(tokens[: int(length)].tolist())

    def vector(self, ids: list[int]) -> np.ndarray:
        """What memory.encoder.encode makes of a text."""
        total = self.table[ids].sum(0) if ids else np.zeros(self.table.shape[1], np.float32)
        return total / (np.linalg.norm(total) or 1.0)

    def overlap(self, one: list[int], other: list[int]) -> float:
        """Weighted F1 of two texts' tokens as multisets, as in envs.scoring.overlap."""
        total = float(self.weight[one].sum() + self.weight[other].sum()) if one and other else 0.0
        shared = sum(float(self.weight[token]) * count for token, count in (Counter(one) & Counter(other)).items())
        return 2.0 * shared / total if total > 0 else 0.0


    def holds(self, entry: Entry, fact: str) -> bool:
        """Whether an entry holds a fact, as in envs.scoring.holds."""
        enough = self.overlap(entry.ids, self.encode(fact)) >= self.spec.good_entry
        return enough and names_of(entry.text) == names_of(fact)


def names_of(text: str) -> Counter:
    """The names, dates and numbers of a text."""
    return Counter(word.casefold() for word in re.findall(r"[^\W_]+", text) if is_name(word))


def answer_scores(said: str, gold: str) -> tuple[float, float]:
    """Exact match and F1 as the official HotpotQA script defines them."""
    said, gold = normalize_answer(said), normalize_answer(gold)
    exact = float(said == gold)
    if not exact and (said in CLOSED_ANSWERS or gold in CLOSED_ANSWERS):
        return 0.0, 0.0
    words, gold_words = said.split(), gold.split()
    common = sum((Counter(words) & Counter(gold_words)).values())
    return exact, 2.0 * common / max(len(words) + len(gold_words), 1)


def parse(text: str, summing: bool, end: str) -> list[tuple[Op, dict]]:
    """The calls of a turn, in the order written."""
    if summing:
        return [(Op.WRITE_SUMMARY, {"content": text.removesuffix(end)})]
    if answer := ANSWER.search(text):
        return [(Op.ACT, {"content": answer[1]})]
    calls = json.loads(CALLS.search(text)[1])
    return [(Op(TOOL_NAMES.index(call["name"])), call["arguments"]) for call in calls] or [(Op.PASS, {})]


class Rollout:
    """One row: its context, its store, its recorded segments and its facts for the reward."""

    def __init__(self, tables: Tables, task: Task):
        self.tables, self.spec = tables, tables.spec
        texts = lambda t, n: [tables.text_of(t.tokens[i], t.length[i]) for i in range(int(n))]  # noqa: E731
        self.facts, self.distractors = texts(task.facts, task.num_facts), texts(task.distractors, task.num_distractors)
        self.owners = (task.fact_owner.tolist(), task.distractor_owner.tolist(), [int(task.owner)])
        self.gold, self.keep = texts(task.gold, task.num_gold), texts(task.keep, task.num_keep)
        self.view = texts(task.view, task.num_view)
        self.revisions = list(
            zip(texts(task.stale, task.num_revisions), texts(task.present, task.num_revisions), strict=True)
        )
        self.stale_held: set[str] = set()
        self.told, self.crowded, self.spilled = 0, False, False
        self.query = tables.text_of(task.query.tokens, task.query.length)
        self.gold_answer = tables.text_of(task.answer.tokens, task.answer.length)
        self.keys = [token for token in task.key_tokens.tolist() if token]
        self.messages: list[Message] = []
        self.made = 0  # messages ever made
        self.store: list[Entry] = []
        self.next_id = 1
        self.segments: list[tuple[list[int], np.ndarray]] = []
        self.calls: list[tuple[Op, dict]] = []
        self.result = ""
        self.shown: list[int] = []  # entries in the result
        self.round = 0
        self.said: list[str] = []
        self.stats = {name: np.zeros(leaf.shape[1:]) for name, leaf in vars(empty_stats(1)).items()}

    # Context.

    @property
    def length(self) -> int:
        return sum(len(message.ids) for message in self.messages)

    @property
    def ids(self) -> list[int]:
        return [token for message in self.messages for token in message.ids]

    def used_segments(self) -> int:
        return len(self.segments) + any(tape[TAPE.index("trainable")] for m in self.messages for tape in m.tape)

    def may_edit(self) -> bool:
        return self.used_segments() <= self.spec.edit_limit(self.stage)

    def insert(self, place: int, ids: list[int], role: Role, said: list[int], pinned: bool = False) -> None:
        self.messages.insert(place, Message(ids, role, self.round, self.made, pinned, list(said)))
        self.made += 1

    def append(self, text: str, role: Role, said: list[int], pinned: bool = False) -> None:
        self.insert(len(self.messages), self.tables.encode(text), role, said, pinned)

    def stop(self, reason: StopReason) -> None:
        self.mode, self.stats["stop"][self.stage - 1] = Mode.DONE, reason

    def close_segment(self) -> None:
        """Keeps what was recorded since the last edit, if anything was."""
        rows = []
        for message in self.messages:
            tail = len(message.ids) - message.opening - len(message.tape)
            rows += [(0,) * len(TAPE)] * message.opening + message.tape + [(0,) * len(TAPE)] * tail
            message.tape, message.opening = [], 0
        tape = np.array(rows, np.float32).reshape(-1, len(TAPE))
        if tape[:, TAPE.index("trainable")].any():
            self.segments.append((self.ids, tape))

    def remove(self, drop: list[Message]) -> None:
        if drop:
            self.close_segment()
            self.messages = [message for message in self.messages if message not in drop]

    def in_time(self) -> bool:
        return self.length + self.spec.prefix_tokens <= self.spec.limit

    def track_length(self) -> None:
        used = self.length + self.spec.prefix_tokens
        self.stats["peak_context_tokens"] = max(self.stats["peak_context_tokens"], used)
        if used > self.spec.limit:
            self.stats["over_context"][self.stage - 1] = self.spilled = True

    # A stage.

    def begin(self, stage: int) -> None:
        self.stage, self.turn, self.summaries, self.pointer = stage, 0, 0, 0
        spec = self.spec
        self.last_turn = (
            len(self.facts) + spec.stage1_extra_turns,
            len(self.distractors) + spec.stage2_extra_turns,
            spec.stage3_turns,
        )[stage - 1]
        self.mode = Mode.ACT
        if self.last_turn <= 0:
            self.stop(StopReason.TURNS)

    def end(self) -> None:
        if self.stage == 1:
            self.close_segment()
            self.judge_store()
            self.messages, self.result, self.shown = [], "", []
            self.told, self.crowded, self.spilled = 0, False, False
            return
        self.stats["prevented"][self.stage - 1] = self.crowded and not self.spilled
        ids = set(self.ids)
        self.stats["context_tokens"] = self.length + self.spec.prefix_tokens
        if self.stage == 2:
            self.stats["in_view"] = np.mean([self.told_in_view(text) for text in self.view]) if self.view else 1.0
        self.stats["preservation"] = sum(key in ids for key in self.keys) / len(self.keys) if self.keys else 1.0
        if self.stage == 3:
            self.stats["over_turns"] = self.stats["stop"][2] == StopReason.TURNS
            self.close_segment()

    def told_in_view(self, text: str) -> float:
        """The share of a text that the best of the messages in the context holds (envs.scoring.view_share)."""
        weight = {token: float(self.tables.weight[token]) for token in self.tables.encode(text)}
        told = [sum(weight[token] for token in weight.keys() & set(message.ids)) for message in self.messages]
        return max(told, default=0.0) / max(sum(weight.values()), 1e-9)

    def observe(self) -> None:
        """Appends what the policy sees before it writes."""
        t, spec, act = self.tables, self.spec, self.mode == Mode.ACT
        script = (self.facts, self.distractors, [self.query])[self.stage - 1]
        body = script[self.turn] if act and self.turn < len(script) else ""
        shown, entries = (self.result, list(self.shown)) if act else ("", [])
        if self.stage == 1 and spec.auto_top_k and body:
            found = self.nearest(t.encode(body), spec.auto_top_k, spec.auto_min_score)
            entries += [token for entry in found for token in entry.ids]
            shown += (t.line_break if shown else "") + t.related + self.lines(found) if found else ""
        tool = t.tool_open + shown + t.tool_close if shown else ""
        said = body if act else t.summary_prompt
        user = t.user_open + said + t.close if said else ""
        size = lambda *parts: sum(len(t.encode(part)) for part in parts)  # noqa: E731
        budget = (spec.action_tokens if act else spec.summary_tokens) + size(t.close)
        slots = sum(map(bool, (tool, user, t.assistant_open)))
        if act and self.may_edit() and self.summaries < spec.summary_slots:  # a summary may be asked for: keep its room
            budget += size(t.user_open, t.summary_prompt, t.close, t.assistant_open, t.close) + spec.summary_tokens
            slots += 2
        need = size(tool, user, t.assistant_open) + budget
        if drop := self.overflow(need, slots):
            if self.used_segments() >= spec.segment_limit(self.stage):
                self.spilled = True
                return self.stop(StopReason.SEGMENTS)
            self.remove(drop)
            self.spilled = True
        if self.length + need > spec.capacity or len(self.messages) + slots > spec.messages:
            self.stats["over_context"][self.stage - 1] = self.spilled = True
            return self.stop(StopReason.CONTEXT)
        if tool:
            self.append(tool, Role.TOOL, entries)
        if user:
            self.append(user, Role.USER, t.encode(body), self.stage == 3 and spec.pin_query and bool(body))
        self.append(t.assistant_open, Role.ASSISTANT, [])
        if body:
            self.told += size(user, t.assistant_open)
            full = self.told + budget > spec.capacity
            self.told += spec.shortest_turn + t.after_turn
            self.crowded |= full or self.told + spec.prefix_tokens > spec.limit
        if act:
            self.result, self.shown = "", []
        self.track_length()

    def overflow(self, need: int, slots: int) -> list[Message]:
        """The oldest messages, down to the low-water mark, where tokens or messages do not fit."""
        spec, tokens, count = self.spec, self.length + need, len(self.messages) + slots
        most_tokens = int(spec.low_water * spec.capacity) if tokens > spec.capacity else tokens
        most = int(spec.low_water * spec.messages) if count > spec.messages else count
        drop = []
        for message in sorted(self.messages, key=lambda message: message.born):
            if (tokens > most_tokens or count > most) and not message.pinned:
                drop.append(message)
                tokens, count = tokens - len(message.ids), count - 1
        return drop

    def record(self, tokens: list[int], choice, logp, state, remaining, ops: int) -> None:
        """Appends what the policy wrote."""
        message, text = self.messages[-1], self.tables.decode(tokens)
        message.opening = len(message.ids)
        message.tape = [
            (c, p, s, r, ops, self.turn, self.stage) for c, p, s, r in zip(choice, logp, state, remaining, strict=True)
        ]
        message.ids += tokens if text.endswith(self.tables.end) else tokens + self.tables.encode(self.tables.close)
        self.stats["turns"] += 1
        self.stats["generated_tokens"] += len(tokens)
        self.stats["sampled_tokens"] += sum(choice)
        self.track_length()
        self.said.append(text)

    def act(self) -> None:
        """Executes what was written, and moves on to the next turn if this one is over."""
        summing = self.mode == Mode.SUMMARIZE
        written = parse(self.said[-1], summing, self.tables.end)
        texts = [text for _, arguments in written for name, text in arguments.items() if name in TEXTS]
        self.messages[-1].said = [token for text in texts for token in self.tables.encode(text)]
        if summing:
            self.mode = Mode.ACT
            self.finish_summary(written[0][1]["content"])
        else:
            self.calls, self.pointer = written, 0
        while self.mode == Mode.ACT and self.pointer < len(self.calls):
            op, arguments = self.calls[self.pointer]
            self.pointer += 1
            self.run_call(op, arguments)
        if self.mode == Mode.ACT:
            self.turn += 1
            self.round += 1
            answered = not summing and self.calls[0][0] == Op.ACT
            ends = answered and (self.stage == 3 or self.spec.early_answer_ends)
            if ends or self.turn >= self.last_turn:
                self.stop(StopReason.FINISHED if ends else StopReason.TURNS)

    # Tools.

    def nearest(self, ids: list[int], k: int, min_score: float) -> list[Entry]:
        """The best entries for a query, highest cosine first."""
        query = self.tables.vector(ids)
        scored = [(round(float(entry.vector @ query) * 2**16) / 2**16, entry) for entry in self.own()]
        scored = sorted((pair for pair in scored if pair[0] >= min_score), key=lambda pair: (-pair[0], pair[1].id))
        return [entry for _, entry in scored[:k]]

    def lines(self, entries: list[Entry]) -> str:
        t = self.tables
        parts = ((e.id, e.text) if t.id_first else (e.text, e.id) for e in entries)
        return "".join(f"{t.line_break}{first}{t.id_mark}{last}" for first, last in parts)

    def say(self, op: Op, status: Status, extra: str = "") -> None:
        self.result += (self.tables.line_break if self.result else "") + self.tables.statuses[op][status] + extra

    def run_call(self, op: Op, arguments: dict) -> None:
        status, extra = Status.OK, ""
        if op == Op.ADD:
            status, extra = self.add(arguments["content"])
        elif op == Op.UPDATE:
            status = self.update(arguments["memory_id"], arguments["content"])
        elif op == Op.DELETE:
            status = self.delete(arguments["memory_id"], arguments["confirmation"])
        elif op == Op.RETRIEVE:
            status, extra = self.retrieve(arguments["query"])
        elif op == Op.FILTER:
            status = self.filter(arguments["criteria"])
        elif op == Op.SUMMARY:
            status = self.ask_for_summary(arguments["span"])
        elif op == Op.ACT and self.stage == 3:
            self.stats["actions"] += 1
            self.stats["understood"] += 1
            self.stats["success"], self.stats["progress"] = answer_scores(arguments["content"], self.gold_answer)
        waiting = self.mode == Mode.SUMMARIZE
        if op in (Op.UPDATE, Op.DELETE) and status == Status.OK:
            self.stats["maintained"][self.stage - 1] = True
        self.stats["calls"][op] += 1
        self.stats["calls_ok"][op] += status == Status.OK and not waiting
        if op < Op.ACT and not waiting:
            self.say(op, status, extra)

    def check_text(self, ids: list[int]) -> Status:
        if not ids:
            return Status.EMPTY_TEXT
        return Status.OK if len(ids) <= self.spec.entry_tokens else Status.TEXT_TOO_LONG

    def holds(self, text: str, but: Entry | None = None) -> bool:
        same = [entry for entry in self.own() if normal_form(entry.text) == normal_form(text) and entry is not but]
        return self.spec.duplicates == "refuse" and bool(same)

    def find(self, memory_id: str) -> Entry | None:
        return next((entry for entry in self.own() if entry.id == int(memory_id)), None)

    @property
    def owner(self) -> int:
        """Whose turn it is; after the last message of a stage its speaker is still meant."""
        owners = self.owners[self.stage - 1]
        told = (len(self.facts), len(self.distractors), 1)[self.stage - 1]
        return owners[min(self.turn, max(told - 1, 0))]

    def own(self) -> list[Entry]:
        return [entry for entry in self.store if entry.owner == self.owner]

    def wrote(self, entry: Entry) -> None:
        if self.stage == 1:
            self.stale_held |= {stale for stale, _ in self.revisions if self.tables.holds(entry, stale)}

    def judge_store(self) -> None:
        """What the strict terms ask of the store when stage 1 ends (envs/scoring.py)."""
        held = lambda text: any(self.tables.holds(entry, text) for entry in self.store)  # noqa: E731
        most = min(len(self.keep), self.spec.entries) + len(self.store)
        self.stats["kept"] = min(1.0, 2 * sum(map(held, self.keep)) / max(most, 1))
        done = [
            not held(stale) and (held(present) if present else stale in self.stale_held)
            for stale, present in self.revisions
        ]
        self.stats["revised"] = sum(done) / max(len(done), 1)

    def add(self, text: str) -> tuple[Status, str]:
        ids = self.tables.encode(text)
        status = self.check_text(ids)
        if status == Status.OK and self.holds(text):
            status = Status.DUPLICATE
        elif status == Status.OK and len(self.store) == self.spec.entries:
            status = Status.STORE_FULL
        if status != Status.OK:
            return status, ""
        entry = Entry(self.next_id, text, ids, self.tables.vector(ids), self.owner)
        self.store.append(entry)
        self.next_id += 1
        self.wrote(entry)
        if self.stage == 1:
            self.stats["added"] += 1
            self.stats["added_good"] += any(self.tables.holds(entry, gold) for gold in self.gold)
        return status, str(entry.id)

    def update(self, memory_id: str, text: str) -> Status:
        entry, ids = self.find(memory_id), self.tables.encode(text)
        if entry is None:
            return Status.UNKNOWN_ID
        if (status := self.check_text(ids)) != Status.OK:
            return status
        if normal_form(text) == normal_form(entry.text):
            return Status.UNCHANGED
        if self.holds(text, but=entry):
            return Status.DUPLICATE
        entry.text, entry.ids, entry.vector = text, ids, self.tables.vector(ids)
        self.wrote(entry)
        return Status.OK

    def delete(self, memory_id: str, confirmed: bool) -> Status:
        entry = self.find(memory_id)
        if entry is None:
            return Status.UNKNOWN_ID
        if not confirmed:
            return Status.NOT_CONFIRMED
        self.store.remove(entry)
        return Status.OK

    def retrieve(self, query: str) -> tuple[Status, str]:
        ids = self.tables.encode(query)
        if not ids:
            return Status.EMPTY_TEXT, ""
        found = self.nearest(ids, min(self.spec.default_top_k, self.spec.max_top_k), self.spec.min_score)
        if not found:
            return Status.NOTHING_FOUND, ""
        for entry in found:
            entry.hits += 1
            self.shown += entry.ids
            best = max((self.tables.overlap(entry.ids, self.tables.encode(g)) for g in self.gold), default=0.0)
            self.stats["relevance_sum"][self.stage - 1] += best
        self.stats["relevance_count"][self.stage - 1] += len(found)
        return Status.OK, self.lines(found)

    def filter(self, criteria: str) -> Status:
        ids = self.tables.encode(criteria)
        if not ids:
            return Status.EMPTY_TEXT
        wanted = self.tables.vector(ids)
        drop = [
            message
            for message in self.messages
            if message.born < self.made - 1 and not message.pinned  # the turn that asks for it stays
            and self.tables.vector(message.said) @ wanted >= self.spec.filter_threshold
        ]
        if not drop:
            return Status.NOTHING_FOUND
        if not self.may_edit():
            return Status.EDIT_LIMIT
        self.stats["reduced_in_time"][self.stage - 1] += self.in_time()
        self.remove(drop)
        return Status.OK

    def ask_for_summary(self, span: str) -> Status:
        """The policy writes the summary in a turn of its own."""
        if not self.may_edit() or self.summaries >= self.spec.summary_slots:
            return Status.EDIT_LIMIT
        self.mode, self.span = Mode.SUMMARIZE, 0 if span == "all" else int(span)
        self.summaries += 1
        return Status.OK

    def finish_summary(self, text: str) -> None:
        """Puts the summary in place of the span and of the messages that asked for it."""
        t = self.tables
        rounds = sorted({message.round for message in self.messages}, reverse=True)
        chosen = rounds[: self.span + 1] if self.span else rounds
        drop = [message for message in self.messages if not message.pinned and message.round in chosen]
        body = t.encode(t.user_open + t.summary_open + text + t.close)
        freed = sum(len(message.ids) for message in drop)
        status = Status.OK
        if not self.may_edit():
            status = Status.EDIT_LIMIT
        elif not t.encode(text):
            status = Status.EMPTY_TEXT
        elif not drop:
            status = Status.NOTHING_TO_EDIT
        elif self.length - freed + len(body) > self.spec.capacity:
            status = Status.NO_ROOM
        else:
            self.stats["reduced_in_time"][self.stage - 1] += self.in_time()
            place = self.messages.index(drop[0])
            self.remove(drop)
            self.insert(place, body, Role.USER, t.encode(text))
            self.stats["calls_ok"][Op.SUMMARY] += 1
        self.say(Op.SUMMARY, status)


class HostLoop:
    """The two jitted calls and the Python between them."""

    def __init__(self, run: Run):
        self.run, self.spec, self.tables = run, run.spec.rollout, Tables(run)
        self.write = jax.jit(self._write)
        self.learn = jax.jit(self._learn, donate_argnums=0)

    def _write(self, params, world, tokens, length, on, start, ops, budget, temperature, key):
        spec, model, text = self.spec, self.run.model, world.pieces.prefix
        params = kv_cache.split_layers(params, model)
        prefix, _ = kv_cache.encode_prefix(params, model, text.tokens, text.length)
        history = kv_cache.init_history(model, spec.batch, spec.capacity + max(spec.chunk, spec.width))
        turns = Turns(on, world.grammar, start, ops, budget, spec.width, temperature, key, columns=spec.columns)
        policy, none = Policy(model, params, prefix), jnp.zeros_like(length)
        return generate(policy, history, none, tokens, length, turns, spec.chunk)[2]

    def _learn(self, state, frozen, world, segments: Segments, stats):
        rl, reward = self.run.config.rl, self.run.config.reward
        factors = rewards.factors(reward)
        earned = rewards.earned(stats, reward, factors, self.spec.limit)
        total, _ = rewards.combine(rewards.terms(earned), factors)
        advantage, _ = advantages.step_credit(total, rewards.stage_rewards(earned, factors), rl)
        budget = sum(self.spec.budget(stage) for stage in STAGES)
        weight = losses.token_weights(segments.trainable, rl.loss_average, budget)
        batch = learner_batch(segments, advantage, weight, self.run.spec.learn.micro_batch)
        return update(
            state, frozen, self.run.optimizer, self.run.model, world.grammar, world.pieces.prefix, batch,
            self.run.spec.learn, rl, jnp.bool_(True),
        )  # fmt: skip

    def rollouts(self, params: dict, task: Task, control: Control) -> list[Rollout]:
        """Plays the three stages of a batch of tasks (numpy arrays)."""
        rows = [Rollout(self.tables, jax.tree.map(lambda x, i=i: x[i], task)) for i in range(self.spec.batch)]
        for stage in (1, 2, 3):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(control.seed), control.step), stage)
            ops = int(allowed_ops(self.spec, stage, control.tools))
            for row in rows:
                row.begin(stage)
            for slot in range(self.spec.slots(stage)):
                for row in rows:
                    if row.mode != Mode.DONE:
                        row.observe()
                if all(row.mode == Mode.DONE for row in rows):
                    break
                self.turn(params, rows, ops, control.temperature, jax.random.fold_in(key, slot))
            for row in rows:
                row.end()
        return rows

    def turn(self, params: dict, rows: list[Rollout], ops: int, temperature, key) -> None:
        """One generation of all rows that are not done, and what follows from it."""
        spec, grammar = self.spec, self.run.world.grammar
        tokens = np.zeros((spec.batch, spec.capacity), np.int32)
        length = np.zeros((spec.batch,), np.int32)
        for i, row in enumerate(rows):
            ids = row.ids if row.mode != Mode.DONE else []
            tokens[i, : len(ids)], length[i] = ids, len(ids)
        on = np.array([row.mode != Mode.DONE for row in rows])
        summing = np.array([row.mode == Mode.SUMMARIZE for row in rows])
        start = np.where(summing, grammar.start_summary, grammar.start_act).astype(np.int32)
        budget = np.where(summing, spec.summary_tokens, spec.action_tokens).astype(np.int32)
        mask = np.full((spec.batch,), ops, np.int32)
        made = self.write(params, self.run.world, tokens, length, on, start, mask, budget, temperature, key)
        made = jax.device_get(made)
        cut = lambda x, i: x[i, : made.count[i]].tolist()  # noqa: E731
        for i, row in enumerate(rows):
            if on[i]:
                recorded = (cut(x, i) for x in (made.sampled, made.logp, made.state, made.remaining))
                row.record(cut(made.tokens, i), *recorded, ops)
                row.act()

    def batch(self, rows: list[Rollout]) -> tuple[Segments, object]:
        """The recorded segments and the facts of all rows as padded arrays."""
        spec = self.spec
        shape = (spec.batch, spec.segments, spec.capacity)
        tokens, length = np.zeros(shape, np.int32), np.zeros(shape[:2], np.int32)
        tape = np.zeros((*shape, len(TAPE)), np.float32)
        for i, row in enumerate(rows):
            for s, (ids, recorded) in enumerate(row.segments):
                length[i, s], tokens[i, s, : len(ids)], tape[i, s, : len(ids)] = len(ids), ids, recorded
        count = np.array([len(row.segments) for row in rows], np.int32)
        kinds = dict(trainable=bool, logp=np.float32, stage=np.int8)
        parts = {name: tape[..., k].astype(kinds.get(name, np.int16)) for k, name in enumerate(TAPE)}
        blank = empty_stats(1)
        stats = {
            name: np.stack([np.asarray(row.stats[name]) for row in rows]).astype(getattr(blank, name).dtype)
            for name in vars(blank)
        }
        return Segments(tokens=tokens, length=length, count=count, **parts), blank.replace(**stats)

    def update(self, state, task: Task, control: Control):
        """One whole update: (state, metrics of the learner, rows)."""
        rows = self.rollouts(state.params, task, control)
        state, metrics = self.learn(state, self.run.frozen, self.run.world, *self.batch(rows))
        return state, jax.device_get(metrics), rows


def agreement(run: Run, loop: HostLoop, state, task: Task) -> tuple[float, object]:
    """Share of rollouts that, played greedily, are the same in both ways (every reward term and count of tokens).

    Returns:
      (share, the state: the programs donate it).
    """
    control = control_of(run, run.config.seed, 0, "agemem", 0.0, update=False)
    rows = loop.rollouts(state.params, task, control)
    state, outcome, _ = trajectory(run.programs, state, run.frozen, jax.device_put(task), run.world, control)
    by_row = jax.device_get(outcome["rows"])
    _, stats = loop.batch(rows)
    reward = run.config.reward
    terms = rewards.terms(rewards.earned(stats, reward, rewards.factors(reward), run.spec.rollout.limit))
    same = np.ones((len(rows),), bool)
    for name, values in {**{f"term_{name}": x for name, x in terms.items()}, "turns": stats.turns,
                         "generated_tokens": stats.generated_tokens}.items():  # fmt: skip
        same &= np.isclose(np.asarray(values), by_row[name], atol=1e-4)
    return float(same.mean()), state
