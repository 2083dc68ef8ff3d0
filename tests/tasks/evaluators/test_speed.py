"""Speed is tokens over median seconds, the first round left out as warm-up."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.evaluators import Candidate
from tasks.evaluators.runtime import Runtime
from tasks.evaluators.speed import Speed
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo


@pytest.fixture
def candidate(tmp_path) -> Candidate:
    zoo.save("llama", tmp_path / "model", layers=1)
    data_zoo.write_tokens(tmp_path / "data", "heldout", np.arange(100) % zoo.VOCABULARY)
    return Candidate(tmp_path / "model", tmp_path / "data")


def test_it_is_tokens_over_the_median_of_all_rounds_but_the_first(candidate, monkeypatch):
    rounds = iter([(100.0, 100.0), (1.0, 2.0), (5.0, 8.0), (2.0, 4.0)])
    monkeypatch.setattr(Speed, "_time", lambda self, candidate, tokens: next(rounds))
    found = Speed(prompt=16, new=8, repeats=3).measure(candidate)
    assert found == {"prefill_tokens_per_second": 16 / 2, "decode_tokens_per_second": 8 / 4}


def test_a_real_model_has_a_speed_and_needs_the_machine_for_itself(candidate):
    found = Speed(prompt=16, new=4, repeats=1).measure(candidate)
    assert all(value > 0 for value in found.values()) and Speed.exclusive


@pytest.mark.parametrize("measured", [Speed(prompt=16, new=4), Runtime(batches=(1,), contexts=(16,), new=4, repeats=1)])
def test_a_model_that_keeps_nothing_from_token_to_token_is_refused(measured, candidate):
    zoo.save("openai-gpt", candidate.directory, layers=1)
    with pytest.raises(ValueError, match="^unsupported: a OpenAIGPTLMHeadModel keeps no keys and values from token to token$"):
        measured.measure(candidate)


def test_a_prompt_longer_than_the_positions_is_refused_and_not_cut():
    Speed(prompt=60, new=4).check_positions(64)
    with pytest.raises(ValueError, match="^speed.prompt 61 and speed.new 4 together are more than the model's 64 positions$"):
        Speed(prompt=61, new=4).check_positions(64)


def test_too_little_text_is_refused(candidate):
    data_zoo.write_tokens(candidate.data, "heldout", [1, 2, 3])
    with pytest.raises(ValueError, match="less than one prompt of 16 tokens"):
        Speed(prompt=16, new=4).measure(candidate)
