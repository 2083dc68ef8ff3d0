"""Parallel: branches of the dense layer's shape, each through a ReLU, summed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.methods import build


def parallel(layer, **fields):
    return build("transforms", {"parallel": fields}).replace(layer, *layer.weight.shape)


def test_the_sum_of_relus_by_hand():
    """Branches (1, 0), (0, 1), (-1, 0), (0, -1) of input (3, -2): 3 + 0 + 0 + 2, and bias 10."""
    layer = parallel(nn.Linear(2, 1), sparsity=0.75)
    with torch.no_grad():
        for branch, weight in zip(layer, ([1, 0], [0, 1], [-1, 0], [0, -1]), strict=True):
            branch.weight.copy_(torch.tensor([weight]))
        layer.bias.fill_(10)
    assert layer(torch.tensor([3.0, -2.0])).item() == 15


@pytest.mark.parametrize(("sparsity", "branches"), [(0.5, 2), (0.6, 2), (0.75, 4), (0.9, 10)])
def test_there_are_as_many_branches_as_the_inverse_density(sparsity, branches):
    assert build("transforms", {"parallel": {"sparsity": sparsity}}).branches == branches


def test_one_branch_is_the_dense_layer_itself():
    layer = nn.Linear(4, 4)
    assert parallel(layer, sparsity=0) is layer


def test_without_activation_the_branches_are_one_matrix():
    layer = parallel(nn.Linear(5, 3), sparsity=0.75, activation="identity")
    value = torch.randn(7, 5)
    whole = sum(branch.weight for branch in layer)
    assert torch.allclose(layer(value), value @ whole.T + layer.bias, atol=1e-6)
