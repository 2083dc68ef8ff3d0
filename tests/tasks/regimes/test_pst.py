"""PST: the first mask is that by magnitude, the count exact at every step, and only small matrices train."""

import pytest
import torch

from tasks.formats.mask import Mask, unpack
from tasks.methods import build
from tasks.models.find.linears import Linear
from tasks.train.adapters.importance import Important
from tests.tasks.regimes.gym import UP, enter


def alive(gym):
    return unpack(gym.hook.chosen[UP], gym.setting.linears[UP].shape)


def test_the_first_mask_is_that_by_magnitude_and_each_has_the_count_of_its_step():
    gym = enter("pst", steps=10, sparsity=0.75, warmup=0.0, final=0.5)
    assert alive(gym).all()
    gym.hook.branches[UP].down.data.zero_()
    gym.step(rate=0.0)  # nothing was learned
    assert gym.regime.at(1, 10) == pytest.approx(0.75 * (1 - 0.8**3))
    pruned = int(0.75 * (1 - 0.8**3) * 48 * 32)
    weight = gym.weight(UP)
    assert torch.equal(alive(gym), weight.abs() > weight.abs().flatten().sort().values[pruned - 1])
    for step in range(2, 11):
        gym.step()
        assert int((~alive(gym)).sum()) == int(48 * 32 * gym.regime.at(step, 10) + 1e-9)
    assert int((~alive(gym)).sum()) == 48 * 32 * 3 // 4 and gym.hook.masks[UP].broken() is None


def test_importance_by_hand_and_what_flows_to_it():
    # |W'| + product + rows + columns; through the mask flows the gradient times the weight, dead weights' too.
    branch = Important(Linear("w", (2, 2)), (1, 1), (1.0, 1.0, 1.0), 0, None)
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    with torch.no_grad():
        branch.rows.copy_(torch.tensor([[0.0], [1.0]]))
        branch.columns.copy_(torch.tensor([[0.5, 0.0]]))
    learned = branch.learned(branch.left, branch.right, branch.rows, branch.columns)
    assert torch.equal(weight.abs() + learned, torch.tensor([[1.5, 2.0], [4.5, 1.5]]))
    branch.keep.copy_(torch.tensor([[True, False], [True, True]]))
    made = branch(weight)
    assert torch.equal(made, torch.tensor([[1.0, 0.0], [3.0, 0.5]]))
    (made * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    assert torch.equal(branch.rows.grad, torch.tensor([[1 - 20.0], [300 + 500.0]]))
    assert torch.equal(branch.columns.grad, torch.tensor([[1 + 300.0, -20 + 500.0]]))
    gradient = torch.tensor([[1.0, 0.0], [100.0, 1000.0]])
    assert torch.equal(branch.down.grad, branch.up.detach().mT @ gradient) and not branch.up.grad.any()


def test_trained_are_ranks_and_one_per_row_and_column():
    def count(outputs, inputs):
        branch = Important(Linear("w", (outputs, inputs)), (8, 8), (1.0, 1.0, 1.0), 0, None)
        return sum(values.numel() for values in branch.parameters())

    assert count(768, 768) == 17 * (768 + 768)
    assert 12 * (4 * count(768, 768) + 2 * count(3072, 768)) == 2_820_096  # BERT-base's encoder
    gym = enter("pst")
    assert not any(gym.engine.module.get_parameter(name).requires_grad for name in gym.setting.linears)


def test_masks_rest_at_the_end_when_told_to():
    gym, seen = enter("pst", steps=10, sparsity=0.5, still=0.3, final=0.3), []
    for _ in range(10):
        gym.step(rate=0.3)
        seen.append(alive(gym))
    assert all(torch.equal(mask, seen[6]) for mask in seen[6:]) and not torch.equal(seen[5], seen[6])


def test_a_mask_that_is_as_sparse_already_stays_as_it_came_with_its_pattern():
    keep = torch.tensor([True, False, True, False]).repeat(48, 8)
    gym = enter("pst", steps=6, masks={UP: Mask.of(keep, "2:4", 0.5)}, sparsity=0.5).train(6)
    assert torch.equal(gym.hook.masks[UP].keep, keep) and gym.hook.masks[UP].pattern == "2:4"
    gym.finish()
    assert not gym.weight(UP)[~keep].any() and gym.weight(UP)[keep].all()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"warmup": 0.5, "final": 0.5}, "warmup and final must leave room between them, got 0.5 and 0.5"),
        ({"still": 0.5}, "still 0.5 begins before the sparsity is the last; choose at most final 0.3"),
    ],
)
def test_what_does_not_fit_in_a_run_is_refused(fields, problem):
    with pytest.raises(ValueError, match=problem):
        build("regimes", {"pst": fields})
