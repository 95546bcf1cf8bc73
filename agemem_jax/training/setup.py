"""Everything that a run needs, built from its config once: tokenizer, tasks, device tables, policy, programs."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from agemem_jax import benchmarks, sharding
from agemem_jax.benchmarks import Benchmark
from agemem_jax.config import ConfigError, check_mesh, check_prompt, check_turns, derive, difference, refuse, validate
from agemem_jax.data.batches import TaskSource
from agemem_jax.data.prompts import build_pieces
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.envs import names
from agemem_jax.envs.base import Environment
from agemem_jax.envs.judge import Judge
from agemem_jax.errors import InputError
from agemem_jax.memory import bm25, encoder, equality
from agemem_jax.methods.base import RoleTables, System
from agemem_jax.methods.tables import build_tables, call_tokens, check_sizes, system_of
from agemem_jax.models import qwen, weights
from agemem_jax.models.lora import Lora
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.rollout.reader import Reader, first_layers, needed
from agemem_jax.rollout.rows import RolloutSpec, World
from agemem_jax.sharding import Layout
from agemem_jax.tools import grammar as grammar_lib
from agemem_jax.tools.layout import Language
from agemem_jax.training import identity as identities
from agemem_jax.training.distributed import agree
from agemem_jax.training.identity import Identity
from agemem_jax.training.learn import LearnSpec
from agemem_jax.training.programs import ProgramSpec, compile_programs
from agemem_jax.training.state import init_adapters, make_optimizer, param_shardings
from agemem_jax.training.systems import compile_system
from agemem_jax.types import Op, Pieces

STORE_TOOLS = ("Add_memory", "Update_memory", "Delete_memory")
COUNTED_RECORDS = 2000  # training records whose messages give the encoder its document frequencies
ENCODER_SEED = 0


@dataclass(frozen=True)
class Run:
    """What the training loop works with."""

    config: ConfigDict
    mesh: Mesh
    tokenizer: Tokenizer
    source: TaskSource
    world: World
    model: ModelConfig
    start: Callable[[], dict]  # makes what is trained, as it begins: the policy, or its adapters; new arrays each time
    frozen: dict  # what is not: nothing, `reference_params` (rl.kl_coef), or what the adapters are beside
    optimizer: object
    spec: ProgramSpec
    programs: dict[int, Callable]
    roomy: dict[int, Callable]  # the same, with rows that hold all that is told (roomy_config)
    readings: Callable[[str], "Reading"]  # how a memory system (methods.tables.SYSTEMS) reads
    systems: Callable[[str, bool], dict[int, Callable]]  # of what has its own (evaluate.METHODS), and whether it learns
    identity: Identity  # of what was read to make all this


def build(config: ConfigDict, like: Run | None = None, learns: bool = True) -> Run:
    """Checks the config, then builds the run. Nothing compiles before the checks are over.

    like: a run of the same config but for its seed: the programs are its own, compiled once for both.
    learns: False of a run that makes no update: its programs compile faster, and give the same rows and traces.
    """
    validate(config)
    if like and difference(config, like.config) not in ([], ["seed"]):
        raise ValueError(f"programs of another config: {difference(config, like.config)} differ")
    mesh = run_mesh(config)
    check_attention(config, mesh)
    tokenizer = Tokenizer.load(tokenizer_path(config.policy))
    pieces = build_pieces(tokenizer, config)
    described = architecture(config.policy, tokenizer.vocab_size)
    model = fitted(config, described, tokenizer.vocab_size, pieces)
    check_policy_mesh(config, model, mesh)
    benchmark = benchmarks.load(config, tokenizer)
    grammar = grammar_lib.build_grammar(config.tools, tokenizer, spoken(config, benchmark))
    check_budget(config, grammar)
    check_lengths(config, pieces, grammar)
    source = TaskSource(config, tokenizer, benchmark.tasks)
    counts = document_counts(source, tokenizer.vocab_size)
    identity = {"weights": agree(lambda: identities.of_weights(config.policy.weights))}
    if config.store.encoder == "model":
        identity[identities.ENCODER] = agree(lambda: identities.of_weights(config.store.encoder_weights))
    identity |= identities.identity_of(config, tokenizer, source, pieces, grammar, counts)
    embeddings = lambda: token_embeddings(config, model)  # noqa: E731
    world = build_world(config, tokenizer, counts, pieces, grammar, embeddings, benchmark.shared)
    reader = make_reader(config, model, tokenizer, mesh)
    spec = program_spec(config, world, mesh, reader, benchmark.env)
    wide = roomy_config(config, pieces, described.longest_context)
    roomy_spec = program_spec(wide, world, mesh, reader, benchmark.env)
    table_world, world = world, sharding.put(world, sharding.replicated(mesh))
    optimizer = make_optimizer(config.optim)
    judge = host_judge(config, source, tokenizer) if config.reward.task_metric == "judge" else None
    if like:
        programs, roomy, systems, readings = like.programs, like.roomy, like.systems, like.readings
    else:
        settings = model, optimizer, config.rl, config.reward, judge
        programs = roomy = compile_programs(spec, *settings, learns=learns)
        if roomy_spec != spec:  # compiled where a method needs them
            roomy = compile_programs(roomy_spec, *settings, learns=learns and config.train.baselines)
        spec_of = functools.partial(program_spec, world=table_world, mesh=mesh, reader=reader, env=benchmark.env)
        parts = dict(config=config, wide=wide, tokenizer=tokenizer, pieces=pieces, spec_of=spec_of)
        readings = functools.cache(functools.partial(reading_of, **parts, reach=described.longest_context))
        systems = functools.cache(
            functools.partial(system_programs, **parts, readings=readings, settings=settings, roomy=roomy)
        )
    # What is trained is not made before a run begins: one that goes on from a checkpoint needs none.
    start = functools.partial(starting_params, config, model, mesh)
    frozen = {}
    if model.lora:
        frozen, start = start(), functools.partial(init_adapters, model, mesh, config.seed)
    elif config.rl.kl_coef:
        policy = start()
        frozen = reference_params(config, policy)
        if frozen is policy:
            start = functools.partial(jax.tree.map, jnp.array, frozen)
    if reader:
        world = world.replace(reader=reader_params(config, reader, model, mesh, frozen))
    return Run(
        config, mesh, tokenizer, source, world, model, start, frozen, optimizer, spec, programs, roomy,
        readings, systems, identity,
    )  # fmt: skip


class Reading(NamedTuple):
    """A memory system, its tables on the host, and the sizes of the rows that it reads for."""

    system: System
    tables: RoleTables
    spec: ProgramSpec


def reading_of(
    name: str,
    config: ConfigDict,
    wide: ConfigDict,
    tokenizer: Tokenizer,
    pieces: Pieces,
    spec_of: Callable[[ConfigDict], ProgramSpec],
    reach: int | None,
) -> Reading:
    """The reading of a system; arguments are those of `system_programs`. Raises ConfigError as `check_sizes`.

    reach: positions that the model was made for.
    """
    system = system_of(config, name)
    if name == "memagent":  # its one text is an entry, and is shown whatever it says
        wide = wide.copy_and_resolve_references()
        wide.store.update({"entry_tokens": config.methods.memory_tokens, "min_score": -1.0})
    spec, tables = spec_of(wide), build_tables(system, config, tokenizer, pieces)
    tokens = call_tokens(system, config, tables, spec.rollout)
    check_sizes(config, tables, tokens, reach)
    if tokens > spec.rollout.capacity:  # its limit is kept by rule
        wide = wide.copy_and_resolve_references()
        wide.context.capacity = tokens
        spec = spec_of(wide)
    return Reading(system, tables, spec)


def system_programs(
    name: str,
    learns: bool,
    config: ConfigDict,
    wide: ConfigDict,
    tokenizer: Tokenizer,
    pieces: Pieces,
    spec_of: Callable[[ConfigDict], ProgramSpec],
    readings: Callable[[str], Reading],
    settings: tuple,
    roomy: dict[int, Callable],
) -> dict[int, Callable]:
    """The stage programs of a method that has its own (evaluate.Method.system); they compile on first use.

    Args:
      wide, roomy: the config of rows that hold all that is told, and the programs of such rows.
      spec_of: the sizes that follow from a config.
      settings: of compile_programs.

    Raises ConfigError if a memory system's prompts or answers do not fit the model.
    """
    compiled = lambda spec: compile_programs(spec, *settings, learns=learns)  # noqa: E731
    put = lambda tree: sharding.put(tree, sharding.replicated(spec_of(wide).rollout.layout.mesh))  # noqa: E731
    if name == "bm25":
        words = put(bm25.word_table(tokenizer.token_bytes()))
        ranked = compiled(with_rollout(spec_of(wide), by_words=True))[3]
        return roomy | {3: in_world(ranked, lambda world: world.replace(words=words))}
    if name == "rag":
        told = config.copy_and_resolve_references()
        told.tools.enabled = tuple(tool for tool in told.tools.enabled if tool in STORE_TOOLS)
        own = build_pieces(tokenizer, told)
        spec = with_rollout(
            spec_of(config), always_retrieves=True, summary_by_policy=False, prefix_tokens=int(own.prefix.length.sum())
        )
        programs = compiled(spec)
        own = put(own)
        return {stage: in_world(programs[stage], lambda world: world.replace(pieces=own)) for stage in programs}
    system, tables, spec = readings(name)
    if spec != spec_of(wide):
        roomy = compile_programs(spec, *settings, learns=False)
    model, optimizer, *_ = settings
    return compile_system(system, tables, spec.rollout, model, optimizer, config.methods.answer_tokens, roomy[3])


def with_rollout(spec: ProgramSpec, **changes) -> ProgramSpec:
    """The spec with changes of its rollout."""
    return dataclasses.replace(spec, rollout=dataclasses.replace(spec.rollout, **changes))


def in_world(program: Callable, change: Callable[[World], World]) -> Callable:
    """A stage program that is played in a changed world."""

    def played(state, frozen, rows, task, world: World, control):
        return program(state, frozen, rows, task, change(world), control)

    return played


def spoken(config: ConfigDict, benchmark: Benchmark) -> Language:
    """The language of task actions that `tools.actions` asks for. Raises ConfigError if the benchmark has none."""
    if config.tools.actions == "language" and not benchmark.language:
        refuse("tools.actions", "language", f"{config.task.benchmark} has no language of actions; set it to 'free'")
    return benchmark.language if config.tools.actions == "language" else ()


def tokenizer_path(p: ConfigDict) -> str:
    """Where the tokenizer is: at `policy.tokenizer`, or in the GGUF file or the folder of `policy.weights`.

    Raises ConfigError if neither is given, InputError as `weights.find`.
    """
    if p.tokenizer:
        return p.tokenizer
    if not p.weights:
        refuse("policy.tokenizer", "", "a policy that begins from nothing (policy.weights = '') needs the path of one")
    file = weights.find(p.weights)
    return str(file if file.suffix == ".gguf" else file.parent)


def fitted(config: ConfigDict, model: ModelConfig, vocab_size: int, pieces: Pieces) -> ModelConfig:
    """The one check across config, tokenizer, weights and prompt, before any of them is read at length.

    Args:
      model: of `architecture`, which has found that weights and their own config belong together.
      vocab_size: the tokenizer's; a larger embedding is padded, as many are.

    Returns `model`, where it is made here with the positions that its rows reach as `max_positions`. Raises ConfigError
    naming what does not go with what.
    """
    p, prompt_tokens = config.policy, int(pieces.prefix.length.sum())
    check_prompt(config, prompt_tokens)
    check_vocabulary(p, vocab_size, model.vocab_size)
    longest, reach = prompt_tokens + config.context.capacity, model.longest_context
    if reach is not None and longest > reach:
        refuse(
            "context.capacity", config.context.capacity,
            f"with the prompt's {prompt_tokens} tokens a row reaches {longest} positions, and policy.weights = "
            f"{p.weights!r} was made for {reach}; lower context.limit and context.capacity (to {reach - prompt_tokens} "
            "at most), or scale its positions by a rope_scaling in its config.json",
        )  # fmt: skip
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    other = {"q_proj": heads, "o_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    for name in model.lora.targets if model.lora else ():
        smaller = min(model.hidden_size, other.get(name, model.intermediate_size))
        if model.lora.rank > smaller:
            refuse("policy.lora_rank", model.lora.rank, f"above {name}'s smaller side, which is {smaller}; lower it")
    return model if reach is not None else dataclasses.replace(model, max_positions=longest)


def check_vocabulary(p: ConfigDict, vocab_size: int, embeddings: int) -> None:
    """Raises ConfigError if the tokenizer has more tokens than the policy of `config.policy` has embeddings."""
    if vocab_size > embeddings:
        refuse(
            "policy.tokenizer", p.tokenizer or p.weights,
            f"has {vocab_size} tokens, and the policy embeddings of {embeddings}"
            f"{f' (policy.weights = {p.weights!r})' if p.weights else ''}; give the tokenizer that the model came with",
        )  # fmt: skip


def run_mesh(config: ConfigDict, devices: list | None = None) -> Mesh:
    """The mesh of `config.mesh` on all devices, or on those given. Raises ConfigError if it does not fit them."""
    try:
        return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_attention(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if the devices do not have the attention that is asked for (a CPU interprets TPU kernels)."""
    platform, wanted = mesh.devices.flat[0].platform, config.policy.attention
    if (wanted == "cudnn" and platform != "gpu") or (wanted == "splash" and platform not in ("tpu", "cpu")):
        refuse("policy.attention", wanted, f"does not run on {platform} devices; 'xla' does")


