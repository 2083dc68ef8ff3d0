"""Perplexity is the exponential of the mean cross-entropy, window by window."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tasks.evaluators import Candidate
from tasks.methods import build
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo


def candidate(tmp_path, tokens: int = 45, uniform: bool = False, **overrides) -> Candidate:
    model = zoo.model("llama", layers=1, **overrides)
    if uniform:
        model.lm_head.weight.data.zero_()
    save_model(model.state_dict(), model.config, tmp_path / "model")
    data_zoo.write_tokens(tmp_path / "data", "heldout", np.random.default_rng(0).integers(0, zoo.VOCABULARY, tokens))
    return Candidate(tmp_path / "model", tmp_path / "data")


def perplexity(**fields):
    return build("evaluators", {"perplexity": fields})


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_it_is_what_a_loop_over_tokens_computes(batch, tmp_path):
    measured = candidate(tmp_path)
    tokens, losses = np.load(tmp_path / "data" / "heldout-00000.npy").astype(int), []
    for start in (0, 10, 20, 30):  # 45 tokens: the last five make no window
        window = torch.tensor(tokens[start : start + 10])
        with torch.no_grad():
            log_VT = torch.log_softmax(measured.model(window[None]).logits[0], -1)
        losses += [-log_VT[place, window[place + 1]].item() for place in range(9)]
    found = perplexity(length=10, batch=batch).measure(measured)
    assert found["heldout_loss"] == pytest.approx(sum(losses) / 36, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / 36), rel=1e-5)


def test_a_prompt_is_read_and_not_scored(tmp_path, monkeypatch):
    measured = candidate(tmp_path)
    tokens = torch.from_numpy(np.load(tmp_path / "data" / "heldout-00000.npy").astype(int)[:40]).view(4, 10)
    data_zoo.completions(monkeypatch, prompt=7)
    log_BTV = measured.model(tokens).logits.log_softmax(-1)
    expected = -log_BTV[:, 6:-1].gather(-1, tokens[:, 7:, None]).mean().item()
    assert perplexity(length=10).measure(measured)["heldout_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_scores_its_vocabulary(tmp_path):
    found = perplexity(length=8).measure(candidate(tmp_path, uniform=True))["perplexity"]
    assert found == pytest.approx(zoo.VOCABULARY, rel=1e-5)


def test_tokens_bound_the_windows(tmp_path):
    measured, seen = candidate(tmp_path), []
    measured.progress = lambda done, total, unit: seen.append((done, total))
    perplexity(length=12, tokens=30, batch=1).measure(measured)
    assert seen == [(1, 2), (2, 2)]


def test_windows_longer_than_the_positions_are_refused_and_not_cut():
    perplexity(length=12).check_positions(12)
    with pytest.raises(ValueError, match="^perplexity.length 512 is more than the model's 12 positions$"):
        perplexity().check_positions(12)


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="less than one window of 50 tokens"):
        perplexity(length=50).measure(candidate(tmp_path))


def test_a_loss_beyond_all_numbers_is_told_in_one_line(tmp_path):
    measured = candidate(tmp_path)
    measured.model.lm_head.weight.data.mul_(1e6)
    with pytest.raises(ValueError, match="^the model is broken: a held-out loss of .* has no finite perplexity$"):
        perplexity(length=8).measure(measured)
