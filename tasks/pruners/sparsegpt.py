"""SparseGPT (arXiv 2301.00774): prune column by column, and update the columns to come to compensate.

A weight's saliency is the error of pruning it after the best compensation, W^2 / U_jj^2. Masks are chosen a few columns
ahead, on weights that earlier columns have already compensated: for N:M the group about to begin, for the rest a block of
columns whose weights compete with each other. The paper's threshold prunes one weight per block too many (<=); here the
quota is exact over the whole matrix (:mod:`tasks.calibrate.choosing`).

Groups of N:M and single columns come by descending curvature (act-order): those of the highest curvature are pruned while
most others can still compensate. Perplexity of SmolLM2-135M on ten windows of 1024 of WikiText-2's test text (dense 23.4),
calibrated on three samples of 48 x 512 tokens and one of 128 x 1024; llm-compressor 0.14 goes left to right:

    sparsity    act-order                   left to right               llm-compressor
    50 %        35.5  35.1  34.0  33.8      37.6  36.8  35.9  35.5      37.3  36.8  35.9  35.3
    60 %        56.7                        65.2
    70 %       112.9             107.1     122.7             124.5
    2:4         52.7  56.7        49.2      58.2  61.9        54.4      56.6  62.4        53.9

Shapes: O = output features, I = input features, G = columns ahead in the sweep's block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from tasks.calibrate.method import Edit, Pruner
from tasks.calibrate.observe import Hessian, InputStatistic
from tasks.calibrate.swept import Swept

if TYPE_CHECKING:
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear


class Sparsegpt(Swept, Pruner):
    paper: ClassVar[str] = "SparseGPT (arXiv 2301.00774)"
    scope: ClassVar[Literal["row", "layer"]] = "layer"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M", "block", "group", "channel")

    block: int = Field(128, ge=1)
    """Columns decided at once where the pattern does not say how many."""

    def observer(self, linear: Linear) -> InputStatistic | None:
        return self.curvature(linear)

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        sparsity: float,
        pattern: Pattern,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        from tasks.calibrate.choosing import Choosing, factor_for

        assert isinstance(statistics, Hessian)
        factor = factor_for(statistics, pattern, self.percent_damp, self.act_order)
        choosing = Choosing(weight_OI, statistics, factor, sparsity, pattern, keep_OI, self.block)
        settled_OI, errors_OI = choosing.sweep(weight_OI, factor)
        notes = {"damping": factor.damping, "loss": float(errors_OI.square().sum() / 2)}
        return Edit(settled_OI, factor.restore(choosing.chosen_OI), notes=notes)
