"""SparseGPT (arXiv 2301.00774): prune column by column, the columns to come make good what each one took away.

A weight's worth is what its loss costs after the best compensation, W^2 / U_jj^2. Masks are chosen a few columns ahead,
on weights that earlier columns have already compensated: for N:M the group about to begin, for the rest a block of
columns whose rows compete with each other. The paper's threshold prunes one weight per block too many (<=); here the
quota is exact over the whole matrix.

Shapes: O = output features, I = input features, G = columns ahead in the sweep's block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from tasks.calibrate.method import Edit, Pruner, select

if TYPE_CHECKING:
    from tasks.formats.pattern import Pattern
    from tasks.models.linears import Linear


class Sparsegpt(Pruner):
    """``percent_damp`` of the mean curvature is added to every feature's. ``block`` columns are decided at once where
    the pattern does not say how many; ``double`` sweeps in float64."""

    paper: ClassVar[str] = "SparseGPT (arXiv 2301.00774)"
    scope: ClassVar[Literal["row", "layer"]] = "layer"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M", "block", "group", "channel")

    percent_damp: float = Field(0.01, gt=0, le=1)
    block: int = Field(128, ge=1)
    double: bool = False

    def observer(self, linear: Linear) -> Any:
        from tasks.calibrate.observe import Hessian

        return Hessian(linear.shape[-1], "float64" if self.double else "float32")

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: Any,
        sparsity: float,
        pattern: Pattern,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        from tasks.calibrate.sweep import sweep

        factor = statistics.factor(self.percent_damp)
        # A feature that was always zero is worth nothing, so its weights are the first to go.
        worth_I = factor.upper_II.diagonal().square().reciprocal() * (statistics.norm_I > 0)
        span = pattern.width_multiple if pattern.width_multiple > 1 else self.block
        chosen_OI = torch.ones(weight_OI.shape, dtype=torch.bool, device=weight_OI.device)

        def project(column: int, ahead_OG: torch.Tensor) -> torch.Tensor:
            if column % span == 0:
                score_OG = ahead_OG[:, :span].square() * worth_I[column : column + span]
                before_OG = None if keep_OI is None else keep_OI[:, column : column + span]
                chosen_OI[:, column : column + span] = select(score_OG, sparsity, pattern, before_OG, column)
            return ahead_OG[:, 0] * chosen_OI[:, column]

        settled_OI, errors_OI = sweep(weight_OI, factor.upper_II, project, max(1, self.block // span) * span)
        notes = {"damping": factor.damping, "loss": float(errors_OI.square().sum() / 2)}
        return Edit(settled_OI.to(weight_OI.dtype), chosen_OI, notes=notes)
