"""A plan is the lowest point of the law along the routes that cost the budget and end at the final size."""

from __future__ import annotations

import pytest

from tasks.train.scaling.budget import plan, route
from tasks.train.scaling.law import ScalingLaw

# With these constants the loss at C = 6 * N * D is 1 + N^-1/2 + D^-1/2, lowest where N = D = sqrt(C / 6).
EVEN = ScalingLaw(1.0, 1.0, 0.5, 1.0, 0.5)
MILLIONS = 6 * 1e6 * 1e6  # the budget that trains a million weights on a million tokens


def test_a_route_ends_at_the_final_size_and_costs_the_budget():
    """At 80 % a dense step buys 2.5059 sparse ones (The Journey Matters), so N-bar is 0.3991 of the initial size."""
    way = route(6e18, 2e8, 0.8)
    assert way.initial_parameters == pytest.approx(1e9) and way.final_parameters == 2e8
    assert way.dense_tokens == 1_000_000_000 and way.tokens == pytest.approx(2.5059e9, rel=1e-4)
    assert way.average_parameters == pytest.approx(0.3991e9, rel=1e-3)
    assert 6 * way.average_parameters * way.tokens == pytest.approx(6e18)
    assert (way.start, way.end) == (250_000_000, pytest.approx(1.2559e9, rel=1e-4))


def test_the_plan_is_where_size_and_tokens_pull_alike():
    """Ending at 600 000 weights, the average is 600 000 without pruning and 1.49 million at 90 %: a million lies between."""
    best = plan(EVEN, [EVEN], MILLIONS, 6e5, 0.9)
    assert best.route.average_parameters == pytest.approx(1e6, rel=0.01)
    assert best.route.tokens == pytest.approx(1e6, rel=0.01)
    assert best.loss == min(best.losses) == pytest.approx(1.002)
    assert 0 < best.route.sparsity < 0.9
    assert best.sparsities[best.losses.index(best.loss)] == best.route.sparsity


def test_a_final_size_beyond_the_best_average_is_trained_dense():
    best = plan(EVEN, [EVEN], MILLIONS, 2e6, 0.9)
    assert best.route.sparsity == 0 and best.route.tokens == best.route.dense_tokens == 500_000


def test_a_small_final_size_is_pruned_as_far_as_allowed():
    assert plan(EVEN, [EVEN], MILLIONS, 1e4, 0.8).route.sparsity == 0.8


def test_the_band_is_where_the_resampled_laws_lie():
    others = [ScalingLaw(1.0 + 0.01 * index, 1.0, 0.5, 1.0, 0.5) for index in range(101)]
    best = plan(EVEN, others, MILLIONS, 6e5, 0.9)
    assert best.loss_band == pytest.approx((best.loss + 0.05, best.loss + 0.95))
    assert best.sparsity_band == (best.route.sparsity, best.route.sparsity)
    assert len(best.low) == len(best.high) == len(best.losses) == 901


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ((0.0, 1e6, 0.8), "flops 0 is no budget"),
        ((float("nan"), 1e6, 0.8), "flops nan is no budget"),
        ((1e18, -1.0, 0.8), "final-params -1 is no budget"),
        ((1e18, 1e6, 1.0), r"max-sparsity 1 is not in \[0, 1\)"),
        ((1e9, 1e6, 0.8), "flops 1e.09 buys 33.3 tokens for 5e.06 parameters; give more FLOPs"),
    ],
)
def test_an_impossible_budget_is_refused_in_one_line(budget, message):
    with pytest.raises(ValueError, match=message):
        plan(EVEN, [EVEN], *budget)
