"""Factorized: V relu(U z), with as many inner features as the budget at the sparsity allows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.methods import build


@pytest.mark.parametrize(("sparsity", "rank"), [(0.5, 768), (0.75, 1536), (0.9, 3840)])
def test_the_rank_of_a_layer_of_768_is_the_papers(sparsity, rank):
    assert build("transforms", {"factorized": {"sparsity": sparsity}}).rank(768, 768) == rank


def test_the_product_by_hand():
    """D_in = D_out = 2 at 50 %: d = 4 / (4 * 0.5) = 2. U = [[1, 1], [1, -1]], z = (1, 2): relu(3, -1) = (3, 0); V of ones."""
    layer = build("transforms", {"factorized": {"sparsity": 0.5}}).replace(nn.Linear(2, 2), 2, 2)
    with torch.no_grad():
        layer.u.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        layer.v.weight.fill_(1)
        layer.v.bias.copy_(torch.tensor([0.0, 5.0]))
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [3, 8]
