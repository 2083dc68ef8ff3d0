"""The smaller model that CFSP leaves against the full-size one under its masks: half of the FFN channels gone, same logits."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench.measured import Measured, median, spread, take_turns

SIZES = {"hidden_size": 256, "intermediate_size": 1024}
SHARE, ROUNDS, BATCH, LENGTH = 0.5, 20, 8, 64


def measure() -> list[Measured]:
    import torch

    from tasks.calibrate.walk import walk
    from tasks.methods import build
    from tasks.models.files.checkpoint import load_model
    from tasks.models.files.resizing import shrink
    from tasks.models.stream.blocks import BlockStream
    from tests.tasks import models_zoo as zoo

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        masked, small = Path(directory) / "masked", Path(directory) / "small"
        stream = BlockStream(zoo.save("llama", Path(directory) / "dense", **SIZES), masked)
        walk(stream, zoo.batches(), build("pruners", "cfsp"), sparsity=SHARE, pattern="channel")
        shrink(masked, small)
        models = {"masked": load_model(masked), "small": load_model(small)}
    tokens_BT = torch.randint(3, zoo.VOCABULARY, (BATCH, LENGTH))
    with torch.inference_mode():
        rounds = take_turns({name: lambda model=model: forward(model, tokens_BT) for name, model in models.items()}, ROUNDS)

    def ratio(seconds: dict[str, float]) -> float:
        return seconds["small"] / seconds["masked"]

    count = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    said = f"CFSP's smaller model / the masked one, prefill; {count['small']:,} / {count['masked']:,} parameters"
    return [Measured("narrow.prefill", median(rounds, ratio), 1.0, f"{said}; {spread(rounds, ratio)}")]


def forward(model, tokens_BT) -> None:
    model(tokens_BT)
