"""How to spend a training budget on a sparse model of a given final size, by a fitted scaling law.

Size, tokens and window are not free: with the final size N and the budget C fixed, a sparsity s means N / (1 - s) weights at
first, the window of The Journey Matters (arXiv 2501.12486: pruning from 25 % to 75 % of the compute) gives their average, and
C = 6 * average * tokens gives the tokens. So the plan is the lowest point of one curve over s. That count of C is the paper's:
attention scores and the LM head are left out of it.

Shapes: S = sparsities tried, L = laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.train.scaling.law import ScalingLaw
from tasks.train.schedule import ComputeWindow

STEPS = 1_000  # sparsities tried between 0 and 1
BAND = (0.05, 0.95)


@dataclass(frozen=True)
class Route:
    """One way to arrive at a final size on a budget. Counts are of prunable weights; ``start`` and ``end`` are in tokens.

    ``dense_tokens`` is what the budget buys the dense model: the ``tokens`` of a pretrain stage.
    """

    sparsity: float
    initial_parameters: float
    average_parameters: float
    final_parameters: float
    dense_tokens: int
    tokens: int
    start: int
    end: int


@dataclass(frozen=True)
class Outlook:
    """The best route, the losses predicted along all of them, and 90 % bands from the resampled laws."""

    route: Route
    loss: float
    loss_band: tuple[float, float]
    sparsity_band: tuple[float, float]
    sparsities: list[float]
    losses: list[float]
    low: list[float]
    high: list[float]


def route(flops: float, final_parameters: float, sparsity: float) -> Route:
    """Where a sparsity leads. The window's rule counts in steps of any size; here a step is a token."""
    initial = final_parameters / (1 - sparsity)
    dense_tokens = round(flops / (6 * initial))
    start, end, tokens = ComputeWindow(sparsity).steps(dense_tokens)
    return Route(sparsity, initial, initial * dense_tokens / tokens, final_parameters, dense_tokens, tokens, start, end)


def plan(
    law: ScalingLaw, resampled: Sequence[ScalingLaw], flops: float, final_parameters: float, max_sparsity: float
) -> Outlook:
    """The sparsity of at most ``max_sparsity`` with the lowest predicted loss."""
    check_budget(flops, final_parameters, max_sparsity)
    routes = [route(flops, final_parameters, step / STEPS) for step in range(round(max_sparsity * STEPS) + 1)]
    average_S = np.array([way.average_parameters for way in routes])
    tokens_S = np.array([way.tokens for way in routes], float)
    losses_S = law.loss(average_S, tokens_S)
    others_LS = np.stack([other.loss(average_S, tokens_S) for other in resampled])
    low_S, high_S = np.quantile(others_LS, BAND, axis=0)
    best = int(losses_S.argmin())
    least, most = np.quantile(others_LS.argmin(1), BAND) / STEPS
    return Outlook(
        routes[best],
        float(losses_S[best]),
        (float(low_S[best]), float(high_S[best])),
        (float(least), float(most)),
        [way.sparsity for way in routes],
        losses_S.tolist(),
        low_S.tolist(),
        high_S.tolist(),
    )


def check_budget(flops: float, final_parameters: float, max_sparsity: float) -> None:
    """Raise ValueError, in one line, where no run can be meant."""
    for name, value in (("flops", flops), ("final-params", final_parameters)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} {value:g} is no budget; give a positive number")
    if not 0 <= max_sparsity < 1:
        raise ValueError(f"max-sparsity {max_sparsity:g} is not in [0, 1)")
    largest = final_parameters / (1 - max_sparsity)
    if flops < 6 * largest * 100:  # the window needs tokens to lie between
        raise ValueError(
            f"flops {flops:g} buys {flops / (6 * largest):.3g} tokens for {largest:.3g} parameters; give more FLOPs, fewer "
            f"final-params or a lower max-sparsity"
        )
