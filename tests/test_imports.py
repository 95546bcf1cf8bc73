"""Who may import whom, that flags are read in experiments/ alone, and that no field of the config is idle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agemem_jax.config import flatten
from configs import base

ROOT = Path(__file__).parent.parent

# Imports go leftward only; parts of one column know nothing of each other, but for what is named below.
COLUMNS = (
    {"types", "errors"},
    {"config", "metrics"},
    {"sharding"},
    {"models", "memory", "tools", "data"},
    {"envs"},
    {"benchmarks"},
    {"rollout", "rl"},
    {"methods"},
    {"training"},
    {"planning"},
    {"experiments"},
)
SAME_COLUMN = {
    "data": ("tools",),  # prompts and the built-in vocabulary are in the tools' format
    "tools": ("data.tokenizer",),  # the grammar is built over a tokenizer's vocabulary
}
ONLY = {
    "rl": {"types"},  # arrays alone; the model enters as a function
    "report": {"metrics", "errors"},  # made from files
}
MODULES = sorted([*ROOT.glob("agemem_jax/**/*.py"), *ROOT.glob("experiments/*.py")])


def part_of(path: Path) -> str:
    """The part of the project that a module belongs to, e.g. "memory" or "experiments"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "experiments" else parts[1]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of what a module imports, anywhere in it, with the names taken from packages."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(part: str) -> set[str]:
    """The parts that a part may import beside itself."""
    if part in ONLY:
        return ONLY[part]
    (column,) = [i for i, names in enumerate(COLUMNS) if part in names]
    made_from_files = {"report"} if part == "experiments" else set()
    return set().union(*COLUMNS[:column]) | made_from_files


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_leftward(path):
    part = part_of(path)
    if part == "__init__":
        assert not list(imported(path))
        return
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "agemem_jax":
            beside = any(f"{'.'.join(rest)}.".startswith(f"{other}.") for other in SAME_COLUMN.get(part, ()))
            assert rest[0] == part or rest[0] in allowed(part) or beside, f"{part} must not import {name}"
        if top in ("experiments", "configs"):
            assert part == "experiments", f"{part} must not import {name}"
        if top == "absl" or name.startswith("ml_collections.config_flags"):
            assert part == "experiments", f"only experiments/ reads flags, not {part}"
        if top in ("jax", "flax", "optax", "orbax", "jaxlib"):
            assert part not in ("report", "metrics"), f"{part} is host only and must not import {name}"


def test_report_needs_no_jax():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "agemem_jax/report").glob("[!_]*.py")]
    code = f"import sys, {', '.join(names)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def attributes(paths: list[Path]) -> set[str]:
    """Names read as attributes, as items or by getattr with a literal name, or listed in a tuple of names to read."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(node.slice.value)
            elif isinstance(node, ast.Tuple):
                names |= {item.value for item in node.elts if isinstance(item, ast.Constant)}
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def test_every_field_is_read():
    """A field that nothing reads would be an option that does nothing. The checks of config.py do not count."""
    readers = [path for path in MODULES if path != ROOT / "agemem_jax/config.py"]
    read = attributes(readers)
    idle = [name for name in flatten(base.get_config()) if name.split(".")[-1] not in read]
    assert not idle, f"nothing reads {', '.join(idle)}"
