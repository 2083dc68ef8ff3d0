"""Static sparse training: masks drawn at random before the first step and never moved (SPDF's pretraining).

Counts are exact per matrix. Dead weights, their gradients and their moments are zero from the first step to the last.
What follows in the paper, dense finetuning, is a ``recover`` stage with ``method: dense``: the mask is dropped, and
weights that it held start from zero under a new optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.regime import Outcome, Setting, SparseRegime

if TYPE_CHECKING:
    from tasks.train.hook import Hook


class Static(SparseRegime):
    paper: ClassVar[str] = "SPDF (arXiv 2303.10464)"
    masks: ClassVar[Outcome] = "drawn"

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.masking import Masking

        return [Masking(setting.linears, self.random_masks(setting))]
