"""SparseGPT: its two identities hold, its quotas are exact, and it reconstructs better than Wanda and magnitude."""

import pytest
import torch

from tasks.calibrate.observe import Hessian
from tasks.calibrate.solvers.sweep import damped, factor
from tasks.formats.pattern import Unstructured, parse_pattern
from tasks.methods import build
from tasks.pruners.sparsegpt import Sparsegpt
from tests.tasks.calibrate.solvers.by_column import sweep
from tests.tasks.calibrate.solvers.test_sweep import problem

PATTERNS = ["unstructured", "2:4", "1:4", "4:8", "block:4", "group:4", "channel"]


def statistics(hessian_II):
    return Hessian.of(hessian_II.double())


def solve(weight_OI, hessian_II, sparsity=0.5, pattern="unstructured", **fields):
    method = Sparsegpt(double=True, **fields)
    return method.solve_linear(weight_OI, statistics(hessian_II), sparsity, parse_pattern(pattern))


def test_worked_by_hand():
    # H = 2I after damping by nothing to speak of: no compensation, so the smaller weight of each pair goes.
    edit = solve(torch.tensor([[3.0, 1.0], [-1.0, 2.0]]), 2 * torch.eye(2), percent_damp=1e-9, block=1)
    assert edit.keep_OI.int().tolist() == [[1, 0], [0, 1]]
    assert edit.weight_OI.tolist() == [[3.0, 0.0], [0.0, 2.0]]


