"""Wanda's mask is the paper's, weight for weight."""

import torch

from tasks.calibrate.observe import InputNorms
from tasks.formats.pattern import NM, Unstructured
from tasks.models.find.linears import Linear
from tasks.pruners.magnitude import Magnitude
from tasks.pruners.wanda import Wanda

ROW = Unstructured("row")


def norms(input_TI):
    observer = Wanda().observer(Linear("w", (1, input_TI.shape[1])))
    observer.add(input_TI)
    return observer


def from_scratch(weight_OI, input_TI, sparsity, pattern):
    """Loops over every weight, written from the paper alone."""
    keep = torch.ones_like(weight_OI, dtype=torch.bool)
    width = weight_OI.shape[1]
    lengths = [sum(float(x) ** 2 for x in input_TI[:, column]) ** 0.5 for column in range(width)]
    total = int(weight_OI.numel() * sparsity + 1e-9)
    for row in range(weight_OI.shape[0]):
        score = [abs(float(weight_OI[row, column])) * lengths[column] for column in range(width)]
        groups = [range(width)] if pattern == "row" else [range(start, start + 4) for start in range(0, width, 4)]
        for group in groups:
            pruned = total // len(weight_OI) + (row < total % len(weight_OI)) if pattern == "row" else 2
            for column in sorted(group, key=lambda column: score[column])[:pruned]:
                keep[row, column] = False
    return keep


def test_the_mask_equals_a_reference_written_from_the_paper():
    torch.manual_seed(0)
    for width, sparsity in [(8, 0.5), (37, 0.33), (64, 0.7), (13, 0.95)]:
        weight_OI, input_TI = torch.randn(9, width), torch.randn(30, width) * torch.logspace(-1, 1, width)
        edit = Wanda().solve_linear(weight_OI, norms(input_TI), sparsity, ROW)
        assert torch.equal(edit.keep_OI, from_scratch(weight_OI, input_TI, sparsity, "row"))
    weight_OI, input_TI = torch.randn(9, 24), torch.randn(30, 24) * torch.logspace(-1, 1, 24)
    edit = Wanda().solve_linear(weight_OI, norms(input_TI), 0.5, NM())
    assert torch.equal(edit.keep_OI, from_scratch(weight_OI, input_TI, 0.5, "2:4"))


def test_worked_by_hand():
    # Feature lengths 3, 1, 2: scores 3 5 4 | 6 1 0 -> one of three goes in each row.
    input_TI = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    weight_OI = torch.tensor([[1.0, -5.0, 2.0], [2.0, 1.0, 0.0]])
    edit = Wanda().solve_linear(weight_OI, norms(input_TI), 0.34, ROW)
    assert edit.weight_OI.tolist() == [[0.0, -5.0, 2.0], [2.0, 1.0, 0.0]]
    assert edit.keep_OI.tolist() == [[False, True, True], [True, True, False]]


def test_the_matrix_loses_exactly_the_floor_shared_out_over_its_rows_and_the_rest_does_not_change():
    torch.manual_seed(0)
    weight_OI, statistics = torch.randn(11, 37), norms(torch.randn(50, 37))
    for sparsity in (0, 0.1, 0.33, 0.5, 0.55, 0.7, 0.95):
        edit = Wanda().solve_linear(weight_OI, statistics, sparsity, ROW)
        lost_O = (edit.weight_OI == 0).sum(1)
        assert int(lost_O.sum()) == int(11 * 37 * sparsity + 1e-9) and lost_O.max() - lost_O.min() <= 1
        assert torch.equal(edit.weight_OI[edit.keep_OI], weight_OI[edit.keep_OI])


def test_scaling_all_inputs_changes_no_bit_of_the_mask():
    torch.manual_seed(0)
    weight_OI, input_TI = torch.randn(11, 37), torch.randn(50, 37)
    masks = [Wanda().solve_linear(weight_OI, norms(input_TI * c), 0.5, ROW).keep_OI for c in (1.0, 1024.0, 2.0**-20)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_alike_features_give_row_wise_magnitude():
    torch.manual_seed(0)
    weight_OI, statistics = torch.randn(11, 37), InputNorms(37)
    statistics.assume_nothing()
    wanda = Wanda().solve_linear(weight_OI, statistics, 0.5, ROW)
    assert torch.equal(wanda.keep_OI, Magnitude().solve_linear(weight_OI, None, 0.5, ROW).keep_OI)


def test_batches_may_come_in_any_cut():
    input_TI = torch.randn(50, 37)
    cut = InputNorms(37)
    for piece in input_TI.split(7):
        cut.add(piece)
    torch.testing.assert_close(cut.norm_I, norms(input_TI).norm_I)


def by_bisection(score_OI, sparsity):
    """The paper's variant: the largest prefix of each row within one share of the row's score, the share looked for."""
    ascending_OI, order_OI = score_OI.double().sort(dim=1, stable=True)
    share_OI = ascending_OI.cumsum(1) / ascending_OI.sum(1, keepdim=True)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (share_OI <= middle).double().mean() < sparsity else (low, middle)
    return torch.zeros_like(score_OI, dtype=torch.bool).scatter_(1, order_OI, share_OI > high)


def test_the_adaptive_variant_finds_what_bisection_finds():
    torch.manual_seed(0)
    weight_OI, input_TI = torch.randn(16, 40) * torch.rand(16, 1), torch.randn(50, 40) * torch.logspace(-1, 1, 40)
    edit = Wanda(adaptive=True).solve_linear(weight_OI, norms(input_TI), 0.5, Unstructured("layer"))
    assert torch.equal(edit.keep_OI, by_bisection(weight_OI.abs() * norms(input_TI).norm_I, 0.5))
    assert len({int(row.sum()) for row in edit.keep_OI}) > 1
    assert Wanda(adaptive=True).scope == "layer" and Wanda().scope == "row"
