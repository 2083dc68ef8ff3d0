"""Matched attention costs what the formula says, head by head."""

import math
from types import SimpleNamespace

import pytest
import torch

from tasks.methods import build
from tests.tasks import models_zoo as zoo
from tests.tasks.objectives.answers import PLAIN, Fixed, cross_entropy, logits

LOOKS = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]]).expand(2, 2, 3, 3)  # B, H, who looks, at what
EVENLY = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]).expand(2, 2, 3, 3)


def measure(student, teacher, **fields):
    objective = build("objectives", {"attention": fields})
    return objective.bind(Fixed(logits(1), attentions=teacher))(Fixed(logits(0), attentions=student), PLAIN)


def test_one_token_of_three_looks_elsewhere():
    """KL(1/2 1/4 1/4 || 1/3 1/3 1/3) = ln 3 - 1.5 ln 2, for one of three tokens of one of two blocks."""
    loss, metrics = measure((EVENLY, LOOKS), (LOOKS, LOOKS), ce=0.5, attention=2)
    expected = (math.log(3) - 1.5 * math.log(2)) / 3 / 2
    assert metrics["attention"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * cross_entropy(logits(0)) + 2 * expected, rel=1e-5)
    assert measure((EVENLY, LOOKS), (LOOKS, LOOKS), blocks="last")[1]["attention"].item() == pytest.approx(0, abs=1e-6)


def test_odds_of_zero_are_finite_on_either_side():
    blind = torch.eye(3).expand(2, 2, 3, 3)
    assert measure((blind,), (LOOKS,))[0].isfinite() and measure((LOOKS,), (blind,))[0].isfinite()


def test_another_number_of_heads_is_refused_and_so_is_a_model_that_does_not_tell():
    facts = [SimpleNamespace(depth=2, heads=heads) for heads in (4, 8)]
    with pytest.raises(ValueError, match="head by head, and the teacher has 8 in a block, the model 4"):
        build("objectives", "attention").check_models(*facts)
    with pytest.raises(ValueError, match="unsupported: the model does not tell where its heads look"):
        measure((), ())


def test_the_heads_of_a_model_look_backwards_and_sum_to_one():
    """What transformers gives under the name is what the formula takes."""
    model = zoo.model("llama", layers=1)
    model.set_attn_implementation("eager")
    looks_BHTT = model(zoo.batches(1)[0], output_attentions=True).attentions[0]
    assert torch.allclose(looks_BHTT.sum(-1), torch.ones(())) and not looks_BHTT.triu(1).any()
