"""Reads the text of a compiled XLA program: its collectives, and which modules move how many bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

# "send" is how the slices of a TPU reach one another.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COLLECTIVES += ("send",)
BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (1, 2, 4, 8, 16, 32, 64)
}
BITS |= {"bf16": 16, "c64": 64, "c128": 128}

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_OPERATION = re.compile(r"\s*([\w-]+)\(")
_CALLED = re.compile(r"\b(?:calls|body|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.-]+(?:, )?)+)\}?")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"n":\s*"(\d+)"')
# A TPU's program does not name the turns of a loop; its condition compares a counter, from 0 on, with a constant.
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"^\s*ROOT .*\bcompare\(.*\bdirection=LT\b")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# Groups of chips that communicate: {{0,1},{2,3}}, [groups,chips of a group]<=[...] of the list of all chips, or axes of
# a mesh, whole or in part: mesh['a'=4,'b'=8] {'a','b':(2)4}.
_GROUPS = re.compile(r"\breplica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[([^\]]*)\][^{]*\{([^}]*)\})")
_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
# Instructions that move nothing themselves; the bodies of the last three are counted.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"while", "conditional", "call"}
# Parts of a path that are no module.
_STRUCTURE = {
    "",
    "while",
    "body",
    "cond",
    "closed_call",
    "eval_jaxpr",
    "checkpoint",
    "rematted_computation",
    "shard_map",
}
_PRODUCTS = ("dot", "convolution", "custom-call")
_SLICES = ("slice", "dynamic-slice", "gather")


@dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
      size: bytes, with the padding of a TPU's tiles.
      on_chip: whether it lies in a memory on the chip instead of the HBM.
      shape: as in the program, without padding.
    """

    size: int
    on_chip: bool = False
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    operation: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    trips: int  # of a loop; 1 where the program does not know them, and for everything else
    source: str  # path of the operation in the traced function; ""
    attributes: str = ""  # what follows the operands; kept of products and convolutions
    channel: str = ""  # number of a communication
    group: int = 0  # chips that communicate with one another; 0: all, or the program does not say


@dataclass
class Computation:
    """Instructions by name, in the order of the text."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    name: str = ""

    @cached_property
    def first_users(self) -> dict[str, str]:
        """Name -> name of the first instruction that reads it."""
        found: dict[str, str] = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                found.setdefault(operand, instruction.name)
        return found


@dataclass(frozen=True)
class Collective:
    """A communication between chips, with the bytes of its largest side on one chip; `count` in one step.

    `group` chips take part in each, 0 where it is all of them.
    """

    kind: str
    size: int
    count: int
    source: str
    group: int = 0


@dataclass(frozen=True)
class Traffic:
    """Bytes that the operations of one module read from and write to the memory in one step, and how many these are."""

    module: str
    size: int
    count: int


def array_sizes(text: str) -> tuple[Array, ...]:
    """The arrays of a type such as `(f32[8,197]{1,0:T(8,128)S(1)}, u32[])`."""
    found = []
    for kind, dims, layout in _ARRAY.findall(text):
        if kind not in BITS:
            continue
        shape = [int(re.sub(r"\D", "", size)) for size in dims.split(",") if size]
        unpadded = tuple(shape)
        order, _, tiling = layout.partition(":")
        space = re.search(r"S\((\d+)\)", tiling)
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        if tile and not shape:
            shape = [1]
        if tile:
            minor = [int(axis) for axis in order.split(",") if axis] or [0]
            for axis, size in zip(minor, reversed([int(s) for s in tile[1].split(",")]), strict=False):
                shape[axis] = -(-shape[axis] // size) * size
        found.append(Array(math.prod(shape) * BITS[kind] // 8, space is not None and space[1] != "0", unpadded))
    return tuple(found)


def _closing(text: str) -> int:
    """Position behind the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _instruction(name: str, text: str) -> Instruction | None:
    end = _closing(text) if text.startswith("(") else text.find(" ")
    kind, rest = text[:end], text[end:]
    operation = _OPERATION.match(rest)
    if operation is None:
        return None
    rest = rest[operation.end() - 1 :]
    end = _closing(rest)
    inside, attributes = rest[1 : end - 1], rest[end:]
    operands = () if operation[1] in ("constant", "parameter") else tuple(re.findall(r"%([\w.-]+)", inside))
    called = [one.strip().lstrip("%") for group in _CALLED.findall(attributes) for one in group.split(",")]
    trips, source = _TRIPS.search(attributes), _NAME.search(attributes)
    return Instruction(
        name,
        operation[1],
        array_sizes(kind),
        operands,
        tuple(called),
        int(trips[1]) if trips else 1,
        source[1] if source else "",
        attributes if operation[1] in _PRODUCTS else "",
        channel[1] if (channel := _CHANNEL.search(attributes)) else "",
        _group(attributes),
    )