def test_compensation_worked_by_hand():
    # Two equal inputs: the pruned first weight moves onto the second, 1 + 3 = 4 but for the damping.
    edit = solve(torch.tensor([[1.0, 3.0]]).double(), torch.ones(2, 2), 0.5, "1:2", percent_damp=1e-9)
    torch.testing.assert_close(edit.weight_OI, torch.tensor([[0.0, 4.0]]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("block", [8, 128])
def test_the_reported_loss_is_the_change_of_the_output_under_the_damped_hessian(pattern, block):
    weight_OI, hessian_II = problem()
    sparsity = 0.75 if pattern == "1:4" else 0.5
    edit = solve(weight_OI, hessian_II, sparsity, pattern, block=block)
    change_OI = weight_OI - edit.weight_OI
    expected = 0.5 * torch.trace(change_OI @ damped(hessian_II, 0.01) @ change_OI.T)
    assert abs(edit.notes["loss"] - expected) <= 1e-6 * expected


def test_what_was_taken_is_the_errors_times_the_factor():
    weight_OI, hessian_II = problem()
    edit = solve(weight_OI, hessian_II, act_order=False)
    keep_OI, solved = edit.keep_OI, factor(hessian_II)
    settled_OI, errors_OI = sweep(weight_OI, solved.upper_II, lambda column, ahead_OG: ahead_OG[:, 0] * keep_OI[:, column])
    torch.testing.assert_close(settled_OI, edit.weight_OI)
    torch.testing.assert_close(weight_OI - settled_OI, errors_OI @ solved.upper_II, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.33, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("block", [7, 16, 128])
def test_the_quota_is_exact_over_the_matrix_whatever_the_block(sparsity, block):
    weight_OI, hessian_II = problem(rows=11, width=37)
    keep_OI = solve(weight_OI, hessian_II, sparsity, block=block).keep_OI
    assert int((~keep_OI).sum()) == int(11 * 37 * sparsity + 1e-9)


def test_no_sparsity_is_the_dense_matrix_bit_for_bit():
    weight_OI, hessian_II = problem()
    assert torch.equal(solve(weight_OI, hessian_II, 0).weight_OI, weight_OI)


def test_alike_independent_inputs_give_magnitude_pruning_without_updates():
    weight_OI, _ = problem()
    edit = solve(weight_OI, 3 * torch.eye(40))
    magnitude = build("pruners", "magnitude").solve_linear(weight_OI, None, 0.5, Unstructured())
    assert torch.equal(edit.keep_OI, magnitude.keep_OI) and torch.equal(edit.weight_OI, magnitude.weight_OI)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_it_reconstructs_better_than_wanda_and_wanda_better_than_magnitude(pattern):
    weight_OI, hessian_II = problem(rows=64, width=64, tokens=400)
    scale_I = torch.logspace(-0.5, 0.5, 64, dtype=torch.float64)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    hessian_II, losses = scale_I[:, None] * hessian_II * scale_I, []
    for name in ("magnitude", "wanda", "sparsegpt"):
        method = build("pruners", name)
        edit = method.solve_linear(weight_OI, statistics(hessian_II), 0.5, parse_pattern(pattern, method.scope))
        change_OI = weight_OI - edit.weight_OI
        losses.append(float(torch.trace(change_OI @ hessian_II @ change_OI.T)))
    assert losses[0] > losses[1] > losses[2]


def test_a_dead_feature_goes_first_and_moves_nothing():
    weight_OI, hessian_II = problem()
    hessian_II[5] = hessian_II[:, 5] = 0
    edit = solve(weight_OI, hessian_II, 0.1)
    assert not edit.keep_OI[:, 5].any() and edit.weight_OI.isfinite().all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_in_act_order_it_means_nothing_how_groups_or_single_columns_lie(pattern):
    weight_OI, hessian_II = problem()
    moved_I = torch.arange(40).view(-1, 4)[torch.randperm(10, generator=torch.Generator().manual_seed(1))].flatten()
    for act_order in (True, False):
        straight = solve(weight_OI, hessian_II, 0.5, pattern, act_order=act_order, block=8)
        moved = solve(weight_OI[:, moved_I], hessian_II[moved_I][:, moved_I], 0.5, pattern, act_order=act_order, block=8)
        assert torch.allclose(straight.weight_OI[:, moved_I], moved.weight_OI, rtol=0, atol=1e-9) == act_order


@pytest.mark.parametrize("spread", [0, 1])
def test_sorted_blocks_give_up_what_they_can_spare(spread):
    """Worth the detour where inputs are alike, and no harm where some are a hundred times as strong: equal shares of sorted
    blocks would lose ten times as much."""
    losses = {True: 0.0, False: 0.0}
    for seed in range(3):
        weight_OI, hessian_II = problem(rows=64, width=64, tokens=400, seed=seed)
        order_I = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        scale_I = torch.logspace(-spread, spread, 64, dtype=torch.float64)[order_I]
        hessian_II = scale_I[:, None] * hessian_II * scale_I
        for act_order in losses:
            change_OI = weight_OI - solve(weight_OI, hessian_II, 0.5, act_order=act_order, block=16).weight_OI
            losses[act_order] += float(torch.trace(change_OI @ hessian_II @ change_OI.T))
    assert losses[True] < (1.1 if spread else 0.95) * losses[False]


def test_n_m_groups_that_matter_most_are_pruned_while_all_others_can_still_make_good():
    losses = {True: 0.0, False: 0.0}
    for seed in range(5):
        weight_OI, hessian_II = problem(rows=32, width=64, tokens=400, seed=seed)
        order_I = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        scale_I = torch.logspace(-1, 1, 64, dtype=torch.float64)[order_I]
        hessian_II = scale_I[:, None] * hessian_II * scale_I
        for act_order in losses:
            change_OI = weight_OI - solve(weight_OI, hessian_II, 0.5, "2:4", act_order=act_order).weight_OI
            losses[act_order] += float(torch.trace(change_OI @ hessian_II @ change_OI.T))
    assert Sparsegpt().act_order and losses[True] < 0.9 * losses[False]


def test_damping_beyond_what_was_asked_is_noted():
    weight_OI, hessian_II = problem(tokens=10)
    assert solve(weight_OI, hessian_II).notes["damping"] == 0.01
    hessian_II -= 0.05 * hessian_II.diagonal().mean() * torch.eye(40)
    assert solve(weight_OI, hessian_II).notes["damping"] == 0.1


def test_whole_rows_cannot_be_decided_column_by_column():
    with pytest.raises(ValueError, match="sparsegpt cannot keep pattern neuron; choose one of unstructured, N:M"):
        Sparsegpt().suit(parse_pattern("neuron"))
