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
    """The relative squared error of the block's output on the batches of ``dense`` if ``edits`` were made; they are not."""
    before = {name: view.matrices[name].clone() for name in edits}
    change = total = 0.0
    try:
        for name, edit in edits.items():
            if edit.weight_OI is not None:
                view.matrices[name].copy_(edit.weight_OI)
        for dense_BTD, output_BTD in zip(dense, view.run(len(dense)), strict=True):
            change += float((output_BTD - dense_BTD).float().square().sum(dtype=torch.float64))
            total += float(dense_BTD.float().square().sum(dtype=torch.float64))
    finally:
        for name, weight_OI in before.items():
            view.matrices[name].copy_(weight_OI)
    return change / max(total, 1e-300)
