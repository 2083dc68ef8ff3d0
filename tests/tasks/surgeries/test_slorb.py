"""SLoRB through the pipeline: trained beside 2:4, stored, measured, trained on, not quantized, and added up on export."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.export import export_model
from tasks.formats.mask import load_masks
from tasks.methods import build
from tasks.models.build.building import operate
from tasks.models.files.checkpoint import load_model
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_model
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

AST = {"ast": {"kl": 0, "slorb": 8, "refresh": 2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    shop = Workshop(tmp_path_factory.mktemp("slorb"))
    data = shop.data()
    dense = shop.make("pretrain", {"model": LLAMA, **TRAINING}, data=data)
    return shop, data, dense, shop.make("recover", {"method": AST, **TRAINING}, data=data, model=dense)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(64).view(2, 32), use_cache=False).logits


def test_the_model_that_comes_out_is_exactly_2_of_4_with_trained_branches_that_its_config_names(made):
    shop, data, dense, sparse = made
    directory = shop.path(sparse)
    masks = check_model(directory).masks
    assert {mask.pattern for mask in masks.values()} == {"2:4"} and len(masks) == 14
    assert json.loads((directory / "config.json").read_text())["surgeries"] == [{"slorb": {"group": 8, "location": "all"}}]
    branches = {name: values for name, values in load_model(directory).named_parameters() if "slorb" in name}
    assert len(branches) == 14 and all(values.any() for values in branches.values())
    added = sum(values.numel() for values in branches.values())
    assert sparse.metrics["trainable_parameters"] == dense.metrics["trainable_parameters"] + added
    sizes = [shop.measure({"size": {}}, data=data, model=record)["parameters"] for record in (dense, sparse)]
    assert sizes[1] == sizes[0] + added


def test_it_is_measured_and_trained_on_as_any_other(made):
    shop, data, _, sparse = made
    assert shop.measure({"perplexity": {"length": 32}}, data=data, model=sparse)["perplexity"] < 300
    on = shop.make("recover", {"method": {"masked": {"kl": 0}}, **TRAINING}, data=data, model=sparse)
    before, after = (load_model(shop.path(record)).state_dict() for record in (sparse, on))
    assert all(not torch.equal(before[name], after[name]) for name in before if "slorb" in name)
    with pytest.raises(ValueError, match=r"has a branch of sums \(slorb\) already; recover with masked, which trains it on"):
        shop.make("recover", {"method": AST, **TRAINING}, data=data, model=sparse)


def test_an_export_adds_it_up_to_a_dense_model_with_the_same_logits_and_says_so(made, tmp_path):
    shop, _, _, sparse = made
    export_model(shop.store, sparse, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not hasattr(plain.config, "surgeries") and load_masks(tmp_path / "plain" / MASKS) == {}
    torch.testing.assert_close(logits(plain), logits(load_model(shop.path(sparse))), rtol=0, atol=1e-5)
    assert "these weights are dense" in (tmp_path / "plain" / "README.md").read_text()


def test_quantizing_it_is_refused_with_what_to_do(made):
    shop, data, _, sparse = made
    with pytest.raises(ValueError, match=r"dense ones beside them.*ast: \{slorb: null\} before quantizing"):
        shop.make("quantize", {"method": {"gptq": {"group_size": 16}}, **CALIBRATION}, data=data, model=sparse)


@pytest.mark.parametrize(
    ("architecture", "group", "problem"),
    [
        ("llama", 5, "slorb 5 does not divide the input width 32; choose a divisor of it"),
        ("mixtral", 8, "slorb adds to single matrices, and model.layers.0.mlp.experts.gate_up_proj is a fused stack"),
    ],
)
def test_where_it_cannot_be_is_refused_in_one_line(architecture, group, problem):
    model = zoo.model(architecture)
    with pytest.raises(ValueError, match=problem):
        operate(model, build("surgeries", {"slorb": {"group": group}}))
