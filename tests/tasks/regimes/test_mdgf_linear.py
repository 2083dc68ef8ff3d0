"""MDGF-Linear: what lies outside the mask counts for less and less, by a constant amount."""

import pytest
import torch

from tasks.formats.pattern import NM
from tests.tasks.regimes.gym import DOWN, UP, enter


def test_the_share_falls_to_zero_where_the_hard_phase_begins():
    regime = enter("mdgf_linear", hard=0.2).regime
    shares = [regime.phase(step, 100).share for step in (0, 20, 40, 80, 99)]
    assert shares == pytest.approx([1, 0.75, 0.5, 0, 0])


def test_the_authors_rates_reach_zero_where_they_say():
    assert [enter("mdgf_linear", rate=rate).regime.share(step, 10**6) for rate, step in ((8e-4, 1250), (2e-4, 5000))] == [0, 0]


def test_at_share_one_training_is_dense_and_later_the_forward_pass_scales_what_is_outside():
    gym, dense = enter("mdgf_linear", hard=0.0, steps=10), enter("dense")
    assert torch.equal(gym.step(), dense.step())
    gym.train(4)
    share = gym.hook.phase(5).share
    assert share == 0.5
    for name in gym.hook.treated:
        weight = gym.weight(name)
        dense.engine.module.get_parameter(name).data = torch.where(NM(2, 4).keep(weight.abs(), 0.5), weight, weight * share)
    for name in dense.engine._parameters.keys() - gym.hook.treated.keys():
        dense.engine.module.get_parameter(name).data = gym.weight(name)
    assert torch.equal(gym.backward(), dense.backward())


@pytest.mark.parametrize("backward", ["ste", "decay"])
def test_the_gradient_outside_passes_whole_or_scaled(backward):
    gym, straight = (enter("mdgf_linear", hard=0.0, steps=10, backward=kind) for kind in (backward, "ste"))
    for each in (gym, straight):
        each.run.step = 4
        each.backward()
    keep = NM(2, 4).keep(gym.weight(DOWN).abs(), 0.5)
    outside = straight.engine.grad(DOWN) * (0.6 if backward == "decay" else 1.0)
    torch.testing.assert_close(gym.engine.grad(DOWN), torch.where(keep, straight.engine.grad(DOWN), outside))


def test_while_weights_fade_training_is_accounted_as_dense():
    gym = enter("mdgf_linear", hard=0.5, steps=10)
    gym.step()
    assert gym.hook.density() == gym.hook.compute() == 1
    gym.train(9)
    assert gym.hook.density() < 1 and gym.hook.masks[UP].broken() is None
