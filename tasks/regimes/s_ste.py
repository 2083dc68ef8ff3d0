"""S-STE: 2:4 by a continuous threshold, with no mask to flip and nothing to tune.

Each group of four is shrunk by its second-smallest magnitude and the matrix scaled back by a factor fixed at the start;
gradients pass unchanged. ``mvue`` estimates the output's gradients 2:4 sparsely for the weight gradient. FFN only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.regime import Outcome, Setting
from tasks.train.sparse.semi_structured_regime import TwoOfFourRegime, treated

if TYPE_CHECKING:
    from tasks.train.hook import Hook


class SSte(TwoOfFourRegime):
    paper: ClassVar[str] = "S-STE (arXiv 2409.09099)"
    version: ClassVar[int] = 2  # estimates are drawn anew of each step's and rank's own seed
    masks: ClassVar[Outcome] = "narrowed"

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.sparse.two_of_four import SoftThreshold

        return [SoftThreshold(setting.linears, setting.masks, treated(setting, self), self.mvue)]
