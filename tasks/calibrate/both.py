"""Two statistics of the same inputs at once, and how large inputs get: what a method asks for beside that of the method it
builds on.

Shapes: T = tokens, I = input features.
"""

from __future__ import annotations

from typing import Self

import torch

from tasks.calibrate.observe import InputNorms, InputStatistic


class Both(InputStatistic):
    """Two observers of the same inputs: a method's own, and that of the method it builds on (None where that needs none)."""

    def __init__(self, own: InputStatistic, other: InputStatistic | None) -> None:
        self.own, self.other = own, other

    @property
    def parts(self) -> list[InputStatistic]:
        return [part for part in (self.own, self.other) if part is not None]

    def add(self, input_TI: torch.Tensor) -> None:
        for part in self.parts:
            part.add(input_TI)

    def merge(self, other: Self) -> None:
        for part, theirs in zip(self.parts, other.parts, strict=True):
            part.merge(theirs)

    @property
    def finite(self) -> bool:
        return all(part.finite for part in self.parts)

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        for part in self.parts:
            part.assume_nothing(device)

    def reordered(self, order_I: torch.Tensor) -> Both:
        return Both(self.own.reordered(order_I), self.other and self.other.reordered(order_I))

    def divided(self, scale_I: torch.Tensor) -> Both:
        return Both(self.own.divided(scale_I), self.other and self.other.divided(scale_I))

    @property
    def norm_I(self) -> torch.Tensor:
        return self.own.norm_I


class Magnitudes(InputNorms):
    """Sum and maximum of each input feature's absolute value."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.sum_I = torch.zeros(width, dtype=torch.float64)
        self.peak_I = torch.zeros(width)

    def add(self, input_TI: torch.Tensor) -> None:
        super().add(input_TI)
        size_TI = input_TI.abs().float()
        self.sum_I = self.sum_I.to(input_TI.device) + size_TI.sum(0)
        self.peak_I = torch.maximum(self.peak_I.to(input_TI.device), size_TI.amax(0))

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.sum_I += other.sum_I.to(self.sum_I.device)
        self.peak_I = torch.maximum(self.peak_I, other.peak_I.to(self.peak_I.device))

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        super().assume_nothing(device)
        self.sum_I, self.peak_I = torch.ones_like(self.squares_I), torch.ones_like(self.squares_I, dtype=torch.float32)

    def reordered(self, order_I: torch.Tensor) -> Self:
        other = super().reordered(order_I)
        other.sum_I, other.peak_I = self.sum_I[order_I], self.peak_I[order_I]
        return other

    def divided(self, scale_I: torch.Tensor) -> Self:
        other = super().divided(scale_I)
        other.sum_I, other.peak_I = self.sum_I / scale_I.double(), self.peak_I / scale_I.float()
        return other

    @property
    def mean_I(self) -> torch.Tensor:
        """The mean of absolute values, float32 [I]."""
        return (self.sum_I / max(1, self.count)).float()
