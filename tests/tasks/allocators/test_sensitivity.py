"""Sensitivity: curves are measured, the programme is solved exactly, and the outcome beats an even share."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from tasks.allocators.sensitivity import _hull, cheapest
from tasks.calibrate.method import Edit
from tasks.calibrate.scan import scan, trial_error
from tasks.calibrate.walk import walk
from tasks.methods import build, dump
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


def test_the_hull_drops_what_lies_above_it():
    assert _hull([(0, 0), (0.5, 4), (0.6, 2), (0.9, 9)]) == [(0, 0), (0.6, 2), (0.9, 9)]


def test_the_cheapest_allocation_worked_by_hand():
    # Per weight of sparsity a costs 1 up to a half and 9 beyond, b costs 2: the flattest pieces are a's first and b's.
    curves = {"a": [(0.0, 0.0), (0.5, 0.5), (1.0, 5.0)], "b": [(0.0, 0.0), (1.0, 2.0)]}
    assert cheapest(curves, {"a": 10, "b": 10}, 0.4, 0, 1) == pytest.approx({"a": 0.5, "b": 0.3})
    assert cheapest(curves, {"a": 10, "b": 30}, 0.5, 0, 1) == pytest.approx({"a": 0.0, "b": 2 / 3})


def test_no_other_allocation_on_a_grid_is_cheaper():
    torch.manual_seed(0)
    levels = [step / 10 for step in range(11)]
    curves = {name: list(zip(levels, torch.rand(11).sort().values.cumsum(0).tolist(), strict=True)) for name in "abc"}
    curves = {name: [(level, error - curve[0][1]) for level, error in curve] for name, curve in curves.items()}
    best = cheapest(curves, dict.fromkeys("abc", 1), 0.5, 0, 1)
    error = sum(dict(curves[name])[round(best[name], 1)] for name in "abc")
    choices = [choice for choice in itertools.product(range(11), repeat=3) if sum(choice) == 15]
    assert error == pytest.approx(min(sum(curves[n][i][1] for n, i in zip("abc", choice, strict=True)) for choice in choices))


def test_a_linear_the_output_hardly_needs_gives_most():
    model = zoo.model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-3)
    found = build("allocators", "sensitivity").allocate(scan(ResidentBlocks(model), zoo.batches()), 0.6)
    assert found["model.layers.0.mlp.down_proj.weight"] == pytest.approx(0.8)
    assert all(0.4 - 1e-9 <= sparsity <= 0.8 + 1e-9 for sparsity in found.values())


def test_it_loses_less_than_an_even_share():
    def error(allocator):
        model = zoo.model("llama")
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(1e-2)
            model.model.layers[1].self_attn.v_proj.weight.mul_(1e-2)
        table = build("allocators", allocator).allocate(scan(ResidentBlocks(model), zoo.batches()), 0.6)
        before = zoo.batches()[0]
        with torch.no_grad():
            dense = model(before).logits
            walk(ResidentBlocks(model), zoo.batches(), build("pruners", "wanda"), sparsity=table)
            return float((model(before).logits - dense).square().mean())

    assert error("sensitivity") < error("uniform")


def test_levels_must_ascend():
    with pytest.raises(ValueError, match="levels must be ascending sparsities"):
        build("allocators", {"sensitivity": {"levels": [0.5, 0.3]}})


@pytest.mark.parametrize("sparsity", [0.95, 0.995])
def test_beyond_the_highest_level_the_budget_is_met_and_no_linear_is_favoured_by_its_place(sparsity):
    resident = ResidentBlocks(zoo.model("llama"))
    found = build("allocators", "sensitivity").allocate(scan(resident, zoo.batches()), sparsity)
    total = sum(linear.shape[0] * linear.shape[1] for linear in resident.linears.values())
    spent = sum(found[name] * linear.shape[0] * linear.shape[1] for name, linear in resident.linears.items())
    assert spent / total == pytest.approx(sparsity) and list(found.values()) == pytest.approx([sparsity] * len(found))


def test_only_a_pruner_of_single_matrices_can_measure():
    with pytest.raises(ValueError, match="cfsp cannot keep pattern unstructured"):
        build("allocators", {"sensitivity": {"pruner": "cfsp"}})


def test_a_huge_token_does_not_hide_what_is_lost_of_the_others():
    # Half of two tokens is lost; in one sum over both the error would be 1 in a million.
    tokens_BTD, eye = torch.tensor([[[1000.0, 0.0], [0.0, 1.0]]]), torch.eye(2)
    view = SimpleNamespace(matrices={"weight": eye}, run=lambda batches: [tokens_BTD @ eye.T])
    edits = {"weight": Edit(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))}
    assert trial_error(view, edits, [tokens_BTD]) == pytest.approx(0.5)
    assert torch.equal(eye, torch.eye(2))


def test_a_version_is_part_of_what_is_written_and_another_is_refused():
    written = dump(build("allocators", "sensitivity"))
    assert written["sensitivity"]["version"] == 2 and build("allocators", written) == build("allocators", "sensitivity")
    with pytest.raises(ValueError, match=r"sensitivity.version: this is version 2 of it, got 1"):
        build("allocators", {"sensitivity": {"version": 1}})
    assert "version" not in dump(build("allocators", "owl"))["owl"]
