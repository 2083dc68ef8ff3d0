"""What moves in a fused stack moves within each expert, whose mask promises its own share."""

import pytest
import torch

from tests.tasks.regimes.gym import enter


@pytest.mark.parametrize("name", ["rigl", "set", "dsl"])
def test_every_expert_of_a_stack_keeps_its_own_count_while_its_weights_move(name):
    gym = enter(name, steps=8, architecture="mixtral", sparsity=0.5, interval=2)
    before = {name: mask.keep for name, mask in gym.hook.masks.items()}
    gym.train(8)
    moved = {name: mask.keep for name, mask in gym.hook.masks.items()}
    stacks = [name for name in before if "experts" in name]
    for name in stacks:
        assert torch.equal(moved[name].sum((1, 2)), before[name].sum((1, 2))) and gym.hook.masks[name].broken() is None
    assert stacks and any(not torch.equal(moved[name], before[name]) for name in stacks)


def test_an_expert_that_was_left_dense_stays_dense():
    gym = enter("rigl", steps=8, architecture="mixtral", sparsity=0.5, interval=2)
    masks = dict(gym.hook.masks)
    name = next(name for name in masks if "experts" in name)
    keep = masks[name].keep
    keep[1] = True
    spared = {**masks, name: type(masks[name]).of(keep, "unstructured", 0.5, [1])}
    after = enter("rigl", steps=8, architecture="mixtral", masks=spared, sparsity=0.5, interval=2).train(8).hook.masks[name]
    assert after.exempt == (1,) and after.keep[1].all() and after.broken() is None
