"""Random draws by seed and name, not by order."""

import torch

from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.stream.blocks import ResidentBlocks
from tasks.pruners.random import Random
from tests.tasks import models_zoo as zoo


def masks(seed):
    resident = ResidentBlocks(zoo.model("llama"))
    walk(resident, [], Random(seed=seed), sparsity=0.5)
    return resident.masks


def test_the_seed_and_the_name_decide_the_lot():
    first, again, other = masks(0), masks(0), masks(1)
    name, twin = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(first[name].packed, again[name].packed)
    assert not torch.equal(first[name].packed, other[name].packed)
    assert not torch.equal(first[name].packed, first[twin].packed)


def test_every_weight_has_the_same_chance():
    weight_OI = torch.randn(64, 64).sort().values
    keep = Random(seed=3).score(weight_OI, None) > 0.5
    assert abs(keep[:, :32].float().mean() - keep[:, 32:].float().mean()) < 0.05


def test_another_method_that_starts_from_it_draws_anew_for_each_matrix():
    resident = ResidentBlocks(zoo.model("llama"))
    walk(resident, zoo.batches(), build("pruners", {"dsnot": {"initial": "random", "cycles": 1e-9}}), sparsity=0.5)
    name, twin = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    assert (resident.masks[name].keep == resident.masks[twin].keep).float().mean() < 0.6
