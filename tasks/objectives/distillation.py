"""Knowledge distillation: learn from a teacher's distribution over the next token as well as from the token itself.

``ce`` * cross-entropy + ``kl`` * T^2 * KL(teacher || student) at ``temperature`` T, both per predicted token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.train.objective import Metrics


class Distillation(Objective):
    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531)"

    ce: float = Field(0.33, ge=0)
    """Weight of the cross-entropy."""
    kl: float = Field(0.67, ge=0)
    """Weight of the KL divergence to the teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of both distributions in the KL divergence."""

    @model_validator(mode="after")
    def _learns_from_the_teacher(self) -> Distillation:
        if self.kl == 0:
            raise ValueError("kl is 0: nothing would be learned from the teacher; choose cross_entropy")
        return self

    def needs_teacher(self) -> bool:
        return True

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        assert teacher_NV is not None, "it needs one"
        from tasks.train.losses import cross_entropy, divergence

        loss, apart = cross_entropy(student_NV, following_N), divergence(student_NV, teacher_NV, self.temperature)
        return self.ce * loss + self.kl * apart, {"loss": loss.detach(), "kl": apart.detach()}
