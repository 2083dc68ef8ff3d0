"""A branch lives inside its linear, and goes together with whatever else a regime computes of the weight."""

import torch
from torch import nn

from tasks.formats.pattern import NM
from tasks.models.find.linears import Linear, find_linears
from tasks.train.branch import LowRank, attach, place
from tasks.train.effective import substitute
from tasks.train.engine import TorchEngine, adamw
from tasks.train.hook import Run
from tasks.train.sparse.semi_structured import Phase, SemiStructured
from tests.tasks import models_zoo as zoo
from tests.tasks.regimes.gym import UP


def test_the_parameters_of_a_branch_are_named_after_its_linear():
    assert place(Linear("blocks.0.up.weight", (4, 4)), "lora") == "blocks.0.up.lora"
    assert place(Linear("blocks.0.experts.gate_up_proj", (2, 4, 4)), "lora") == "blocks.0.experts.lora_gate_up_proj"


def test_what_is_computed_of_a_weight_goes_through_all_that_was_asked_for():
    model, value = nn.Sequential(nn.Linear(2, 2, bias=False)), torch.eye(2)
    linears, before = {"0.weight": Linear("0.weight", (2, 2))}, model[0].weight.detach().clone()
    substitute(model, linears, lambda stored: {name: weight + 1 for name, weight in stored.items()})
    substitute(model, linears, lambda stored: {name: 2 * weight for name, weight in stored.items()})
    torch.testing.assert_close(model(value).T, 2 * before + 1)  # the last one sees the stored weight
    assert torch.equal(model[0].weight, before)


def test_a_branch_adds_to_a_weight_that_is_sparse_by_n_of_m():
    model = zoo.model("llama", layers=1)
    linears = find_linears(model)
    branch = LowRank(linears[UP], 2, 1.0, seed=0, mask=None)
    nn.init.normal_(branch.up)
    attach(model, "slope", {UP: branch}, linears)
    hook = SemiStructured(linears, {}, {UP: linears[UP]}, lambda step: Phase(NM(2, 4)))
    hook.on_start(Run(TorchEngine(model, adamw(model)), 4))
    owner, stored = model.get_submodule(UP.removesuffix(".weight")), model.get_parameter(UP)
    sparse = stored * NM(2, 4).keep(stored.detach().abs(), 0.5)
    expected = sparse + branch.up @ branch.down
    torch.testing.assert_close(owner(torch.eye(32)).T, expected)
    assert f"{UP.removesuffix('.weight')}.slope.up" in dict(model.named_parameters())
