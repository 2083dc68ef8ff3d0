"""DSnoT: exchanges conserve rows and groups, weights keep their values, and |E| never grows under the sign rule."""

import pytest
import torch

from tasks.calibrate.solvers.exchange import Exchange
from tasks.formats.pattern import parse_pattern
from tasks.methods import build
from tasks.models.find.linears import Linear
from tasks.pruners.dsnot import Dsnot

SHARE = torch.tensor([[1.0, 4.0, -1.0, 6.0]])


def exchange(kept, share_OI=SHARE, group=1, worth=(1.0, 1.0, 1.0, 1.0), same_sign=True):
    kept_OI = torch.tensor([kept], dtype=torch.bool)
    return Exchange(kept_OI.clone(), ~kept_OI, share_OI, share_OI, torch.tensor([worth]), group, same_sign)


def problem(initial="wanda", rows=64, width=256, tokens=4096, **fields):
    """A method, weights, and statistics of inputs with means of their own."""
    torch.manual_seed(0)
    method = Dsnot(initial=initial, **fields)
    input_TI = torch.randn(tokens, width) * torch.logspace(-1, 1, width)[torch.randperm(width)] + torch.randn(width)
    observer = method.observer(Linear("w", (rows, width)))
    observer.add(input_TI)
    return method, torch.randn(rows, width), observer, input_TI


def solve(pattern="unstructured", sparsity=0.6, **fields):
    method, weight_OI, observer, input_TI = problem(**fields)
    pattern = parse_pattern(pattern, method.scope)
    first = method.initial.solve_linear(weight_OI, observer.other, sparsity, pattern)
    return weight_OI, first, method.solve_linear(weight_OI, observer, sparsity, pattern), input_TI


def test_worked_by_hand():
    # Pruned 1 and 4: E = 5. The 4 comes back and the -1 goes: E = 5 - 4 - 1 = 0.
    swaps = exchange([0, 0, 1, 1])
    assert swaps.error_O.tolist() == [5] and swaps.run(3, 0.0) == 0  # 0 has not the sign of 5
    free = exchange([0, 0, 1, 1], same_sign=False)
    assert free.run(3, 0.0) == 1 and free.error_O.tolist() == [0] and free.kept_OI.int().tolist() == [[0, 1, 0, 1]]
    short = exchange([0, 0, 1, 1], torch.tensor([[1.0, 4.0, -0.5, 6.0]]))
    assert short.run(3, 0.0) == 1 and short.error_O.tolist() == [0.5]


def test_an_n_of_m_exchange_worked_by_hand():
    # Pruned 1 and 4: E = 5. The 4 comes back; the least kept of its group goes, the second: E = 5 - 4 + 2 = 3.
    swaps = exchange([0, 0, 1, 1], torch.tensor([[1.0, 4.0, 9.0, 2.0]]), group=4, worth=(0.0, 0.0, 2.0, 1.0))
    assert swaps.run(1, 0.0) == 1 and swaps.error_O.tolist() == [3] and swaps.kept_OI.int().tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("initial", ["wanda", "magnitude", "sparsegpt", "random"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_it_conserves_what_the_first_mask_promised_and_the_weights(initial, pattern):
    sparsity = 0.6 if pattern == "unstructured" else 0.5
    weight_OI, first, edit, _ = solve(pattern, sparsity, initial=initial)
    assert torch.equal(edit.keep_OI.sum(1), first.keep_OI.sum(1)) and not torch.equal(edit.keep_OI, first.keep_OI)
    if pattern != "unstructured":
        assert parse_pattern(pattern).holds(edit.keep_OI, 0.5)
    assert torch.equal(edit.weight_OI, weight_OI * edit.keep_OI)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_expected_error_never_grows_under_the_sign_rule(pattern):
    method, weight_OI, observer, _ = problem()
    share_OI = weight_OI * observer.own.mean_I
    first_OI = parse_pattern(pattern, "row").keep(weight_OI.abs() * observer.norm_I, 0.5)
    swaps = Exchange(first_OI.clone(), ~first_OI, share_OI, share_OI, weight_OI.abs(), 4 if pattern == "2:4" else 1, True)
    for cycles in (1, 2, 4, 8, 16):
        before_O = swaps.error_O.clone()
        swaps = Exchange(swaps.kept_OI, ~swaps.kept_OI, share_OI, share_OI, weight_OI.abs(), swaps.group, True)
        swaps.run(cycles, 0.0)
        assert (swaps.error_O.abs() <= before_O.abs() + 1e-9).all()
        torch.testing.assert_close(swaps.error_O, share_OI.masked_fill(swaps.kept_OI, 0).double().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.6, 0.7])
def test_the_output_is_no_worse_than_that_of_the_first_mask(sparsity):
    weight_OI, first, edit, input_TI = solve(sparsity=sparsity)
    errors = [float((input_TI @ (weight_OI - made.weight_OI).T).square().sum()) for made in (first, edit)]
    assert errors[1] < errors[0] and edit.notes["expected_error"] < edit.notes["expected_error_before"]


def test_cycles_are_a_share_of_the_width():
    method, weight_OI, observer, _ = problem(cycles=0.01, threshold=0.0)
    pattern = parse_pattern("unstructured", "row")
    first = method.initial.solve_linear(weight_OI, observer.other, 0.6, pattern)
    moved_O = (first.keep_OI != method.solve_linear(weight_OI, observer, 0.6, pattern).keep_OI).sum(1)
    assert moved_O.max() == 2 * round(0.01 * 256)


def test_what_was_dead_before_is_not_brought_back():
    method, weight_OI, observer, _ = problem()
    keep_OI = torch.rand(weight_OI.shape) < 0.8
    edit = method.solve_linear(weight_OI * keep_OI, observer, 0.6, parse_pattern("unstructured", "row"), keep_OI)
    assert not (edit.keep_OI & ~keep_OI).any()


def test_structured_patterns_are_refused():
    with pytest.raises(ValueError, match="dsnot cannot keep pattern block:4; choose one of unstructured, N:M"):
        Dsnot().suit(parse_pattern("block:4"))
    assert build("pruners", {"dsnot": {"initial": "sparsegpt"}}).initial.name == "sparsegpt"
