"""Sparse Factorized: V activation(U z) with d = O I / ((O + I) (1 - s)) inner features in the place of one linear layer.

Both factors are sparse. d is rounded up per layer, and the sparsity at equal FLOPs follows from the sum over all layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.models.build.transform import Transform

if TYPE_CHECKING:
    from torch import nn


class Factorized(Transform):
    """``identity`` leaves a linear layer of lower or equal rank."""

    paper: ClassVar[str] = "Sparse-IFT (arXiv 2303.11525), Sparse Factorized"

    activation: Literal["relu", "identity"] = "relu"
    """What stands between the two factors."""

    def rank(self, outputs: int, inputs: int) -> int:
        return math.ceil(outputs * inputs / ((outputs + inputs) * (1 - self.sparsity)) - 1e-9)

    def replace(self, layer: nn.Module, outputs: int, inputs: int) -> nn.Module:
        from tasks.models.build import expanded

        return expanded.Factorized(layer, outputs, inputs, self.rank(outputs, inputs), self.activation)
