"""Training for a rounding on two gloo ranks under every ZeRO stage is that of one process: losses, masks, grids and codes.

Sums are those of test_regimes: both sides add the gradients of the same halves of a batch, and take every sum in float64. The
model then multiplied with codes that a step decides by a hair, so what is compared at the end are the scales to the last
places of float32 and the codes exactly: a rank that fitted its grid to its own shard of a matrix would be far off both.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tasks.formats.grid import Grid
from tasks.formats.mask import Mask
from tasks.models.find.linears import find_linears
from tasks.train.engine import TorchEngine
from tasks.train.fake_quantized import fake_quantize
from tasks.train.regime import Setting
from tests.cluster.deepspeed.test_engine import ranks
from tests.cluster.test_regimes import BATCH, LAST_PLACES, RANKS, STEPS, fitted
from tests.contracts.test_regimes import held, incoming, regime_of
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

GRIDS = {"masked": Grid(3, 16), "sr_ste": Grid(4, 8, symmetric=False)}  # under masks that came, under masks of its own


def train(name: str, build_engine, directory: Path, micro_batch: int | None) -> tuple[list[float], dict[str, Mask], dict]:
    """(loss of every step, masks, weights at the end) of a regime that trains for its grid."""
    regime, model, masks = regime_of(name), zoo.model("llama", layers=1), incoming() if name == "masked" else {}
    for linear, mask in masks.items():
        model.get_parameter(linear).data.mul_(mask.keep)
    model = zoo.in_double(model)
    setting = Setting(find_linears(model), masks, STEPS, STEPS, data=directory / "data")
    grids = dict.fromkeys(setting.linears, GRIDS[name])
    fake_quantize(model, setting.linears, grids, dict.fromkeys(grids, torch.float32))
    losses, hooks, engine = fitted(regime, model, setting, build_engine, directory, micro_batch)
    return losses, held(hooks), {linear: engine.read(linear) for linear in setting.linears}


def check(name: str, stage: int, directory: Path) -> None:
    """What each of two ranks asserts."""
    from cluster.deepspeed.engine import DeepSpeedEngine

    alone, masks, weights = train(name, TorchEngine, directory, BATCH // RANKS)
    losses, ours, trained = train(name, partial(DeepSpeedEngine, zero_stage=stage), directory, None)
    assert losses == pytest.approx(alone, rel=LAST_PLACES), (name, stage)
    assert masks and ours.keys() == masks.keys() and all(torch.equal(ours[one].keep, masks[one].keep) for one in masks)
    for linear, weight_OI in weights.items():
        grid = GRIDS[name]
        (scale_OG, zero_OG), (other_OG, other_zero_OG) = grid.fit(weight_OI), grid.fit(trained[linear])
        torch.testing.assert_close(other_OG, scale_OG, rtol=1e-5, atol=0)
        assert torch.equal(other_zero_OG, zero_OG), linear
        codes, others = _codes(grid, weight_OI, scale_OG), _codes(grid, trained[linear], other_OG)
        assert torch.equal(codes, others) and codes.unique().numel() > 4, linear
        if linear in masks:
            assert not others[~masks[linear].keep].any(), linear


def _codes(grid: Grid, weight_OI: torch.Tensor, scale_OG: torch.Tensor) -> torch.Tensor:
    """How many steps of its grid each weight comes to."""
    rounded_OI = grid.round_matrix(weight_OI, *grid.fit(weight_OI))
    return (rounded_OI / scale_OG.repeat_interleave(grid.group_size, 1)).round()


@pytest.mark.slow
def test_two_ranks_under_any_zero_stage_train_for_the_grid_that_one_process_trains_for(tmp_path):
    data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(16 * 40))
    zoo.save("llama", tmp_path / "teacher", layers=1)
    outputs = ranks(RANKS, str(tmp_path), environment={}, module="tests.cluster.test_fake_quantized")
    assert all(output.splitlines()[-1] == f"checked {3 * len(GRIDS)}" for output in outputs)


if __name__ == "__main__":
    for stage in (1, 2, 3):
        for regime in GRIDS:
            check(regime, stage, Path(sys.argv[1]))
    print("checked", 3 * len(GRIDS))
    from cluster.deepspeed.rank import leave

    leave(0)
