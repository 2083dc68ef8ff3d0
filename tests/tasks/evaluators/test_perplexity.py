"""Perplexity is the exponential of the mean cross-entropy, window by window."""

from __future__ import annotations

import json
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


def candidate(tmp_path, tokens: int = 45, uniform: bool = False, **overrides) -> Candidate:
    model = zoo.model("llama", layers=1, **overrides)
    if uniform:
        model.lm_head.weight.data.zero_()
    save_model(model.state_dict(), model.config, tmp_path / "model")
    data_zoo.write_tokens(tmp_path / "data", "heldout", np.random.default_rng(0).integers(0, zoo.VOCABULARY, tokens))
    data_zoo.write_heldout(tmp_path / "data", [80 * "a"])
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


@pytest.mark.parametrize(("tokens", "predicted"), [(10, 9), (20, 18), (21, 21), (None, 42)])
def test_tokens_bound_what_overlapping_windows_predict(tokens, predicted, tmp_path, monkeypatch):
    measured, counts = candidate(tmp_path), []
    score = scoring.summed_losses
    monkeypatch.setattr(scoring, "summed_losses", lambda model, batch: counts.append(batch.predicted) or score(model, batch))
    perplexity(length=10, stride=3, tokens=tokens, batch=1).measure(measured)
    assert sum(counts) == predicted


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


@pytest.mark.parametrize("stride", [1, 3, 5, 10])
def test_where_windows_overlap_each_token_is_predicted_once_with_the_text_before_it(stride, tmp_path):
    measured = candidate(tmp_path)
    tokens, losses = torch.from_numpy(np.load(tmp_path / "data" / "heldout-00000.npy").astype(int)), []
    for start in range(0, 45 - 10 + 1, stride):
        with torch.no_grad():
            log_TV = measured.model(tokens[None, start : start + 10]).logits[0].log_softmax(-1)
        fresh = range(1, 10) if start == 0 or stride == 10 else range(10 - stride, 10)
        losses += [-log_TV[place - 1, tokens[start + place]].item() for place in fresh]
    found = perplexity(length=10, stride=stride, batch=3).measure(measured)
    assert found["heldout_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    with pytest.raises(ValueError, match="stride 11 is more than length 10"):
        perplexity(length=10, stride=11)


def test_bits_per_byte_and_the_interval_by_hand(tmp_path):
    found = perplexity(length=8).measure(candidate(tmp_path, uniform=True))
    # 45 tokens, one an end of text, stand for 80 bytes
    assert found["bits_per_byte"] == pytest.approx(math.log2(zoo.VOCABULARY) * 44 / 80, rel=1e-5)
    assert found["perplexity_low"] == pytest.approx(found["perplexity_high"], rel=1e-4)  # all windows lose the same
    spread = perplexity(length=8).measure(candidate(tmp_path / "other"))
    assert spread["perplexity_low"] < spread["perplexity"] < spread["perplexity_high"]


def test_a_text_of_joined_documents_scores_what_a_script_of_the_papers_does(tmp_path):
    measured = candidate(tmp_path, vocab_size=300)
    data_zoo.write_tokenizer(tmp_path / "data" / "tokenizer")
    documents = [data_zoo.text(number) for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    ids = torch.tensor(measured.tokenizer("\n\n".join(documents)).input_ids)
    blocks = ids[: len(ids) // 16 * 16].view(-1, 16)
    with torch.no_grad():
        expected = measured.model(blocks, labels=blocks).loss.item()
    texts = {"papers": {"corpus": str(tmp_path / "rows.jsonl"), "join": "\n\n"}, "rows": str(tmp_path / "rows.jsonl")}
    method = perplexity(length=16, tokens=None, texts=texts)
    found = method.measure(measured)
    assert found["perplexity.papers"] == pytest.approx(math.exp(expected), rel=1e-4)
    size = len("\n\n".join(documents).encode())
    assert found["bits_per_byte.papers"] == pytest.approx(expected / math.log(2) * len(ids) / size, rel=1e-4)
    assert found["perplexity.rows"] != found["perplexity.papers"]  # an end of text after each
    assert method.sources().keys() == {"text papers", "text rows"}
    with pytest.raises(ValueError, match="text rows has less than one window of 100000 tokens"):
        perplexity(length=10**5, texts={"rows": texts["rows"]})._judge(
            measured, method.texts["rows"].encode(measured.tokenizer), "text rows", 1
        )


@pytest.mark.parametrize(
    "texts, complaint",
    [
        ({"Wiki 2": "x.txt"}, "is no name of a task or text"),
        ({"w": {"train": "x.txt"}}, "one text is needed"),
        ({"w": {"corpus": "x.txt", "joined": "x"}}, "joined: no such field"),
        ({"w": "nothing"}, "no corpus 'nothing'"),
    ],
)
def test_a_text_that_is_none_is_refused_in_one_line(texts, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        perplexity(texts=texts)
    assert "\n" not in str(refusal.value)
