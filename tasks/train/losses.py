"""The terms that objectives are made of, each a mean over the tokens of a batch that count.

Shapes: B = sequences, T = tokens, V = vocabulary, N = predicted tokens of the batch.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tasks.data.batch import IGNORED, Batch


def next_token_loss(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy in nats of each next token given its prefix; 0 where none counts."""
    logits_NV, following_N = predicting(logits_BTV, batch), batch.following.flatten()
    if batch.labels is not None:
        following_N = following_N[following_N != IGNORED]
    return functional.cross_entropy(logits_NV, following_N, reduction="mean" if len(following_N) else "sum")


def divergence(student_BTV: torch.Tensor, teacher_BTV: torch.Tensor, batch: Batch, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) at temperature T per predicted token: T^2 keeps its gradient's size."""
    student_NV, teacher_NV = predicting(student_BTV, batch), predicting(teacher_BTV, batch)
    divergence = functional.kl_div(
        functional.log_softmax(student_NV / temperature, -1),
        functional.log_softmax(teacher_NV / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    return temperature**2 * (divergence / max(1, len(student_NV)))


def predicting(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The logits that predict a token that counts, in float32."""
    if batch.labels is None:
        return logits_BTV[:, :-1].flatten(0, 1).float()
    return logits_BTV[:, :-1][batch.following != IGNORED].float()
