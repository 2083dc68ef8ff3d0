"""Random: weights are pruned at random. The lower bound for every other pruner, and the control of any comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal
from zlib import crc32

import torch
from pydantic import Field

from tasks.calibrate.method import BlockView, Edit, Pruner, select
from tasks.formats.seeding import generator_for

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic


class Random(Pruner):
    """Each matrix draws its own by its name, or its content where others ask for a score, so the order of the walk changes
    nothing."""

    paper: ClassVar[str] = "uniform random pruning"
    scope: ClassVar[Literal["row", "layer"]] = "layer"

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the draw; the stage's unless given."""

    def score(self, weight_OI: torch.Tensor, statistics: InputStatistic | None) -> torch.Tensor:
        return self._draw(weight_OI, str(crc32(weight_OI.float().cpu().numpy().tobytes())))

    def solve(self, view: BlockView) -> dict[str, Edit]:
        def solve_one(name: str) -> Edit:
            weight_OI = view.matrices[name]
            chosen_OI = select(self._draw(weight_OI, name), view.allocation[name], view.pattern, view.keep.get(name))
            return Edit(weight_OI.masked_fill(~chosen_OI, 0), chosen_OI)

        return view.each(solve_one)

    def _draw(self, weight_OI: torch.Tensor, name: str) -> torch.Tensor:
        generator = generator_for(self.seed, name)
        return torch.rand(weight_OI.shape, generator=generator).to(weight_OI.device)
