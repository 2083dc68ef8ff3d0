"""Essential sparsity by the paper's rule: the last of the grid within 1 %, and the first beyond it ends the search."""

import math

import pytest
import torch

from tasks.calibrate.essential import Trials, search
from tasks.data.batch import Batch
from tasks.methods import build


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


def test_what_was_tried_is_not_tried_again_and_belongs_to_its_settings(tmp_path, monkeypatch):
    pruned = []

    def prune(sparsity, directory):
        directory.mkdir(parents=True)
        pruned.append(sparsity)

    def trials():
        return Trials(tmp_path / "model", [Batch(torch.zeros(1, 4))], tmp_path / "scratch", "cpu", prune)

    (tmp_path / "model").mkdir()
    monkeypatch.setattr("tasks.calibrate.essential.mean_loss", lambda directory, *_: 2.0 if len(pruned) < 3 else 3.0)
    method = build("pruners", "magnitude")
    assert trials().search(method, "2:4")[0] == 0.1 and pruned == [0.05, 0.1, 0.15]
    assert trials().search(method, "2:4")[0] == 0.1 and len(pruned) == 3
    assert sorted(path.name for path in (tmp_path / "scratch").glob("walk-*")) == ["walk-0.1", "walk-0.15"]
    with pytest.raises(ValueError, match="was begun with another config"):
        trials().search(method, "4:8")
