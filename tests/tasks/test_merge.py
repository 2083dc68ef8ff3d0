"""A merged model is the mean of its members under the mask they share, and models that share none are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from cluster.profile import Profile
from flows.here import make_here
from flows.make import Watchers
from flows.plan import check, make_plan
from flows.recipe import parse_recipe
from flows.spared import Spared
from tasks.context import Context, Execution
from tasks.formats.mask import Mask
from tasks.models.files.checkpoint import save_model
from tasks.models.files.layout import MASKS
from tasks.stage import stage_class
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

NAME = "model.layers.0.mlp.up_proj.weight"


def saved(directory, factor: float, dead: int = 0):
    """A model times a factor, with some of one matrix's columns dead."""
    model = zoo.model("llama", layers=1, dtype=torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.mul_(factor)
    weight = model.get_parameter(NAME)
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[:, :dead] = False
    weight.data.mul_(keep)
    mask = Mask.of(keep, "unstructured", 1 - keep.float().mean().item())
    save_model(model.state_dict(), model.config, directory, {NAME: mask})
    return directory


def merge(tmp_path, *directories) -> dict[str, torch.Tensor]:
    stage, output = stage_class("merge")(), tmp_path / "merged"
    output.mkdir()
    inputs = {f"models_{number}": directory for number, directory in enumerate(directories)}
    context = Context(inputs, output, tmp_path, Execution())
    stage.check_parties(stage.parties(context))
    assert stage.run(context) == {"merged_models": len(directories)}
    return load_file(output / "model.safetensors")


def test_uniform_is_the_mean_in_the_stored_dtype_and_the_mask_goes_along(tmp_path):
    one, three = saved(tmp_path / "one", 1.0, dead=2), saved(tmp_path / "three", 3.0, dead=2)
    merged, first = merge(tmp_path, one, three), load_file(one / "model.safetensors")
    assert merged.keys() == first.keys()
    for name, value in merged.items():
        assert value.dtype == torch.bfloat16 and torch.allclose(value.float(), 2 * first[name].float(), rtol=0.02)
    assert (merged[NAME][:, :2] == 0).all() and (tmp_path / "merged" / MASKS).read_bytes() == (one / MASKS).read_bytes()


def test_a_mean_of_equal_models_is_the_model_bit_for_bit(tmp_path):
    same = saved(tmp_path / "one", 0.7, dead=1)
    merge(tmp_path, same, same, same)
    for file in sorted(path.name for path in same.iterdir() if path.is_file()):
        assert file == "model.safetensors" or (tmp_path / "merged" / file).read_bytes() == (same / file).read_bytes()
    assert all(
        value.equal(load_file(same / "model.safetensors")[name])
        for name, value in load_file(tmp_path / "merged" / "model.safetensors").items()
    )


def test_models_under_different_masks_or_of_different_shapes_are_refused_in_one_line(tmp_path):
    one, other = saved(tmp_path / "one", 1.0, dead=1), saved(tmp_path / "other", 1.0, dead=2)
    with pytest.raises(ValueError, match=f"^models under different masks have no sparse mean .{NAME}.; gather what one pruned"):
        merge(tmp_path, one, other)
    narrow = zoo.save("llama", tmp_path / "narrow", layers=1, intermediate_size=24)
    with pytest.raises(ValueError, match="^models of different shapes have no mean .model.layers.0.mlp.down_proj.weight."):
        merge(tmp_path / "narrow", one, narrow)


@pytest.mark.parametrize(
    ("field", "first", "second"),
    [("hidden_act", "silu", "gelu"), ("tie_word_embeddings", True, False), ("rope_theta", 1e4, 1e5)],
)
def test_models_of_equal_shapes_and_different_configs_are_refused_in_one_line(tmp_path, field, first, second):
    paths = [zoo.save("llama", tmp_path / str(value), layers=1, **{field: value}) for value in (first, second)]
    with pytest.raises(
        ValueError, match=f"^models of different configs have no mean .(rope_parameters|{field}) is .* and .*"
    ) as e:
        merge(tmp_path, *paths)
    assert "\n" not in str(e.value)


def test_models_stored_in_different_dtypes_are_refused_in_one_line(tmp_path):
    paths = [tmp_path / "float32", tmp_path / "bfloat16"]
    for path, dtype in zip(paths, (torch.float32, torch.bfloat16), strict=True):
        model = zoo.model("llama", layers=1)
        save_model(model.to(dtype).state_dict(), model.config, path)
        config = json.loads((path / "config.json").read_text()) | {"dtype": "float32"}
        (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="^models that store other tensors have no mean .lm_head.weight in torch"):
        merge(tmp_path, *paths)


@pytest.fixture(scope="module")
def soup(tmp_path_factory):
    """The records of a recipe that prunes a model, recovers it twice, and averages what came out."""
    shop = Workshop(tmp_path_factory.mktemp("soup"))
    corpus = {"files": {"paths": [data_zoo.write_texts(shop.root / "texts", 40)]}}
    recover = {"recover": {**TRAINING, "tokens": 1024}, "grid": {"seed": [0, 1]}}
    stages = [
        {"prepare": {"corpus": corpus, "tokenizer": {"train": 300}}},
        {"pretrain": {**TRAINING, "learning_rate": 4e-3}},
        {"prune": {"method": "wanda", "pattern": "2:4", **CALIBRATION}},
        recover,
        {"id": "soup", "merge": {}, "gather": True},
    ]
    evaluate = {"perplexity": {"length": 32}, "pattern": {}, "divergence": {"length": 32}}
    document = {"name": "soup", "model": LLAMA, "evaluate": evaluate, "stages": stages}
    profile = Profile(store=str(shop.root / "store"), scratch=str(shop.root / "scratch"), engine="torch", device="cpu")
    plan = make_plan(parse_recipe(document, ""), shop.store)
    check(plan.recipe)
    make_here(Spared(plan, Watchers([])), shop.store, profile)
    return {step.id: shop.store.require(step.artifact) for step in plan.steps}


def test_a_gathered_recipe_runs_to_a_soup_that_keeps_the_mask(soup):
    measured = {id.rpartition(".")[0]: record.metrics for id, record in soup.items() if id.endswith(".perplexity")}
    assert measured["soup"]["perplexity"] < measured["prune"]["perplexity"]
    assert soup["soup.pattern"].metrics["pattern_holds"] == 1 and soup["soup"].metrics["merged_models"] == 2
    assert soup["soup"].metrics["sparsity"] == soup["prune"].metrics["sparsity"]


def test_a_model_far_from_its_dense_reference_diverges_more(soup):
    found = {id: soup[f"{id}.divergence"].metrics["reference_kl"] for id in ("prune", "soup")}
    assert found["prune"] > 0 and found["soup"] > 0 and "pretrain.divergence" not in soup
