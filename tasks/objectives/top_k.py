"""Distillation from the few tokens that the teacher finds likeliest, and one more that stands for all the rest.

``ce`` * cross-entropy + ``kl`` * T^2 * KL(teacher || student) at ``temperature`` T over the teacher's ``k`` likeliest tokens.
With ``tail`` what is left of both distributions is one token more, so that the student may give the rest no more odds than
the teacher does; the divergence is then a lower bound of the whole one, and is it where k leaves a single token out. Without,
both are scaled to sum to one over the k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.train.objective import Metrics


class TopK(Objective):
    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531) over the teacher's likeliest tokens"

    ce: float = Field(0.33, ge=0)
    """Weight of the cross-entropy."""
    kl: float = Field(0.67, gt=0)
    """Weight of the KL divergence to the teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature of both distributions in the KL divergence."""
    k: int = Field(64, ge=1)
    """How many of the teacher's likeliest tokens are told apart; of a smaller vocabulary all."""
    tail: bool = True
    """Whether the rest counts as one token, or is left out."""

    def needs_teacher(self) -> bool:
        return True

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: torch.Tensor | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        assert teacher_NV is not None, "it needs one"
        from tasks.train.losses import cross_entropy, divergence, likeliest

        chosen = likeliest(teacher_NV, student_NV, self.k, self.temperature, self.tail)
        loss, apart = cross_entropy(student_NV, following_N), divergence(chosen[1], chosen[0], self.temperature)
        return self.ce * loss + self.kl * apart, {"loss": loss.detach(), "top_k_kl": apart.detach()}
