"""SET: the smallest live weights fall and as many are grown by lot, with no gradient asked for."""

import torch

from tests.tasks.regimes.gym import UP, enter


def test_what_falls_is_the_smallest_and_what_is_born_starts_at_zero():
    gym = enter("set", sparsity=0.5, fraction=0.5, interval=1, end=1.0, steps=100)
    before, weight = gym.hook.masks[UP], gym.weight(UP).clone()
    gym.run.step = 1
    gym.hook.after_step(gym.run)
    after = gym.hook.masks[UP]
    moved = gym.hook.moves.count(1, before.live)
    fallen = weight.abs().masked_fill(~before.keep, torch.inf).flatten().argsort()[:moved]
    survivors = before.keep.flatten().clone()
    survivors[fallen] = False
    assert after.keep.flatten()[survivors].all() and after.live == before.live
    assert not gym.weight(UP)[after.keep & ~before.keep].any()


def test_births_are_by_lot_and_the_lot_by_seed():
    masks = [enter("set", interval=1, seed=seed).train(2).hook.masks[UP].packed for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_no_dense_gradient_is_ever_asked_for(monkeypatch):
    gym = enter("set", interval=1)
    monkeypatch.setattr(gym.engine, "grad", None)
    gym.train(6)
    assert gym.hook.compute() == gym.hook.density()
