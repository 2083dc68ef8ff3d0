"""Bytes and parameters are those of the files."""

from __future__ import annotations

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.files.layout import MASKS
from tests.tasks import models_zoo as zoo
from tests.tasks.evaluators.test_pattern import pruned


def measure(directory) -> dict[str, float]:
    return build("evaluators", "size").measure(Candidate(directory, directory))


def test_a_dense_model_is_its_weights(tmp_path):
    zoo.save("llama", tmp_path)
    parameters = sum(parameter.numel() for parameter in zoo.model("llama").parameters())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert measure(tmp_path) == {
        "bytes": size,
        "mask_bytes": 0,
        "parameters": parameters,
        "live_parameters": parameters,
        "bits_per_parameter": 8 * size / parameters,
    }


def test_a_mask_takes_half_of_the_prunable_weights_and_a_bit_each(tmp_path):
    _, numel = pruned(tmp_path, "2:4")
    found = measure(tmp_path)
    assert found["live_parameters"] == found["parameters"] - numel / 2
    assert numel / 8 < found["mask_bytes"] < numel / 8 + 4096
    assert (tmp_path / MASKS).stat().st_size == found["mask_bytes"]
