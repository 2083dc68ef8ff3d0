"""Roots of the objectives that learn from a teacher: from its odds of the next token, or from what happens inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.train.losses import Likely
    from tasks.train.objective import Metrics, Told


class LogitDistillation(Objective):
    """``ce`` * cross-entropy + ``kl`` * a divergence of the model's and the teacher's distributions, both per predicted
    token."""

    told: ClassVar[str] = "kl"  # the divergence's name among the metrics

    ce: float = Field(0.33, ge=0)
    """Weight of the cross-entropy."""
    kl: float = Field(0.67, ge=0)
    """Weight of the KL divergence between model and teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of both distributions in the KL divergence."""

    @model_validator(mode="after")
    def _learns_from_the_teacher(self) -> Self:
        if self.kl == 0:
            raise ValueError("kl is 0: nothing would be learned from the teacher; choose cross_entropy")
        return self

    def needs_teacher(self) -> bool:
        return True

    def apart(self, student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
        """The mean divergence over tokens."""
        raise NotImplementedError

    def apart_from_written(self, student_NV: torch.Tensor, teacher: Likely) -> torch.Tensor:
        """The same from what was written down, of an objective that may read that."""
        raise NotImplementedError

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: Told | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        assert teacher_NV is not None, "it needs one"
        from tasks.train.losses import Likely, cross_entropy

        loss = cross_entropy(student_NV, following_N)
        if isinstance(teacher_NV, Likely):
            apart = self.apart_from_written(student_NV, teacher_NV)
        else:
            apart = self.apart(student_NV, teacher_NV)
        return self.ce * loss + self.kl * apart, {"loss": loss.detach(), self.told: apart.detach()}


class FeatureDistillation(Objective):
    """``ce`` * cross-entropy, and what the class that descends from it makes of the states inside (``of_states``)."""

    ce: float = Field(1.0, ge=0)
    """Weight of the cross-entropy."""

    def needs_teacher(self) -> bool:
        return True

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: Told | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        from tasks.train.losses import cross_entropy

        loss = cross_entropy(student_NV, following_N)
        return self.ce * loss, {"loss": loss.detach()}
