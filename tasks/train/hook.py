"""Hooks: how a method takes part in training without the loop knowing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tasks.train.engine import Engine


@dataclass
class Run:
    """What hooks see of the run in progress. ``step`` counts finished optimizer steps."""

    engine: Engine
    steps: int
    step: int = 0


class Hook:
    """Does nothing; a method overrides what it needs. Every rank calls every hook at the same moments."""

    def on_start(self, run: Run) -> None:
        """Before the first step, also after a restore (state is loaded by then)."""

    def after_backward(self, run: Run) -> None:
        """Gradients of the step are complete, the weights are not updated yet: dense gradients exist only here."""

    def after_step(self, run: Run) -> None:
        """The update of step ``run.step - 1`` is done."""

    def metrics(self) -> dict[str, float]:
        return {}

    def density(self) -> float | None:
        """Live share of the prunable weights, for the accounting; None where the hook does not decide it."""
        return None

    def compute(self) -> float | None:
        """FLOPs of the step just taken on the prunable weights over those of a dense step; by default the density."""
        return self.density()

    def results(self) -> dict[str, float]:
        """Scalars that the finished run leaves in its record."""
        return {}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(JSON values, tensors) that a checkpoint must carry."""
        return {}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        pass
