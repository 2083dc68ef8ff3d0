"""Statistics of a linear's inputs, or of a module's outputs, kept as sums, counts and maxima so that those of data-parallel
workers merge into those of one process.

Linears that read the same tensor (q/k/v, gate/up) share one statistic; which do is seen by :mod:`tasks.calibrate.watch`.

Shapes: T = tokens, I = input features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING, Self

import torch

from tasks.calibrate.solvers.finite import all_finite
from tasks.calibrate.solvers.products import products, strips

if TYPE_CHECKING:
    from tasks.calibrate.solvers.sweep import Factor


class Statistic(ABC):
    """A running statistic over vectors, one per token."""

    @abstractmethod
    def add(self, value_TI: torch.Tensor) -> None:
        """Add the vectors of a batch."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add another worker's statistic, which may lie on another device."""

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether no vector had a NaN or an infinity."""


class InputStatistic(Statistic):
    """A statistic of the inputs of a matrix."""

    @abstractmethod
    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        """Become the statistic of identically distributed features: for a matrix that no token reached."""

    @abstractmethod
    def reordered(self, order_I: torch.Tensor) -> Self:
        """The statistic of the same features in another order."""

    @abstractmethod
    def divided(self, scale_I: torch.Tensor) -> Self:
        """The statistic of the same features, each divided by a scale of its own."""

    @property
    @abstractmethod
    def norm_I(self) -> torch.Tensor:
        """The length of each feature over all tokens, float32 [I]."""


class InputNorms(InputStatistic):
    """Sum of squares of each input feature."""

    def __init__(self, width: int) -> None:
        self.squares_I = torch.zeros(width, dtype=torch.float64)
        self.count = 0

    def add(self, input_TI: torch.Tensor) -> None:
        self.squares_I = self.squares_I.to(input_TI.device)
        # Within a batch float32 is enough, and several times faster; over batches the sum is in float64.
        self.squares_I += input_TI.float().square().sum(0)
        self.count += len(input_TI)

    def merge(self, other: Self) -> None:
        self.squares_I += other.squares_I.to(self.squares_I.device)
        self.count += other.count

    @property
    def norm_I(self) -> torch.Tensor:
        return self.squares_I.sqrt().float()

    @property
    def finite(self) -> bool:
        return all_finite(self.squares_I)

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        self.squares_I = torch.ones_like(self.squares_I, device=device)

    def reordered(self, order_I: torch.Tensor) -> Self:
        other = copy(self)
        other.squares_I = self.squares_I[order_I]
        return other

    def divided(self, scale_I: torch.Tensor) -> Self:
        other = copy(self)
        other.squares_I = self.squares_I / scale_I.double().square()
        return other


class Moments(InputNorms):
    """Sum and sum of squares of each input feature: its mean and variance over all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.sum_I = torch.zeros(width, dtype=torch.float64)

    def add(self, input_TI: torch.Tensor) -> None:
        super().add(input_TI)
        self.sum_I = self.sum_I.to(input_TI.device) + input_TI.float().sum(0)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.sum_I += other.sum_I.to(self.sum_I.device)

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        super().assume_nothing(device)
        self.sum_I = torch.zeros_like(self.squares_I)

    def reordered(self, order_I: torch.Tensor) -> Self:
        other = super().reordered(order_I)
        other.sum_I = self.sum_I[order_I]
        return other

    def divided(self, scale_I: torch.Tensor) -> Self:
        other = super().divided(scale_I)
        other.sum_I = self.sum_I / scale_I.double()
        return other

    @property
    def mean_I(self) -> torch.Tensor:
        return (self.sum_I / max(1, self.count)).float()

    @property
    def variance_I(self) -> torch.Tensor:
        """Never negative."""
        mean_I = self.sum_I / max(1, self.count)
        return (self.squares_I / max(1, self.count) - mean_I.square()).clamp(min=0).float()


