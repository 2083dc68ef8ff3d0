"""Cross-entropy is what its formula says, to the last term."""

import math

import pytest
import torch

from tasks.data.batch import IGNORED, Batch
from tasks.methods import build
from tests.tasks.objectives.answers import COMPLETION, PLAIN, TOKENS, Fixed, cross_entropy, logits

measure = build("objectives", "cross_entropy").bind()


@pytest.mark.parametrize("batch", [PLAIN, COMPLETION], ids=["plain", "completion"])
def test_each_token_that_counts_is_scored_on_the_one_after_it(batch):
    loss, metrics = measure(Fixed(logits(0)), batch)
    assert loss.item() == metrics["loss"].item() == pytest.approx(cross_entropy(logits(0), batch))


def test_a_uniform_model_loses_the_log_of_its_vocabulary():
    assert measure(Fixed(torch.zeros(2, 3, 4)), PLAIN)[0].item() == pytest.approx(math.log(4))


def test_where_no_token_counts_nothing_is_lost_and_nothing_learned():
    given = logits(0)
    loss, _ = measure(Fixed(given), Batch(TOKENS, torch.full_like(TOKENS, IGNORED)))
    loss.backward()
    assert loss.item() == 0 and not given.grad.any()
