"""Rearranging moves channels, never the function, and groups of rows lose less by sharing columns."""

import pytest
import torch

from tasks.calibrate.solvers.grouping import group_rows, kept_score
from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


def prune(model, spec, sparsity):
    resident = ResidentBlocks(model)
    return resident, walk(resident, zoo.batches(), build("pruners", spec), sparsity=sparsity, pattern="group:4")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen3", "gemma"])
@pytest.mark.parametrize("initial", ["magnitude", "sparsegpt"])
def test_the_function_is_what_it_was_whatever_the_order(architecture, initial, monkeypatch):
    def backwards(scores_OI, rows, sparsity):
        return torch.arange(len(scores_OI[0])).flip(0)

    monkeypatch.setattr("tasks.calibrate.solvers.grouping.group_rows", backwards)
    model, moved, tokens_BT = zoo.model(architecture), zoo.model(architecture), zoo.batches()[0]
    prune(moved, {"rearranged": {"initial": initial}}, 0.0)
    changed = [name for name, value in moved.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert changed and not any("attn" in name or "norm" in name for name in changed)
    with torch.no_grad():
        torch.testing.assert_close(moved(tokens_BT).logits, model(tokens_BT).logits, rtol=1e-5, atol=1e-5)


def test_alike_rows_are_brought_together_worked_by_hand():
    score_OI = torch.tensor([[9.0, 9.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0], [8.0, 8.0, 1.0, 0.0], [0.0, 1.0, 6.0, 6.0]])
    order_O = group_rows([score_OI], 2, 0.5)
    assert sorted(map(sorted, order_O.view(2, 2).tolist())) == [[0, 2], [1, 3]]
    assert kept_score([score_OI], order_O, 2, 0.5) == pytest.approx(56 / 58)
    assert kept_score([score_OI], torch.arange(4), 2, 0.5) < 56 / 58


def test_an_order_that_is_good_already_stays():
    score_OI = torch.ones(8, 6)
    assert torch.equal(group_rows([score_OI], 4, 0.5), torch.arange(8))


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_it_never_keeps_less_of_the_score(sparsity):
    torch.manual_seed(0)
    scores = [torch.rand(32, 20), torch.rand(32, 20)]
    order_O = group_rows(scores, 4, sparsity)
    assert sorted(order_O.tolist()) == list(range(32))
    assert kept_score(scores, order_O, 4, sparsity) >= kept_score(scores, torch.arange(32), 4, sparsity)


def test_rearranged_reconstructs_better_than_not_where_alike_rows_lie_apart():
    def error(spec):
        model = zoo.model("llama")
        torch.manual_seed(0)
        with torch.no_grad():
            for block in model.model.layers:
                likeness = torch.rand(4, 32).gt(0.5).float().repeat(12, 1)  # row f is like row f + 4
                block.mlp.gate_proj.weight.mul_(likeness * 3 + 0.1)
                block.mlp.up_proj.weight.mul_(likeness * 3 + 0.1)
        return prune(model, spec, 0.5)[1].metrics["walk/mean_error"]

    assert error("rearranged") < error("wanda")


def test_experts_and_masks_are_refused():
    model = zoo.model("mixtral")
    model.set_experts_implementation("eager")
    for unsuited in (model, zoo.model("bitnet")):  # a norm over its channels joins them
        with pytest.raises(ValueError, match="rearranged needs one feed-forward network"):
            prune(unsuited, "rearranged", 0.5)
    with pytest.raises(ValueError, match="cannot keep pattern 2:4; choose one of group"):
        walk(ResidentBlocks(zoo.model("llama")), zoo.batches(), build("pruners", "rearranged"), sparsity=0.5, pattern="2:4")
