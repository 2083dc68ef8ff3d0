"""Round to nearest is the grid and nothing else."""

import torch

from tasks.formats.grid import Grid
from tasks.quantizers.round_to_nearest import RoundToNearest


def test_no_weight_moves_further_than_half_a_step_inside_the_range():
    torch.manual_seed(0)
    weight_OI, grid = torch.randn(6, 32), Grid(4, 8, symmetric=False)
    edit = RoundToNearest().solve_linear(weight_OI, None, grid)
    step_OI = edit.extras["scale"].repeat_interleave(8, 1)
    assert ((edit.weight_OI - weight_OI).abs() <= 0.51 * step_OI + 1e-6).float().mean() > 0.95
    assert edit.weight_OI[0, :8].unique().numel() <= 16


def test_dead_weights_stay_zero():
    weight_OI, keep_OI = torch.randn(4, 16), torch.rand(4, 16) > 0.5
    edit = RoundToNearest().solve_linear(weight_OI * keep_OI, None, Grid(4, 8, symmetric=False), keep_OI)
    assert (edit.weight_OI[~keep_OI] == 0).all()
