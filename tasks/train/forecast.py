"""Where a loss is going: a curve through what was measured so far, and what it comes to later, with a band.

The curve is E + A * (1 + t / u)^-c over tokens t, with u the tokens between two measurements: a fall that slows down towards a
floor. For each c the best E and A are a linear fit; the band has the predictions of every c under which the measurements are
not much less likely than under the best (a profile likelihood, by Student's t), widened by the scatter around the curve. It
knows of nothing that has not begun to show, such as what a learning rate does that falls at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

EXPONENTS = np.geomspace(0.05, 4, 400)
FEWEST = 5  # measurements, two more than there are constants
SURE = 0.95  # that the band holds what comes, where the curve is of this kind and scatters evenly


@dataclass(frozen=True)
class Forecast:
    """A loss to come, in nats a token, and the ends of its band."""

    loss: float
    low: float
    high: float


def forecast(tokens: Sequence[float], losses: Sequence[float], end: float) -> Forecast | None:
    """The loss at ``end`` tokens; None while there are too few measurements."""
    if len(losses) < FEWEST:
        return None
    t_M, loss_M = np.asarray(tokens, float), np.asarray(losses, float)
    unit = float(np.median(np.diff(t_M)))
    ends, squares = np.empty(len(EXPONENTS)), np.empty(len(EXPONENTS))
    for place, exponent in enumerate(EXPONENTS):
        falling_M = (1 + t_M / unit) ** -exponent
        floor, height = _fit(falling_M, loss_M)
        ends[place] = floor + height * (1 + end / unit) ** -exponent
        squares[place] = ((floor + height * falling_M - loss_M) ** 2).sum()
    freedom = len(losses) - 3
    best = int(squares.argmin())
    variance = max(squares[best] / freedom, 1e-12)
    deviations = float(student.ppf((1 + SURE) / 2, freedom))
    likely = ends[squares <= squares[best] + deviations**2 * variance]
    scatter = deviations * float(np.sqrt(variance))
    return Forecast(float(ends[best]), float(likely.min()) - scatter, float(likely.max()) + scatter)


def _fit(falling_M: np.ndarray, loss_M: np.ndarray) -> tuple[float, float]:
    """Floor and height by least squares, neither below 0: a loss that rises is level."""
    height, floor = np.polyfit(falling_M, loss_M, 1)
    if height < 0:
        return float(loss_M.mean()), 0.0
    if floor < 0:
        return 0.0, float((falling_M * loss_M).sum() / (falling_M**2).sum())
    return float(floor), float(height)
