"""Sparse Parallel: k = 1 / (1 - s) branches in the place of one linear layer, their outputs summed.

k is rounded to a whole number, and the sparsity at equal FLOPs is then 1 - 1 / k. One branch is the dense layer itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.models.build.transform import Transform

if TYPE_CHECKING:
    from torch import nn


class Parallel(Transform):
    paper: ClassVar[str] = "Sparse-IFT (arXiv 2303.11525), Sparse Parallel"

    activation: Literal["relu", "identity"] = "relu"
    """What stands inside every branch: ``relu`` in the paper's ImageNet models, ``identity`` in its CIFAR models."""

    @property
    def branches(self) -> int:
        return max(1, round(1 / (1 - self.sparsity)))

    def replace(self, layer: nn.Module, outputs: int, inputs: int) -> nn.Module:
        from tasks.models.build import expanded

        if self.branches == 1:
            return layer
        return expanded.Parallel(layer, outputs, inputs, self.branches, self.activation)
