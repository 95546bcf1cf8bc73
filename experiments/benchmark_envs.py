"""Measures the engines of the benchmarks beside the real ones, on this machine's CPU, in one sitting:

    python -m experiments.benchmark_envs --data=DIR --out=FILE [--agentboard=CHECKOUT] [--python=NAME=PYTHON ...]

DIR has alfworld/ and pddl/ with the published games. Each engine and each real one plays the same random walks, in a
process of its own, one after another; leave the machine alone meanwhile. A real engine runs in the Python that is
named for its benchmark: alfworld (with alfworld 0.4.2 and textworld 1.7), pddl (gym 0.26, nltk and numpy 1), babyai
(minigrid 3.2), scienceworld (scienceworld 1.2.3, and Java 17). pddl and babyai also need a checkout of AgentBoard.
What is not named is not measured, and the table says so.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from agemem_jax.benchmarks.babyai.levels import minigrid
from agemem_jax.errors import InputError
from experiments import cli, out
from experiments.benchmark import bridge, envs
from experiments.paths import define_path

DATA = define_path("data", None, "folder with alfworld/ and pddl/, the published games", required=True)
AGENTBOARD = define_path("agentboard", None, "checkout of AgentBoard, for pddl and babyai")
PYTHON = flags.DEFINE_multi_string("python", [], "NAME=PYTHON that has a benchmark's real engine; may be repeated")
PART = flags.DEFINE_enum(
    "engine", None, [*envs.PARTS, "scienceworld"],
    "measure this part alone, in this process; scienceworld takes its walks from standard input",
)  # fmt: skip

SCRIPTS = Path(envs.__file__).parent / "peers"
# The real engine of each part: its name, the benchmark whose Python runs it, its script, whether it needs AgentBoard.
PEERS = {
    "alfworld": ("TextWorld", "alfworld", "textworld_alfworld.py", False),
    "pddl": ("AgentBoard's pddlgym", "pddl", "agentboard_pddl.py", True),
    "babyai": ("AgentBoard's BabyAI", "babyai", "agentboard_babyai.py", True),
    "babyai_primitives": ("minigrid", "babyai", "minigrid_babyai.py", False),
    "scienceworld": ("the raw JVM", "scienceworld", "scienceworld_raw.py", False),
}
GOALS = {"alfworld": 2000, "pddl": 500, "babyai": 200, "babyai_primitives": 50}  # times as fast, in the largest batch
MOST_ADDED = 0.05  # by the bridge to ScienceWorld's own time
LARGEST = str(max(envs.BATCHES))
# What others have published of training on ALFWorld, whole iterations with the policy. Not measured here.
PUBLISHED = {
    "verl-agent (GiGPO)": {
        "what": "ALFWorld, Qwen2.5-1.5B-Instruct, 16 tasks x 8 rollouts x 50 steps",
        "cost": f"362.8 s an iteration, at most {16 * 8 * 50 / 362.8:.1f} environment steps/s",
        "source": "arXiv 2505.10978v3",
    },
    "Trinity-RFT": {
        "what": "ALFWorld, Qwen2.5-3B after SFT, 32 tasks x 8 rollouts, 30 steps",
        "cost": "2.53 h to a training reward of 0.8",
        "source": "Trinity-RFT's own report",
    },
}


def main() -> None:
    data, checkout = Path(DATA.value), AGENTBOARD.value
    pythons = named_pythons(PYTHON.value)
    if PART.value:
        if PART.value == "scienceworld" and (reason := missing("scienceworld", pythons, checkout)):
            raise InputError(f"--engine=scienceworld: {reason}; it measures the bridge to the engine there")
        with tempfile.TemporaryDirectory() as folder:
            if PART.value == "scienceworld":
                done = bridge.play(pythons["scienceworld"], json.load(sys.stdin), Path(folder))
            else:
                done = envs.PARTS[PART.value](data, Path(folder))
        print(json.dumps(done), flush=True)
        return
    for name in ("alfworld", "pddl"):
        if not (data / name).is_dir():
            raise InputError(f"--data={data}: there is no folder {name} in it; give the one with alfworld/ and pddl/")
    if checkout and not (Path(checkout) / "agentboard" / "environment").is_dir():
        raise InputError(f"--agentboard={checkout}: there is no agentboard/environment in it; give a checkout")
    minigrid()  # makes BabyAI's levels
    reasons = {part: reason for part in PEERS if (reason := missing(part, pythons, checkout))}
    try:
        ours, theirs, walks = {}, {}, {}
        for part in envs.PARTS:
            done = run_part(part)
            ours[part], walks[part] = done["figures"], done["walks"]
            if part not in reasons:
                theirs[part] = run_peer(part, pythons, checkout, walks[part])
        if "scienceworld" not in reasons:
            ours["scienceworld"], theirs["scienceworld"], walks["scienceworld"] = run_scienceworld(pythons)
    except RuntimeError as error:  # of another program, with the end of what it printed
        sys.exit(f"error: {error}")
    figures = summarise(ours, theirs, walks, reasons)
    print(table(figures))
    out.write(figures)


def named_pythons(given: list[str]) -> dict[str, str]:
    """The Python of each benchmark that --python names. Raises InputError for what names none."""
    known = sorted({benchmark for _, benchmark, _, _ in PEERS.values()})
    pythons = {}
    for text in given:
        name, mark, path = text.partition("=")
        if not mark or name not in known:
            raise InputError(f"--python={text}: give NAME=PYTHON, where NAME is one of {', '.join(known)}")
        path = os.path.expanduser(path)
        if not os.access(path, os.X_OK) or os.path.isdir(path):
            raise InputError(f"--python={text}: {path} is no program; give the Python that has the engine")
        pythons[name] = path
    return pythons


def missing(part: str, pythons: dict[str, str], checkout: str | None) -> str | None:
    """Why the real engine of a part cannot run: the flags that are not given."""
    _, benchmark, _, needs_checkout = PEERS[part]
    lacks = [f"--python={benchmark}=PYTHON"] * (benchmark not in pythons)
    lacks += ["--agentboard=CHECKOUT"] * (needs_checkout and not checkout)
    return f"no {' and no '.join(lacks)}" if lacks else None


def run_part(part: str, given: list[dict] | None = None, flags_: tuple[str, ...] = ()) -> dict:
    """Measures one of our own parts."""
    command = [sys.executable, "-m", "experiments.benchmark_envs", f"--data={DATA.value}", f"--engine={part}", *flags_]
    return run(f"ours: {part}", command, given)


def run_peer(part: str, pythons: dict[str, str], checkout: str | None, walks: list[dict]) -> dict:
    """Plays the walks in the real engine of a part."""
    name, benchmark, script, needs_checkout = PEERS[part]
    command = [pythons[benchmark], str(SCRIPTS / script), *([checkout] if needs_checkout else [])]
    return run(f"{name}: {part}", command, [{field: walk[field] for field in ("game", "actions")} for walk in walks])


def run_scienceworld(pythons: dict[str, str]) -> tuple[dict, dict, list[dict]]:
    """Draws walks in the raw engine, plays them in a fresh one, and through the bridge in another fresh one."""
    name, benchmark, script, _ = PEERS["scienceworld"]
    python = pythons[benchmark]
    raw = lambda what: [python, str(SCRIPTS / script), what, *bridge.engine()]  # noqa: E731
    games = [{"game": game, "steps": bridge.STEPS} for game in bridge.games()]
    drawn = run(f"{name}: random actions", raw("draw"), games)["actions"]
    walks = [{"game": one["game"], "actions": actions} for one, actions in zip(games, drawn, strict=True)]
    theirs = run(f"{name}: scienceworld", raw("replay"), walks)
    told = [{**walk, "states": states} for walk, states in zip(walks, theirs["states"], strict=True)]
    done = run_part("scienceworld", told, (f"--python={benchmark}={python}",))
    return done["figures"], theirs, done["walks"]


def run(title: str, command: list[str], given: list[dict] | None) -> dict:
    """Runs a program to its end, with JSON on its input, and reads the JSON object in its last line."""
    print(f"{title} ...", end=" ", flush=True)
    settings = os.environ | {"JAX_PLATFORMS": "cpu"}
    settings.pop("JAX_COMPILATION_CACHE_DIR", None)  # compiling is measured
    done = subprocess.run(command, input=json.dumps(given or []), env=settings, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        print("failed", flush=True)
        raise RuntimeError(f"{title} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    print("done", flush=True)
    return json.loads(lines[-1])


def rate(theirs: dict, clock: str = "seconds") -> float:
    """Steps per second of a real engine: the median of its repetitions."""
    spent = sorted(theirs[clock])
    return round(theirs["steps"] / spent[len(spent) // 2], 2)


def comparable(part: str, action: str | None, state: list) -> list:
    """A state without what has no order: AgentBoard's lists of PDDL are in that of a Python set."""
    if part != "pddl" or action is None:
        return state
    seen, *rest = state
    if "check" in action.lower():
        return [sorted(seen.removeprefix("Valid actions are: ").split(", ")), *rest]
    return [sorted(seen.split(" ")) if "look around" in action.lower() else seen, *rest]


