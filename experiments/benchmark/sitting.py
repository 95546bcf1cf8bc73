"""What benchmarks of one sitting share: the flag that names the peers, their environments, and a program's run."""

import json
import os
import shutil
import subprocess
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import flags

from agemem_jax.errors import InputError

PEERS = flags.DEFINE_string("peers", "all", "what to compare with: all, none, or names with commas (trl,tunix)")
SCRIPTS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path.home() / ".cache" / "agemem_jax" / "peers"


def chosen_peers(text: str, known: Iterable[str]) -> list[str]:
    """The peers that --peers names. Raises InputError for an unknown one."""
    if text in ("all", "none"):
        return list(known) if text == "all" else []
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--peers={text}: {unknown[0]!r} is unknown; give all, none, or of {', '.join(known)}")
    return names


def environment(peer: str, packages: list[str]) -> Path:
    """The Python of a peer's environment, which is made if it is not there."""
    folder = ENVIRONMENTS / peer
    python = folder / "bin" / "python"
    if python.exists():
        return python
    print(f"making an environment for {peer} in {folder} (minutes, once)", flush=True)
    try:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    except BaseException as error:  # nothing half-made stays behind, whatever stopped it
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError):
            raise RuntimeError(f"cannot install {peer}; leave it out with --peers") from error
        raise
    return python


def run(title: str, command: list, folder: Path, told: Callable[[dict], str] = lambda figures: "done") -> dict:
    """Runs a program to its end and reads the JSON object in its last line, of which `told` is printed."""
    print(f"{title} ...", end=" ", flush=True)
    settings = os.environ | {"JAX_PLATFORMS": "cpu"}
    settings.pop("JAX_COMPILATION_CACHE_DIR", None)  # compiling is measured, and peers have other versions of jax
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        print("failed", flush=True)
        raise RuntimeError(f"{title} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    figures = json.loads(lines[-1])
    print(told(figures), flush=True)
    return figures
