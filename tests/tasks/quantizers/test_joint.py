"""Joint is GPTQ where nothing is pruned, SparseGPT on an endless grid, and better than one after the other."""

import pytest
import torch

from tasks.calibrate.solvers.sweep import damped
from tasks.calibrate.walk import walk
from tasks.formats.grid import Grid
from tasks.formats.pattern import NM, Unstructured
from tasks.methods import build
from tasks.models.stream.blocks import ResidentBlocks
from tasks.pruners.sparsegpt import Sparsegpt
from tasks.quantize import Quantize
from tasks.quantizers.gptq import Gptq
from tasks.quantizers.joint import Joint
from tests.tasks import models_zoo as zoo
from tests.tasks.quantizers.test_gptq import loss, problem

PATTERNS = [(NM(), 0.5), (Unstructured(), 0.5), (Unstructured(), 0.7)]


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_with_nothing_to_prune_it_is_gptq_to_the_bit(act_order, masked):
    weight_OI, hessian = problem()
    keep_OI = NM().keep(weight_OI.abs(), 0.5) if masked else None
    weight_OI = weight_OI * keep_OI if masked else weight_OI
    joint = Joint(act_order=act_order).solve_linear(weight_OI, hessian, Grid(3, 16), keep_OI)
    gptq = Gptq(act_order=act_order).solve_linear(weight_OI, hessian, Grid(3, 16), keep_OI)
    assert torch.equal(joint.weight_OI, gptq.weight_OI) and joint.keep_OI is None
    assert torch.equal(joint.extras["scale"], gptq.extras["scale"])


@pytest.mark.parametrize(("pattern", "sparsity"), PATTERNS)
@pytest.mark.parametrize("act_order", [True, False])
def test_on_a_very_fine_grid_it_is_sparsegpt(pattern, sparsity, act_order):
    weight_OI, hessian = problem()
    fields = {"act_order": act_order, "double": True, "block": 32}
    joint = Joint(**fields).solve_linear(weight_OI, hessian, Grid(24, 16), None, sparsity, pattern)
    pruned = Sparsegpt(**fields).solve_linear(weight_OI, hessian, sparsity, pattern)
    assert torch.equal(joint.keep_OI, pruned.keep_OI) and torch.allclose(joint.weight_OI, pruned.weight_OI, atol=1e-5)


@pytest.mark.parametrize(("pattern", "sparsity"), PATTERNS)
def test_one_sweep_loses_less_than_two_and_rounding_loses_most(pattern, sparsity):
    totals = {"joint": 0.0, "gptq": 0.0, "nearest": 0.0}
    for seed in range(5):
        weight_OI, hessian = problem(seed=seed)
        grid = Grid(3, 16)
        pruned = Sparsegpt(double=True).solve_linear(weight_OI, hessian, sparsity, pattern)
        after = Gptq(double=True).solve_linear(pruned.weight_OI, hessian, grid, pruned.keep_OI)
        joint = Joint(double=True).solve_linear(weight_OI, hessian, grid, None, sparsity, pattern)
        assert pattern.holds(joint.keep_OI, sparsity) and (joint.weight_OI[~joint.keep_OI] == 0).all()
        rounded_OI = grid.round_matrix(pruned.weight_OI, *grid.fit(pruned.weight_OI))
        totals["joint"] += loss(weight_OI, joint, hessian)
        totals["gptq"] += loss(weight_OI, after, hessian)
        totals["nearest"] += loss(weight_OI, type(joint)(rounded_OI), hessian)
    assert totals["joint"] < totals["gptq"] < totals["nearest"]


def test_one_error_covers_both_so_the_reported_loss_is_the_change_of_the_output():
    weight_OI, hessian = problem()
    edit = Joint(double=True).solve_linear(weight_OI, hessian, Grid(4, 16), None, 0.5, NM())
    change_OI = (weight_OI - edit.weight_OI).double()
    expected = float(torch.trace(change_OI @ damped(hessian.mean_II, 0.01) @ change_OI.T) / 2)
    assert edit.notes["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("unstructured", 0.7)])
def test_a_walk_prunes_and_rounds_and_what_is_unquantized_is_pruned_alone(pattern, sparsity):
    resident = ResidentBlocks(zoo.model("llama"))
    method = build("quantizers", {"joint": {"group_size": 8, "schemes": {"k_proj": "UNQUANTIZED"}}})
    walk(resident, zoo.batches(), method, pattern=pattern, sparsity=sparsity)
    assert resident.masks.keys() == resident.linears.keys()
    for name, mask in resident.masks.items():
        weight_OI = resident.model.get_parameter(name).detach()
        assert mask.broken() is None and (weight_OI[~mask.keep] == 0).all()
        assert (name in resident.extras) == ("k_proj" not in name)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"method": "joint"}, "joint prunes as well; say pattern or sparsity"),
        ({"method": "gptq", "pattern": "2:4"}, "pattern: gptq keeps the masks it is given; leave it out, or choose joint"),
        ({"method": "joint", "pattern": "2:4", "sparsity": 0.7}, "2:4 means sparsity 0.5, which contradicts 0.7"),
        ({"method": "joint", "pattern": "unstructured"}, "sparsity is needed with pattern unstructured"),
    ],
)
def test_a_pattern_is_for_a_method_that_prunes(fields, match):
    with pytest.raises(ValueError, match=match):
        Quantize(**fields)
    assert Quantize(method="joint", pattern="2:4").leaves(None) == "2:4"
    assert Quantize(method="gptq").leaves("4:8") == "4:8"
