"""The flags --weights and --path of the commands that measure a real model, defined once."""

from experiments.paths import define_path

WEIGHTS = define_path("weights", None, "real weights, as policy.weights; without it those of the tiny default")
PATH = define_path("path", None, "HotpotQA records, as task.path; without it generated questions")
