"""What the parts of the method are worth: arms of one study, trained side by side by one compiled program.

    python -m experiments.ablate --config=configs/ablations.py --workdir=runs/ablate

An arm is what it changes of the config below; edit the table. What an arm may change is data to the program: the fields
named in `agemem_jax/training/arms.py` (FIELDS), and "masked": tools that it may not call, though the prompt names them.
The first arm is the one that the others are compared with. Every arm has the config's seeds.
"""

from ml_collections import ConfigDict

from configs import tiny

LONG_TERM_ONLY = ("Summary_context", "Filter_context")
SHORT_TERM_ONLY = ("Add_memory", "Update_memory", "Delete_memory", "Retrieve_memory")
WHOLE = {"rl.stage1_updates": 0, "rl.stage2_updates": 0}  # every update is of a whole trajectory

ARMS = {
    "all": {},  # tools, terms and schedule of configs/tiny.py
    # Tools and training, as in the paper's ablation.
    "long-term without RL": {"masked": LONG_TERM_ONLY, "rl.updates": 0},
    "all without RL": {"rl.updates": 0},
    "long-term": {"masked": LONG_TERM_ONLY},
    "short-term": {"masked": SHORT_TERM_ONLY},
    # Rewards: answer and penalties alone (of which stages 1 and 2 by themselves have little to learn), and less each of
    # the terms that configs/tiny.py pays.
    "answer only": {"reward.context": 0.0, "reward.memory": 0.0, **WHOLE},
    **{
        f"without {term}": {f"reward.{term}": 0.0}
        for term in ("storage", "maintenance", "relevance", "preservation", "over_turns", "over_context")
    },
    "paper's terms": {"reward.terms": "paper", "rl.credit": "return_to_go"},
    # Schedules: whole trajectories from the first update on, and each stage trained for a third of the updates.
    "chained": {"rl.credit": "broadcast", **WHOLE},
    "sequential": {"rl.schedule": "sequential", "rl.credit": "broadcast", **WHOLE},
    # Each fourth of the updates of stage 1 or 2 alone is of all three: reading goes on.
    "whole ones between": {"rl.whole_every": 4},
    # Credit, where "all" has turn_to_go.
    **{credit: {"rl.credit": credit} for credit in ("broadcast", "per_stage", "return_to_go", "hindsight")},
}


def get_config() -> ConfigDict:
    c = tiny.get_config()
    c.name = "ablations"
    c.num_seeds = 3
    c.rl.updates = 201  # of which the sequential schedule makes three equal parts
    return c
