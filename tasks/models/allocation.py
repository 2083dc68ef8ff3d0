"""How one overall sparsity is shared out over a model's matrices.

An allocator sees every prunable matrix and answers with a sparsity for each, such that the model as a whole has the
sparsity that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from tasks.methods import Method


@dataclass(frozen=True)
class Scan:
    """What an allocator may look at. ``shapes`` are [out, in], or [experts, out, in] for a fused stack, by name."""

    shapes: Mapping[str, tuple[int, ...]]

    def size(self, name: str) -> int:
        """Weights of one linear."""
        return prod(self.shapes[name])


class Allocator(Method):
    """Root of the allocators."""

    def allocate(self, scan: Scan, overall: float) -> dict[str, float]:
        """A sparsity in [0, 1) for every linear; their mean over all weights is ``overall``."""
        raise NotImplementedError
