"""Patterns keep exactly what they promise: quotas to the last weight, at any width, in any column groups."""

import pytest
import torch

from tasks.formats.pattern import Block, Channel, Group, Unstructured, parse_pattern
from tasks.formats.selection import cumulative_share, keep_global, keep_highest, quota
from tests.tasks import DEVICES

SPARSITIES = [0, 0.1, 0.33, 0.5, 0.55, 0.7, 0.95]


def by_sorting(score, pruned):
    keep = torch.ones_like(score, dtype=torch.bool)
    return keep.scatter_(-1, score.argsort(dim=-1, stable=True)[..., :pruned], False) if pruned else keep


@pytest.mark.parametrize("values", ["distinct", "tied", "constant", "with_minus_infinity"])
@pytest.mark.parametrize("shape", [(3, 7), (5, 33), (4, 100), (1, 301)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_keep_highest_equals_a_stable_sort(values, shape, dtype, device):
    torch.manual_seed(0)
    score = torch.rand(shape)
    if values == "tied":
        score = torch.randint(0, 3, shape).float()
    if values == "constant":
        score = torch.zeros(shape)
    if values == "with_minus_infinity":
        score[:, ::3] = -torch.inf
    score = score.to(device, dtype)
    for pruned in range(shape[1]):
        assert torch.equal(keep_highest(score, pruned), by_sorting(score, pruned))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("shape", [(7, 13), (5, 37)])
def test_unstructured_prunes_exactly_the_floor_of_the_matrix_and_rows_differ_by_one_at_most(sparsity, scope, shape):
    keep = Unstructured(scope).keep(torch.rand(shape), sparsity)
    assert Unstructured(scope).holds(keep, sparsity)
    assert int((~keep).sum()) == quota(shape[0] * shape[1], sparsity)
    if scope == "row":
        dead = (~keep).sum(1)
        assert dead.max() - dead.min() <= 1 and dead.min() == quota(shape[1], sparsity)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("scope", ["row", "layer"])
@pytest.mark.parametrize("group", [1, 3, 8, 128])
def test_the_quota_is_exact_across_column_groups(sparsity, scope, group):
    rows, width = 7, 37
    score = torch.rand(rows, width)
    pieces = [Unstructured(scope).keep(piece, sparsity, i * group) for i, piece in enumerate(score.split(group, 1))]
    dead = ~torch.cat(pieces, 1)
    assert int(dead.sum()) == quota(rows * width, sparsity)
    if scope == "row":
        assert torch.equal(dead.sum(1), (~Unstructured("row").keep(score, sparsity)).sum(1))


def test_what_does_not_go_round_is_taken_from_the_first_rows_worked_by_hand():
    # 60 % of 3 x 3 are five: two of the first two rows and one of the third.
    keep = Unstructured("row").keep(torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]]), 0.6)
    assert keep.int().tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert Unstructured("row").holds(keep, 0.6)
    one_less = keep.clone()
    one_less[0, 0] = True
    assert not Unstructured("row").holds(one_less, 0.6), "four are less than 60 %"


def test_groups_of_rows_share_the_remainder_out_too():
    keep = Group(2).keep(torch.rand(10, 13), 0.6)
    dead = (~keep).view(5, 2, 13)[:, 0].sum(1)
    assert int(dead.sum()) == quota(5 * 13, 0.6) and dead.max() - dead.min() <= 1 and Group(2).holds(keep, 0.6)


def test_two_of_four_worked_by_hand():
    score = torch.tensor([[1.0, 4.0, 2.0, 3.0, 9.0, 9.0, 9.0, 1.0]])
    keep = parse_pattern("2:4").keep(score, 0.5)
    # In the second group three scores tie: the lower index falls first.
    assert keep.tolist() == [[False, True, False, True, False, True, True, False]]


def test_n_of_m_refuses_a_sparsity_it_contradicts():
    with pytest.raises(ValueError, match="contradicts"):
        parse_pattern("2:4").check(0.6, 8)
    with pytest.raises(ValueError, match="divisible by 4"):
        parse_pattern("2:4").check(0.5, 6)


def test_blocks_and_channels_fall_whole():
    score = torch.rand(8, 12)
    assert Block(4).holds(Block(4).keep(score, 0.5), 0.5)
    channel = Channel().keep(score, 0.5)
    assert Channel().holds(channel, 0.5) and int((~channel[0]).sum()) == 6
    with pytest.raises(ValueError, match="output width"):
        Block(4).check(0.5, 12, rows=7)


def test_a_row_wise_promise_survives_its_text():
    keep = Unstructured("row").keep(torch.rand(10, 13), 0.5)
    assert parse_pattern(str(Unstructured("row"))) == Unstructured("row")
    assert parse_pattern("unstructured:row").holds(keep, 0.5)
    keep[8], keep[9] = True, False  # one more in all
    assert parse_pattern("unstructured").holds(keep, 0.5) and not parse_pattern("unstructured:row").holds(keep, 0.5)


def test_global_ranking_counts_over_the_union():
    kept = keep_global({"a": torch.rand(3, 5), "b": torch.rand(7)}, 0.5)
    assert sum(int((~mask).sum()) for mask in kept.values()) == 11


def test_rows_of_a_group_share_their_columns_worked_by_hand():
    # Columns of the first group weigh 5 2 4, of the second 1 7 3: one of three goes in each.
    score = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 1.0], [1.0, 5.0, 0.0], [0.0, 2.0, 3.0]])
    keep = parse_pattern("group:2").keep(score, 0.34)
    assert keep.int().tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]]
    assert Group(2).holds(keep, 0.34) and not Group(4).holds(keep, 0.34)
    with pytest.raises(ValueError, match="output width divisible by 3, got 4"):
        parse_pattern("group:3").check(0.5, 6, rows=4)


def test_neurons_fall_whole():
    keep = parse_pattern("neuron").keep(torch.tensor([[3.0, 1.0], [0.0, 1.0], [2.0, 1.0]]), 0.34)
    assert keep.int().tolist() == [[1, 1], [0, 0], [1, 1]] and parse_pattern("neuron").holds(keep, 0.34)


@pytest.mark.parametrize(
    ("text", "units"),
    [("unstructured", 96), ("unstructured:row", 96), ("block:4", 6), ("group:4", 24), ("channel", 12), ("neuron", 8)],
)
def test_a_pattern_counts_its_units_as_it_selects_them(text, units):
    pattern = parse_pattern(text)
    assert pattern.units(8, 12) == units
    least = pattern.keep(torch.rand(8, 12), 1 / units)
    assert int((~least).sum()) == 96 // units and pattern.keep(torch.rand(8, 12), 0.99 / units).all()


def test_cumulative_share_worked_by_hand():
    share = cumulative_share(torch.tensor([[1.0, 6.0, 3.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(share, torch.tensor([[0.1, 1.0, 0.4], [1 / 3, 2 / 3, 1.0]], dtype=torch.float64))


def test_the_quota_is_exact_for_the_largest_matrices():
    assert quota(180_355_060, 0.7) == 126_248_542
