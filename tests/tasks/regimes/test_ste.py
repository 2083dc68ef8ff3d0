"""Straight-through N:M: two of four are multiplied, all four are updated, and the mask is made fast at the end."""

import pytest
import torch

from tasks.formats.pattern import NM
from tests.tasks.regimes.gym import DOWN, QUERY, UP, enter


def test_the_forward_pass_multiplies_with_the_largest_and_every_weight_gets_a_gradient():
    gym, hard = enter("ste"), enter("dense")
    for name in gym.hook.treated:
        weight = hard.engine.module.get_parameter(name).data
        weight.mul_(NM(2, 4).keep(weight.abs(), 0.5))
    assert torch.equal(gym.backward(), hard.backward())
    # the straight-through gradient is that of the masked weights, given to all
    torch.testing.assert_close(gym.engine.grad(UP), hard.engine.grad(UP))
    assert gym.engine.grad(UP).all()


def test_before_the_dense_phase_ends_nothing_is_sparse():
    gym, dense = enter("ste", dense=0.5, steps=12), enter("dense", steps=12)
    for _ in range(6):
        assert gym.hook.density() == 1
        assert torch.equal(gym.step(), dense.step())
    assert gym.hook.density() == 0.5
    assert not torch.equal(gym.step(), dense.step())


def test_at_the_last_step_the_mask_is_fast_and_the_rest_is_zero():
    gym = enter("ste", pattern="1:4", steps=3).train(2)
    assert gym.hook.masks == {} and gym.weight(UP).all()
    gym.step()
    for name, mask in gym.hook.masks.items():
        assert mask.pattern == "1:4" and mask.broken() is None and mask.live == mask.numel // 4
        assert not gym.weight(name)[~mask.keep].any()


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "opt"])
def test_transposed_and_fused_weights_are_grouped_along_their_inputs(architecture):
    gym = enter("ste", architecture=architecture, steps=2).train(2)
    assert all(mask.broken() is None and mask.live == mask.numel // 2 for mask in gym.hook.masks.values())
    for name, mask in gym.hook.masks.items():
        assert not gym.hook.linears[name].matrix(gym.weight(name))[~mask.keep].any()


def test_ffn_leaves_the_attention_dense_and_the_accounting_knows():
    gym = enter("ste", location="ffn", steps=2).train(2)
    assert {UP, DOWN} <= gym.hook.masks.keys() and QUERY not in gym.hook.masks
    sizes = {name: linear.shape[0] * linear.shape[1] for name, linear in gym.hook.linears.items()}
    treated = sum(size for name, size in sizes.items() if name in gym.hook.treated)
    assert gym.hook.density() == pytest.approx(1 - 0.5 * treated / sum(sizes.values()))
    assert gym.hook.compute() == pytest.approx((2 * gym.hook.density() + 1) / 3)


def test_flips_are_counted_between_two_steps():
    gym = enter("ste", steps=100)
    assert "flip_rate" not in gym.hook.metrics()
    before = None
    for _ in range(11):
        if gym.run.step in (9, 10):
            keep = NM(2, 4).keep(gym.weight(UP).abs(), 0.5)
            before, flipped = keep, None if before is None else (before ^ keep).sum()
        gym.step()
    assert gym.hook.flips.counts[UP] == (int(flipped), keep.numel())
    assert 0 < gym.hook.metrics()["flip_rate"] < 0.5
