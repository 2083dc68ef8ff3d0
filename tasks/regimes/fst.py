"""FST: transposable 2:4 masks in the FFN, so that forward and backward are both sparse, and dense training at the end.

The best of the 90 possible masks of each 4 x 4 tile is chosen anew every ``refresh`` steps. ``decay`` times the weight
is added to the gradient outside the mask (here before clipping; the authors add it after). ``mvue`` estimates the
output's gradients 2:4 sparsely. The last share ``dense`` of the run is dense, and so is then the model; with 0 the
model that comes out is 2:4 along both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.regime import Outcome, Setting
from tasks.train.sparse.semi_structured_regime import TwoOfFourRegime, treated

if TYPE_CHECKING:
    from tasks.train.hook import Hook


class Fst(TwoOfFourRegime):
    paper: ClassVar[str] = "FST, Accelerating Transformer Pre-training with 2:4 Sparsity (arXiv 2404.01847)"
    version: ClassVar[int] = 2  # estimates are drawn anew of each step's and rank's own seed
    masks: ClassVar[Outcome] = "open"

    refresh: int = Field(40, gt=0)
    """Steps between choices of the masks."""
    decay: float = Field(6e-5, ge=0)
    """Times the weight, added to the gradient of weights outside the mask."""
    dense: float = Field(1 / 6, ge=0, lt=1)
    """Share of the run, at its end, that is dense; with 0 the model stays 2:4 along both sides."""

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.sparse.two_of_four import Transposable

        # a run with no dense phase is sparse at its last step too
        dense_from = setting.steps + 1 if self.dense == 0 else setting.steps - round(self.dense * setting.steps)
        chosen = treated(setting, self)
        return [Transposable(setting.linears, setting.masks, chosen, self.refresh, dense_from, self.decay, self.mvue)]
