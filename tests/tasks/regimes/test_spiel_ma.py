"""SpIEL-MA: rows and columns remember as SM3 says, places go where their product is largest, and their number stays."""

import pytest
import torch

from tasks.methods import build
from tasks.train.adapters.accumulated import Cover, Divided
from tests.tasks.regimes.gym import DOWN, UP, enter, exchange


def spiel_ma(masks=None, **fields):
    return enter("spiel_ma", steps=12, masks=masks, **{"density": 0.05, "interval": 4, **fields})


def test_two_steps_by_hand():
    """A matrix of 2 x 3 with places (0, 0), (0, 2) and (1, 2), whose gradients are 3, 1 and 2, and then 1 each."""
    cover, places = Cover((2, 3)), torch.tensor([0, 2, 5])
    assert cover.count(places, torch.tensor([3.0, 1.0, 2.0])).tolist() == [9, 1, 4]
    assert cover.row.tolist() == [9, 4] and cover.column.tolist() == [9, 0, 4]
    # (0, 2) counts the smaller of its row's 9 and its column's 4
    assert cover.count(places, torch.ones(3)).tolist() == [10, 5, 5]
    assert cover.row.tolist() == [10, 5] and cover.column.tolist() == [10, 0, 5]
    assert cover.product().tolist() == [100, 0, 50, 50, 0, 25]  # of those without a place (1, 0) comes first


def test_a_stack_of_matrices_has_rows_and_columns_of_each():
    cover = Cover((2, 2, 3))
    cover.count(torch.tensor([0, 11]), torch.tensor([1.0, 2.0]))
    assert cover.row.tolist() == [1, 0, 0, 4] and cover.column.tolist() == [1, 0, 0, 0, 0, 4]
    assert cover.product().nonzero().flatten().tolist() == [0, 11]


def test_with_every_weight_in_a_row_of_its_own_it_is_adagrad():
    cover, ours, theirs = Cover((5, 1)), torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    cover.column.fill_(torch.inf)  # the row alone decides
    optimizer, reference = Divided([ours], 0.0), torch.optim.Adagrad([theirs], 1e-2, eps=0)
    optimizer.state[ours] = {"step": torch.zeros(()), "divisor": torch.zeros(5)}
    optimizer.param_groups[0]["lr"] = 1e-2
    for step in range(5):
        for values in (ours, theirs):
            values.grad = torch.sin(torch.arange(5.0) + step + 1)
        optimizer.state[ours]["divisor"].copy_(cover.count(torch.arange(5), ours.grad))
        optimizer.step(), reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_places_are_as_many_as_before_each_once_inside_the_mask_and_nothing_else_changes():
    seen = exchange(spiel_ma)
    assert len(seen) == 3, "after 4 and 8 steps, and none after the last"
    assert not set(seen[0].tolist()) & set(seen[1].tolist()), "all move at the first choice"


def test_the_first_choice_goes_where_the_product_is_largest():
    gym = spiel_ma()
    branch, cover = gym.hook.branches[DOWN], gym.hook.covers[DOWN]
    begun = branch.places.long().clone()
    gym.train(4)
    score = cover.product()
    score[begun] = -1
    came = branch.places.long()
    assert score[came].min() >= score.topk(len(came)).values.min() and not branch.values.any()
    moments = dict(gym.engine.shards())[f"{DOWN.removesuffix('.weight')}.spiel_ma.values"].moments
    assert set(moments) == {"divisor"} and not moments["divisor"].any()


def test_no_step_is_longer_than_the_learning_rate():
    gym = spiel_ma(interval=100)
    values = gym.hook.branches[UP].values
    for _ in range(6):
        before = values.detach().clone()
        gym.step(rate=0.01)
        assert 0 < (values - before * (1 - 0.01 * 0.1)).abs().max() <= 0.01 * (1 + 1e-5)


def test_training_keeps_twelve_bytes_a_place_and_four_a_row_and_column():
    gym = spiel_ma()
    shards = [shard for _, shard in gym.engine.shards()]
    kept = sum(values.numel() * values.element_size() for shard in shards for values in (shard.master, *shard.moments.values()))
    places = [branch.places for branch in gym.hook.branches.values()]
    count = sum(map(len, places))
    assert kept + sum(values.numel() * values.element_size() for values in places) == 12 * count
    covers = [values for cover in gym.hook.covers.values() for values in (cover.row, cover.column)]
    sides = sum(sum(linear.shape) for linear in gym.setting.linears.values())
    assert sum(values.numel() * values.element_size() for values in covers) == 4 * sides


def test_a_budget_of_every_weight_leaves_nowhere_to_go():
    gym = spiel_ma(density=1.0)
    begun = gym.hook.branches[UP].places.clone()
    gym.train(5)
    assert torch.equal(gym.hook.branches[UP].places, begun)


def test_all_move_at_the_first_choice_and_none_at_the_end():
    regime = build("regimes", "spiel_ma")
    assert regime.share(20, 100) == 1.0 and regime.share(40, 100) == pytest.approx(0.12) and regime.share(100, 100) == 0
