"""The pattern is counted on what is stored: one broken group among thousands is seen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tests.tasks import models_zoo as zoo


def pruned(directory, pattern: str, architecture: str = "llama") -> tuple[dict[str, torch.Tensor], int]:
    """Write a model pruned to 50 %; its masks, and how many weights are prunable."""
    model = zoo.model(architecture)
    masks = zoo.prune(model, pattern)
    save_model(model.state_dict(), model.config, directory, masks)
    return masks, sum(mask.numel for mask in masks.values())


def measure(directory) -> dict[str, float]:
    return build("evaluators", "pattern").measure(Candidate(directory, directory))


def revive(directory, masks) -> None:
    """Make the first dead weight of the first matrix live in the file; its mask stays."""
    name = next(iter(masks))
    row, column = (~masks[name].keep).nonzero()[0].tolist()
    state = load_file(directory / "model.safetensors")
    state[name][row, column] = 1.0
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def test_one_broken_group_is_counted(tmp_path):
    masks, numel = pruned(tmp_path, "2:4")
    assert measure(tmp_path) == {"zero_weights": 0.5, "pattern_holds": 1.0}
    revive(tmp_path, masks)
    assert measure(tmp_path) == {"zero_weights": 0.5 - 1 / numel, "pattern_holds": 1 - 1 / (numel / 4)}


@pytest.mark.parametrize("pattern", ["unstructured", "unstructured:row", "block:8", "channel"])
def test_where_there_are_no_groups_matrices_are_counted(pattern, tmp_path):
    masks, _ = pruned(tmp_path, pattern)
    assert measure(tmp_path)["pattern_holds"] == 1.0
    revive(tmp_path, masks)
    assert measure(tmp_path)["pattern_holds"] == pytest.approx(1 - 1 / len(masks))


@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "block:8", "channel"])
@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_transposed_and_stacked_matrices_are_counted_too(pattern, architecture, tmp_path):
    pruned(tmp_path, pattern, architecture)
    assert measure(tmp_path)["pattern_holds"] == 1.0


def test_a_dense_model_keeps_no_pattern(tmp_path):
    zoo.save("llama", tmp_path)
    assert measure(tmp_path) == {"zero_weights": 0.0}
