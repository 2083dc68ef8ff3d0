"""A checkpoint as the hub has it becomes an artifact under the model's own names, and leaves as it came."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from flows.export import export_model
from tasks.models.files.checkpoint import load_model
from tests.tasks import models_zoo as zoo
from tests.tasks.workshop import CALIBRATION, Workshop


def tensors(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_experts_that_lie_apart_on_the_hub_are_loaded_pruned_and_exported_as_they_came(architecture, tmp_path):
    shop, model = Workshop(tmp_path), zoo.model(architecture, vocab_size=320, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "hub", max_shard_size="20KB")
    data, before = shop.data(), tensors(tmp_path / "hub")
    assert any(".experts.0." in name for name in before) == (architecture != "llama")
    loaded = shop.make("load", {"model": {"checkpoint": str(tmp_path / "hub")}}, data=data)
    state = load_model(shop.path(loaded)).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    export_model(shop.store, loaded, tmp_path / "out")
    after = tensors(tmp_path / "out")
    assert after.keys() == before.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    pruned = shop.make("prune", {"method": "magnitude", "pattern": "2:4", **CALIBRATION}, data=data, model=loaded)
    assert pruned.metrics["sparsity"] == 0.5
    assert shop.measure({"size": {}, "pattern": {}}, data=data, model=loaded)["bytes"] > 0
