"""CFSP's coarse budget (arXiv 2409.13199): blocks that turn their hidden states further keep more.

A block's importance is the mean angle between a token's hidden state before and after it, squashed around the mean of
all blocks. The paper sums angles over 128 x 1024 tokens and divides by 10 000; the mean times 13.1 is the same and does
not depend on how many tokens there are.

Shapes: B = batch, T = tokens, D = hidden features.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field

from tasks.models.allocation import Allocator, Scan, spread_out

_STRETCH = 128 * 1024 / 1e4


class Cfsp(Allocator):
    paper: ClassVar[str] = "CFSP (arXiv 2409.13199)"

    sharpness: float = Field(1.0, ge=0)
    """How much a difference in angle counts; 0 is uniform."""

    def allocate(self, scan: Scan, sparsity: float) -> dict[str, float]:
        angles = {}
        for view in scan.blocks():
            if not len(view.inputs):
                raise ValueError("allocator cfsp needs calibration data, and there is none")
            turned = [_angles(before_BTD, after_BTD) for before_BTD, after_BTD in zip(view.inputs, view.run(), strict=True)]
            angles[view.index] = float(torch.cat(turned).mean())
        mean = sum(angles.values()) / len(angles)
        weights = {block: _sigmoid(self.sharpness * _STRETCH * (angle - mean)) for block, angle in angles.items()}
        typical = sum(weights.values()) / len(weights)
        offsets = {block: -(weight / typical - 1) * (1 - sparsity) for block, weight in weights.items()}
        return spread_out(scan, sparsity, offsets, lowest=sparsity * (1 - 1 / 1.05))


def _angles(before_BTD: torch.Tensor, after_BTD: torch.Tensor) -> torch.Tensor:
    """In half turns, for each token."""
    cosine = torch.nn.functional.cosine_similarity(before_BTD.to(after_BTD.device).float(), after_BTD.float(), dim=-1)
    return cosine.clamp(-1, 1).arccos().flatten() / math.pi


def _sigmoid(value: float) -> float:
    return (1 + math.tanh(value / 2)) / 2  # never overflows
