"""AWQ (arXiv 2306.00978): before rounding, multiply the columns that read large inputs, and divide the inputs by the same.

A column times s is rounded in steps that are seldom larger, since a group's largest weight is mostly another's; after the
division its error counts 1/s. With s a power r of the inputs' mean magnitude, r in 20 steps from 0 to below 1 is searched for
the least squared output error of the matrices that read one input. r = 0 is no scaling, so what is chosen is never worse there
than rounding to nearest. The error is taken from X^T X of the whole calibration text, where the paper runs modules on a part of
it: it is exact, and that of the linears themselves, not of the attention or network around them. Then each group of weights is
clipped where its own output error gains by it (``range: output``).

Features whose weights are all dead, or that are always zero, decide no scale and get none.

Perplexity of SmolLM2-135M (dense 23.4) at 4 bits in groups of 64 on ten windows of WikiText-2's test text, calibrated on 32 x
512 tokens: 28.8; rounded to nearest 32.3.

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from tasks.calibrate.folding import Folding
from tasks.calibrate.ranges import Range

if TYPE_CHECKING:
    from tasks.calibrate.folds import Fold
    from tasks.calibrate.method import BlockView
    from tasks.calibrate.observe import InputStatistic
    from tasks.formats.grid import Grid
    from tasks.models.find.linears import Linear

STEPS, LEAST = 20, 1e-4


class Awq(Folding):
    paper: ClassVar[str] = "AWQ (arXiv 2306.00978)"

    range: Range = "output"
    """What a group's scale is fitted to: its ends (minmax), or, clipping what is beyond, the least error of its weights (mse)
    or of its output on the calibration text (output)."""

    def statistic(self, linear: Linear) -> InputStatistic | None:
        from tasks.calibrate.observe import Hessian

        return super().statistic(linear) or Hessian(linear.shape[-1])

    def scale(self, view: BlockView, fold: Fold, grids: Mapping[str, Grid]) -> torch.Tensor:
        from tasks.calibrate.both import Both, Magnitudes
        from tasks.calibrate.observe import Hessian
        from tasks.calibrate.solvers.products import doubled, sum_of_squares

        seen = view.statistics[fold.consumers[0]]
        assert isinstance(seen, Both) and isinstance(seen.own, Magnitudes) and isinstance(seen.other, Hessian)
        magnitude_I = seen.own.mean_I
        live_I = (magnitude_I > 0) & torch.stack([view.matrices[name].any(0) for name in fold.consumers]).any(0)
        curvature_II = doubled(seen.other.mean_II.float())
        tried = [scales(magnitude_I, live_I, step / STEPS) for step in range(STEPS)]
        rounded = {name: grids[name] for name in fold.consumers if name in grids}

        def lost(scale_I: torch.Tensor) -> float:
            changes = (change(view.matrices[name], scale_I, grid) for name, grid in rounded.items())
            return sum(sum_of_squares(change_OI, curvature_II) for change_OI in changes)

        return min(tried, key=lost)


def scales(magnitude_I: torch.Tensor, live_I: torch.Tensor, power: float) -> torch.Tensor:
    """The scales of one power, their largest the reciprocal of their least; 1 where a feature is not live."""
    scale_I = magnitude_I.pow(power).clamp(min=LEAST)
    if not bool(live_I.any()):
        return torch.ones_like(scale_I)
    low, high = scale_I[live_I].aminmax()
    return (scale_I / (low * high).sqrt()).masked_fill(~live_I, 1)


def change(weight_OI: torch.Tensor, scale_I: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What rounding under a scale changes of the weights as they were, float32."""
    scaled_OI = (weight_OI.float() * scale_I).to(weight_OI.dtype)
    rounded_OI = grid.round_matrix(scaled_OI, *grid.fit(scaled_OI))
    return rounded_OI.float() / scale_I - weight_OI.float()
