"""Reads a compiled program's HLO text: computations, instructions, shapes, and what their attributes say.

What an instruction costs is in costs.py.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

BITS = {
    "pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
LOOP_WORDS = re.compile(r"while|body|cond|branch_\d+_fun|closed_call|checkpoint|rematted_computation|scan|shard_map")
SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=?]*)\](?:\{([^{}]*)\})?")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ROLES = "calls|body|condition|branch_computations|true_computation|false_computation"
CALLED = re.compile(rf"\b({ROLES})=(\{{[^}}]*\}}|%[\w.\-]+)")
MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*(?:\)[^)]*)?)\))? \{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """One array of a result: its HBM bytes include the padding to the tiles of its layout."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()  # minor to major
    tile: tuple[int, ...] = ()
    space: int = 0  # 0 is HBM; others are on the chip

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @cached_property
    def bytes(self) -> float:
        """Bytes with padding, wherever the array lies."""
        dims = [self.dims[i] for i in reversed(self.order)] if self.order else list(self.dims)
        if len(dims) >= len(self.tile) > 0:
            for i, tile in enumerate(self.tile, len(dims) - len(self.tile)):
                dims[i] = -(-dims[i] // tile) * tile
        return math.prod(dims) * BITS.get(self.dtype, 8) / 8

    @property
    def hbm(self) -> float:
        """Bytes, if the array lies in HBM."""
        return self.bytes if self.space == 0 else 0.0


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # leaves of the result
    operands: tuple[str, ...]
    literal: str  # what stands in the parentheses: a constant's value, a parameter's number
    attributes: str  # everything behind them

    @cached_property
    def op_name(self) -> str:
        """The path of named scopes and the primitive, as JAX wrote it."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found.group(1) if found else ""

    @cached_property
    def called(self) -> dict[str, list[str]]:
        """Computations by role: calls, body, condition, branch_computations, ..."""
        return {role: re.findall(r"%([\w.\-]+)", names) for role, names in CALLED.findall(self.attributes)}

    def number(self, name: str) -> int | None:
        """An integer of the attributes, quoted or not."""
        found = re.search(rf'\b{name}"?[=:]\s*"?(-?\d+)', self.attributes)
        return int(found.group(1)) if found else None

    def dims(self, name: str) -> tuple[int, ...]:
        """A list of dimensions such as lhs_contracting_dims={2}."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(map(int, found.group(1).split(","))) if found and found.group(1) else ()


@dataclass
class Computation:
    """Instructions by name, in order, the root's name, and who uses what."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                users[name].append(instruction)
        return users

    @cached_property
    def parameters(self) -> list[str]:
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return [i.name for i in sorted(found, key=lambda i: int(i.literal))]

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands]


@dataclass
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`. Raises ValueError if that holds no entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    # Strings among an instruction's attributes (a Pallas kernel's) may hold line breaks: what begins no instruction and
    # ends no computation goes on with the line before.
    for line in re.sub(r"\n(?!  |\}(?:,|$)|\n|%|ENTRY |HloModule)", " ", text, flags=re.MULTILINE).split("\n"):
        if current is None:
            if header := HEADER.match(line):
                current = Computation(header.group(2))
                if header.group(1):
                    entry = current.name
        elif line.startswith("}"):
            computations[current.name] = current
            current = None
        elif start := INSTRUCTION.match(line):
            instruction = _instruction(start.group(2), line[start.end() :])
            current.instructions[instruction.name] = instruction
            if start.group(1):
                current.root = instruction.name
    if not entry:
        raise ValueError("the text holds no ENTRY computation: give compiled.as_text()")
    found = re.search(r"num_partitions=(\d+)", text[:100_000].split("\n", 1)[0])
    return Module(computations, entry, int(found.group(1)) if found else 1)


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(_shape(*found) for found in SHAPE.findall(rest[:end]))
    opened = rest.index("(", end)
    closed = _closing(rest, opened)
    inside = rest[opened + 1 : closed]
    opcode = rest[end:opened].strip()
    operands = () if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, opcode, shapes, operands, inside, rest[closed + 1 :])


def _closing(text: str, at: int) -> int:
    """Index of the parenthesis that closes the one at `at`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, at):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"no closing parenthesis in {text[at : at + 80]!r}")


