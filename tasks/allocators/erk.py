"""Erdős-Rényi-Kernel: a matrix keeps weights in proportion to the sum of its sides, so small ones stay denser.

The density of a matrix is epsilon * ((out + in) / (out * in))^power. Epsilon follows from the budget; a matrix that
would need more than all its weights is left dense and the others pay for it.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tasks.models.allocation import Allocator, Scan


class Erk(Allocator):
    """The experts of a fused stack count as matrices of their own."""

    paper: ClassVar[str] = "SET and RigL (arXiv 1707.04780, 1911.11134), ERK"

    power: float = Field(1.0, ge=0)
    """How strongly density follows a matrix's shape: 0 is uniform, 1 the paper's."""

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        raw = {name: ((shape[-2] + shape[-1]) / (shape[-2] * shape[-1])) ** self.power for name, shape in scan.shapes.items()}
        dense: set[str] = set()
        while free := [name for name in raw if name not in dense]:  # in one order: sums of floats depend on it
            budget = sum((1 - sparsity) * scan.size(name) for name in free) - sum(sparsity * scan.size(name) for name in dense)
            epsilon = budget / sum(raw[name] * scan.size(name) for name in free)
            largest = max(raw[name] for name in free)
            if epsilon * largest <= 1:
                break
            dense |= {name for name in free if raw[name] == largest}
        return {name: 0.0 if name in dense else 1 - epsilon * raw[name] for name in scan.shapes}
