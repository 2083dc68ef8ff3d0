"""Predict the next token: the mean cross-entropy of each token that counts, given its prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.train.objective import Objective

if TYPE_CHECKING:
    import torch

    from tasks.data.batch import Batch
    from tasks.train.engine import Answer
    from tasks.train.objective import Metrics


class CrossEntropy(Objective):
    paper: ClassVar[str] = "maximum likelihood of the next token"

    def loss(self, student: Answer, teacher: Answer | None, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        from tasks.train.losses import next_token_loss

        loss = next_token_loss(student.logits, batch)
        return loss, {"loss": loss.detach()}
