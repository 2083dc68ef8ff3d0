"""What a training method decides: how long the run is, what it minimises, and which hooks take part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tasks.methods import Method

if TYPE_CHECKING:
    from tasks.formats.mask import Masks
    from tasks.models.linears import Linear
    from tasks.train.hook import Hook
    from tasks.train.objective import Objective


@dataclass(frozen=True)
class Setting:
    """What a regime is given: the model's prunable matrices, the masks it came with, its length, its other parents.

    ``dense_steps`` is the compute budget in dense steps, ``steps`` what the regime made of it.
    """

    linears: Mapping[str, Linear]
    masks: Masks
    dense_steps: int
    steps: int
    device: str
    teacher: Path | None = None


class Regime(Method):
    """Root of the regimes. The default trains every weight on cross-entropy and holds the masks it was given."""

    keeps_masks: ClassVar[bool] = True      # what was dead before training is dead after it

    def total_steps(self, dense_steps: int) -> int:
        """Steps that cost what ``dense_steps`` dense steps cost."""
        return dense_steps

    def needs_teacher(self) -> bool:
        return False

    def objective(self, setting: Setting) -> Objective:
        from tasks.train.objective import CrossEntropy

        return CrossEntropy()

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.masking import Masking

        return [Masking(setting.linears, setting.masks)]