def check_policy_mesh(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> None:
    """Raises ConfigError if the policy or the rollouts cannot be cut evenly over the mesh."""
    sizes = {name: getattr(model, name) for name in ("hidden_size", "num_heads", "intermediate_size", "vocab_size")}
    check_mesh(config, dict(mesh.shape), model.num_kv_heads, sizes)


def make_reader(config: ConfigDict, model: ModelConfig, tokenizer: Tokenizer, mesh: Mesh) -> Reader | None:
    """The decoder that is the store's encoder, if `store.encoder` asks for one; no weights are read.

    model: the policy. Raises ConfigError for a layer that it lacks, or a vocabulary that is not the policy's.
    """
    store = config.store
    # Texts are short, and prompts no part of them: the plain attention serves them on every device.
    plain = dict(lora=None, attention="xla", query_block=0)
    if store.encoder == "policy_hidden":
        if store.encoder_layer > model.num_layers:
            refuse(
                "store.encoder_layer", store.encoder_layer,
                f"the policy has {model.num_layers} layers; give at most so many, or 0 for all of them",
            )  # fmt: skip
        return Reader(
            dataclasses.replace(model, layout=Layout(mesh, "rollout"), **plain),
            layers=store.encoder_layer or model.num_layers,
            pooling=store.encoder_pooling,
            shares_frozen=bool(model.lora or config.rl.kl_coef),
        )
    if store.encoder != "model":
        return None
    dtype = config.policy.dtype
    theirs = weights.read_config(store.encoder_weights, dtype=dtype, param_dtype=reference_dtype(config))
    opening, ending = same_vocabulary(store.encoder_weights, tokenizer, theirs.vocab_size)
    return Reader(
        dataclasses.replace(theirs, layout=Layout(mesh, "replicated"), **plain),
        layers=theirs.num_layers,
        pooling="last",
        opening=opening,
        instruction=tuple(tokenizer.encode(store.encoder_instruction)) if store.encoder_instruction else (),
        ending=ending,
    )


def same_vocabulary(path: str, tokenizer: Tokenizer, embeddings: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that an embedding model wants before and after every text, by its own tokenizer.

    Args:
      path: the model's weights, with its tokenizer.
      tokenizer: the policy's, by which all texts are tokens.
      embeddings: tokens that the model has embeddings of.

    Raises ConfigError if a token of the policy's means something else to it, or nothing.
    """
    field, remedy = "store.encoder_weights", "give an embedding model with the policy's vocabulary (Qwen3-Embedding "
    remedy += "with Qwen3), or set store.encoder = 'policy_hidden' or 'lexical'"
    file = weights.find(path)
    try:
        theirs = Tokenizer.load(str(file if file.suffix == ".gguf" else file.parent))
    except InputError as error:
        refuse(field, path, f"its tokenizer cannot be compared with the policy's: {error}; {remedy}")
    ours, other = named_pieces(tokenizer), named_pieces(theirs)
    for i, piece in enumerate(ours):
        if piece is not None and (i >= min(len(other), embeddings) or other[i] != piece):
            found = f"{other[i]!r}" if i < len(other) else "nothing"
            what = f"has another vocabulary: token {i} is {piece!r} to the policy and {found} to it"
            refuse(field, path, f"{what}; {remedy}")
    return theirs.around


def named_pieces(tokenizer: Tokenizer) -> list[bytes | None]:
    """What each token is: its text, or a control token's name; None for places that are not used."""
    names = {i: name.encode() for name, i in tokenizer.markers.items()}
    return [names.get(i, piece) for i, piece in enumerate(tokenizer.pieces)]


def reader_params(config: ConfigDict, reader: Reader, model: ModelConfig, mesh: Mesh, frozen: dict) -> dict:
    """The parameters of the store's encoder: the run's frozen ones, or a copy of the policy's first layers as training
    begins, stored as the policy is; an embedding model's are whole on every device.
    """
    if reader.shares_frozen:
        return frozen
    if config.store.encoder == "policy_hidden":
        where = needed(param_shardings(model, mesh))
        cut = jax.jit(functools.partial(first_layers, reader=reader), out_shardings=where)
        return cut(reference_params(config, starting_params(config, model, mesh)))
    where = sharding.param_shardings(qwen.logical_axes(reader.model), reader.model.layout)
    path, (dtype, param_dtype) = config.store.encoder_weights, (reader.model.dtype, reader.model.param_dtype)
    return needed(weights.load(path, dtype=dtype, param_dtype=param_dtype, shardings=where)[1])


def program_spec(
    config: ConfigDict, world: World, mesh: Mesh, reader: Reader | None, env: Environment
) -> ProgramSpec:
    """Static settings of the stage programs."""
    rollout = rollout_spec(config, world, Layout(mesh, "rollout"), reader, env)
    step = -(-rollout.capacity // config.rl.widths)
    learn = LearnSpec(
        micro_batch=derive(config).micro_batch,
        widths=tuple(min(step * (i + 1), rollout.capacity) for i in range(config.rl.widths)),
        temperature=config.rollout.temperature,
        layout=Layout(mesh, f"update_{config.mesh.learner}"),
    )
    return ProgramSpec(rollout=rollout, learn=learn)


def roomy_config(config: ConfigDict, pieces: Pieces, reach: int | None) -> ConfigDict:
    """The config of rows that hold all that is told, in the context and in the store.

    Args:
      reach: positions that the model was made for; a context ends there, with a warning.
    """
    task, room = config.task, config.copy_and_resolve_references()
    messages = task.facts + task.distractors
    marks = int(pieces.user_open.length + pieces.close.length)
    turn = int(pieces.assistant_open.length + pieces.close.length) + config.rollout.action_tokens
    acting = (config.rollout.stage3_turns - 1) * (turn + marks + task.seen_tokens) + task.seen_tokens
    acting = acting if task.seen_tokens else 0  # a question is answered in one turn
    need = max((messages + 1) * (task.message_tokens + marks) + turn + acting, config.context.capacity)
    most = need if reach is None else min(need, reach - int(pieces.prefix.length.sum()))
    if most < need:
        warnings.warn(
            f"full_context: all that is told can take {need} tokens; a context ends at {most}, since the model was "
            f"made for {reach} positions",
            stacklevel=3,
        )
    turns = 2 * config.rollout.stage3_turns if task.seen_tokens else 2
    room.context.update({"capacity": most, "messages": max(config.context.messages, messages + 2 + turns)})
    room.store.entries = max(config.store.entries, messages)
    room.store.entry_tokens = max(config.store.entry_tokens, task.message_tokens)
    return room


def check_budget(config: ConfigDict, grammar) -> None:
    """Raises ConfigError if the shortest turn of some operation does not fit a turn's tokens."""
    need = max(*grammar.shortest, int(grammar.need[grammar.start_act].min()) if grammar.constrained else 0)
    if not need <= config.rollout.action_tokens <= grammar_lib.MAX_BUDGET:
        refuse(
            "rollout.action_tokens", config.rollout.action_tokens,
            f"must lie between {need}, the longest tool's turn with empty strings or, if more, tools.body_tokens after "
            f"an empty think block, and {grammar_lib.MAX_BUDGET}",
        )  # fmt: skip


def check_lengths(config: ConfigDict, pieces: Pieces, grammar) -> None:
    """Raises ConfigError if the segments cannot hold the turns that are asked for (config.check_turns)."""
    size = lambda *texts: sum(int(text.length) for text in texts)  # noqa: E731
    p, ops = pieces, [n for op, n in enumerate(grammar.shortest) if n and op not in (Op.ACT, Op.WRITE_SUMMARY)]
    around = size(p.assistant_open, p.close)
    prompt = size(p.user_open, p.summary_prompt, p.close) + around
    check_turns(
        config,
        told=size(p.user_open, p.close) + config.task.message_tokens,
        around=around,
        summary=prompt + config.rollout.summary_tokens if derive(config).summaries else 0,
        shortest=min(ops, default=grammar.shortest[Op.ACT]),
    )


def starting_params(config: ConfigDict, model: ModelConfig, mesh: Mesh) -> dict:
    """The policy before training, stored over the mesh: read from `policy.weights`, or fresh. Without adapters."""
    p, plain = config.policy, dataclasses.replace(model, lora=None)
    where = param_shardings(plain, mesh)
    if p.weights:
        return weights.load(p.weights, dtype=p.dtype, param_dtype=p.param_dtype, shardings=where)[1]
    return jax.jit(qwen.init_params, static_argnums=0, out_shardings=where)(plain, jax.random.key(config.seed))


def reference_params(config: ConfigDict, params: dict) -> dict:
    """The KL reference: the policy's `params` as `reference_dtype` says."""
    dtype = reference_dtype(config)
    if dtype == config.policy.param_dtype:
        return params
    cast = lambda params: jax.tree.map(lambda x: x.astype(dtype), params)  # noqa: E731
    return jax.jit(cast, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params)


def reference_dtype(config: ConfigDict) -> str:
    """The smaller of parameters' and activations': whatever uses a parameter casts it to the activations' first."""
    return min(config.policy.param_dtype, config.policy.dtype, key=lambda name: jnp.dtype(name).itemsize)


def token_embeddings(config: ConfigDict, model: ModelConfig) -> np.ndarray:
    """Those of the policy before training, [V, hidden] on the host; its other parameters are not made."""
    p = config.policy
    if p.weights:
        return weights.load_token_embeddings(p.weights).astype(p.param_dtype)
    table = jax.jit(lambda key: qwen.init_params(model, key)["embed_tokens"]["embedding"])
    return np.asarray(table(jax.random.key(config.seed)))


def architecture(p: ConfigDict, vocab_size: int) -> ModelConfig:
    """The policy of `config.policy`, whose sizes come from `weights` if it names them; `vocab_size` is the tokenizer's.

    No weights are read.
    """
    adapters = Lora(p.lora_rank, p.lora_alpha / p.lora_rank, tuple(p.lora_targets)) if p.lora_rank else None
    if not p.weights:
        return dataclasses.replace(fresh_model(p, vocab_size), lora=adapters)
    model = weights.read_config(p.weights, dtype=p.dtype, param_dtype=p.param_dtype)
    return dataclasses.replace(model, **execution(p), lora=adapters)


def fresh_model(p: ConfigDict, vocab_size: int) -> ModelConfig:
    """The architecture that the sizes in `config.policy` describe; `vocab_size` is the tokenizer's."""
    if 0 < p.vocab_size < vocab_size:
        refuse("policy.vocab_size", p.vocab_size, f"smaller than the tokenizer's {vocab_size} tokens; 0 takes these")
    return ModelConfig(
        vocab_size=p.vocab_size or vocab_size,
        hidden_size=p.hidden_size,
        intermediate_size=p.intermediate_size,
        num_layers=p.num_layers,
        num_heads=p.num_heads,
        num_kv_heads=p.num_kv_heads,
        head_dim=p.head_dim,
        rope_theta=p.rope_theta,
        rms_norm_eps=p.rms_norm_eps,
        qkv_bias=p.qkv_bias,
        qk_norm=p.qk_norm,
        tie_word_embeddings=p.tie_word_embeddings,
        dtype=p.dtype,
        param_dtype=p.param_dtype,
        **execution(p),
    )


def execution(p: ConfigDict) -> dict:
    """The fields of a ModelConfig that say how it runs, not what it is."""
    return dict(remat=p.remat, scan_layers=p.scan_layers, attention=p.attention, query_block=p.query_block)


def build_world(
    config, tokenizer: Tokenizer, counts: np.ndarray, pieces: Pieces, grammar, embeddings: Callable[[], np.ndarray],
    env: Any,
) -> World:  # fmt: skip
    """The device tables. Token weights are idf over the training messages, 0 for what has no letter or digit.

    counts: of `document_counts`.
    embeddings: makes the policy's token embeddings [V, hidden], if the store's encoder is made of them.
    env: the environment's tables.
    """
    token_bytes = tokenizer.token_bytes()
    lexical = encoder.lexical_table(token_bytes, counts, config.store.embedding_size, ENCODER_SEED)
    if config.store.encoder == "policy":
        table = encoder.policy_table(embeddings()[: len(token_bytes)].astype(np.float32), counts)
    else:
        table = lexical
    weight = np.linalg.norm(lexical, axis=-1)
    world = World(
        grammar=grammar,
        pieces=pieces,
        encoder=table.astype(np.float32),
        equality=equality.equality_table(token_bytes),
        token_weight=weight.astype(np.float32),
        names=names.name_table(token_bytes),
        env=env,
    )
    return jax.tree.map(np.asarray, world)


def document_counts(source: TaskSource, vocab: int) -> np.ndarray:
    """In how many training messages each token occurs [V]."""
    counts = np.zeros((vocab,), np.int64)
    for index in range(min(source.num_train, COUNTED_RECORDS)):
        for text in source.staged(index).facts:
            counts[np.unique(source.encode(text))] += 1
    return counts


def rollout_spec(
    config: ConfigDict, world: World, layout: Layout, reader: Reader | None, env: Environment
) -> RolloutSpec:
    """Every static size of a rollout, in one place."""
    pieces = world.pieces
    width = lambda text: int(text.tokens.shape[-1])  # noqa: E731
    line = width(pieces.numbers) + width(pieces.id_mark) + config.store.entry_tokens + width(pieces.line_break)
    call = width(pieces.statuses) + width(pieces.numbers) + width(pieces.line_break) + config.tools.max_top_k * line
    c, t, r, sizes = config.context, config.tools, config.rollout, derive(config)
    return RolloutSpec(
        batch=sizes.rows,
        capacity=c.capacity,
        limit=c.limit,
        messages=c.messages,
        low_water=c.low_water,
        prefix_tokens=int(pieces.prefix.length.sum()),
        action_tokens=r.action_tokens,
        summary_tokens=r.summary_tokens,
        max_calls=world.grammar.max_calls,
        tag_slots=1 + t.max_tags,
        tag_tokens=config.store.tag_tokens,
        default_top_k=t.default_top_k,
        max_top_k=t.max_top_k,
        auto_top_k=config.task.auto_top_k,
        auto_min_score=config.task.auto_min_score,
        min_score=config.store.min_score,
        filter_threshold=c.filter_threshold,
        duplicates=config.store.duplicates,
        pin_query=c.pin_query,
        summary_by_policy=t.summary_by == "policy",
        pass_allowed=t.min_calls == 0,
        early_answer_ends=r.stage1_answer_ends,
        stage1_extra_turns=r.stage1_extra_turns,
        stage2_extra_turns=r.stage2_extra_turns,
        stage3_turns=r.stage3_turns,
        summary_slots=r.summary_slots,
        segments=c.max_segments,
        entries=config.store.entries,
        entry_tokens=config.store.entry_tokens,
        embedding_size=reader.size if reader else int(world.encoder.shape[1]),
        reader=reader,
        good_entry=min(config.reward.good_entry, 1 - 1e-6),  # a fact overlaps itself by 1, rounded
        shortest_turn=min(filter(None, world.grammar.shortest[: Op.PASS + 1])),
        chunk=min(r.prefill_chunk, c.capacity),
        few_rows=0 if layout.is_spread else r.prefill_rows,  # choosing rows across devices would move them
        columns=tuple(c.capacity * i // r.history_widths for i in range(1, r.history_widths)),
        decode_width=r.decode_width,
        trace_rows=min(config.train.traces, sizes.rows),
        # A summary finished in between adds a status of its own.
        result_tokens=(t.max_calls + 1) * call,
        rule_top_k=min(t.max_calls * t.max_top_k, config.store.entries),
        facts=config.task.facts,
        distractors=config.task.distractors,
        env=env,
        by_turn=config.rl.credit == "turn_to_go",
        layout=layout,
    )


def host_judge(config: ConfigDict, source: TaskSource, tokenizer: Tokenizer):
    """Scores answers through the endpoint `reward.judge`, for the callback of the stage-3 program.

    The endpoint is asked once. Raises InputError if it gives no verdict.
    """
    judge = Judge(config.reward.judge, config.reward.judge_model)
    judge.check()

    def score(index: np.ndarray, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        asked = [source.staged(int(i)) for i in index]
        rows = zip(np.asarray(tokens), np.asarray(length), strict=True)
        answers = [tokenizer.decode(row[:n].tolist()) for row, n in rows]
        return judge.score([one.query for one in asked], [one.answer for one in asked], answers)

    return score