class Hessian(InputStatistic):
    """X^T X: the second derivative of the squared output error by the weights, up to a factor.

    It is symmetric, so it is summed up in ``strips`` of rows from the diagonal on, from a width of 1024 a little over half of
    the products. Products of a batch are in ``dtype``, sums over batches in float64: numbers of 24 bits add up there without
    an error unless some are 2^29 times smaller than others, so the order of batches, and who saw which, changes no bit. (With
    products in float64 it may change the last bit of a float64.)
    """

    def __init__(self, width: int, dtype: str = "float32") -> None:
        self.width, self.dtype = width, getattr(torch, dtype)
        self.strips: list[torch.Tensor] = []  # float64 [rows, columns from the first of these rows on]; none before the first
        self.count = 0
        self.factors: dict[tuple[float, int], Factor] = {}

    @classmethod
    def of(cls, sum_II: torch.Tensor, count: int = 1) -> Hessian:
        """That of ``count`` tokens whose products sum up to a symmetric matrix, in its dtype."""
        hessian = cls(len(sum_II), str(sum_II.dtype).removeprefix("torch."))
        hessian.strips, hessian.count = [sum_II[first:last, first:].double() for first, last in strips(len(sum_II))], count
        return hessian

    def add(self, input_TI: torch.Tensor) -> None:
        self._add(products(input_TI, self.dtype))
        self.count += len(input_TI)

    def _add(self, added: Iterable[torch.Tensor]) -> None:
        if not self.strips:
            self.strips = [strip.to(torch.float64, copy=True) for strip in added]
            return
        for own, strip in zip(self.strips, added, strict=True):
            own += strip.to(own.device)

    def merge(self, other: Self) -> None:
        self._add(other.strips)
        self.count += other.count

    @property
    def mean_II(self) -> torch.Tensor:
        """The sum per token, so that its size does not depend on how much data was seen."""
        mean_II = torch.empty(self.width, self.width, dtype=self.dtype, device=self.strips[0].device)
        for (first, last), strip in zip(strips(self.width), self.strips, strict=True):
            mean_II[first:last, first:] = strip / max(1, self.count)
            mean_II[last:, first:last] = mean_II[first:last, last:].T
        return mean_II

    @property
    def _diagonal_I(self) -> torch.Tensor:
        return torch.cat([strip.diagonal() for strip in self.strips])

    @property
    def norm_I(self) -> torch.Tensor:
        return self._diagonal_I.sqrt().float()

    @property
    def finite(self) -> bool:
        return all_finite(self._diagonal_I)

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        self.strips = Hessian.of(torch.eye(self.width, device=device)).strips

    def reordered(self, order_I: torch.Tensor) -> Self:
        mean_II = self.mean_II[order_I][:, order_I]
        return self._like(Hessian.of(mean_II.double() * max(1, self.count)).strips)

    def divided(self, scale_I: torch.Tensor) -> Self:
        scale_I, placed = scale_I.double(), zip(strips(self.width), self.strips, strict=True)
        return self._like([strip / (scale_I[first:last, None] * scale_I[first:]) for (first, last), strip in placed])

    def _like(self, held: list[torch.Tensor]) -> Self:
        other = copy(self)
        other.strips, other.factors = held, {}
        return other

    def factor(self, percent_damp: float, act_order: int = 0) -> Factor:
        """The damped inverse's factor, computed once for all linears that share this statistic. With ``act_order`` its
        columns come in groups of as many, those of the highest summed curvature first."""
        from dataclasses import replace

        from tasks.calibrate.solvers.sweep import factor

        key = (percent_damp, act_order)
        if key not in self.factors and not act_order:
            self.factors[key] = factor(self.mean_II, percent_damp)
        elif key not in self.factors:
            order_I = self.by_curvature(act_order)
            self.factors[key] = replace(factor(self.mean_II[order_I][:, order_I], percent_damp), order_I=order_I)
        return self.factors[key]

    def by_curvature(self, group: int) -> torch.Tensor:
        """int64 [I]: the columns, whole groups of consecutive ones at a time, by descending curvature; ties stay in order."""
        diagonal_I = self._diagonal_I
        columns_GI = torch.arange(self.width, device=diagonal_I.device).view(-1, group)
        curvature_G = diagonal_I.view(-1, group).sum(1)
        return columns_GI[curvature_G.argsort(descending=True, stable=True)].flatten()
