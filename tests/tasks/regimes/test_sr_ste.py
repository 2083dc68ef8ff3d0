"""SR-STE: the straight-through gradient plus a pull towards zero outside the mask."""

import torch

from tasks.formats.pattern import NM
from tests.tasks.regimes.gym import UP, enter


def test_the_gradient_outside_the_mask_gains_the_weight_times_the_decay():
    plain, pulled = enter("ste"), enter("sr_ste", decay=0.5)
    assert torch.equal(plain.backward(), pulled.backward())
    keep = NM(2, 4).keep(plain.weight(UP).abs(), 0.5)
    torch.testing.assert_close(pulled.engine.grad(UP), plain.engine.grad(UP) + 0.5 * plain.weight(UP) * ~keep)


def test_without_decay_it_is_the_straight_through_estimator():
    assert all(
        torch.equal(one, other)
        for one, other in zip((enter("ste").train(4).weight(UP),), (enter("sr_ste", decay=0).train(4).weight(UP),), strict=True)
    )
