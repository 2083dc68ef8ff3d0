"""Activation sparsity obeys its bound, rises with it, and of ReLU counts what is exactly nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.facts import facts_in
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

SMALL = {"sequences": 16, "length": 16, "tokens": 256}


def candidate(folder, architecture: str = "llama", same: bool = False, **overrides) -> Candidate:
    """A model and text that it predicts well, since it wrote it."""
    model = zoo.model(architecture, layers=2, **overrides)
    save_model(model.state_dict(), model.config, folder / "model")
    for split, seed in (("calibration", 0), ("heldout", 0 if same else 1)):
        data_zoo.write_tokens(folder / "data", split, written(model, seed))
    return Candidate(folder / "model", folder / "data", report=folder / "report")


@torch.no_grad()
def written(model, seed: int, rows: int = 16, length: int = 16) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(zoo.VOCABULARY, (rows, 1), generator=generator)
    while tokens.shape[1] < length:
        odds = model(tokens).logits[:, -1].float().softmax(-1)
        tokens = torch.cat([tokens, odds.multinomial(1, generator=generator)], 1)
    return tokens.flatten().numpy()


def measure(candidate: Candidate, **fields) -> dict[str, float]:
    return build("evaluators", {"activation_sparsity": {**SMALL, **fields}}).measure(candidate)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_perplexity_rises_by_no_more_than_p_and_with_a_larger_error_by_more(architecture, tmp_path):
    measured = candidate(tmp_path, architecture, same=True)  # held-out text is what the search saw
    found = measure(measured, percents=[1, 5])
    assert 1 < found["activation_perplexity_ratio"] <= 1.01 + 1e-9
    assert 1.045 < found["activation_perplexity_ratio.p5"] <= 1.05 + 1e-9
    further = measure(measured, error=found["activation_error.p5"] + 0.05)
    assert further["activation_perplexity_ratio"] > found["activation_perplexity_ratio.p5"]


def test_more_neurons_go_with_a_larger_p_and_the_first_has_the_plain_names(tmp_path):
    measured = candidate(tmp_path)
    found = measure(measured, percents=[5, 0.5, 20])
    shares = [found[f"activation_sparsity.{name}"] for name in ("p0_5", "p5", "p20")]
    assert found["activation_zeros"] <= shares[0] < shares[1] < shares[2] < 1
    assert found["activation_sparsity"] == found["activation_sparsity.p5"]
    report = json.loads((tmp_path / "report" / "activation_sparsity.json").read_text())
    assert report.keys() == {"p5", "p0_5", "p20"} and np.mean(report["p5"]["sparsity"]) == pytest.approx(shares[1])


def test_without_an_error_only_what_is_exactly_nothing_counts(tmp_path):
    relu = measure(candidate(tmp_path / "opt", "opt"), error=0)
    silu = measure(candidate(tmp_path / "llama"), error=0)
    for found in (relu, silu):
        assert found["activation_perplexity_ratio"] == pytest.approx(1, abs=1e-4)
        assert found["activation_sparsity"] == pytest.approx(found["activation_zeros"], abs=0.002)
    assert 0.3 < relu["activation_zeros"] < 0.7 and silu["activation_zeros"] == 0


def test_neurons_by_hand(tmp_path):
    """One network of which every neuron but one adds nothing, whatever it is given."""
    measured = candidate(tmp_path, "opt")
    with torch.no_grad():
        for layer in measured.model.model.decoder.layers:
            layer.fc1.weight.zero_()
            layer.fc1.bias.fill_(-1.0)
            layer.fc1.bias[3] = 1.0
    save_model(measured.model.state_dict(), measured.model.config, tmp_path / "model")
    width = measured.model.config.ffn_dim
    found = measure(Candidate(tmp_path / "model", tmp_path / "data"), error=0.5)
    assert found["activation_zeros"] == pytest.approx(1 - 1 / width)
    assert found["activation_sparsity"] == pytest.approx(1 - 1 / width) and found["activation_perplexity_ratio"] == 1


def test_a_model_in_bfloat16_is_measured_too(tmp_path):
    found = measure(candidate(tmp_path, dtype=torch.bfloat16))
    assert 0 < found["activation_sparsity"] < 1


def test_what_cannot_be_measured_is_refused_before_anything_is_computed(tmp_path):
    method = build("evaluators", {"activation_sparsity": {"length": 65}})
    with pytest.raises(ValueError, match="^activation_sparsity.length 65 is more than the model's 64 positions$"):
        method.check_positions(64)
    with pytest.raises(ValueError, match="^unsupported: block 0 has not one feed-forward network"):
        method.check_model(facts_in(zoo.save("mixtral", tmp_path)))
    method.check_model(facts_in(zoo.save("llama", tmp_path / "llama")))
    with pytest.raises(ValueError, match="percents"):
        build("evaluators", {"activation_sparsity": {"percents": []}})
