"""Hooks: the callbacks by which a method takes part in training, so that the loop knows no method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tasks.data.tokens import Sampler
    from tasks.train.engine import Engine
    from tasks.train.objective import Loss


@dataclass
class Run:
    """What hooks see of the run in progress. ``step`` counts finished optimizer steps; ``pieces`` are the micro-batches that
    the step being taken goes through on this rank: what is added to a gradient in each of them is added that often."""

    engine: Engine
    steps: int
    step: int = 0
    pieces: int = 1
    ended: bool = False  # set by a hook after a step: the run goes no further


class Hook:
    """Does nothing; a method overrides what it needs. Every rank calls every hook at the same moments."""

    def sampler(self, sampler: Sampler) -> Sampler:
        """What the run draws its batches from, given what it would draw them from without this hook."""
        return sampler

    def objective(self, objective: Loss) -> Loss:
        """What the run minimises, given what it would minimise without this hook; it calls that one in turn."""
        return objective

    def on_start(self, run: Run) -> None:
        """Before the first step, also after a restore (state is loaded by then)."""

    def after_backward(self, run: Run) -> None:
        """Gradients of the step are complete, the weights are not updated yet: dense gradients exist only here."""

    def after_step(self, run: Run) -> None:
        """The update of step ``run.step - 1`` is done."""

    def metrics(self) -> dict[str, float]:
        return {}

    def remark(self) -> str:
        """What the progress line says beside the loss."""
        return ""

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
