"""GPTQ compensates what it rounds, and keeps a mask that llm-compressor's would lose."""

import pytest
import torch

from tasks.calibrate.observe import Hessian
from tasks.calibrate.solvers.sweep import damped
from tasks.formats.grid import Grid
from tasks.formats.pattern import NM
from tasks.quantizers.gptq import Gptq
from tasks.quantizers.round_to_nearest import RoundToNearest


def problem(rows=16, width=64, seed=0, isotropic=False):
    """Weights, and a Hessian of correlated inputs: isotropic ones would hide what compensation does to a mask."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(width) if isotropic else torch.randn(width, width, generator=generator)
    input_TI = torch.randn(400, width, generator=generator) @ mixing
    hessian = Hessian(width, "float64")
    hessian.add(input_TI)
    return torch.randn(rows, width, generator=generator), hessian


def loss(weight_OI, edit, hessian):
    change_OI = (weight_OI - edit.weight_OI).double()
    return float(torch.trace(change_OI @ hessian.mean_II @ change_OI.T))


@pytest.mark.parametrize("group_size", [None, 8, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_is_lower_than_rounding_to_nearest(group_size, symmetric):
    weight_OI, hessian = problem()
    grid = Grid(3, group_size, symmetric)
    gptq = Gptq(double=True).solve_linear(weight_OI, hessian, grid)
    nearest = RoundToNearest().solve_linear(weight_OI, None, grid)
    assert loss(weight_OI, gptq, hessian) < 0.7 * loss(weight_OI, nearest, hessian)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_value_is_on_the_grid_that_is_stored(bits):
    weight_OI, hessian = problem()
    grid = Grid(bits, 16)
    edit = Gptq().solve_linear(weight_OI, hessian, grid)
    assert torch.equal(grid.round_matrix(edit.weight_OI, edit.extras["scale"], edit.extras["zero_point"]), edit.weight_OI)
    assert all(row.unique().numel() <= 2**bits for row in edit.weight_OI[:, :16])
    assert torch.equal(edit.extras["scale"], grid.fit(weight_OI)[0]), "static groups are fitted to the given weights"


def test_independent_alike_inputs_give_round_to_nearest():
    weight_OI, _ = problem()
    hessian, grid = Hessian(64), Grid(4, 16)
    hessian.assume_nothing()
    edit = Gptq().solve_linear(weight_OI, hessian, grid)
    assert torch.equal(edit.weight_OI, RoundToNearest().solve_linear(weight_OI, None, grid).weight_OI)


def test_a_fine_grid_hardly_changes_the_weights():
    weight_OI, hessian = problem()
    edit = Gptq(bits=8, double=True).solve_linear(weight_OI, hessian, Grid(8, 8))
    assert (edit.weight_OI - weight_OI).abs().max() < 0.05


@pytest.mark.parametrize("group_size", [None, 16])
def test_two_of_four_survives_correlated_inputs_in_every_group(group_size):
    weight_OI, hessian = problem()
    keep_OI = NM().keep(weight_OI.abs() * hessian.norm_I, 0.5)
    grid = Grid(4, group_size)
    edit = Gptq(double=True).solve_linear(weight_OI * keep_OI, hessian, grid, keep_OI)
    assert NM().holds(edit.weight_OI != 0, 0.5) and (edit.weight_OI[~keep_OI] == 0).all()
    unaware = Gptq(double=True).solve_linear(weight_OI * keep_OI, hessian, grid)
    assert not NM().holds(unaware.weight_OI != 0, 0.5), "the case must be one where the mask is really in danger"


def test_compensation_handed_on_by_dead_weights_beats_masking_afterwards():
    gains = []
    for seed in range(5):
        weight_OI, hessian = problem(seed=seed)
        keep_OI = NM().keep(weight_OI.abs() * hessian.norm_I, 0.5)
        sparse_OI, grid = weight_OI * keep_OI, Grid(3, 16)
        aware = Gptq(double=True).solve_linear(sparse_OI, hessian, grid, keep_OI)
        unaware = Gptq(double=True).solve_linear(sparse_OI, hessian, grid)
        masked = type(aware)(unaware.weight_OI * keep_OI)
        nearest = RoundToNearest().solve_linear(sparse_OI, None, grid, keep_OI)
        assert loss(sparse_OI, aware, hessian) < loss(sparse_OI, nearest, hessian)
        gains.append(loss(sparse_OI, aware, hessian) / loss(sparse_OI, masked, hessian))
    assert max(gains) < 1 and sum(gains) / len(gains) < 0.9


def test_the_reported_loss_is_the_change_of_the_output():
    weight_OI, hessian = problem()
    edit = Gptq(double=True).solve_linear(weight_OI, hessian, Grid(4, 16))
    damped_II = damped(hessian.mean_II, 0.01)
    change_OI = (weight_OI - edit.weight_OI).double()
    expected = float(torch.trace(change_OI @ damped_II @ change_OI.T) / 2)
    assert edit.notes["damping"] == 0.01 and edit.notes["loss"] == pytest.approx(expected, rel=1e-5)


def test_in_act_order_the_order_of_the_features_means_nothing():
    weight_OI, hessian = problem()
    shuffled_I, grid = torch.randperm(64, generator=torch.Generator().manual_seed(1)), Grid(4, None)
    for act_order in (True, False):
        method = Gptq(double=True, act_order=act_order)
        straight = method.solve_linear(weight_OI, hessian, grid).weight_OI
        moved = method.solve_linear(weight_OI[:, shuffled_I], hessian.reordered(shuffled_I), grid).weight_OI
        assert torch.equal(straight[:, shuffled_I], moved) == act_order


def test_act_order_settles_the_features_that_matter_most_while_all_others_can_still_make_good():
    losses = {True: 0.0, False: 0.0}
    for seed in range(5):
        weight_OI, hessian = problem(seed=seed)
        order_I = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        scale_I = torch.logspace(-1, 1, 64, dtype=torch.float64)[order_I]
        hessian = Hessian.of(scale_I[:, None] * hessian.mean_II * scale_I)
        for act_order in losses:
            hessian.factors.clear()
            edit = Gptq(double=True, act_order=act_order).solve_linear(weight_OI, hessian, Grid(3, 16))
            losses[act_order] += loss(weight_OI, edit, hessian)
    assert Gptq().act_order and losses[True] < 0.8 * losses[False]


def test_linears_that_share_a_statistic_share_its_factor_in_either_order():
    _, hessian = problem()
    assert hessian.factor(0.01, 1) is hessian.factor(0.01, 1) is not hessian.factor(0.01)
    assert hessian.factor(0.01, 4).order_I.view(-1, 4).diff().eq(1).all(), "whole groups move together"


def test_a_dead_feature_is_rounded_by_itself():
    weight_OI, hessian = problem()
    mean_II = hessian.mean_II
    mean_II[7] = mean_II[:, 7] = 0
    hessian = Hessian.of(mean_II)
    grid = Grid(4, 16)
    edit = Gptq().solve_linear(weight_OI, hessian, grid)
    nearest = RoundToNearest().solve_linear(weight_OI, None, grid)
    assert edit.weight_OI.isfinite().all() and torch.equal(edit.weight_OI[:, 7], nearest.weight_OI[:, 7])
