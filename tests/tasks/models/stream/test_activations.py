"""Activations over their budget lie in files, come back bit for bit, and change no result."""

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.stream.activations import MemoryBudget, OffloadedTensors
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_does_not_fit_is_filed_and_comes_back(dtype, tmp_path):
    tensors = [torch.randn(4, 8).to(dtype) for _ in range(5)]
    memory = MemoryBudget(2 * tensors[0].nbytes, tmp_path)
    held = OffloadedTensors(memory)
    for tensor in tensors:
        held.append(tensor)
    assert len(list(tmp_path.iterdir())) == 3 and memory.used == memory.limit
    assert all(torch.equal(there, tensor) for there, tensor in zip(held, tensors, strict=True))
    held[0], held[4] = tensors[4], tensors[0]
    assert torch.equal(held[0], tensors[4]) and torch.equal(held[4], tensors[0])
    held.clear()
    assert memory.used == 0 and not list(tmp_path.iterdir())


def test_two_lists_share_one_budget(tmp_path):
    memory = MemoryBudget(100, tmp_path)
    first, second = OffloadedTensors(memory), OffloadedTensors(memory)
    first.append(torch.zeros(20))
    second.append(torch.zeros(20))
    assert len(list(tmp_path.iterdir())) == 1 and memory.used == 80


@pytest.mark.parametrize("budget", [0, 10_000])
def test_the_budget_changes_no_bit_of_a_walk(budget, tmp_path):
    free, tight = ResidentBlocks(zoo.model("llama")), ResidentBlocks(zoo.model("llama"))
    walk(free, zoo.batches(), build("pruners", "sparsegpt"), sparsity=0.5)
    walk(tight, zoo.batches(), build("pruners", "sparsegpt"), sparsity=0.5, memory=MemoryBudget(budget, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(free.model.parameters(), tight.model.parameters(), strict=True))
    assert not list(tmp_path.iterdir()), "nothing is left behind"
