"""AST: the mask holds between its decisions, the decay rises and shrinks masked weights alone, the pattern is kept."""

import pytest
import torch

from tasks.formats.mask import pack, unpack
from tasks.formats.pattern import NM
from tasks.methods import build
from tasks.models.accounting import shape_of
from tasks.models.build.sums import place_of, spread
from tests.tasks import models_zoo as zoo
from tests.tasks.regimes.gym import UP, enter


def keep_of(weight):
    return NM(2, 4).keep(weight.abs(), 0.5)


def test_the_decay_shrinks_masked_weights_and_no_others_and_rises_over_the_ramp():
    # With the loss's gradient taken off, what is left is the decay: of the first of two steps half.
    for step, share in ((0, 0.5), (1, 1.0)):
        pulled, plain = enter("ast", steps=10, ramp=0.2, decay=0.5), enter("ast", steps=10, ramp=0.2, decay=0.0)
        for gym in (pulled, plain):
            gym.run.step = step
            gym.backward()
        weight, pull = pulled.weight(UP), pulled.engine.grad(UP) - plain.engine.grad(UP)
        dead = ~keep_of(weight)
        torch.testing.assert_close(pull, share * 0.5 * weight * dead, rtol=1e-4, atol=1e-6)
        assert ((pull * weight)[dead] > 0).all(), "a step down the gradient makes each of them smaller"


def test_the_mask_holds_between_two_choices_and_follows_the_weights_at_the_next():
    gym, masks = enter("ast", steps=12, refresh=4), []
    for _ in range(9):
        gym.step(rate=0.1)
        masks.append(gym.hook.chosen[UP])
    assert all(torch.equal(mask, masks[0]) for mask in masks[:3])
    assert all(torch.equal(mask, masks[3]) for mask in masks[3:7]) and not torch.equal(masks[0], masks[3])
    weight = gym.weight(UP)
    assert all((unpack(mask, weight.shape).view(-1, 4).sum(1) == 2).all() for mask in masks)


def test_the_last_mask_is_made_fast():
    gym = enter("ast", steps=6, refresh=4).train(6)
    weight = gym.weight(UP)
    assert torch.equal(weight != 0, gym.hook.masks[UP].keep) and ((weight != 0).view(-1, 4).sum(1) == 2).all()
    assert torch.equal(pack(weight != 0), gym.hook.chosen[UP]), "the mask it was trained under stays"


def test_a_dense_beginning_chooses_when_it_ends():
    gym = enter("ast", steps=10, refresh=4, dense=0.5)
    assert gym.train(4).hook.chosen == {}
    before = gym.step() is not None and keep_of(gym.weight(UP))
    assert torch.equal(unpack(gym.hook.chosen[UP], before.shape), before)


def test_it_learns_from_the_dense_model_unless_told_otherwise():
    assert build("regimes", "ast").objective().name == "distillation"
    assert build("regimes", {"ast": {"kl": 0}}).objective().name == "cross_entropy"
    with pytest.raises(ValueError, match="ce and kl are both 0"):
        build("regimes", {"ast": {"kl": 0, "ce": 0}})


def test_a_branch_begins_as_the_mean_of_what_the_mask_takes():
    gym = enter("ast", steps=6, slorb=4)
    weight = gym.weight(UP)
    lost = weight * ~keep_of(weight)
    branch = gym.weight(place_of(gym.setting.linears[UP]))
    assert torch.equal(branch, lost.view(48, 8, 4).mean(-1))
    # the branch is 4 inputs' sum times that mean: what is computed differs from the masked product by it alone
    value, layer = torch.randn(3, 32), gym.engine.module.get_submodule(UP.removesuffix(".weight"))
    expected = value @ (weight * keep_of(weight)).T + value.view(3, 8, 4).sum(-1) @ branch.T
    torch.testing.assert_close(layer(value), expected)
    assert (weight - weight * keep_of(weight) - spread(branch, 4)).norm() < lost.norm()


def test_its_mask_is_exact_and_the_branch_trains_and_is_no_prunable_matrix():
    gym = enter("ast", steps=6, slorb=16, location="ffn")
    assert not any("self_attn" in name for name, _ in gym.engine.module.named_parameters() if "slorb" in name)
    name = place_of(gym.setting.linears[UP])
    before = gym.weight(name).clone()
    gym.train(6)
    assert ((gym.weight(UP) != 0).view(-1, 4).sum(1) == 2).all() and not torch.equal(gym.weight(name), before)
    assert name not in gym.setting.linears
    dense, branched = shape_of(zoo.model("llama", layers=1)), shape_of(gym.engine.module)
    assert branched.prunable == dense.prunable and branched.unpruned == branched.parameters - dense.parameters
    assert branched.unpruned == 48 * 2 + 48 * 2 + 32 * 3  # up and gate of 32 inputs, down of 48
    assert branched.forward_flops(8) - dense.forward_flops(8) == 2 * branched.unpruned


def test_without_a_branch_the_field_is_in_no_key():
    assert "slorb" not in build("regimes", "ast").model_dump() and build("regimes", "ast").surgery() is None
    with pytest.raises(ValueError, match=r"slorb begins with the first mask, .* leave dense 0.1 out"):
        build("regimes", {"ast": {"slorb": 16, "dense": 0.1}})
