"""Quantize as a stage: masks and codes at once, bits under a budget, scales of inputs, all stored and read back."""

from __future__ import annotations

import json

import pytest
import torch

from tasks.calibrate.precision import stored_bits
from tasks.formats.mask import Mask, load_masks, save_masks
from tasks.models.files.checkpoint import load_model, skeleton
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_masks
from tasks.models.files.quantized import StoredWeights
from tasks.models.find.linears import find_linears
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

CHOICES = [{name: {"group_size": 32}} for name in ("W3A16", "W4A16", "W8A16")]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workshop, its text, and a model that was pretrained a little."""
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    data = made.data()
    return made, data, made.make("pretrain", {"model": LLAMA, "learning_rate": 4e-3, **TRAINING}, data=data)


def quantized(shop, **fields):
    made, data, dense = shop
    return made.path(made.make("quantize", {**fields, **CALIBRATION}, data=data, model=dense))


def test_a_dense_model_leaves_sparse_and_quantized_by_one_stage(shop):
    directory = quantized(shop, method={"joint": {"group_size": 32}}, pattern="2:4")
    masks = load_masks(directory / MASKS)
    assert masks.keys() == find_linears(skeleton(directory)).keys() == check_masks(directory).keys()
    assert all(str(mask.pattern) == "2:4" and mask.live == mask.numel / 2 for mask in masks.values())


def test_bits_are_chosen_within_the_budget_and_said(shop):
    directory = quantized(shop, method="gptq", precision={"budget": 5.0, "choices": CHOICES})
    chosen = json.loads((directory / "report" / "schemes.json").read_text())
    schemes, linears = StoredWeights(directory).schemes, find_linears(skeleton(directory))
    assert {f"{name}.weight" for name in chosen} == linears.keys() == {f"{name}.weight" for name in schemes}
    assert {schemes[name].weights.num_bits for name in chosen} > {4}, "not all alike"
    for name, spec in chosen.items():
        assert schemes[name].weights.num_bits == int(next(iter(spec))[1])
    shapes = {name: linears[f"{name}.weight"].shape for name in schemes}
    spent = sum(stored_bits(shapes[name], scheme) for name, scheme in schemes.items())
    assert spent <= 5.0 * sum(rows * columns for rows, columns in shapes.values())


def test_nothing_that_a_failed_attempt_solved_gets_into_the_next(shop, monkeypatch):
    made, _, _ = shop
    fields = {"method": {"round_to_nearest": {"group_size": 32, "bits": 6}}}

    def failing(*given):
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the disk is full"):
        patch.setattr("tasks.models.export.export_compressed", failing)
        quantized(shop, **fields)
    (left,) = (made.root / "scratch").rglob("dequantized")
    save_masks(
        {"model.layers.0.mlp.up_proj.weight": Mask.of(torch.ones(96, 32, dtype=torch.bool), "unstructured", 0.0)}, left / MASKS
    )
    assert not (quantized(shop, **fields) / MASKS).exists()


@pytest.mark.parametrize("method", [{"smooth_quant": {"scheme": "FP8"}}, {"awq": {"group_size": 32, "symmetric": False}}])
def test_scales_of_inputs_and_zero_points_are_stored_and_folded_models_read_back(shop, method):
    directory = quantized(shop, method=method)
    kinds = {name.rpartition(".")[2] for name in StoredWeights(directory).files}
    assert ("input_scale" in kinds) == ("smooth_quant" in method) and ("weight_zero_point" in kinds) == ("awq" in method)
    assert load_model(directory)(torch.arange(8)[None]).logits.isfinite().all()


def test_a_cache_in_8_bits_beside_bits_under_a_budget_has_no_zero_points_anywhere_and_reads_back(shop):
    fields = {"method": "round_to_nearest", "precision": {"budget": 5.0, "choices": CHOICES}}
    directory, without = quantized(shop, kv_cache="FP8", **fields), quantized(shop, **fields)
    said = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert len(said["config_groups"]) > 1 and "dequantize" not in said
    args = [said["kv_cache_scheme"], *(group["weights"] for group in said["config_groups"].values())]
    assert all(each["symmetric"] and not each["dynamic"] for each in args)
    leaves = [name.rpartition(".")[2] for name in StoredWeights(directory).files]
    assert leaves.count("k_scale") == leaves.count("v_scale") == 2 and not any("zero_point" in leaf for leaf in leaves)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        rounded, exact = (load_model(each)(tokens).logits for each in (directory, without))
    assert 0 < (rounded - exact).abs().max() < 0.3 * exact.abs().max()
