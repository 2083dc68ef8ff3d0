"""Data-parallel calibration: every worker runs its own sequences through the same blocks, and their statistics are added.

The walker runs the first part of the sequences itself, and shares solving out where a method allows
(:mod:`tasks.calibrate.shared`). A worker reads each dense block from the model's files, and is sent the edited one. Batches are
dealt whole and sums over them are exact (:class:`tasks.calibrate.observe.Hessian`), so any number of workers gives the same
bits on the same kind of device.

Shapes: B = batch, T = tokens, D = hidden features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch

from tasks.calibrate.observe import Statistic
from tasks.models.stream.activations import Activations, OffloadedTensors

Kind = TypeVar("Kind", bound=Statistic)


def propagate(flow: Activations, block: torch.nn.Module, index: int, dense: OffloadedTensors) -> tuple[float, float]:
    """Replace the hidden states by the block's output; (squared change against ``dense``, squares of that)."""
    norms = []  # read once at the end: each look would wait for the GPU
    for batch, output_BTD in enumerate(flow.run(block, index)):
        if len(dense):
            dense_BTD = dense[batch].to(output_BTD.device, non_blocking=True).float()
            changed_BTD = output_BTD.float() - dense_BTD
            norms.append(torch.stack([torch.linalg.vector_norm(value_BTD) for value_BTD in (changed_BTD, dense_BTD)]))
        flow.hidden[batch] = output_BTD
    dense.clear()
    change, total = torch.stack(norms).double().square().sum(0).tolist() if norms else (0.0, 0.0)
    return change, total


def merge(parts: Iterable[Mapping[str, Kind]]) -> dict[str, Kind]:
    """The statistics of all workers added up, in their order. Matrices that share a statistic still do."""
    merged: dict[str, Kind] = {}
    for statistics in parts:
        added: set[int] = set()
        for name, statistic in statistics.items():
            if name not in merged:
                merged[name] = statistic
                added.add(id(statistic))
            elif id(merged[name]) not in added:
                merged[name].merge(statistic)
                added.add(id(merged[name]))
    return merged


def deal(batches: Sequence[torch.Tensor], workers: int) -> list[list[torch.Tensor]]:
    """Consecutive batches to each worker, as evenly as possible; no worker gets none."""
    workers = max(1, min(workers, len(batches)))
    bounds = [round(worker * len(batches) / workers) for worker in range(workers + 1)]
    return [list(batches[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]
