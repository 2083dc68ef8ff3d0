"""The scaling law of sparse pretraining: what loss a run comes to, from the weights it held and the tokens it saw.

L(N, D) = E + A * N^-alpha + B * D^-beta is Chinchilla's law (arXiv 2203.15556); The Journey Matters (arXiv 2501.12486) reads N
as the live prunable weights averaged over training. Whether that is the right count is a question to the runs at hand, so the
same five constants are fitted to each count and compared. Constants are found as in Chinchilla: Huber loss on the log of the
loss, in log-sum-exp form, by L-BFGS from a grid of starts.

Shapes: R = runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize

COUNTS = ("average", "initial", "final")  # what N may stand for
DELTA = 1e-3  # where Huber's loss turns from squares to absolute values
FEWEST = 6  # runs: one more than there are constants
# Terms of the sum are at least exp(-20) of a nat, so that one which the runs do not show vanishes and stays finite. Exponents
# are not negative: more weights and more tokens never hurt.
BOUNDS = ((-20, 5), (-20, 5), (0, 3), (-20, 5), (0, 3))


@dataclass(frozen=True)
class ScalingLaw:
    """The constants, by the names they have in the literature. E is in nats per token."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def __post_init__(self) -> None:
        if not all(0 <= constant < float("inf") for constant in astuple(self)):
            raise ValueError(f"constants are finite and not negative, got {self}")

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


@dataclass(frozen=True)
class TrainingRun:
    """A finished run: prunable weights (at first, on average, in the end), tokens seen, held-out loss."""

    initial: float
    average: float
    final: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Quality:
    """How well one count explains the losses. Errors are those of the log of the loss, so 0.01 is one percent of it.

    ``left_out_error`` is the mean error on a run that took no part in the fit.
    """

    law: ScalingLaw
    objective: float
    r2: float
    mean_absolute_error: float
    left_out_error: float


Fitted = tuple[ScalingLaw, float]  # a law and the Huber loss it leaves


class _Points:
    """Runs on log axes, each centred: constants that are read off at the middle of the data hardly depend on each other."""

    def __init__(self, runs: Sequence[TrainingRun], count: str) -> None:
        self.parameters_R = np.log([getattr(run, count) for run in runs])
        self.tokens_R = np.log([run.tokens for run in runs])
        self.losses_R = np.log([run.loss for run in runs])
        self.middle = self.parameters_R.mean(), self.tokens_R.mean()

    def fit(self, starts: Iterable[np.ndarray]) -> Fitted:
        """The best law from several starts, and its Huber loss."""
        x_R, y_R = self.parameters_R - self.middle[0], self.tokens_R - self.middle[1]
        options = {"maxiter": 1_000, "ftol": 1e-12, "gtol": 1e-9}
        found = [
            minimize(_huber, start, (x_R, y_R, self.losses_R), "L-BFGS-B", jac=True, bounds=BOUNDS, options=options)
            for start in starts
        ]
        best = min(found, key=lambda result: result.fun)
        e, a, alpha, b, beta = map(float, best.x)
        a, b = a + alpha * self.middle[0], b + beta * self.middle[1]
        return ScalingLaw(*map(float, (np.exp(e), np.exp(a), alpha, np.exp(b), beta))), float(best.fun) * DELTA**2

    def start(self, law: ScalingLaw) -> np.ndarray:
        """A law in the coordinates of these points."""
        e, a, b = np.log([law.E, law.A, law.B])
        return np.array([e, a - law.alpha * self.middle[0], law.alpha, b - law.beta * self.middle[1], law.beta])

    def starts(self) -> list[np.ndarray]:
        """A grid: how the mean loss is shared out among the three terms, and how steep two of them are."""
        mean = self.losses_R.mean()
        shares = [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6), (0.02, 0.49, 0.49)]
        return [
            np.array([mean + np.log(floor), mean + np.log(size), alpha, mean + np.log(data), beta])
            for (floor, size, data), alpha, beta in product(shares, (0.1, 0.4, 1.0), (0.1, 0.4, 1.0))
        ]


def _huber(constants: np.ndarray, x_R: np.ndarray, y_R: np.ndarray, losses_R: np.ndarray) -> tuple[float, np.ndarray]:
    """Huber loss in units of DELTA^2 (L-BFGS stops on absolute changes, so they must not be tiny), and its gradient."""
    e, a, alpha, b, beta = constants
    terms_3R = np.stack([np.full_like(x_R, e), a - alpha * x_R, b - beta * y_R])
    top_R = terms_3R.max(0)
    shares_3R = np.exp(terms_3R - top_R)
    total_R = shares_3R.sum(0)
    residual_R = (top_R + np.log(total_R) - losses_R) / DELTA
    size_R = np.abs(residual_R)
    value = np.where(size_R <= 1, residual_R**2 / 2, size_R - 0.5).sum()
    floor_R, size_slope_R, data_slope_R = shares_3R / total_R * np.clip(residual_R, -1, 1) / DELTA
    sums = (
        floor_R.sum(),
        size_slope_R.sum(),
        -(size_slope_R * x_R).sum(),
        data_slope_R.sum(),
        -(data_slope_R * y_R).sum(),
    )
    return float(value), np.array(sums)


