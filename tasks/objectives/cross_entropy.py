"""Predict the next token: the mean cross-entropy of each token that counts, given its prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.train.objective import Metrics, Told


class CrossEntropy(Objective):
    paper: ClassVar[str] = "maximum likelihood of the next token"

    def of_tokens(
        self, student_NV: torch.Tensor, teacher_NV: Told | None, following_N: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        from tasks.train.losses import cross_entropy

        loss = cross_entropy(student_NV, following_N)
        return loss, {"loss": loss.detach()}
