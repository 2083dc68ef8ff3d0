"""Magnitude ranks a matrix by itself."""

import pytest
import torch

from tasks.formats.pattern import Unstructured, parse_pattern
from tasks.pruners.magnitude import Magnitude


def test_worked_by_hand():
    weight_OI = torch.tensor([[1.0, -5.0, 2.0], [2.5, -0.5, 0.0]])
    edit = Magnitude().solve_linear(weight_OI, None, 0.5, Unstructured())
    assert edit.weight_OI.tolist() == [[0.0, -5.0, 2.0], [2.5, 0.0, 0.0]]


def test_a_dead_weight_stays_dead_even_when_a_live_one_is_zero_too():
    weight_OI, keep_OI = torch.zeros(1, 4), torch.tensor([[True, True, False, False]])
    edit = Magnitude().solve_linear(weight_OI, None, 0.5, Unstructured(), keep_OI)
    assert edit.keep_OI.tolist() == keep_OI.tolist()


def test_a_mask_sparser_than_asked_is_kept():
    keep_OI = torch.tensor([[True, False, False, False]])
    edit = Magnitude().solve_linear(torch.ones(1, 4) * keep_OI, None, 0.25, Unstructured(), keep_OI)
    assert edit.keep_OI.tolist() == keep_OI.tolist()


def test_within_rows_each_row_loses_as_many():
    weight_OI = torch.tensor([[1.0, -5.0, 2.0, 4.0], [0.1, 0.2, 0.3, 0.4]])
    method = Magnitude(scope="row")
    edit = method.solve_linear(weight_OI, None, 0.5, parse_pattern("unstructured", method.scope))
    assert edit.keep_OI.int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 1]]


def test_a_global_ranking_knows_single_weights_only():
    Magnitude(scope="global").suit(parse_pattern("unstructured"))
    with pytest.raises(ValueError, match="scope global ranks single weights of the whole model, not 2:4"):
        Magnitude(scope="global").suit(parse_pattern("2:4"))
