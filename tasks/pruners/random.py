"""Random: weights fall by lot. The floor every other pruner has to clear, and the control of any comparison."""

from __future__ import annotations

from typing import Any, ClassVar
from zlib import crc32

import torch
from pydantic import Field

from tasks.calibrate.method import BlockView, Edit, Pruner


class Random(Pruner):
    """``seed`` decides the lot; each matrix draws its own by its name, so the order of the walk changes nothing."""

    paper: ClassVar[str] = "uniform random pruning"

    seed: int = Field(0, ge=0)

    def score(self, weight_OI: torch.Tensor, statistics: Any) -> torch.Tensor:
        return self._draw(weight_OI, "")

    def solve(self, view: BlockView) -> dict[str, Edit]:
        edits = {}
        for name, weight_OI in view.matrices.items():
            drawn_OI, keep_OI = self._draw(weight_OI, name), view.keep.get(name)
            if keep_OI is not None:
                drawn_OI = drawn_OI.masked_fill(~keep_OI, view.pattern.dead_score)
            chosen_OI = view.pattern.keep(drawn_OI, view.sparsity[name])
            if keep_OI is not None:
                chosen_OI &= keep_OI
            edits[name] = Edit(weight_OI.masked_fill(~chosen_OI, 0), chosen_OI)
        return edits

    def _draw(self, weight_OI: torch.Tensor, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(crc32(f"{self.seed}/{name}".encode()))
        return torch.rand(weight_OI.shape, generator=generator).to(weight_OI.device)
