"""What can be said of one matrix, and of what flows into it: zeros, spread, outliers, and how many directions it really has.

Shapes: O = outputs, I = inputs, N = tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def effective_rank(matrix_OI: torch.Tensor) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli, 2007): 1 for one direction, the
    smaller side where all are equal; 0 of a matrix of zeros. From the eigenvalues of the smaller Gram matrix, which is what
    a large matrix allows."""
    wide = matrix_OI if matrix_OI.shape[0] <= matrix_OI.shape[1] else matrix_OI.mT
    gram = wide.double() @ wide.double().mT
    values = torch.linalg.eigvalsh(gram).clamp_min(0)
    values = torch.where(values > values.max() * 1e-12, values, 0.0).sqrt()  # below it is rounding
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp()) if values.sum() > 0 else 0.0


def kurtosis(values: torch.Tensor) -> float:
    """The fourth moment over the squared second, about the mean: 3 of a normal distribution, more where outliers are; 0
    where all are equal."""
    centred = values.double() - values.double().mean()
    second = centred.square().mean()
    return float(centred.pow(4).mean() / second.square()) if second > 0 else 0.0


def weight_figures(matrix_OI: torch.Tensor) -> dict[str, float]:
    """Of a matrix: its share of zeros, what its weights look like, and its rank as a share of the smaller side."""
    values = matrix_OI.float()
    return {
        "zeros": float((values == 0).double().mean()),
        "mean": float(values.double().mean()),
        "standard_deviation": float(values.double().std(correction=0)),
        "largest": float(values.abs().max()),
        "kurtosis": kurtosis(values),
        "effective_rank": effective_rank(values) / min(values.shape),
    }


@dataclass
class Inflow:
    """What flowed into a matrix, piece by piece."""

    count: int = 0
    zeros: int = 0
    largest: float = 0.0
    square: float = 0.0
    fourth: float = 0.0

    def add(self, values_NI: torch.Tensor) -> None:
        values = values_NI.double()
        self.count += values.numel()
        self.zeros += int((values == 0).sum())
        self.largest = max(self.largest, float(values.abs().max()))
        self.square += float(values.square().sum())
        self.fourth += float(values.pow(4).sum())

    def figures(self) -> dict[str, float]:
        """Root mean square, the largest, its ratio to the former, the share of zeros and the kurtosis about zero."""
        square = self.square / max(1, self.count)
        return {
            "input_rms": square**0.5,
            "input_largest": self.largest,
            "input_outlier": self.largest / square**0.5 if square else 0.0,
            "input_zeros": self.zeros / max(1, self.count),
            "input_kurtosis": self.fourth / max(1, self.count) / square**2 if square else 0.0,
        }
