"""Optimizer states on the host: every ZeRO stage trains what one plain process trains, masked, from any snapshot to any.

``python -m tests.cluster.deepspeed.test_offload STAGE DIRECTORY`` is one of the ranks that the test starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tasks.train.snapshot import latest, restore, save
from tests.cluster.deepspeed.test_engine import (
    CHANGE,
    STEPS,
    assert_same,
    backward,
    check_branches,
    check_frozen,
    check_momentum,
    check_still,
    plain,
    ranks,
    sharded,
    state,
    train,
)


def check(stage: int, directory: Path) -> None:
    reference = train(plain(), range(STEPS))
    for precision, near in (("fp32", 3e-6), ("bf16", 2e-2)):
        on_host, on_card = sharded(stage, precision, offload=True), sharded(stage, precision)
        curve = train(on_host, range(CHANGE))
        torch.testing.assert_close(curve[:, :2], reference[:CHANGE, :2], rtol=near, atol=0)
        train(on_card, range(CHANGE))
        for here, there, name in ((on_host, {}, "host"), (on_card, {"offload": True}, "card")):
            save(here, directory / f"{precision}-{name}", CHANGE, {}, {})
            heir = sharded(stage, precision, **there)
            restore(latest(directory / f"{precision}-{name}"), heir)
            assert_same(state(heir), state(here))
            own, others = train(here, range(CHANGE, STEPS)), train(heir, range(CHANGE, STEPS))
            torch.testing.assert_close(others[:, :2], own[:, :2], rtol=near, atol=0)
        before = state(on_host)
        backward(on_host, 0, scale=float("inf") if on_host.rank == 0 else 1.0)
        assert not torch.isfinite(torch.tensor(on_host.step(3e-3)))
        assert_same(state(on_host), before)
        backward(on_host, 1)
        assert torch.isfinite(torch.tensor(on_host.step(3e-3)))
        assert not any(values.grad.any() for values in on_host._layout.updated)  # else what gets none next had them again


def check_what_stands_still(stage: int, directory: Path) -> None:
    """What never trains, or not for a while, other optimizers, and branches beside frozen weights."""
    for precision in ("fp32", "bf16"):
        check_frozen(stage, precision, offload=True)
        check_still(stage, precision, offload=True)
        check_momentum(stage, precision, offload=True)
        check_branches(stage, precision, directory, offload=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_train_the_same_with_states_on_the_host(stage, tmp_path):
    ranks(2, str(stage), str(tmp_path), environment={}, module=__name__)


def test_stage_0_has_nothing_to_offload():
    with pytest.raises(ValueError, match="ZeRO stage 0 offloads nothing; choose 1, 2 or 3"):
        sharded(0, offload=True)


if __name__ == "__main__":
    from cluster.deepspeed.rank import leave

    check(int(sys.argv[1]), Path(sys.argv[2]))
    check_what_stands_still(int(sys.argv[1]), Path(sys.argv[2]))
    leave(0)
