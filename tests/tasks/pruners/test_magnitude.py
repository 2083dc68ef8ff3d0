"""Magnitude ranks a matrix by itself."""

import torch

from tasks.formats.pattern import Unstructured
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
