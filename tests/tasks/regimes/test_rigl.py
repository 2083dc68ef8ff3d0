"""RigL: the smallest live weights fall, those with the largest dense gradient are grown, the count stays."""

import torch

from tests.tasks.regimes.gym import UP, enter


def test_an_update_by_hand():
    gym = enter("rigl", sparsity=0.5, fraction=0.5, interval=1, end=1.0, steps=100)
    gym.step()  # no update before the first step
    mask, weight = gym.hook.masks[UP], gym.weight(UP).clone()
    gym.backward()
    gradient = gym.engine.grad(UP)
    moved = gym.hook.moves.count(gym.run.step, mask.live)
    alive = mask.keep.flatten()
    order = weight.abs().flatten().masked_fill(~alive, torch.inf).argsort()
    kept = alive.clone()
    kept[order[:moved]] = False
    grown = gradient.abs().flatten().masked_fill(kept, -1).topk(moved).indices
    expected = kept.clone()
    expected[grown] = True
    gym.hook.after_backward(gym.run)
    assert torch.equal(gym.hook.masks[UP].keep.flatten(), expected)
    now = gym.weight(UP).flatten()
    assert torch.equal(now[kept], weight.flatten()[kept])
    regrown = expected & ~kept & alive
    assert torch.equal(now[regrown], weight.flatten()[regrown])  # dropped and grown at once: the value stays
    assert not now[expected & ~alive].any()


def test_counts_never_change_and_masks_are_not_nested():
    gym = enter("rigl", sparsity=0.8, interval=2, steps=12)
    first, live = dict(gym.hook.masks), gym.live()
    gym.train(12)
    assert gym.live() == live
    assert any((gym.hook.masks[name].keep & ~mask.keep).any() for name, mask in first.items())


def test_masks_rest_after_the_end_and_the_share_that_moves_falls_to_zero():
    gym = enter("rigl", interval=2, end=0.5, steps=12)
    moves = gym.hook.moves
    assert [step for step in range(13) if moves.due(step)] == [2, 4]
    assert [round(moves.fraction.at(step), 4) for step in (0, 3, 6)] == [0.3, 0.15, 0.0]


def test_over_parameterisation_in_time_grows_and_is_the_share_ever_alive():
    gym = enter("rigl", sparsity=0.8, interval=2, end=1.0, steps=12)
    seen = [gym.hook.over_parameterisation()]
    alive = {name: mask.keep.clone() for name, mask in gym.hook.masks.items()}
    for _ in range(12):
        gym.step()
        seen.append(gym.hook.over_parameterisation())
        for name, mask in gym.hook.masks.items():
            alive[name] |= mask.keep
    assert seen == sorted(seen) and seen[-1] > seen[0]
    total = sum(mask.numel for mask in gym.hook.masks.values())
    assert seen[-1] == sum(int(keep.sum()) for keep in alive.values()) / total


def test_a_step_with_dense_gradients_costs_more():
    gym = enter("rigl", sparsity=0.75, interval=2, steps=12)
    gym.step()
    gym.step()
    assert gym.hook.compute() == gym.hook.density()
    gym.step()  # step 2 was an update
    assert gym.hook.compute() == (2 * gym.hook.density() + 1) / 3
