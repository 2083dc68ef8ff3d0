"""Ordinary training: every weight lives. The baseline of every sparse regime."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.regime import Outcome, Regime, Setting

if TYPE_CHECKING:
    from tasks.train.hook import Hook


class Dense(Regime):
    """Masks of the incoming model are dropped; a weight they held at zero starts from zero and learns."""

    paper: ClassVar[str] = "AdamW (arXiv 1711.05101) on all weights"
    masks: ClassVar[Outcome] = "dropped"
    keeps_masks: ClassVar[bool] = False

    def hooks(self, setting: Setting) -> list[Hook]:
        return []
