"""Exports the policy of a run as a released checkpoint, which transformers and vLLM load.

    python -m experiments.export --run=runs/tiny/seed_0 --folder=released/tiny --dtype=bfloat16

The folder holds config.json, generation_config.json, the weights, the tokenizer with a chat template that lays messages
out as in training, and a model card, README.md. The newest whole checkpoint is taken, whichever mesh wrote it; it is
spread over the devices at hand.
"""

import dataclasses
import json
import math
import sys
import warnings
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from agemem_jax import sharding
from agemem_jax.config import from_json, to_json, without_folders
from agemem_jax.data.prompts import build_pieces, system_message
from agemem_jax.data.tokenizer import Tokenizer
from agemem_jax.models import lora, weights
from agemem_jax.models.qwen import ModelConfig
from agemem_jax.training import identity as identities
from agemem_jax.training.identity import Identity
from agemem_jax.training.lock import hold
from agemem_jax.training.release import write_policy
from agemem_jax.training.setup import architecture, fitted, starting_params, tokenizer_path
from agemem_jax.training.summary import table
from experiments import cli, out, paths, shared_flags
from experiments.saved import newest, restore_params

RUN, FOLDER = shared_flags.run(), shared_flags.folder()
DTYPE = flags.DEFINE_enum("dtype", None, list(weights.SAFETENSORS_DTYPES), "of the weights; the run's if not given")
SHARD_BYTES = flags.DEFINE_integer("shard_bytes", weights.SHARD_BYTES, "largest weight file", lower_bound=1)

MOST_LOST = 0.1  # share of the adapters' change that may be rounded away unsaid

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [agemem, agent-memory, grpo]
---

# {name}

