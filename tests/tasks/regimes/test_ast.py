"""AST: the mask holds between its decisions, the decay rises and shrinks masked weights alone, the pattern is kept."""

import pytest
import torch

from tasks.formats.mask import pack, unpack
from tasks.formats.pattern import NM
from tasks.methods import build
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
