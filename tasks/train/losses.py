"""The terms that objectives are made of, each a mean over the tokens of a batch that count.

Shapes: B = sequences, T = tokens, V = vocabulary, N = predicted tokens of the batch.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tasks.data.batch import IGNORED, Batch


def next_token_loss(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy in nats of each next token given its prefix; 0 where none counts."""
    return cross_entropy(predicting(logits_BTV, batch), predicted(batch))


def cross_entropy(logits_NV: torch.Tensor, following_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of each token; 0 of none."""
    return functional.cross_entropy(logits_NV, following_N, reduction="mean" if len(following_N) else "sum")


def divergence(student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) at temperature T per token: T^2 keeps its gradient's size."""
    divergence = functional.kl_div(
        functional.log_softmax(student_NV / temperature, -1),
        functional.log_softmax(teacher_NV / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    return temperature**2 * (divergence / max(1, len(student_NV)))


def likeliest(
    teacher_NV: torch.Tensor, student_NV: torch.Tensor, k: int, temperature: float, tail: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of both for the teacher's ``k`` likeliest tokens, with a ``tail`` one more that has, at this temperature, the
    odds of all others together; all logits as they are where nothing or one token would be left out."""
    if k >= teacher_NV.shape[-1] - tail:
        return teacher_NV, student_NV
    best_NK = teacher_NV.topk(k, -1).indices

    def cut(logits_NV: torch.Tensor) -> torch.Tensor:
        kept_NK = logits_NV.gather(-1, best_NK)
        if not tail:
            return kept_NK
        rest_NV = (logits_NV / temperature).scatter(-1, best_NK, -torch.inf)
        return torch.cat([kept_NK, temperature * rest_NV.logsumexp(-1, keepdim=True)], -1)

    return cut(teacher_NV), cut(student_NV)


def predicting(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The logits that predict a token that counts, in float32."""
    if batch.labels is None:
        return logits_BTV[:, :-1].flatten(0, 1).float()
    return logits_BTV[:, :-1][batch.following != IGNORED].float()


def predicted(batch: Batch) -> torch.Tensor:
    """The tokens that count, in the order of what predicts them."""
    following_N = batch.following.flatten()
    return following_N if batch.labels is None else following_N[following_N != IGNORED]
