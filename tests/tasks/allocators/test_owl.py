"""OWL: the range is twice the spread, and blocks with outliers keep more."""

import pytest
import torch

from tasks.calibrate.scan import scan
from tasks.methods import build
from tasks.models.allocation import Scan, spread_out
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo


def test_the_block_with_outliers_keeps_more_and_the_range_is_twice_the_spread():
    model = zoo.model("llama", layers=3)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:, ::8] *= 30
    found = build("allocators", {"owl": {"spread": 0.05}}).allocate(scan(ResidentBlocks(model), zoo.batches()), 0.7)
    by_block = [found[f"model.layers.{block}.mlp.up_proj.weight"] for block in range(3)]
    assert by_block[1] == min(by_block)
    assert max(by_block) - min(by_block) == pytest.approx(0.1) and sum(by_block) / 3 == pytest.approx(0.7)


def test_offsets_worked_by_hand_and_shrunk_where_they_do_not_fit():
    blocks = Scan({"l.0.a": (10, 10), "l.1.a": (10, 10)})
    assert spread_out(blocks, 0.5, {0: 0.3, 1: 0.1}) == pytest.approx({"l.0.a": 0.6, "l.1.a": 0.4})
    assert spread_out(blocks, 0.05, {0: 0.3, 1: 0.1}) == pytest.approx({"l.0.a": 0.1, "l.1.a": 0.0})
    unequal = Scan({"l.0.a": (10, 30), "l.1.a": (10, 10)})
    assert spread_out(unequal, 0.5, {0: 0.4, 1: 0.0}) == pytest.approx({"l.0.a": 0.6, "l.1.a": 0.2})


def test_without_data_it_is_refused_in_one_line():
    with pytest.raises(ValueError, match="this allocator needs calibration data"):
        build("allocators", "owl").allocate(scan(ResidentBlocks(zoo.model("llama")), []), 0.5)
