"""The global ranking, without all weights in memory: the same weights fall as when all are sorted at once."""

import pytest
import torch

from tasks.calibrate.scan import scan
from tasks.calibrate.walk import walk
from tasks.formats.selection import keep_global, quota
from tasks.methods import build
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_ranking_of_all_weights_together(sparsity, dtype):
    resident = ResidentBlocks(zoo.model("llama", dtype=dtype))
    weights = {name: resident.model.get_parameter(name).data.abs().float() for name in resident.linears}
    expected = keep_global(weights, sparsity)
    table = build("allocators", "magnitude").allocate(scan(resident, []), sparsity)
    walk(resident, [], build("pruners", {"magnitude": {"scope": "global"}}), sparsity=table)
    live = {name: mask.live for name, mask in resident.masks.items()}
    assert sum(live.values()) == sum(int(keep.sum()) for keep in expected.values())
    for name, mask in resident.masks.items():  # equal but for weights that tie in bfloat16
        threshold = weights[name][~expected[name]].max()
        assert ((mask.keep == expected[name]) | (weights[name] == threshold)).all()


def test_small_matrices_lose_more():
    model = zoo.model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(0.1)
    table = build("allocators", "magnitude").allocate(scan(ResidentBlocks(model), []), 0.5)
    assert max(table, key=table.get) == "model.layers.1.mlp.up_proj.weight"


def test_no_matrix_is_emptied_and_what_it_keeps_goes_elsewhere():
    model, name = zoo.model("llama"), "model.layers.0.self_attn.k_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).mul_(1e-4)
    resident = ResidentBlocks(model)
    table = build("allocators", "magnitude").allocate(scan(resident, []), 0.7)
    assert table[name] == pytest.approx(0.99, abs=2e-3)
    walk(resident, [], build("pruners", {"magnitude": {"scope": "global"}}), sparsity=table)
    masks = resident.masks.values()
    assert sum(mask.numel - mask.live for mask in masks) == quota(sum(mask.numel for mask in masks), 0.7)
