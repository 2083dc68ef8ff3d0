"""Scoring in pieces gives the loss of scoring at once, whatever a model does to its logits, and never holds more of them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.data.batch import IGNORED, Batch
from tasks.models import scoring
from tasks.train.losses import next_token_loss
from tests.tasks import models_zoo as zoo

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
AFTER_THE_HEAD = {  # caps or scales of logits, which head(hidden) would miss
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
}
TOKENS = torch.randint(64, (3, 20), generator=torch.Generator().manual_seed(0))


def capped(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SIZES, **AFTER_THE_HEAD[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("held", [64 * 3, 64 * 7, 64 * 20, 64 * 41, 1 << 25], ids=lambda held: f"{held // 64} tokens")
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gemma4_shared", "opt", *AFTER_THE_HEAD])
def test_the_loss_is_that_of_all_logits_at_once_and_no_more_are_held(name, held, monkeypatch):
    model, made = capped(name) if name in AFTER_THE_HEAD else zoo.model(name, layers=3 if "shared" in name else 1), []
    with torch.no_grad():
        expected = next_token_loss(model(TOKENS).logits, Batch(TOKENS)).double().item() * TOKENS[:, 1:].numel()
    monkeypatch.setattr(scoring, "HELD", held)
    monkeypatch.setattr(scoring, "SCORED", 64 * 4)
    model.get_output_embeddings().register_forward_hook(lambda module, args, logits: made.append(logits.numel()))
    assert scoring.summed_loss(model, Batch(TOKENS)) == pytest.approx(expected, rel=1e-6)
    assert max(made) <= held
    assert not any("forward" in vars(module) for module in model.modules()), "the blocks are the model's own again"


def test_the_blocks_run_once_a_sequence(monkeypatch):
    model, runs = zoo.model("llama", layers=1), []
    monkeypatch.setattr(scoring, "HELD", 64 * 3)
    model.model.layers[0].register_forward_hook(lambda *given: runs.append(1))
    scoring.summed_loss(model, Batch(TOKENS))
    assert len(runs) == len(TOKENS)


def test_an_engine_is_asked_a_few_sequences_at_a_time(monkeypatch):
    model, asked = zoo.model("llama", layers=1), []

    def forward(input_ids, use_cache):
        asked.append(len(input_ids))
        return model(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(scoring, "HELD", 64 * 20)
    assert scoring.summed_loss(model, Batch(TOKENS), forward) == pytest.approx(scoring.summed_loss(model, Batch(TOKENS)))
    assert asked == [1, 1, 1]


@pytest.mark.parametrize("held", [64 * 7, 1 << 25])
def test_tokens_that_are_ignored_cost_nothing_and_the_others_what_they_cost(held, monkeypatch):
    model, labels = zoo.model("llama", layers=1), TOKENS.clone()
    labels[0, :15], labels[1] = IGNORED, IGNORED
    monkeypatch.setattr(scoring, "HELD", held)
    batch = Batch(TOKENS, labels)
    with torch.no_grad():
        expected = next_token_loss(model(TOKENS).logits, batch).item() * batch.predicted
    assert batch.predicted == 5 + 0 + 19
    assert scoring.summed_loss(model, batch) == pytest.approx(expected, rel=1e-6)
