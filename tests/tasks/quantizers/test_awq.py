"""AWQ scales what reads large inputs, never loses to rounding to nearest where it looks, and folds the scales away."""

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.formats.grid import Grid
from tasks.methods import build, dump
from tasks.models.stream.blocks import ResidentBlocks
from tasks.quantizers.awq import change, scales
from tests.tasks import models_zoo as zoo


def outliers(architecture="llama", **fields):
    """A model some of whose features are far larger than the others, as pretrained ones have them."""
    model = zoo.model(architecture, **fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter[::8] *= 20
    return model


def error(model, method, **fields):
    return walk(ResidentBlocks(model), zoo.batches(), build("quantizers", {method: {"group_size": 8, **fields}})).metrics[
        "walk/mean_error"
    ]


def test_scales_worked_out_by_hand():
    """Magnitudes 1, 4, 16 and one feature that is dead: to the power 1/2 they are 1, 2, 4, and divided by the root of the
    largest times the least, 2, they are 1/2, 1, 2."""
    live_I = torch.tensor([True, True, True, False])
    found_I = scales(torch.tensor([1.0, 4.0, 16.0, 100.0]), live_I, 0.5)
    assert torch.allclose(found_I, torch.tensor([0.5, 1.0, 2.0, 1.0]))
    assert torch.equal(scales(torch.tensor([1.0, 4.0, 16.0, 100.0]), live_I, 0.0), torch.ones(4)), "power 0 is no scaling"
    assert torch.equal(scales(torch.zeros(4), torch.zeros(4, dtype=torch.bool), 0.5), torch.ones(4))


def test_a_change_worked_out_by_hand():
    """2 bits, codes -2 .. 1, one group: of 1 and 0.25 the step is 2/3, so both lose, 1/3 and 1/4. With the second times 4 both
    are 1, rounded to 2/3: the first loses 1/3, the second a quarter of that."""
    weight_OI, grid = torch.tensor([[1.0, 0.25]]), Grid(2, 2)
    assert torch.allclose(change(weight_OI, torch.tensor([1.0, 1.0]), grid), torch.tensor([[-1 / 3, -0.25]]), atol=1e-6)
    assert torch.allclose(change(weight_OI, torch.tensor([1.0, 4.0]), grid), torch.tensor([[-1 / 3, -1 / 12]]), atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("bits", [3, 4])
def test_with_outliers_among_the_inputs_it_beats_rounding_to_nearest(architecture, bits):
    fields = {"bits": bits}
    nearest = error(outliers(architecture), "round_to_nearest", **fields)
    assert error(outliers(architecture), "awq", **fields) < 0.9 * nearest
    assert error(outliers(architecture), "awq", **fields, rounding="gptq") < 0.9 * nearest


def test_on_a_sparse_model_it_beats_rounding_to_nearest_and_dead_weights_stay_zero():
    pruned = ResidentBlocks(outliers())
    walk(pruned, zoo.batches(), build("pruners", "wanda"), sparsity=0.5, pattern="2:4")
    errors = {}
    for method in ("round_to_nearest", "awq"):
        model = outliers()
        model.load_state_dict(pruned.model.state_dict())
        resident = ResidentBlocks(model, pruned.masks)
        report = walk(resident, zoo.batches(), build("quantizers", {method: {"group_size": 8, "bits": 3}}))
        errors[method] = report.metrics["walk/mean_error"]
        for name, mask in resident.masks.items():
            assert (model.get_parameter(name)[~mask.keep] == 0).all() and mask.broken() is None
    assert errors["awq"] < errors["round_to_nearest"]


def test_a_fine_grid_leaves_what_the_model_computes():
    model = zoo.model("llama")
    tokens_BT = zoo.batches()[0]
    with torch.no_grad():
        before = model(tokens_BT).logits
        walk(ResidentBlocks(model), zoo.batches(), build("quantizers", {"awq": {"group_size": 4, "bits": 8}}))
        after = model(tokens_BT).logits
    assert (after - before).norm() < 0.03 * before.norm()


def test_what_has_nothing_to_be_folded_into_is_said():
    method = build("quantizers", {"awq": {"group_size": 8}})
    report = walk(ResidentBlocks(zoo.model("gpt2")), zoo.batches(), method)
    assert method.remarks(report) == ["4 of 8 matrices were rounded unscaled: their inputs have nothing to fold a scale into"]


def test_the_scheme_is_said_once_and_the_dump_has_it_once():
    method = build("quantizers", {"awq": {"group_size": 8, "rounding": {"gptq": {"act_order": False}}}})
    assert build("quantizers", dump(method)) == method and "bits" not in dump(method)["awq"]["rounding"]["gptq"]
    minmax = build("quantizers", {"awq": {"range": "minmax"}})
    assert build("quantizers", dump(minmax)) == minmax != build("quantizers", "awq")
    for rounding, match in (
        ({"gptq": {"bits": 3}}, "awq.rounding: bits is said beside rounding, for all of it; leave it out of gptq"),
        ("joint", "awq.rounding: joint does more than round a matrix; choose gptq or round_to_nearest"),
    ):
        with pytest.raises(ValueError, match=match):
            build("quantizers", {"awq": {"rounding": rounding}})
