"""Distillation the other way round: the divergence of the student from the teacher, taken over the student's own odds.

``ce`` * cross-entropy + ``kl`` * T^2 * KL(student || teacher) at ``temperature`` T, both per predicted token. Forward KL asks
the student to give odds to all that the teacher finds likely; this one to give none to what the teacher finds unlikely, which
suits a student too small to do both. The tokens are those of the text, not of the student's own writing as in MiniLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.train.objective import Metrics


class ReverseKl(Objective):
    paper: ClassVar[str] = "MiniLLM (arXiv 2306.08543)"

    ce: float = Field(0.33, ge=0)
    """Weight of the cross-entropy."""
    kl: float = Field(0.67, gt=0)
    """Weight of the KL divergence from the teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of both distributions in the KL divergence."""

    def needs_teacher(self) -> bool:
        return True

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        assert teacher_NV is not None, "it needs one"
        from tasks.train.losses import cross_entropy, divergence

        loss, apart = cross_entropy(student_NV, following_N), divergence(teacher_NV, student_NV, self.temperature)
        return self.ce * loss + self.kl * apart, {"loss": loss.detach(), "reverse_kl": apart.detach()}
