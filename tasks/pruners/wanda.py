"""Wanda (arXiv 2306.11695): a weight is worth its magnitude times the length of the input feature it multiplies.

Large inputs make small weights matter. Weights compete within their output row, and those that stay do not change.

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from tasks.calibrate.method import Pruner

if TYPE_CHECKING:
    from tasks.models.linears import Linear


class Wanda(Pruner):
    """No hyper-parameters."""

    paper: ClassVar[str] = "Wanda (arXiv 2306.11695)"
    scope: ClassVar[Literal["row", "layer"]] = "row"

    def observer(self, linear: Linear) -> Any:
        from tasks.calibrate.observe import InputNorms

        return InputNorms(linear.shape[-1])

    def score(self, weight_OI: torch.Tensor, statistics: Any) -> torch.Tensor:
        return weight_OI.abs() * statistics.norm_I
