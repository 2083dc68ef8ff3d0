"""Ranges are clipped where that loses less, and never where it does not."""

import pytest
import torch

from tasks.calibrate.ranges import OUTPUT_SHRINKS, POWER, WEIGHT_SHRINKS, fit_range
from tasks.formats.grid import Grid
from tests.tasks.quantizers.test_gptq import problem


def heavy(seed=0):
    """Weights with a few large ones, and correlated inputs."""
    weight_OI, hessian = problem(seed=seed)
    weight_OI[torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(seed)) < 0.03] *= 4
    return weight_OI, hessian


@pytest.mark.parametrize("grid", [Grid(3, 16), Grid(3, 16, symmetric=False), Grid(4, None), Grid(4, None, whole=True)])
def test_least_errors_are_least_of_what_was_tried_and_not_above_those_from_end_to_end(grid):
    weight_OI, hessian = heavy()

    def errors(scales):
        change_OI = weight_OI - grid.round_matrix(weight_OI, *scales)
        return float(change_OI.abs().pow(POWER).sum()), change_OI

    (whole, _), (least, _) = errors(grid.fit(weight_OI)), errors(fit_range(grid, weight_OI, "mse"))
    assert least < whole
    size = grid.group_size or 64
    blocks_II = torch.block_diag(*(hessian.mean_II[at : at + size, at : at + size] for at in range(0, 64, size)))

    def output(scales):
        change_OI = errors(scales)[1].double()
        return float((change_OI @ blocks_II * change_OI).sum())

    assert output(fit_range(grid, weight_OI, "output", hessian)) < output(grid.fit(weight_OI))


def test_a_group_without_outliers_keeps_its_ends():
    weight_OI = torch.tensor([[-7.0, 7.0, -7.0, 7.0]])
    for reach in ("mse", "output"):
        found = fit_range(Grid(4, 4), weight_OI, reach, problem(1, 4)[1])
        assert all(torch.equal(one, other) for one, other in zip(found, Grid(4, 4).fit(weight_OI), strict=True))


def test_a_range_worked_out_by_hand():
    """Symmetric 2 bits, codes -2 .. 1, so the step is 2/3 of the largest: 1 and fifteen weights of a quarter. From end to end a
    quarter is rounded to 0 (it is under a third), and 1 to 2/3. Shrunk to s the step is 2s/3, and a quarter is on code 1 once
    s/3 < 1/4; the weights' errors of 2.4th powers then are least at the s that is tried nearest to 0.4."""
    weight_OI = torch.tensor([[1.0, *[0.25] * 15]])
    scale_OG, _ = fit_range(Grid(2, 16), weight_OI, "mse")
    losses = {}
    for shrink in (1.0, *WEIGHT_SHRINKS):
        step = 2 * shrink / 3
        losses[shrink] = (1 - step) ** POWER + 15 * min(abs(0.25 - step), 0.25) ** POWER
    best = min(losses, key=losses.get)
    assert best < 0.6 and float(scale_OG) == pytest.approx(2 * best / 3, rel=1e-6)


def test_dead_weights_have_no_say_in_a_range():
    """A group of zeros beside live ones has the scale that the live ones have alone."""
    weight_OI, _ = heavy()
    alone = fit_range(Grid(3, None), weight_OI, "mse")[0]
    spread_OI = torch.zeros(16, 128)
    spread_OI[:, ::2] = weight_OI
    assert torch.equal(fit_range(Grid(3, None), spread_OI, "mse")[0], alone)
    assert len(OUTPUT_SHRINKS) == 9 and min(OUTPUT_SHRINKS) == pytest.approx(0.55)
