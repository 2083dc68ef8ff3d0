"""DSEE: low rank and so many residuals train, where they lie is settled, and the pruning is by what they made of the model."""

import pytest
import torch

from tasks.formats.mask import Mask
from tasks.models.find.linears import Linear
from tasks.train.adapters.residual import Residual, nearest, support
from tests.tasks.regimes.gym import UP, enter


def test_a_changed_weight_by_hand():
    # scale 2: twice (up @ down, here [[1, 0], [2, 0]], and 3 at place 1), inside a mask that place 2 is not in.
    keep = Mask.of(torch.tensor([[True, True], [False, True]]), "unstructured", 0.25)
    branch = Residual(Linear("w", (2, 2)), 1, 2.0, 0, keep, torch.tensor([1, 2]))
    with torch.no_grad():
        branch.up.copy_(torch.tensor([[1.0], [2.0]]))
        branch.down.copy_(torch.tensor([[1.0, 0.0]]))
        branch.values.copy_(torch.tensor([3.0, 5.0]))
    weight = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert torch.equal(branch(weight).detach(), torch.tensor([[3.0, 7.0], [0.0, 1.0]]))


def test_residuals_lie_where_the_weight_is_farthest_from_low_rank():
    # A matrix of rank 1 with one entry that is not: there, and at the largest weight when told so.
    weight = torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 2.0, 10.0]))
    weight[0, 1] += 5
    linear = Linear("w", (3, 4))
    assert support(linear, weight, None, 1, 1, "residual", 0).tolist() == [1]
    assert support(linear, weight, None, 1, 1, "magnitude", 0).tolist() == [11]
    keep = torch.ones(3, 4, dtype=torch.bool).index_fill(1, torch.tensor([3]), False)
    dead = Mask.of(keep, "unstructured", 0.25)
    assert 11 not in support(linear, weight, dead, 9, 1, "random", 0).tolist()


def test_the_nearest_matrix_of_a_rank_is_that_of_the_full_decomposition():
    weight = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(1))
    weight[..., :3] *= 10
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    full = left[..., :3] * sizes[..., None, :3] @ right[..., :3, :]
    torch.testing.assert_close(nearest(weight, 3, torch.Generator().manual_seed(0)), full, rtol=1e-3, atol=1e-3)


def test_trained_are_the_rank_and_the_residuals_and_nothing_else():
    gym = enter("dsee", rank=4, residuals=16)
    sizes = sum(shard.numel for _, shard in gym.engine.shards())
    assert sizes == sum(4 * sum(linear.shape) + 16 for linear in gym.setting.linears.values())
    assert 24 * 16 * (768 + 768) == 589_824  # rank 16 on queries and values of BERT-base


def test_the_least_of_all_weights_die_at_their_step_and_stay_dead_through_the_merge():
    gym = enter("dsee", steps=10, sparsity=0.3, prune_at=0.4, residuals=8).train(3)
    assert gym.hook.masks == {}
    before = {name: gym.hook._score(gym.run, name).detach() for name in gym.setting.linears}
    gym.step(rate=0.0)
    total = sum(score.numel() for score in before.values())
    assert sum(mask.live for mask in gym.hook.masks.values()) == total - int(0.3 * total)
    kept = torch.cat([before[name][mask.keep] for name, mask in gym.hook.masks.items()])
    lost = torch.cat([before[name][~mask.keep] for name, mask in gym.hook.masks.items()])
    assert lost.max() <= kept.min()
    trained = gym.train(6).logits()
    gym.finish()
    torch.testing.assert_close(gym.logits(), trained, rtol=1e-4, atol=1e-4)
    assert torch.equal(gym.weight(UP) != 0, gym.hook.masks[UP].keep)


def test_it_may_rank_by_the_change_alone():
    gym = enter("dsee", steps=10, sparsity=0.3, prune_at=0.4, residuals=8, criterion="update").train(4)
    weight, mask = gym.weight(UP), gym.hook.masks[UP].keep
    assert gym.hook._score(gym.run, UP)[mask].min() > 0 and not weight[~mask].any()


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_mask_that_is_as_sparse_already_stays_as_it_came(sparsity):
    keep = torch.tensor([True, False, True, False]).repeat(48, 8)
    gym = enter("dsee", steps=6, masks={UP: Mask.of(keep, "2:4", 0.5)}, sparsity=0.01 * sparsity, residuals=8).train(6)
    assert gym.hook.masks[UP].pattern == "2:4" and torch.equal(gym.hook.masks[UP].keep, keep)
