"""Magnitude: the smallest weights are pruned. Needs no data; the baseline of every other pruner.

What is compared differs between papers and matters: within a row (as Wanda does), within a matrix, or over the whole
model at once, which is what essential sparsity (arXiv 2306.03805) means by one-shot magnitude pruning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from tasks.calibrate.method import Pruner

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.pattern import Pattern


class Magnitude(Pruner):
    """A global ranking is an allocation: how many of the model's smallest weights each matrix has is counted first, by the
    allocator of that name."""

    paper: ClassVar[str] = "magnitude pruning; essential sparsity (arXiv 2306.03805)"

    scope: Literal["row", "layer", "global"] = "layer"  # type: ignore[assignment, misc]  # a constant elsewhere
    """What is ranked together: a row, a matrix, or the whole model."""

    @property
    def allocator(self) -> str:
        return "magnitude" if self.scope == "global" else "uniform"

    def suit(self, pattern: Pattern) -> None:
        super().suit(pattern)
        if self.scope == "global" and getattr(pattern, "scope", "row") == "row":
            raise ValueError(f"scope global ranks single weights of the whole model, not {pattern}; choose unstructured")

    def score(self, weight_OI: torch.Tensor, statistics: InputStatistic | None) -> torch.Tensor:
        return weight_OI.abs()
