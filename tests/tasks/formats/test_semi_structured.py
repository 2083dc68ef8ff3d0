"""2:4 beyond N:M: transposable masks, the soft threshold, the unbiased sparse estimate."""

from itertools import product

import torch

from tasks.formats.pattern import NM
from tasks.formats.semi_structured import keep_transposable, soft_threshold, sparse_estimate, transposable_patterns


def gaussian(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_there_are_ninety_transposable_tiles():
    tiles = transposable_patterns()
    assert len(tiles) == len({tuple(tile.flatten().tolist()) for tile in tiles}) == 90
    assert (tiles.sum(1) == 2).all() and (tiles.sum(2) == 2).all()


def test_the_best_tile_is_found():
    score = gaussian(4, 4).abs()
    rows = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    best = max(
        (sum(float(score[row, column]) for row, pair in enumerate(pairs) for column in pair), pairs)
        for pairs in product(rows, repeat=4)
        if all(sum(column in pair for pair in pairs) == 2 for column in range(4))
    )
    assert float(score[keep_transposable(score)].sum()) == torch.tensor(best[0]).item()


def test_both_sides_hold_and_the_kept_mass_of_gaussian_weights_is_that_of_the_sheet():
    weight = gaussian(512, 512).abs()
    keep = keep_transposable(weight)
    assert NM(2, 4).holds(keep, 0.5) and NM(2, 4).holds(keep.T, 0.5)
    assert abs(float(weight[keep].sum() / weight.sum()) - 0.703) < 3e-3
    assert abs(float(weight[NM(2, 4).keep(weight, 0.5)].sum() / weight.sum()) - 0.745) < 3e-3


def test_the_soft_threshold_by_hand():
    assert soft_threshold(torch.tensor([[3.0, -1.0, 0.5, -4.0]])).tolist() == [[2.0, 0.0, 0.0, -3.0]]


def test_the_soft_threshold_is_continuous_where_two_weights_change_places():
    low, high = (soft_threshold(torch.tensor([[3.0, 1.0 + shift, 1.0, -4.0]])) for shift in (-1e-6, 1e-6))
    assert (low - high).abs().max() < 1e-5


def test_the_estimate_is_two_of_four_and_unbiased():
    torch.manual_seed(0)
    values = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 5.0, 0.0], [0.0, 1.0, -1.0, 0.0]])
    drawn = sparse_estimate(values.repeat(1, 20_000).view(3, 20_000, 4))
    assert ((drawn != 0).sum(-1) <= 2).all()
    assert (drawn.mean(1) - values).abs().max() < 0.05
    assert torch.equal(drawn[1:], values[1:, None].expand(-1, 20_000, -1))  # two or fewer are kept as they are


def test_the_chances_of_a_group_sum_to_two():
    torch.manual_seed(0)
    values = gaussian(1, 4)
    kept = (sparse_estimate(values.repeat(50_000, 1)) != 0).float().mean(0)
    assert abs(float(kept.sum()) - 2) < 1e-6
    chances = values[0].abs() / sparse_estimate(values.repeat(50_000, 1)).abs().amax(0)
    torch.testing.assert_close(kept, chances, atol=0.01, rtol=0)


def test_a_value_that_dwarfs_its_group_leaves_the_estimate_unbiased_in_half_precision():
    torch.manual_seed(0)
    values = torch.tensor([1.0, 1e-3, 1e-3, 1e-3], dtype=torch.bfloat16)
    drawn = sparse_estimate(values.repeat(20_000, 1))
    assert drawn.dtype == torch.bfloat16
    torch.testing.assert_close(drawn.float().mean(0), values.float(), rtol=0.05, atol=0)
