"""What is computed again in the backward pass changes no bit of a training at any ZeRO stage, compiled or not.

``python -m tests.cluster.deepspeed.test_recomputed`` is one of the ranks that the test starts.
"""

from __future__ import annotations

import sys

import pytest
import torch

from tasks.train import compiled
from tasks.train.compiled import compile_blocks
from tasks.train.recomputed import recompute_blocks
from tests.cluster.deepspeed.test_engine import assert_same, engine_over, llama, ranks, state, train


def trained(stage: int, precision: str, recompute: str, compile: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(masters and moments of this rank, losses and gradient norms) after two masked steps."""
    torch._dynamo.reset()
    module = llama()
    recompute_blocks(module, "selective") if recompute == "selective" else None
    compile_blocks(module) if compile else None
    recompute_blocks(module, "layer") if recompute == "layer" else None
    engine = engine_over(module, stage, precision)
    curve = train(engine, range(2))
    return state(engine), curve


def check(stage: int) -> None:
    compiled.BACKEND = "eager"  # the order of operations is at stake, not kernels
    for precision, compile in (("fp32", False), ("bf16", True)):
        weights, curve = trained(stage, precision, "none", compile)
        for recompute in ("selective", "layer"):
            again, same = trained(stage, precision, recompute, compile)
            assert torch.equal(same, curve), (stage, precision, recompute)
            assert_same(again, weights)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_the_same_bits(stage):
    ranks(2, str(stage), environment={}, module=__name__)


if __name__ == "__main__":
    from cluster.deepspeed.rank import leave

    check(int(sys.argv[1]))
    leave(0)