def check_runs(runs: Sequence[TrainingRun]) -> None:
    """Raise ValueError where the runs cannot tell the terms apart."""
    if len(runs) < FEWEST:
        raise ValueError(f"{FEWEST} runs or more are needed to fit five constants, got {len(runs)}")
    for what, values in (("average parameters", [run.average for run in runs]), ("tokens", [run.tokens for run in runs])):
        if (different := len(set(values))) < 3:
            raise ValueError(f"runs with 3 or more different {what} are needed to fit a law, got {different}")


def fit(runs: Sequence[TrainingRun], count: str = "average") -> Fitted:
    """The law of a count, and the Huber loss it is left with."""
    points = _Points(runs, count)
    return points.fit(points.starts())


def refit(runs: Sequence[TrainingRun], law: ScalingLaw, count: str = "average") -> Fitted:
    """:func:`fit` of nearly the same runs, many times over: begun at ``law`` alone."""
    points = _Points(runs, count)
    return points.fit([points.start(law)])


def assess(runs: Sequence[TrainingRun], count: str) -> Quality:
    """Fit a count and measure the fit, also on each run in turn left out."""
    law, objective = fit(runs, count)
    losses_R = np.log([run.loss for run in runs])
    errors_R = log_errors(law, runs, count)
    left_out = [
        abs(log_errors(refit([*runs[:index], *runs[index + 1 :]], law, count)[0], [run], count)[0])
        for index, run in enumerate(runs)
    ]
    spread = float(((losses_R - losses_R.mean()) ** 2).sum())
    r2 = 1 - float((errors_R**2).sum()) / spread if spread else 0.0
    return Quality(law, objective, r2, float(np.abs(errors_R).mean()), float(np.mean(left_out)))


def log_errors(law: ScalingLaw, runs: Sequence[TrainingRun], count: str) -> np.ndarray:
    """Log of predicted over measured loss, run by run."""
    values: Any = np.array([(getattr(run, count), run.tokens, run.loss) for run in runs], float)
    parameters_R, tokens_R, losses_R = values.T
    return np.log(law.loss(parameters_R, tokens_R) / losses_R)


def draws(runs: Sequence[TrainingRun], times: int, seed: int = 0) -> Iterator[list[TrainingRun]]:
    """The runs drawn anew with replacement; at least as many different ones as there are constants."""
    generator = np.random.default_rng(seed)
    while times:
        drawn = generator.integers(len(runs), size=len(runs))
        if len(set(drawn.tolist())) >= FEWEST - 1:
            times -= 1
            yield [runs[index] for index in drawn]


def resample(runs: Sequence[TrainingRun], qualities: Mapping[str, Quality], times: int) -> list[dict[str, Fitted]]:
    """Every count fitted to runs drawn anew: how its predictions and its lead over the others spread is how sure they are."""
    return [{count: refit(drawn, quality.law, count) for count, quality in qualities.items()} for drawn in draws(runs, times)]


def chosen(resampled: Sequence[Mapping[str, Fitted]]) -> dict[str, float]:
    """In which share of the draws each count has the least Huber loss."""
    best = [min(fitted.items(), key=lambda item: item[1][1])[0] for fitted in resampled]
    return {count: best.count(count) / len(best) for count in resampled[0]}


def verdict(qualities: Mapping[str, Quality], shares: Mapping[str, float]) -> str:
    """Which count explains the losses best, by how much and how surely, in one line. ``shares`` is what ``chosen`` gave."""
    best, *others = sorted(qualities, key=lambda count: qualities[count].objective)
    if qualities[best].objective == qualities[others[-1]].objective:
        return "the three counts explain the losses alike: no run was sparse"
    least = max(qualities[best].objective, DELTA**2)  # losses without noise are left with none to compare to
    error = {count: f"{100 * quality.left_out_error:.2g} %" for count, quality in qualities.items()}
    against = " and ".join(
        f"{error[count]} for {count} N (Huber loss {qualities[count].objective / least:.3g} times as large)" for count in others
    )
    told = f"{best} N explains the losses best: left-out error {error[best]}, against {against}"
    return f"{told}; best in {100 * shares[best]:.0f} % of resamples"
