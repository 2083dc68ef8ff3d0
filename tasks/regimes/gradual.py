"""Gradual magnitude pruning during pretraining, its window laid in compute (The Journey Matters).

Sparse pretraining at a fixed compute budget sees more tokens than its dense twin: what a pruned step saves pays for
further steps. Density decays (exponentially by default, by Zhu and Gupta's cubic, or all at once at ``start``) between
``start`` and ``end`` of the *compute*, weights ranked over all prunable matrices together. Embeddings and norms stay
dense, and so does the LM head (the paper prunes it too; here later stages work on the decoder blocks only).

Measured (flows/recipes/claims): a 4 x 128 Llama at 80 % and the FLOPs of 5 M dense tokens ends at 8.09 ± 0.04 held-out
perplexity with the window from 25 to 75 %, and between 8.4 and 10.2 with five other windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.train.regime import Outcome, Regime, Setting

if TYPE_CHECKING:
    from tasks.train.hook import Hook
    from tasks.train.schedule import ComputeWindow


class Gradual(Regime):
    paper: ClassVar[str] = "The Journey Matters (arXiv 2501.12486)"
    masks: ClassVar[Outcome] = "narrowed"

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Sparsity at the end. In pretrain, ``iso`` is the one at which a transformed model costs what its architecture costs
    dense."""
    start: float = Field(0.25, ge=0, le=1)
    """Where pruning begins, as a share of the compute."""
    end: float = Field(0.75, ge=0, le=1)
    """Where pruning ends, as a share of the compute."""
    interval: int = Field(100, gt=0)
    """Steps between prunings."""
    scope: Literal["global", "layer", "row"] = "global"
    """What is ranked together: all prunable matrices, one matrix, or one row."""
    schedule: Literal["exponential", "cubic", "one_shot"] = "exponential"
    """How the density falls between ``start`` and ``end``; ``one_shot`` is all at ``start``."""
    budget: Literal["compute", "tokens"] = "compute"
    """What the stage's ``tokens`` are: ``compute`` in dense tokens, so that a sparser run sees more, or the very ``tokens`` to
    train on."""

    @model_validator(mode="after")
    def _ordered(self) -> Gradual:
        if self.schedule != "one_shot" and self.start >= self.end:
            raise ValueError(f"start must come before end, got start {self.start:g} and end {self.end:g}")
        return self

    def _compute_window(self) -> ComputeWindow:
        from tasks.train.schedule import ComputeWindow

        end = self.start if self.schedule == "one_shot" else self.end
        return ComputeWindow(self.sparsity, self.start, end, self.schedule)

    def _window(self, dense_steps: int) -> tuple[int, int, int]:
        """(start, end, total) in steps."""
        window = self._compute_window()
        return window.steps(dense_steps / window.stretch if self.budget == "tokens" else dense_steps, self.interval)

    def total_steps(self, dense_steps: int) -> int:
        return dense_steps if self.budget == "tokens" else self._window(dense_steps)[2]

    def expected_density(self, dense_steps: int) -> float:
        return 1 / self._compute_window().stretch

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.masking import GradualMagnitude, Masking
        from tasks.train.schedule import SCHEDULES

        if self.sparsity == 0:
            return [Masking(setting.linears, setting.masks)]
        start, end, _ = self._window(setting.dense_steps)
        schedule = SCHEDULES[self.schedule](self.sparsity, start, end, self.interval)
        return [GradualMagnitude(setting.linears, setting.masks, schedule, self.scope)]
