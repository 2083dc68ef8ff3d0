"""Round to nearest: every weight goes to the closest value of its grid. Needs no data, unless scales are fitted to outputs; the
quantizers' baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from tasks.calibrate.method import Edit
from tasks.calibrate.quantizer import Quantizer

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.grid import Grid


class RoundToNearest(Quantizer):
    """No hyper-parameters but the scheme."""

    paper: ClassVar[str] = "round to nearest"

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        grid: Grid,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        from tasks.calibrate.observe import Hessian

        scale_OG, zero_OG = self.fit(grid, weight_OI, statistics if isinstance(statistics, Hessian) else None)
        rounded_OI = grid.round_matrix(weight_OI, scale_OG, zero_OG)
        if keep_OI is not None:
            rounded_OI = rounded_OI.masked_fill(~keep_OI, 0)
        return Edit(rounded_OI, None, {"scale": scale_OG, "zero_point": zero_OG})
