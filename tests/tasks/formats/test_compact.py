"""Sparse tensors come back to the bit, whatever their type, shape and pattern, in about the bytes that theory allows."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from tasks.formats import read_sparse
from tasks.formats.compact import Words, encode

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]


def grouped(shape: tuple[int, ...], n: int, m: int) -> torch.Tensor:
    """A mask that keeps n of every m."""
    chosen = torch.rand(math.prod(shape) // m, m).topk(n).indices
    return torch.zeros(len(chosen), m, dtype=torch.bool).scatter_(1, chosen, True).view(shape)


def again(coded) -> torch.Tensor:
    return read_sparse.decode(coded.entry, coded.index, coded.values)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    bits = [tensor.contiguous().view(torch.uint8) for tensor in (first, second)]
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(16, 48), (3, 16, 16), (7, 9)])
def test_values_of_every_type_and_density_come_back_to_the_bit_with_their_mask(dtype, shape):
    for density in (0.0, 0.05, 0.3, 0.5, 0.7):
        for transposed in (False, True):
            keep = torch.rand(shape) < density
            values = torch.randn(shape).mul(9).to(dtype)
            values.view(-1)[::7] = 0  # a weight may live and be zero
            dead = torch.zeros((), dtype=dtype)
            plain = torch.where(keep, values.float(), dead.float()).to(dtype)
            stored = plain.mT.contiguous() if transposed else plain
            coded = encode(stored, keep, transposed=transposed)
            assert coded and coded.exact and same(again(coded), stored)
            assert torch.equal(read_sparse.living(coded.entry, coded.index, keep.numel()), keep.flatten())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [8, 24, 36, 100])
def test_packed_codes_of_every_width_come_back_to_the_bit(bits, width):
    keep = torch.rand(10, width) < 0.4
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (10, width)).to(torch.int8) * keep
    packed = pack_to_int32(codes, bits)
    coded = encode(packed, keep, Words(bits, width, 1 << bits - 1))
    assert coded is None or (coded.exact and same(again(coded), packed))
    assert coded is not None or packed.nbytes < 150  # where there is next to nothing to save


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_zero_may_be_another_code_in_every_row_and_group(bits, groups):
    keep = torch.rand(10, 96) < 0.4
    low, high = -(1 << bits - 1), 1 << bits - 1
    zeros = torch.randint(low, high, (10, groups)).to(torch.int8)
    dead = zeros.repeat_interleave(96 // groups, 1)
    packed = pack_to_int32(torch.where(keep, torch.randint(low, high, (10, 96)).to(torch.int8), dead), bits)
    stored = pack_to_int32(zeros, bits, packed_dim=0)
    coded = encode(packed, keep, Words(bits, 96, "zeros", stored))
    assert coded.exact and coded.entry["fill"] == "zeros"
    assert same(read_sparse.decode(coded.entry, coded.index, coded.values, stored), packed)


def test_negative_zeros_live_and_a_mask_that_does_not_fit_is_not_taken_for_what_lives():
    plain = torch.zeros(8, 32)
    plain[2, 3], plain[5, 6] = -0.0, 4.0
    coded = encode(plain, torch.zeros(8, 32, dtype=torch.bool))
    assert not coded.exact and same(again(coded), plain) and len(coded.values) == 2


def test_what_would_not_shrink_stays_as_it_is():
    assert encode(torch.randn(16, 16)) is None and encode(torch.zeros(300)) is None and encode(torch.zeros(0, 4)) is None
    padded = torch.full((4, 1), -1, dtype=torch.int32)  # the bits behind the last code are not zero
    assert encode(padded, words=Words(3, 8, 7)) is None


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 8)])
def test_an_index_of_groups_takes_at_most_a_twentieth_more_than_arrangements_need_or_a_bit(n, m):
    keep = grouped((96, 192), n, m)
    coded = encode(torch.where(keep, torch.randn(96, 192), 0.0), keep)
    needed = math.log2(math.comb(m, n)) / m
    assert coded.exact and 8 * coded.index.nbytes / keep.numel() <= min(1.0, 1.06 * needed)


def test_four_bits_under_two_of_four_take_what_theory_says():
    """Half of the weights at 4 bits, and one of 6 arrangements for every 4: 2.646 bits a weight, where the usual index of 2
    bits for each that lives makes it 3."""
    keep = grouped((96, 192), 2, 4)
    codes = (torch.randint(1, 8, (96, 192)) * keep).to(torch.int8)
    coded = encode(pack_to_int32(codes, 4), keep, Words(4, 192, 8))
    assert 8 * coded.bytes / keep.numel() <= 1.05 * (4 / 2 + math.log2(6) / 4) < 3


def test_a_worked_example():
    """Groups 1001, 0110, 1001 (lowest bit first: patterns 9 and 6, numbers 1 and 0) are 1 + 0 * 2 + 1 * 4 = 5."""
    plain = torch.tensor([[1, 0, 0, 2, 0, 3, 4, 0, 5, 0, 0, 6]], dtype=torch.float32).repeat(80, 1)
    coded = encode(plain)
    assert coded.entry["patterns"] == [6, 9] and coded.values[:6].tolist() == [1, 2, 3, 4, 5, 6]
    assert coded.index[0] & 7 == 5
