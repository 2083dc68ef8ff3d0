"""Divergence is what its definition gives: nothing for a model equal to its reference, more the more predictions moved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models import scoring
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo


def pair(tmp_path, change) -> Candidate:
    """A model and, as its reference, the same with a change to it."""
    for name in ("model", "reference"):
        model = zoo.model("llama", layers=1)
        if name == "reference":
            change(model)
        save_model(model.state_dict(), model.config, tmp_path / name)
    data_zoo.write_tokens(tmp_path / "data", "heldout", np.random.default_rng(0).integers(0, zoo.VOCABULARY, 45))
    return Candidate(tmp_path / "model", tmp_path / "data", reference=Candidate(tmp_path / "reference", tmp_path / "data"))


def divergence(**fields):
    return build("evaluators", {"divergence": fields})


def test_a_model_equal_to_its_reference_diverges_by_nothing(tmp_path):
    assert divergence(length=10).measure(pair(tmp_path, lambda model: None)) == {"reference_kl": 0.0, "reference_flips": 0.0}


@pytest.mark.parametrize("held", [1 << 25, 3 * 64])  # all logits at once, and those of three tokens
def test_it_is_what_the_definition_gives(held, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "HELD", held)
    measured = pair(tmp_path, lambda model: model.lm_head.weight.data.mul_(-0.5))
    tokens = torch.from_numpy(np.load(tmp_path / "data" / "heldout-00000.npy").astype(int)[:40].reshape(4, 10))
    with torch.no_grad():
        truth, guess = (torch.log_softmax(each.model(tokens).logits.double(), -1) for each in (measured.reference, measured))
    found = divergence(length=10, batch=3).measure(measured)
    assert found["reference_kl"] == pytest.approx(float((truth.exp() * (truth - guess)).sum(-1).mean()), rel=1e-5)
    assert found["reference_flips"] == float((truth.argmax(-1) != guess.argmax(-1)).float().mean()) > 0.5


def test_from_a_reference_that_knows_nothing_it_is_known_by_hand(tmp_path):
    """A uniform reference: log V of entropy less the mean log-probability that the model gives a token."""
    measured = pair(tmp_path, lambda model: model.lm_head.weight.data.zero_())
    tokens = torch.from_numpy(np.load(tmp_path / "data" / "heldout-00000.npy").astype(int)[:40].reshape(1, 40))
    with torch.no_grad():
        mean = torch.log_softmax(measured.model(tokens).logits.double(), -1).mean()
    expected = -math.log(zoo.VOCABULARY) - mean.item()
    assert divergence(length=40).measure(measured)["reference_kl"] == pytest.approx(expected, rel=1e-5)


def test_windows_longer_than_the_positions_are_refused():
    with pytest.raises(ValueError, match="^divergence.length 512 is more than the model's 12 positions$"):
        divergence().check_positions(12)
