"""A new model's numbers come one tensor at a time, bit for bit those of the model that is built whole."""

import pytest
import torch

from tasks.methods import build
from tasks.models.build.building import builder
from tasks.models.build.deferred import deferred
from tasks.models.files.checkpoint import load_model
from tasks.models.stream.slices import sliced
from tests.tasks import models_zoo as zoo


def flat(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().flatten() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_they_are_those_of_the_whole_model_and_the_generator_stands_where_it_then_stands(architecture):
    torch.manual_seed(3)
    whole = builder(config := zoo.config(architecture)).from_config(config, dtype=torch.float32)
    expected, following = flat(whole), torch.rand(3)
    model, drawn = deferred(zoo.config(architecture), seed=3)
    came = {name: piece(0, expected[name].numel()) for name, piece in drawn}
    assert torch.equal(torch.rand(3), following)
    assert came.keys() == expected.keys() and all(torch.equal(came[name], values) for name, values in expected.items())
    assert {name: value.shape for name, value in model.named_parameters()} == {
        name: value.shape for name, value in whole.named_parameters()
    }


def test_no_more_than_one_tensor_is_there_at_a_time_and_a_hollow_model_takes_no_memory():
    model, drawn = deferred(zoo.config("llama", layers=4), seed=0)
    largest = max(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.untyped_storage().nbytes() for parameter in model.parameters()) < 4 * 2 * len(list(model.parameters()))
    for _ in drawn:
        held = sum(storage.nbytes() for storage in drawn.there.values())
        assert held <= 4 * largest + 4 * 64  # and rotary frequencies


def test_a_model_that_a_surgery_changes_is_built_whole():
    assert deferred(build("transforms", {"doped": {"sparsity": 0.5}}).resize(zoo.config("llama")), seed=0) is None


@pytest.mark.parametrize(
    ("architecture", "dtype"), [(name, torch.float32) for name in zoo.ARCHITECTURES] + [("llama", torch.bfloat16)]
)
def test_a_stored_model_comes_by_slices_of_its_files(architecture, dtype, tmp_path):
    whole = load_model(zoo.save(architecture, tmp_path / "in", dtype=dtype), torch.float32)
    model, slices = sliced(tmp_path / "in", tmp_path / "scratch")
    expected, pieces = flat(whole), dict(slices)
    assert pieces.keys() >= dict(whole.named_parameters()).keys()
    for name, piece in pieces.items():
        half = expected[name].numel() // 2
        assert torch.equal(piece(0, half), expected[name][:half]) and torch.equal(
            piece(half, expected[name].numel() - half), expected[name][half:]
        )
    there = flat(model)
    assert all(torch.equal(there[name], value) for name, value in expected.items() if name not in pieces)
