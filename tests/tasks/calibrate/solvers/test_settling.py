"""The compiled loops of a sweep do what the same columns settled one by one in Python do, on a CPU and a GPU."""

import pytest
import torch

from tasks.calibrate.solvers.rounding import Rounding
from tasks.calibrate.solvers.settling import settle_columns, settle_groups
from tasks.calibrate.solvers.sweep import Factor, factor, sweep_blocks
from tasks.formats.grid import Grid
from tasks.formats.pattern import NM
from tests.tasks import DEVICES
from tests.tasks.calibrate.solvers.by_column import sweep
from tests.tasks.calibrate.solvers.test_sweep import problem

DTYPES = [torch.float32, torch.float64]


def setting(device, dtype, rows=37, width=80):
    """Weights, the inverse Hessian's factor, and the saliency of a unit weight of each column."""
    weight_OI, hessian_II = problem(rows, width, tokens=3 * width)
    upper_II = factor(hessian_II).upper_II
    saliency_I = upper_II.diagonal().square().reciprocal()
    return [given.to(device, dtype) for given in (weight_OI, upper_II, saliency_I)]


def tolerance(dtype):
    return {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 1e-10}


def differ_by_near_ties(keep_OG, picked_OG, score_OG, dtype):
    """Both keep as many of each group, and what just one of them keeps scores the same but for rounding."""
    odd_OG = keep_OG ^ picked_OG
    ends = [score_OG.masked_fill(~odd_OG, fill) for fill in (-torch.inf, torch.inf)]
    apart_O = torch.where(odd_OG.any(1), ends[0].amax(1) / ends[1].amin(1) - 1, 0.0)
    return torch.equal(keep_OG.sum(1), picked_OG.sum(1)) and bool((apart_O.abs() < tolerance(dtype)["atol"]).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 7, 16, 128])
def test_columns_of_a_known_mask(device, dtype, block):
    weight_OI, upper_II, _ = setting(device, dtype)
    keep_OI = torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(1)).to(device) > 0.5

    def settle(work_OI, errors_OI, start, end):
        middle = (start + end) // 2  # a span that ends before its block does
        settle_columns(work_OI, errors_OI, keep_OI, upper_II, start, middle, end)
        settle_columns(work_OI, errors_OI, keep_OI, upper_II, middle, end, end)

    settled_OI, errors_OI = sweep_blocks(weight_OI, upper_II, settle, block)
    expected = sweep(weight_OI, upper_II, lambda column, ahead_OG: ahead_OG[:, 0] * keep_OI[:, column], block)
    torch.testing.assert_close(settled_OI, expected[0], **tolerance(dtype))
    torch.testing.assert_close(errors_OI, expected[1], **tolerance(dtype))
    assert not settled_OI[~keep_OI].any() and not errors_OI[keep_OI].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 16), NM(3, 5)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_groups_choose_as_their_pattern_does(device, dtype, pattern, masked):
    weight_OI, upper_II, saliency_I = setting(device, dtype)
    weight_OI[:, 8:12] = weight_OI[:, 8:9]  # ties
    before_OI = torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(2)).to(device) > (0.3 if masked else -1)
    keep_OI = before_OI.clone()
    sparsity = 1 - pattern.n / pattern.m

    def settle(work_OI, errors_OI, start, end):
        settle_groups(work_OI, errors_OI, keep_OI, upper_II, saliency_I, pattern.m, pattern.m - pattern.n, start, end)

    settled_OI, _ = sweep_blocks(weight_OI, upper_II, settle, 2 * pattern.m)

    def project(column, ahead_OG):
        if column % pattern.m == 0:
            span = slice(column, column + pattern.m)
            score_OG = (ahead_OG[:, : pattern.m].square() * saliency_I[span]).masked_fill(~before_OI[:, span], -1)
            picked_OG = pattern.keep(score_OG, sparsity) & before_OI[:, span]
            assert differ_by_near_ties(keep_OI[:, span], picked_OG, score_OG, dtype)
        return ahead_OG[:, 0] * keep_OI[:, column]

    expected_OI, _ = sweep(weight_OI, upper_II, project, 2 * pattern.m)
    assert pattern.holds(keep_OI, sparsity)
    torch.testing.assert_close(settled_OI, expected_OI, **tolerance(dtype))


def test_double_is_refused_where_the_loops_round_in_float32():
    scale_OG, upper_II = torch.ones(4, 1, device="meta"), torch.eye(16, dtype=torch.float64, device="meta")
    with pytest.raises(ValueError, match="double: a GPU rounds in float32; leave it out, or run the stage on a CPU"):
        Rounding.of(Grid(4, 16), scale_OG, scale_OG, torch.Size([4, 16]), Factor(upper_II, 0.01))


GRIDS = [Grid(4, 16), Grid(3, None, symmetric=False), Grid(8, 8, codes="float"), Grid(8, None, codes="float", whole=True)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_columns_on_a_grid(device, stored, grid, masked):
    """In the order of curvature, so that the columns of a group lie apart."""
    weight_OI, hessian_II = problem(37, 80, tokens=240)
    factored = factor(hessian_II[:, order_I := torch.randperm(80, generator=torch.Generator().manual_seed(3))][order_I])
    upper_II = factored.upper_II.to(device, torch.float32)
    factored = Factor(upper_II, factored.damping, order_I.to(device))
    weight_OI = weight_OI.to(device, torch.float32)
    scale_OG, zero_OG = grid.fit(weight_OI.to(stored))
    keep_OI = torch.rand(weight_OI.shape, generator=torch.Generator().manual_seed(1)).to(device) > (0.5 if masked else -1)
    rounding = Rounding.of(grid, scale_OG, zero_OG, weight_OI.shape, factored)

    def settle(work_OI, errors_OI, start, end):
        settle_columns(work_OI, errors_OI, keep_OI, upper_II, start, end, end, rounding)

    def project(column, ahead_OG):
        group = grid.group(int(order_I[column]))
        return grid.round(ahead_OG[:, 0], scale_OG[:, group], zero_OG[:, group]) * keep_OI[:, column]

    settled_OI, errors_OI = sweep_blocks(factored.arrange(weight_OI), upper_II, settle, 16)
    expected_OI, _ = sweep(factored.arrange(weight_OI), upper_II, project, 16)
    assert not settled_OI[~keep_OI].any()
    again_OI = grid.round_matrix(factored.restore(settled_OI), scale_OG, zero_OG)
    assert torch.equal(factored.restore(settled_OI), again_OI)  # on the grid to the bit
    torch.testing.assert_close(factored.arrange(weight_OI) - settled_OI, errors_OI @ upper_II, rtol=0, atol=2e-4)
    assert (settled_OI != expected_OI).double().mean() < 0.02  # what lies half-way between two codes may go either way
