"""Essential sparsity by the paper's rule: the last of the grid within 1 %, and the first beyond it ends the search."""

import math

import pytest

from tasks.calibrate.essential import search


def test_the_knee_worked_by_hand():
    perplexity = {0.0: 10.0, 0.1: 9.9, 0.2: 10.05, 0.3: 10.09, 0.4: 10.5, 0.5: 10.0}
    asked = []

    def loss_at(sparsity):
        asked.append(sparsity)
        return math.log(perplexity[sparsity])

    found, curve = search(loss_at, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert found == 0.3 and asked[-1] == 0.4 and 0.5 not in asked
    assert curve["essential_sparsity"] == found and len(curve["perplexity"]) == 5


def test_a_model_that_can_spare_nothing_has_none():
    assert search(lambda sparsity: sparsity, [0.1, 0.2])[0] == 0.0


@pytest.mark.parametrize("loss", [math.nan, math.inf, 800.0])
def test_a_loss_beyond_all_numbers_is_a_drop(loss):
    found, curve = search(lambda sparsity: loss if sparsity > 0.25 else 2.0, [0.1, 0.2, 0.3, 0.4])
    assert found == 0.2 and curve["perplexity"][-1] == [0.3, None]


def test_a_model_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="there is no drop to look for"):
        search(lambda sparsity: math.nan)