@lru_cache(maxsize=100_000)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
    order, _, marks = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", marks)
    space = re.search(r"S\((\d+)\)", marks)
    return Shape(
        dtype,
        tuple(int(d.lstrip("<=")) for d in dims.split(",") if d.lstrip("<=").isdigit()),
        tuple(map(int, order.split(","))) if order else (),
        tuple(map(int, tile.group(1).split(","))) if tile else (),
        int(space.group(1)) if space else 0,
    )


# --- names of places ---


@lru_cache(maxsize=100_000)
def scope_of(op_name: str) -> tuple[str, ...]:
    """Components of an op name without jit and without the wrappers of transformations: the words of named scopes.

    "jit(step)/update/transpose(jvp(layers))/while/body/dot_general" -> update, layers, while, body, dot_general
    "jit(step)/update/(head/mul:jvp()/add)" -> update, head, mul
    """
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(op_name + "/"):
        depth += (letter == "(") - (letter == ")")
        if letter == "/" and depth <= 0:
            parts.append(op_name[start:i])
            start = i + 1
    words: list[str] = []
    for part in parts:
        if part.startswith("("):  # of instructions that were made one; the first speaks for them
            words.extend(scope_of(part[1:-1].partition(":")[0]))
            continue
        while wrapped := re.fullmatch(r"(\w+)\((.*)\)", part):
            if wrapped.group(1) in ("jit", "pjit"):
                part = ""
            elif "/" in wrapped.group(2):
                words.extend(scope_of(wrapped.group(2)))
                part = ""
            else:
                part = wrapped.group(2)
        if part:
            words.append(part)
    return tuple(words)


def plain(scope: Sequence[str]) -> str:
    """A scope without the words of control flow: "update/layers/dot_general"."""
    return "/".join(word for word in scope if not LOOP_WORDS.fullmatch(word))


# --- groups of devices ---


def replica_groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of an instruction's attributes, in any of XLA's four spellings; all devices if there are none.

    replica_groups={{0,1},{2,3}}, [2,4]<=[4,2]T(1,0), mesh['a'=4,'b'=2] {'a'}, and source_target_pairs={{0,1},{1,0}}.
    """
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", text):
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", found.group(1)))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        count, size = int(found.group(1)), int(found.group(2))
        order = iota(ints(found.group(3)), ints(found.group(4)))
        return tuple(tuple(order[i * size : (i + 1) * size]) for i in range(count))
    if found := MESH_GROUPS.search(text):
        axes = [(name.strip("'\" "), int(size)) for name, size in (a.split("=") for a in found.group(1).split(","))]
        return _mesh_groups(axes, found.group(2), found.group(3))
    return (tuple(range(devices)),)


def ints(text: str | None) -> tuple[int, ...]:
    """The whole numbers in a text, signs left out."""
    return tuple(int(x) for x in re.findall(r"\d+", text or ""))


def iota(dims: Sequence[int], perm: Sequence[int]) -> list[int]:
    """range(prod(dims)) reshaped to `dims`, transposed by `perm`, flattened."""
    perm = perm or range(len(dims))
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    order = [0]
    for axis in perm:
        order = [at + k * strides[axis] for at in order for k in range(dims[axis])]
    return order


def _mesh_groups(axes: list[tuple[str, int]], ids: str | None, used: str) -> tuple[tuple[int, ...], ...]:
    """Groups over some axes of a mesh; 'a':(2)4 is the part of size 4 of axis a that lies inside its outer 2."""
    dims: list[int] = []
    grouped: list[int] = []
    wanted = {}
    for part in filter(None, used.replace(" ", "").split(",")):
        name, _, inner = part.partition(":")
        wanted.setdefault(name.strip("'\""), []).append(ints(inner))
    for name, size in axes:
        pieces = sorted(p for p in wanted.get(name, []) if p)
        if name in wanted and not pieces:
            grouped.append(len(dims))
            dims.append(size)
            continue
        outer = 1
        for before, part in pieces:
            dims += [before // outer, part]
            grouped.append(len(dims) - 1)
            outer = before * part
        dims.append(size // outer)
    total = math.prod(dims)
    if ids and "<=" not in ids and "[" not in ids:
        devices = list(ints(ids))
    elif ids:
        shape, _, perm = ids.partition("T(")
        devices = iota(ints(shape.split("<=")[-1]), ints(perm))
    else:
        devices = list(range(total))
    rest = [i for i in range(len(dims)) if i not in grouped]
    size = math.prod(dims[i] for i in grouped)
    order = [devices[i] for i in iota(dims, [*rest, *grouped])]
    return tuple(tuple(order[i : i + size]) for i in range(0, total, size))
