"""Wanda (arXiv 2306.11695): a weight's importance is its magnitude times the norm of the input feature it multiplies.

Large inputs make small weights matter. Weights compete within their output row, and those that stay do not change.

The adaptive variant takes from each row the smallest weights up to one common share of the row's whole score, so rows
whose score sits in few weights lose more. The paper looks for that share by bisection; ranking the cumulative shares
over the matrix finds it at once, and hits the sparsity to the weight.

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from tasks.calibrate.method import Pruner

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear


class Wanda(Pruner):
    paper: ClassVar[str] = "Wanda (arXiv 2306.11695)"

    adaptive: bool = False
    """Let the rows of a matrix differ in sparsity."""

    @property
    def scope(self) -> Literal["row", "layer"]:  # type: ignore[override]  # a field or a constant elsewhere
        return "layer" if self.adaptive else "row"

    def suit(self, pattern: Pattern) -> None:
        super().suit(pattern)
        if self.adaptive and getattr(pattern, "scope", "row") == "row":
            raise ValueError(f"adaptive moves sparsity between rows, which {pattern} fixes; choose unstructured")

    def observer(self, linear: Linear) -> InputStatistic | None:
        from tasks.calibrate.observe import InputNorms

        return InputNorms(linear.shape[-1])

    def score(self, weight_OI: torch.Tensor, statistics: InputStatistic | None) -> torch.Tensor:
        from tasks.formats.selection import cumulative_share

        assert statistics is not None
        score_OI = weight_OI.abs() * statistics.norm_I
        return cumulative_share(score_OI) if self.adaptive else score_OI
