"""Sparse Doped: a dense product of rank d = s O I / (O + I) beside the sparse linear layer.

U and V are not masked: the authors' code masks them by its default filter, which makes the layer cheaper than the dense
one. d is rounded down per layer, and the sparsity at equal FLOPs follows from the sum over all layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from tasks.models.build.transform import Transform

if TYPE_CHECKING:
    from torch import nn


class Doped(Transform):
    paper: ClassVar[str] = "Sparse-IFT (arXiv 2303.11525), Sparse Doped"

    def rank(self, outputs: int, inputs: int) -> int:
        return math.floor(self.sparsity * outputs * inputs / (outputs + inputs) + 1e-9)

    def replace(self, layer: nn.Module, outputs: int, inputs: int) -> nn.Module:
        from tasks.models.build import expanded

        rank = self.rank(outputs, inputs)
        return expanded.Doped(layer, outputs, inputs, rank, self.sparsity) if rank else layer
