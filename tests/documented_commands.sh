#!/usr/bin/env bash
# The README's commands, each for a few updates, with the Python that is given: tests/documented_commands.sh .venv/bin/python
set -euo pipefail
python=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

try() { printf '\n$ python %s\n' "$*"; "$python" "$@"; }

try -m experiments.train --config=configs/tiny.py --workdir="$folder/tiny" \
    --config.rl.updates=3 --config.rl.stage1_updates=1 --config.rl.stage2_updates=1 --config.rl.tasks_per_update=4 \
    --config.train.eval_tasks=32 --config.train.eval_every=2 --config.num_seeds=1
test -s "$folder/tiny/summary.json" && test -s "$folder/tiny/report.html"
try -m experiments.time_to_score --run="$folder/tiny/seed_0" --score=0.01
try -m experiments.report --workdir="$folder/tiny" --picture="$folder/tiny.png"
test -s "$folder/tiny.png"
try -m experiments.trace --run="$folder/tiny" --method=agemem --op=add_memory
test -s "$folder/tiny/traces.html"
try -m experiments.ablate --config=configs/ablations.py --workdir="$folder/ablate" --arms="all,answer only" \
    --config.rl.updates=2 --config.rl.stage1_updates=1 --config.rl.stage2_updates=0 --config.rl.tasks_per_update=4 \
    --config.train.eval_tasks=32 --config.num_seeds=1
test -s "$folder/ablate/ablate.html"
try -m experiments.export --run="$folder/tiny/seed_0" --folder="$folder/released/tiny" --dtype=bfloat16
test -s "$folder/released/tiny/tokenizer.json"

try -m experiments.table --workdir="$folder/table" --configs=configs/hotpotqa.py:tiny --methods=no_memory --seeds=1 \
    --set=train.eval_tasks=32
try -m experiments.table --workdir="$folder/table" --only_show
test -s "$folder/table/table.json" && test -s "$folder/table/table.html"

try tests/small_inputs.py "$folder"
try -m experiments.train --config=configs/hotpotqa.py --workdir="$folder/hotpotqa" \
    --config.policy.weights="$folder/small.gguf" --config.task.path="$folder/hotpot.json" \
    --config.rl.updates=1 --config.rl.group_size=2 --config.rl.micro_batch=2 --config.train.eval_tasks=2
test -s "$folder/hotpotqa/report.html"
try -m experiments.export --run="$folder/hotpotqa/seed_0" --folder="$folder/released/hotpotqa"
test -s "$folder/released/hotpotqa/chat_template.jinja"

try -m experiments.prepare_data --folder="$folder/data" --train="$folder/hotpot.json"
try -m experiments.prepare_data --folder="$folder/data" --runs="$folder/tiny"
test -s "$folder/data/hotpot_qa/1.0.0/features.json" && test -s "$folder/data/trajectories/1.0.0/features.json"

try -m experiments.warm_start --config=configs/tiny.py --export="$folder/warm" \
    --config.warm.lessons=3 --config.warm.dealings=2 --config.warm.steps=4 --config.warm.batch=8 --config.warm.warmup_steps=1
test -s "$folder/warm/model.safetensors"

small="--config.task.path=$folder/hotpot.json --config.context.limit=2300 --config.context.capacity=1664"
small="$small --config.policy.lora_rank=8 --config.rollout.action_tokens=160 --config.task.message_tokens=96"
try -m experiments.warm_start --config=configs/smollm2.py --export="$folder/warm_adapters" $small \
    --config.policy.weights="$folder/small.gguf" --config.warm.steps=2 --config.warm.warmup_steps=1 --config.warm.batch=4
test -s "$folder/warm_adapters/tokenizer.json"

try -m experiments.train --config=configs/pddl.py:tiny --workdir="$folder/pddl" --config.task.train_size=16 \
    --config.task.validation_size=4 --config.task.test_size=8 "--config.task.parts=('gripper',)" --config.rl.updates=1 \
    --config.rl.tasks_per_update=2 --config.rl.group_size=4 --config.train.eval_tasks=8
test -s "$folder/pddl/report.html"
try -m experiments.ceilings --config=configs/pddl.py:tiny --tasks=8 --config.task.train_size=16 \
    --config.task.test_size=8 --config.train.eval_tasks=8
