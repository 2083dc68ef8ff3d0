"""Training for a rounding: forward passes see what is stored later, to the bit, and gradients what they would see anyway."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tasks.formats.grid import Grid
from tasks.formats.mask import load_masks
from tasks.models.files.checkpoint import load_model
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_masks
from tasks.models.find.linears import find_linears
from tasks.quantizers.round_to_nearest import RoundToNearest
from tasks.recover import Recover
from tasks.train import compiled
from tasks.train.compiled import compile_blocks
from tasks.train.effective import substitute
from tasks.train.fake_quantized import fake_quantize, rounded
from tasks.train.recomputed import recompute_blocks
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

UP = "model.layers.0.mlp.up_proj.weight"


def faked(model, grid: Grid):
    linears = find_linears(model)
    fake_quantize(model, linears, dict.fromkeys(linears, grid), dict.fromkeys(linears, torch.float32))
    return model


def test_a_row_by_hand():
    """The range of the four weights is [-3.5, 3.5] in seven steps of 1: 3.5 is beyond the largest of the codes -4 to 3."""
    model = zoo.model("llama", layers=1)
    up = model.get_submodule(UP.removesuffix(".weight"))
    row_I = torch.tensor([3.5, -2.4, 0, 0.6])
    with torch.no_grad():
        up.weight.zero_()[0, :4] = row_I
    faked(model, Grid(3, 4))
    input_I = torch.zeros(32)
    input_I[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    up(input_I)[0].backward()
    assert up(input_I)[0] == 3 * 1 - 2 * 2 + 0 * 3 + 1 * 4
    assert torch.equal(up.weight.grad[0], input_I) and not up.weight.grad[1:].any()
    assert torch.equal(up.weight[0, :4], row_I), "what is stored stays as fine as it was"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [Grid(2, 16), Grid(4, 8, symmetric=False), Grid(3, None), Grid(8, None, codes="float")])
def test_what_is_multiplied_is_what_round_to_nearest_stores_and_zeros_are_zeros(grid, dtype):
    linear = find_linears(zoo.model("llama", layers=1))[UP]
    weight_OI = torch.randn(linear.shape) * (torch.rand(linear.shape) < 0.5)
    stored = RoundToNearest().solve_linear(weight_OI.to(dtype), None, grid).weight_OI
    seen = rounded(linear, grid, weight_OI, dtype)
    assert torch.equal(seen, stored.float()) and not seen[weight_OI == 0].any()


def test_gradients_are_those_at_the_rounded_weights_straight_through():
    """Of every weight: the model whose weights are rounded for good has the same loss and the same gradients, bit for bit."""
    grid, tokens = Grid(3, 16), zoo.batches()[0]
    model, made = faked(zoo.model("llama"), grid), zoo.model("llama")
    with torch.no_grad():
        for name, linear in find_linears(made).items():
            made.get_parameter(name).copy_(rounded(linear, grid, made.get_parameter(name), torch.float32))
    losses = [each(tokens, labels=tokens, use_cache=False).loss for each in (model, made)]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    gradients = dict(made.named_parameters())
    assert all(torch.equal(value.grad, gradients[name].grad) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    "prepare",
    [
        [compile_blocks],
        [partial(recompute_blocks, what="layer")],
        [partial(recompute_blocks, what="selective")],
        [partial(recompute_blocks, what="selective"), compile_blocks],
    ],
    ids=["compiled", "layer", "selective", "selective compiled"],
)
def test_layers_that_are_compiled_or_run_again_see_the_same_rounded_weights(prepare, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    tokens, models = zoo.batches()[0], [zoo.model("llama", layers=1).train() for _ in range(2)]
    for each in prepare:
        each(models[1])
    losses = [faked(model, Grid(3, 16))(tokens, labels=tokens, use_cache=False).loss for model in models]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    gradients = dict(models[1].named_parameters())
    assert all(torch.equal(value.grad, gradients[name].grad) for name, value in models[0].named_parameters())


def test_gradients_estimated_2_to_4_go_through_the_rounded_weight():
    """S-STE and FST map with a product of their own, which has to see what was put in the weight's place before it."""
    grid = Grid(3, 16)
    model = faked(zoo.model("llama", layers=1), grid)
    linear, input_TI = find_linears(model)[UP], torch.randn(8, 32)
    substitute(model, {UP: linear}, lambda stored: {name: 2 * weight for name, weight in stored.items()}, sparse_gradients=True)
    up = model.get_submodule(UP.removesuffix(".weight"))
    assert torch.equal(up(input_TI), input_TI @ rounded(linear, grid, 2 * up.weight, torch.float32).T)


METHODS = ["masked", {"lora": {"rank": 4}}, {"ast": {"refresh": 2}}]


@pytest.mark.parametrize("method", METHODS, ids=["masked", "lora", "ast"])
@pytest.mark.parametrize("fields", [{"bits": 3, "group_size": 32}, {"scheme": {"W4A16_ASYM": {"group_size": 32}}}])
def test_the_quantized_export_is_the_model_that_was_trained(method, fields, shop):
    """Equal logits, bit for bit, under the mask that the pruning made."""
    made, data, dense, pruned = shop
    rounding = {"round_to_nearest": fields}
    recover = {"method": method, "fake_quantize": rounding, **TRAINING}
    trained = made.make("recover", recover, data=data, model=pruned, teacher=dense)
    export = made.path(made.make("quantize", {"method": rounding, **CALIBRATION}, data=data, model=trained))
    model, grid = load_model(made.path(trained)), Grid(3, 32) if "bits" in fields else Grid(4, 32, symmetric=False)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        fine = model(tokens).logits
        logits, stored = faked(model, grid)(tokens).logits, load_model(export)(tokens).logits
    assert torch.equal(logits, stored) and not torch.equal(logits, fine)
    came, left = (load_masks(made.path(each) / MASKS) for each in (pruned, trained))
    assert all(torch.equal(mask.keep, left[name].keep) for name, mask in came.items())
    assert check_masks(export).keys() == came.keys()


def test_a_stage_that_fakes_nothing_has_the_key_it_had_and_another_rounding_another(shop):
    made, data, _, pruned = shop
    plain = Recover.model_validate({**TRAINING})
    fakes = [Recover.model_validate({**TRAINING, "fake_quantize": {"round_to_nearest": {"bits": bits}}}) for bits in (3, 4)]
    assert "fake_quantize" not in plain.parameters()
    assert len({made.artifact(stage, {"data": data, "model": pruned}).key for stage in (plain, *fakes)}) == 3


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workshop, its text, a model that was pretrained a little, and the same at 2:4."""
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    data = made.data()
    dense = made.make("pretrain", {"model": LLAMA, "learning_rate": 4e-3, **TRAINING}, data=data)
    return made, data, dense, made.make("prune", {"method": "wanda", "pattern": "2:4", **CALIBRATION}, data=data, model=dense)