def identity(part: str, walks: list[dict], theirs: list[list]) -> dict:
    """How many states of the walks are those of the real engine."""
    same = compared = 0
    for walk, states in zip(walks, theirs, strict=True):
        actions = [None, *walk["actions"]]
        for action, one, other in zip(actions, walk["states"], states, strict=True):
            compared += 1
            same += comparable(part, action, one) == comparable(part, action, other)
    return {"compared": compared, "identical": same, "share": round(same / compared, 4)}


def summarise(ours: dict, theirs: dict, walks: dict, reasons: dict[str, str]) -> dict:
    """The ratios of the sitting, with every figure behind them; None where the real engine was not measured.

    ours: figures by part; theirs: what the real engines have printed; walks: ours, with their states.
    """
    rates = {part: rate(one) for part, one in theirs.items()}
    largest = {part: ours[part]["batch"][LARGEST] for part in GOALS}
    ratio = {part: round(largest[part]["steps_per_s"] / rates[part], 1) if part in rates else None for part in GOALS}
    of_cpu = {
        part: round(largest[part]["steps_per_cpu_s"] / rate(theirs[part], "cpu_seconds"), 1) if part in rates else None
        for part in GOALS
    }
    added = None
    if "scienceworld" in ours:
        added = {batch: one["bridge_adds"] for batch, one in ours["scienceworld"]["batch"].items()}
    return {
        "ratio_at_batch_1024": ratio,
        "ratio_per_cpu_second_at_batch_1024": of_cpu,
        "goals": GOALS,
        "scienceworld_bridge_adds": added,
        "scienceworld_bridge_adds_at_most": MOST_ADDED,
        "identical": {part: identity(part, walks[part], one["states"]) for part, one in theirs.items()},
        "ours": ours,
        "theirs": {
            part: {"engine": PEERS[part][0], "steps_per_s": rates[part]}
            | {field: one[field] for field in ("steps", "seconds", "cpu_seconds")}
            for part, one in theirs.items()
        },
        "not_measured": reasons,
        "published": PUBLISHED,
        "cpus": os.cpu_count(),
    }


