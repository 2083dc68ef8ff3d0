"""The grid of a matrix as the compiled loops of a sweep read it.

Shapes: O = output rows, I = input columns, G = groups of columns that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tasks.calibrate.solvers.sweep import Factor
    from tasks.formats.grid import Grid

# bits after the first, least exponent
_FLOATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126), torch.float8_e4m3fn: (3, -6)}


@dataclass(frozen=True)
class Rounding:
    """A grid, and where each column of a sweep lies on it. ``scale_OG`` and ``zero_OG`` in the dtype of the sweep, ``group_I``
    int32, in its order. ``kept`` and ``coded`` are the bits after the first, and the least exponent, of the dtype
    that values are stored in and of codes that are floats; (0, 0) where nothing is rounded to them."""

    scale_OG: torch.Tensor
    zero_OG: torch.Tensor
    group_I: torch.Tensor
    lowest: float
    highest: float
    coded: tuple[int, int]
    kept: tuple[int, int]

    @classmethod
    def of(cls, grid: Grid, scale_OG: torch.Tensor, zero_OG: torch.Tensor, shape: torch.Size, factor: Factor) -> Rounding:
        """The grid of a matrix of some shape, as ``grid.fit`` fitted it, for a sweep with a factor. Raises ValueError where the
        loops of a device do not round in the dtype of the sweep."""
        dtype, (rows, columns) = factor.upper_II.dtype, shape
        if dtype == torch.float64 and scale_OG.device.type != "cpu":
            raise ValueError("double: a GPU rounds in float32; leave it out, or run the stage on a CPU")
        group_I = torch.arange(columns, device=scale_OG.device) // (grid.group_size or columns)
        group_I = group_I if factor.order_I is None else group_I[factor.order_I]
        scale, zero = (given.to(dtype).expand(rows, -1).contiguous() for given in (scale_OG, zero_OG))
        coded = _FLOATS[torch.float8_e4m3fn] if grid.codes == "float" else (0, 0)
        kept = (0, 0) if scale_OG.dtype == dtype else _FLOATS[scale_OG.dtype]
        return cls(scale, zero, group_I.int(), grid.lowest, grid.highest, coded, kept)
