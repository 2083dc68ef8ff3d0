"""Masked finetuning: train what lives, keep what is dead, optionally learning from the model before it was pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.train.regime import Regime, Setting

if TYPE_CHECKING:
    from tasks.train.objective import Objective


class Masked(Regime):
    """``ce`` * cross-entropy + ``kl`` * KL to the teacher at ``temperature``, under the mask the model came with."""

    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531) under a fixed mask"

    ce: float = Field(0.33, ge=0)
    """Weight of the cross-entropy."""
    kl: float = Field(0.67, ge=0)
    """Weight of the KL divergence to the teacher; 0 needs no teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of both distributions in the KL divergence."""

    @model_validator(mode="after")
    def _some_loss(self) -> Masked:
        if self.ce == self.kl == 0:
            raise ValueError("ce and kl are both 0: nothing would be learned")
        return self

    def needs_teacher(self) -> bool:
        return self.kl > 0

    def objective(self, setting: Setting) -> Objective:
        from tasks.models.checkpoint import load_model
        from tasks.train.objective import Distillation

        if not self.needs_teacher():
            return super().objective(setting)
        teacher = load_model(setting.teacher, device=setting.device).eval().requires_grad_(False)
        return Distillation(teacher, self.ce, self.kl, self.temperature)
