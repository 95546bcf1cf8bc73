"""The engines of the benchmarks as benchmark_envs measures them; each part runs in a process of its own.

A part draws ROWS random walks, times them in batches of BATCHES as one program (a scan over the steps, as a rollout's
loop has them), and gives the walks of the first rows, one of each game, with every state of them, for the real engine
to play. States are those of the timed program's outputs.

A part gives {"figures": {...}, "walks": [{"game", "actions", "states"}]}; what a game and a state are say peers/*.py.
"""

import functools
import random
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax import lax
from tokenizers import decoders, models, pre_tokenizers, trainers

from agemem_jax.benchmarks.alfworld import environment as alfworld
from agemem_jax.benchmarks.alfworld import tasks as alfworld_tasks
from agemem_jax.benchmarks.babyai import environment as babyai
from agemem_jax.benchmarks.babyai import levels as babyai_levels
from agemem_jax.benchmarks.babyai import wording as babyai_wording
from agemem_jax.benchmarks.babyai.macros import Macros
from agemem_jax.benchmarks.pddl import tasks as pddl_tasks
from agemem_jax.benchmarks.pddl import wording as pddl_wording
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs.base import Environment
from agemem_jax.types import PAD_ID, Text

ROWS = 1024
BATCHES = (1, 64, 1024)
REPEATS = {1: 31, 64: 15, 1024: 7}
# Programs that are not timed run a few steps: compiling them is what takes time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
STEPS = {"alfworld": 16, "pddl": 30, "babyai": 30, "babyai_primitives": 60}
GAMES = {"alfworld": 4, "babyai": 24}
PDDL_DOMAINS = ("gripper", "blockworld", "barman", "tyreworld")
LISTED_TOKENS = 1024  # of ALFWorld's admissible commands
VOCABULARY = 4096
# How Qwen's vocabularies cut a text first.
CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def vocabulary(folder: Path, texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE vocabulary with Qwen's first cuts, trained on texts."""
    model = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(tokenizers.Regex(CUTS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|pad|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(texts, trainer)
    model.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(str(folder / "tokenizer.json"))


class Spelling:
    """Texts as tokens and back, on the host, for many rows."""

    def __init__(self, tokenizer: Tokenizer):
        self.encode = functools.cache(tokenizer.encode)
        self.pieces = tokenizer.token_bytes()

    def write(self, texts: Sequence[str], width: int) -> Text:
        """Texts as tokens [B, width]. Raises ValueError for one that is longer."""
        tokens, length = np.full((len(texts), width), PAD_ID, np.int32), np.zeros(len(texts), np.int32)
        for i, text in enumerate(texts):
            ids = self.encode(text) if text else []
            if len(ids) > width:
                raise ValueError(f"{text!r} has {len(ids)} tokens, more than {width}")
            tokens[i, : len(ids)], length[i] = ids, len(ids)
        return Text(tokens, length)

    def read(self, texts: Text) -> list[str]:
        """Texts [B, W] as strings."""
        rows = zip(np.asarray(texts.tokens).tolist(), np.asarray(texts.length).tolist(), strict=True)
        return [b"".join([self.pieces[i] for i in row[:n]]).decode() for row, n in rows]


def rows_of(tree: Any, rows: np.ndarray, axis: int = 0) -> Any:
    """Rows of arrays, on the device."""
    return jax.device_put(jax.tree.map(lambda x: np.take(np.asarray(x), rows, axis), tree))


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(np.asarray(x).nbytes for x in jax.tree.leaves(tree))


def timed(program: Callable, shared: Any, game: Any, state: Any, given: Any, on: np.ndarray) -> tuple[dict, Any]:
    """Times program(shared, game, state, given) on the rows of ROWS, in batches.

    Args:
      given: what each step takes, [T, ROWS, ...].
      on: [T, ROWS] bool: the rows that take a step; these are counted.

    Returns:
      figures by batch, and what the program has given for the largest batch, whose rows are all.
    """
    figures, out = {}, None
    for batch in BATCHES:
        blocks = [np.arange(r * batch, (r + 1) * batch) % ROWS for r in range(REPEATS[batch])]
        taken = [(rows_of(game, b), rows_of(state, b), rows_of(given, b, axis=1)) for b in blocks[: ROWS // batch]]
        began = time.perf_counter()
        compiled = jax.jit(program).lower(shared, *taken[0]).compile()
        compile_s = time.perf_counter() - began
        jax.block_until_ready(compiled(shared, *taken[0]))  # its memory is there from here on
        rates, cpu_rates = [], []
        for i, block in enumerate(blocks):
            began, cpu_began = time.perf_counter(), time.process_time()
            out = jax.block_until_ready(compiled(shared, *taken[i % len(taken)]))
            spent, cpu_spent = time.perf_counter() - began, time.process_time() - cpu_began
            rates.append(on[:, block].sum() / spent)
            cpu_rates.append(on[:, block].sum() / cpu_spent)
        figures[str(batch)] = {
            "steps_per_s": round(float(statistics.median(rates)), 1),
            "steps_per_cpu_s": round(float(statistics.median(cpu_rates)), 1),
            "slowest_and_fastest": [round(float(pick(rates)), 1) for pick in (min, max)],
            "compile_s": round(compile_s, 2),
        }
    return figures, jax.tree.map(np.asarray, out)


def memory(shared: Any, game: Any, state: Any) -> dict:
    """Bytes of one game, of what play changes of it, and of the tables that all share."""
    return {
        "bytes_a_game": bytes_of(game) // ROWS,
        "bytes_a_state": bytes_of(state) // ROWS,
        "bytes_shared": bytes_of(shared),
    }


class Played:
    """An engine of texts with ROWS games, the first `games` of which are different ones that come again and again."""

    def __init__(self, env: Environment, shared: Any, game: Any, games: int, spelling: Spelling):
        self.env, self.shared, self.games, self.spelling = env, jax.device_put(shared), games, spelling
        self.game = rows_of(game, np.arange(ROWS) % games)
        self.step = jax.jit(env.step, compiler_options=QUICK)
        self.begin, self.first = jax.jit(env.reset, compiler_options=QUICK)(self.shared, self.game)

    def drawn(self, listed: Callable[[Any], list[list[str]]], steps: int, seed: int) -> tuple[list, np.ndarray, list]:
        """Random walks: actions [T][ROWS], rows that take them [T, ROWS] until they are over, and what was listed in
        the states of the first rows [T + 1][games].

        listed: from states, the actions that can be taken in each row.
        """
        rng, state, on = random.Random(seed), self.begin, np.ones(ROWS, bool)
        actions, steps_on, lists = [], [], []
        for _ in range(steps):
            can = listed(state)
            lists.append(can[: self.games])
            actions.append([rng.choice(texts) for texts in can])
            steps_on.append(on)
            given = self.spelling.write(actions[-1], self.env.action_tokens)
            state, outcome = self.step(self.shared, self.game, state, given, on)
            on = on & ~np.asarray(outcome.terminated)
        return actions, np.stack(steps_on), [*lists, listed(state)[: self.games]]

    def timed(self, actions: list, on: np.ndarray) -> tuple[dict, Any]:
        """As the function `timed`; of the program come the outcomes and states after each step [T, ROWS, ...]."""
        written = [self.spelling.write(texts, self.env.action_tokens) for texts in actions]
        given = jax.tree.map(lambda *x: np.stack(x), *written), on

        def play(shared, game, state, given):
            def one(state, given):
                state, outcome = self.env.step(shared, game, state, *given)
                return state, (outcome, self.kept(state))

            return lax.scan(one, state, given)[1]

        return timed(play, self.shared, self.game, self.begin, given, on)

    kept = staticmethod(lambda state: ())  # what is compared of a state, beside the outcome

    def walks(self, names: list, actions: list, on: np.ndarray, states: Callable[[int, int], list]) -> list[dict]:
        """The walks of the first rows, for the real engine. states: from a step, 0 the start, and a row."""
        out = []
        for row, name in enumerate(names):
            steps = int(on[:, row].sum())
            told = [states(step, row) for step in range(steps + 1)]
            out.append({"game": name, "actions": [actions[i][row] for i in range(steps)], "states": told})
        return out

    def told(self, outcome: Any) -> list[list[str]]:
        """What is seen at the start and after each step, by the first rows: [T + 1][games]."""
        rows = slice(self.games)
        cut = lambda text: jax.tree.map(lambda x: np.asarray(x)[rows], text)  # noqa: E731
        steps = [jax.tree.map(lambda x: x[i], outcome.seen) for i in range(len(outcome.success))]  # noqa: B023
        return [self.spelling.read(cut(text)) for text in [self.first, *steps]]


def play_alfworld(data: Path, folder: Path) -> dict:
    """ALFWorld; the list of admissible commands is timed as well, apart."""
    files = alfworld_tasks.files(str(data / "alfworld"))
    paths = files[:: len(files) // GAMES["alfworld"]][: GAMES["alfworld"]]
    households = [alfworld_tasks.read(path) for path in paths]
    names = [name for game in households for name in (*game.arrivals, *game.receptacles, *game.objects)]
    texts = [*alfworld.PIECES, *(f" {name}" for name in names), *(game.task for game in households)]
    tokenizer = vocabulary(folder, texts)
    sizes = alfworld.Sizes()
    rows = [alfworld_tasks.arrays(game, tokenizer, sizes) for game in households]
    game = jax.tree.map(lambda *x: np.stack(x), *rows)
    env, spelling = alfworld.AlfWorld(sizes), Spelling(tokenizer)
    played = Played(env, alfworld_tasks.shared(tokenizer, sizes), game, len(paths), spelling)
    say = jax.jit(functools.partial(alfworld.admissible_text, width=LISTED_TOKENS), compiler_options=QUICK)
    listed = lambda state: [text.split(", ") for text in spelling.read(say(played.shared, played.game, state))]  # noqa: E731
    actions, on, lists = played.drawn(listed, STEPS["alfworld"], seed=0)
    figures, (outcome, _) = played.timed(actions, on)
    seen = played.told(outcome)
    won = np.concatenate([np.asarray(played.begin.won)[None], outcome.success])

    def state(step: int, row: int) -> list:
        return [seen[step][row], lists[step][row], bool(won[step, row])]

    began = {"batch": figures, **memory(played.shared, played.game, played.begin)}
    return {"figures": began, "walks": played.walks([str(path) for path in paths], actions, on, state)}


def play_pddl(data: Path, folder: Path) -> dict:
    """AgentBoard's four domains, every problem that is there."""
    puzzles = [(name, one) for name in PDDL_DOMAINS for one in pddl_tasks.read(data / "pddl" / name)]
    games = [one for _, one in puzzles]
    atoms = [atom for one in games for atom in one.grounded.facts]
    atoms += [(op.name, *op.arguments) for one in games for op in one.grounded.operators]
    said = [pddl_wording.sentence(atom) for atom in atoms]
    texts = [f" {text}" for text in said] + [text.capitalize() for text in said]
    tokenizer = vocabulary(folder, [*texts, pddl_wording.NO_EFFECT, pddl_wording.UNKNOWN, pddl_wording.SATISFIED])
    spelling = Spelling(tokenizer)
    actions = [pddl_wording.sentence((op.name, *op.arguments)) for one in games for op in one.grounded.operators]
    longest = max(len(spelling.encode(text)) for text in {*actions, "check valid actions"})
    env = pddl_tasks.fit(games, tokenizer, seen_tokens=512, action_tokens=longest + 1)
    played = Played(env, pddl_tasks.shared(tokenizer), pddl_tasks.games(env, games, tokenizer), len(games), spelling)
    ask = spelling.write(["check valid actions"] * ROWS, env.action_tokens)

    def listed(state) -> list[list[str]]:
        answers = spelling.read(played.step(played.shared, played.game, state, ask, np.ones(ROWS, bool))[1].seen)
        return [text.removeprefix(f"{pddl_wording.VALID} ").split(", ") for text in answers]

    actions, on, lists = played.drawn(listed, STEPS["pddl"], seed=0)
    figures, (outcome, _) = played.timed(actions, on)
    seen = played.told(outcome)

    def state(step: int, row: int) -> list:
        if step == 0:
            return [seen[0][row], 0.0, False, True, sorted(lists[0][row])]
        progress, won, valid = (x[step - 1, row] for x in (outcome.progress, outcome.success, outcome.understood))
        return [seen[step][row], round(float(progress), 5), bool(won), bool(valid), sorted(lists[step][row])]

    names = [
        {"kind": kind, "domain": str(data / "pddl" / kind / "domain.pddl"), "problem": one.name}
        for kind, one in puzzles
    ]
    measured = {"batch": figures, **memory(played.shared, played.game, played.begin)}
    return {"figures": measured, "walks": played.walks(names, actions, on, state)}


def babyai_games() -> tuple[list, list]:
    """Levels of minigrid, spread over all, and their [name, seed]."""
    names = babyai_levels.names()
    names = names[:: len(names) // GAMES["babyai"]][: GAMES["babyai"]]
    cases = [[name, seed] for seed, name in enumerate(names)]
    return [babyai_levels.read(*case) for case in cases], cases


class PlayedMacros(Played):
    """BabyAI in sentences: primitive actions are compared too."""

    kept = staticmethod(lambda state: state.play.steps)


def play_babyai(data: Path, folder: Path) -> dict:
    """BabyAI in AgentBoard's sentences."""
    del data
    levels, cases = babyai_games()
    texts = [text for group in babyai_wording.PIECES.values() for text in group]
    tokenizer = vocabulary(folder, texts)
    env, spelling = Macros(), Spelling(tokenizer)
    shared = babyai_wording.shared(tokenizer)
    played = PlayedMacros(env, shared, babyai_levels.stack(levels), len(levels), spelling)
    ask = spelling.write(["check available actions"] * ROWS, env.action_tokens)
    prefix = "You can take the following actions: "

    def listed(state) -> list[list[str]]:
        answers = played.step(played.shared, played.game, state, ask, np.ones(ROWS, bool))[1].seen
        return [text.removeprefix(prefix).split(", ") for text in spelling.read(answers)]

    actions, on, _ = played.drawn(listed, STEPS["babyai"], seed=0)
    figures, (outcome, steps) = played.timed(actions, on)
    seen = played.told(outcome)

    def state(step: int, row: int) -> list:
        return [seen[step][row], int(steps[step - 1, row]) if step else 0]

    measured = {"batch": figures, **memory(played.shared, played.game, played.begin)}
    measured["primitives_a_step"] = round(float(steps[-1].mean() / on.sum(0).mean()), 2)
    return {"figures": measured, "walks": played.walks(cases, actions, on, state)}


def play_babyai_primitives(data: Path, folder: Path) -> dict:
    """BabyAI in minigrid's actions; what is seen is minigrid's image. There is no text."""
    del data, folder
    levels, cases = babyai_games()
    game = rows_of(babyai_levels.stack(levels), np.arange(ROWS) % len(levels))
    begin = jax.jit(babyai.start)(game)
    rng, steps = np.random.default_rng(0), STEPS["babyai_primitives"]
    actions = rng.integers(0, 7, (steps, ROWS)).astype(np.int32)

    def play(_, game, state, given):
        def one(state, action):
            state, verdict = babyai.act(game, state, action, jnp.ones(action.shape, bool))
            return state, (babyai.image(babyai.see(game, state)), state.position, state.direction, verdict)

        return lax.scan(one, state, given)[1]

    figures, (image, position, direction, verdict) = timed(play, (), game, begin, actions, np.ones(actions.shape, bool))
    first = np.asarray(babyai.image(babyai.first_view(game, begin)))

    def state(step: int, row: int) -> list:
        if step == 0:
            where = [*np.asarray(begin.position)[row].tolist(), int(begin.direction[row])]
            return [zlib.crc32(first[row].tobytes()), *where, 0.0, False, False]
        i = step - 1
        reward = 1 - 0.9 * step / float(game.max_steps[row]) if verdict.success[i, row] else 0.0
        where = [*position[i, row].tolist(), int(direction[i, row])]
        ended = [bool(verdict.terminated[i, row]), bool(verdict.truncated[i, row])]
        return [zlib.crc32(np.ascontiguousarray(image[i, row]).tobytes()), *where, round(reward, 6), *ended]

    walks = [
        {"game": case, "actions": actions[:, row].tolist(), "states": [state(i, row) for i in range(steps + 1)]}
        for row, case in enumerate(cases)
    ]
    return {"figures": {"batch": figures, **memory((), game, begin)}, "walks": walks}


PARTS = {
    "alfworld": play_alfworld,
    "pddl": play_pddl,
    "babyai": play_babyai,
    "babyai_primitives": play_babyai_primitives,
}
