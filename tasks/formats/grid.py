"""Grids: which values a quantized weight may take, integers or 8-bit floats times a scale.

The arithmetic is that of compressed-tensors to the bit (a test compares the two), so what a method sees while it solves
is what the exported checkpoint gives back. Scales are rounded to the dtype the weights are stored in before anything
is rounded onto them. Zero is on every grid, so a pruned weight survives.

Shapes: O = output rows, I = input columns, G = groups of columns that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

import torch


@dataclass(frozen=True)
class Grid:
    """``bits`` per weight; one scale per ``group_size`` columns of a row (None: per row), or for a ``whole`` matrix, [1, 1]
    then. ``codes`` are what the scale is multiplied by: integers, or floats with 4 bits of exponent (E4M3), which are 8 bits
    and symmetric."""

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = True
    codes: Literal["int", "float"] = "int"
    whole: bool = False

    def __post_init__(self) -> None:
        assert self.codes == "int" or (self.bits == 8 and self.symmetric), self
        assert not (self.whole and self.group_size), self

    @property
    def lowest(self) -> float:
        return -(2 ** (self.bits - 1)) if self.codes == "int" else torch.finfo(torch.float8_e4m3fn).min

    @property
    def highest(self) -> float:
        return 2 ** (self.bits - 1) - 1 if self.codes == "int" else torch.finfo(torch.float8_e4m3fn).max

    def check(self, width: int) -> None:
        """Raise ValueError when the groups do not fill an input width."""
        if self.group_size and width % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide the input width {width}")

    def group(self, column: int) -> int:
        """Which group a column is in."""
        return column // self.group_size if self.group_size else 0

    def fit(
        self,
        weight_OI: torch.Tensor,
        loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
        shrinks: Sequence[float] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale [O, G] in the weight's dtype and zero point int8 [O, G] that cover each group from end to end. With a ``loss``
        [O, G] of what rounding changes, [O, G, I], each group may shrink to a share of its range, one of ``shrinks``, where
        that loses less: what lies outside goes to the end."""
        self.check(weight_OI.shape[1])
        grouped_OGI = weight_OI.float().unflatten(1, (-1, self.group_size or weight_OI.shape[1]))
        low_OG, high_OG = grouped_OGI.amin(-1).clamp(max=0), grouped_OGI.amax(-1).clamp(min=0)
        if self.whole:
            low_OG, high_OG = low_OG.amin(0, keepdim=True), high_OG.amax(0, keepdim=True)
        scale_OG, zero_OG = self._spanning(low_OG, high_OG, weight_OI.dtype)
        if loss is None:
            return scale_OG, zero_OG
        least_OG = self._lost(weight_OI, scale_OG, zero_OG, loss)
        for shrink in shrinks:
            tried_OG, its_zero_OG = self._spanning(shrink * low_OG, shrink * high_OG, weight_OI.dtype)
            lost_OG = self._lost(weight_OI, tried_OG, its_zero_OG, loss)
            less_OG = lost_OG < least_OG
            least_OG = torch.where(less_OG, lost_OG, least_OG)
            scale_OG, zero_OG = torch.where(less_OG, tried_OG, scale_OG), torch.where(less_OG, its_zero_OG, zero_OG)
        return scale_OG, zero_OG

    def _lost(
        self,
        weight_OI: torch.Tensor,
        scale_OG: torch.Tensor,
        zero_OG: torch.Tensor,
        loss: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        change_OI = weight_OI.float() - self.round_matrix(weight_OI, scale_OG, zero_OG).float()
        lost_OG = loss(change_OI.unflatten(1, (-1, self.group_size or weight_OI.shape[1])))
        return lost_OG.sum(0, keepdim=True) if self.whole else lost_OG

    def _spanning(self, low_OG: torch.Tensor, high_OG: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of groups that reach from ``low_OG`` to ``high_OG``."""
        steps = float(self.highest - self.lowest)
        span_OG = 2 * torch.maximum(low_OG.abs(), high_OG) if self.symmetric else high_OG - low_OG
        scale_OG = (span_OG / 2 / (steps / 2) if self.symmetric else span_OG / steps).to(dtype)
        limits = torch.finfo(dtype)
        least = limits.tiny * limits.eps  # a group of small float16 weights must not round to zeros by its scale
        scale_OG = torch.where(scale_OG == 0, torch.where(span_OG == 0, limits.eps, least).to(scale_OG.dtype), scale_OG)
        if self.symmetric:
            return scale_OG, torch.zeros_like(scale_OG, dtype=torch.int8)
        zero_OG = (self.lowest - low_OG / scale_OG.float()).clamp(self.lowest, self.highest)
        return scale_OG, zero_OG.round().to(torch.int8)

    def round(self, weight_OG: torch.Tensor, scale_OG: torch.Tensor, zero_OG: torch.Tensor) -> torch.Tensor:
        """The nearest values on the grid, for one scale per weight (or broadcast); as exact as the scale's dtype."""
        scale, zero = scale_OG.to(weight_OG.dtype), zero_OG.to(weight_OG.dtype)
        code_OG = (weight_OG / scale + zero).clamp(self.lowest, self.highest)
        code_OG = code_OG.round() if self.codes == "int" else code_OG.to(torch.float8_e4m3fn).to(code_OG.dtype)
        return ((code_OG - zero) * scale).to(scale_OG.dtype).to(weight_OG.dtype)

    def round_matrix(self, weight_OI: torch.Tensor, scale_OG: torch.Tensor, zero_OG: torch.Tensor) -> torch.Tensor:
        """:meth:`round` for a whole matrix, in the weight's own dtype."""
        grouped_OGI = weight_OI.float().unflatten(1, (-1, self.group_size or weight_OI.shape[1]))
        return self.round(grouped_OGI, scale_OG[..., None], zero_OG[..., None]).flatten(1).to(weight_OI.dtype)


def fitting(size: int | None, widths: Iterable[int]) -> list[int]:
    """Group sizes near this one that divide all widths: powers of two, as kernels have, of at most twice the size, the
    three largest; none where there are only single columns."""
    shared, most = gcd(*widths), 2 * (size or 0)
    return [2**by for by in range(most.bit_length(), 0, -1) if 2**by <= most and not shared % 2**by][:3]
