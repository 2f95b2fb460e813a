"""Arithmetic and traffic of single operations of a compiled program, and which of them bounds their time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

from jaxkd.experiment.plan.chips import Chip
from jaxkd.experiment.plan.hlo import Computation, Instruction, Program


@dataclass(frozen=True)
class OperationCost:
    """One call of an operation.

    Attributes:
      source: its path in the traced function; "".
      flops: of its matrix products and convolutions, 2 for each multiply-add.
      size: bytes that it reads from and writes to the chip's memory.
    """

    source: str
    flops: float
    size: int

    def bound(self, chip: Chip | None) -> str:
        """ "compute" or "memory", by what takes longer at the chip's peaks; "" where these are not known."""
        if chip is None or not chip.flops or not (self.flops or self.size):
            return ""
        return "compute" if self.flops / chip.flops > self.size / chip.bandwidth else "memory"


class Operations:
    """Costs of a program's operations by name.

    Args:
      text: of a compiled program; "" has none.
    """

    def __init__(self, text: str):
        self._program = Program(text)

    @cached_property
    def _places(self) -> dict[str, tuple[Computation, Instruction]]:
        places = {}
        for computation in self._program.computations.values():
            for name, instruction in computation.instructions.items():
                places[name] = places[re.sub(r"\W", "_", name)] = (computation, instruction)  # a kernel's form of it
        return places

    def cost(self, name: str) -> OperationCost | None:
        """Cost of the operation, or None where the program has none of that name."""
        if name not in self._places:
            return None
        computation, one = self._places[name]
        source, size = self._program.source(computation, one), self._program.moved(computation, one)
        return OperationCost(source, self._flops(computation, one), size)

    def _flops(self, computation: Computation, one: Instruction) -> float:
        if one.operation == "fusion":
            inside = [self._program.computations.get(name, Computation()) for name in one.called]
            return sum(self._flops(part, other) for part in inside for other in part.instructions.values())
        given = [computation.instructions.get(name) for name in one.operands[:2]]
        if not one.attributes or len(given) < 2 or None in given or not all(other.results for other in (one, *given)):
            return 0.0
        made, left, right = (other.results[0].shape for other in (one, *given))
        # XLA writes the axes of a product of its own as lhs_contracting_dims={2}, those of cuBLAS in a line of JSON.
        axes = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d,"]*)', one.attributes)
        if axes:
            return 2.0 * math.prod(made) * math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes[1]))
        labels = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)
        if labels and len(labels[1]) == len(right):
            return 2.0 * math.prod(made) * math.prod(right) / max(right[labels[1].index("o")], 1)
        return 0.0
