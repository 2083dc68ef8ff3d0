"""GPTQ (arXiv 2210.17323): quantize column by column, and update the columns to come to compensate.

Columns come by descending curvature (act-order): those of the highest curvature are rounded while most others can compensate.
The grids are fitted to the whole matrix beforehand (static groups), to groups of columns as they stand, so no format
needs an index of who is in which group, and a group narrower than the sweep's block is not fitted to weights that lack
the block's own updates. Perplexity of SmolLM2-135M (dense 23.4) at 4 bits in groups of 64 on ten windows of WikiText-2's
test text, calibrated on three samples of 48 x 512 tokens and one of 128 x 1024: 28.8, 28.8, 28.4, 28.4; llm-compressor 0.14,
which also takes act-order and static groups, 29.1, 29.4, 28.4, 28.4; left to right 32.2, rounded to nearest 34.0.

A dead weight stays exactly zero: it takes part in the sweep like
any column, so the compensation it is offered is not lost but handed on, through its error, to the live weights after
it. Keeping updates away from dead weights instead leaves that share uncompensated. Measured at 2:4 and 3 bits on
correlated inputs: loss 280 rounded to nearest, 220 with updates kept away, 194 handed on, 176 with a Hessian of each
row's live weights alone, which would cost one factorization per row.

Shapes: O = output features, I = input features, G = groups of inputs that share a scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from tasks.calibrate.method import Edit
from tasks.calibrate.quantizer import Quantizer
from tasks.calibrate.swept import Swept

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.grid import Grid
    from tasks.models.find.linears import Linear

BLOCK = 128  # columns that are settled before what they cost is made good in all later ones


class Gptq(Swept, Quantizer):
    paper: ClassVar[str] = "GPTQ (arXiv 2210.17323)"

    def statistic(self, linear: Linear) -> InputStatistic | None:
        return self.curvature(linear)

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        grid: Grid,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        from tasks.calibrate.observe import Hessian
        from tasks.calibrate.solvers.rounding import Rounding
        from tasks.calibrate.solvers.settling import settle_columns
        from tasks.calibrate.solvers.sweep import sweep_blocks

        assert isinstance(statistics, Hessian)
        scale_OG, zero_OG = self.fit(grid, weight_OI, statistics)
        factor = statistics.factor(self.percent_damp, int(self.act_order))
        rounding = Rounding.of(grid, scale_OG, zero_OG, weight_OI.shape, factor)
        kept_OI = torch.ones_like(weight_OI, dtype=torch.bool) if keep_OI is None else keep_OI
        arranged_OI = factor.arrange(kept_OI).contiguous()

        def settle(work_OI: torch.Tensor, errors_OI: torch.Tensor, start: int, end: int) -> None:
            settle_columns(work_OI, errors_OI, arranged_OI, factor.upper_II, start, end, end, rounding)

        settled_OI, errors_OI = sweep_blocks(factor.arrange(weight_OI), factor.upper_II, settle, BLOCK)
        notes = {"damping": factor.damping, "loss": float(errors_OI.square().sum() / 2)}
        rounded_OI = factor.restore(settled_OI).to(weight_OI.dtype)
        return Edit(rounded_OI, None, {"scale": scale_OG, "zero_point": zero_OG}, notes)
