"""The sweep's identities hold exactly, whatever the projection."""

import pytest
import torch

from tasks.calibrate.solvers.sweep import damped, factor
from tasks.formats.grid import Grid
from tests.tasks.calibrate.solvers.by_column import sweep


def problem(rows=12, width=40, tokens=200, seed=0):
    """Weights, and the Hessian of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    input_TI = torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ mixing
    weight_OI = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return weight_OI, input_TI.T @ input_TI / tokens


def rounding(column, ahead_OG):
    return (ahead_OG[:, 0] * 2).round() / 2


@pytest.mark.parametrize("block", [1, 7, 16, 128])
def test_what_was_taken_is_the_errors_times_the_factor(block):
    weight_OI, hessian_II = problem()
    solved = factor(hessian_II)
    settled_OI, errors_OI = sweep(weight_OI, solved.upper_II, rounding, block)
    torch.testing.assert_close(weight_OI - settled_OI, errors_OI @ solved.upper_II, rtol=0, atol=1e-9)


@pytest.mark.parametrize("block", [7, 128])
def test_the_loss_is_the_change_of_the_output_under_the_damped_hessian(block):
    weight_OI, hessian_II = problem()
    solved = factor(hessian_II)
    settled_OI, errors_OI = sweep(weight_OI, solved.upper_II, rounding, block)
    change_OI = weight_OI - settled_OI
    damped_II = hessian_II + 0.01 * hessian_II.diagonal().mean() * torch.eye(len(hessian_II))
    expected = 0.5 * torch.trace(change_OI @ damped_II @ change_OI.T)
    assert abs(errors_OI.square().sum() / 2 - expected) <= 1e-6 * expected


def test_the_block_width_changes_nothing():
    weight_OI, hessian_II = problem()
    upper_II = factor(hessian_II).upper_II
    settled = [sweep(weight_OI, upper_II, rounding, block)[0] for block in (1, 8, 128)]
    assert torch.equal(settled[0], settled[1]) and torch.equal(settled[1], settled[2])


def test_alike_independent_inputs_need_no_compensation():
    weight_OI, _ = problem()
    settled_OI, _ = sweep(weight_OI, factor(3.0 * torch.eye(40, dtype=torch.float64)).upper_II, rounding)
    assert torch.equal(settled_OI, (weight_OI * 2).round() / 2)


def test_a_projection_that_takes_nothing_changes_nothing():
    weight_OI, hessian_II = problem()
    settled_OI, errors_OI = sweep(weight_OI, factor(hessian_II).upper_II, lambda column, ahead_OG: ahead_OG[:, 0].clone())
    assert torch.equal(settled_OI, weight_OI) and not errors_OI.any()


def test_the_projection_sees_the_columns_that_are_decided_together():
    weight_OI, hessian_II = problem(width=10)
    seen = []
    sweep(
        weight_OI,
        factor(hessian_II).upper_II,
        lambda column, ahead_OG: seen.append((column, ahead_OG.shape[1])) or ahead_OG[:, 0].clone(),
        block=4,
    )
    assert seen == [(0, 4), (1, 3), (2, 2), (3, 1), (4, 4), (5, 3), (6, 2), (7, 1), (8, 2), (9, 1)]


@pytest.mark.parametrize("width", [1, 16, 127, 300, 513])
def test_the_factor_is_the_inverse_hessians(width):
    _, hessian_II = problem(width=width, tokens=2 * width)
    solved = factor(hessian_II)
    assert torch.equal(solved.upper_II, solved.upper_II.triu())
    inverse_II = damped(hessian_II, solved.damping).inverse()
    torch.testing.assert_close(solved.upper_II.T @ solved.upper_II, inverse_II, rtol=1e-8, atol=1e-10)


def test_damping_climbs_a_ladder_and_says_so():
    _, hessian_II = problem(tokens=10)
    assert factor(hessian_II).damping == 0.01
    hessian_II -= 0.05 * hessian_II.diagonal().mean() * torch.eye(40)  # what rounding errors do, only larger
    assert factor(hessian_II).damping == 0.1
    with pytest.raises(ValueError, match="use more calibration data"):
        factor(-torch.eye(4))


def test_a_dead_feature_takes_no_part_in_compensation():
    weight_OI, hessian_II = problem()
    hessian_II[5] = hessian_II[:, 5] = 0
    settled_OI, _ = sweep(weight_OI, factor(hessian_II).upper_II, rounding)
    assert settled_OI.isfinite().all() and torch.equal(settled_OI[:, 5], (weight_OI[:, 5] * 2).round() / 2)


def test_compensation_beats_rounding_on_correlated_inputs():
    weight_OI, hessian_II = problem()
    grid = Grid(3, None)
    scale_OG, zero_OG = grid.fit(weight_OI)
    settled_OI, _ = sweep(
        weight_OI,
        factor(hessian_II).upper_II,
        lambda column, ahead_OG: grid.round(ahead_OG[:, :1], scale_OG, zero_OG)[:, 0],
    )
    nearest_OI = grid.round_matrix(weight_OI, scale_OG, zero_OG)
    losses = [torch.trace((weight_OI - q) @ hessian_II @ (weight_OI - q).T) for q in (settled_OI, nearest_OI)]
    assert losses[0] < 0.7 * losses[1]
