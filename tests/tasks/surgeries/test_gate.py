"""A surgery of one's own on a user's checkpoint: what it adds is walked, pruned, trained, saved and loaded strictly."""

import json
from pathlib import Path

import pytest
import torch

import tasks.surgeries
from flows.export import export_model
from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.build.building import operate
from tasks.models.files.checkpoint import load_model, save_model, validate
from tasks.models.files.promises import check_model
from tasks.models.files.shards import TensorFiles
from tasks.models.files.trained import Origin
from tasks.models.find.linears import find_linears
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import LLAMA, TRAINING, Workshop


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    monkeypatch.setattr(tasks.surgeries, "__path__", [*tasks.surgeries.__path__, str(Path(__file__).parent / "shelf")])


def gated(directory, output):
    """The model of ``directory`` with gates that do something, saved to ``output``."""
    model = load_model(directory)
    operate(model, build("surgeries", {"gate": {"threshold": 0.01}}))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith((".gain", ".threshold")):
                tensor.mul_(torch.rand_like(tensor) + 0.5)
    save_model(model.state_dict(), model.config, output)
    return model


def logits(model):
    with torch.no_grad():
        return model(zoo.batches()[0], use_cache=False).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3", "qwen3"])
def test_parameters_and_buffers_come_back_and_the_walk_prunes_around_them(architecture, tmp_path):
    model = gated(zoo.save(architecture, tmp_path / "users"), tmp_path / "gated")
    loaded = load_model(tmp_path / "gated")
    assert loaded.state_dict().keys() == model.state_dict().keys() and torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(model), logits(load_model(tmp_path / "users")))
    walk(BlockStream(tmp_path / "gated", tmp_path / "pruned"), zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
    resident = ResidentBlocks(model)
    walk(resident, zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
    pruned = load_model(tmp_path / "pruned")
    assert torch.equal(logits(pruned), logits(resident.model))
    assert check_model(tmp_path / "pruned").masks.keys() == find_linears(model).keys()
    save_model(pruned.state_dict(), pruned.config, tmp_path / "again")
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(pruned))


def test_a_buffer_that_is_not_stored_is_refused(tmp_path):
    model = gated(zoo.save("llama", tmp_path / "users"), tmp_path / "gated")
    state = model.state_dict()
    del state["model.layers.1.mlp.down_proj.threshold"]
    save_model(state, model.config, tmp_path / "less")
    with pytest.raises(ValueError, match="does not fit its config: missing_keys .*layers.1.mlp.down_proj.threshold"):
        load_model(tmp_path / "less")
    with pytest.raises(ValueError, match=r"does not fit its config: model.layers.1.mlp.down_proj.threshold is not stored"):
        check_model(tmp_path / "less")


def test_surgeries_are_applied_in_their_order(tmp_path):
    model = load_model(zoo.save("llama", tmp_path / "users"))
    operate(model, build("surgeries", {"narrow": {"widths": [24, 16]}}))
    operate(model, build("surgeries", "gate"))  # after the other, whose widths its gains have
    save_model(model.state_dict(), model.config, tmp_path / "both")
    assert torch.equal(logits(load_model(tmp_path / "both")), logits(model))
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert [list(surgery) for surgery in config["surgeries"]] == [["narrow"], ["gate"]]
    (tmp_path / "both" / "config.json").write_text(json.dumps({**config, "surgeries": config["surgeries"][::-1]}))
    with pytest.raises(ValueError, match="does not fit its config"):
        check_model(tmp_path / "both")


def test_a_buffer_that_training_changed_is_saved_changed_and_the_others_bit_for_bit(tmp_path):
    gated(zoo.save("llama", tmp_path / "users"), tmp_path / "gated")
    model = load_model(tmp_path / "gated")
    origin = Origin.of(model, tmp_path / "gated", tmp_path / "scratch")
    model.model.layers[0].mlp.down_proj.threshold.fill_(0.5)
    origin.write(
        dict(model.named_parameters()).items(), model.bfloat16(), {}, None, tmp_path / "out"
    )  # as an engine may hold it
    before, after = TensorFiles(tmp_path / "gated"), TensorFiles(tmp_path / "out")
    thresholds = [name for name in before if name.endswith(".threshold")]
    read = {name: (before.read([name])[name], after.read([name])[name]) for name in thresholds}
    assert [name for name, pair in read.items() if not torch.equal(*pair)] == ["model.layers.0.mlp.down_proj.threshold"]
    assert float(read["model.layers.0.mlp.down_proj.threshold"][1]) == 0.5


def test_training_keeps_buffers_trains_parameters_and_export_refuses(tmp_path):
    shop = Workshop(tmp_path)
    data = shop.data()
    dense = shop.make("pretrain", {"model": LLAMA, **TRAINING}, data=data)
    gated(shop.path(dense), tmp_path / "gated")
    trained = shop.make("pretrain", {"model": {"checkpoint": str(tmp_path / "gated")}, **TRAINING}, data=data)
    before, after = TensorFiles(tmp_path / "gated"), TensorFiles(shop.path(trained))
    assert set(before) == set(after)
    for name in before:
        same = torch.equal(before.read([name])[name], after.read([name])[name])
        assert same == name.endswith(".threshold"), name
    shop.make("evaluate", {"method": {"perplexity": {"length": 32}}}, data=data, model=trained)
    with pytest.raises(ValueError, match="has the surgery gate, .* which cannot be undone"):
        export_model(shop.store, trained, tmp_path / "export")


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ([{"gatee": {}}], "surgeries: no method 'gatee' in tasks.surgeries; choose one of gate, narrow, slorb, transform"),
        ([{"narrow": {"width": [3]}}], "surgeries: narrow.width: no such field; choose one of widths"),
        ([{"narrow": {"widths": [0, 8]}}], "surgeries: narrow.widths[0]: input should be greater than 0, got 0"),
        ([{"narrow": {"widths": [8, 8, 8]}}], "narrow gives 3 widths for 2 blocks"),
        ([{"narrow": {"widths": [8, 64]}}], "narrow gives block 1 64 channels, and it has 48"),
        ([{"transform": {"by": "wide"}}], "surgeries: transform.by: wide changes sizes in the config and no modules"),
        ({"gate": {}}, "surgeries: should be a list of {NAME: {FIELD: VALUE}}, got {'gate': {}}"),
    ],
)
def test_what_a_config_lists_wrong_is_refused_in_one_line(listed, problem, tmp_path):
    zoo.save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "surgeries": listed}))
    with pytest.raises(ValueError) as refused:
        validate(tmp_path)
        check_model(tmp_path)
    assert problem in str(refused.value) and "\n" not in str(refused.value)
