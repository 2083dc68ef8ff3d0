"""The one training loop against the ten lines one would write by hand.

Hooks, engines, sampling by step and telemetry must cost nothing that a user would notice, or the first thing they do is
to write their own loop. Both sides train the same model on the same batches with the same fused AdamW and clipping, and
must end with the same weights. The hand-written side has its batches in memory; ours draws them, logs and may use hooks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import quickstart
from tests.bench.measured import Measured, median, spread, take_turns

if TYPE_CHECKING:
    import torch

STEPS, ROUNDS = 2, 16
RATE, CLIPPING = 1e-3, 1.0


def by_hand(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    for tokens in batches:
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
    loss.item()  # a loop that never reads its loss is no training loop


def measure() -> list[Measured]:
    import torch

    from tasks.objectives.cross_entropy import CrossEntropy
    from tasks.train.engine import TorchEngine, adamw
    from tasks.train.loop import fit
    from tasks.train.schedule import LearningRate

    with tempfile.TemporaryDirectory() as directory:
        sampler = quickstart.sampler(Path(directory), STEPS)
        batches = [sampler.at(step).tokens for step in range(STEPS)]
        ours, theirs = quickstart.model(), quickstart.model()
        engine = TorchEngine(ours, adamw(ours), CLIPPING)
        optimizer = adamw(theirs)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        constant = LearningRate(RATE, STEPS, warmup=0.0, final=1.0)

        def by_loop() -> None:
            fit(engine, sampler, CrossEntropy().bind(), [], STEPS, constant)

        rounds = take_turns({"fit": by_loop, "by hand": lambda: by_hand(theirs, optimizer, batches)}, ROUNDS)
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), weight, rtol=1e-3, atol=1e-4)

    def ratio(seconds: dict[str, float]) -> float:
        return seconds["fit"] / seconds["by hand"]

    step = 1000 * median(rounds, lambda seconds: seconds["by hand"]) / STEPS
    return [
        Measured(
            "fit_overhead",
            median(rounds, ratio),
            1.05,
            f"fit() / hand-written loop of {step:.0f} ms a step; {spread(rounds, ratio)}",
        )
    ]
