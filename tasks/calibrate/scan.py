"""Read a dense model for an allocator: block after block, as the walker opens them, without changing anything.

Shapes: B = batch, T = tokens, D = hidden features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from tasks.calibrate.method import BlockView, Edit
from tasks.calibrate.opened import Observers, open_block
from tasks.calibrate.watch import Make
from tasks.formats.pattern import Unstructured
from tasks.models.allocation import Scan
from tasks.models.stream.activations import MemoryBudget
from tasks.models.stream.blocks import ResidentBlocks


def scan(stream: ResidentBlocks, batches: Iterable[torch.Tensor], memory: MemoryBudget | None = None) -> Scan:
    """What an allocator may look at; ``batches`` are tokens int64 [B, T]."""
    batches = list(batches)

    def look(observe: Make) -> Iterator[BlockView]:
        if not batches and any(observe(linear) is not None for linear in stream.linears.values()):
            raise ValueError("this allocator needs calibration data, and there is none")
        with torch.no_grad():
            flow = stream.capture(batches, memory)
            for index in range(stream.depth):
                opened = open_block(stream, index, flow, Observers(observe), dict.fromkeys(stream.linears, 0.0), Unstructured())
                yield opened.view
                for batch, output_BTD in enumerate(opened.dense):
                    flow.hidden[batch] = output_BTD
                opened.dense.clear()
                stream.release(opened.view.module)
            flow.hidden.clear()

    return Scan({name: linear.shape for name, linear in stream.linears.items()}, look)


def trial_error(view: BlockView, edits: Mapping[str, Edit], dense: list[torch.Tensor]) -> float:
    """The relative squared error of the block's output, as the mean over the tokens of ``dense``, if ``edits`` were made; they
    are not. Each token by its own size: every block begins by norming its tokens, and a pretrained model has a few that are a
    thousand times as large, beside which, in one sum, no error of the others would count."""
    before = {name: view.matrices[name].clone() for name in edits}
    change, tokens = 0.0, 0
    try:
        for name, edit in edits.items():
            if edit.weight_OI is not None:
                view.matrices[name].copy_(edit.weight_OI)
        for dense_BTD, output_BTD in zip(dense, view.run(len(dense)), strict=True):
            error_BT = (output_BTD - dense_BTD).float().square().sum(-1)
            size_BT = dense_BTD.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
            change += float((error_BT / size_BT).sum(dtype=torch.float64))
            tokens += size_BT.numel()
    finally:
        for name, weight_OI in before.items():
            view.matrices[name].copy_(weight_OI)
    return change / max(tokens, 1)
