"""What the peers' programs share: sizes, vocabulary and the line that they print. Imports nothing of this project."""

import json
import random
import resource
import statistics

VOCAB = 4096
SINGLE = dict(tasks=16, group=8, prompt=128, generated=64, micro_batch=32)
MULTI = dict(tasks=4, group=8, prompt=64, turns=12, observed=16, generated=16, micro_batch=8)
MODEL = dict(layers=4, width=256, intermediate=1024, heads=4, kv_heads=2, head_dim=64)
RATE = 1e-6


def tokenizer():
    """One word, one token: "w3" .. "w4095", and three special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # No w0 to w2 beside the special tokens: a special token also matches inside a longer word.
    names = ["<pad>", "<unk>", "<eos>"] + [f"w{i}" for i in range(3, VOCAB)]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


def words(count: int) -> str:
    """Random words."""
    return " ".join(f"w{random.randrange(10, VOCAB)}" for _ in range(count))


def report(peer: str, tokens: int, step: list[float], rollout: list[float], update: list[float], skip: int) -> None:
    """Prints one JSON line: medians without the first `skip` steps, in which programs compile and caches fill."""
    median = lambda seconds: round(statistics.median(seconds[skip:]), 4)  # noqa: E731
    record = dict(
        peer=peer,
        tokens_per_s=round(tokens / median(step), 1),
        step_s=median(step),
        rollout_s=median(rollout),
        update_s=median(update),
        steps=[round(seconds, 3) for seconds in step],
        peak_rss_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )
    print(json.dumps(record), flush=True)
