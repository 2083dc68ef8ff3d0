"""Models whose answers are known: for worked examples of objectives."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tasks.data.batch import IGNORED, Batch

TOKENS = torch.tensor([[0, 2, 1], [1, 1, 0]])
PLAIN = Batch(TOKENS)
COMPLETION = Batch(TOKENS, torch.tensor([[IGNORED, IGNORED, 1], [IGNORED, 1, 0]]))  # the first row has a longer prompt


class Fixed:
    """Stands for an engine and for a teacher: gives answers that do not depend on the tokens."""

    def __init__(self, logits_BTV: torch.Tensor, *hidden_BTD: torch.Tensor, attentions: tuple = ()) -> None:
        self.answer = SimpleNamespace(logits=logits_BTV, hidden_states=hidden_BTD, attentions=attentions)

    def forward(self, **given) -> SimpleNamespace:
        return self.answer

    __call__ = forward


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def cross_entropy(logits_BTV: torch.Tensor, batch: Batch = PLAIN) -> float:
    """By hand, token by token."""
    scored = [
        -torch.log_softmax(logits_BTV[row, place], -1)[TOKENS[row, place + 1]].item()
        for row in (0, 1)
        for place in (0, 1)
        if batch.following[row, place] != IGNORED
    ]
    return sum(scored) / len(scored)
