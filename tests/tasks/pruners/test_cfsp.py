"""CFSP: channels fall whole, the smaller model computes what the masked one does, and it reloads without foreign code."""

import json

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.files.checkpoint import load_model, save_model
from tasks.models.files.promises import check_masks
from tasks.models.files.resizing import shrink
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tests.tasks import models_zoo as zoo

DENSE = ["llama", "gpt2", "opt", "qwen3", "gemma"]


def prune(architecture, where, sparsity=0.25, **fields):
    method = build("pruners", {"cfsp": fields})
    stream = BlockStream(zoo.save(architecture, where / "in"), where / "masked")
    levels = {name: sparsity + (0.25 if ".1." in name else 0) for name in stream.linears}
    return walk(stream, zoo.batches(), method, sparsity=levels, pattern="channel")


def logits(directory):
    with torch.no_grad():
        return load_model(directory)(zoo.batches(seed=5)[0]).logits


@pytest.mark.parametrize("architecture", DENSE)
def test_the_smaller_models_logits_are_the_masked_full_models(architecture, tmp_path):
    prune(architecture, tmp_path)
    masks = check_masks(tmp_path / "masked")
    assert {mask.pattern for mask in masks.values()} == {"channel", "neuron"}
    widths = shrink(tmp_path / "masked", tmp_path / "small")
    full = 128 if architecture == "gpt2" else 48
    assert widths == [full * 3 // 4, full // 2]
    assert "auto_map" not in (tmp_path / "small" / "config.json").read_text()
    torch.testing.assert_close(logits(tmp_path / "small"), logits(tmp_path / "masked"), rtol=0, atol=1e-5)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("model-*")) for name in ("small", "masked")]
    assert sizes[0] < sizes[1]


def test_a_smaller_model_is_a_model_like_any_other(tmp_path):
    """It streams through the walker, is pruned again, saved by its state and loaded once more."""
    prune("llama", tmp_path)
    shrink(tmp_path / "masked", tmp_path / "small")
    stream = BlockStream(tmp_path / "small", tmp_path / "sparse")
    walk(stream, zoo.batches(), build("pruners", "wanda"), sparsity=0.5, pattern="2:4")
    assert check_masks(tmp_path / "sparse")["model.layers.1.mlp.down_proj.weight"].shape == (32, 24)
    model = load_model(tmp_path / "sparse")
    save_model(model.state_dict(), model.config, tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again"), logits(tmp_path / "sparse"))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["surgeries"] == [{"narrow": {"widths": [36, 24]}}]


def test_worked_by_hand():
    """Channels that fire as strongly: what of a hidden feature's weight is theirs decides."""
    from tasks.calibrate.observe import InputNorms
    from tasks.models.find.structure import FeedForward

    view = type("View", (), {})()
    network = FeedForward(("up",), "down", 2)
    view.matrices = {"up": torch.tensor([[1.0, 1.0], [3.0, 1.0]]), "down": torch.tensor([[1.0, 3.0], [2.0, 2.0]])}
    norms = InputNorms(2)
    norms.assume_nothing()
    view.statistics = {"down": norms}
    # down: (1/4 + 1/2) / 2 and (3/4 + 1/2) / 2; up: (1/4 + 1/2) / 2 and (3/4 + 1/2) / 2.
    assert build("pruners", "cfsp")._score(view, network).tolist() == pytest.approx([0.75, 1.25])
    assert build("pruners", {"cfsp": {"criterion": "magnitude"}})._score(view, network).tolist() == [5, 9]


def test_widths_are_multiples_where_asked(tmp_path):
    prune("llama", tmp_path, sparsity=0.2, multiple=16)
    assert shrink(tmp_path / "masked", tmp_path / "small") == [32, 32]


@pytest.mark.parametrize("criterion", ["weights", "activation"])
def test_it_beats_random_channels(criterion, tiny_errors):
    assert tiny_errors(criterion) < tiny_errors("random")


@pytest.fixture
def tiny_errors():
    def measure(criterion):
        model = zoo.model("llama")
        with torch.no_grad():  # channels that fire very differently
            for block in model.model.layers:
                block.mlp.gate_proj.weight.mul_(torch.logspace(-1, 1, 48)[torch.randperm(48)][:, None])
        method = build("pruners", {"cfsp": {"criterion": criterion}})
        return walk(ResidentBlocks(model), zoo.batches(), method, sparsity=0.4, pattern="channel").metrics["walk/mean_error"]

    torch.manual_seed(0)
    return measure


def test_what_it_cannot_treat_is_refused():
    for architecture in ("mixtral", "bitnet"):
        resident = ResidentBlocks(zoo.model(architecture))
        with pytest.raises(ValueError, match="cfsp needs one feed-forward network of single matrices.*; block 0 has none"):
            walk(resident, zoo.batches(), build("pruners", "cfsp"), sparsity=0.5, pattern="channel")
    model = zoo.model("llama")
    pruned = ResidentBlocks(model)
    walk(pruned, [], build("pruners", "magnitude"), sparsity=0.5)
    with pytest.raises(ValueError, match="has a mask already; prune with cfsp first"):
        walk(ResidentBlocks(model, pruned.masks), zoo.batches(), build("pruners", "cfsp"), sparsity=0.5, pattern="channel")
