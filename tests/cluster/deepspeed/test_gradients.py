"""What is done in pieces on the host is what it is at once."""

from __future__ import annotations

import pytest
import torch

from cluster.deepspeed.gradients import PIECE, mask, norms

SIZES = [1, PIECE - 1, PIECE, 2 * PIECE + 3]


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_in_pieces_is_a_product_bit_for_bit(size):
    gradient, keep = torch.randn(size), (torch.arange(size) % 3 == 0).to(torch.uint8)
    gradient[0] = -0.0
    expected = gradient * keep
    mask(gradient, keep)
    assert torch.equal(gradient.view(torch.int32), expected.view(torch.int32))


def test_norms_of_pieces_make_the_norm_of_all():
    gradients = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in SIZES]
    found = norms(gradients)
    assert found.dtype == torch.float32
    expected = torch.cat(gradients).double().norm()
    torch.testing.assert_close(found.double().square().sum().sqrt(), expected, rtol=2e-5, atol=0)  # sums of a million
    assert not torch.isfinite(norms([*gradients, torch.tensor([float("nan")])])).all()
