"""Documents that share a row are answered as if each were alone, by models that can; others are found out."""

from __future__ import annotations

import pytest
import torch

from tasks.data.batch import Batch
from tasks.data.rows import reading
from tasks.methods import build
from tasks.models.build.building import hollow, on_meta
from tasks.train.apart import alike, keeps_apart, sampler
from tasks.train.engine import TorchEngine, adamw
from tests.tasks import models_zoo as zoo
from tests.tasks.data.test_rows import written

FIELDS = {"smollm3": {"no_rope_layers": [1, 0, 1, 0, 1, 0]}, "gemma4_shared": {"num_kv_shared_layers": 3}}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "mixtral"])
def test_a_shared_row_is_answered_as_its_documents_are_alone(architecture):
    model, (first, second) = zoo.model(architecture), zoo.batches(1, rows=3, length=9)[0]
    row = Batch(torch.cat([first, second])[None], documents=torch.tensor([[1] * 9 + [2] * 9]))
    with torch.no_grad():
        shared = model(**row.asked, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=each[None], use_cache=False).logits[0] for each in (first, second)])
        mixed = model(input_ids=row.tokens, use_cache=False).logits[0]
    assert torch.allclose(shared, alone, atol=1e-4) and not torch.allclose(mixed[9:], alone[9:], atol=1e-2)
    assert keeps_apart(model) and keeps_apart(alike(model))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "smollm3", "gpt2", "opt", "phi3", "qwen3_5", "gemma4_shared"])
def test_a_model_without_weights_is_answered_for_by_a_small_one_of_its_config(architecture):
    """And it answers as the model itself, whichever way that is."""
    model = zoo.model(architecture, layers=6, **FIELDS.get(architecture, {}))
    state = torch.random.get_rng_state()
    hollowed = hollow(on_meta(model.config))
    assert keeps_apart(alike(hollowed)) == keeps_apart(model)
    assert torch.random.get_rng_state().equal(state)


class Leaky(torch.nn.Module):
    """Takes positions and does nothing with them: every token reads the sum of those before it."""

    def __init__(self, takes_positions: bool) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(64, 64)
        self.takes_positions = takes_positions

    def forward(self, input_ids, use_cache, **given):
        if given and not self.takes_positions:
            raise TypeError("unexpected keyword argument 'position_ids'")
        return type("Answer", (), {"logits": self.table(input_ids).cumsum(1)})


@pytest.mark.parametrize("takes_positions", [True, False])
def test_a_model_that_lets_documents_see_each_other_is_found_out(takes_positions):
    model = Leaky(takes_positions).train()
    assert not keeps_apart(model) and model.training


@pytest.mark.parametrize("objective", ["cross_entropy", "distillation", "square_head"])
def test_loss_and_gradient_of_shared_rows_are_those_of_a_row_each(objective, tmp_path):
    """Every token that counts weighs the same, however documents are laid out; what is padding is part of nothing."""
    data, told = written(tmp_path / "data"), []
    for together in (True, False):
        rows = reading(data, "train", together)
        batch = rows.batch(range(rows.sequences(9)), 9)
        model = zoo.model("llama", layers=1)
        engine = TorchEngine(model, adamw(model))
        loss, metrics = build("objectives", objective).bind(zoo.model("llama", layers=1).requires_grad_(False))(engine, batch)
        engine.backward(loss)
        told.append((metrics["loss"].item(), [value.grad for value in model.parameters()]))
    assert told[0][0] == pytest.approx(told[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(told[0][1], told[1][1], strict=True))


def test_people_are_told_how_tasks_are_laid_out(tmp_path):
    data, model = written(tmp_path / "data"), zoo.model("llama", layers=1)
    notes: list[str] = []
    assert sampler({"data": data}, 8, 3, 0, True, model, notes.append).at(0).documents.max() == 2
    assert sampler({"data": data}, 8, 1, 0, False, model, notes.append).at(0).documents.max() == 1
    assert notes[0] == "tasks: 3 rows of 8 tokens; documents share rows, and none sees another"
    assert notes[1].startswith("tasks: 4 rows of 8 tokens; each document has a row of its own, filled up with padding")
