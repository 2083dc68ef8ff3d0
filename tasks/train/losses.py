"""The terms that objectives are made of, each a mean over the tokens of a batch that count.

Shapes: B = sequences, T = tokens, V = vocabulary, N = predicted tokens of the batch, K = likeliest of them, L = K, and one more
for the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from tasks.data.batch import IGNORED, Batch


class Likely(NamedTuple):
    """What was written down of a teacher: the likeliest tokens, best first, and the log-probabilities of these and, unless they
    are all, of all others together."""

    tokens_NK: torch.Tensor
    odds_NL: torch.Tensor

    def part(self, tokens: slice) -> Likely:
        return Likely(self.tokens_NK[tokens], self.odds_NL[tokens])


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
    return _cut(teacher_NV, best_NK, temperature, tail), _cut(student_NV, best_NK, temperature, tail)


def as_written(teacher: Likely, student_NV: torch.Tensor, temperature: float, tail: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from what was written down of the teacher at this temperature."""
    kept, tail = teacher.tokens_NK.shape[-1], tail and teacher.odds_NL.shape[-1] > teacher.tokens_NK.shape[-1]
    teacher_NL = temperature * teacher.odds_NL[:, : kept + tail].float()
    return teacher_NL, _cut(student_NV, teacher.tokens_NK.long(), temperature, tail)


def _cut(logits_NV: torch.Tensor, best_NK: torch.Tensor, temperature: float, tail: bool) -> torch.Tensor:
    """The logits of some tokens, with a ``tail`` one more that has the odds of all others together."""
    kept_NK = logits_NV.gather(-1, best_NK)
    if not tail:
        return kept_NK
    rest_NV = (logits_NV / temperature).scatter(-1, best_NK, -torch.inf)
    return torch.cat([kept_NK, temperature * rest_NV.logsumexp(-1, keepdim=True)], -1)


def predicting(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The logits that predict a token that counts, in float32."""
    if batch.labels is None:
        return logits_BTV[:, :-1].flatten(0, 1).float()
    return logits_BTV[:, :-1][batch.following != IGNORED].float()


def predicted(batch: Batch) -> torch.Tensor:
    """The tokens that count, in the order of what predicts them."""
    following_N = batch.following.flatten()
    return following_N if batch.labels is None else following_N[following_N != IGNORED]


def written(batch: Batch) -> Likely:
    """What the batch carries of a teacher, of the tokens that count."""
    assert batch.likely is not None and batch.odds is not None, "the sampler reads them beside the text"
    if batch.labels is None:
        return Likely(batch.likely.flatten(0, 1), batch.odds.flatten(0, 1))
    counts_BT = batch.following != IGNORED
    return Likely(batch.likely[counts_BT], batch.odds[counts_BT])
