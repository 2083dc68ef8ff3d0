"""Doped: a dense low rank beside the sparse matrix; masks see the matrix only, FLOPs see both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.methods import build
from tasks.models.accounting import shape_of
from tasks.models.build.building import builder
from tasks.models.find.linears import find_linears
from tests.tasks import models_zoo as zoo


@pytest.mark.parametrize(("sparsity", "rank"), [(0.5, 192), (0.75, 288), (0.9, 345)])
def test_the_rank_of_a_layer_of_768_is_the_papers(sparsity, rank):
    assert build("transforms", {"doped": {"sparsity": sparsity}}).rank(768, 768) == rank


def test_the_sum_by_hand():
    """theta = identity, rank 1: U sums the input, V doubles the sum. z = (1, 2): (1, 2) + 6."""
    layer = build("transforms", {"doped": {"sparsity": 0.99999999999}}).replace(nn.Linear(2, 2, bias=False), 2, 2)
    with torch.no_grad():
        layer.theta.weight.copy_(torch.eye(2))
        layer.u.weight.fill_(1)
        layer.v.weight.fill_(2)
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [7, 8]


def test_the_low_rank_is_never_pruned_and_always_paid():
    """One llama block: q, o 32 x 32 get rank 12, k, v 16 x 32 rank 8, the FFN's three of 48 x 32 rank 14."""
    config = build("transforms", {"doped": {"sparsity": 0.75}}).resize(zoo.config("llama", layers=1))
    model = builder(config).from_config(config)
    assert all(name.removesuffix(".weight").endswith("_proj.theta") for name in find_linears(model))
    assert len(find_linears(model)) == 7
    assert shape_of(model).unpruned == 2 * 12 * 64 + 2 * 8 * 48 + 3 * 14 * 80
    assert shape_of(model).prunable == 7_680
