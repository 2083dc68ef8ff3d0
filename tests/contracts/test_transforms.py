"""What every transform on the shelf promises: the dense model's FLOPs, a sane start, and a checkpoint that loads again."""

from __future__ import annotations

import json

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.formats.mask import Mask, load_masks
from tasks.methods import build, dump, names
from tasks.models.accounting import iso_sparsity, shape_of, shape_of_config
from tasks.models.build.building import builder
from tasks.models.build.surgery import FIELD
from tasks.models.export import export_compressed
from tasks.models.files.checkpoint import load_extras, load_model, save_model, validate
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_masks
from tasks.models.find.linears import find_linears
from tasks.models.source import ModelSource
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

LENGTH = 16
transforms = pytest.mark.parametrize("name", names("transforms"))
replacing = pytest.mark.parametrize("name", [name for name in names("transforms") if name != "wide"])


def transform(name, sparsity):
    return build("transforms", {name: {"sparsity": sparsity}})


def made(name, sparsity=0.5, architecture="llama", seed=0, **overrides):
    """A fresh transformed model."""
    config = transform(name, sparsity).resize(zoo.config(architecture, **overrides))
    torch.manual_seed(seed)
    return builder(config).from_config(config).eval()


def logits(model):
    with torch.no_grad():
        return model(zoo.batches()[0], use_cache=False).logits


@transforms
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen3", "gemma3"])
def test_training_costs_what_the_dense_model_costs(name, sparsity, architecture):
    config = zoo.config(architecture)
    dense, iso = shape_of_config(config), iso_sparsity(config, transform(name, sparsity), LENGTH)
    model = made(name, sparsity, architecture)
    assert 0 < iso < 1 and iso == pytest.approx(sparsity, abs=0.13)  # these models are all rounding
    assert shape_of(model).training_flops(1e6, LENGTH, 1 - iso) == pytest.approx(dense.training_flops(1e6, LENGTH), rel=1e-9)


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@replacing
def test_at_the_size_of_gpt3_small_the_sparsity_is_the_nominal_one(name, sparsity):
    config = zoo.config("gpt2", layers=1, n_embd=768, n_head=12)
    assert iso_sparsity(config, transform(name, sparsity), 1024) == pytest.approx(sparsity, abs=2e-3)


@pytest.mark.parametrize("name", [name for name in names("transforms") if name != "factorized"])
def test_no_sparsity_is_the_dense_model_bit_for_bit(name):
    torch.manual_seed(0)
    dense, model = builder(zoo.config("llama")).from_config(zoo.config("llama")).eval(), made(name, 0)
    assert model.state_dict().keys() == dense.state_dict().keys() and torch.equal(logits(model), logits(dense))
    assert iso_sparsity(zoo.config("llama"), transform(name, 0), LENGTH) == 0


@replacing
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_layer_starts_at_the_dense_layers_mean_square(name, sparsity):
    """Doped's low rank brings what a mask of its sparsity takes: the mean square is 1 + s until then."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 512, bias=False)
    value = torch.randn(256, 256)
    with torch.no_grad():
        dense = layer(value).square().mean()
        new = transform(name, sparsity).replace(layer, 512, 256)(value).square().mean()
    assert float(new / dense) == pytest.approx(1 + sparsity if name == "doped" else 1, rel=0.1)


@transforms
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_saving_and_loading_gives_the_same_logits_and_the_same_promises(name, architecture, tmp_path):
    model = made(name, 0.5, architecture)
    masks = {}
    for linear in find_linears(model).values():
        keep = torch.rand(linear.shape) < 0.5
        linear.matrix(model.get_parameter(linear.name).data).mul_(keep)
        masks[linear.name] = Mask.of(keep, "unstructured", 0.4)
    save_model(model.state_dict(), model.config, tmp_path, masks)
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert check_masks(tmp_path).keys() == masks.keys() == find_linears(loaded).keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get(FIELD, []) == ([] if name == "wide" else [{"transform": {"by": dump(transform(name, 0.5))}}])
    assert config["architectures"] == [type(model).__name__]


@transforms
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_attention_and_feed_forward_are_still_told_apart(name, architecture):
    linears = find_linears(made(name, 0.5, architecture)).values()
    assert all(linear.feed_forward == (".mlp." in linear.name) for linear in linears)


@transforms
def test_a_wrong_field_in_a_config_is_refused_in_one_line(name, tmp_path):
    zoo.save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {FIELD: [{"transform": {"by": {name: {"sparsity": 2}}}}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"{FIELD}: transform.by: {name}.sparsity: input should be less than 1") as refused:
        validate(tmp_path)
    assert "\n" not in str(refused.value)


@transforms
def test_wanda_streamed_equals_wanda_resident_and_gptq_exports_what_loads_again(name, tmp_path):
    model = made(name, 0.5, vocab_size=64)
    save_model(model.state_dict(), model.config, tmp_path / "dense")
    walk(BlockStream(tmp_path / "dense", tmp_path / "pruned"), zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
    resident = ResidentBlocks(model)
    walk(resident, zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
    assert torch.equal(logits(load_model(tmp_path / "pruned")), logits(resident.model))
    gptq = build("quantizers", {"gptq": {"group_size": None}})
    walk(BlockStream(tmp_path / "pruned", tmp_path / "rounded"), zoo.batches(), gptq)
    export_compressed(tmp_path / "rounded", load_extras(tmp_path / "rounded"), gptq.scheme_of, tmp_path / "packed")
    assert len(check_masks(tmp_path / "packed")) == len(find_linears(model)) == len(load_masks(tmp_path / "packed" / MASKS))


@replacing
def test_fused_experts_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"unsupported: {name} replaces single matrices, and .* is a fused stack of experts"):
        iso_sparsity(zoo.config("mixtral"), transform(name, 0.5), LENGTH)


@transforms
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = build("transforms", name)
    assert dump(method).keys() == {name} and build("transforms", dump(method)) == method and method.paper


@pytest.mark.slow
@transforms
def test_a_life_under_masks_runs_through_every_stage(name, tmp_path):
    """Pretrained at the iso-FLOP sparsity for what dense training costs, pruned further, recovered and measured."""
    shop = Workshop(tmp_path)
    data = shop.data()
    source = ModelSource.model_validate({**LLAMA, "transform": {name: {"sparsity": 0.5}}})
    iso = source.iso_sparsity(300, TRAINING["length"])
    static = {"static": {"sparsity": iso, "budget": "tokens"}}
    sparse = shop.make(
        "pretrain", {"model": source.model_dump(mode="json", exclude_none=True), "method": static, **TRAINING}, data=data
    )
    dense = shop.make("pretrain", {"model": LLAMA, **TRAINING}, data=data)
    assert sparse.metrics["training_tokens"] == dense.metrics["training_tokens"]
    assert sparse.metrics["training_flops"] == pytest.approx(dense.metrics["training_flops"], rel=1e-3)
    pruned = shop.make("prune", {"method": "magnitude", "sparsity": 0.8, **CALIBRATION}, data=data, model=sparse)
    again = shop.make("recover", TRAINING, data=data, model=pruned, teacher=sparse)
    measured = shop.measure({"size": {}, "perplexity": {"length": 32}}, data=data, model=again)
    assert measured["live_parameters"] < measured["parameters"] and again.metrics["training_loss"] < 6
