"""Figures of matrices checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tasks.models.spectrum import Inflow, effective_rank, kurtosis, weight_figures


def test_the_effective_rank_by_hand():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 3)) == 0.0
    # Singular values 3 and 1: shares 3/4 and 1/4, an entropy of log 4 - 3/4 log 3.
    assert effective_rank(torch.diag(torch.tensor([3.0, -1.0]))) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize("shape", [(7, 20), (20, 7)])
def test_the_effective_rank_is_that_of_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shares = torch.linalg.svdvals(matrix.double())
    shares /= shares.sum()
    assert effective_rank(matrix) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-6)


def test_kurtosis_by_hand():
    assert kurtosis(torch.tensor([-1.0, 1.0])) == pytest.approx(1)
    assert kurtosis(torch.tensor([5.0, 5.0])) == 0.0
    assert kurtosis(torch.tensor([0.0] * 9 + [1.0])) == pytest.approx((0.9**4 + 9 * 0.1**4) / 10 / 0.09**2)


def test_figures_of_a_matrix_and_of_its_inputs_by_hand():
    found = weight_figures(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    assert found["zeros"] == 0.5 and found["mean"] == 0.5 and found["largest"] == 3
    assert found["standard_deviation"] == pytest.approx(math.sqrt(10 / 4 - 0.25))
    assert found["effective_rank"] == pytest.approx(4 / 3**0.75 / 2)
    flow = Inflow()
    flow.add(torch.tensor([[0.0, 2.0]]))
    flow.add(torch.tensor([[0.0, -4.0]]))
    assert flow.figures() == {
        "input_rms": pytest.approx(5**0.5),
        "input_largest": 4,
        "input_outlier": pytest.approx(4 / 5**0.5),
        "input_zeros": 0.5,
        "input_kurtosis": pytest.approx((16 + 256) / 4 / 25),
    }
    assert Inflow().figures()["input_rms"] == 0