def table(figures: dict) -> str:
    """All of it, as lines to read."""
    ours, theirs = figures["ours"], figures["theirs"]
    batches = "".join(f"{f'batch {batch}':>12}" for batch in envs.BATCHES)
    head = f"{'environment steps/s':20}{batches}{'real engine':>13}{'ratio':>9}{'goal':>7}{'identical':>16}"
    lines = [f"{head}  bytes a game"]
    for part, goal in GOALS.items():
        speeds = "".join(f"{ours[part]['batch'][str(batch)]['steps_per_s']:>12,.0f}" for batch in envs.BATCHES)
        memory = f"{ours[part]['bytes_a_game']:,} and {ours[part]['bytes_a_state']:,} in play"
        if part not in theirs:
            lines.append(f"{part:20}{speeds}  not measured ({figures['not_measured'][part]}); {memory}")
            continue
        same = figures["identical"][part]
        told = f"{same['identical']:,} of {same['compared']:,}"
        real, ratio = theirs[part]["steps_per_s"], figures["ratio_at_batch_1024"][part]
        lines.append(f"{part:20}{speeds}{real:>13,.1f}{ratio:>9,.0f}{goal:>7,}{told:>16}  {memory}")
    added = figures["scienceworld_bridge_adds"]
    if added is None:
        lines.append(f"{'scienceworld':20}not measured ({figures['not_measured']['scienceworld']})")
    else:
        same, most = figures["identical"]["scienceworld"], figures["scienceworld_bridge_adds_at_most"]
        shares = ", ".join(f"{share:.1%} with {batch} at a time" for batch, share in added.items())
        lines.append(
            f"{'scienceworld':20}the raw JVM {theirs['scienceworld']['steps_per_s']:,.1f} steps/s; the bridge adds "
            f"{shares} (goal {most:.0%} at most); {same['identical']:,} of {same['compared']:,} states identical"
        )
    lines += ["", "published, whole training iterations with the policy:"]
    for name, one in figures["published"].items():
        lines.append(f"  {name}: {one['cost']} ({one['what']}; {one['source']})")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, takes_config=False)
