"""How far a grid reaches: from end to end of each group, or not so far where that loses less.

A few large weights stretch the steps of all others in their group. Clipped, they lose more themselves and the others less,
and what is best is searched over shares of the range, per group. Dead weights are zero and on every grid, so they lose
nothing and have no say.

The least error of weights is not the least error of a model: at 4 bits in groups of 64 SmolLM2-135M rounded to nearest has
perplexity 32.3 from end to end and 34.0 by ``mse`` (ten windows of WikiText-2's test text).

Shapes: O = output features, I = input features, G = groups of columns that share a scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from tasks.calibrate.observe import Hessian
    from tasks.formats.grid import Grid

Range = Literal["minmax", "mse", "output"]
POWER = 2.4  # of an error of a weight, as GPTQ's own search has it
WEIGHT_SHRINKS = tuple(1 - step / 40 for step in range(1, 32))
OUTPUT_SHRINKS = tuple(1 - step / 20 for step in range(1, 10))  # AWQ's


def fit_range(
    grid: Grid, weight_OI: torch.Tensor, reach: Range, hessian: Hessian | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point: ``minmax`` from end to end, ``mse`` with the least error of the weights, ``output`` with the least
    squared error of what each group adds to the output on the calibration text (which needs its ``hessian``)."""
    if reach == "minmax":
        return grid.fit(weight_OI)
    if reach == "mse":
        return grid.fit(weight_OI, lambda change_OGI: change_OGI.abs().pow_(POWER).sum(-1), WEIGHT_SHRINKS)
    assert hessian is not None, "the error of an output is measured by its inputs"
    size, mean_II = grid.group_size or weight_OI.shape[1], hessian.mean_II.float()
    blocks_GII = torch.stack([mean_II[at : at + size, at : at + size] for at in range(0, len(mean_II), size)])

    def lost(change_OGI: torch.Tensor) -> torch.Tensor:
        seen_GOI = change_OGI.transpose(0, 1)
        return (seen_GOI @ blocks_GII * seen_GOI).sum(-1).T

    return grid.fit(weight_OI, lost, OUTPUT_SHRINKS)