def _group(attributes: str) -> int:
    """Chips of the first group that communicates, 0 for all."""
    found = _GROUPS.search(attributes)
    if found is None:
        return 0
    listed, count, mesh, axes = found.groups()
    if mesh is None:
        return int(count) if count else listed.count(",") + 1
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh))
    return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes))


class Program:
    """A compiled program as XLA prints it.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current = None
        limits: dict[str, list[int]] = defaultdict(list)  # whole numbers in a computation
        bounded: set[str] = set()  # computations that compare
        loops: list[tuple[Computation, str, str]] = []
        for line in text.splitlines():
            header = _COMPUTATION.match(line)
            if header:
                current = self.computations.setdefault(header[2], Computation(name=header[2]))
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                instruction = _instruction(*found.groups())
                if instruction is not None:
                    current.instructions[found[1]] = instruction
                if limit := _LIMIT.search(line):
                    limits[current.name].append(int(limit[1]))
                elif _BELOW.match(line):
                    bounded.add(current.name)
                elif (condition := _CONDITION.search(line)) and not _TRIPS.search(line):
                    loops.append((current, found[1], condition[1]))
        for computation, name, condition in loops:
            if condition in bounded and len(limits[condition]) == 1:
                known = dataclasses.replace(computation.instructions[name], trips=limits[condition][0])
                computation.instructions[name] = known

    def _walk(self, name: str, times: int, everything: bool) -> Iterator[tuple[Computation, Instruction, int]]:
        """(computation, instruction, how often it runs in a step) from computation `name` on.

        Loops are counted as often as they run; `everything` enters fusions and asynchronous computations too.
        """
        computation = self.computations.get(name, Computation())
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if everything or instruction.operation in ("while", "conditional", "call"):
                for called in instruction.called:
                    yield from self._walk(called, times * instruction.trips, everything)

    def collectives(self) -> list[Collective]:
        """All communications, those of one place together, largest first.

        A TPU's program spreads an asynchronous one over several fusions, each of which names it with the same channel.
        """
        found: dict[tuple[str, int, str, int], int] = defaultdict(int)
        seen: set[tuple[str, str]] = set()
        for computation, one, times in self._walk(self.entry, 1, everything=True):
            kind = one.operation.removesuffix("-start")
            if kind not in COLLECTIVES or (kind, one.channel) in seen:
                continue
            if one.channel and kind != "send":
                seen.add((kind, one.channel))
            if computation.name.startswith("all-reduce-scatter"):  # all-reduce and slice, run as one
                kind = "reduce-scatter"
            given = sum(array.size for array in self._operands(computation, one))
            made = sum(array.size for array in one.results)
            if kind == "send" or (one.operation.endswith("-start") and kind != "all-reduce"):
                made -= given  # the type holds the operands too
            found[kind, max(given, made), module_of(one.source), one.group] += times
        rows = [Collective(kind, size, count, source, group) for (kind, size, source, group), count in found.items()]
        return sorted(rows, key=lambda row: -row.size * row.count)

    def traffic(self, *, loops: bool = True) -> list[Traffic]:
        """Bytes by module, largest first; layers that differ only in their number count together.

        An operation counts what it reads and writes of the chip's memory (HBM), not what lies in memory on the chip.

        Args:
          loops: whether the body of a loop counts as often as it runs, or once as in XLA's own analysis.
        """
        sizes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for computation, one, times in self._walk(self.entry, 1, everything=False):
            size = self.moved(computation, one)
            if size:
                row = sizes[module_of(self.source(computation, one)) or f"without a name: {one.operation}"]
                row[0] += size * (times if loops else 1)
                row[1] += times if loops else 1
        rows = [Traffic(module, size, count) for module, (size, count) in sizes.items()]
        return sorted(rows, key=lambda row: -row.size)

    def source(self, computation: Computation, one: Instruction) -> str:
        """Path of an operation; of a copy, which has none, that of what it is made for."""
        users = computation.first_users
        for _ in range(8):
            if one.source or one.name not in users:
                break
            one = computation.instructions[users[one.name]]
        return one.source

    def _operands(self, computation: Computation, one: Instruction) -> list[Array]:
        known = (computation.instructions.get(name) for name in one.operands)
        return [array for instruction in known if instruction is not None for array in instruction.results]

    def moved(self, computation: Computation, one: Instruction) -> int:
        """Bytes of the HBM that an instruction reads and writes."""
        if one.operation in _FREE or one.operation.endswith(("-done", "-update")):
            return 0
        given, made = self._operands(computation, one), list(one.results)
        if one.operation == "copy-start":  # (destination, source, context)
            made = made[:1]
        elif one.operation.endswith("-start"):  # (sources, destinations, context)
            made = made[len(given) : 2 * len(given)] or made
        if one.operation.removesuffix("-start") in _SLICES:
            part = sum(array.size for array in made)
            return _in_memory(made) + sum(min(array.size, part) for array in given[:1] if not array.on_chip)
        if one.operation == "dynamic-update-slice":
            return 2 * _in_memory(given[1:2])
        if one.operation == "fusion" and one.called:
            kept = sum(array.size - size for array, size in self._changed_by_fusion(one).values() if not array.on_chip)
            return max(0, _in_memory(made) - kept) + self._read_by_fusion(computation, one)
        return _in_memory(made) + _in_memory(given)

    def _changed_by_fusion(self, one: Instruction) -> dict[str, tuple[Array, int]]:
        """Parameters of a fusion in which it replaces a slice, such as the results of all turns of a loop so far.

        Returns:
          name -> (its array, bytes of the slice).
        """
        inside = self.computations.get(one.called[0], Computation()).instructions
        found = {}
        for instruction in inside.values():
            if instruction.operation != "dynamic-update-slice":
                continue
            changed, update = (inside.get(name) for name in instruction.operands[:2])
            while changed is not None and changed.operation == "bitcast":
                changed = inside.get(changed.operands[0])
            if changed is not None and changed.operation == "parameter" and changed.results and update is not None:
                found[changed.name] = (changed.results[0], sum(array.size for array in update.results))
        return found

    def _read_by_fusion(self, computation: Computation, one: Instruction) -> int:
        """Bytes that a fusion reads: of an operand that it only slices, the slices."""
        inside = self.computations.get(one.called[0], Computation()).instructions.values()
        parameters = [i for i in inside if i.operation == "parameter"]
        arrays = self._operands(computation, one)
        if len(parameters) != len(arrays):
            return _in_memory(arrays)
        users: Mapping[str, list[Instruction]] = defaultdict(list)
        for instruction in inside:
            for operand in instruction.operands:
                users[operand].append(instruction)
        total, changed = 0, self._changed_by_fusion(one)
        for parameter, array in zip(_in_order(parameters), arrays, strict=True):
            if array.on_chip or parameter.name in changed:
                continue
            using = users[parameter.name]
            sliced = bool(using) and all(u.operation in _SLICES and u.operands[0] == parameter.name for u in using)
            part = sum(result.size for u in using for result in u.results)
            total += min(array.size, part) if sliced else array.size
        return total


def _in_order(parameters: list[Instruction]) -> list[Instruction]:
    """Parameters by their number, which their names carry: "param_1.2057", "Arg_0"."""

    def number(parameter: Instruction) -> int:
        found = re.match(r"\D*?_?(\d+)", parameter.name)
        return int(found[1]) if found else 0

    return sorted(parameters, key=number)


def _in_memory(arrays: tuple[Array, ...] | list[Array]) -> int:
    return sum(array.size for array in arrays if not array.on_chip)


def module_of(source: str) -> str:
    """The module of an operation by the path that JAX gives it.

    `jit(step)/transpose(jvp(Cait))/Cait.forward/blocks_3/attn/qkv/dot_general` becomes `Cait/blocks_*/attn/qkv,
    backward`. What belongs to no network keeps the name of its operation: `step: add`.
    """
    if not source:
        return ""
    names, backward = [], False
    *parts, primitive = re.split("[;:]", source)[0].split("/")  # of an operation made of several, the first
    for part in parts:
        backward |= "transpose(" in part
        if "jit(" in part or re.fullmatch(r"\w+\.\w+", part):  # jitted functions and methods of a module
            continue
        inner = re.sub(r"^(?:\w+\()+|\)+$", "", part) if "(" in part else part
        if inner not in _STRUCTURE and re.fullmatch(r"[\w.*]+", inner):
            names.append(re.sub(r"_\d+\b", "_*", inner))
    if not names:
        return f"step: {primitive}{', backward' if backward else ''}"
    return "/".join(names) + (", backward" if backward else "")
