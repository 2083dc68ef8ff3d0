"""CFSP's budget: a block that turns its hidden states further keeps more, and the mean is exact."""

import pytest
import torch

from tasks.allocators.cfsp import _angles
from tasks.calibrate.scan import scan
from tasks.methods import build
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


def test_angles_worked_by_hand():
    before, after = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[2.0, 0.0], [3.0, 3.0]]])
    assert _angles(before, after).tolist() == pytest.approx([0.0, 0.25], abs=1e-3)


@pytest.mark.parametrize("sparsity", [0.2, 0.4])
def test_a_block_that_does_little_loses_more(sparsity):
    model = zoo.model("llama", layers=3)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(0.01)
        model.model.layers[1].self_attn.o_proj.weight.mul_(0.01)
    found = build("allocators", "cfsp").allocate(scan(ResidentBlocks(model), zoo.batches()), sparsity)
    by_block = [found[f"model.layers.{block}.mlp.up_proj.weight"] for block in range(3)]
    assert by_block[1] == max(by_block) and sum(by_block) / 3 == pytest.approx(sparsity)
    assert min(by_block) > 0


def test_no_sharpness_is_too_sharp():
    look = scan(ResidentBlocks(zoo.model("llama")), zoo.batches())
    found = build("allocators", {"cfsp": {"sharpness": 1e6}}).allocate(look, 0.3)
    assert sum(found.values()) / len(found) == pytest.approx(0.3, abs=0.05) and max(found.values()) > 0.3
