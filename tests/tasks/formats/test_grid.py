"""Our grids are compressed-tensors' grids, to the bit."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams

from tasks.formats.grid import Grid


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [8, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_and_rounding_equal_compressed_tensors(bits, group_size, symmetric):
    torch.manual_seed(0)
    weight_OI = torch.randn(6, 24)
    weight_OI[0, :8] = 0.0
    weight_OI[1] = weight_OI[1].abs()
    grid = Grid(bits, group_size, symmetric)
    scale_OG, zero_OG = grid.fit(weight_OI)
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    grouped = weight_OI.unflatten(1, (-1, group_size or 24))
    their_scale, their_zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    if not symmetric:
        their_zero[0, 0] = zero_OG[0, 0]  # an all-zero group: theirs is NaN cast to an integer, ours is defined
        assert group_size is None or zero_OG[0, 0] == -(2 ** (bits - 1))
    assert torch.equal(scale_OG, their_scale) and torch.equal(zero_OG, their_zero.to(torch.int8))
    theirs = fake_quantize(weight_OI, their_scale, their_zero, args)
    assert torch.equal(grid.round_matrix(weight_OI, scale_OG, zero_OG), theirs)


@pytest.mark.parametrize(("bits", "kind"), [(8, "float"), (8, "int"), (4, "int")])
def test_one_scale_for_a_whole_matrix_is_theirs_too(bits, kind):
    weight_OI, grid = torch.randn(6, 24, generator=torch.Generator().manual_seed(0)), Grid(bits, None, True, kind, whole=True)
    scale_OG, zero_OG = grid.fit(weight_OI)
    args = QuantizationArgs(num_bits=bits, type=kind, symmetric=True, strategy="tensor")
    theirs, _ = calculate_qparams(weight_OI.min().view(1), weight_OI.max().view(1), args)
    assert scale_OG.shape == (1, 1) and torch.equal(scale_OG.view(1), theirs)
    assert torch.equal(grid.round_matrix(weight_OI, scale_OG, zero_OG), fake_quantize(weight_OI, theirs, None, args))


def test_four_bits_worked_by_hand():
    grid = Grid(bits=4, group_size=None)
    weight_OI = torch.tensor([[7.5, -7.5, 0.4, 0.0, 3.2]])
    scale_OG, zero_OG = grid.fit(weight_OI)
    assert scale_OG.tolist() == [[1.0]]  # 15 steps from -7.5 to 7.5
    assert grid.round_matrix(weight_OI, scale_OG, zero_OG).tolist() == [[7.0, -8.0, 0.0, 0.0, 3.0]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_twice_changes_nothing_and_zero_stays_zero(dtype, symmetric):
    torch.manual_seed(0)
    weight_OI = torch.randn(16, 32).to(dtype)
    weight_OI[:, ::3] = 0
    grid = Grid(8, 16, symmetric)
    scale_OG, zero_OG = grid.fit(weight_OI)
    once = grid.round_matrix(weight_OI, scale_OG, zero_OG)
    assert scale_OG.dtype == once.dtype == dtype
    assert torch.equal(grid.round_matrix(once, scale_OG, zero_OG), once)
    assert (once[:, ::3] == 0).all()


def test_a_group_size_that_does_not_divide_the_width_is_refused():
    with pytest.raises(ValueError, match="128 does not divide the input width 96"):
        Grid().check(96)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2e-6), (torch.float16, 1e-5), (torch.bfloat16, 1e-10)])
def test_small_weights_are_not_rounded_to_zeros_by_their_scale(dtype, largest):
    weight_OI = (largest * torch.linspace(-1, 1, 64).reshape(4, 16)).to(dtype)
    grid = Grid(bits=8, group_size=16)
    rounded_OI = grid.round_matrix(weight_OI, *grid.fit(weight_OI)).float()
    assert (rounded_OI - weight_OI.float()).norm() < 0.2 * weight_OI.float().norm()


@pytest.mark.parametrize("group_size", [8, None])
def test_eight_bit_floats_equal_compressed_tensors_and_zero_stays_zero(group_size):
    torch.manual_seed(0)
    weight_OI = torch.randn(6, 24)
    weight_OI[0, :8], weight_OI[1, ::2], weight_OI[2, :4] = 0.0, 0.0, 1e-4 * torch.randn(4)
    grid = Grid(8, group_size, codes="float")
    scale_OG, zero_OG = grid.fit(weight_OI)
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, **strategy)
    grouped = weight_OI.unflatten(1, (-1, group_size or 24))
    their_scale, their_zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    rounded_OI = grid.round_matrix(weight_OI, scale_OG, zero_OG)
    assert torch.equal(scale_OG, their_scale)
    assert torch.equal(rounded_OI, fake_quantize(weight_OI, their_scale, their_zero, args))
    assert torch.equal(grid.round_matrix(rounded_OI, scale_OG, zero_OG), rounded_OI)
    assert (rounded_OI[0, :8] == 0).all() and (rounded_OI[1, ::2] == 0).all()
