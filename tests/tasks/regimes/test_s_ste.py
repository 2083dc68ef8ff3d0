"""S-STE: a continuous threshold with a scale that is fixed at the start, FFN only."""

import pytest
import torch

from tasks.formats.semi_structured import soft_threshold
from tests.tasks.regimes.gym import QUERY, UP, enter


def test_the_scale_is_the_projection_on_the_thresholded_weights_and_stays():
    gym = enter("s_ste", mvue=False)
    weight = gym.weight(UP)
    soft = soft_threshold(weight)
    assert gym.hook.scales[UP] == pytest.approx(float((weight * soft).sum() / (soft * soft).sum()))
    before = dict(gym.hook.scales)
    gym.train(3)
    assert gym.hook.scales == before


def test_on_gaussian_weights_the_scale_is_that_of_the_sheet():
    weight = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(0))
    soft = soft_threshold(weight)
    assert float((weight * soft).sum() / (soft * soft).sum()) == pytest.approx(1.484, abs=3e-3)


def test_forward_computes_with_the_scaled_threshold_and_the_gradient_passes_unchanged():
    gym, plain = enter("s_ste", mvue=False), enter("dense")
    for name in gym.hook.treated:
        parameter = plain.engine.module.get_parameter(name)
        parameter.data = gym.hook.scales[name] * soft_threshold(parameter.data)
    assert torch.equal(gym.backward(), plain.backward())
    torch.testing.assert_close(gym.engine.grad(UP), plain.engine.grad(UP))


def test_the_model_that_comes_out_is_the_one_that_was_trained_and_two_of_four():
    gym = enter("s_ste", mvue=False, steps=4).train(4)
    assert QUERY not in gym.hook.masks
    for name, mask in gym.hook.masks.items():
        assert mask.pattern == "2:4" and mask.broken() is None
        assert torch.equal(gym.weight(name) != 0, mask.keep)


def test_after_the_last_step_the_plain_forward_is_the_regimes_and_neither_shrinks_nor_scales_again():
    gym, plain = enter("s_ste", mvue=False, steps=3), enter("dense")
    gym.train(2)
    after_step, expected = gym.hook.after_step, {}

    def looked(run):
        """What the regime computes with after its last update, before anything is written."""
        expected.update({name: gym.hook.scales[name] * soft_threshold(gym.weight(name)) for name in gym.hook.treated})
        after_step(run)

    gym.hook.after_step = looked
    gym.train(1)
    gym.finish()
    for name, mask in gym.hook.masks.items():
        assert torch.equal(gym.weight(name), expected[name]) and torch.equal(gym.weight(name) * mask.keep, gym.weight(name))
    for name in plain.engine._parameters:
        plain.engine.module.get_parameter(name).data = gym.weight(name).clone()
    assert torch.equal(gym.logits(), plain.logits())


def test_estimated_gradients_change_the_weights_gradient_and_nothing_else():
    exact, estimated = enter("s_ste", mvue=False), enter("s_ste", mvue=True)
    torch.testing.assert_close(exact.backward(), estimated.backward())
    assert not torch.allclose(exact.engine.grad(UP), estimated.engine.grad(UP))
    torch.testing.assert_close(exact.engine.grad(QUERY), estimated.engine.grad(QUERY))


def test_fused_experts_are_refused_with_estimates_and_trained_without():
    with pytest.raises(ValueError, match="set mvue to false"):
        enter("s_ste", architecture="mixtral")
    enter("s_ste", architecture="mixtral", mvue=False, steps=2).train(2)