A policy that manages its own memory with six tools (ADD, UPDATE, DELETE and RETRIEVE on a long-term store, SUMMARY and
FILTER on its context), trained by the three-stage, step-wise GRPO of AgeMem
([arXiv 2601.01885](https://arxiv.org/abs/2601.01885)) with agemem_jax: {updates} updates, seed {seed}, started from
{start}.

| {kind} | |
|---|---|
{architecture}

## Load it

```python
from transformers import AutoModelForCausalLM, {loader}

tokenizer = {loader}.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
messages = [{{"role": "user", "content": "Ada Keller wrote Silver River"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**prompt, max_new_tokens={new_tokens}, do_sample=False)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :]))
```

`FOLDER` is where this file lies. In agemem_jax: `--config.policy.weights=FOLDER --config.policy.tokenizer={tokenizer}`.
The policy writes tool calls; the program around it must run them. {decoding}

The chat template lays messages out as in training, and puts the system message of training in where there is none. An
assistant message is what the policy wrote, its think block and calls included, or its calls are in `tool_calls`.
The results of a turn are the lines of one tool message. {serving}
{prompt}{results}
## The run

```json
{config}
```
"""
SERVING = {
    "hermes": """vLLM reads the calls with
`--enable-auto-tool-choice --tool-call-parser hermes`, without a reasoning parser: think blocks are text.""",
    "paper": """Servers have no parser for
these calls, one JSON array in a `<tool_call>` block: read them from the text.""",
}
DECODING = {
    True: "In training a grammar held decoding to their format.",
    False: "In training, turns that were not in their format had a penalty.",
}
PROMPT = """
## The system prompt it was trained with

```
{text}
```
"""
RESULTS = """
## Results

{tasks} test tasks that training never met, over the seeds {seeds} of the run (this checkpoint is of one); mean ± half a
95 % interval. agemem_norl: the starting policy with its tools; agemem: after training. The others only answer:
no_memory with what still fits the context, full_context with all in view, store_all with the entries most like the
question, of all messages, store_recent of as many as the agent's store has places for; _rl: after as much training.

```
{table}
```
"""


def main() -> None:
    folder = paths.folder_to_write("folder", FOLDER.value)
    figures = export(Path(RUN.value), folder, DTYPE.value, SHARD_BYTES.value)
    print(f"{figures['checkpoint']} -> {figures['folder']}: {figures['parameters']:,} parameters, {figures['dtype']}")
    out.write(figures)


def export(run: Path, folder: Path, dtype: str | None, shard_bytes: int) -> dict:
    """Writes the released checkpoint; returns what it is.

    Raises InputError if there is nothing to export, or if tokenizer, prompt or starting weights are not the run's own.
    """
    checkpoint = newest(run)
    config = from_json((checkpoint / "config.json").read_text())
    tokenizer = Tokenizer.load(tokenizer_path(config.policy))
    identity = read_again(checkpoint, config, tokenizer)
    model = architecture(config.policy, tokenizer.vocab_size)
    model = fitted(config, model, tokenizer.vocab_size, build_pieces(tokenizer, config))
    dtype = dtype or model.param_dtype
    mesh = sharding.make_mesh(1, math.gcd(jax.local_device_count(), model.hidden_size), 1, jax.local_devices())
    params = restore_params(checkpoint, model, mesh)
    if model.lora is not None:  # the checkpoint holds the adapters alone
        frozen = starting_params(config, model, mesh)
        lost = lora.rounded_away(params, frozen, model.lora, dtype)
        if lost > MOST_LOST:
            warnings.warn(
                f"--dtype={dtype} rounds {lost:.0%} of what the adapters learnt away; --dtype=float32 keeps it",
                stacklevel=2,
            )
        params = lora.merge(params, frozen, model.lora, dtype)
        model = dataclasses.replace(model, lora=None)
    with hold(folder, "--folder"):
        write_policy(folder, config, model, params, dtype, shard_bytes)
        described = card(config, model, tokenizer, checkpoint, run, dtype, loader(folder, tokenizer), identity)
        weights.write_text(folder / "README.md", described)
    return {
        "checkpoint": str(checkpoint),
        "folder": str(folder),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "dtype": dtype,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "files": sorted(file.name for file in folder.iterdir()),
    }


def read_again(checkpoint: Path, config: ConfigDict, tokenizer: Tokenizer) -> Identity:
    """The identity of what an export reads again. Raises InputError if it is not what the run read."""
    now = {
        "weights": identities.of_weights(config.policy.weights),  # its config gives the architecture, LoRA or not
        "tokenizer": identities.of_tokenizer(tokenizer),
        "prompt": identities.of_arrays(build_pieces(tokenizer, config)),
    }
    was = identities.read(checkpoint / identities.FILE)
    if was is None:
        print(identities.UNKNOWN.format(where=f"checkpoint {checkpoint}"), file=sys.stderr)
    else:
        remedy = "or take the version of agemem_jax that trained it"
        identities.check(f"checkpoint {checkpoint}", was, now, config, config, remedy)
    return now


def loader(folder: Path, tokenizer: Tokenizer) -> str:
    """The class of transformers that reads the exported tokenizer as it is.

    AutoTokenizer takes the architecture's own class for some (Qwen2's), which cuts texts by its own rules.
    """
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    said = "Ada Keller wrote Silver River" if tokenizer.is_small else "It's 1984: Ada Keller's \"Silver River\"..."
    messages = [{"role": "user", "content": said}]
    text = loaded.apply_chat_template(messages, tokenize=False)
    if loaded.apply_chat_template(messages, return_dict=True)["input_ids"] == tokenizer.encode_markup(text):
        return "AutoTokenizer"
    warnings.warn(
        f"{folder}: transformers' AutoTokenizer makes a {type(loaded).__name__} of this tokenizer, with other tokens; "
        "load it with PreTrainedTokenizerFast",
        stacklevel=2,
    )
    return "PreTrainedTokenizerFast"


def card(
    config: ConfigDict,
    model: ModelConfig,
    tokenizer: Tokenizer,
    checkpoint: Path,
    run: Path,
    dtype: str,
    loader: str,
    identity: Identity,
) -> str:
    """The model card, README.md, without folders of this machine; `loader` is the class that loads its tokenizer."""
    config = without_folders(config)
    described = weights.hf_config(model)
    fields = [name for name in described if name not in ("architectures", "torch_dtype")]
    rows = [*((name, described[name]) for name in fields), ("dtype of the weights", dtype)]
    prompt = system_message(tokenizer, config.tools)
    summary = run.parent / "summary.json"
    results = ""
    if summary.is_file():
        kept = json.loads(summary.read_text())
        seeds = ", ".join(map(str, kept["seeds"]))
        results = RESULTS.format(tasks=kept["test_tasks"], seeds=seeds, table=table(kept))
    return CARD.format(
        name=config.name,
        updates=int(checkpoint.name),
        seed=config.seed,
        start=started_from(config, identity),
        kind=described["architectures"][0],
        architecture="\n".join(f"| {name} | {value} |" for name, value in rows if value is not None),
        loader=loader,
        new_tokens=config.rollout.action_tokens,
        tokenizer="FOLDER/tokenizer.model" if tokenizer.is_small else "FOLDER",
        decoding=DECODING[config.tools.constrained],
        serving=SERVING[config.tools.format],
        prompt=PROMPT.format(text=prompt) if prompt else "",
        results=results,
        config=to_json(config),
    )


def started_from(config: ConfigDict, identity: Identity) -> str:
    """What the run began with, by name and content."""
    if not config.policy.weights:
        return identities.FRESH
    return f"`{config.policy.weights}` (fingerprint {identities.short(identity)['weights']})"


if __name__ == "__main__":
    cli.run(main, takes_config=False)
